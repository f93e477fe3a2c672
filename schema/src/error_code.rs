//! The closed set of errors that can cross the wire, each with what a client should do about it.
//!
//! An error that is not in this table is a bug, not a code: the broker maps its inner errors here in
//! one exhaustive place, and a client that meets an unknown number reports a protocol violation.

/// Generates the enum, its numbers and its table from one list, so that they cannot disagree.
macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $class:ident, $advice:literal;)*) => {
        /// What went wrong, as it stands on the wire (`u16`; 0 is "no error" and not in this enum).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[$doc])* $name = $number,)*
        }

        impl ErrorCode {
            /// Every code, in the order of their numbers.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code of a wire number; `None` for 0 (no error) and for numbers not in the table.
            pub fn from_wire(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(ErrorCode::$name),)*
                    _ => None,
                }
            }

            /// The field's usual name for it, in capitals.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }

            /// What a client should do.
            pub fn class(self) -> Class {
                match self { $(ErrorCode::$name => Class::$class,)* }
            }

            /// What a person should do.
            pub fn advice(self) -> &'static str {
                match self { $(ErrorCode::$name => $advice,)* }
            }
        }
    };
}

/// What a client does with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Send the same request again later; it had no effect.
    Retry,
    /// Learn the metadata anew, then send again; it had no effect.
    RefreshAndRetry,
    /// The outcome is unknown: it may or may not have taken effect.
    Unknown,
    /// Sending the same again will fail the same way.
    Fatal,
}

