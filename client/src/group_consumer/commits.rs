//! Commits of a group consumer, one after the other.
//!
//! Owner: one task per group consumer takes [`Job`]s from a bounded queue. Lifecycle: ends when the consumer and its
//! queue are gone and everything queued is settled. Invariants: commits reach the coordinator in the order in which they
//! were asked for, so that no older offset overtakes a newer one; a job keeps the epoch in which its offsets were
//! read, and is given up when the member has lost its partitions since. Absent on purpose: what to commit.

use super::GroupError;
use super::membership::{Key, Membership};
use crate::client::ClientError;
use crate::coordinator::{is_fenced, may_pass, wait_of};
use crate::group_request::{CommitEntry, OffsetCommit};
use crate::reply::Reply;
use crate::request::Request;
use schema::error_code::ErrorCode;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Commits that may wait at once.
pub(crate) const COMMITS_MAX: usize = 64;

/// One commit.
pub(crate) struct Job {
    pub generation: u64,
    pub epoch: i32,
    pub offsets: BTreeMap<Key, u64>,
    pub deadline: Instant,
    pub done: oneshot::Sender<Result<(), GroupError>>,
}

/// The task.
pub(crate) async fn run(membership: Arc<Membership>, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.recv().await {
        let outcome = settle(&membership, &job).await;
        // Nobody may want to know.
        let _ = job.done.send(outcome);
    }
}

async fn settle(membership: &Membership, job: &Job) -> Result<(), GroupError> {
    let entry = |(&(topic, partition), &offset): (&Key, &u64)| CommitEntry {
        topic,
        partition,
        offset,
        leader_epoch: None,
        metadata: String::new(),
    };
    let commit = OffsetCommit {
        group: membership.config.group.clone(),
        member_id: membership.member_id.clone(),
        member_epoch: job.epoch,
        entries: job.offsets.iter().map(entry).collect(),
    };
    let config = &membership.coordinator.cluster.config;
    let mut attempt = 0;
    loop {
        if membership.lock().generation != job.generation {
            return Err(GroupError::PartitionsLost);
        }
        let left = job.deadline.saturating_duration_since(Instant::now());
        let timeout = left.min(config.request_timeout).max(Duration::from_millis(1));
        let request = Request::OffsetCommit(Box::new(commit.clone()));
        let error = match membership.coordinator.try_once(request, timeout).await {
            Ok(Reply::Committed(results)) => {
                let refused = results.iter().find_map(|result| Some((result, result.error?)));
                return match refused {
                    None => Ok(()),
                    Some((_, ErrorCode::StaleMemberEpoch)) => Err(GroupError::PartitionsLost),
                    Some((result, code)) => {
                        Err(GroupError::CommitRefused { partition: result.partition, code })
                    }
                };
            }
            Ok(_) => return Err(ClientError::UnexpectedReply { request: "OffsetCommit" }.into()),
            Err(error) => error,
        };
        if is_fenced(&error) || error.code() == Some(ErrorCode::StaleMemberEpoch) {
            // The next heartbeat finds out the rest.
            membership.wake();
            return Err(GroupError::PartitionsLost);
        }
        attempt += 1;
        let wait = wait_of(&error).max(config.backoff(attempt));
        if !may_pass(&error) || Instant::now() + wait >= job.deadline {
            return Err(error.into());
        }
        tokio::time::sleep(wait).await;
    }
}
