//! Fuzzes what a broker does with the bytes of a replication stream: prefix, verifier, every message.
//!
//! The input is taken twice: as a stream that starts with a frame, and as metadata alone with the right identifier and a
//! body that fits to it, which spares the fuzzer the lengths. Invariants: nothing panics or reads outside the input; the
//! batches of an accepted frame are its body; what is accepted comes out of our own writer as the same messages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::frame::{Aligned, PREFIX_BYTES, Prefix};
use schema::replication::{self, Frame, FrameWriter, Message};

const FRAME_LENGTH_LIMIT: usize = 64 << 10;
const MESSAGES_MAX: usize = 1024;

/// Sends the frame on, as a broker would that had its messages to say.
fn encoded_again(frame: &Frame<'_>, body: &[u8]) -> Vec<u8> {
    let mut writer = FrameWriter::default();
    for message in frame.messages(body) {
        match message {
            Message::Open(message) => writer.open(*message),
            Message::Reset(message) => writer.reset(*message),
            Message::Match(message) => writer.match_(*message),
            Message::Append(message, batches) => {
                assert_eq!(batches.len(), message.body_length() as usize);
                writer.append(*message);
            }
            Message::Watermarks(message) => writer.watermarks(*message),
            Message::Opened(message, epochs) => writer.opened(*message, epochs.iter().copied()),
            Message::Matched(message) => writer.matched(*message),
            Message::Acknowledgement(message) => writer.acknowledgement(*message),
            Message::Refusal(message) => writer.refusal(*message),
        }
    }
    assert_eq!(writer.body_bytes(), body.len());
    let mut out = Vec::new();
    writer.finish(&mut out);
    out
}

fn same(metadata: &[u8], body: &[u8]) {
    let mut aligned = Aligned::default();
    let Ok(frame) = replication::frame(aligned.align(metadata), body.len(), MESSAGES_MAX) else { return };
    let out = encoded_again(&frame, body);
    let prefix = Prefix::decode(*out.first_chunk().expect("a frame has a prefix"), 1 << 30)
        .expect("our own frame is sound");
    let again = &out[PREFIX_BYTES..PREFIX_BYTES + prefix.metadata_bytes];
    let mut room = Aligned::default();
    let again =
        replication::frame(room.align(again), body.len(), MESSAGES_MAX).expect("it has the same messages");
    assert!(frame.messages(body).eq(again.messages(body)));
}

fuzz_target!(|data: &[u8]| {
    if let Some((prefix, _)) = data.split_first_chunk::<PREFIX_BYTES>()
        && let Ok(prefix) = Prefix::decode(*prefix, FRAME_LENGTH_LIMIT)
        && let Some(whole) = data.get(..prefix.frame_bytes)
    {
        same(&whole[PREFIX_BYTES..PREFIX_BYTES + prefix.metadata_bytes], &whole[prefix.body_start()..]);
    }
    if data.len() >= 8 {
        let mut metadata = data.to_vec();
        metadata[4..8].copy_from_slice(replication::FRAME_IDENTIFIER.as_bytes());
        for body_bytes in [0, 8] {
            same(&metadata, &[7; 8][..body_bytes]);
        }
    }
});
