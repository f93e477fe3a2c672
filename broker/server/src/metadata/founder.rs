//! A founder of the cluster comes back without its disk, and is told of the log's beginning and no more.
//!
//! What the log speaks of first is the group that the founder was alone, before anybody joined. Whoever takes it for the
//! group of now elects himself at once, in a later term than the cluster's. The cluster is a script here: it lets the
//! founder in, sends it the first entries, and is silent. How long a broker waits before it stands for election is shown by
//! others that are told the same, and may stand.

use super::codec::{self, Builder};
use super::network::{self, read_frame};
use super::raft::{Entry, Leader, LogId, Membership, Node, Types, Vote};
use super::store::{Op, Owner, Store};
use super::*;
use crate::accept::PeerHello;
use crate::mailbox::mailboxes;
use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;
use schema::consensus as fb;
use schema::{PROTOCOL_VERSION, frame, wire};
use std::io;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const FOUNDER: u64 = 1;
/// Who leads the cluster, in this term.
const LEADER: u64 = 2;
const TERM: u64 = 7;
/// The least time before an election; the most is twice as long.
const ELECTION: Duration = Duration::from_millis(30);
/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn settings(join: Vec<String>) -> ClusterConfig {
    ClusterConfig {
        broker: BrokerId::new(FOUNDER as u32),
        join,
        heartbeat: Duration::from_millis(10),
        election: ELECTION,
        ..ClusterConfig::default()
    }
}

fn started(directory: &Path, join: Vec<String>) -> (MetadataHandle, MetadataThread) {
    start(directory, settings(join), "127.0.0.1:1".to_owned(), &mailboxes(0).0, Box::new(|_| ())).unwrap()
}

fn registration() -> BrokerRegistration {
    BrokerRegistration {
        broker: BrokerId::new(FOUNDER as u32),
        host: "127.0.0.1".into(),
        port: 1,
        shards: 1,
        storage_uuid: 1,
        rack: String::new(),
    }
}

fn vote() -> Vote {
    Vote { leader_id: Leader { term: TERM, node_id: LEADER }, committed: true }
}

/// The log's first two entries: the group of the founder, and the entry with which it began to lead that.
fn beginning() -> Vec<Entry> {
    let id = |index| LogId::new(Leader { term: 1, node_id: FOUNDER }, index);
    let node = Node::new("127.0.0.1:1");
    let group = Membership::new(vec![[FOUNDER].into()], BTreeMap::from([(FOUNDER, node)])).unwrap();
    vec![
        Entry { log_id: id(0), payload: EntryPayload::Membership(group) },
        Entry { log_id: id(1), payload: EntryPayload::Blank },
    ]
}

/// Lets in whoever asks.
async fn let_in(listener: TcpListener) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        read_frame(&mut stream, 1 << 16).await?;
        let mut builder = Builder::new();
        let args = wire::HelloResponseArgs {
            protocol_version: PROTOCOL_VERSION,
            broker: LEADER as u32,
            ..Default::default()
        };
        let hello = wire::HelloResponse::create(&mut builder, &args);
        let args = wire::ResponseArgs {
            api_type: wire::ResponseApi::HelloResponse,
            api: Some(hello.as_union_value()),
            ..Default::default()
        };
        let root = wire::Response::create(&mut builder, &args);
        let mut hello = Vec::new();
        frame::finish_response(&mut hello, &mut builder, root, 0);
        stream.write_all(&hello).await?;
        let asked = read_frame(&mut stream, 1 << 16).await?;
        let id = codec::read_request(&asked, |asked| Ok((asked.id(), asked.ask_as_join().is_some())));
        let (id, joins) = id.map_err(io::Error::other)?;
        assert!(joins, "it asks for something else first");
        let joined = codec::response(id, |b| {
            let args = fb::JoinedArgs { cluster_high: 0, cluster_low: 77 };
            (fb::Answer::Joined, fb::Joined::create(b, &args).as_union_value())
        });
        stream.write_all(&joined).await?;
    }
}

