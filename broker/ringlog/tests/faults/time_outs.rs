//! Peers that are too slow, or gone without a word: told where they can hear it, closed, their memory
//! given back. On an embedded broker, because only there the limits can be lowered.

use crate::support::neighbour::Neighbour;
use crate::support::raw::{Raw, Target, fetch, hello, produce_one, question};
use crate::support::records::Maker;
use crate::support::skipped::skipped;
use crate::support::{Directory, block_on, client, counter_is, create_topic, embedded};
use ringlog_client::ErrorCode;
use server::broker::{Broker, TimeOuts};
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_millis(1500);

fn start(directory: &Directory) -> Broker {
    let probe_after = Duration::from_secs(1);
    let time_outs = TimeOuts { hello: LIMIT, frame: LIMIT, replies: LIMIT, probe_after };
    embedded(directory, |config| config.time_outs = time_outs)
}

/// Says `bytes` one by one, for as long as the broker listens.
fn drip(raw: &mut Raw, bytes: &[u8]) {
    for byte in bytes {
        if raw.send(&[*byte]).is_err() || raw.hears_something_within(LIMIT / 5) {
            return;
        }
    }
}

/// The broker says why, and closes.
#[track_caller]
fn is_told_and_closed(what: &str, mut raw: Raw, expect: ErrorCode) {
    let began = Instant::now();
    let answer =
        raw.answer().expect("an answer or the end").unwrap_or_else(|| panic!("{what}: closed in silence"));
    assert_eq!(answer.error, Some(expect), "{what}: {answer:?}");
    assert!(answer.message.contains(&format!("{LIMIT:?}")), "{what}: {}", answer.message);
    assert!(matches!(raw.answer(), Ok(None)), "{what}: it is not closed");
    assert!(began.elapsed() < Duration::from_secs(20), "{what}: closed after {:?}", began.elapsed());
}

#[test]
fn slow_and_silent_peers_are_let_go() {
    let directory = Directory::new();
    let broker = start(&directory);
    let address = broker.address();
    let neighbour = Neighbour::start(address);
    let topic = block_on(async {
        let client = client(address).await;
        create_topic(&client, "slow", 1, &[("max.message.bytes", "8388608")]).await
    });
    let target = Target { topic: topic.id.0, partition: 0, epoch: topic.partitions[0].leader_epoch };
    let mut maker = Maker::new(1, 1);
    let small = produce_one(5, target, &maker.batch(3, 100).batch);
    let large = produce_one(6, target, &maker.batch(3, 100_000).batch);
    let batch = maker.batch(5, 100_000).batch;
    let whole = crate::support::raw::produce(7, -1, &[(target, batch.len() as u32), (target, 0)], &batch);

    // Nothing at all; half of a Hello; a Hello byte by byte, each in time by itself.
    let silent = Raw::connect(address);
    let mut half = Raw::connect(address);
    half.send(&hello(1, -1, 1)[..9]).expect("it listens");
    let mut dripping = Raw::connect(address);
    drip(&mut dripping, &hello(1, -1, 1));
    is_told_and_closed("silence before Hello", silent, ErrorCode::HelloRequired);
    is_told_and_closed("half a Hello", half, ErrorCode::HelloRequired);
    is_told_and_closed("a dripping Hello", dripping, ErrorCode::HelloRequired);

    // After it: silence is permitted, half a frame is not, wherever it is cut.
    let mut idle = Raw::hello(address, -1);
    let cuts = [
        (&small, 3),
        (&small, 30),
        (&small, small.len() - 1),
        (&large, 200),
        (&large, 90_000),
        (&whole, 100_000),
    ];
    let cut: Vec<Raw> = cuts
        .iter()
        .map(|(frame, bytes)| {
            let mut raw = Raw::hello(address, -1);
            raw.send(&frame[..*bytes]).expect("it listens");
            raw
        })
        .collect();
    let mut dripping = Raw::hello(address, -1);
    drip(&mut dripping, &small);
    is_told_and_closed("a dripping frame", dripping, ErrorCode::InvalidFrame);
    for (raw, (frame, bytes)) in cut.into_iter().zip(cuts) {
        is_told_and_closed(&format!("{bytes} of {} bytes", frame.len()), raw, ErrorCode::InvalidFrame);
    }
    assert_eq!(idle.ask(&question(9)).error, None, "an idle connection was closed");

    // One that goes on and on is not slow, although a frame of it is always under way.
    let mut busy = Raw::hello(address, -1);
    let mut reading = busy.stream.try_clone().expect("a socket");
    let draining = std::thread::spawn(move || {
        let mut bytes = [0; 1 << 16];
        while reading.read(&mut bytes).is_ok_and(|read| read > 0) {}
    });
    let stream: Vec<u8> = std::iter::repeat_n(question(10), 40).flatten().collect();
    let (mut at, began) = (0, Instant::now());
    while began.elapsed() < LIMIT * 3 {
        // Each piece ends within a frame.
        let end = (at + 1001).min(stream.len() - 1);
        busy.send(&stream[at..end]).expect("it is not closed");
        at = if end == stream.len() - 1 {
            busy.send(&stream[end..]).expect("it is not closed");
            busy.send(&stream[..5]).expect("it is not closed");
            5
        } else {
            end
        };
    }
    busy.stream.shutdown(Shutdown::Both).expect("it is open");
    draining.join().expect("it ended");

    // One that asks and never reads: closed, its replies freed.
    let mut full = Raw::hello(address, -1);
    let mut writer = Raw::hello(address, -1);
    for _ in 0..4 {
        let answer = writer.ask(&produce_one(11, target, &maker.batch(1, 1 << 20).batch));
        assert_eq!(answer.any_error(), None);
    }
    full.stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a socket");
    for id in 0..200 {
        // Muted, it does not listen any more.
        if full.send(&fetch(id, target, 0, 0, 4 << 20)).is_err() {
            break;
        }
    }
    block_on(async {
        let client = client(address).await;
        counter_is(&client, "reply_bytes", |bytes| bytes > 0).await;
        counter_is(&client, "reply_bytes", |bytes| bytes == 0).await;
        counter_is(&client, "timed_out_connections_total", |closed| closed >= 11).await;
    });

    // One whose host is gone: no end, no reset, nothing.
    if let Some(why) = vanish(Raw::hello(address, -1)) {
        skipped(&format!("a peer that vanishes: {why}"));
    }
    drop((idle, writer, full));
    let records = neighbour.finish();
    block_on(async {
        let client = client(address).await;
        // Only this client's own are left.
        counter_is(&client, "connections_open", |open| open <= 2).await;
        counter_is(&client, "in_flight_bytes", |bytes| bytes < 1000).await;
    });
    println!("time-outs: all let go; the neighbour moved {records} records meanwhile");
    broker.stop().expect("it stops in order");
}

/// Closes the socket without telling the peer; why not, if that is not permitted.
fn vanish(raw: Raw) -> Option<std::io::Error> {
    let on: libc::c_int = 1;
    // SAFETY: sets an option of an open socket from an integer that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            raw.stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    (set != 0).then(std::io::Error::last_os_error)
}
