//! The search for the highest rate that keeps a p99: which rate to try next, and what a trial says.
//!
//! Owner: a run; one per workload. Decides only: trials and the clock are the caller's. Lifecycle: doubles
//! (or halves, while nothing has held) until one rate has held and a higher one was missed, then tries the
//! geometric mean of both until they are 5 % apart. Where only the p99 was missed, the rate is tried once
//! more: one stall of the host is one record in a hundred of a trial of seconds, and would end the search
//! far too low. Every trial is kept, the repeated ones too.
//! Invariants: a rate that is reported has held, and no lower one was missed in the end; the number of
//! trials and the time are bounded.

use serde::Serialize;

/// Held and missed rate may be this far apart in the end.
const TOLERANCE: f64 = 1.05;
/// The share of the intended records that must be acknowledged in the measured time.
const ACHIEVED_MIN: f64 = 0.98;

/// What is looked for, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SearchLimits {
    /// The p99 of acknowledgements stays at or below this, microseconds.
    pub p99_us_max: f64,
    /// The first rate, records per second.
    pub start_records_s: f64,
    /// No rate is above this.
    pub records_s_max: f64,
    /// No rate is below this.
    pub records_s_min: f64,
    /// Trials at most.
    pub steps_max: usize,
    /// No trial begins that would probably end after this, seconds.
    pub seconds_max: f64,
}

impl SearchLimits {
    /// For records of `record_bytes`: starts at 4 MB/s or 20,000 records per second, whichever is less.
    pub fn new(p99_us_max: f64, record_bytes: usize) -> Self {
        let start_records_s = rounded((4e6 / record_bytes.max(1) as f64).clamp(10.0, 20_000.0));
        Self {
            p99_us_max,
            start_records_s,
            records_s_max: 50e6,
            records_s_min: (start_records_s / 64.0).max(1.0),
            steps_max: 20,
            seconds_max: 100.0,
        }
    }
}

/// What was measured at a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trial {
    /// Records per second that were intended.
    pub records_s: f64,
    /// Records per second that were acknowledged in the measured time.
    pub achieved_records_s: f64,
    /// The p99 of acknowledgements, microseconds.
    pub p99_us: f64,
    /// Records that failed or were given up.
    pub lost: u64,
}

/// What became of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The rate and the p99 were kept.
    Held,
    /// Fewer records were acknowledged than were intended.
    Throughput,
    /// The p99 was longer.
    Latency,
    /// Records failed.
    Failed,
}

impl Verdict {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Throughput => "missed: under 98 % of the rate",
            Self::Latency => "missed: p99 too long",
            Self::Failed => "missed: records failed",
        }
    }
}

/// One trial and its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SearchStep {
    /// Records per second that were intended.
    pub records_s: f64,
    /// Records per second that were acknowledged.
    pub achieved_records_s: f64,
    /// The p99 of acknowledgements, microseconds.
    pub p99_us: f64,
    /// Whether it held, or why not.
    pub verdict: Verdict,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The highest rate is known to within 5 %.
    Found,
    /// The highest rate that may be tried has held.
    HighestHeld,
    /// Not even the lowest rate held.
    NothingHeld,
    /// Too many trials; the rate is a lower bound.
    OutOfSteps,
    /// Too much time; the rate is a lower bound.
    OutOfTime,
}

impl Ended {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Found => "found to within 5 %",
            Self::HighestHeld => "the highest rate that is tried held",
            Self::NothingHeld => "not even the lowest rate held",
            Self::OutOfSteps => "a lower bound: no more trials allowed",
            Self::OutOfTime => "a lower bound: no time for more trials",
        }
    }
}

/// What came of a search.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SearchReport {
    /// What was looked for.
    pub limits: SearchLimits,
    /// The highest rate that held, records per second.
    pub held_records_s: Option<f64>,
    /// The lowest rate that was missed.
    pub missed_records_s: Option<f64>,
    /// Why it ended.
    pub ended: Ended,
    /// Every trial, in order.
    pub steps: Vec<SearchStep>,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// Try this rate, records per second.
    Try(f64),
    /// It is over.
    End(Ended),
}

/// The search.
#[derive(Clone, Debug)]
pub struct RateSearch {
    limits: SearchLimits,
    steps: Vec<SearchStep>,
    /// The highest rate that held.
    held: Option<f64>,
    /// The lowest rate that was missed for good.
    missed: Option<f64>,
    /// To be tried once more.
    again: Option<f64>,
}

