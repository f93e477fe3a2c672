//! The broker: the real table over a log of which a prefix is durable.

use super::{Answer, Dice, Mutant, Sent};
use logic::ids::Offset;
use logic::producer_state::{Admission, Bounds, LogPlace, ProducerBatch, ProducerError, ProducerTable};
use schema::checkpoint::ProducerSummary;

const BOUNDS: Bounds = Bounds { expiration_ms: i64::MAX, producers_max: 100 };

/// A batch in the log.
#[derive(Clone, Debug)]
pub struct Stored {
    pub sent: Sent,
    pub base: u64,
    append_time_ms: i64,
}

impl Stored {
    pub fn end(&self) -> u64 {
        self.base + self.sent.records.len() as u64
    }
}

/// Somebody who is answered when everything below an offset is durable.
pub struct Waiter<A> {
    end: u64,
    pub address: A,
    pub answer: Answer,
}

pub struct Broker<A> {
    mutant: Mutant,
    pub log: Vec<Stored>,
    durable_end: u64,
    table: ProducerTable,
    summary: (u64, Vec<ProducerSummary>),
    waiters: Vec<Waiter<A>>,
    now_ms: i64,
}

fn in_words(sent: &Sent) -> ProducerBatch {
    let last = sent.first.wrapping_add(sent.records.len() as i32 - 1) & i32::MAX;
    ProducerBatch { id: sent.client as i64, epoch: sent.epoch, first: sent.first, last }
}

impl<A> Broker<A> {
    pub fn new(mutant: Mutant) -> Self {
        Self {
            mutant,
            log: Vec::new(),
            durable_end: 0,
            table: ProducerTable::default(),
            summary: (0, Vec::new()),
            waiters: Vec::new(),
            now_ms: 0,
        }
    }

    pub fn end(&self) -> u64 {
        self.log.last().map_or(0, Stored::end)
    }

    /// Takes a batch; the answer, if it can be given at once.
    pub fn produce(&mut self, sent: &Sent, address: A) -> Option<(A, Answer)> {
        self.now_ms += 1;
        let place = LogPlace { end: Offset::new(self.end()), durable_end: Offset::new(self.durable_end) };
        let before = self.table.clone();
        let admission = self.table.admit(self.now_ms, &in_words(sent), place, BOUNDS);
        let admission = self.without_a_rule(admission, sent, before);
        let refused = match admission {
            Ok(Admission::Append) => {
                let stored = Stored { sent: sent.clone(), base: self.end(), append_time_ms: self.now_ms };
                let (base, end) = (stored.base, stored.end());
                self.log.push(stored);
                let answer = Answer::Appended { base, duplicate: false };
                self.waiters.push(Waiter { end, address, answer });
                return None;
            }
            Ok(Admission::Duplicate(note)) => {
                let answer = Answer::Appended { base: note.base.get(), duplicate: true };
                if note.end().get() <= self.durable_end || self.mutant == Mutant::DuplicateDoesNotWait {
                    return Some((address, answer));
                }
                self.waiters.push(Waiter { end: note.end().get(), address, answer });
                return None;
            }
            Err(refused) => refused,
        };
        let answer = match refused {
            ProducerError::OutOfOrder { .. } => Answer::OutOfOrder,
            ProducerError::Unknown { .. } => Answer::UnknownProducer,
            ProducerError::StaleEpoch { .. } => Answer::StaleEpoch,
            ProducerError::Forgotten { .. } => Answer::Forgotten,
            ProducerError::InFlight => Answer::Busy,
        };
        Some((address, answer))
    }

    fn without_a_rule(
        &mut self,
        admission: Result<Admission, ProducerError>,
        sent: &Sent,
        before: ProducerTable,
    ) -> Result<Admission, ProducerError> {
        let take = match (self.mutant, admission) {
            (Mutant::NoDeduplication, Ok(Admission::Duplicate(_))) => true,
            (Mutant::GapsAreTaken, Err(ProducerError::OutOfOrder { .. })) => true,
            (Mutant::StaleEpochsAreTaken, Err(ProducerError::StaleEpoch { .. })) => true,
            (Mutant::GapsAreForgotten, Err(ProducerError::OutOfOrder { .. })) => {
                self.table = before;
                false
            }
            (Mutant::WindowOfOne, Ok(Admission::Duplicate(note)))
                if self.log.iter().rfind(|stored| stored.sent.client == sent.client).map(Stored::end)
                    != Some(note.end().get()) =>
            {
                return Err(ProducerError::OutOfOrder { expected: 0, found: sent.first });
            }
            _ => false,
        };
        if take {
            self.table.replay(&in_words(sent), Offset::new(self.end()), self.now_ms);
            return Ok(Admission::Append);
        }
        admission
    }

    /// Some more of the log becomes durable; who is answered by that, in order.
    pub fn write(&mut self, dice: &mut Dice) -> Vec<Waiter<A>> {
        let pending = self.log.iter().filter(|stored| stored.base >= self.durable_end).count() as u64;
        let more = dice.below(pending + 1) as usize;
        let ends = self.log.iter().map(Stored::end).filter(|end| *end > self.durable_end);
        self.durable_end = ends.take(more).last().unwrap_or(self.durable_end);
        let durable_end = self.durable_end;
        self.waiters.extract_if(.., |waiter| waiter.end <= durable_end).collect()
    }

    /// A checkpoint.
    pub fn summarise(&mut self) {
        let told_end = if self.mutant == Mutant::SummaryAhead { self.end() } else { self.durable_end };
        self.summary = (self.durable_end, self.table.summaries(Offset::new(told_end)));
    }

    /// The process ends and comes back. Of what was not durable a part may have survived.
    pub fn crash(&mut self, dice: &mut Dice) {
        let pending = self.log.iter().filter(|stored| stored.base >= self.durable_end).count() as u64;
        let lost = dice.below(pending + 1) as usize;
        self.log.truncate(self.log.len() - lost);
        self.waiters.clear();
        let (summary_end, summaries) = &self.summary;
        let mut table = ProducerTable::restore(summaries);
        if self.mutant == Mutant::TableNotRebuilt {
            table = ProducerTable::default();
        }
        let replays = !matches!(self.mutant, Mutant::LogNotReplayed | Mutant::TableNotRebuilt);
        for stored in self.log.iter().filter(|stored| stored.base >= *summary_end && replays) {
            table.replay(&in_words(&stored.sent), Offset::new(stored.base), stored.append_time_ms);
        }
        self.table = table;
        // What recovery reads is synced before it counts.
        self.durable_end = self.end();
    }
}
