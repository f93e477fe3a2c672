//! What a fetch brought: stored batches, their records, and what compressed ones unpack to.
//!
//! Owner: the application, once a [`super::Consumer`] has handed it out. Lifecycle: a [`FetchedBatch`] keeps the memory alive that
//! the socket filled. Invariants: stored bytes are never changed; records are borrowed from them, or own slices of them;
//! one compressed batch is unpacked at a time, within a bound. Absent on purpose: fetching, positions.

use super::ConsumeError;
use bytes::Bytes;
use schema::compression::{self, UnpackError};
use schema::record_batch::{self, BatchError, Batches, Record, Records};
use std::collections::VecDeque;
use std::sync::Arc;

/// Stored batches of one partition as one fetch brought them. Owns a slice of the memory that was read.
#[derive(Clone, Debug)]
pub struct FetchedBatch {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: u32,
    pub(crate) bytes: Bytes,
    /// The same without compression; `None` until it has been unpacked.
    pub(crate) plain: Option<Bytes>,
    pub(crate) from_offset: u64,
    pub(crate) end_offset: u64,
    pub(crate) high_watermark: u64,
}

impl FetchedBatch {
    /// The topic.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The partition.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// The offset that was asked for; records below it are skipped.
    pub fn from_offset(&self) -> u64 {
        self.from_offset
    }

    /// The offset after the last record.
    pub fn end_offset(&self) -> u64 {
        self.end_offset
    }

    /// The offset below which records were visible when this was read.
    pub fn high_watermark(&self) -> u64 {
        self.high_watermark
    }

    /// The stored batches, back to back, unchanged and perhaps compressed; the first may begin below
    /// [`Self::from_offset`].
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records from [`Self::from_offset`] on, borrowed. Ends after the first error.
    pub fn records(&self) -> FetchedRecords<'_> {
        FetchedRecords {
            fetched: self,
            batches: record_batch::batches(self.plain.as_ref().unwrap_or(&self.bytes)),
            records: None,
            ended: false,
        }
    }

    fn damaged(&self, offset: u64, error: BatchError) -> ConsumeError {
        ConsumeError::CorruptBatch { topic: self.topic.clone(), partition: self.partition, offset, error }
    }
}

/// The iterator of [`FetchedBatch::records`].
#[derive(Clone, Debug)]
pub struct FetchedRecords<'a> {
    fetched: &'a FetchedBatch,
    batches: Batches<'a>,
    records: Option<Records<'a>>,
    ended: bool,
}

impl<'a> FetchedRecords<'a> {
    fn fail(&mut self, offset: u64, error: BatchError) -> Option<Result<Record<'a>, ConsumeError>> {
        self.ended = true;
        Some(Err(self.fetched.damaged(offset, error)))
    }
}

impl<'a> Iterator for FetchedRecords<'a> {
    type Item = Result<Record<'a>, ConsumeError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            if let Some(records) = &mut self.records {
                match records.next() {
                    Some(Ok(record)) if record.offset < self.fetched.from_offset => continue,
                    Some(Ok(record)) => return Some(Ok(record)),
                    Some(Err(error)) => {
                        let offset = records.header().base_offset;
                        return self.fail(offset, error);
                    }
                    None => self.records = None,
                }
            }
            match self.batches.next() {
                None => self.ended = true,
                Some(Err(error)) => return self.fail(self.fetched.from_offset, error),
                // Markers of brokers are nothing for applications.
                Some(Ok((header, _))) if header.attributes.is_control() => {}
                Some(Ok((header, _))) if header.end_offset() <= self.fetched.from_offset => {}
                Some(Ok((header, batch))) => match record_batch::records(batch) {
                    Ok(records) => self.records = Some(records),
                    Err(error) => return self.fail(header.base_offset, error),
                },
            }
        }
        None
    }
}

impl std::iter::FusedIterator for FetchedRecords<'_> {}

/// A record that owns slices of the memory that was read; nothing is copied but header names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// When the producer made it, or when the broker appended it.
    pub timestamp_ms: i64,
    /// The key; `None` is null, which is not the same as empty.
    pub key: Option<Bytes>,
    /// The value; `None` is null.
    pub value: Option<Bytes>,
    /// In the order that the producer gave.
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// What is left of the batch that [`Consumer::next`] is in.
pub(super) struct Unpacked {
    pub(super) fetched: FetchedBatch,
    /// Bytes of `fetched` that are unpacked.
    done_bytes: usize,
    pub(super) records: VecDeque<ConsumedRecord>,
}

