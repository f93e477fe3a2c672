//! Records that prove themselves: every value names its maker and carries a hash of its own bytes.
//!
//! ```text
//! u64 maker, u64 number, u64 xxh64 of the rest, the rest
//! ```

use bytes::Bytes;
use schema::record_batch::BatchBuilder;
use xxhash_rust::xxh64::xxh64;

const HEAD_BYTES: usize = 24;

/// Makes values; no two of one maker are the same.
pub struct Maker {
    id: u64,
    number: u64,
    random: fastrand::Rng,
    noise: Vec<u8>,
    builder: BatchBuilder,
}

/// What a value says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Proof {
    /// Who made it.
    pub maker: u64,
    /// Which of his it is.
    pub number: u64,
    /// What its bytes hash to, head included.
    pub hash: u64,
}

/// A batch, and what its records say.
pub struct Made {
    /// Encoded.
    pub batch: Bytes,
    /// One per record.
    pub proofs: Vec<Proof>,
}

impl Maker {
    /// A maker whose values depend on `seed` and its own `id`.
    pub fn new(id: u64, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let noise = std::iter::repeat_with(|| random.u8(..)).take(1 << 20).collect();
        Self { id, number: 0, random, noise, builder: BatchBuilder::new() }
    }

    /// Its randomness, for choices that belong to its data.
    pub fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }

    /// A batch of `count` records with values of `value_bytes`.
    pub fn batch(&mut self, count: usize, value_bytes: usize) -> Made {
        let mut proofs = Vec::with_capacity(count);
        for _ in 0..count {
            let value = self.value(value_bytes);
            proofs.push(prove(&value).expect("it was just made"));
            self.builder.append(1_700_000_000_000 + self.number as i64, None, Some(&value), &[]);
        }
        Made { batch: self.builder.finish().into(), proofs }
    }

    /// One value of at least its head's size.
    pub fn value(&mut self, value_bytes: usize) -> Vec<u8> {
        let rest_bytes = value_bytes.saturating_sub(HEAD_BYTES).min(self.noise.len());
        let start = self.random.usize(..=self.noise.len() - rest_bytes);
        let rest = &self.noise[start..start + rest_bytes];
        self.number += 1;
        let mut value = Vec::with_capacity(HEAD_BYTES + rest_bytes);
        value.extend_from_slice(&self.id.to_le_bytes());
        value.extend_from_slice(&self.number.to_le_bytes());
        value.extend_from_slice(&xxh64(rest, self.id ^ self.number).to_le_bytes());
        value.extend_from_slice(rest);
        value
    }
}

/// What a value says, if its bytes are the ones that were made.
pub fn prove(value: &[u8]) -> Option<Proof> {
    let (head, rest) = value.split_at_checked(HEAD_BYTES)?;
    let word = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    let (maker, number, hash) = (word(0)?, word(8)?, word(16)?);
    (hash == xxh64(rest, maker ^ number)).then(|| Proof { maker, number, hash: xxh64(value, 0) })
}
