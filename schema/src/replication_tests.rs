//! Frames of replication: round trips, golden bytes, what is refused.

use super::*;
use crate::frame::{Aligned, PREFIX_BYTES, Prefix};

const TOPIC: u128 = 0x0102_0304_0506_0708_1112_1314_1516_1718;

fn opening(partition: u32) -> Opening {
    Opening::of(TOPIC, partition, 7, 9)
}

/// One message of each kind, appends of 3 and 5 bytes.
fn fill(writer: &mut FrameWriter) -> &'static [u8] {
    writer.open(Open::new(&opening(0), 11, 2, 0));
    writer.reset(Reset::new(&opening(1), 12));
    writer.match_(Match::new(&opening(2), 13, 0xfedc, 1, 0));
    writer.append(Append::new(&opening(3), 14, 15, 16, 6, 3));
    writer.append(Append::new(&opening(4), 17, 18, 19, 7, 5));
    writer.watermarks(Watermarks::new(&opening(5), 20, 21));
    let epochs = [EpochStart::new(0, 1, 0), EpochStart::new(22, 3, 0)];
    writer.opened(Opened::new(&opening(6), 23, 24, 25, 4, 2, 1, 0), epochs);
    writer.opened(Opened::new(&opening(7), 26, 27, 28, 5, 1, 0, 0), [EpochStart::new(29, 6, 0)]);
    writer.matched(Matched::new(&opening(8), 30));
    writer.acknowledgement(Acknowledgement::new(&opening(9), 31));
    writer.refusal(Refusal::new(&opening(10), 3, 0));
    b"abcdefgh"
}

fn encoded(fill: impl FnOnce(&mut FrameWriter) -> &'static [u8]) -> Vec<u8> {
    let mut writer = FrameWriter::default();
    let body = fill(&mut writer);
    assert_eq!(writer.body_bytes(), body.len());
    let mut out = Vec::new();
    writer.finish(&mut out);
    out.extend_from_slice(body);
    out
}

/// Metadata and body of an encoded frame.
fn parts(bytes: &[u8]) -> (&[u8], &[u8]) {
    let prefix = Prefix::decode(bytes[..PREFIX_BYTES].try_into().unwrap(), 1 << 20).unwrap();
    assert_eq!(prefix.frame_bytes, bytes.len());
    (&bytes[PREFIX_BYTES..PREFIX_BYTES + prefix.metadata_bytes], &bytes[prefix.body_start()..])
}

