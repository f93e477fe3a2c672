//! When a producer is to send: at a fixed rate, whatever became of the records before.
//!
//! One per producer. The n-th record's time is a multiple of the interval after the start, so a producer
//! that was held up finds its records overdue and their latency counts the wait (coordinated omission).
//! Waits on a timer of the kernel's own, because the runtime's has a grain of a millisecond.

use crate::stamp::now_ns;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Gives one producer its times.
pub struct Pacer {
    timer: AsyncFd<OwnedFd>,
    start_ns: u64,
    per_second: f64,
    next: u64,
}

impl Pacer {
    /// The first record is due at `start_ns`, then `per_second` of them. Call inside a runtime.
    ///
    /// # Errors
    /// The kernel gives no timer.
    pub fn new(start_ns: u64, per_second: f64) -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: the descriptor is owned by what is registered, which never gives it away or closes it
        // before its own end.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE)? };
        Ok(Self { timer, start_ns, per_second, next: 0 })
    }

    /// When the next record is due; ends then, at once if that is past.
    ///
    /// # Errors
    /// The timer fails.
    pub async fn next(&mut self) -> io::Result<u64> {
        let due_ns = self.start_ns + (self.next as f64 * 1e9 / self.per_second) as u64;
        self.next += 1;
        if now_ns() >= due_ns {
            return Ok(due_ns);
        }
        let at = Timespec { tv_sec: (due_ns / 1_000_000_000) as i64, tv_nsec: (due_ns % 1_000_000_000) as _ };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Itimerspec { it_interval: never, it_value: at };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &value)?;
        loop {
            let mut ready = self.timer.readable().await?;
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut [0u8; 8])?));
            if let Ok(read) = read {
                read?;
            }
            if now_ns() >= due_ns {
                return Ok(due_ns);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn times_are_those_of_the_rate_however_late_the_producer_is() {
        let start_ns = now_ns();
        let mut pacer = Pacer::new(start_ns, 2000.0).unwrap();
        let mut due = Vec::new();
        for _ in 0..20 {
            let at = pacer.next().await.unwrap();
            assert!(now_ns() >= at, "too early");
            due.push(at - start_ns);
        }
        let expect: Vec<u64> = (0..20).map(|n| n * 500_000).collect();
        assert_eq!(due, expect);
        // A producer that comes late gets its overdue times without waiting.
        let mut late = Pacer::new(now_ns() - 1_000_000_000, 1000.0).unwrap();
        let before = now_ns();
        for n in 0..900 {
            assert!(late.next().await.unwrap() < before, "{n} was due long ago");
        }
    }
}
