//! A slow link in front of one address: bytes take their time, by a seed, and only so many at once.
//!
//! Owner: one test; connections end with it. Each direction of a connection is a thread that carries pieces in order: each
//! waits for its delay, a fixed part and a random one, and for the rate; both may change meanwhile. Absent on purpose: loss,
//! which a stream would hide.

use fastrand::Rng;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How slow.
#[derive(Clone, Copy, Debug)]
pub struct Slowness {
    /// Every piece takes at least so long.
    pub delay: Duration,
    /// … and at most so much longer.
    pub jitter: Duration,
    /// What a direction of a connection carries, bytes per second.
    pub rate: u64,
}

/// See the module.
pub struct SlowLink {
    address: SocketAddr,
    usual: Slowness,
    now: Arc<Mutex<Slowness>>,
    stopped: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
}

impl Slowness {
    /// As fast as this process is.
    pub const NONE: Self = Self { delay: Duration::ZERO, jitter: Duration::ZERO, rate: u64::MAX };
}

impl SlowLink {
    /// Listens on `at` and carries everything to `to`.
    pub fn start(at: SocketAddr, to: SocketAddr, slowness: Slowness, seed: u64) -> Self {
        let listener = TcpListener::bind(at).unwrap_or_else(|error| panic!("{at}: {error}"));
        let address = listener.local_addr().expect("it listens");
        let stopped = Arc::new(AtomicBool::new(false));
        let carried = Arc::new(AtomicU64::new(0));
        let now = Arc::new(Mutex::new(slowness));
        let (ends, counts, slow) = (stopped.clone(), carried.clone(), now.clone());
        std::thread::spawn(move || {
            let mut random = Rng::with_seed(seed);
            while let Ok((client, _)) = listener.accept() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                // Nobody there: the connection ends, as it would without a link between.
                let Ok(server) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) else { continue };
                let both = (client.try_clone(), server.try_clone());
                let (Ok(client_too), Ok(server_too)) = both else { continue };
                for (from, into) in [(client, server), (server_too, client_too)] {
                    let (random, counts, slow) = (random.fork(), counts.clone(), slow.clone());
                    std::thread::spawn(move || carry(from, into, &slow, random, &counts));
                }
            }
        });
        Self { address, usual: slowness, now, stopped, carried }
    }

    /// From now on it is as slow as this; `None` = as slow as it was at first.
    pub fn set(&self, slowness: Option<Slowness>) {
        *self.now.lock().unwrap() = slowness.unwrap_or(self.usual);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes carried, both ways.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // The listener sees it with its next connection.
        let _ = TcpStream::connect(self.address);
    }
}

fn carry(
    mut from: TcpStream,
    mut into: TcpStream,
    slow: &Mutex<Slowness>,
    mut random: Rng,
    carried: &AtomicU64,
) {
    let _ = into.set_nodelay(true);
    let mut piece = vec![0; 32 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut piece) {
        let slowness = *slow.lock().unwrap();
        let jitter = slowness.jitter.mul_f64(random.f64());
        let rate = Duration::from_secs_f64(bytes as f64 / slowness.rate as f64);
        // The delay is what is planted; nothing is awaited.
        std::thread::sleep(slowness.delay + jitter + rate);
        if into.write_all(&piece[..bytes]).is_err() {
            break;
        }
        carried.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    // The end of one direction may be the end of both: the other sees it as its own.
    let _ = into.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

#[test]
fn everything_arrives_in_order_and_no_sooner() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let slowness =
        Slowness { delay: Duration::from_millis(5), jitter: Duration::from_millis(5), rate: 10_000_000 };
    let link = SlowLink::start("127.0.0.1:0".parse().unwrap(), to, slowness, 1);
    let mut stream = TcpStream::connect(link.address()).unwrap();
    let sent: Vec<u8> = (0..200_000u32).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect();
    let began = std::time::Instant::now();
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received == sent);
    assert_eq!(link.carried(), 400_000);
    // A lower bound holds on a busy machine too: two ways, a delay and the rate for each.
    assert!(began.elapsed() >= Duration::from_millis(2 * (5 + 20)));
    echo.join().unwrap();
}
