//! Producer ids of one shard: taken from the metadata by the block, given out one by one.
//!
//! One per shard. A block is durable in the metadata before an id of it is given out, and ids of a block that a
//! restart interrupts are never used: so no id is given out twice. Whoever finds none waits for the one request
//! that is under way. Absent on purpose: who uses an id, and its epochs, which the logs know.

use crate::metadata::{MetadataError, MetadataHandle};
use logic::ids::BrokerId;
use logic::limits::PRODUCER_IDS_PER_BLOCK;
use logic::metadata::{Command, Outcome};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Poll, Waker};

/// See the module.
#[derive(Debug, Default)]
pub struct ProducerIds {
    left: RefCell<Range<i64>>,
    asking: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// Lets the next one ask when this one has ended, however it ended.
struct Asking<'a>(&'a ProducerIds);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.set(false);
        std::mem::take(&mut *self.0.waiting.borrow_mut()).into_iter().for_each(Waker::wake);
    }
}

impl ProducerIds {
    /// An id that nobody has.
    pub async fn next(&self, metadata: &MetadataHandle, broker: BrokerId) -> Result<i64, MetadataError> {
        loop {
            if let Some(id) = self.left.borrow_mut().next() {
                return Ok(id);
            }
            if self.asking.replace(true) {
                self.asked().await;
                continue;
            }
            let _asking = Asking(self);
            let command = Command::AllocateProducerIds { broker, count: PRODUCER_IDS_PER_BLOCK };
            if let Outcome::ProducerIdsAllocated { first, count } = metadata.submit(command).await? {
                *self.left.borrow_mut() = first..first + i64::from(count);
            }
        }
    }

    /// Waits for the end of the request that is under way.
    async fn asked(&self) {
        poll_fn(|context| {
            if !self.asking.get() {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
