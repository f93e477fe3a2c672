//! One TCP connection to one shard of one broker: requests out, responses in, matched by id.
//!
//! Owner: a [`Connection`] is a cheap handle; one task per connection does all reading and writing.
//! Lifecycle: connect → Hello → requests, pipelined → closed by the last handle, by the peer, or by the
//! first thing that goes wrong; a closed connection never opens again. Invariants: requests reach the
//! broker in the order of [`Connection::send`]; at most [`PENDING_MAX`] wait for a reply; a response
//! that nobody asked for closes the connection; lengths are checked before memory is taken. A request
//! that outlives its time closes the connection, because a peer that is gone looks the same.
//! Absent on purpose: retries and reconnecting, which need to know what a request means.

use crate::config::ClientConfig;
use crate::reply::{self, Hello, Reply, Response};
use crate::request::{Envelope, Request};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use flatbuffers::FlatBufferBuilder;
use schema::frame::{self, Aligned, Prefix};
use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};

/// Requests of one connection that may wait for their reply.
pub const PENDING_MAX: usize = 1024;
/// Bytes asked of the socket in one read, except for the rest of a larger frame.
const READ_BYTES: usize = 64 << 10;
/// A read buffer with less room than this is replaced.
const READ_BYTES_MIN: usize = 4 << 10;
/// Pieces handed to one vectored write.
const SLICES_MAX: usize = 64;
/// Frames taken from the queue for one round of writing.
const FRAMES_MAX: usize = 64;
/// Bound of the verifier's work on one response.
const TABLES_MAX: usize = 65_536;

/// Why a connection, or a request on it, came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// Nobody listens there, or the handshake failed.
    #[error("no broker answers at {address}: {reason}; start one with: ringlog serve")]
    Unreachable {
        /// Host and port.
        address: Arc<str>,
        /// What the system said.
        reason: Arc<str>,
    },
    /// The connection was taken, and Hello not answered in time: the answer was lost, or whoever should give it is held. Another
    /// attempt may be answered.
    #[error(
        "{address} takes connections and does not answer Hello within {waited:?}; see what it does: ringlog status"
    )]
    Unanswered {
        /// Host and port.
        address: Arc<str>,
        /// How long the client waited.
        waited: Duration,
    },
    /// The connection broke. What was sent and not answered may or may not have taken effect.
    #[error("the connection to {address} was lost: {reason}")]
    Lost {
        /// Host and port.
        address: Arc<str>,
        /// What the system said.
        reason: Arc<str>,
    },
    /// No reply in time. The request may or may not have taken effect.
    #[error("{address} did not answer within {waited:?}; see what it does: ringlog status")]
    TimedOut {
        /// Host and port.
        address: Arc<str>,
        /// How long the client waited.
        waited: Duration,
    },
    /// The peer sent something that is not this protocol.
    #[error("{address} does not speak this protocol: {reason}; check the address and the versions")]
    Protocol {
        /// Host and port.
        address: Arc<str>,
        /// What was wrong.
        reason: Arc<str>,
    },
    /// The request is above what the broker accepts. Nothing was sent.
    #[error("a request of {bytes} bytes, the broker accepts {limit}; send smaller batches")]
    RequestTooLarge {
        /// Bytes of the frame.
        bytes: usize,
        /// The limit from `Hello`.
        limit: usize,
    },
    /// Too many requests wait for their reply. Nothing was sent.
    #[error("{PENDING_MAX} requests wait for {address}; await some replies first")]
    TooManyPending {
        /// Host and port.
        address: Arc<str>,
    },
}

impl ConnectionError {
    /// Whether the request may have taken effect.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            ConnectionError::Lost { .. }
            | ConnectionError::TimedOut { .. }
            | ConnectionError::Protocol { .. } => true,
            ConnectionError::Unreachable { .. }
            | ConnectionError::Unanswered { .. }
            | ConnectionError::RequestTooLarge { .. }
            | ConnectionError::TooManyPending { .. } => false,
        }
    }
}

/// A handle on a connection; clones share it. The connection closes when the last one is dropped.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    hello: Hello,
    client_id: String,
    /// Under one lock, so that the order of ids is the order on the wire.
    outbox: Mutex<Outbox>,
}

struct Outbox {
    builder: FlatBufferBuilder<'static>,
    next_id: u64,
    queue: mpsc::UnboundedSender<Outgoing>,
}

/// What the task and the handles share.
struct Shared {
    address: Arc<str>,
    state: Mutex<State>,
    kill: Notify,
    opened: Instant,
    /// When bytes last came, microseconds since it was opened.
    heard_us: AtomicU64,
}

#[derive(Default)]
struct State {
    pending: HashMap<u64, oneshot::Sender<Result<Response, ConnectionError>>>,
    /// One-way requests that are queued and not yet written.
    unwritten: usize,
    closed: Option<ConnectionError>,
}

