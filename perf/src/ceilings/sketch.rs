//! The least that a durable broker does: receive, check, write, acknowledge. What a broker reaches divided
//! by these figures is what its structure costs, whatever the machine and its neighbours do today.
//!
//! The receiver runs on the first core: one blocking thread per message in flight, each with a connection
//! of its own and its own part of one pre-written file. The client runs on the last core in the same way.
//! A message is 1 MiB, its CRC-32C is computed and it is written with `O_DIRECT` and `RWF_DSYNC`; one
//! byte answers it. Absent on purpose: framing, an event loop, sharing a flush.

use super::storage::Scratch;
use super::{Sample, pin};
use crate::aligned::AlignedBuffer;
use hdrhistogram::Histogram;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

const MESSAGE_BYTES: usize = 1 << 20;
/// The part of the file that one connection goes round in.
const REGION_BYTES: usize = 64 << 20;

/// One case: its name and how many messages are in flight.
pub(super) struct Case {
    pub(super) name: &'static str,
    in_flight: usize,
}

/// Every case, in the order in which they run.
pub(super) const CASES: [Case; 2] = [
    Case { name: "sketch of a broker: receive 1 MiB, CRC, dsync, acknowledge, 1 in flight", in_flight: 1 },
    Case { name: "sketch of a broker: receive 1 MiB, CRC, dsync, acknowledge, 4 in flight", in_flight: 4 },
];

/// Runs one case for about `duration` with its file in `directory`. Called on the last core.
pub(super) fn measure(case: &Case, directory: &Path, duration: Duration) -> io::Result<Sample> {
    let file = Scratch::prewritten(directory, "sketch", case.in_flight * REGION_BYTES)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let mut receivers = Vec::new();
        let mut clients = Vec::new();
        for slot in 0..case.in_flight {
            // Spawned here: it inherits the last core.
            clients.push(scope.spawn(move || send(address, duration)));
            let (stream, _) = listener.accept()?;
            let file = &file;
            receivers.push(scope.spawn(move || {
                pin(0);
                receive(stream, file, slot * REGION_BYTES)
            }));
        }
        let mut sum = Sample::start();
        for client in clients {
            let sample = client.join().expect("a client does not panic")?;
            sum.operations += sample.operations;
            sum.bytes += sample.bytes;
            sum.elapsed = sum.elapsed.max(sample.elapsed);
            add(&mut sum.latency_ns, &sample.latency_ns);
        }
        for receiver in receivers {
            receiver.join().expect("a receiver does not panic")?;
        }
        Ok(sum)
    })
}

fn add(sum: &mut Histogram<u64>, part: &Histogram<u64>) {
    sum.add(part).expect("histograms of the same bounds");
}

/// Sends messages one after the other, each after the answer to the one before.
fn send(address: SocketAddr, duration: Duration) -> io::Result<Sample> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let message = AlignedBuffer::patterned(MESSAGE_BYTES);
    let mut sample = Sample::start();
    while sample.started.elapsed() < duration {
        let since = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut [0])?;
        sample.finished(since, MESSAGE_BYTES);
    }
    Ok(sample)
}

/// Makes every message durable, then answers it, until the client ends.
fn receive(mut stream: TcpStream, file: &Scratch, region: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = AlignedBuffer::zeroed(MESSAGE_BYTES);
    let mut at = 0;
    loop {
        match stream.read_exact(&mut message) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        black_box(crc32c::crc32c(&message));
        write_durable(file, &message, region + at)?;
        at = (at + MESSAGE_BYTES) % REGION_BYTES;
        stream.write_all(&[1])?;
    }
}

fn write_durable(file: &Scratch, message: &[u8], position: usize) -> io::Result<()> {
    let part = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    // SAFETY: the descriptor is open and `part` names memory that is borrowed during the call, which only
    // reads it.
    let written = unsafe {
        libc::pwritev2(file.file.as_raw_fd(), &raw const part, 1, position as libc::off_t, libc::RWF_DSYNC)
    };
    match written {
        error if error < 0 => Err(io::Error::last_os_error()),
        bytes if bytes as usize == message.len() => Ok(()),
        bytes => Err(io::Error::new(io::ErrorKind::WriteZero, format!("{bytes} bytes written"))),
    }
}
