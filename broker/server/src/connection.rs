//! One client's connection on the shard that serves it: frames in, replies out.
//!
//! Owned by the shard, two tasks: one reads and handles requests in their order, one writes what is in
//! the outbox. Small frames are handled where they lie in the shard's receive buffer; a large batch for
//! a partition of this shard is received straight into the buffer that goes to the device.
//!
//! Every byte is accounted for before memory is taken: a connection above its share is not read
//! (muted), so its client feels the back-pressure as a full socket. The sweep closes whoever takes too
//! long over a frame or over its replies. Whoever does not speak the protocol is told so: bytes that nobody
//! reads would turn the close into a reset, and the answer would be lost, so some of them are drained.

use crate::error_code;
use crate::outbox::{Outbox, Piece};
use crate::produce::{self, InPlaceProduce};
use crate::reply_budget::ReplyBudget;
use crate::shard::Shard;
use crate::socket::Socket;
use crate::stall;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use futures_util::future::select;
use logic::limits::{
    DRAIN_BYTES_MAX, DRAIN_MS, FRAME_BYTES_MAX, FRAME_METADATA_BYTES_MAX, FRAME_TABLES_MAX,
    IN_FLIGHT_BYTES_PER_CONNECTION_MAX, IN_FLIGHT_REQUESTS_PER_CONNECTION_MAX, IN_PLACE_BODY_BYTES_MIN,
    PEER_PROBE_INTERVAL_MS, PEER_PROBES_MAX, REPLY_BYTES_PER_CONNECTION_MAX,
};
use rustix::net::Shutdown;
use schema::error_code::ErrorCode;
use schema::frame::{self, FrameError, PREFIX_BYTES, Prefix};
use schema::wire;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Bytes received at once into a batch's own buffer: small enough to be checksummed while in cache.
const RECEIVE_STEP_BYTES: usize = 256 * 1024;
const NS_PER_MS: u64 = 1_000_000;

/// A connection.
pub struct Connection {
    /// The shard that serves it.
    pub shard: Rc<Shard>,
    id: u64,
    peer: SocketAddr,
    socket: Socket,
    /// Bytes of its replies: queued, and reserved by fetches under way.
    pub replies: Rc<ReplyBudget>,
    outbox: RefCell<Outbox>,
    writer: RefCell<Option<Waker>>,
    reader: RefCell<Option<Waker>>,
    in_flight_bytes: Cell<usize>,
    in_flight_requests: Cell<usize>,
    /// Budget taken for the frame whose beginning has been received.
    reserved: Cell<usize>,
    /// When the first byte of what is received and not handled was seen.
    oldest_ns: Cell<Option<u64>>,
    frame_began_ms: Cell<Option<u64>>,
    write_stalled_ms: Cell<Option<u64>>,
    /// Told to go; closed at the next sweep.
    condemned: Cell<bool>,
    /// It does not speak this protocol, and may still be talking.
    refused: Cell<bool>,
    ended: Cell<bool>,
    dead: Cell<bool>,
}

/// A request that is not answered: holds its share of the budgets until dropped.
pub struct InFlight {
    connection: Rc<Connection>,
    bytes: usize,
}

impl InFlight {
    /// Whom to answer.
    pub fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.in_flight_bytes.set(connection.in_flight_bytes.get() - self.bytes);
        connection.in_flight_requests.set(connection.in_flight_requests.get() - 1);
        connection.shard.give_in_flight(self.bytes);
        connection.wake_reader();
        if connection.ended.get() {
            connection.wake_writer();
        }
    }
}

/// When a frame came.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its first byte was seen, nanoseconds of the broker's clock.
    pub began_ns: u64,
    /// All of it was there.
    pub done_ns: u64,
    /// Its client waits no longer; `u64::MAX` = it did not say.
    pub deadline_ns: u64,
}

impl Received {
    /// A frame that is not all here, whose client waits for `deadline_ms`; 0 = as long as it takes.
    fn new(began_ns: u64, deadline_ms: u32) -> Self {
        let deadline_ns = match deadline_ms {
            0 => u64::MAX,
            wait_ms => began_ns.saturating_add(u64::from(wait_ms) * NS_PER_MS),
        };
        Self { began_ns, done_ns: 0, deadline_ns }
    }

    /// Whether its client has given up.
    pub fn is_late(&self, now_ns: u64) -> bool {
        now_ns >= self.deadline_ns
    }

