//! Ceilings of the data device: patterns of `O_DIRECT` writes, syncs and reads on one ring.
//!
//! A case is a row of data. Its files are made and brought into the state that the case names (extents
//! written, allocated but unwritten, or absent) before its clock starts, and removed after it.
//!
//! Flushes follow the rule that the broker follows: io_uring does not order a sync after earlier writes, so
//! a sync is submitted after the completions that it is to cover, and at most one is in flight.

use super::Sample;
use crate::aligned::AlignedBuffer;
use crate::ring::Ring;
use io_uring::{opcode, squeue, types};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The written region that pre-written cases and reads go round in.
const PREWRITTEN_BYTES: usize = 256 * MIB;
/// What a case that consumes fresh extents may use: it ends there if its time has not ended before.
const FRESH_BYTES: usize = 1024 * MIB;
/// The physical size of a segment, whose zeroing is a case of its own.
const SEGMENT_BYTES: usize = 128 * MIB;
/// The written region of each file of a round over many files.
const ROUND_FILE_BYTES: usize = 256 * KIB;
/// User data of a sync; writes and reads carry their slot.
pub(super) const SYNC: u64 = u64::MAX;

/// The state of the extents that a write goes into.
#[derive(Clone, Copy, PartialEq)]
enum Ground {
    /// Written before, and committed.
    Prewritten,
    /// Allocated, never written: a sync has to commit their conversion.
    Unwritten,
    /// None yet: the file grows.
    Extending,
}

/// What makes a write durable.
#[derive(Clone, Copy, PartialEq)]
enum Sync {
    /// Nothing does.
    Without,
    /// RWF_DSYNC on the write itself.
    Dsync,
    /// An fdatasync after this many completed writes, of the file itself or of a small other one.
    Flush { writes: usize, other_file: bool },
}

/// What is done in a loop.
#[derive(Clone, Copy)]
enum Pattern {
    Write {
        bytes: usize,
        ground: Ground,
        sync: Sync,
        depth: usize,
    },
    Read {
        bytes: usize,
        depth: usize,
    },
    /// One 4 KiB write into each of so many files, then one fdatasync of yet another file.
    Round {
        files: usize,
    },
    /// Zeros over one allocated segment in chunks of so many bytes, with its fsync.
    Zero {
        chunk_bytes: usize,
        depth: usize,
    },
}

/// One case.
pub(super) struct Case(Pattern);

/// Every case, in the order in which they run.
pub(super) fn cases() -> Vec<Case> {
    use Ground::{Extending, Prewritten, Unwritten};
    const EACH: Sync = Sync::Flush { writes: 1, other_file: false };
    let mut cases = Vec::new();
    for bytes in [4 * KIB, MIB] {
        let mut write = |ground, sync, depths: &[usize]| {
            cases.extend(depths.iter().map(|&depth| Case(Pattern::Write { bytes, ground, sync, depth })));
        };
        write(Prewritten, Sync::Without, &[1, 4]);
        write(Prewritten, Sync::Dsync, &[1, 2, 4]);
        write(Unwritten, Sync::Dsync, &[1, 2, 4]);
        write(Extending, Sync::Dsync, &[1, 2, 4]);
        write(Prewritten, EACH, &[1]);
        if bytes == MIB {
            write(Unwritten, Sync::Flush { writes: 4, other_file: false }, &[1, 2, 4]);
            write(Prewritten, Sync::Flush { writes: 4, other_file: true }, &[1, 2, 4]);
        }
    }
    cases.extend([1, 4].map(|depth| Case(Pattern::Read { bytes: MIB, depth })));
    cases.extend([1, 16, 64].map(|files| Case(Pattern::Round { files })));
    cases.extend(
        [(128 * KIB, 1), (128 * KIB, 4), (MIB, 4)]
            .map(|(chunk_bytes, depth)| Case(Pattern::Zero { chunk_bytes, depth })),
    );
    cases
}

impl Case {
    /// What the table shows and `Options::only` selects by.
    pub(super) fn name(&self) -> String {
        match self.0 {
            Pattern::Write { bytes, ground, sync, depth } => {
                let ground = match ground {
                    Ground::Prewritten => "pre-written",
                    Ground::Unwritten => "unwritten",
                    Ground::Extending => "extending",
                };
                let sync = match sync {
                    Sync::Without => "no sync".to_owned(),
                    Sync::Dsync => "dsync".to_owned(),
                    Sync::Flush { writes, other_file: true } => {
                        format!("fdatasync of another file per {writes}")
                    }
                    Sync::Flush { writes, other_file: false } => format!("fdatasync per {writes}"),
                };
                format!("write {}, {ground}, {sync}, depth {depth}", size(bytes))
            }
            Pattern::Read { bytes, depth } => format!("read {}, depth {depth}", size(bytes)),
            Pattern::Round { files } => format!("round over {files} files of 4 KiB, one fdatasync"),
            Pattern::Zero { chunk_bytes, depth } => {
                format!("zero {} by {}, fsync, depth {depth}", size(SEGMENT_BYTES), size(chunk_bytes))
            }
        }
    }
}

