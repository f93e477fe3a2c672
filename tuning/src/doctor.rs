//! The examination: every check of the catalogue over one host, worst findings first.
//!
//! Owner: one call of [`examine`]. What is read from files comes through [`Sources`]; what only a system
//! call can tell is asked once and handed to the checks as [`Measured`], so that each check is a function
//! of a tree of files and a few numbers.
//! Invariants: every row of the catalogue has exactly one finding, which may say that there is nothing to
//! look at; works as any user; changes nothing but what the preflight's probe makes and removes again.

use crate::catalogue::catalogue;
use crate::facts::{HostFacts, host_facts, nearest_existing};
use crate::finding::{Finding, Severity, Verdict};
use crate::mounts::{Mount, mount_of};
use crate::preflight::{findings, locked_memory_wanted, preflight_of, unusable_address};
use crate::sources::{Sources, bytes, counted, list, names, text};
use crate::wake_up::{ClockState, clock_state, wake_up};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The broker that the host is examined for.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its data directory, which need not exist yet.
    pub data: PathBuf,
    /// Where it is to listen.
    pub listen: SocketAddr,
    /// Whether nobody asked for that address: what has it already is taken to be a broker.
    pub listen_is_default: bool,
    /// How many shards it has.
    pub shards: usize,
    /// The cores that its shards are pinned to; `None`: it runs wherever the kernel puts it.
    pub cores: Option<Vec<usize>>,
    /// The cores that this process may use.
    pub usable_cores: Vec<usize>,
}

/// What no file tells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// From waking a thread on another core until it runs; `None` where there is one core.
    pub(crate) wake_up: Option<Duration>,
    /// What the kernel says of its clock.
    pub(crate) clock: Option<ClockState>,
    /// Of a page of memory.
    pub(crate) page_bytes: u64,
}

impl Measured {
    /// Without what takes time.
    pub(crate) fn quickly() -> Self {
        // SAFETY: asks for a number.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Self { wake_up: None, clock: clock_state(), page_bytes: u64::try_from(page_bytes).unwrap_or(4096) }
    }
}

/// A block device below the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Such as `vda`.
    pub(crate) name: String,
    /// Its folder below `/sys`.
    pub(crate) path: PathBuf,
}

impl Disk {
    pub(crate) fn queue(&self, name: &str) -> Option<String> {
        text(&self.path.join("queue").join(name))
    }

    /// Whether a hypervisor or the kernel made it up: what it says of itself is then not what is below.
    pub(crate) fn is_virtual(&self) -> bool {
        const NAMES: [&str; 5] = ["vd", "xvd", "loop", "nbd", "rbd"];
        const VENDORS: [&str; 7] = ["QEMU", "VMware", "Msft", "Google", "VBOX", "Virtio", "XEN"];
        let vendor = text(&self.path.join("device/vendor")).unwrap_or_default();
        NAMES.iter().any(|prefix| self.name.starts_with(prefix)) || VENDORS.contains(&vendor.as_str())
    }
}

/// One host, as the checks see it.
pub(crate) struct Host<'a> {
    pub(crate) sources: &'a Sources,
    pub(crate) subject: &'a Subject,
    pub(crate) measured: Measured,
    /// Of the data directory, or of its nearest parent that exists.
    pub(crate) mount: Option<Mount>,
    /// What its file system is on; empty where there is no block device.
    pub(crate) disks: Vec<Disk>,
    /// `/proc/self/status`.
    pub(crate) status: String,
    /// `/proc/self/mountinfo`.
    pub(crate) mountinfo: String,
    /// `/proc/self/cgroup`.
    pub(crate) control_groups: String,
}

impl<'a> Host<'a> {
    pub(crate) fn new(sources: &'a Sources, subject: &'a Subject, measured: Measured) -> Self {
        let mountinfo = sources.proc("self/mountinfo").unwrap_or_default();
        let probed = nearest_existing(&subject.data).unwrap_or_else(|_| subject.data.clone());
        let mount = mount_of(&mountinfo, &probed);
        let disks = mount.as_ref().map_or_else(Vec::new, |mount| {
            let mut disks = Vec::new();
            add_disks(&sources.sys.join("dev/block").join(&mount.device), &mut disks);
            disks
        });
        let status = sources.proc("self/status").unwrap_or_default();
        let control_groups = sources.proc("self/cgroup").unwrap_or_default();
        Self { sources, subject, measured, mount, disks, status, mountinfo, control_groups }
    }