impl Unpacked {
    pub(super) fn of(fetched: FetchedBatch) -> Self {
        Self { fetched, done_bytes: 0, records: VecDeque::new() }
    }
}

/// What can be handed out at once, and what is left: uncompressed batches as they stand, a compressed one
/// alone, so that only one is unpacked at a time.
pub(super) fn split(
    fetched: FetchedBatch,
    bytes_max: usize,
) -> Result<(FetchedBatch, Option<FetchedBatch>), ConsumeError> {
    if fetched.plain.is_some() {
        return Ok((fetched, None));
    }
    let (mut from, mut to, mut end_offset) = (0, 0, fetched.from_offset);
    let mut plain = None;
    for batch in record_batch::batches(&fetched.bytes) {
        let (header, bytes) = batch.map_err(|error| fetched.damaged(fetched.from_offset, error))?;
        if header.end_offset() <= fetched.from_offset {
            (from, to) = (to + bytes.len(), to + bytes.len());
            continue;
        }
        let is_packed = header.attributes.is_compressed();
        if is_packed && from < to {
            break;
        }
        (to, end_offset) = (to + bytes.len(), header.end_offset());
        if is_packed {
            plain = unpack_batch(&fetched, bytes, header.base_offset, bytes_max)?;
            break;
        }
    }
    let bytes = fetched.bytes.slice(from..to);
    let rest = (to < fetched.bytes.len()).then(|| FetchedBatch {
        bytes: fetched.bytes.slice(to..),
        from_offset: end_offset,
        ..fetched.clone()
    });
    let end_offset = if rest.is_none() { fetched.end_offset } else { end_offset };
    let plain = plain.unwrap_or_else(|| bytes.clone());
    Ok((FetchedBatch { bytes, plain: Some(plain), end_offset, ..fetched }, rest))
}

/// [`compression::unpack`], and the place of what cannot be.
fn unpack_batch(
    fetched: &FetchedBatch,
    batch: &[u8],
    base_offset: u64,
    bytes_max: usize,
) -> Result<Option<Bytes>, ConsumeError> {
    compression::unpack(batch, bytes_max).map_err(|error| match error {
        UnpackError::Batch(error) => fetched.damaged(base_offset, error),
        error => ConsumeError::Unpack {
            topic: fetched.topic.clone(),
            partition: fetched.partition,
            offset: base_offset.max(fetched.from_offset),
            error,
        },
    })
}

/// Unpacks the next stored batch; whether there was one.
pub(super) fn unpack(unpacked: &mut Unpacked, bytes_max: usize) -> Result<bool, ConsumeError> {
    let Unpacked { fetched, done_bytes, records } = unpacked;
    let Some(next) = record_batch::batches(&fetched.bytes[*done_bytes..]).next() else {
        return Ok(false);
    };
    let (header, batch) = next.map_err(|error| fetched.damaged(fetched.from_offset, error))?;
    // One stored batch at a time, so that unpacked records stay few.
    let stored = fetched.bytes.slice_ref(batch);
    let is_packed = header.attributes.is_compressed() && header.end_offset() > fetched.from_offset;
    let plain = match is_packed {
        true => unpack_batch(fetched, batch, header.base_offset, bytes_max)?,
        false => None,
    };
    let plain = plain.unwrap_or_else(|| stored.clone());
    let one = FetchedBatch { bytes: stored, plain: Some(plain.clone()), ..fetched.clone() };
    for record in one.records() {
        let record = record?;
        let own = |bytes: &[u8]| plain.slice_ref(bytes);
        let mut headers = Vec::new();
        for header in record.headers() {
            let (name, value) = header.map_err(|error| fetched.damaged(record.offset, error))?;
            headers.push((name.to_owned(), value.map(own)));
        }
        records.push_back(ConsumedRecord {
            topic: fetched.topic.clone(),
            partition: fetched.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(own),
            value: record.value.map(own),
            headers,
        });
    }
    *done_bytes += header.batch_bytes;
    Ok(true)
}
