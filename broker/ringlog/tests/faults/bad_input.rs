//! Bytes that no client should send: each is answered clearly, and a neighbour notices nothing.

use crate::support::neighbour::Neighbour;
use crate::support::process::{Broker, Serve};
use crate::support::raw::{Answer, Raw, Target, fetch, hello, produce, produce_one, question, request};
use crate::support::records::Maker;
use crate::support::skipped::skipped;
use crate::support::{Directory, block_on, client, counter_is, create_topic, setting};
use ringlog_client::{ErrorCode, TopicDescription};
use schema::frame::PREFIX_BYTES;
use schema::record_batch::{CRC_START, HEADER_BYTES};
use schema::wire;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

const MAX_MESSAGE_BYTES: usize = 200_000;

/// What is to happen.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// An error for the request, with a message; then the end.
    Closed(ErrorCode),
    /// An error for the request or its entry; the connection goes on.
    Refused(ErrorCode),
    /// The end without a word: nobody is there to hear it.
    Silence,
    /// No error.
    Fine,
}

use Expect::{Closed, Fine, Refused, Silence};

/// What is said, and what is to happen.
type Row = (&'static str, Vec<u8>, Expect);

/// A broker with a topic and a neighbour.
struct Stage {
    broker: Broker,
    neighbour: Neighbour,
    topic: TopicDescription,
    _directory: Directory,
}

impl Stage {
    fn new() -> Self {
        let directory = Directory::new();
        let broker = Serve::new(directory.path()).start();
        let neighbour = Neighbour::start(broker.address);
        let topic = block_on(async {
            let client = client(broker.address).await;
            let limit = MAX_MESSAGE_BYTES.to_string();
            create_topic(&client, "target", 2, &[("max.message.bytes", &limit)]).await
        });
        Self { broker, neighbour, topic, _directory: directory }
    }

    fn target(&self) -> Target {
        Target { topic: self.topic.id.0, partition: 0, epoch: self.topic.partitions[0].leader_epoch }
    }

    /// Everything is given back, the broker lives, and the neighbour is well.
    fn end(mut self, what: &str) {
        self.neighbour.is_served();
        let records = self.neighbour.finish();
        block_on(async {
            let client = client(self.broker.address).await;
            counter_is(&client, "in_flight_bytes", |bytes| bytes < 1000).await;
            counter_is(&client, "dirty_bytes", |bytes| bytes == 0).await;
            counter_is(&client, "connections_open", |open| open <= 2).await;
        });
        assert!(self.broker.is_running());
        self.broker.stop();
        println!("{what}; the neighbour moved {records} records meanwhile");
    }
}

/// Says `row` on a connection of its own, after a Hello or in place of it.
#[track_caller]
fn check(address: SocketAddr, after_hello: bool, (what, bytes, expect): &Row) {
    let mut raw = if after_hello { Raw::hello(address, -1) } else { Raw::connect(address) };
    // The broker may close before it has read all of it.
    let _ = raw.send(bytes);
    if matches!(expect, Silence) {
        raw.stream.shutdown(Shutdown::Write).expect("it is open");
        assert!(matches!(raw.answer(), Ok(None)), "{what}: an answer, or no end");
        return;
    }
    let answer = raw.answer().unwrap_or_else(|error| panic!("{what}: {error}"));
    let answer = answer.unwrap_or_else(|| panic!("{what}: closed without a word"));
    match *expect {
        Closed(code) => {
            assert_eq!(answer.error, Some(code), "{what}: {answer:?}");
            assert!(!answer.message.is_empty(), "{what}: {answer:?}");
            assert!(matches!(raw.answer(), Ok(None)), "{what}: it is not closed");
        }
        Refused(code) => {
            assert_eq!(answer.any_error(), Some(code), "{what}: {answer:?}");
            assert!(answer.error.is_none() || !answer.message.is_empty(), "{what}: no message");
            goes_on(what, &mut raw);
        }
        Fine => {
            assert_eq!(answer.any_error(), None, "{what}: {answer:?}");
            goes_on(what, &mut raw);
        }
        Silence => {}
    }
}

fn goes_on(what: &str, raw: &mut Raw) {
    let answer: Answer = raw.ask(&question(77));
    assert_eq!((answer.id, answer.error), (77, None), "{what}: the connection does not go on: {answer:?}");
}

fn prefix(frame_length: u32, metadata_length: u32) -> Vec<u8> {
    [frame_length.to_le_bytes(), metadata_length.to_le_bytes()].concat()
}

/// A frame of metadata that is no FlatBuffer.
fn frame_of(metadata: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    schema::frame::encode_head(&mut out, metadata, 0);
    out
}

/// `batch` with bytes replaced, and its CRC right again.
fn altered(batch: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut batch = batch.to_vec();
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&batch[CRC_START..]);
    batch[CRC_START - 4..CRC_START].copy_from_slice(&crc.to_be_bytes());
    batch
}

