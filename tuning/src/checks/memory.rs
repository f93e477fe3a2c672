//! Memory: how much, huge pages, swap, and how much of it may wait to be written.
//!
//! Rows of the catalogue; see the parent module.

use crate::doctor::Host;
use crate::finding::{Check, Severity, Verdict};
use crate::sources::{bytes, chosen, counted};

/// What one shard may use at most, all budgets full (`SHARD_MEMORY_BYTES_MAX` in `broker/logic/src/limits.rs`
/// and the heap's slack; measured with 1,000 partitions).
pub const MEMORY_BYTES_PER_SHARD: u64 = 1280 << 20;
/// More than this waiting to be written is seconds of an ordinary disk.
pub(crate) const DIRTY_BYTES_BEFORE_WRITING_MAX: u64 = 1 << 30;
/// From here on the kernel prefers dropping cached files to swapping.
pub(crate) const SWAPPINESS_MAX: i64 = 10;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "memory",
        complains: "the host has less memory than all shards may use with every budget full (1280 MiB each)",
        severities: &[Severity::Warning],
        cost: "under overload the kernel kills the broker before its own limits hold clients back",
        fix: "fewer shards (--shards), or more memory",
        judge: Some(memory),
    },
    Check {
        name: "huge_pages",
        complains: "transparent huge pages are given to everybody (always)",
        severities: &[Severity::Warning],
        cost: "memory is zeroed and compacted 2 MiB at a time, at the moment it is first touched: stalls of up to \
               milliseconds, and more memory in use than is needed",
        fix: "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        judge: Some(huge_pages),
    },
    Check {
        name: "swap",
        complains: "there is swap on a disk and vm.swappiness is above 10",
        severities: &[Severity::Warning],
        cost: "idle memory of the broker goes to the disk, and the request that needs it waits for the disk",
        fix: "sysctl vm.swappiness=1, or swapoff -a",
        judge: Some(swap),
    },
    Check {
        name: "dirty_pages",
        complains: "the kernel lets more than 1 GiB wait in memory before it begins to write",
        severities: &[Severity::Note],
        cost: "what other programs write reaches the disk late and all at once, and durable writes queue behind it; the \
               broker's own do not pass there where O_DIRECT works",
        fix: "sysctl vm.dirty_background_bytes=268435456 vm.dirty_bytes=1073741824",
        judge: Some(dirty_pages),
    },
];

/// A line of `/proc/meminfo`, bytes.
fn meminfo(host: &Host, name: &str) -> Option<u64> {
    let text = host.sources.proc("meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

fn memory(host: &Host) -> Verdict {
    let Some(total) = meminfo(host, "MemTotal") else { return Verdict::fine("the kernel does not say") };
    let wanted = MEMORY_BYTES_PER_SHARD * host.subject.shards as u64;
    let shards = counted(host.subject.shards as u64, "shard");
    let found = format!("{} of memory, {shards} may use {}", bytes(total), bytes(wanted));
    if total < wanted { Verdict::warning(found) } else { Verdict::fine(found) }
}

fn huge_pages(host: &Host) -> Verdict {
    const FOLDER: &str = "kernel/mm/transparent_hugepage";
    let Some(enabled) = host.sources.sys(&format!("{FOLDER}/enabled")) else {
        return Verdict::fine("the kernel has none");
    };
    if chosen(&enabled) != "always" {
        return Verdict::fine(format!("given to: {}", chosen(&enabled)));
    }
    let defrag = host.sources.sys(&format!("{FOLDER}/defrag")).unwrap_or_default();
    Verdict::warning(format!("transparent huge pages: always, defrag: {}", chosen(&defrag)))
}

fn swap(host: &Host) -> Verdict {
    let swaps = host.sources.proc("swaps").unwrap_or_default();
    let devices: Vec<&str> =
        swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let on_disk: Vec<&str> = devices.iter().copied().filter(|name| !name.starts_with("/dev/zram")).collect();
    if on_disk.is_empty() {
        return Verdict::fine(if devices.is_empty() { "no swap" } else { "swap in compressed memory only" });
    }
    let swappiness = host.sources.sysctl_number("vm.swappiness").unwrap_or(60);
    let found = format!("swap on {}, vm.swappiness = {swappiness}", on_disk.join(", "));
    if swappiness > SWAPPINESS_MAX { Verdict::warning(found) } else { Verdict::fine(found) }
}

fn dirty_pages(host: &Host) -> Verdict {
    let text = host.sources.proc("vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("nr_dirty_background_threshold "));
    let Some(pages) = line.and_then(|number| number.parse::<u64>().ok()) else {
        return Verdict::fine("the kernel does not say");
    };
    let amount = pages * host.measured.page_bytes;
    let set = ["vm.dirty_background_bytes", "vm.dirty_background_ratio"]
        .into_iter()
        .find_map(|name| Some((name, host.sources.sysctl_number(name).filter(|value| *value > 0)?)));
    let setting = set.map(|(name, value)| format!(" ({name} = {value})")).unwrap_or_default();
    let found = format!("{} may wait before the kernel begins to write{setting}", bytes(amount));
    if amount > DIRTY_BYTES_BEFORE_WRITING_MAX { Verdict::note(found) } else { Verdict::fine(found) }
}
