//! Raft's types as bytes and back (`schema/definitions/consensus.fbs`).
//!
//! What comes from the network or the disk is verified; nothing of it panics or sizes an allocation unchecked.

use super::raft::{Entry, LogId, Membership, Node, Proposal, StoredMembership, Vote};
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, VerifierOptions, WIPOffset};
use openraft::EntryPayload;
use openraft::impls::leader_id_adv::LeaderId;
use schema::consensus as fb;
use schema::frame;
use std::collections::{BTreeMap, BTreeSet};

/// The identifier of a response.
const RESPONSE: &str = "RLC2";
/// The identifier of an entry in the log.
const ENTRY: &str = "RLE1";
/// The identifier of what stands beside the log.
const STORED: &str = "RLE2";

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub String);

pub(super) type Builder = FlatBufferBuilder<'static>;

pub(super) fn log_id(id: &LogId) -> fb::LogId {
    fb::LogId::new(id.leader_id.term, id.leader_id.node_id, id.index)
}

pub(super) fn log_id_of(id: &fb::LogId) -> LogId {
    LogId::new(LeaderId { term: id.term(), node_id: id.node() }, id.index())
}

pub(super) fn vote(vote: &Vote) -> fb::Vote {
    fb::Vote::new(vote.leader_id.term, vote.leader_id.node_id, vote.committed)
}

pub(super) fn vote_of(vote: &fb::Vote) -> Vote {
    let leader_id = LeaderId { term: vote.term(), node_id: vote.node() };
    Vote { leader_id, committed: vote.committed() }
}

pub(super) fn membership<'b>(
    b: &mut FlatBufferBuilder<'b>,
    id: Option<&LogId>,
    membership: &Membership,
) -> WIPOffset<fb::Membership<'b>> {
    let voters: Vec<_> = membership
        .get_joint_config()
        .iter()
        .map(|set| {
            let ids: Vec<u64> = set.iter().copied().collect();
            let ids = Some(b.create_vector(&ids));
            fb::Voters::create(b, &fb::VotersArgs { ids })
        })
        .collect();
    let voters = Some(b.create_vector(&voters));
    let nodes: Vec<_> = membership
        .nodes()
        .map(|(id, node)| {
            let address = Some(b.create_string(&node.addr));
            fb::Node::create(b, &fb::NodeArgs { id: *id, address })
        })
        .collect();
    let nodes = Some(b.create_vector(&nodes));
    let id = id.map(log_id);
    fb::Membership::create(b, &fb::MembershipArgs { id: id.as_ref(), voters, nodes })
}

pub(super) fn membership_of(table: &fb::Membership<'_>) -> Result<StoredMembership, Malformed> {
    let voters: Vec<BTreeSet<u64>> = table.voters().iter().map(|set| set.ids().iter().collect()).collect();
    let nodes: BTreeMap<u64, Node> =
        table.nodes().iter().map(|node| (node.id(), Node::new(node.address()))).collect();
    // A group that nobody has made yet has neither.
    let made = match voters.is_empty() && nodes.is_empty() {
        true => Membership::default(),
        false => {
            Membership::new(voters, nodes).map_err(|error| Malformed(format!("a membership: {error}")))?
        }
    };
    Ok(StoredMembership::new(table.id().map(log_id_of), made))
}

pub(super) fn entry<'b>(b: &mut FlatBufferBuilder<'b>, entry: &Entry) -> WIPOffset<fb::Entry<'b>> {
    let (command, membership) = match &entry.payload {
        EntryPayload::Blank => (None, None),
        EntryPayload::Normal(proposal) => (Some(b.create_vector(&proposal.0[..])), None),
        EntryPayload::Membership(change) => (None, Some(membership(b, None, change))),
    };
    let id = log_id(&entry.log_id);
    fb::Entry::create(b, &fb::EntryArgs { id: Some(&id), command, membership })
}

pub(super) fn entry_of(table: &fb::Entry<'_>) -> Result<Entry, Malformed> {
    let payload = match (table.command(), table.membership()) {
        (None, None) => EntryPayload::Blank,
        (Some(command), None) => EntryPayload::Normal(Proposal(command.bytes().into())),
        (None, Some(change)) => EntryPayload::Membership(membership_of(&change)?.membership().clone()),
        (Some(_), Some(_)) => return Err(Malformed("an entry is a command and a membership".to_owned())),
    };
    Ok(Entry { log_id: log_id_of(table.id()), payload })
}

/// The bytes of an entry for the log.
pub(super) fn encode_entry(of: &Entry) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(256);
    let root = entry(&mut builder, of);
    builder.finish(root, Some(ENTRY));
    builder.finished_data().to_vec()
}

