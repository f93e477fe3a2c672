//! What the cluster simulator has found, as scripts: one leader with a follower that a test plays.

use super::message::{Body, FromFollower, FromLeader, Message, Opened, Status};
use super::*;
use crate::ids::OpenSequence;

fn member(broker: u32, epoch: u64) -> Member {
    Member {
        broker: BrokerId::new(broker),
        generation: ReplicaGeneration::new(0),
        broker_epoch: BrokerEpoch::new(epoch),
        available: true,
        suspect: None,
    }
}

/// Broker 1 leads; broker 2 follows, lives in `epoch`, and is in sync or not.
fn view(partition_epoch: u32, epoch: u64, in_sync: bool) -> Event {
    let all = [BrokerId::new(1), BrokerId::new(2)];
    Event::MetadataChanged(Arc::new(View {
        leader: Some(all[0]),
        leader_epoch: LeaderEpoch::new(1),
        partition_epoch: PartitionEpoch::new(partition_epoch),
        replicas: [member(1, 10), member(2, epoch)].into(),
        in_sync: all[..if in_sync { 2 } else { 1 }].into(),
        eligible: Arc::default(),
        min_in_sync: 1,
        transfer_to: None,
    }))
}

struct Script {
    leader: Replica,
    now_ms: u64,
}

impl Script {
    /// A leader of 5 records of epoch 0, all of them committed, and a stream to the follower.
    fn new() -> Self {
        let here = Here {
            broker: BrokerId::new(1),
            broker_epoch: BrokerEpoch::new(10),
            generation: ReplicaGeneration::new(0),
        };
        let start = Start {
            log_start: Offset::new(0),
            log_end: Offset::new(5),
            epochs: vec![(LeaderEpoch::new(0), Offset::new(0))],
            status: Status::Clean,
            trusted_end: None,
        };
        let mut script = Self { leader: Replica::new(here, Settings::default(), start), now_ms: 0 };
        script.step(Event::StreamUp(BrokerId::new(2)));
        script
    }

    /// What it says to the follower.
    fn step(&mut self, event: Event) -> Vec<(OpenSequence, FromLeader)> {
        let mut effects = Vec::new();
        self.leader.step(self.now_ms, event, &mut effects);
        let mut said = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send {
                    message: Message { open_sequence, body: Body::FromLeader(body), .. }, ..
                } => {
                    said.push((open_sequence, body));
                }
                Effect::ReadFingerprint { offset } => {
                    said.extend(self.step(Event::Fingerprint { offset, value: Some(7) }));
                }
                _ => {}
            }
        }
        said
    }

    fn answer(&mut self, open_sequence: OpenSequence, body: FromFollower) -> Vec<(OpenSequence, FromLeader)> {
        let body = Body::FromFollower(body);
        let message = Message { leader_epoch: LeaderEpoch::new(1), open_sequence, body };
        self.step(Event::Message { from: BrokerId::new(2), message })
    }

    /// The follower, with the same log, in the life `epoch`.
    fn opened(&mut self, open_sequence: OpenSequence, epoch: u64) -> Vec<(OpenSequence, FromLeader)> {
        let opened = Opened {
            broker_epoch: BrokerEpoch::new(epoch),
            generation: ReplicaGeneration::new(0),
            epochs: vec![(LeaderEpoch::new(0), Offset::new(0))],
            log_start: Offset::new(0),
            durable_end: Offset::new(5),
            status: Status::Clean,
        };
        self.answer(open_sequence, FromFollower::Opened(Box::new(opened)))
    }

    /// Until the leader's next deadline.
    fn wait(&mut self) -> Vec<(OpenSequence, FromLeader)> {
        self.now_ms = self.now_ms.max(self.leader.next_deadline_ms());
        self.step(Event::Tick)
    }
}

/// A follower that had everything when it was matched was never told what is committed, and showed nothing.
#[test]
fn who_has_everything_when_it_is_matched_is_told_the_high_watermark() {
    let mut script = Script::new();
    let said = script.step(view(1, 20, false));
    assert_eq!(script.leader.high_watermark(), Offset::new(5), "the leader is alone in its set");
    let (open, _) = said[0];
    let said = script.opened(open, 20);
    assert_eq!(said, [(open, FromLeader::Match { to: Offset::new(5), fingerprint: Some(7) })]);
    script.answer(open, FromFollower::Matched { end: Offset::new(5) });
    let told = FromLeader::Watermarks { high_watermark: Offset::new(5), log_start: Offset::new(0) };
    assert_eq!(script.wait(), [(open, told)]);
}

