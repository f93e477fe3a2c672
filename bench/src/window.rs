//! The measured time of a run.
//!
//! One [`Measured`] per run, shared by its threads, which read it for every record. Written when the run starts,
//! and once more when a volume has been reached before the time. Invariant: an end that is brought forward lies
//! ahead of the clock when it is written, so that no record was intended behind it.

use std::sync::atomic::{AtomicU64, Ordering};

/// The measured time, nanoseconds of [`crate::stamp::now_ns`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From here on.
    pub from_ns: u64,
    /// Up to here.
    pub until_ns: u64,
}

impl Window {
    /// Whether a moment lies in it.
    pub fn holds(&self, at_ns: u64) -> bool {
        (self.from_ns..self.until_ns).contains(&at_ns)
    }
}

/// The measured time of a run: not known before it starts, brought to an end early by one that measures a volume.
#[derive(Debug)]
pub struct Measured {
    from_ns: AtomicU64,
    until_ns: AtomicU64,
}

impl Default for Measured {
    /// Nothing belongs to it.
    fn default() -> Self {
        Self { from_ns: AtomicU64::new(u64::MAX), until_ns: AtomicU64::new(u64::MAX) }
    }
}

impl Measured {
    /// It is to be `window`.
    pub fn begin(&self, window: Window) {
        self.until_ns.store(window.until_ns, Ordering::Relaxed);
        self.from_ns.store(window.from_ns, Ordering::Relaxed);
    }

    /// It ends at `until_ns`, which is not over yet.
    pub fn end(&self, until_ns: u64) {
        self.until_ns.store(until_ns, Ordering::Relaxed);
    }

    /// As it is known now.
    pub fn window(&self) -> Window {
        Window {
            from_ns: self.from_ns.load(Ordering::Relaxed),
            until_ns: self.until_ns.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_measured_before_it_begins_nor_after_it_was_ended() {
        let measured = Measured::default();
        assert!(!measured.window().holds(0) && !measured.window().holds(u64::MAX));
        measured.begin(Window { from_ns: 10, until_ns: 30 });
        let holds = |at_ns| measured.window().holds(at_ns);
        assert_eq!([9, 10, 29, 30].map(holds), [false, true, true, false]);
        measured.end(20);
        let holds = |at_ns| measured.window().holds(at_ns);
        assert_eq!([10, 19, 20, 29].map(holds), [true, true, false, false]);
    }
}
