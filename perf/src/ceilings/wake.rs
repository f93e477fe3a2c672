//! Ceilings of waking: how long until a thread on another core has noticed.
//!
//! Two threads, one on the first core, one on the calling thread's, hand a token to and fro; one operation
//! is a round trip, two wake-ups. Sleeping threads pay for the scheduler, the interrupt to the other core and
//! (on a virtual machine) the exit from a halted one; polling threads pay for a cache line or a system call.
//! The difference is what a shard gains by spinning before it sleeps.
//!
//! Lifecycle: the peer of a case is started by it and joined before it returns. Invariant: a case ends however
//! it fails: its ends are closed, or the word that is watched says so. Absent on purpose: futex and
//! io_uring rows: the former is what an eventfd costs less its system call, the latter is in every
//! storage case.

use super::host::Case;
use super::{Sample, core_count, pin};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MESSAGE_BYTES: usize = 64;
/// Looks at an empty place before the core is offered to others: more than any answer takes when the peer
/// has a core of its own, so that it matters only where both share one.
const LOOKS_BEFORE_YIELD: u32 = 20_000;
/// What the peer of the shared word is told at the end.
const OVER: u64 = u64::MAX;

/// Every case, in the order in which they run.
pub(super) const CASES: [Case; 5] = [
    Case { name: "wake-up of a sleeping core, eventfd, round trip", measure: |d| eventfd(d, Wait::Sleep) },
    Case { name: "wake-up of a polling core, eventfd, round trip", measure: |d| eventfd(d, Wait::Poll) },
    Case { name: "wake-up of a polling core, shared memory, round trip", measure: shared_memory },
    Case { name: "loopback TCP, 64 B, sleeping, round trip", measure: |d| stream(d, Wait::Sleep) },
    Case { name: "loopback TCP, 64 B, polling, round trip", measure: |d| stream(d, Wait::Poll) },
];

/// What a thread does until there is something for it.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    Sleep,
    Poll,
}

/// Calls `look` until it finds something.
fn spin<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let mut looks = 0;
    loop {
        if let Some(found) = look() {
            return found;
        }
        looks += 1;
        if looks % LOOKS_BEFORE_YIELD == 0 {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Calls `look` until it finds something; `WouldBlock` = nothing yet.
fn poll<T>(mut look: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    spin(|| Some(look()).filter(|seen| !seen.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)))
}

struct EventFd(OwnedFd);

impl EventFd {
    fn new(wait: Wait) -> io::Result<Self> {
        let flags = libc::EFD_CLOEXEC | if wait == Wait::Poll { libc::EFD_NONBLOCK } else { 0 };
        // SAFETY: a system call that takes no memory of ours.
        let fd = unsafe { libc::eventfd(0, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn add(&self, count: u64) -> io::Result<()> {
        let bytes = count.to_ne_bytes();
        // SAFETY: the descriptor is open, and `bytes` is as long as said.
        let written = unsafe { libc::write(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        if written == 8 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn take(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        // SAFETY: the descriptor is open, and `bytes` is as long as said and ours alone.
        let read = unsafe { libc::read(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
        if read == 8 { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
    }
}

/// Adding 1 is the token, 2 is the end of the case.
fn eventfd(duration: Duration, wait: Wait) -> io::Result<Sample> {
    let (there, back) = (EventFd::new(wait)?, EventFd::new(wait)?);
    let receive = |fd: &EventFd| match wait {
        Wait::Sleep => fd.take(),
        Wait::Poll => poll(|| fd.take()),
    };
    std::thread::scope(|scope| {
        let peer = scope.spawn(|| -> io::Result<()> {
            pin(0);
            while receive(&there)? == 1 {
                back.add(1)?;
            }
            Ok(())
        });
        pin(core_count() - 1);
        let mut sample = Sample::start();
        let result = (|| {
            while sample.started.elapsed() < duration {
                let since = Instant::now();
                there.add(1)?;
                receive(&back)?;
                sample.finished(since, 0);
            }
            Ok(())
        })();
        there.add(2)?;
        peer.join().expect("the peer does not panic")?;
        result.map(|()| sample)
    })
}

/// Two words on cache lines of their own, each written by one thread and watched by the other.
#[derive(Default)]
#[repr(align(128))]
struct Word(AtomicU64);

impl Word {
    fn watch(&self, before: u64) -> u64 {
        spin(|| Some(self.0.load(Ordering::Acquire)).filter(|now| *now != before))
    }
}

fn shared_memory(duration: Duration) -> io::Result<Sample> {
    let (there, back) = (Word::default(), Word::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(0);
            let mut seen = 0;
            loop {
                seen = there.watch(seen);
                if seen == OVER {
                    return;
                }
                back.0.store(seen, Ordering::Release);
            }
        });
        pin(core_count() - 1);
        let mut sample = Sample::start();
        let mut turn = 0;
        while sample.started.elapsed() < duration {
            let since = Instant::now();
            turn += 1;
            there.0.store(turn, Ordering::Release);
            back.watch(turn - 1);
            sample.finished(since, 0);
        }
        there.0.store(OVER, Ordering::Release);
        Ok(sample)
    })
}

/// A small message and its echo: the floor of any request's latency on this host.
fn stream(duration: Duration, wait: Wait) -> io::Result<Sample> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let prepare = move |stream: &TcpStream| {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(wait == Wait::Poll)
    };
    std::thread::scope(|scope| {
        let peer = scope.spawn(move || -> io::Result<()> {
            pin(0);
            let (mut stream, _) = listener.accept()?;
            prepare(&stream)?;
            let mut message = [0; MESSAGE_BYTES];
            loop {
                match receive(&mut stream, &mut message, wait) {
                    Ok(()) => stream.write_all(&message)?,
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        });
        pin(core_count() - 1);
        let mut stream = TcpStream::connect(address)?;
        prepare(&stream)?;
        let mut message = [0; MESSAGE_BYTES];
        let mut sample = Sample::start();
        while sample.started.elapsed() < duration {
            let since = Instant::now();
            stream.write_all(&message)?;
            receive(&mut stream, &mut message, wait)?;
            sample.finished(since, 0);
        }
        drop(stream);
        peer.join().expect("the peer does not panic")?;
        Ok(sample)
    })
}

fn receive(stream: &mut TcpStream, message: &mut [u8; MESSAGE_BYTES], wait: Wait) -> io::Result<()> {
    if wait == Wait::Sleep {
        return stream.read_exact(message);
    }
    let mut have = 0;
    while have < message.len() {
        match poll(|| stream.read(&mut message[have..]))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => have += bytes,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_makes_round_trips_and_ends() {
        for case in CASES {
            let sample = (case.measure)(Duration::from_millis(10)).unwrap();
            assert!(sample.operations > 0 && sample.bytes == 0, "{}", case.name);
            assert_eq!(sample.latency_ns.len(), sample.operations, "{}", case.name);
        }
    }
}
