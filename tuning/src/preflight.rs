//! The judgement before a start: which facts hurt, how much, and what to do.
//!
//! [`findings`] is a pure function of [`HostFacts`], one small function per check in [`CHECKS`]; a check
//! says nothing when all is well. Thresholds that come from the runtime are named with their source.

use crate::facts::{HostFacts, host_facts};
use crate::finding::{Finding, Severity};
use crate::probe::{BLOCK_BYTES, IoUring, WriteCache};
use crate::sources::{bytes, counted};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

/// Below it no executor of the runtime starts (glommio-ng 0.12, `Reactor::new`); not per executor.
const LOCKED_MEMORY_BYTES_MIN: u64 = 512 << 10;
/// What an executor registers with each of its three rings unless told otherwise (glommio-ng 0.12).
const REGISTERED_BYTES_PER_SHARD: u64 = 3 * (10 << 20);
/// Rings, event counters, sockets and files that a shard has open before its first client.
const FILES_PER_SHARD_MIN: u64 = 64;
/// The same of the process.
const FILES_PER_PROCESS_MIN: u64 = 128;
/// The connections that one shard accepts, and the files of its partitions.
const FILES_PER_SHARD_WANTED: u64 = (16 << 10) + (4 << 10);
/// Below it produce is refused with a retriable error.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// Two segments of each shard, their spares, and metadata.
const FREE_BYTES_PER_SHARD_WANTED: u64 = 512 << 20;

