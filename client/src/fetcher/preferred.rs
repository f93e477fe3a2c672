//! Reading a partition at a follower in the consumer's rack, in place of its leader.
//!
//! A leader that is told the rack names such a follower with its answer, and from the next fetch on the partition is read
//! there. Whatever that follower refuses, and when it cannot be reached or is silent, the partition is read at its leader
//! again: only a leader says that an offset is out of range. Then it stays there for a while, the longer the more often in
//! a row that has happened, although the leader goes on naming the follower. Absent on purpose: who is fit, which the
//! brokers know.

use super::{Part, Shared};
use crate::cluster::Home;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a partition stays with its leader after a follower failed it; twice as long each further time.
const STAY_MIN: Duration = Duration::from_secs(1);
const STAY_MAX: Duration = Duration::from_secs(30);

/// What followers have done to a partition.
#[derive(Debug, Default)]
pub(super) struct Followers {
    /// How often in a row one failed.
    failures: u32,
    /// With its leader until then.
    not_before: Option<Instant>,
}

impl Part {
    /// Whether it is read elsewhere than at its leader.
    pub(super) fn is_at_follower(&self) -> bool {
        self.home != self.leader
    }

    /// Its leader names a follower. Whether it is read there from now on.
    pub(super) fn prefer(&mut self, follower: Home, now: Instant) -> bool {
        let stays = self.followers.not_before.is_some_and(|at| now < at);
        if stays || self.is_at_follower() || follower == self.leader {
            return false;
        }
        self.home = follower;
        true
    }

    /// A follower has served it.
    pub(super) fn is_served_by_follower(&mut self) {
        self.followers.failures = 0;
    }

    /// Its follower does not serve it.
    pub(super) fn back_to_leader(&mut self, now: Instant) {
        let stay = (STAY_MIN * (1 << self.followers.failures.min(5))).min(STAY_MAX);
        self.followers.failures = self.followers.failures.saturating_add(1);
        self.followers.not_before = Some(now + stay);
        self.home = self.leader;
        self.retry_at = None;
        self.failures = 0;
    }
}

impl Shared {
    /// `home` does not answer: what was read there as at a follower is read at its leaders again. Whether there was any.
    pub(super) fn leave_followers(shared: &Arc<Self>, home: Home) -> bool {
        let now = Instant::now();
        let mut state = shared.lock();
        let mut leaders = Vec::new();
        for part in state.parts.values_mut().filter(|part| part.home == home && part.is_at_follower()) {
            part.back_to_leader(now);
            leaders.push(part.home);
        }
        leaders.iter().for_each(|leader| Self::ensure_lane(shared, &mut state, *leader));
        drop(state);
        if !leaders.is_empty() {
            shared.changed();
        }
        !leaders.is_empty()
    }
}
