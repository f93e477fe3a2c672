//! The settings of a topic: one table that gives names, defaults, ranges, units and documentation.
//!
//! Names and meanings are the field's usual ones. Values arrive as text (`7d`, `1GiB`, `604800000`) and are
//! kept in the image as normalised text in the base unit, only where they differ from the default;
//! [`TopicConfig`] is the typed whole that partitions work with.
//!
//! Absent on purpose: settings that nothing obeys yet. A value that is planned and not built is refused
//! with a message that says so.

use crate::limits;
use std::collections::BTreeMap;

/// The typed settings of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// Records older than this may go, milliseconds; -1 = never by age.
    pub retention_ms: i64,
    /// A partition larger than this loses its oldest segments, bytes; -1 = never by size.
    pub retention_bytes: i64,
    /// A segment that reaches this size is closed, bytes.
    pub segment_bytes: u64,
    /// A segment that reaches this age is closed, milliseconds.
    pub segment_ms: u64,
    /// The largest record batch, bytes.
    pub max_message_bytes: u32,
    /// Whose clock a record's timestamp is.
    pub message_timestamp_type: TimestampType,
    /// What happens to old records.
    pub cleanup_policy: CleanupPolicy,
    /// How dirty a log gets before it is compacted, in millionths of what may be compacted.
    pub min_dirty_millionths: u32,
    /// How long a record stays before compaction may look at it, milliseconds.
    pub min_compaction_lag_ms: i64,
    /// After so long it looks at a record however clean the log is, milliseconds.
    pub max_compaction_lag_ms: i64,
    /// How long a tombstone is to be seen after compaction has met it, milliseconds.
    pub delete_retention_ms: i64,
    /// In-sync replicas without which `acks=all` is refused; 0 = [`TopicConfig::min_in_sync`] says.
    pub min_insync_replicas: u32,
    /// Who chooses the compression.
    pub compression_type: CompressionType,
}

/// Whose clock a record's timestamp is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The leader's, at append.
    LogAppendTime,
}

/// What happens to old records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// They go by age and size.
    Delete,
    /// The latest of each key stays.
    Compact,
    /// Both.
    CompactAndDelete,
}

/// Who chooses the compression. There is one answer: the broker never encodes a batch anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Stored as sent.
    Producer,
}

/// Why settings were refused. Each message names the setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No such setting.
    #[error("{name} is not a setting of a topic; there are: {}", names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Not a value of this setting.
    #[error("{name}={value}: {problem}")]
    Invalid {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is wrong, and what is permitted.
        problem: String,
    },
    /// Given twice, or set and unset at once.
    #[error("{name} is given more than once")]
    Repeated {
        /// The setting.
        name: String,
    },
    /// Each value is fine, together they are not.
    #[error("{0}")]
    Contradiction(String),
}

/// One setting: a row of [`SETTINGS`].
#[derive(Debug)]
pub struct Setting {
    /// The name that people write.
    pub name: &'static str,
    /// The default, normalised.
    pub default: &'static str,
    /// One line.
    pub documentation: &'static str,
    kind: Kind,
    get: fn(&TopicConfig) -> i64,
    set: fn(&mut TopicConfig, i64),
}

