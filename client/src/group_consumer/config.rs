//! How a consumer takes part in a group, and what it tells its application about partitions.

use crate::consumer::ConsumerConfig;
use std::sync::Arc;
use std::time::Duration;

/// How the coordinator spreads partitions over the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assignor {
    /// As evenly as can be, moving as little as can be.
    #[default]
    Uniform,
    /// Consecutive partitions of each topic, so that equal numbers of several topics go to one member.
    Range,
}

impl Assignor {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Uniform => "uniform",
            Assignor::Range => "range",
        }
    }
}

/// How a [`crate::GroupConsumer`] takes part in its group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group's id, 1 to 249 bytes.
    pub group: String,
    /// Topics subscribed to, whether they exist or not.
    pub topics: Vec<String>,
    /// Regular expression, anchored at both ends; topics whose names match are subscribed to besides `topics`, also
    /// those made later.
    pub pattern: Option<String>,
    /// Makes the member static: a process that comes back under the same id within the session timeout finds its
    /// partitions again, without a rebalance.
    pub instance_id: Option<String>,
    /// What the member asks for; the group uses what most of its members ask for.
    pub assignor: Option<Assignor>,
    /// Silence after which the member is out of the group, 1 s to 30 min.
    pub session_timeout: Duration,
    /// How long the member may take to give up partitions before it is put out.
    pub rebalance_timeout: Duration,
    /// The member leaves when it was not polled for so long, and joins again with the next poll.
    pub max_poll_interval: Duration,
    /// How often positions are committed by themselves; `None` = only when the application says so. Committed is what
    /// was handed out by polls *before* the present one: to poll again says that it has been dealt with.
    pub auto_commit_interval: Option<Duration>,
    /// How records are fetched; [`ConsumerConfig::auto_offset_reset`] is where partitions without a committed offset
    /// begin.
    pub consumer: ConsumerConfig,
}

impl GroupConfig {
    /// The defaults: no subscription yet, a session of 45 s, 5 min for rebalances and between polls, positions
    /// committed every 5 s.
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            topics: Vec::new(),
            pattern: None,
            instance_id: None,
            assignor: None,
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(300),
            max_poll_interval: Duration::from_secs(300),
            auto_commit_interval: Some(Duration::from_secs(5)),
            consumer: ConsumerConfig::default(),
        }
    }

    /// Subscribes to one more topic.
    pub fn with_topic(mut self, topic: impl Into<String>) -> Self {
        self.topics.push(topic.into());
        self
    }

    /// Subscribes to the topics whose names match.
    pub fn with_pattern(mut self, pattern: impl Into<String>) -> Self {
        self.pattern = Some(pattern.into());
        self
    }

    /// Leaves committing to the application.
    pub fn with_manual_commit(mut self) -> Self {
        self.auto_commit_interval = None;
        self
    }
}

/// A partition by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
}

impl std::fmt::Display for GroupPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A partition that the member has been given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedPartition {
    /// Which.
    pub partition: GroupPartition,
    /// What the group has committed; `None` = nothing.
    pub committed: Option<u64>,
    /// Where reading begins. A listener that keeps offsets elsewhere changes it.
    pub offset: u64,
}

/// A partition that the member is giving up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedPartition {
    /// Which.
    pub partition: GroupPartition,
    /// The offset after the last record that was handed out; nothing more of it will be.
    pub position: u64,
    /// What is committed before the partition is handed back; `None` = nothing. With auto-commit it is `position`
    /// already; a listener that has dealt with more or less changes it.
    pub commit: Option<u64>,
}

/// What an application wants to know of its partitions. Called from within polls only, never beside them.
pub trait RebalanceListener: Send {
    /// These partitions are the member's. No record of them has been handed out yet.
    fn assigned(&mut self, partitions: &mut [AssignedPartition]) {
        let _ = partitions;
    }

    /// These partitions are to be given up. Nobody else has them before this has returned and what it leaves to
    /// commit is committed.
    fn revoked(&mut self, partitions: &mut [RevokedPartition]) {
        let _ = partitions;
    }

    /// These partitions are gone: the member was put out of the group. Others may have them, and nothing can be
    /// committed for them any more.
    fn lost(&mut self, partitions: &[GroupPartition]) {
        let _ = partitions;
    }
}
