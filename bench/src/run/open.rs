//! The records that one producer has open: handed over, and neither acknowledged nor failed.
//!
//! Owner: one producer of a thread. It stands between the producer's client and the recorder, and tells the
//! recorder everything. Invariant: a producer's limit is its own; one that waits for each of its records
//! never has two open, whatever the others of its thread do.

use crate::driver::{Observer, Parts};
use crate::recorder::Recorder;
use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::Notify;

/// What one producer has open.
pub(super) struct OpenRecords {
    recorder: Rc<Recorder>,
    count: Cell<u64>,
    settled: Notify,
}

impl OpenRecords {
    pub(super) fn new(recorder: Rc<Recorder>) -> Self {
        Self { recorder, count: Cell::new(0), settled: Notify::new() }
    }

    /// A record is being handed over.
    pub(super) fn sent(&self) {
        self.count.set(self.count.get() + 1);
    }

    /// Ends when fewer than `limit` are open.
    pub(super) async fn are_fewer_than(&self, limit: u64) {
        while self.count.get() >= limit {
            self.settled.notified().await;
        }
    }

    fn settle_one(&self) {
        self.count.set(self.count.get().saturating_sub(1));
        self.settled.notify_one();
    }
}

impl Observer for OpenRecords {
    fn acknowledged(&self, intended_ns: u64, bytes: usize, parts: Option<&Parts>) {
        self.recorder.acknowledged(intended_ns, bytes, parts);
        self.settle_one();
    }

    fn failed(&self, reason: &str) {
        self.recorder.failed(reason);
        self.settle_one();
    }

    fn received(&self, value: &[u8]) {
        self.recorder.received(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::sync::Arc;

    #[test]
    fn each_producer_waits_for_its_own_records() {
        let recorder = Rc::new(Recorder::new(7, Arc::default(), Arc::default()));
        let (first, second) = (OpenRecords::new(recorder.clone()), OpenRecords::new(recorder.clone()));
        let ready = |open: &OpenRecords, limit| open.are_fewer_than(limit).now_or_never().is_some();
        assert!(ready(&first, 1));
        first.sent();
        assert!(!ready(&first, 1), "it has one open");
        assert!(ready(&first, 2) && ready(&second, 1), "the other has none");
        second.sent();
        second.failed("why not");
        assert!(!ready(&first, 1) && ready(&second, 1));
        first.acknowledged(1, 10, None);
        assert!(ready(&first, 1));
        let recording = recorder.take();
        assert_eq!((recording.acknowledged_in_all, recording.failed), (1, 1));
    }
}
