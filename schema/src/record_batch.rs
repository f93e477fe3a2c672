//! The record batch: Kafka's record batch v2, the one layout on the wire, on disk and in replication.
//!
//! ```text
//!  0 i64 base offset            27 i64 base timestamp, ms
//!  8 i32 length after itself    35 i64 max timestamp, ms
//! 12 i32 leader epoch           43 i64 producer id          -1 = none
//! 16 i8  magic = 2              51 i16 producer epoch
//! 17 u32 CRC-32C of 21..end     53 i32 base sequence        -1 = none
//! 21 i16 attributes             57 i32 record count
//! 23 i32 last offset delta      61 records, compressed as a whole or not at all
//! ```
//!
//! All numbers are big-endian. Source of the format: the Kafka protocol guide, "Record Batch". What the
//! broker fills in (base offset, leader epoch) stands before the CRC's range, so that filling it in
//! costs nothing; only log-append time makes the broker compute a CRC again.
//!
//! Owned by nobody: plain functions over borrowed bytes; a [`BatchBuilder`] belongs to whoever fills it.
//!
//! Invariants: no decoder here allocates or panics, whatever the bytes. The CRC is checked before any
//! field that it covers is judged, so damage on the way is [`BatchError::Crc`] (send again) and never
//! mistaken for a wrong producer.
//!
//! Absent on purpose: decompression (`compression` has the codecs; brokers pass compressed batches
//! unchanged), the older magics 0 and 1, looking into records on the produce path, control batches from
//! producers.

mod builder;
mod error;
mod records;
mod rewrite;
mod varint;

pub use builder::{BatchBuilder, Producer};
pub use error::BatchError;
pub use records::{Headers, Record, Records, records};
pub use rewrite::retain;

/// Bytes of the header; the records follow.
pub const HEADER_BYTES: usize = 61;
/// First byte that the CRC covers; the range goes to the end of the batch.
pub const CRC_START: usize = 21;
/// The producer id of a batch from a producer without one; its base sequence is -1 too.
pub const NO_PRODUCER: i64 = -1;

/// The one supported value of the magic byte.
pub const MAGIC: i8 = 2;
/// Bytes of base offset and length, which the length field does not count.
pub const LENGTH_END: usize = 12;

/// Where each field starts, from the batch's first byte.
mod at {
    pub const BASE_OFFSET: usize = 0;
    pub const LENGTH: usize = 8;
    pub const LEADER_EPOCH: usize = 12;
    pub const MAGIC: usize = 16;
    pub const CRC: usize = 17;
    pub const ATTRIBUTES: usize = 21;
    pub const LAST_OFFSET_DELTA: usize = 23;
    pub const BASE_TIMESTAMP: usize = 27;
    pub const MAX_TIMESTAMP: usize = 35;
    pub const PRODUCER_ID: usize = 43;
    pub const PRODUCER_EPOCH: usize = 51;
    pub const BASE_SEQUENCE: usize = 53;
    pub const RECORD_COUNT: usize = 57;
}

const _: () = assert!(at::ATTRIBUTES == CRC_START && at::CRC + 4 == CRC_START);
const _: () = assert!(at::RECORD_COUNT + 4 == HEADER_BYTES && at::LENGTH + 4 == LENGTH_END);

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u16)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// gzip.
    Gzip = 1,
    /// Snappy.
    Snappy = 2,
    /// LZ4 frame.
    Lz4 = 3,
    /// Zstandard.
    Zstd = 4,
}

impl Compression {
    /// Its name in settings and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    fn bits(self) -> u16 {
        self as u16
    }
}

impl std::str::FromStr for Compression {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let kinds = [Self::None, Self::Lz4, Self::Zstd, Self::Snappy, Self::Gzip];
        let found = kinds.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| format!("write one of {}", kinds.map(Self::name).join(", ")))
    }
}

