//! The way from this shard to one follower broker: connects, says Hello, connects again.
//!
//! Owned by [`Peers`]; ends when the broker is not in the metadata any more. A connected link has a [`Session`]: the live
//! stream, a catch-up stream that is made when it is first needed, and the turns of both. Either one's end ends the
//! session; the next one begins with nothing. Invariants: one session at a time; who cannot be reached is tried ever more
//! rarely, and at once when it registers anew.

use super::pace::Pace;
use super::stream::{Stream, StreamError};
use super::turns::Turns;
use super::{Batches, Chunk, PeerAddress, Peers, Pushed, wire};
use crate::accept::PeerHello;
use crate::outbox::{Outbox, Piece};
use crate::socket::Socket;
use crate::stall;
use crate::storage::count;
use futures_util::future::{Either, select};
use logic::ids::{BrokerId, TopicPartition};
use logic::limits::{
    CATCH_UP_PUSH_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_HELLO, FRAME_TABLES_MAX, PUSH_BYTES_MAX,
    REPLICATION_CATCH_UP_BYTES_MAX, REPLICATION_CONNECT_TIMEOUT_MS, REPLICATION_FRAME_BODY_BYTES,
    REPLICATION_LIVE_BYTES_MAX, REPLICATION_PARTITION_BYTES_MAX, REPLICATION_READS_MAX,
    REPLICATION_RECONNECT_MS_MAX, REPLICATION_RECONNECT_MS_MIN,
};
use logic::replication::Stream as StreamKind;
use logic::replication::message::{Body, FromFollower, FromLeader, Message};
use schema::frame::{self, Aligned, FrameError, PREFIX_BYTES, Prefix};
use schema::{PROTOCOL_VERSION, wire as client_wire};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// The longest time that a catch-up stream which must wait is not looked at.
const PACE_LOOK: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    /// The network, or whoever answers there.
    #[error(transparent)]
    Network(#[from] io::Error),
    /// Nobody answered in time.
    #[error("no answer within {REPLICATION_CONNECT_TIMEOUT_MS} ms")]
    TimedOut,
    /// The answer is not one.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The broker does not want to talk.
    #[error("refused with code {code}: {message}")]
    Refused {
        /// What it said.
        code: u16,
        /// In words.
        message: String,
    },
    /// The metadata says nothing that could be connected to.
    #[error("it has no address that could be connected to")]
    NoAddress,
    /// Another broker has its address now.
    #[error("broker {0} answers at its address")]
    OtherBroker(u32),
}

/// See the module.
pub struct Link {
    /// Whom it leads to.
    pub peer: BrokerId,
    peers: Weak<Peers>,
    session: RefCell<Option<Rc<Session>>>,
    address: RefCell<Option<PeerAddress>>,
    /// The address has changed, or the link is to end.
    moved: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    connects: Cell<u64>,
    failed_connects: Cell<u64>,
}

/// What a connected link has.
struct Session {
    live: Rc<Stream>,
    catch_up: RefCell<CatchUp>,
    live_turns: RefCell<Turns>,
    catch_up_turns: RefCell<Turns>,
    /// Reads of the device under way, of each stream its own: live batches wait for no other's.
    live_reads: Cell<usize>,
    catch_up_reads: Cell<usize>,
    /// Of the catch-up stream.
    pace: RefCell<Pace>,
    /// It is woken when it may send again.
    paces: Cell<bool>,
}

/// The stream for those who are far behind.
enum CatchUp {
    /// Nobody has needed it.
    None,
    /// It is being made.
    Connecting,
    /// It is there.
    Up(Rc<Stream>),
}

impl Session {
    fn turns(&self, kind: StreamKind) -> &RefCell<Turns> {
        match kind {
            StreamKind::Live => &self.live_turns,
            StreamKind::CatchUp => &self.catch_up_turns,
        }
    }

    fn reads(&self, kind: StreamKind) -> &Cell<usize> {
        match kind {
            StreamKind::Live => &self.live_reads,
            StreamKind::CatchUp => &self.catch_up_reads,
        }
    }

    fn stream(&self, kind: StreamKind) -> Option<Rc<Stream>> {
        match (kind, &*self.catch_up.borrow()) {
            (StreamKind::Live, _) => Some(self.live.clone()),
            (StreamKind::CatchUp, CatchUp::Up(stream)) => Some(stream.clone()),
            (StreamKind::CatchUp, _) => None,
        }
    }