fn before_hello() -> Vec<Row> {
    use ErrorCode::{FrameTooLarge, HelloRequired, InvalidFrame, InvalidRequest, UnsupportedVersion};
    let mut wrong_metadata_length = hello(1, -1, 1);
    wrong_metadata_length[4..8].copy_from_slice(&4u32.to_le_bytes());
    vec![
        ("another protocol", b"GET / HTTP/1.1\r\nHost: ringlog\r\n\r\n".to_vec(), Closed(FrameTooLarge)),
        ("ones", vec![0xff; 64], Closed(FrameTooLarge)),
        ("zeros", vec![0; 64], Closed(InvalidFrame)),
        ("2^31 bytes", prefix(1 << 31, 8), Closed(FrameTooLarge)),
        ("just above the limit", prefix((64 << 10) + 1, 8), Closed(FrameTooLarge)),
        ("metadata beyond the frame", prefix(64, 61), Closed(InvalidFrame)),
        ("metadata of 2^32 - 1 bytes", prefix(64, u32::MAX), Closed(InvalidFrame)),
        ("metadata cut short", wrong_metadata_length, Closed(InvalidFrame)),
        ("no FlatBuffer", frame_of(&[7; 100]), Closed(InvalidFrame)),
        (
            "the right name on no FlatBuffer",
            frame_of(b"\xff\xff\xff\x7fRLQ1\0\0\0\0\0\0\0\0"),
            Closed(InvalidFrame),
        ),
        ("a response", frame_of(b"\x10\0\0\0RLS1\0\0\0\0\0\0\0\0"), Closed(InvalidFrame)),
        ("a request", question(1), Closed(HelloRequired)),
        ("a shard that is not there", hello(1, 7, 1), Closed(InvalidRequest)),
        ("version 0", hello(1, -1, 0), Closed(UnsupportedVersion)),
        ("a version to come", hello(1, -1, 99), Fine),
        ("the end", vec![], Silence),
        ("half a length", vec![1, 0], Silence),
        ("half a Hello", hello(1, -1, 1)[..20].to_vec(), Silence),
    ]
}

fn frames() -> Vec<Row> {
    use ErrorCode::{FrameTooLarge, InvalidFrame, InvalidRequest, Unsupported};
    let unknown = |id| {
        request(id, wire::RequestApi(200), 0, |builder| {
            wire::StatusRequest::create(builder, &wire::StatusRequestArgs::default()).as_union_value()
        })
    };
    let nothing = |id| {
        request(id, wire::RequestApi::NONE, 0, |builder| {
            wire::StatusRequest::create(builder, &wire::StatusRequestArgs::default()).as_union_value()
        })
    };
    let many_tables = request(1, wire::RequestApi::CreateTopicsRequest, 0, |builder| {
        let name = Some(builder.create_string("x"));
        let topics: Vec<_> = (0..5000)
            .map(|_| wire::NewTopic::create(builder, &wire::NewTopicArgs { name, ..Default::default() }))
            .collect();
        let topics = Some(builder.create_vector(&topics));
        let args = wire::CreateTopicsRequestArgs { topics, validate_only: true };
        wire::CreateTopicsRequest::create(builder, &args).as_union_value()
    });
    let mut behind_a_good_one = question(77);
    behind_a_good_one.extend_from_slice(&unknown(78));
    vec![
        ("ones", vec![0xff; 64], Closed(FrameTooLarge)),
        ("zeros", vec![0; 64], Closed(InvalidFrame)),
        ("2^31 bytes", prefix(1 << 31, 8), Closed(FrameTooLarge)),
        ("just above the limit", prefix((16 << 20) + 1, 8), Closed(FrameTooLarge)),
        ("metadata beyond the frame", prefix(64, 61), Closed(InvalidFrame)),
        ("metadata of more than a megabyte", prefix(3 << 20, 2 << 20), Closed(InvalidFrame)),
        ("no FlatBuffer", frame_of(&[7; 100]), Closed(InvalidFrame)),
        ("a response", frame_of(b"\x10\0\0\0RLS1\0\0\0\0\0\0\0\0"), Closed(InvalidFrame)),
        ("too many tables", many_tables, Closed(InvalidFrame)),
        ("a request to come", unknown(1), Refused(Unsupported)),
        ("a union without its kind", nothing(1), Closed(InvalidFrame)),
        ("a second Hello", hello(1, -1, 1), Refused(InvalidRequest)),
        ("half a frame", question(1)[..30].to_vec(), Silence),
    ]
}

