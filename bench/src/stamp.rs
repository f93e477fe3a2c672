//! The stamp in every payload: when the record was meant to be sent, and by which run.
//!
//! Times are nanoseconds of the host's monotonic clock, so that producer and consumer may be different
//! processes of one host. Records of another run are told apart and do not count.

use rustix::time::{ClockId, clock_gettime};

/// Bytes at the start of every payload.
pub const STAMP_BYTES: usize = 16;

/// Nanoseconds of the host's monotonic clock.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What a payload says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// When it was meant to be sent.
    pub intended_ns: u64,
    /// The run that sent it.
    pub run: u64,
}

impl Stamp {
    /// Writes it over the start of a payload of at least [`STAMP_BYTES`].
    pub fn write(self, payload: &mut [u8]) {
        payload[..8].copy_from_slice(&self.intended_ns.to_le_bytes());
        payload[8..STAMP_BYTES].copy_from_slice(&self.run.to_le_bytes());
    }

    /// Reads it from a payload, if it is long enough.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (intended_ns, rest) = payload.split_first_chunk::<8>()?;
        let run = rest.first_chunk::<8>()?;
        Some(Self { intended_ns: u64::from_le_bytes(*intended_ns), run: u64::from_le_bytes(*run) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let stamp = Stamp { intended_ns: now_ns(), run: 77 };
        let mut payload = [0xff; 20];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert_eq!(payload[STAMP_BYTES..], [0xff; 4]);
        assert_eq!(Stamp::read(&payload[..STAMP_BYTES - 1]), None);
        assert!(now_ns() >= stamp.intended_ns);
    }
}
