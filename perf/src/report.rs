//! The report of a benchmark, as far as this crate has to understand it.
//!
//! Read from the JSON that `ringlog bench` writes: `bench` is no dependency of this crate, and a report of an
//! older or newer build stays readable as long as the few fields here keep their names. Invariant: a field that
//! is absent and not optional is an error that names it; nothing is guessed.

use crate::share::Figures;
use std::collections::BTreeMap;

/// The fields.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
pub struct RunReport {
    /// When the run ended, seconds since 1970.
    pub ended_unix_s: u64,
    /// What was run.
    pub workload: Workload,
    /// Against what.
    pub driver: String,
    /// What an acknowledgement meant: `device` and others.
    pub durability: String,
    /// On what.
    pub host: Host,
    /// Acknowledged in the measured time.
    pub produced: Throughput,
    /// Received in the measured time.
    pub consumed: Throughput,
    /// From the intended moment to the acknowledgement.
    pub acknowledge: Latency,
    /// From the intended moment to the consumer.
    pub end_to_end: Latency,
    /// Records that were not acknowledged.
    pub failed: u64,
    /// The search that found the rate, if there was one.
    #[serde(default)]
    pub search: Option<serde_json::Value>,
    /// Only there if the broker was on this host.
    pub broker_usage: Option<serde_json::Value>,
    /// The broker's counters over the whole run.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// (from, until) of the measured time, seconds since the start of the load.
    pub window_s: (f64, f64),
}

/// What was run.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// Topics.
    pub topics: u32,
    /// Partitions of each.
    pub partitions_per_topic: u32,
    /// Bytes of a record's value.
    pub message_size: usize,
    /// Producers of each topic.
    pub producers_per_topic: u32,
    /// Records per second; 0 = as fast as it goes.
    pub producer_rate: f64,
    /// Of one connection; 0 = the client's default.
    #[serde(default)]
    pub requests_in_flight: usize,
    /// Of one producer; 0 = as many as its memory holds.
    #[serde(default)]
    pub records_in_flight: usize,
    /// The codec; empty or `none` = none.
    #[serde(default)]
    pub compression: String,
}

/// The host, as the report knows it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Host {
    /// What ceilings were measured on, too; its cores are those that the client could use.
    #[serde(flatten)]
    pub machine: crate::Host,
    /// The file system of the broker's data, if it is known.
    #[serde(default)]
    pub filesystem: String,
    /// The device, if it is known.
    #[serde(default)]
    pub disk: String,
    /// The commit that the program was built from, if it is known; `+` = with changes.
    #[serde(default)]
    pub commit: String,
}

/// Records and bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize)]
pub struct Throughput {
    /// Records per second.
    pub records_s: f64,
    /// 10^6 bytes of values per second.
    pub mb_s: f64,
}

/// Latency in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// One in a hundred took longer.
    pub p99_us: f64,
    /// One in a thousand took longer.
    pub p999_us: f64,
}

