//! Flush rounds: group commit for all partitions of a core.
//!
//! One per shard, as long as the shard. While rounds are on their way to the device, appends gather for
//! the next one; each round writes one or more groups of every dirty partition and is made durable at
//! once. A round of few writes uses writes that are durable by themselves; one of many uses plain writes
//! and, after their completions, a single flush of the device: io_uring does not order a flush after
//! earlier writes, so it is submitted only when they have completed.
//!
//! ```text
//! Dirty(p) ─► begin ─► (driver writes) ─► writes_done ─► [flush ─► flush_done] ─► durable
//! ```
//!
//! Invariants: a partition is queued at most once; at most `depth` rounds are in flight; at most one
//! flush is, and it covers exactly the rounds whose writes had completed when it was submitted.

use crate::limits::ROUNDS_IN_FLIGHT_MAX;
use crate::log::append::RoundId;
use std::collections::{HashSet, VecDeque};
use std::hash::Hash;

#[derive(Debug, PartialEq, Eq)]
enum State {
    Writing,
    /// All writes completed; waits for a flush that is submitted from now on.
    Written,
    Flushing,
    Durable,
}

#[derive(Debug)]
struct Round<P> {
    id: RoundId,
    partitions: Vec<P>,
    state: State,
    needs_flush: bool,
}

/// The rounds of one shard. `P` names a partition.
#[derive(Debug)]
pub struct FlushRounds<P> {
    depth: usize,
    dirty: VecDeque<P>,
    queued: HashSet<P>,
    rounds: VecDeque<Round<P>>,
    last: u64,
}

impl<P: Copy + Eq + Hash> FlushRounds<P> {
    /// `depth` rounds may be in flight, 1 to [`ROUNDS_IN_FLIGHT_MAX`].
    pub fn new(depth: usize) -> Self {
        assert!((1..=ROUNDS_IN_FLIGHT_MAX).contains(&depth), "rounds in flight: {depth}");
        Self { depth, dirty: VecDeque::new(), queued: HashSet::new(), rounds: VecDeque::new(), last: 0 }
    }

    /// A partition has something to write.
    pub fn mark_dirty(&mut self, partition: P) {
        if self.queued.insert(partition) {
            self.dirty.push_back(partition);
        }
    }

    /// Whether a round can begin now.
    pub fn can_begin(&self) -> bool {
        !self.dirty.is_empty() && self.rounds.len() < self.depth
    }

    /// The next dirty partition, for the round that is being put together.
    pub fn pop_dirty(&mut self) -> Option<P> {
        let partition = self.dirty.pop_front()?;
        self.queued.remove(&partition);
        Some(partition)
    }

    /// The number of the round that is being put together.
    pub fn next_round(&self) -> RoundId {
        RoundId(self.last + 1)
    }

    /// The round's writes have been submitted.
    pub fn begun(&mut self, partitions: Vec<P>, needs_flush: bool) -> RoundId {
        assert!(self.rounds.len() < self.depth, "more than {} rounds in flight", self.depth);
        self.last += 1;
        let id = RoundId(self.last);
        self.rounds.push_back(Round { id, partitions, state: State::Writing, needs_flush });
        id
    }

    /// All writes of the round have completed.
    pub fn writes_done(&mut self, id: RoundId) {
        let round = self.round(id);
        assert!(round.state == State::Writing, "round {} written twice", id.0);
        round.state = if round.needs_flush { State::Written } else { State::Durable };
    }

    /// Whether to submit a flush of the device now; if so, it covers what has been written so far.
    pub fn poll_flush(&mut self) -> bool {
        if self.rounds.iter().any(|round| round.state == State::Flushing) {
            return false;
        }
        let mut any = false;
        for round in self.rounds.iter_mut().filter(|round| round.state == State::Written) {
            round.state = State::Flushing;
            any = true;
        }
        any
    }

