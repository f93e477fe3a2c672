//! Memory at the alignment that `O_DIRECT` asks for.
//!
//! Owned by one measurement, never resized. Filled with bytes that neither compress nor are all zero, so
//! that no layer below can treat them as a hole.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of the address, bytes: enough for every device with blocks of up to 4 KiB.
pub(crate) const ALIGNMENT_BYTES: usize = 4096;

/// A fixed block of aligned memory.
pub(crate) struct AlignedBuffer {
    start: NonNull<u8>,
    bytes: usize,
}

impl AlignedBuffer {
    /// `bytes` (at least 1) of a fixed pseudo-random pattern.
    pub(crate) fn patterned(bytes: usize) -> Self {
        let layout = Self::layout(bytes);
        assert!(bytes > 0, "an aligned buffer of no bytes");
        // SAFETY: the layout's size is not zero, asserted above.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: `start` is valid for `bytes` writes; this also initialises all that `deref` exposes.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        let mut buffer = Self { start, bytes };
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for chunk in buffer.chunks_mut(8) {
            // xorshift64: cheap, and long enough a period for any buffer.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        buffer
    }

    /// `bytes` zeros.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let mut buffer = Self::patterned(bytes);
        buffer.fill(0);
        buffer
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, ALIGNMENT_BYTES).expect("a buffer of sane size")
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is owned, initialised over its whole length, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `alloc` with the same layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_not_compressible() {
        let buffer = AlignedBuffer::patterned(8192 + 3);
        assert_eq!(buffer.as_ptr() as usize % ALIGNMENT_BYTES, 0);
        assert_eq!(buffer.len(), 8195);
        assert_ne!(buffer[..4096], buffer[4096..8192]);
        assert!(AlignedBuffer::zeroed(4096).iter().all(|byte| *byte == 0));
    }
}
