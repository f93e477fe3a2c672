//! What other metadata threads ask of this one.
//!
//! Their connections were accepted by a shard and said Hello there; this thread answers Hello and serves them until
//! they end. Requests of one connection are served side by side, as Raft puts them in order itself; the pieces of a
//! snapshot are in the order of their connection.

use super::codec::{self, Builder, Malformed};
use super::lag;
use super::network::read_frame;
use super::peers::{Member, Word};
use super::raft::{LogId, Proposal, Snapshot, SnapshotMeta, StoredMembership, Types, Vote};
use crate::accept::PeerHello;
use crate::group::lag::Question;
use flatbuffers::{UnionWIPOffset, WIPOffset};
use logic::ids::{BrokerEpoch, BrokerId};
use logic::limits::FRAME_BYTES_MAX;
use logic::metadata::controller::Heartbeat;
use openraft::ChangeMembers;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use schema::consensus as fb;
use schema::frame;
use schema::wire;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Mutex, Semaphore};

/// Requests of one connection that are served at once.
const REQUESTS_AT_ONCE: usize = 64;
/// The largest image that is taken from a peer, bytes.
const IMAGE_BYTES_MAX: u64 = 1 << 30;

/// A connection of another broker's metadata thread, on its way to this one's.
pub struct HandedPeer {
    /// The socket.
    pub stream: std::net::TcpStream,
    /// What it said about itself.
    pub hello: PeerHello,
    /// The id of its Hello.
    pub hello_id: u64,
    /// The version agreed on.
    pub protocol_version: u32,
}

/// A request, out of its frame.
enum Ask {
    Append(AppendEntriesRequest<Types>),
    Elect { vote: VoteRequest<Types>, trial: bool },
    Install { vote: Vote, meta: SnapshotMeta, total: u64, offset: u64, piece: Vec<u8> },
    Transfer(TransferLeaderRequest<Types>),
    Submit(Proposal),
    Join { broker: u32, address: String, storage_uuid: u128 },
    Heartbeat(Heartbeat),
    MeasureLag(Vec<Question>),
}

type Answer = Box<dyn FnOnce(&mut Builder) -> (fb::Answer, WIPOffset<UnionWIPOffset>) + Send>;

/// Serves one connection until it ends.
pub(super) async fn serve(member: Member, peer: HandedPeer) {
    let from = peer.hello.broker;
    if let Err(error) = serve_stream(member, peer).await
        && !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
    {
        tracing::info!("the connection of broker {from}'s metadata ended: {error}");
    }
}

async fn serve_stream(member: Member, peer: HandedPeer) -> io::Result<()> {
    peer.stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(peer.stream)?;
    stream.set_nodelay(true)?;
    let ours = member.peers.image().cluster_id();
    if let (Some(ours), Some(theirs)) = (ours, peer.hello.cluster)
        && ours != theirs
    {
        let text = format!("this is cluster {ours:032x}, not {theirs:032x}");
        return stream.write_all(&hello(&member, &peer.hello_id, peer.protocol_version, Some(&text))).await;
    }
    stream.write_all(&hello(&member, &peer.hello_id, peer.protocol_version, None)).await?;
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(Mutex::new(writer));
    let places = Arc::new(Semaphore::new(REQUESTS_AT_ONCE));
    let mut image = Vec::new();
    loop {
        let bytes = read_frame(&mut reader, FRAME_BYTES_MAX).await?;
        let (id, ask) = codec::read_request(&bytes, |request| Ok((request.id(), ask_of(&request)?)))
            .map_err(io::Error::other)?;
        if let Ask::Install { vote, meta, total, offset, piece } = ask {
            let answer = install(&member, &mut image, vote, meta, (total, offset, piece)).await?;
            writer.lock().await.write_all(&codec::response(id, answer)).await?;
            continue;
        }
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (member, writer) = (member.clone(), writer.clone());
        tokio::spawn(async move {
            let answer = handle(&member, ask).await;
            reply(&writer, &codec::response(id, answer)).await;
            drop(place);
        });
    }
}

async fn reply(writer: &Mutex<OwnedWriteHalf>, frame: &[u8]) {
    // A peer that went away is noticed by the reader.
    let _ = writer.lock().await.write_all(frame).await;
}

