//! Connections to the metadata threads of other brokers, and Raft's messages over them.
//!
//! One connection per peer and kind, made when it is needed: the log's, the heartbeats', so that a slow disk does
//! not look like silence, one for snapshots, one for what is asked of the leader, and one for the lag of groups. Requests are pipelined; answers carry the request's id.
//!
//! Invariant: what was sent and not answered is told apart from what was not sent ([`CallError::sent`]).

use super::codec::{self, Builder, Malformed};
use super::peers::Peers;
use super::raft::{Entry, LogId, Node, Snapshot, Types, Vote};
use flatbuffers::{UnionWIPOffset, WIPOffset};
use logic::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MAX_BEFORE_HELLO, FRAME_TABLES_MAX};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use schema::consensus as fb;
use schema::frame::{self, Aligned, PREFIX_BYTES, Prefix};
use schema::{PROTOCOL_VERSION, wire};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

/// One piece of a snapshot, bytes.
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// After so long without a word of the peer's host about what was sent to it the connection has ended: the host may be gone,
/// and its broker at another address. The kernel's own patience is a quarter of an hour.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Log,
    Heartbeat,
    Snapshot,
    /// What brokers ask the leader.
    Requests,
    /// How far groups are behind.
    Lag,
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub(super) struct CallError {
    /// It may have been done.
    pub sent: bool,
    /// Nobody listens there.
    pub refused: bool,
    what: String,
}

impl CallError {
    fn unsent(what: impl ToString) -> Self {
        Self { sent: false, refused: false, what: what.to_string() }
    }

    fn sent(what: impl ToString) -> Self {
        Self { sent: true, refused: false, what: what.to_string() }
    }
}

/// Answers that are waited for, by the request's id; `None` once the connection has ended.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Vec<u8>>>>>>;

/// An open connection.
pub(super) struct Wire {
    /// Who is at its other end.
    pub broker: u64,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Waiting,
    reader: tokio::task::JoinHandle<()>,
    next: AtomicU64,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Wire {
    /// Connects to `address`, says Hello, and checks that broker `target` is there, if it is known who should be.
    pub async fn connect(peers: &Peers, address: &str, target: Option<u64>) -> Result<Self, CallError> {
        let connect = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MAX.as_millis() as u32)?;
            stream.write_all(&hello(peers)).await?;
            let bytes = read_frame(&mut stream, FRAME_BYTES_MAX_BEFORE_HELLO).await?;
            let broker = check_hello(&bytes, target).map_err(io::Error::other)?;
            Ok::<_, io::Error>((stream, broker))
        };
        let (stream, broker) = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                return Err(CallError { refused, ..CallError::unsent(format!("{address}: {error}")) });
            }
            Err(_) => return Err(CallError::unsent(format!("{address} does not answer"))),
        };
        let (reader, writer) = stream.into_split();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::spawn(hand_out(reader, waiting.clone()));
        let writer = tokio::sync::Mutex::new(writer);
        Ok(Self { broker, writer, waiting, reader, next: AtomicU64::new(1) })
    }

    fn is_open(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Sends a request and waits for the metadata of its response.
    pub async fn call(
        &self,
        patience: Duration,
        ask: impl FnOnce(&mut Builder) -> (fb::Ask, WIPOffset<UnionWIPOffset>),
    ) -> Result<Vec<u8>, CallError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = codec::request(id, ask);
        let (answer, answered) = oneshot::channel();
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(id, answer),
            None => return Err(CallError::unsent("the connection has ended")),
        };
        let exchange = async {
            let mut writer = self.writer.lock().await;
            let writing = Writing(self);
            writer.write_all(&frame).await.map_err(CallError::sent)?;
            std::mem::forget(writing);
            drop(writer);
            answered.await.map_err(|_| CallError::sent("the connection ended before the answer"))
        };
        let result = tokio::time::timeout(patience, exchange).await;
        if let Some(waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            waiting.remove(&id);
        }
        result.unwrap_or_else(|_| Err(CallError::sent(format!("no answer within {patience:?}"))))
    }
}