impl RateSearch {
    /// A search that has tried nothing.
    pub fn new(limits: SearchLimits) -> Self {
        Self { limits, steps: Vec::new(), held: None, missed: None, again: None }
    }

    /// What to do `elapsed_s` seconds after the search began.
    pub fn next(&self, elapsed_s: f64) -> Next {
        let rate = match (self.again, self.held, self.missed) {
            (Some(rate), ..) => rate,
            (None, None, None) => self.limits.start_records_s,
            (None, Some(held), None) if held >= self.limits.records_s_max => {
                return Next::End(Ended::HighestHeld);
            }
            (None, Some(held), None) => (held * 2.0).min(self.limits.records_s_max),
            (None, None, Some(missed)) if missed <= self.limits.records_s_min => {
                return Next::End(Ended::NothingHeld);
            }
            (None, None, Some(missed)) => (missed / 2.0).max(self.limits.records_s_min),
            (None, Some(held), Some(missed)) => {
                let between = rounded((held * missed).sqrt());
                // Rates so low that rounding leaves nothing between them.
                if missed <= held * TOLERANCE || between <= held || between >= missed {
                    return Next::End(Ended::Found);
                }
                between
            }
        };
        let tried = self.steps.len();
        if tried >= self.limits.steps_max {
            return Next::End(Ended::OutOfSteps);
        }
        if tried > 0 && elapsed_s + elapsed_s / tried as f64 > self.limits.seconds_max {
            return Next::End(Ended::OutOfTime);
        }
        Next::Try(rate)
    }

    /// Takes what a trial has measured; gives it back with its verdict.
    pub fn tried(&mut self, trial: Trial) -> SearchStep {
        let Trial { records_s, achieved_records_s, p99_us, lost } = trial;
        let verdict = match () {
            () if achieved_records_s < ACHIEVED_MIN * records_s => Verdict::Throughput,
            () if lost > 0 => Verdict::Failed,
            () if p99_us > self.limits.p99_us_max => Verdict::Latency,
            () => Verdict::Held,
        };
        let step = SearchStep { records_s, achieved_records_s, p99_us, verdict };
        self.steps.push(step);
        let repeated = self.again.take().is_some();
        match verdict {
            Verdict::Held => self.held = Some(self.held.map_or(records_s, |held| held.max(records_s))),
            Verdict::Latency if !repeated => self.again = Some(records_s),
            _ => self.missed = Some(self.missed.map_or(records_s, |missed| missed.min(records_s))),
        }
        step
    }

    /// Whether a rate has held so far.
    pub fn has_held(&self) -> bool {
        self.held.is_some()
    }

    /// Trials so far.
    pub fn steps(&self) -> &[SearchStep] {
        &self.steps
    }

    /// What came of it.
    pub fn finish(self, ended: Ended) -> SearchReport {
        SearchReport {
            limits: self.limits,
            held_records_s: self.held,
            missed_records_s: self.missed,
            ended,
            steps: self.steps,
        }
    }
}

