//! A run while it goes on: what its threads have counted, and how fast that was in the last second.
//!
//! Owner of [`LiveCounters`]: one thread writes, the one that leads reads, both without waiting. Owner of
//! [`LastSecond`]: the one that leads; it remembers what it read over a little more than a second.
//! Invariant: nothing here is in a report. Latencies are known to an eighth of an octave only, which is
//! enough to watch a run. Absent on purpose: how it looks on a terminal.

use crate::recorder::{LATENCY_NS_MAX, class_floor_ns, class_of};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// Classes of latency, an eighth of an octave each.
const CLASSES: usize = 320;
/// What "the last second" is.
const SPAN_NS: u64 = 1_000_000_000;

/// Counters that the live view reads while a thread writes.
#[derive(Debug)]
pub struct LiveCounters {
    /// Records acknowledged.
    pub acknowledged: AtomicU64,
    /// Records received.
    pub received: AtomicU64,
    /// Bytes acknowledged.
    pub acknowledged_bytes: AtomicU64,
    /// Records that failed.
    pub failed: AtomicU64,
    classes: [AtomicU64; CLASSES],
}

impl Default for LiveCounters {
    fn default() -> Self {
        Self {
            acknowledged: AtomicU64::default(),
            received: AtomicU64::default(),
            acknowledged_bytes: AtomicU64::default(),
            failed: AtomicU64::default(),
            classes: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

impl LiveCounters {
    /// A record of `bytes` was acknowledged after `latency_ns`.
    pub fn acknowledged(&self, bytes: usize, latency_ns: u64) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.acknowledged_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let class = class_of(latency_ns.min(LATENCY_NS_MAX)).min(CLASSES - 1);
        self.classes[class].fetch_add(1, Ordering::Relaxed);
    }
}

/// What all threads had counted at a moment.
#[derive(Clone, Debug)]
pub struct Counts {
    /// The moment, nanoseconds of [`crate::stamp::now_ns`].
    pub at_ns: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Their bytes.
    pub acknowledged_bytes: u64,
    /// Records received.
    pub received: u64,
    /// Records that failed.
    pub failed: u64,
    classes: [u64; CLASSES],
}

impl Counts {
    /// The sum over threads at `at_ns`.
    pub fn of<'a>(threads: impl IntoIterator<Item = &'a LiveCounters>, at_ns: u64) -> Self {
        let mut sum = Self {
            at_ns,
            acknowledged: 0,
            acknowledged_bytes: 0,
            received: 0,
            failed: 0,
            classes: [0; CLASSES],
        };
        for live in threads {
            sum.acknowledged += live.acknowledged.load(Ordering::Relaxed);
            sum.acknowledged_bytes += live.acknowledged_bytes.load(Ordering::Relaxed);
            sum.received += live.received.load(Ordering::Relaxed);
            sum.failed += live.failed.load(Ordering::Relaxed);
            for (sum, class) in sum.classes.iter_mut().zip(&live.classes) {
                *sum += class.load(Ordering::Relaxed);
            }
        }
        sum
    }
}

/// How fast it went in the last second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// Records acknowledged per second.
    pub records_s: f64,
    /// 10^6 bytes acknowledged per second.
    pub mb_s: f64,
    /// Records received per second.
    pub received_s: f64,
    /// The p99 of acknowledgements, microseconds, to an eighth of an octave; 0 without any.
    pub p99_us: f64,
}

/// Remembers counts over a little more than a second.
#[derive(Debug, Default)]
pub struct LastSecond {
    seen: VecDeque<Counts>,
}

impl LastSecond {
    /// Adds what was counted now; gives the speed since the newest counts that are a second old, or since
    /// the oldest there are.
    pub fn add(&mut self, now: Counts) -> Speed {
        while self.seen.get(1).is_some_and(|second| now.at_ns - second.at_ns.min(now.at_ns) >= SPAN_NS) {
            self.seen.pop_front();
        }
        let speed = self.seen.front().map(|before| speed(before, &now)).unwrap_or_default();
        self.seen.push_back(now);
        speed
    }
}

fn speed(before: &Counts, now: &Counts) -> Speed {
    let seconds = now.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
    if seconds <= 0.0 {
        return Speed::default();
    }
    let latencies: Vec<u64> =
        now.classes.iter().zip(&before.classes).map(|(now, before)| now.saturating_sub(*before)).collect();
    // Rounded up: the p99 of one record is that record.
    let mut left = (latencies.iter().sum::<u64>() * 99).div_ceil(100);
    let p99 = latencies.iter().position(|records| {
        let reached = *records > 0 && *records >= left;
        left = left.saturating_sub(*records);
        reached
    });
    Speed {
        records_s: now.acknowledged.saturating_sub(before.acknowledged) as f64 / seconds,
        mb_s: now.acknowledged_bytes.saturating_sub(before.acknowledged_bytes) as f64 / 1e6 / seconds,
        received_s: now.received.saturating_sub(before.received) as f64 / seconds,
        p99_us: p99.map_or(0.0, |class| class_floor_ns(class) as f64 / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads acknowledge records of 100 bytes: (moment in ms, latency in µs, records), read out at the
    /// end of every row.
    fn check(rows: &[(u64, u64, u64)], records_s: f64, p99_us: std::ops::Range<f64>) {
        let threads = [LiveCounters::default(), LiveCounters::default()];
        let mut last = LastSecond::default();
        let mut speed = Speed::default();
        for (at_ms, latency_us, records) in rows {
            for n in 0..*records {
                threads[n as usize % 2].acknowledged(100, latency_us * 1000);
            }
            speed = last.add(Counts::of(&threads, at_ms * 1_000_000));
        }
        assert!((speed.records_s - records_s).abs() < 0.01, "{rows:?}: {speed:?}");
        assert!((speed.mb_s - records_s * 1e-4).abs() < 0.01, "{rows:?}: {speed:?}");
        assert!(p99_us.contains(&speed.p99_us), "{rows:?}: {speed:?}");
    }

    #[test]
    fn only_the_last_second_counts() {
        check(&[(0, 1, 0)], 0.0, 0.0..0.1);
        check(&[(0, 1, 0), (500, 1000, 10)], 20.0, 900.0..1001.0);
        // What came before the second that is looked at leaves no trace.
        check(&[(0, 1, 0), (1000, 90_000, 500), (2000, 1000, 40)], 40.0, 900.0..1001.0);
        // Two in a hundred are the p99, one in a hundred and one is not.
        check(&[(0, 1, 0), (900, 1000, 98), (1000, 50_000, 2)], 100.0, 45_000.0..50_001.0);
        check(&[(0, 1, 0), (900, 1000, 101), (1000, 50_000, 1)], 102.0, 900.0..1001.0);
        // A second without any.
        check(&[(0, 1, 0), (1000, 1000, 100), (2000, 1, 0)], 0.0, 0.0..0.1);
    }
}
