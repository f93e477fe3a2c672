//! Looking at a running broker from a thread that is none of its shards'.
//!
//! An [`Observer`] asks shards through their mailboxes, as they ask each other, and waits for their answers; it
//! shares no memory with them but the metadata's immutable image. Works on any executor. Lifecycle: made by
//! [`Broker::observer`](crate::Broker::observer), cheap to clone; once the broker has stopped nobody answers.
//! Absent on purpose: deadlines. A shard that is held does not answer; how long to wait is the asker's.

use crate::group::lag;
use crate::histogram::HistogramReport;
use crate::mailbox::{Mailboxes, Message, ShardReport};
use crate::metadata::MetadataHandle;
use crate::traffic::{PartitionReport, TopicReport, by_topic};
use futures_channel::oneshot;
use logic::group::request::Progress;
use logic::ids::{BrokerId, ShardId, TopicId};
use logic::metadata::reconcile::Here;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Asks a broker's shards.
#[derive(Clone)]
pub struct Observer {
    pub(crate) mailboxes: Mailboxes,
    pub(crate) metadata: MetadataHandle,
    pub(crate) broker: BrokerId,
    pub(crate) shards: u16,
    pub(crate) began: Instant,
}

impl Observer {
    /// Numbers of its shards.
    pub fn shards(&self) -> impl Iterator<Item = u16> + use<> {
        0..self.shards
    }

    /// Since the start.
    pub fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// Counters, histograms and notices of a shard; `None` if it has stopped.
    pub async fn counters(&self, shard: u16) -> Option<ShardReport> {
        self.ask(shard, Message::Status).await
    }

    /// The partitions of a shard; `None` if it has stopped.
    pub async fn partitions(&self, shard: u16) -> Option<Vec<PartitionReport>> {
        self.ask(shard, Message::Traffic).await
    }

    /// The groups that a shard coordinates; `None` if it has stopped.
    pub async fn groups(&self, shard: u16) -> Option<lag::Gathered> {
        self.ask(shard, Message::Progress).await
    }

    /// What is to be asked about the lag of groups, by who leads the partitions.
    pub fn lag_questions(&self, groups: &[Progress]) -> BTreeMap<lag::Leader, Vec<lag::Question>> {
        // The same for each shard.
        let here = Here { broker: self.broker, shard: ShardId::new(0), shards: self.shards };
        lag::questions(groups, &self.metadata.image(), here)
    }

    /// How far places in partitions are from their ends; `None` if who leads them gives no answer.
    pub async fn lag(&self, leader: lag::Leader, asked: Vec<lag::Question>) -> Option<Vec<lag::Answer>> {
        match leader {
            lag::Leader::Shard(shard) => self.mailboxes.ask(shard, |reply| Message::Lag(asked, reply)).await,
            lag::Leader::Broker(broker) => Some(self.metadata.measure_lag(broker, asked).await),
        }
    }

    /// Groups with what was answered about them, by name.
    pub fn group_reports(&self, groups: Vec<Progress>, answers: Vec<lag::Answer>) -> Vec<lag::GroupReport> {
        lag::reports(groups, answers, &self.metadata.image())
    }

    /// Sums over topics, by name.
    pub fn by_topic(&self, partitions: &[PartitionReport]) -> Vec<TopicReport> {
        by_topic(partitions, &self.metadata.image())
    }

    /// The name of a topic, if it still exists.
    pub fn topic_name(&self, id: TopicId) -> Option<Arc<str>> {
        self.metadata.image().topic(id).map(|topic| topic.name.clone())
    }

    async fn ask<T>(&self, shard: u16, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        self.mailboxes.ask(ShardId::new(shard), message).await
    }
}

/// How long one kind of thing took on a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// What: `round`, `produce`.
    pub name: &'static str,
    /// How often and how long.
    pub took: HistogramReport,
}
