//! The machines as tables: what a replica is told, and what it does then, in words.

use super::epoch_history::EpochHistory;
use super::message::{Append, Body, FromFollower, FromLeader, Message, Nack, Opened, Status};
use super::*;
use crate::limits::{
    ALTER_RETRY_MS, REOPEN_BACKOFF_MS_MIN, REPLICA_SLOW_MS, TRANSFER_MS_MAX, WATERMARK_DELAY_MS,
};

fn at(offset: u64) -> Offset {
    Offset::new(offset)
}

fn epochs(of: &[(u32, u64)]) -> Vec<(LeaderEpoch, Offset)> {
    of.iter().map(|(epoch, start)| (LeaderEpoch::new(*epoch), at(*start))).collect()
}

#[test]
fn where_two_logs_part() {
    /// Epochs and end of a log.
    type Log<'a> = (&'a [(u32, u64)], u64);
    let rows: &[(Log<'_>, Log<'_>, Option<u64>)] = &[
        // The same, shorter, longer.
        ((&[(1, 0)], 9), (&[(1, 0)], 9), Some(9)),
        ((&[(1, 0)], 9), (&[(1, 0)], 4), Some(4)),
        ((&[(1, 0)], 4), (&[(1, 0)], 9), Some(4)),
        // The follower led after the leader of now had the log from: its own records go.
        ((&[(1, 0), (3, 5)], 9), (&[(1, 0), (2, 5)], 7), Some(5)),
        ((&[(1, 0), (3, 4)], 9), (&[(1, 0), (2, 6)], 8), Some(4)),
        ((&[(1, 0), (3, 6)], 9), (&[(1, 0), (2, 4)], 8), Some(4)),
        // KIP-279: both have an epoch that the other has not.
        ((&[(1, 0), (2, 4), (4, 8)], 9), (&[(1, 0), (3, 5)], 7), Some(4)),
        ((&[(1, 0), (2, 4), (4, 8)], 9), (&[(1, 0), (2, 4), (3, 6)], 7), Some(6)),
        // Epochs in which nothing was written.
        ((&[(1, 0), (2, 5), (3, 5)], 5), (&[(1, 0)], 7), Some(5)),
        ((&[(1, 0), (3, 9)], 9), (&[(1, 0), (2, 7)], 7), Some(7)),
        // Nothing in common.
        ((&[(5, 3)], 9), (&[(1, 0)], 3), None),
        ((&[(1, 0)], 9), (&[], 0), None),
        ((&[], 0), (&[(1, 0)], 3), None),
    ];
    for ((leader, end), (follower, follower_end), expect) in rows {
        let history = EpochHistory::new(epochs(leader));
        let got = history.common_end(at(*end), &epochs(follower), at(*follower_end));
        assert_eq!(got, expect.map(at), "{leader:?} {end}, {follower:?} {follower_end}");
    }
}

#[test]
fn history_follows_its_log() {
    let all = [(1, 0), (2, 4), (4, 8)];
    for (to, expect) in [(9, &all[..]), (8, &all[..2]), (5, &all[..2]), (4, &all[..1]), (0, &all[..0])] {
        let mut history = EpochHistory::new(epochs(&all));
        assert_eq!(history.reaches(at(to)), to <= 8);
        history.truncate(at(to));
        assert_eq!(history.entries(), epochs(expect), "truncated to {to}");
    }
    for (start, expect) in [(0, &all[..]), (3, &all[..]), (4, &all[1..]), (7, &all[1..]), (20, &all[2..])] {
        let mut history = EpochHistory::new(epochs(&all));
        history.advance_start(at(start));
        assert_eq!(history.entries(), epochs(expect), "begins at {start}");
    }
    let history = EpochHistory::new(epochs(&[(2, 4), (4, 8)]));
    let before = [(0, None), (4, None), (5, Some(2)), (8, Some(2)), (9, Some(4))];
    for (offset, expect) in before {
        assert_eq!(history.epoch_before(at(offset)), expect.map(LeaderEpoch::new), "before {offset}");
    }
    // What does not rise is not taken in.
    assert_eq!(
        EpochHistory::new(epochs(&[(2, 4), (2, 6), (1, 9), (3, 1), (5, 7)])).entries(),
        epochs(&[(2, 4), (5, 7)])
    );
}

/// What a view says, with everybody in its first registration unless set otherwise.
#[derive(Clone)]
struct Says {
    leader: u32,
    epoch: u32,
    version: u32,
    replicas: &'static [u32],
    in_sync: &'static [u32],
    min: usize,
    transfer_to: Option<u32>,
    suspect: &'static [u32],
    /// `(broker, registration)` that differ from 1.
    registered: &'static [(u32, u64)],
}

