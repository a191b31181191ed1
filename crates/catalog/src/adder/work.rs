//! The threads: each takes files in waiting first, then unpacks the next unit.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::formats;
use crate::limits::{MAX_FILE_BYTES, MAX_QUEUED_FILE_BYTES, MAX_QUEUED_FILES};
use crate::segment::read::Source;
use crate::source::deb::{Deb, Entry};
use crate::source::path::normalise;

use super::Stop;
use super::encode::encode;
use super::inputs::{FILE_GUESS, Plan, Tree, Unit};
use super::store::Store;
use super::summary::{Progress, Tally, one};

#[cfg(test)]
mod tests;

/// Why a file that was named is refused, if nothing else is wrong with it.
const NO_CODE: &str = "holds no code of a known kind";

/// A file that may hold code, whole.
struct Job {
    bytes: Vec<u8>,
    path: String,
    to: Destination,
}

/// Where a recognised file is placed.
enum Destination {
    /// In a package, once that has turned out to be whole.
    Package(Arc<Package>),
    /// In a tree, owned by what its database says.
    Tree(Arc<Tree>),
    /// By itself; whether somebody named it, and not only the folder that it is in.
    File { named: bool },
}

/// A package that is being unpacked.
struct Package {
    source: Source,
    /// Its input's name.
    name: String,
    staged: Mutex<Staged>,
    damaged: AtomicBool,
    /// Jobs under way, and one for the unpacking itself.
    open: AtomicUsize,
}

/// What a package will place.
#[derive(Default)]
struct Staged {
    /// Files recognised: path, digest.
    files: Vec<(String, [u8; 32])>,
    /// Other names of files: path, the file's path.
    links: Vec<(String, String)>,
}

/// What all threads share.
struct Shop<'a> {
    units: Mutex<std::vec::IntoIter<Unit>>,
    store: Mutex<&'a mut Store>,
    tally: &'a Tally,
    stop: Mutex<Option<Stop>>,
    stopped: AtomicBool,
    done: AtomicU64,
    total: u64,
    progress: &'a (dyn Fn(&Progress) + Sync + Send),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where files wait until a thread has time for them.
fn queue() -> (Sender<Job>, Receiver<Job>) {
    bounded(MAX_QUEUED_FILES)
}

/// Does all the work of a plan.
///
/// # Errors
/// The catalog is damaged or cannot be written.
pub(crate) fn run(
    plan: Plan,
    store: &mut Store,
    tally: &mut Tally,
    threads: usize,
    progress: &(dyn Fn(&Progress) + Sync + Send),
) -> Result<(), Stop> {
    let shop = Shop {
        units: Mutex::new(plan.units.into_iter()),
        store: Mutex::new(store),
        tally,
        stop: Mutex::new(None),
        stopped: AtomicBool::new(false),
        done: AtomicU64::new(0),
        total: plan.total,
        progress,
    };
    let (sender, receiver) = queue();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, receiver) = (sender.clone(), receiver.clone());
            let shop = &shop;
            scope.spawn(move || shop.work(sender, &receiver));
        }
        drop(sender);
    });
    lock(&shop.stop).take().map_or(Ok(()), Err)
}

