//! Where a shard's checkpoints are, and which of them can be used.
//!
//! Shared by the shard, which reads its own, and by the data directory, which gives them to other shards before
//! any runs. Nothing is kept here. Invariant: what another directory or a newer build has written is neither used
//! nor replaced. Absent on purpose: files.

use schema::checkpoint::{Checkpoint, CheckpointError};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The names of a shard's two checkpoints.
pub const CHECKPOINTS: [&str; 2] = ["checkpoint.a", "checkpoint.b"];

/// The data directory's path for what belongs to one shard.
pub fn shard_directory(root: &Path, shard: impl Display) -> PathBuf {
    root.join(format!("shard-{shard}"))
}

/// The name of the checkpoint of a generation: they alternate.
pub fn checkpoint_name(generation: u64) -> &'static str {
    CHECKPOINTS[usize::from(!generation.is_multiple_of(2))]
}

/// Why a checkpoint is not used; to be said behind its path.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointRefusal {
    /// It is of another data directory.
    #[error(
        "belongs to another data directory: move it away, or restore the storage.uuid that it was written with"
    )]
    Foreign,
    /// Its format is newer.
    #[error("has format version {0}: a newer ringlog wrote it; start that one, or restore a backup")]
    Newer(u16),
    /// It is damaged: the only one that does not forbid a start.
    #[error("cannot be used ({0}): recovery reads more")]
    Damaged(CheckpointError),
}

/// The checkpoint in `bytes`, if it is of the data directory `uuid` and sound.
///
/// # Errors
/// [`CheckpointRefusal`].
pub fn usable_checkpoint(bytes: &[u8], uuid: u128) -> Result<Checkpoint, CheckpointRefusal> {
    match Checkpoint::decode(bytes) {
        Ok(checkpoint) if checkpoint.storage_uuid == uuid => Ok(checkpoint),
        Ok(_) => Err(CheckpointRefusal::Foreign),
        Err(CheckpointError::Version(found)) => Err(CheckpointRefusal::Newer(found)),
        Err(error) => Err(CheckpointRefusal::Damaged(error)),
    }
}