    /// The partitions whose rounds the flush under way is to make durable.
    pub fn flushing(&self) -> impl Iterator<Item = &P> {
        let rounds = self.rounds.iter().filter(|round| round.state == State::Flushing);
        rounds.flat_map(|round| &round.partitions)
    }

    /// The flush has completed.
    pub fn flush_done(&mut self) {
        for round in self.rounds.iter_mut().filter(|round| round.state == State::Flushing) {
            round.state = State::Durable;
        }
    }

    /// The next round that became durable, in any order, with its partitions.
    pub fn poll_durable(&mut self) -> Option<(RoundId, Vec<P>)> {
        let at = self.rounds.iter().position(|round| round.state == State::Durable)?;
        self.rounds.remove(at).map(|round| (round.id, round.partitions))
    }

    /// Rounds in flight.
    pub fn in_flight(&self) -> usize {
        self.rounds.len()
    }

    /// Whether nothing is dirty and nothing in flight.
    pub fn is_idle(&self) -> bool {
        self.dirty.is_empty() && self.rounds.is_empty()
    }

    /// Partitions that wait for a round.
    pub fn dirty(&self) -> usize {
        self.dirty.len()
    }

    fn round(&mut self, id: RoundId) -> &mut Round<P> {
        self.rounds.iter_mut().find(|round| round.id == id).expect("a round that is in flight")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a script of one-letter events, and checks what became durable after each.
    fn check(depth: usize, script: &[(&str, &str)]) {
        let mut rounds = FlushRounds::<char>::new(depth);
        for (step, (event, expect)) in script.iter().enumerate() {
            let (verb, rest) = event.split_once(' ').unwrap_or((event, ""));
            let mut seen = String::new();
            match verb {
                "dirty" => rest.chars().for_each(|partition| rounds.mark_dirty(partition)),
                "begin" | "begin!" => {
                    if rounds.can_begin() {
                        let partitions: Vec<char> = std::iter::from_fn(|| rounds.pop_dirty()).collect();
                        seen.extend(&partitions);
                        rounds.begun(partitions, verb == "begin!");
                    } else {
                        seen.push('-');
                    }
                }
                "written" => rounds.writes_done(RoundId(rest.parse().unwrap())),
                "flush" => seen.push(if rounds.poll_flush() { 'F' } else { '-' }),
                "flushing" => seen.extend(rounds.flushing()),
                "flushed" => rounds.flush_done(),
                other => panic!("{other}"),
            }
            while let Some((id, partitions)) = rounds.poll_durable() {
                seen.push_str(&format!("{}={}", id.0, partitions.iter().collect::<String>()));
            }
            assert_eq!(&seen, expect, "step {step}: {event}");
        }
    }

    #[test]
    fn a_single_durable_write_needs_no_flush() {
        check(1, &[("dirty a", ""), ("begin", "a"), ("flush", "-"), ("written 1", "1=a")]);
    }

    #[test]
    fn appends_gather_while_rounds_are_in_flight() {
        check(
            2,
            &[
                ("dirty a", ""),
                ("begin", "a"),
                ("dirty bcb", ""),
                ("begin!", "bc"),
                ("dirty ad", ""),
                ("begin", "-"),
                ("written 1", "1=a"),
                ("begin!", "ad"),
                ("written 2", ""),
                ("flush", "F"),
                ("flushed", "2=bc"),
            ],
        );
    }

    #[test]
    fn a_flush_covers_only_what_was_written_before_it() {
        check(
            3,
            &[
                ("dirty a", ""),
                ("begin!", "a"),
                ("dirty b", ""),
                ("begin!", "b"),
                ("written 2", ""),
                ("flush", "F"),
                ("written 1", ""),
                // One flush at a time: round 1 waits for the next.
                ("flush", "-"),
                ("flushing", "b"),
                ("flushed", "2=b"),
                ("flush", "F"),
                ("flushed", "1=a"),
            ],
        );
    }
}
