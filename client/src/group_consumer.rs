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
//! (`membership`), another commits (`commits`), a third finds where new partitions begin (`positions`).
//! Lifecycle: made by [`crate::Client::group_consumer`], joins at once; [`GroupConsumer::close`] commits and leaves; one
//! that is only dropped is missed after its session timeout.
//! Invariants: everything that changes partitions happens within a poll; a partition is handed back after its last
//! record was handed out, the listener was told, and its position was committed; the others are read meanwhile; nothing is
//! handed out after the member's session has ended by its own clock, nor committed after it was fenced.
//! Absent on purpose: several members in one object; make several.

mod commits;
mod config;
mod membership;
mod positions;

pub use config::{
    AssignedPartition, Assignor, GroupConfig, GroupPartition, RebalanceListener, RevokedPartition,
};

use crate::client::{ClientError, Cluster};
use crate::consumer::{ConsumeError, ConsumedRecord, Consumer, FetchedBatch, StartFrom};
use crate::coordinator::Coordinator;
use crate::reply::BrokerError;
use crate::request::TopicId;
use commits::{COMMITS_MAX, Job};
use membership::{Key, Membership};
use positions::Position;
use schema::error_code::ErrorCode;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

/// How long closing may take to commit and to leave, each.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a group consumer cannot do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The configuration subscribes to nothing.
    #[error("group '{group}': a member subscribes to topics or a pattern; it has neither")]
    NoSubscription {
        /// The group.
        group: String,
    },
    /// The coordinator does not take this member. It is over.
    #[error("group '{group}': {error}")]
    Refused {
        /// The group.
        group: String,
        /// What it said.
        error: BrokerError,
    },
    /// Another process runs under the same instance id. It is over.
    #[error("group '{group}': another process has taken over instance id '{instance}'; give each its own")]
    FencedInstance {
        /// The group.
        group: String,
        /// The instance id.
        instance: String,
    },
    /// The member was put out of the group, or does not hold the partition (any more): nothing was committed. Polling
    /// goes on with what it is given next.
    #[error("the partitions are not this member's any more; poll on, and do not commit what was read before")]
    PartitionsLost,
    /// One offset was not committed.
    #[error("the offset of partition {partition} was not committed: {code}: {}", code.advice())]
    CommitRefused {
        /// The partition.
        partition: u32,
        /// Why not.
        code: ErrorCode,
    },
    /// Nothing is committed for the partition, and `auto_offset_reset` is not to guess. Seek to go on.
    #[error("nothing is committed for {partition}, and auto_offset_reset is Error; seek to go on")]
    NoOffset {
        /// Which.
        partition: GroupPartition,
    },
    /// Too many commits wait for the coordinator.
    #[error("{COMMITS_MAX} commits wait for the coordinator already; commit less often")]
    TooManyCommits,
    /// Reading failed.
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    /// The cluster could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl GroupError {
    /// The broker's error code, if a broker refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            GroupError::Refused { error, .. } => Some(error.code),
            GroupError::FencedInstance { .. } => Some(ErrorCode::FencedInstanceId),
            GroupError::CommitRefused { code, .. } => Some(*code),
            GroupError::Consume(error) => error.code(),
            GroupError::Client(error) => error.code(),
            GroupError::NoSubscription { .. }
            | GroupError::PartitionsLost
            | GroupError::NoOffset { .. }
            | GroupError::TooManyCommits => None,
        }
    }

    /// Whether polling again can go on.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            GroupError::Refused { .. }
                | GroupError::FencedInstance { .. }
                | GroupError::NoSubscription { .. }
        )
    }
}

/// What becomes of a commit.
type Outcome = oneshot::Receiver<Result<(), GroupError>>;

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