#[derive(Debug)]
enum Kind {
    Number {
        unit: Unit,
        min: i64,
        max: i64,
        unlimited: bool,
    },
    /// From 0 to 1, kept in millionths.
    Ratio,
    Choice(&'static [Choice]),
}

#[derive(Debug)]
struct Choice {
    name: &'static str,
    /// Why it cannot be chosen, where it cannot.
    refusal: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Milliseconds,
    Bytes,
    Count,
}

const NEVER_ENCODED_ANEW: Option<&str> = Some(
    "the broker never encodes a batch anew; set the compression in the producer and leave this at producer",
);

/// Bytes of a segment that are not batches: its header, and the header and padding of a group.
const SEGMENT_OVERHEAD_BYTES: u64 = 3 * limits::BLOCK_BYTES as u64;

/// Every setting, in the order in which they are shown.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "retention.ms",
        default: "604800000",
        documentation: "records older than this are deleted, segment by segment; -1 = never by age",
        kind: Kind::Number { unit: Unit::Milliseconds, min: 0, max: i64::MAX, unlimited: true },
        get: |config| config.retention_ms,
        set: |config, value| config.retention_ms = value,
    },
    Setting {
        name: "retention.bytes",
        default: "-1",
        documentation: "a partition larger than this loses its oldest segments; -1 = never by size",
        kind: Kind::Number { unit: Unit::Bytes, min: 0, max: i64::MAX, unlimited: true },
        get: |config| config.retention_bytes,
        set: |config, value| config.retention_bytes = value,
    },
    Setting {
        name: "segment.bytes",
        default: "1073741824",
        documentation: "a segment of this size is closed; retention removes whole segments",
        kind: Kind::Number {
            unit: Unit::Bytes,
            min: limits::SEGMENT_BYTES_MIN as i64,
            max: 1 << 40,
            unlimited: false,
        },
        get: |config| config.segment_bytes as i64,
        set: |config, value| config.segment_bytes = value as u64,
    },
    Setting {
        name: "segment.ms",
        default: "604800000",
        documentation: "a segment of this age is closed even if it is small",
        kind: Kind::Number { unit: Unit::Milliseconds, min: 1, max: i64::MAX, unlimited: false },
        get: |config| config.segment_ms as i64,
        set: |config, value| config.segment_ms = value as u64,
    },
    Setting {
        name: "max.message.bytes",
        default: "1048576",
        documentation: "the largest record batch that is accepted, as it is sent",
        kind: Kind::Number {
            unit: Unit::Bytes,
            min: 1024,
            max: limits::BATCH_BYTES_MAX as i64,
            unlimited: false,
        },
        get: |config| config.max_message_bytes.into(),
        set: |config, value| config.max_message_bytes = value as u32,
    },
    Setting {
        name: "message.timestamp.type",
        default: "CreateTime",
        documentation: "whose clock a record's timestamp is: the producer's, or the leader's at append",
        kind: Kind::Choice(&[
            Choice { name: "CreateTime", refusal: None },
            Choice { name: "LogAppendTime", refusal: None },
        ]),
        get: |config| (config.message_timestamp_type == TimestampType::LogAppendTime).into(),
        set: |config, value| {
            config.message_timestamp_type =
                if value == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime };
        },
    },
    Setting {
        name: "cleanup.policy",
        default: "delete",
        documentation: "what happens to old records: they go by age and size, or all but the latest of each key go",
        kind: Kind::Choice(&[
            Choice { name: "delete", refusal: None },
            Choice { name: "compact", refusal: None },
            Choice { name: "compact,delete", refusal: None },
            Choice { name: "delete,compact", refusal: None },
        ]),
        get: |config| match config.cleanup_policy {
            CleanupPolicy::Delete => 0,
            CleanupPolicy::Compact => 1,
            CleanupPolicy::CompactAndDelete => 2,
        },
        set: |config, value| {
            config.cleanup_policy = match value {
                0 => CleanupPolicy::Delete,
                1 => CleanupPolicy::Compact,
                _ => CleanupPolicy::CompactAndDelete,
            };
        },
    },
    Setting {
        name: "min.cleanable.dirty.ratio",
        default: "0.5",
        documentation: "a log is compacted once so much of it has not been",
        kind: Kind::Ratio,
        get: |config| config.min_dirty_millionths.into(),
        set: |config, value| config.min_dirty_millionths = value as u32,
    },
    Setting {
        name: "min.compaction.lag.ms",
        default: "0",
        documentation: "compaction leaves records alone that are younger",
        kind: Kind::Number { unit: Unit::Milliseconds, min: 0, max: i64::MAX, unlimited: false },
        get: |config| config.min_compaction_lag_ms,
        set: |config, value| config.min_compaction_lag_ms = value,
    },
    Setting {
        name: "max.compaction.lag.ms",
        default: "9223372036854775807",
        documentation: "records that are older are compacted however few they are; their segment is closed by then",
        kind: Kind::Number { unit: Unit::Milliseconds, min: 1, max: i64::MAX, unlimited: false },
        get: |config| config.max_compaction_lag_ms,
        set: |config, value| config.max_compaction_lag_ms = value,
    },
    Setting {
        name: "delete.retention.ms",
        default: "86400000",
        documentation: "how long a tombstone stays to be seen after compaction has met it",
        kind: Kind::Number { unit: Unit::Milliseconds, min: 0, max: i64::MAX, unlimited: false },
        get: |config| config.delete_retention_ms,
        set: |config, value| config.delete_retention_ms = value,
    },
    Setting {
        name: "min.insync.replicas",
        default: "0",
        documentation: "in-sync replicas that acks=all needs, at most as many as the topic has; 0 = 2, or 1 where \
            there is one replica",
        kind: Kind::Number { unit: Unit::Count, min: 0, max: 1024, unlimited: false },
        get: |config| config.min_insync_replicas.into(),
        set: |config, value| config.min_insync_replicas = value as u32,
    },
    Setting {
        name: "compression.type",
        default: "producer",
        documentation: "batches are stored as the producer compressed them",
        kind: Kind::Choice(&[
            Choice { name: "producer", refusal: None },
            Choice { name: "none", refusal: NEVER_ENCODED_ANEW },
            Choice { name: "uncompressed", refusal: NEVER_ENCODED_ANEW },
            Choice { name: "gzip", refusal: NEVER_ENCODED_ANEW },
            Choice { name: "snappy", refusal: NEVER_ENCODED_ANEW },
            Choice { name: "lz4", refusal: NEVER_ENCODED_ANEW },
            Choice { name: "zstd", refusal: NEVER_ENCODED_ANEW },
        ]),
        get: |_| 0,
        set: |config, _| config.compression_type = CompressionType::Producer,
    },
];

