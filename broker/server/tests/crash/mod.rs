//! Crash images: the broker's real storage and recovery on a disk that remembers what is durable.
//!
//! | file | is |
//! |---|---|
//! | `image` | what a crash leaves on the device: files, names, lengths |
//! | `disk` | the recording disk and the virtual clock; a crash at any moment gives images |
//! | `ledger` | what was appended and acknowledged, and the judge of a recovery |
//! | `life` | one start of the store over an image: recovery, work, crashes |
//! | `homes` | the same for two stores, between which partitions move |
//! | `compaction` | the same for a compacted log, against a model of its latest values |
//! | `mutants` | the rules of compaction and retention, deleted one at a time |
//! | `cuts` | the same for a follower's log, which is cut and discarded |
//! | `scripts` | bugs that were found once, to be played again |
//!
//! Owned by one test thread and one executor per root seed. A life begins with an image, lives until it
//! is abandoned (its operations never complete any more) and leaves images behind, each of which begins
//! other lives. Everything that is random comes from [`Dice`], so a seed replays. Absent on purpose: real
//! files, threads, time.

pub mod compaction;
pub mod cuts;
pub mod disk;
pub mod homes;
pub mod image;
pub mod ledger;
pub mod life;
#[cfg(feature = "mutants")]
mod mutants;
pub mod scripts;

/// Pseudo-random numbers (SplitMix64): small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
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