impl Default for Says {
    fn default() -> Self {
        Self {
            leader: 0,
            epoch: 1,
            version: 1,
            replicas: &[0, 1, 2],
            in_sync: &[0, 1, 2],
            min: 2,
            transfer_to: None,
            suspect: &[],
            registered: &[],
        }
    }
}

impl Says {
    fn event(&self) -> Event {
        let member = |broker: &u32| Member {
            broker: BrokerId::new(*broker),
            generation: ReplicaGeneration::new(0),
            broker_epoch: BrokerEpoch::new(
                self.registered.iter().find(|(of, _)| of == broker).map_or(1, |(_, epoch)| *epoch),
            ),
            available: true,
            suspect: self.suspect.contains(broker).then(Default::default),
        };
        Event::MetadataChanged(Arc::new(View {
            leader: Some(BrokerId::new(self.leader)),
            leader_epoch: LeaderEpoch::new(self.epoch),
            partition_epoch: PartitionEpoch::new(self.version),
            replicas: self.replicas.iter().map(member).collect(),
            in_sync: self.in_sync.iter().copied().map(BrokerId::new).collect(),
            eligible: Arc::default(),
            min_in_sync: self.min,
            transfer_to: self.transfer_to.map(BrokerId::new),
        }))
    }
}

/// A replica under test, the clock, and what it did last.
struct Script {
    replica: Replica,
    now_ms: u64,
}

impl Script {
    /// Broker 0's replica with a log of `end` records in `of` epochs.
    fn new(of: &[(u32, u64)], end: u64, status: Status) -> Self {
        let here = Here {
            broker: BrokerId::new(0),
            broker_epoch: BrokerEpoch::new(1),
            generation: ReplicaGeneration::new(0),
        };
        let start =
            Start { log_start: at(0), log_end: at(end), epochs: epochs(of), status, trusted_end: None };
        Self { replica: Replica::new(here, Settings { lag_ms_max: 5_000 }, start), now_ms: 0 }
    }

    /// `event` has these effects, in words.
    #[track_caller]
    fn check(&mut self, event: Event, expect: &str) {
        let mut effects = Effects::new();
        let told = format!("{event:?}");
        self.replica.step(self.now_ms, event, &mut effects);
        let got: Vec<String> = effects.iter().map(words).collect();
        assert_eq!(got.join(", "), expect, "{told}");
    }

    #[track_caller]
    fn later(&mut self, ms: u64, expect: &str) {
        self.now_ms += ms;
        assert!(self.replica.next_deadline_ms() <= self.now_ms, "nothing is due");
        self.check(Event::Tick, expect);
    }

    /// A follower says something, under an opening of epoch 1.
    #[track_caller]
    fn hears(&mut self, from: u32, opening: u32, body: FromFollower, expect: &str) {
        self.check(message(from, 1, opening, Body::FromFollower(body)), expect);
    }

    /// The leader of epoch 1, broker 1, says something.
    #[track_caller]
    fn told(&mut self, opening: u32, body: FromLeader, expect: &str) {
        self.check(message(1, 1, opening, Body::FromLeader(body)), expect);
    }

    /// Leads three replicas from offset 0, with both followers matched.
    fn leading() -> Self {
        let mut script = Self::new(&[], 0, Status::Clean);
        for peer in [1, 2] {
            script.check(Event::StreamUp(BrokerId::new(peer)), "");
        }
        script.check(Says::default().event(), "lead 1 from 0, to 1#1 open, to 2#1 open");
        for peer in [1, 2] {
            script.hears(peer, 1, opened(&[], 0), &format!("to {peer}#1 match 0"));
            script.hears(peer, 1, FromFollower::Matched { end: at(0) }, "");
        }
        script
    }

    /// Follows broker 1 in epoch 1, matched at the end of its log.
    fn following(of: &[(u32, u64)], end: u64) -> Self {
        let mut script = Self::new(of, end, Status::Clean);
        script.check(Says { leader: 1, ..Says::default() }.event(), "");
        script.told(1, open(), &format!("to 1#1 opened {end}"));
        script.told(
            1,
            FromLeader::Match { to: at(end), fingerprint: None },
            &format!("to 1#1 matched {end}"),
        );
        script
    }

    #[track_caller]
    fn appended(&mut self, base: u64, end: u64, expect: &str) {
        self.check(Event::Appended { base: at(base), end: at(end), epoch: LeaderEpoch::new(1) }, expect);
    }

    #[track_caller]
    fn durable(&mut self, end: u64, expect: &str) {
        self.check(Event::Durable { end: at(end) }, expect);
    }