fn produces(target: Target, maker: &mut Maker) -> Vec<Row> {
    use ErrorCode::{
        BatchTooLarge, CorruptBatch, FencedLeaderEpoch, InvalidBatch, InvalidRequest, UnknownPartition,
        UnknownTopic,
    };
    let small = maker.batch(3, 200).batch.to_vec();
    let large = maker.batch(2, 50_000).batch.to_vec();
    let mut rows: Vec<Row> = Vec::new();
    // Small ones are handled where they lie, large ones received in place: the same answers.
    for batch in [&small, &large] {
        let bytes = batch.len() as u32;
        let mut flipped = batch.clone();
        flipped[HEADER_BYTES + 30] ^= 1;
        let mut magic = batch.clone();
        magic[16] = 1;
        let mut length = batch.clone();
        length[8..12].copy_from_slice(&(bytes - 12 + 1).to_be_bytes());
        let mut negative = batch.clone();
        negative[0] = 0x80;
        let doubled = [&batch[..], &batch[..]].concat();
        let stranger = Target { topic: 0xdead, ..target };
        let other_epoch = Target { epoch: target.epoch + 1, ..target };
        rows.extend([
            ("a sound batch", produce_one(1, target, batch), Fine),
            ("a flipped bit", produce_one(1, target, &flipped), Refused(CorruptBatch)),
            ("another magic", produce_one(1, target, &magic), Refused(InvalidBatch)),
            ("a wrong length", produce_one(1, target, &length), Refused(InvalidBatch)),
            ("a negative offset", produce_one(1, target, &negative), Refused(InvalidBatch)),
            (
                "a control batch",
                produce_one(1, target, &altered(batch, 21, &[0, 0x20])),
                Refused(InvalidBatch),
            ),
            (
                "an unknown compression",
                produce_one(1, target, &altered(batch, 21, &[0, 7])),
                Refused(InvalidBatch),
            ),
            ("no records", produce_one(1, target, &altered(batch, 57, &[0; 4])), Refused(InvalidBatch)),
            (
                "a wrong count",
                produce_one(1, target, &altered(batch, 57, &[0, 0, 0, 9])),
                Refused(InvalidBatch),
            ),
            (
                "a wrong last offset",
                produce_one(1, target, &altered(batch, 23, &[0, 0, 0, 9])),
                Refused(InvalidBatch),
            ),
            (
                "a negative count",
                produce_one(1, target, &altered(batch, 57, &[0xff; 4])),
                Refused(InvalidBatch),
            ),
            (
                "times that run back",
                produce_one(1, target, &altered(batch, 35, &[0; 8])),
                Refused(InvalidBatch),
            ),
            ("half a producer", produce_one(1, target, &altered(batch, 43, &[0; 8])), Refused(InvalidBatch)),
            ("two batches", produce_one(1, target, &doubled), Refused(InvalidBatch)),
            ("half a batch", produce_one(1, target, &batch[..batch.len() / 2]), Refused(InvalidBatch)),
            ("an unknown topic", produce_one(1, stranger, batch), Refused(UnknownTopic)),
            (
                "an unknown partition",
                produce_one(1, Target { partition: 9, ..target }, batch),
                Refused(UnknownPartition),
            ),
            ("a stale epoch", produce_one(1, other_epoch, batch), Refused(FencedLeaderEpoch)),
            (
                "fewer bytes than named",
                produce(1, -1, &[(target, bytes + 1)], batch),
                Refused(InvalidRequest),
            ),
            ("more bytes than named", produce(1, -1, &[(target, bytes - 1)], batch), Refused(InvalidRequest)),
            ("2^32 - 1 bytes named", produce(1, -1, &[(target, u32::MAX)], batch), Refused(InvalidRequest)),
            (
                "lengths that wrap",
                produce(1, -1, &[(target, u32::MAX), (target, bytes + 1)], batch),
                Refused(InvalidRequest),
            ),
            ("unknown acks", produce(1, 7, &[(target, bytes)], batch), Refused(InvalidRequest)),
            ("no entries", produce(1, -1, &[], &[]), Refused(InvalidRequest)),
            ("an empty entry", produce(1, -1, &[(target, 0)], &[]), Refused(InvalidBatch)),
        ]);
    }
    let over = maker.batch(1, MAX_MESSAGE_BYTES + 1).batch;
    rows.push(("a batch over the limit", produce_one(1, target, &over), Refused(BatchTooLarge)));
    rows
}