/// Who set the timestamps of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer, record by record.
    CreateTime,
    /// The broker: every record has the batch's max timestamp.
    LogAppendTime,
}

/// The attribute bits of a batch: 0–2 compression, 3 timestamp type, 4 transactional, 5 control,
/// 6 delete horizon; the rest is unused and passed on unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes(u16);

impl Attributes {
    const COMPRESSION: u16 = 0b111;
    const LOG_APPEND_TIME: u16 = 1 << 3;
    const TRANSACTIONAL: u16 = 1 << 4;
    const CONTROL: u16 = 1 << 5;
    const DELETE_HORIZON: u16 = 1 << 6;

    /// The attributes with exactly these bits.
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// All sixteen bits.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// The compression, or an error for the numbers 5 to 7.
    pub fn compression(self) -> Result<Compression, BatchError> {
        match self.0 & Self::COMPRESSION {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Gzip),
            2 => Ok(Compression::Snappy),
            3 => Ok(Compression::Lz4),
            4 => Ok(Compression::Zstd),
            found => Err(BatchError::Compression { found }),
        }
    }

    /// Whether the records are compressed, if only by something that [`Self::compression`] does not know.
    pub fn is_compressed(self) -> bool {
        self.0 & Self::COMPRESSION != 0
    }

    /// Who set the timestamps.
    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & Self::LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// Whether compaction has put the time from which on its tombstones may go into the base timestamp; the
    /// records count from there.
    pub fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }

    /// Whether the batch holds a marker made by a broker instead of a user's records.
    pub fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }
}

/// The decoded header of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset of the first record (of the first there was, if compaction removed it).
    pub base_offset: u64,
    /// Bytes of the whole batch, base offset and length included.
    pub batch_bytes: usize,
    /// Epoch of the leader that appended it; what a producer puts here (0 or all ones) means nothing.
    pub leader_epoch: u32,
    /// CRC-32C of everything from [`CRC_START`], as the batch says.
    pub crc: u32,
    /// Compression, timestamp type, transactional, control.
    pub attributes: Attributes,
    /// Last offset − base offset; compaction leaves it as it was.
    pub last_offset_delta: u32,
    /// What the records' timestamps count from.
    pub base_timestamp_ms: i64,
    /// Greatest timestamp of the batch, or the append time.
    pub max_timestamp_ms: i64,
    /// The producer, or [`NO_PRODUCER`].
    pub producer_id: i64,
    /// The producer's epoch, -1 without a producer.
    pub producer_epoch: i16,
    /// Sequence of the first record, -1 without a producer.
    pub base_sequence: i32,
    /// Records that are in the batch; 0 only after compaction.
    pub record_count: u32,
}

impl Header {
    /// Decodes the first [`HEADER_BYTES`] of `bytes`, which may be longer or shorter than the batch.
    ///
    /// Checks what every batch, also a compacted or damaged one on disk, must satisfy to be walked:
    /// magic, a length that holds the header, and no negative offset, delta or count. Checks neither
    /// the CRC ([`verify`]) nor what a producer promises ([`validate_produced`]).
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Header, BatchError> {
        let bytes = header_of(bytes)?;
        let (base_offset, batch_bytes) = frame_of(bytes)?;
        fields_of(bytes, base_offset, batch_bytes)
    }

    /// The offset after the last record: base + last offset delta + 1.
    pub fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.last_offset_delta) + 1
    }
}

/// Checks a batch that a producer sent, without decoding its records: the length is exactly
/// `bytes.len()` and at most `max_bytes`, magic, CRC, known compression, no control flag, at least one
/// record, last offset delta = records − 1, max timestamp ≥ base timestamp (unless log-append time),
/// and producer id, epoch and sequence all there or all absent. Costs one CRC over the bytes.
pub fn validate_produced(bytes: &[u8], max_bytes: usize) -> Result<Header, BatchError> {
    let header = header_of(bytes)?;
    let (base_offset, batch_bytes) = sized_frame_of(header, bytes.len(), max_bytes)?;
    check_crc(header, crc32c::crc32c(&bytes[CRC_START..]))?;
    check_produced(fields_of(header, base_offset, batch_bytes)?)
}

