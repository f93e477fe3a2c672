//! Compaction, row by row: what is due, what stays of a batch, and what the map remembers.
//!
//! A batch is written as words: `k1` is a record with key k and value 1, `k-` a tombstone, `_1` one without a key.

use super::*;
use crate::ids::{LeaderEpoch, PartitionIndex, TopicId, TopicPartition};
use crate::limits::BLOCK_BYTES;
use crate::log::append::{LogIdentity, LogSettings, LogStart, OpenGroup, Rewritten, RoundId, Segment};
use proptest::prelude::*;
use schema::record_batch::{BatchBuilder, Producer, set_base_offset};
use std::collections::BTreeMap;

const SETTINGS: CompactionSettings = CompactionSettings {
    min_dirty_millionths: 500_000,
    min_lag_ms: 0,
    max_lag_ms: i64::MAX,
    delete_retention_ms: 1000,
};

fn batch(base: u64, words: &str, producer: Option<i64>) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    if let Some(id) = producer {
        builder.set_producer(Producer { id, epoch: 0, base_sequence: base as i32 });
    }
    for word in words.split_whitespace() {
        let (key, value) = word.split_at(1);
        let key = (key != "_").then_some(key.as_bytes());
        let value = (value != "-").then(|| value.repeat(200).into_bytes());
        builder.append(100, key, value.as_deref(), &[]);
    }
    let mut batch = builder.finish();
    set_base_offset(&mut batch, base);
    batch
}

/// `base:words`, with the producer behind an `@` and compression behind a `~`.
fn parse(text: &str) -> Vec<u8> {
    let (base, rest) = text.split_once(':').expect("base:words");
    let (rest, codec) = rest.split_once('~').map_or((rest, None), |(rest, codec)| (rest, Some(codec)));
    let (words, producer) = rest.split_once('@').map_or((rest, None), |(w, p)| (w, Some(p.trim())));
    let plain = batch(base.trim().parse().unwrap(), words, producer.map(|id| id.parse().unwrap()));
    match codec {
        None => plain,
        Some("broken") => {
            let mut packed = compression::compress(plain, Compression::Zstd);
            let end = packed.len();
            packed[end - 20..].fill(9);
            packed
        }
        Some(codec) => compression::compress(plain, codec.trim().parse().unwrap()),
    }
}

/// The records of a batch as words; `!` before a batch with a horizon, `~` before a compressed one.
fn show(bytes: &[u8]) -> String {
    let header = Header::decode(bytes).unwrap();
    let mut out = format!("{}:", header.base_offset);
    if header.attributes.has_delete_horizon() {
        out += &format!("!{} ", header.base_timestamp_ms);
    }
    if header.attributes.compression() != Ok(Compression::None) {
        out += "~ ";
    }
    let Ok(plain) = Plain::of(bytes, &header) else { return out + "opaque" };
    for record in record_batch::records(plain.bytes(bytes)).unwrap() {
        let record = record.unwrap();
        assert_eq!(record.timestamp_ms, 100);
        let key = record.key.map_or("_", |key| std::str::from_utf8(key).unwrap());
        let value = record.value.map_or("-", |value| std::str::from_utf8(&value[..1]).unwrap());
        out += &format!("{}{key}{value} ", record.offset - header.base_offset);
    }
    out.trim_end().to_owned()
}

fn filter_all(pass: &mut Pass, batches: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let left = |batch: &Vec<u8>| match pass.filter(batch).unwrap() {
        Left::Unchanged => Some(batch.clone()),
        Left::Fewer(fewer) => {
            record_batch::verify(&fewer).expect("a sound batch");
            Some(fewer)
        }
        Left::Gone => None,
    };
    batches.iter().filter_map(left).collect()
}

fn one_pass(batches: &[Vec<u8>], first_dirty: u64, now_ms: i64) -> (Pass, Vec<Vec<u8>>) {
    let end = batches.last().map_or(0, |batch| Header::decode(batch).unwrap().end_offset());
    let look = Look { first_dirty: Offset::new(first_dirty), end: Offset::new(end), ..Look::default() };
    let mut pass = Pass::new(&look, &SETTINGS, now_ms, 1);
    assert!(batches.iter().all(|batch| pass.learn(batch).unwrap()));
    pass.learned_all(look.end);
    let left = filter_all(&mut pass, batches);
    (pass, left)
}

