//! The booted, watched guest in which attacks happen, and the ways to ask about them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::arrivals::{Arrival, Arrivals};
use nephoscope_e2e::living::list;
use nephoscope_e2e::truth::Mapping;
use nephoscope_e2e::{Control, Guest, Image, Kernel, Options, Planting, Truth, Watched, report, vm_name};
use serde_json::Value;

use crate::modules::Modules;
use crate::place::Place;
use crate::said::Said;
use crate::tools::{FOLDER, Tools};

/// How long something is waited for that has to come: starting a program in an emulated guest on a busy machine takes a
/// while, finding it does not.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at the report.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A monitor that tells nothing new for so long has nothing left to tell; and how often it is asked at most.
const CATCH_UP: Duration = Duration::from_secs(5);
const CATCHES_UP: usize = 24;

/// A watched guest, ready for attacks.
#[derive(Debug)]
pub struct Scene {
    /// The guest.
    pub guest: Guest,
    /// Its watch.
    pub control: Control,
    /// What it was made from.
    pub image: Image,
    /// Its kernel.
    pub kernel: Kernel,
    /// The attacks' programs, on the host.
    pub tools: Tools,
    /// The `nephoscope` that is put to the proof.
    pub program: PathBuf,
    /// Its name, for `nephoscope` and for the control socket.
    pub vm: String,
    /// When the watch's clock began.
    pub origin: Instant,
    modules: Option<Modules>,
    slowness: u32,
    samples_attribution: bool,
    arrivals: Arrivals,
    arrived: Vec<Arrival>,
    put: BTreeSet<String>,
    launched: u32,
    report: PathBuf,
    _folder: tempfile::TempDir,
}

/// A command that was started in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// Its process there.
    pub pid: u32,
    /// The file that holds what it writes.
    pub output: String,
}

impl Scene {
    /// Boots the guest under watch and waits until it is ready. What is in `options` is kept but for the watch.
    ///
    /// # Errors
    /// When the guest does not come up, or nobody answers for it.
    pub fn open(place: &Place, options: Options, catalog: PathBuf) -> Result<Self> {
        let program = place.program.clone();
        let folder = tempfile::tempdir()?;
        let report = folder.path().join("report.json");
        let vm = vm_name("attacks");
        let kernel = options.kernel;
        let watched = Some(Watched {
            program: program.clone(),
            catalog,
            name: vm.clone(),
            report: Some(report.clone()),
            extra: place.watch_with.clone(),
        });
        let mut guest = Guest::boot_ready(&place.image, Options { watched, ..options })?;
        guest.run_ok(&format!("mkdir -p {FOLDER}"))?;
        let mut control = Control::connect(&vm)?.slower(place.slowness)?;
        Ok(Scene {
            guest,
            origin: control.origin()?,
            control,
            image: place.image.clone(),
            kernel,
            tools: place.tools.clone(),
            modules: place.modules.clone(),
            slowness: place.slowness,
            samples_attribution: place.samples_attribution,
            arrivals: Arrivals::listen(&vm)?,
            arrived: Vec::new(),
            program,
            vm,
            put: BTreeSet::new(),
            launched: 0,
            report,
            _folder: folder,
        })
    }