/// The leader sends the log's beginning to a broker, again until it takes it.
async fn tell(broker: &MetadataHandle) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut ours = TcpStream::connect(listener.local_addr()?).await?;
    let (theirs, _) = listener.accept().await?;
    let hello =
        PeerHello { broker: BrokerId::new(LEADER as u32), epoch: BrokerEpoch::new(1), cluster: Some(77) };
    let stream = theirs.into_std()?;
    broker.take_peer(HandedPeer { stream, hello, hello_id: 0, protocol_version: PROTOCOL_VERSION }).await;
    read_frame(&mut ours, 1 << 16).await?;
    let entries = beginning();
    let leader_commit = entries.last().map(|entry| entry.log_id);
    let append = AppendEntriesRequest::<Types> { vote: vote(), prev_log_id: None, entries, leader_commit };
    for id in 1.. {
        let request = codec::request(id, |b| (fb::Ask::Append, network::append(b, &append)));
        ours.write_all(&request).await?;
        let answer = read_frame(&mut ours, 1 << 16).await?;
        let taken = codec::read_response(&answer, |answer| {
            Ok(answer.answer_as_appended().is_some_and(|taken| taken.outcome() == fb::AppendOutcome::Success))
        });
        if taken.map_err(io::Error::other)? {
            break;
        }
    }
    Ok(())
}

/// Whether a broker has elected itself.
fn leads(broker: &MetadataHandle) -> bool {
    broker.quorum().leader == Some(BrokerId::new(FOUNDER as u32))
}

/// A broker that knows of the leader and may stand: it is told the same, and does.
async fn one_that_may_stand_does() {
    let directory = tempfile::tempdir().unwrap();
    let owner = Owner { broker: FOUNDER, address: "127.0.0.1:1".to_owned() };
    let (mut store, _) = Store::open(directory.path(), &owner, Arc::new(|_| Ok(()))).unwrap();
    store.commit(&[Op::Vote(vote())]).unwrap();
    drop(store);
    let (broker, thread) = started(directory.path(), vec![]);
    tell(&broker).await.unwrap();
    let began = Instant::now();
    while !leads(&broker) {
        assert!(began.elapsed() < LIMIT, "it does not stand: {:?}", broker.quorum());
        tokio::time::sleep(ELECTION / 10).await;
    }
    assert!(broker.quorum().term > TERM);
    thread.stop();
}

fn come_back() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let join = vec![listener.local_addr().unwrap().to_string()];
        let letting_in = tokio::spawn(let_in(listener));
        // In the life in which it joins, and in the next, which goes on with it.
        for _ in 0..2 {
            let (founder, thread) = started(directory.path(), join.clone());
            assert!(!leads(&founder), "as soon as it is there");
            let begun = founder.clone();
            let beginning = tokio::spawn(async move { begun.begin(registration()).await });
            tell(&founder).await.unwrap();
            // Each of them takes as long as the founder would, or half as long at least.
            for _ in 0..3 {
                one_that_may_stand_does().await;
                let quorum = founder.quorum();
                assert!(!leads(&founder) && quorum.term == TERM, "{quorum:?}");
            }
            assert!(!beginning.is_finished(), "it is registered by nobody");
            beginning.abort();
            thread.stop();
        }
        assert!(!letting_in.is_finished());
        // Half joined it is nobody's broker.
        let alone =
            start(directory.path(), settings(vec![]), "a:1".to_owned(), &mailboxes(0).0, Box::new(|_| ()));
        let error = alone.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("start it with --join again"), "{error}");
    });
}

#[test]
fn a_founder_without_its_disk_does_not_elect_itself() {
    come_back();
}

/// The script shows the moment: without the rule the founder elects itself in it.
#[cfg(feature = "mutants")]
#[test]
fn without_its_rule_it_elects_itself() {
    rules::delete(Some(Rule::JoinersDoNotStand));
    let elected = std::panic::catch_unwind(come_back);
    rules::delete(None);
    let error = elected.expect_err("nobody notices that the rule is gone");
    let text = error.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(text.starts_with("Quorum"), "it failed of something else: {text:?}");
}