    fn close(&self) {
        self.live.close();
        if let CatchUp::Up(stream) = &*self.catch_up.borrow() {
            stream.close();
        }
    }
}

impl Link {
    /// A link that does not connect yet.
    pub(super) fn new(peers: &Rc<Peers>, peer: BrokerId) -> Rc<Self> {
        Rc::new(Self {
            peer,
            peers: Rc::downgrade(peers),
            session: RefCell::default(),
            address: RefCell::new(peers.address(peer)),
            moved: Cell::new(false),
            waker: RefCell::default(),
            connects: Cell::new(0),
            failed_connects: Cell::new(0),
        })
    }

    /// Connects from now on. It may be up when this returns.
    pub(super) fn begin(self: &Rc<Self>) {
        stall::spawn("a link to another broker", self.clone().keep()).detach();
    }

    /// Whether it is connected.
    pub fn is_up(&self) -> bool {
        self.session.borrow().is_some()
    }

    /// Connections that were made, those for catching up among them.
    pub fn connects(&self) -> u64 {
        self.connects.get()
    }

    /// Connections that could not be made.
    pub fn failed_connects(&self) -> u64 {
        self.failed_connects.get()
    }

    /// Bytes of batches that the peer has not acknowledged.
    pub fn unacknowledged_bytes(&self) -> u64 {
        let Some(session) = self.session.borrow().clone() else { return 0 };
        (session.live_turns.borrow().bytes() + session.catch_up_turns.borrow().bytes()) as u64
    }

