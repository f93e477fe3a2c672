//! Where a shard's checkpoints are, which of them can be used, and what those of all shards say together.
//!
//! Shared by the shard, which reads its own, and by the data directory, which gives them to other shards before
//! any runs. Nothing is kept here. Invariant: what another directory or a newer build has written is neither used
//! nor replaced. Absent on purpose: files.

use logic::ids::{PartitionIndex, TopicId, TopicPartition};
use schema::checkpoint::{Checkpoint, CheckpointError, PartitionCheckpoint};
use std::collections::BTreeMap;
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

/// Whether the newest of a shard's checkpoints attests a partition that is not at home there.
pub fn has_strays(of_shard: &[Checkpoint], is_at_home: impl Fn(TopicPartition) -> bool) -> bool {
    let newest = of_shard.iter().max_by_key(|checkpoint| checkpoint.generation);
    newest.iter().flat_map(|newest| &newest.partitions).any(|partition| {
        let (topic, index) = (TopicId::new(partition.topic_id), PartitionIndex::new(partition.partition));
        !is_at_home(TopicPartition { topic, partition: index })
    })
}

/// The newest that any of these says of each partition, as of a start that was not clean, with a generation above all of
/// theirs; `None` if there are none.
pub fn merge<'a>(all: impl Iterator<Item = &'a Checkpoint> + Clone) -> Option<Checkpoint> {
    // Even, as for the first of the two names.
    let generation = (all.clone().map(|checkpoint| checkpoint.generation).max()? + 1).next_multiple_of(2);
    let mut newest: BTreeMap<(u128, u32), &PartitionCheckpoint> = BTreeMap::new();
    for partition in all.flat_map(|checkpoint| &checkpoint.partitions) {
        // A log's incarnation rises with every start, and its end while it runs.
        let age = |of: &PartitionCheckpoint| (of.generation, of.incarnation, of.durable_end, of.log_start);
        newest
            .entry((partition.topic_id, partition.partition))
            .and_modify(|known| {
                if age(known) < age(partition) {
                    *known = partition;
                }
            })
            .or_insert(partition);
    }
    let partitions = newest.into_values().cloned().collect();
    Some(Checkpoint { generation, clean: false, partitions, ..Checkpoint::default() })
}
