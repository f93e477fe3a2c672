//! A network that can be told to misbehave, between clients and one broker.
//!
//! Listens on the broker's port at another loopback address, which the broker advertises: so everything that goes to
//! the owner of a partition goes through here, and what asks the broker itself does not. Owner: one test; its
//! threads end with it. A connection in trouble is cut in the middle of a request, or goes deaf: the broker
//! gets what was sent, and its next answer is thrown away with the connection. Answers can be damaged. Absent on purpose:
//! delays.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The host that a broker behind a proxy advertises.
pub const HOST: &str = "127.0.0.2";

#[derive(Default)]
struct State {
    stopped: AtomicBool,
    trouble: AtomicBool,
    /// No answer gets through.
    deaf: AtomicBool,
    /// Connections of which an answer was thrown away for that.
    unheard: Mutex<Vec<TcpStream>>,
    /// Arrives with another bit, wherever it stands in an answer.
    damaged: Mutex<Option<&'static [u8]>>,
    cut: AtomicU64,
    swallowed: AtomicU64,
}

/// See the module.
pub struct Proxy {
    state: Arc<State>,
    address: SocketAddr,
}

impl Proxy {
    /// In front of the broker at `broker`; what goes wrong depends on `seed`.
    pub fn start(broker: &str, seed: u64) -> Self {
        let broker: SocketAddr = broker.parse().expect("an address");
        let address = SocketAddr::new(HOST.parse().expect("an address"), broker.port());
        let listener = TcpListener::bind(address).expect("the port is free at the other address");
        let state = Arc::new(State::default());
        let accepting = state.clone();
        std::thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(seed);
            while let Ok((client, _)) = listener.accept() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                // No broker: the client's connection ends.
                let Ok(server) = TcpStream::connect(broker) else { continue };
                let random = fastrand::Rng::with_seed(random.u64(..));
                carry(client, server, accepting.clone(), random);
            }
        });
        Self { state, address }
    }

    /// From now on connections come into trouble, or do not any more.
    pub fn trouble(&self, on: bool) {
        self.state.trouble.store(on, Ordering::SeqCst);
    }

    /// From now on all answers are thrown away, or are not any more. Connections that have missed one end then: nobody waits
    /// for what will not come.
    pub fn deaf(&self, on: bool) {
        self.state.deaf.store(on, Ordering::SeqCst);
        for connection in self.state.unheard.lock().expect("nobody panics with it").drain(..) {
            // It may be gone.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// From now on these bytes arrive with one bit changed, or do not any more.
    pub fn damage(&self, what: Option<&'static [u8]>) {
        *self.state.damaged.lock().expect("nobody panics with it") = what;
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Connections cut in the middle of a request, and answers thrown away.
    pub fn counts(&self) -> (u64, u64) {
        (self.state.cut.load(Ordering::SeqCst), self.state.swallowed.load(Ordering::SeqCst))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; if it has ended there is nobody to wake.
        let _ = TcpStream::connect(self.address);
    }
}

fn carry(client: TcpStream, server: TcpStream, state: Arc<State>, mut random: fastrand::Rng) {
    for socket in [&client, &server] {
        socket.set_nodelay(true).expect("a TCP socket");
    }
    let deaf = Arc::new(AtomicBool::new(false));
    let hang_up = |client: &TcpStream, server: &TcpStream| {
        // Either may be gone.
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    };
    let (mut client_out, mut server_in) =
        (client.try_clone().expect("a handle"), server.try_clone().expect("a handle"));
    {
        let (state, deaf) = (state.clone(), deaf.clone());
        std::thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while let Ok(read @ 1..) = server_in.read(&mut bytes) {
                if deaf.load(Ordering::SeqCst) {
                    state.swallowed.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                if let Some(what) = *state.damaged.lock().expect("nobody panics with it")
                    && let Some(at) = bytes[..read].windows(what.len()).position(|found| found == what)
                {
                    bytes[at] ^= 1;
                }
                if state.deaf.load(Ordering::SeqCst) {
                    let connection = client_out.try_clone().expect("a handle");
                    state.unheard.lock().expect("nobody panics with it").push(connection);
                } else if client_out.write_all(&bytes[..read]).is_err() {
                    break;
                }
            }
            hang_up(&client_out, &server_in);
        });
    }
    let (mut client, mut server) = (client, server);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        let mut left = random.usize(2_000..150_000);
        while let Ok(read @ 1..) = client.read(&mut bytes) {
            let mut now = read;
            if state.trouble.load(Ordering::SeqCst) && !deaf.load(Ordering::SeqCst) {
                left = left.saturating_sub(read);
                if left == 0 && random.bool() {
                    deaf.store(true, Ordering::SeqCst);
                } else if left == 0 {
                    now = read / 2;
                }
            }
            if server.write_all(&bytes[..now]).is_err() {
                break;
            }
            if now < read {
                state.cut.fetch_add(1, Ordering::SeqCst);
                break;
            }
        }
        hang_up(&client, &server);
    });
}
