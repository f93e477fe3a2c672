//! Brokers side by side: which can be compared, and what several runs of each come to.
//!
//! Runs are made one after the other, A B A B, by whoever owns the processes; here are the drivers by name,
//! and the figures: median, lowest and highest of each, and ratios to the first. Invariant: a [`Ratio`]
//! between different durabilities cannot be written without saying so.
//! Absent on purpose: tests of significance, for which a handful of runs is too few; the spread is shown.

use crate::driver::{Driver, DriverError, Durability};
use crate::report::Report;
use crate::servers::{Acknowledge, ServerKind};
use std::fmt;

/// A broker that can take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// This one.
    Ringlog,
    /// NATS JetStream.
    Nats,
    /// Redis streams.
    Redis,
    /// Apache Iggy.
    Iggy,
    /// A running broker of Kafka's protocol.
    Kafka,
}

/// Where a contestant's broker is.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// `HOST:PORT`.
    pub address: &'a str,
    /// The same of its monitoring port, if it has one.
    pub monitor: Option<&'a str>,
    /// What was asked for; a broker that is set up per topic is told.
    pub acknowledge: Acknowledge,
}

/// Every contestant: its name, itself, whether its driver is built in.
const KNOWN: [(&str, Contestant, bool); 5] = [
    ("ringlog", Contestant::Ringlog, true),
    ("nats", Contestant::Nats, cfg!(feature = "nats")),
    ("redis", Contestant::Redis, cfg!(feature = "redis")),
    ("iggy", Contestant::Iggy, cfg!(feature = "iggy")),
    ("kafka", Contestant::Kafka, cfg!(feature = "kafka")),
];

/// Why a broker cannot take part.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ContestantError {
    /// No such driver.
    #[error("there is no driver '{name}'; known are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// It is not in this program.
    #[error("the driver '{0}' is not in this program: build it with --features {0}")]
    NotBuilt(&'static str),
}

impl std::str::FromStr for Contestant {
    type Err = ContestantError;

    fn from_str(name: &str) -> Result<Self, ContestantError> {
        match KNOWN.iter().find(|(known, _, _)| *known == name) {
            Some((_, contestant, true)) => Ok(*contestant),
            Some((known, _, false)) => Err(ContestantError::NotBuilt(known)),
            None => {
                let known: Vec<&str> = KNOWN.iter().map(|(known, _, _)| *known).collect();
                Err(ContestantError::Unknown { name: name.to_owned(), known: known.join(", ") })
            }
        }
    }
}

impl Contestant {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ringlog => "ringlog",
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Iggy => "iggy",
            Self::Kafka => "kafka",
        }
    }

    /// The server to be started for it; none for this very program, and for one that runs already.
    pub fn server(self) -> Option<ServerKind> {
        match self {
            Self::Ringlog | Self::Kafka => None,
            Self::Nats => Some(ServerKind::Nats),
            Self::Redis => Some(ServerKind::Redis),
            Self::Iggy => Some(ServerKind::Iggy),
        }
    }

    /// Its driver, against the broker at `reach`.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn connect(self, reach: Reach<'_>) -> Result<Box<dyn Driver>, DriverError> {
        let address = reach.address;
        match self {
            Self::Ringlog => {
                let acks = ringlog_client::Acks::All;
                Ok(Box::new(crate::driver::ringlog::RinglogDriver::new(address, acks)))
            }
            #[cfg(feature = "nats")]
            Self::Nats => {
                Ok(Box::new(crate::driver::nats::NatsDriver::connect(address, reach.monitor).await?))
            }
            #[cfg(feature = "redis")]
            Self::Redis => Ok(Box::new(crate::driver::redis::RedisDriver::connect(address).await?)),
            #[cfg(feature = "iggy")]
            Self::Iggy => Ok(Box::new(crate::driver::iggy::IggyDriver::connect(address).await?)),
            #[cfg(feature = "kafka")]
            Self::Kafka => {
                let sync_each = reach.acknowledge == Acknowledge::FromDevice;
                Ok(Box::new(crate::driver::kafka::KafkaDriver::connect(address, sync_each)?))
            }
            #[cfg(not(all(feature = "nats", feature = "redis", feature = "iggy", feature = "kafka")))]
            absent => {
                let message = ContestantError::NotBuilt(absent.name()).to_string();
                Err(DriverError { driver: absent.name(), message })
            }
        }
    }
}

/// A figure over several runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
}

