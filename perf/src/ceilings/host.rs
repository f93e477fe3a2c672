//! Ceilings of cores and memory: a loopback stream, a checksum, a copy.
//!
//! Each case allocates what it needs, runs for the time given, and frees it. Memory is walked over 64 MiB
//! in steps of 1 MiB, so that a figure is of memory rather than of the innermost cache.

use super::{Sample, core_count, pin};
use crate::aligned::AlignedBuffer;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const MESSAGE_BYTES: usize = 1 << 20;
const WALKED_BYTES: usize = 64 << 20;

/// One case: its name and how it is measured.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) measure: fn(Duration) -> io::Result<Sample>,
}

/// Every case, in the order in which they run.
pub(super) const CASES: [Case; 3] = [
    Case { name: "loopback TCP, 1 MiB messages", measure: loopback },
    Case { name: "CRC-32C, 1 MiB", measure: checksum },
    Case { name: "memcpy, 1 MiB", measure: copy },
];

/// A sender on the first core, the receiver on the calling thread's; latency is of one message's receipt.
fn loopback(duration: Duration) -> io::Result<Sample> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> io::Result<()> {
            pin(0);
            let mut stream = TcpStream::connect(address)?;
            let message = AlignedBuffer::patterned(MESSAGE_BYTES);
            let started = Instant::now();
            while started.elapsed() < duration {
                stream.write_all(&message)?;
            }
            stream.shutdown(Shutdown::Write)
        });
        pin(core_count() - 1);
        let (mut stream, _) = listener.accept()?;
        let mut message = AlignedBuffer::zeroed(MESSAGE_BYTES);
        let mut sample = Sample::start();
        loop {
            let since = Instant::now();
            match stream.read_exact(&mut message) {
                Ok(()) => sample.finished(since, MESSAGE_BYTES),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        sender.join().expect("the sender does not panic")?;
        Ok(sample)
    })
}

fn checksum(duration: Duration) -> io::Result<Sample> {
    let memory = AlignedBuffer::patterned(WALKED_BYTES);
    let mut sample = Sample::start();
    while sample.started.elapsed() < duration {
        for block in memory.chunks_exact(MESSAGE_BYTES) {
            let since = Instant::now();
            black_box(crc32c::crc32c(black_box(block)));
            sample.finished(since, MESSAGE_BYTES);
        }
    }
    Ok(sample)
}

fn copy(duration: Duration) -> io::Result<Sample> {
    let source = AlignedBuffer::patterned(WALKED_BYTES);
    let mut target = AlignedBuffer::zeroed(WALKED_BYTES);
    let mut sample = Sample::start();
    while sample.started.elapsed() < duration {
        for (from, to) in source.chunks_exact(MESSAGE_BYTES).zip(target.chunks_exact_mut(MESSAGE_BYTES)) {
            let since = Instant::now();
            to.copy_from_slice(black_box(from));
            black_box(to);
            sample.finished(since, MESSAGE_BYTES);
        }
    }
    Ok(sample)
}
