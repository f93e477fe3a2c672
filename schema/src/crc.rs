//! Putting CRC-32C values together without reading the bytes again.
//!
//! The checksum of `a` followed by `b` is that of `a`, carried over as many zero bits as `b` has, and that
//! of `b`. Carrying over is a multiplication by a power of x modulo the polynomial: a few hundred
//! instructions, where the matrices of the `crc32c` crate take tens of microseconds, and reading 1 MiB
//! about fifty. Computing a checksum is that crate's.

/// The CRC-32C of `bytes`.
pub fn of(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The polynomial, reflected: bit 31 is x⁰.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const ONE: u32 = 1 << 31;

/// x to the power of 2^k; enough for any length in bits.
const POWERS: [u32; 67] = {
    let mut powers = [ONE >> 1; 67];
    let mut k = 1;
    while k < powers.len() {
        powers[k] = multiply(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
};

/// The product of two polynomials modulo the polynomial.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut rest = a;
    while rest != 0 {
        if rest & ONE != 0 {
            product ^= b;
        }
        rest <<= 1;
        b = if b & 1 == 0 { b >> 1 } else { (b >> 1) ^ POLYNOMIAL };
    }
    product
}

/// The CRC-32C of some bytes followed by others: `first` is that of the ones, `second` that of the
/// `second_bytes` others.
pub fn combine(first: u32, second: u32, second_bytes: usize) -> u32 {
    let mut carry = ONE;
    let mut rest = second_bytes;
    // Eight bits to the byte.
    let mut k = 3;
    while rest > 0 {
        if rest & 1 == 1 {
            carry = multiply(POWERS[k], carry);
        }
        rest >>= 1;
        k += 1;
    }
    multiply(carry, first) ^ second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_reading_everything() {
        let bytes: Vec<u8> = (0..70_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for total in [0, 1, 2, 60, 61, 255, 4096, 65_535, 70_000] {
            let whole = crc32c::crc32c(&bytes[..total]);
            for first in [0, 1, 7, 40, total / 2, total] {
                let (a, b) = bytes[..total].split_at(first.min(total));
                assert_eq!(
                    combine(crc32c::crc32c(a), crc32c::crc32c(b), b.len()),
                    whole,
                    "{first} of {total}"
                );
            }
        }
    }

    #[test]
    fn it_agrees_with_the_matrices_for_any_length() {
        for bit in 0..usize::BITS - 4 {
            for bytes in [2usize << bit, (2 << bit) + 1, (2 << bit) - 1] {
                let matrices = crc32c::crc32c_combine(0xdead_beef, 0x0123_4567, bytes);
                assert_eq!(combine(0xdead_beef, 0x0123_4567, bytes), matrices, "{bytes}");
            }
        }
    }
}
