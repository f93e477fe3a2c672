//! The outcome of a run as data: every setting, the host, what was measured, second by second.
//!
//! Made once from a [`RunResult`] and never changed; the JSON of a run is this, tables and plots are made
//! from it. Invariant: a figure is never without the settings and the durability that it was measured with.

use crate::driver::{Driver, Durability, PARTS};
use crate::recorder::Recording;
use crate::run::RunResult;
use crate::search::SearchReport;
use crate::usage::Usage;
use crate::workload::Workload;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Points of a percentile curve per decade of rarity.
const POINTS_PER_DECADE: u32 = 10;

/// Latency in microseconds.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// One in a hundred took longer.
    pub p99_us: f64,
    /// One in a thousand took longer.
    pub p999_us: f64,
    /// One in ten thousand took longer.
    pub p9999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// (quantile, microseconds) for a plot: ten points from 0 to 0.9, ten to 0.99 and so on, as far as there
    /// are records, then 1.
    pub curve: Vec<(f64, f64)>,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            count: histogram.len(),
            mean_us: histogram.mean() / 1e3,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: histogram.max() as f64 / 1e3,
            curve: curve(histogram.len()).map(|quantile| (quantile, at(quantile))).collect(),
        }
    }
}

fn curve(count: u64) -> impl Iterator<Item = f64> {
    let rarity = |point: u32| 10f64.powf(f64::from(point) / f64::from(POINTS_PER_DECADE));
    let quantiles =
        (0..).map(rarity).take_while(move |rarity| *rarity < count as f64).map(|rarity| 1.0 - 1.0 / rarity);
    quantiles.chain(std::iter::once(1.0))
}

/// Records and bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Throughput {
    /// Records per second.
    pub records_s: f64,
    /// 10^6 bytes of values per second.
    pub mb_s: f64,
}

/// One second of a run.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SecondPoint {
    /// Seconds since the start.
    pub at_s: f64,
    /// Acknowledged in it.
    pub produced: Throughput,
    /// Received in it.
    pub consumed: Throughput,
    /// Median latency of acknowledgements that came in it, microseconds.
    pub p50_us: f64,
    /// One in a hundred took longer.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
    /// How many took how long, so that seconds can be put together: (at most so many microseconds, acknowledgements), in
    /// classes of 5 %.
    #[serde(default)]
    pub counts: Vec<(f64, u64)>,
}

/// Where the time of the acknowledgements around a quantile went, microseconds.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Explained {
    /// Which quantile.
    pub quantile: f64,
    /// (part, microseconds), in the order in which they follow each other.
    pub parts_us: Vec<(String, f64)>,
}

/// The host and the program.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HostReport {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The file system of the broker's data, if it is known.
    pub filesystem: String,
    /// What the device does with a completed write, if it is known.
    pub write_cache: String,
    /// The device's name and model, if it is known.
    pub disk: String,
    /// Whether that device turns.
    pub rotational: Option<bool>,
    /// The program's version.
    pub version: String,
    /// The commit that it was built from, if it is known; `+` = with changes that are not in it.
    pub commit: String,
}

/// A report.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// When the run ended, seconds since 1970.
    pub ended_unix_s: u64,
    /// What was run.
    pub workload: Workload,
    /// Against what.
    pub driver: String,
    /// What its acknowledgement meant.
    pub durability: Durability,
    /// By which settings.
    pub durability_settings: String,
    /// Cores of the client, and of the broker where this program started it.
    pub client_cores: Vec<usize>,
    /// Empty = not pinned, or not known.
    pub broker_cores: Vec<usize>,
    /// Whether the parts of acknowledgements were asked for.
    pub explain: bool,
    /// The host.
    pub host: HostReport,
    /// Acknowledged in the measured time.
    pub produced: Throughput,
    /// Received in the measured time.
    pub consumed: Throughput,
    /// From the intended moment to the acknowledgement.
    pub acknowledge: Latency,
    /// From the intended moment to the consumer.
    pub end_to_end: Latency,
    /// Where the time of acknowledgements went, if the driver knows.
    pub explained: Vec<Explained>,
    /// Records that were not acknowledged.
    pub failed: u64,
    /// Why the last of them was not.
    pub last_failure: Option<String>,
    /// Acknowledged records that a subscription did not receive before the end.
    pub not_received: u64,
    /// Seconds until consumers of a backlog were less than a second behind.
    pub backlog_drained_s: Option<f64>,
    /// What the broker's process used in the whole run, if it is on this host.
    pub broker_usage: Option<Usage>,
    /// What this process used.
    pub client_usage: Option<Usage>,
    /// The broker's counters, as the run added to them.
    pub counters: BTreeMap<String, u64>,
    /// (from, until) of the measured time, seconds since the start.
    pub window_s: (f64, f64),
    /// Second by second, warm-up included.
    pub seconds: Vec<SecondPoint>,
    /// The search that found the rate, if there was one.
    pub search: Option<SearchReport>,
    /// Which share of which ceiling of this host was reached, if its ceilings are known.
    pub ceiling: Option<String>,
}

