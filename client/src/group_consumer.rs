//! A member of a consumer group: partitions that come and go, and positions that are committed.
//!
//! ```no_run
//! use ringlog_client::{Client, ClientConfig, GroupConfig};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::new("127.0.0.1:9644")?).await?;
//! let mut worker = client.group_consumer(GroupConfig::new("workers").with_topic("jobs"))?;
//! for _ in 0..1000 {
//!     let batch = worker.poll().await?;
//!     for record in batch.records() {
//!         println!("{:?}", record?.value);
//!     }
//!     // To poll again says that the batch is dealt with: it can be committed.
//! }
//! worker.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Owner: one task of the application owns a [`GroupConsumer`] and polls it; a task beside it sends heartbeats
//! (`membership`), another commits (`commits`), a third finds where new partitions begin (`positions`). What polls do
//! about partitions that come and go stands in `rebalance`, what is committed when in `committing`.
//! Lifecycle: made by [`crate::Client::group_consumer`], joins at once; [`GroupConsumer::close`] commits and leaves; one
//! that is only dropped is missed after its session timeout.
//! Invariants: everything that changes partitions happens within a poll; a partition is handed back after its last
//! record was handed out, the listener was told, and its position was committed; the others are read meanwhile; nothing is
//! handed out after the member's session has ended by its own clock, nor committed after it was fenced.
//! Absent on purpose: several members in one object; make several.

mod commits;
mod committing;
mod config;
mod error;
mod membership;
mod positions;
mod rebalance;

pub use committing::CommitFuture;
pub use config::{
    AssignedPartition, Assignor, GroupConfig, GroupPartition, RebalanceListener, RevokedPartition,
};
pub use error::GroupError;

use crate::cluster::Cluster;
use crate::consumer::{ConsumedRecord, Consumer, FetchedBatch, StartFrom};
use crate::coordinator::Coordinator;
use crate::request::TopicId;
use commits::{COMMITS_MAX, Job};
use committing::Outcome;
use membership::Membership;
use positions::Position;
use rebalance::Release;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// How long closing may take to commit and to leave, each.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A partition that the member uses.
struct Held {
    id: TopicId,
    stage: Stage,
    /// Everything below is dealt with.
    processed: u64,
    /// What was committed last, as far as is known.
    committed: Option<u64>,
    is_paused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its position is being found.
    Waiting,
    Reading,
    /// Given up, once its position is committed.
    Releasing,
}

/// See the module.
pub struct GroupConsumer {
    membership: Arc<Membership>,
    heartbeats: JoinHandle<()>,
    commits: mpsc::Sender<Job>,
    consumer: Consumer,
    listener: Option<Box<dyn RebalanceListener>>,
    /// The life of the membership that `held` belongs to.
    generation: u64,
    held: BTreeMap<GroupPartition, Held>,
    /// The partition that the last poll handed something out of.
    handed: Option<GroupPartition>,
    finding: Option<JoinSet<Result<Vec<Position>, GroupError>>>,
    release: Option<Release>,
    auto_commit_at: Instant,
    /// An auto-commit under way, with what it commits.
    auto_commit: Option<(Vec<GroupPartition>, Outcome)>,
    /// To be told by the next polls.
    errors: Vec<GroupError>,
}

/// What one poll hands out.
enum Handed {
    Batch(FetchedBatch),
    Record(ConsumedRecord),
}

/// Says that the application is within a poll, also one that is given up.
struct Polling(Arc<Membership>);

impl Drop for Polling {
    fn drop(&mut self) {
        self.0.poll_ends();
    }
}

impl GroupConsumer {
    pub(crate) fn new(cluster: Arc<Cluster>, config: GroupConfig) -> Result<Self, GroupError> {
        if config.topics.is_empty() && config.pattern.as_ref().is_none_or(String::is_empty) {
            return Err(GroupError::NoSubscription { group: config.group });
        }
        let coordinator = Coordinator::new(cluster.clone(), &config.group);
        let consumer = Consumer::new(cluster, config.consumer.clone());
        let membership = Arc::new(Membership::new(config, coordinator));
        let (commits, jobs) = mpsc::channel(COMMITS_MAX);
        tokio::spawn(commits::run(membership.clone(), jobs));
        Ok(Self {
            heartbeats: tokio::spawn(membership.clone().run()),
            membership,
            commits,
            consumer,
            listener: None,
            generation: 0,
            held: BTreeMap::new(),
            handed: None,
            finding: None,
            release: None,
            auto_commit_at: Instant::now(),
            auto_commit: None,
            errors: Vec::new(),
        })
    }

    /// Tells `listener` of partitions that come and go. Set it before the first poll, or it misses some.
    pub fn set_listener(&mut self, listener: impl RebalanceListener + 'static) {
        self.listener = Some(Box::new(listener));
    }

    /// The id under which the coordinator knows this member.
    pub fn member_id(&self) -> &str {
        &self.membership.member_id
    }

    /// Subscribes to these topics and this pattern instead of those before.
    pub fn subscribe(&mut self, topics: Vec<String>, pattern: Option<String>) {
        self.membership.subscribe(topics, pattern);
    }

    /// The partitions that are read, by name.
    pub fn assignment(&self) -> Vec<GroupPartition> {
        let read = self.held.iter().filter(|(_, held)| held.stage == Stage::Reading);
        read.map(|(partition, _)| partition.clone()).collect()
    }

    /// The next batches of any partition that the member has; waits until there are some. Takes part in rebalances:
    /// the listener is called from here, and only here. Cancel safe.
    ///
    /// # Errors
    /// [`GroupError::is_final`] ends it; after others it goes on. [`GroupError::Consume`] stops the partition that it
    /// names until it is sought or comes back.
    pub async fn poll(&mut self) -> Result<FetchedBatch, GroupError> {
        loop {
            if let Handed::Batch(batch) = self.hand_out(false).await? {
                return Ok(batch);
            }
        }
    }

