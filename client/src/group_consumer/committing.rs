//! What a group consumer commits, and when.
//!
//! Owner: the task that polls the [`GroupConsumer`]. Invariants: auto-commit takes what was dealt with, never what the
//! present poll hands out; one auto-commit at a time, and one that failed is made up for by the next; every commit
//! carries the life and the epoch in which its offsets were read. Absent on purpose: sending them, which `commits` does in
//! the order of the calls.

use super::commits::Job;
use super::membership::Key;
use super::{GroupConsumer, GroupError, GroupPartition, Held, Stage, positions};
use crate::consumer::FetchedBatch;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What becomes of a commit.
pub(super) type Outcome = oneshot::Receiver<Result<(), GroupError>>;

/// A commit that goes on by itself. Dropping it drops only the answer.
#[derive(Debug)]
pub struct CommitFuture {
    done: Outcome,
}

impl CommitFuture {
    /// Waits until the offsets are durable.
    ///
    /// # Errors
    /// As [`GroupConsumer::commit`].
    pub async fn wait(self) -> Result<(), GroupError> {
        self.done.await.unwrap_or(Err(GroupError::PartitionsLost))
    }
}

impl GroupConsumer {
    pub(super) fn submit(
        &self,
        offsets: BTreeMap<Key, u64>,
        deadline: Instant,
    ) -> Result<Outcome, GroupError> {
        let (done, receiver) = oneshot::channel();
        let epoch = self.membership.epoch_of(self.generation).ok_or(GroupError::PartitionsLost)?;
        if offsets.is_empty() {
            let _ = done.send(Ok(()));
            return Ok(receiver);
        }
        let job = Job { generation: self.generation, epoch, offsets, deadline, done };
        self.commits.try_send(job).map_err(|_| GroupError::TooManyCommits)?;
        Ok(receiver)
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.membership.coordinator.cluster.config.request_timeout
    }

    /// Commits what has been dealt with when it is time, without waiting for it.
    pub(super) fn auto_commit(&mut self) {
        let Some(interval) = self.membership.config.auto_commit_interval else { return };
        if let Some((partitions, done)) = &mut self.auto_commit {
            match done.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.auto_commit_at = self.auto_commit_at.max(Instant::now() + Duration::from_millis(10));
                    return;
                }
                Ok(Ok(())) => {}
                // To be committed again next time.
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => {
                    for partition in std::mem::take(partitions) {
                        if let Some(held) = self.held.get_mut(&partition) {
                            held.committed = None;
                        }
                    }
                }
            }
            self.auto_commit = None;
        }
        let now = Instant::now();
        if now < self.auto_commit_at {
            return;
        }
        self.auto_commit_at = now + interval;
        let due = |held: &Held| held.stage == Stage::Reading && held.committed != Some(held.processed);
        let due: Vec<_> =
            self.held.iter().filter(|(_, held)| due(held)).map(|(name, _)| name.clone()).collect();
        if due.is_empty() {
            return;
        }
        let offset =
            |name: &GroupPartition| ((self.held[name].id, name.partition), self.held[name].processed);
        let offsets = due.iter().map(offset).collect();
        if let Ok(done) = self.submit(offsets, self.deadline()) {
            for name in &due {
                if let Some(held) = self.held.get_mut(name) {
                    held.committed = Some(held.processed);
                }
            }
            self.auto_commit = Some((due, done));
        }
    }

    /// The position of every partition that is read: all that was handed out.
    fn positions(&self) -> BTreeMap<Key, u64> {
        let read = self.held.iter().filter(|(_, held)| held.stage == Stage::Reading);
        read.filter_map(|(name, held)| {
            Some(((held.id, name.partition), self.consumer.position(&name.topic, name.partition)?))
        })
        .collect()
    }

    /// Commits everything that was handed out so far, and waits until it is durable.
    ///
    /// # Errors
    /// [`GroupError::PartitionsLost`] when the member was put out of the group: then whatever was handed out before may
    /// be handed out to others again.
    pub async fn commit(&mut self) -> Result<(), GroupError> {
        self.commit_async()?.wait().await
    }

    /// Commits everything that was handed out so far, in the background, in the order of the calls.
    ///
    /// # Errors
    /// [`GroupError::TooManyCommits`], [`GroupError::PartitionsLost`]; others with [`CommitFuture::wait`].
    pub fn commit_async(&self) -> Result<CommitFuture, GroupError> {
        Ok(CommitFuture { done: self.submit(self.positions(), self.deadline())? })
    }

    /// Commits the records up to the end of `batch`, and waits until that is durable.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub async fn commit_batch(&mut self, batch: &FetchedBatch) -> Result<(), GroupError> {
        self.commit_offsets(&[(&batch.topic, batch.partition, batch.end_offset)])?.wait().await
    }

    /// Commits these offsets, each of the next record to process, in the background.
    ///
    /// # Errors
    /// [`GroupError::PartitionsLost`] for a partition that the member does not read; otherwise as
    /// [`Self::commit_async`].
    pub fn commit_offsets(&self, offsets: &[(&str, u32, u64)]) -> Result<CommitFuture, GroupError> {
        let mut keyed = BTreeMap::new();
        for (topic, partition, offset) in offsets {
            let held = self.held(topic, *partition).filter(|held| held.stage == Stage::Reading);
            let held = held.ok_or(GroupError::PartitionsLost)?;
            keyed.insert((held.id, *partition), *offset);
        }
        Ok(CommitFuture { done: self.submit(keyed, self.deadline())? })
    }

    /// What the group has committed for a partition, whoever has it; `None` = nothing.
    ///
    /// # Errors
    /// [`GroupError::Client`] when the coordinator cannot be asked.
    pub async fn committed(&mut self, topic: &str, partition: u32) -> Result<Option<u64>, GroupError> {
        positions::committed_by_name(&self.membership, &GroupPartition { topic: topic.into(), partition })
            .await
    }
}