    /// The deadline in milliseconds of the broker's clock; `u64::MAX` = none.
    pub fn deadline_ms(&self) -> u64 {
        if self.deadline_ns == u64::MAX { u64::MAX } else { self.deadline_ns / NS_PER_MS }
    }
}

/// What reading goes on with.
enum Step {
    /// Everything usable has been used.
    More,
    /// A frame of so many bytes has begun: its budget must be taken before more of it is received.
    Reserve(usize),
    /// The connection has too much under way.
    Muted,
    /// A large batch follows.
    InPlace(Box<InPlaceProduce>),
    /// The peer does not speak this protocol: the answer is on its way, then close.
    Close,
}

impl Connection {
    /// Serves a connection that has said Hello until it ends.
    pub async fn serve(shard: Rc<Shard>, socket: Socket, peer: SocketAddr, hello: impl FnOnce(&Rc<Self>)) {
        socket.set_no_delay();
        let interval = Duration::from_millis(PEER_PROBE_INTERVAL_MS);
        socket.probe_silent_peer(shard.identity.time_outs.probe_after, interval, PEER_PROBES_MAX);
        let connection = Rc::new(Self {
            id: shard.connection_id(),
            peer,
            socket,
            replies: ReplyBudget::new(REPLY_BYTES_PER_CONNECTION_MAX),
            outbox: RefCell::default(),
            writer: RefCell::default(),
            reader: RefCell::default(),
            in_flight_bytes: Cell::new(0),
            in_flight_requests: Cell::new(0),
            reserved: Cell::new(0),
            oldest_ns: Cell::new(None),
            frame_began_ms: Cell::new(None),
            write_stalled_ms: Cell::new(None),
            condemned: Cell::new(false),
            refused: Cell::new(false),
            ended: Cell::new(false),
            dead: Cell::new(false),
            shard,
        });
        let shard = connection.shard.clone();
        shard.connections.borrow_mut().insert(connection.id, connection.clone());
        crate::storage::count(&shard.counters.connections, 1);
        hello(&connection);
        let reading = connection.clone();
        stall::spawn("the requests of a connection", async move {
            reading.read_requests().await;
            reading.shard.give_partial(reading.reserved.take());
            reading.ended.set(true);
            reading.wake_writer();
        })
        .detach();
        connection.write_replies().await;
        if connection.refused.get() && !connection.dead.get() {
            connection.drain().await;
        }
        connection.close();
        shard.connections.borrow_mut().remove(&connection.id);
        let left = connection.outbox.take();
        drop(left);
        connection.sent(connection.replies.queued_bytes());
    }

