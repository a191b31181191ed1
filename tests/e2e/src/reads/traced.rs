//! What `strace -ff -y` wrote: a file for each process.
//!
//! ```text
//!  @trace 812                                          one of its files: the process
//!  execve("/usr/bin/ant", [...], ...) = 0
//!  read(3</usr/share/x.php>, "", 8192) = 4096
//!  clone(child_stack=NULL, ...) = 813
//!  @file /usr/bin/ant #!/bin/sh                        each file that was named: what it begins with, if that is `#!`
//!  @real /bin/sh /usr/bin/dash                         each program that was named, as the kernel calls it
//!  @owner dokuwiki: /usr/share/dokuwiki/doku.php       as `dpkg -S` says it
//!  @package dokuwiki dokuwiki 0.0.20220731.a-2         each package, its source package, its version
//!  @said 200                                           what the work printed
//!  @exe 812 /usr/bin/dash                              who ran already when tracing began
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, ensure};

/// A program that read a file: both by the path that the guest's kernel gives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Read {
    /// The program's file name, without its folders.
    pub program: String,
    /// The file.
    pub path: String,
}

/// All that was traced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traced {
    /// Who read what by `read` and its like, and who was started from what.
    pub reads: BTreeSet<Read>,
    /// Who mapped what and may have read it.
    pub mapped: BTreeSet<Read>,
    /// Files that begin with `#!`.
    pub scripts: BTreeSet<String>,
    /// By path, the package that a file is of.
    pub owners: BTreeMap<String, String>,
    /// By package, its version.
    pub versions: BTreeMap<String, String>,
    /// What the work printed.
    pub said: Vec<String>,
}

/// Calls that read a file whose descriptor is their first argument, and one where it is the second.
const READ: [&str; 5] = ["read", "pread64", "readv", "preadv", "copy_file_range"];
const SEND: &str = "sendfile";
const FORK: [&str; 4] = ["clone", "clone3", "fork", "vfork"];

#[derive(Debug, Default)]
struct Process {
    /// What it executes at first.
    program: Option<String>,
    lines: Vec<String>,
}

/// What is executed when a file is.
#[derive(Debug, Default)]
struct Programs {
    /// What a script names in its first line.
    interpreters: HashMap<String, String>,
    /// A program's path without links.
    real: HashMap<String, String>,
}

impl Programs {
    fn executed(&self, path: &str) -> String {
        let mut program = path;
        // Linux follows so many (`exec_binprm` in `fs/exec.c`).
        for _ in 0..5 {
            program = self.interpreters.get(program).map_or(program, String::as_str);
        }
        self.real(program).to_owned()
    }

    /// A path without links.
    fn real<'a>(&'a self, path: &'a str) -> &'a str {
        self.real.get(path).map_or(path, String::as_str)
    }
}

impl Traced {
    /// Reads what the guest sent.
    ///
    /// # Errors
    /// When its end is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let mut processes: BTreeMap<u32, Process> = BTreeMap::new();
        let mut programs = Programs::default();
        let mut traced = Self::default();
        let (mut current, mut is_whole) = (None, false);
        for line in text.lines() {
            if let Some(pid) = line.strip_prefix("@trace ") {
                current = Some(pid.trim().parse().with_context(|| format!("line `{line}`"))?);
            } else if let Some(rest) = line.strip_prefix("@file ") {
                let (path, head) = rest.split_once(" #!").with_context(|| format!("line `{line}`"))?;
                traced.scripts.insert(path.to_owned());
                let interpreter = head.split_whitespace().next().unwrap_or_default();
                programs
                    .interpreters
                    .insert(path.to_owned(), interpreter.to_owned());
            } else if let Some(rest) = line.strip_prefix("@real ") {
                let (path, real) = rest.split_once(' ').with_context(|| format!("line `{line}`"))?;
                programs.real.insert(path.to_owned(), real.to_owned());
            } else if let Some(rest) = line.strip_prefix("@exe ") {
                let (pid, exe) = rest.split_once(' ').with_context(|| format!("line `{line}`"))?;
                processes.entry(pid.parse()?).or_default().program = Some(exe.to_owned());
            } else if let Some(rest) = line.strip_prefix("@owner ") {
                if let Some((package, path)) = rest.split_once(": ") {
                    let package = package.split(':').next().unwrap_or(package);
                    traced.owners.insert(path.to_owned(), package.to_owned());
                }
            } else if let Some(rest) = line.strip_prefix("@package ") {
                let mut fields = rest.split(' ');
                if let (Some(package), Some(version)) = (fields.next(), fields.nth(1)) {
                    traced.versions.insert(package.to_owned(), version.to_owned());
                }
            } else if let Some(said) = line.strip_prefix("@said ") {
                traced.said.push(said.to_owned());
            } else if line == "@end" {
                is_whole = true;
            } else if let Some(pid) = current {
                processes.entry(pid).or_default().lines.push(line.to_owned());
            }
        }
        ensure!(is_whole, "what the guest traced has no end");
        traced.follow(&processes, &programs);
        Ok(traced)
    }

    /// Children begin as what their parent is when it makes them: parents first.
    fn follow(&mut self, processes: &BTreeMap<u32, Process>, known: &Programs) {
        let mut left: Vec<u32> = processes.keys().copied().collect();
        let children: BTreeSet<u32> = processes
            .values()
            .flat_map(|process| process.lines.iter().filter_map(|line| child(line)))
            .collect();
        let mut programs: HashMap<u32, String> = processes
            .iter()
            .filter_map(|(pid, process)| Some((*pid, process.program.clone()?)))
            .collect();
        while !left.is_empty() {
            let ready = |pid: &u32| programs.contains_key(pid) || !children.contains(pid);
            // One whose parent is nowhere is as good as any.
            let at = left.iter().position(ready).unwrap_or(0);
            let pid = left.remove(at);
            let program = programs.get(&pid).cloned().unwrap_or_default();
            let lines = processes.get(&pid).map(|process| process.lines.as_slice());
            for (child, program) in self.one(&program, lines.unwrap_or_default(), known) {
                programs.entry(child).or_insert(program);
            }
        }
    }

    /// Takes one process's reads. Its children, and what each is at first.
    fn one(&mut self, program: &str, lines: &[String], known: &Programs) -> Vec<(u32, String)> {
        let (mut program, mut children) = (program.to_owned(), Vec::new());
        for line in lines {
            if let Some(child) = child(line) {
                children.push((child, program.clone()));
                continue;
            }
            let Some((call, rest)) = line.split_once('(') else {
                continue;
            };
            let result = line
                .rsplit_once(" = ")
                .map(|(_, result)| result)
                .unwrap_or_default();
            if call == "execve" {
                let path = rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
                if let Some((path, _)) = path.filter(|_| result.starts_with('0')) {
                    // The kernel reads a script's first line for whoever wants to be it.
                    self.reads.insert(read(&program, known.real(path)));
                    program = known.executed(path);
                }
                continue;
            }
            let of = match call {
                SEND => rest.split_once(", ").map(|(_, rest)| rest),
                "mmap" => rest.split(", ").nth(4),
                _ if READ.contains(&call) => Some(rest),
                _ => None,
            };
            let path = of.and_then(|rest| rest.split_once('<')?.1.split_once('>'));
            let Some((path, _)) = path.filter(|(path, _)| path.starts_with('/')) else {
                continue;
            };
            if call == "mmap" {
                self.mapped.insert(read(&program, path));
            } else if result.starts_with(|digit: char| ('1'..='9').contains(&digit)) {
                self.reads.insert(read(&program, path));
            }
        }
        children
    }
}