/// [`validate_produced`] for a caller that computed `crc` (CRC-32C from [`CRC_START`] to the end) while
/// it received the batch: `bytes_header` holds at least the header, `total_bytes` arrived in all.
pub fn validate_produced_with_crc(
    bytes_header: &[u8],
    total_bytes: usize,
    crc: u32,
    max_bytes: usize,
) -> Result<Header, BatchError> {
    let header = header_of(bytes_header)?;
    let (base_offset, batch_bytes) = sized_frame_of(header, total_bytes, max_bytes)?;
    check_crc(header, crc)?;
    check_produced(fields_of(header, base_offset, batch_bytes)?)
}

/// Checks one stored or fetched batch: exact length, magic, CRC. Unlike [`validate_produced`] it accepts
/// what brokers make: compacted and control batches.
pub fn verify(batch: &[u8]) -> Result<Header, BatchError> {
    let header = header_of(batch)?;
    let (base_offset, batch_bytes) = sized_frame_of(header, batch.len(), usize::MAX)?;
    check_crc(header, crc32c::crc32c(&batch[CRC_START..]))?;
    fields_of(header, base_offset, batch_bytes)
}

/// From this size on, combining checksums is cheaper than reading the batch again.
const COMBINE_BYTES_MIN: usize = 8 * 1024;

/// The CRC-32C of some bytes, whose own is `crc`, followed by `batch`. `verified` is the batch's own, of
/// everything from [`CRC_START`], if it is known to be true: it stands for the bytes that it covers.
#[inline]
pub fn extend_crc(crc: u32, batch: &[u8], verified: Option<u32>) -> u32 {
    match verified {
        Some(verified) if batch.len() >= COMBINE_BYTES_MIN => {
            let (head, covered) = batch.split_at(CRC_START);
            crate::crc::combine(crc32c::crc32c_append(crc, head), verified, covered.len())
        }
        _ => crc32c::crc32c_append(crc, batch),
    }
}

/// Sets the base offset in place; the CRC does not cover it.
///
/// # Panics
/// On fewer bytes than a header: `batch` has been validated.
pub fn set_base_offset(batch: &mut [u8], offset: u64) {
    assert!(batch.len() >= HEADER_BYTES, "a batch has {HEADER_BYTES} bytes or more, not {}", batch.len());
    assert!(i64::try_from(offset).is_ok(), "offset {offset} does not fit the batch's i64");
    put(batch, at::BASE_OFFSET, offset.to_be_bytes());
}

/// Sets the leader epoch in place; the CRC does not cover it.
///
/// # Panics
/// On fewer bytes than a header: `batch` has been validated.
pub fn set_leader_epoch(batch: &mut [u8], epoch: u32) {
    assert!(batch.len() >= HEADER_BYTES, "a batch has {HEADER_BYTES} bytes or more, not {}", batch.len());
    put(batch, at::LEADER_EPOCH, epoch.to_be_bytes());
}

/// Makes the batch one of log-append time: sets the timestamp type and the max timestamp in place and
/// computes the CRC again, which costs one pass over the bytes.
///
/// # Panics
/// On fewer bytes than a header: `batch` is exactly one validated batch.
pub fn set_log_append_time(batch: &mut [u8], append_time_ms: i64) {
    assert!(batch.len() >= HEADER_BYTES, "a batch has {HEADER_BYTES} bytes or more, not {}", batch.len());
    let attributes = u16::from_be_bytes([batch[at::ATTRIBUTES], batch[at::ATTRIBUTES + 1]]);
    put(batch, at::ATTRIBUTES, (attributes | Attributes::LOG_APPEND_TIME).to_be_bytes());
    put(batch, at::MAX_TIMESTAMP, append_time_ms.to_be_bytes());
    seal(batch);
}

