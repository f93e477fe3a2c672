//! A partition that goes to another shard of its broker: its background work ends while it still serves, then it takes
//! nothing more, and when it is closed nobody of this shard touches its files any more.
//!
//! The stages follow each other and none is gone back to: the partition is opened anew wherever it goes, here too. Who
//! takes it over, and what it is told, is `homes`'.

use super::{Partition, Standing, Work};
use crate::storage::disk::Disk;
use logic::replication::NotAdmitted;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// How often it is asked whether it has come to rest.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// How far it has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// It stays.
    #[default]
    Here,
    /// Nothing is begun in the background any more.
    WindingDown,
    /// Nothing is taken any more.
    Stopped,
}

impl<D: Disk> Partition<D> {
    /// Whether it is about to go: nothing is begun in the background, and what is under way gives up.
    pub fn winds_down(&self) -> bool {
        self.stage.get() != Stage::Here
    }

    /// Whether it takes nothing any more because it goes: who asks is to learn where it is.
    pub fn has_stopped(&self) -> bool {
        self.stage.get() == Stage::Stopped
    }

    /// Ends the background work, while appends and reads go on. What has not ended within `patience`, as on a full disk, gives
    /// up when the partition is closed.
    pub async fn wind_down(&self, patience: Duration) {
        self.stage.set(Stage::WindingDown);
        // A segment that appends wait for is put in place all the same.
        self.while_patient(patience, || self.is_worked_on(&[Work::Placing])).await;
    }

    /// A flush round begins to write to its files.
    pub fn round_writes(&self) {
        self.rounds_writing.set(self.rounds_writing.get() + 1);
    }

    /// Such a round has ended, or does not try again.
    pub fn round_has_written(&self) {
        self.rounds_writing.set(self.rounds_writing.get() - 1);
    }

    /// Takes nothing any more, from nobody.
    pub fn stop_taking(&self) {
        self.stage.set(Stage::Stopped);
        let refusal = Some(NotAdmitted::NotLeader);
        self.standing.set(Standing { leads: false, applied: false, follows: None, refusal });
    }

    /// Whether everything that was taken is durable, and nothing is under way.
    pub fn is_at_rest(&self) -> bool {
        !self.has_pending() && !self.is_busy()
    }

    /// Waits until it is at rest; `false` = not within `patience`.
    pub async fn comes_to_rest(&self, patience: Duration) -> bool {
        self.while_patient(patience, || !self.is_at_rest()).await
    }

    /// Waits while it `goes_on`; `false` = it does after `patience`.
    async fn while_patient(&self, patience: Duration, goes_on: impl Fn() -> bool) -> bool {
        let began_ns = self.storage.environment.monotonic_ns();
        while goes_on() {
            let waited_ns = self.storage.environment.monotonic_ns() - began_ns;
            if u128::from(waited_ns) > patience.as_nanos() {
                return false;
            }
            self.storage.environment.sleep(LOOK_AGAIN).await;
        }
        true
    }

    /// Waits until nobody works with the files of a closed partition any more, or has one open. Its writes that wait for room
    /// on a full disk are given up.
    pub async fn leave_files(&self) {
        loop {
            // Who was about to open one keeps it here.
            self.files.borrow_mut().clear();
            self.storage.read_files.forget(self.id(), None);
            let is_used = self.uses.borrow().values().any(|used| Rc::strong_count(used) > 1);
            if !is_used && !self.is_worked_on(&[]) && self.rounds_writing.get() == 0 {
                return;
            }
            self.storage.environment.sleep(LOOK_AGAIN).await;
        }
    }

    /// Ranges of offsets that are known to be damaged, found before this shard had it.
    pub fn remember_damage(&self, ranges: &[Range<u64>]) {
        let mut log = self.log.borrow_mut();
        ranges.iter().for_each(|range| log.note_damage(range.clone()));
    }
}
