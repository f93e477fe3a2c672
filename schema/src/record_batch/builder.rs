//! Making a batch, record by record, in one buffer.
//!
//! Owned by the producer that fills it; reused from batch to batch: `new`, then `append` and `finish` in
//! turns. Invariants: the buffer always holds room for the header and whole records after it, so its
//! length is the batch's exact size; appending allocates only when the buffer grows; the next buffer
//! starts as large as the last batch was, so that a steady load does not grow it twice, or is one that
//! the caller gives back. Absent on purpose: compression, control batches, and deciding when a batch is
//! full (the caller's linger and batch size do).

use super::{HEADER_BYTES, LENGTH_END, MAGIC, NO_PRODUCER, at, put, seal, varint};

/// Most bytes of a record around key, value and headers: length, attributes, timestamp and offset delta,
/// lengths of key and value, header count.
const RECORD_OVERHEAD_BYTES_MAX: usize = 5 * varint::VARINT_BYTES_MAX + 1 + varint::VARLONG_BYTES_MAX;

/// Who makes the batches, for duplicates to be found: an id and epoch from the broker, and the sequence
/// of the next batch's first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    /// At least 0, or [`NO_PRODUCER`].
    pub id: i64,
    /// At least 0, or -1 without a producer.
    pub epoch: i16,
    /// At least 0, or -1 without a producer.
    pub base_sequence: i32,
}

impl Producer {
    /// No producer: duplicates are not found.
    pub const NONE: Producer = Producer { id: NO_PRODUCER, epoch: -1, base_sequence: -1 };

    /// The producer whose next record comes `records` later. Sequences go from `i32::MAX` to 0.
    pub fn after(self, records: u32) -> Producer {
        if self.id == NO_PRODUCER {
            return self;
        }
        let sequence = (i64::from(self.base_sequence) + i64::from(records)) & i64::from(i32::MAX);
        Producer { base_sequence: sequence as i32, ..self }
    }
}

/// Encodes records into batches of base offset 0, uncompressed, with the producer's timestamps.
#[derive(Debug)]
pub struct BatchBuilder {
    producer: Producer,
    /// Empty, or room for the header and then whole records.
    buffer: Vec<u8>,
    /// Room to take for the first record.
    next_bytes: usize,
    record_count: u32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// An empty builder, without a producer. Takes no memory before the first record.
    pub fn new() -> Self {
        Self {
            producer: Producer::NONE,
            buffer: Vec::new(),
            next_bytes: 0,
            record_count: 0,
            base_timestamp_ms: 0,
            max_timestamp_ms: 0,
        }
    }

    /// The builder with a producer.
    pub fn with_producer(mut self, producer: Producer) -> Self {
        self.set_producer(producer);
        self
    }

    /// Sets the producer of this batch and the following ones; each `finish` moves its sequence on by the
    /// records of the batch.
    ///
    /// # Panics
    /// When the fields are neither all at least 0 nor those of [`Producer::NONE`].
    pub fn set_producer(&mut self, producer: Producer) {
        let complete = producer.id >= 0 && producer.epoch >= 0 && producer.base_sequence >= 0;
        assert!(complete || producer == Producer::NONE, "{producer:?} is neither complete nor absent");
        self.producer = producer;
    }

    /// The producer, with the sequence of this batch's first record.
    pub fn producer(&self) -> Producer {
        self.producer
    }

    /// Makes room for a batch of `batch_bytes`.
    pub fn reserve(&mut self, batch_bytes: usize) {
        self.buffer.reserve(batch_bytes.saturating_sub(self.buffer.len()));
    }

    /// Gives back the memory of a batch that is sent and done with, for the next one. Large batches gain
    /// most: fresh memory of theirs costs more in page faults than in copying. Between `finish` and the
    /// first record; at other times, or when it is smaller than what is there, it is dropped.
    pub fn recycle(&mut self, mut spent: Vec<u8>) {
        if self.buffer.is_empty() && spent.capacity() > self.buffer.capacity() {
            spent.clear();
            self.buffer = spent;
        }
    }

