//! What recovery has cut off, and cannot tell whether it was ever acknowledged, or what a cut took besides what it should:
//! remembered on the disk until it is repaired.
//!
//! The cut is durable before the broker can tell the metadata of it. Were that all, a process that dies in between would
//! find a sound log at its next start, shorter than what it has acknowledged, and would be elected with it. So an empty file
//! in the partition's directory says in its name from which offset on something may be missing. It is durable before the
//! cut, and goes when the replica is clean.
//!
//! Absent on purpose: logs without other replicas; nobody could repair them, and nobody else is elected.

use super::Partition;
use crate::storage::disk::Disk;
use std::io;

const PREFIX: &str = "doubted-";

/// From which offset on a file of this name doubts its log; `None`: it is something else.
pub fn parse(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    let from = digits.parse().ok()?;
    (self::name(from) == name).then_some(from)
}

fn name(from: u64) -> String {
    format!("{PREFIX}{from:020}")
}

impl<D: Disk> Partition<D> {
    /// Notes that something may be missing from an offset on, durably.
    pub(super) async fn note_doubt(&self, from: u64) -> io::Result<()> {
        match self.storage.disk.create(&self.directory.join(name(from))).await {
            // A life that did not get further has said so.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => drop(made?),
        }
        self.storage.disk.sync_directory(&self.directory).await
    }

    /// Nothing is missing any more.
    ///
    /// # Errors
    /// What is noted cannot be removed; the next start has the replica repaired once more.
    pub async fn forget_doubts(&self) -> io::Result<()> {
        for (name, _) in self.storage.disk.list(&self.directory).await? {
            if parse(&name).is_some() && !self.is_closed() {
                self.storage.disk.remove(&self.directory.join(name)).await?;
            }
        }
        self.storage.disk.sync_directory(&self.directory).await
    }
}
