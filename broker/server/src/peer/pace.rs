//! How fast batches may go to followers that catch up.
//!
//! One per shard, over all of its catch-up streams. What was sent takes its time at the rate that is set, and until that is
//! over nothing else is sent: no burst is saved up. Absent on purpose: live streams, which nobody may hold up, and
//! what other shards send: each has its share of the broker's rate.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Pace {
    bytes_per_second: Option<NonZeroU64>,
    /// When what was sent has had its time.
    free_at: Option<Instant>,
}

impl Pace {
    /// This is the rate from now on; `None` = as fast as there is room. Whether it is another one: who waits then looks
    /// again, and nobody owes anything for before.
    pub fn set(&mut self, bytes_per_second: Option<NonZeroU64>) -> bool {
        let changes = self.bytes_per_second != bytes_per_second;
        if changes {
            *self = Self { bytes_per_second, free_at: None };
        }
        changes
    }

    /// Whether there is a bound.
    pub fn is_bound(&self) -> bool {
        self.bytes_per_second.is_some()
    }

    /// How long nothing may be sent.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.free_at?.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// So much was sent.
    pub fn sent(&mut self, now: Instant, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(rate.get().into());
        let time = Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX));
        let from = self.free_at.map_or(now, |free_at| free_at.max(now));
        // Longer than anybody waits, at a rate of next to nothing.
        self.free_at = from.checked_add(time).or(self.free_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends chunks as soon as it may; how long it took until all have had their time.
    fn time_for(pace: &mut Pace, began: Instant, chunks: usize, bytes: usize) -> Duration {
        let mut now = began;
        for _ in 0..chunks {
            now += pace.wait(now).unwrap_or_default();
            pace.sent(now, bytes);
        }
        now + pace.wait(now).unwrap_or_default() - began
    }

    #[test]
    fn the_rate_is_kept_and_nothing_is_saved_up() {
        let began = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(time_for(&mut pace, began, 100, 1 << 20), Duration::ZERO);
        assert!(pace.set(NonZeroU64::new(1 << 20)) && pace.is_bound());
        assert_eq!(time_for(&mut pace, began, 10, 1 << 20), Duration::from_secs(10));
        // After an hour of silence it is no faster.
        let later = began + Duration::from_secs(3600);
        assert_eq!(time_for(&mut pace, later, 10, 1 << 19), Duration::from_secs(5));
        // Chunks of any size.
        let later = began + Duration::from_secs(7200);
        pace.set(NonZeroU64::new(1_000_000));
        assert_eq!(time_for(&mut pace, later, 1000, 1000), Duration::from_secs(1));
    }

    #[test]
    fn a_change_is_in_force_at_once() {
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.set(NonZeroU64::new(1));
        pace.sent(now, 1 << 20);
        assert_eq!(pace.wait(now), Some(Duration::from_secs(1 << 20)));
        assert!(!pace.set(NonZeroU64::new(1)));
        assert!(pace.wait(now).is_some());
        assert!(pace.set(NonZeroU64::new(2)));
        assert_eq!(pace.wait(now), None);
        pace.sent(now, 2);
        assert_eq!(pace.wait(now), Some(Duration::from_secs(1)));
        assert!(pace.set(None));
        assert_eq!(pace.wait(now), None);
    }
}
