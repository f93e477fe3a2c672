//! What a coordinator is asked and answers, as plain values, and why it refuses.
//!
//! Made by the driver from verified frames; the driver turns the answers into frames again. Absent on purpose:
//! who asked, and how the answer gets there.

use super::Topics;
use crate::ids::TopicPartition;
use crate::limits::{
    GROUPS_PER_COORDINATOR_MAX, MEMBERS_PER_GROUP_MAX, SESSION_TIMEOUT_MS_MAX, SESSION_TIMEOUT_MS_MIN,
};
use schema::error_code::ErrorCode;
use schema::group_record::OffsetValue;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The epoch with which a member joins.
pub const JOIN_EPOCH: i32 = 0;
/// The epoch with which a member leaves, and of whoever commits without being a member.
pub const LEAVE_EPOCH: i32 = -1;

/// What happens to a coordinator.
#[derive(Clone, Debug)]
pub enum Event {
    /// A member's sign of life.
    Heartbeat(Heartbeat),
    /// Offsets to keep.
    Commit(Commit),
    /// Offsets asked for.
    FetchOffsets(FetchOffsets),
    /// A group asked for.
    Describe(String),
    /// Every group asked for.
    List,
    /// A group is to go.
    Delete(String),
    /// Topics came, grew or went.
    TopicsChanged(Arc<dyn Topics>),
    /// The time of `next_deadline_ms` has come.
    Tick,
}

/// A member's sign of life; `None` and 0 = as before (in a join: none, the default).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// The group.
    pub group: String,
    /// The member.
    pub member: String,
    /// Its epoch, or 0 join, -1 leave, -2 leave for a while.
    pub epoch: i32,
    /// Of a static member.
    pub instance: Option<String>,
    /// Where it is.
    pub rack: Option<String>,
    /// What it calls itself.
    pub client_id: String,
    /// How long it may take to give up partitions.
    pub rebalance_timeout_ms: u32,
    /// Silence after which it is out.
    pub session_timeout_ms: u32,
    /// Names subscribed to.
    pub topics: Option<Vec<String>>,
    /// Expression subscribed to; empty = none.
    pub pattern: Option<String>,
    /// Preferred assignor; empty = none.
    pub assignor: Option<String>,
    /// What it holds now.
    pub owned: Option<BTreeSet<TopicPartition>>,
}

/// Offsets to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The group.
    pub group: String,
    /// The member; empty for whoever is none.
    pub member: String,
    /// Its epoch; -1 for whoever is no member.
    pub epoch: i32,
    /// Partition, offset, leader epoch (-1 = unknown), words.
    pub entries: Vec<(TopicPartition, u64, i32, String)>,
}

/// Offsets asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchOffsets {
    /// The group.
    pub group: String,
    /// The member; empty for whoever is none.
    pub member: String,
    /// Its epoch.
    pub epoch: i32,
    /// Which; `None` = all.
    pub partitions: Option<Vec<TopicPartition>>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To a heartbeat.
    Heartbeat(HeartbeatReply),
    /// To a commit: per entry what went wrong.
    Committed(Vec<(TopicPartition, Option<ErrorCode>)>),
    /// To a question for offsets, in its order.
    Offsets(Vec<(TopicPartition, Option<OffsetValue>)>),
    /// To a question for a group.
    Described(Box<Description>),
    /// To a question for all groups, by name.
    Listed(Vec<Listed>),
    /// The group is gone.
    Deleted,
}

/// What a member may do from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// The epoch from now on; -1 or -2 after leaving.
    pub epoch: i32,
    /// Until the next heartbeat.
    pub interval_ms: u32,
    /// In force.
    pub session_timeout_ms: u32,
    /// All that it may hold, if that is news.
    pub assignment: Option<BTreeSet<TopicPartition>>,
}

/// What a group does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It has no members.
    Empty,
    /// Partitions are moving.
    Reconciling,
    /// Every member has what it is meant to have.
    Stable,
}

/// A group as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The group.
    pub group: String,
    /// What it does.
    pub state: GroupState,
    /// Its epoch.
    pub epoch: i32,
    /// The assignor in use.
    pub assignor: &'static str,
    /// Since when it has no members, milliseconds since 1970; -1 = it has some.
    pub empty_since_ms: i64,
    /// By id.
    pub members: Vec<MemberDescription>,
    /// By partition.
    pub offsets: Vec<(TopicPartition, OffsetValue)>,
}

