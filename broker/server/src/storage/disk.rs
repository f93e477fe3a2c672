//! What storage asks of a disk, small enough that a test can play one.
//!
//! The broker's disk is [`super::ring::RingDisk`]; the crash-image tests put a recording one in its
//! place. All of storage is generic over this trait, so what the tests crash is the code that runs.
//!
//! Durability, exactly: a completed plain write is durable after a later [`Disk::sync`] of its file; or
//! of any other file of the same device, if the range had been written and synced before and the file
//! system permits it (`one_flush_covers_all_files`). A completed durable write is durable. Names are
//! durable after [`Disk::sync_directory`] of the directory that holds them.

use super::buffer::Buffer;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// One write of a batch. Position and length are whole blocks.
#[derive(Clone)]
pub struct Write<F> {
    /// The file.
    pub file: F,
    /// The memory, kept alive until the write is over.
    pub buffer: Rc<Buffer>,
    /// Which part of it.
    pub range: Range<usize>,
    /// Where in the file.
    pub position: u64,
    /// Whether completion means durable (`RWF_DSYNC`).
    pub durable: bool,
}

/// Which operation failed, for the message that ends the process. Inside an [`io::Error`], except where that
/// says that there is no room.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {error}", path.display(), position.map(|at| format!(" at byte {at}")).unwrap_or_default())]
pub struct Failed {
    /// The file, by the name that it has now.
    pub path: PathBuf,
    /// Where in it; `None` for a sync.
    pub position: Option<u64>,
    /// Which write of the batch.
    pub index: usize,
    /// What the system said.
    pub error: io::Error,
}

impl Failed {
    /// What is known of an error.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }
}

/// A disk.
pub trait Disk: Clone + 'static {
    /// An open file. Cloning gives another handle of the same; the last one closes it.
    type File: Clone + 'static;

    /// Makes a new file, for reading and writing.
    ///
    /// # Errors
    /// Fails if it exists.
    fn create(&self, path: &Path) -> impl Future<Output = io::Result<Self::File>>;

    /// Opens a file that exists, for reading and writing.
    fn open(&self, path: &Path) -> impl Future<Output = io::Result<Self::File>>;

    /// The length of an open file.
    fn length(&self, file: &Self::File) -> io::Result<u64>;

    /// Performs all writes, in any order, none larger than `WRITE_BYTES_MAX`; returns when every one has
    /// completed. The writes are submitted before this returns its future.
    ///
    /// # Errors
    /// The first error. The rest of a short write is written again; no room for it is an error.
    /// Any other is a [`Failed`], where the disk knows more.
    fn write(
        &self,
        writes: Vec<Write<Self::File>>,
    ) -> impl Future<Output = io::Result<()>> + 'static + use<Self>;

    /// Reads into `buffer` from `position`; the number of bytes read, fewer only at the file's end.
    fn read(
        &self,
        file: &Self::File,
        position: u64,
        buffer: Buffer,
    ) -> impl Future<Output = io::Result<(Buffer, usize)>> + 'static + use<Self>;

    /// Makes the file's completed writes and its length durable (`fdatasync`).
    fn sync(&self, file: &Self::File) -> impl Future<Output = io::Result<()>> + 'static + use<Self>;

    /// Cuts or extends the file; not durable by itself.
    fn truncate(&self, file: &Self::File, bytes: u64) -> impl Future<Output = io::Result<()>>;

    /// Renames a file, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a file's name.
    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Makes a directory and those above it, as far as they are missing; the directories it made.
    fn make_directory(&self, path: &Path) -> impl Future<Output = io::Result<Vec<PathBuf>>>;

    /// Removes an empty directory.
    fn remove_directory(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// The names in a directory with the lengths of the files; a missing directory is empty.
    fn list(&self, path: &Path) -> impl Future<Output = io::Result<Vec<(String, u64)>>>;

    /// Free space for new data, bytes.
    fn free_bytes(&self, path: &Path) -> impl Future<Output = io::Result<u64>>;
}
