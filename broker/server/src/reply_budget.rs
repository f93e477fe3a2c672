//! A bound on reply bytes: those that wait for a socket, and those that a fetch under way may still add.
//!
//! One per connection and one per shard, the connection's taken first. A fetch reserves the most that its
//! answer can be before it reads, and gives the reservation back when the answer is queued (which counts by
//! itself) or has failed. Whoever finds no room waits in order; room goes to the first in the line, so that
//! a large fetch is not starved by small ones.
//!
//! Invariants: reservations are only given while they and the queued bytes fit together; a reservation that
//! is dropped, or was given to somebody who has left, is given back. Nobody waits for a budget of this kind
//! with a reservation of the same one, so the first in the line can always go on once sockets take bytes.
//! Small replies (receipts, errors) are counted but not held up. Absent on purpose: time, and the runtime.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Reply bytes, queued and reserved, at most so many.
#[derive(Debug)]
pub struct ReplyBudget {
    bytes_max: usize,
    queued_bytes: Cell<usize>,
    reserved_bytes: Cell<usize>,
    line: RefCell<VecDeque<Rc<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    bytes: usize,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Rc<ReplyBudget>,
    bytes: usize,
}

/// Waits in the line; leaves it when dropped.
#[derive(Debug)]
pub struct Reserving {
    budget: Rc<ReplyBudget>,
    waiting: Rc<Waiting>,
}

impl ReplyBudget {
    /// A budget of which nothing is used.
    pub fn new(bytes_max: usize) -> Rc<Self> {
        Rc::new(Self {
            bytes_max,
            queued_bytes: Cell::new(0),
            reserved_bytes: Cell::new(0),
            line: RefCell::default(),
        })
    }