/// A member as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub id: String,
    /// What it said.
    pub stated: schema::group_record::MemberValue,
    /// Its epoch.
    pub epoch: i32,
    /// What it may hold.
    pub assigned: Vec<TopicPartition>,
    /// What it was asked to give up.
    pub revoking: Vec<TopicPartition>,
    /// What it is going to have.
    pub target: Vec<TopicPartition>,
    /// Since its last heartbeat.
    pub silent_ms: u64,
}

/// A line of the list of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The group.
    pub group: String,
    /// What it does.
    pub state: GroupState,
    /// How many.
    pub members: u32,
    /// How many.
    pub offsets: u32,
    /// The assignor in use.
    pub assignor: &'static str,
}

/// How far a group has come, for lag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The group.
    pub group: String,
    /// What it does.
    pub state: GroupState,
    /// How many.
    pub members: u32,
    /// How many partitions it has committed for or has a member on; an upper bound where they are not listed.
    pub partitions: u32,
    /// Those partitions with the committed offset, if there is one. `None` = too many to be listed.
    pub positions: Option<Vec<(TopicPartition, Option<u64>)>>,
}

/// Why a request has no effect. Messages are for the person whose client sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// A field is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// No such group.
    #[error("there is no group {0:?}; see ringlog group list")]
    UnknownGroup(String),
    /// Not, or no longer, a member.
    #[error("{member:?} is not a member of {group:?}: join again with epoch 0")]
    UnknownMember {
        /// The group.
        group: String,
        /// Who asked.
        member: String,
    },
    /// A heartbeat with an epoch that cannot be.
    #[error("the member is at epoch {epoch}, the request says {found}: drop all partitions and join again")]
    Fenced {
        /// The member's.
        epoch: i32,
        /// The request's.
        found: i32,
    },
    /// A commit or a question with an epoch that is not the member's.
    #[error("the member is at epoch {epoch}, the request says {found}")]
    Stale {
        /// The member's.
        epoch: i32,
        /// The request's.
        found: i32,
    },
    /// A static member is in the way.
    #[error("instance {0:?} is a member that has not left: its session ends at the latest after its timeout")]
    UnreleasedInstance(String),
    /// Somebody else has this static member's place.
    #[error("another member has taken over instance {0:?}")]
    FencedInstance(String),
    /// The group has members.
    #[error("group {0:?} has members: stop its consumers first")]
    NotEmpty(String),
    /// No room for a group.
    #[error("this coordinator has {GROUPS_PER_COORDINATOR_MAX} groups, which is the limit")]
    TooManyGroups,
    /// No room for a member.
    #[error("group {0:?} has {MEMBERS_PER_GROUP_MAX} members, which is the limit")]
    TooManyMembers(String),
    /// No such assignor.
    #[error("there is no assignor {0:?}; there are uniform and range")]
    UnsupportedAssignor(String),
    /// The expression cannot be used.
    #[error("the pattern cannot be used: {0}")]
    InvalidPattern(String),
    /// A session timeout out of its range.
    #[error(
        "a session timeout of {0} ms; permitted are {SESSION_TIMEOUT_MS_MIN} to {SESSION_TIMEOUT_MS_MAX} ms"
    )]
    SessionTimeout(u32),
}

impl GroupError {
    /// The code on the wire.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) | Self::SessionTimeout(_) => ErrorCode::InvalidRequest,
            Self::UnknownGroup(_) => ErrorCode::GroupNotFound,
            Self::UnknownMember { .. } => ErrorCode::UnknownMemberId,
            Self::Fenced { .. } => ErrorCode::FencedMemberEpoch,
            Self::Stale { .. } => ErrorCode::StaleMemberEpoch,
            Self::UnreleasedInstance(_) => ErrorCode::UnreleasedInstanceId,
            Self::FencedInstance(_) => ErrorCode::FencedInstanceId,
            Self::NotEmpty(_) => ErrorCode::GroupNotEmpty,
            Self::TooManyGroups | Self::TooManyMembers(_) => ErrorCode::GroupFull,
            Self::UnsupportedAssignor(_) => ErrorCode::UnsupportedAssignor,
            Self::InvalidPattern(_) => ErrorCode::InvalidPattern,
        }
    }
}