/// A setting as `DescribeConfigs` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// What is in force, normalised.
    pub value: String,
    /// Whether the topic leaves it at the default.
    pub is_default: bool,
    /// One line, with the range.
    pub documentation: String,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            retention_ms: 7 * 24 * 3_600_000,
            retention_bytes: -1,
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3_600_000,
            max_message_bytes: limits::BATCH_BYTES_DEFAULT as u32,
            message_timestamp_type: TimestampType::CreateTime,
            cleanup_policy: CleanupPolicy::Delete,
            min_dirty_millionths: 500_000,
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: i64::MAX,
            delete_retention_ms: 86_400_000,
            min_insync_replicas: 0,
            compression_type: CompressionType::Producer,
        }
    }
}

impl TopicConfig {
    /// The settings of a topic whose `overrides` differ from the defaults.
    pub fn from_overrides(overrides: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for (name, value) in overrides {
            let setting = find(name)?;
            (setting.set)(&mut config, setting.parse(value)?);
        }
        let room = config.segment_bytes.saturating_sub(SEGMENT_OVERHEAD_BYTES);
        if u64::from(config.max_message_bytes) > room {
            return Err(ConfigError::Contradiction(format!(
                "segment.bytes={} cannot hold a batch of max.message.bytes={}: raise the one above {} or lower \
                 the other to {room}",
                config.segment_bytes,
                config.max_message_bytes,
                u64::from(config.max_message_bytes) + SEGMENT_OVERHEAD_BYTES - 1,
            )));
        }
        if config.min_compaction_lag_ms > config.max_compaction_lag_ms {
            return Err(ConfigError::Contradiction(format!(
                "min.compaction.lag.ms={} is above max.compaction.lag.ms={}: lower the one or raise the other",
                config.min_compaction_lag_ms, config.max_compaction_lag_ms,
            )));
        }
        Ok(config)
    }

    /// In-sync replicas without which a partition of `replicas` acknowledges nothing. Unless the topic says
    /// otherwise they are two: one that stands alone can lose what was acknowledged with its disk.
    pub fn min_in_sync(&self, replicas: usize) -> usize {
        match self.min_insync_replicas {
            0 => replicas.clamp(1, 2),
            set => set as usize,
        }
    }

    /// Every setting, for people.
    pub fn describe(&self, overrides: &BTreeMap<String, String>) -> Vec<Described> {
        SETTINGS
            .iter()
            .map(|setting| Described {
                name: setting.name,
                value: setting.show((setting.get)(self)),
                is_default: !overrides.contains_key(setting.name),
                documentation: format!("{} ({})", setting.documentation, setting.range()),
            })
            .collect()
    }
}