#[test]
fn the_latest_of_each_key_stays() {
    // Batches; what is left of them after a pass at 5000 over all of them.
    let rows: [(&[&str], &[&str]); 14] = [
        (&["0:a1 b1"], &["0:0a1 1b1"]),
        (&["0:a1 b1", "2:a2"], &["0:1b1", "2:0a2"]),
        (&["0:a1", "1:a2", "2:a3"], &["2:0a3"]),
        (&["0:a1 a2 a3 b1 b2"], &["0:2a3 4b2"]),
        // A tombstone gets its time, the older value goes at once.
        (&["0:a1 b1", "2:a-"], &["0:1b1", "2:!6000 0a-"]),
        (&["0:a- a1"], &["0:1a1"]),
        (&["0:a1 a-"], &["0:!6000 1a-"]),
        // Without a key there is no latest.
        (&["0:_1 a1 _-"], &["0:1a1"]),
        // Compressed batches stay compressed, if that is still smaller.
        (
            &["0:a1 b1 c1 d1~zstd", "4:a2 b2~lz4", "6:a3~gzip", "7:d4~snappy"],
            &["0:~ 2c1", "4:~ 1b2", "6:~ 0a3", "7:~ 0d4"],
        ),
        // What cannot be looked into stays whole, and its keys are not known.
        (&["0:a1", "1:a2 b2~broken", "3:b3"], &["0:0a1", "1:~ opaque", "3:0b3"]),
        // The last batch of a producer stays, if only its header.
        (&["0:a1@7", "1:b1@7", "2:a2 b2@8"], &["1:", "2:0a2 1b2"]),
        (&["0:a1 c1@7", "2:a2 c2@7"], &["2:0a2 1c2"]),
        (&["0:a1@7~zstd", "1:a2@9"], &["0:", "1:0a2"]),
        (&["0:a1@7", "1:a2@8", "2:a3"], &["0:", "1:", "2:0a3"]),
    ];
    for (n, (batches, expect)) in rows.into_iter().enumerate() {
        let batches: Vec<_> = batches.iter().map(|text| parse(text)).collect();
        let (_, left) = one_pass(&batches, 0, 5000);
        let shown: Vec<_> = left.iter().map(|batch| show(batch)).collect();
        assert_eq!(shown, expect, "row {n}");
        // Again, with nothing new: the same.
        let end = batches.iter().map(|batch| Header::decode(batch).unwrap().end_offset()).max().unwrap();
        let (_, again) = one_pass(&left, end, 5001);
        let same = again.iter().map(|batch| show(batch)).collect::<Vec<_>>();
        assert_eq!(same, expect, "row {n}, again");
    }
}

#[test]
fn tombstones_live_as_long_as_promised() {
    let batches = [parse("0:a1 b1"), parse("2:a- c1")];
    let (_, left) = one_pass(&batches, 0, 5000);
    // (now, first dirty offset, what is left)
    let rows: [(i64, u64, &[&str]); 5] = [
        (5500, 4, &["0:1b1", "2:!6000 0a- 1c1"]),
        (5999, 4, &["0:1b1", "2:!6000 0a- 1c1"]),
        (6000, 4, &["0:1b1", "2:!6000 1c1"]),
        // Not known to be clean: met for the first time, whatever it says of itself.
        (6000, 0, &["0:1b1", "2:!7000 0a- 1c1"]),
        (6000, 3, &["0:1b1", "2:!7000 0a- 1c1"]),
    ];
    for (now_ms, first_dirty, expect) in rows {
        let (_, later) = one_pass(&left, first_dirty, now_ms);
        assert_eq!(later.iter().map(|batch| show(batch)).collect::<Vec<_>>(), expect, "at {now_ms}");
    }
    // An older value may be hidden in a batch that cannot be looked into.
    let mut hidden = vec![parse("0:a1 b1~broken")];
    hidden.push(left[1].clone());
    let (pass, later) = one_pass(&hidden, 4, 9000);
    assert_eq!(show(&later[1]), "2:!6000 0a- 1c1");
    assert_eq!(pass.counts().opaque_batches, 1);
}

