//! Compressing whole batches, and unpacking what others have compressed.
//!
//! Owner: the client's producer compresses a batch when it is encoded, its consumer unpacks one stored batch
//! at a time when it is handed out; a broker looks inside only to compact a log or to find a timestamp, never on
//! the way of a produce or fetch. Invariants: what is unpacked is bounded, whatever
//! a batch claims; a batch that would not become smaller is sent as it is. The formats are those that
//! other clients of record batch v2 write: gzip, LZ4 frames, Zstandard frames, and Snappy in the blocks of
//! snappy-java (raw Snappy is read too). Absent on purpose: levels (the codecs' defaults), dictionaries.

use crate::record_batch::{self, BatchError, Compression, HEADER_BYTES, Header};
use bytes::Bytes;
use std::io::{self, Read, Write};

/// What snappy-java writes first: magic, version 1, compatible with version 1.
const SNAPPY_MAGIC: [u8; 16] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1];
/// Bytes of its magic alone.
const SNAPPY_MAGIC_BYTES: usize = 8;
/// Bytes that snappy-java compresses at once.
const SNAPPY_BLOCK_BYTES: usize = 32 << 10;

/// Why a compressed batch cannot be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// It is no batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The bytes are not what the batch's attributes say.
    #[error("its records cannot be unpacked as {compression:?}: {reason}")]
    Damaged {
        /// What the attributes say.
        compression: Compression,
        /// What the codec said.
        reason: String,
    },
    /// It unpacks to more than permitted.
    #[error("its records unpack to more than {max} bytes; raise `unpacked_batch_bytes_max`")]
    TooLarge {
        /// The bound.
        max: usize,
    },
}

/// The batch with its records compressed; the batch as it was if that is not smaller. `batch` is one whole
/// uncompressed batch.
pub fn compress(batch: Vec<u8>, compression: Compression) -> Vec<u8> {
    if compression == Compression::None {
        return batch;
    }
    let mut packed = Vec::with_capacity(batch.len());
    packed.resize(HEADER_BYTES, 0);
    match pack(&batch[HEADER_BYTES..], compression, &mut packed) {
        Ok(()) if packed.len() < batch.len() => {
            record_batch::set_records(&mut packed, &batch, compression);
            packed
        }
        // Writing to memory does not fail; if a codec refuses, the records travel as they are.
        _ => batch,
    }
}

/// The same batch without compression, for [`record_batch::records`]; `None` if it has none. At most
/// `bytes_max` bytes of records.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(batch: &[u8], bytes_max: usize) -> Result<Option<Bytes>, UnpackError> {
    let compression = Header::decode(batch)?.attributes.compression()?;
    if compression == Compression::None {
        return Ok(None);
    }
    let packed = &batch[HEADER_BYTES..];
    let damaged = |error: io::Error| UnpackError::Damaged { compression, reason: error.to_string() };
    let mut plain = Vec::with_capacity(HEADER_BYTES + (4 * packed.len()).min(bytes_max));
    plain.resize(HEADER_BYTES, 0);
    match compression {
        Compression::None => {}
        Compression::Gzip => {
            read(flate2::read::MultiGzDecoder::new(packed), bytes_max, &mut plain).map_err(damaged)?
        }
        Compression::Lz4 => {
            read(lz4_flex::frame::FrameDecoder::new(packed), bytes_max, &mut plain).map_err(damaged)?
        }
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(damaged)?;
            read(decoder, bytes_max, &mut plain).map_err(damaged)?;
        }
        Compression::Snappy => unsnap(packed, bytes_max, &mut plain).map_err(damaged)?,
    }
    if plain.len() - HEADER_BYTES > bytes_max {
        return Err(UnpackError::TooLarge { max: bytes_max });
    }
    record_batch::set_records(&mut plain, batch, Compression::None);
    Ok(Some(plain.into()))
}

fn pack(records: &[u8], compression: Compression, out: &mut Vec<u8>) -> io::Result<()> {
    match compression {
        Compression::None => out.extend_from_slice(records),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            encoder.write_all(records)?;
            encoder.finish()?;
        }
        Compression::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(out);
            encoder.write_all(records)?;
            encoder.finish().map_err(io::Error::other)?;
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL)?;
            encoder.set_pledged_src_size(Some(records.len() as u64))?;
            encoder.write_all(records)?;
            encoder.finish()?;
        }
        Compression::Snappy => {
            out.extend_from_slice(&SNAPPY_MAGIC);
            let mut encoder = snap::raw::Encoder::new();
            for block in records.chunks(SNAPPY_BLOCK_BYTES) {
                let start = out.len();
                out.resize(start + 4 + snap::raw::max_compress_len(block.len()), 0);
                let bytes = encoder.compress(block, &mut out[start + 4..])?;
                out[start..start + 4].copy_from_slice(&(bytes as u32).to_be_bytes());
                out.truncate(start + 4 + bytes);
            }
        }
    }
    Ok(())
}

/// Reads to the end, and no more than one byte past the bound.
fn read(decoder: impl Read, bytes_max: usize, out: &mut Vec<u8>) -> io::Result<()> {
    decoder.take(bytes_max as u64 + 1).read_to_end(out)?;
    Ok(())
}