/// `overrides` with `set` put in, normalised, and `unset` taken out. Values are checked one by one; see
/// [`TopicConfig::from_overrides`] for the whole.
pub fn alter(
    overrides: &BTreeMap<String, String>,
    set: &[(String, String)],
    unset: &[String],
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut seen: Vec<&str> = Vec::new();
    let mut altered = overrides.clone();
    for name in set.iter().map(|(name, _)| name).chain(unset) {
        let name = find(name)?.name;
        if seen.contains(&name) {
            return Err(ConfigError::Repeated { name: name.to_owned() });
        }
        seen.push(name);
    }
    for (name, value) in set {
        let setting = find(name)?;
        altered.insert(setting.name.to_owned(), setting.show(setting.parse(value)?));
    }
    for name in unset {
        altered.remove(name);
    }
    Ok(altered)
}

/// The row of `name`.
pub fn find(name: &str) -> Result<&'static Setting, ConfigError> {
    SETTINGS
        .iter()
        .find(|setting| setting.name == name)
        .ok_or_else(|| ConfigError::Unknown { name: name.to_owned() })
}

fn names() -> String {
    SETTINGS.iter().map(|setting| setting.name).collect::<Vec<_>>().join(", ")
}

impl Setting {
    /// What is permitted, for people.
    pub fn range(&self) -> String {
        match &self.kind {
            Kind::Number { unit, min, max, unlimited } => {
                let unit = unit.name();
                let top = if *max == i64::MAX { "any".to_owned() } else { max.to_string() };
                let unlimited = if *unlimited { ", or -1" } else { "" };
                match top.as_str() {
                    "any" => format!("{min}{unit} or more{unlimited}"),
                    top => format!("{min} to {top}{unit}{unlimited}"),
                }
            }
            Kind::Ratio => "0 to 1".to_owned(),
            Kind::Choice(choices) => {
                let open = choices.iter().filter(|choice| choice.refusal.is_none());
                open.map(|choice| choice.name).collect::<Vec<_>>().join(" or ")
            }
        }
    }

    fn show(&self, value: i64) -> String {
        match &self.kind {
            Kind::Number { .. } => value.to_string(),
            Kind::Ratio => {
                let text = format!("{}.{:06}", value / MILLION, value % MILLION);
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            }
            Kind::Choice(choices) => choices[value as usize].name.to_owned(),
        }
    }

    fn parse(&self, text: &str) -> Result<i64, ConfigError> {
        let text = text.trim();
        let refused =
            |problem: String| ConfigError::Invalid { name: self.name, value: text.to_owned(), problem };
        match &self.kind {
            Kind::Number { unit, min, max, unlimited } => {
                if *unlimited && (text == "-1" || text == "unlimited") {
                    return Ok(-1);
                }
                let value = unit.parse(text).map_err(&refused)?;
                if value < *min || value > *max {
                    return Err(refused(format!("out of range, permitted: {}", self.range())));
                }
                Ok(value)
            }
            Kind::Ratio => {
                let value = parse_millionths(text).filter(|value| (0..=MILLION).contains(value));
                value.ok_or_else(|| refused("write a number from 0 to 1, as 0.5".to_owned()))
            }
            Kind::Choice(choices) => {
                let wanted: String = text.chars().filter(|c| !c.is_whitespace()).collect();
                let found = choices.iter().position(|choice| choice.name.eq_ignore_ascii_case(&wanted));
                let Some(index) = found else {
                    return Err(refused(format!("permitted: {}", self.range())));
                };
                match choices[index].refusal {
                    Some(why) => Err(refused(why.to_owned())),
                    None => Ok(index as i64),
                }
            }
        }
    }
}

const MILLION: i64 = 1_000_000;