/// What [`encode_entry`] made.
pub(super) fn decode_entry(bytes: &[u8]) -> Result<Entry, Malformed> {
    aligned(bytes, ENTRY, |bytes| entry_of(&root::<fb::Entry<'_>>(bytes)?))
}

/// What stands beside the log, some of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stored {
    pub vote: Option<Vote>,
    pub id: Option<LogId>,
    pub membership: Option<StoredMembership>,
    pub image: Option<Vec<u8>>,
}

impl Stored {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::with_capacity(256);
        let b = &mut builder;
        let image = self.image.as_ref().map(|image| b.create_vector(&image[..]));
        let membership =
            self.membership.as_ref().map(|of| membership(b, of.log_id().as_ref(), of.membership()));
        let (vote, id) = (self.vote.as_ref().map(vote), self.id.as_ref().map(log_id));
        let args = fb::StoredArgs { vote: vote.as_ref(), id: id.as_ref(), membership, image };
        let root = fb::Stored::create(b, &args);
        b.finish(root, Some(STORED));
        b.finished_data().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        aligned(bytes, STORED, |bytes| {
            let table = root::<fb::Stored<'_>>(bytes)?;
            Ok(Self {
                vote: table.vote().map(vote_of),
                id: table.id().map(log_id_of),
                membership: table.membership().map(|of| membership_of(&of)).transpose()?,
                image: table.image().map(|image| image.bytes().to_vec()),
            })
        })
    }
}

fn verifier() -> VerifierOptions {
    VerifierOptions {
        max_depth: 8,
        max_tables: 1 << 16,
        max_apparent_size: 1 << 30,
        ignore_missing_null_terminator: false,
    }
}

/// Checks the identifier, and hands `bytes` to `read` at the alignment that the verifier insists on.
fn aligned<R>(
    bytes: &[u8],
    identifier: &str,
    read: impl FnOnce(&[u8]) -> Result<R, Malformed>,
) -> Result<R, Malformed> {
    if bytes.get(4..8) != Some(identifier.as_bytes()) {
        return Err(Malformed(format!("not a {identifier} buffer")));
    }
    read(frame::Aligned::default().align(bytes))
}

fn root<'b, T>(bytes: &'b [u8]) -> Result<T::Inner, Malformed>
where
    T: flatbuffers::Follow<'b> + flatbuffers::Verifiable + 'b,
{
    flatbuffers::root_with_opts::<T>(&verifier(), bytes)
        .map_err(|error| Malformed(format!("not a valid FlatBuffer: {error}")))
}

/// A request as a frame.
pub(super) fn request(
    id: u64,
    ask: impl FnOnce(&mut Builder) -> (fb::Ask, WIPOffset<UnionWIPOffset>),
) -> Vec<u8> {
    let mut builder = Builder::with_capacity(1024);
    let (ask_type, ask) = ask(&mut builder);
    let args = fb::RequestArgs { id, ask_type, ask: Some(ask) };
    let root = fb::Request::create(&mut builder, &args);
    builder.finish(root, Some(fb::REQUEST_IDENTIFIER));
    let mut out = Vec::new();
    frame::encode_head(&mut out, builder.finished_data(), 0);
    out
}

/// A response as a frame.
pub(super) fn response(
    id: u64,
    answer: impl FnOnce(&mut Builder) -> (fb::Answer, WIPOffset<UnionWIPOffset>),
) -> Vec<u8> {
    let mut builder = Builder::with_capacity(1024);
    let (answer_type, answer) = answer(&mut builder);
    let args = fb::ResponseArgs { id, answer_type, answer: Some(answer) };
    let root = fb::Response::create(&mut builder, &args);
    builder.finish(root, Some(RESPONSE));
    let mut out = Vec::new();
    frame::encode_head(&mut out, builder.finished_data(), 0);
    out
}

/// Verifies a request's metadata and hands it to `read`.
pub(super) fn read_request<R>(
    bytes: &[u8],
    read: impl FnOnce(fb::Request<'_>) -> Result<R, Malformed>,
) -> Result<R, Malformed> {
    aligned(bytes, fb::REQUEST_IDENTIFIER, |bytes| read(root::<fb::Request<'_>>(bytes)?))
}

/// Verifies a response's metadata and hands it to `read`.
pub(super) fn read_response<R>(
    bytes: &[u8],
    read: impl FnOnce(fb::Response<'_>) -> Result<R, Malformed>,
) -> Result<R, Malformed> {
    aligned(bytes, RESPONSE, |bytes| read(root::<fb::Response<'_>>(bytes)?))
}