/// Makes `producer` the one of this batch, in place, and computes the CRC again, which costs one pass over the
/// bytes.
///
/// # Panics
/// On fewer bytes than a header: `batch` is exactly one sound batch.
pub fn set_producer(batch: &mut [u8], producer: Producer) {
    assert!(batch.len() >= HEADER_BYTES, "a batch has {HEADER_BYTES} bytes or more, not {}", batch.len());
    put(batch, at::PRODUCER_ID, producer.id.to_be_bytes());
    put(batch, at::PRODUCER_EPOCH, producer.epoch.to_be_bytes());
    put(batch, at::BASE_SEQUENCE, producer.base_sequence.to_be_bytes());
    seal(batch);
}

/// Makes `batch`, which has other records behind room for a header, the counterpart of `original`: the same
/// header with this compression, this length and the CRC of the new records.
///
/// # Panics
/// On fewer bytes than a header in either.
pub fn set_records(batch: &mut [u8], original: &[u8], compression: Compression) {
    assert!(batch.len() >= HEADER_BYTES, "a batch has {HEADER_BYTES} bytes or more, not {}", batch.len());
    batch[..HEADER_BYTES].copy_from_slice(&original[..HEADER_BYTES]);
    let length = (batch.len() - LENGTH_END) as i32;
    put(batch, at::LENGTH, length.to_be_bytes());
    let attributes = u16::from_be_bytes([batch[at::ATTRIBUTES], batch[at::ATTRIBUTES + 1]]);
    let attributes = attributes & !Attributes::COMPRESSION | compression.bits();
    put(batch, at::ATTRIBUTES, attributes.to_be_bytes());
    seal(batch);
}

/// Splits batches that stand back to back. Checks of each only what [`Header::decode`] checks; a
/// truncated last batch is an error, and nothing follows an error.
pub fn batches(bytes: &[u8]) -> Batches<'_> {
    Batches { rest: bytes }
}

/// The iterator of [`batches`]: each batch's header and exactly its bytes.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<(Header, &'a [u8]), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        Some(Header::decode(rest).and_then(|header| match rest.split_at_checked(header.batch_bytes) {
            Some((batch, after)) => {
                self.rest = after;
                Ok((header, batch))
            }
            None => Err(BatchError::Truncated { found: rest.len(), expected: header.batch_bytes }),
        }))
    }
}

impl std::iter::FusedIterator for Batches<'_> {}

fn header_of(bytes: &[u8]) -> Result<&[u8; HEADER_BYTES], BatchError> {
    bytes.first_chunk().ok_or(BatchError::HeaderTruncated { found: bytes.len() })
}

/// Base offset and whole length: with the magic, the fields that the CRC does not cover.
#[inline]
fn frame_of(header: &[u8; HEADER_BYTES]) -> Result<(u64, usize), BatchError> {
    // The magic comes first: the other fields mean something else under another one.
    let found = header[at::MAGIC] as i8;
    if found != MAGIC {
        return Err(BatchError::Magic { found });
    }
    let length = i32::from_be_bytes(get(header, at::LENGTH));
    let batch_bytes = match usize::try_from(length) {
        Ok(length) if length >= HEADER_BYTES - LENGTH_END => length + LENGTH_END,
        _ => return Err(BatchError::Length { found: length }),
    };
    let offset = i64::from_be_bytes(get(header, at::BASE_OFFSET));
    match u64::try_from(offset) {
        Ok(offset) => Ok((offset, batch_bytes)),
        Err(_) => Err(BatchError::BaseOffset { found: offset }),
    }
}