struct Outgoing {
    head: Bytes,
    bodies: Vec<Bytes>,
    /// Told once the frame is with the kernel; only for requests without a reply.
    written: Option<oneshot::Sender<Result<Response, ConnectionError>>>,
}

impl Connection {
    /// Connects to `address` (`host:port`) and says Hello for `shard`, within [`ClientConfig::attempt_timeout`].
    pub async fn open(
        address: &str,
        shard: Option<u32>,
        config: &ClientConfig,
    ) -> Result<Self, ConnectionError> {
        let unreachable =
            |reason: &str| ConnectionError::Unreachable { address: address.into(), reason: reason.into() };
        let waited = config.attempt_timeout();
        let deadline = tokio::time::Instant::now() + waited;
        let stream = match tokio::time::timeout_at(deadline, TcpStream::connect(address)).await {
            Ok(stream) => stream.map_err(|e| unreachable(&describe(&e)))?,
            Err(_) => return Err(unreachable(&format!("no answer within {waited:?}"))),
        };
        stream.set_nodelay(true).map_err(|e| unreachable(&describe(&e)))?;
        match tokio::time::timeout_at(deadline, Self::greet(stream, address.into(), shard, config)).await {
            Ok(connection) => connection,
            Err(_) => Err(ConnectionError::Unanswered { address: address.into(), waited }),
        }
    }

    async fn greet(
        stream: TcpStream,
        address: Arc<str>,
        shard: Option<u32>,
        config: &ClientConfig,
    ) -> Result<Self, ConnectionError> {
        let (queue, outgoing) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            address,
            state: Mutex::default(),
            kill: Notify::new(),
            opened: Instant::now(),
            heard_us: AtomicU64::new(0),
        });
        let (read_half, write_half) = stream.into_split();
        let task = Task { shared: shared.clone(), response_bytes_max: config.max_response_bytes };
        tokio::spawn(task.run(read_half, write_half, outgoing));
        let outbox = Outbox { builder: FlatBufferBuilder::new(), next_id: 1, queue };
        let mut inner = Inner {
            shared: shared.clone(),
            // Until Hello says more, the smallest limit that any broker has.
            hello: Hello { max_request_bytes: 64 << 10, ..Hello::default() },
            client_id: config.client_id.clone(),
            outbox: Mutex::new(outbox),
        };
        // Nothing may follow Hello before its reply: the broker moves the socket to another core.
        let reply = inner.post(Request::Hello { shard }, config.attempt_timeout())?;
        let response = match reply.await {
            Ok(response) => response?,
            Err(_) => return Err(shared.reason()),
        };
        let protocol = |reason: String| ConnectionError::Protocol {
            address: shared.address.clone(),
            reason: reason.into(),
        };
        let hello = match response.into_result() {
            Ok(Reply::Hello(hello)) => hello,
            Ok(_) => return Err(protocol("Hello was answered by something else".to_owned())),
            Err(error) => {
                let reason = format!("it refused the connection with {error}").into();
                return Err(ConnectionError::Unreachable { address: shared.address.clone(), reason });
            }
        };
        if hello.protocol_version == 0 || hello.protocol_version > schema::PROTOCOL_VERSION {
            return Err(protocol(format!("it chose version {}", hello.protocol_version)));
        }
        inner.hello = hello;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the broker said about itself and this connection.
    pub fn hello(&self) -> &Hello {
        &self.inner.hello
    }

    /// Host and port of the peer.
    pub fn address(&self) -> &str {
        &self.inner.shared.address
    }

    /// Whether nothing can be sent any more.
    pub fn is_closed(&self) -> bool {
        self.inner.shared.lock().closed.is_some()
    }

    /// How long ago the last bytes came, whatever they belong to; a reply takes its time on a slow link.
    pub(crate) fn silent_for(&self) -> Duration {
        let shared = &self.inner.shared;
        let heard = Duration::from_micros(shared.heard_us.load(Ordering::Relaxed));
        shared.opened.elapsed().saturating_sub(heard)
    }

    /// Closes the connection: its broker is silent, and not the one to ask any more. What was sent and not answered
    /// may or may not have taken effect.
    pub(crate) fn give_up(&self, reason: &str) {
        let shared = &self.inner.shared;
        shared.fail(shared.lost(reason));
        shared.kill.notify_one();
    }

    /// Queues `request` behind all that were sent before and returns its reply to come. A request
    /// without a reply (`acks` none) resolves to [`Reply::Empty`] once it is with the kernel.
    ///
    /// Must be called within a tokio runtime with time enabled.
    pub fn send(&self, request: Request, timeout: Duration) -> Result<PendingReply, ConnectionError> {
        let reply = self.inner.post(request, timeout)?;
        Ok(PendingReply { reply, timeout, connection: self.clone() })
    }

    /// Sends `request` and waits for its reply.
    pub async fn request(&self, request: Request, timeout: Duration) -> Result<Response, ConnectionError> {
        self.send(request, timeout)?.wait().await
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("address", &self.inner.shared.address)
            .field("hello", &self.inner.hello)
            .finish_non_exhaustive()
    }
}

