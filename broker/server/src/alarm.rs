//! Wakes the executors of all shards now and then, so that none sleeps over tasks that could run.
//!
//! One thread per broker; it lives as long as the last shard. The runtime looks whether it is to preempt
//! before it runs the first task, and takes a run without a task for an idle one. What preempts it may be
//! nobody's event: its own timer, or the notice of something that it has seen already. Then it sleeps with
//! tasks ready to run, until the next event: at a start or a stop there may be none. A timer does not help,
//! its task may be the one that is ready. A waker from another thread always makes it look again; and before
//! its first task has run there is no waker yet, so the thread itself is interrupted: a signal ends the
//! system call that it sleeps in. Seen: one start in three thousand, on a busy host, with a preemption of 1 ms.
//!
//! With a runtime that looks again by itself this file goes (docs/adr/0001-runtime.md).

use std::future::poll_fn;
use std::io;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// The longest that a shard sleeps over a task that could run.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Ignored unless somebody handles it, and of no other use to a server.
const SIGNAL: libc::c_int = libc::SIGURG;

/// The way to the alarm; it ends when the last clone is dropped.
#[derive(Clone)]
pub struct Alarm(mpsc::Sender<Request>);

struct Request {
    shard: usize,
    how: How,
}

/// How a shard is woken.
enum How {
    /// Its executor has run no task yet: the thread of this number.
    Signal(libc::pid_t),
    /// As everybody else wakes it.
    Waker(Waker),
}

impl Alarm {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread, or does not let the signal be handled.
    pub fn start() -> io::Result<Self> {
        handle_signal()?;
        let (sender, requests) = mpsc::channel();
        std::thread::Builder::new().name("ringlog-alarm".to_owned()).spawn(move || ring(&requests))?;
        Ok(Self(sender))
    }

    /// Has this thread interrupted until [`Self::keep_awake`] has run as a task of its executor.
    pub fn watch_thread(&self, shard: usize) {
        // SAFETY: takes nothing, and cannot fail.
        self.ask(shard, How::Signal(unsafe { libc::gettid() }));
    }

    /// Has this executor woken for as long as it lives. Called by a task of it.
    pub fn keep_awake(&self, shard: usize) {
        let mut alarm = Some(self.clone());
        let wait_for_ever = poll_fn(move |context| {
            if let Some(alarm) = alarm.take() {
                alarm.ask(shard, How::Waker(context.waker().clone()));
            }
            Poll::<()>::Pending
        });
        glommio::spawn_local(wait_for_ever).detach();
    }

    fn ask(&self, shard: usize, how: How) {
        // The thread listens as long as there is somebody to ask.
        let _ = self.0.send(Request { shard, how });
    }
}

fn ring(requests: &mpsc::Receiver<Request>) {
    let mut shards: Vec<Request> = Vec::new();
    loop {
        match requests.recv_timeout(SLEEP_MAX) {
            Ok(request) => {
                shards.retain(|known| known.shard != request.shard);
                shards.push(request);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => shards.retain(|request| request.how.wake()),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl How {
    /// Wakes it; `false` = it is gone.
    fn wake(&self) -> bool {
        match self {
            How::Waker(waker) => {
                waker.wake_by_ref();
                true
            }
            // SAFETY: takes no memory. A number that has passed on to another thread of ours is no harm: the
            // handler does nothing.
            How::Signal(thread) => unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), *thread, SIGNAL) == 0
            },
        }
    }
}

/// Lets the signal interrupt: one that nobody handles is not even delivered. A handler that the process has
/// already stays.
fn handle_signal() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: both structures are ours, and zeros are a valid action: the default. The handler does nothing,
    // which is allowed at any point of any thread.
    let handled = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(SIGNAL, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_DFL
        {
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) == 0
        } else {
            action.sa_sigaction != libc::SIG_DFL
        }
    };
    if handled { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_in_the_kernel_is_interrupted_until_its_executor_has_a_waker() {
        let alarm = Alarm::start().expect("a thread");
        let (sender, interrupted) = mpsc::channel();
        let watching = alarm.clone();
        std::thread::spawn(move || {
            watching.watch_thread(0);
            // Nothing is ever written: only a signal ends this.
            let ring = io_uring::IoUring::new(2).expect("a ring");
            let slept = ring.submit_and_wait(1);
            let _ = sender.send(slept.map_err(|error| error.kind()));
        });
        let slept = interrupted.recv_timeout(Duration::from_secs(60)).expect("the signal came");
        assert_eq!(slept, Err(io::ErrorKind::Interrupted));
    }

    #[test]
    fn the_thread_ends_with_the_last_who_asks() {
        let (sender, requests) = mpsc::channel();
        drop(sender);
        ring(&requests);
    }
}
