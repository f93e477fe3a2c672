//! Two questions that no file answers: how long a wake-up on another core takes, and what the kernel thinks
//! of its clock.
//!
//! Each makes its own threads and descriptors, and leaves none behind. A wake-up takes some milliseconds to
//! measure, all of them: whoever is loading the host at the time is part of the answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

/// Round trips that are measured, after as many tenths that are not.
const ROUND_TRIPS: usize = 300;

/// Whether the clock is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockState {
    /// Whether somebody keeps it in step with another clock.
    pub(crate) synchronised: bool,
    /// The largest error that the kernel reckons with, us.
    pub(crate) error_us_max: i64,
}

/// Half of the median round trip between threads on the first two of `cores` that sleep in a read of an
/// event counter: from the write until the sleeper runs. `None` where there are no two cores.
pub(crate) fn wake_up(cores: &[usize]) -> Option<Duration> {
    let [first, second, ..] = *cores else { return None };
    let there = event_counter().ok()?;
    let back = event_counter().ok()?;
    let round_trips = ROUND_TRIPS + ROUND_TRIPS / 10;
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| {
            // Where pinning is forbidden the kernel has spread them anyway.
            let _ = pin(second);
            (0..round_trips).try_for_each(|_| receive(&there).and_then(|()| send(&back)))
        });
        let measure = scope.spawn(|| -> io::Result<Vec<Duration>> {
            let _ = pin(first);
            let mut times = Vec::with_capacity(round_trips);
            for _ in 0..round_trips {
                let start = Instant::now();
                send(&there)?;
                receive(&back)?;
                times.push(start.elapsed());
            }
            Ok(times)
        });
        let times = measure.join().ok()?.ok();
        echo.join().ok()?.ok()?;
        let mut times = times?.split_off(ROUND_TRIPS / 10);
        times.sort_unstable();
        Some(times[times.len() / 2] / 2)
    })
}

fn event_counter() -> io::Result<File> {
    // SAFETY: takes two numbers.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

fn send(mut counter: &File) -> io::Result<()> {
    counter.write_all(&1_u64.to_ne_bytes())
}

fn receive(mut counter: &File) -> io::Result<()> {
    counter.read_exact(&mut [0; 8])
}

/// Puts the calling thread on `core`.
fn pin(core: usize) -> io::Result<()> {
    // SAFETY: a set of bits, for which zeros are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if core >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `core` is a bit of the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` is as large as it is said to be, and outlives the call; 0 is this thread.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks without setting anything, which everybody may.
pub(crate) fn clock_state() -> Option<ClockState> {
    // SAFETY: plain data, for which zeros are valid; no mode bit means that nothing is set.
    let mut answer: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `answer` is valid for writes during the call.
    let state = unsafe { libc::adjtimex(&mut answer) };
    let synchronised = state != libc::TIME_ERROR && answer.status & libc::STA_UNSYNC == 0;
    (state >= 0).then_some(ClockState { synchronised, error_us_max: answer.maxerror })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_takes_time_and_needs_two_cores() {
        assert_eq!(wake_up(&[]), None);
        assert_eq!(wake_up(&[0]), None);
        // Cores that are not there: the threads run anyway.
        assert!(wake_up(&[100_000, 100_001]).unwrap() > Duration::ZERO);
    }

    #[test]
    fn the_clock_is_asked() {
        let state = clock_state().unwrap();
        assert!(state.error_us_max >= 0, "{state:?}");
    }
}