fn read(program: &str, path: &str) -> Read {
    Read {
        program: program.rsplit('/').next().unwrap_or(program).to_owned(),
        path: path.to_owned(),
    }
}

/// The process or thread that a line made.
fn child(line: &str) -> Option<u32> {
    let (call, _) = line.split_once('(')?;
    let (_, result) = line.rsplit_once(" = ")?;
    // A thread has a file of its own too.
    if !FORK.contains(&call) {
        return None;
    }
    result.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(traced: &BTreeSet<Read>) -> Vec<(&str, &str)> {
        traced
            .iter()
            .map(|read| (read.program.as_str(), read.path.as_str()))
            .collect()
    }

    const TEXT: &str = "@trace 9\n\
        execve(\"/usr/bin/ant\", [\"ant\"], 0x7ffe /* 9 vars */) = 0\n\
        read(3</usr/share/ant/lib.sh>, \"\"..., 8192) = 400\n\
        read(3</usr/share/ant/lib.sh>, \"\"..., 8192) = 0\n\
        clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 10\n\
        @trace 10\n\
        read(4</empty.py>, \"\", 8192) = 0\n\
        execve(\"/usr/lib/jvm/bin/java\", [\"java\"], 0x7ffe /* 9 vars */) = 0\n\
        pread64(5</usr/share/java/a.jar>, \"\"..., 22, 100) = 22\n\
        mmap(NULL, 4096, PROT_READ, MAP_SHARED, 5</usr/share/java/b.jar>, 0) = 0x7f12\n\
        read(6<pipe:[123]>, \"\"..., 22) = 22\n\
        clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x7f}, 88) = 11\n\
        @trace 11\n\
        read(7</usr/share/java/c.jar>, \"\"..., 22) = 22\n\
        @trace 7\n\
        sendfile(4<socket:[1]>, 9</srv/a.js>, NULL, 100) = 100\n\
        read(8</srv/none.php>, 0x7ffe, 100) = -1 EAGAIN (Resource temporarily unavailable)\n\
        @file /usr/bin/ant #!/bin/sh -e\n\
        @real /bin/sh /usr/bin/dash\n\
        @exe 7 /usr/sbin/nginx\n\
        @owner ant:all: /usr/share/ant/lib.sh\n\
        @package ant ant 1.10.13-1\n\
        @said 200\n\
        @end\n";

    #[test]
    fn a_read_is_of_the_program_that_the_process_is_then() {
        let traced = Traced::parse(TEXT).unwrap();
        let expected = [
            ("", "/usr/bin/ant"),
            ("dash", "/usr/lib/jvm/bin/java"),
            ("dash", "/usr/share/ant/lib.sh"),
            ("java", "/usr/share/java/a.jar"),
            ("java", "/usr/share/java/c.jar"),
            ("nginx", "/srv/a.js"),
        ];
        assert_eq!(reads(&traced.reads), expected);
        assert_eq!(reads(&traced.mapped), [("java", "/usr/share/java/b.jar")]);
        assert!(traced.scripts.contains("/usr/bin/ant"));
        assert_eq!(traced.owners["/usr/share/ant/lib.sh"], "ant");
        assert_eq!(traced.versions["ant"], "1.10.13-1");
        assert_eq!(traced.said, ["200"]);
    }

    #[test]
    fn a_trace_without_its_end_is_refused() {
        assert!(Traced::parse("@trace 9\n").is_err());
    }
}
