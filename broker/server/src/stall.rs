//! Who held a core for too long: every task of a shard is polled under a watch.
//!
//! Owner: the thread of a shard, which is its executor; nothing here is seen by another thread. A task that does
//! not yield for [`STALL_MS`] keeps every connection and every flush of its core waiting: it is counted, and named
//! with the request that it was doing, in a notice. Lifecycle: [`spawn`] wraps a task → its poll begins → [`doing`]
//! names a request → the poll ends, and was short or is a stall. Invariants: costs two looks at the clock per poll
//! and one per request; keeps the last [`STALLS_KEPT`] notices.
//! Absent on purpose: the runtime's own detector (a signal and a backtrace in a handler, and no word of which
//! request it was), and a stall that does not end: from outside, `/health/live` finds that.

use logic::limits::{STALL_MS, STALLS_KEPT};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Lets everything else run that is ready.
pub async fn give_way() {
    let mut first = true;
    poll_fn(|context| {
        if std::mem::take(&mut first) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

/// Spawns a task of this shard; `name` completes "held by".
pub fn spawn<F: Future + 'static>(name: &'static str, task: F) -> glommio::Task<F::Output> {
    glommio::spawn_local(async move {
        let mut task = pin!(task);
        poll_fn(|context| {
            WATCH.with(Watch::begin);
            let began = Instant::now();
            let polled = task.as_mut().poll(context);
            WATCH.with(|watch| watch.end(name, began, Instant::now()));
            polled
        })
        .await
    })
}

/// From here on, until the next call or the end of the poll, the task works on this request.
pub fn doing(request: &'static str, peer: SocketAddr) {
    WATCH.with(|watch| watch.doing(request, peer, Instant::now()));
}

/// What this shard's thread has seen.
pub fn seen() -> Stalls {
    WATCH.with(|watch| watch.seen.borrow().clone())
}

/// Stalls since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// How many.
    pub count: u64,
    /// How long, all together, milliseconds.
    pub total_ms: u64,
    /// The longest, milliseconds.
    pub longest_ms: u64,
    /// The last ones in words, oldest first.
    pub notices: VecDeque<String>,
}

#[derive(Clone, Copy)]
struct Step {
    request: &'static str,
    peer: SocketAddr,
    began: Instant,
}

#[derive(Default)]
struct Watch {
    step: Cell<Option<Step>>,
    /// Of the steps of this poll that have ended, the longest.
    longest: Cell<Option<(Step, Duration)>>,
    seen: RefCell<Stalls>,
}

thread_local! {
    static WATCH: Watch = Watch::default();
}

impl Watch {
    fn begin(&self) {
        self.step.set(None);
        self.longest.set(None);
    }

    fn doing(&self, request: &'static str, peer: SocketAddr, now: Instant) {
        self.end_step(now);
        self.step.set(Some(Step { request, peer, began: now }));
    }

    fn end_step(&self, now: Instant) {
        let Some(step) = self.step.take() else { return };
        let took = now - step.began;
        if self.longest.get().is_none_or(|(_, longest)| took > longest) {
            self.longest.set(Some((step, took)));
        }
    }

    fn end(&self, task: &'static str, began: Instant, now: Instant) {
        let took = now - began;
        if took < Duration::from_millis(STALL_MS) {
            return;
        }
        self.end_step(now);
        let ms = took.as_millis() as u64;
        let request = match self.longest.get() {
            Some((Step { request, peer, .. }, own)) => {
                format!(", {} ms of it {request} of {peer}", own.as_millis())
            }
            None => String::new(),
        };
        let notice = format!("STALL: this core was held for {ms} ms by {task}{request}");
        tracing::warn!("{notice}");
        let mut seen = self.seen.borrow_mut();
        seen.count += 1;
        seen.total_ms += ms;
        seen.longest_ms = seen.longest_ms.max(ms);
        if seen.notices.len() == STALLS_KEPT {
            seen.notices.pop_front();
        }
        seen.notices.push_back(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of one poll: each a request, if any, and how long it takes, milliseconds.
    type Steps<'a> = &'a [(Option<&'static str>, u64)];

    /// Polls with made-up times; the notices and the longest of all.
    fn check(polls: &[Steps], notices: &[&str], longest_ms: u64) {
        let watch = Watch::default();
        let peer = SocketAddr::from(([127, 0, 0, 1], 7));
        let mut now = Instant::now();
        for steps in polls {
            watch.begin();
            let began = now;
            for (request, ms) in *steps {
                if let Some(request) = request {
                    watch.doing(request, peer, now);
                }
                now += Duration::from_millis(*ms);
            }
            watch.end("a task", began, now);
        }
        let seen = watch.seen.borrow();
        let expect: Vec<String> =
            notices.iter().map(|text| format!("STALL: this core was held for {text}")).collect();
        assert_eq!(seen.notices, expect);
        assert_eq!((seen.count, seen.longest_ms), (notices.len() as u64, longest_ms));
    }

    #[test]
    fn who_held_the_core_is_named() {
        check(&[&[]], &[], 0);
        check(&[&[(None, STALL_MS - 1)], &[(Some("Produce"), STALL_MS - 1)]], &[], 0);
        check(&[&[(None, 50)]], &["50 ms by a task"], 50);
        // The request that took longest, wherever it stands; not one of an earlier poll.
        check(
            &[
                &[(Some("Produce"), 20)],
                &[(None, 5), (Some("Fetch"), 60), (Some("Produce"), 10)],
                &[(None, 70)],
            ],
            &["75 ms by a task, 60 ms of it Fetch of 127.0.0.1:7", "70 ms by a task"],
            75,
        );
    }

    #[test]
    fn the_last_notices_are_kept() {
        let watch = Watch::default();
        let began = Instant::now();
        for ms in 0..2 * STALLS_KEPT as u64 {
            watch.end("a task", began, began + Duration::from_millis(100 + ms));
        }
        let seen = watch.seen.borrow();
        assert_eq!((seen.count, seen.notices.len()), (2 * STALLS_KEPT as u64, STALLS_KEPT));
        let last = format!("{} ms", 100 + 2 * STALLS_KEPT as u64 - 1);
        assert!(seen.notices.back().is_some_and(|notice| notice.contains(&last)), "{seen:?}");
    }

    #[test]
    fn a_task_that_does_not_yield_is_found_in_a_real_executor() {
        let run = glommio::LocalExecutorBuilder::default().spawn(|| async {
            spawn("a short task", async {}).await;
            // The planted stall: it holds the core, and gives it back in the middle.
            spawn("a long task", async {
                let until = Instant::now() + Duration::from_millis(STALL_MS);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                futures_util::future::ready(()).await;
            })
            .await;
            seen()
        });
        let seen = run.expect("an executor").join().expect("it ends");
        assert_eq!(seen.count, 1, "{seen:?}");
        assert!(seen.notices[0].contains("by a long task"), "{seen:?}");
    }
}
