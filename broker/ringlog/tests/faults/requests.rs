//! The terms of a request are kept: room for its reply, its bytes over several cores, its deadline, a place
//! for its connection, and an answer that arrives even if nobody reads the rest of what was sent.

use crate::support::process::Serve;
use crate::support::raw::{
    Answer, FetchTerms, Raw, Target, fetch, fetch_many, hello, produce_one, produce_within, question,
};
use crate::support::records::Maker;
use crate::support::{Directory, block_on, client, counter, counter_is, create_topic, embedded, until};
use logic::limits::{MIB, REPLY_BYTES_PER_CONNECTION_MAX, TAIL_CACHE_BYTES_PER_SHARD};
use ringlog_client::{ErrorCode, TopicDescription};
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::time::{Duration, Instant};

fn target(topic: &TopicDescription, partition: u32) -> Target {
    let epoch = topic.partitions[partition as usize].leader_epoch;
    Target { topic: topic.id.0, partition, epoch }
}

fn fetched_bytes(answer: &Answer) -> usize {
    answer.fetched.iter().map(|(_, bytes)| bytes.len()).sum()
}

/// Many fetches of much, from the device, for peers that do not read: together they never hold more than
/// the budget, those who find no room are told, and when the peers are gone all of it is free.
#[test]
fn replies_get_room_before_they_are_read() {
    const PEERS: usize = 20;
    const FETCHES: u64 = 12;
    const FETCH_BYTES: usize = 4 * MIB;
    let directory = Directory::new();
    let most = REPLY_BYTES_PER_CONNECTION_MAX;
    let broker = embedded(&directory, |config| config.capacity.reply_bytes_max = most);
    let address = broker.address();
    let topic = block_on(async {
        let client = client(address).await;
        create_topic(&client, "large", 1, &[("max.message.bytes", "8388608")]).await
    });
    let target = target(&topic, 0);
    let mut writer = Raw::hello(address, -1);
    let batch = Maker::new(1, 1).batch(4, MIB - 100).batch;
    let batches = (TAIL_CACHE_BYTES_PER_SHARD + 32 * MIB) / batch.len();
    for id in 0..batches as u64 {
        assert_eq!(writer.ask(&produce_one(id, target, &batch)).any_error(), None);
    }
    let peers: Vec<Raw> = (0..PEERS)
        .map(|_| {
            let mut raw = Raw::hello(address, -1);
            raw.stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a socket");
            for id in 0..FETCHES {
                // Offsets of the first batches: not in memory any more.
                let offset = id % 4 * 4;
                raw.send(&fetch(id, target, offset, 0, FETCH_BYTES as u32)).expect("it reads");
            }
            raw
        })
        .collect();
    let peak = block_on(async {
        let client = client(address).await;
        let mut peak = 0;
        // Every peer has more than its sockets take; somebody is told so, or waits for its own connection.
        until("the budget is met", async || {
            let status = client.admin().status().await.ok()?;
            let held = counter(&status, "reply_bytes") + counter(&status, "reserved_reply_bytes");
            peak = held.max(peak);
            let over = held.saturating_sub(MIB as u64);
            assert!(over <= most as u64, "{held} bytes of replies, {most} are permitted");
            (counter(&status, "overloaded_total") > PEERS as u64).then_some(())
        })
        .await;
        peak
    });
    for raw in &peers {
        raw.stream.shutdown(Shutdown::Both).expect("it is open");
    }
    drop(peers);
    block_on(async {
        let client = client(address).await;
        counter_is(&client, "connections_open", |open| open <= 2).await;
        counter_is(&client, "reserved_reply_bytes", |bytes| bytes == 0).await;
        counter_is(&client, "reply_bytes", |bytes| bytes < 10_000).await;
    });
    // One who reads is served as ever.
    let answer = writer.ask(&fetch(1, target, 0, 0, 16 << 20));
    assert_eq!(answer.any_error(), None);
    assert!(fetched_bytes(&answer) > 8 * MIB, "{} bytes", fetched_bytes(&answer));
    println!("replies: at most {} MiB held of {} MiB", peak / MIB as u64, most / MIB);
    broker.stop().expect("it stops in order");
}

