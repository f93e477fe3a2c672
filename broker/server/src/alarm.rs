//! Wakes executors that sleep over tasks that could run.
//!
//! The runtime looks whether it is to preempt before it runs the first task, and takes a run without a task for an
//! idle one. What preempts it may be nobody's event: its own timer, or the notice of something that it has
//! seen already. Then it sleeps with tasks ready to run, until the next event. A timer does not help, its task may
//! be the one that is ready; a waker from another thread always makes it look again (docs/adr/0001-runtime.md).
//!
//! One thread for all shards, from the broker's start until its last shard has ended. Under load this happens
//! several times a second and would stand in the 99th percentile, so a shard that has had a request lately
//! is woken often; an idle one seldom, because each time costs it a sleep.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// The longest that a shard without requests sleeps over a task that could run.
const IDLE_INTERVAL: Duration = Duration::from_millis(5);
/// The same for one with requests.
const BUSY_INTERVAL: Duration = Duration::from_micros(500);
/// For so many busy intervals after its last request a shard counts as one with requests.
const BUSY_INTERVALS: u32 = 100;

/// The thread, as long as somebody has it.
#[derive(Clone)]
pub struct Alarm {
    asked: mpsc::Sender<Watched>,
}

struct Watched {
    waker: Waker,
    pulse: Arc<AtomicBool>,
    quiet_intervals: u32,
}

/// By which a shard says that it has work.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicBool>);

impl Pulse {
    /// There is a request.
    pub fn beat(&self) {
        // Written only when it changes: the line stays with this core.
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

impl Alarm {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has none.
    pub fn start() -> io::Result<Self> {
        let (asked, asking) = mpsc::channel();
        std::thread::Builder::new().name("ringlog-alarm".to_owned()).spawn(move || run(asking))?;
        Ok(Self { asked })
    }

    /// Has this executor woken for as long as it lives.
    pub fn watch(&self, pulse: &Pulse) {
        let mut asked = Some((self.asked.clone(), pulse.0.clone()));
        let wait_for_ever = std::future::poll_fn(move |context| {
            if let Some((asked, pulse)) = asked.take() {
                // The broker is gone if nobody listens; then the executor is about to end.
                let _ = asked.send(Watched { waker: context.waker().clone(), pulse, quiet_intervals: 0 });
            }
            Poll::<()>::Pending
        });
        glommio::spawn_local(wait_for_ever).detach();
    }
}

fn run(asking: mpsc::Receiver<Watched>) {
    let mut watched: Vec<Watched> = Vec::new();
    let mut interval = IDLE_INTERVAL;
    loop {
        match asking.recv_timeout(interval) {
            Ok(new) => watched.push(new),
            Err(RecvTimeoutError::Timeout) => interval = look(&mut watched, interval),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Wakes who is due after `interval`; the next interval.
fn look(watched: &mut [Watched], interval: Duration) -> Duration {
    let every_idle = (IDLE_INTERVAL.as_nanos() / BUSY_INTERVAL.as_nanos()) as u32;
    let mut busy = false;
    for one in watched {
        let passed = if interval == BUSY_INTERVAL { 1 } else { every_idle };
        one.quiet_intervals = match one.pulse.swap(false, Ordering::Relaxed) {
            true => 0,
            false => one.quiet_intervals.saturating_add(passed),
        };
        let is_busy = one.quiet_intervals < BUSY_INTERVALS;
        // Beside a busy one, an idle one is woken as seldom as alone.
        if is_busy || one.quiet_intervals % every_idle < passed {
            one.waker.wake_by_ref();
        }
        busy |= is_busy;
    }
    if busy { BUSY_INTERVAL } else { IDLE_INTERVAL }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn busy_shards_are_woken_often_and_idle_ones_seldom() {
        let counts = [Arc::new(Count::default()), Arc::new(Count::default())];
        let pulses = [Pulse::default(), Pulse::default()];
        let mut watched: Vec<Watched> = (counts.iter().zip(&pulses))
            .map(|(count, pulse)| Watched {
                waker: count.clone().into(),
                pulse: pulse.0.clone(),
                quiet_intervals: BUSY_INTERVALS,
            })
            .collect();
        let woken = || counts.iter().map(|count| count.0.swap(0, Ordering::Relaxed)).collect::<Vec<_>>();
        let mut interval = IDLE_INTERVAL;
        let mut pass = |intervals: u32, watched: &mut [Watched]| {
            for _ in 0..intervals {
                interval = look(watched, interval);
            }
            interval
        };
        assert_eq!((pass(10, &mut watched), woken()), (IDLE_INTERVAL, vec![10, 10]));
        pulses[1].beat();
        assert_eq!((pass(1, &mut watched), woken()), (BUSY_INTERVAL, vec![1, 1]));
        assert_eq!((pass(50, &mut watched), woken()), (BUSY_INTERVAL, vec![5, 50]));
        // Busy until the last of its intervals, then idle.
        assert_eq!(pass(BUSY_INTERVALS - 51, &mut watched), BUSY_INTERVAL);
        woken();
        assert_eq!(pass(1, &mut watched), IDLE_INTERVAL);
        woken();
        assert_eq!((pass(10, &mut watched), woken()), (IDLE_INTERVAL, vec![10, 10]));
    }
}
