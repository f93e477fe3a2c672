//! The broker's disk: one io_uring of its own per shard, next to the runtime's rings.
//!
//! A round of many writes is one system call, and its completion wakes the shard through the runtime's
//! poll of this ring's descriptor (docs/adr/0001-runtime.md). Owned by one shard; lives as long as its
//! executor. Buffers and files of a submitted operation are held here until its completion arrives, so a
//! dropped future never frees memory that the kernel still writes to.
//!
//! Opening, renaming, syncing directories and the like go to the runtime's blocking thread: they are
//! rare and may take long.

use super::buffer::Buffer;
use super::disk::{Disk, Failed, Write};
use super::is_no_space;
use super::room::Room;
use glommio::io::PollableFd;
use io_uring::{IoUring, opcode, squeue, types};
use logic::limits::BLOCK_BYTES;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Poll, Waker};

const RING_ENTRIES: u32 = 1024;

/// An open file of this disk.
#[derive(Debug)]
pub struct RingFile {
    file: std::fs::File,
}

/// What the kernel may still touch, and who waits for it.
struct Operation {
    batch: Rc<Batch>,
    file: Rc<RingFile>,
    memory: Held,
}

enum Held {
    Sync,
    Write(Rest),
    Read(Buffer),
}

/// What a write still has to bring to the device.
struct Rest {
    buffer: Rc<Buffer>,
    range: Range<usize>,
    position: u64,
    durable: bool,
    /// Which write of its batch.
    index: usize,
}