    /// The cores that the shards may run on.
    pub(crate) fn shard_cores(&self) -> &[usize] {
        self.subject.cores.as_deref().unwrap_or(&self.subject.usable_cores)
    }

    /// Cores of the host that are switched on.
    pub(crate) fn online_cores(&self) -> Vec<usize> {
        list(&self.sources.sys("devices/system/cpu/online").unwrap_or_default())
    }

    /// Those of them that no shard has.
    pub(crate) fn spare_cores(&self) -> Vec<usize> {
        let taken = self.shard_cores();
        self.online_cores().into_iter().filter(|core| !taken.contains(core)).collect()
    }

    /// The cores that the interrupts of a device go to, one entry per interrupt. `folder` is the interface's or the
    /// disk's own.
    pub(crate) fn interrupted_cores(&self, folder: &Path) -> Vec<Vec<usize>> {
        // A virtio device's interrupts are those of the bus device above it.
        let folders = [folder.join("device/msi_irqs"), folder.join("device/../msi_irqs")];
        let interrupts =
            folders.iter().find(|folder| folder.is_dir()).map_or_else(Vec::new, |folder| names(folder, ""));
        let cores = |interrupt: &String| {
            let folder = self.sources.proc.join("irq").join(interrupt);
            let effective = text(&folder.join("effective_affinity_list")).filter(|text| !text.is_empty());
            effective.or_else(|| text(&folder.join("smp_affinity_list"))).map(|text| list(&text))
        };
        interrupts.iter().filter_map(cores).collect()
    }

    /// `name` below the folder of each shard's core, such as `topology/thread_siblings_list`.
    pub(crate) fn of_shard_cores(&self, name: &str) -> Vec<(usize, String)> {
        let file = |core: usize| self.sources.sys(&format!("devices/system/cpu/cpu{core}/{name}"));
        self.shard_cores().iter().filter_map(|core| Some((*core, file(*core)?))).collect()
    }

    /// Numbers of the memory nodes.
    pub(crate) fn nodes(&self) -> Vec<usize> {
        let nodes = names(&self.sources.sys.join("devices/system/node"), "node");
        nodes.iter().filter_map(|name| name[4..].parse().ok()).collect()
    }

    /// Whether this process has the capability with this number.
    pub(crate) fn has_capability(&self, number: u32) -> bool {
        crate::probe::has_capability(&self.status, number)
    }
}