/// A follower that registered anew while its stream went on was never taken into the set again.
#[test]
fn who_registers_anew_is_opened_anew() {
    let mut script = Script::new();
    let said = script.step(view(1, 20, true));
    let (open, _) = said[0];
    script.opened(open, 20);
    script.answer(open, FromFollower::Matched { end: Offset::new(5) });
    // Metadata knows it in another life, and has taken it out of the set.
    script.step(view(2, 30, false));
    let said = script.wait();
    let (again, _) = *said.iter().find(|(_, body)| matches!(body, FromLeader::Open { .. })).expect("opened");
    // It does not know itself yet: it is asked once more.
    script.opened(again, 20);
    let said = script.wait();
    let (last, _) = *said.iter().find(|(_, body)| matches!(body, FromLeader::Open { .. })).expect("opened");
    assert!(open < again && again < last);
    script.opened(last, 30);
    let mut effects = Vec::new();
    let body = Body::FromFollower(FromFollower::Matched { end: Offset::new(5) });
    let message = Message { leader_epoch: LeaderEpoch::new(1), open_sequence: last, body };
    script.now_ms += 10_000;
    script.leader.step(script.now_ms, Event::Message { from: BrokerId::new(2), message }, &mut effects);
    let joins =
        effects.iter().any(|effect| matches!(effect, Effect::Alter(alter) if alter.in_sync.len() == 2));
    assert!(joins, "{effects:?}");
}

/// A leader whose own log had been begun anew knows no epoch before its first offset, and a follower whose log ends there
/// refused its batches forever.
#[test]
fn a_leader_that_began_anew_is_followed_from_its_first_offset() {
    let here = Here {
        broker: BrokerId::new(1),
        broker_epoch: BrokerEpoch::new(10),
        generation: ReplicaGeneration::new(0),
    };
    let start = Start {
        log_start: Offset::new(0),
        log_end: Offset::new(5),
        epochs: vec![(LeaderEpoch::new(0), Offset::new(0))],
        status: Status::Clean,
        trusted_end: None,
    };
    let mut follower = Replica::new(here, Settings::default(), start);
    let leader = BrokerId::new(2);
    let view = View {
        leader: Some(leader),
        leader_epoch: LeaderEpoch::new(1),
        partition_epoch: PartitionEpoch::new(1),
        replicas: [member(1, 10), member(2, 20)].into(),
        in_sync: [leader].into(),
        eligible: Arc::default(),
        min_in_sync: 1,
        transfer_to: None,
    };
    let mut effects = Vec::new();
    follower.step(0, Event::MetadataChanged(Arc::new(view)), &mut effects);
    let first = Offset::new(5);
    let append =
        message::Append { base: first, previous_epoch: None, high_watermark: first, log_start: first };
    let said = [
        FromLeader::Open { generation: ReplicaGeneration::new(0), log_start: first },
        FromLeader::Match { to: first, fingerprint: None },
        FromLeader::Append(append),
    ];
    for body in said {
        effects.clear();
        let body = Body::FromLeader(body);
        let message =
            Message { leader_epoch: LeaderEpoch::new(1), open_sequence: OpenSequence::new(1), body };
        follower.step(0, Event::Message { from: leader, message }, &mut effects);
    }
    assert!(effects.contains(&Effect::Append), "{effects:?}");
}