    #[track_caller]
    fn ack(&mut self, from: u32, opening: u32, end: u64, expect: &str) {
        self.hears(from, opening, FromFollower::Ack { durable_end: at(end) }, expect);
    }

    /// The driver sends what there is for `to`.
    #[track_caller]
    fn push(&mut self, to: u32, end: u64, expect: &str) {
        let to = BrokerId::new(to);
        let head = self.replica.append_head(to).expect("a push was asked for");
        let open_sequence = head.open_sequence;
        self.check(Event::Pushed { to, open_sequence, end: at(end), from_memory: true }, expect);
    }
}

fn message(from: u32, epoch: u32, opening: u32, body: Body) -> Event {
    let (leader_epoch, open_sequence) = (LeaderEpoch::new(epoch), OpenSequence::new(opening));
    Event::Message { from: BrokerId::new(from), message: Message { leader_epoch, open_sequence, body } }
}

fn open() -> FromLeader {
    FromLeader::Open { generation: ReplicaGeneration::new(0), log_start: at(0) }
}

fn append(base: u64, previous_epoch: Option<u32>, high_watermark: u64) -> FromLeader {
    FromLeader::Append(Append {
        base: at(base),
        previous_epoch: previous_epoch.map(LeaderEpoch::new),
        high_watermark: at(high_watermark),
        log_start: at(0),
    })
}

fn opened_as(of: &[(u32, u64)], end: u64, registration: u64, status: Status) -> FromFollower {
    FromFollower::Opened(Box::new(Opened {
        broker_epoch: BrokerEpoch::new(registration),
        generation: ReplicaGeneration::new(0),
        epochs: epochs(of),
        log_start: at(0),
        durable_end: at(end),
        status,
    }))
}

fn opened(of: &[(u32, u64)], end: u64) -> FromFollower {
    opened_as(of, end, 1, Status::Clean)
}

fn words(effect: &Effect) -> String {
    match effect {
        Effect::Send { to, message } => {
            let what = match &message.body {
                Body::FromLeader(FromLeader::Open { .. }) => "open".to_owned(),
                Body::FromLeader(FromLeader::Match { to, fingerprint: None }) => format!("match {to}"),
                Body::FromLeader(FromLeader::Match { to, fingerprint: Some(print) }) => {
                    format!("match {to} {print}")
                }
                Body::FromLeader(FromLeader::Reset { log_start }) => format!("reset {log_start}"),
                Body::FromLeader(FromLeader::Append(_)) => unreachable!("the driver sends batches"),
                Body::FromLeader(FromLeader::Watermarks { high_watermark, .. }) => {
                    format!("watermark {high_watermark}")
                }
                Body::FromFollower(FromFollower::Opened(opened)) => format!("opened {}", opened.durable_end),
                Body::FromFollower(FromFollower::Matched { end }) => format!("matched {end}"),
                Body::FromFollower(FromFollower::Ack { durable_end }) => format!("ack {durable_end}"),
                Body::FromFollower(FromFollower::Nack(nack)) => format!("nack {nack:?}"),
            };
            format!("to {to}#{} {what}", message.open_sequence)
        }
        Effect::Push { to, stream } => format!("push {to} {stream:?}"),
        Effect::Append => "append".to_owned(),
        Effect::Truncate { to } => format!("truncate {to}"),
        Effect::Reset { log_start } => format!("reset {log_start}"),
        Effect::SetLogStart(to) => format!("start {to}"),
        Effect::SetHighWatermark(to) => format!("hw {to}"),
        Effect::BecameLeader { epoch, start } => format!("lead {epoch} from {start}"),
        Effect::RoleLost => "lost".to_owned(),
        Effect::Alter(alter) => {
            let members: Vec<String> =
                alter.in_sync.iter().map(|(broker, epoch, _)| format!("{broker}@{epoch}")).collect();
            let transfer = alter.transfer_to.map_or(String::new(), |to| format!(" lead {to}"));
            format!("alter {} to {}{transfer}", alter.partition_epoch, members.join(" "))
        }
        Effect::ReadFingerprint { offset } => format!("fingerprint {offset}"),
        Effect::ReportSuspect { .. } => "suspect".to_owned(),
        Effect::ReportClean { broker, leader_epoch, .. } => format!("clean {broker} in {leader_epoch}"),
    }
}

