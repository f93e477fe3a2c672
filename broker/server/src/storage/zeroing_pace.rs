//! How fast a shard writes zeros ahead of its appends.
//!
//! All partitions take turns at one pace: [`PREWRITE_BYTES_PER_SECOND`], so that zeroing leaves the device
//! to what is acknowledged; but four times what the shard appends if that is more, so that it is ahead soon.
//! Many partitions that are slow one by one may together append faster than the pace, and every group
//! behind the zeroed part of its file costs the file system the change of metadata that zeroing would have spared.

use logic::limits::PREWRITE_BYTES_PER_SECOND;

const SECOND_NS: u64 = 1_000_000_000;

/// Whose turn it is when; times are nanoseconds of a clock that never goes back.
#[derive(Debug, Default)]
pub struct ZeroingPace {
    next_turn_ns: u64,
    /// When the appends began to be counted, and how many bytes the shard had appended then.
    since: (u64, u64),
    appended_per_second: u64,
}

impl ZeroingPace {
    /// How long to wait until `bytes` may be zeroed; the turn is taken. `appended_bytes` is how much the
    /// shard has appended so far.
    pub fn take_turn(&mut self, now_ns: u64, appended_bytes: u64, bytes: u64) -> u64 {
        let (since_ns, since_bytes) = self.since;
        let elapsed_ns = now_ns - since_ns;
        if elapsed_ns >= SECOND_NS {
            let appended = u128::from(appended_bytes - since_bytes);
            self.appended_per_second = (appended * u128::from(SECOND_NS) / u128::from(elapsed_ns)) as u64;
            self.since = (now_ns, appended_bytes);
        }
        let per_second = PREWRITE_BYTES_PER_SECOND.max(4 * self.appended_per_second);
        let turn_ns = self.next_turn_ns.max(now_ns);
        self.next_turn_ns = turn_ns + bytes * SECOND_NS / per_second;
        turn_ns - now_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_fast_appends() {
        const PACE: u64 = PREWRITE_BYTES_PER_SECOND;
        let mut pace = ZeroingPace::default();
        // (milliseconds, appended so far, bytes per second that are zeroed then)
        let rows = [
            (0, 0, PACE),
            (1000, PACE / 4, PACE),
            (2000, PACE / 4 + 3 * PACE, 12 * PACE),
            // Less than a second says nothing.
            (2500, PACE / 4 + 7 * PACE, 12 * PACE),
            (4000, PACE / 4 + 7 * PACE, 8 * PACE),
            (5000, PACE / 4 + 7 * PACE, PACE),
        ];
        for (ms, appended, expected) in rows {
            let now_ns = ms * 1_000_000;
            assert_eq!(pace.take_turn(now_ns, appended, expected / 10), 0, "at {ms} ms");
            assert_eq!(pace.take_turn(now_ns, appended, 0), SECOND_NS / 10, "at {ms} ms");
        }
    }
}