fn hello(member: &Member, id: &u64, protocol_version: u32, refusal: Option<&str>) -> Vec<u8> {
    let mut builder = Builder::new();
    let message = refusal.map(|text| builder.create_string(text));
    let software = builder.create_string(concat!("ringlog ", env!("CARGO_PKG_VERSION")));
    let args = wire::HelloResponseArgs {
        protocol_version,
        broker: member.peers.me().get(),
        max_request_bytes: FRAME_BYTES_MAX as u32,
        software: Some(software),
        ..Default::default()
    };
    let hello = wire::HelloResponse::create(&mut builder, &args);
    let error = refusal.map_or(0, |_| schema::error_code::ErrorCode::InvalidRequest.to_wire());
    let args = wire::ResponseArgs {
        id: *id,
        error,
        message,
        api_type: wire::ResponseApi::HelloResponse,
        api: Some(hello.as_union_value()),
        ..Default::default()
    };
    let root = wire::Response::create(&mut builder, &args);
    let mut out = Vec::new();
    frame::finish_response(&mut out, &mut builder, root, 0);
    out
}

fn ask_of(request: &fb::Request<'_>) -> Result<Ask, Malformed> {
    let id = |id: Option<&fb::LogId>| id.map(codec::log_id_of);
    if let Some(ask) = request.ask_as_append() {
        let entries = ask.entries().into_iter().flatten().map(|entry| codec::entry_of(&entry));
        Ok(Ask::Append(AppendEntriesRequest {
            vote: codec::vote_of(ask.vote()),
            prev_log_id: id(ask.previous()),
            entries: entries.collect::<Result<_, _>>()?,
            leader_commit: id(ask.commit()),
        }))
    } else if let Some(ask) = request.ask_as_elect() {
        let mut vote = VoteRequest::new(codec::vote_of(ask.vote()), id(ask.last()));
        vote.leadership_transfer = ask.transfer();
        Ok(Ask::Elect { vote, trial: ask.trial() })
    } else if let Some(ask) = request.ask_as_install() {
        let last_membership: StoredMembership = codec::membership_of(&ask.membership())?;
        Ok(Ask::Install {
            vote: codec::vote_of(ask.vote()),
            meta: SnapshotMeta { last_log_id: id(ask.id()), last_membership },
            total: ask.total(),
            offset: ask.offset(),
            piece: ask.piece().bytes().to_vec(),
        })
    } else if let Some(ask) = request.ask_as_transfer() {
        let vote = codec::vote_of(ask.vote());
        Ok(Ask::Transfer(TransferLeaderRequest::new(vote, ask.to(), id(ask.last()))))
    } else if let Some(ask) = request.ask_as_submit() {
        Ok(Ask::Submit(Proposal(ask.command().bytes().into())))
    } else if let Some(ask) = request.ask_as_join() {
        let storage_uuid = u128::from(ask.storage_high()) << 64 | u128::from(ask.storage_low());
        Ok(Ask::Join { broker: ask.broker(), address: ask.address().to_owned(), storage_uuid })
    } else if let Some(ask) = request.ask_as_heartbeat() {
        Ok(Ask::Heartbeat(Heartbeat {
            broker: BrokerId::new(ask.broker()),
            epoch: BrokerEpoch::new(ask.epoch()),
            version: ask.version(),
            stopping: ask.stopping(),
        }))
    } else if let Some(ask) = request.ask_as_measure_lag() {
        Ok(Ask::MeasureLag(lag::places_of(&ask)?))
    } else {
        Err(Malformed(format!("request {} is not known here", request.ask_type().0)))
    }
}

/// Takes a piece of a snapshot; installs it with the last.
async fn install(
    member: &Member,
    image: &mut Vec<u8>,
    vote: Vote,
    meta: SnapshotMeta,
    (total, offset, piece): (u64, u64, Vec<u8>),
) -> io::Result<Answer> {
    if !member.is_admitted() {
        return Ok(refused("it has not joined the cluster yet"));
    }
    if offset == 0 {
        image.clear();
    }
    if offset != image.len() as u64 || total > IMAGE_BYTES_MAX || offset + piece.len() as u64 > total {
        return Err(io::Error::other("a piece of a snapshot that is not the next"));
    }
    image.extend_from_slice(&piece);
    let mut answered = None;
    if image.len() as u64 == total {
        let snapshot = Snapshot { meta, snapshot: std::mem::take(image).into() };
        let response = member.raft.install_full_snapshot(vote, snapshot).await.map_err(io::Error::other)?;
        answered = Some(codec::vote(&response.vote));
    }
    Ok(Box::new(move |b| {
        let installed = fb::Installed::create(b, &fb::InstalledArgs { vote: answered.as_ref() });
        (fb::Answer::Installed, installed.as_union_value())
    }))
}

