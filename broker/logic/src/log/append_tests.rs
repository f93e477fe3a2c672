//! The append side: offsets, durability, rolling, attestations, what a checkpoint claims, dropping.

use super::*;
use crate::ids::{PartitionIndex, TopicId};
use crate::limits::MIB;

const SETTINGS: LogSettings = LogSettings { segment_bytes: 1 << 20, segment_ms: 1000 };

fn log() -> Log {
    let partition = TopicPartition { topic: TopicId::new(1), partition: PartitionIndex::new(0) };
    Log::new(LogIdentity { partition, generation: 1 }, SETTINGS, LogStart::new())
}

fn sequences(segments: Vec<Segment>) -> Vec<u64> {
    segments.iter().map(|segment| segment.sequence).collect()
}

/// Appends and seals one group in `round`; places a segment if one is needed.
fn group(log: &mut Log, records: u32, payload_bytes: u32, round: u64, now_ms: i64) -> Sealed {
    let base = log.append(records, LeaderEpoch::new(1));
    if let Some(needed) = log.segment_needed(payload_bytes, now_ms) {
        log.segment_placed(needed.sequence, 100 + needed.sequence);
    }
    let group = OpenGroup {
        base,
        end: base.advance(u64::from(records)),
        leader_epoch: LeaderEpoch::new(1),
        payload_bytes,
        batch_count: 1,
        max_timestamp_ms: now_ms,
        append_time_ms: now_ms,
        payload_crc: 0,
    };
    log.seal(&group, RoundId(round), now_ms)
}

#[test]
fn the_durable_end_is_a_prefix_whatever_the_order_of_rounds() {
    // Rounds of the groups (one record each), then the order of completions with the end after each.
    type Row = (&'static [u64], &'static [(u64, u64)]);
    let rows: [Row; 4] = [
        (&[1, 2, 3], &[(1, 1), (2, 2), (3, 3)]),
        (&[1, 2, 3], &[(3, 0), (2, 0), (1, 3)]),
        (&[1, 1, 2, 3], &[(2, 0), (1, 3), (3, 4)]),
        (&[1, 2, 2, 4], &[(4, 0), (1, 1), (9, 1), (2, 4)]),
    ];
    for (rounds, completions) in rows {
        let mut log = log();
        for round in rounds {
            group(&mut log, 1, 100, *round, 0);
        }
        for (round, end) in completions {
            let before = log.durable_end();
            let moved = log.written(RoundId(*round));
            assert_eq!(log.durable_end(), Offset::new(*end), "{rounds:?} {completions:?}");
            assert_eq!(moved, (log.durable_end() > before).then_some(log.durable_end()));
        }
        assert_eq!(log.in_flight(), 0);
    }
}

#[test]
fn rolling() {
    // Payload of the group before, of this one, time since the segment began: whether it rolls.
    let rows = [
        (100, 100, 0, false),
        (100, 100, 999, false),
        (100, 100, 1000, true),
        // An attestation does not make a segment old.
        (100, 0, 5000, false),
        (MIB as u32 - 3 * 4096, 3000, 0, false),
        (MIB as u32 - 3 * 4096, 4000, 0, true),
        (100, 2 * MIB as u32, 0, true),
    ];
    for (before, payload, age_ms, rolls) in rows {
        let mut log = log();
        // An empty segment takes any group.
        assert_eq!(group(&mut log, 1, before, 1, 50).opens.map(|header| header.sequence), Some(0));
        assert_eq!(log.segment_needed(payload, 50 + age_ms).is_some(), rolls, "{before} {payload} {age_ms}");
        let sealed = group(&mut log, 1, payload, 2, 50 + age_ms);
        assert_eq!(sealed.opens.is_some(), rolls);
        assert_eq!(sealed.closes, rolls.then_some(0));
        if let Some(header) = sealed.opens {
            assert_eq!(header.previous_end, log.segment(0).expect("kept").end_position);
            assert_eq!((header.base_offset, header.nonce, sealed.header.nonce), (1, 101, 101));
            assert_eq!(header.durable_floor, 0);
        }
    }
}

