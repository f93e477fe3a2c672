//! Who waits for room on a full disk.
//!
//! Owned by a shard's [`Storage`], alive as long as somebody waits. Invariant: the disk counts as full from the first who
//! waits until the last one has what it needs, or needs it no more; so that nobody is refused for whom nobody waits.

use super::Storage;
use super::disk::Disk;
use std::rc::Rc;
use std::time::Duration;

/// How often a full disk is tried again, or looked at where trying is dear.
pub const FULL_DISK_RETRY: Duration = Duration::from_millis(200);
/// How often it is tried where no look tells of room: not all is seen from outside, as what a quota gives, or segments that
/// are recycled.
const UNSEEN_ROOM_RETRY: Duration = Duration::from_secs(10);

/// What a file system has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
}

/// When what has found no room is worth another try that costs more than a look: when there is more room than the last one
/// had.
#[derive(Debug, Default)]
pub struct Patience {
    last: Option<(Room, Duration)>,
    #[cfg(test)]
    looks: u64,
}

impl Patience {
    /// Whether to try again now, at `now` of a clock that does not go back, that there is `room`. Says so once for a try.
    pub fn tries(&mut self, room: Room, now: Duration) -> bool {
        #[cfg(test)]
        {
            self.looks += 1;
        }
        let again = self.last.is_none_or(|(before, at)| {
            room.bytes > before.bytes || room.files > before.files || now >= at + UNSEEN_ROOM_RETRY
        });
        if again {
            self.last = Some((room, now));
        }
        again
    }

    /// How often it was asked.
    #[cfg(test)]
    pub fn looks(&self) -> u64 {
        self.looks
    }
}

/// Somebody waits for room; ends when dropped.
pub struct NoRoom<D: Disk>(Rc<Storage<D>>);

impl<D: Disk> NoRoom<D> {
    /// Lets some time pass in which there may be room.
    pub async fn look_again(&self) {
        self.0.environment.sleep(FULL_DISK_RETRY).await;
    }
}

impl<D: Disk> Drop for NoRoom<D> {
    fn drop(&mut self) {
        let storage = &self.0;
        storage.waiting_for_room.set(storage.waiting_for_room.get() - 1);
        if storage.waiting_for_room.get() == 0 {
            tracing::info!("nobody waits for space in {} any more: produce goes on", storage.root.display());
        }
    }
}

impl<D: Disk> Storage<D> {
    /// Notes that somebody has found the disk full and waits.
    pub fn wait_for_room(self: &Rc<Self>) -> NoRoom<D> {
        if self.waiting_for_room.get() == 0 {
            let root = self.root.display();
            tracing::error!("no space left for {root}: produce is refused until space returns");
        }
        self.waiting_for_room.set(self.waiting_for_room.get() + 1);
        NoRoom(self.clone())
    }

    /// Whether the disk has no room for new data, or so little that it is kept for what must go on.
    pub fn is_full(&self) -> bool {
        self.waiting_for_room.get() > 0 || self.low.get()
    }

    /// Notes that free space is below the low-water mark, or above it again.
    pub fn set_low(&self, low: bool) {
        if low != self.low.replace(low) {
            let root = self.root.display();
            match low {
                true => tracing::error!("{root} is almost full: produce is refused until space returns"),
                false => tracing::info!("space has returned to {root}: produce goes on"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_room_tries_when_there_is_more() {
        let mut patience = Patience::default();
        let unseen = UNSEEN_ROOM_RETRY.as_millis() as u64;
        // (ms, bytes, files, expected)
        for (ms, bytes, files, expect) in [
            // What was found before the first look is not known.
            (200, 100, 10, true),
            (400, 100, 10, false),
            (600, 99, 9, false),
            (800, 101, 9, true),
            (1000, 101, 9, false),
            (1200, 90, 10, true),
            // Less than that try had would not do.
            (1400, 89, 10, false),
            (1600, 91, 10, true),
            (1600 + unseen - 1, 91, 10, false),
            (1600 + unseen, 91, 10, true),
            (1800 + unseen, 91, 10, false),
        ] {
            let tries = patience.tries(Room { bytes, files }, Duration::from_millis(ms));
            assert_eq!(tries, expect, "after {ms} ms");
        }
        assert_eq!(patience.looks(), 11);
    }
}