fn size(bytes: usize) -> String {
    if bytes >= MIB { format!("{} MiB", bytes / MIB) } else { format!("{} KiB", bytes / KIB) }
}

/// Runs one case for about `duration` with files in `directory`.
pub(super) fn measure(case: &Case, directory: &Path, duration: Duration) -> io::Result<Sample> {
    match case.0 {
        Pattern::Write { bytes, ground, sync, depth } => {
            let fresh = if ground == Ground::Prewritten { PREWRITTEN_BYTES } else { FRESH_BYTES };
            let file = Scratch::new(directory, "write", ground, fresh)?;
            let flush = Scratch::new(directory, "flush", Ground::Prewritten, 4 * KIB)?;
            write(&file, &flush, bytes, sync, depth, ground == Ground::Prewritten, duration)
        }
        Pattern::Read { bytes, depth } => {
            let file = Scratch::new(directory, "read", Ground::Prewritten, PREWRITTEN_BYTES)?;
            read(&file, bytes, depth, duration)
        }
        Pattern::Round { files } => {
            let flush = Scratch::new(directory, "flush", Ground::Prewritten, 4 * KIB)?;
            let files = (0..files)
                .map(|n| Scratch::new(directory, &format!("round-{n}"), Ground::Prewritten, ROUND_FILE_BYTES))
                .collect::<io::Result<Vec<_>>>()?;
            round(&files, &flush, duration)
        }
        Pattern::Zero { chunk_bytes, depth } => zero(directory, chunk_bytes, depth, duration),
    }
}

/// A file of one case, unlinked when the case is over.
pub(super) struct Scratch {
    pub(super) file: File,
    /// `None`: it never had a name.
    path: Option<std::path::PathBuf>,
    pub(super) bytes: usize,
}

impl Scratch {
    /// A new file of `bytes` written bytes.
    pub(super) fn prewritten(directory: &Path, name: &str, bytes: usize) -> io::Result<Self> {
        Self::new(directory, name, Ground::Prewritten, bytes)
    }

    /// The same without a name, so that nothing stays however the process ends. Where the file system cannot
    /// make such a file it has the name `name` for as long as it takes to open it.
    pub(super) fn nameless(directory: &Path, name: &str, bytes: usize) -> io::Result<Self> {
        let open = |flags| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_DIRECT | flags);
            options
        };
        let file = open(libc::O_TMPFILE).open(directory).or_else(|_| {
            let path = directory.join(name);
            let file = open(0).create_new(true).open(&path)?;
            std::fs::remove_file(&path).map(|()| file)
        })?;
        Self { file, path: None, bytes }.on(Ground::Prewritten)
    }

    /// A new file whose first `bytes` are in the state `ground`, committed.
    fn new(directory: &Path, name: &str, ground: Ground, bytes: usize) -> io::Result<Self> {
        let path = directory.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)?;
        Self { file, path: Some(path), bytes }.on(ground)
    }

    fn on(self, ground: Ground) -> io::Result<Self> {
        let scratch = self;
        let bytes = scratch.bytes;
        if ground != Ground::Extending {
            // SAFETY: a system call on a descriptor that is open; it takes no memory of ours.
            if unsafe { libc::fallocate(scratch.file.as_raw_fd(), 0, 0, bytes as libc::off_t) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if ground == Ground::Prewritten {
            fill(&scratch, MIB.min(bytes), 4, &AlignedBuffer::patterned(MIB.min(bytes)))?;
        }
        scratch.file.sync_all()?;
        Ok(scratch)
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.file.as_raw_fd())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The scratch directory is removed as a whole in the end: nothing is lost when this fails.
        let _ = self.path.as_ref().map(std::fs::remove_file);
    }
}