impl Rest {
    fn entry(&self, file: &RingFile) -> squeue::Entry {
        let bytes = &self.buffer[self.range.clone()];
        let flags = if self.durable { libc::RWF_DSYNC } else { 0 };
        opcode::Write::new(types::Fd(file.file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .offset(self.position)
            .rw_flags(flags)
            .build()
    }

    /// After the kernel took `written` bytes. A short write is a disk that is full in the middle, or a kernel
    /// that was disturbed: the rest is written again, in whole blocks, and that tells which.
    ///
    /// # Errors
    /// No block was taken: there is no room.
    fn after(mut self, written: usize) -> io::Result<Option<Self>> {
        if written >= self.range.len() {
            return Ok(None);
        }
        let blocks = written - written % BLOCK_BYTES;
        if blocks == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.range.start += blocks;
        self.position += blocks as u64;
        Ok(Some(self))
    }
}

/// Operations that are awaited together.
struct Batch {
    remaining: Cell<usize>,
    error: RefCell<Option<io::Error>>,
    waker: RefCell<Option<Waker>>,
    read: RefCell<Option<(Buffer, usize)>>,
}

impl Batch {
    fn new(operations: usize) -> Rc<Self> {
        Rc::new(Self {
            remaining: Cell::new(operations),
            error: RefCell::new(None),
            waker: RefCell::new(None),
            read: RefCell::new(None),
        })
    }

    async fn done(self: Rc<Self>) -> io::Result<Rc<Self>> {
        poll_fn(|context| {
            if self.remaining.get() == 0 {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        match self.error.borrow_mut().take() {
            Some(error) => Err(error),
            None => Ok(self.clone()),
        }
    }
}

struct Ring {
    ring: RefCell<IoUring>,
    operations: RefCell<slab::Slab<Operation>>,
}

/// The handle; clones share the ring.
#[derive(Clone)]
pub struct RingDisk {
    ring: Rc<Ring>,
    direct: bool,
}

struct RingDescriptor(RawFd);

impl AsRawFd for RingDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl RingDisk {
    /// Sets up the ring of the current shard and the task that reaps it. `direct` = the data directory
    /// supports O_DIRECT; `spins` = the shard polls before it sleeps.
    ///
    /// # Errors
    /// The kernel refuses an io_uring: not permitted, or not enough locked memory.
    pub fn new(direct: bool, spins: bool) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(RING_ENTRIES * 4);
        if !spins {
            // Completions wait for the next system call, of which a shard that sleeps has one anyway. One
            // that spins has none: it must be interrupted.
            builder.setup_coop_taskrun();
        }
        let ring = builder.build(RING_ENTRIES)?;
        let descriptor = RingDescriptor(ring.as_raw_fd());
        let ring = Rc::new(Ring { ring: RefCell::new(ring), operations: RefCell::new(slab::Slab::new()) });
        let pollable = PollableFd::new(descriptor).map_err(io::Error::from)?;
        let reaped = ring.clone();
        crate::stall::spawn("completions of the disk", async move {
            loop {
                if let Err(error) = pollable.readable().await {
                    crate::fatal(&format!("cannot wait for the storage ring: {error}"));
                }
                reaped.reap();
            }
        })
        .detach();
        Ok(Self { ring, direct })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        glommio::executor().spawn_blocking(work).await
    }

    fn open_options(&self) -> std::fs::OpenOptions {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true);
        if self.direct {
            options.custom_flags(libc::O_DIRECT);
        }
        options
    }
}

impl Drop for Ring {
    /// The kernel may still write into memory that operations hold: they are waited for.
    fn drop(&mut self) {
        while !self.operations.borrow().is_empty() {
            if self.ring.borrow().submit_and_wait(1).is_err() {
                // Leaked rather than freed under the kernel's hands.
                std::mem::forget(self.operations.take());
                return;
            }
            self.reap();
        }
    }
}

impl Ring {
    fn push(&self, entry: squeue::Entry, operation: Operation) {
        let key = self.operations.borrow_mut().insert(operation);
        let entry = entry.user_data(key as u64);
        loop {
            // SAFETY: the memory and the file that the entry names are held in `operations` until its
            // completion has been reaped.
            let pushed = unsafe { self.ring.borrow_mut().submission().push(&entry) };
            if pushed.is_ok() {
                return;
            }
            // The queue is full: it goes to the kernel. That takes nothing while completions wait for room.
            if !self.submit() {
                self.reap();
            }
        }
    }

    /// Whether the kernel took what is queued; if not, completions must be reaped first.
    fn submit(&self) -> bool {
        loop {
            match self.ring.borrow().submit() {
                Ok(_) => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return false,
                Err(error) => crate::fatal(&format!("cannot submit to the storage ring: {error}")),
            }
        }
    }

    fn reap(&self) {
        loop {
            let Some(entry) = self.ring.borrow_mut().completion().next() else { break };
            let operation = self.operations.borrow_mut().remove(entry.user_data() as usize);
            self.finish(operation, entry.result());
        }
        // What the kernel did not take for want of room, and the rests of short writes.
        if !self.ring.borrow_mut().submission().is_empty() {
            self.submit();
        }
    }

    fn finish(&self, Operation { batch, file, memory }: Operation, result: i32) {
        let outcome = match usize::try_from(result) {
            Err(_) => Err(name_failure(io::Error::from_raw_os_error(-result), &file, &memory)),
            Ok(read) => match memory {
                Held::Sync => Ok(()),
                Held::Read(buffer) => {
                    *batch.read.borrow_mut() = Some((buffer, read));
                    Ok(())
                }
                Held::Write(rest) => match rest.after(read) {
                    Ok(Some(rest)) => {
                        let entry = rest.entry(&file);
                        return self.push(entry, Operation { batch, file, memory: Held::Write(rest) });
                    }
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                },
            },
        };
        if let Err(error) = outcome {
            batch.error.borrow_mut().get_or_insert(error);
        }
        batch.remaining.set(batch.remaining.get() - 1);
        let waker = if batch.remaining.get() == 0 { batch.waker.borrow_mut().take() } else { None };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Says which file it was, unless there is no room or a read failed: those do not end the process.
fn name_failure(error: io::Error, file: &RingFile, memory: &Held) -> io::Error {
    let (position, index) = match memory {
        _ if is_no_space(&error) => return error,
        Held::Read(_) => return error,
        Held::Sync => (None, 0),
        Held::Write(rest) => (Some(rest.position), rest.index),
    };
    // The name that it was opened by may have changed since.
    let link = format!("/proc/self/fd/{}", file.file.as_raw_fd());
    let path = std::fs::read_link(&link).unwrap_or_else(|_| link.into());
    io::Error::new(error.kind(), Failed { path, position, index, error })
}

impl Disk for RingDisk {
    type File = Rc<RingFile>;

    async fn create(&self, path: &Path) -> io::Result<Self::File> {
        let (mut options, path) = (self.open_options(), path.to_owned());
        let file = self.blocking(move || options.create_new(true).open(path)).await?;
        Ok(Rc::new(RingFile { file }))
    }

    async fn open(&self, path: &Path) -> io::Result<Self::File> {
        let (options, path) = (self.open_options(), path.to_owned());
        let file = self.blocking(move || options.open(path)).await?;
        Ok(Rc::new(RingFile { file }))
    }

    fn length(&self, file: &Self::File) -> io::Result<u64> {
        Ok(file.file.metadata()?.len())
    }

    fn write(
        &self,
        writes: Vec<Write<Self::File>>,
    ) -> impl Future<Output = io::Result<()>> + 'static + use<> {
        let batch = Batch::new(writes.len());
        for (index, Write { file, buffer, range, position, durable }) in writes.into_iter().enumerate() {
            let rest = Rest { buffer, range, position, durable, index };
            let entry = rest.entry(&file);
            self.ring.push(entry, Operation { batch: batch.clone(), file, memory: Held::Write(rest) });
        }
        self.ring.submit();
        async move { batch.done().await.map(drop) }
    }

    fn read(
        &self,
        file: &Self::File,
        position: u64,
        mut buffer: Buffer,
    ) -> impl Future<Output = io::Result<(Buffer, usize)>> + 'static + use<> {
        let batch = Batch::new(1);
        let (pointer, length) = (buffer.as_mut_pointer(), buffer.len());
        let descriptor = types::Fd(file.file.as_raw_fd());
        let entry = opcode::Read::new(descriptor, pointer, length as u32).offset(position).build();
        let memory = Held::Read(buffer);
        self.ring.push(entry, Operation { batch: batch.clone(), file: file.clone(), memory });
        self.ring.submit();
        async move {
            let batch = batch.done().await?;
            let read = batch.read.borrow_mut().take();
            read.ok_or_else(|| io::Error::other("a read completed without its buffer"))
        }
    }

    fn sync(&self, file: &Self::File) -> impl Future<Output = io::Result<()>> + 'static + use<> {
        let batch = Batch::new(1);
        let descriptor = types::Fd(file.file.as_raw_fd());
        let entry = opcode::Fsync::new(descriptor).flags(types::FsyncFlags::DATASYNC).build();
        let memory = Held::Sync;
        self.ring.push(entry, Operation { batch: batch.clone(), file: file.clone(), memory });
        self.ring.submit();
        async move { batch.done().await.map(drop) }
    }

    async fn truncate(&self, file: &Self::File, bytes: u64) -> io::Result<()> {
        let file = file.file.try_clone()?;
        self.blocking(move || file.set_len(bytes)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.blocking(move || std::fs::rename(from, to)).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move || std::fs::remove_file(path)).await
    }

    async fn make_directory(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let path = path.to_owned();
        self.blocking(move || {
            let mut missing: Vec<PathBuf> = path
                .ancestors()
                .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
                .map(Path::to_owned)
                .collect();
            missing.reverse();
            std::fs::create_dir_all(&path)?;
            Ok(missing)
        })
        .await
    }

    async fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move || std::fs::remove_dir(path)).await
    }

