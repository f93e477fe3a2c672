//! Connections: accepted, greeted, handed to whom they are for.
//!
//! The first frame of every connection is Hello. It says which shard is to serve it and what it is for: a client's
//! requests, or one of the streams between brokers. Any shard accepts; the socket then goes to its owner, with not a
//! byte read beyond Hello. Who says nothing, or nonsense, is told so and closed.

use crate::connection::Connection;
use crate::mailbox::{HandedConnection, Message};
use crate::metadata::HandedPeer;
use crate::outbox::Outbox;
use crate::shard::{Identity, Shard};
use crate::socket::Socket;
use crate::stall;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use logic::ids::{BrokerEpoch, BrokerId, ShardId};
use logic::limits::{
    CONNECTIONS_BEFORE_HELLO_MAX, FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_HELLO, FRAME_TABLES_MAX,
};
use schema::error_code::ErrorCode;
use schema::frame::{self, Aligned, PREFIX_BYTES, Prefix};
use schema::{PROTOCOL_VERSION, wire};
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Requests of a client.
    Client,
    /// The replication stream of another broker.
    Replication(PeerHello),
    /// The metadata thread of another broker.
    Metadata(PeerHello),
}

/// Which broker connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// Its number.
    pub broker: BrokerId,
    /// Its registration; 0 if it has none yet.
    pub epoch: BrokerEpoch,
    /// Its cluster; `None` if it does not know of one yet.
    pub cluster: Option<u128>,
}

/// What is known of a connection that has said Hello.
#[derive(Clone, Copy, Debug)]
pub struct Greeted {
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The id of its Hello, to be answered by who serves it.
    pub hello_id: u64,
    /// The version agreed on.
    pub protocol_version: u32,
    /// It is another broker's replication stream.
    pub replicates: Option<PeerHello>,
}

/// The first request of a connection.
#[derive(Clone, Copy)]
struct Hello {
    /// Negative: whichever accepted.
    shard: i32,
    /// The highest version that the other side speaks.
    protocol_version: u32,
    purpose: Purpose,
}

impl Hello {
    /// Of a request that is one; `None` if it is another.
    fn of(request: &wire::Request<'_>) -> Option<Result<Self, String>> {
        let hello = request.api_as_hello_request()?;
        let peer = PeerHello {
            broker: BrokerId::new(hello.broker()),
            epoch: BrokerEpoch::new(hello.broker_epoch()),
            cluster: hello.cluster().map(|id| id.as_u128()),
        };
        let purpose = match hello.purpose() {
            wire::Purpose::Client => Purpose::Client,
            wire::Purpose::Replication => Purpose::Replication(peer),
            wire::Purpose::Metadata => Purpose::Metadata(peer),
            other => return Some(Err(format!("purpose {} of a connection is not known here", other.0))),
        };
        let (shard, protocol_version) = (hello.shard(), hello.protocol_version());
        Some(Ok(Self { shard, protocol_version, purpose }))
    }
}

/// Takes connections until it is cancelled.
pub async fn accept(shard: Rc<Shard>, listener: TcpListener) {
    let greeting = Rc::new(Cell::new(0usize));
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, most likely: what is open goes on, the next may find room.
                tracing::warn!("cannot accept a connection: {error}");
                glommio::timer::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // A connection for another shard passes through a full one.
        let full = greeting.get() >= CONNECTIONS_BEFORE_HELLO_MAX;
        if greeting.get() >= 2 * CONNECTIONS_BEFORE_HELLO_MAX {
            // Too many even to be told.
            continue;
        }
        let shard = shard.clone();
        let greeting = Greeting::new(&greeting);
        stall::spawn("a new connection", async move {
            match full {
                true => refuse(stream, 0, ErrorCode::TooManyConnections, "this shard has no room").await,
                false => greet(shard, stream, greeting).await,
            }
        })
        .detach();
    }
}