#[test]
fn a_single_replica_commits_what_is_durable() {
    let mut script = Script::new(&[(1, 0)], 5, Status::Clean);
    let alone = Says { replicas: &[0], in_sync: &[0], min: 1, ..Says::default() };
    // It led in this epoch before it restarted.
    script.check(alone.event(), "lead 1 from 5, hw 5");
    script.appended(5, 8, "");
    script.durable(7, "hw 7");
    script.durable(8, "hw 8");
    assert_eq!(script.replica.next_deadline_ms(), u64::MAX);
    assert_eq!(script.replica.admit(), Ok(LeaderEpoch::new(1)));
}

#[test]
pub(super) fn a_leader_commits_what_all_have() {
    let mut script = Script::leading();
    script.appended(0, 3, "push 1 Live, push 2 Live");
    script.push(1, 3, "");
    script.push(2, 2, "push 2 Live");
    script.push(2, 3, "");
    script.ack(1, 1, 3, "");
    script.ack(2, 1, 2, "");
    // Followers may be faster than this disk.
    script.durable(3, "hw 2");
    script.ack(2, 1, 3, "hw 3");
    // Nothing carries it: told by itself.
    script.later(WATERMARK_DELAY_MS, "to 1#1 watermark 3, to 2#1 watermark 3");
    // An opening that is void does not count.
    script.appended(3, 4, "push 1 Live, push 2 Live");
    script.push(1, 4, "");
    script.push(2, 4, "");
    script.durable(4, "");
    script.check(Event::StreamUp(BrokerId::new(2)), "to 2#2 open");
    script.ack(1, 1, 4, "");
    script.ack(2, 1, 4, "");
    script.hears(2, 2, opened(&[(1, 0)], 4), "fingerprint 4");
    script.check(Event::Fingerprint { offset: at(4), value: Some(77) }, "to 2#2 match 4 77");
    script.hears(2, 2, FromFollower::Matched { end: at(4) }, "hw 4");
}

/// The follower's log was cut since: what it acknowledged before says nothing of what it has.
#[test]
pub(super) fn a_leader_ignores_what_belongs_to_an_earlier_opening() {
    let mut script = Script::leading();
    script.appended(0, 4, "push 1 Live, push 2 Live");
    script.push(1, 4, "");
    script.push(2, 4, "");
    script.durable(4, "");
    script.ack(1, 1, 4, "");
    script.check(Event::StreamUp(BrokerId::new(2)), "to 2#2 open");
    script.hears(2, 1, opened(&[(1, 0)], 4), "");
    script.hears(2, 2, opened(&[(1, 0)], 3), "fingerprint 3");
    script.check(Event::Fingerprint { offset: at(3), value: Some(7) }, "to 2#2 match 3 7");
    script.hears(2, 2, FromFollower::Matched { end: at(3) }, "push 2 Live, hw 3");
    script.ack(2, 1, 4, "");
    script.hears(2, 1, FromFollower::Nack(Nack::Gap), "");
    script.push(2, 4, "");
    script.ack(2, 2, 4, "hw 4");
}

#[test]
fn what_a_follower_had_is_told_when_it_has_gone() {
    let mut script = Script::leading();
    let acked = |script: &Script| -> Vec<Option<u64>> {
        script.replica.peers().map(|peer| peer.acked.map(Offset::get)).collect()
    };
    script.appended(0, 4, "push 1 Live, push 2 Live");
    script.push(1, 4, "");
    script.push(2, 4, "");
    script.ack(2, 1, 3, "");
    assert_eq!(acked(&script), [Some(0), Some(3)]);
    script.check(Event::StreamDown(BrokerId::new(2)), "");
    script.check(Event::StreamUp(BrokerId::new(2)), "to 2#2 open");
    assert_eq!(acked(&script), [Some(0), Some(3)]);
    // It comes back with less.
    script.hears(2, 2, opened(&[], 0), "to 2#2 match 0");
    script.hears(2, 2, FromFollower::Matched { end: at(0) }, "push 2 Live");
    assert_eq!(acked(&script), [Some(0), Some(0)]);
    // What was known in an epoch says nothing in the next one.
    script.check(Says { leader: 1, epoch: 2, version: 2, ..Says::default() }.event(), "lost");
    script.check(
        Says { epoch: 3, version: 3, ..Says::default() }.event(),
        "lead 3 from 4, to 1#1 open, to 2#1 open",
    );
    assert_eq!(acked(&script), [None, None]);
}

/// What a leader said before it opened again was about another end of the log.
#[test]
pub(super) fn a_follower_ignores_what_belongs_to_an_earlier_opening() {
    let mut script = Script::following(&[(0, 0)], 3);
    script.told(2, open(), "to 1#2 opened 3");
    script.told(1, FromLeader::Match { to: at(2), fingerprint: None }, "");
    script.told(1, FromLeader::Reset { log_start: at(9) }, "");
    script.told(2, FromLeader::Match { to: at(3), fingerprint: None }, "to 1#2 matched 3");
    script.told(1, append(3, Some(0), 3), "");
    script.told(1, FromLeader::Watermarks { high_watermark: at(3), log_start: at(2) }, "");
    script.told(2, append(3, Some(0), 0), "append");
}