/// One fetch from partitions of two cores: `max_bytes` and `min_bytes` are meant for the sum.
#[test]
fn the_terms_of_a_fetch_are_for_all_cores_together() {
    const PARTITIONS: u32 = 6;
    const BATCHES: usize = 10;
    let directory = Directory::new();
    let broker = Serve::new(directory.path()).shards(2).start();
    let topic = block_on(async {
        let client = client(broker.address).await;
        create_topic(&client, "apart", PARTITIONS, &[]).await
    });
    let batch = Maker::new(1, 1).batch(1, 10_000).batch;
    let one = batch.len();
    let mut raw = Raw::hello(broker.address, 0);
    let append = |partition: u32| {
        let mut writer = Raw::hello(broker.address, -1);
        assert_eq!(writer.ask(&produce_one(1, target(&topic, partition), &batch)).any_error(), None);
    };
    for partition in 0..PARTITIONS {
        (0..BATCHES).for_each(|_| append(partition));
    }
    let shard_of = |partition: u32| topic.partitions[partition as usize].shard;
    let here: Vec<u32> = (0..PARTITIONS).filter(|partition| shard_of(*partition) == 0).collect();
    let there: Vec<u32> = (0..PARTITIONS).filter(|partition| shard_of(*partition) == 1).collect();
    assert!(!here.is_empty() && !there.is_empty());
    let end = BATCHES as u64;
    let all = here.len() + there.len();
    let terms = |max_bytes: usize, min_bytes: usize| FetchTerms {
        id: 7,
        deadline_ms: 0,
        max_wait_ms: 25_000,
        min_bytes: min_bytes as u32,
        max_bytes: max_bytes as u32,
    };
    // Offsets here and there, bytes of one entry, max and min of all, and how many batches come at once.
    let check = |what: &str,
                 raw: &mut Raw,
                 offsets: (u64, u64),
                 entry: usize,
                 max: usize,
                 min: usize,
                 batches: std::ops::RangeInclusive<usize>| {
        let offset = |partition: u32| if shard_of(partition) == 0 { offsets.0 } else { offsets.1 };
        let entries: Vec<_> = (0..PARTITIONS)
            .map(|partition| (target(&topic, partition), offset(partition), entry as u32))
            .collect();
        let began = Instant::now();
        let answer = raw.ask(&fetch_many(terms(max, min), &entries));
        let found = fetched_bytes(&answer);
        assert_eq!(answer.any_error(), None, "{what}");
        assert!(answer.fetched.iter().all(|(error, _)| error.is_none()), "{what}: {answer:?}");
        assert!(found.is_multiple_of(one) && batches.contains(&(found / one)), "{what}: {found} bytes");
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: it waited for its deadline");
    };
    let much = 1 << 20;
    check("all of it", &mut raw, (0, 0), much, much, 1, all * BATCHES..=all * BATCHES);
    check("one byte", &mut raw, (0, 0), much, 1, 1, 1..=1);
    check("less than one batch", &mut raw, (0, 0), much, one - 1, 1, 1..=1);
    check("one batch and a little", &mut raw, (0, 0), much, one + one / 2, 1, 1..=1);
    check("some of it", &mut raw, (0, 0), much, 20 * one, 1, 1..=20);
    check("to the last", &mut raw, (0, 0), much, 20 * one + 5, 20 * one, 20..=20);
    check("all from here", &mut raw, (0, end), much, 9 * one, 9 * one, 9..=9);
    check("all from there", &mut raw, (end, 0), much, 9 * one, 9 * one, 9..=9);
    check("one batch from there", &mut raw, (end, 0), much, 10, 10, 1..=1);
    check("one of each", &mut raw, (0, 0), 10, much, 1, all..=all);
    check("more than the entries may", &mut raw, (0, 0), one, much, much, all..=all);

    // At the end of all logs: as many bytes as were asked for, from whichever core.
    let entries: Vec<_> =
        (0..PARTITIONS).map(|partition| (target(&topic, partition), end, much as u32)).collect();
    raw.send(&fetch_many(terms(much, 3 * one), &entries)).expect("it reads");
    append(here[0]);
    append(there[0]);
    // Two batches are not enough: what is asked afterwards is answered before.
    assert_eq!(raw.ask(&question(77)).id, 77);
    append(there[there.len() - 1]);
    let answer = raw.answer().expect("it answers").expect("it does not close");
    assert_eq!((answer.id, answer.any_error()), (7, None));
    assert_eq!(fetched_bytes(&answer), 3 * one, "{answer:?}");
    block_on(async {
        let client = client(broker.address).await;
        // A wait that was won elsewhere is given up there.
        counter_is(&client, "parked_fetches", |parked| parked == 0).await;
        counter_is(&client, "reserved_reply_bytes", |bytes| bytes == 0).await;
    });
    broker.stop();
}

