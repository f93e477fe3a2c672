//! The catalogue: every finding that there can be, in one list.
//!
//! Stateless. The checks that only `doctor` makes bring their rows along; those of the preflight, which
//! `serve` makes too, have theirs here, because its texts depend on what was found.
//! Invariants: names are unique; a finding has a row, and only the severities of that row (tests compare
//! both with what the tables of tests have raised); `docs/TUNING.md` has [`markdown`]'s table.

use crate::checks;
use crate::finding::{Check, Severity};

/// Every check, in the order in which findings of equal severity are shown.
pub fn catalogue() -> impl Iterator<Item = &'static Check> {
    let rows = [
        ROWS,
        checks::system::CHECKS,
        checks::memory::CHECKS,
        checks::cpu::CHECKS,
        checks::disk::CHECKS,
        checks::network::CHECKS,
        checks::container::CHECKS,
    ];
    rows.into_iter().flatten()
}

/// The rows of the catalogue that are judged here.
pub(crate) const ROWS: &[Check] = &[
    Check {
        name: "io_uring",
        complains: "io_uring is absent, disabled by kernel.io_uring_disabled, filtered by seccomp, or lacks an operation \
                    (asked of the kernel, by number)",
        severities: &[Severity::Fatal],
        cost: "the broker does all its input and output with io_uring: it does not start",
        fix: "a kernel from 6.1 on; sysctl kernel.io_uring_disabled=0; in a container a seccomp profile that permits \
              io_uring_setup, io_uring_enter and io_uring_register",
        judge: None,
    },
    Check {
        name: "locked_memory",
        complains: "the limit of locked memory is below 512 KiB (fatal), or below the 30 MiB that each shard registers \
                    with its rings (warning), unless CAP_IPC_LOCK lifts it",
        severities: &[Severity::Fatal, Severity::Warning],
        cost: "no shard starts; or buffers are used unregistered, which costs some CPU per read and write",
        fix: "ulimit -l, or LimitMEMLOCK= in the systemd unit",
        judge: None,
    },
    Check {
        name: "open_files",
        complains: "the limit of open files is too low to start (fatal), or for the connections and files that the \
                    shards may have (warning); the broker raises its own up to the hard limit",
        severities: &[Severity::Fatal, Severity::Warning],
        cost: "the broker does not start, or refuses connections before its shards are full",
        fix: "ulimit -n, or LimitNOFILE= in the systemd unit",
        judge: None,
    },
    Check {
        name: "data_directory",
        complains: "this user cannot write to the data directory, or it is a file",
        severities: &[Severity::Fatal],
        cost: "there is nowhere to keep records: the broker does not start",
        fix: "make it writable, or choose another: --data DIR",
        judge: None,
    },
    Check {
        name: "listen",
        complains: "the address cannot be listened on: taken (a note if it is the default: probably a broker), not this \
                    host's, or a privileged port",
        severities: &[Severity::Fatal, Severity::Note],
        cost: "clients cannot connect: the broker does not start",
        fix: "stop what has it (ss -ltnp), or name another: --listen ADDR:PORT",
        judge: None,
    },
    Check {
        name: "file_system",
        complains: "the data directory is on a file system in memory",
        severities: &[Severity::Warning],
        cost: "nothing survives a restart of the host or a power cut, acknowledged or not",
        fix: "put it on a disk: --data DIR",
        judge: None,
    },
    Check {
        name: "o_direct",
        complains: "files there cannot be written with O_DIRECT in blocks of 4 KiB",
        severities: &[Severity::Warning],
        cost: "files are written through the page cache: one more copy, memory pressure, slower and uneven syncs",
        fix: "put the data directory on ext4 or XFS",
        judge: None,
    },
    Check {
        name: "flush_round",
        complains: "one flush is not known to make all files durable: not ext4 or XFS with barriers, or several devices",
        severities: &[Severity::Warning],
        cost: "each partition that was written to costs a sync of its own per round",
        fix: "put the whole data directory on one ext4 or XFS file system with barriers on, without data=journal",
        judge: None,
    },
    Check {
        name: "write_cache",
        complains: "the device has a volatile write cache and no FUA",
        severities: &[Severity::Note],
        cost: "each durable write is a write and a flush; the broker does both, nothing is at risk",
        fix: "a disk with power-loss protection makes the flush nearly free",
        judge: None,
    },
    Check {
        name: "discard",
        complains: "the file system is mounted with discard",
        severities: &[Severity::Note],
        cost: "freeing a large file stalls other writes; the broker frees its own in small steps, others do not",
        fix: "mount without discard and run fstrim in a quiet hour (systemd: fstrim.timer)",
        judge: None,
    },
    Check {
        name: "free_space",
        complains: "less than 512 MiB per shard is free",
        severities: &[Severity::Warning],
        cost: "little room for segments and their spares; below 64 MiB produce is refused",
        fix: "free some space, lower retention, or choose another disk: --data DIR",
        judge: None,
    },
    Check {
        name: "cores",
        complains: "there are more shards than cores",
        severities: &[Severity::Warning],
        cost: "shards wait for each other's time slices, and latency shows it",
        fix: "fewer shards: --shards N",
        judge: None,
    },
];

/// The catalogue as the table of `docs/TUNING.md`.
pub fn markdown() -> String {
    let mut table = String::from("| Finding | Severity | When | Cost | Fix |\n|---|---|---|---|---|\n");
    for check in catalogue() {
        let severities: Vec<_> = check.severities.iter().map(|severity| severity.word()).collect();
        let severities = severities.join(", ");
        let Check { name, complains, cost, fix, .. } = check;
        table.push_str(&format!("| `{name}` | {severities} | {complains} | {cost} | {fix} |\n"));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rows_are_complete_and_unique() {
        let names: BTreeSet<_> = catalogue().map(|check| check.name).collect();
        assert_eq!(names.len(), catalogue().count(), "a name is used twice");
        for check in catalogue() {
            let texts = [check.complains, check.cost, check.fix];
            assert!(
                texts.iter().all(|text| text.len() > 10 && !text.contains(['|', '\n'])),
                "{}",
                check.name
            );
            assert!(check.severities.is_sorted_by(|a, b| a > b) && !check.severities.contains(&Severity::Ok));
            assert!(!check.severities.is_empty(), "{}", check.name);
        }
    }

    /// `RINGLOG_BLESS=1 cargo test -p tuning the_document` writes the tables instead.
    #[test]
    fn the_document_has_these_tables() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/TUNING.md");
        let text = std::fs::read_to_string(path).unwrap();
        let mut made = text.clone();
        for (name, table) in [("findings", markdown()), ("profiles", crate::tune::markdown())] {
            let (begin, end) =
                (format!("<!-- {name}: made from the code -->\n"), format!("<!-- end of {name} -->"));
            let (head, rest) = made.split_once(&begin).expect("the document says where the table begins");
            let (_, tail) = rest.split_once(&end).expect("the document says where the table ends");
            made = format!("{head}{begin}{table}{end}{tail}");
        }
        if std::env::var_os("RINGLOG_BLESS").is_some() {
            std::fs::write(path, made).unwrap();
            return;
        }
        assert!(text == made, "a table differs: RINGLOG_BLESS=1 cargo test -p tuning the_document");
    }
}