fn fetches(target: Target) -> Vec<Row> {
    use ErrorCode::{FencedLeaderEpoch, InvalidRequest, OffsetOutOfRange, UnknownPartition, UnknownTopic};
    let nothing = request(1, wire::RequestApi::FetchRequest, 0, |builder| {
        wire::FetchRequest::create(builder, &wire::FetchRequestArgs::default()).as_union_value()
    });
    vec![
        ("a sound fetch", fetch(1, target, 0, 1000, 1000), Fine),
        ("beyond the end", fetch(1, target, 1 << 40, 1000, 1000), Refused(OffsetOutOfRange)),
        ("the largest offset", fetch(1, target, u64::MAX, 1000, 1000), Refused(OffsetOutOfRange)),
        ("an unknown topic", fetch(1, Target { topic: 1, ..target }, 0, 1000, 1000), Refused(UnknownTopic)),
        (
            "an unknown partition",
            fetch(1, Target { partition: 9, ..target }, 0, 1000, 1000),
            Refused(UnknownPartition),
        ),
        ("a stale epoch", fetch(1, Target { epoch: 9, ..target }, 0, 1000, 1000), Refused(FencedLeaderEpoch)),
        ("no entries", nothing, Refused(InvalidRequest)),
        ("no room", fetch(1, target, 0, 0, 0), Fine),
        ("all the room", fetch(1, target, 0, 0, u32::MAX), Fine),
    ]
}

#[test]
fn every_wrong_byte_has_a_clear_answer() {
    let stage = Stage::new();
    let (address, target) = (stage.broker.address, stage.target());
    let mut maker = Maker::new(1, 1);
    let early = before_hello();
    early.iter().for_each(|row| check(address, false, row));
    let mut late = frames();
    late.extend(produces(target, &mut maker));
    late.extend(fetches(target));
    late.iter().for_each(|row| check(address, true, row));

    // All at once on one connection: each answered by its id, good ones between bad ones served.
    let mut raw = Raw::hello(address, -1);
    let mixed: Vec<&Row> = late.iter().filter(|row| matches!(row.2, Refused(_) | Fine)).collect();
    for row in &mixed {
        raw.send(&row.1).expect("it reads");
    }
    let errors: Vec<Option<ErrorCode>> =
        mixed.iter().map(|_| raw.answer().expect("an answer").expect("open").any_error()).collect();
    let expected = mixed.iter().filter(|row| matches!(row.2, Fine)).count();
    assert_eq!(errors.iter().filter(|error| error.is_none()).count(), expected, "{errors:?}");
    drop(raw);
    stage.end(&format!("bad input: {} rows, each answered", early.len() + late.len()));
}

