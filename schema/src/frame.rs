//! The frame: a length, FlatBuffers metadata, and an opaque body.
//!
//! ```text
//! u32  frame_length      bytes after this field, little-endian
//! u32  metadata_length
//!      metadata          FlatBuffer, root Request (RLQ1) or Response (RLS1)
//!      padding           zeros, to a multiple of 8
//!      body              record batches, back to back, unchanged
//! ```
//!
//! Batches never go into a FlatBuffer, so they are never copied into or out of one (the pattern of
//! Arrow's IPC messages). Lengths are checked before memory is taken; metadata is always verified.

use crate::wire;
use flatbuffers::{FlatBufferBuilder, VerifierOptions, WIPOffset};

/// Bytes of the two length fields.
pub const PREFIX_BYTES: usize = 8;

/// The least value of `frame_length`: the metadata length and the smallest FlatBuffer.
pub const FRAME_LENGTH_MIN: usize = 4 + 8;

/// Why bytes are not a frame of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is above the connection's limit; nothing was allocated.
    #[error("frame of {length} bytes, the limit here is {limit}")]
    TooLong {
        /// What the length field says.
        length: usize,
        /// What this connection accepts.
        limit: usize,
    },
    /// The length field is below the smallest frame.
    #[error("frame of {length} bytes is too short to hold metadata")]
    TooShort {
        /// What the length field says.
        length: usize,
    },
    /// The metadata would reach past the frame.
    #[error("metadata of {metadata} bytes in a frame of {length}")]
    MetadataTooLong {
        /// What the metadata length field says.
        metadata: usize,
        /// What the length field says.
        length: usize,
    },
    /// The file identifier is not the expected one.
    #[error("the metadata is not a {expected} buffer")]
    WrongIdentifier {
        /// `RLQ1`, `RLS1` or `RLR1`.
        expected: &'static str,
    },
    /// The FlatBuffers verifier refused it.
    #[error("the metadata is not a valid FlatBuffer")]
    InvalidMetadata,
    /// More messages than a frame of a replication stream may have.
    #[error("{messages} messages in one frame, the limit is {limit}")]
    TooManyMessages {
        /// What the frame has, epochs included.
        messages: usize,
        /// What is accepted.
        limit: usize,
    },
    /// The lengths of the entries do not sum up to the body.
    #[error("the entries name {named} bytes, the body has {body}")]
    BodyDiffers {
        /// The sum of the entries.
        named: u64,
        /// What came.
        body: usize,
    },
}

/// The sizes of a frame, known once its first eight bytes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Bytes of the whole frame, its length field included.
    pub frame_bytes: usize,
    /// Bytes of the FlatBuffer, without padding.
    pub metadata_bytes: usize,
}

impl Prefix {
    /// Decodes and checks the two length fields against `limit` (the largest permitted `frame_length`).
    pub fn decode(bytes: [u8; PREFIX_BYTES], limit: usize) -> Result<Self, FrameError> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let metadata = u32::from_le_bytes([e, f, g, h]) as usize;
        if length > limit {
            return Err(FrameError::TooLong { length, limit });
        }
        if length < FRAME_LENGTH_MIN {
            return Err(FrameError::TooShort { length });
        }
        if metadata > length || padded(metadata) + 4 > length {
            return Err(FrameError::MetadataTooLong { metadata, length });
        }
        Ok(Self { frame_bytes: length + 4, metadata_bytes: metadata })
    }

    /// Where the body starts, from the frame's first byte.
    pub fn body_start(&self) -> usize {
        PREFIX_BYTES + padded(self.metadata_bytes)
    }

    /// Bytes of the body.
    pub fn body_bytes(&self) -> usize {
        self.frame_bytes - self.body_start()
    }
}

/// `length` rounded up to the alignment of the body.
pub const fn padded(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// Appends the frame's head (lengths, metadata, padding) for a body of `body_bytes`, which the caller
/// sends right after.
pub fn encode_head(out: &mut Vec<u8>, metadata: &[u8], body_bytes: usize) {
    let length = 4 + padded(metadata.len()) + body_bytes;
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&(metadata.len() as u32).to_le_bytes());
    out.extend_from_slice(metadata);
    out.resize(out.len() + padded(metadata.len()) - metadata.len(), 0);
}

/// Finishes `builder` as a request and appends the frame's head to `out`.
pub fn finish_request(
    out: &mut Vec<u8>,
    builder: &mut FlatBufferBuilder<'_>,
    root: WIPOffset<wire::Request<'_>>,
    body_bytes: usize,
) {
    builder.finish(root, Some(wire::REQUEST_IDENTIFIER));
    encode_head(out, builder.finished_data(), body_bytes);
}

/// The file identifier of a response.
pub const RESPONSE_IDENTIFIER: &str = "RLS1";