/// Why a text is no report.
#[derive(Debug, thiserror::Error)]
#[error("this is no report of ringlog bench ({0}); make one with: ringlog bench WORKLOAD --json FILE")]
pub struct ReportError(#[from] serde_json::Error);

impl RunReport {
    /// Reads one report.
    ///
    /// # Errors
    /// Not JSON, or a field is missing.
    pub fn parse(text: &str) -> Result<Self, ReportError> {
        Ok(serde_json::from_str(text)?)
    }

    /// A report that is in memory.
    ///
    /// # Errors
    /// It is not one.
    pub fn of(report: &impl serde::Serialize) -> Result<Self, ReportError> {
        Ok(serde_json::from_value(serde_json::to_value(report)?)?)
    }

    /// What makes two runs of a workload comparable, in words: size, partitions, rate, whatever their defaults.
    pub fn settings(&self) -> String {
        let Workload { topics, partitions_per_topic, message_size, producer_rate, .. } = &self.workload;
        let rate = match (self.rate_was_searched(), *producer_rate > 0.0) {
            (true, _) => "the highest rate".to_owned(),
            (false, true) => format!("{producer_rate:.0}/s"),
            (false, false) => "no rate".to_owned(),
        };
        let settings = format!("{message_size} B, {topics} x {partitions_per_topic} partitions, {rate}");
        match self.workload.is_compressed() {
            true => format!("{settings}, {}", self.workload.compression),
            false => settings,
        }
    }

    /// Bytes of batches per byte of values: 1 unless they were compressed, or the broker does not tell.
    fn packed(&self) -> f64 {
        let count = |name: &str| self.counters.get(name).map_or(0.0, |count| *count as f64);
        let values = count("records_total") * self.workload.message_size as f64;
        let packed = count("produced_bytes_total") / values;
        if self.workload.is_compressed() && packed.is_finite() && packed > 0.0 { packed } else { 1.0 }
    }

    fn rate_was_searched(&self) -> bool {
        self.search.as_ref().is_some_and(|search| !search.is_null())
    }

    /// What is needed to find the ceiling that bound the run.
    pub fn figures(&self) -> Figures {
        // Counters are of the whole load, warm-up included.
        let rate = |name: &str| self.counters.get(name).map(|count| *count as f64 / self.window_s.1);
        Figures {
            durable: self.durability == "device",
            same_host: self.broker_usage.as_ref().is_some_and(|usage| !usage.is_null()),
            // A searched rate is the most that was possible, not a given one.
            fixed_rate: self.workload.producer_rate > 0.0 && !self.rate_was_searched(),
            in_flight: self.workload.in_flight(),
            // What goes over the wire and to the device is what ceilings bind.
            produced_mb_s: self.produced.mb_s * self.packed(),
            consumed_mb_s: self.consumed.mb_s * self.packed(),
            read_mb_s: rate("device_read_bytes_total").unwrap_or(0.0) / 1e6,
            rounds_s: rate("flush_rounds_total"),
            acknowledge_p50_us: self.acknowledge.p50_us,
        }
    }
}

impl Workload {
    fn is_compressed(&self) -> bool {
        !matches!(self.compression.as_str(), "" | "none")
    }

    /// Requests in flight of all producers together; 0 = not said.
    fn in_flight(&self) -> usize {
        let producers = self.topics as usize * self.producers_per_topic as usize;
        let limits = [self.requests_in_flight, self.records_in_flight];
        producers * limits.into_iter().filter(|limit| *limit > 0).min().unwrap_or(0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What `ringlog bench` writes, shortened.
    pub(crate) fn report(workload: &str, produced_mb_s: f64, p50_us: f64) -> Value {
        let latency = json!({"count": 10, "mean_us": 1.0, "p50_us": p50_us, "p99_us": 3.0 * p50_us, "p999_us": 9.0 * p50_us});
        json!({
            "ended_unix_s": 1_700_000_000, "driver": "ringlog", "durability": "device",
            "workload": {"name": workload, "topics": 2, "partitionsPerTopic": 5, "messageSize": 1000, "producersPerTopic": 3, "producerRate": 0.0},
            "host": {"kernel": "6.1", "cpu": "X", "cores": 2, "filesystem": "ext4", "commit": "0123456789ab"},
            "produced": {"records_s": 1e3 * produced_mb_s, "mb_s": produced_mb_s},
            "consumed": {"records_s": 0.0, "mb_s": 0.0},
            "acknowledge": latency, "end_to_end": latency, "failed": 0, "broker_usage": {"cpu_s": 1.0},
            "counters": {"flush_rounds_total": 2000, "device_read_bytes_total": 40_000_000},
            "window_s": [5.0, 20.0], "seconds": [], "search": null
        })
    }

    #[test]
    fn figures_of_a_report() {
        let figures = |change: &dyn Fn(&mut Value)| {
            let mut value = report("w", 100.0, 500.0);
            change(&mut value);
            RunReport::parse(&value.to_string()).unwrap().figures()
        };
        let plain = figures(&|_| {});
        // A quarter of the bytes: a quarter of what binds.
        let counters = json!({"records_total": 1000, "produced_bytes_total": 250_000});
        for (codec, counters, packed) in
            [("zstd", counters.clone(), 0.25), ("none", counters, 1.0), ("zstd", json!({}), 1.0)]
        {
            let found = figures(&|value| {
                value["workload"]["compression"] = json!(codec);
                value["counters"] = counters.clone();
            });
            assert_eq!(found.produced_mb_s, packed * plain.produced_mb_s, "{codec}");
        }
        let expect = Figures {
            durable: true,
            same_host: true,
            fixed_rate: false,
            in_flight: 0,
            produced_mb_s: 100.0,
            consumed_mb_s: 0.0,
            read_mb_s: 2.0,
            rounds_s: Some(100.0),
            acknowledge_p50_us: 500.0,
        };
        assert_eq!(plain, expect);
        assert_eq!(RunReport::of(&report("w", 100.0, 500.0)).unwrap().figures(), expect);
        let set =
            |path: &'static str, to: Value| figures(&move |it| *it.pointer_mut(path).unwrap() = to.clone());
        assert!(set("/workload/producerRate", json!(10.0)).fixed_rate);
        assert!(!set("/durability", json!("page-cache")).durable);
        assert!(!set("/broker_usage", Value::Null).same_host);
        assert_eq!(set("/counters", json!({})).rounds_s, None);
        let searched = figures(&|it| {
            it["workload"]["producerRate"] = json!(10.0);
            it["search"] = json!({"trials": []});
        });
        assert!(!searched.fixed_rate);
        // Requests of a connection, records of a producer: in flight of six producers.
        for (requests, records, in_flight) in [(0, 0, 0), (5, 0, 30), (0, 1, 6), (5, 1, 6), (2, 100, 12)] {
            let got = figures(&|it| {
                it["workload"]["requestsInFlight"] = json!(requests);
                it["workload"]["recordsInFlight"] = json!(records);
            });
            assert_eq!(got.in_flight, in_flight, "{requests} {records}");
        }
    }

    #[test]
    fn settings_tell_runs_apart() {
        let rows = [
            (0.0, Value::Null, "1000 B, 2 x 5 partitions, no rate"),
            (500.0, Value::Null, "1000 B, 2 x 5 partitions, 500/s"),
            (500.0, json!({}), "1000 B, 2 x 5 partitions, the highest rate"),
        ];
        for (rate, search, expect) in rows {
            let mut value = report("w", 1.0, 1.0);
            value["workload"]["producerRate"] = json!(rate);
            value["search"] = search;
            assert_eq!(RunReport::of(&value).unwrap().settings(), expect);
        }
    }

    #[test]
    fn what_is_no_report_is_refused_with_what_to_do() {
        for (text, expect) in
            [("nonsense", "expected"), ("{}", "ended_unix_s"), ("{\"ended_unix_s\": 1}", "workload")]
        {
            let message = RunReport::parse(text).unwrap_err().to_string();
            assert!(message.contains(expect) && message.contains("ringlog bench"), "{text}: {message}");
        }
    }
}