error_codes! {
    /// The frame or its FlatBuffer is malformed. The connection is closed after the answer.
    InvalidFrame = 1, "INVALID_FRAME", Fatal, "the client sent bytes that are not this protocol; check the port and the client's version";
    /// This broker does not know the request.
    Unsupported = 2, "UNSUPPORTED", Fatal, "upgrade the broker, or do without this request";
    /// No protocol version in common.
    UnsupportedVersion = 3, "UNSUPPORTED_VERSION", Fatal, "upgrade the older of client and broker";
    /// No topic of this name or id.
    UnknownTopic = 4, "UNKNOWN_TOPIC", RefreshAndRetry, "create it: ringlog topic create NAME";
    /// The topic has fewer partitions.
    UnknownPartition = 5, "UNKNOWN_PARTITION", RefreshAndRetry, "see its partitions: ringlog topic describe NAME";
    /// The name is taken.
    TopicExists = 6, "TOPIC_EXISTS", Fatal, "choose another name, or use the topic that is there";
    /// 1 to 249 characters of `a-z A-Z 0-9 . _ -`, and not `.` or `..`.
    InvalidTopicName = 7, "INVALID_TOPIC_NAME", Fatal, "use 1 to 249 of a-z A-Z 0-9 . _ -";
    /// Zero, too many, or fewer than there are.
    InvalidPartitions = 8, "INVALID_PARTITIONS", Fatal, "partitions can only be added, up to the broker's limit";
    /// More replicas than brokers, or zero.
    InvalidReplicationFactor = 9, "INVALID_REPLICATION_FACTOR", Fatal, "use at most as many replicas as there are brokers";
    /// An unknown setting or a value out of its range.
    InvalidConfig = 10, "INVALID_CONFIG", Fatal, "see the settings and their ranges: ringlog topic describe NAME";
    /// A well-formed request that asks for something impossible.
    InvalidRequest = 11, "INVALID_REQUEST", Fatal, "the message says which field";
    /// The CRC-32C of a batch does not match its bytes.
    CorruptBatch = 12, "CORRUPT_BATCH", Retry, "the batch was damaged between producer and broker; if it repeats, suspect memory or network card";
    /// The header of a batch contradicts itself.
    InvalidBatch = 13, "INVALID_BATCH", Fatal, "the producer made a batch that is not record batch v2; upgrade it";
    /// A batch above `max.message.bytes`.
    BatchTooLarge = 14, "BATCH_TOO_LARGE", Fatal, "send smaller batches, or raise the topic's max.message.bytes";
    /// A frame above the limit of this connection.
    FrameTooLarge = 15, "FRAME_TOO_LARGE", Fatal, "send smaller requests; Hello tells the limit";
    /// The offset is below the log's start or above its end.
    OffsetOutOfRange = 16, "OFFSET_OUT_OF_RANGE", Fatal, "start from earliest or latest";
    /// Another broker, or another shard of this one, leads the partition.
    NotLeader = 17, "NOT_LEADER", RefreshAndRetry, "nothing: clients find the leader by themselves";
    /// The disk is full; reads go on.
    StorageFull = 18, "STORAGE_FULL", Retry, "free space on the data directory, or lower retention; produce resumes by itself";
    /// The stored bytes of this range fail their checksum and are not served.
    CorruptRange = 19, "CORRUPT_RANGE", Fatal, "the stored range is damaged; consume from the offset that the message names";
    /// A queue or budget is full.
    Overloaded = 20, "OVERLOADED", Retry, "slow down; the answer says for how long";
    /// Not done before the deadline.
    TimedOut = 21, "TIMED_OUT", Unknown, "read back before sending again";
    /// The broker is stopping.
    ShuttingDown = 22, "SHUTTING_DOWN", RefreshAndRetry, "wait until it is back";
    /// A request before `Hello`.
    HelloRequired = 23, "HELLO_REQUIRED", Fatal, "the first request of a connection is Hello";
    /// No room for another connection.
    TooManyConnections = 24, "TOO_MANY_CONNECTIONS", Retry, "close idle connections";
    /// The epoch is not the partition's.
    FencedLeaderEpoch = 25, "FENCED_LEADER_EPOCH", RefreshAndRetry, "nothing: clients learn the new epoch by themselves";
    /// The metadata store could not commit the change.
    MetadataUnavailable = 26, "METADATA_UNAVAILABLE", Retry, "a majority of the metadata's voters must run, see: ringlog cluster status; else see the broker's log";
    /// The read did not work although the bytes may be sound.
    ReadFailed = 27, "READ_FAILED", Retry, "see the broker's log: the device refused a read";
    /// A batch of a producer's epoch is missing before this one. This one is not in the log, and nothing more of that
    /// epoch will be appended to the partition.
    OutOfOrderSequence = 28, "OUT_OF_ORDER_SEQUENCE", Fatal, "nothing: clients go on with the next epoch by themselves";
    /// The partition knows nothing of this producer (any more), and the batch is not its first.
    UnknownProducerId = 29, "UNKNOWN_PRODUCER_ID", Fatal, "nothing: clients go on with the next epoch by themselves; if it repeats, raise producer.id.expiration.ms";
    /// The partition has seen a later epoch of this producer.
    InvalidProducerEpoch = 30, "INVALID_PRODUCER_EPOCH", Fatal, "another producer has taken over this id; make a new producer";
    /// The batch was appended, longer ago than its offset is remembered.
    DuplicateSequence = 31, "DUPLICATE_SEQUENCE", Fatal, "the record is in the log already; do not send it again";
    /// A record without a key, for a topic that keeps the latest record of each key. Nothing of its batch is in the log.
    InvalidRecord = 32, "INVALID_RECORD", Fatal, "the topic keeps the latest record of each key (cleanup.policy has compact): give every record a key";
    /// The partition has no leader just now.
    LeaderNotAvailable = 33, "LEADER_NOT_AVAILABLE", RefreshAndRetry, "wait: a leader is being chosen; if it lasts, see ringlog cluster status";
    /// Fewer replicas are in sync than `min.insync.replicas` asks for. Nothing was appended.
    NotEnoughReplicas = 34, "NOT_ENOUGH_REPLICAS", Retry, "bring the brokers back, or lower min.insync.replicas; see ringlog cluster status";
    /// No broker of this number is registered.
    UnknownBroker = 35, "UNKNOWN_BROKER", Fatal, "see the brokers: ringlog cluster status";
    /// The broker's registration is not the current one, or it is fenced.
    StaleBrokerEpoch = 36, "STALE_BROKER_EPOCH", Fatal, "nothing: brokers register anew by themselves";
    /// The brokers that were named cannot have the partition.
    InvalidReplicaAssignment = 37, "INVALID_REPLICA_ASSIGNMENT", Fatal, "name each broker once, and only brokers that are registered and not draining";
    /// The partition is not being moved.
    NoReassignment = 38, "NO_REASSIGNMENT", Fatal, "see what moves: ringlog cluster describe";
    /// The broker is alive, or has replicas.
    BrokerInUse = 39, "BROKER_IN_USE", Fatal, "move its replicas away (ringlog cluster drain ID) and stop it first";
    /// Another broker coordinates the group.
    NotCoordinator = 40, "NOT_COORDINATOR", RefreshAndRetry, "nothing: clients find the coordinator by themselves";
    /// The group's coordinator reads its state.
    CoordinatorLoading = 41, "COORDINATOR_LOADING", Retry, "wait: the broker has just started";
    /// The member is not, or no longer, in the group.
    UnknownMemberId = 42, "UNKNOWN_MEMBER_ID", Fatal, "join again with epoch 0; if it repeats, heartbeats come later than the session timeout";
    /// The member's epoch is not the one that the coordinator knows: it is out, or a copy of it is in.
    FencedMemberEpoch = 43, "FENCED_MEMBER_EPOCH", Fatal, "drop all partitions and join again with epoch 0";
    /// The epoch is not the member's, or the partition is not its own in that epoch.
    StaleMemberEpoch = 44, "STALE_MEMBER_EPOCH", Fatal, "use the epoch of the latest heartbeat; partitions that moved on are committed by their new owner";
    /// A member with this instance id is there and has not left.
    UnreleasedInstanceId = 45, "UNRELEASED_INSTANCE_ID", Retry, "stop the other process with this instance id, or wait until its session ends";
    /// Another member has taken over the instance id.
    FencedInstanceId = 46, "FENCED_INSTANCE_ID", Fatal, "two processes use one instance id; give each its own";
    /// The group has members.
    GroupNotEmpty = 47, "GROUP_NOT_EMPTY", Fatal, "stop its consumers first";
    /// No group of this name.
    GroupNotFound = 48, "GROUP_NOT_FOUND", Fatal, "see the groups: ringlog group list";
    /// No room for another group, member or offset.
    GroupFull = 49, "GROUP_FULL", Fatal, "the message says which limit; use fewer groups, members or partitions";
    /// No assignor of this name.
    UnsupportedAssignor = 50, "UNSUPPORTED_ASSIGNOR", Fatal, "use uniform or range";
    /// The subscription's regular expression cannot be used.
    InvalidPattern = 51, "INVALID_PATTERN", Fatal, "the message says what is wrong with the expression";
    /// The text that goes with an offset is too long.
    OffsetMetadataTooLarge = 52, "OFFSET_METADATA_TOO_LARGE", Fatal, "use at most 4096 bytes";
    /// The topic belongs to the broker.
    InternalTopic = 53, "INTERNAL_TOPIC", Fatal, "the topic is the broker's own: it can be read, not written, changed or deleted";
    /// No replica can lead: none is both alive and known to have everything.
    NoEligibleLeader = 54, "NO_ELIGIBLE_LEADER", Fatal, "bring a broker of its in-sync set back; to lose records instead: ringlog cluster elect --unclean";
    /// The leader is the one that was asked for.
    ElectionNotNeeded = 55, "ELECTION_NOT_NEEDED", Fatal, "nothing: the partition is led as it should be";
    /// The data directory, or the other end, belongs to another cluster.
    WrongCluster = 56, "WRONG_CLUSTER", Fatal, "check --join and the data directory: they belong to different clusters";
}

impl ErrorCode {
    /// The number on the wire.
    pub fn to_wire(self) -> u16 {
        self as u16
    }

    /// Whether sending again can help.
    pub fn is_retriable(self) -> bool {
        matches!(self.class(), Class::Retry | Class::RefreshAndRetry)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire_and_says_what_to_do() {
        let mut last = 0;
        for &code in ErrorCode::ALL {
            assert!(code.to_wire() > last, "{code}: numbers rise and are never reused");
            last = code.to_wire();
            assert_eq!(ErrorCode::from_wire(code.to_wire()), Some(code));
            assert!(!code.advice().is_empty());
        }
        assert_eq!(ErrorCode::from_wire(0), None);
        assert_eq!(ErrorCode::from_wire(last + 1), None);
    }
}
