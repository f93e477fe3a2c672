//! The record batch against bytes made by independent implementations (`testdata/make_golden.py`).
//!
//! Owns the reading of `testdata/record_batch.json`, which says what is in each file. Invariant: the
//! bytes are never made by this repository's encoder. Absent on purpose: compressed contents, which the
//! schema does not decode.

use schema::record_batch::{
    self, Attributes, BatchBuilder, BatchError, Compression, HEADER_BYTES, Header, Producer, TimestampType,
    batches, records, set_base_offset, set_leader_epoch, set_log_append_time, validate_produced,
    validate_produced_with_crc, verify,
};
use serde_json::Value;
use std::path::PathBuf;

/// Every bit is flipped in batches up to here; in longer ones, one in [`FLIP_STRIDE`].
const FLIP_ALL_BYTES_MAX: usize = 8 << 10;
const FLIP_STRIDE: usize = 997;

struct Golden {
    name: String,
    bytes: Vec<u8>,
    header: Header,
    reencodes: bool,
    records: Vec<Expected>,
}

#[derive(Debug, PartialEq)]
struct Expected {
    offset: u64,
    timestamp_ms: i64,
    created_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Null, hexadecimal, or one byte repeated.
fn bytes_of(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(hex(text)),
        repeated => {
            let times = repeated["times"].as_u64().unwrap() as usize;
            Some(hex(repeated["hex"].as_str().unwrap()).repeat(times))
        }
    }
}

fn expected(record: &Value) -> Expected {
    Expected {
        offset: record["offset"].as_u64().unwrap(),
        timestamp_ms: record["timestamp_ms"].as_i64().unwrap(),
        created_ms: record["created_ms"].as_i64().unwrap(),
        key: bytes_of(&record["key"]),
        value: bytes_of(&record["value"]),
        headers: record["headers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|header| (header[0].as_str().unwrap().to_owned(), bytes_of(&header[1])))
            .collect(),
    }
}

fn goldens() -> Vec<Golden> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let list: Value =
        serde_json::from_slice(&std::fs::read(directory.join("record_batch.json")).unwrap()).unwrap();
    let list = list.as_array().unwrap();
    assert!(list.len() >= 12, "a golden batch went missing");
    list.iter()
        .map(|golden| {
            let name = golden["file"].as_str().unwrap().to_owned();
            let number = |field: &str| golden[field].as_i64().unwrap_or_else(|| panic!("{name}: {field}"));
            Golden {
                bytes: std::fs::read(directory.join(&name)).unwrap(),
                header: Header {
                    base_offset: number("base_offset") as u64,
                    batch_bytes: number("batch_bytes") as usize,
                    leader_epoch: number("leader_epoch") as u32,
                    crc: number("crc") as u32,
                    attributes: Attributes::from_bits(number("attributes") as u16),
                    last_offset_delta: number("last_offset_delta") as u32,
                    base_timestamp_ms: number("base_timestamp_ms"),
                    max_timestamp_ms: number("max_timestamp_ms"),
                    producer_id: number("producer_id"),
                    producer_epoch: number("producer_epoch") as i16,
                    base_sequence: number("base_sequence") as i32,
                    record_count: number("record_count") as u32,
                },
                reencodes: golden["reencodes"].as_bool().unwrap(),
                records: golden["records"].as_array().unwrap().iter().map(expected).collect(),
                name,
            }
        })
        .collect()
}

/// Walks everything there is in `batch`, headers included.
fn walk(batch: &[u8]) -> Result<Vec<Expected>, BatchError> {
    let mut walked = Vec::new();
    for record in records(batch)? {
        let record = record?;
        let mut headers = Vec::new();
        for header in record.headers() {
            let (key, value) = header?;
            headers.push((key.to_owned(), value.map(<[u8]>::to_vec)));
        }
        walked.push(Expected {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            created_ms: 0,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers,
        });
    }
    Ok(walked)
}