/// [`frame_of`] a batch of which `found` bytes are there, all of them its own.
fn sized_frame_of(
    header: &[u8; HEADER_BYTES],
    found: usize,
    max_bytes: usize,
) -> Result<(u64, usize), BatchError> {
    let (base_offset, expected) = frame_of(header)?;
    if expected > max_bytes {
        return Err(BatchError::TooLarge { found: expected, max: max_bytes });
    }
    check_size(found, expected)?;
    Ok((base_offset, expected))
}

fn check_size(found: usize, expected: usize) -> Result<(), BatchError> {
    match found.cmp(&expected) {
        std::cmp::Ordering::Less => Err(BatchError::Truncated { found, expected }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(BatchError::TrailingBytes { found, expected }),
    }
}

fn check_crc(header: &[u8; HEADER_BYTES], computed: u32) -> Result<(), BatchError> {
    let stated = u32::from_be_bytes(get(header, at::CRC));
    if stated == computed { Ok(()) } else { Err(BatchError::Crc { found: stated, expected: computed }) }
}

#[inline]
fn fields_of(
    header: &[u8; HEADER_BYTES],
    base_offset: u64,
    batch_bytes: usize,
) -> Result<Header, BatchError> {
    let last_offset_delta = i32::from_be_bytes(get(header, at::LAST_OFFSET_DELTA));
    let record_count = i32::from_be_bytes(get(header, at::RECORD_COUNT));
    Ok(Header {
        base_offset,
        batch_bytes,
        leader_epoch: u32::from_be_bytes(get(header, at::LEADER_EPOCH)),
        crc: u32::from_be_bytes(get(header, at::CRC)),
        attributes: Attributes(u16::from_be_bytes(get(header, at::ATTRIBUTES))),
        last_offset_delta: u32::try_from(last_offset_delta)
            .map_err(|_| BatchError::LastOffsetDelta { found: last_offset_delta.into(), expected: 0 })?,
        base_timestamp_ms: i64::from_be_bytes(get(header, at::BASE_TIMESTAMP)),
        max_timestamp_ms: i64::from_be_bytes(get(header, at::MAX_TIMESTAMP)),
        producer_id: i64::from_be_bytes(get(header, at::PRODUCER_ID)),
        producer_epoch: i16::from_be_bytes(get(header, at::PRODUCER_EPOCH)),
        base_sequence: i32::from_be_bytes(get(header, at::BASE_SEQUENCE)),
        record_count: u32::try_from(record_count)
            .map_err(|_| BatchError::RecordCount { found: record_count, min: 0 })?,
    })
}

/// What a producer promises beyond a sound header.
fn check_produced(header: Header) -> Result<Header, BatchError> {
    header.attributes.compression()?;
    if header.attributes.is_control() {
        return Err(BatchError::Control);
    }
    if header.record_count == 0 {
        return Err(BatchError::RecordCount { found: 0, min: 1 });
    }
    if header.last_offset_delta != header.record_count - 1 {
        return Err(BatchError::LastOffsetDelta {
            found: header.last_offset_delta.into(),
            expected: header.record_count - 1,
        });
    }
    let (found, base) = (header.max_timestamp_ms, header.base_timestamp_ms);
    if found < base && header.attributes.timestamp_type() == TimestampType::CreateTime {
        return Err(BatchError::MaxTimestamp { found, base });
    }
    let producer = (header.producer_id, header.producer_epoch, header.base_sequence);
    match producer {
        (NO_PRODUCER, _, -1) => Ok(header),
        (id, epoch, sequence) if id >= 0 && epoch >= 0 && sequence >= 0 => Ok(header),
        (id, epoch, sequence) => Err(BatchError::Producer { id, epoch, sequence }),
    }
}

/// Writes the CRC of a batch that is otherwise complete.
fn seal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[CRC_START..]);
    put(batch, at::CRC, crc.to_be_bytes());
}

#[inline]
fn get<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[at..at + N]);
    field
}

#[inline]
fn put<const N: usize>(batch: &mut [u8], at: usize, field: [u8; N]) {
    batch[at..at + N].copy_from_slice(&field);
}
