//! The data directory's file system and the disk below it.
//!
//! Rows of the catalogue; see the parent module. What decides how `serve` writes is the preflight's.

use crate::doctor::{Disk, Host};
use crate::finding::{Check, Severity, Verdict};
use crate::mounts::Mount;
use crate::sources::chosen;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "network_file_system",
        complains: "the data directory is on a file system of the network or of a user's process",
        severities: &[Severity::Warning],
        cost: "each durable write is a round trip to a server whose promises are its own; locks and O_DIRECT may not mean \
               what they say",
        fix: "put the data directory on a disk of this host: --data DIR",
        judge: Some(network_file_system),
    },
    Check {
        name: "container_layer",
        complains: "the data directory is on a container's own layer (overlay)",
        severities: &[Severity::Warning],
        cost: "everything is gone with the container, and each first write to an old file copies it",
        fix: "mount a volume and name it with --data DIR",
        judge: Some(container_layer),
    },
    Check {
        name: "barriers",
        complains: "the file system is mounted without barriers (nobarrier, barrier=0)",
        severities: &[Severity::Warning, Severity::Note],
        cost: "a sync does not reach the medium: after a power cut acknowledged records may be missing",
        fix: "mount without nobarrier and barrier=0, unless every cache below survives a power cut",
        judge: Some(barriers),
    },
    Check {
        name: "journal_mode",
        complains: "the file system writes data to its journal first (data=journal)",
        severities: &[Severity::Warning],
        cost: "everything is written twice, and one flush does not cover all files",
        fix: "mount with data=ordered, the default",
        judge: Some(journal_mode),
    },
    Check {
        name: "access_times",
        complains: "every read sets the time of access (strictatime)",
        severities: &[Severity::Note],
        cost: "reading writes metadata, which the next sync has to carry",
        fix: "mount with noatime or relatime",
        judge: Some(access_times),
    },
    Check {
        name: "change_times",
        complains: "the file system writes every file's time of change to the disk at once (no lazytime)",
        severities: &[Severity::Note],
        cost: "up to once per tick of the kernel's clock a durable write waits for a second one, of the file's metadata: \
               0.1 of 0.67 ms in the median at 10,000 records a second on ext4",
        fix: "mount with lazytime",
        judge: Some(change_times),
    },
    Check {
        name: "disk_interrupts",
        complains: "the disk interrupts one core only, and shards run on others",
        severities: &[Severity::Note],
        cost: "their durable writes end on that core, after whatever it is busy with: with a busy program there, up to \
               several milliseconds for one write in a hundred",
        fix: "keep other programs off that core; of fewer shards than cores, give one to it: --cores LIST",
        judge: Some(disk_interrupts),
    },
    Check {
        name: "scheduler",
        complains: "the kernel orders requests for a disk that does so itself: bfq (warning), mq-deadline or kyber (note)",
        severities: &[Severity::Warning, Severity::Note],
        cost: "each request passes one more queue with a lock of its own; bfq also waits for more of the same before it \
               serves others",
        fix: "echo none > /sys/block/DISK/queue/scheduler",
        judge: Some(scheduler),
    },
    Check {
        name: "rotational",
        complains: "the disk rotates (warning), or a virtual one says so (note)",
        severities: &[Severity::Warning, Severity::Note],
        cost: "each durable write waits for the disk to turn: 4 to 10 ms, some 100 to 200 a second",
        fix: "put the data directory on a solid-state disk: --data DIR",
        judge: Some(rotational),
    },
];

/// Over the file system; where it is not known there is nothing to say.
fn over_mount(host: &Host, judge: impl Fn(&Mount) -> Verdict) -> Verdict {
    host.mount.as_ref().map_or_else(|| Verdict::fine("the file system is not known"), judge)
}

/// Over the disks, until one has a complaint.
fn over_disks(
    host: &Host,
    judge: impl Fn(&Disk) -> Option<Verdict>,
    fine: impl Fn(&Disk) -> String,
) -> Verdict {
    let complaint = host.disks.iter().find_map(judge);
    complaint.unwrap_or_else(|| {
        let fine: Vec<String> = host.disks.iter().map(fine).collect();
        Verdict::fine(if fine.is_empty() { "there is no block device".into() } else { fine.join(", ") })
    })
}

fn network_file_system(host: &Host) -> Verdict {
    const KINDS: [&str; 9] = ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "glusterfs", "lustre"];
    over_mount(host, |mount| {
        let kind = mount.filesystem.as_str();
        let found = format!("{} is on {kind}", mount.mount_point.display());
        // fuseblk is a local disk behind a process.
        let process = kind.starts_with("fuse") && kind != "fuseblk";
        if KINDS.contains(&kind) || process { Verdict::warning(found) } else { Verdict::fine(found) }
    })
}

