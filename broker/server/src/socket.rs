//! The sockets of one shard's connections: direct calls, and one epoll for all of them.
//!
//! Owned by one shard. A socket is received from and sent to at once, without waiting; when the kernel has
//! nothing more to give or take, its task sleeps until the next edge. Edges of all sockets are collected
//! with one call per turn of the executor, which watches a single descriptor for them.
//!
//! Why not the runtime's sockets: it asks its ring for the readiness of each socket anew after each receive,
//! and the kernel interrupts the shard's core for each answer (docs/adr/0007-sockets.md).
//!
//! Invariants: a socket that gave less than was asked for, or refused, is left alone until its next edge; an
//! edge that finds nobody is harmless. Dropping a [`Socket`] closes it. Absent on purpose: buffers, frames, accepting.

use glommio::io::PollableFd;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Edges collected by one call.
const EDGES_MAX: usize = 256;
const AT_ONCE: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };

/// The sockets of a shard.
pub struct Sockets {
    epoll: OwnedFd,
    readiness: RefCell<Slab<Rc<Readiness>>>,
}

/// What is known of a socket, and who waits for more.
#[derive(Default)]
struct Readiness {
    readable: Side,
    writable: Side,
    /// The peer's end has made its edge, perhaps the same one as its last bytes.
    ended: Cell<bool>,
}