#[test]
fn a_member_that_is_behind_goes() {
    let mut script = Script::leading();
    script.appended(0, 3, "push 1 Live, push 2 Live");
    script.push(1, 3, "");
    script.durable(3, "");
    script.ack(1, 1, 3, "");
    script.later(5_000, "alter 1 to 0@1 1@1");
    // Nobody knows whether it happened: broker 2 counts, and the same is asked again.
    script.later(ALTER_RETRY_MS, "alter 1 to 0@1 1@1");
    script.check(Says { version: 2, in_sync: &[0, 1], ..Says::default() }.event(), "hw 3");
    // It catches up and joins; from the asking on it counts.
    script.push(2, 3, "");
    script.now_ms += 10_000;
    script.ack(2, 1, 3, "alter 2 to 0@1 1@1 2@1");
    script.appended(3, 4, "push 1 Live, push 2 Live");
    script.push(1, 4, "");
    script.push(2, 4, "");
    script.durable(4, "");
    script.ack(1, 1, 4, "");
    // Refused: metadata's set is the set.
    script.check(Says { version: 3, in_sync: &[0, 1], ..Says::default() }.event(), "hw 4");
    // Not at once again.
    script.ack(2, 1, 4, "");
    script.later(10_000, "to 1#1 watermark 4, to 2#1 watermark 4, alter 3 to 0@1 1@1 2@1");
}

/// Batches one after the other, each acknowledged by broker 1 and by broker 2 so many milliseconds later; the last one is
/// on its way to broker 2 still.
fn acknowledged_late(script: &mut Script, batches: u64, late_ms: [u64; 2]) {
    for base in 0..=batches {
        let end = base + 1;
        script.appended(base, end, "push 1 Live, push 2 Live");
        script.push(1, end, "");
        script.push(2, end, "");
        script.durable(end, "");
        script.now_ms += late_ms[0];
        script.ack(1, 1, end, "");
        if base < batches {
            script.now_ms += late_ms[1];
            script.ack(2, 1, end, &format!("hw {end}"));
        }
    }
}

#[test]
fn a_member_that_is_slow_goes_while_another_is_quick() {
    // Who waits for every acknowledgement keeps it near the end: it is never behind for long.
    let long = 5_000 / REPLICA_SLOW_MS + 1;
    let mut script = Script::leading();
    acknowledged_late(&mut script, long, [1, REPLICA_SLOW_MS + 100]);
    script.later(1, "alter 1 to 0@1 1@1");
    // Not yet for so long; not slow; both of them are.
    for (batches, late_ms) in [
        (3, [1, REPLICA_SLOW_MS + 100]),
        (2 * long, [1, REPLICA_SLOW_MS - 100]),
        (long, [REPLICA_SLOW_MS, 1]),
    ] {
        let mut script = Script::leading();
        acknowledged_late(&mut script, batches, late_ms);
        script.later(1, "");
    }
}

#[test]
fn too_small_a_set_commits_nothing() {
    let mut script = Script::leading();
    script.check(Says { version: 2, in_sync: &[0], ..Says::default() }.event(), "alter 2 to 0@1 1@1 2@1");
    assert_eq!(script.replica.admit(), Err(NotAdmitted::NotEnoughReplicas { in_sync: 1, min_in_sync: 2 }));
    script.appended(0, 1, "push 1 Live, push 2 Live");
    script.durable(1, "");
    script.check(Says { version: 3, in_sync: &[0], min: 1, ..Says::default() }.event(), "hw 1");
}

