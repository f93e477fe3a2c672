//! Why bytes are not a record batch: one variant per field, with what was found and what is right.
//!
//! Small and `Copy`, because every decoded record returns it in a `Result`. Owned by whoever receives
//! it; mapping it to a wire code is the broker's part ([`BatchError::is_damage`] tells the two kinds
//! apart). Absent on purpose: offsets and topics, which the caller knows.

use super::{Compression, HEADER_BYTES, LENGTH_END, MAGIC};

/// What is wrong with a batch or one of its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than a header.
    #[error("batch header of {found} bytes, expected {HEADER_BYTES}")]
    HeaderTruncated {
        /// Bytes that are there.
        found: usize,
    },
    /// Another version of the layout.
    #[error("magic {found}, expected {MAGIC}")]
    Magic {
        /// The magic byte.
        found: i8,
    },
    /// The length field is too small for the header.
    #[error("batch length {found}, expected at least {}", HEADER_BYTES - LENGTH_END)]
    Length {
        /// The length field.
        found: i32,
    },
    /// A negative base offset.
    #[error("base offset {found}, expected at least 0")]
    BaseOffset {
        /// The field.
        found: i64,
    },
    /// The batch is longer than its limit.
    #[error("batch of {found} bytes, expected at most {max}")]
    TooLarge {
        /// Bytes of the whole batch, as its header says.
        found: usize,
        /// The limit in force.
        max: usize,
    },
    /// The batch is longer than the bytes that are there.
    #[error("batch cut off at {found} bytes, expected {expected}")]
    Truncated {
        /// Bytes that are there.
        found: usize,
        /// Bytes of the whole batch, as its header says.
        expected: usize,
    },
    /// More bytes than the batch has.
    #[error("{found} bytes for one batch, expected {expected}")]
    TrailingBytes {
        /// Bytes that are there.
        found: usize,
        /// Bytes of the whole batch, as its header says.
        expected: usize,
    },
    /// The bytes are not the ones that the CRC was made from.
    #[error("CRC-32C {found:#010x} in the header, expected {expected:#010x} from the bytes")]
    Crc {
        /// What the header says.
        found: u32,
        /// What the bytes give.
        expected: u32,
    },
    /// A compression that does not exist.
    #[error("compression {found}, expected 0 to 4")]
    Compression {
        /// The three bits.
        found: u16,
    },
    /// The batch is compressed where plain records are needed.
    #[error("records compressed with {0:?}, expected uncompressed ones")]
    Compressed(Compression),
    /// A producer sent a control batch.
    #[error("control flag 1, expected 0 from a producer")]
    Control,
    /// A record count that cannot be.
    #[error("record count {found}, expected at least {min}")]
    RecordCount {
        /// The field.
        found: i32,
        /// The least permitted value.
        min: i32,
    },
    /// The last offset delta contradicts the record count, or is negative.
    #[error("last offset delta {found}, expected {expected}")]
    LastOffsetDelta {
        /// The field.
        found: i64,
        /// Record count − 1 (0 where the field is negative).
        expected: u32,
    },
    /// The greatest timestamp is below the first one.
    #[error("max timestamp {found}, expected at least the base timestamp {base}")]
    MaxTimestamp {
        /// The field, in ms.
        found: i64,
        /// The base timestamp, in ms.
        base: i64,
    },
    /// Producer id, epoch and sequence are neither all there nor all absent.
    #[error(
        "producer id {id}, epoch {epoch}, base sequence {sequence}, \
         expected all at least 0, or id and sequence -1"
    )]
    Producer {
        /// The producer id.
        id: i64,
        /// The producer epoch.
        epoch: i16,
        /// The base sequence.
        sequence: i32,
    },
    /// A variable-length number that does not end, or is too great for its field.
    #[error("record {record}: {field} is cut off or over long, expected a varint of at most {max} bytes")]
    Varint {
        /// Index of the record in its batch.
        record: u32,
        /// The field of the record.
        field: &'static str,
        /// The most bytes that the field may have.
        max: u8,
    },
    /// A length that is negative or reaches past the record or the batch.
    #[error("record {record}: {field} {found}, expected {min} to {max}")]
    FieldLength {
        /// Index of the record in its batch.
        record: u32,
        /// The field of the record.
        field: &'static str,
        /// The length field.
        found: i32,
        /// The least permitted value: -1 where null is permitted.
        min: i8,
        /// The most permitted value: what is left.
        max: u32,
    },
    /// The offset delta does not rise or passes the batch's last.
    #[error("record {record}: offset delta {found}, expected {min} to {max}")]
    OffsetDelta {
        /// Index of the record in its batch.
        record: u32,
        /// The field.
        found: i32,
        /// One more than the record before.
        min: u32,
        /// The batch's last offset delta.
        max: u32,
    },
    /// Bytes after the last header of a record.
    #[error("record {record}: {found} bytes after its last header, expected 0")]
    RecordTrailingBytes {
        /// Index of the record in its batch.
        record: u32,
        /// Bytes that are left.
        found: usize,
    },
    /// A header key that is not text.
    #[error("record {record}: header key is not UTF-8 from byte {valid_up_to} on")]
    HeaderKey {
        /// Index of the record in its batch.
        record: u32,
        /// How many bytes of the key are UTF-8.
        valid_up_to: usize,
    },
    /// Bytes after the last record.
    #[error("{found} bytes after record {records} of {records}, expected 0")]
    RecordsTrailingBytes {
        /// Bytes that are left.
        found: usize,
        /// The batch's record count.
        records: u32,
    },
}

impl BatchError {
    /// Whether the bytes were damaged on the way or on disk, so that sending the same batch again can
    /// help; otherwise whoever made the batch made it wrong.
    pub fn is_damage(&self) -> bool {
        matches!(self, BatchError::Crc { .. })
    }
}

const _: () = assert!(size_of::<BatchError>() <= 40);
