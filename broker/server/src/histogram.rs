//! How long something took, in classes that metrics systems understand.
//!
//! Owned by one shard, recorded into on its hot path: a search in a few constants and two additions. The bounds
//! are the same on every shard and never change, so that histograms of shards, brokers and days can be added.
//! Absent on purpose: quantiles, which whoever reads the classes computes.

use crate::store::RoundTimes;
use std::cell::Cell;

/// Upper bounds of the classes, microseconds; what is longer is in a last class without a bound.
pub const BOUNDS_US: [u64; 18] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000, 30_000_000,
];

/// Counts by class since the start.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [Cell<u64>; BOUNDS_US.len() + 1],
    sum_us: Cell<u64>,
}

/// The same at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramReport {
    /// In each class, not cumulated.
    pub counts: [u64; BOUNDS_US.len() + 1],
    /// All together, microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Something took `us` microseconds; a bound belongs to the class below it.
    pub fn record(&self, us: u64) {
        let class = &self.counts[BOUNDS_US.partition_point(|bound| *bound < us)];
        class.set(class.get() + 1);
        self.sum_us.set(self.sum_us.get().saturating_add(us));
    }

    /// What has been recorded.
    pub fn report(&self) -> HistogramReport {
        HistogramReport {
            counts: std::array::from_fn(|class| self.counts[class].get()),
            sum_us: self.sum_us.get(),
        }
    }
}

impl HistogramReport {
    /// The same classes of a finer histogram of microseconds.
    pub fn of(times: &RoundTimes) -> Self {
        let classes = Histogram::default();
        for value in times.iter_recorded() {
            let us = value.value_iterated_to();
            let class = &classes.counts[BOUNDS_US.partition_point(|bound| *bound < us)];
            class.set(class.get() + value.count_at_value());
        }
        Self { sum_us: (times.mean() * times.len() as f64) as u64, ..classes.report() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_class_below_it() {
        for (us, class) in
            [(0, 0), (50, 0), (51, 1), (100, 1), (30_000_000, 17), (30_000_001, 18), (u64::MAX, 18)]
        {
            let histogram = Histogram::default();
            histogram.record(us);
            let report = histogram.report();
            assert_eq!(report.counts.iter().position(|count| *count == 1), Some(class), "{us}");
            assert_eq!((report.sum_us, report.counts.iter().sum::<u64>()), (us, 1));
        }
    }

    #[test]
    fn a_finer_histogram_falls_into_the_same_classes() {
        let mut times = RoundTimes::new_with_bounds(1, 60_000_000, 3).unwrap();
        let histogram = Histogram::default();
        for us in [1, 49, 60, 150, 150, 4_000, 900_000, 45_000_000] {
            times.record(us).unwrap();
            histogram.record(us);
        }
        let report = HistogramReport::of(&times);
        assert_eq!(report.counts, histogram.report().counts);
        // To the three digits that the finer one keeps.
        assert!(report.sum_us.abs_diff(histogram.report().sum_us) < 100_000, "{report:?}");
    }
}