impl Shop<'_> {
    fn work(&self, sender: Sender<Job>, waiting: &Receiver<Job>) {
        while !self.stopped.load(Ordering::Relaxed) {
            while let Ok(job) = waiting.try_recv() {
                self.job(job);
            }
            let unit = lock(&self.units).next();
            match unit {
                Some(unit) => self.unit(unit, &sender),
                None => break,
            }
        }
        drop(sender);
        // Ends when the last thread that unpacks is done. After a stop the rest is dropped unseen.
        for job in waiting {
            if !self.stopped.load(Ordering::Relaxed) {
                self.job(job);
            }
        }
    }

    fn unit(&self, unit: Unit, sender: &Sender<Job>) {
        match unit {
            Unit::Deb(path, len) => {
                self.show(0, &path.file_name().unwrap_or_default().to_string_lossy());
                self.deb(&path, sender);
                self.show(len, &path.file_name().unwrap_or_default().to_string_lossy());
            }
            Unit::Tree(tree, files) => {
                for file in &files {
                    self.tree_file(&tree, file, sender);
                }
                self.show(files.len() as u64 * FILE_GUESS, &tree.name);
            }
            Unit::File { path, len, named } => {
                self.file(&path, named, sender);
                self.show(len, &path.file_name().unwrap_or_default().to_string_lossy());
            }
        }
    }

    fn show(&self, done: u64, input: &str) {
        let done = self.done.fetch_add(done, Ordering::Relaxed).saturating_add(done);
        (self.progress)(&Progress {
            done,
            total: self.total,
            input: input.to_owned(),
        });
    }

    fn deb(&self, path: &Path, sender: &Sender<Job>) {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let deb = match File::open(path).map_err(|e| e.to_string()).and_then(Deb::open) {
            Ok(deb) => deb,
            Err(error) => return self.tally.refuse(&name, "", error),
        };
        let package = Arc::new(Package {
            source: Source {
                package: Some(deb.package.clone()),
                origin: name.clone(),
            },
            name,
            staged: Mutex::default(),
            damaged: AtomicBool::new(false),
            open: AtomicUsize::new(1),
        });
        let result = deb.each(&mut |entry| self.deb_entry(&package, entry, sender));
        match result {
            Ok(()) => one(&self.tally.packages),
            Err(error) => {
                package.damaged.store(true, Ordering::SeqCst);
                self.tally.refuse(&package.name, "", error);
            }
        }
        self.close(&package);
    }

    fn deb_entry(
        &self,
        package: &Arc<Package>,
        entry: Entry<'_>,
        sender: &Sender<Job>,
    ) -> Result<(), String> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err("stopped".to_owned());
        }
        let tally = self.tally;
        match entry {
            Entry::Directory => {}
            Entry::Symlink => one(&tally.symbolic_links),
            Entry::Device => one(&tally.devices),
            Entry::Hardlink { path, target } => {
                one(&tally.hard_links);
                match (normalise(path), normalise(target)) {
                    (Ok(path), Ok(target)) => lock(&package.staged).links.push((path, target)),
                    (Err(why), _) | (_, Err(why)) => {
                        tally.refuse(&package.name, &String::from_utf8_lossy(path), why);
                    }
                }
            }
            Entry::File {
                path: raw,
                len,
                bytes,
            } => {
                one(&tally.files);
                match normalise(raw) {
                    Ok(path) => {
                        let to = || {
                            package.open.fetch_add(1, Ordering::SeqCst);
                            Destination::Package(Arc::clone(package))
                        };
                        self.read(bytes, len, path, &package.name, to, sender)?;
                    }
                    Err(why) => tally.refuse(&package.name, &String::from_utf8_lossy(raw), why),
                }
            }
        }
        Ok(())
    }

    fn tree_file(&self, tree: &Arc<Tree>, file: &[u8], sender: &Sender<Job>) {
        one(&self.tally.files);
        let shown = format!("/{}", String::from_utf8_lossy(file));
        let result = normalise(file).map_err(str::to_owned).and_then(|path| {
            let (mut bytes, len) = tree.root.file(file).map_err(|e| e.to_string())?;
            self.read(
                &mut bytes,
                len,
                path,
                &tree.name,
                || Destination::Tree(Arc::clone(tree)),
                sender,
            )
        });
        if let Err(error) = result {
            self.tally.refuse(&tree.name, &shown, error);
        }
    }

    fn file(&self, path: &Path, named: bool, sender: &Sender<Job>) {
        one(&self.tally.files);
        let absolute = std::fs::canonicalize(path)
            .unwrap_or_else(|_| path.to_owned())
            .display()
            .to_string();
        let result = File::open(path).map_err(|e| e.to_string()).and_then(|mut file| {
            let len = file.metadata().map_err(|e| e.to_string())?.len();
            self.read(
                &mut file,
                len,
                absolute.clone(),
                &absolute,
                || Destination::File { named },
                sender,
            )
        });
        match result {
            Err(error) => self.tally.refuse(&absolute, "", error),
            Ok(false) if named => self.tally.refuse(&absolute, "", NO_CODE),
            Ok(_) => {}
        }
    }

    /// Reads a file whole, if its start looks like code, and hands it on. False if it does not.
    fn read(
        &self,
        bytes: &mut dyn Read,
        len: u64,
        path: String,
        input: &str,
        to: impl FnOnce() -> Destination,
        sender: &Sender<Job>,
    ) -> Result<bool, String> {
        let mut whole = Vec::new();
        let broken = |e: std::io::Error| format!("{path}: {e}");
        bytes
            .take(formats::HEAD)
            .read_to_end(&mut whole)
            .map_err(broken)?;
        if !formats::may_hold_code(&whole, &path) {
            one(&self.tally.no_code);
            return Ok(false);
        }
        if len > MAX_FILE_BYTES {
            self.tally
                .refuse(input, &path, format!("larger than {MAX_FILE_BYTES} bytes"));
            return Ok(true);
        }
        // The length is a claim; the vector grows with what is really there.
        bytes
            .take(len.saturating_sub(whole.len() as u64))
            .read_to_end(&mut whole)
            .map_err(broken)?;
        self.tally.bytes.fetch_add(whole.len() as u64, Ordering::Relaxed);
        let job = Job {
            bytes: whole,
            path,
            to: to(),
        };
        if job.bytes.len() > MAX_QUEUED_FILE_BYTES {
            self.job(job);
        } else if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = sender.try_send(job) {
            self.job(job);
        }
        Ok(true)
    }

    fn job(&self, job: Job) {
        if let Err(stop) = self.recognise(&job) {
            self.stopped.store(true, Ordering::SeqCst);
            lock(&self.stop).get_or_insert(stop);
        }
        if let Destination::Package(package) = &job.to {
            self.close(package);
        }
    }

    fn recognise(&self, job: &Job) -> Result<(), Stop> {
        let digest = *blake3::hash(&job.bytes).as_bytes();
        let known = lock(&self.store).knows(&digest)?;
        if !known {
            match encode(digest, &job.bytes, &job.path) {
                Ok(Some(encoded)) => lock(&self.store).insert(&encoded)?,
                Ok(None) => {
                    one(&self.tally.no_code);
                    if let Destination::File { named: true } = job.to {
                        self.tally.refuse(&job.path, "", NO_CODE);
                    }
                    return Ok(());
                }
                Err(error) => {
                    self.tally.refuse(job.to.input(&job.path), &job.path, error);
                    return Ok(());
                }
            }
        }
        one(&self.tally.recognised);
        match &job.to {
            Destination::Package(package) => lock(&package.staged).files.push((job.path.clone(), digest)),
            Destination::Tree(tree) => {
                let (package, path) = self.owner(tree, job);
                let source = Source {
                    package,
                    origin: tree.name.clone(),
                };
                lock(&self.store).place(&digest, source, path)?;
            }
            Destination::File { .. } => {
                let source = Source {
                    package: None,
                    origin: "file".to_owned(),
                };
                lock(&self.store).place(&digest, source, job.path.clone())?;
            }
        }
        Ok(())
    }

    /// Who owns a file of a tree. A package's word is only taken for contents that have the checksum it gives: a file
    /// that was changed since is nobody's.
    fn owner(&self, tree: &Tree, job: &Job) -> (Option<crate::Package>, String) {
        use md5::Digest as _;
        let Some(owner) = tree.database.owner(&job.path) else {
            return (None, job.path.clone());
        };
        if owner
            .md5
            .is_some_and(|md5| md5::Md5::digest(&job.bytes).as_slice() != md5)
        {
            one(&self.tally.altered);
            return (None, job.path.clone());
        }
        (
            tree.database.packages.get(owner.package).cloned(),
            owner.path.clone(),
        )
    }

    /// One job of a package is done; the last one places what was staged.
    fn close(&self, package: &Package) {
        if package.open.fetch_sub(1, Ordering::SeqCst) != 1 {
            return;
        }
        if package.damaged.load(Ordering::SeqCst) || self.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Staged { mut files, links } = std::mem::take(&mut *lock(&package.staged));
        files.sort();
        for (path, target) in links {
            let found = files
                .binary_search_by(|(path, _)| path.cmp(&target))
                .ok()
                .and_then(|n| files.get(n));
            // The target is unknown if it holds no code.
            if let Some((_, digest)) = found {
                let digest = *digest;
                let at = files.partition_point(|(other, _)| *other < path);
                files.insert(at, (path, digest));
            }
        }
        let mut store = lock(&self.store);
        for (path, digest) in files {
            if let Err(stop) = store.place(&digest, package.source.clone(), path) {
                self.stopped.store(true, Ordering::SeqCst);
                lock(&self.stop).get_or_insert(stop);
                return;
            }
        }
    }
}

impl Destination {
    fn input<'a>(&'a self, path: &'a str) -> &'a str {
        match self {
            Self::Package(package) => &package.name,
            Self::Tree(tree) => &tree.name,
            Self::File { .. } => path,
        }
    }
}