type ReplyReceiver = oneshot::Receiver<Result<Response, ConnectionError>>;

impl Inner {
    fn post(&self, request: Request, timeout: Duration) -> Result<ReplyReceiver, ConnectionError> {
        let one_way = matches!(request, Request::Produce { acks: crate::request::Acks::None, .. });
        let (sender, receiver) = oneshot::channel();
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let id = outbox.next_id;
        // The broker is to give up a little before the client does, so that its reason still arrives.
        let deadline_ms = u32::try_from(timeout.mul_f64(0.9).as_millis()).unwrap_or(u32::MAX).max(1);
        let mut head = Vec::with_capacity(256);
        let envelope = Envelope { id, deadline_ms, client_id: &self.client_id };
        request.encode_head(&mut outbox.builder, envelope, &mut head);
        let bytes = head.len() + request.body_bytes();
        let limit = self.hello.max_request_bytes as usize;
        // The limit is on the length field's value, which does not count itself.
        if bytes - 4 > limit {
            return Err(ConnectionError::RequestTooLarge { bytes, limit });
        }
        let mut outgoing =
            Outgoing { head: head.into(), bodies: request.into_bodies().collect(), written: None };
        {
            let mut state = self.shared.lock();
            if let Some(closed) = &state.closed {
                return Err(closed.clone());
            }
            if state.pending.len() + state.unwritten >= PENDING_MAX {
                return Err(ConnectionError::TooManyPending { address: self.shared.address.clone() });
            }
            if one_way {
                state.unwritten += 1;
                outgoing.written = Some(sender);
            } else {
                state.pending.insert(id, sender);
            }
        }
        outbox.next_id += 1;
        // A task that has just ended drops the request; its sender, dropped with it, tells the caller.
        let _ = outbox.queue.send(outgoing);
        Ok(receiver)
    }
}

/// A reply to come. Dropping it abandons the reply, not the request.
#[derive(Debug)]
pub struct PendingReply {
    reply: ReplyReceiver,
    timeout: Duration,
    connection: Connection,
}

impl PendingReply {
    /// Waits for the reply. When the time is up the connection is closed.
    pub async fn wait(self) -> Result<Response, ConnectionError> {
        let shared = &self.connection.inner.shared;
        match tokio::time::timeout(self.timeout, self.reply).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(shared.reason()),
            Err(_) => {
                let error =
                    ConnectionError::TimedOut { address: shared.address.clone(), waited: self.timeout };
                shared.fail(error.clone());
                shared.kill.notify_one();
                Err(error)
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, reason: &str) -> ConnectionError {
        ConnectionError::Lost { address: self.address.clone(), reason: reason.into() }
    }

    /// Why the connection is closed.
    fn reason(&self) -> ConnectionError {
        self.lock().closed.clone().unwrap_or_else(|| self.lost("it was closed by this client"))
    }

    /// Closes the connection for `error`, unless it is closed, and tells everybody who waits.
    fn fail(&self, error: ConnectionError) {
        let waiting = {
            let mut state = self.lock();
            let error = state.closed.get_or_insert(error).clone();
            std::mem::take(&mut state.pending).into_values().map(move |sender| (sender, error.clone()))
        };
        for (sender, error) in waiting {
            let _ = sender.send(Err(error));
        }
    }
}

/// The one task of a connection.
struct Task {
    shared: Arc<Shared>,
    response_bytes_max: usize,
}

impl Task {
    async fn run(
        self,
        read_half: OwnedReadHalf,
        write_half: OwnedWriteHalf,
        outgoing: mpsc::UnboundedReceiver<Outgoing>,
    ) {
        let error = tokio::select! {
            error = self.read(read_half) => error,
            error = self.write(write_half, outgoing) => error,
            () = self.shared.kill.notified() => self.shared.lost("it was closed by this client"),
        };
        self.shared.fail(error);
    }

