//! Limits of the control group that this process is in, and of all above it.
//!
//! Rows of the catalogue; see the parent module. Version 2 is read first; the controllers of version 1 are
//! read where they are mounted. Source of the files: the kernel's `admin-guide/cgroup-v2.rst` and
//! `cgroup-v1`.

use super::memory::MEMORY_BYTES_PER_SHARD;
use crate::doctor::Host;
use crate::finding::{Check, Severity, Verdict};
use crate::mounts::mounts;
use crate::sources::{bytes, counted, text, to_list};
use std::path::{Path, PathBuf};

/// The metadata thread, signals, and what a runtime has besides its executor.
const THREADS_PER_PROCESS: u64 = 32;
/// An executor and its helper, with room.
const THREADS_PER_SHARD: u64 = 4;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "container_cpu",
        complains: "the control group may use less CPU than one core per shard (cpu.max)",
        severities: &[Severity::Warning],
        cost: "when the share is used up all shards stand still until the next period, up to 100 ms",
        fix: "raise the limit, reserve whole cores instead (cpuset), or take fewer shards (--shards)",
        judge: Some(cpu),
    },
    Check {
        name: "container_memory",
        complains: "the control group may use less memory than all shards with every budget full (memory.max, memory.high)",
        severities: &[Severity::Warning],
        cost: "under overload the kernel kills or throttles the broker before its own limits hold clients back",
        fix: "raise the limit, or take fewer shards (--shards)",
        judge: Some(memory),
    },
    Check {
        name: "container_cores",
        complains: "this process may use some of the host's cores only (cpuset, taskset)",
        severities: &[Severity::Note],
        cost: "none if nobody else uses them: the shards are as many as there are cores",
        fix: "check that others are kept off these cores",
        judge: Some(cores),
    },
    Check {
        name: "container_io",
        complains: "the control group limits the data directory's disk (io.max)",
        severities: &[Severity::Warning],
        cost: "writes wait when the limit is reached, however fast the disk is",
        fix: "raise or remove the limit",
        judge: Some(io),
    },
    Check {
        name: "container_pids",
        complains: "the control group may have fewer threads than the broker needs (pids.max)",
        severities: &[Severity::Warning],
        cost: "a thread cannot be made: the broker does not start, or ends",
        fix: "raise the limit (docker: --pids-limit)",
        judge: Some(pids),
    },
];

/// Contents of `file`, from the control group of this process upwards, for a controller of version 1 or, if
/// it has none, of version 2.
fn limits(host: &Host, controller: Option<&str>, file: &str) -> Vec<String> {
    folders(host, controller).iter().filter_map(|folder| text(&folder.join(file))).collect()
}

fn folders(host: &Host, controller: Option<&str>) -> Vec<PathBuf> {
    let own = host.control_groups.lines().find_map(|line| {
        // hierarchy:controllers:path
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let matches = match controller {
            None => controllers.is_empty(),
            Some(controller) => controllers.split(',').any(|name| name == controller),
        };
        matches.then(|| path.trim_start_matches('/').to_owned())
    });
    let mount = mounts(&host.mountinfo).find(|mount| match controller {
        None => mount.filesystem == "cgroup2",
        Some(controller) => mount.filesystem == "cgroup" && mount.has(controller),
    });
    let (Some(own), Some(mount)) = (own, mount) else { return Vec::new() };
    let Some(root) = host.sources.below_root(&mount.mount_point) else { return Vec::new() };
    // In a container the path may be the host's: what does not exist is above what can be seen.
    let levels = Path::new(&own).ancestors().map(|level| root.join(level));
    levels.filter(|level| level.is_dir()).collect()
}

/// The smallest of the limits that are numbers.
fn smallest<'a>(texts: impl IntoIterator<Item = &'a String>) -> Option<u64> {
    texts.into_iter().filter_map(|text| text.parse().ok()).min()
}

fn cpu(host: &Host) -> Verdict {
    let share = |quota: &str, period: &str| Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?);
    let modern = limits(host, None, "cpu.max");
    let modern = modern
        .iter()
        .filter_map(|text| text.split_once(' ').and_then(|(quota, period)| share(quota, period)));
    let quotas = limits(host, Some("cpu"), "cpu.cfs_quota_us");
    let periods = limits(host, Some("cpu"), "cpu.cfs_period_us");
    let old = quotas.iter().zip(&periods).filter_map(|(quota, period)| share(quota, period));
    match modern.chain(old).filter(|cores| *cores > 0.0).min_by(f64::total_cmp) {
        None => Verdict::fine("no limit"),
        Some(cores) => {
            let shards = host.subject.shards;
            let found = format!("a limit of {cores:.2} cores for {}", counted(shards as u64, "shard"));
            if cores < shards as f64 { Verdict::warning(found) } else { Verdict::fine(found) }
        }
    }
}

fn memory(host: &Host) -> Verdict {
    let mut texts = limits(host, None, "memory.max");
    texts.extend(limits(host, None, "memory.high"));
    texts.extend(limits(host, Some("memory"), "memory.limit_in_bytes"));
    // Version 1 says "no limit" with the largest number of pages.
    let Some(limit) = smallest(&texts).filter(|limit| *limit < 1 << 60) else {
        return Verdict::fine("no limit");
    };
    let wanted = MEMORY_BYTES_PER_SHARD * host.subject.shards as u64;
    let shards = counted(host.subject.shards as u64, "shard");
    let found = format!("a limit of {}, {shards} may use {}", bytes(limit), bytes(wanted));
    if limit < wanted { Verdict::warning(found) } else { Verdict::fine(found) }
}

fn cores(host: &Host) -> Verdict {
    let (usable, online) = (&host.subject.usable_cores, host.online_cores());
    let found = format!("cores {} of {}", to_list(usable), to_list(&online));
    if usable.len() < online.len() { Verdict::note(found) } else { Verdict::fine(found) }
}

fn io(host: &Host) -> Verdict {
    let devices: Vec<String> = host.disks.iter().filter_map(|disk| text(&disk.path.join("dev"))).collect();
    let mut found = Vec::new();
    for text in limits(host, None, "io.max") {
        // 254:0 rbps=max wbps=1048576 riops=max wiops=max
        for (device, settings) in text.lines().filter_map(|line| line.split_once(' ')) {
            let limits: Vec<&str> = settings.split(' ').filter(|limit| !limit.ends_with("=max")).collect();
            if devices.iter().any(|name| name == device) && !limits.is_empty() {
                found.push(format!("{device} {}", limits.join(" ")));
            }
        }
    }
    for name in ["read_bps", "write_bps", "read_iops", "write_iops"] {
        for text in limits(host, Some("blkio"), &format!("blkio.throttle.{name}_device")) {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            let own = lines.filter(|(device, _)| devices.iter().any(|name| name == device));
            found.extend(own.map(|(device, limit)| format!("{device} {name}={limit}")));
        }
    }
    if found.is_empty() {
        Verdict::fine("no limit")
    } else {
        Verdict::warning(format!("limits: {}", found.join(", ")))
    }
}

fn pids(host: &Host) -> Verdict {
    let mut texts = limits(host, None, "pids.max");
    texts.extend(limits(host, Some("pids"), "pids.max"));
    let Some(limit) = smallest(&texts) else { return Verdict::fine("no limit") };
    let wanted = THREADS_PER_PROCESS + THREADS_PER_SHARD * host.subject.shards as u64;
    let found = format!("a limit of {limit} threads, the broker may have {wanted}");
    if limit < wanted { Verdict::warning(found) } else { Verdict::fine(found) }
}
