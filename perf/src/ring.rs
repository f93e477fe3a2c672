//! One io_uring, driven by the thread that owns it: push, wait, take.
//!
//! Invariant: a ring never outlives its operations. Dropping it waits for everything in flight, so that
//! buffers declared before it (and dropped after it) are never written to after they are freed.
//! Absent on purpose: DEFER_TASKRUN, draining and linked operations; a ceiling shows the plain case.

use io_uring::{IoUring, squeue};
use std::io;

/// A ring and the count of what it owes.
pub(crate) struct Ring {
    ring: IoUring,
    unsubmitted: usize,
    in_flight: usize,
}

impl Ring {
    /// A ring of `entries` (rounded up to a power of two by the kernel).
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let ring = IoUring::builder().setup_coop_taskrun().setup_single_issuer().build(entries);
        // The flags are of Linux 6.0; an older kernel answers EINVAL and works without them.
        let ring = ring.or_else(|_| IoUring::new(entries))?;
        Ok(Self { ring, unsubmitted: 0, in_flight: 0 })
    }

    /// Queues one operation; it goes to the kernel with the next [`Ring::wait`].
    ///
    /// # Safety
    /// What the entry points to must stay valid until its completion was taken or the ring was dropped.
    pub(crate) unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the caller keeps the entry's memory alive, by this function's contract.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "more operations than the ring was made for");
        self.unsubmitted += 1;
        self.in_flight += 1;
    }

    /// Submits what is queued, waits for one completion, returns its user data and result.
    pub(crate) fn wait(&mut self) -> io::Result<(u64, i32)> {
        assert!(self.in_flight > 0, "a wait for nothing");
        loop {
            let ready = !self.ring.completion().is_empty();
            if self.unsubmitted > 0 || !ready {
                match self.ring.submit_and_wait(usize::from(!ready)) {
                    Ok(submitted) => self.unsubmitted -= submitted.min(self.unsubmitted),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            }
            if let Some(entry) = self.ring.completion().next() {
                self.in_flight -= 1;
                return Ok((entry.user_data(), entry.result()));
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if self.wait().is_err() {
                // Memory that the kernel may still write to must not be freed.
                std::process::abort();
            }
        }
    }
}