/// A request that its client has given up is not done, and its client is told.
#[test]
fn what_is_too_late_is_not_done() {
    const DEADLINE_MS: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(600);
    let directory = Directory::new();
    let broker = Serve::new(directory.path()).shards(2).start();
    let topic = block_on(async {
        let client = client(broker.address).await;
        create_topic(&client, "late", 2, &[]).await
    });
    let mut maker = Maker::new(1, 1);
    let (small, large) = (maker.batch(1, 100).batch, maker.batch(1, 100_000).batch);
    let mut begun = Vec::new();
    let mut polls = Vec::new();
    for place in &topic.partitions {
        let target = target(&topic, place.partition);
        let produce = |batch: &[u8], deadline_ms| {
            produce_within((3, deadline_ms), -1, &[(target, batch.len() as u32)], batch)
        };
        let read = |deadline_ms| {
            let (max_wait_ms, min_bytes, max_bytes) = (0, 1, 1000);
            let terms = FetchTerms { id: 3, deadline_ms, max_wait_ms, min_bytes, max_bytes };
            fetch_many(terms, &[(target, 0, 1000)])
        };
        for deadline_ms in [DEADLINE_MS, 0, 60_000] {
            // The frame, how much of it comes in time, and how many records it appends.
            let rows = [
                ("a small produce", produce(&small, deadline_ms), 20, 1),
                ("a large produce, its head cut", produce(&large, deadline_ms), 20, 1),
                ("a large produce", produce(&large, deadline_ms), 50_000, 1),
                ("a fetch", read(deadline_ms), 20, 0),
            ];
            for (shard, (what, frame, cut, records)) in [0, 1].into_iter().flat_map(|shard| {
                let rows = rows.clone();
                rows.into_iter().map(move |row| (shard, row))
            }) {
                let mut raw = Raw::hello(broker.address, shard);
                raw.send(&frame[..cut]).expect("it reads");
                begun.push((what, deadline_ms, raw, frame[cut..].to_vec(), records));
            }
        }
        for shard in [0, 1] {
            // A long poll ends before its client does.
            let terms = FetchTerms {
                id: 4,
                deadline_ms: 2000,
                max_wait_ms: 55_000,
                min_bytes: 1 << 20,
                max_bytes: 2 << 20,
            };
            let mut raw = Raw::hello(broker.address, shard);
            raw.send(&fetch_many(terms, &[(target, 0, 2 << 20)])).expect("it reads");
            polls.push((Instant::now(), raw));
        }
    }
    let (_, _, last, _, _) = begun.last().expect("there are rows");
    // What is awaited is that nothing comes.
    last.hears_something_within(PAUSE);
    let mut done = 0;
    for (what, deadline_ms, mut raw, rest, records) in begun {
        let answer = raw.ask(&rest);
        let late = deadline_ms == DEADLINE_MS;
        let expect = late.then_some(ErrorCode::TimedOut);
        assert_eq!((answer.id, answer.any_error()), (3, expect), "{what}, {deadline_ms} ms");
        done += if late { 0 } else { records };
    }
    for (began, mut raw) in polls {
        let answer = raw.answer().expect("it answers").expect("it does not close");
        assert_eq!((answer.id, answer.any_error()), (4, None));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
    let (records, late) = block_on(async {
        let client = client(broker.address).await;
        let latest = [(0, ringlog_client::OffsetSpec::Latest), (1, ringlog_client::OffsetSpec::Latest)];
        let ends = client.admin().list_offsets("late", &latest).await.expect("it answers");
        let status = client.admin().status().await.expect("it answers");
        (ends.iter().map(|end| end.offset).sum::<u64>(), counter(&status, "late_requests_total"))
    });
    assert_eq!(records, done, "what was refused is not there, what was not is");
    assert_eq!(late, 2 * 2 * 4);
    broker.stop();
}

/// A shard takes so many connections, whether it accepted them itself or was handed them.
#[test]
fn a_full_shard_takes_no_handed_connections() {
    const PLACES: usize = 6;
    let directory = Directory::new();
    let broker = embedded(&directory, |config| {
        config.shards = 2;
        config.capacity.connections_max = PLACES;
    });
    let address = broker.address();
    let ask = |shard: i32| {
        let mut raw = Raw::connect(address);
        raw.send(&hello(1, shard, 1)).expect("it reads");
        let answer = raw.answer().expect("it answers").expect("it does not close in silence");
        assert_eq!(answer.id, 1);
        (raw, answer.error)
    };
    let mut served: Vec<Raw> = (0..PLACES)
        .map(|_| {
            let (raw, error) = ask(1);
            assert_eq!(error, None);
            raw
        })
        .collect();
    // Which core accepts is the kernel's choice: some of these are handed over, some are not.
    for _ in 0..12 {
        let (mut raw, error) = ask(1);
        assert_eq!(error, Some(ErrorCode::TooManyConnections));
        assert!(matches!(raw.answer(), Ok(None)), "it is not closed");
        let (_raw, error) = ask(0);
        assert_eq!(error, None, "the other shard has room");
    }
    for raw in &mut served {
        assert_eq!(raw.ask(&question(9)).error, None);
    }
    served.pop();
    block_on(until("the place is free again", async || ask(1).1.is_none().then_some(())));
    broker.stop().expect("it stops in order");
}

/// What is said after the bad frame does not cost the peer its answer.
#[test]
fn the_answer_arrives_although_more_was_sent() {
    let directory = Directory::new();
    let broker = Serve::new(directory.path()).start();
    for (round, more_bytes) in [0, 1, 60_000, 500_000, 4 << 20].into_iter().cycle().take(40).enumerate() {
        let mut raw = Raw::hello(broker.address, -1);
        let mut bytes = [u32::MAX.to_le_bytes(), 16u32.to_le_bytes()].concat();
        bytes.resize(bytes.len() + more_bytes, 0xee);
        raw.send(&bytes).unwrap_or_else(|error| panic!("round {round}, {more_bytes} bytes: {error}"));
        let answer = raw.answer().expect("an answer").expect("an answer, not the end");
        assert_eq!(answer.error, Some(ErrorCode::FrameTooLarge), "round {round}");
        let end = raw.stream.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(end, Ok(0), "round {round}, {more_bytes} bytes: {:?}", ErrorKind::ConnectionReset);
    }
    // One who never ends is not listened to for ever.
    let mut raw = Raw::hello(broker.address, -1);
    raw.send(&[0xff; 8]).expect("it reads");
    let endless = [0; 1 << 16];
    while raw.send(&endless).is_ok() {}
    broker.stop();
}
