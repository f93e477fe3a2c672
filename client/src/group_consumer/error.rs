//! Why a group consumer cannot do what was asked.
//!
//! Owner: whoever polled, committed or closed. Invariant: [`GroupError::is_final`] says which of them end the member; all
//! others leave it in its group. Absent on purpose: trouble that passes by itself, which is not told.

use super::GroupPartition;
use super::commits::COMMITS_MAX;
use crate::client::ClientError;
use crate::consumer::ConsumeError;
use crate::reply::BrokerError;
use schema::error_code::ErrorCode;

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