#[test]
fn keys_that_do_not_fit_wait_for_the_next_pass() {
    let words: Vec<String> = (0..40).map(|n| format!("{}{}", (b'a' + n % 20) as char, n / 20 + 1)).collect();
    let batches: Vec<_> = (0..40).map(|n| batch(n, &words[n as usize], None)).collect();
    let mut log = batches.clone();
    let (mut first_dirty, mut passes) = (0, 0);
    while first_dirty < 40 {
        let look = Look { first_dirty: Offset::new(first_dirty), end: Offset::new(40), ..Look::default() };
        // Room for twelve keys.
        let mut pass = Pass::with_room(&look, &SETTINGS, 5000, 1, 16 * 24);
        if log.iter().all(|batch| pass.learn(batch).unwrap()) {
            pass.learned_all(look.end);
        }
        assert!(pass.learned_until().get() > first_dirty, "no headway");
        first_dirty = pass.learned_until().get();
        log = filter_all(&mut pass, &log);
        passes += 1;
    }
    assert_eq!(passes, 4);
    let expect: Vec<_> = (20..40).map(|n| show(&batches[n])).collect();
    assert_eq!(log.iter().map(|batch| show(batch)).collect::<Vec<_>>(), expect);
}

/// A log of segments of ten records: (bytes, largest timestamp, opened, clean records).
fn log(segments: &[(u64, i64, i64, u64)], active_records: u32) -> Log {
    let partition = TopicPartition { topic: TopicId::new(1), partition: PartitionIndex::new(0) };
    let segments: Vec<Segment> = (0..)
        .zip(segments)
        .map(|(sequence, (bytes, max_timestamp_ms, opened_ms, clean))| Segment {
            sequence,
            nonce: sequence,
            base: Offset::new(sequence * 10),
            end_position: *bytes,
            max_timestamp_ms: *max_timestamp_ms,
            opened_ms: *opened_ms,
            index: None,
            rewritten: (*clean > 0).then(|| Rewritten {
                last: sequence,
                revision: 1,
                clean_until: Offset::new(sequence * 10 + clean),
            }),
        })
        .collect();
    let log_end = Offset::new(segments.len().saturating_sub(1) as u64 * 10);
    let mut log = Log::new(
        LogIdentity { partition, generation: 1 },
        LogSettings { segment_bytes: 1 << 20, segment_ms: i64::MAX },
        LogStart { log_end, segments, ..LogStart::new() },
    );
    if active_records > 0 {
        let base = log.append(active_records, LeaderEpoch::new(1));
        let group = OpenGroup {
            base,
            end: base.advance(active_records.into()),
            payload_bytes: 100,
            batch_count: 1,
            max_timestamp_ms: 1,
            append_time_ms: 1,
            payload_crc: 0,
            leader_epoch: LeaderEpoch::new(1),
        };
        log.seal(&group, RoundId(1), 0);
        log.written(RoundId(1));
    }
    log
}

#[test]
fn what_is_due() {
    let settings = |min_dirty_millionths, min_lag_ms, max_lag_ms| CompactionSettings {
        min_dirty_millionths,
        min_lag_ms,
        max_lag_ms,
        ..SETTINGS
    };
    let usual = settings(500_000, 0, i64::MAX);
    let three = [(4000, 10, 0, 0), (4000, 20, 10, 0), (4000, 30, 20, 0)];
    let half_clean = [(4000, 10, 0, 10), (4000, 20, 10, 0), (4000, 30, 20, 0)];
    let mostly_clean = [(8000, 10, 0, 10), (4000, 20, 10, 0), (4000, 30, 20, 0)];
    let in_part = [(4000, 10, 0, 10), (4000, 20, 10, 3), (4000, 30, 20, 0)];
    /// Segments, records in the active one, settings, now; clean and dirty bytes, first dirty, end, due.
    type Row<'a> = (&'a [(u64, i64, i64, u64)], u32, CompactionSettings, i64, (u64, u64, u64, u64, bool));
    let rows: [Row; 13] = [
        (&[], 0, usual, 100, (0, 0, 0, 0, false)),
        (&three[..1], 1, usual, 100, (0, 0, 0, 0, false)),
        (&three, 1, usual, 100, (0, 8000, 0, 20, true)),
        // Nothing above: the last record of the log stays where it is.
        (&three, 0, usual, 100, (0, 4000, 0, 10, true)),
        (&half_clean, 1, usual, 100, (4000, 4000, 10, 20, true)),
        (&mostly_clean, 1, usual, 100, (8000, 4000, 10, 20, false)),
        (&mostly_clean, 1, settings(0, 0, i64::MAX), 100, (8000, 4000, 10, 20, true)),
        (&half_clean[..2], 1, settings(0, 0, i64::MAX), 100, (4000, 0, 10, 10, false)),
        // Too young.
        (&three, 1, settings(0, 81, i64::MAX), 100, (0, 4000, 0, 10, true)),
        (&three, 1, settings(0, 91, i64::MAX), 100, (0, 0, 0, 0, false)),
        // Old enough, however little it is.
        (&mostly_clean, 1, settings(1_000_000, 0, 89), 100, (8000, 4000, 10, 20, true)),
        (&mostly_clean, 1, settings(1_000_000, 0, 90), 100, (8000, 4000, 10, 20, false)),
        (&in_part, 1, usual, 100, (4000, 4000, 13, 20, true)),
    ];
    for (n, (segments, active, settings, now_ms, expect)) in rows.into_iter().enumerate() {
        let found = look(&log(segments, active), &settings, now_ms);
        let due = found.is_due(&settings);
        let shown = (found.clean_bytes, found.dirty_bytes, found.first_dirty.get(), found.end.get(), due);
        assert_eq!(shown, expect, "row {n}");
    }
}

