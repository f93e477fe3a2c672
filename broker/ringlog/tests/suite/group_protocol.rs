//! Consumer groups against a real broker process, request by request: who gets what, who is fenced, and what
//! survives `kill -9`. The broker has two shards and the connection is to one of them, so that about half of the
//! groups are reached by way of the other.
//!
//! Absent on purpose: the client's own consumer of groups and the commands, which have tests of their own; the
//! rules under crashes and delays, which `logic::group` simulates.

use crate::process::{Broker, directory};
use ringlog_client::group_request::{
    CommitEntry, GroupDescription, GroupState, GroupTopic, Heartbeat, HeartbeatReply, NO_MEMBER_EPOCH,
    OffsetCommit, OffsetFetch,
};
use ringlog_client::reply::Reply;
use ringlog_client::request::{ProduceEntry, Request};
use ringlog_client::{Acks, BrokerError, ClientConfig, Connection, ErrorCode, NewTopic, TopicId};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(60);

struct Session {
    connection: Connection,
}

impl Session {
    async fn open(broker: &Broker) -> Self {
        let config = ClientConfig::new(&broker.address).unwrap();
        Self { connection: Connection::open(&broker.address, Some(0), &config).await.unwrap() }
    }

    /// Sends, again while the coordinator loads.
    async fn ask(&self, request: Request) -> Result<Reply, BrokerError> {
        let until = Instant::now() + TIMEOUT;
        loop {
            let response = self.connection.request(request.clone(), TIMEOUT).await.unwrap();
            match response.into_result() {
                Err(error) if error.code == ErrorCode::CoordinatorLoading && Instant::now() < until => {
                    tokio::time::sleep(error.retry_after).await;
                }
                other => return other,
            }
        }
    }

    async fn create(&self, name: &str, partitions: u32) -> TopicId {
        let topic = NewTopic { partitions, ..NewTopic::named(name) };
        match self.ask(Request::CreateTopic { topic, validate_only: false }).await {
            Ok(Reply::Outcomes(outcomes)) => outcomes[0].id,
            other => panic!("{other:?}"),
        }
    }

    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<HeartbeatReply, ErrorCode> {
        match self.ask(Request::Heartbeat(Box::new(heartbeat.clone()))).await {
            Ok(Reply::Heartbeat(reply)) => Ok(reply),
            Err(error) => Err(error.code),
            other => panic!("{other:?}"),
        }
    }

    async fn commit(
        &self,
        group: &str,
        member: (&str, i32),
        topic: TopicId,
        offsets: &[(u32, u64)],
    ) -> Result<Vec<Option<ErrorCode>>, ErrorCode> {
        let entry = |&(partition, offset): &(u32, u64)| CommitEntry {
            topic,
            partition,
            offset,
            leader_epoch: Some(0),
            metadata: format!("at {offset}"),
        };
        let commit = OffsetCommit {
            group: group.to_owned(),
            member_id: member.0.to_owned(),
            member_epoch: member.1,
            entries: offsets.iter().map(entry).collect(),
        };
        match self.ask(Request::OffsetCommit(Box::new(commit))).await {
            Ok(Reply::Committed(results)) => Ok(results.into_iter().map(|result| result.error).collect()),
            Err(error) => Err(error.code),
            other => panic!("{other:?}"),
        }
    }

