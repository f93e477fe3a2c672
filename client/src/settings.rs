//! Settings by the names that the field gives them: `batch.size`, `fetch.max.wait.ms`, `session.timeout.ms`.
//!
//! Owner: whoever makes a configuration out of text: a command line, a file of properties. Durations are milliseconds
//! or have a unit (`90s`), sizes are bytes or have one (`64KiB`). Invariant: a value outside its range is refused, where the
//! configurations themselves move it to the nearer end. Absent on purpose: names for what only a program can give
//! (a partitioner of its own), and those of topics, which are the broker's.

use crate::consumer::{AutoOffsetReset, ConsumerConfig};
use crate::group_consumer::{Assignor, GroupConfig};
use crate::partitioner::Partitioner;
use crate::producer::{BATCH_SIZE_MAX, Linger, ProducerConfig};
use crate::request::Acks;
use std::time::Duration;

/// Why a setting was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// No such setting.
    #[error("there is no setting '{name}'; there are {known}")]
    Unknown {
        /// As it was given.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// Not a value of this setting.
    #[error("{name}={value}: {expected}")]
    Invalid {
        /// The setting.
        name: String,
        /// As it was given.
        value: String,
        /// What is taken.
        expected: String,
    },
}

const PRODUCER: &[&str] = &[
    "acks",
    "batch.size",
    "buffer.memory",
    "compression.type",
    "delivery.timeout.ms",
    "enable.idempotence",
    "linger.ms",
    "max.in.flight.requests.per.connection",
    "partitioner",
];
const CONSUMER: &[&str] = &[
    "auto.offset.reset",
    "check.crcs",
    "client.rack",
    "fetch.max.bytes",
    "fetch.max.wait.ms",
    "fetch.min.bytes",
    "max.partition.fetch.bytes",
    "prefetch.bytes",
];
const GROUP: &[&str] = &[
    "auto.commit.interval.ms",
    "enable.auto.commit",
    "group.instance.id",
    "group.remote.assignor",
    "max.poll.interval.ms",
    "rebalance.timeout.ms",
    "session.timeout.ms",
];

impl ProducerConfig {
    /// Changes one setting: `acks` (0, 1, all), `batch.size`, `buffer.memory`, `compression.type`, `delivery.timeout.ms`,
    /// `enable.idempotence`, `linger.ms` (a time, or `adaptive`), `max.in.flight.requests.per.connection`, `partitioner`
    /// (`murmur2`, `modulo`).
    ///
    /// # Errors
    /// [`SettingError`], and the configuration is as it was.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        let text = Text { name, value };
        match name {
            "acks" => {
                let choices = [("0", Acks::None), ("1", Acks::Leader), ("all", Acks::All), ("-1", Acks::All)];
                self.acks = text.choice(&choices)?;
            }
            "batch.size" => self.batch_size = text.bytes(1, BATCH_SIZE_MAX as u64)? as usize,
            "buffer.memory" => self.buffer_memory = text.bytes(1, u64::from(u32::MAX))? as usize,
            "compression.type" => {
                self.compression = value.parse().map_err(|expected| text.invalid(expected))?;
            }
            "delivery.timeout.ms" => self.delivery_timeout = text.duration(1)?,
            "enable.idempotence" => self.enable_idempotence = text.bool()?,
            "linger.ms" => {
                self.linger = match value {
                    "adaptive" => Linger::Adaptive,
                    _ => Linger::Fixed(text.duration(0)?),
                };
            }
            "max.in.flight.requests.per.connection" => {
                self.max_in_flight_requests_per_connection = text.number(&[("", 1)], 1, 1024)? as usize;
            }
            "partitioner" => {
                let choices = [("murmur2", Partitioner::Default), ("modulo", Partitioner::Modulo)];
                self.partitioner = text.choice(&choices)?;
            }
            _ => return Err(text.unknown(&[PRODUCER])),
        }
        Ok(())
    }
}

impl ConsumerConfig {
    /// Changes one setting: `auto.offset.reset` (`earliest`, `latest`, `none`), `check.crcs`, `client.rack`,
    /// `fetch.max.bytes`, `fetch.max.wait.ms`, `fetch.min.bytes`, `max.partition.fetch.bytes`, `prefetch.bytes`.
    ///
    /// # Errors
    /// [`SettingError`], and the configuration is as it was.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        self.set_or(name, value, &[CONSUMER])
    }

    fn set_or(&mut self, name: &str, value: &str, known: &[&[&str]]) -> Result<(), SettingError> {
        let text = Text { name, value };
        let bytes = || text.bytes(1, u64::from(u32::MAX)).map(|bytes| bytes as u32);
        match name {
            "auto.offset.reset" => {
                let choices = [
                    ("earliest", AutoOffsetReset::Earliest),
                    ("latest", AutoOffsetReset::Latest),
                    ("none", AutoOffsetReset::Error),
                ];
                self.auto_offset_reset = text.choice(&choices)?;
            }
            "check.crcs" => self.check_crcs = text.bool()?,
            "client.rack" => self.rack = Some(value.to_owned()),
            "fetch.max.bytes" => self.fetch_max_bytes = bytes()?,
            "fetch.max.wait.ms" => self.fetch_max_wait = text.duration(0)?,
            "fetch.min.bytes" => self.fetch_min_bytes = bytes()?,
            "max.partition.fetch.bytes" => self.max_partition_fetch_bytes = bytes()?,
            "prefetch.bytes" => self.prefetch_bytes = bytes()? as usize,
            _ => return Err(text.unknown(known)),
        }
        Ok(())
    }
}

