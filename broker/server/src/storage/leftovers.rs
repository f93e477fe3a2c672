//! Directories of partitions that nobody serves: left by a deletion that a crash cut off, or unknown.
//!
//! Looked at once, by the shard that would serve the partition, so that each is judged by one shard; and not before this
//! life of the broker is registered, because until then its image may lack topics that it has. What belongs to a topic that a command has deleted is removed in the background, in steps;
//! what is unknown is left as it is and reported. What is deleted while the broker runs is removed the same
//! way, by whoever closes it: [`Storage::remove_log_directory`], [`Storage::remove_topic_directory`].
//!
//! Invariants: nothing is removed unless the image of the start says that its topic is deleted: what is
//! deleted later is removed by whoever closes it. A name is judged by an image that is newer than the
//! listing that it is from, so that a partition that is being made is not taken for a stranger.

use super::disk::Disk;
use super::{Storage, topic_directory};
use crate::stall;
use crate::store::Store;
use logic::ids::{PartitionIndex, ReplicaGeneration, ShardId, TopicId, TopicPartition};
use logic::metadata::Image;
use logic::metadata::reconcile::{Here, Judgement, judge};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// What removing and reporting came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Directories of partitions and topics that were removed.
    pub removed: u64,
    /// Names that nobody knows.
    pub unknown: u64,
}

/// Does [`judge_leftovers`] once `registered` ends, while the shard goes on.
pub fn judge_in_background<D: Disk>(
    store: &Rc<Store<D>>,
    registered: impl Future<Output = ()> + 'static,
    at_start: Arc<Image>,
    newest: impl Fn() -> Arc<Image> + 'static,
    here: Here,
) {
    let store = store.clone();
    stall::spawn("a look for leftover files", async move {
        registered.await;
        if let Err(error) = judge_leftovers(&store, &at_start, newest, here).await {
            store.storage.notice(format!("directories of deleted topics cannot be looked for: {error}"));
        }
    })
    .detach();
}

/// Judges every directory below `topics/` whose partition would be `here`'s. `at_start` is the image that the
/// shard has followed, `newest` gives the newest one.
///
/// # Errors
/// A directory cannot be listed; what comes after it was not judged.
pub async fn judge_leftovers<D: Disk>(
    store: &Store<D>,
    at_start: &Image,
    newest: impl Fn() -> Arc<Image>,
    here: Here,
) -> io::Result<Leftovers> {
    let storage = &*store.storage;
    let mut found = Leftovers::default();
    let topics = storage.root().join("topics");
    for (name, _) in storage.disk.list(&topics).await? {
        let Some(topic) = parse_topic(&name) else {
            // No partition says who is to report it: the first shard does.
            if here.shard == ShardId::new(0) {
                report(storage, &topics.join(&name), "is not the name of a topic's directory", &mut found);
            }
            continue;
        };
        let first = TopicPartition { topic, partition: PartitionIndex::new(0) };
        let owns_topic = at_start.home_here(here, first) == here.shard;
        let directory = topic_directory(storage.root(), topic);
        let Ok(names) = storage.disk.list(&directory).await else {
            if owns_topic {
                report(storage, &directory, "cannot be listed", &mut found);
            }
            continue;
        };
        let image = newest();
        let empty = names.is_empty();
        for (name, _) in names {
            let path = directory.join(&name);
            let Some((partition, generation)) = parse_partition(&name) else {
                if owns_topic {
                    report(storage, &path, "is not the name of a partition's directory", &mut found);
                }
                continue;
            };
            let id = TopicPartition { topic, partition };
            if image.home_here(here, id) != here.shard {
                continue;
            }
            let replica = ReplicaGeneration::new(generation);
            match judge(id, replica, &image, here) {
                // What was taken away since, the shard has had open and deletes by itself.
                Judgement::Delete if judge(id, replica, at_start, here) == Judgement::Delete => {
                    remove(storage, &path, &mut found).await;
                }
                Judgement::Delete | Judgement::ServedBy(_) => {}
                Judgement::Serve
                    if store.partition(&id).is_none_or(|open| open.generation() == generation) => {}
                Judgement::Serve | Judgement::Unknown => {
                    report(storage, &path, "belongs to no topic that this broker has", &mut found);
                }
            }
        }
        // Also the one that was left empty; others may still be at work in it.
        if at_start.is_deleted(topic) && (owns_topic || !empty) {
            found.removed += u64::from(storage.remove_topic_directory(topic).await);
        }
    }
    Ok(found)
}

/// The number in a topic directory's name.
fn parse_topic(name: &str) -> Option<TopicId> {
    let topic: TopicId = name.parse().ok()?;
    (topic.to_string() == name).then_some(topic)
}

/// Partition and generation in the name of a partition's directory.
fn parse_partition(name: &str) -> Option<(PartitionIndex, u32)> {
    let (partition, generation) = name.split_once('.')?;
    let (partition, generation): (u32, u32) = (partition.parse().ok()?, generation.parse().ok()?);
    (format!("{partition}.{generation}") == name).then_some((PartitionIndex::new(partition), generation))
}

fn report<D: Disk>(storage: &Storage<D>, path: &Path, what: &str, found: &mut Leftovers) {
    found.unknown += 1;
    storage.notice(format!(
        "UNKNOWN: {} {what}; it is left as it is. Restore the metadata that knows it, or move it away once \
         nobody needs it",
        path.display()
    ));
}

/// Removes a partition's directory; what stays is said, and tried again at the next start.
async fn remove<D: Disk>(storage: &Storage<D>, directory: &Path, found: &mut Leftovers) {
    match storage.remove_log_directory(directory).await {
        Ok(()) => {
            found.removed += 1;
            tracing::info!("{} of a deleted topic is removed", directory.display());
        }
        Err(error) => storage.notice(format!(
            "{} belongs to a deleted topic and cannot be removed: {error}; remove it, or restart the broker to \
             have it tried again",
            directory.display()
        )),
    }
}

impl<D: Disk> Storage<D> {
    /// Removes the directory of a log that nobody reads or writes any more, in steps.
    ///
    /// # Errors
    /// What the disk refused; the rest stays.
    pub async fn remove_log_directory(&self, directory: &Path) -> io::Result<()> {
        for (name, _) in self.disk.list(directory).await? {
            self.reclaim(&directory.join(name), 0, u64::MAX).await?;
        }
        self.disk.remove_directory(directory).await
    }

    /// Removes a topic's directory if it is empty; whether it was.
    pub async fn remove_topic_directory(&self, topic: TopicId) -> bool {
        let directory = topic_directory(self.root(), topic);
        let removed = self.disk.remove_directory(&directory).await.is_ok();
        if removed && let Some(parent) = directory.parent() {
            // A name that a crash brings back is found again.
            let _ = self.disk.sync_directory(parent).await;
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let rows = [
            ("0.0", Some((0, 0))),
            ("12.3", Some((12, 3))),
            ("012.3", None),
            ("1", None),
            ("1.2.3", None),
            ("-1.0", None),
            ("4294967296.0", None),
        ];
        for (name, expected) in rows {
            let expected =
                expected.map(|(partition, generation)| (PartitionIndex::new(partition), generation));
            assert_eq!(parse_partition(name), expected, "{name}");
        }
        let topic = TopicId::new(0xcafe);
        assert_eq!(parse_topic(&topic.to_string()), Some(topic));
        for name in ["cafe", "", "lost+found", "0000000000000000000000000000CAFE"] {
            assert_eq!(parse_topic(name), None, "{name}");
        }
    }
}
