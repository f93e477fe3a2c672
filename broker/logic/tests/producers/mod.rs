//! The parts of the producers' simulation, and the rules that can be taken away from it.
//!
//! Owned by one seed of one test. Absent on purpose: time other than the count of steps, threads, real bytes.

pub mod broker;
pub mod client;
pub mod world;

/// Pseudo-random numbers (SplitMix64): small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x1d_ea5e_ed00)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Whether something happens that does so `percent` times of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A rule that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// None is.
    None,
    /// Repetitions are appended.
    NoDeduplication,
    /// Only the newest batch is recognised.
    WindowOfOne,
    /// A repetition is answered although its original is not durable.
    DuplicateDoesNotWait,
    /// A batch is taken although one before it is missing.
    GapsAreTaken,
    /// After a gap its epoch goes on.
    GapsAreForgotten,
    /// A batch of an earlier epoch is appended.
    StaleEpochsAreTaken,
    /// A summary tells of batches that are not durable.
    SummaryAhead,
    /// After a crash only the summary counts.
    LogNotReplayed,
    /// After a crash nothing is known.
    TableNotRebuilt,
    /// What is sent again gets a new sequence.
    RetriesAreNew,
    /// After a gap what may be there gets a new sequence too.
    UnknownIsTakenForAbsent,
    /// After giving up the epoch goes on as if nothing were missing, from the next sequence.
    GivingUpReusesTheSequence,
}

impl Mutant {
    pub const ALL: [Mutant; 12] = [
        Mutant::NoDeduplication,
        Mutant::WindowOfOne,
        Mutant::DuplicateDoesNotWait,
        Mutant::GapsAreTaken,
        Mutant::GapsAreForgotten,
        Mutant::StaleEpochsAreTaken,
        Mutant::SummaryAhead,
        Mutant::LogNotReplayed,
        Mutant::TableNotRebuilt,
        Mutant::RetriesAreNew,
        Mutant::UnknownIsTakenForAbsent,
        Mutant::GivingUpReusesTheSequence,
    ];
}

/// A batch as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub client: usize,
    /// Its number in the client's queue.
    pub number: u64,
    pub epoch: i16,
    pub first: i32,
    /// What its records say; rising over all of a client's.
    pub records: Vec<u64>,
}

/// What the broker says of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Appended {
        base: u64,
        duplicate: bool,
    },
    /// Not now; it had no effect.
    Busy,
    OutOfOrder,
    UnknownProducer,
    StaleEpoch,
    /// It was appended, where is not remembered.
    Forgotten,
}