/// One direction of a socket.
struct Side {
    ready: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Default for Side {
    /// Worth asking: nothing is known yet.
    fn default() -> Self {
        Self { ready: Cell::new(true), waker: RefCell::default() }
    }
}

impl Side {
    fn edge(&self) {
        self.ready.set(true);
        let waker = self.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Performs `call` if it may succeed at once. Fewer than `full_bytes` are all that there was: what comes
    /// from then on makes an edge.
    fn poll(
        &self,
        context: &Context<'_>,
        full_bytes: usize,
        mut call: impl FnMut() -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        while self.ready.get() {
            match call() {
                Ok(bytes) => {
                    self.ready.set(bytes >= full_bytes);
                    return Poll::Ready(Ok(bytes));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.ready.set(false),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => *waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Sockets {
    /// No sockets yet, and the task that collects their edges for as long as the executor lives.
    ///
    /// # Errors
    /// The system gives no descriptor.
    pub fn new() -> io::Result<Rc<Self>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let sockets = Rc::new(Self { epoll, readiness: RefCell::default() });
        let pollable = PollableFd::new(sockets.clone()).map_err(io::Error::from)?;
        crate::stall::spawn("edges of sockets", async move {
            let mut edges = Vec::with_capacity(EDGES_MAX);
            loop {
                if let Err(error) = pollable.readable().await {
                    crate::fatal(&format!("cannot wait for sockets: {error}"));
                }
                pollable.get_ref().collect(&mut edges);
            }
        })
        .detach();
        Ok(sockets)
    }

    fn collect(&self, edges: &mut Vec<epoll::Event>) {
        edges.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(edges), Some(&AT_ONCE)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => crate::fatal(&format!("cannot collect the edges of sockets: {error}")),
        }
        for edge in edges.iter() {
            let readiness = self.readiness.borrow().get(edge.data.u64() as usize).cloned();
            let Some(readiness) = readiness else { continue };
            let flags = edge.flags;
            let over = EventFlags::HUP | EventFlags::ERR;
            if flags.intersects(EventFlags::RDHUP | over) {
                readiness.ended.set(true);
            }
            if flags.intersects(EventFlags::IN | EventFlags::RDHUP | over) {
                readiness.readable.edge();
            }
            if flags.intersects(EventFlags::OUT | over) {
                readiness.writable.edge();
            }
        }
    }
}

impl AsRawFd for Sockets {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// A connected stream socket.
pub struct Socket {
    descriptor: OwnedFd,
    readiness: Rc<Readiness>,
    key: usize,
    sockets: Rc<Sockets>,
}

impl Socket {
    /// Takes a connected socket over.
    ///
    /// # Errors
    /// The system has no memory or no watch left for it.
    pub fn new(sockets: &Rc<Sockets>, descriptor: OwnedFd) -> io::Result<Self> {
        let readiness = Rc::new(Readiness::default());
        let key = sockets.readiness.borrow_mut().insert(readiness.clone());
        // From here on a drop takes the key back.
        let socket = Self { descriptor, readiness, key, sockets: sockets.clone() };
        let wanted = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&sockets.epoll, &socket.descriptor, EventData::new_u64(key as u64), wanted)?;
        Ok(socket)
    }

    /// Begins to connect. The first send or receive waits until the peer has accepted, or says why it did not.
    ///
    /// # Errors
    /// The system has no descriptor left, or no way to the address.
    pub fn connect(sockets: &Rc<Sockets>, address: SocketAddr) -> io::Result<Self> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let descriptor = socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&descriptor, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        Self::new(sockets, descriptor)
    }

    /// Receives what is there, at most as much as `buffer` holds; 0 = the peer has ended.
    pub fn poll_receive(&self, context: &Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        // The end comes after the last bytes, and may have no edge of its own.
        let full_bytes = if self.readiness.ended.get() { 0 } else { buffer.len() };
        self.readiness.readable.poll(context, full_bytes, || {
            rustix::net::recv(&self.descriptor, &mut *buffer, RecvFlags::DONTWAIT).map(|(bytes, _)| bytes)
        })
    }

    /// Sends what the kernel takes of `pieces` at once.
    pub fn poll_send(&self, context: &Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // Only a refusal promises an edge, a short send does not: the next call tells.
        self.readiness.writable.poll(context, 0, || match pieces {
            [piece] => rustix::net::send(&self.descriptor, piece, flags),
            _ => rustix::net::sendmsg(&self.descriptor, pieces, &mut SendAncillaryBuffer::default(), flags),
        })
    }

    /// Ends one direction or both; a receive under way sees the end of the stream.
    pub fn shut_down(&self, direction: Shutdown) {
        // A peer that has gone already has done it.
        let _ = rustix::net::shutdown(&self.descriptor, direction);
    }

    /// Has the kernel find out that a peer is gone without a word: nobody else would, while nothing is sent.
    /// It asks after so long a silence, then at `interval` until `probes` went unanswered.
    pub fn probe_silent_peer(&self, after: Duration, interval: Duration, probes: u32) {
        use rustix::net::sockopt;
        // Without it the connection is as good, only its end may go unnoticed.
        let _ = sockopt::set_tcp_keepidle(&self.descriptor, after);
        let _ = sockopt::set_tcp_keepintvl(&self.descriptor, interval.min(after));
        let _ = sockopt::set_tcp_keepcnt(&self.descriptor, probes);
        let _ = sockopt::set_socket_keepalive(&self.descriptor, true);
    }

    /// Has the kernel give the connection up when its peer has not taken what was sent for so long.
    pub fn give_up_unacknowledged_after(&self, time: Duration) {
        let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        // Without it the connection is as good, only its end may go unnoticed.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&self.descriptor, milliseconds);
    }

    /// Sends small replies at once.
    pub fn set_no_delay(&self) {
        let _ = rustix::net::sockopt::set_tcp_nodelay(&self.descriptor, true);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.sockets.readiness.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let peer = TcpStream::connect(address).expect("a connection");
        (listener.accept().expect("its other end").0, peer)
    }

    fn run<T: 'static>(test: impl Future<Output = T> + 'static) -> T {
        glommio::LocalExecutorBuilder::default().make().expect("an executor").run(test)
    }

    async fn receive(socket: &Socket, most: usize) -> Vec<u8> {
        let mut buffer = vec![0; most];
        let bytes = poll_fn(|context| socket.poll_receive(context, &mut buffer)).await.expect("a receive");
        buffer.truncate(bytes);
        buffer
    }

    async fn send(socket: &Socket, bytes: &[u8]) -> usize {
        poll_fn(|context| socket.poll_send(context, &[IoSlice::new(bytes)])).await.expect("a send")
    }

    /// Whether nothing can be received now.
    async fn is_quiet(socket: &Socket) -> bool {
        let mut buffer = [0; 8];
        poll_fn(|context| Poll::Ready(socket.poll_receive(context, &mut buffer).is_pending())).await
    }

    #[test]
    fn bytes_and_the_end_arrive_however_they_are_spread_over_edges() {
        // What the peer writes before each receive, `None` = its end; what the receive of 4 bytes gives.
        type Rows = &'static [(&'static [Option<&'static str>], &'static str)];
        let rows: [Rows; 5] = [
            &[(&[Some("abcd")], "abcd"), (&[Some("ef")], "ef"), (&[Some("g")], "g")],
            &[(&[Some("abcdef")], "abcd"), (&[], "ef"), (&[None], ""), (&[], "")],
            // The end comes with the last bytes: it has no edge of its own.
            &[(&[Some("ab"), None], "ab"), (&[], ""), (&[], "")],
            &[(&[Some("abcd"), None], "abcd"), (&[], "")],
            &[(&[None], "")],
        ];
        for row in rows {
            let (ours, mut peer) = pair();
            run(async move {
                let sockets = Sockets::new().expect("an epoll");
                let socket = Socket::new(&sockets, ours.into()).expect("a socket");
                assert!(is_quiet(&socket).await);
                for (written, expected) in row {
                    for step in *written {
                        match step {
                            Some(text) => peer.write_all(text.as_bytes()).expect("a write"),
                            None => peer.shutdown(std::net::Shutdown::Write).expect("an end"),
                        }
                    }
                    assert_eq!(receive(&socket, 4).await, expected.as_bytes(), "{row:?}");
                }
            });
        }
    }

    #[test]
    fn a_full_socket_takes_more_once_its_peer_has_read() {
        let (ours, mut peer) = pair();
        let sent = run(async move {
            let sockets = Sockets::new().expect("an epoll");
            let socket = Socket::new(&sockets, ours.into()).expect("a socket");
            let bytes = vec![7; 1 << 20];
            let mut sent = 0;
            // Until it refuses: then the peer, and nobody else, can free the sender.
            loop {
                let polled = poll_fn(|context| {
                    Poll::Ready(socket.poll_send(context, &[IoSlice::new(&bytes), IoSlice::new(&bytes)]))
                });
                match polled.await {
                    Poll::Ready(more) => sent += more.expect("a send"),
                    Poll::Pending => break,
                }
            }
            let reader = std::thread::spawn(move || {
                let mut read = Vec::new();
                peer.read_to_end(&mut read).expect("the rest");
                read.len()
            });
            sent += send(&socket, &bytes).await;
            drop(socket);
            (sent, reader.join().expect("the reader"))
        });
        assert_eq!(sent.0, sent.1);
    }

    #[test]
    fn closing_one_socket_leaves_the_others() {
        let ((first, first_peer), (second, mut second_peer)) = (pair(), pair());
        run(async move {
            let sockets = Sockets::new().expect("an epoll");
            let first = Socket::new(&sockets, first.into()).expect("a socket");
            let second = Socket::new(&sockets, second.into()).expect("a socket");
            first.shut_down(Shutdown::Both);
            assert_eq!(receive(&first, 4).await, b"");
            drop((first, first_peer));
            assert_eq!(sockets.readiness.borrow().len(), 1);
            second_peer.write_all(b"x").expect("a write");
            assert_eq!(receive(&second, 4).await, b"x");
        });
    }
}