/// A frame that is being written: one that is given up in the middle ends the connection, because what followed it would be
/// taken for its rest.
struct Writing<'w>(&'w Wire);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.reader.abort();
        *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Gives every response to who waits for it.
async fn hand_out(mut reader: OwnedReadHalf, waiting: Waiting) {
    while let Ok(bytes) = read_frame(&mut reader, FRAME_BYTES_MAX).await {
        let Ok(id) = codec::read_response(&bytes, |response| Ok(response.id())) else { break };
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = waiting.as_mut().and_then(|waiting| waiting.remove(&id)) {
            // Nobody waits any more if this fails.
            let _ = answer.send(bytes);
        }
    }
    *waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Reads one frame and gives its metadata.
pub(super) async fn read_frame(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    limit: usize,
) -> io::Result<Vec<u8>> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).await?;
    let prefix = Prefix::decode(prefix, limit).map_err(io::Error::other)?;
    let mut rest = Vec::new();
    // Grows with what arrives, not with what the prefix claims.
    let wanted = (prefix.frame_bytes - PREFIX_BYTES) as u64;
    if (&mut *stream).take(wanted).read_to_end(&mut rest).await? as u64 != wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    rest.truncate(prefix.metadata_bytes);
    Ok(rest)
}

fn hello(peers: &Peers) -> Vec<u8> {
    let mut builder = Builder::new();
    let cluster = peers.image().cluster_id().map(wire::ClusterId::from_u128);
    let args = wire::HelloRequestArgs {
        protocol_version: PROTOCOL_VERSION,
        purpose: wire::Purpose::Metadata,
        broker: peers.me().get(),
        broker_epoch: peers.image().broker(peers.me()).map_or(0, |broker| broker.epoch.get()),
        cluster: cluster.as_ref(),
        ..Default::default()
    };
    let hello = wire::HelloRequest::create(&mut builder, &args);
    let args = wire::RequestArgs {
        id: 0,
        api_type: wire::RequestApi::HelloRequest,
        api: Some(hello.as_union_value()),
        ..Default::default()
    };
    let root = wire::Request::create(&mut builder, &args);
    let mut out = Vec::new();
    frame::finish_request(&mut out, &mut builder, root, 0);
    out
}

/// Who says hello.
fn check_hello(bytes: &[u8], target: Option<u64>) -> Result<u64, Malformed> {
    let mut aligned = Aligned::default();
    let response = frame::response(aligned.align(bytes), FRAME_TABLES_MAX)
        .map_err(|error| Malformed(error.to_string()))?;
    if response.error() != 0 {
        return Err(Malformed(response.message().unwrap_or("it refuses").to_owned()));
    }
    let hello = response.api_as_hello_response().ok_or_else(|| Malformed("not a Hello".to_owned()))?;
    match target {
        Some(target) if u64::from(hello.broker()) != target => {
            Err(Malformed(format!("broker {} is there, not {target}", hello.broker())))
        }
        _ => Ok(hello.broker().into()),
    }
}

/// The way to one peer, for one kind of message; connects when it must.
pub(super) struct Link {
    target: u64,
    wire: tokio::sync::Mutex<Option<Arc<Wire>>>,
}

impl Link {
    pub fn new(target: u64) -> Self {
        Self { target, wire: tokio::sync::Mutex::new(None) }
    }

    async fn wire(&self, peers: &Peers) -> Result<Arc<Wire>, CallError> {
        let mut open = self.wire.lock().await;
        if let Some(wire) = open.as_ref().filter(|wire| wire.is_open()) {
            return Ok(wire.clone());
        }
        let address = peers
            .address(self.target)
            .ok_or_else(|| CallError::unsent(format!("broker {} has no address", self.target)))?;
        let wire = Wire::connect(peers, &address, Some(self.target)).await.inspect_err(|error| {
            if error.refused {
                peers.note_refused(self.target);
            }
        })?;
        let wire = Arc::new(wire);
        *open = Some(wire.clone());
        Ok(wire)
    }

    pub async fn call(
        &self,
        peers: &Peers,
        patience: Duration,
        ask: impl FnOnce(&mut Builder) -> (fb::Ask, WIPOffset<UnionWIPOffset>),
    ) -> Result<Vec<u8>, CallError> {
        self.wire(peers).await?.call(patience, ask).await
    }

