//! Walking the records of one uncompressed batch, borrowed from its bytes.
//!
//! Owned by the consumer that reads them; lives as long as the batch's bytes. Invariants: no allocation,
//! no panic; every length is checked against the record, and the record against the batch; offsets rise
//! and stay inside the batch; the iterator stops after its first error; the records fill the batch
//! exactly. A record's own headers are only checked when they are iterated, because most readers never
//! look at them. Absent on purpose: the CRC check (`verify`, once per batch) and decompression.

use super::varint::{Cursor, VARINT_BYTES_MAX, VARLONG_BYTES_MAX};
use super::{BatchError, Compression, HEADER_BYTES, Header, TimestampType, check_size};

/// Attributes, timestamp and offset delta, lengths of key and value, header count: one byte or more each.
const RECORD_BODY_BYTES_MIN: i8 = 6;

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its offset in the partition.
    pub offset: u64,
    /// When the producer made it, or when the broker appended it.
    pub timestamp_ms: i64,
    /// The key; `None` is null, which is not the same as empty.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is null, a tombstone in a compacted topic.
    pub value: Option<&'a [u8]>,
    headers: Headers<'a>,
}

impl<'a> Record<'a> {
    /// The headers, in the order that the producer gave, equal keys included.
    pub fn headers(&self) -> Headers<'a> {
        self.headers
    }
}

/// Walks the records of `batch`, which is exactly one batch. Compressed records are
/// [`BatchError::Compressed`]; the CRC is not checked.
pub fn records(batch: &[u8]) -> Result<Records<'_>, BatchError> {
    let header = Header::decode(batch)?;
    check_size(batch.len(), header.batch_bytes)?;
    match header.attributes.compression()? {
        Compression::None => {}
        kind => return Err(BatchError::Compressed(kind)),
    }
    Ok(Records { header, cursor: Cursor::new(&batch[HEADER_BYTES..]), index: 0, delta_min: 0, ended: false })
}

/// The iterator of [`records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: Header,
    cursor: Cursor<'a>,
    index: u32,
    /// The least offset delta that the next record may have.
    delta_min: u32,
    ended: bool,
}

impl<'a> Records<'a> {
    /// The batch's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    #[inline]
    fn read(&mut self) -> Result<Record<'a>, BatchError> {
        let record = self.index;
        let body_bytes = length(&mut self.cursor, record, "record length", RECORD_BODY_BYTES_MIN, 1)?;
        let mut body = Cursor::new(self.cursor.take(body_bytes as usize).unwrap_or_default());
        // The attributes of a record have no bit that means anything.
        let _attributes = body.take(1);
        let timestamp_delta = body.varlong().ok_or(BatchError::Varint {
            record,
            field: "timestamp delta",
            max: VARLONG_BYTES_MAX as u8,
        })?;
        let found = number(&mut body, record, "offset delta")?;
        let max = self.header.last_offset_delta;
        let offset_delta = match u32::try_from(found) {
            Ok(delta) if delta >= self.delta_min && delta <= max => delta,
            _ => return Err(BatchError::OffsetDelta { record, found, min: self.delta_min, max }),
        };
        let key = nullable(&mut body, record, "key length")?;
        let value = nullable(&mut body, record, "value length")?;
        // A header has two bytes or more.
        let count = length(&mut body, record, "header count", 0, 2)?;
        let headers = Headers { cursor: body, left: count, record };
        if count == 0 {
            headers.check_end()?;
        }
        self.index += 1;
        self.delta_min = offset_delta + 1;
        Ok(Record {
            offset: self.header.base_offset + u64::from(offset_delta),
            timestamp_ms: match self.header.attributes.timestamp_type() {
                // Any two timestamps have a delta, also those further apart than an i64: it wraps.
                TimestampType::CreateTime => self.header.base_timestamp_ms.wrapping_add(timestamp_delta),
                TimestampType::LogAppendTime => self.header.max_timestamp_ms,
            },
            key,
            value,
            headers,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if self.index == self.header.record_count {
            self.ended = true;
            return match self.cursor.len() {
                0 => None,
                found => Some(Err(BatchError::RecordsTrailingBytes { found, records: self.index })),
            };
        }
        let item = self.read();
        self.ended = item.is_err();
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // The count is the batch's word; only the bytes bound what can come. One more for an error.
        let left = (self.header.record_count - self.index) as usize;
        (0, Some(left.min(self.cursor.len()) + 1))
    }
}

impl std::iter::FusedIterator for Records<'_> {}

/// The headers of one record: each a key and a value that may be null. Stops after its first error.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    cursor: Cursor<'a>,
    left: u32,
    record: u32,
}

impl<'a> Headers<'a> {
    fn read(&mut self) -> Result<(&'a str, Option<&'a [u8]>), BatchError> {
        let record = self.record;
        let key = bytes(&mut self.cursor, record, "header key length")?;
        let key = std::str::from_utf8(key)
            .map_err(|error| BatchError::HeaderKey { record, valid_up_to: error.valid_up_to() })?;
        let value = nullable(&mut self.cursor, record, "header value length")?;
        if self.left == 1 {
            self.check_end()?;
        }
        Ok((key, value))
    }

    fn check_end(&self) -> Result<(), BatchError> {
        match self.cursor.len() {
            0 => Ok(()),
            found => Err(BatchError::RecordTrailingBytes { record: self.record, found }),
        }
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<(&'a str, Option<&'a [u8]>), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let item = self.read();
        self.left = if item.is_ok() { self.left - 1 } else { 0 };
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left as usize))
    }
}

impl std::iter::FusedIterator for Headers<'_> {}

#[inline]
fn number(cursor: &mut Cursor<'_>, record: u32, field: &'static str) -> Result<i32, BatchError> {
    cursor.varint().ok_or(BatchError::Varint { record, field, max: VARINT_BYTES_MAX as u8 })
}

/// A count of at least `min` things (-1 comes back as `u32::MAX`) of `unit` bytes or more each.
#[inline]
fn length(
    cursor: &mut Cursor<'_>,
    record: u32,
    field: &'static str,
    min: i8,
    unit: usize,
) -> Result<u32, BatchError> {
    let found = number(cursor, record, field)?;
    let max = cursor.len() / unit;
    if found < i32::from(min) || (found > 0 && found as usize > max) {
        return Err(BatchError::FieldLength { record, field, found, min, max: max as u32 });
    }
    Ok(found as u32)
}

#[inline]
fn bytes<'a>(cursor: &mut Cursor<'a>, record: u32, field: &'static str) -> Result<&'a [u8], BatchError> {
    let length = length(cursor, record, field, 0, 1)?;
    Ok(cursor.take(length as usize).unwrap_or_default())
}

#[inline]
fn nullable<'a>(
    cursor: &mut Cursor<'a>,
    record: u32,
    field: &'static str,
) -> Result<Option<&'a [u8]>, BatchError> {
    match length(cursor, record, field, -1, 1)? {
        u32::MAX => Ok(None),
        length => Ok(Some(cursor.take(length as usize).unwrap_or_default())),
    }
}