impl GroupConfig {
    /// Changes one setting: `auto.commit.interval.ms`, `enable.auto.commit`, `group.instance.id`, `group.remote.assignor`
    /// (`uniform`, `range`), `max.poll.interval.ms`, `rebalance.timeout.ms`, `session.timeout.ms`, and those of [`ConsumerConfig::set`].
    ///
    /// # Errors
    /// [`SettingError`], and the configuration is as it was.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        let text = Text { name, value };
        match name {
            "auto.commit.interval.ms" => self.auto_commit_interval = Some(text.duration(1)?),
            "enable.auto.commit" => {
                let interval = self.auto_commit_interval.unwrap_or(Duration::from_secs(5));
                self.auto_commit_interval = text.bool()?.then_some(interval);
            }
            "group.instance.id" => self.instance_id = Some(value.to_owned()),
            "group.remote.assignor" => {
                let choices =
                    [Assignor::Uniform, Assignor::Range].map(|assignor| (assignor.name(), assignor));
                self.assignor = Some(text.choice(&choices)?);
            }
            "max.poll.interval.ms" => self.max_poll_interval = text.duration(1)?,
            "rebalance.timeout.ms" => self.rebalance_timeout = text.duration(1)?,
            "session.timeout.ms" => self.session_timeout = text.duration(1)?,
            _ => return self.consumer.set_or(name, value, &[GROUP, CONSUMER]),
        }
        Ok(())
    }
}

/// One setting as it was given.
#[derive(Clone, Copy)]
struct Text<'a> {
    name: &'a str,
    value: &'a str,
}