#[test]
fn mutated_frames_hurt_nobody() {
    let stage = Stage::new();
    let (address, target) = (stage.broker.address, stage.target());
    let mut maker = Maker::new(1, 1);
    let describe = request(1, wire::RequestApi::DescribeLogsRequest, 0, |builder| {
        let name = builder.create_string("target");
        let topics = Some(builder.create_vector(&[name]));
        wire::DescribeLogsRequest::create(builder, &wire::DescribeLogsRequestArgs { topics }).as_union_value()
    });
    let create = request(1, wire::RequestApi::CreateTopicsRequest, 0, |builder| {
        let (name, key, value) = (
            builder.create_string("made"),
            builder.create_string("segment.bytes"),
            builder.create_string("1048576"),
        );
        let args = wire::ConfigEntryArgs { name: Some(key), value: Some(value) };
        let config = wire::ConfigEntry::create(builder, &args);
        let configs = Some(builder.create_vector(&[config]));
        let args = wire::NewTopicArgs { name: Some(name), partitions: 1, replication_factor: 1, configs };
        let topic = wire::NewTopic::create(builder, &args);
        let topics = Some(builder.create_vector(&[topic]));
        let args = wire::CreateTopicsRequestArgs { topics, validate_only: true };
        wire::CreateTopicsRequest::create(builder, &args).as_union_value()
    });
    let seeds = [
        hello(1, -1, 1),
        produce_one(1, target, &maker.batch(3, 100).batch),
        produce_one(1, target, &maker.batch(3, 20_000).batch),
        fetch(1, target, 0, 0, 1000),
        describe,
        create,
    ];
    let rounds = setting("RINGLOG_MUTATIONS", 3000);
    let mut random = fastrand::Rng::with_seed(setting("RINGLOG_SEED", 1));
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..rounds {
        let mut frame = seeds[random.usize(..seeds.len())].clone();
        // Mostly the metadata: bodies are the batch's tests.
        let metadata_bytes = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
        for _ in 0..random.usize(1..6) {
            let first = if random.u8(..10) == 0 { 0 } else { PREFIX_BYTES };
            let at = random.usize(first..PREFIX_BYTES + metadata_bytes);
            match random.u8(..4) {
                0 => frame[at] ^= 1 << random.u8(..8),
                1 => frame[at] = random.u8(..),
                2 => frame[at] = [0, 1, 0x7f, 0x80, 0xff][random.usize(..5)],
                _ => frame[at] = frame[random.usize(PREFIX_BYTES..PREFIX_BYTES + metadata_bytes)],
            }
        }
        let mut raw = if random.bool() { Raw::hello(address, -1) } else { Raw::connect(address) };
        let _ = raw.send(&frame);
        let _ = raw.stream.shutdown(Shutdown::Write);
        // A fetch that now waits for a minute is not waited for.
        raw.stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
        if let Ok(Some(answer)) = raw.answer() {
            answered += 1;
            refused += u64::from(answer.any_error().is_some());
        }
    }
    assert!(refused > rounds / 4, "{refused} refused of {answered} answered of {rounds}");
    stage.end(&format!("mutations: {rounds} frames, {answered} answered, {refused} of them refused"));
}

#[test]
fn a_client_that_dies_while_it_sends_leaves_nothing_behind() {
    let stage = Stage::new();
    let (address, target) = (stage.broker.address, stage.target());
    let mut maker = Maker::new(1, 1);
    let large = produce_one(1, target, &maker.batch(3, 50_000).batch);
    let small = produce_one(2, target, &maker.batch(3, 50).batch);
    for round in 0..40 {
        let mut raw = Raw::hello(address, -1);
        // Something good, then a part of something large.
        assert_eq!(raw.ask(&small).any_error(), None);
        let cut = [9, 100, 300, 40_000, 100_000, large.len() - 1][round % 6];
        raw.send(&large[..cut]).expect("it reads");
        if round % 2 == 0 {
            raw.stream.shutdown(Shutdown::Write).expect("it is open");
            assert!(matches!(raw.answer(), Ok(None)), "{cut} bytes of a frame are none");
        }
    }
    // What was half sent is not in the log, what was whole is.
    let end = block_on(async {
        let client = crate::support::client(address).await;
        let latest = [(0, ringlog_client::OffsetSpec::Latest)];
        client.admin().list_offsets("target", &latest).await.expect("it answers")[0].offset
    });
    assert_eq!(end, 40 * 3);
    stage.end("dying clients: 40, nothing of theirs left");
}

#[test]
fn thousands_of_idle_connections_cost_little() {
    const WANTED: usize = 5000;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills a struct of the right type that outlives the call.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let needed = WANTED as u64 + 500;
    if got != 0 || limit.rlim_cur < needed {
        skipped(&format!("{WANTED} idle connections: ulimit -n is {}, {needed} are needed", limit.rlim_cur));
        return;
    }
    let stage = Stage::new();
    let address = stage.broker.address;
    stage.neighbour.is_served();
    let before_kib = stage.broker.memory_kib("VmRSS");
    let began = Instant::now();
    let mut idle: Vec<Raw> = (0..WANTED).map(|_| Raw::hello(address, -1)).collect();
    let connecting = began.elapsed();
    let after_kib = stage.broker.memory_kib("VmRSS");
    let each_kib = after_kib.saturating_sub(before_kib) as f64 / WANTED as f64;
    // Each is still served, and so is everybody else.
    let began = Instant::now();
    for (id, raw) in (0..).zip(idle.iter_mut().step_by(100)) {
        assert_eq!(raw.ask(&question(id)).error, None);
    }
    let asking = began.elapsed() / (WANTED as u32 / 100);
    stage.neighbour.is_served();
    assert!(each_kib < 16.0, "{each_kib:.1} KiB for each connection");
    drop(idle);
    stage.end(&format!(
        "idle connections: {WANTED}, {each_kib:.1} KiB each, connected in {connecting:?}, a request among them took \
         {asking:?}"
    ));
}