/// To three digits, which is as well as a rate is known.
fn rounded(rate: f64) -> f64 {
    let digits = 2 - rate.log10().floor() as i32;
    // Dividing by a whole power of ten gives the number that is nearest to the decimal one.
    match digits {
        0.. => (rate * 10f64.powi(digits)).round() / 10f64.powi(digits),
        _ => (rate / 10f64.powi(-digits)).round() * 10f64.powi(-digits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SearchLimits = SearchLimits {
        p99_us_max: 20_000.0,
        start_records_s: 1000.0,
        records_s_max: 1e6,
        records_s_min: 100.0,
        steps_max: 30,
        seconds_max: 1000.0,
    };

    /// Runs a search against a broker that is made up; every trial takes ten seconds.
    fn search(limits: SearchLimits, mut broker: impl FnMut(usize, f64) -> Trial) -> SearchReport {
        let mut search = RateSearch::new(limits);
        loop {
            match search.next(10.0 * search.steps().len() as f64) {
                Next::End(ended) => return search.finish(ended),
                Next::Try(rate) => {
                    let trial = broker(search.steps().len(), rate);
                    search.tried(Trial { records_s: rate, ..trial });
                }
            }
        }
    }

    /// Acknowledges everything up to `capacity`, at once; beyond it only that, late.
    fn up_to(capacity: f64) -> impl FnMut(usize, f64) -> Trial {
        move |_, rate| {
            let p99_us = if rate <= capacity { 1000.0 } else { 500_000.0 };
            Trial { achieved_records_s: rate.min(capacity), p99_us, ..Trial::default() }
        }
    }

    #[test]
    fn the_highest_rate_is_found_to_within_five_percent() {
        for capacity in [101.0, 333.0, 999.0, 1000.0, 1001.0, 1999.0, 2000.0, 54_321.0, 777_777.0] {
            let report = search(LIMITS, up_to(capacity));
            let held = report.held_records_s.expect("something held");
            assert_eq!(report.ended, Ended::Found, "{capacity}: {report:?}");
            // A rate of which 98 % is acknowledged still misses the p99.
            assert!(held <= capacity && held * TOLERANCE * 1.01 >= capacity, "{capacity}: {report:?}");
            assert!(report.missed_records_s.is_some_and(|missed| missed > capacity), "{report:?}");
            assert!(report.steps.len() <= 20, "{capacity}: {} trials", report.steps.len());
        }
    }

    #[test]
    fn a_search_ends_for_one_of_these_reasons() {
        let rows = [
            (LIMITS, 2e6, Ended::HighestHeld, Some(1e6)),
            (LIMITS, 50.0, Ended::NothingHeld, None),
            (SearchLimits { steps_max: 3, ..LIMITS }, 1e5, Ended::OutOfSteps, Some(4000.0)),
            (SearchLimits { seconds_max: 45.0, ..LIMITS }, 1e5, Ended::OutOfTime, Some(8000.0)),
            (SearchLimits { seconds_max: 1.0, ..LIMITS }, 1e5, Ended::OutOfTime, Some(1000.0)),
        ];
        for (limits, capacity, ended, held) in rows {
            let report = search(limits, up_to(capacity));
            assert_eq!((report.ended, report.held_records_s), (ended, held), "{report:?}");
        }
    }

    #[test]
    fn a_trial_is_judged() {
        // (achieved of 1000, p99, lost), verdict.
        let rows = [
            (1000.0, 20_000.0, 0, Verdict::Held),
            (981.0, 100.0, 0, Verdict::Held),
            (979.0, 100.0, 0, Verdict::Throughput),
            (1000.0, 20_001.0, 0, Verdict::Latency),
            (1000.0, 100.0, 1, Verdict::Failed),
            (500.0, 50_000.0, 9, Verdict::Throughput),
        ];
        for (achieved_records_s, p99_us, lost, verdict) in rows {
            let trial = Trial { records_s: 1000.0, achieved_records_s, p99_us, lost };
            assert_eq!(RateSearch::new(LIMITS).tried(trial).verdict, verdict, "{trial:?}");
        }
    }

    #[test]
    fn one_stall_does_not_mislead() {
        let capacity = 50_000.0;
        let mut steady = up_to(capacity);
        // The third trial meets a stall of the host: the rate is tried again, and holds.
        let report = search(LIMITS, |step, rate| {
            let trial = steady(step, rate);
            if step == 2 { Trial { p99_us: 90_000.0, ..trial } } else { trial }
        });
        assert_eq!(report.steps[2].records_s, report.steps[3].records_s);
        assert_eq!((report.steps[2].verdict, report.steps[3].verdict), (Verdict::Latency, Verdict::Held));
        assert!(report.held_records_s.is_some_and(|held| held > 0.94 * capacity), "{report:?}");
        // A rate that misses twice is missed.
        let mut tried = Vec::new();
        let report = search(LIMITS, |_, rate| {
            tried.push(rate);
            let p99_us = if rate > 3000.0 { 90_000.0 } else { 1000.0 };
            Trial { achieved_records_s: rate, p99_us, ..Trial::default() }
        });
        assert_eq!(tried[..7], [1000.0, 2000.0, 4000.0, 4000.0, 2830.0, 3360.0, 3360.0], "{report:?}");
    }

    #[test]
    fn the_first_rate_depends_on_the_size() {
        for (record_bytes, start) in [(16, 20_000.0), (100, 20_000.0), (1024, 3910.0), (65_536, 61.0)] {
            assert_eq!(SearchLimits::new(1.0, record_bytes).start_records_s, start);
        }
    }

    #[test]
    fn rates_have_three_digits() {
        for (rate, expect) in [(86.3499, 86.3), (4.44444, 4.44), (12_345.0, 12_300.0), (999.6, 1000.0)] {
            assert_eq!(rounded(rate).to_string(), f64::to_string(&expect), "{rate}");
        }
    }
}