fn refused(message: impl ToString) -> Answer {
    let message = message.to_string();
    Box::new(move |b| {
        let message = Some(b.create_string(&message));
        let refused = fb::Refused::create(b, &fb::RefusedArgs { message });
        (fb::Answer::Refused, refused.as_union_value())
    })
}

fn unknown(message: impl ToString) -> Answer {
    let message = message.to_string();
    Box::new(move |b| {
        let message = Some(b.create_string(&message));
        let unknown = fb::Unknown::create(b, &fb::UnknownArgs { message });
        (fb::Answer::Unknown, unknown.as_union_value())
    })
}

fn redirect(member: &Member) -> Answer {
    let leader = member.leader().filter(|_| !member.leads());
    let address = leader.and_then(|leader| member.peers.address(leader)).unwrap_or_default();
    Box::new(move |b| {
        let address = Some(b.create_string(&address));
        let args = fb::RedirectArgs { known: leader.is_some(), leader: leader.unwrap_or_default(), address };
        (fb::Answer::Redirect, fb::Redirect::create(b, &args).as_union_value())
    })
}

fn submitted(id: LogId) -> Answer {
    Box::new(move |b| {
        let id = codec::log_id(&id);
        let submitted = fb::Submitted::create(b, &fb::SubmittedArgs { id: Some(&id) });
        (fb::Answer::Submitted, submitted.as_union_value())
    })
}

async fn handle(member: &Member, ask: Ask) -> Answer {
    let raft = &member.raft;
    if !member.is_admitted() && matches!(ask, Ask::Append(_) | Ask::Elect { .. } | Ask::Transfer(_)) {
        return refused("it has not joined the cluster yet");
    }
    match ask {
        Ask::Append(request) => match raft.append_entries(request).await {
            Ok(response) => appended(response),
            Err(error) => refused(error),
        },
        Ask::Elect { vote, trial } => {
            let response = match trial {
                true => raft.pre_vote(vote).await,
                false => raft.vote(vote).await,
            };
            match response {
                Ok(response) => Box::new(move |b| {
                    let vote = codec::vote(&response.vote);
                    let last = response.last_log_id.as_ref().map(codec::log_id);
                    let granted = response.vote_granted;
                    let args = fb::ElectedArgs { vote: Some(&vote), last: last.as_ref(), granted };
                    (fb::Answer::Elected, fb::Elected::create(b, &args).as_union_value())
                }),
                Err(error) => refused(error),
            }
        }
        Ask::Transfer(request) => match raft.handle_transfer_leader(request).await {
            Ok(result) => {
                let accepted = result.is_ok();
                Box::new(move |b| {
                    let transferred = fb::Transferred::create(b, &fb::TransferredArgs { accepted });
                    (fb::Answer::Transferred, transferred.as_union_value())
                })
            }
            Err(error) => refused(error),
        },
        Ask::Submit(proposal) => match member.log.full() {
            Some(why) => refused(why),
            None => match raft.client_write(proposal).await {
                Ok(response) => submitted(response.log_id),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => redirect(member),
                Err(error) => unknown(error),
            },
        },
        Ask::Join { broker, address, storage_uuid } => join(member, broker, address, storage_uuid).await,
        Ask::Heartbeat(heartbeat) => {
            // Before it is asked who leads: who was removed may know nobody else any more.
            if member.peers.image().has_removed(heartbeat.broker, heartbeat.epoch) {
                return Box::new(|b| {
                    let removed = fb::Removed::create(b, &fb::RemovedArgs {});
                    (fb::Answer::Removed, removed.as_union_value())
                });
            }
            if !member.leads() {
                return redirect(member);
            }
            member.peers.tell(Word::Heartbeat(heartbeat));
            if !member.has_majority() {
                return unknown("it does not hear from a majority");
            }
            Box::new(|b| (fb::Answer::Heard, fb::Heard::create(b, &fb::HeardArgs {}).as_union_value()))
        }
        Ask::MeasureLag(places) => {
            let distances = lag::measured(member, places).await;
            Box::new(move |b| lag::answer(b, &distances))
        }
        // Served in order, by the connection.
        Ask::Install { .. } => refused("a piece out of order"),
    }
}

