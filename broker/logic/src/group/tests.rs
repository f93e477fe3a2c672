//! Scripted steps of one coordinator: each is what a story of the protocol says, and every bug that the simulation
//! has found.

use super::request::{Commit, FetchOffsets, GroupState, Heartbeat, HeartbeatReply};
use super::*;
use crate::rules::{Rule, delete};
use std::collections::BTreeMap;

const TOPIC: TopicId = TopicId::new(1);

/// Topics of a test: name, id, partitions.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeTopics(pub BTreeMap<String, (u128, u32)>);

impl Topics for FakeTopics {
    fn by_name(&self, name: &str) -> Option<TopicId> {
        self.0.get(name).map(|(id, _)| TopicId::new(*id))
    }
    fn partitions(&self, id: TopicId) -> Option<u32> {
        self.0.values().find(|(known, _)| *known == id.get()).map(|(_, count)| *count)
    }
    fn each(&self, visit: &mut dyn FnMut(&str, TopicId)) {
        self.0.iter().for_each(|(name, (id, _))| visit(name, TopicId::new(*id)));
    }
}

fn topics(partitions: u32) -> Arc<FakeTopics> {
    Arc::new(FakeTopics([("t".to_owned(), (1, partitions))].into()))
}

struct Bench {
    coordinator: Coordinator,
    log: Vec<GroupRecord>,
    now_ms: u64,
}

impl Bench {
    fn new(partitions: u32) -> Self {
        let mut bench = Self::load(&[], 0, partitions);
        bench.log.clear();
        bench
    }

    fn load(log: &[GroupRecord], now_ms: u64, partitions: u32) -> Self {
        let mut replay = Replay::default();
        log.iter().cloned().for_each(|record| replay.apply(record));
        let mut effects = Effects::default();
        let now = Now { ms: now_ms, wall_ms: now_ms as i64 };
        let settings = Settings { offsets_retention_ms: 1_000_000 };
        let coordinator = Coordinator::load(replay, settings, topics(partitions), now, &mut effects);
        let mut log = log.to_vec();
        log.extend(effects.records);
        Self { coordinator, log, now_ms }
    }

    fn step(&mut self, event: Event) -> Option<Result<Reply, GroupError>> {
        let mut effects = Effects::default();
        let now = Now { ms: self.now_ms, wall_ms: self.now_ms as i64 };
        self.coordinator.step(now, event, &mut effects);
        self.log.extend(effects.records);
        // What is on disk is what is known.
        let mut known = BTreeMap::new();
        for record in &self.log {
            match record.value() {
                Some(_) => known.insert(record.key(), record.clone()),
                None => known.remove(&record.key()),
            };
        }
        let facts: BTreeMap<_, _> =
            self.coordinator.facts().into_iter().map(|record| (record.key(), record)).collect();
        assert_eq!(facts, known);
        effects.reply
    }

    fn beat(&mut self, member: &str, epoch: i32, owned: Option<&[u32]>) -> Result<HeartbeatReply, ErrorCode> {
        self.heartbeat(Heartbeat {
            member: member.to_owned(),
            epoch,
            owned: owned.map(|owned| owned.iter().map(|&index| partition(TOPIC, index)).collect()),
            topics: (epoch == 0).then(|| vec!["t".to_owned()]),
            session_timeout_ms: if epoch == 0 { 10_000 } else { 0 },
            rebalance_timeout_ms: if epoch == 0 { 20_000 } else { 0 },
            ..Heartbeat::default()
        })
    }

