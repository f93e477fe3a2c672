//! Who waits until an offset is durable, or committed.
//!
//! Owned by the partition, one queue for each of the two. In the order of the offsets, so that an advance looks at
//! those alone that it answers.

use logic::ids::Offset;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Somebody who waits until an offset is durable, or committed.
pub trait DurabilityWaiter {
    /// Every offset below the one waited for is; all below `end` are. `token` is what was given when waiting.
    fn durable(&self, token: u32, end: Offset);
    /// It will never be: the partition is closed.
    fn closed(&self, token: u32);
    /// This broker does not lead the partition any more: nobody knows what becomes of the records.
    fn role_lost(&self, token: u32) {
        self.closed(token);
    }
}

struct Waiter {
    end: Offset,
    token: u32,
    waiter: Rc<dyn DurabilityWaiter>,
}

/// A queue of them.
#[derive(Default)]
pub struct Waiters {
    queue: RefCell<VecDeque<Waiter>>,
}

impl Waiters {
    /// `waiter` waits for every offset below `end`.
    pub fn push(&self, end: Offset, waiter: Rc<dyn DurabilityWaiter>, token: u32) {
        let mut queue = self.queue.borrow_mut();
        // Behind those who wait for the same; only who waits for a duplicate is not the last.
        let at = match queue.back() {
            Some(last) if last.end > end => queue.partition_point(|other| other.end <= end),
            _ => queue.len(),
        };
        queue.insert(at, Waiter { end, token, waiter });
    }

    /// Answers who waits for an offset up to `end`. Whoever is told may come back here: nothing is borrowed meanwhile.
    pub fn reached(&self, end: Offset) {
        loop {
            let next = {
                let mut queue = self.queue.borrow_mut();
                match queue.front() {
                    Some(front) if front.end <= end => queue.pop_front(),
                    _ => None,
                }
            };
            let Some(Waiter { token, waiter, .. }) = next else { return };
            waiter.durable(token, end);
        }
    }

    /// The partition is closed.
    pub fn close(&self) {
        let waiters = self.queue.take();
        waiters.iter().for_each(|waiter| waiter.waiter.closed(waiter.token));
    }

    /// Another broker leads.
    pub fn lose_role(&self) {
        let waiters = self.queue.take();
        waiters.iter().for_each(|waiter| waiter.waiter.role_lost(waiter.token));
    }
}