/// Partitions on their way out.
struct Release {
    partitions: Vec<(GroupPartition, Key)>,
    done: Outcome,
}

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
                done = settled(release) => self.released(done),
                found = found(finding) => self.found(found)?,
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

    /// Takes up what heartbeats have brought.
    fn look(&mut self) -> Result<(), GroupError> {
        let membership = self.membership.clone();
        let mut member = membership.lock();
        let failed = member.failed.clone();
        let is_lost = member.generation != self.generation;
        self.generation = member.generation;
        if is_lost {
            // What the new life has been given is looked at below, after the old one is buried.
            drop(member);
            self.bury();
            member = membership.lock();
            if member.generation != self.generation {
                drop(member);
                return self.look();
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let mut is_changed = false;
        let mut leaving = Vec::new();
        if self.release.is_none() {
            let gone = |held: &Held, partition: u32| !member.assignment.contains_key(&(held.id, partition));
            let gone = self.held.iter().filter(|(name, held)| gone(held, name.partition));
            leaving = gone.map(|(name, _)| name.clone()).collect();
        }
        let new: Vec<(Key, Arc<str>)> = (member.assignment.iter())
            .filter(|(key, name)| !member.owned.contains(*key) && !name.is_empty())
            .map(|(key, name)| (*key, name.clone()))
            .collect();
        for ((id, partition), topic) in new {
            // A topic of the same name that is going must be gone first.
            if let std::collections::btree_map::Entry::Vacant(entry) =
                self.held.entry(GroupPartition { topic, partition })
            {
                entry.insert(Held {
                    id,
                    stage: Stage::Waiting,
                    processed: 0,
                    committed: None,
                    is_paused: false,
                });
                member.owned.insert((id, partition));
                is_changed = true;
            }
        }
        drop(member);
        if !leaving.is_empty() {
            is_changed = true;
            self.give_up(leaving);
        }
        if is_changed {
            self.find();
        }
        Ok(())
    }

    /// Everything held is lost.
    fn bury(&mut self) {
        (self.finding, self.release, self.handed, self.auto_commit) = (None, None, None, None);
        let lost: Vec<GroupPartition> = std::mem::take(&mut self.held).into_keys().collect();
        for partition in &lost {
            self.consumer.remove(&partition.topic, partition.partition);
        }
        if let (Some(listener), false) = (&mut self.listener, lost.is_empty()) {
            listener.lost(&lost);
        }
    }

    /// Stops partitions, tells the application, commits, and then lets go.
    fn give_up(&mut self, leaving: Vec<GroupPartition>) {
        let auto_commits = self.membership.config.auto_commit_interval.is_some();
        let mut told = Vec::new();
        let mut partitions = Vec::new();
        for partition in leaving {
            let Some(held) = self.held.get_mut(&partition) else { continue };
            partitions.push((partition.clone(), (held.id, partition.partition)));
            if held.stage == Stage::Reading {
                let position = self.consumer.position(&partition.topic, partition.partition);
                let commit = auto_commits.then_some(held.processed);
                told.push(RevokedPartition {
                    position: position.unwrap_or(held.processed),
                    partition,
                    commit,
                });
            }
            held.stage = Stage::Releasing;
        }
        for (partition, _) in &partitions {
            self.consumer.remove(&partition.topic, partition.partition);
        }
        if let (Some(listener), false) = (&mut self.listener, told.is_empty()) {
            listener.revoked(&mut told);
        }
        let mut offsets = BTreeMap::new();
        for RevokedPartition { partition, commit, .. } in told {
            let held = &self.held[&partition];
            if let Some(offset) = commit.filter(|offset| held.committed != Some(*offset) || !auto_commits) {
                offsets.insert((held.id, partition.partition), offset);
            }
        }
        let deadline = Instant::now() + self.membership.config.rebalance_timeout;
        // Behind the commits that are under way, or they would overtake it.
        match self.submit(offsets, deadline) {
            Ok(done) => self.release = Some(Release { partitions, done }),
            // Fenced meanwhile: the next look finds out. Or the queue is full, which only a coordinator that is away
            // can do; then whoever comes next reads some records again.
            Err(_) => self.let_go(&partitions),
        }
    }

    fn released(&mut self, outcome: Result<(), GroupError>) {
        let Some(release) = self.release.take() else { return };
        match outcome {
            // Fenced: everything is lost, as the next look will find.
            Ok(()) | Err(GroupError::PartitionsLost) => {}
            Err(error) => self.errors.push(error),
        }
        self.let_go(&release.partitions);
    }

    fn let_go(&mut self, partitions: &[(GroupPartition, Key)]) {
        let mut member = self.membership.lock();
        if member.generation == self.generation {
            for (_, key) in partitions {
                member.owned.remove(key);
            }
        }
        drop(member);
        for (partition, _) in partitions {
            self.held.remove(partition);
        }
        // At once: somebody waits for them. And there may be more to take up.
        self.membership.wake();
        self.membership.news.notify_one();
    }

    /// Begins to find where the partitions start that have no position yet.
    fn find(&mut self) {
        let waiting = self.held.iter().filter(|(_, held)| held.stage == Stage::Waiting);
        let wanted: BTreeMap<Key, Arc<str>> =
            waiting.map(|(name, held)| ((held.id, name.partition), name.topic.clone())).collect();
        self.finding = None;
        if !wanted.is_empty() {
            let mut task = JoinSet::new();
            task.spawn(positions::find(self.membership.clone(), self.generation, wanted));
            self.finding = Some(task);
        }
    }

    fn found(&mut self, found: Result<Vec<Position>, GroupError>) -> Result<(), GroupError> {
        self.finding = None;
        let found = match found {
            Ok(found) if self.membership.lock().generation == self.generation => found,
            // The next look buries them.
            Ok(_) => return Ok(()),
            Err(error) => {
                self.find();
                return Err(error);
            }
        };
        let mut told = Vec::new();
        let mut begun = Vec::new();
        for position in found {
            let partition = GroupPartition { topic: position.topic.name.clone(), partition: position.key.1 };
            let waits = |held: &&mut Held| held.stage == Stage::Waiting && held.id == position.key.0;
            let Some(held) = self.held.get_mut(&partition).filter(waits) else { continue };
            held.stage = Stage::Reading;
            held.committed = position.committed;
            if position.offset.is_none() {
                self.errors.push(GroupError::NoOffset { partition: partition.clone() });
            }
            begun.push((position.topic.clone(), position.offset.is_none()));
            told.push(AssignedPartition {
                partition,
                committed: position.committed,
                offset: position.offset.unwrap_or(0),
            });
        }
        if let (Some(listener), false) = (&mut self.listener, told.is_empty()) {
            listener.assigned(&mut told);
        }
        for (assigned, (topic, is_unknown)) in told.into_iter().zip(begun) {
            let AssignedPartition { partition, offset, .. } = assigned;
            self.consumer.add(&topic, partition.partition, offset);
            if let Some(held) = self.held.get_mut(&partition) {
                held.processed = offset;
                if is_unknown && offset == 0 {
                    // Nothing to commit until it is sought.
                    held.committed = Some(0);
                    self.consumer.halt(&partition.topic, partition.partition);
                }
                if held.is_paused {
                    self.consumer.pause(&partition.topic, partition.partition);
                }
            }
        }
        // Those whose topic was not to be found.
        self.find();
        Ok(())
    }

    // ---- Commits -------------------------------------------------------------------------------------

    fn submit(&self, offsets: BTreeMap<Key, u64>, deadline: Instant) -> Result<Outcome, GroupError> {
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

    fn deadline(&self) -> Instant {
        Instant::now() + self.membership.coordinator.cluster.config.request_timeout
    }

    /// Commits what has been dealt with when it is time, without waiting for it.
    fn auto_commit(&mut self) {
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

async fn settled(release: &mut Option<Release>) -> Result<(), GroupError> {
    match release {
        Some(release) => (&mut release.done).await.unwrap_or(Err(GroupError::PartitionsLost)),
        None => std::future::pending().await,
    }
}

async fn found(
    finding: &mut Option<JoinSet<Result<Vec<Position>, GroupError>>>,
) -> Result<Vec<Position>, GroupError> {
    if let Some(task) = finding
        && let Some(found) = task.join_next().await
    {
        // A panic in there is one here.
        return found.expect("finding positions does not panic");
    }
    std::future::pending().await
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
