//! How fast batches may go to followers that catch up.
//!
//! What was sent takes its time at the rate of then, and until that is over nothing else is sent: no burst is saved up. Two
//! of them hold a catch-up stream: its own, at the rate that is left to it while the shard appends, and the shard's, over all
//! of its catch-up streams, at the rate that an operator has set. Absent on purpose: live streams, which nobody may hold
//! up, and what other shards send: each has its share of the broker's rate.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Pace {
    /// When what was sent has had its time.
    free_at: Option<Instant>,
}

impl Pace {
    /// How long nothing may be sent.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.free_at?.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// So much was sent, where so many bytes per second may be; `None` = there is no bound.
    pub fn sent(&mut self, now: Instant, bytes: usize, rate: Option<NonZeroU64>) {
        let Some(rate) = rate else { return };
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(rate.get().into());
        let time = Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX));
        let from = self.free_at.map_or(now, |free_at| free_at.max(now));
        // Longer than anybody waits, at a rate of next to nothing.
        self.free_at = from.checked_add(time).or(self.free_at);
    }

    /// Nobody owes anything for what was sent before.
    pub fn forget(&mut self) {
        self.free_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends chunks as soon as it may; how long it took until all have had their time.
    fn time_for(pace: &mut Pace, began: Instant, chunks: usize, bytes: usize, rate: u64) -> Duration {
        let mut now = began;
        for _ in 0..chunks {
            now += pace.wait(now).unwrap_or_default();
            pace.sent(now, bytes, NonZeroU64::new(rate));
        }
        now + pace.wait(now).unwrap_or_default() - began
    }

    #[test]
    fn the_rate_is_kept_and_nothing_is_saved_up() {
        let began = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(time_for(&mut pace, began, 100, 1 << 20, 0), Duration::ZERO);
        assert_eq!(time_for(&mut pace, began, 10, 1 << 20, 1 << 20), Duration::from_secs(10));
        // After an hour of silence it is no faster.
        let later = began + Duration::from_secs(3600);
        assert_eq!(time_for(&mut pace, later, 10, 1 << 19, 1 << 20), Duration::from_secs(5));
        // Chunks of any size.
        let later = began + Duration::from_secs(7200);
        assert_eq!(time_for(&mut pace, later, 1000, 1000, 1_000_000), Duration::from_secs(1));
    }

    #[test]
    fn what_was_sent_has_its_time_at_the_rate_of_then() {
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.sent(now, 1 << 20, NonZeroU64::new(1));
        pace.sent(now, 1 << 20, None);
        assert_eq!(pace.wait(now), Some(Duration::from_secs(1 << 20)));
        pace.sent(now, 4, NonZeroU64::new(2));
        assert_eq!(pace.wait(now), Some(Duration::from_secs((1 << 20) + 2)));
        pace.forget();
        assert_eq!(pace.wait(now), None);
        pace.sent(now, 2, NonZeroU64::new(2));
        assert_eq!(pace.wait(now), Some(Duration::from_secs(1)));
    }
}
