//! The name of a segment's file: what it stands for, told by the directory alone.
//!
//! A segment that was appended to is `<number>.log`. One that compaction has rewritten is
//! `<first>-<last>.<revision>.log`: it stands for all segments from the first to the last number. Values, owned by
//! nobody. Invariant: of any two names that stand for a common number one supersedes the other, because a rewritten
//! segment always covers whole ones and has a higher revision; so after a crash between "the new name is durable"
//! and "the old names are gone" the listing says which files count.

/// The name of a segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The first number that it stands for; the segment's own.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// How often it was rewritten; 0 = as it was appended.
    pub revision: u32,
}

impl SegmentName {
    /// The name of a segment as it was appended.
    pub const fn appended(sequence: u64) -> Self {
        Self { first: sequence, last: sequence, revision: 0 }
    }

    /// Whether compaction has made it.
    pub const fn is_rewritten(self) -> bool {
        self.revision > 0
    }

    /// Whether it stands for this number.
    pub const fn covers(self, sequence: u64) -> bool {
        self.first <= sequence && sequence <= self.last
    }

    /// Whether `other` does not count beside it.
    pub const fn supersedes(self, other: Self) -> bool {
        self.revision > other.revision && self.first <= other.first && other.last <= self.last
    }

    /// Reads a file's name; `None` if it is not a segment's.
    pub fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(".log")?;
        let parsed = match stem.split_once('-') {
            None => Self::appended(stem.parse().ok()?),
            Some((first, rest)) => {
                let (last, revision) = rest.split_once('.')?;
                let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                Self { first, last, revision: revision.parse().ok()? }
            }
        };
        let sound = parsed.first <= parsed.last && parsed.to_string() == name;
        sound.then_some(parsed)
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision {
            0 => write!(f, "{:020}.log", self.first),
            revision => write!(f, "{:020}-{:020}.{revision:010}.log", self.first, self.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let rewritten = |first, last, revision| SegmentName { first, last, revision };
        let rows = [
            ("00000000000000000007.log", Some(SegmentName::appended(7))),
            ("18446744073709551615.log", Some(SegmentName::appended(u64::MAX))),
            ("00000000000000000007-00000000000000000009.0000000002.log", Some(rewritten(7, 9, 2))),
            ("00000000000000000007-00000000000000000007.0000000001.log", Some(rewritten(7, 7, 1))),
            ("00000000000000000007-00000000000000000009.0000000000.log", None),
            ("00000000000000000009-00000000000000000007.0000000001.log", None),
            ("00000000000000000007-00000000000000000009.log", None),
            ("00000000000000000007-9.1.log", None),
            ("7.log", None),
            ("00000000000000000007.tmp", None),
            ("+0000000000000000007.log", None),
            (".log", None),
        ];
        for (text, name) in rows {
            assert_eq!(SegmentName::parse(text), name, "{text}");
            if let Some(name) = name {
                assert_eq!(name.to_string(), text);
            }
        }
    }

    #[test]
    fn one_of_two_that_overlap_counts() {
        let name = |first, last, revision| SegmentName { first, last, revision };
        let rows = [
            (name(3, 3, 1), name(3, 3, 0), true),
            (name(3, 5, 1), name(4, 4, 0), true),
            (name(3, 5, 2), name(3, 4, 1), true),
            (name(3, 5, 1), name(6, 6, 0), false),
            (name(3, 5, 1), name(3, 5, 1), false),
            (name(3, 4, 3), name(3, 5, 2), false),
        ];
        for (new, old, supersedes) in rows {
            assert_eq!(new.supersedes(old), supersedes, "{new} over {old}");
            assert!(!old.supersedes(new), "{old} over {new}");
        }
    }
}
