//! Zigzag variable-length integers, as records use them, and a cursor that reads them.
//!
//! Source: the Kafka protocol guide (`varint`, `varlong`), the encoding of Protocol Buffers' `sint32`
//! and `sint64`. Owned by the iteration that made it. Invariants: one and two bytes, nearly all of a
//! real batch, never enter the loop; a number with bits beyond its type is refused, as is one that does
//! not end. Absent on purpose: refusing over-long encodings of small numbers, which other encoders are
//! free to use.

/// Most bytes of a `varint`.
pub const VARINT_BYTES_MAX: usize = 5;
/// Most bytes of a `varlong`.
pub const VARLONG_BYTES_MAX: usize = 10;

/// Bytes still to be read.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn len(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    pub fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    #[inline]
    pub fn varint(&mut self) -> Option<i32> {
        let raw = match *self.rest {
            [a, ref rest @ ..] if a < 0x80 => {
                self.rest = rest;
                u32::from(a)
            }
            [a, b, ref rest @ ..] if b < 0x80 => {
                self.rest = rest;
                u32::from(a & 0x7f) | u32::from(b) << 7
            }
            _ => u32::try_from(self.long(VARINT_BYTES_MAX)?).ok()?,
        };
        Some((raw >> 1) as i32 ^ -((raw & 1) as i32))
    }

    #[inline]
    pub fn varlong(&mut self) -> Option<i64> {
        let raw = match *self.rest {
            [a, ref rest @ ..] if a < 0x80 => {
                self.rest = rest;
                u64::from(a)
            }
            [a, b, ref rest @ ..] if b < 0x80 => {
                self.rest = rest;
                u64::from(a & 0x7f) | u64::from(b) << 7
            }
            _ => self.long(VARLONG_BYTES_MAX)?,
        };
        Some((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    #[cold]
    fn long(&mut self, bytes_max: usize) -> Option<u64> {
        let mut raw = 0u64;
        for (index, &byte) in self.rest.iter().take(bytes_max).enumerate() {
            let shift = index as u32 * 7;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte of a varlong has room for one bit.
            if shift == 63 && bits > 1 {
                return None;
            }
            raw |= bits << shift;
            if byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Some(raw);
            }
        }
        None
    }
}

/// Appends `value` as a varlong; a varint is the same bytes.
#[inline]
pub fn put(out: &mut Vec<u8>, value: i64) {
    let mut raw = zigzag(value);
    if raw < 0x80 {
        out.push(raw as u8);
        return;
    }
    let mut bytes = [0; VARLONG_BYTES_MAX];
    let mut length = 0;
    while raw >= 0x80 {
        bytes[length] = raw as u8 | 0x80;
        raw >>= 7;
        length += 1;
    }
    bytes[length] = raw as u8;
    out.extend_from_slice(&bytes[..=length]);
}

/// How many bytes [`put`] appends.
#[inline]
pub fn bytes_of(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `bytes` alone and with more behind them; `None` is "refused".
    fn check(bytes: &[u8], varint: Option<i32>, varlong: Option<i64>) {
        for (tail, name) in [(&[][..], "alone"), (&[0xff; 12][..], "followed")] {
            let whole = [bytes, tail].concat();
            let mut cursor = Cursor::new(&whole);
            // What is left after a refused number means nothing.
            let found = cursor.varint().map(|value| (value, cursor.len()));
            assert_eq!(found, varint.map(|value| (value, tail.len())), "varint {bytes:02x?} {name}");
            let mut cursor = Cursor::new(&whole);
            let found = cursor.varlong().map(|value| (value, cursor.len()));
            assert_eq!(found, varlong.map(|value| (value, tail.len())), "varlong {bytes:02x?} {name}");
        }
    }

    #[test]
    fn known_encodings() {
        check(&[0], Some(0), Some(0));
        check(&[1], Some(-1), Some(-1));
        check(&[0x7e], Some(63), Some(63));
        check(&[0x7f], Some(-64), Some(-64));
        check(&[0x80, 0x01], Some(64), Some(64));
        check(&[0xfe, 0x7f], Some(8191), Some(8191));
        check(&[0x80, 0x80, 0x01], Some(8192), Some(8192));
        // Over-long zero.
        check(&[0x80, 0x80, 0x00], Some(0), Some(0));
        check(&[0xfe, 0xff, 0xff, 0xff, 0x0f], Some(i32::MAX), Some(i32::MAX.into()));
        check(&[0xff, 0xff, 0xff, 0xff, 0x0f], Some(i32::MIN), Some(i32::MIN.into()));
        // One bit more than 32.
        check(&[0x80, 0x80, 0x80, 0x80, 0x10], None, Some(1 << 31));
        check(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], None, Some(i64::MAX));
        check(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], None, Some(i64::MIN));
        // One bit more than 64.
        check(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], None, None);
        check(&[0xff; 11], None, None);
    }

    #[test]
    fn cut_off_numbers_are_refused() {
        for bytes in [&[][..], &[0x80], &[0x80, 0x80], &[0xff; 4], &[0xff; 9]] {
            assert_eq!(Cursor::new(bytes).varint(), None, "{bytes:02x?}");
            assert_eq!(Cursor::new(bytes).varlong(), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn every_length_survives() {
        for shift in 0..64 {
            for value in [1i64 << shift, (1i64 << shift).wrapping_sub(1), (1i64 << shift).wrapping_neg()] {
                let mut out = Vec::new();
                put(&mut out, value);
                assert_eq!(out.len(), bytes_of(value), "{value}");
                assert_eq!(Cursor::new(&out).varlong(), Some(value));
                assert_eq!(Cursor::new(&out).varint(), i32::try_from(value).ok(), "{value}");
            }
        }
    }
}
