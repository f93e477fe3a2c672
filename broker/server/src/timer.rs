//! A task of a shard that sleeps until something is due, and sooner when something earlier comes up.

use futures_util::future::select;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::Duration;

/// The sleep of one task.
pub struct Timer {
    /// Until when it sleeps, milliseconds; 0 = it does not.
    until_ms: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Default for Timer {
    fn default() -> Self {
        Self { until_ms: Cell::new(0), waker: RefCell::default() }
    }
}

impl Timer {
    /// Sleeps until `until_ms`, or until an earlier time is [`due`](Timer::due); a millisecond at least.
    pub async fn sleep(&self, now_ms: u64, until_ms: u64) {
        self.until_ms.set(until_ms);
        let woken = poll_fn(|context| {
            if self.until_ms.get() == 0 {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        });
        let wait = Duration::from_millis(until_ms.saturating_sub(now_ms).max(1));
        select(pin!(glommio::timer::sleep(wait)), pin!(woken)).await;
        self.until_ms.set(0);
    }

    /// Something is due at `at_ms`.
    pub fn due(&self, at_ms: u64) {
        if at_ms < self.until_ms.get() {
            self.until_ms.set(0);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}
