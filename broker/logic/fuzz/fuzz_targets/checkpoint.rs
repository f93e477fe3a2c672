//! Fuzzes everything that decodes a structure of its own on disk: checkpoint, segment header, group header,
//! index footer; as the bytes are, and with the checksum made right, so that the fields are reached.
//!
//! Invariants: nothing panics or takes memory beyond the input; what is decoded is encoded and decoded
//! again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schema::checkpoint::Checkpoint;
use schema::segment::{BLOCK_BYTES, Footer, GROUP_HEADER_BYTES, GroupHeader, SEGMENT_HEADER_BYTES, SegmentHeader};

/// `bytes` with the checksum at 8..12 right, over as many bytes as its structure has.
fn sealed(bytes: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut bytes = bytes.get(..length)?.to_vec();
    bytes.get(8..12)?;
    bytes[8..12].fill(0);
    let crc = crc32c::crc32c(&bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    Some(bytes)
}

fn decode_all(bytes: &[u8]) {
    if let Ok(checkpoint) = Checkpoint::decode(bytes) {
        assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
    }
    if let Ok(header) = SegmentHeader::decode(bytes) {
        let mut block = vec![0; BLOCK_BYTES];
        header.encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Ok(header));
    }
    if let Ok(header) = GroupHeader::decode(bytes) {
        let mut block = vec![0; BLOCK_BYTES];
        header.encode(&mut block);
        assert_eq!(GroupHeader::decode(&block), Ok(header));
        assert!(header.disk_bytes() >= u64::from(header.payload_bytes));
    }
    let _ = GroupHeader::claimed_identity(bytes);
    let _ = Footer::peek_bytes(7, bytes);
    if let Ok(entries) = Footer::decode(7, bytes) {
        assert!(entries.len() * 24 <= bytes.len());
    }
}

fuzz_target!(|data: &[u8]| {
    decode_all(data);
    let mut data = data.to_vec();
    for (magic, length) in
        [(b"RLCP", data.len()), (b"RLSG", SEGMENT_HEADER_BYTES), (b"RLGR", GROUP_HEADER_BYTES), (b"RLIX", data.len())]
    {
        if data.len() < 64 {
            return;
        }
        data[..4].copy_from_slice(magic);
        // Checkpoints have two versions.
        let version = 1 + u16::from(magic == b"RLCP" && data[7] & 1 == 1);
        data[4..6].copy_from_slice(&version.to_le_bytes());
        if magic == b"RLCP" {
            data[16..24].copy_from_slice(&(length as u64).to_le_bytes());
        }
        if let Some(sealed) = sealed(&data, length) {
            decode_all(&sealed);
        }
    }
});
