//! Runs the recovery machine over the files of one partition.
//!
//! Used while a partition is opened. An unreadable range is fed as zeros: for the verdict it is the same
//! as damage.

use super::disk::Disk;
use super::{Storage, partition_directory};
use crate::partition::doubt;
use logic::log::recovery::{ReadRequest, Recovered, Recovery, SegmentFile};
use logic::log::{LogIdentity, SegmentName};
use schema::checkpoint::PartitionCheckpoint;
use schema::segment::{SegmentError, SegmentHeader};
use std::collections::BTreeMap;
use std::io;

/// Recovers the log `identity`; makes its directory if there is none. Besides, from which offset on an earlier start has
/// noted a doubt.
///
/// # Errors
/// The directory cannot be made, listed or its files opened.
pub async fn recover<D: Disk>(
    storage: &Storage<D>,
    identity: LogIdentity,
    checkpoint: Option<PartitionCheckpoint>,
    clean: bool,
) -> io::Result<(Recovered, Option<u64>)> {
    let directory = partition_directory(storage.root(), &identity);
    storage.disk.make_directory(&directory).await?;
    let names = storage.disk.list(&directory).await?;
    let doubted = names.iter().filter_map(|(name, _)| doubt::parse(name)).min();
    let mut files: Vec<SegmentFile> = names
        .into_iter()
        .filter_map(|(name, bytes)| Some(SegmentFile { name: SegmentName::parse(&name)?, bytes }))
        .collect();
    files.sort_by_key(|file| file.name);
    if files.is_empty() {
        // It has just been made, or before a crash that it may not survive: before its first segment its name is durable,
        // and those of the directories above, whoever made them.
        storage.sync_directories_above(&directory).await?;
    }
    let mut recovery = Recovery::new(identity, checkpoint, clean, &files);
    let mut open: BTreeMap<SegmentName, D::File> = BTreeMap::new();
    while let Some(request) = recovery.need() {
        let file = match open.get(&request.name) {
            Some(file) => file.clone(),
            None => {
                let file = storage.disk.open(&directory.join(request.name.to_string())).await?;
                open.insert(request.name, file.clone());
                file
            }
        };
        let buffer = storage.pool.take(request.bytes);
        match storage.disk.read(&file, request.position, buffer).await {
            Ok((buffer, read)) => {
                let bytes = &buffer[..read.min(request.bytes)];
                refuse_newer(storage, &identity, request, bytes)?;
                recovery.feed(bytes);
            }
            Err(error) => {
                storage.notice(format!(
                    "{}: {} bytes at {} of segment {} cannot be read: {error}",
                    storage.label(identity.partition),
                    request.bytes,
                    request.position,
                    request.name
                ));
                recovery.feed(&vec![0; request.bytes]);
            }
        }
    }
    let recovered = recovery.finish();
    for (name, positions) in &recovered.zeros {
        storage.zero(&open[name], positions.start, positions.end).await?;
    }
    // What was read may still be in the device's volatile cache: it counts as durable only once synced.
    if recovered.bytes_read > 0 {
        for file in open.values() {
            storage.disk.sync(file).await?;
        }
    }
    Ok((recovered, doubted))
}

/// A segment that a newer build has written is sound, only not for us: it must not be taken for damage.
fn refuse_newer<D: Disk>(
    storage: &Storage<D>,
    identity: &LogIdentity,
    request: ReadRequest,
    bytes: &[u8],
) -> io::Result<()> {
    match SegmentHeader::decode(bytes) {
        Err(SegmentError::Version { found }) if request.position == 0 => {
            let path = partition_directory(storage.root(), identity).join(request.name.to_string());
            Err(io::Error::other(format!(
                "{} has format version {found}: a newer ringlog wrote it; start that one, or restore a backup",
                path.display()
            )))
        }
        _ => Ok(()),
    }
}