/// A replica that was suspect in an image of before, and clean in the one that had this broker's new registration, was not
/// told of that: it answered in its earlier life for ever, and never joined the set. Who drives it asks
/// [`Replica::is_named`].
#[test]
fn a_suspicion_that_has_been_named_does_not_keep_a_replica_in_an_earlier_life() {
    let me = BrokerId::new(2);
    let here = Here { broker: me, broker_epoch: BrokerEpoch::new(0), generation: ReplicaGeneration::new(0) };
    let start = Start {
        log_start: Offset::new(0),
        log_end: Offset::new(5),
        epochs: vec![(LeaderEpoch::new(0), Offset::new(0))],
        status: Status::Clean,
        trusted_end: None,
    };
    let seen = |partition_epoch, epoch, suspect: bool| {
        let Event::MetadataChanged(view) = view(partition_epoch, epoch, false) else { unreachable!() };
        let replicas = view.replicas.iter().map(|known| match known.broker == me {
            true => Member { suspect: suspect.then(Default::default), ..*known },
            false => *known,
        });
        Event::MetadataChanged(Arc::new(View { replicas: replicas.collect(), ..View::clone(&view) }))
    };
    let mut replica = Replica::new(here, Settings::default(), start);
    let mut effects = Vec::new();
    assert!(replica.is_named(), "nothing is held against it");
    replica.step(0, seen(1, 20, true), &mut effects);
    assert_eq!((replica.status(), replica.is_named()), (Status::Suspect, true));
    // What it finds by itself the next registration does not name yet.
    replica.step(0, Event::Damaged { from: Offset::new(3) }, &mut effects);
    assert!(!replica.is_named());
    replica.step(0, Event::Registered(BrokerEpoch::new(30)), &mut effects);
    replica.step(0, seen(2, 30, true), &mut effects);
    assert!(replica.is_named());
    // It has been repaired, and the broker has registered once more.
    replica.step(0, Event::Registered(BrokerEpoch::new(40)), &mut effects);
    replica.step(0, seen(3, 40, false), &mut effects);
    assert_eq!(replica.status(), Status::Clean);
    effects.clear();
    let open = FromLeader::Open { generation: ReplicaGeneration::new(0), log_start: Offset::new(0) };
    let message = Message {
        leader_epoch: LeaderEpoch::new(1),
        open_sequence: OpenSequence::new(1),
        body: Body::FromLeader(open),
    };
    replica.step(0, Event::Message { from: BrokerId::new(1), message }, &mut effects);
    let lives_in = effects.iter().find_map(|effect| match effect {
        Effect::Send {
            message: Message { body: Body::FromFollower(FromFollower::Opened(opened)), .. },
            ..
        } => Some(opened.broker_epoch),
        _ => None,
    });
    assert_eq!(lives_in, Some(BrokerEpoch::new(40)));
}

/// A member of the in-sync set whose log could not be cut where it was to be, because what is below had rotted or could not
/// be read, lost committed records with the cut and went on as a sound member, which could be elected without them.
#[test]
fn a_cut_that_takes_more_than_it_should_leaves_a_suspect() {
    let me = BrokerId::new(2);
    let generation = ReplicaGeneration::new(0);
    for (end, is_sound) in [(6, true), (3, false), (0, false)] {
        let here = Here { broker: me, broker_epoch: BrokerEpoch::new(20), generation };
        let start = Start {
            log_start: Offset::new(0),
            log_end: Offset::new(9),
            epochs: vec![(LeaderEpoch::new(0), Offset::new(0))],
            status: Status::Clean,
            trusted_end: None,
        };
        let mut follower = Replica::new(here, Settings::default(), start);
        let mut effects = Vec::new();
        follower.step(0, view(1, 20, true), &mut effects);
        let said = [
            FromLeader::Open { generation, log_start: Offset::new(0) },
            FromLeader::Match { to: Offset::new(6), fingerprint: None },
        ];
        for body in said {
            let (leader_epoch, open_sequence) = (LeaderEpoch::new(1), OpenSequence::new(1));
            let message = Message { leader_epoch, open_sequence, body: Body::FromLeader(body) };
            follower.step(0, Event::Message { from: BrokerId::new(1), message }, &mut effects);
        }
        assert!(effects.contains(&Effect::Truncate { to: Offset::new(6) }), "{effects:?}");
        effects.clear();
        follower.step(0, Event::Truncated { end: Offset::new(end) }, &mut effects);
        let answers = |wanted: &FromFollower| {
            effects.iter().any(|effect| match effect {
                Effect::Send { message: Message { body: Body::FromFollower(body), .. }, .. } => {
                    body == wanted
                }
                _ => false,
            })
        };
        let is_reported = effects.contains(&Effect::ReportSuspect { generation });
        assert_eq!(is_reported, !is_sound, "cut at {end}: {effects:?}");
        assert_eq!(answers(&FromFollower::Matched { end: Offset::new(end) }), is_sound, "cut at {end}");
        assert_eq!(answers(&FromFollower::Nack(message::Nack::Suspect)), !is_sound, "cut at {end}");
        assert_eq!(follower.status() == Status::Suspect, !is_sound, "cut at {end}");
        assert_eq!(follower.log_end(), Offset::new(end));
    }
}