impl Text<'_> {
    fn invalid(self, expected: impl Into<String>) -> SettingError {
        let (name, value) = (self.name.to_owned(), self.value.to_owned());
        SettingError::Invalid { name, value, expected: expected.into() }
    }

    fn unknown(self, known: &[&[&str]]) -> SettingError {
        SettingError::Unknown { name: self.name.to_owned(), known: known.concat().join(", ") }
    }

    fn choice<T: Clone>(self, choices: &[(&str, T)]) -> Result<T, SettingError> {
        let found = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(self.value));
        found.map(|(_, choice)| choice.clone()).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.invalid(format!("write one of {}", names.join(", ")))
        })
    }

    fn bool(self) -> Result<bool, SettingError> {
        self.choice(&[("true", true), ("false", false)])
    }

    /// Milliseconds, at least `min`, at most what one waits for in a century.
    fn duration(self, min: u64) -> Result<Duration, SettingError> {
        const CENTURY_MS: u64 = 100 * 365 * 86_400_000;
        let units = [("", 1), ("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        self.number(&units, min, CENTURY_MS).map(Duration::from_millis)
    }

    fn bytes(self, min: u64, max: u64) -> Result<u64, SettingError> {
        self.number(&[("", 1), ("b", 1), ("kib", 1 << 10), ("mib", 1 << 20), ("gib", 1 << 30)], min, max)
    }

    fn number(self, units: &[(&str, u64)], min: u64, max: u64) -> Result<u64, SettingError> {
        let digits = self.value.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.value.len());
        let (number, unit) = self.value.split_at(digits);
        let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()));
        let (Ok(number), Some((_, factor))) = (number.parse::<u64>(), factor) else {
            let names: Vec<_> = units.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
            return Err(self.invalid(match names.is_empty() {
                true => "write a whole number".to_owned(),
                false => format!("write a whole number, perhaps with a unit ({})", names.join(", ")),
            }));
        };
        let value = number.checked_mul(*factor).filter(|value| (min..=max).contains(value));
        value.ok_or_else(|| self.invalid(format!("permitted: {min} to {max}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::record_batch::Compression;

    /// A configuration after a setting, as its `Debug` shows it, holds `expect`; or the error does.
    fn check(
        rows: &[(&str, &str, Result<&str, &str>)],
        set: impl Fn(&str, &str) -> Result<String, SettingError>,
    ) {
        for (name, value, expect) in rows {
            match (set(name, value), expect) {
                (Ok(config), Ok(expect)) => assert!(config.contains(expect), "{name}={value}: {config}"),
                (Err(error), Err(expect)) => {
                    assert!(error.to_string().contains(expect), "{name}={value}: {error}");
                }
                (got, expect) => panic!("{name}={value}: {got:?}, expected {expect:?}"),
            }
        }
    }

    #[test]
    fn of_producers() {
        let rows: &[(&str, &str, Result<&str, &str>)] = &[
            ("acks", "1", Ok("acks: Leader")),
            ("acks", "ALL", Ok("acks: All")),
            ("acks", "2", Err("write one of 0, 1, all")),
            ("batch.size", "16384", Ok("batch_size: 16384")),
            ("batch.size", "1 MiB", Ok("batch_size: 1048576")),
            ("batch.size", "2MiB", Err("permitted: 1 to 1048576")),
            ("batch.size", "0", Err("permitted: 1 to")),
            ("batch.size", "much", Err("perhaps with a unit (b, kib")),
            ("batch.size", "99999999999999999999", Err("whole number")),
            ("buffer.memory", "18446744073709551615GiB", Err("permitted")),
            ("buffer.memory", "32mib", Ok("buffer_memory: 33554432")),
            ("compression.type", "zstd", Ok("compression: Zstd")),
            ("compression.type", "rar", Err("none, lz4, zstd")),
            ("delivery.timeout.ms", "90s", Ok("delivery_timeout: 90s")),
            ("delivery.timeout.ms", "0", Err("permitted: 1 to")),
            ("enable.idempotence", "false", Ok("enable_idempotence: false")),
            ("enable.idempotence", "no", Err("true, false")),
            ("linger.ms", "5", Ok("linger: Fixed(5ms)")),
            ("linger.ms", "0", Ok("linger: Fixed(0ns)")),
            ("linger.ms", "adaptive", Ok("linger: Adaptive")),
            ("linger.ms", "-1", Err("whole number")),
            ("max.in.flight.requests.per.connection", "1", Ok("max_in_flight_requests_per_connection: 1,")),
            ("max.in.flight.requests.per.connection", "1s", Err("write a whole number")),
            ("partitioner", "modulo", Ok("partitioner: Modulo")),
            ("partitioner", "random", Err("murmur2, modulo")),
            ("fetch.min.bytes", "1", Err("there are acks, batch.size")),
        ];
        check(rows, |name, value| {
            let mut config = ProducerConfig { compression: Compression::Gzip, ..ProducerConfig::default() };
            config.set(name, value).map(|()| format!("{config:?}"))
        });
    }

    #[test]
    fn of_consumers_and_members() {
        let rows: &[(&str, &str, Result<&str, &str>)] = &[
            ("auto.offset.reset", "latest", Ok("auto_offset_reset: Latest")),
            ("auto.offset.reset", "none", Ok("auto_offset_reset: Error")),
            ("auto.offset.reset", "middle", Err("earliest, latest, none")),
            ("check.crcs", "false", Ok("check_crcs: false")),
            ("client.rack", "r1", Ok("rack: Some(\"r1\")")),
            ("fetch.max.bytes", "1KiB", Ok("fetch_max_bytes: 1024")),
            ("fetch.max.wait.ms", "0", Ok("fetch_max_wait: 0ns")),
            ("fetch.min.bytes", "5GiB", Err("permitted: 1 to 4294967295")),
            ("fetch.min.bytes", "7", Ok("fetch_min_bytes: 7")),
            ("max.partition.fetch.bytes", "1", Ok("max_partition_fetch_bytes: 1,")),
            ("prefetch.bytes", "1MiB", Ok("prefetch_bytes: 1048576")),
        ];
        check(rows, |name, value| {
            let mut config = ConsumerConfig::default();
            config.set(name, value).map(|()| format!("{config:?}"))
        });
        let of_members: &[(&str, &str, Result<&str, &str>)] = &[
            ("auto.commit.interval.ms", "1s", Ok("auto_commit_interval: Some(1s)")),
            ("enable.auto.commit", "false", Ok("auto_commit_interval: None")),
            ("enable.auto.commit", "true", Ok("auto_commit_interval: Some(5s)")),
            ("group.instance.id", "a", Ok("instance_id: Some(\"a\")")),
            ("group.remote.assignor", "range", Ok("assignor: Some(Range)")),
            ("group.remote.assignor", "sticky", Err("uniform, range")),
            ("max.poll.interval.ms", "1h", Ok("max_poll_interval: 3600s")),
            ("rebalance.timeout.ms", "1m", Ok("rebalance_timeout: 60s")),
            ("session.timeout.ms", "6000", Ok("session_timeout: 6s")),
            ("linger.ms", "1", Err("there are auto.commit.interval.ms")),
        ];
        check(&[rows, of_members].concat(), |name, value| {
            let mut config = GroupConfig::new("g");
            config.set(name, value).map(|()| format!("{config:?}"))
        });
        let mut consumer = ConsumerConfig::default();
        let error = consumer.set("session.timeout.ms", "1s").expect_err("no group").to_string();
        assert!(error.contains("there are auto.offset.reset, check.crcs"), "{error}");
    }

    #[test]
    fn every_name_is_known() {
        // A value that none of them takes: each must complain of the value, not of the name.
        let of = |names: &[&str], set: &mut dyn FnMut(&str) -> Result<(), SettingError>| {
            for name in names {
                assert!(!matches!(set(name), Err(SettingError::Unknown { .. })), "{name}");
            }
        };
        of(PRODUCER, &mut |name| ProducerConfig::default().set(name, "?"));
        of(CONSUMER, &mut |name| ConsumerConfig::default().set(name, "?"));
        of(&[GROUP, CONSUMER].concat(), &mut |name| GroupConfig::new("g").set(name, "?"));
    }
}