/// `1`, `0.5`, `.25`, at most six digits behind the point.
fn parse_millionths(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    if whole.len() + part.len() == 0 || whole.len() > 1 || part.len() > 6 || !digits(whole) || !digits(part) {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: i64 = format!("{part:0<6}").parse().ok()?;
    Some(whole * MILLION + part)
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Milliseconds => " ms",
            Unit::Bytes => " bytes",
            Unit::Count => "",
        }
    }

    /// Suffixes, in lower case, and what they multiply by.
    fn suffixes(self) -> &'static [(&'static str, i64)] {
        match self {
            Unit::Milliseconds => &[
                ("", 1),
                ("ms", 1),
                ("s", 1_000),
                ("m", 60_000),
                ("min", 60_000),
                ("h", 3_600_000),
                ("d", 86_400_000),
                ("w", 604_800_000),
            ],
            Unit::Bytes => &[
                ("", 1),
                ("b", 1),
                ("kb", 1_000),
                ("mb", 1_000_000),
                ("gb", 1_000_000_000),
                ("tb", 1_000_000_000_000),
                ("kib", 1 << 10),
                ("mib", 1 << 20),
                ("gib", 1 << 30),
                ("tib", 1 << 40),
            ],
            Unit::Count => &[("", 1)],
        }
    }

    fn parse(self, text: &str) -> Result<i64, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        if number.is_empty() {
            return Err(match self {
                Unit::Milliseconds => "not a duration; write for example 604800000, 90s, 12h or 7d",
                Unit::Bytes => "not a size; write for example 1048576, 512KiB or 1GiB",
                Unit::Count => "not a whole number",
            }
            .to_owned());
        }
        let suffix = suffix.trim().to_ascii_lowercase();
        let Some((_, factor)) = self.suffixes().iter().find(|(known, _)| *known == suffix) else {
            let known: Vec<_> =
                self.suffixes().iter().map(|(known, _)| *known).filter(|known| !known.is_empty()).collect();
            return Err(match known.is_empty() {
                true => "not a whole number".to_owned(),
                false => format!("unknown unit {suffix:?}; there are {}", known.join(", ")),
            });
        };
        let number: Option<i64> = number.parse().ok();
        number.and_then(|number| number.checked_mul(*factor)).ok_or_else(|| "too large".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(name: &str, value: &str) -> Result<String, String> {
        let altered = alter(&BTreeMap::new(), &[(name.into(), value.into())], &[]);
        let altered = altered.map_err(|error| error.to_string())?;
        TopicConfig::from_overrides(&altered).map_err(|error| error.to_string())?;
        Ok(altered[name].clone())
    }

    /// `name=value` is kept as `expect`, or refused with a message that contains it.
    fn check(name: &str, value: &str, expect: Result<&str, &str>) {
        match (set(name, value), expect) {
            (Ok(got), Ok(expect)) => assert_eq!(got, expect, "{name}={value}"),
            (Err(got), Err(expect)) => assert!(got.contains(expect), "{name}={value}: {got}"),
            (got, expect) => panic!("{name}={value}: {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn values() {
        let rows = [
            ("retention.ms", "604800000", Ok("604800000")),
            ("retention.ms", "7d", Ok("604800000")),
            ("retention.ms", " 90 s ", Ok("90000")),
            ("retention.ms", "5m", Ok("300000")),
            ("retention.ms", "-1", Ok("-1")),
            ("retention.ms", "unlimited", Ok("-1")),
            ("retention.ms", "9223372036854775807", Ok("9223372036854775807")),
            ("retention.ms", "9223372036854775808", Err("too large")),
            ("retention.ms", "9223372036854775807w", Err("too large")),
            ("retention.ms", "-2", Err("not a duration")),
            ("retention.ms", "", Err("not a duration")),
            ("retention.ms", "7 years", Err("unknown unit \"years\"; there are ms, s,")),
            ("retention.bytes", "10GB", Ok("10000000000")),
            ("retention.bytes", "0", Ok("0")),
            ("segment.bytes", "1GiB", Ok("1073741824")),
            ("segment.bytes", "64mib", Ok("67108864")),
            ("segment.bytes", "512KiB", Err("out of range, permitted: 1048576 to")),
            ("segment.bytes", "1MiB", Err("cannot hold a batch of max.message.bytes=1048576")),
            ("segment.bytes", "-1", Err("not a size")),
            ("segment.ms", "0", Err("permitted: 1 ms or more")),
            ("max.message.bytes", "8MiB", Ok("8388608")),
            ("max.message.bytes", "9MiB", Err("permitted: 1024 to 8388608 bytes")),
            ("message.timestamp.type", "logappendtime", Ok("LogAppendTime")),
            ("message.timestamp.type", "now", Err("permitted: CreateTime or LogAppendTime")),
            ("cleanup.policy", "delete", Ok("delete")),
            ("cleanup.policy", "compact", Ok("compact")),
            ("cleanup.policy", "compact, delete", Ok("compact,delete")),
            ("cleanup.policy", "Delete,Compact", Ok("delete,compact")),
            ("cleanup.policy", "shrink", Err("permitted: delete or compact or")),
            ("min.cleanable.dirty.ratio", "0.5", Ok("0.5")),
            ("min.cleanable.dirty.ratio", " 1 ", Ok("1")),
            ("min.cleanable.dirty.ratio", "0", Ok("0")),
            ("min.cleanable.dirty.ratio", ".010", Ok("0.01")),
            ("min.cleanable.dirty.ratio", "1.000001", Err("from 0 to 1")),
            ("min.cleanable.dirty.ratio", "50%", Err("from 0 to 1")),
            ("min.cleanable.dirty.ratio", ".", Err("from 0 to 1")),
            ("min.cleanable.dirty.ratio", "-0.1", Err("from 0 to 1")),
            ("min.compaction.lag.ms", "1h", Ok("3600000")),
            ("max.compaction.lag.ms", "0", Err("permitted: 1 ms or more")),
            ("delete.retention.ms", "0", Ok("0")),
            ("min.insync.replicas", "2", Ok("2")),
            ("min.insync.replicas", "0", Ok("0")),
            ("min.insync.replicas", "1025", Err("permitted: 0 to 1024")),
            ("min.insync.replicas", "2d", Err("not a whole number")),
            ("compression.type", "producer", Ok("producer")),
            ("compression.type", "zstd", Err("set the compression in the producer")),
            ("retention", "1", Err("retention is not a setting of a topic; there are: retention.ms,")),
        ];
        for (name, value, expect) in rows {
            check(name, value, expect);
        }
    }

    #[test]
    fn the_table_and_the_type_agree() {
        let defaults = TopicConfig::default();
        for setting in SETTINGS {
            assert_eq!(setting.show((setting.get)(&defaults)), setting.default, "{}", setting.name);
            assert_eq!(setting.parse(setting.default), Ok((setting.get)(&defaults)), "{}", setting.name);
            assert!(!setting.documentation.is_empty() && !setting.range().is_empty());
        }
        let mut names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
    }

    #[test]
    fn alter_sets_unsets_and_describes() {
        let text = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect()
        };
        let first =
            alter(&BTreeMap::new(), &text(&[("retention.ms", "1h"), ("segment.ms", "1s")]), &[]).unwrap();
        let second = alter(&first, &text(&[("segment.ms", "2s")]), &["retention.ms".into()]).unwrap();
        assert_eq!(second, BTreeMap::from([("segment.ms".to_owned(), "2000".to_owned())]));
        let config = TopicConfig::from_overrides(&second).unwrap();
        assert_eq!(config, TopicConfig { segment_ms: 2000, ..TopicConfig::default() });
        let shown = config.describe(&second);
        assert_eq!(shown.len(), SETTINGS.len());
        assert_eq!((shown[3].value.as_str(), shown[3].is_default), ("2000", false));
        assert!(shown[0].is_default && shown[0].documentation.ends_with("(0 ms or more, or -1)"));
        let twice = alter(&first, &text(&[("segment.ms", "2s")]), &["segment.ms".into()]);
        assert_eq!(twice, Err(ConfigError::Repeated { name: "segment.ms".into() }));
    }

    proptest! {
        #[test]
        fn any_text_is_kept_or_refused(row in 0..SETTINGS.len(), value in "\\PC{0,12}|[0-9]{1,20}[a-zA-Z]{0,4}") {
            let name = SETTINGS[row].name;
            if let Ok(kept) = set(name, &value) {
                // What was normalised is a value again, and stays as it is.
                prop_assert_eq!(set(name, &kept), Ok(kept.clone()));
            }
        }
    }
}
