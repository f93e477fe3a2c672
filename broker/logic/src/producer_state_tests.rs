//! Scripts of batches against one table, and a table that comes back from its summary and the log.

use super::*;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { expiration_ms: 1_000, producers_max: 3 };

fn batch(id: i64, epoch: i16, first: i32, records: i32) -> ProducerBatch {
    ProducerBatch { id, epoch, first, last: advance(first, records - 1) }
}

/// A table over a log of which only the ends are known.
#[derive(Default)]
struct Rig {
    table: ProducerTable,
    now_ms: i64,
    end: u64,
    durable_end: u64,
}

impl Rig {
    fn admit(&mut self, batch: ProducerBatch) -> Result<Admission, ProducerError> {
        let place = LogPlace { end: Offset::new(self.end), durable_end: Offset::new(self.durable_end) };
        let result = self.table.admit(self.now_ms, &batch, place, BOUNDS);
        if result == Ok(Admission::Append) {
            self.end += distance(batch.first, batch.last) as u64 + 1;
        }
        result
    }
}

enum Step {
    /// A batch of producer, epoch, first sequence, records; what comes of it in a word.
    Batch(i64, i16, i32, i32, &'static str),
    /// Everything becomes durable.
    Durable,
    Pass(i64),
    /// The process ends; everything durable is replayed from a summary.
    Restart,
    Known(usize),
}

use Step::{Batch, Durable, Known, Pass, Restart};

fn word(result: Result<Admission, ProducerError>) -> String {
    match result {
        Ok(Admission::Append) => "append".into(),
        Ok(Admission::Duplicate(note)) => {
            format!("duplicate {}..{} {}", note.base, note.end(), note.append_time_ms)
        }
        Err(ProducerError::OutOfOrder { expected, .. }) => format!("gap after {expected}"),
        Err(ProducerError::Unknown { .. }) => "unknown".into(),
        Err(ProducerError::StaleEpoch { known, .. }) => format!("stale {known}"),
        Err(ProducerError::Forgotten { .. }) => "forgotten".into(),
        Err(ProducerError::InFlight) => "in flight".into(),
    }
}

fn check(steps: &[Step]) {
    let mut rig = Rig::default();
    for (at, step) in steps.iter().enumerate() {
        match step {
            Batch(id, epoch, first, records, expect) => {
                assert_eq!(word(rig.admit(batch(*id, *epoch, *first, *records))), *expect, "step {at}");
            }
            Durable => rig.durable_end = rig.end,
            Pass(ms) => rig.now_ms += ms,
            Restart => {
                let summaries = rig.table.summaries(Offset::new(rig.durable_end));
                rig.table = ProducerTable::restore(&summaries);
                rig.end = rig.durable_end;
            }
            Known(expect) => assert_eq!(rig.table.len(), *expect, "step {at}"),
        }
    }
}

#[test]
fn repetitions_get_the_first_answer() {
    check(&[
        Batch(7, 0, 0, 10, "append"),
        Pass(5),
        Batch(7, 0, 10, 5, "append"),
        Batch(7, 0, 0, 10, "duplicate 0..10 0"),
        Batch(7, 0, 10, 5, "duplicate 10..15 5"),
        // Another producer's sequences are its own.
        Batch(8, 0, 0, 1, "append"),
        Batch(7, 0, 15, 1, "append"),
        Batch(7, 0, 15, 1, "duplicate 16..17 5"),
        // Part of what was sent, cut in another way: it is in the log, where is not told.
        Batch(7, 0, 10, 1, "forgotten"),
    ]);
}

#[test]
fn five_are_under_way_and_the_last_ones_are_remembered() {
    check(&[
        Batch(1, 0, 0, 1, "append"),
        Durable,
        Batch(1, 0, 1, 1, "append"),
        Batch(1, 0, 2, 1, "append"),
        Batch(1, 0, 3, 1, "append"),
        Batch(1, 0, 4, 1, "append"),
        Batch(1, 0, 5, 1, "append"),
        // The newest durable batch must stay known.
        Batch(1, 0, 6, 1, "in flight"),
        Batch(1, 0, 0, 1, "duplicate 0..1 0"),
        Durable,
        Batch(1, 0, 6, 1, "append"),
        Batch(1, 0, 0, 1, "forgotten"),
        Batch(1, 0, 1, 1, "duplicate 1..2 0"),
    ]);
}

#[test]
fn a_gap_ends_its_epoch() {
    check(&[
        Batch(1, 0, 0, 2, "append"),
        Batch(1, 0, 3, 1, "gap after 2"),
        // The missing batch comes after all, from somewhere: too late.
        Batch(1, 0, 2, 1, "gap after 2"),
        Batch(1, 0, 0, 2, "duplicate 0..2 0"),
        Batch(1, 1, 1, 1, "gap after 0"),
        Batch(1, 1, 0, 1, "gap after 0"),
        Batch(1, 2, 0, 1, "append"),
        Batch(1, 2, 1, 1, "append"),
        Batch(1, 0, 2, 1, "stale 2"),
        Batch(1, 1, 0, 1, "stale 2"),
        // What was on its way ended with the process, so the end of an epoch need not be remembered.
        Durable,
        Batch(1, 2, 9, 1, "gap after 2"),
        Restart,
        Batch(1, 2, 2, 1, "append"),
    ]);
}

#[test]
fn who_is_not_known_begins_at_the_beginning() {
    check(&[
        Batch(1, 0, 1, 1, "unknown"),
        Batch(1, 4, 0, 1, "append"),
        Batch(1, 4, 1, 1, "append"),
        Batch(1, 3, 0, 1, "stale 4"),
    ]);
}

#[test]
fn sequences_go_round() {
    let max = i32::MAX;
    check(&[
        // As if it had sent 2^31 - 6 records before.
        Batch(1, 0, 0, max, "append"),
        Durable,
        Batch(1, 0, max, 3, "append"),
        Batch(1, 0, 2, 1, "append"),
        Batch(1, 0, max, 3, "duplicate 2147483647..2147483650 0"),
        Batch(1, 0, 4, 1, "gap after 3"),
    ]);
    assert_eq!(batch(1, 0, max, 3).last, 1);
}

#[test]
fn silence_and_crowds_are_forgotten() {
    check(&[
        Batch(1, 0, 0, 1, "append"),
        Pass(2_000),
        // Not durable yet: it is not silent.
        Batch(1, 0, 0, 1, "duplicate 0..1 0"),
        Durable,
        Pass(999),
        Batch(1, 0, 1, 1, "append"),
        Durable,
        Pass(1_000),
        Batch(1, 0, 2, 1, "unknown"),
        Batch(1, 1, 0, 1, "append"),
        Pass(1),
        Batch(2, 0, 0, 1, "append"),
        Pass(1),
        Batch(3, 0, 0, 1, "append"),
        Pass(1),
        Batch(1, 1, 1, 1, "append"),
        // The fourth takes the place of the second, which was silent longest.
        Batch(4, 0, 0, 1, "append"),
        Known(3),
        Batch(2, 0, 1, 1, "unknown"),
        Batch(1, 1, 2, 1, "append"),
    ]);
}

#[test]
fn what_was_not_durable_is_not_remembered() {
    check(&[
        Batch(1, 0, 0, 4, "append"),
        Durable,
        Batch(1, 0, 4, 4, "append"),
        Batch(2, 0, 0, 1, "append"),
        Restart,
        Known(1),
        Batch(1, 0, 0, 4, "duplicate 0..4 0"),
        Batch(2, 0, 0, 1, "append"),
        Batch(1, 0, 4, 4, "append"),
    ]);
}

#[test]
fn what_only_dropped_segments_tell_needs_a_checkpoint() {
    let mut rig = Rig::default();
    rig.admit(batch(1, 0, 0, 10)).unwrap();
    rig.admit(batch(2, 0, 0, 10)).unwrap();
    // (log start, end of the last checkpoint, whether another is needed)
    for (log_start, checkpointed, expect) in [
        (0, 0, false),
        (9, 0, false),
        (10, 0, true),
        (10, 10, false),
        (20, 10, true),
        (20, 20, false),
        (15, 5, true),
    ] {
        let needs = rig.table.needs_checkpoint(Offset::new(log_start), Offset::new(checkpointed));
        assert_eq!(needs, expect, "log from {log_start}, checkpoint at {checkpointed}");
    }
}

#[test]
fn an_older_summary_adds_who_is_gone_from_the_log() {
    let mut rig = Rig::default();
    for id in 1..=2 {
        rig.admit(batch(id, 0, 0, 5)).unwrap();
    }
    rig.durable_end = rig.end;
    let summaries = rig.table.summaries(Offset::new(10));
    // The log begins at 5 now, and recovery has read all of it.
    let mut table = ProducerTable::default();
    table.replay(&batch(2, 0, 0, 5), Offset::new(5), 9);
    table.merge_older(&summaries, Offset::new(5));
    assert_eq!(table.summaries(Offset::new(10)).len(), 2);
    // Also of one that is in the log still.
    let mut table = ProducerTable::default();
    table.replay(&batch(1, 0, 5, 2), Offset::new(5), 9);
    table.merge_older(&summaries, Offset::new(5));
    let known: Vec<_> = table.summaries(Offset::new(10)).iter().map(|p| p.batches.len()).collect();
    assert_eq!(known, [2], "one and what came before it; nothing above the log's start");
    // What the summary has above the log's start and the log has not was never there.
    let mut table = ProducerTable::default();
    table.merge_older(&summaries, Offset::new(5));
    assert_eq!(table.summaries(Offset::new(10)).iter().map(|p| p.producer_id).collect::<Vec<_>>(), [1]);
}

/// Batches of producer 1, one record each, from an offset on: what is sent, and what is left of it.
fn sent(table: &mut ProducerTable, from: u64, sequences: std::ops::Range<i32>, durable_end: u64) {
    for (at, first) in sequences.enumerate() {
        table.follow(&batch(1, 0, first, 1), Offset::new(from + at as u64), 0, Offset::new(durable_end));
    }
}

#[test]
fn a_low_cut_asks_for_what_the_log_keeps() {
    // Ten batches at 0..10; 4..10 are remembered. Where the log is cut, whether it must be read, what comes next.
    for (end, read, next) in
        [(10, false, 10), (7, false, 7), (5, false, 5), (4, true, 4), (2, true, 2), (0, true, 0)]
    {
        let mut table = ProducerTable::default();
        sent(&mut table, 0, 0..10, 10);
        let unknown = table.unknown_after_cut(Offset::new(end));
        assert_eq!(unknown, if read { [1].into() } else { [].into() }, "cut at {end}");
        let mut kept = ProducerTable::default();
        if read {
            sent(&mut kept, 0, 0..end as i32, end);
        }
        table.truncate(Offset::new(end), kept);
        let mut rig = Rig { table, end, durable_end: end, ..Rig::default() };
        let again = rig.admit(batch(1, 0, next - 1, 1));
        assert_eq!(
            word(again),
            if end == 0 { "unknown".into() } else { format!("duplicate {}..{end} 0", end - 1) }
        );
        assert_eq!(word(rig.admit(batch(1, 0, next, 1))), "append", "cut at {end}");
    }
    // What is remembered begins with the producer's first batch: there is nothing to be read.
    let mut table = ProducerTable::default();
    sent(&mut table, 5, 0..3, 8);
    assert!(table.unknown_after_cut(Offset::new(5)).is_empty());
}

#[test]
fn a_follower_knows_the_newest_durable_batch_however_many_follow_it() {
    let mut table = ProducerTable::default();
    sent(&mut table, 0, 0..3, 3);
    sent(&mut table, 3, 3..40, 3);
    let newest = |table: &ProducerTable, durable_end| {
        let summaries = table.summaries(Offset::new(durable_end));
        let batches = &summaries[0].batches;
        assert!(batches.len() <= PRODUCER_BATCHES_KEPT);
        batches.last().map(|batch| batch.first_sequence)
    };
    for durable_end in [3, 4, 17, 40] {
        assert_eq!(newest(&table, durable_end), Some(durable_end as i32 - 1));
    }
    // It leads now: no more than five are under way.
    let mut rig = Rig { table, end: 40, durable_end: 35, ..Rig::default() };
    assert_eq!(word(rig.admit(batch(1, 0, 40, 1))), "in flight");
    rig.durable_end = 36;
    assert_eq!(word(rig.admit(batch(1, 0, 40, 1))), "append");
    assert_eq!(newest(&rig.table, 36), Some(35));
    rig.durable_end = 41;
    assert_eq!(word(rig.admit(batch(1, 0, 41, 1))), "append");
    assert_eq!(newest(&rig.table, 42), Some(41));
}

proptest! {
    /// At any durable end, a summary and the batches behind it give the table that the whole log gives, and the
    /// answer to every repetition of the newest batches.
    #[test]
    fn the_table_is_a_fold_of_the_log(
        steps in prop::collection::vec((0i64..3, 0u8..10, 1i32..4), 1..60),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut rig = Rig::default();
        let mut log: Vec<(ProducerBatch, u64, i64)> = Vec::new();
        let mut next = [(0i16, 0i32); 3];
        let mut summaries = Vec::new();
        for (id, what, records) in &steps {
            let (epoch, first) = next[*id as usize];
            match what {
                0 => next[*id as usize] = (epoch + 1, 0),
                1..=3 => {
                    // Some batch becomes durable.
                    let ends = log.iter().map(|(b, base, _)| base + distance(b.first, b.last) as u64 + 1);
                    rig.durable_end = ends.filter(|end| *end > rig.durable_end).min().unwrap_or(rig.durable_end);
                }
                _ => {
                    rig.now_ms += 1;
                    let sent = batch(*id, epoch, first, *records);
                    let base = rig.end;
                    if rig.admit(sent) == Ok(Admission::Append) {
                        log.push((sent, base, rig.now_ms));
                        next[*id as usize].1 = advance(sent.last, 1);
                    }
                }
            }
            summaries.push((rig.durable_end, rig.table.summaries(Offset::new(rig.durable_end))));
        }
        let (durable_end, summary) = &summaries[cut.index(summaries.len())];
        let mut table = ProducerTable::restore(summary);
        for (batch, base, time_ms) in log.iter().filter(|(_, base, _)| base >= durable_end) {
            table.replay(batch, Offset::new(*base), *time_ms);
        }
        let mut whole = ProducerTable::default();
        log.iter().for_each(|(batch, base, time_ms)| whole.replay(batch, Offset::new(*base), *time_ms));
        let end = Offset::new(rig.end);
        for (one, all) in table.summaries(end).iter().zip(whole.summaries(end)) {
            prop_assert_eq!(one.producer_id, all.producer_id);
            // A summary may know fewer of the older ones: of those that were pushed out by batches under way.
            let known = one.batches.len().min(all.batches.len());
            prop_assert!(known >= 1);
            prop_assert_eq!(&one.batches[one.batches.len() - known..], &all.batches[all.batches.len() - known..]);
        }
        prop_assert_eq!(table.len(), whole.len());
        prop_assert_eq!(rig.table.summaries(end), whole.summaries(end));
    }
}
