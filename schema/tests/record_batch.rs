//! The record batch against tables of wrong headers and wrong records, and against random contents.
//!
//! Invariant: each wrong batch has a right CRC, so that the field itself must be noticed. Absent on
//! purpose: known bytes (`record_batch_golden.rs`), damage (there and in the fuzz target).

use proptest::prelude::*;
use schema::record_batch::{
    BatchBuilder, BatchError, CRC_START, HEADER_BYTES, Header, Producer, batches, extend_crc, records,
    set_base_offset, set_leader_epoch, set_log_append_time, validate_produced, verify,
};

type Headers<'a> = &'a [(&'a str, Option<&'a [u8]>)];

fn seal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[CRC_START..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

/// Three records of a producer with id 9, epoch 2, sequence 100.
fn sound() -> Vec<u8> {
    let mut builder = BatchBuilder::new().with_producer(Producer { id: 9, epoch: 2, base_sequence: 100 });
    for at in 0..3 {
        builder.append(1000 + at, Some(b"key"), Some(b"value"), &[("name", None)]);
    }
    builder.finish()
}

/// Writes `field` over a sound batch and asks for the error's text; `""` means that it is accepted.
fn check_header(at: usize, field: &[u8], produced: &str, stored: &str) {
    let mut batch = sound();
    batch[at..at + field.len()].copy_from_slice(field);
    seal(&mut batch);
    let text = |result: Result<Header, BatchError>| result.err().map_or(String::new(), |e| e.to_string());
    assert_eq!(text(validate_produced(&batch, 1 << 20)), produced, "produced, {field:02x?} at {at}");
    assert_eq!(text(verify(&batch)), stored, "stored, {field:02x?} at {at}");
}

#[test]
fn a_checksum_is_extended_by_small_and_large_batches() {
    for value_bytes in [1, 8 * 1024 - HEADER_BYTES, 8 * 1024, 100_000] {
        let mut builder = BatchBuilder::new();
        builder.append(0, None, Some(&vec![7; value_bytes]), &[]);
        let mut batch = builder.finish();
        let own = verify(&batch).unwrap().crc;
        // What stands before the covered bytes may change.
        set_base_offset(&mut batch, 77);
        let before = b"some bytes";
        let expect = crc32c::crc32c(&[&before[..], &batch].concat());
        for verified in [None, Some(own)] {
            assert_eq!(
                extend_crc(crc32c::crc32c(before), &batch, verified),
                expect,
                "{value_bytes} {verified:?}"
            );
        }
    }
}

#[test]
fn wrong_headers_are_named() {
    let both = |at, field: &[u8], text: &str| check_header(at, field, text, text);
    let produced = |at, field: &[u8], text: &str| check_header(at, field, text, "");
    let size = sound().len();

    check_header(0, &[0], "", "");
    both(0, &[0x80], "base offset -9223372036854775808, expected at least 0");
    both(8, &(-1i32).to_be_bytes(), "batch length -1, expected at least 49");
    both(8, &48i32.to_be_bytes(), "batch length 48, expected at least 49");
    both(8, &49i32.to_be_bytes(), &format!("{size} bytes for one batch, expected 61"));
    both(
        8,
        &(size as i32 - 11).to_be_bytes(),
        &format!("batch cut off at {size} bytes, expected {}", size + 1),
    );
    check_header(
        8,
        &i32::MAX.to_be_bytes(),
        "batch of 2147483659 bytes, expected at most 1048576",
        &format!("batch cut off at {size} bytes, expected 2147483659"),
    );
    check_header(12, &[0xff; 4], "", "");
    both(16, &[0], "magic 0, expected 2");
    both(16, &[1], "magic 1, expected 2");
    both(16, &[0xff], "magic -1, expected 2");

    for known in 0..=4 {
        check_header(22, &[known], "", "");
    }
    produced(22, &[5], "compression 5, expected 0 to 4");
    produced(22, &[7], "compression 7, expected 0 to 4");
    produced(22, &[0x20], "control flag 1, expected 0 from a producer");
    check_header(22, &[0x10], "", "");
    // Bits without a meaning here are passed on.
    check_header(21, &[0xff, 0xd0], "", "");

    produced(23, &0i32.to_be_bytes(), "last offset delta 0, expected 2");
    produced(23, &3i32.to_be_bytes(), "last offset delta 3, expected 2");
    both(23, &(-1i32).to_be_bytes(), "last offset delta -1, expected 0");
    produced(57, &1i32.to_be_bytes(), "last offset delta 2, expected 0");
    produced(57, &0i32.to_be_bytes(), "record count 0, expected at least 1");
    both(57, &(-1i32).to_be_bytes(), "record count -1, expected at least 0");
    both(57, &i32::MIN.to_be_bytes(), "record count -2147483648, expected at least 0");

    produced(35, &999i64.to_be_bytes(), "max timestamp 999, expected at least the base timestamp 1000");
    check_header(35, &1000i64.to_be_bytes(), "", "");

    let identity = "expected all at least 0, or id and sequence -1";
    produced(43, &(-1i64).to_be_bytes(), &format!("producer id -1, epoch 2, base sequence 100, {identity}"));
    produced(43, &(-2i64).to_be_bytes(), &format!("producer id -2, epoch 2, base sequence 100, {identity}"));
    produced(51, &(-1i16).to_be_bytes(), &format!("producer id 9, epoch -1, base sequence 100, {identity}"));
    produced(53, &(-1i32).to_be_bytes(), &format!("producer id 9, epoch 2, base sequence -1, {identity}"));
}

#[test]
fn log_append_time_may_be_before_the_first_record() {
    let mut batch = sound();
    set_log_append_time(&mut batch, 5);
    let header = validate_produced(&batch, batch.len()).unwrap();
    assert_eq!((header.base_timestamp_ms, header.max_timestamp_ms), (1000, 5));
    assert!(records(&batch).unwrap().all(|record| record.unwrap().timestamp_ms == 5));
}

#[test]
fn offset_and_epoch_are_set_without_touching_the_crc() {
    let mut batch = sound();
    let before = validate_produced(&batch, batch.len()).unwrap();
    set_base_offset(&mut batch, i64::MAX as u64 - 3);
    set_leader_epoch(&mut batch, 77);
    let after = validate_produced(&batch, batch.len()).unwrap();
    assert_eq!(after, Header { base_offset: i64::MAX as u64 - 3, leader_epoch: 77, ..before });
    assert_eq!(after.end_offset(), i64::MAX as u64);
    let offsets: Vec<_> = records(&batch).unwrap().map(|record| record.unwrap().offset).collect();
    assert_eq!(offsets, [after.base_offset, after.base_offset + 1, after.base_offset + 2]);
}

/// Puts `body` after a header of `count` records and a last offset delta of 9, and asks how the walk,
/// headers included, ends: after how many records, with which error.
fn check_records(count: u32, body: &[u8], whole: usize, error: &str) {
    let mut batch = sound();
    batch.truncate(HEADER_BYTES);
    batch.extend_from_slice(body);
    let length = batch.len() as u32 - 12;
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[23..27].copy_from_slice(&9u32.to_be_bytes());
    batch[57..61].copy_from_slice(&count.to_be_bytes());
    seal(&mut batch);
    verify(&batch).unwrap();

    let mut walk = records(&batch).unwrap();
    let mut walked = 0;
    let mut found = String::new();
    for record in walk.by_ref() {
        match record.and_then(|record| record.headers().try_for_each(|header| header.map(drop))) {
            Ok(()) => walked += 1,
            Err(error) => {
                found = error.to_string();
                break;
            }
        }
    }
    assert_eq!((walked, found.as_str()), (whole, error), "{body:02x?}");
    assert!(walk.size_hint().1.unwrap() <= body.len() + 1, "a hostile count asks for memory");
}

#[test]
fn wrong_records_are_named() {
    let cut = |record, field, max| {
        format!("record {record}: {field} is cut off or over long, expected a varint of at most {max} bytes")
    };
    // length 6, attributes, timestamp, offset 0, null, null, no headers
    const EMPTY: [u8; 7] = [12, 0, 0, 0, 1, 1, 0];
    check_records(0, &[], 0, "");
    check_records(1, &EMPTY, 1, "");
    check_records(0, &EMPTY, 0, "7 bytes after record 0 of 0, expected 0");
    check_records(1, &[EMPTY, EMPTY].concat(), 1, "7 bytes after record 1 of 1, expected 0");
    check_records(2, &EMPTY, 1, &cut(1, "record length", 5));
    check_records(u32::MAX >> 1, &EMPTY, 1, &cut(1, "record length", 5));
    check_records(1, &[0xff; 6], 0, &cut(0, "record length", 5));
    check_records(1, &[10, 0, 0, 0, 1, 1], 0, "record 0: record length 5, expected 6 to 5");
    check_records(1, &[0, 0, 0, 0, 1, 1, 0], 0, "record 0: record length 0, expected 6 to 6");
    check_records(1, &[1, 0, 0, 0, 1, 1, 0], 0, "record 0: record length -1, expected 6 to 6");
    check_records(1, &[14, 0, 0, 0, 1, 1, 0], 0, "record 0: record length 7, expected 6 to 6");
    check_records(1, &[14, 0, 0, 0, 1, 1, 0, 0], 0, "record 0: 1 bytes after its last header, expected 0");

    check_records(1, &[12, 0, 0x80, 0x80, 0x80, 0x80, 0x80], 0, &cut(0, "timestamp delta", 10));
    check_records(1, &[12, 0, 0, 0x80, 0x80, 0x80, 0x80], 0, &cut(0, "offset delta", 5));
    check_records(1, &[12, 0, 0, 18, 1, 1, 0], 1, "");
    check_records(1, &[12, 0, 0, 20, 1, 1, 0], 0, "record 0: offset delta 10, expected 0 to 9");
    check_records(1, &[12, 0, 0, 1, 1, 1, 0], 0, "record 0: offset delta -1, expected 0 to 9");
    check_records(2, &[EMPTY, EMPTY].concat(), 1, "record 1: offset delta 0, expected 1 to 9");

    check_records(1, &[12, 0, 0, 0, 3, 1, 0], 0, "record 0: key length -2, expected -1 to 2");
    check_records(1, &[12, 0, 0, 0, 6, 1, 0], 0, "record 0: key length 3, expected -1 to 2");
    check_records(1, &[12, 0, 0, 0, 1, 4, 0], 0, "record 0: value length 2, expected -1 to 1");
    check_records(1, &[12, 0, 0, 0, 1, 2, 0], 0, &cut(0, "header count", 5));
    check_records(1, &[12, 0, 0, 0, 1, 1, 1], 0, "record 0: header count -1, expected 0 to 0");
    check_records(1, &[12, 0, 0, 0, 1, 1, 2], 0, "record 0: header count 1, expected 0 to 0");

    check_records(1, &[16, 0, 0, 0, 1, 1, 2, 0, 0], 1, "");
    check_records(1, &[18, 0, 0, 0, 1, 1, 2, 1, 0, 0], 0, "record 0: header key length -1, expected 0 to 2");
    check_records(1, &[18, 0, 0, 0, 1, 1, 2, 6, 0, 0], 0, "record 0: header key length 3, expected 0 to 2");
    check_records(
        1,
        &[18, 0, 0, 0, 1, 1, 2, 2, 0xff, 1],
        0,
        "record 0: header key is not UTF-8 from byte 0 on",
    );
    check_records(
        1,
        &[18, 0, 0, 0, 1, 1, 2, 2, b'k', 3],
        0,
        "record 0: header value length -2, expected -1 to 0",
    );
    check_records(
        1,
        &[18, 0, 0, 0, 1, 1, 2, 0, 0, 0],
        0,
        "record 0: 1 bytes after its last header, expected 0",
    );
    check_records(1, &[18, 0, 0, 0, 1, 1, 4, 0, 0, 0], 0, "record 0: header count 2, expected 0 to 1");
}

#[test]
fn the_builder_is_reused_and_counts_sequences() {
    let first = Producer { id: 1, epoch: 0, base_sequence: i32::MAX - 1 };
    let mut builder = BatchBuilder::new().with_producer(first);
    assert!(builder.finish().is_empty(), "no records, no batch");
    assert_eq!((builder.len_bytes(), builder.record_count(), builder.base_timestamp_ms()), (0, 0, None));
    let mut sequences = Vec::new();
    for timestamp_ms in [50, 10] {
        for _ in 0..3 {
            builder.append(timestamp_ms, None, Some(b"v"), &[]);
        }
        assert_eq!(builder.base_timestamp_ms(), Some(timestamp_ms));
        let batch = builder.finish();
        let header = validate_produced(&batch, batch.len()).unwrap();
        assert_eq!((header.base_timestamp_ms, header.max_timestamp_ms), (timestamp_ms, timestamp_ms));
        sequences.push(header.base_sequence);
        assert!(builder.is_empty());
    }
    // i32::MAX - 1, i32::MAX, 0 are the first three.
    assert_eq!(sequences, [i32::MAX - 1, 1]);
    assert_eq!(Producer::NONE.after(5), Producer::NONE);
}

#[test]
fn a_recycled_batch_leaves_nothing_behind() {
    let expected = sound();
    let mut builder = BatchBuilder::new();
    for _ in 0..200 {
        builder.append(0, Some(b"longer"), Some(b"than the next one"), &[]);
    }
    let spent = builder.finish();
    let memory = (spent.as_ptr(), spent.capacity());
    builder.recycle(spent);
    builder.set_producer(Producer { id: 9, epoch: 2, base_sequence: 100 });
    for at in 0..3 {
        builder.append(1000 + at, Some(b"key"), Some(b"value"), &[("name", None)]);
        builder.recycle(vec![1; 100_000]);
    }
    let batch = builder.finish();
    assert_eq!(batch, expected);
    assert_eq!((batch.as_ptr(), batch.capacity()), memory);
}

#[test]
fn nothing_follows_an_error() {
    let mut garbage = [sound(), vec![0; 200]].concat();
    garbage.extend(sound());
    let items: Vec<_> = batches(&garbage).map(|item| item.map(|(header, _)| header.record_count)).collect();
    assert_eq!(items, [Ok(3), Err(BatchError::Magic { found: 0 })]);
    assert_eq!(batches(&[]).count(), 0);
}

#[derive(Clone, Debug)]
struct Content {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

fn content() -> impl Strategy<Value = Content> {
    let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
    let timestamp = prop_oneof![any::<i64>(), 1_700_000_000_000i64..1_700_000_100_000];
    let headers = proptest::collection::vec((".{0,12}", bytes()), 0..4);
    (timestamp, bytes(), bytes(), headers).prop_map(|(timestamp_ms, key, value, headers)| Content {
        timestamp_ms,
        key,
        value,
        headers,
    })
}

fn borrowed(headers: &[(String, Option<Vec<u8>>)]) -> Vec<(&str, Option<&[u8]>)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect()
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(
        contents in proptest::collection::vec(content(), 1..80),
        base_offset in 0u64..1 << 62,
    ) {
        let mut builder = BatchBuilder::new();
        for content in &contents {
            let headers = borrowed(&content.headers);
            let headers: Headers<'_> = &headers;
            let (key, value) = (content.key.as_deref(), content.value.as_deref());
            let before = builder.len_bytes().max(HEADER_BYTES);
            let most = BatchBuilder::record_bytes(key, value, headers);
            builder.append(content.timestamp_ms, key, value, headers);
            prop_assert!(builder.len_bytes() - before <= most);
        }
        let len_bytes = builder.len_bytes();
        let mut batch = builder.finish();
        prop_assert_eq!(batch.len(), len_bytes);
        set_base_offset(&mut batch, base_offset);
        let header = validate_produced(&batch, batch.len()).unwrap();
        prop_assert_eq!(header.end_offset(), base_offset + contents.len() as u64);
        prop_assert_eq!(Some(header.max_timestamp_ms), contents.iter().map(|c| c.timestamp_ms).max());

        let walked: Vec<_> = records(&batch).unwrap().map(Result::unwrap).collect();
        prop_assert_eq!(walked.len(), contents.len());
        for (at, (record, content)) in walked.iter().zip(&contents).enumerate() {
            prop_assert_eq!(record.offset, base_offset + at as u64);
            prop_assert_eq!(record.timestamp_ms, content.timestamp_ms);
            prop_assert_eq!(record.key, content.key.as_deref());
            prop_assert_eq!(record.value, content.value.as_deref());
            let headers: Vec<_> = record.headers().map(Result::unwrap).collect();
            prop_assert_eq!(headers, borrowed(&content.headers));
        }
    }

    #[test]
    fn any_bytes_end_in_an_error_or_records(
        body in proptest::collection::vec(any::<u8>(), 0..300),
        count: u16,
    ) {
        let mut batch = sound();
        batch.truncate(HEADER_BYTES);
        batch.extend_from_slice(&body);
        let length = batch.len() as u32 - 12;
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        batch[23..27].copy_from_slice(&u32::from(count).to_be_bytes());
        batch[57..61].copy_from_slice(&u32::from(count).to_be_bytes());
        let mut seen = 0;
        for record in records(&batch).unwrap().flatten() {
            seen += 1 + record.headers().count();
        }
        prop_assert!(seen <= body.len());
    }
}
