//! Fuzzes everything that reads record batches, with and without the barrier of the CRC.
//!
//! Invariants: nothing panics or reads outside the input; what a producer may send, a reader may verify;
//! batches that are split cover the input; records that are read can be encoded again and then read as
//! the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::record_batch::{
    BatchBuilder, BatchError, Compression, HEADER_BYTES, Header, Record, TimestampType, batches, records,
    set_base_offset, validate_produced, validate_produced_with_crc, verify,
};

type RecordHeaders<'a> = Vec<(&'a str, Option<&'a [u8]>)>;

/// Every record of `batch` with its headers, or the first error.
fn walk(batch: &[u8]) -> Result<Vec<(Record<'_>, RecordHeaders<'_>)>, BatchError> {
    records(batch)?
        .map(|record| record.and_then(|r| Ok((r, r.headers().collect::<Result<_, _>>()?))))
        .collect()
}

/// Encodes what was read and reads it again.
fn encode_again(batch: &[u8], header: &Header) {
    let Ok(walked) = walk(batch) else { return };
    assert_eq!(walked.len(), header.record_count as usize);
    let gaps = header.record_count != header.last_offset_delta + 1;
    if walked.is_empty() || gaps || header.attributes.timestamp_type() == TimestampType::LogAppendTime {
        return;
    }
    let mut builder = BatchBuilder::new();
    for (record, headers) in &walked {
        builder.append(record.timestamp_ms, record.key, record.value, headers);
    }
    let bytes = builder.len_bytes();
    let mut again = builder.finish();
    assert_eq!(again.len(), bytes);
    set_base_offset(&mut again, header.base_offset);
    validate_produced(&again, bytes).expect("what the encoder makes is valid");
    let again = walk(&again).expect("what the encoder makes can be read");
    for ((a, a_headers), (b, b_headers)) in walked.iter().zip(&again) {
        assert_eq!((a.offset, a.timestamp_ms, a.key, a.value), (b.offset, b.timestamp_ms, b.key, b.value));
        assert_eq!(a_headers, b_headers);
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = validate_produced(data, data.len()) {
        assert_eq!(verify(data), Ok(header));
    }
    let mut covered = 0;
    for (header, batch) in batches(data).flatten() {
        assert_eq!(batch.len(), header.batch_bytes);
        covered += batch.len();
        let _ = walk(batch);
    }
    assert!(covered <= data.len());

    // The same bytes as one batch whose magic, length and CRC are right.
    if data.len() < HEADER_BYTES {
        return;
    }
    let mut batch = data.to_vec();
    batch[8..12].copy_from_slice(&(data.len() as u32 - 12).to_be_bytes());
    batch[16] = 2;
    let Ok(header) = Header::decode(&batch) else { return };
    if let Ok(produced) =
        validate_produced_with_crc(&batch[..HEADER_BYTES], data.len(), header.crc, data.len())
    {
        assert_eq!(produced, header);
        assert_eq!(header.record_count - 1, header.last_offset_delta);
    }
    if header.attributes.compression() == Ok(Compression::None) {
        encode_again(&batch, &header);
    }
});