fn appended(response: AppendEntriesResponse<Types>) -> Answer {
    Box::new(move |b| {
        let (outcome, matched, vote) = match &response {
            AppendEntriesResponse::Success => (fb::AppendOutcome::Success, None, None),
            AppendEntriesResponse::PartialSuccess(id) => {
                (fb::AppendOutcome::Partial, id.as_ref().map(codec::log_id), None)
            }
            AppendEntriesResponse::Conflict => (fb::AppendOutcome::Conflict, None, None),
            AppendEntriesResponse::HigherVote(vote) => {
                (fb::AppendOutcome::HigherVote, None, Some(codec::vote(vote)))
            }
        };
        let args = fb::AppendedArgs { outcome, matched: matched.as_ref(), vote: vote.as_ref() };
        (fb::Answer::Appended, fb::Appended::create(b, &args).as_union_value())
    })
}

/// A broker wants to follow: it becomes a member without a vote.
async fn join(member: &Member, broker: u32, address: String, storage_uuid: u128) -> Answer {
    let image = member.peers.image();
    let known = image.broker(BrokerId::new(broker));
    let other = known.filter(|known| known.registration.storage_uuid != storage_uuid && !known.fenced);
    if other.is_none() {
        member.peers.moved(u64::from(broker), &address);
    }
    if !member.leads() {
        return redirect(member);
    }
    if broker == member.peers.me().get() {
        return refused(format!("broker {broker} is this one; start the new one with another --broker-id"));
    }
    if let Some(known) = other {
        let (host, port) = (&known.registration.host, known.registration.port);
        return refused(format!("broker {broker} is there already, at {host}:{port}, with another disk"));
    }
    let Some(cluster) = image.cluster_id() else {
        return unknown("the cluster has no identity yet");
    };
    if member.peers.address(u64::from(member.peers.me().get())).is_none() {
        return refused(
            "the broker that leads the metadata listens on every address and has not said by which others reach it; \
             start it with --advertise HOST",
        );
    }
    let joined: Answer = Box::new(move |b| {
        let args = fb::JoinedArgs { cluster_high: (cluster >> 64) as u64, cluster_low: cluster as u64 };
        (fb::Answer::Joined, fb::Joined::create(b, &args).as_union_value())
    });
    let replaced = known.is_some_and(|known| known.registration.storage_uuid != storage_uuid);
    if replaced && let Err(answer) = forget(member, broker).await {
        return answer;
    }
    if member.nodes().contains(&u64::from(broker)) {
        return joined;
    }
    // From here on others must hear from this one.
    member.keep_time(true);
    match member.raft.add_learner(u64::from(broker), super::raft::Node::new(&address), false).await {
        Ok(_) => {
            tracing::info!("broker {broker} at {address} follows the metadata");
            joined
        }
        Err(error) => not_changed(member, error),
    }
}

/// Why the group is as it was: a broker that wants to join asks again where that may help.
fn not_changed(member: &Member, error: RaftError<Types, ClientWriteError<Types>>) -> Answer {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => redirect(member),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(
            _,
        ))) => unknown("another change of the metadata's group is under way"),
        error => refused(error),
    }
}

/// A member comes back with another disk: it has forgotten whom it voted for and what it said it has. So it is none, and
/// begins as one without a vote.
async fn forget(member: &Member, broker: u32) -> Result<(), Answer> {
    let gone = BTreeSet::from([u64::from(broker)]);
    let change = match member.voters().is_disjoint(&gone) {
        true if member.nodes().is_disjoint(&gone) => return Ok(()),
        true => ChangeMembers::RemoveNodes(gone),
        false => ChangeMembers::RemoveVoters(gone),
    };
    tracing::warn!("broker {broker} comes with another disk: it is taken out of the metadata's group first");
    match member.raft.change_membership(change, false).await {
        Ok(_) => Ok(()),
        Err(error) => Err(not_changed(member, error)),
    }
}