    /// The peer is to be found elsewhere, or has registered anew, or, without an address, not at all any more.
    pub(super) fn moved(&self, address: Option<PeerAddress>) {
        if *self.address.borrow() == address && address.is_some() {
            return;
        }
        *self.address.borrow_mut() = address;
        self.moved.set(true);
        if let Some(session) = self.session.borrow().clone() {
            session.close();
        }
        let waker = self.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Says something over the live stream.
    pub(super) fn say(&self, id: TopicPartition, message: &Message) {
        if let Some(session) = self.session.borrow().clone() {
            session.live.say(id, message);
        }
    }

    /// A partition asks for its turn.
    pub(super) fn ask(self: &Rc<Self>, peers: &Rc<Peers>, id: TopicPartition, kind: StreamKind) {
        let Some(session) = self.session.borrow().clone() else { return };
        session.turns(kind).borrow_mut().ask(id);
        match session.stream(kind) {
            Some(stream) => stream.wake_writer(),
            None => {
                let begins = matches!(*session.catch_up.borrow(), CatchUp::None);
                if begins {
                    *session.catch_up.borrow_mut() = CatchUp::Connecting;
                    let (link, peers) = (self.clone(), peers.clone());
                    let task = async move { link.keep_catch_up(&peers, &session).await };
                    stall::spawn("a stream for catching up", task).detach();
                }
            }
        }
    }

    /// Those who catch up may be sent more than before, or less.
    pub(super) fn wake_catch_up(&self) {
        let session = self.session.borrow().clone();
        if let Some(stream) = session.and_then(|session| session.stream(StreamKind::CatchUp)) {
            stream.wake_writer();
        }
    }

    /// What is on its way of a partition does not count any more.
    pub(super) fn forget(&self, id: TopicPartition) {
        let Some(session) = self.session.borrow().clone() else { return };
        for kind in [StreamKind::Live, StreamKind::CatchUp] {
            session.turns(kind).borrow_mut().forget(id);
            if let Some(stream) = session.stream(kind) {
                stream.wake_writer();
            }
        }
    }

    /// Connects and serves, again and again.
    async fn keep(self: Rc<Self>) {
        let mut pause_ms = REPLICATION_RECONNECT_MS_MIN;
        loop {
            self.moved.set(false);
            let Some(peers) = self.peers.upgrade().filter(|peers| !peers.stopped.get()) else { return };
            let Some(address) = self.address.borrow().clone() else { return };
            match self.connect(&peers, &address).await {
                // Meanwhile it is to be found elsewhere, or nowhere.
                Ok(_) if self.moved.get() => {}
                Ok(stream) => {
                    pause_ms = REPLICATION_RECONNECT_MS_MIN;
                    let why = self.serve(&peers, stream).await;
                    tracing::info!("the stream to broker {} has ended: {why}", self.peer);
                }
                Err(error) => {
                    count(&self.failed_connects, 1);
                    tracing::debug!("no stream to broker {} at {address:?}: {error}", self.peer);
                }
            }
            drop(peers);
            // Brokers that lost the same peer do not come back in step.
            let jittered = pause_ms / 2 + rand::random::<u64>() % pause_ms;
            self.pause(Duration::from_millis(jittered)).await;
            pause_ms = (2 * pause_ms).min(REPLICATION_RECONNECT_MS_MAX);
        }
    }

    /// Waits so long, or until the address changes.
    async fn pause(&self, time: Duration) {
        let moved = poll_fn(|context| {
            if self.moved.get() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        });
        select(moved, pin!(glommio::timer::sleep(time))).await;
    }

    async fn serve(self: &Rc<Self>, peers: &Rc<Peers>, live: Rc<Stream>) -> StreamError {
        let session = Rc::new(Session {
            live: live.clone(),
            catch_up: RefCell::new(CatchUp::None),
            live_turns: RefCell::new(Turns::new(REPLICATION_LIVE_BYTES_MAX, REPLICATION_PARTITION_BYTES_MAX)),
            catch_up_turns: RefCell::new(Turns::new(
                REPLICATION_CATCH_UP_BYTES_MAX,
                REPLICATION_PARTITION_BYTES_MAX,
            )),
            live_reads: Cell::new(0),
            catch_up_reads: Cell::new(0),
            pace: RefCell::default(),
            paces: Cell::new(false),
        });
        *self.session.borrow_mut() = Some(session.clone());
        tracing::info!("a stream to broker {} is up", self.peer);
        if let Some(replicas) = peers.replicas() {
            replicas.link_up(self.peer);
        }
        let why = self.run(peers, &session, StreamKind::Live, &live).await;
        session.close();
        *self.session.borrow_mut() = None;
        if let Some(replicas) = peers.replicas() {
            replicas.link_down(self.peer);
        }
        why
    }

    /// Makes the catch-up stream of a session and serves it; its end is the session's.
    async fn keep_catch_up(self: Rc<Self>, peers: &Rc<Peers>, session: &Rc<Session>) {
        let Some(address) = self.address.borrow().clone() else { return };
        match self.connect(peers, &address).await {
            Ok(stream) if !session.live.is_closed() => {
                *session.catch_up.borrow_mut() = CatchUp::Up(stream.clone());
                let why = self.run(peers, session, StreamKind::CatchUp, &stream).await;
                tracing::info!("the catch-up stream to broker {} has ended: {why}", self.peer);
            }
            Ok(_) => {}
            Err(error) => {
                count(&self.failed_connects, 1);
                tracing::info!("no catch-up stream to broker {}: {error}", self.peer);
            }
        }
        session.close();
    }

    /// Sends and receives over one stream of a session until it ends.
    async fn run(
        self: &Rc<Self>,
        peers: &Rc<Peers>,
        session: &Rc<Session>,
        kind: StreamKind,
        stream: &Rc<Stream>,
    ) -> StreamError {
        let (link, to, of, writing) = (self.clone(), peers.clone(), session.clone(), stream.clone());
        stall::spawn("what a leader says", async move {
            writing.write(|| link.refill(&to, &of, kind, &writing)).await;
        })
        .detach();
        stream
            .read(async |frame, body| {
                for message in frame.messages(body) {
                    let (id, message, _) = wire::read(message).ok_or(StreamError::UnknownMessage)?;
                    let Body::FromFollower(said) = &message.body else {
                        return Err(StreamError::UnknownMessage);
                    };
                    self.answered(session, id, &message, said);
                    if let Some(replicas) = peers.replicas() {
                        replicas.receive(self.peer, id, message, &[]);
                    }
                }
                Ok(())
            })
            .await
    }

    /// An acknowledgement gives credit back, a refusal all of it.
    fn answered(&self, session: &Session, id: TopicPartition, message: &Message, said: &FromFollower) {
        let end = match said {
            FromFollower::Ack { durable_end } => *durable_end,
            FromFollower::Nack(_) => return self.forget(id),
            FromFollower::Opened(_) | FromFollower::Matched { .. } => return,
        };
        for kind in [StreamKind::Live, StreamKind::CatchUp] {
            let mut turns = session.turns(kind).borrow_mut();
            let before = turns.bytes();
            turns.acknowledged(id, message.open_sequence, end);
            if turns.bytes() < before
                && let Some(stream) = session.stream(kind)
            {
                stream.wake_writer();
            }
        }
    }

    /// Gives turns while there is room in the stream.
    fn refill(
        self: &Rc<Self>,
        peers: &Rc<Peers>,
        session: &Rc<Session>,
        kind: StreamKind,
        stream: &Rc<Stream>,
    ) {
        let Some(replicas) = peers.replicas() else { return };
        let has_rate = || peers.throttle.get().is_some() || replicas.catch_up_rate().is_some();
        let paced = kind == StreamKind::CatchUp && has_rate();
        let max_bytes = if paced { CATCH_UP_PUSH_BYTES_MAX } else { PUSH_BYTES_MAX };
        while stream.waiting_bytes() < REPLICATION_FRAME_BODY_BYTES
            && session.reads(kind).get() < REPLICATION_READS_MAX
        {
            if kind == StreamKind::CatchUp && self.must_wait(peers, session, paced) {
                return;
            }
            let next = session.turns(kind).borrow_mut().next();
            let Some(id) = next else { return };
            match replicas.read(self.peer, id, max_bytes) {
                Chunk::Nothing => {}
                Chunk::Batches(batches) => self.push(peers, session, kind, id, batches, true),
                Chunk::Device => {
                    session.reads(kind).set(session.reads(kind).get() + 1);
                    let read = replicas.read_device(self.peer, id, max_bytes);
                    let (link, peers, session) = (self.clone(), peers.clone(), session.clone());
                    stall::spawn("batches for a follower that is behind", async move {
                        let batches = read.await;
                        session.reads(kind).set(session.reads(kind).get() - 1);
                        if let Some(batches) = batches {
                            link.push(&peers, &session, kind, id, batches, false);
                        }
                        // It may have waited for its reads to become fewer.
                        if let Some(stream) = session.stream(kind) {
                            stream.wake_writer();
                        }
                    })
                    .detach();
                }
            }
        }
    }

    /// Whether those who catch up have had as much as they may for now, so that cores and devices are left to what is
    /// produced. The stream is then woken when there is more. `paced`: there is a rate just now.
    fn must_wait(&self, peers: &Peers, session: &Rc<Session>, paced: bool) -> bool {
        let now = Instant::now();
        let waits = [session.pace.borrow().wait(now), peers.pace.borrow().wait(now)];
        let Some(wait) = waits.into_iter().flatten().max() else {
            // How much a read brings is not known before; its end wakes the stream. Several at once would be a burst, which
            // what is produced then waits behind at the follower.
            return paced && session.catch_up_reads.get() > 0;
        };
        if !session.paces.replace(true) {
            let session = session.clone();
            stall::spawn("the pace of catching up", async move {
                // Not much longer than the session.
                glommio::timer::sleep(wait.min(PACE_LOOK)).await;
                session.paces.set(false);
                if let Some(stream) = session.stream(StreamKind::CatchUp) {
                    stream.wake_writer();
                }
            })
            .detach();
        }
        true
    }

    /// Sends batches and says so.
    fn push(
        &self,
        peers: &Rc<Peers>,
        session: &Session,
        kind: StreamKind,
        id: TopicPartition,
        batches: Batches,
        from_memory: bool,
    ) {
        let Some(stream) = session.stream(kind).filter(|stream| !stream.is_closed()) else { return };
        let Batches { leader_epoch, open_sequence, head, end, slices } = batches;
        let bytes = slices.iter().map(|slice| slice.range.len()).sum();
        let body = Body::FromLeader(FromLeader::Append(head));
        stream.append(id, &Message { leader_epoch, open_sequence, body }, slices);
        session.turns(kind).borrow_mut().sent(id, open_sequence, end, bytes);
        let Some(replicas) = peers.replicas() else { return };
        if kind == StreamKind::CatchUp {
            let now = Instant::now();
            session.pace.borrow_mut().sent(now, bytes, replicas.catch_up_rate());
            peers.pace.borrow_mut().sent(now, bytes, peers.throttle.get());
        }
        replicas.pushed(self.peer, id, Pushed { leader_epoch, open_sequence, end, from_memory });
    }

    // ---- Connecting ----------------------------------------------------------------------------------

    async fn connect(&self, peers: &Rc<Peers>, address: &PeerAddress) -> Result<Rc<Stream>, ConnectError> {
        let connecting = pin!(self.connect_and_greet(peers, address));
        let patience = glommio::timer::sleep(Duration::from_millis(REPLICATION_CONNECT_TIMEOUT_MS));
        match select(connecting, pin!(patience)).await {
            Either::Left((connected, _)) => connected,
            Either::Right(_) => Err(ConnectError::TimedOut),
        }
    }

    async fn connect_and_greet(
        &self,
        peers: &Rc<Peers>,
        address: &PeerAddress,
    ) -> Result<Rc<Stream>, ConnectError> {
        let socket = Socket::connect(&peers.sockets, resolve(address).await?)?;
        let shard = peers.identity.shard.get() % address.shards.max(1);
        let mut outbox = Outbox::default();
        outbox.push(Piece::Owned(encode_hello(peers.hello(), shard)));
        while !outbox.is_empty() {
            poll_fn(|context| outbox.poll_send(&socket, context)).await?;
        }
        let answers = read_hello(&socket).await?;
        if answers != self.peer.get() {
            return Err(ConnectError::OtherBroker(answers));
        }
        count(&self.connects, 1);
        Ok(Stream::new(self.peer, socket, peers.counters.clone()))
    }
}

/// Where to connect to. A name is looked up, on the thread for slow calls.
async fn resolve(address: &PeerAddress) -> Result<SocketAddr, ConnectError> {
    let (host, port) = (address.host.clone(), address.port);
    if host.is_empty() {
        return Err(ConnectError::NoAddress);
    }
    if let Ok(ip) = host.parse() {
        return Ok(SocketAddr::new(ip, port));
    }
    let lookup = move || (host.as_str(), port).to_socket_addrs().map(|mut found| found.next());
    glommio::executor().spawn_blocking(lookup).await?.ok_or(ConnectError::NoAddress)
}

fn encode_hello(hello: PeerHello, shard: u16) -> Vec<u8> {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let cluster = hello.cluster.map(client_wire::ClusterId::from_u128);
    let request = client_wire::HelloRequest::create(
        &mut builder,
        &client_wire::HelloRequestArgs {
            shard: i32::from(shard),
            protocol_version: PROTOCOL_VERSION,
            purpose: client_wire::Purpose::Replication,
            broker: hello.broker.get(),
            broker_epoch: hello.epoch.get(),
            cluster: cluster.as_ref(),
        },
    );
    let root = client_wire::Request::create(
        &mut builder,
        &client_wire::RequestArgs {
            id: 1,
            api_type: client_wire::RequestApi::HelloRequest,
            api: Some(request.as_union_value()),
            ..Default::default()
        },
    );
    let mut out = Vec::new();
    frame::finish_request(&mut out, &mut builder, root, 0);
    out
}

/// Receives the answer to Hello, exactly; which broker gave it.
async fn read_hello(socket: &Socket) -> Result<u32, ConnectError> {
    let mut prefix = [0; PREFIX_BYTES];
    read_exactly(socket, &mut prefix).await?;
    let prefix = Prefix::decode(prefix, FRAME_BYTES_MAX_BEFORE_HELLO)?;
    let mut rest = vec![0; prefix.frame_bytes - PREFIX_BYTES];
    read_exactly(socket, &mut rest).await?;
    let mut aligned = Aligned::default();
    let response = frame::response(aligned.align(&rest[..prefix.metadata_bytes]), FRAME_TABLES_MAX)?;
    match response.api_as_hello_response() {
        Some(hello) if response.error() == 0 => Ok(hello.broker()),
        _ => Err(ConnectError::Refused {
            code: response.error(),
            message: response.message().unwrap_or("no reason given").to_owned(),
        }),
    }
}

fn read_exactly(socket: &Socket, bytes: &mut [u8]) -> impl Future<Output = io::Result<()>> {
    let mut have = 0;
    poll_fn(move |context| {
        while have < bytes.len() {
            match socket.poll_receive(context, &mut bytes[have..]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(read)) => have += read,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    })
}