/// Finishes `builder` as a response and appends the frame's head to `out`.
pub fn finish_response(
    out: &mut Vec<u8>,
    builder: &mut FlatBufferBuilder<'_>,
    root: WIPOffset<wire::Response<'_>>,
    body_bytes: usize,
) {
    builder.finish(root, Some(RESPONSE_IDENTIFIER));
    encode_head(out, builder.finished_data(), body_bytes);
}

/// Verifies the metadata of a request. `tables_max` bounds the verifier's work.
///
/// `metadata` must be 8-aligned in memory, or valid buffers are refused: see [`Aligned`].
pub fn request(metadata: &[u8], tables_max: usize) -> Result<wire::Request<'_>, FrameError> {
    check_identifier(metadata, wire::REQUEST_IDENTIFIER)?;
    wire::root_as_request_with_opts(&verifier(tables_max), metadata).map_err(|_| FrameError::InvalidMetadata)
}

/// Verifies the metadata of a response, as [`request`] does.
pub fn response(metadata: &[u8], tables_max: usize) -> Result<wire::Response<'_>, FrameError> {
    check_identifier(metadata, RESPONSE_IDENTIFIER)?;
    flatbuffers::root_with_opts::<wire::Response<'_>>(&verifier(tables_max), metadata)
        .map_err(|_| FrameError::InvalidMetadata)
}

pub(crate) fn check_identifier(metadata: &[u8], expected: &'static str) -> Result<(), FrameError> {
    if metadata.get(4..8) == Some(expected.as_bytes()) {
        Ok(())
    } else {
        Err(FrameError::WrongIdentifier { expected })
    }
}

pub(crate) fn verifier(tables_max: usize) -> VerifierOptions {
    VerifierOptions {
        max_depth: 8,
        max_tables: tables_max,
        max_apparent_size: 1 << 28,
        ignore_missing_null_terminator: false,
    }
}

/// Memory for metadata at the alignment that the verifier insists on, reused from frame to frame.
#[derive(Default)]
pub struct Aligned {
    words: Vec<u64>,
}

impl Aligned {
    /// `bytes` itself where it is aligned already, else a copy of it in this buffer.
    pub fn align<'a>(&'a mut self, bytes: &'a [u8]) -> &'a [u8] {
        if (bytes.as_ptr() as usize).is_multiple_of(8) {
            return bytes;
        }
        let target = self.take(bytes.len());
        target.copy_from_slice(bytes);
        target
    }

    /// Room for `length` bytes, to read into.
    pub fn take(&mut self, length: usize) -> &mut [u8] {
        let words = length.div_ceil(8);
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        // SAFETY: the vector holds at least `words` initialised u64, which are `length` bytes or more,
        // and every bit pattern is a valid u8.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast::<u8>(), length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(id: u64) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let api = wire::HelloRequest::create(
            &mut builder,
            &wire::HelloRequestArgs { shard: 3, protocol_version: 1, ..Default::default() },
        );
        let root = wire::Request::create(
            &mut builder,
            &wire::RequestArgs {
                id,
                api_type: wire::RequestApi::HelloRequest,
                api: Some(api.as_union_value()),
                ..Default::default()
            },
        );
        let mut out = Vec::new();
        finish_request(&mut out, &mut builder, root, 5);
        out.extend_from_slice(b"body!");
        out
    }

    #[test]
    fn a_request_survives_the_frame() {
        let frame = hello(77);
        let prefix = Prefix::decode(frame[..8].try_into().unwrap(), 1 << 20).unwrap();
        assert_eq!(prefix.frame_bytes, frame.len());
        assert_eq!(&frame[prefix.body_start()..], b"body!");
        assert_eq!(prefix.body_bytes(), 5);
        let mut aligned = Aligned::default();
        let metadata = &frame[8..8 + prefix.metadata_bytes];
        let request = request(aligned.align(metadata), 64).unwrap();
        assert_eq!(request.id(), 77);
        assert_eq!(request.api_as_hello_request().unwrap().shard(), 3);
    }

    #[test]
    fn hostile_lengths_are_refused_before_memory_is_taken() {
        let rows: [(u32, u32, &str); 6] = [
            (1 << 31, 8, "the limit"),
            (u32::MAX, u32::MAX, "the limit"),
            (0, 0, "too short"),
            (11, 4, "too short"),
            (64, 61, "metadata of"),
            (64, u32::MAX, "metadata of"),
        ];
        for (length, metadata, expect) in rows {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            bytes[4..].copy_from_slice(&metadata.to_le_bytes());
            let error = Prefix::decode(bytes, 1 << 20).unwrap_err().to_string();
            assert!(error.contains(expect), "{length} {metadata}: {error}");
        }
    }

    #[test]
    fn a_buffer_of_another_kind_is_refused() {
        let frame = hello(1);
        let mut aligned = Aligned::default();
        let metadata = aligned.align(&frame[8..frame.len() - 5]);
        assert!(matches!(response(metadata, 64), Err(FrameError::WrongIdentifier { .. })));
    }
}
