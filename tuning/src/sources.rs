//! Where facts about the host are read: the roots of `/sys` and `/proc`, and the few formats found there.
//!
//! Stateless. Invariant: whatever cannot be read or parsed is `None` or empty, never a guess. The roots are
//! named so that made-up trees test every finding.

use std::path::{Path, PathBuf};

/// The roots that facts are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// What is `/sys` on a real host.
    pub sys: PathBuf,
    /// What is `/proc` on a real host.
    pub proc: PathBuf,
}

impl Sources {
    /// Those of the host that this process runs on.
    pub fn of_this_host() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into() }
    }

    pub(crate) fn sys(&self, path: &str) -> Option<String> {
        text(&self.sys.join(path))
    }

    pub(crate) fn proc(&self, path: &str) -> Option<String> {
        text(&self.proc.join(path))
    }

    /// The file of the setting `vm.swappiness`.
    pub(crate) fn sysctl_path(&self, name: &str) -> PathBuf {
        self.proc.join("sys").join(name.replace('.', "/"))
    }

    pub(crate) fn sysctl(&self, name: &str) -> Option<String> {
        text(&self.sysctl_path(name))
    }

    pub(crate) fn sysctl_number(&self, name: &str) -> Option<i64> {
        self.sysctl(name)?.parse().ok()
    }

    /// `path`, as the running kernel names it, below the root that it belongs to.
    pub(crate) fn below_root(&self, path: &Path) -> Option<PathBuf> {
        let sys = path.strip_prefix("/sys").map(|rest| self.sys.join(rest));
        sys.or_else(|_| path.strip_prefix("/proc").map(|rest| self.proc.join(rest))).ok()
    }
}

/// A small file without the blanks around its text.
pub(crate) fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The number in a small file.
pub(crate) fn number(path: &Path) -> Option<i64> {
    text(path)?.parse().ok()
}

/// Names in `directory` that start with `prefix`, sorted; the numbers behind the prefix count as numbers.
pub(crate) fn names(directory: &Path, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort_by_key(|name| (name[prefix.len()..].parse::<u64>().unwrap_or(u64::MAX), name.clone()));
    names
}

/// The chosen one of `none [mq-deadline] kyber`; a text without brackets is itself.
pub(crate) fn chosen(text: &str) -> &str {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text, |(inside, _)| inside)
}

/// `0-2,8` as numbers.
pub(crate) fn list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Numbers as `0-2,8`.
pub(crate) fn to_list(numbers: &[usize]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let runs = sorted.chunk_by(|a, b| a + 1 == *b);
    let part = |run: &[usize]| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    };
    runs.map(part).collect::<Vec<_>>().join(",")
}

/// `00000001,0000000f`, a bit for each core, as numbers.
pub(crate) fn mask(text: &str) -> Vec<usize> {
    let mut cores = Vec::new();
    for (at, digit) in text.chars().rev().filter(|digit| *digit != ',').enumerate() {
        let bits = digit.to_digit(16).unwrap_or(0);
        cores.extend((0..4).filter(|bit| bits & (1 << bit) != 0).map(|bit| at * 4 + bit));
    }
    cores
}

/// Cores as a bit mask, in groups of 32 as the kernel reads them.
pub(crate) fn to_mask(cores: &[usize]) -> String {
    let groups = cores.iter().max().map_or(1, |last| last / 32 + 1);
    let group = |group: usize| {
        let own = cores.iter().filter(|core| **core / 32 == group);
        format!("{:08x}", own.fold(0_u32, |bits, core| bits | 1 << (core % 32)))
    };
    (0..groups).rev().map(group).collect::<Vec<_>>().join(",")
}

/// Bytes with a unit that leaves few digits, by 1024.
pub(crate) fn bytes(amount: u64) -> String {
    match amount {
        u64::MAX => "unlimited".into(),
        amount if amount >= 10 << 30 => format!("{} GiB", amount >> 30),
        amount if amount >= 10 << 20 => format!("{} MiB", amount >> 20),
        amount => format!("{} KiB", amount >> 10),
    }
}

/// `1 shard`, `2 shards`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_of_the_kernel() {
        for (text, expect) in
            [("none [mq-deadline] kyber", "mq-deadline"), ("tsc", "tsc"), ("[none]", "none")]
        {
            assert_eq!(chosen(text), expect, "{text}");
        }
        let lists: [(&str, &[usize]); 5] =
            [("0", &[0]), ("0-2,8", &[0, 1, 2, 8]), ("", &[]), ("x", &[]), ("3,1", &[3, 1])];
        for (text, expect) in lists {
            assert_eq!(list(text), expect, "{text}");
        }
        for (numbers, expect) in [(&[0, 1, 2, 8][..], "0-2,8"), (&[3, 1], "1,3"), (&[], ""), (&[5], "5")] {
            assert_eq!(to_list(numbers), expect);
        }
        let masks: [(&str, &[usize], &str); 4] = [
            ("3", &[0, 1], "00000003"),
            ("00000001,80000000", &[31, 32], "00000001,80000000"),
            ("0", &[], "00000000"),
            ("f0", &[4, 5, 6, 7], "000000f0"),
        ];
        for (text, expect, written) in masks {
            assert_eq!(mask(text), expect, "{text}");
            assert_eq!(to_mask(expect), written);
        }
    }

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["cpu10", "cpu2", "cpufreq", "node0"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        assert_eq!(names(directory.path(), "cpu"), ["cpu2", "cpu10", "cpufreq"]);
        assert!(names(&directory.path().join("none"), "").is_empty());
    }

    #[test]
    fn a_path_belongs_to_one_root() {
        let sources = Sources { sys: "/a".into(), proc: "/b".into() };
        assert_eq!(sources.below_root(Path::new("/sys/fs/cgroup")), Some("/a/fs/cgroup".into()));
        assert_eq!(sources.below_root(Path::new("/proc/1")), Some("/b/1".into()));
        assert_eq!(sources.below_root(Path::new("/dev")), None);
        assert_eq!(sources.sysctl_path("vm.swappiness"), Path::new("/b/sys/vm/swappiness"));
    }
}