fn check(bytes: &[u8], messages_max: usize, check: impl FnOnce(Result<Frame<'_>, FrameError>, &[u8])) {
    let (metadata, body) = parts(bytes);
    let mut aligned = Aligned::default();
    check(frame(aligned.align(metadata), body.len(), messages_max), body);
}

#[test]
fn messages_come_out_in_the_order_in_which_they_went_in() {
    let bytes = encoded(fill);
    check(&bytes, 64, |frame, body| {
        let frame = frame.unwrap();
        assert_eq!(frame.len(), 11);
        let messages: Vec<Message<'_>> = frame.messages(body).collect();
        let partitions: Vec<u32> = messages.iter().map(|one| one.opening().partition()).collect();
        assert_eq!(partitions, (0..11).collect::<Vec<u32>>());
        for message in &messages {
            let opening = message.opening();
            assert_eq!((opening.topic(), opening.leader_epoch(), opening.number()), (TOPIC, 7, 9));
        }
        assert!(
            matches!(messages[0], Message::Open(open) if open.log_start() == 11 && open.generation() == 2)
        );
        assert!(matches!(messages[1], Message::Reset(reset) if reset.log_start() == 12));
        assert!(
            matches!(messages[2], Message::Match(one) if (one.to(), one.fingerprint(), one.checked()) == (13, 0xfedc, 1))
        );
        let Message::Append(append, batches) = messages[3] else { panic!("{:?}", messages[3]) };
        assert_eq!((append.base(), append.high_watermark(), append.log_start()), (14, 15, 16));
        assert_eq!((append.previous_epoch(), batches), (6, &b"abc"[..]));
        assert!(matches!(messages[4], Message::Append(append, b"defgh") if append.base() == 17));
        assert!(
            matches!(messages[5], Message::Watermarks(one) if (one.high_watermark(), one.log_start()) == (20, 21))
        );
        let Message::Opened(opened, epochs) = messages[6] else { panic!("{:?}", messages[6]) };
        assert_eq!((opened.broker_epoch(), opened.log_start(), opened.durable_end()), (23, 24, 25));
        assert_eq!((opened.generation(), opened.status()), (4, 1));
        let epochs: Vec<_> = epochs.iter().map(|one| (one.epoch(), one.start())).collect();
        assert_eq!(epochs, [(1, 0), (3, 22)]);
        let Message::Opened(_, epochs) = messages[7] else { panic!("{:?}", messages[7]) };
        assert_eq!(epochs.iter().map(|one| (one.epoch(), one.start())).collect::<Vec<_>>(), [(6, 29)]);
        assert!(matches!(messages[8], Message::Matched(one) if one.end() == 30));
        assert!(matches!(messages[9], Message::Acknowledgement(one) if one.durable_end() == 31));
        assert!(matches!(messages[10], Message::Refusal(one) if one.reason() == 3));
    });
}

#[test]
fn golden_bytes() {
    let golden = include_bytes!("../testdata/replication_frame.bin");
    let bytes = encoded(fill);
    assert_eq!(bytes, golden, "the encoding of a replication frame has changed");
}

#[test]
fn a_writer_is_as_new_after_each_frame() {
    let mut writer = FrameWriter::default();
    let mut first = Vec::new();
    fill(&mut writer);
    writer.finish(&mut first);
    assert!(writer.is_empty() && writer.body_bytes() == 0 && writer.takes(Kind::Open));
    let mut second = Vec::new();
    fill(&mut writer);
    writer.finish(&mut second);
    assert_eq!(first, second);
    // An empty one is a frame as well.
    let empty = encoded(|_| b"");
    check(&empty, 0, |frame, body| {
        let frame = frame.unwrap();
        assert!(frame.is_empty() && frame.messages(body).next().is_none());
    });
}

#[test]
fn what_would_be_handled_too_early_needs_another_frame() {
    let mut writer = FrameWriter::default();
    writer.append(Append::new(&opening(0), 0, 0, 0, 0, 1));
    let rows =
        [(Kind::Open, false), (Kind::Match, false), (Kind::Append, true), (Kind::Acknowledgement, true)];
    for (kind, takes) in rows {
        assert_eq!(writer.takes(kind), takes, "{kind:?}");
    }
}

#[test]
fn frames_that_do_not_sum_up_are_refused() {
    let good = encoded(fill);
    check(&good, 13, |frame, _| {
        assert!(matches!(frame, Err(FrameError::TooManyMessages { messages: 14, limit: 13 })))
    });
    let (metadata, body) = parts(&good);
    let mut aligned = Aligned::default();
    let metadata = aligned.align(metadata);
    for bytes in [0, body.len() - 1, body.len() + 1] {
        let refused = frame(metadata, bytes, 64).unwrap_err();
        assert_eq!(refused, FrameError::BodyDiffers { named: 8, body: bytes });
    }
    // The length of the first append, wherever it stands, made larger.
    let mut longer = metadata.to_vec();
    let mark = Append::new(&opening(3), 14, 15, 16, 6, 3).0;
    let at = longer.windows(mark.len()).position(|window| window == mark).unwrap() + mark.len() - 4;
    longer[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut room = Aligned::default();
    assert!(matches!(frame(room.align(&longer), 8, 64), Err(FrameError::BodyDiffers { .. })));
    // An opening that claims more epochs than there are.
    let mut claims = metadata.to_vec();
    let mark = Opened::new(&opening(7), 26, 27, 28, 5, 1, 0, 0).0;
    let at = claims.windows(mark.len()).position(|window| window == mark).unwrap() + mark.len() - 12;
    claims[at..at + 4].copy_from_slice(&2u32.to_le_bytes());
    assert_eq!(frame(room.align(&claims), 8, 64).unwrap_err(), FrameError::InvalidMetadata);
    // A request of a client.
    claims[4..8].copy_from_slice(crate::wire::REQUEST_IDENTIFIER.as_bytes());
    assert_eq!(
        frame(room.align(&claims), 8, 64).unwrap_err(),
        FrameError::WrongIdentifier { expected: FRAME_IDENTIFIER }
    );
}

#[test]
fn damaged_metadata_never_panics() {
    let bytes = encoded(fill);
    let (metadata, body) = parts(&bytes);
    let mut random = fastrand::Rng::with_seed(5);
    let mut room = Aligned::default();
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut damaged = metadata.to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..damaged.len());
            damaged[at] = random.u8(..);
        }
        damaged.truncate(random.usize(damaged.len() / 2..=damaged.len()));
        if let Ok(frame) = frame(room.align(&damaged), body.len(), 64) {
            accepted += frame.messages(body).map(|one| format!("{one:?}").len()).sum::<usize>().min(1);
        }
    }
    assert!(accepted > 0, "some damage is to values only");
}