    /// Bytes of replies that wait for their sockets.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes.get()
    }

    /// Bytes that are promised to fetches under way.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved_bytes.get()
    }

    /// A reply was queued.
    pub fn queued(&self, bytes: usize) {
        self.queued_bytes.set(self.queued_bytes.get() + bytes);
    }

    /// Queued bytes were sent, or thrown away with their connection.
    pub fn sent(&self, bytes: usize) {
        self.queued_bytes.set(self.queued_bytes.get() - bytes);
        self.serve_line();
    }

    /// Takes `bytes` at once; `None` if there is no room or somebody waits already.
    pub fn try_reserve(self: &Rc<Self>, bytes: usize) -> Option<Reservation> {
        if !self.line.borrow().is_empty() || !self.fits(bytes) {
            return None;
        }
        self.reserved_bytes.set(self.reserved_bytes.get() + bytes);
        Some(Reservation { budget: self.clone(), bytes })
    }

    /// Takes `bytes` when it is their turn. More than the whole budget is given when nothing else is used.
    pub fn reserve(self: &Rc<Self>, bytes: usize) -> Reserving {
        let waiting = Rc::new(Waiting { bytes, granted: Cell::new(false), waker: RefCell::default() });
        self.line.borrow_mut().push_back(waiting.clone());
        self.serve_line();
        Reserving { budget: self.clone(), waiting }
    }

    fn fits(&self, bytes: usize) -> bool {
        let used = self.queued_bytes.get() + self.reserved_bytes.get();
        used == 0 || used + bytes <= self.bytes_max
    }

    fn serve_line(&self) {
        loop {
            let first = self.line.borrow_mut().pop_front_if(|first| self.fits(first.bytes));
            let Some(first) = first else { return };
            self.reserved_bytes.set(self.reserved_bytes.get() + first.bytes);
            first.granted.set(true);
            let waker = first.waker.take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn give_back(&self, bytes: usize) {
        self.reserved_bytes.set(self.reserved_bytes.get() - bytes);
        self.serve_line();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

impl Future for Reserving {
    type Output = Reservation;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reservation> {
        // What is handed on is not given back by this future's end.
        if self.waiting.granted.take() {
            return Poll::Ready(Reservation { budget: self.budget.clone(), bytes: self.waiting.bytes });
        }
        *self.waiting.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reserving {
    fn drop(&mut self) {
        if self.waiting.granted.take() {
            return self.budget.give_back(self.waiting.bytes);
        }
        let place = self.budget.line.borrow().iter().position(|other| Rc::ptr_eq(other, &self.waiting));
        if let Some(place) = place {
            self.budget.line.borrow_mut().remove(place);
            // It may have been what held up the others.
            self.budget.serve_line();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    enum Event {
        /// Asks; who asks is numbered in order, from 0.
        Ask(usize),
        /// The asker of this number leaves, with or without a reservation.
        Leave(usize),
        /// A reply is queued.
        Queue(usize),
        /// Bytes are sent.
        Send(usize),
    }
    use Event::{Ask, Leave, Queue, Send};

    enum Asker {
        Waits(Reserving),
        Has(#[expect(dead_code, reason = "held for its drop")] Reservation),
        Gone,
    }

    /// Runs `events` on a budget of 100; after each, exactly the named askers have a reservation.
    #[track_caller]
    fn check(events: &[(Event, &[usize])]) {
        let budget = ReplyBudget::new(100);
        let mut askers: Vec<Asker> = Vec::new();
        for (at, (event, expect)) in events.iter().enumerate() {
            match event {
                Ask(bytes) => {
                    let at_once = budget.try_reserve(*bytes);
                    askers.push(at_once.map_or_else(|| Asker::Waits(budget.reserve(*bytes)), Asker::Has));
                }
                Leave(asker) => askers[*asker] = Asker::Gone,
                Queue(bytes) => budget.queued(*bytes),
                Send(bytes) => budget.sent(*bytes),
            }
            for asker in &mut askers {
                let now = match asker {
                    Asker::Waits(reserving) => reserving.now_or_never(),
                    Asker::Has(_) | Asker::Gone => None,
                };
                if let Some(reservation) = now {
                    *asker = Asker::Has(reservation);
                }
            }
            let has = askers.iter().enumerate().filter(|(_, asker)| matches!(asker, Asker::Has(_)));
            assert_eq!(has.map(|(number, _)| number).collect::<Vec<_>>(), *expect, "event {at}");
        }
        let queued = budget.queued_bytes();
        drop(askers);
        assert_eq!((budget.reserved_bytes(), budget.line.borrow().len()), (0, 0), "all is given back");
        budget.sent(queued);
        assert!(budget.fits(100));
    }

    #[test]
    fn room_goes_to_the_first_in_the_line() {
        check(&[(Ask(60), &[0]), (Ask(40), &[0, 1]), (Ask(1), &[0, 1]), (Leave(1), &[0, 2])]);
        // A small one does not pass a large one.
        check(&[(Ask(60), &[0]), (Ask(50), &[0]), (Ask(10), &[0]), (Leave(0), &[1, 2])]);
        // Who leaves the line lets the next one on.
        check(&[(Ask(60), &[0]), (Ask(50), &[0]), (Ask(10), &[0]), (Leave(1), &[0, 2])]);
        // Queued bytes count; sent ones do not any more.
        check(&[(Queue(95), &[]), (Ask(10), &[]), (Send(4), &[]), (Send(1), &[0]), (Send(90), &[0])]);
        // The answer is queued before its reservation is given back: no room appears in between.
        check(&[(Ask(100), &[0]), (Ask(30), &[0]), (Queue(80), &[0]), (Leave(0), &[]), (Send(50), &[1])]);
        // More than there is: alone.
        check(&[(Ask(500), &[0]), (Ask(1), &[0]), (Leave(0), &[1]), (Ask(500), &[1]), (Leave(1), &[2])]);
    }

    #[test]
    fn a_grant_that_nobody_takes_is_given_on() {
        let budget = ReplyBudget::new(100);
        let first = budget.try_reserve(100);
        let (second, third) = (budget.reserve(80), budget.reserve(80));
        drop(first);
        assert_eq!(budget.reserved_bytes(), 80, "granted to the second, who has not looked yet");
        drop(second);
        assert!(third.now_or_never().is_some());
        assert_eq!(budget.reserved_bytes(), 0);
    }
}