    fn heartbeat(&mut self, heartbeat: Heartbeat) -> Result<HeartbeatReply, ErrorCode> {
        let heartbeat = Heartbeat { group: "g".to_owned(), ..heartbeat };
        match self.step(Event::Heartbeat(heartbeat)) {
            Some(Ok(Reply::Heartbeat(reply))) => Ok(reply),
            Some(Err(error)) => Err(error.error_code()),
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, member: &str, epoch: i32, index: u32, offset: u64) -> Option<ErrorCode> {
        let commit = Commit {
            group: "g".to_owned(),
            member: member.to_owned(),
            epoch,
            entries: vec![(partition(TOPIC, index), offset, -1, String::new())],
        };
        match self.step(Event::Commit(commit)) {
            Some(Ok(Reply::Committed(results))) => results[0].1,
            Some(Err(error)) => Some(error.error_code()),
            other => panic!("{other:?}"),
        }
    }

    fn committed(&mut self) -> Vec<(u32, u64)> {
        let fetch = FetchOffsets { group: "g".to_owned(), ..FetchOffsets::default() };
        match self.step(Event::FetchOffsets(fetch)) {
            Some(Ok(Reply::Offsets(list))) => {
                list.iter().map(|(id, value)| (id.partition.get(), value.as_ref().unwrap().offset)).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

fn holds(reply: &HeartbeatReply) -> Option<Vec<u32>> {
    reply.assignment.as_ref().map(|all| all.iter().map(|id| id.partition.get()).collect())
}

#[test]
fn a_partition_moves_when_it_is_let_go() {
    let mut bench = Bench::new(2);
    let one = bench.beat("one", 0, Some(&[])).unwrap();
    assert_eq!((one.epoch, holds(&one)), (1, Some(vec![0, 1])));
    let two = bench.beat("two", 0, Some(&[])).unwrap();
    assert_eq!((two.epoch, holds(&two), two.interval_ms), (2, Some(vec![]), 100));
    // Nothing to say, nothing new.
    assert_eq!(holds(&bench.beat("two", 2, None).unwrap()), None);
    let told = bench.beat("one", 1, Some(&[0, 1])).unwrap();
    assert_eq!((told.epoch, holds(&told)), (2, Some(vec![0])));
    // Again with the old epoch: the answer was lost. It acknowledges nothing, whatever it owns.
    let again = bench.beat("one", 1, Some(&[0])).unwrap();
    assert_eq!((again.epoch, holds(&again)), (2, Some(vec![0])));
    assert_eq!(holds(&bench.beat("two", 2, None).unwrap()), None, "not free yet");
    assert_eq!(bench.commit("one", 2, 1, 5), None);
    assert_eq!(bench.beat("one", 2, Some(&[0])).unwrap().interval_ms, 100);
    assert_eq!(bench.commit("one", 2, 1, 6), Some(ErrorCode::StaleMemberEpoch));
    let gained = bench.beat("two", 2, None).unwrap();
    assert_eq!((gained.epoch, holds(&gained), gained.interval_ms), (3, Some(vec![1]), 1_000));
    assert_eq!(bench.committed(), [(1, 5)]);
    assert_eq!(bench.beat("two", 1, Some(&[])), Err(ErrorCode::FencedMemberEpoch));
}

#[test]
fn how_far_a_group_has_come() {
    let mut bench = Bench::new(2);
    bench.beat("one", 0, None).unwrap();
    bench.beat("one", 1, Some(&[0, 1])).unwrap();
    assert_eq!(bench.commit("one", 1, 1, 5), None);
    let seen = |bench: &Bench, mut room: usize| {
        let groups = bench.coordinator.progress(&mut room);
        let group = groups.into_iter().next().unwrap();
        let positions = group.positions.map(|positions| {
            positions.into_iter().map(|(id, offset)| (id.partition.get(), offset)).collect::<Vec<_>>()
        });
        (group.state, group.members, group.partitions, positions, room)
    };
    let both = Some(vec![(0, None), (1, Some(5))]);
    assert_eq!(seen(&bench, 10), (GroupState::Stable, 1, 2, both, 8));
    // No room: an upper bound of how many there are.
    assert_eq!(seen(&bench, 2), (GroupState::Stable, 1, 3, None, 2));
    bench.beat("one", -1, None).unwrap();
    assert_eq!(seen(&bench, 1), (GroupState::Empty, 0, 1, Some(vec![(1, Some(5))]), 0));
}

#[test]
fn who_is_silent_or_slow_is_out() {
    let mut bench = Bench::new(2);
    bench.beat("one", 0, None).unwrap();
    let two = bench.beat("two", 0, None).unwrap();
    bench.beat("one", 1, Some(&[0, 1])).unwrap();
    // It lives, but does not let go.
    for now_ms in [5_000, 10_000, 15_000, 19_999] {
        bench.now_ms = now_ms;
        bench.step(Event::Tick);
        assert!(bench.beat("one", 2, Some(&[0, 1])).is_ok(), "at {now_ms}");
        bench.beat("two", two.epoch, None).unwrap();
    }
    bench.now_ms = 20_000;
    assert_eq!(bench.coordinator.next_deadline_ms(), 20_000);
    bench.step(Event::Tick);
    assert_eq!(bench.beat("one", 2, Some(&[0])), Err(ErrorCode::UnknownMemberId));
    assert_eq!(holds(&bench.beat("two", two.epoch, None).unwrap()), Some(vec![0, 1]));
    bench.now_ms = 30_000;
    bench.step(Event::Tick);
    assert_eq!(bench.commit("two", two.epoch + 1, 0, 1), Some(ErrorCode::UnknownMemberId));
    let Some(Ok(Reply::Described(group))) = bench.step(Event::Describe("g".to_owned())) else { panic!() };
    assert_eq!((group.state, group.empty_since_ms), (GroupState::Empty, 30_000));
}

#[test]
fn a_load_goes_on_where_the_log_ends() {
    let mut bench = Bench::new(4);
    bench.beat("one", 0, None).unwrap();
    bench.beat("two", 0, None).unwrap();
    bench.beat("one", 1, Some(&[0, 1, 2, 3])).unwrap();
    assert_eq!(bench.commit("one", 2, 3, 7), None);
    let log = bench.log.clone();
    // Any beginning of the log is a state without contradictions.
    for end in 0..=log.len() {
        let bench = Bench::load(&log[..end], 100, 4);
        let owners: BTreeSet<_> = bench.coordinator.facts().into_iter().map(|record| record.key()).collect();
        assert!(owners.len() <= log.len());
    }
    let mut bench = Bench::load(&log, 100_000, 4);
    assert_eq!(bench.log.len(), log.len(), "nothing was to be set right");
    assert_eq!(bench.committed(), [(3, 7)]);
    assert_eq!(holds(&bench.beat("one", 2, None).unwrap()), None);
    bench.beat("one", 2, Some(&[0, 1])).unwrap();
    assert_eq!(holds(&bench.beat("two", 2, None).unwrap()), Some(vec![2, 3]));
    // The topic grew while nobody coordinated.
    let mut bench = Bench::load(&bench.log, 200_000, 5);
    let gained = bench.beat("two", 3, None).unwrap();
    let other = bench.beat("one", 2, None).unwrap();
    assert_eq!(holds(&gained).into_iter().chain(holds(&other)).count(), 1, "one of them has the fifth");
}

#[test]
fn offsets_expire_when_nobody_is_left() {
    let mut bench = Bench::new(2);
    bench.beat("one", 0, None).unwrap();
    assert_eq!(bench.commit("one", 1, 0, 5), None);
    bench.now_ms = 9_000;
    bench.beat("one", -1, None).unwrap();
    assert_eq!(bench.commit("", -1, 1, 6), None);
    for (now_ms, expect) in [(1_008_999, 2), (1_009_000 + OFFSETS_SWEEP_MS, 0)] {
        bench.now_ms = now_ms;
        bench.step(Event::Tick);
        assert_eq!(bench.committed().len(), expect, "at {now_ms}");
    }
    assert_eq!(
        bench.step(Event::Delete("g".to_owned())),
        Some(Err(GroupError::UnknownGroup("g".to_owned()))),
        "the group went with its last offset"
    );
    assert_eq!(bench.coordinator.offsets, 0);
}

#[test]
fn a_static_member_finds_its_place() {
    let said = |member: &str, epoch| Heartbeat {
        member: member.to_owned(),
        epoch,
        instance: Some("i".to_owned()),
        topics: (epoch == 0).then(|| vec!["t".to_owned()]),
        ..Heartbeat::default()
    };
    let mut bench = Bench::new(4);
    let first = bench.heartbeat(said("a", 0)).unwrap();
    assert_eq!(bench.heartbeat(said("b", 0)), Err(ErrorCode::UnreleasedInstanceId));
    bench.heartbeat(said("a", -2)).unwrap();
    // Meanwhile another one comes: what is not the static member's any more is free at once.
    let other = bench.beat("other", 0, None).unwrap();
    assert_eq!(holds(&other).unwrap().len(), 2);
    let back = bench.heartbeat(said("b", 0)).unwrap();
    assert_eq!(holds(&back).unwrap().len(), 2);
    assert!(back.epoch > first.epoch);
    assert_eq!(bench.heartbeat(said("a", first.epoch)), Err(ErrorCode::FencedInstanceId));
    assert_eq!(bench.commit("a", first.epoch, 0, 1), Some(ErrorCode::UnknownMemberId));
    // The other is not disturbed by any of it.
    assert_eq!(holds(&bench.beat("other", other.epoch, None).unwrap()), None);
}

#[test]
fn rules_can_be_deleted_here_only() {
    delete(Some(Rule::FenceCommits));
    let mut bench = Bench::new(1);
    bench.beat("one", 0, None).unwrap();
    assert_eq!(bench.commit("one", 77, 0, 1), None);
    delete(None);
    assert_eq!(bench.commit("one", 77, 0, 1), Some(ErrorCode::StaleMemberEpoch));
}