impl Spread {
    /// Of figures in any order; of none, zeros.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => at(middle),
            _ => (at(middle.wrapping_sub(1)) + at(middle)) / 2.0,
        };
        Self { median, lowest: at(0), highest: at(sorted.len().wrapping_sub(1)) }
    }
}

/// One median over another, and the durabilities if they differ.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Ratio {
    /// `None` where one of them is nothing.
    value: Option<f64>,
    /// `page cache against device`; `None` where they are alike.
    durabilities: Option<String>,
}

impl Ratio {
    fn new(figure: Spread, durability: Durability, first: Spread, first_durability: Durability) -> Self {
        let alike = durability == first_durability;
        let durabilities =
            (!alike).then(|| format!("{} against {}", durability.name(), first_durability.name()));
        let both = figure.median > 0.0 && first.median > 0.0;
        Self { value: both.then(|| figure.median / first.median), durabilities }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) if value < 0.01 => write!(f, "{value:.4}x")?,
            Some(value) if value < 0.1 => write!(f, "{value:.3}x")?,
            Some(value) if value < 10.0 => write!(f, "{value:.2}x")?,
            Some(value) => write!(f, "{value:.1}x")?,
            None => f.write_str("-")?,
        }
        match &self.durabilities {
            Some(durabilities) => write!(f, " ({durabilities})"),
            None => Ok(()),
        }
    }
}

/// A driver's medians over the first driver's.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Ratios {
    /// The first driver.
    pub to: String,
    /// Of throughput; above 1 is better.
    pub records_s: Ratio,
    /// Of the median latency; below 1 is better.
    pub p50: Ratio,
    /// Of the 99th percentile; below 1 is better.
    pub p99: Ratio,
}

/// What the runs of one driver come to.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Standing {
    /// Which driver.
    pub driver: String,
    /// What its acknowledgements meant; of different ones among its runs, the weakest.
    pub durability: Durability,
    /// By which settings.
    pub durability_settings: String,
    /// Runs.
    pub rounds: usize,
    /// 10^6 bytes of values acknowledged per second.
    pub mb_s: Spread,
    /// Records acknowledged per second.
    pub records_s: Spread,
    /// Median latency of acknowledgements, microseconds.
    pub p50_us: Spread,
    /// One in a hundred took longer, microseconds.
    pub p99_us: Spread,
    /// Records that were not acknowledged, in all runs.
    pub failed: u64,
    /// `None` for the first driver.
    pub ratios: Option<Ratios>,
}

/// Runs of several drivers and what they come to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Comparison {
    /// One per driver, in the order of their first runs.
    pub standings: Vec<Standing>,
    /// Every run, in the order in which they were made.
    pub runs: Vec<Report>,
}

impl Comparison {
    /// Of runs of one workload.
    pub fn of(runs: Vec<Report>) -> Self {
        let figures: Vec<Figures<'_>> = runs.iter().map(Figures::of).collect();
        Self { standings: standings(&figures), runs }
    }
}

/// What is compared of a run.
struct Figures<'a> {
    driver: &'a str,
    durability: Durability,
    durability_settings: &'a str,
    mb_s: f64,
    records_s: f64,
    p50_us: f64,
    p99_us: f64,
    failed: u64,
}

impl<'a> Figures<'a> {
    fn of(report: &'a Report) -> Self {
        Self {
            driver: &report.driver,
            durability: report.durability,
            durability_settings: &report.durability_settings,
            mb_s: report.produced.mb_s,
            records_s: report.produced.records_s,
            p50_us: report.acknowledge.p50_us,
            p99_us: report.acknowledge.p99_us,
            failed: report.failed,
        }
    }
}