/// What cannot be read at the end of a log was a part of what its replica was named with: it was elected for that, over who had
/// more, and led with an end that it could give to nobody (simulator, seeds 18617, 18903, 23251).
#[test]
pub(super) fn an_end_that_is_lost_is_shed_and_does_not_count() {
    let generation = ReplicaGeneration::new(0);
    let here = Here { broker: BrokerId::new(2), broker_epoch: BrokerEpoch::new(20), generation };
    let epochs = vec![(LeaderEpoch::new(0), Offset::new(0)), (LeaderEpoch::new(3), Offset::new(7))];
    for (lost_from, last_epoch) in [(8, 3), (7, 0), (5, 0), (0, 0)] {
        let lost_from = Offset::new(lost_from);
        let start = Start {
            log_start: Offset::new(0),
            log_end: Offset::new(9),
            epochs: epochs.clone(),
            status: Status::Clean,
            trusted_end: None,
        };
        let mut replica = Replica::new(here, Settings::default(), start);
        assert_eq!(replica.claim(), (LeaderEpoch::new(3), Offset::new(9)));
        let mut effects = Vec::new();
        replica.step(0, Event::TailLost { from: lost_from }, &mut effects);
        let wanted = [Effect::ReportSuspect { generation }, Effect::Truncate { to: lost_from }];
        assert_eq!(effects, wanted);
        let claim = (LeaderEpoch::new(last_epoch), lost_from);
        assert_eq!((replica.claim(), replica.status()), (claim, Status::Suspect));
        // Whatever metadata says meanwhile: it takes no role with what it has not got.
        effects.clear();
        replica.step(0, view(1, 20, false), &mut effects);
        replica.step(0, Event::Truncated { end: lost_from }, &mut effects);
        assert_eq!((replica.claim(), replica.log_end()), (claim, lost_from));
        // Another shard that takes it over before metadata knows doubts it as well.
        assert_eq!((replica.doubted_from(), replica.is_named()), (Some(lost_from), false));
    }
}

/// A suspect was named with the end of its log, and is eligible, since the set is small. A leader cut it, and it was still known
/// with the end of before: when that leader became a suspect, too, the one with less was elected as the best of both, and
/// what was committed was gone.
#[test]
pub(super) fn a_suspect_that_may_be_elected_is_known_with_the_end_that_it_has() {
    let me = BrokerId::new(2);
    let generation = ReplicaGeneration::new(0);
    let epoch = LeaderEpoch::new(0);
    let seen = |partition_epoch, registered, end, is_eligible: bool| {
        let Event::MetadataChanged(view) = view(partition_epoch, registered, false) else { unreachable!() };
        let replicas = view.replicas.iter().map(|known| match known.broker == me {
            true => Member { suspect: Some((epoch, Offset::new(end))), ..*known },
            false => *known,
        });
        let eligible = if is_eligible { [me].into() } else { Arc::default() };
        let replicas = replicas.collect();
        Event::MetadataChanged(Arc::new(View { replicas, eligible, min_in_sync: 2, ..View::clone(&view) }))
    };
    let begin = |log_end| {
        let log_end = Offset::new(log_end);
        let (log_start, epochs) = (Offset::new(0), vec![(epoch, Offset::new(0))]);
        let start = Start { log_start, log_end, epochs, status: Status::Clean, trusted_end: None };
        Replica::new(
            Here { broker: me, broker_epoch: BrokerEpoch::new(20), generation },
            Settings::default(),
            start,
        )
    };
    let is_reported = |replica: &mut Replica, event| {
        let mut effects = Vec::new();
        replica.step(0, event, &mut effects);
        effects.contains(&Effect::ReportSuspect { generation })
    };
    // It has lost more while it was down, and nothing else tells of it.
    for (log_end, is_eligible, wanted) in [(9, true, false), (6, true, true), (6, false, false)] {
        let reported = is_reported(&mut begin(log_end), seen(1, 20, 9, is_eligible));
        assert_eq!(reported, wanted, "ends at {log_end}, eligible: {is_eligible}");
    }
    for is_eligible in [true, false] {
        let mut follower = begin(9);
        assert!(!is_reported(&mut follower, seen(1, 20, 9, is_eligible)));
        let said = [
            FromLeader::Open { generation, log_start: Offset::new(0) },
            FromLeader::Match { to: Offset::new(6), fingerprint: None },
        ];
        for body in said {
            let (leader_epoch, open_sequence) = (LeaderEpoch::new(1), OpenSequence::new(1));
            let message = Message { leader_epoch, open_sequence, body: Body::FromLeader(body) };
            assert!(!is_reported(&mut follower, Event::Message { from: BrokerId::new(1), message }));
        }
        assert_eq!(is_reported(&mut follower, Event::Truncated { end: Offset::new(6) }), is_eligible);
        // Metadata knows by the next registration, and not by what it said before that.
        assert!(!is_reported(&mut follower, seen(2, 20, 9, is_eligible)));
        assert!(!is_reported(&mut follower, Event::Registered(BrokerEpoch::new(30))));
        assert!(!is_reported(&mut follower, seen(3, 30, 6, is_eligible)));
        assert_eq!(follower.status(), Status::Suspect);
    }
}
