//! The segment files that a shard read last, kept open for whoever reads on.
//!
//! Owned by [`super::Storage`], one per shard, at most [`READ_FILES_PER_SHARD_MAX`] handles: the one that
//! was used longest ago goes first. Opening a file costs a visit to another thread, more than reading
//! from it. A handle counts as a reader of its file, so whoever reclaims a file takes it out first.

use logic::ids::TopicPartition;
use logic::limits::READ_FILES_PER_SHARD_MAX;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// A segment: partition, nonce of the file.
type Key = (TopicPartition, u64);

/// Open files, the one used last at the back.
pub struct ReadFiles<T> {
    files: RefCell<VecDeque<(Key, Rc<T>)>>,
}

impl<T> Default for ReadFiles<T> {
    fn default() -> Self {
        Self { files: RefCell::default() }
    }
}

impl<T> ReadFiles<T> {
    /// The open file of a segment.
    pub fn get(&self, partition: TopicPartition, nonce: u64) -> Option<Rc<T>> {
        let mut files = self.files.borrow_mut();
        let at = files.iter().rposition(|(key, _)| *key == (partition, nonce))?;
        if at + 1 < files.len() {
            let used = files.remove(at)?;
            files.push_back(used);
        }
        files.back().map(|(_, file)| file.clone())
    }

    /// Keeps a file that has been opened.
    pub fn keep(&self, partition: TopicPartition, nonce: u64, file: Rc<T>) {
        self.forget(partition, Some(nonce));
        let oldest = {
            let mut files = self.files.borrow_mut();
            files.push_back(((partition, nonce), file));
            if files.len() > READ_FILES_PER_SHARD_MAX { files.pop_front() } else { None }
        };
        drop(oldest);
    }

    /// Closes the file of one segment, or all of a partition.
    pub fn forget(&self, partition: TopicPartition, nonce: Option<u64>) {
        self.files
            .borrow_mut()
            .retain(|((of, own), _)| *of != partition || nonce.is_some_and(|nonce| nonce != *own));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logic::ids::{PartitionIndex, TopicId};

    fn partition(number: u32) -> TopicPartition {
        TopicPartition { topic: TopicId::new(1), partition: PartitionIndex::new(number) }
    }

    #[test]
    fn the_file_used_longest_ago_goes_first() {
        let files = ReadFiles::default();
        for nonce in 0..READ_FILES_PER_SHARD_MAX as u64 {
            files.keep(partition(0), nonce, Rc::new(nonce));
        }
        assert_eq!(files.get(partition(0), 0).as_deref(), Some(&0));
        files.keep(partition(1), 7, Rc::new(7));
        assert!(files.get(partition(0), 1).is_none(), "used longest ago");
        assert!(files.get(partition(0), 0).is_some() && files.get(partition(1), 7).is_some());
    }

    #[test]
    fn what_is_forgotten_has_no_readers_left() {
        let files = ReadFiles::default();
        let held = Rc::new(());
        for (of, nonce) in [(0, 1), (0, 2), (1, 1)] {
            files.keep(partition(of), nonce, held.clone());
        }
        for (of, nonce, left) in [(0, Some(9), 4), (0, Some(1), 3), (0, None, 2), (1, None, 1)] {
            files.forget(partition(of), nonce);
            assert_eq!(Rc::strong_count(&held), left, "{of} {nonce:?}");
        }
    }
}