fn unsnap(packed: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> io::Result<()> {
    if packed.get(..SNAPPY_MAGIC_BYTES) != Some(&SNAPPY_MAGIC[..SNAPPY_MAGIC_BYTES]) {
        return unsnap_block(packed, bytes_max, out);
    }
    let mut rest = packed.get(SNAPPY_MAGIC.len()..).ok_or(io::ErrorKind::UnexpectedEof)?;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (block, after) = after.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        unsnap_block(block, bytes_max, out)?;
        if out.len() - HEADER_BYTES > bytes_max {
            return Ok(());
        }
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn unsnap_block(block: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> io::Result<()> {
    let bytes = snap::raw::decompress_len(block)?;
    let start = out.len();
    if start - HEADER_BYTES + bytes > bytes_max {
        // Said by the length alone: nothing is unpacked.
        out.resize(HEADER_BYTES + bytes_max + 1, 0);
        return Ok(());
    }
    out.resize(start + bytes, 0);
    snap::raw::Decoder::new().decompress(block, &mut out[start..])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record_batch::BatchBuilder;

    const KINDS: [Compression; 4] =
        [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    fn batch(records: usize, value: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for n in 0..records {
            builder.append(1_700_000_000_000 + n as i64, Some(b"key"), Some(&value(n)), &[("h", Some(b"v"))]);
        }
        builder.finish()
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        for kind in KINDS {
            for records in [1, 10, 3000] {
                let plain =
                    batch(records, |n| format!("a value that repeats, {n}, {n}, {n}").repeat(3).into_bytes());
                let packed = compress(plain.clone(), kind);
                assert!(packed.len() < plain.len(), "{kind:?}, {records} records");
                let header = record_batch::validate_produced(&packed, usize::MAX).expect("brokers take it");
                assert_eq!(header.attributes.compression(), Ok(kind));
                assert_eq!(header.record_count as usize, records);
                let unpacked = unpack(&packed, 1 << 20).expect("it unpacks").expect("it was packed");
                assert_eq!(unpacked, plain, "{kind:?}, {records} records");
            }
        }
    }

    /// The records of `schema/testdata/compressed.py`.
    fn known() -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for n in 0..500 {
            let value = format!("a value that repeats, {n}; ").repeat(9);
            let key = format!("key-{n}");
            let headers: [(&str, Option<&[u8]>); 1] = [("h", Some(b"v"))];
            builder.append(1_700_000_000_000 + n, Some(key.as_bytes()), Some(value.as_bytes()), &headers);
        }
        builder.finish()
    }

    #[test]
    fn others_batches_are_unpacked() {
        let theirs: [(Compression, &[u8]); 4] = [
            (Compression::Gzip, include_bytes!("../testdata/compressed_gzip.bin")),
            (Compression::Snappy, include_bytes!("../testdata/compressed_snappy.bin")),
            (Compression::Lz4, include_bytes!("../testdata/compressed_lz4.bin")),
            (Compression::Zstd, include_bytes!("../testdata/compressed_zstd.bin")),
        ];
        for (kind, batch) in theirs {
            record_batch::verify(batch).expect("its checksum is right");
            let plain = unpack(batch, 1 << 20).expect("it unpacks").expect("it was packed");
            assert!(plain[HEADER_BYTES..] == known()[HEADER_BYTES..], "{kind:?}");
            // And ours, for them to unpack.
            if let Some(directory) = std::env::var_os("RINGLOG_COMPRESSED_OUT") {
                std::fs::create_dir_all(&directory).expect("a directory");
                let name = format!("compressed_{}.bin", kind.name());
                std::fs::write(std::path::Path::new(&directory).join(name), compress(known(), kind))
                    .expect("it can be written");
            }
        }
    }

    #[test]
    fn raw_snappy_is_unpacked() {
        let mut packed = compress(known(), Compression::Snappy);
        packed.truncate(HEADER_BYTES);
        let raw = snap::raw::Encoder::new().compress_vec(&known()[HEADER_BYTES..]).expect("it compresses");
        packed.extend_from_slice(&raw);
        let header = packed.clone();
        record_batch::set_records(&mut packed, &header, Compression::Snappy);
        let plain = unpack(&packed, 1 << 20).expect("it unpacks").expect("it was packed");
        assert!(plain == known());
    }

    #[test]
    fn what_does_not_shrink_stays() {
        let noise = batch(1, |_| (0..500).map(|_| fastrand::u8(..)).collect());
        for kind in KINDS {
            assert_eq!(compress(noise.clone(), kind), noise, "{kind:?}");
        }
        assert_eq!(unpack(&noise, 10), Ok(None));
    }

    #[test]
    fn bombs_and_damage_are_refused() {
        let plain = batch(1, |_| vec![0; 1 << 20]);
        for kind in KINDS {
            let packed = compress(plain.clone(), kind);
            assert_eq!(unpack(&packed, 1 << 19), Err(UnpackError::TooLarge { max: 1 << 19 }), "{kind:?}");
            assert!(unpack(&packed, plain.len()).is_ok(), "{kind:?}");
            for cut in [HEADER_BYTES + 1, HEADER_BYTES + 12, packed.len() / 2] {
                let cut = &packed[..cut];
                let outcome = unpack(cut, plain.len());
                assert!(
                    matches!(outcome, Err(UnpackError::Damaged { .. })),
                    "{kind:?} cut to {}: {outcome:?}",
                    cut.len()
                );
            }
            // Whatever the bytes, an answer.
            for _ in 0..200 {
                let mut wrong = packed.clone();
                for _ in 0..3 {
                    let at = fastrand::usize(HEADER_BYTES..wrong.len());
                    wrong[at] = fastrand::u8(..);
                }
                let _ = unpack(&wrong, plain.len());
            }
        }
    }
}