    /// All that the group has committed: partition and offset.
    async fn committed(&self, group: &str) -> Vec<(u32, Option<u64>)> {
        let fetch =
            OffsetFetch { group: group.to_owned(), member_epoch: NO_MEMBER_EPOCH, ..OffsetFetch::default() };
        match self.ask(Request::OffsetFetch(Box::new(fetch))).await {
            Ok(Reply::CommittedOffsets(offsets)) => {
                for one in &offsets {
                    assert_eq!(one.metadata, format!("at {}", one.offset.unwrap()));
                    assert_eq!(one.leader_epoch, Some(0));
                }
                offsets.iter().map(|one| (one.partition, one.offset)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    async fn describe(&self, group: &str) -> GroupDescription {
        match self.ask(Request::DescribeGroups { groups: vec![group.to_owned()] }).await {
            Ok(Reply::Groups(groups)) if groups[0].error == Some(ErrorCode::CoordinatorLoading) => {
                // Only after a restart; the next request waits for it.
                self.committed(group).await;
                Box::pin(self.describe(group)).await
            }
            Ok(Reply::Groups(mut groups)) => groups.remove(0),
            other => panic!("{other:?}"),
        }
    }

    async fn delete(&self, group: &str) -> Option<ErrorCode> {
        match self.ask(Request::DeleteGroups { groups: vec![group.to_owned()] }).await {
            Ok(Reply::GroupOutcomes(outcomes)) => outcomes[0].error.as_ref().map(|error| error.code),
            other => panic!("{other:?}"),
        }
    }

    /// Heartbeats of all until nothing moves any more.
    async fn settle(&self, members: &mut [Member]) {
        let until = Instant::now() + TIMEOUT;
        loop {
            for member in members.iter_mut() {
                member.beat(self).await.unwrap();
            }
            let described = self.describe(&members[0].said.group).await;
            if described.state == GroupState::Stable && described.members.len() == members.len() {
                // Whoever lost something has heard of it, and whoever gained something too.
                for member in members.iter_mut() {
                    member.beat(self).await.unwrap();
                }
                return;
            }
            assert!(Instant::now() < until, "the group does not settle: {described:?}");
        }
    }
}

/// A member as a client would be one.
struct Member {
    said: Heartbeat,
    holds: BTreeSet<(TopicId, u32)>,
}

impl Member {
    fn new(group: &str, id: &str, topics: &[&str]) -> Self {
        let said = Heartbeat {
            group: group.to_owned(),
            member_id: id.to_owned(),
            session_timeout_ms: 30_000,
            topics: Some(topics.iter().map(|&topic| topic.to_owned()).collect()),
            owned: Some(Vec::new()),
            ..Heartbeat::default()
        };
        Self { said, holds: BTreeSet::new() }
    }

    fn epoch(&self) -> i32 {
        self.said.member_epoch
    }

    fn who(&self) -> (&str, i32) {
        (&self.said.member_id, self.said.member_epoch)
    }

    fn partitions(&self) -> Vec<u32> {
        self.holds.iter().map(|(_, partition)| *partition).collect()
    }

    async fn beat(&mut self, session: &Session) -> Result<HeartbeatReply, ErrorCode> {
        let topics: BTreeSet<TopicId> = self.holds.iter().map(|(topic, _)| *topic).collect();
        let of = |id: TopicId| GroupTopic {
            id,
            name: String::new(),
            partitions: self
                .holds
                .iter()
                .filter(|(topic, _)| *topic == id)
                .map(|(_, index)| *index)
                .collect(),
        };
        self.said.owned = Some(topics.into_iter().map(of).collect());
        let reply = session.heartbeat(&self.said).await?;
        assert!(reply.member_epoch >= self.said.member_epoch);
        self.said.member_epoch = reply.member_epoch;
        if let Some(assignment) = &reply.assignment {
            self.holds = assignment
                .iter()
                .flat_map(|topic| topic.partitions.iter().map(|index| (topic.id, *index)))
                .collect();
        }
        Ok(reply)
    }

    async fn leave(mut self, session: &Session, epoch: i32) {
        self.said.member_epoch = epoch;
        session.heartbeat(&self.said).await.unwrap();
    }
}

fn shares(members: &[Member]) -> Vec<usize> {
    members.iter().map(|member| member.holds.len()).collect()
}

/// Everybody's partitions; nobody has another's.
fn all_of(members: &[Member]) -> Vec<u32> {
    let mut all: Vec<u32> = members.iter().flat_map(Member::partitions).collect();
    all.sort_unstable();
    all
}

#[tokio::test]
async fn four_partitions_among_one_two_four_and_five() {
    let data = directory();
    let broker = Broker::start(data.path());
    let session = Session::open(&broker).await;
    session.create("work", 4).await;
    for group in ["one", "another"] {
        let mut members = vec![Member::new(group, "m0", &["work"])];
        members[0].beat(&session).await.unwrap();
        assert_eq!(members[0].partitions(), [0, 1, 2, 3], "alone it has all, with the answer to its join");
        for (count, expect) in [(2, vec![2, 2]), (4, vec![1, 1, 1, 1]), (5, vec![1, 1, 1, 1, 0])] {
            while members.len() < count {
                members.push(Member::new(group, &format!("m{}", members.len()), &["work"]));
            }
            let before: Vec<_> = members.iter().map(|member| member.holds.clone()).collect();
            session.settle(&mut members).await;
            assert_eq!(shares(&members), expect);
            assert_eq!(all_of(&members), [0, 1, 2, 3]);
            for (member, before) in members.iter().zip(before).filter(|(_, before)| !before.is_empty()) {
                assert!(member.holds.is_subset(&before), "who had something gained something: {before:?}");
            }
        }
        // One leaves: what it had goes to the one that idles, the others notice nothing.
        let before: Vec<_> = members[1..4].iter().map(|member| member.holds.clone()).collect();
        members.remove(0).leave(&session, -1).await;
        session.settle(&mut members).await;
        assert_eq!(shares(&members), [1, 1, 1, 1]);
        assert_eq!(members[..3].iter().map(|member| member.holds.clone()).collect::<Vec<_>>(), before);
        let described = session.describe(group).await;
        assert_eq!((described.state, described.assignor.as_str()), (GroupState::Stable, "uniform"));
        assert!(described.members.iter().all(|member| member.assignment == member.target));
    }
    let listed = match session.ask(Request::ListGroups).await {
        Ok(Reply::GroupList(groups)) => groups,
        other => panic!("{other:?}"),
    };
    let listed: Vec<_> = listed.iter().map(|group| (group.group.as_str(), group.members)).collect();
    assert_eq!(listed, [("another", 4), ("one", 4)]);
}

#[tokio::test]
async fn a_dead_member_is_replaced_when_its_session_ends() {
    let data = directory();
    let broker = Broker::start(data.path());
    let session = Session::open(&broker).await;
    session.create("work", 4).await;
    let mut dead = Member::new("g", "dead", &["work"]);
    dead.said.session_timeout_ms = 1_000;
    dead.beat(&session).await.unwrap();
    let died = Instant::now();
    let mut alive = Member::new("g", "alive", &["work"]);
    while alive.holds.len() < 4 {
        let reply = alive.beat(&session).await.unwrap();
        assert!(died.elapsed() < TIMEOUT, "its partitions do not move");
        tokio::time::sleep(reply.interval).await;
    }
    assert!(died.elapsed() >= Duration::from_millis(1_000), "before the session was over");
    println!(
        "a dead member's partitions had moved {} ms after its last heartbeat",
        died.elapsed().as_millis()
    );
    assert_eq!(dead.beat(&session).await, Err(ErrorCode::UnknownMemberId));
    assert_eq!(
        session.commit("g", dead.who(), dead.holds.first().unwrap().0, &[(0, 1)]).await,
        Err(ErrorCode::UnknownMemberId)
    );
}

#[tokio::test]
async fn commits_are_fenced() {
    let data = directory();
    let broker = Broker::start(data.path());
    let session = Session::open(&broker).await;
    let topic = session.create("work", 2).await;
    assert_eq!(session.committed("g").await, [], "a group that nobody knows has committed nothing");
    let mut one = Member::new("g", "one", &["work"]);
    one.beat(&session).await.unwrap();
    assert_eq!(session.commit("g", one.who(), topic, &[(0, 5), (1, 7)]).await, Ok(vec![None, None]));
    let first_epoch = one.epoch();

    // Another one joins: partition 1 moves, but only when the first has let it go.
    let mut two = Member::new("g", "two", &["work"]);
    two.beat(&session).await.unwrap();
    assert_eq!(two.partitions(), Vec::<u32>::new());
    let held = one.holds.clone();
    one.beat(&session).await.unwrap();
    assert_eq!(one.partitions().len(), 1, "asked to give up the other");
    let moving: u32 = held.difference(&one.holds).next().unwrap().1;
    let kept = one.partitions()[0];
    two.beat(&session).await.unwrap();
    assert_eq!(two.partitions(), Vec::<u32>::new(), "not free yet");
    // Until it has let go, it may commit both, also in the epoch in which it heard of them.
    let stale = Ok(vec![Some(ErrorCode::StaleMemberEpoch)]);
    assert_eq!(session.commit("g", one.who(), topic, &[(moving, 8)]).await, Ok(vec![None]));
    assert_eq!(session.commit("g", ("one", first_epoch), topic, &[(moving, 9)]).await, Ok(vec![None]));
    one.beat(&session).await.unwrap();
    assert_eq!(session.commit("g", one.who(), topic, &[(moving, 10)]).await, stale);
    assert_eq!(session.commit("g", one.who(), topic, &[(kept, 11)]).await, Ok(vec![None]));
    assert_eq!(session.commit("g", ("one", first_epoch), topic, &[(kept, 12)]).await, Ok(vec![None]));
    two.beat(&session).await.unwrap();
    assert_eq!(two.partitions(), [moving]);
    assert_eq!(session.commit("g", two.who(), topic, &[(moving, 13)]).await, Ok(vec![None]));

    let rows = [
        (("one", one.epoch() + 1), Err(ErrorCode::StaleMemberEpoch)),
        (("one", 0), Err(ErrorCode::StaleMemberEpoch)),
        (("three", 1), Err(ErrorCode::UnknownMemberId)),
        (("", NO_MEMBER_EPOCH), Err(ErrorCode::GroupNotEmpty)),
    ];
    for (who, expect) in rows {
        assert_eq!(session.commit("g", who, topic, &[(kept, 99)]).await, expect, "{who:?}");
    }
    let missing = Ok(vec![Some(ErrorCode::StaleMemberEpoch)]);
    assert_eq!(session.commit("g", one.who(), topic, &[(7, 1)]).await, missing);
    let mut expect = vec![(kept, Some(12)), (moving, Some(13))];
    expect.sort_unstable();
    assert_eq!(session.committed("g").await, expect);

    // Heartbeats: the epoch before the current one is one that missed the answer, older ones are fenced.
    one.said.member_epoch += 5;
    assert_eq!(one.beat(&session).await, Err(ErrorCode::FencedMemberEpoch));
    assert_eq!(session.delete("g").await, Some(ErrorCode::GroupNotEmpty));
    for id in ["one", "two"] {
        Member::new("g", id, &[]).leave(&session, -1).await;
    }
    // Nobody is in it: people may set offsets, back too; a topic that is not there has none.
    let reset = session.commit("g", ("", NO_MEMBER_EPOCH), topic, &[(0, 1), (7, 0)]).await;
    assert_eq!(reset, Ok(vec![None, Some(ErrorCode::UnknownPartition)]));
    let nowhere = session.commit("g", ("", NO_MEMBER_EPOCH), TopicId(7), &[(0, 1)]).await;
    assert_eq!(nowhere, Ok(vec![Some(ErrorCode::UnknownTopic)]));
    assert_eq!(session.committed("g").await[0], (0, Some(1)));
    assert_eq!(session.delete("g").await, None);
    assert_eq!(session.delete("g").await, Some(ErrorCode::GroupNotFound));
    assert_eq!(session.committed("g").await, []);
}

#[tokio::test]
async fn everything_told_survives_kill_9() {
    let data = directory();
    let mut broker = Broker::start(data.path());
    let mut session = Session::open(&broker).await;
    let topic = session.create("work", 4).await;
    let groups: Vec<String> = (0..8).map(|number| format!("group-{number}")).collect();
    let mut members = Vec::new();
    for group in &groups {
        let mut pair = [Member::new(group, "a", &["work"]), Member::new(group, "b", &["work"])];
        session.settle(&mut pair).await;
        members.push(pair);
    }
    for round in 1..4u64 {
        for pair in &members {
            for member in pair {
                let offsets: Vec<_> = member.partitions().iter().map(|&index| (index, round * 10)).collect();
                let committed = session.commit(&member.said.group, member.who(), topic, &offsets).await;
                assert_eq!(committed, Ok(vec![None, None]));
            }
        }
        broker.stop(libc::SIGKILL);
        broker = Broker::start(data.path());
        session = Session::open(&broker).await;
        for (group, pair) in groups.iter().zip(&mut members) {
            let at = Some(round * 10);
            assert_eq!(session.committed(group).await, [(0, at), (1, at), (2, at), (3, at)]);
            // They go on as if nothing had happened.
            for member in pair.iter_mut() {
                let (epoch, holds) = (member.epoch(), member.holds.clone());
                member.beat(&session).await.unwrap();
                assert_eq!((member.epoch(), &member.holds), (epoch, &holds), "{group}");
            }
            assert_eq!(session.describe(group).await.state, GroupState::Stable);
        }
    }
    // A group that was deleted stays deleted; offsets of a topic that is gone are gone.
    let [one, other] = members.remove(0);
    one.leave(&session, -1).await;
    other.leave(&session, -1).await;
    assert_eq!(session.delete(&groups[0]).await, None);
    session.ask(Request::DeleteTopic { name: "work".to_owned() }).await.unwrap();
    broker.stop(libc::SIGKILL);
    let broker = Broker::start(data.path());
    let session = Session::open(&broker).await;
    assert_eq!(session.describe(&groups[0]).await.error, Some(ErrorCode::GroupNotFound));
    assert_eq!(session.committed(&groups[1]).await, []);
    assert_eq!(session.describe(&groups[1]).await.members.len(), 2);
}

#[tokio::test]
async fn patterns_static_members_and_new_partitions() {
    let data = directory();
    let broker = Broker::start(data.path());
    let session = Session::open(&broker).await;
    let first = session.create("metrics.cpu", 2).await;
    session.create("logs", 2).await;
    let mut member = Member::new("g", "m", &[]);
    member.said.pattern = Some("metrics[.].*".to_owned());
    member.said.instance_id = Some("host-1".to_owned());
    member.beat(&session).await.unwrap();
    assert_eq!(member.holds, BTreeSet::from([(first, 0), (first, 1)]));
    // Topics that come later, and partitions that are added.
    let second = session.create("metrics.memory", 1).await;
    session.ask(Request::CreatePartitions { topic: "metrics.cpu".to_owned(), count: 3 }).await.unwrap();
    member.beat(&session).await.unwrap();
    assert_eq!(member.holds, BTreeSet::from([(first, 0), (first, 1), (first, 2), (second, 0)]));

    // The same instance twice is refused; after it has left for a while the new one has everything at once.
    let mut again = Member::new("g", "another-process", &[]);
    again.said.pattern = member.said.pattern.clone();
    again.said.instance_id = Some("host-1".to_owned());
    assert_eq!(again.beat(&session).await, Err(ErrorCode::UnreleasedInstanceId));
    let holds = member.holds.clone();
    let mut zombie = Member { said: member.said.clone(), holds: holds.clone() };
    member.leave(&session, -2).await;
    again.beat(&session).await.unwrap();
    assert_eq!(again.holds, holds);
    assert_eq!(zombie.beat(&session).await, Err(ErrorCode::FencedInstanceId));

    type Row = (fn(&mut Heartbeat), ErrorCode);
    let rows: [Row; 4] = [
        (|said| said.pattern = Some("(".to_owned()), ErrorCode::InvalidPattern),
        (|said| said.assignor = Some("best".to_owned()), ErrorCode::UnsupportedAssignor),
        (|said| said.session_timeout_ms = 1, ErrorCode::InvalidRequest),
        (|said| said.group = String::new(), ErrorCode::InvalidRequest),
    ];
    for (change, expect) in rows {
        let mut wrong = Member::new("g", "wrong", &["logs"]);
        change(&mut wrong.said);
        assert_eq!(wrong.beat(&session).await, Err(expect));
    }
    assert_eq!(session.describe("g").await.members.len(), 1, "whoever was refused is not in");
}

#[tokio::test]
async fn the_offsets_topic_is_the_brokers_own() {
    let data = directory();
    let broker = Broker::start(data.path());
    let session = Session::open(&broker).await;
    let name = "__consumer_offsets".to_owned();
    let metadata = match session.ask(Request::Metadata { topics: Some(vec![name.clone()]) }).await {
        Ok(Reply::Metadata(mut metadata)) => metadata.topics.remove(0),
        other => panic!("{other:?}"),
    };
    assert!(metadata.internal);
    assert_eq!(metadata.partitions.len(), 16, "whoever asks for it makes it");
    let shards: BTreeSet<u32> = metadata.partitions.iter().map(|place| place.shard).collect();
    assert_eq!(shards, BTreeSet::from([0, 1]), "coordinators are on all shards");

    let batch = {
        let mut builder = schema::record_batch::BatchBuilder::new();
        builder.append(0, Some(b"k"), Some(b"v"), &[]);
        builder.finish()
    };
    let entry = ProduceEntry { topic: metadata.id, partition: 0, leader_epoch: 0, batch: batch.into() };
    match session.ask(Request::Produce { acks: Acks::All, explain: false, entries: vec![entry] }).await {
        Ok(Reply::Produce { results, .. }) => assert_eq!(results[0].error, Some(ErrorCode::InternalTopic)),
        other => panic!("{other:?}"),
    }
    let changes = [
        Request::DeleteTopic { name: name.clone() },
        Request::CreatePartitions { topic: name.clone(), count: 17 },
        Request::AlterConfigs { topic: name.clone(), set: vec![], unset: vec!["retention.ms".into()] },
        Request::CreateTopic { topic: NewTopic::named(&name), validate_only: false },
    ];
    for change in changes {
        match session.ask(change).await {
            Ok(Reply::Outcomes(outcomes)) => {
                let code = outcomes[0].error.as_ref().map(|error| error.code);
                assert_eq!(code, Some(ErrorCode::InternalTopic));
            }
            other => panic!("{other:?}"),
        }
    }
    // No subscription finds it, whatever its pattern.
    let mut member = Member::new("g", "m", &["__consumer_offsets"]);
    member.said.pattern = Some(".*".to_owned());
    member.beat(&session).await.unwrap();
    assert_eq!(member.partitions(), Vec::<u32>::new());
}
