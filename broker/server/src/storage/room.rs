//! Who waits for room on a full disk.
//!
//! Owned by a shard's [`Storage`], alive as long as somebody waits. Invariant: the disk counts as full from the first who
//! waits until the last one has what it needs, or needs it no more; so that nobody is refused for whom nobody waits.

use super::Storage;
use super::disk::Disk;
use std::rc::Rc;
use std::time::Duration;

/// How often a full disk is tried again.
pub const FULL_DISK_RETRY: Duration = Duration::from_millis(200);

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