    /// The planted cases that the demonstration shows too.
    ///
    /// # Errors
    /// When nobody answers for the guest.
    pub fn planting(&mut self) -> Result<Planting<'_>> {
        let slowness = self.slowness;
        Ok(Planting::begin(&mut self.guest, &self.image, &self.vm)?.slower(slowness))
    }

    /// Puts one of the attacks' programs into the guest, once, and gives its path there.
    ///
    /// # Errors
    /// When there is none of this name, or the guest cannot write it.
    pub fn tool(&mut self, name: &str) -> Result<String> {
        let path = format!("{FOLDER}/{name}");
        if !self.put.contains(name) {
            let bytes = self.tools.bytes(name)?;
            self.guest.put(&path, &bytes)?;
            self.put.insert(name.to_owned());
        }
        Ok(path)
    }

    /// One of the attacks' kernel modules, for this guest's kernel.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot be compiled.
    pub fn module(&self, name: &str) -> Result<Vec<u8>> {
        match &self.modules {
            Some(modules) => modules.bytes(name),
            None => Modules::ensure(&self.image, self.kernel)?.bytes(name),
        }
    }

    /// A time that is told for an ordinary machine, for this one.
    pub fn patience(&self, time: Duration) -> Duration {
        time * self.slowness
    }

    /// Lets the guest go on for a while.
    pub fn wait(&self, time: Duration) {
        std::thread::sleep(self.patience(time));
    }

    /// In the nested machine, waits until the boot is digested: there the guest and its monitor share two emulated CPUs, and a boot is
    /// told of for a minute after it is over. A watch that does not answer is seen by the first attack.
    pub fn wait_for_monitor(&mut self) {
        let captured = |scene: &mut Self| Some(scene.control.report().ok()?["pages"].clone());
        let mut before = captured(self).filter(|_| self.samples_attribution);
        for _ in 0..CATCHES_UP {
            let Some(last) = before else { return };
            std::thread::sleep(CATCH_UP);
            before = captured(self).filter(|now| *now != last);
        }
    }

    /// Starts a command in the guest that goes on by itself, what it writes in a file.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn launch(&mut self, command: &str) -> Result<Launched> {
        self.launched += 1;
        let output = format!("/tmp/attack-{}.out", self.launched);
        let pid = self.guest.start(&format!("{command} >{output} 2>&1"))?;
        Ok(Launched { pid, output })
    }

    /// What a launched command wrote, once `enough` of it is there.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn output(&mut self, launched: &Launched, enough: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + self.patience(PATIENCE);
        loop {
            let text = self.guest.run_ok(&format!("cat {}", launched.output))?;
            if enough(&text) {
                return Ok(text);
            }
            ensure!(Instant::now() < deadline, "the attack wrote only {text:?}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The pages that a launched program says it ran, once there are so many.
    ///
    /// # Errors
    /// When there are not in time.
    pub fn said(&mut self, launched: &Launched, count: usize) -> Result<Vec<Said>> {
        let complete = |text: &str| text.ends_with('\n') && text.matches("page ").count() >= count;
        Said::pages(&self.output(launched, complete)?)
    }

    /// The first finding of which `wanted` gives something, among those since the boot, or among those that come within
    /// `limit`.
    ///
    /// # Errors
    /// When the watch has ended, or `wanted` says so.
    pub fn finding<T>(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&mut Control, &Value) -> Result<Option<T>>,
    ) -> Result<Option<(Arrival, T)>> {
        let deadline = Instant::now() + self.patience(limit);
        let mut at = 0;
        loop {
            while let Some(arrival) = self.arrived.get(at) {
                if let Some(found) = wanted(&mut self.control, &arrival.finding)? {
                    return Ok(Some((arrival.clone(), found)));
                }
                at += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.arrivals.next(left)? {
                Some(arrival) => self.arrived.push(arrival),
                None => return Ok(None),
            }
        }
    }

    /// The finding `unknown-code` whose page has one of these digests, or that is about an address space with one.
    ///
    /// # Errors
    /// When the watch does not answer.
    pub fn unknown(&mut self, limit: Duration, digests: &[String]) -> Result<Option<Arrival>> {
        let found = self.finding(limit, |control, finding| {
            let page = finding["evidence"]["page"].as_u64();
            let (true, Some(page)) = (finding["rule"] == "unknown-code", page) else {
                return Ok(None);
            };
            let digest = control.page(page)?["digest"].take();
            Ok(digests.iter().any(|known| digest == **known).then_some(()))
        })?;
        Ok(found.map(|(arrival, ())| arrival))
    }

    /// The finding of `rule` about an address space of this number.
    ///
    /// # Errors
    /// When the watch does not answer.
    pub fn about(&mut self, limit: Duration, rule: &str, space: &Value) -> Result<Option<Arrival>> {
        let found = self.finding(limit, |_, finding| {
            let wanted = finding["rule"] == rule && finding["address_space"] == *space;
            Ok(wanted.then_some(()))
        })?;
        Ok(found.map(|(arrival, ())| arrival))
    }

    /// All findings up to now.
    ///
    /// # Errors
    /// When the watch does not answer.
    pub fn findings(&mut self) -> Result<Vec<Value>> {
        self.control.findings(0)
    }

    /// The first thing that `wanted` sees in a report, asking again until `limit`.
    ///
    /// # Errors
    /// When the watch does not answer.
    pub fn soon<T>(&mut self, limit: Duration, wanted: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let deadline = Instant::now() + self.patience(limit);
        loop {
            let report = self.control.report()?;
            if let Some(found) = wanted(&report) {
                return Ok(Some(found));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The user address space that has run all of these unknown pages, once there is one.
    ///
    /// # Errors
    /// When the watch does not answer.
    pub fn space_with(&mut self, limit: Duration, digests: &[String]) -> Result<Option<Value>> {
        let wanted: BTreeSet<&str> = digests.iter().map(String::as_str).collect();
        self.soon(limit, |report| {
            let mut spaces = list(report, "address_spaces").iter();
            spaces
                .find(|space| wanted.is_subset(&unknown_digests(space)))
                .cloned()
        })
    }

    /// An address space of the report as it is now.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn space(&mut self, id: &Value) -> Result<Value> {
        let report = self.control.report()?;
        let mut spaces = list(&report, "address_spaces").iter();
        let found = spaces.find(|space| !id.is_null() && space["id"] == *id);
        found
            .cloned()
            .with_context(|| format!("there is no address space {id}"))
    }

    /// An address space's unknown pages: address and digest. Where an address space sees a page that it has just begun to
    /// run may not be in the report yet; then it is where the page first ran.
    ///
    /// # Errors
    /// When the watch does not answer.
    pub fn unknown_pages(&mut self, space: &Value) -> Result<Vec<(u64, String)>> {
        let mut pages = Vec::new();
        for page in list(space, "unknown") {
            let number = page["page"].as_u64().context("a page without a number")?;
            let va = match address(&page["va"]) {
                Some(va) => va,
                None => self.control.page(number)?["va"]
                    .as_u64()
                    .context("a page without an address")?,
            };
            pages.push((va, page["digest"].as_str().unwrap_or_default().to_owned()));
        }
        Ok(pages)
    }

    /// From the first execution of what a finding is about, in the address space that it is about, to the finding; at most a
    /// few hundredths of a second too long.
    ///
    /// # Errors
    /// When the watch does not answer.
    pub fn to_finding(&mut self, arrival: &Arrival) -> Result<Duration> {
        let finding = &arrival.finding;
        let report = self.control.report()?;
        let mut spaces = list(&report, "address_spaces").iter();
        let space = spaces.find(|space| space["id"] == finding["address_space"]);
        // A page that others ran before is no news, and the address space's own first execution is.
        let begun = space.and_then(|space| space["first_ns"].as_u64()).unwrap_or(0);
        let first = finding["at_ns"].as_u64().unwrap_or(0).max(begun);
        let first = self.origin + Duration::from_nanos(first);
        Ok(arrival.at.saturating_duration_since(first))
    }

    /// What the guest says that a process has mapped, in ascending order.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn maps(&mut self, pid: u32) -> Result<Vec<Mapping>> {
        let maps = self.guest.run_ok(&format!("grep -H '' /proc/{pid}/maps"))?;
        let mut truth = Truth::parse(&format!("@maps\n{maps}@end\n"))?;
        Ok(truth.processes.remove(&pid).unwrap_or_default().mappings)
    }

    /// Version of an installed package, as the guest's own package manager says.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn version_of(&mut self, package: &str) -> Result<String> {
        self.guest
            .run_ok(&format!("dpkg-query -W -f '${{Version}}' {package}"))
    }

    /// Ends a process of the guest that an attack started; that it is gone already is as well.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn kill(&mut self, pid: u32) -> Result<()> {
        self.guest.run(&format!("kill -9 {pid}")).map(drop)
    }

    /// Intervals of the report that are not complete and end after `since_ns`.
    ///
    /// # Errors
    /// When the watch does not answer.
    pub fn gaps(&mut self, since_ns: u64) -> Result<Vec<Value>> {
        let report = self.control.report()?;
        Ok(gaps(&report, since_ns, self.samples_attribution))
    }

    /// Whether who runs a page is only sampled here, which the report says of all the time.
    pub fn samples_attribution(&self) -> bool {
        self.samples_attribution
    }

    /// The watch's clock, in nanoseconds since it began; too early by a tenth of a second, so that nothing that begins now is
    /// taken for older.
    pub fn now_ns(&self) -> u64 {
        let elapsed = self.origin.elapsed().saturating_sub(Duration::from_millis(100));
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Switches the guest off and holds the saved report to its schema.
    ///
    /// # Errors
    /// When the guest does not end in order, or the report is none.
    pub fn close(self) -> Result<Value> {
        let code = self.guest.power_off()?;
        ensure!(code == 0, "`nephoscope run` ended with {code}");
        let bytes = std::fs::read(&self.report).context("the report was not written")?;
        let saved: Value = serde_json::from_slice(&bytes)?;
        report::validate(&saved)?;
        Ok(saved)
    }
}

/// A number as reports write addresses: `0x7f00`.
pub fn address(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// The path of the program that an address space of a report is of; empty if none is named.
pub fn program_of(space: &Value) -> &str {
    space["program"]["path"].as_str().unwrap_or_default()
}

/// The digests of an address space's unknown pages.
pub fn unknown_digests(space: &Value) -> BTreeSet<&str> {
    let pages = list(space, "unknown").iter();
    pages.filter_map(|page| page["digest"].as_str()).collect()
}

/// Intervals of a report that are not complete and end after `since_ns`. Where attribution is `sampled`, that alone is none.
pub fn gaps(report: &Value, since_ns: u64, sampled: bool) -> Vec<Value> {
    let intervals = list(&report["coverage"], "intervals").iter();
    let attributed = |interval: &Value| {
        interval["attribution"] == "complete" || sampled && interval["attribution"] == "sampled"
    };
    intervals
        .filter(|interval| interval["code"] != "complete" || !attributed(interval))
        .filter(|interval| interval["to_ns"].as_u64().unwrap_or(u64::MAX) > since_ns)
        .cloned()
        .collect()
}
