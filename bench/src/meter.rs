//! What a run counts: replies, bytes and latency inside the measured time, and when it ends.
//!
//! Owner: one per run, shared by its workers on one thread. Invariant: what is outside the window leaves no
//! trace, so that neither warming up nor running out is in a figure.

use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// The counters of one run.
pub struct Meter {
    from: Instant,
    until: Instant,
    pub latency_ns: Histogram<u64>,
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
    pub refused: u64,
    /// What the last receipt said.
    pub durability: Option<&'static str>,
}

impl Meter {
    /// Measures for `length` after `from`.
    pub fn new(from: Instant, length: Duration) -> Self {
        Self {
            from,
            until: from + length,
            // Two minutes is beyond any request's timeout; these bounds are valid.
            latency_ns: Histogram::new_with_bounds(1, 120_000_000_000, 3).expect("valid bounds"),
            requests: 0,
            records: 0,
            bytes: 0,
            refused: 0,
            durability: None,
        }
    }

    /// Whether `now` is after the end.
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// A request sent at `sent` was answered at `answered`.
    pub fn answered(&mut self, sent: Instant, answered: Instant, records: u64, bytes: u64) {
        if answered >= self.from && answered < self.until {
            self.latency_ns.saturating_record((answered - sent).as_nanos() as u64);
            self.requests += 1;
            self.records += records;
            self.bytes += bytes;
        }
    }

    /// A request was refused at `now` and is sent again.
    pub fn refused(&mut self, now: Instant) {
        if now >= self.from && now < self.until {
            self.refused += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_window_counts() {
        let from = Instant::now();
        let ms = Duration::from_millis;
        let mut meter = Meter::new(from, ms(10));
        // (sent, answered) in ms after a point 5 ms before the window, and whether it counts.
        let rows = [(0, 4, false), (4, 5, true), (6, 14, true), (14, 15, false), (14, 20, false)];
        let start = from - ms(5);
        for (sent, answered, _) in rows {
            meter.answered(start + ms(sent), start + ms(answered), 10, 100);
        }
        let expect = rows.iter().filter(|(_, _, counts)| *counts).count() as u64;
        assert_eq!((meter.requests, meter.records, meter.bytes), (expect, 10 * expect, 100 * expect));
        assert_eq!(meter.latency_ns.len(), expect);
        assert!(!meter.is_over(start + ms(14)) && meter.is_over(start + ms(15)));
    }
}