/// What a report says besides what was measured.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Cores of the client.
    pub client_cores: Vec<usize>,
    /// Cores of the broker.
    pub broker_cores: Vec<usize>,
    /// Whether the parts of acknowledgements were asked for.
    pub explain: bool,
    /// The host.
    pub host: HostReport,
    /// What the broker's process used.
    pub broker_usage: Option<Usage>,
    /// What this process used.
    pub client_usage: Option<Usage>,
}

impl Report {
    /// Of a run that ended at `ended_unix_s`.
    pub fn new(
        driver: &dyn Driver,
        workload: &Workload,
        result: RunResult,
        surroundings: Surroundings,
        ended_unix_s: u64,
    ) -> Self {
        let RunResult { recording, window_s, backlog_drained_s, not_received, counters } = result;
        let measured_s = window_s.1 - window_s.0;
        let throughput = |records: u64, bytes: u64, seconds: f64| Throughput {
            records_s: records as f64 / seconds,
            mb_s: bytes as f64 / 1e6 / seconds,
        };
        Self {
            ended_unix_s,
            workload: workload.clone(),
            driver: driver.name().to_owned(),
            durability: driver.durability(),
            durability_settings: driver.durability_settings(),
            client_cores: surroundings.client_cores,
            broker_cores: surroundings.broker_cores,
            explain: surroundings.explain,
            host: surroundings.host,
            produced: throughput(recording.acknowledged, recording.acknowledged_bytes, measured_s),
            consumed: throughput(recording.received, recording.received_bytes, measured_s),
            acknowledge: Latency::of(&recording.acknowledge_ns),
            end_to_end: Latency::of(&recording.end_to_end_ns),
            explained: explained(&recording),
            failed: recording.failed,
            last_failure: recording.last_failure,
            not_received,
            backlog_drained_s,
            broker_usage: surroundings.broker_usage,
            client_usage: surroundings.client_usage,
            counters: counters.into_iter().collect(),
            window_s,
            seconds: recording
                .seconds
                .iter()
                .enumerate()
                .map(|(at, second)| SecondPoint {
                    at_s: at as f64,
                    produced: throughput(second.acknowledged, second.acknowledged_bytes, 1.0),
                    consumed: throughput(second.received, second.received_bytes, 1.0),
                    p50_us: second.latency_ns.value_at_quantile(0.5) as f64 / 1e3,
                    p99_us: second.latency_ns.value_at_quantile(0.99) as f64 / 1e3,
                    max_us: second.latency_ns.max() as f64 / 1e3,
                    counts: counts(&second.latency_ns),
                })
                .collect(),
            search: None,
            ceiling: None,
        }
    }

    /// What tells it from others in one comparison: the driver and what its acknowledgement means.
    pub fn label(&self) -> String {
        format!("{}, {} ({})", self.driver, self.durability.name(), self.durability_settings)
    }
}

fn counts(latency_ns: &Histogram<u64>) -> Vec<(f64, u64)> {
    let classes = latency_ns.iter_log(1_000, 1.05);
    let classes =
        classes.map(|class| (class.value_iterated_to() as f64 / 1e3, class.count_since_last_iteration()));
    classes.filter(|(_, count)| *count > 0).collect()
}

fn explained(recording: &Recording) -> Vec<Explained> {
    [0.5, 0.99, 0.999]
        .into_iter()
        .filter_map(|quantile| {
            let (parts, before) = recording.explain(quantile)?;
            let before = std::iter::once(("before the client".to_owned(), before as f64 / 1e3));
            let parts = PARTS.iter().zip(parts).map(|(name, ns)| ((*name).to_owned(), ns as f64 / 1e3));
            Some(Explained { quantile, parts_us: before.chain(parts).collect() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_every_acknowledgement_within_five_percent() {
        let mut latency_ns = Histogram::new(3).expect("three digits");
        let recorded = [400, 1_000, 1_049, 90_000, 90_000, 2_000_000, 7_000_000_000];
        recorded.into_iter().for_each(|ns| latency_ns.record(ns).expect("grows"));
        let counts = counts(&latency_ns);
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), recorded.len() as u64);
        let mut all = counts.iter().flat_map(|(us, count)| std::iter::repeat_n(us * 1e3, *count as usize));
        for ns in recorded {
            let class = all.next().expect("as many");
            assert!((ns as f64 * 0.99..=(ns as f64 * 1.06).max(1_100.0)).contains(&class), "{ns}: {class}");
        }
    }

    #[test]
    fn a_curve_goes_as_far_as_there_are_records() {
        // (records, points, the last but one).
        let rows = [(0, 1, None), (1, 1, None), (100, 21, Some(0.9875)), (1000, 31, Some(0.99875))];
        for (count, points, last) in rows {
            let curve: Vec<f64> = curve(count).collect();
            assert_eq!((curve.len(), curve[points - 1]), (points, 1.0), "{count}: {curve:?}");
            assert!(curve.is_sorted(), "{count}: {curve:?}");
            let before = points.checked_sub(2).map(|at| curve[at]);
            let close = |a: Option<f64>, b: Option<f64>| (a.unwrap_or(0.0) - b.unwrap_or(0.0)).abs() < 5e-4;
            assert!(close(before, last), "{count}: {before:?}");
        }
    }
}