#[test]
pub(super) fn who_may_join() {
    let rows: &[(Says, FromFollower, &str)] = &[
        (Says::default(), opened(&[(1, 0)], 4), "alter 1 to 0@1 1@1"),
        // Started again since metadata heard of it.
        (Says::default(), opened_as(&[(1, 0)], 4, 2, Status::Clean), ""),
        // Suspect: reported clean first, by who knows where the epoch began.
        (
            Says { suspect: &[1], ..Says::default() },
            opened_as(&[(1, 0)], 4, 1, Status::Suspect),
            "clean 1 in 1",
        ),
        // Suspect, and not everything that the leader began with, although nothing is known to be committed.
        (
            Says { suspect: &[1], ..Says::default() },
            opened_as(&[(0, 0)], 3, 1, Status::Suspect),
            "push 1 Live",
        ),
        // Not everything that the leader began with.
        (Says::default(), opened(&[(0, 0)], 3), "push 1 Live"),
    ];
    for (says, opened, expect) in rows {
        let mut script = Script::new(&[(0, 0)], 4, Status::Clean);
        script.check(Event::StreamUp(BrokerId::new(1)), "");
        let says = Says { replicas: &[0, 1], in_sync: &[0], ..says.clone() };
        script.check(says.event(), "lead 1 from 4, to 1#1 open");
        let FromFollower::Opened(inner) = opened else { unreachable!() };
        let end = inner.durable_end;
        let opened =
            FromFollower::Opened(Box::new(Opened { epochs: epochs(&[(0, 0)]), ..(**inner).clone() }));
        script.hears(1, 1, opened, &format!("fingerprint {end}"));
        script.check(Event::Fingerprint { offset: end, value: None }, &format!("to 1#1 match {end}"));
        let expect = if *expect == "push 1 Live" { "push 1 CatchUp" } else { expect };
        script.hears(1, 1, FromFollower::Matched { end }, expect);
    }
    // Metadata knows of a later start, which the follower has not heard of: it is asked again.
    let mut script = Script::leading();
    let again = Says { version: 2, registered: &[(1, 2)], in_sync: &[0, 2], ..Says::default() };
    script.check(again.event(), "");
    script.later(REOPEN_BACKOFF_MS_MIN, "to 1#2 open");
    script.hears(1, 2, opened(&[], 0), "to 1#2 match 0");
    script.later(2 * REOPEN_BACKOFF_MS_MIN, "to 1#3 open");
    script.hears(1, 3, opened_as(&[], 0, 2, Status::Clean), "to 1#3 match 0");
    script.hears(1, 3, FromFollower::Matched { end: at(0) }, "alter 2 to 0@1 1@2 2@1");
}

#[test]
fn who_does_not_follow_is_asked_later() {
    let mut script = Script::leading();
    let backoff = REOPEN_BACKOFF_MS_MIN;
    script.hears(1, 1, FromFollower::Nack(Nack::Gap), "");
    script.later(backoff, "to 1#2 open");
    script.hears(1, 2, FromFollower::Nack(Nack::UnknownEpoch), "");
    script.later(2 * backoff, "to 1#3 open");
    // Who is full, or suspect, leaves the set at once.
    script.hears(1, 3, FromFollower::Nack(Nack::StorageFull), "alter 1 to 0@1 2@1");
    script.later(4 * backoff, "to 1#4 open");
    // Opening that is not answered begins anew.
    let patience = crate::limits::OPEN_TIMEOUT_MS_MIN;
    script.later(patience, "to 1#5 open");
    script.later(2 * patience, "to 1#6 open, alter 1 to 0@1 2@1");
}

#[test]
fn leadership_is_given_to_who_has_everything() {
    let mut script = Script::leading();
    script.appended(0, 2, "push 1 Live, push 2 Live");
    script.push(1, 2, "");
    script.push(2, 2, "");
    script.check(Says { version: 2, transfer_to: Some(1), ..Says::default() }.event(), "");
    assert_eq!(script.replica.admit(), Err(NotAdmitted::NotLeader));
    script.ack(1, 1, 2, "alter 2 to 0@1 1@1 2@1 lead 1");
    script.check(Says { version: 3, leader: 1, epoch: 2, ..Says::default() }.event(), "lost");
    // Who does not get there keeps nobody waiting.
    let mut script = Script::leading();
    script.appended(0, 2, "push 1 Live, push 2 Live");
    script.check(Says { version: 2, transfer_to: Some(1), ..Says::default() }.event(), "");
    script.later(TRANSFER_MS_MAX, "");
    assert_eq!(script.replica.admit(), Ok(LeaderEpoch::new(1)));
}

#[test]
fn a_leader_says_where_to_cut() {
    // A follower's epochs and end, and what the leader of (0, 0), (2, 6), end 9, says.
    type Row<'a> = (&'a [(u32, u64)], u64, &'a str, &'a str);
    let rows: &[Row<'_>] = &[
        (&[(0, 0)], 8, "fingerprint 6", "to 1#1 match 6 7"),
        (&[(0, 0), (1, 4)], 8, "fingerprint 4", "to 1#1 match 4 7"),
        (&[], 0, "to 1#1 match 0", ""),
        (&[(1, 0)], 5, "to 1#1 match 0", ""),
    ];
    for (of, end, first, second) in rows {
        let mut script = Script::new(&[(0, 0), (2, 6)], 9, Status::Clean);
        script.check(Event::StreamUp(BrokerId::new(1)), "");
        let says = Says { epoch: 3, replicas: &[0, 1], in_sync: &[0, 1], ..Says::default() };
        script.check(says.event(), "lead 3 from 9, to 1#1 open");
        script.check(message(1, 3, 1, Body::FromFollower(opened(of, *end))), first);
        if let Some(offset) = first.strip_prefix("fingerprint ") {
            let offset = at(offset.parse().unwrap());
            script.check(Event::Fingerprint { offset, value: Some(7) }, second);
        }
    }
}

