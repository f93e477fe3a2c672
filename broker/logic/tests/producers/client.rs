//! A client's rules for one partition, those of the client library: five batches in flight, one at a time after a
//! failure, a sequence kept until the broker has said that the batch is not there, a new epoch behind a gap.

use super::{Answer, Mutant, Sent};
use std::collections::VecDeque;

pub const IN_FLIGHT_MAX: usize = 5;

#[derive(Clone, Debug)]
struct Batch {
    number: u64,
    records: Vec<u64>,
    /// Epoch and first sequence.
    stamp: Option<(i16, i32)>,
    attempts: u32,
    unknown: bool,
    /// Times that may pass until it is given up.
    patience: u32,
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub enum Settled {
    Acknowledged {
        records: Vec<u64>,
        base: u64,
    },
    /// `true`: it may be there.
    Failed {
        records: Vec<u64>,
        unknown: bool,
    },
}

pub struct Client {
    id: usize,
    mutant: Mutant,
    ready: VecDeque<Batch>,
    in_flight: Vec<Batch>,
    recovering: bool,
    epoch: i16,
    next: i32,
    over: bool,
    gap_from: Option<u64>,
    next_number: u64,
    next_record: u64,
    pub settled: Vec<Settled>,
    pub epochs_begun: u64,
}

impl Client {
    pub fn new(id: usize, mutant: Mutant) -> Self {
        Self {
            id,
            mutant,
            ready: VecDeque::new(),
            in_flight: Vec::new(),
            recovering: false,
            epoch: 0,
            next: 0,
            over: false,
            gap_from: None,
            next_number: 0,
            next_record: 0,
            settled: Vec::new(),
            epochs_begun: 0,
        }
    }

    /// Batches that are not settled.
    pub fn unsettled(&self) -> usize {
        self.ready.len() + self.in_flight.len()
    }

    /// The application sends `records` more.
    pub fn append(&mut self, records: u64, patience: u32) {
        let first = self.next_record;
        self.next_record += records;
        self.ready.push_back(Batch {
            number: self.next_number,
            records: (first..first + records).collect(),
            stamp: None,
            attempts: 0,
            unknown: false,
            patience,
        });
        self.next_number += 1;
    }

    /// The next batch that may leave.
    pub fn send(&mut self) -> Option<Sent> {
        let alone = self.recovering || self.over;
        if alone && !self.in_flight.is_empty() || self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        let mut batch = self.ready.pop_front()?;
        if batch.stamp.is_none() {
            if self.over {
                self.epoch += 1;
                self.epochs_begun += 1;
                (self.next, self.over, self.gap_from) = (0, false, None);
            }
            batch.stamp = Some((self.epoch, self.next));
            self.next = self.next.wrapping_add(batch.records.len() as i32) & i32::MAX;
        }
        let (epoch, first) = batch.stamp.expect("it has just been given");
        let sent =
            Sent { client: self.id, number: batch.number, epoch, first, records: batch.records.clone() };
        self.in_flight.push(batch);
        Some(sent)
    }

    /// Time passes; batches that waited for too long are given up.
    pub fn pass(&mut self) {
        for batch in self.ready.iter_mut().chain(&mut self.in_flight) {
            batch.patience = batch.patience.saturating_sub(1);
        }
        while self.ready.front().is_some_and(|front| front.patience == 0) {
            let batch = self.ready.pop_front().expect("there is a front");
            self.give_up(batch);
        }
        self.recovering &=
            self.ready.front().is_some_and(|front| front.attempts > 0) || !self.in_flight.is_empty();
    }

    fn give_up(&mut self, batch: Batch) {
        if let Some((epoch, first)) = batch.stamp {
            self.over = true;
            if self.mutant == Mutant::GivingUpReusesTheSequence && epoch == self.epoch {
                (self.over, self.next) = (false, first);
            }
        }
        self.settled.push(Settled::Failed { records: batch.records, unknown: batch.unknown });
    }

    /// An answer to batch `number`, or `None`: there will be none.
    pub fn receive(&mut self, number: u64, answer: Option<Answer>) {
        let Some(at) = self.in_flight.iter().position(|batch| batch.number == number) else { return };
        let mut batch = self.in_flight.remove(at);
        match answer {
            Some(Answer::Appended { base, .. }) => {
                self.settled.push(Settled::Acknowledged { records: batch.records, base });
            }
            Some(Answer::Busy) => self.again(batch),
            None => {
                batch.unknown = true;
                self.again(batch);
            }
            Some(Answer::OutOfOrder) => self.gap(batch),
            Some(Answer::UnknownProducer | Answer::StaleEpoch) if !batch.unknown => self.gap(batch),
            Some(Answer::UnknownProducer | Answer::StaleEpoch | Answer::Forgotten) => self.give_up(batch),
        }
        self.recovering = self.ready.front().is_some_and(|first| first.attempts > 0)
            || self.recovering && !self.in_flight.is_empty();
    }

    fn again(&mut self, mut batch: Batch) {
        if self.gap_from.is_some_and(|from| batch.number >= from) {
            (batch.stamp, batch.unknown) = (None, false);
        }
        if self.mutant == Mutant::RetriesAreNew {
            batch.stamp = None;
        }
        self.put_back(batch);
    }

    /// It is not in the log, nor is what comes behind it in its epoch.
    fn gap(&mut self, mut batch: Batch) {
        (batch.stamp, batch.unknown) = (None, false);
        self.over = true;
        let from = match self.mutant {
            Mutant::UnknownIsTakenForAbsent => 0,
            _ => batch.number,
        };
        self.gap_from = Some(self.gap_from.map_or(from, |before| before.min(from)));
        for behind in self.ready.iter_mut().filter(|other| other.number >= from) {
            (behind.stamp, behind.unknown) = (None, false);
        }
        self.put_back(batch);
    }

    fn put_back(&mut self, mut batch: Batch) {
        batch.attempts += 1;
        let at = self.ready.partition_point(|other| other.number < batch.number);
        self.ready.insert(at, batch);
    }
}