#[test]
fn a_segment_is_wanted_when_half_full_and_placed_once() {
    let mut log = log();
    group(&mut log, 1, 400_000, 1, 0);
    assert_eq!(log.segment_wanted(), None);
    group(&mut log, 1, 200_000, 2, 0);
    let wanted = log.segment_wanted().expect("half full");
    assert_eq!((wanted.sequence, wanted.bytes), (1, 1 << 20));
    assert!(log.awaits_segment(1) && !log.awaits_segment(0) && !log.awaits_segment(2));
    log.segment_placed(1, 7);
    assert_eq!((log.segment_wanted(), log.placed()), (None, Some((1, 7))));
    assert!(!log.awaits_segment(1) && !log.awaits_segment(2));
}

#[test]
fn groups_are_chained_and_carry_the_floor_of_their_sealing() {
    let mut log = log();
    let first = group(&mut log, 3, 100, 1, 0);
    let second = group(&mut log, 2, 100, 2, 0);
    assert_eq!((first.header.durable_floor, second.header.durable_floor), (0, 0));
    log.written(RoundId(1));
    let third = group(&mut log, 1, 100, 3, 0);
    assert_eq!(third.header.durable_floor, 3);
    assert_eq!(first.header.chain, first.header.chain_after(0));
    assert_eq!(second.header.chain, second.header.chain_after(first.header.chain));
    assert_eq!(second.placement.position, first.placement.position + first.placement.bytes);
}

#[test]
fn attestations() {
    let mut log = log();
    assert_eq!(log.attestation(5), None, "a log without segments");
    group(&mut log, 2, 100, 1, 0);
    assert_eq!(log.attestation(5), None, "a group is in flight");
    log.written(RoundId(1));
    log.append(1, LeaderEpoch::new(1));
    assert_eq!(log.attestation(5), None, "a batch waits to be sealed");

    let mut log = self::log();
    group(&mut log, 2, 100, 1, 0);
    log.written(RoundId(1));
    let attestation = log.attestation(5).expect("nothing attests the end");
    assert_eq!(
        (attestation.base, attestation.end, attestation.batch_count),
        (Offset::new(2), Offset::new(2), 0)
    );
    let sealed = log.seal(&attestation, RoundId(2), 5);
    assert_eq!(sealed.header.durable_floor, 2);
    assert_eq!(log.written(RoundId(2)), None);
    assert_eq!(log.attestation(6), None, "once is enough");

    let mut log = self::log();
    group(&mut log, 2, 100, 1, 0);
    log.written(RoundId(1));
    log.checkpointed(&log.checkpoint());
    assert_eq!(log.attestation(5), None, "the checkpoint attests it");
}

