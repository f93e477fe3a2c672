//! The same batch with fewer records: what compaction leaves of it.
//!
//! Plain function over one uncompressed batch. Invariants: base offset, last offset delta, producer and
//! sequence stay, and so do the offsets, timestamps and bytes of the records that stay; what is left is a batch that
//! every reader of record batch v2 understands, also without any record (Kafka leaves such a header as
//! well, so that the producer's sequence is not forgotten). Absent on purpose: which records stay.

use super::varint::{self, Cursor};
use super::{
    Attributes, BatchError, HEADER_BYTES, LENGTH_END, Record, TimestampType, at, put, records, seal,
};

/// `batch`, uncompressed, with only those records for which `keep` says so. `delete_horizon_ms`: from then on
/// its tombstones may go; it becomes the base timestamp, marked by an attribute, as Kafka does.
///
/// # Errors
/// The batch is compressed, or its records are not what its header says.
pub fn retain(
    batch: &[u8],
    mut keep: impl FnMut(&Record<'_>) -> bool,
    delete_horizon_ms: Option<i64>,
) -> Result<Vec<u8>, BatchError> {
    let walk = records(batch)?;
    let header = *walk.header();
    let base_ms = delete_horizon_ms.unwrap_or(header.base_timestamp_ms);
    let mut out = Vec::with_capacity(batch.len() + 16);
    out.extend_from_slice(&batch[..HEADER_BYTES]);
    let (mut count, mut max_timestamp_ms) = (0u32, i64::MIN);
    let mut rest = Cursor::new(&batch[HEADER_BYTES..]);
    for (index, record) in walk.enumerate() {
        let record = record?;
        let body = raw_body(&mut rest, index as u32)?;
        if !keep(&record) {
            continue;
        }
        count += 1;
        max_timestamp_ms = max_timestamp_ms.max(record.timestamp_ms);
        // Timestamps wrap around their base, so the same time is as far from the new one.
        let delta = body.timestamp_delta.wrapping_add(header.base_timestamp_ms.wrapping_sub(base_ms));
        varint::put(&mut out, (1 + varint::bytes_of(delta) + body.tail.len()) as i64);
        out.push(body.attributes);
        varint::put(&mut out, delta);
        out.extend_from_slice(body.tail);
    }
    let mut bits = header.attributes.bits();
    if delete_horizon_ms.is_some() {
        bits |= Attributes::DELETE_HORIZON;
    }
    // Of an empty batch the timestamp says when its producer was last heard of.
    if count == 0 || header.attributes.timestamp_type() == TimestampType::LogAppendTime {
        max_timestamp_ms = header.max_timestamp_ms;
    }
    let length = (out.len() - LENGTH_END) as i32;
    put(&mut out, at::LENGTH, length.to_be_bytes());
    put(&mut out, at::ATTRIBUTES, bits.to_be_bytes());
    put(&mut out, at::BASE_TIMESTAMP, base_ms.to_be_bytes());
    put(&mut out, at::MAX_TIMESTAMP, max_timestamp_ms.to_be_bytes());
    put(&mut out, at::RECORD_COUNT, count.to_be_bytes());
    seal(&mut out);
    Ok(out)
}

/// A record, its length taken off.
struct RawBody<'a> {
    attributes: u8,
    timestamp_delta: i64,
    /// Offset delta, key, value, headers.
    tail: &'a [u8],
}

/// The next record as it stands; the walk beside it has checked it.
fn raw_body<'a>(rest: &mut Cursor<'a>, record: u32) -> Result<RawBody<'a>, BatchError> {
    let broken = BatchError::Varint { record, field: "record length", max: varint::VARINT_BYTES_MAX as u8 };
    let length = rest.varint().ok_or(broken)?;
    let mut body = Cursor::new(rest.take(length as usize).ok_or(broken)?);
    let attributes = body.take(1).ok_or(broken)?[0];
    let timestamp_delta = body.varlong().ok_or(broken)?;
    let tail = body.take(body.len()).unwrap_or_default();
    Ok(RawBody { attributes, timestamp_delta, tail })
}