    /// The next record; otherwise as [`Self::poll`], and instead of it.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub async fn next(&mut self) -> Result<ConsumedRecord, GroupError> {
        loop {
            if let Handed::Record(record) = self.hand_out(true).await? {
                return Ok(record);
            }
        }
    }

    async fn hand_out(&mut self, as_records: bool) -> Result<Handed, GroupError> {
        self.membership.poll_begins();
        let _polling = Polling(self.membership.clone());
        self.note_processed();
        loop {
            self.look()?;
            self.auto_commit();
            if let Some(error) = self.errors.pop() {
                return Err(error);
            }
            let auto_commit_at = self.membership.config.auto_commit_interval.map(|_| self.auto_commit_at);
            let Self { membership, consumer, finding, release, .. } = self;
            tokio::select! {
                biased;
                () = membership.news.notified() => {}
                done = rebalance::settled(release) => self.released(done),
                found = rebalance::found(finding) => self.found(found)?,
                () = sleep_until(auto_commit_at) => {}
                item = next_item(consumer, as_records) => {
                    let handed = item?;
                    // Whoever slept meanwhile may have lost it: only what is surely still the member's is handed out.
                    if self.membership.lock().generation != self.generation {
                        continue;
                    }
                    let partition = match &handed {
                        Handed::Batch(batch) => GroupPartition { topic: batch.topic.clone(), partition: batch.partition },
                        Handed::Record(record) => {
                            GroupPartition { topic: record.topic.clone(), partition: record.partition }
                        }
                    };
                    self.handed = Some(partition);
                    return Ok(handed);
                }
            }
        }
    }

    /// What the last poll handed out has been dealt with.
    fn note_processed(&mut self) {
        if let Some(partition) = self.handed.take()
            && let Some(held) = self.held.get_mut(&partition)
            && held.stage == Stage::Reading
            && let Some(position) = self.consumer.position(&partition.topic, partition.partition)
        {
            held.processed = position;
        }
    }

    // ---- Positions -----------------------------------------------------------------------------------

    fn held(&self, topic: &str, partition: u32) -> Option<&Held> {
        self.held.get(&GroupPartition { topic: topic.into(), partition })
    }

    /// The offset after the last record that was handed out; `None` if the partition is not read.
    pub fn position(&self, topic: &str, partition: u32) -> Option<u64> {
        self.held(topic, partition).filter(|held| held.stage == Stage::Reading)?;
        self.consumer.position(topic, partition)
    }

    /// Reads on from elsewhere. With auto-commit the new position is committed in its turn, also when it is lower.
    ///
    /// # Errors
    /// [`GroupError::PartitionsLost`] if the partition is not read; [`GroupError::Consume`] if the place cannot be found.
    pub async fn seek(&mut self, topic: &str, partition: u32, to: StartFrom) -> Result<(), GroupError> {
        let name = GroupPartition { topic: topic.into(), partition };
        if self.position(topic, partition).is_none() {
            return Err(GroupError::PartitionsLost);
        }
        self.consumer.seek(topic, partition, to).await?;
        self.handed.take_if(|handed| *handed == name);
        if let (Some(held), Some(position)) =
            (self.held.get_mut(&name), self.consumer.position(topic, partition))
        {
            held.processed = position;
        }
        Ok(())
    }

    /// Hands out nothing of a partition until [`Self::resume`]; it stays the member's. What was fetched ahead is let go.
    pub fn pause(&mut self, topic: &str, partition: u32) {
        if let Some(held) = self.held.get_mut(&GroupPartition { topic: topic.into(), partition }) {
            held.is_paused = true;
            self.consumer.pause(topic, partition);
        }
    }

    /// Takes up a paused partition.
    pub fn resume(&mut self, topic: &str, partition: u32) {
        if let Some(held) = self.held.get_mut(&GroupPartition { topic: topic.into(), partition }) {
            held.is_paused = false;
            self.consumer.resume(topic, partition);
        }
    }

    // ---- The end -------------------------------------------------------------------------------------

    /// Commits what was handed out (with auto-commit), tells the listener, and leaves: the partitions move on at once. A
    /// static member leaves for a while; its partitions wait for it until its session timeout.
    ///
    /// # Errors
    /// Those of the last commit. The member has left in any case.
    pub async fn close(self) -> Result<(), GroupError> {
        self.end(false).await
    }

    /// The same, for good: also a static member's partitions move on at once.
    ///
    /// # Errors
    /// As [`Self::close`].
    pub async fn leave(self) -> Result<(), GroupError> {
        self.end(true).await
    }

    async fn end(mut self, for_good: bool) -> Result<(), GroupError> {
        self.note_processed();
        if self.membership.lock().generation != self.generation {
            self.bury();
        }
        if let Some(release) = self.release.take() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, release.done).await;
            self.let_go(&release.partitions);
        }
        let all: Vec<_> = self.held.keys().cloned().collect();
        self.give_up(all);
        let committed = match self.release.take() {
            None => Ok(()),
            Some(release) => match tokio::time::timeout(CLOSE_TIMEOUT, release.done).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => Err(GroupError::PartitionsLost),
            },
        };
        self.membership.leave(for_good);
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.heartbeats).await;
        committed
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

async fn next_item(consumer: &mut Consumer, as_records: bool) -> Result<Handed, GroupError> {
    let item = match as_records {
        true => consumer.next().await.map(|record| record.map(Handed::Record)),
        false => consumer.next_batch().await.map(|batch| batch.map(Handed::Batch)),
    };
    match item {
        Some(item) => Ok(item?),
        // Nothing to read: until there are partitions.
        None => std::future::pending().await,
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}