fn standings(runs: &[Figures<'_>]) -> Vec<Standing> {
    let mut standings: Vec<Standing> = Vec::new();
    for run in runs {
        if standings.iter().any(|standing| standing.driver == run.driver) {
            continue;
        }
        let own: Vec<&Figures<'_>> = runs.iter().filter(|other| other.driver == run.driver).collect();
        let mut standing = standing(run, &own);
        standing.ratios = standings.first().map(|first| ratios(&standing, first));
        standings.push(standing);
    }
    standings
}

fn standing(first: &Figures<'_>, own: &[&Figures<'_>]) -> Standing {
    let spread = |of: fn(&Figures<'_>) -> f64| Spread::of(own.iter().map(|run| of(run)));
    let weakest = own.iter().copied().min_by_key(|run| run.durability).unwrap_or(first);
    Standing {
        driver: first.driver.to_owned(),
        durability: weakest.durability,
        durability_settings: weakest.durability_settings.to_owned(),
        rounds: own.len(),
        mb_s: spread(|run| run.mb_s),
        records_s: spread(|run| run.records_s),
        p50_us: spread(|run| run.p50_us),
        p99_us: spread(|run| run.p99_us),
        failed: own.iter().map(|run| run.failed).sum(),
        ratios: None,
    }
}

fn ratios(standing: &Standing, first: &Standing) -> Ratios {
    let ratio = |of: fn(&Standing) -> Spread| {
        Ratio::new(of(standing), standing.durability, of(first), first.durability)
    };
    Ratios {
        to: first.driver.clone(),
        records_s: ratio(|it| it.records_s),
        p50: ratio(|it| it.p50_us),
        p99: ratio(|it| it.p99_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_of_any_number_of_figures() {
        let spread = |median, lowest, highest| Spread { median, lowest, highest };
        let rows = [
            (vec![], spread(0.0, 0.0, 0.0)),
            (vec![4.0], spread(4.0, 4.0, 4.0)),
            (vec![4.0, 1.0], spread(2.5, 1.0, 4.0)),
            (vec![9.0, 1.0, 2.0], spread(2.0, 1.0, 9.0)),
            (vec![4.0, 3.0, 1.0, 2.0], spread(2.5, 1.0, 4.0)),
            (vec![4.0, 1.0, 2.0, 9.0], spread(3.0, 1.0, 9.0)),
        ];
        for (figures, expect) in rows {
            assert_eq!(Spread::of(figures.iter().copied()), expect, "{figures:?}");
        }
    }

    #[test]
    fn a_ratio_between_different_durabilities_says_so() {
        use Durability::{Device, Memory, PageCache};
        let rows = [
            (310.0, Device, 100.0, Device, "3.10x"),
            (310.0, PageCache, 100.0, Device, "3.10x (page cache against device)"),
            (4000.0, Memory, 100.0, PageCache, "40.0x (memory against page cache)"),
            (2.0, Device, 100.0, Device, "0.020x"),
            (0.2, Device, 100.0, Device, "0.0020x"),
            (1.0, Device, 0.0, Device, "-"),
            (0.0, Device, 1.0, Device, "-"),
        ];
        for (figure, durability, first, first_durability, expect) in rows {
            let ratio = Ratio::new(Spread::of([figure]), durability, Spread::of([first]), first_durability);
            assert_eq!(ratio.to_string(), expect);
        }
    }

    #[test]
    fn who_is_missing_is_told_how_to_come() {
        for (name, contestant, built) in KNOWN {
            let expect = if built { Ok(contestant) } else { Err(ContestantError::NotBuilt(name)) };
            assert_eq!(name.parse::<Contestant>(), expect);
            assert_eq!(contestant.name(), name);
        }
        let error = ContestantError::NotBuilt("nats").to_string();
        assert!(error.contains("--features nats"), "{error}");
        let error = "rabbit".parse::<Contestant>().expect_err("there is none").to_string();
        assert!(error.contains("ringlog, nats, redis, iggy, kafka"), "{error}");
    }

    #[test]
    fn runs_come_together_by_driver_and_the_weakest_durability_counts() {
        let run = |driver, durability, records_s| Figures {
            driver,
            durability,
            durability_settings: Durability::name(durability),
            mb_s: records_s / 10.0,
            records_s,
            p50_us: 8.0,
            p99_us: 9.0,
            failed: 1,
        };
        let (device, cache) = (Durability::Device, Durability::PageCache);
        let standings = standings(&[
            run("a", device, 10.0),
            run("b", device, 60.0),
            run("a", device, 30.0),
            run("b", cache, 20.0),
        ]);
        let [a, b] = standings.as_slice() else { panic!("two drivers ran") };
        assert_eq!((a.driver.as_str(), a.rounds, a.records_s.median, a.failed), ("a", 2, 20.0, 2));
        assert_eq!(a.ratios, None);
        assert_eq!((b.durability, b.durability_settings.as_str()), (cache, "page cache"));
        assert_eq!(b.mb_s, Spread { median: 4.0, lowest: 2.0, highest: 6.0 });
        let ratios = b.ratios.as_ref().expect("it is the second");
        assert_eq!(ratios.to, "a");
        assert_eq!(ratios.records_s.to_string(), "2.00x (page cache against device)");
        assert_eq!(ratios.p99.to_string(), "1.00x (page cache against device)");
    }
}