#[test]
pub(super) fn a_follower_appends_and_acknowledges() {
    let mut script = Script::following(&[(0, 0)], 3);
    script.told(1, append(3, Some(0), 2), "append, hw 2");
    script.appended(3, 5, "");
    script.told(1, append(5, Some(1), 5), "append, hw 3");
    script.appended(5, 6, "");
    script.durable(6, "to 1#1 ack 6, hw 5");
    let watermarks = FromLeader::Watermarks { high_watermark: at(9), log_start: at(2) };
    script.told(1, watermarks, "hw 6, start 2");
    // What does not come next ends it, until it is opened again.
    script.told(1, append(7, Some(1), 9), "to 1#1 nack Gap");
    script.told(1, append(6, Some(1), 9), "");
    script.told(2, open(), "to 1#2 opened 6");
    script.told(1, FromLeader::Match { to: at(6), fingerprint: None }, "");
    script.told(2, FromLeader::Match { to: at(6), fingerprint: None }, "to 1#2 matched 6");
    // Another epoch before it is another log.
    script.told(2, append(6, Some(0), 6), "to 1#2 nack Gap");
}

#[test]
fn a_follower_answers_in_its_own_epoch() {
    let mut script = Script::new(&[(0, 0)], 3, Status::Clean);
    script.told(1, open(), "to 1#1 nack UnknownEpoch");
    script.check(Says { leader: 1, ..Says::default() }.event(), "");
    for (epoch, expect) in [(0, "to 1#1 nack StaleLeader"), (2, "to 1#1 nack UnknownEpoch")] {
        script.check(message(1, epoch, 1, Body::FromLeader(open())), expect);
    }
    let other = FromLeader::Open { generation: ReplicaGeneration::new(4), log_start: at(0) };
    script.told(1, other, "to 1#1 nack NotReplica");
    script.told(2, open(), "to 1#2 opened 3");
    // The next epoch: what the last leader still says counts no more.
    script.check(Says { leader: 2, epoch: 2, version: 2, ..Says::default() }.event(), "");
    script.told(2, FromLeader::Match { to: at(3), fingerprint: None }, "");
    script.told(2, append(3, Some(0), 3), "to 1#2 nack StaleLeader");
}

#[test]
fn a_follower_is_cut() {
    let mut script = Script::new(&[(0, 0)], 5, Status::Clean);
    script.check(Says { leader: 1, ..Says::default() }.event(), "");
    script.told(1, open(), "to 1#1 opened 5");
    script.told(1, FromLeader::Match { to: at(4), fingerprint: Some(9) }, "fingerprint 4");
    script.check(Event::Fingerprint { offset: at(4), value: Some(9) }, "truncate 4");
    // Opened again meanwhile: answered when the log is whole again.
    script.told(2, open(), "");
    script.check(Event::Truncated { end: at(4) }, "to 1#2 opened 4");
    script.told(2, FromLeader::Reset { log_start: at(7) }, "reset 7");
    script.check(Event::ResetDone, "to 1#2 matched 7");
    assert_eq!(script.replica.high_watermark(), at(7));
    // To lead, too, it waits until it has been cut.
    let mut script = Script::new(&[(0, 0)], 5, Status::Clean);
    script.check(Says { leader: 1, ..Says::default() }.event(), "");
    script.told(1, open(), "to 1#1 opened 5");
    script.told(1, FromLeader::Match { to: at(4), fingerprint: None }, "truncate 4");
    script.check(Says { epoch: 2, version: 2, ..Says::default() }.event(), "");
    script.check(Event::Truncated { end: at(4) }, "lead 2 from 4");
}

#[test]
#[should_panic(expected = "I7")]
fn a_clean_follower_is_not_cut_below_its_high_watermark() {
    let mut script = Script::following(&[(0, 0)], 5);
    script.told(1, FromLeader::Watermarks { high_watermark: at(5), log_start: at(0) }, "hw 5");
    script.told(2, open(), "to 1#2 opened 5");
    script.told(2, FromLeader::Match { to: at(4), fingerprint: None }, "");
}

