//! Every byte that leaves the process: wire frames, record batches, segments on disk, error codes.
//!
//! Runtime-free on purpose: no IO, no async, no clock, no knowledge of brokers or clients. Both ends
//! and the simulator use the same code. Bytes from disk or network never panic here: every decoder
//! returns a small error that names what was wrong.

pub mod checkpoint;
pub mod compression;
pub mod crc;
pub mod error_code;
pub mod frame;
pub mod group_record;
pub mod record_batch;
pub mod replication;
pub mod segment;

/// FlatBuffers code made by `flatc` from `definitions/`, committed, never edited.
#[allow(
    warnings,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn,
    missing_docs
)]
#[rustfmt::skip]
mod generated {
    pub mod consensus_generated;
    pub mod metadata_generated;
    pub mod replication_generated;
    pub mod wire_generated;
}

pub use generated::consensus_generated::consensus;
pub use generated::metadata_generated::metadata;
pub use generated::wire_generated::wire;

/// The protocol version that this build speaks. `Hello` agrees on the lower of both ends'.
pub const PROTOCOL_VERSION: u32 = 1;

/// The port that a broker listens on and a client tries unless told otherwise.
pub const DEFAULT_PORT: u16 = 9644;

/// The internal topic in which coordinators keep the state of their groups.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// The partition of [`OFFSETS_TOPIC`] whose leader coordinates `group`; the topic has `partitions` of them.
///
/// Part of the protocol and of what is on disk: it never changes.
///
/// # Panics
/// Without partitions: a topic has at least one.
pub fn coordinator_partition(group: &str, partitions: u32) -> u32 {
    assert!(partitions > 0, "{OFFSETS_TOPIC} has at least one partition");
    crc32c::crc32c(group.as_bytes()) % partitions
}

impl wire::TopicId {
    /// The identity as one number, the form that logs and file names use.
    pub fn as_u128(&self) -> u128 {
        (u128::from(self.high()) << 64) | u128::from(self.low())
    }

    /// The wire form of `id`.
    pub fn from_u128(id: u128) -> Self {
        Self::new((id >> 64) as u64, id as u64)
    }
}

impl wire::ClusterId {
    /// The identity as one number.
    pub fn as_u128(&self) -> u128 {
        (u128::from(self.high()) << 64) | u128::from(self.low())
    }

    /// The wire form of `id`.
    pub fn from_u128(id: u128) -> Self {
        Self::new((id >> 64) as u64, id as u64)
    }
}

impl metadata::Id {
    /// The identity as one number.
    pub fn as_u128(&self) -> u128 {
        (u128::from(self.high()) << 64) | u128::from(self.low())
    }

    /// The stored form of `id`.
    pub fn from_u128(id: u128) -> Self {
        Self::new((id >> 64) as u64, id as u64)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn coordinators_never_move() {
        let rows = [("", 16, 0), ("billing", 16, 8), ("billing", 1, 0), ("größe", 16, 7), ("a", 50, 26)];
        for (group, partitions, expected) in rows {
            assert_eq!(
                super::coordinator_partition(group, partitions),
                expected,
                "{group:?} of {partitions}"
            );
        }
    }
}