/// Asks the host ([`host_facts`]) and judges the answer for a broker of `shards` shards that listens on
/// `listen`. The worst comes first; an empty list is a host without complaints.
pub fn preflight(data_directory: &Path, listen: SocketAddr, shards: usize) -> Vec<Finding> {
    let mut found = preflight_of(&host_facts(data_directory), data_directory, shards);
    found.extend(unusable_address(listen, false, LET_GO));
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

/// The same with the answer, which is an error if the directory cannot be written to, and without the address.
pub(crate) fn preflight_of(
    facts: &io::Result<HostFacts>,
    data_directory: &Path,
    shards: usize,
) -> Vec<Finding> {
    match facts {
        Ok(facts) => findings(facts, shards),
        Err(error) => vec![unusable_directory(data_directory, error)],
    }
}

/// Judges `facts` for a broker of `shards` shards, in the order of the checks.
pub(crate) fn findings(facts: &HostFacts, shards: usize) -> Vec<Finding> {
    CHECKS.iter().filter_map(|check| check(facts, shards as u64)).collect()
}

type Judge = fn(&HostFacts, u64) -> Option<Finding>;

const CHECKS: [Judge; 10] = [
    io_uring,
    locked_memory,
    open_files,
    volatile_filesystem,
    direct_io,
    flush_per_file,
    write_cache,
    discard,
    free_space,
    cores,
];

fn finding(
    name: &'static str,
    severity: Severity,
    found: impl Into<String>,
    cost: impl Into<String>,
    fix: impl Into<String>,
) -> Option<Finding> {
    Some(Finding { name, severity, found: found.into(), cost: cost.into(), fix: fix.into() })
}

fn io_uring(facts: &HostFacts, _shards: u64) -> Option<Finding> {
    let (found, fix) = match &facts.io_uring {
        IoUring::Available { missing } if missing.is_empty() => return None,
        IoUring::Available { missing } => (
            format!("kernel {} lacks the io_uring operations {}", facts.kernel, missing.join(", ")),
            "run a newer kernel: 6.1 or later".to_owned(),
        ),
        IoUring::Absent => (
            format!("kernel {} has no io_uring", facts.kernel),
            "run a kernel with CONFIG_IO_URING, 6.1 or later (gVisor and some WSL kernels have none)".to_owned(),
        ),
        IoUring::DisabledBySysctl { value: 1 } => (
            "kernel.io_uring_disabled = 1: only one group may use io_uring".to_owned(),
            "sysctl kernel.io_uring_disabled=0, or add this user to the group of kernel.io_uring_group".to_owned(),
        ),
        IoUring::DisabledBySysctl { value } => (
            format!("kernel.io_uring_disabled = {value}: nobody may use io_uring"),
            "sysctl kernel.io_uring_disabled=0 (and the same in /etc/sysctl.d)".to_owned(),
        ),
        IoUring::Filtered => (
            "a system-call filter (seccomp) forbids io_uring".to_owned(),
            "in a container: permit io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile \
             (docker: --security-opt seccomp=PROFILE.json)"
                .to_owned(),
        ),
        IoUring::Failed { errno } => (
            format!("io_uring_setup: {}", io::Error::from_raw_os_error(*errno)),
            "raise the limit of locked memory (ulimit -l) if it is a lack of memory".to_owned(),
        ),
    };
    finding("io_uring", Severity::Fatal, found, "the broker does all its input and output with io_uring", fix)
}

/// Bytes that the rings of `shards` shards lock.
pub(crate) fn locked_memory_wanted(shards: u64) -> u64 {
    REGISTERED_BYTES_PER_SHARD * shards
}

/// Files that `shards` shards may have open.
pub(crate) fn files_wanted(shards: u64) -> u64 {
    FILES_PER_PROCESS_MIN + FILES_PER_SHARD_WANTED * shards
}

fn locked_memory(facts: &HostFacts, shards: u64) -> Option<Finding> {
    let limit = facts.locked_memory_bytes_max;
    let wanted = locked_memory_wanted(shards);
    let fix = format!("ulimit -l {}, or LimitMEMLOCK={wanted} in the systemd unit", wanted >> 10);
    let found = format!("the limit of locked memory (ulimit -l) is {}", bytes(limit));
    if limit < LOCKED_MEMORY_BYTES_MIN {
        // The runtime looks at the limit only, so that CAP_IPC_LOCK does not help here.
        let cost = format!("below {} no shard starts", bytes(LOCKED_MEMORY_BYTES_MIN));
        return finding("locked_memory", Severity::Fatal, found, cost, fix);
    }
    if limit >= wanted || facts.locks_without_limit {
        return None;
    }
    let cost = format!(
        "{shards} shards register {} with their rings; what does not fit is used unregistered, \
         which costs some CPU per read and write",
        bytes(wanted)
    );
    finding("locked_memory", Severity::Warning, found, cost, fix)
}

fn open_files(facts: &HostFacts, shards: u64) -> Option<Finding> {
    let limit = facts.open_files_max;
    let needed = FILES_PER_PROCESS_MIN + FILES_PER_SHARD_MIN * shards;
    let wanted = files_wanted(shards);
    let fix = if facts.open_files_hard_max >= wanted {
        format!("ulimit -n {wanted}")
    } else {
        let hard = facts.open_files_hard_max;
        format!("LimitNOFILE={wanted} in the systemd unit, or limits.conf: the hard limit is {hard} as well")
    };
    let found = format!("the limit of open files (ulimit -n) is {limit}");
    if limit < needed {
        let cost = format!("{} need {needed} to start", counted(shards, "shard"));
        return finding("open_files", Severity::Fatal, found, cost, fix);
    }
    if limit < wanted {
        let cost = format!(
            "connections are refused before all are full: {} could use {wanted} files",
            counted(shards, "shard")
        );
        return finding("open_files", Severity::Warning, found, cost, fix);
    }
    None
}

fn volatile_filesystem(facts: &HostFacts, _shards: u64) -> Option<Finding> {
    if !facts.volatile {
        return None;
    }
    finding(
        "file_system",
        Severity::Warning,
        format!("{} is on {}, which lives in memory", facts.probed.display(), facts.filesystem),
        "nothing survives a restart of the host or a power cut, acknowledged or not",
        "put the data directory on a disk: --data DIR",
    )
}

fn direct_io(facts: &HostFacts, _shards: u64) -> Option<Finding> {
    if facts.o_direct {
        return None;
    }
    let found = if facts.dio_alignment > BLOCK_BYTES {
        format!("O_DIRECT on {} needs an alignment of {} bytes", facts.filesystem, facts.dio_alignment)
    } else {
        format!("no O_DIRECT on {} ({})", facts.probed.display(), facts.filesystem)
    };
    let cost =
        "files are written through the page cache: one more copy, memory pressure, slower and uneven syncs";
    finding("o_direct", Severity::Warning, found, cost, "put the data directory on ext4 or XFS")
}

fn flush_per_file(facts: &HostFacts, _shards: u64) -> Option<Finding> {
    if facts.one_flush_covers_all_files || facts.volatile {
        return None;
    }
    finding(
        "flush_round",
        Severity::Warning,
        format!("{} ({}), device {}", facts.filesystem, facts.mount_options.join(","), facts.device),
        "one flush is not known to cover all files here: each dirty partition costs a sync of its own per round \
         (64 partitions: some 2.5 times the time)",
        "put the whole data directory on one ext4 or XFS file system with barriers on, without data=journal",
    )
}

fn write_cache(facts: &HostFacts, _shards: u64) -> Option<Finding> {
    if facts.write_cache != Some(WriteCache::WriteBack) || facts.fua == Some(true) {
        return None;
    }
    finding(
        "write_cache",
        Severity::Note,
        format!("device {} has a volatile write cache and no FUA", facts.device),
        "each durable write is a write and a flush; the broker does both, nothing is at risk",
        "a disk with power-loss protection makes the flush nearly free",
    )
}

fn discard(facts: &HostFacts, _shards: u64) -> Option<Finding> {
    if !facts.mount_options.iter().any(|option| option == "discard") {
        return None;
    }
    finding(
        "discard",
        Severity::Note,
        format!("the file system of {} is mounted with discard", facts.probed.display()),
        "freeing a large file stalls other writes; the broker frees its own in small steps, others do not",
        "mount without discard and run fstrim in a quiet hour (systemd: fstrim.timer)",
    )
}

fn free_space(facts: &HostFacts, shards: u64) -> Option<Finding> {
    let wanted = FREE_BYTES_PER_SHARD_WANTED * shards;
    let cost = match facts.free_bytes {
        free if free < FREE_BYTES_MIN => "produce is refused until there is space; reads go on".to_owned(),
        free if free < wanted => {
            format!("wanted are {} for segments and spares of {}", bytes(wanted), counted(shards, "shard"))
        }
        _ => return None,
    };
    let found = format!("{} free on {}", bytes(facts.free_bytes), facts.probed.display());
    let fix = "free some space, lower retention.ms or retention.bytes, or choose another disk: --data DIR";
    finding("free_space", Severity::Warning, found, cost, fix)
}

fn cores(facts: &HostFacts, shards: u64) -> Option<Finding> {
    if shards <= facts.cores as u64 {
        return None;
    }
    finding(
        "cores",
        Severity::Warning,
        format!("{} on {}", counted(shards, "shard"), counted(facts.cores as u64, "core")),
        "shards share cores: each waits for the other's time slice, and latency shows it",
        format!("--shards {}", facts.cores),
    )
}

fn unusable_directory(data_directory: &Path, error: &io::Error) -> Finding {
    let shown = data_directory.display();
    let fix = match error.kind() {
        io::ErrorKind::NotADirectory => {
            format!("{shown} is a file, or below one: name a directory with --data")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount it read-write, or choose another directory: --data DIR".into()
        }
        io::ErrorKind::StorageFull => "free some space, or choose another disk: --data DIR".into(),
        _ => format!("make {shown} writable for this user, or choose another directory: --data DIR"),
    };
    Finding {
        name: "data_directory",
        severity: Severity::Fatal,
        found: format!("cannot write to {shown}: {error}"),
        cost: "there is nowhere to keep records".into(),
        fix,
    }
}

/// How long a process that has ended may keep its port: its rings hold the listeners until the kernel has put
/// them away, some milliseconds after the process is gone.
const LET_GO: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The complaint about `listen`, if it has one after `patience`. A default that is taken is probably a broker: nobody has
/// asked for another one there.
pub(crate) fn unusable_address(listen: SocketAddr, is_default: bool, patience: Duration) -> Option<Finding> {
    let deadline = Instant::now() + patience;
    let error = loop {
        // Plain bind, without SO_REUSEPORT: the runtime always sets it, so that two brokers would both succeed.
        let error = TcpListener::bind(listen).err()?;
        if error.kind() != io::ErrorKind::AddrInUse || Instant::now() >= deadline {
            break error;
        }
        std::thread::sleep(LOOK_AGAIN);
    };
    let found = format!("cannot listen on {listen}: {error}");
    let fix = match error.kind() {
        io::ErrorKind::AddrInUse if is_default => {
            let cost = "none if it is the broker: ringlog status shows it";
            let fix = "if it is not: stop the process that has it (ss -ltnp shows which), or take another: --listen";
            return finding("listen", Severity::Note, found, cost, fix);
        }
        io::ErrorKind::AddrInUse => {
            "stop the process that has it (ss -ltnp shows which), or take another: --listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "name an address of this host with --listen (ip address shows them)"
        }
        io::ErrorKind::PermissionDenied => "take a port from 1024 on with --listen",
        _ => "name another address with --listen",
    };
    finding("listen", Severity::Fatal, found, "clients cannot connect", fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::catalogue;
    use Severity::{Fatal, Note, Warning};
    use std::collections::BTreeSet;

    /// A host without complaints for four shards.
    fn good() -> HostFacts {
        HostFacts {
            kernel: "6.12.0".into(),
            cores: 4,
            io_uring: IoUring::Available { missing: vec![] },
            locked_memory_bytes_max: u64::MAX,
            locks_without_limit: false,
            open_files_max: 1 << 20,
            open_files_hard_max: 1 << 20,
            probed: "/var/lib/ringlog".into(),
            o_direct: true,
            dio_alignment: 512,
            dio_alignment_told: true,
            filesystem: "ext4".into(),
            mount_options: vec!["rw".into()],
            device: "8:1".into(),
            volatile: false,
            one_flush_covers_all_files: true,
            write_cache: Some(WriteCache::WriteBack),
            fua: Some(true),
            free_bytes: 1 << 40,
        }
    }

    #[test]
    fn each_complaint_has_its_cause() {
        let raised = std::cell::RefCell::new(BTreeSet::new());
        let check = |change: &dyn Fn(&mut HostFacts), expect: &[(&str, Severity, &str)]| {
            let mut facts = good();
            change(&mut facts);
            let found = findings(&facts, 4);
            let names: Vec<_> = found.iter().map(|finding| (finding.name, finding.severity)).collect();
            let expected: Vec<_> = expect.iter().map(|(name, severity, _)| (*name, *severity)).collect();
            assert_eq!(names, expected, "{found:#?}");
            for (finding, (.., part)) in found.iter().zip(expect) {
                raised.borrow_mut().insert((finding.name, finding.severity));
                let text = format!("{} | {} | {}", finding.found, finding.cost, finding.fix);
                assert!(text.contains(part), "{part:?} is not in {text}");
                assert!(!finding.cost.is_empty() && !finding.fix.is_empty());
            }
        };
        check(&|_| {}, &[]);
        let uring = |state: IoUring, part: &str| {
            check(&|facts| facts.io_uring = state.clone(), &[("io_uring", Fatal, part)]);
        };
        uring(IoUring::Absent, "kernel 6.12.0 has no io_uring");
        uring(IoUring::Filtered, "seccomp");
        uring(IoUring::DisabledBySysctl { value: 1 }, "kernel.io_uring_group");
        uring(IoUring::DisabledBySysctl { value: 2 }, "sysctl kernel.io_uring_disabled=0");
        uring(IoUring::Available { missing: vec!["OPENAT", "READ"] }, "OPENAT, READ");
        uring(IoUring::Failed { errno: libc::ENOMEM }, "Cannot allocate memory");

        let locked = |limit: u64, free: bool, expect: &[(&str, Severity, &str)]| {
            check(
                &|facts| (facts.locked_memory_bytes_max, facts.locks_without_limit) = (limit, free),
                expect,
            );
        };
        locked(64 << 10, false, &[("locked_memory", Fatal, "below 512 KiB")]);
        locked(64 << 10, true, &[("locked_memory", Fatal, "is 64 KiB")]);
        locked(8 << 20, false, &[("locked_memory", Warning, "LimitMEMLOCK=125829120")]);
        locked(8 << 20, true, &[]);
        locked(120 << 20, false, &[]);

        let files = |soft, hard, expect: &[(&str, Severity, &str)]| {
            check(&|facts| (facts.open_files_max, facts.open_files_hard_max) = (soft, hard), expect);
        };
        files(256, 256, &[("open_files", Fatal, "need 384")]);
        files(1024, 1 << 20, &[("open_files", Warning, "ulimit -n 82048")]);
        files(1024, 4096, &[("open_files", Warning, "the hard limit is 4096")]);
        files(82048, 82048, &[]);

        let no_flush = |facts: &mut HostFacts| {
            (facts.one_flush_covers_all_files, facts.filesystem) = (false, "btrfs".into());
        };
        check(&no_flush, &[("flush_round", Warning, "btrfs (rw), device 8:1")]);
        let tmpfs = |facts: &mut HostFacts| {
            (facts.volatile, facts.filesystem) = (true, "tmpfs".into());
            (facts.one_flush_covers_all_files, facts.o_direct) = (false, false);
            (facts.write_cache, facts.fua) = (None, None);
        };
        check(&tmpfs, &[("file_system", Warning, "power cut"), ("o_direct", Warning, "(tmpfs)")]);
        let coarse = |facts: &mut HostFacts| (facts.o_direct, facts.dio_alignment) = (false, 16384);
        check(&coarse, &[("o_direct", Warning, "16384 bytes")]);
        check(&|facts| facts.fua = Some(false), &[("write_cache", Note, "no FUA")]);
        check(&|facts| facts.write_cache = Some(WriteCache::WriteThrough), &[]);
        check(&|facts| facts.mount_options.push("discard".into()), &[("discard", Note, "fstrim")]);
        check(&|facts| facts.free_bytes = 1 << 20, &[("free_space", Warning, "refused")]);
        check(&|facts| facts.free_bytes = 1 << 30, &[("free_space", Warning, "2048 MiB")]);
        check(&|facts| facts.cores = 2, &[("cores", Warning, "--shards 2")]);

        // What needs a real directory and a real port has tests of its own below.
        let raised = raised.into_inner().into_iter().chain([
            ("data_directory", Fatal),
            ("listen", Fatal),
            ("listen", Note),
        ]);
        let rows = catalogue().filter(|check| check.judge.is_none());
        let promised = rows.flat_map(|check| check.severities.iter().map(|severity| (check.name, *severity)));
        assert_eq!(
            raised.collect::<BTreeSet<_>>(),
            promised.collect(),
            "the catalogue and the checks differ"
        );
    }

    #[test]
    fn this_host_is_judged_and_left_as_it_was() {
        let beside = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let directory = tempfile::tempdir_in(beside).unwrap();
        let found = preflight(directory.path(), "127.0.0.1:0".parse().unwrap(), 1);
        assert!(found.is_sorted_by_key(|finding| std::cmp::Reverse(finding.severity)), "{found:#?}");
        assert!(
            found.iter().all(|finding| !["listen", "data_directory"].contains(&finding.name)),
            "{found:#?}"
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_taken_port_and_a_file_for_a_directory_are_fatal() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = preflight(file.path(), taken.local_addr().unwrap(), 1);
        let rows: Vec<_> = found.iter().map(|finding| (finding.name, finding.severity)).collect();
        assert_eq!(rows, [("data_directory", Fatal), ("listen", Fatal)]);
        assert!(found[1].fix.contains("ss -ltnp"));
        // Unless nobody has asked for that port: then it is taken to be a broker's.
        for (is_default, severity, part) in [(false, Fatal, "clients cannot"), (true, Note, "ringlog status")]
        {
            let finding = unusable_address(taken.local_addr().unwrap(), is_default, Duration::ZERO).unwrap();
            assert_eq!(finding.severity, severity);
            assert!(finding.cost.contains(part) && finding.fix.contains("ss -ltnp"), "{finding:?}");
        }
        assert_eq!(unusable_address("127.0.0.1:0".parse().unwrap(), true, Duration::ZERO), None);
    }

    #[test]
    fn a_memory_file_system_is_called_one() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let shm = Path::new("/dev/shm");
        if !crate::mounts::mount_of(&mounts, shm).is_some_and(|mount| mount.is_volatile()) {
            return;
        }
        let found = preflight(shm, "127.0.0.1:0".parse().unwrap(), 1);
        assert!(found.iter().any(|finding| finding.name == "file_system"), "{found:#?}");
        assert!(found.iter().all(|finding| finding.name != "flush_round"), "{found:#?}");
    }
}