pub(super) fn write_entry(
    file: &Scratch,
    buffer: &[u8],
    offset: usize,
    dsync: bool,
    slot: usize,
) -> squeue::Entry {
    opcode::Write::new(file.fd(), buffer.as_ptr(), buffer.len() as u32)
        .offset(offset as u64)
        .rw_flags(if dsync { libc::RWF_DSYNC } else { 0 })
        .build()
        .user_data(slot as u64)
}

pub(super) fn sync_entry(file: &Scratch) -> squeue::Entry {
    opcode::Fsync::new(file.fd()).flags(types::FsyncFlags::DATASYNC).build().user_data(SYNC)
}

/// A completion's length, checked: a short transfer would make the figure a lie.
pub(super) fn transferred(result: i32, expected: usize) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    if result as usize == expected {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::WriteZero, format!("{result} of {expected} bytes transferred")))
}

/// Keeps `depth` writes in flight, and one flush where `sync` asks for it, until the time or the fresh
/// extents are used up and everything is durable.
fn write(
    file: &Scratch,
    flush: &Scratch,
    bytes: usize,
    sync: Sync,
    depth: usize,
    wrap: bool,
    duration: Duration,
) -> io::Result<Sample> {
    let buffer = AlignedBuffer::patterned(bytes * depth);
    let mut ring = Ring::new(16)?;
    let (per_flush, target) = match sync {
        Sync::Flush { writes, other_file } => (Some(writes), if other_file { flush } else { file }),
        Sync::Without | Sync::Dsync => (None, file),
    };
    // With one write per flush nothing overlaps; else the next group is written during a flush.
    let window = per_flush.map_or(usize::MAX, |writes| if writes == 1 { 1 } else { 2 * writes });
    let mut free: Vec<usize> = (0..depth).collect();
    let mut since = vec![Instant::now(); depth];
    let mut written: VecDeque<Instant> = VecDeque::new();
    let mut covered = 0;
    let mut offset = 0;
    let mut sample = Sample::start();
    loop {
        let open = sample.started.elapsed() < duration && (wrap || offset + bytes <= file.bytes);
        while open && depth - free.len() + written.len() < window && (wrap || offset + bytes <= file.bytes) {
            let Some(slot) = free.pop() else { break };
            since[slot] = Instant::now();
            let block = &buffer[slot * bytes..][..bytes];
            // SAFETY: `buffer` was declared before `ring` and is dropped after it.
            unsafe { ring.push(write_entry(file, block, offset, sync == Sync::Dsync, slot)) };
            offset += bytes;
            if wrap && offset + bytes > file.bytes {
                offset = 0;
            }
        }
        let idle = free.len() == depth;
        let due = per_flush.is_some_and(|writes| written.len() >= writes || idle && !open);
        if covered == 0 && due && !written.is_empty() {
            covered = written.len();
            // SAFETY: a sync points to no memory.
            unsafe { ring.push(sync_entry(target)) };
        }
        if idle && covered == 0 {
            return Ok(sample);
        }
        let (slot, result) = ring.wait()?;
        if slot == SYNC {
            transferred(result, 0)?;
            written.drain(..covered).for_each(|began| sample.finished(began, bytes));
            covered = 0;
            continue;
        }
        transferred(result, bytes)?;
        let slot = slot as usize;
        free.push(slot);
        match per_flush {
            Some(_) => written.push_back(since[slot]),
            None => sample.finished(since[slot], bytes),
        }
    }
}

fn read(file: &Scratch, bytes: usize, depth: usize, duration: Duration) -> io::Result<Sample> {
    let mut buffer = AlignedBuffer::zeroed(bytes * depth);
    let blocks: Vec<*mut u8> = buffer.chunks_exact_mut(bytes).map(<[u8]>::as_mut_ptr).collect();
    let mut ring = Ring::new(16)?;
    let mut free: Vec<usize> = (0..depth).collect();
    let mut since = vec![Instant::now(); depth];
    let mut offset = 0;
    let mut sample = Sample::start();
    loop {
        while sample.started.elapsed() < duration {
            let Some(slot) = free.pop() else { break };
            since[slot] = Instant::now();
            let entry = opcode::Read::new(file.fd(), blocks[slot], bytes as u32).offset(offset as u64);
            // SAFETY: each slot has its own part of `buffer`, which is dropped after `ring`.
            unsafe { ring.push(entry.build().user_data(slot as u64)) };
            offset = (offset + bytes) % file.bytes;
        }
        if free.len() == depth {
            return Ok(sample);
        }
        let (slot, result) = ring.wait()?;
        transferred(result, bytes)?;
        sample.finished(since[slot as usize], bytes);
        free.push(slot as usize);
    }
}