    async fn read(&self, mut socket: OwnedReadHalf) -> ConnectionError {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let mut aligned = Aligned::default();
        loop {
            let mut wanted = None;
            while let Some(first) = buffer.first_chunk::<{ frame::PREFIX_BYTES }>() {
                let prefix = match Prefix::decode(*first, self.response_bytes_max) {
                    Ok(prefix) => prefix,
                    Err(error) => return self.protocol(&error),
                };
                if buffer.len() < prefix.frame_bytes {
                    wanted = Some(prefix);
                    break;
                }
                let whole = buffer.split_to(prefix.frame_bytes).freeze();
                if let Err(error) = self.dispatch(prefix, whole, &mut aligned) {
                    return error;
                }
            }
            let read = match wanted {
                // A large frame gets memory of its own, read to its end exactly, so that a batch kept
                // by a consumer keeps nothing else.
                Some(prefix) if prefix.frame_bytes > READ_BYTES => {
                    self.read_large(&mut socket, &mut buffer, prefix, &mut aligned).await
                }
                _ => {
                    let needed = wanted.map_or(READ_BYTES_MIN, |prefix| prefix.frame_bytes - buffer.len());
                    if buffer.capacity() - buffer.len() < needed {
                        buffer.reserve(READ_BYTES);
                    }
                    self.read_some(&mut socket, &mut buffer).await
                }
            };
            if let Err(error) = read {
                return error;
            }
        }
    }

    async fn read_large(
        &self,
        socket: &mut OwnedReadHalf,
        buffer: &mut BytesMut,
        prefix: Prefix,
        aligned: &mut Aligned,
    ) -> Result<(), ConnectionError> {
        let mut whole = BytesMut::with_capacity(prefix.frame_bytes);
        whole.extend_from_slice(buffer);
        buffer.clear();
        while whole.len() < prefix.frame_bytes {
            let missing = prefix.frame_bytes - whole.len();
            self.read_some(socket, &mut (&mut whole).limit(missing)).await?;
        }
        self.dispatch(prefix, whole.freeze(), aligned)
    }

    async fn read_some(
        &self,
        socket: &mut OwnedReadHalf,
        buffer: &mut impl BufMut,
    ) -> Result<(), ConnectionError> {
        match socket.read_buf(buffer).await {
            Ok(0) => Err(self.shared.lost("the broker closed it")),
            Ok(_) => {
                let heard = self.shared.opened.elapsed().as_micros();
                self.shared.heard_us.store(u64::try_from(heard).unwrap_or(u64::MAX), Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(self.shared.lost(&describe(&error))),
        }
    }

    fn dispatch(&self, prefix: Prefix, whole: Bytes, aligned: &mut Aligned) -> Result<(), ConnectionError> {
        let metadata = aligned.align(&whole[frame::PREFIX_BYTES..][..prefix.metadata_bytes]);
        let wire = frame::response(metadata, TABLES_MAX).map_err(|error| self.protocol(&error))?;
        let body = whole.slice(prefix.body_start()..);
        let response = reply::decode(&wire, body).map_err(|error| self.protocol(&error))?;
        let sender = self.shared.lock().pending.remove(&wire.id());
        match sender {
            Some(sender) => {
                // Nobody waits any more: the reply is abandoned.
                let _ = sender.send(Ok(response));
                Ok(())
            }
            // Before it hangs up a broker may say why, as a response to no request.
            None if wire.id() == 0 && response.error.is_some() => {
                let reason = response.error.map(|error| error.to_string()).unwrap_or_default();
                Err(self.shared.lost(&reason))
            }
            None => Err(self.protocol(&format_args!("a response to request {} of nobody", wire.id()))),
        }
    }

    fn protocol(&self, reason: &dyn std::fmt::Display) -> ConnectionError {
        ConnectionError::Protocol { address: self.shared.address.clone(), reason: reason.to_string().into() }
    }

    async fn write(
        &self,
        mut socket: OwnedWriteHalf,
        mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
    ) -> ConnectionError {
        let mut frames = Vec::with_capacity(FRAMES_MAX);
        let mut pieces = VecDeque::new();
        let mut written = Vec::new();
        while outgoing.recv_many(&mut frames, FRAMES_MAX).await > 0 {
            for frame in frames.drain(..) {
                pieces.push_back(frame.head);
                pieces.extend(frame.bodies);
                written.extend(frame.written);
            }
            if let Err(error) = write_all(&mut socket, &mut pieces).await {
                return self.shared.lost(&describe(&error));
            }
            if !written.is_empty() {
                self.shared.lock().unwritten -= written.len();
                for sender in written.drain(..) {
                    let _ = sender.send(Ok(Response::empty()));
                }
            }
        }
        // The last handle is gone. What was sent has been written; nobody is left to read replies.
        let _ = socket.shutdown().await;
        self.shared.lost("it was closed by this client")
    }
}

async fn write_all(socket: &mut OwnedWriteHalf, pieces: &mut VecDeque<Bytes>) -> std::io::Result<()> {
    while let Some(first) = pieces.front() {
        if first.is_empty() {
            pieces.pop_front();
            continue;
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces.iter()) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        let mut written = socket.write_vectored(&slices[..count]).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = pieces.front_mut() {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            pieces.pop_front();
        }
    }
    Ok(())
}

/// An error of the system in words, without its number.
fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}