#[test]
fn a_checkpoint_claims_what_is_durable() {
    let mut log = log();
    let first = group(&mut log, 2, 100, 1, 0);
    // The second rolls; both are in flight.
    let second = group(&mut log, 3, 100, 2, 2000);
    assert!(second.opens.is_some());
    let claim = log.checkpoint();
    assert_eq!((claim.durable_end, claim.chain), (0, 0));
    log.written(RoundId(1));
    let claim = log.checkpoint();
    assert_eq!((claim.durable_end, claim.position, claim.chain), (2, 8192, first.header.chain));
    assert_eq!(claim.segments.iter().map(|segment| segment.sequence).collect::<Vec<_>>(), [0]);
    log.written(RoundId(2));
    let claim = log.checkpoint();
    assert_eq!((claim.durable_end, claim.position, claim.chain), (5, 8192, second.header.chain));
    assert_eq!(claim.segments.iter().map(|segment| segment.base_offset).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(claim.epochs, [(1, 0)]);
}

#[test]
fn the_start_moves_over_whole_durable_segments() {
    let mut log = log();
    for n in 0..4 {
        group(&mut log, 10, 100, n + 1, n as i64 * 2000);
        if n < 3 {
            log.written(RoundId(n + 1));
        }
    }
    assert_eq!(log.segments().len(), 4);
    assert!(log.advance_start(Offset::new(9)).is_empty());
    assert_eq!(log.log_start(), Offset::new(9));
    assert_eq!(sequences(log.advance_start(Offset::new(15))), [0]);
    // Segment 2 holds the last durable group: a checkpoint names it.
    assert_eq!(sequences(log.advance_start(Offset::new(30))), [1]);
    assert!(log.advance_start(Offset::new(2)).is_empty());
    assert_eq!(log.log_start(), Offset::new(30));
    log.note_damage(5..40);
    log.note_damage(5..40);
    assert_eq!(log.damaged().len(), 1);
    log.written(RoundId(4));
    assert_eq!(sequences(log.advance_start(Offset::new(40))), [2]);
    assert!(log.damaged().is_empty() && log.segments().len() == 1);
}

#[test]
fn indexes_of_sealed_segments_are_bounded() {
    let mut log = log();
    for n in 0..6 {
        group(&mut log, 1, 100, n + 1, n as i64 * 2000);
        log.written(RoundId(n + 1));
    }
    (0..5).for_each(|sequence| log.index_dropped(sequence));
    for sequence in [0, 3, 4, 1] {
        log.index_loaded((sequence, 100 + sequence), Index::default());
        let loaded = log.segments().iter().take(5).filter(|segment| segment.index.is_some());
        assert!(loaded.count() <= LOADED_INDEXES_MAX);
        assert!(log.segment(sequence).expect("kept").index.is_some());
    }
    assert!(log.segment(5).expect("active").index.is_some());
}

#[test]
#[should_panic(expected = "leader epoch 1 after")]
fn epochs_do_not_fall() {
    let mut log = log();
    log.append(1, LeaderEpoch::new(2));
    log.append(1, LeaderEpoch::new(1));
}

/// A segment that stands for those of these numbers in a log whose every group has one of its own.
fn rewritten(log: &Log, first: u64, last: u64) -> (Vec<u64>, Segment) {
    let sources = (first..=last).map(|sequence| log.segment(sequence).expect("a source")).collect::<Vec<_>>();
    let nonces = sources.iter().map(|segment| segment.nonce).collect();
    let clean_until = log.segment(last + 1).map_or(log.log_end(), |next| next.base);
    let revision = 1 + sources.iter().map(|segment| segment.name().revision).max().unwrap_or(0);
    let rewritten = Some(Rewritten { last, revision, clean_until });
    (nonces, Segment { nonce: 900 + first, index: None, rewritten, ..sources[0].clone() })
}

#[test]
fn rewritten_segments_take_the_place_of_their_sources() {
    let mut log = log();
    for n in 0..6 {
        group(&mut log, 10, 100, n + 1, n as i64 * 2000);
        log.written(RoundId(n + 1));
    }
    let claim = log.checkpoint();
    log.checkpointed(&claim);
    let (sources, segment) = rewritten(&log, 1, 3);
    assert_eq!((segment.name().to_string().len(), segment.name().revision), (56, 1));
    // Retention has taken them all.
    assert!(log.replace(&[98, 99], segment.clone()).is_none());
    assert_eq!((log.replacements(), log.segments().len()), (0, 6));
    let gone = log.replace(&sources, segment).expect("they are there");
    assert_eq!(sequences(gone), [1, 2, 3]);
    assert_eq!(sequences(log.segments().iter().cloned().collect()), [0, 1, 4, 5]);
    assert_eq!((log.replacements(), log.segment(1).map(|segment| segment.nonce)), (1, Some(901)));
    let (sources, segment) = rewritten(&log, 0, 0);
    assert!(log.replace(&sources, segment).is_some());
    assert_eq!(log.checkpoint().segments.len(), 4);
    // Retention takes one of two while they are rewritten.
    let sources = [log.segments()[0].nonce, 901];
    let rewritten = Some(Rewritten { last: 3, revision: 2, clean_until: Offset::new(40) });
    let segment = Segment { nonce: 950, rewritten, ..log.segments()[0].clone() };
    assert_eq!(sequences(log.advance_start(Offset::new(15))), [0]);
    assert_eq!(sequences(log.replace(&sources, segment).expect("one is there")), [1]);
    assert_eq!((log.log_start().get(), log.segments()[0].nonce, log.segments().len()), (15, 950, 3));
    assert_eq!(sequences(log.advance_start(Offset::new(45))), [0]);
}

#[test]
#[should_panic(expected = "put in place of")]
fn what_no_checkpoint_is_behind_is_not_replaced() {
    let mut log = log();
    for n in 0..3 {
        group(&mut log, 10, 100, n + 1, n as i64 * 2000);
        log.written(RoundId(n + 1));
    }
    let (sources, segment) = rewritten(&log, 0, 1);
    log.replace(&sources, segment);
}