#[test]
fn other_bytes_make_suspect() {
    let mut script = Script::new(&[(0, 0)], 5, Status::Clean);
    script.check(Says { leader: 1, ..Says::default() }.event(), "");
    script.told(1, open(), "to 1#1 opened 5");
    script.told(1, FromLeader::Match { to: at(5), fingerprint: Some(9) }, "fingerprint 5");
    script.check(Event::Fingerprint { offset: at(5), value: Some(8) }, "suspect, to 1#1 nack Suspect");
    script.later(crate::limits::REPORT_RETRY_MS, "suspect");
    // It is told by a new registration; nothing is given up before metadata knows it.
    script.told(2, open(), "to 1#2 nack Suspect");
    script.check(Event::Registered(BrokerEpoch::new(2)), "");
    script.told(3, open(), "to 1#3 nack Suspect");
    let known = Says {
        leader: 1,
        version: 2,
        in_sync: &[1, 2],
        suspect: &[0],
        registered: &[(0, 2)],
        ..Says::default()
    };
    script.check(known.event(), "");
    script.told(4, open(), "to 1#4 opened 5");
    script.told(4, FromLeader::Match { to: at(5), fingerprint: Some(9) }, "truncate 0");
    script.check(Event::Truncated { end: at(0) }, "to 1#4 matched 0");
    assert_eq!(script.replica.status(), Status::Suspect);
    script.check(Says { version: 3, suspect: &[], ..known }.event(), "");
    assert_eq!(script.replica.status(), Status::Clean);
}

#[test]
pub(super) fn who_does_not_lead_although_metadata_says_so() {
    // Metadata means an earlier registration, or has not heard that this replica is suspect.
    let mut script = Script::new(&[], 0, Status::Clean);
    script.check(Event::Registered(BrokerEpoch::new(2)), "");
    script.check(Says::default().event(), "");
    assert_eq!(script.replica.leads(), None);
    script.check(Says { registered: &[(0, 2)], ..Says::default() }.event(), "lead 1 from 0");
    let mut script = Script::new(&[], 0, Status::Suspect);
    script.check(Says { suspect: &[0], ..Says::default() }.event(), "");
    // The best of all suspects leads, and is clean by that.
    script.check(Says { version: 2, epoch: 2, ..Says::default() }.event(), "lead 2 from 0");
}

#[test]
fn who_reads_may_read_at_a_follower_that_is_current() {
    let epoch = |script: &Script| script.replica.follows().map(LeaderEpoch::get);
    let mut script = Script::new(&[(1, 0)], 5, Status::Clean);
    assert_eq!(epoch(&script), None, "nothing is known of its leader");
    script.check(Says { leader: 1, ..Says::default() }.event(), "");
    assert_eq!(epoch(&script), None, "the leader has not opened it");
    script.told(1, open(), "to 1#1 opened 5");
    script.told(1, FromLeader::Match { to: at(5), fingerprint: None }, "to 1#1 matched 5");
    assert_eq!(epoch(&script), Some(1));
    script.told(1, FromLeader::Watermarks { high_watermark: at(5), log_start: at(0) }, "hw 5");
    // What is opened anew may have to be cut.
    script.told(2, open(), "to 1#2 opened 5");
    assert_eq!(epoch(&script), None);
    script.told(2, FromLeader::Match { to: at(5), fingerprint: None }, "to 1#2 matched 5");
    assert_eq!(epoch(&script), Some(1));
    // Out of the in-sync set it may be far behind; then it is in again.
    script.check(Says { leader: 1, version: 2, in_sync: &[1, 2], ..Says::default() }.event(), "");
    assert_eq!(epoch(&script), None);
    script.check(Says { leader: 1, version: 3, ..Says::default() }.event(), "");
    assert_eq!(epoch(&script), Some(1));
    // Another leader, who opens it in the next epoch.
    script.check(Says { leader: 2, epoch: 2, version: 4, ..Says::default() }.event(), "");
    assert_eq!(epoch(&script), None);
    let opens = |body| message(2, 2, 1, Body::FromLeader(body));
    script.check(opens(open()), "to 2#1 opened 5");
    script.check(opens(FromLeader::Match { to: at(5), fingerprint: None }), "to 2#1 matched 5");
    assert_eq!(epoch(&script), Some(2));
    // It lacks something, or leads: then it is no follower that one reads at.
    script.check(Event::Damaged { from: at(3) }, "suspect, to 2#1 nack Suspect");
    assert_eq!(epoch(&script), None);
    assert_eq!(epoch(&Script::leading()), None);
}