    /// Says the end and takes what the peer still sends, for some time and bytes, until it has heard.
    async fn drain(&self) {
        self.socket.shut_down(Shutdown::Write);
        let mut left_bytes = DRAIN_BYTES_MAX;
        let draining = poll_fn(|context| {
            // The reader has ended: nothing else uses the stream or needs what it holds.
            let mut scratch = self.shard.scratch.borrow_mut();
            while left_bytes > 0 {
                match self.socket.poll_receive(context, &mut scratch) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_) | Ok(0)) => return Poll::Ready(()),
                    Poll::Ready(Ok(bytes)) => left_bytes = left_bytes.saturating_sub(bytes),
                }
            }
            Poll::Ready(())
        });
        let patience = glommio::timer::sleep(Duration::from_millis(DRAIN_MS));
        select(pin!(draining), pin!(patience)).await;
    }

    /// Whether nobody hears its replies any more.
    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// Ends the connection: both tasks finish.
    pub fn close(&self) {
        self.dead.set(true);
        self.ended.set(true);
        // The reader's pending receive returns with the end of the stream.
        self.socket.shut_down(Shutdown::Both);
        self.wake_reader();
        self.wake_writer();
    }

    /// Takes no more requests; closes when those under way are answered.
    pub fn finish(&self) {
        self.ended.set(true);
        self.wake_reader();
        self.wake_writer();
    }

    /// Closes the connection if its peer is too slow; it is told first, and has until the next sweep to
    /// listen.
    pub fn sweep(&self, now_ms: u64) {
        let over = |began: Option<u64>, limit: Duration| {
            began.is_some_and(|began| now_ms >= began + limit.as_millis() as u64)
        };
        let limits = self.shard.identity.time_outs;
        let slow_frame = over(self.frame_began_ms.get(), limits.frame);
        let slow_peer = over(self.write_stalled_ms.get(), limits.replies);
        if self.condemned.get() || slow_peer {
            self.close();
        }
        if (slow_frame || slow_peer) && !self.condemned.replace(true) {
            let what = if slow_frame { "a frame" } else { "its replies" };
            tracing::info!("connection from {} closed: took too long over {what}", self.peer);
            crate::storage::count(&self.shard.counters.timed_out_connections, 1);
            let text = format!("took longer over {what} than {:?}", limits.frame);
            self.reply_error(0, ErrorCode::InvalidFrame, &text, 0);
        }
    }

    fn wake_reader(&self) {
        let waker = self.reader.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn wake_writer(&self) {
        let waker = self.writer.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    // ---- In ------------------------------------------------------------------------------------------

    fn is_muted(&self) -> bool {
        self.in_flight_bytes.get() >= IN_FLIGHT_BYTES_PER_CONNECTION_MAX
            || self.in_flight_requests.get() >= IN_FLIGHT_REQUESTS_PER_CONNECTION_MAX
            || self.replies.queued_bytes() >= REPLY_BYTES_PER_CONNECTION_MAX
    }

    async fn unmuted(&self) {
        poll_fn(|context| {
            if self.ended.get() || !self.is_muted() {
                return Poll::Ready(());
            }
            *self.reader.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Reads and handles requests until the peer ends, errs or is closed.
    async fn read_requests(self: &Rc<Self>) {
        let mut partial: Vec<u8> = Vec::new();
        let mut retry = false;
        loop {
            if self.is_muted() {
                // Its time does not run while it is not read.
                self.frame_began_ms.set(None);
            }
            self.unmuted().await;
            // A socket that always has bytes must not keep the core from everybody else.
            glommio::yield_if_needed().await;
            if self.ended.get() {
                return;
            }
            let step = if std::mem::take(&mut retry) {
                self.consume_partial(&mut partial)
            } else {
                match self.receive(&mut partial).await {
                    Some(step) => step,
                    None => return,
                }
            };
            match step {
                Step::More => {}
                Step::Muted => retry = true,
                Step::Reserve(bytes) => {
                    // Nobody waits here with more than one buffer's worth of bytes, so whoever has budget
                    // can finish its frame. Its time does not run meanwhile.
                    self.frame_began_ms.set(None);
                    self.shard.wait_partial(bytes).await;
                    self.reserved.set(bytes);
                    retry = true;
                }
                Step::InPlace(body) => {
                    if !self.receive_in_place(body).await {
                        return;
                    }
                    // It is large enough for a round of its own: that begins before the next one is received, which
                    // with 4 x 1 MB in flight is worth a fifth of the throughput (docs/PERFORMANCE.md).
                    stall::give_way().await;
                    // The batch may have come whole, with the next frames behind it.
                    retry = !partial.is_empty();
                }
                Step::Close => {
                    self.refused.set(true);
                    return;
                }
            }
            if partial.is_empty() {
                self.frame_began_ms.set(None);
            } else if self.frame_began_ms.get().is_none() {
                self.frame_began_ms.set(Some(self.shard.now_ms()));
            }
        }
    }

    /// Receives once, and handles what is complete before anything else can use the shard's buffer.
    async fn receive(self: &Rc<Self>, partial: &mut Vec<u8>) -> Option<Step> {
        poll_fn(|context| {
            let mut scratch = self.shard.scratch.borrow_mut();
            match self.socket.poll_receive(context, &mut scratch) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(_) | Ok(0)) => Poll::Ready(None),
                Poll::Ready(Ok(bytes)) if partial.is_empty() => {
                    let (used, step) = self.consume(&scratch[..bytes]);
                    partial.extend_from_slice(&scratch[used..bytes]);
                    Poll::Ready(Some(step))
                }
                Poll::Ready(Ok(bytes)) => {
                    partial.extend_from_slice(&scratch[..bytes]);
                    Poll::Ready(Some(self.consume_partial(partial)))
                }
            }
        })
        .await
    }

    fn consume_partial(self: &Rc<Self>, partial: &mut Vec<u8>) -> Step {
        let (used, step) = self.consume(partial);
        partial.drain(..used);
        if partial.is_empty() && partial.capacity() > RECEIVE_STEP_BYTES {
            *partial = Vec::new();
        }
        step
    }

    /// Handles the complete frames at the start of `bytes`; how many bytes were used.
    fn consume(self: &Rc<Self>, bytes: &[u8]) -> (usize, Step) {
        let now_ns = self.shard.now_ns();
        let oldest_ns = self.oldest_ns.get().unwrap_or(now_ns);
        let (used, step) = self.consume_frames(bytes, oldest_ns, now_ns);
        let left_ns = match step {
            // No more is received until all of it has been handled.
            Step::Muted => oldest_ns,
            _ if used == 0 => oldest_ns,
            _ => now_ns,
        };
        self.oldest_ns.set((used < bytes.len()).then_some(left_ns));
        (used, step)
    }

    fn consume_frames(self: &Rc<Self>, bytes: &[u8], oldest_ns: u64, now_ns: u64) -> (usize, Step) {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let Some(prefix) = rest.first_chunk::<PREFIX_BYTES>() else { return (at, Step::More) };
            let prefix = match Prefix::decode(*prefix, FRAME_BYTES_MAX) {
                Ok(prefix) if prefix.metadata_bytes <= FRAME_METADATA_BYTES_MAX => prefix,
                Ok(prefix) => {
                    let length = prefix.frame_bytes;
                    self.refuse_frame(&FrameError::MetadataTooLong {
                        metadata: prefix.metadata_bytes,
                        length,
                    });
                    return (at, Step::Close);
                }
                Err(error) => {
                    self.refuse_frame(&error);
                    return (at, Step::Close);
                }
            };
            let complete = rest.len() >= prefix.frame_bytes;
            let in_place = self.reserved.get() == 0
                && prefix.body_bytes() >= IN_PLACE_BODY_BYTES_MIN
                && rest.len() >= prefix.body_start();
            if !complete && !in_place {
                let step =
                    if self.reserved.get() == 0 { Step::Reserve(prefix.frame_bytes) } else { Step::More };
                return (at, step);
            }
            if at > 0 && self.is_muted() {
                return (at, Step::Muted);
            }
            match self.reserved.take() {
                0 if !self.shard.take_in_flight(prefix.frame_bytes) => {
                    return (at, Step::Reserve(prefix.frame_bytes));
                }
                0 => {}
                reserved => self.shard.complete_partial(reserved),
            }
            self.frame_began_ms.set(None);
            let metadata = &rest[PREFIX_BYTES..PREFIX_BYTES + prefix.metadata_bytes];
            let mut aligned = self.shard.aligned.borrow_mut();
            let request = match frame::request(aligned.align(metadata), FRAME_TABLES_MAX) {
                Ok(request) => request,
                Err(error) => {
                    self.shard.give_in_flight(prefix.frame_bytes);
                    self.refuse_frame(&error);
                    return (at, Step::Close);
                }
            };
            let in_flight = self.begin(prefix.frame_bytes);
            let began_ns = if at == 0 { oldest_ns } else { now_ns };
            let received = Received::new(began_ns, request.deadline_ms());
            if in_place {
                let body = prefix.body_bytes();
                match produce::in_place(&self.shard, &request, body, received, in_flight) {
                    Ok(mut produce) => {
                        let there = rest.len().min(prefix.frame_bytes);
                        produce.take(&rest[prefix.body_start()..there]);
                        at += there;
                        return (at, Step::InPlace(produce));
                    }
                    // Not one batch for a partition of this shard: wait for the whole frame.
                    Err(_in_flight) if !complete => return (at, Step::Reserve(prefix.frame_bytes)),
                    Err(in_flight) => {
                        let body = &rest[prefix.body_start()..prefix.frame_bytes];
                        self.handle(&request, body, received, in_flight);
                    }
                }
            } else {
                let body = &rest[prefix.body_start()..prefix.frame_bytes];
                self.handle(&request, body, received, in_flight);
            }
            at += prefix.frame_bytes;
        }
    }

    /// Takes the connection's share for a request whose bytes the shard has given already.
    fn begin(self: &Rc<Self>, bytes: usize) -> InFlight {
        self.in_flight_bytes.set(self.in_flight_bytes.get() + bytes);
        self.in_flight_requests.set(self.in_flight_requests.get() + 1);
        InFlight { connection: self.clone(), bytes }
    }

    fn handle(
        self: &Rc<Self>,
        request: &wire::Request<'_>,
        body: &[u8],
        mut received: Received,
        in_flight: InFlight,
    ) {
        crate::storage::count(&self.shard.counters.requests, 1);
        received.done_ns = self.shard.now_ns();
        crate::stall::doing(request.api_type().variant_name().unwrap_or("an unknown request"), self.peer);
        crate::dispatch::dispatch(&self.shard, request, body, received, in_flight);
    }

    /// Receives the rest of a large batch where it belongs, then appends it. `false` = the peer ended.
    async fn receive_in_place(self: &Rc<Self>, mut produce: Box<InPlaceProduce>) -> bool {
        self.frame_began_ms.set(Some(self.shard.now_ms()));
        while produce.missing() > 0 {
            let received =
                poll_fn(|context| self.socket.poll_receive(context, produce.room(RECEIVE_STEP_BYTES))).await;
            match received {
                Ok(bytes) if bytes > 0 => produce.received(bytes),
                _ => return false,
            }
            glommio::yield_if_needed().await;
        }
        self.frame_began_ms.set(None);
        crate::storage::count(&self.shard.counters.requests, 1);
        crate::stall::doing("ProduceRequest", self.peer);
        produce.finish(&self.shard);
        true
    }

    fn refuse_frame(self: &Rc<Self>, error: &FrameError) {
        crate::storage::count(&self.shard.counters.invalid_frames, 1);
        tracing::debug!("connection from {}: {error}", self.peer);
        self.reply_error(0, error_code::of_frame(error), &error.to_string(), 0);
    }

    // ---- Out -----------------------------------------------------------------------------------------

    /// Queues a reply: `build` makes the response in the shard's builder, `body` follows it unchanged.
    pub fn reply(
        &self,
        body: Vec<Piece>,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<wire::Response<'static>>,
    ) {
        if self.dead.get() {
            return;
        }
        let body_bytes: usize = body.iter().map(|piece| piece.bytes().len()).sum();
        let mut builder = self.shard.builder.borrow_mut();
        builder.reset();
        let root = build(&mut builder);
        let mut outbox = self.outbox.borrow_mut();
        let head = outbox.write(|bytes| frame::finish_response(bytes, &mut builder, root, body_bytes));
        body.into_iter().for_each(|piece| outbox.push(piece));
        drop(outbox);
        self.replies.queued(head + body_bytes);
        self.shard.replies.queued(head + body_bytes);
        self.wake_writer();
    }

    /// Queues an error for a whole request.
    pub fn reply_error(&self, id: u64, code: ErrorCode, message: &str, retry_after_ms: u32) {
        self.reply(Vec::new(), |builder| {
            let message = builder.create_string(message);
            wire::Response::create(
                builder,
                &wire::ResponseArgs {
                    id,
                    error: code.to_wire(),
                    message: Some(message),
                    retry_after_ms,
                    ..Default::default()
                },
            )
        });
    }

    /// Answers a request that its client has given up: it was not done.
    pub fn reply_late(&self, id: u64) {
        crate::storage::count(&self.shard.counters.late_requests, 1);
        self.reply_error(id, ErrorCode::TimedOut, "the request's deadline had passed before it was done", 0);
    }

    /// Bytes of replies have left, for the peer or for good.
    fn sent(&self, bytes: usize) {
        self.replies.sent(bytes);
        self.shard.replies.sent(bytes);
    }

    /// Writes replies until everything is answered after the end, or the peer is gone.
    async fn write_replies(&self) {
        loop {
            let wrote = poll_fn(|context| {
                let mut outbox = self.outbox.borrow_mut();
                if self.dead.get() {
                    return Poll::Ready(None);
                }
                if outbox.is_empty() {
                    if self.ended.get() && self.in_flight_requests.get() == 0 {
                        return Poll::Ready(None);
                    }
                    *self.writer.borrow_mut() = Some(context.waker().clone());
                    return Poll::Pending;
                }
                match outbox.poll_send(&self.socket, context) {
                    Poll::Pending => {
                        if self.write_stalled_ms.get().is_none() {
                            self.write_stalled_ms.set(Some(self.shard.now_ms()));
                        }
                        *self.writer.borrow_mut() = Some(context.waker().clone());
                        Poll::Pending
                    }
                    Poll::Ready(Err(_) | Ok(0)) => Poll::Ready(None),
                    Poll::Ready(Ok(bytes)) => {
                        self.write_stalled_ms.set(None);
                        Poll::Ready(Some(bytes))
                    }
                }
            })
            .await;
            let Some(bytes) = wrote else { return };
            self.sent(bytes);
            self.wake_reader();
            glommio::yield_if_needed().await;
        }
    }
}