#[cfg(test)]
mod tests {
    use super::super::{BatchBuilder, Header, Producer, set_base_offset, set_log_append_time, verify};
    use super::*;

    fn batch() -> Vec<u8> {
        let producer = Producer { id: 7, epoch: 2, base_sequence: 40 };
        let mut builder = BatchBuilder::new().with_producer(producer);
        for n in 0..10i64 {
            let value = (n % 3 != 0).then(|| vec![n as u8; 100]);
            let key = format!("key-{n}");
            builder.append(
                1000 + 7 * n,
                Some(key.as_bytes()),
                value.as_deref(),
                &[("h", Some(b"v")), ("n", None)],
            );
        }
        let mut batch = builder.finish();
        set_base_offset(&mut batch, 500);
        batch
    }

    /// Everything that a reader sees of a record.
    type Seen = (u64, i64, Option<Vec<u8>>, Option<Vec<u8>>, usize);

    fn seen(batch: &[u8]) -> Vec<Seen> {
        let own = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        let see = |r: Record<'_>| (r.offset, r.timestamp_ms, own(r.key), own(r.value), r.headers().count());
        records(batch).unwrap().map(|record| see(record.unwrap())).collect()
    }

    /// What stays is what it was; the header keeps what it must.
    fn check(batch: &[u8], keep: impl Fn(u64) -> bool, horizon_ms: Option<i64>) -> Header {
        let left = retain(batch, |record| keep(record.offset), horizon_ms).unwrap();
        let (before, after) = (verify(batch).unwrap(), verify(&left).unwrap());
        let expect: Vec<_> = seen(batch).into_iter().filter(|record| keep(record.0)).collect();
        assert_eq!(seen(&left), expect);
        let identity = |h: &Header| {
            (
                h.base_offset,
                h.last_offset_delta,
                h.leader_epoch,
                h.producer_id,
                h.producer_epoch,
                h.base_sequence,
            )
        };
        assert_eq!(identity(&after), identity(&before));
        assert_eq!(after.end_offset(), 510);
        assert_eq!(after.record_count as usize, expect.len());
        assert_eq!(after.attributes.has_delete_horizon(), horizon_ms.is_some());
        after
    }

    #[test]
    fn what_stays_is_what_it_was() {
        for mut batch in [batch(), {
            let mut b = batch();
            set_log_append_time(&mut b, 99);
            b
        }] {
            let by_broker =
                verify(&batch).unwrap().attributes.timestamp_type() == TimestampType::LogAppendTime;
            for horizon_ms in [None, Some(1_700_000_000_000), Some(i64::MAX), Some(i64::MIN), Some(0)] {
                check(&batch, |_| true, horizon_ms);
                let last = check(&batch, |offset| offset == 503, horizon_ms);
                assert_eq!(last.max_timestamp_ms, if by_broker { 99 } else { 1021 });
                let none = check(&batch, |_| false, horizon_ms);
                assert_eq!(none.max_timestamp_ms, if by_broker { 99 } else { 1063 });
                assert_eq!(none.batch_bytes, HEADER_BYTES);
            }
            assert_eq!(retain(&batch, |_| true, None).unwrap(), batch, "nothing removed, nothing changed");
            // Twice is once.
            let once = retain(&batch, |record| record.offset > 504, Some(5)).unwrap();
            let twice = retain(&once, |record| record.offset.is_multiple_of(2), None).unwrap();
            assert_eq!(seen(&twice).iter().map(|record| record.0).collect::<Vec<_>>(), [506, 508]);
            assert!(verify(&twice).unwrap().attributes.has_delete_horizon());
            let end = batch.len() - 1;
            batch.truncate(end);
            assert!(retain(&batch, |_| true, None).is_err());
        }
    }
}