/// Reads exactly these bytes, all of them before `deadline`.
async fn read_before(stream: &mut TcpStream, deadline: Instant, bytes: &mut [u8]) -> io::Result<()> {
    let mut have = 0;
    while have < bytes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left)).map_err(io::Error::from)?;
        match stream.read(&mut bytes[have..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => have += read,
        }
    }
    Ok(())
}

/// A connection that is not served, or not yet; counted until dropped.
struct Greeting(Rc<Cell<usize>>);

impl Greeting {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Reads Hello, exactly and not a byte more, and gives the connection to the shard that it asks for.
async fn greet(shard: Rc<Shard>, mut stream: TcpStream, greeting: Greeting) {
    let Ok(peer) = stream.peer_addr() else { return };
    let limit = shard.identity.time_outs.hello;
    let deadline = Instant::now() + limit;
    let late = async |stream, error: io::Error| {
        if error.kind() != io::ErrorKind::TimedOut {
            return;
        }
        tracing::info!("connection from {peer} closed: no Hello within {limit:?}");
        crate::storage::count(&shard.counters.timed_out_connections, 1);
        refuse(stream, 0, ErrorCode::HelloRequired, &format!("no Hello within {limit:?}")).await;
    };
    let mut prefix = [0; PREFIX_BYTES];
    if let Err(error) = read_before(&mut stream, deadline, &mut prefix).await {
        return late(stream, error).await;
    }
    let prefix = match Prefix::decode(prefix, FRAME_BYTES_MAX_BEFORE_HELLO) {
        Ok(prefix) => prefix,
        Err(error) => {
            crate::storage::count(&shard.counters.invalid_frames, 1);
            let code = crate::error_code::of_frame(&error);
            return refuse(stream, 0, code, &error.to_string()).await;
        }
    };
    let mut rest = vec![0; prefix.frame_bytes - PREFIX_BYTES];
    if let Err(error) = read_before(&mut stream, deadline, &mut rest).await {
        return late(stream, error).await;
    }
    let mut aligned = Aligned::default();
    let metadata = aligned.align(&rest[..prefix.metadata_bytes]);
    let (id, hello) = match frame::request(metadata, FRAME_TABLES_MAX) {
        Ok(request) => (request.id(), Hello::of(&request)),
        Err(error) => {
            crate::storage::count(&shard.counters.invalid_frames, 1);
            let code = crate::error_code::of_frame(&error);
            return refuse(stream, 0, code, &error.to_string()).await;
        }
    };
    let hello = match hello {
        Some(Ok(hello)) => hello,
        Some(Err(text)) => return refuse(stream, id, ErrorCode::Unsupported, &text).await,
        None => {
            let text = "the first request of a connection is Hello";
            return refuse(stream, id, ErrorCode::HelloRequired, text).await;
        }
    };
    if hello.protocol_version == 0 {
        let text = format!("protocol version 0; this broker speaks 1 to {PROTOCOL_VERSION}");
        return refuse(stream, id, ErrorCode::UnsupportedVersion, &text).await;
    }
    let protocol_version = hello.protocol_version.min(PROTOCOL_VERSION);
    let shards = shard.identity.shards;
    let target = match u16::try_from(hello.shard) {
        Ok(number) if number < shards => ShardId::new(number),
        Ok(number) => {
            let text = format!("shard {number} of a broker with {shards}");
            return refuse(stream, id, ErrorCode::InvalidRequest, &text).await;
        }
        Err(_) => shard.identity.shard,
    };
    if stream.set_read_timeout(None).is_err() {
        return;
    }
    drop(greeting);
    let replicates = match hello.purpose {
        Purpose::Client => None,
        Purpose::Replication(broker) => Some(broker),
        Purpose::Metadata(hello) => {
            // SAFETY: the stream has just given its descriptor away, open, and closes it no more.
            let stream = unsafe { std::net::TcpStream::from_raw_fd(stream.into_raw_fd()) };
            let peer = HandedPeer { stream, hello, hello_id: id, protocol_version };
            return shard.metadata.take_peer(peer).await;
        }
    };
    let greeted = Greeted { peer, hello_id: id, protocol_version, replicates };
    if target == shard.identity.shard {
        return serve(shard, stream, greeted).await;
    }
    let handed = HandedConnection { stream: stream.into_accepted(), greeted };
    // A full mailbox: wait. A closed one: the socket must be bound again to be closed.
    if let Err(Message::Connection(handed)) = shard.mailboxes.send(target, Message::Connection(handed)).await
    {
        drop(handed.stream.bind_to_executor());
    }
}

/// Serves a connection that wants this shard, accepted here or handed over, if there is a place for it.
pub async fn serve(shard: Rc<Shard>, stream: TcpStream, greeted: Greeted) {
    let Greeted { peer, hello_id, protocol_version, replicates } = greeted;
    if let Some(broker) = replicates {
        // One of few: there is always a place for it.
        if let Err((code, text)) = shard.peers.admit(broker) {
            return refuse(stream, hello_id, code, &text).await;
        }
    } else if !shard.has_place() {
        if shard.refusing.get() >= CONNECTIONS_BEFORE_HELLO_MAX {
            // Too many even to be told.
            return;
        }
        let _telling = Greeting::new(&shard.refusing);
        return refuse(stream, hello_id, ErrorCode::TooManyConnections, "this shard has no room").await;
    }
    // SAFETY: the stream has just given its descriptor away, open, and closes it no more.
    let descriptor = unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) };
    let socket = match Socket::new(&shard.sockets, descriptor) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!("cannot serve the connection from {peer}: {error}"),
    };
    let identity = shard.identity;
    let Some(broker) = replicates else {
        return Connection::serve(shard, socket, peer, |connection| {
            connection
                .reply(Vec::new(), |builder| answer_hello(builder, &identity, hello_id, protocol_version));
        })
        .await;
    };
    let mut builder = FlatBufferBuilder::new();
    let root = answer_hello(&mut builder, &identity, hello_id, protocol_version);
    let mut outbox = Outbox::default();
    outbox.write(|bytes| frame::finish_response(bytes, &mut builder, root, 0));
    while !outbox.is_empty() {
        if poll_fn(|context| outbox.poll_send(&socket, context)).await.is_err() {
            return;
        }
    }
    shard.peers.serve(socket, broker.broker).await;
}