#[test]
fn segments_that_become_one() {
    let bytes = |list: &[u64]| list.iter().map(|bytes| (*bytes, 1, 0, 0)).collect::<Vec<_>>();
    type Row<'a> = (&'a [u64], u64, u64, &'a [&'a [u64]]);
    let rows: [Row<'_>; 5] = [
        (&[10, 10, 10, 10], 30, 100, &[&[0, 1, 2]]),
        (&[10, 10, 10, 10], 30, 20, &[&[0, 1], &[2]]),
        (&[10, 10, 10, 10], 15, 100, &[&[0, 1]]),
        (&[10, 50, 10, 10], 30, 20, &[&[0], &[1], &[2]]),
        (&[10, 10], 0, 20, &[]),
    ];
    for (segments, until, bytes_max, expect) in rows {
        let log = log(&bytes(segments), 1);
        assert_eq!(group_by(&log, Offset::new(until), bytes_max * BLOCK_BYTES as u64 / 4096), expect);
    }
}

proptest! {
    /// Any batches, compacted any number of times at any place: the latest of each key, and nothing twice.
    #[test]
    fn a_model(
        records in prop::collection::vec((0u8..6, 0u8..4, any::<bool>()), 1..60),
        cuts in prop::collection::vec(1usize..60, 1..4),
        map_places in 4usize..64,
    ) {
        let mut batches: Vec<Vec<u8>> = Vec::new();
        let mut words = String::new();
        let (mut base, mut model) = (0u64, BTreeMap::new());
        for (n, (key, value, ends)) in records.iter().enumerate() {
            let key = (b'a' + key) as char;
            let value = if *value == 0 { "-".to_owned() } else { value.to_string() };
            words += &format!("{key}{value} ");
            model.insert(key, (n as u64, value));
            if *ends || n + 1 == records.len() {
                batches.push(batch(base, &words, Some(i64::from(*ends))));
                base = n as u64 + 1;
                words.clear();
            }
        }
        let ends: Vec<u64> = batches.iter().map(|batch| Header::decode(batch).unwrap().end_offset()).collect();
        let mut log = batches;
        let mut first_dirty = 0;
        let end = records.len() as u64;
        for (n, cut) in cuts.iter().map(|cut| *cut as u64).chain([end; 40]).enumerate() {
            // Segments end where batches end.
            let cut = ends.iter().copied().find(|end| *end >= cut).unwrap_or(end);
            if cut <= first_dirty {
                continue;
            }
            let look = Look { first_dirty: Offset::new(first_dirty), end: Offset::new(cut), ..Look::default() };
            let mut pass = Pass::with_room(&look, &SETTINGS, 5000 + n as i64, 3, map_places * 24);
            let mut below = log.iter().filter(|batch| Header::decode(batch).unwrap().end_offset() <= cut);
            if below.all(|batch| pass.learn(batch).unwrap()) {
                pass.learned_all(look.end);
            }
            prop_assert!(pass.learned_until().get() > first_dirty, "no headway");
            first_dirty = pass.learned_until().get();
            log = filter_all(&mut pass, &log);
        }
        prop_assert_eq!(first_dirty, end);
        let mut latest = BTreeMap::new();
        let mut last_offset = None;
        for batch in &log {
            for record in record_batch::records(batch).unwrap() {
                let record = record.unwrap();
                prop_assert!(last_offset.is_none_or(|last| last < record.offset));
                last_offset = Some(record.offset);
                let key = record.key.unwrap()[0] as char;
                let value = record.value.map_or("-".to_owned(), |value| (value[0] as char).to_string());
                latest.insert(key, (record.offset, value));
            }
        }
        prop_assert_eq!(&latest, &model);
        let left: u32 = log.iter().map(|batch| Header::decode(batch).unwrap().record_count).sum();
        prop_assert_eq!(left as usize, model.len());
    }
}