#[test]
fn golden_batches_decode_to_their_contents() {
    for golden in goldens() {
        let name = &golden.name;
        assert_eq!(Header::decode(&golden.bytes), Ok(golden.header), "{name}");
        assert_eq!(verify(&golden.bytes), Ok(golden.header), "{name}");
        let last = golden.records.last().unwrap().offset;
        assert_eq!(golden.header.end_offset(), last + 1, "{name}");
        let attributes = golden.header.attributes;
        assert_eq!(attributes.is_compressed(), attributes.compression() != Ok(Compression::None), "{name}");
        match attributes.compression().unwrap() {
            Compression::None => {
                let walked = walk(&golden.bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(walked.len(), golden.records.len(), "{name}");
                for (walked, expected) in walked.into_iter().zip(golden.records) {
                    assert_eq!(Expected { created_ms: expected.created_ms, ..walked }, expected, "{name}");
                }
            }
            kind => assert_eq!(walk(&golden.bytes), Err(BatchError::Compressed(kind)), "{name}"),
        }
    }
}

#[test]
fn what_producers_make_is_accepted_and_what_brokers_make_is_not() {
    for golden in goldens() {
        let (name, bytes) = (&golden.name, &golden.bytes);
        let verdict = validate_produced(bytes, bytes.len());
        match name.as_str() {
            "record_batch_control.bin" => assert_eq!(verdict, Err(BatchError::Control)),
            "record_batch_compacted.bin" => {
                assert_eq!(verdict, Err(BatchError::LastOffsetDelta { found: 130, expected: 2 }));
            }
            _ => assert_eq!(verdict, Ok(golden.header), "{name}"),
        }
        let crc = golden.header.crc;
        let header = &bytes[..HEADER_BYTES];
        assert_eq!(validate_produced_with_crc(header, bytes.len(), crc, bytes.len()), verdict, "{name}");
        assert_eq!(
            validate_produced_with_crc(header, bytes.len(), !crc, bytes.len()),
            Err(BatchError::Crc { found: crc, expected: !crc }),
            "{name}"
        );
        assert_eq!(
            validate_produced(bytes, bytes.len() - 1),
            Err(BatchError::TooLarge { found: bytes.len(), max: bytes.len() - 1 }),
            "{name}"
        );
    }
}

#[test]
fn our_encoder_makes_the_same_bytes() {
    let mut builder = BatchBuilder::new();
    let mut made = 0;
    for golden in goldens().iter().filter(|golden| golden.reencodes) {
        let header = golden.header;
        builder.set_producer(Producer {
            id: header.producer_id,
            epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
        });
        for record in &golden.records {
            let headers: Vec<_> =
                record.headers.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
            builder.append(record.created_ms, record.key.as_deref(), record.value.as_deref(), &headers);
        }
        assert_eq!(builder.len_bytes(), golden.bytes.len(), "{}", golden.name);
        assert_eq!(builder.record_count(), header.record_count, "{}", golden.name);
        let mut batch = builder.finish();
        set_base_offset(&mut batch, header.base_offset);
        set_leader_epoch(&mut batch, header.leader_epoch);
        if header.attributes.timestamp_type() == TimestampType::LogAppendTime {
            set_log_append_time(&mut batch, header.max_timestamp_ms);
        }
        assert!(batch == golden.bytes, "{}: the bytes differ", golden.name);
        made += 1;
    }
    assert!(made >= 8, "only {made} golden batches were made again");
}

#[test]
fn golden_batches_back_to_back_are_split_again() {
    let goldens = goldens();
    let joined: Vec<u8> = goldens.iter().flat_map(|golden| golden.bytes.clone()).collect();
    let split: Vec<_> = batches(&joined).map(Result::unwrap).collect();
    assert_eq!(split.len(), goldens.len());
    for ((header, bytes), golden) in split.iter().zip(&goldens) {
        assert_eq!((header, *bytes), (&golden.header, &golden.bytes[..]), "{}", golden.name);
    }
    let last = goldens.last().unwrap().bytes.len();
    let mut cut = batches(&joined[..joined.len() - 1]).skip(goldens.len() - 1);
    assert_eq!(cut.next(), Some(Err(BatchError::Truncated { found: last - 1, expected: last })));
    assert_eq!(cut.next(), None);
}

#[test]
fn every_flipped_bit_under_the_crc_is_caught_and_none_panics() {
    for golden in goldens() {
        let stride = if golden.bytes.len() <= FLIP_ALL_BYTES_MAX { 1 } else { FLIP_STRIDE };
        let mut bytes = golden.bytes;
        for bit in (0..bytes.len() * 8).step_by(stride) {
            let (at, mask) = (bit / 8, 1 << (bit % 8));
            bytes[at] ^= mask;
            // Without the CRC, only survival is asked for: a flipped value is a value.
            let _ = walk(&bytes);
            let _ = batches(&bytes).count();
            let verdict = validate_produced(&bytes, usize::MAX);
            if (8..12).contains(&at) || (16..bytes.len()).contains(&at) {
                assert!(verdict.is_err() && verify(&bytes).is_err(), "{}: bit {bit}", golden.name);
            }
            if at >= record_batch::CRC_START - 4 {
                assert!(verdict.unwrap_err().is_damage(), "{}: bit {bit} blames the producer", golden.name);
            }
            bytes[at] ^= mask;
        }
    }
}

#[test]
fn every_truncation_is_caught_and_none_panics() {
    for golden in goldens() {
        let Golden { name, bytes, .. } = &golden;
        for found in 0..bytes.len() {
            let cut = &bytes[..found];
            let expected = if found < HEADER_BYTES {
                BatchError::HeaderTruncated { found }
            } else {
                BatchError::Truncated { found, expected: bytes.len() }
            };
            assert_eq!(validate_produced(cut, usize::MAX), Err(expected), "{name}");
            assert_eq!(verify(cut), Err(expected), "{name}");
            if golden.header.attributes.compression() == Ok(Compression::None) {
                assert_eq!(records(cut).err(), Some(expected), "{name}");
            }
            assert_eq!(batches(cut).next(), (found > 0).then_some(Err(expected)), "{name}");
        }
        // The length field agrees with the cut, so the walk meets the end inside a record.
        if bytes.len() > FLIP_ALL_BYTES_MAX || golden.header.attributes.compression() != Ok(Compression::None)
        {
            continue;
        }
        for found in HEADER_BYTES..bytes.len() {
            let mut cut = bytes[..found].to_vec();
            cut[8..12].copy_from_slice(&((found - 12) as i32).to_be_bytes());
            assert!(walk(&cut).is_err(), "{name} at {found}");
            assert!(verify(&cut).unwrap_err().is_damage(), "{name} at {found}");
        }
    }
}