fn round(files: &[Scratch], flush: &Scratch, duration: Duration) -> io::Result<Sample> {
    let block = AlignedBuffer::patterned(4 * KIB);
    let mut ring = Ring::new(files.len().max(1) as u32)?;
    let mut offset = 0;
    let mut sample = Sample::start();
    while sample.started.elapsed() < duration {
        let since = Instant::now();
        for (slot, file) in files.iter().enumerate() {
            // SAFETY: `block` was declared before `ring` and is dropped after it; the kernel only reads it.
            unsafe { ring.push(write_entry(file, &block, offset, false, slot)) };
        }
        for _ in files {
            let (_, result) = ring.wait()?;
            transferred(result, block.len())?;
        }
        // SAFETY: a sync points to no memory.
        unsafe { ring.push(sync_entry(flush)) };
        transferred(ring.wait()?.1, 0)?;
        sample.finished(since, 0);
        offset = (offset + block.len()) % ROUND_FILE_BYTES;
    }
    Ok(sample)
}

fn zero(directory: &Path, chunk_bytes: usize, depth: usize, duration: Duration) -> io::Result<Sample> {
    let zeros = AlignedBuffer::zeroed(chunk_bytes);
    let mut sample = Sample::start();
    let mut busy = Duration::ZERO;
    while busy < duration {
        let file = Scratch::new(directory, "zero", Ground::Unwritten, SEGMENT_BYTES)?;
        let since = Instant::now();
        fill(&file, chunk_bytes, depth, &zeros)?;
        file.file.sync_all()?;
        sample.finished(since, SEGMENT_BYTES);
        busy += since.elapsed();
    }
    // Making and unlinking the files is not what is measured.
    sample.elapsed = busy;
    Ok(sample)
}

/// Writes `block` over and over up to the end of `file`, `depth` writes in flight.
fn fill(file: &Scratch, chunk_bytes: usize, depth: usize, block: &AlignedBuffer) -> io::Result<()> {
    let mut ring = Ring::new(depth as u32)?;
    let (mut offset, mut in_flight) = (0, 0);
    while offset < file.bytes || in_flight > 0 {
        while offset < file.bytes && in_flight < depth {
            let length = chunk_bytes.min(file.bytes - offset);
            // SAFETY: `block` is borrowed for longer than `ring` lives; the kernel only reads it.
            unsafe { ring.push(write_entry(file, &block[..length], offset, false, length)) };
            offset += length;
            in_flight += 1;
        }
        let (length, result) = ring.wait()?;
        transferred(result, length as usize)?;
        in_flight -= 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::beside_this_test;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_what_is_done() {
        let names: Vec<String> = cases().iter().map(Case::name).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "{names:#?}");
        for expect in [
            "write 4 KiB, pre-written, dsync, depth 1",
            "write 1 MiB, unwritten, fdatasync per 4, depth 2",
            "write 1 MiB, pre-written, fdatasync of another file per 4, depth 4",
            "round over 64 files of 4 KiB, one fdatasync",
        ] {
            assert!(names.iter().any(|name| name == expect), "{expect}");
        }
    }

    #[test]
    fn a_short_transfer_is_an_error() {
        let rows = [(4096, true), (4095, false), (0, false), (-libc::EIO, false)];
        for (result, good) in rows {
            assert_eq!(transferred(result, 4096).is_ok(), good, "{result}");
        }
    }

    #[test]
    fn every_write_is_counted_once_however_it_is_synced() {
        let directory = tempfile::tempdir_in(beside_this_test()).unwrap();
        // 1 MiB of fresh extents in writes of 64 KiB: 16 of them, whatever the depth.
        let rows = [
            (Sync::Without, 1),
            (Sync::Dsync, 3),
            (Sync::Flush { writes: 1, other_file: false }, 4),
            (Sync::Flush { writes: 4, other_file: true }, 2),
            (Sync::Flush { writes: 5, other_file: true }, 4),
        ];
        for (sync, depth) in rows {
            let file = match Scratch::new(directory.path(), "write", Ground::Unwritten, MIB) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
                file => file.unwrap(),
            };
            let flush = Scratch::new(directory.path(), "flush", Ground::Prewritten, 4 * KIB).unwrap();
            let long = Duration::from_secs(600);
            let sample = write(&file, &flush, 64 * KIB, sync, depth, false, long).unwrap();
            assert_eq!((sample.operations, sample.bytes), (16, MIB as u64));
            assert_eq!(file.file.metadata().unwrap().len(), MIB as u64);
        }
    }
}