    async fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.blocking(move || std::fs::File::open(path)?.sync_all()).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<(String, u64)>> {
        let path = path.to_owned();
        self.blocking(move || {
            let entries = match std::fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            entries
                .map(|entry| {
                    let entry = entry?;
                    Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
                })
                .collect()
        })
        .await
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let path = path.to_owned();
        self.blocking(move || {
            let stats = rustix::fs::statvfs(&path)?;
            Ok(stats.f_bavail * stats.f_frsize)
        })
        .await
    }
}

impl RingDisk {
    /// What the file system of `path` has left for this process.
    pub async fn room(&self, path: &Path) -> io::Result<Room> {
        let path = path.to_owned();
        self.blocking(move || {
            let stats = rustix::fs::statvfs(&path)?;
            Ok(Room { bytes: stats.f_bavail * stats.f_frsize, files: stats.f_favail })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::buffer::BufferPool;

    #[test]
    fn the_rest_of_a_short_write() {
        // Bytes written of four blocks at position 8192, where it goes on in the buffer and in the file.
        let (whole, no_room) = ((0, 0), (0, 1));
        let rows = [
            (16384, whole),
            (12288, (12288, 20480)),
            (12287, (8192, 16384)),
            (4096, (4096, 12288)),
            (4095, no_room),
            (512, no_room),
            (0, no_room),
        ];
        for (written, expected) in rows {
            let buffer = Rc::new(BufferPool::new().take(16384));
            let rest = Rest { buffer, range: 0..16384, position: 8192, durable: true, index: 0 };
            let found = match rest.after(written) {
                Ok(None) => whole,
                Ok(Some(rest)) => {
                    assert!(rest.durable && rest.range.end == 16384, "{written}");
                    (rest.range.start, rest.position)
                }
                Err(error) => {
                    assert!(is_no_space(&error), "{written}: {error}");
                    no_room
                }
            };
            assert_eq!(found, expected, "{written}");
        }
    }
}