fn container_layer(host: &Host) -> Verdict {
    over_mount(host, |mount| match mount.filesystem.as_str() {
        "overlay" | "aufs" => {
            Verdict::warning(format!("{} is on {}", host.subject.data.display(), mount.filesystem))
        }
        kind => Verdict::fine(format!("on {kind}")),
    })
}

fn barriers(host: &Host) -> Verdict {
    over_mount(host, |mount| {
        let off = |option: &&String| matches!(option.as_str(), "nobarrier" | "barrier=0");
        let Some(option) = mount.options.iter().find(off) else {
            return Verdict::fine(if mount.is_volatile() { "there is nothing to flush" } else { "on" });
        };
        let through = !host.disks.is_empty()
            && host.disks.iter().all(|disk| disk.queue("write_cache").as_deref() == Some("write through"));
        let found = format!("{} is mounted with {option}", mount.mount_point.display());
        match through {
            true => Verdict::note(format!("{found}, on a disk that says it writes through"))
                .cost("as long as the disk tells the truth, none"),
            false => Verdict::warning(found),
        }
    })
}

fn journal_mode(host: &Host) -> Verdict {
    over_mount(host, |mount| match mount.options.iter().any(|option| option == "data=journal") {
        true => Verdict::warning(format!("{} is mounted with data=journal", mount.mount_point.display())),
        false => Verdict::fine("data is not written to the journal"),
    })
}

fn access_times(host: &Host) -> Verdict {
    over_mount(host, |mount| match ["noatime", "relatime", "ro"].iter().find(|option| mount.has(option)) {
        Some(option) => Verdict::fine(*option),
        None => Verdict::note(format!("{} is mounted with strictatime", mount.mount_point.display())),
    })
}

fn change_times(host: &Host) -> Verdict {
    over_mount(host, |mount| {
        // Elsewhere its effect has not been measured.
        if mount.filesystem != "ext4" || mount.has("lazytime") || mount.has("ro") {
            return Verdict::fine("written when there is time");
        }
        let place = mount.mount_point.display();
        Verdict::note(format!("{place} is mounted without lazytime"))
            .fix(format!("mount -o remount,lazytime {place}, and the same in /etc/fstab"))
    })
}

fn disk_interrupts(host: &Host) -> Verdict {
    let complaint = |disk: &Disk| {
        let per_interrupt = host.interrupted_cores(&disk.path);
        let mut cores: Vec<usize> = per_interrupt.into_iter().flatten().collect();
        cores.sort_unstable();
        cores.dedup();
        let [only] = cores[..] else { return None };
        let others = host.shard_cores().iter().any(|core| *core != only);
        others.then(|| Verdict::note(format!("{} interrupts core {only} only", disk.name)))
    };
    over_disks(host, complaint, |disk| format!("{} is not known to interrupt one core only", disk.name))
}

/// Whether the scheduler has something to do: a disk with a head that moves.
fn has_a_head(disk: &Disk) -> bool {
    disk.queue("rotational").as_deref() == Some("1") && !disk.is_virtual()
}

/// The scheduler of a disk that would better have none.
pub(crate) fn needless_scheduler(disk: &Disk) -> Option<String> {
    let text = disk.queue("scheduler")?;
    let current = chosen(&text);
    let offered = text.split(' ').any(|name| name == "none");
    (current != "none" && offered && !has_a_head(disk)).then(|| current.to_owned())
}

fn scheduler(host: &Host) -> Verdict {
    let judge = |disk: &Disk| {
        let current = needless_scheduler(disk)?;
        let found = format!("{} has the scheduler {current}", disk.name);
        let verdict = match current.as_str() {
            "bfq" => Verdict::warning(found),
            _ => Verdict::note(found).cost("each request passes one more queue with a lock of its own"),
        };
        Some(verdict.fix(format!("echo none > /sys/block/{}/queue/scheduler", disk.name)))
    };
    over_disks(host, judge, |disk| {
        let text = disk.queue("scheduler").unwrap_or_else(|| "none".into());
        format!("{}: {}", disk.name, chosen(&text))
    })
}

fn rotational(host: &Host) -> Verdict {
    let judge = |disk: &Disk| match disk.queue("rotational")?.as_str() {
        "1" if disk.is_virtual() => Some(
            Verdict::note(format!(
                "{} says that it rotates, as many virtual disks do that are none",
                disk.name
            ))
            .cost("if it is true, each durable write waits for the disk to turn: 4 to 10 ms")
            .fix("measure it: ringlog perf ceilings DIR --only \"4 KiB\""),
        ),
        "1" => Some(Verdict::warning(format!("{} rotates", disk.name))),
        _ => None,
    };
    over_disks(host, judge, |disk| format!("{} does not rotate", disk.name))
}
