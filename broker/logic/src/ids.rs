//! Newtypes for identities and positions, so that two numbers of one width cannot be swapped.
//!
//! All are plain values, owned by nobody. Offsets count records of one partition from 0; they are never
//! translated between client and log.

/// Generates a `Copy` newtype over an unsigned integer.
macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the plain number.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The plain number, as it stands on wire and disk.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

newtype!(
    /// The position of a record in its partition.
    Offset(u64)
);
newtype!(
    /// How often the leadership of a partition has been given out.
    LeaderEpoch(u32)
);
newtype!(
    /// The number of a partition within its topic.
    PartitionIndex(u32)
);
newtype!(
    /// One core's share of a broker.
    ShardId(u16)
);
newtype!(
    /// A broker of the cluster.
    BrokerId(u32)
);
newtype!(
    /// One registration of a broker: the version of the image that it made. A broker that restarts gets a
    /// higher one, so what its earlier life said is told apart.
    BrokerEpoch(u64)
);
newtype!(
    /// How often the metadata of a partition has changed: leader, replicas, or in-sync set. A change that was
    /// asked for from an older one is refused.
    PartitionEpoch(u32)
);
newtype!(
    /// Which time a broker was given a replica of a partition. A broker that loses the replica and gets it back
    /// starts a higher one with nothing, whatever its disk still has of the one before.
    ReplicaGeneration(u32)
);

newtype!(
    /// Which time a leader opened a partition at one peer, within its leader epoch. What was said under an earlier
    /// one means nothing any more.
    OpenSequence(u32)
);

/// The identity of a topic; its name is only what people call it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(u128);

impl TopicId {
    /// Wraps the plain number.
    pub const fn new(value: u128) -> Self {
        Self(value)
    }

    /// The plain number, as it stands on wire and disk.
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl std::fmt::Display for TopicId {
    /// 32 hexadecimal digits, as in the names of directories.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for TopicId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// A partition, in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// Which topic.
    pub topic: TopicId,
    /// Which of its partitions.
    pub partition: PartitionIndex,
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl Offset {
    /// The offset `count` records later.
    pub const fn advance(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}