    /// The same until `deadline`, the wait for a connection included.
    pub async fn call_by(
        &self,
        peers: &Peers,
        deadline: Instant,
        ask: impl FnOnce(&mut Builder) -> (fb::Ask, WIPOffset<UnionWIPOffset>),
    ) -> Result<Vec<u8>, CallError> {
        let wire = match tokio::time::timeout_at(deadline.into(), self.wire(peers)).await {
            Ok(wire) => wire?,
            Err(_) => return Err(CallError::unsent("no connection in time")),
        };
        wire.call(deadline.saturating_duration_since(Instant::now()), ask).await
    }
}

/// Makes clients for Raft.
pub(super) struct Network(pub Arc<Peers>);

/// One peer as Raft sees it.
pub(super) struct Peer {
    peers: Arc<Peers>,
    target: u64,
    link: Arc<Link>,
}

impl Network {
    fn peer(&self, target: u64, node: &Node, kind: Kind) -> Peer {
        self.0.learn(target, &node.addr);
        Peer { peers: self.0.clone(), target, link: self.0.link(target, kind) }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Node) -> Peer {
        self.peer(target, node, Kind::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Node) -> Peer {
        self.peer(target, node, Kind::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Node) -> Peer {
        self.peer(target, node, Kind::Snapshot)
    }
}

fn unreachable(error: impl std::error::Error + 'static) -> Unreachable<Types> {
    Unreachable::new(&error)
}

impl Peer {
    async fn call<R>(
        &self,
        option: &RPCOption,
        ask: impl FnOnce(&mut Builder) -> (fb::Ask, WIPOffset<UnionWIPOffset>),
        read: impl FnOnce(fb::Response<'_>) -> Option<R>,
    ) -> Result<R, Unreachable<Types>> {
        let bytes = self.link.call(&self.peers, option.soft_ttl(), ask).await.map_err(unreachable)?;
        let read = |response: fb::Response<'_>| {
            let refused = response.answer_as_refused().map(|refused| refused.message().to_owned());
            read(response).ok_or_else(|| {
                Malformed(refused.unwrap_or_else(|| format!("broker {} answers something else", self.target)))
            })
        };
        codec::read_response(&bytes, read).map_err(unreachable)
    }

    async fn elect(
        &self,
        rpc: VoteRequest<Types>,
        trial: bool,
        option: &RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let ask = |b: &mut Builder| {
            let (vote, last) = (codec::vote(&rpc.vote), rpc.last_log_id.as_ref().map(codec::log_id));
            let transfer = rpc.leadership_transfer;
            let args = fb::ElectArgs { vote: Some(&vote), last: last.as_ref(), transfer, trial };
            (fb::Ask::Elect, fb::Elect::create(b, &args).as_union_value())
        };
        let read = |response: fb::Response<'_>| {
            let elected = response.answer_as_elected()?;
            let last = elected.last().map(codec::log_id_of);
            Some(VoteResponse::new(codec::vote_of(elected.vote()), last, elected.granted()))
        };
        Ok(self.call(option, ask, read).await?)
    }
}

pub(super) fn append(b: &mut Builder, rpc: &AppendEntriesRequest<Types>) -> WIPOffset<UnionWIPOffset> {
    let entries: Vec<_> = rpc.entries.iter().map(|entry: &Entry| codec::entry(b, entry)).collect();
    let entries = Some(b.create_vector(&entries));
    let vote = codec::vote(&rpc.vote);
    let id = |id: &Option<LogId>| id.as_ref().map(codec::log_id);
    let (previous, commit) = (id(&rpc.prev_log_id), id(&rpc.leader_commit));
    let (previous, commit) = (previous.as_ref(), commit.as_ref());
    fb::Append::create(b, &fb::AppendArgs { vote: Some(&vote), previous, commit, entries }).as_union_value()
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Arc<[u8]>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let ask = |b: &mut Builder| (fb::Ask::Append, append(b, &rpc));
        let read = |response: fb::Response<'_>| {
            let appended = response.answer_as_appended()?;
            Some(match appended.outcome() {
                fb::AppendOutcome::Success => AppendEntriesResponse::Success,
                fb::AppendOutcome::Partial => {
                    AppendEntriesResponse::PartialSuccess(appended.matched().map(codec::log_id_of))
                }
                fb::AppendOutcome::Conflict => AppendEntriesResponse::Conflict,
                _ => AppendEntriesResponse::HigherVote(appended.vote().map(codec::vote_of)?),
            })
        };
        Ok(self.call(&option, ask, read).await?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.elect(rpc, false, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.elect(rpc, true, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            result = self.install(vote, snapshot) => Ok(result?),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let ask = |b: &mut Builder| {
            let (vote, last) = (codec::vote(rpc.from_leader()), rpc.last_log_id().map(codec::log_id));
            let args = fb::TransferArgs { vote: Some(&vote), to: *rpc.to_node_id(), last: last.as_ref() };
            (fb::Ask::Transfer, fb::Transfer::create(b, &args).as_union_value())
        };
        let read = |response: fb::Response<'_>| Some(response.answer_as_transferred()?.accepted());
        match self.call(&option, ask, read).await? {
            true => Ok(Ok(())),
            false => Err(unreachable(Malformed("it does not take the leadership".to_owned())).into()),
        }
    }
}

impl Peer {
    /// Sends a snapshot piece by piece over a connection of its own.
    async fn install(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<Types>, Unreachable<Types>> {
        // Pieces belong to one connection: a new one starts at the first.
        let wire = self.link.wire(&self.peers).await.map_err(unreachable)?;
        let image = &snapshot.snapshot;
        let mut offset = 0;
        loop {
            let piece = &image[offset..image.len().min(offset + PIECE_BYTES)];
            let ask = |b: &mut Builder| {
                let group = &snapshot.meta.last_membership;
                let membership = Some(codec::membership(b, group.log_id().as_ref(), group.membership()));
                let (vote, id) = (codec::vote(&vote), snapshot.meta.last_log_id.as_ref().map(codec::log_id));
                let args = fb::InstallArgs {
                    vote: Some(&vote),
                    id: id.as_ref(),
                    membership,
                    total: image.len() as u64,
                    offset: offset as u64,
                    piece: Some(b.create_vector(piece)),
                };
                (fb::Ask::Install, fb::Install::create(b, &args).as_union_value())
            };
            let bytes = wire.call(Duration::from_secs(10), ask).await.map_err(unreachable)?;
            let read = |response: fb::Response<'_>| match response.answer_as_installed() {
                Some(installed) => Ok(installed.vote().map(codec::vote_of)),
                None => Err(Malformed("it does not take the snapshot".to_owned())),
            };
            let answered = codec::read_response(&bytes, read).map_err(unreachable)?;
            offset += piece.len();
            match answered {
                Some(vote) => return Ok(SnapshotResponse::new(vote)),
                None if offset >= image.len() => {
                    return Err(unreachable(Malformed("it wants more than there is".to_owned())));
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A connection to somebody who has not read anything, and his end of it.
    async fn unread() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (reader, writer) = stream.into_split();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::spawn(hand_out(reader, waiting.clone()));
        let writer = tokio::sync::Mutex::new(writer);
        (
            Wire { broker: 1, writer, waiting, reader, next: AtomicU64::new(1) },
            listener.accept().await.unwrap().0,
        )
    }

    #[tokio::test]
    async fn a_request_that_was_cut_off_ends_its_connection() {
        // Fits the sockets' buffers, or does not.
        for (bytes, stays_open) in [(1_000, true), (64 << 20, false)] {
            let (wire, _peer) = unread().await;
            let ask = |b: &mut Builder| {
                let command = Some(b.create_vector(&vec![0u8; bytes]));
                (fb::Ask::Submit, fb::Submit::create(b, &fb::SubmitArgs { command }).as_union_value())
            };
            let error = wire.call(Duration::from_millis(50), ask).await.unwrap_err();
            assert!(error.sent, "{error}");
            assert_eq!(wire.is_open(), stays_open, "{bytes} bytes: {error}");
        }
    }
}