    /// Appends one record.
    ///
    /// # Panics
    /// When the batch would be longer than its length field can say (2 GiB): see [`Self::record_bytes`].
    pub fn append(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) {
        if self.buffer.is_empty() {
            self.buffer.reserve(self.next_bytes);
            self.buffer.resize(HEADER_BYTES, 0);
        }
        if self.record_count == 0 {
            self.base_timestamp_ms = timestamp_ms;
            self.max_timestamp_ms = timestamp_ms;
        }
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp_ms);
        let offset_delta = i64::from(self.record_count);
        let body_bytes = 1
            + varint::bytes_of(timestamp_delta)
            + varint::bytes_of(offset_delta)
            + nullable_bytes(key)
            + nullable_bytes(value)
            + varint::bytes_of(headers.len() as i64)
            + headers_bytes(headers);
        let record_bytes = varint::bytes_of(body_bytes as i64) + body_bytes;
        let batch_bytes = self.buffer.len() + record_bytes;
        assert!(
            batch_bytes - LENGTH_END <= i32::MAX as usize,
            "a batch of {batch_bytes} bytes has no length field"
        );
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        self.record_count += 1;

        let out = &mut self.buffer;
        out.reserve(record_bytes);
        varint::put(out, body_bytes as i64);
        out.push(0);
        varint::put(out, timestamp_delta);
        varint::put(out, offset_delta);
        put_nullable(out, key);
        put_nullable(out, value);
        varint::put(out, headers.len() as i64);
        for &(name, value) in headers {
            put_nullable(out, Some(name.as_bytes()));
            put_nullable(out, value);
        }
        debug_assert_eq!(out.len(), batch_bytes);
    }

    /// Bytes of the batch as it would be finished now; 0 without records.
    pub fn len_bytes(&self) -> usize {
        if self.record_count == 0 { 0 } else { self.buffer.len() }
    }

    /// Records appended since the last `finish`.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Whether no record was appended since the last `finish`.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Timestamp of the first record, the one that linger counts from; `None` without records.
    pub fn base_timestamp_ms(&self) -> Option<i64> {
        (self.record_count > 0).then_some(self.base_timestamp_ms)
    }

    /// The most bytes that this record adds to a batch that already has one; add [`HEADER_BYTES`] for
    /// the first.
    pub fn record_bytes(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> usize {
        RECORD_OVERHEAD_BYTES_MAX
            + key.map_or(0, <[u8]>::len)
            + value.map_or(0, <[u8]>::len)
            + headers_bytes(headers)
    }

    /// Ends the batch: header, CRC. The builder is empty again and keeps the producer. Without records
    /// there is no batch, and no bytes.
    pub fn finish(&mut self) -> Vec<u8> {
        if self.record_count == 0 {
            return Vec::new();
        }
        let mut batch = std::mem::take(&mut self.buffer);
        self.next_bytes = batch.len();
        put(&mut batch, at::BASE_OFFSET, 0i64.to_be_bytes());
        let length = (batch.len() - LENGTH_END) as i32;
        put(&mut batch, at::LENGTH, length.to_be_bytes());
        put(&mut batch, at::LEADER_EPOCH, 0i32.to_be_bytes());
        put(&mut batch, at::MAGIC, MAGIC.to_be_bytes());
        put(&mut batch, at::ATTRIBUTES, 0u16.to_be_bytes());
        put(&mut batch, at::LAST_OFFSET_DELTA, (self.record_count - 1).to_be_bytes());
        put(&mut batch, at::BASE_TIMESTAMP, self.base_timestamp_ms.to_be_bytes());
        put(&mut batch, at::MAX_TIMESTAMP, self.max_timestamp_ms.to_be_bytes());
        put(&mut batch, at::PRODUCER_ID, self.producer.id.to_be_bytes());
        put(&mut batch, at::PRODUCER_EPOCH, self.producer.epoch.to_be_bytes());
        put(&mut batch, at::BASE_SEQUENCE, self.producer.base_sequence.to_be_bytes());
        put(&mut batch, at::RECORD_COUNT, self.record_count.to_be_bytes());
        seal(&mut batch);
        self.producer = self.producer.after(self.record_count);
        self.record_count = 0;
        batch
    }
}

#[inline]
fn nullable_bytes(bytes: Option<&[u8]>) -> usize {
    match bytes {
        Some(bytes) => varint::bytes_of(bytes.len() as i64) + bytes.len(),
        None => 1,
    }
}

#[inline]
fn headers_bytes(headers: &[(&str, Option<&[u8]>)]) -> usize {
    headers.iter().map(|&(name, value)| nullable_bytes(Some(name.as_bytes())) + nullable_bytes(value)).sum()
}

#[inline]
fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            varint::put(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
        None => varint::put(out, -1),
    }
}