/// The disks that the device folder `device` is made of: itself, its disk if it is a partition, or those
/// below it if it is mapped.
fn add_disks(device: &Path, disks: &mut Vec<Disk>) {
    let whole = if device.join("queue").is_dir() { device.to_owned() } else { device.join("..") };
    let Ok(path) = whole.canonicalize() else { return };
    if !path.join("queue").is_dir() {
        return;
    }
    let below = names(&path.join("slaves"), "");
    for name in &below {
        add_disks(&path.join("slaves").join(name), disks);
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if below.is_empty() && disks.iter().all(|disk| disk.name != name) {
        disks.push(Disk { name, path });
    }
}

/// Checks of the preflight that have nothing to do with the data directory.
const OF_THE_PROCESS: [&str; 4] = ["io_uring", "locked_memory", "open_files", "cores"];

/// Examines this host for `subject`: a finding for every check, the worst first.
pub fn examine(subject: &Subject) -> Vec<Finding> {
    let sources = Sources::of_this_host();
    let measured = Measured { wake_up: wake_up(&subject.usable_cores), ..Measured::quickly() };
    let facts = host_facts(&subject.data);
    let mut found = preflight_of(&facts, &subject.data, subject.shards);
    found.extend(unusable_address(subject.listen, subject.listen_is_default, Duration::ZERO));
    // Without the directory the process can still be looked at.
    let facts = facts.map_err(|_| host_facts(&std::env::temp_dir()).ok());
    if let Err(Some(elsewhere)) = &facts {
        let found_elsewhere = findings(elsewhere, subject.shards).into_iter();
        found.extend(found_elsewhere.filter(|finding| OF_THE_PROCESS.contains(&finding.name)));
    }
    for check in catalogue().filter(|check| check.judge.is_none()) {
        if found.iter().any(|finding| finding.name == check.name) {
            continue;
        }
        let seen = match &facts {
            Ok(facts) => all_well(check.name, facts, subject),
            Err(Some(elsewhere)) if OF_THE_PROCESS.contains(&check.name) => {
                all_well(check.name, elsewhere, subject)
            }
            Err(_) if check.name == "listen" => format!("{} is free", subject.listen),
            Err(_) => "not looked at: nothing can be written to the data directory".to_owned(),
        };
        found.push(Verdict::fine(seen).into_finding(check));
    }
    found.extend(judge(&Host::new(&sources, subject, measured)));
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

/// The checks that need only files and measurements, in the order of the catalogue.
pub(crate) fn judge(host: &Host) -> Vec<Finding> {
    catalogue().filter_map(|check| Some((check.judge?)(host).into_finding(check))).collect()
}

/// What a check of the preflight has seen where it has no complaint.
fn all_well(name: &str, facts: &HostFacts, subject: &Subject) -> String {
    match name {
        "io_uring" => format!("kernel {} has every operation that the broker uses", facts.kernel),
        "locked_memory" if facts.locks_without_limit => {
            format!("may lock beyond its limit of {} (CAP_IPC_LOCK)", bytes(facts.locked_memory_bytes_max))
        }
        "locked_memory" => format!(
            "limit {}, wanted {}",
            bytes(facts.locked_memory_bytes_max),
            bytes(locked_memory_wanted(subject.shards as u64))
        ),
        "open_files" => format!("limit {}", facts.open_files_max),
        "data_directory" => format!("{} can be written to", facts.probed.display()),
        "listen" => format!("{} is free", subject.listen),
        "file_system" => format!("{} is on {}", facts.probed.display(), facts.filesystem),
        "o_direct" => {
            let aligned =
                if facts.dio_alignment_told { "the kernel says" } else { "assumed, the kernel does not say" };
            format!("works on {}, alignment {} bytes ({aligned})", facts.filesystem, facts.dio_alignment)
        }
        "flush_round" if facts.volatile => "there is nothing to flush".into(),
        "flush_round" => {
            format!("one flush covers all files ({}, device {})", facts.filesystem, facts.device)
        }
        "write_cache" => match (facts.write_cache, facts.fua) {
            (None, _) => "the file system has no block device of its own".into(),
            (Some(_), Some(true)) => format!("device {} has FUA", facts.device),
            _ => format!("device {} writes through", facts.device),
        },
        "discard" => "not mounted with discard".into(),
        "free_space" => format!("{} free", bytes(facts.free_bytes)),
        "cores" => {
            format!("{} on {}", counted(subject.shards as u64, "shard"), counted(facts.cores as u64, "core"))
        }
        _ => "no complaint".into(),
    }
}

/// The worst of `found`; [`Severity::Ok`] where there is nothing.
pub fn worst(found: &[Finding]) -> Severity {
    found.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(data: PathBuf) -> Subject {
        let listen = "127.0.0.1:0".parse().unwrap();
        Subject { data, listen, listen_is_default: false, shards: 1, cores: None, usable_cores: vec![0] }
    }

    #[test]
    fn every_check_says_something_about_this_host() {
        let beside = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let directory = tempfile::tempdir_in(beside).unwrap();
        let found = examine(&subject(directory.path().to_owned()));
        let mut names: Vec<_> = found.iter().map(|finding| finding.name).collect();
        let mut expect: Vec<_> = catalogue().map(|check| check.name).collect();
        names.sort_unstable();
        expect.sort_unstable();
        assert_eq!(names, expect);
        assert!(found.is_sorted_by_key(|finding| std::cmp::Reverse(finding.severity)));
        assert_eq!(worst(&found), found[0].severity);
        for finding in &found {
            let check = catalogue().find(|check| check.name == finding.name).unwrap();
            let promised = finding.severity == Severity::Ok || check.severities.contains(&finding.severity);
            assert!(promised && !finding.found.is_empty(), "{finding:#?}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the probe left a file");
    }

    #[test]
    fn without_a_directory_the_process_is_still_looked_at() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = examine(&subject(file.path().to_owned()));
        assert_eq!((found[0].name, found[0].severity), ("data_directory", Severity::Fatal));
        let seen = |name: &str| found.iter().find(|finding| finding.name == name).unwrap().found.clone();
        assert!(seen("o_direct").starts_with("not looked at"));
        assert!(!seen("io_uring").starts_with("not looked at") && !seen("open_files").is_empty());
    }
}