/// Who serves the connection, and how.
fn answer_hello<'a>(
    builder: &mut FlatBufferBuilder<'a>,
    identity: &Identity,
    hello_id: u64,
    protocol_version: u32,
) -> WIPOffset<wire::Response<'a>> {
    let software = builder.create_string(concat!("ringlog ", env!("CARGO_PKG_VERSION")));
    let hello = wire::HelloResponse::create(
        builder,
        &wire::HelloResponseArgs {
            protocol_version,
            broker: identity.broker.get(),
            shard: u32::from(identity.shard.get()),
            shards: u32::from(identity.shards),
            max_request_bytes: FRAME_BYTES_MAX as u32,
            software: Some(software),
        },
    );
    wire::Response::create(
        builder,
        &wire::ResponseArgs {
            id: hello_id,
            api_type: wire::ResponseApi::HelloResponse,
            api: Some(hello.as_union_value()),
            ..Default::default()
        },
    )
}

/// Answers a connection that is not served, and closes it.
async fn refuse(mut stream: TcpStream, id: u64, code: ErrorCode, message: &str) {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let text = builder.create_string(message);
    let response = wire::Response::create(
        &mut builder,
        &wire::ResponseArgs { id, error: code.to_wire(), message: Some(text), ..Default::default() },
    );
    let mut out = Vec::new();
    frame::finish_response(&mut out, &mut builder, response, 0);
    let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
    // The peer may be gone already; then there is nobody to tell.
    let _ = stream.write_all(&out).await;
    let _ = stream.shutdown(std::net::Shutdown::Write).await;
    // Bytes that were not read would turn the close into a reset, and the answer would be lost.
    let mut ignored = vec![0; FRAME_BYTES_MAX_BEFORE_HELLO];
    let patience = Instant::now() + Duration::from_millis(200);
    let _ = read_before(&mut stream, patience, &mut ignored).await;
}
