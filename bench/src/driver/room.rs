//! The records that a producer of another broker has open, and room for more.
//!
//! Owner: one producer, on its thread. Invariants: at most [`ROOM_BYTES`] of records are unacknowledged per
//! producer, as with our own client; a record that was let in is reported exactly once.
//! Absent on purpose: a limit of records, which the engine has.

use super::Observer;
use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::{Notify, Semaphore};

/// What our own client holds at most, by default; others get the same.
const ROOM_BYTES: usize = 64 << 20;

/// Records of one producer that are neither acknowledged nor failed.
pub(super) struct Room {
    observer: Rc<dyn Observer>,
    bytes: Semaphore,
    open: Cell<usize>,
    none: Notify,
}

impl Room {
    pub(super) fn new(observer: Rc<dyn Observer>) -> Self {
        Self { observer, bytes: Semaphore::new(ROOM_BYTES), open: Cell::new(0), none: Notify::new() }
    }

    /// Ends when there is room for a record of `bytes`, which is open from then on.
    pub(super) async fn enter(&self, bytes: usize) {
        // The semaphore is never closed: an error cannot be.
        if let Ok(permit) = self.bytes.acquire_many(share(bytes)).await {
            permit.forget();
        }
        self.open.set(self.open.get() + 1);
    }

    /// A record came back with its acknowledgement.
    pub(super) fn acknowledged(&self, intended_ns: u64, bytes: usize) {
        self.leave(bytes);
        self.observer.acknowledged(intended_ns, bytes, None);
    }

    /// A record will not be acknowledged.
    pub(super) fn failed(&self, bytes: usize, reason: &str) {
        self.leave(bytes);
        self.observer.failed(reason);
    }

    fn leave(&self, bytes: usize) {
        self.bytes.add_permits(share(bytes) as usize);
        self.open.set(self.open.get() - 1);
        if self.open.get() == 0 {
            self.none.notify_waiters();
        }
    }

    /// Ends when no record is open.
    pub(super) async fn is_empty(&self) {
        while self.open.get() > 0 {
            self.none.notified().await;
        }
    }
}

/// The room that a record takes: a larger one than there is takes all of it.
fn share(bytes: usize) -> u32 {
    bytes.clamp(1, ROOM_BYTES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Parts;
    use futures_util::FutureExt;

    #[derive(Default)]
    struct Seen(Cell<u64>, Cell<u64>);

    impl Observer for Seen {
        fn acknowledged(&self, _: u64, _: usize, _: Option<&Parts>) {
            self.0.set(self.0.get() + 1);
        }
        fn failed(&self, _: &str) {
            self.1.set(self.1.get() + 1);
        }
        fn received(&self, _: &[u8]) {}
    }

    fn ready(future: impl Future<Output = ()>) -> bool {
        future.now_or_never().is_some()
    }

    #[test]
    fn room_is_bounded_and_given_back_by_either_end() {
        let seen = Rc::new(Seen::default());
        let room = Room::new(seen.clone());
        assert!(ready(room.enter(ROOM_BYTES - 1)));
        assert!(ready(room.enter(1)));
        assert!(!ready(room.enter(1)), "it is full");
        assert!(!ready(room.is_empty()));
        room.acknowledged(1, 1);
        assert!(ready(room.enter(1)));
        room.failed(1, "why not");
        room.acknowledged(1, ROOM_BYTES - 1);
        assert!(ready(room.is_empty()));
        assert!(ready(room.enter(2 * ROOM_BYTES)), "alone, even the largest is let in");
        assert_eq!((seen.0.get(), seen.1.get()), (2, 1));
    }
}
