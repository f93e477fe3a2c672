//! A result as a share of what the host can do: which ceiling binds a run, and how near the run came to it.
//!
//! Pure functions of a run's figures and a [`HostProfile`]. Every resource that the run used gives one
//! [`Share`]; the one that came nearest to its ceiling binds.
//!
//! | used | ceiling |
//! |---|---|
//! | bytes made durable per second | `write 1 MiB, pre-written, dsync, depth N`, N = what was in flight |
//! | durable writes per second | `write 4 KiB, pre-written, dsync, depth N` |
//! | bytes to consumers that came from the device | `read 1 MiB, depth 4` |
//! | bytes over loopback, both ways together | `loopback TCP, 1 MiB messages` |
//! | median latency, where the rate was given | `write 4 KiB, pre-written, dsync, depth 1`, its median |
//!
//! A run of large batches is bound by the first, one of single small records by the second; which of them
//! is not asked of the user but of the figures. Between them (64 KiB per write) a device does neither, and
//! the share is lower than the truth. Shares above 1 are shown as they are: the host was faster than when its
//! profile was made, or (loopback) had more than one stream. Absent on purpose: a verdict.

use crate::ceilings::{Ceiling, Unit};
use crate::host_profile::HostProfile;
use std::fmt;

/// The row that bounds consumption over loopback.
pub const LOOPBACK: &str = "loopback TCP, 1 MiB messages";
/// The row that bounds a request whose durability is not waited for.
pub const LOOPBACK_SMALL: &str = "loopback TCP, 64 B, sleeping, round trip";
/// The row that bounds reading what is in no memory.
pub const READ: &str = "read 1 MiB, depth 4";
/// Depths at which durable writes are measured.
const DEPTHS: [usize; 3] = [1, 2, 4];
const SMALL_WRITE_BYTES: f64 = 4096.0;

/// What a run reached. Rates are over the measured time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Whether an acknowledgement meant that the record is on the device.
    pub durable: bool,
    /// Whether client and broker were on this host.
    pub same_host: bool,
    /// Whether the rate was given, so that throughput says nothing about what was possible.
    pub fixed_rate: bool,
    /// Requests that could be in flight, all connections together; 0 = not known, taken as many.
    pub in_flight: usize,
    /// 10^6 bytes acknowledged per second.
    pub produced_mb_s: f64,
    /// 10^6 bytes received per second.
    pub consumed_mb_s: f64,
    /// Of them, read from the device; 0 if not known.
    pub read_mb_s: f64,
    /// Durable writes (flush rounds) per second, if they are known.
    pub rounds_s: Option<f64>,
    /// Median latency of an acknowledgement, microseconds; 0 = nothing was produced.
    pub acknowledge_p50_us: f64,
}

/// How near a run came to a ceiling.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Share {
    /// The row of the host's profile.
    pub ceiling: String,
    /// What the host can do.
    pub value: f64,
    /// What the run did.
    pub reached: f64,
    /// The unit of both: `MB/s`, `1/s`, or `us` for a latency (where less is better).
    pub unit: String,
    /// 1 = the ceiling.
    pub share: f64,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Share { ceiling, value, reached, unit, share } = self;
        write!(f, "{:.0} % of \"{ceiling}\": {reached:.0} of {value:.0} {unit}", share * 100.0)
    }
}

/// The row of durable writes of `size` (`1 MiB`, `4 KiB`) with the measured depth that is nearest below.
fn dsync(size: &str, in_flight: usize) -> String {
    let most = if in_flight == 0 { usize::MAX } else { in_flight };
    let depth = DEPTHS.into_iter().rfind(|depth| *depth <= most).unwrap_or(DEPTHS[0]);
    format!("write {size}, pre-written, dsync, depth {depth}")
}

/// The ceiling that binds the run; `None` if the profile lacks the rows, or nothing was measured.
pub fn binding_ceiling(figures: &Figures, profile: &HostProfile) -> Option<Share> {
    shares(figures, profile).into_iter().next()
}

/// Every ceiling that the run had to do with, the one that it came nearest to first.
pub fn shares(figures: &Figures, profile: &HostProfile) -> Vec<Share> {
    let mut out: Vec<Share> = if figures.fixed_rate {
        latency(figures, profile).into_iter().collect()
    } else {
        throughput(figures, profile)
    };
    out.retain(|share| share.share.is_finite() && share.share > 0.0);
    // Stable: of equals, the first of the table above.
    out.sort_by(|a, b| b.share.total_cmp(&a.share));
    out
}

fn throughput(figures: &Figures, profile: &HostProfile) -> Vec<Share> {
    let row = |name: &str| profile.ceiling(name);
    let rate = |ceiling: &Ceiling, reached: f64| Share {
        ceiling: ceiling.name.clone(),
        value: ceiling.value,
        reached,
        unit: ceiling.unit.to_string(),
        share: reached / ceiling.value,
    };
    let mut out = Vec::new();
    if figures.durable {
        out.extend(row(&dsync("1 MiB", figures.in_flight)).map(|it| rate(it, figures.produced_mb_s)));
        if let (Some(rounds_s), Some(it)) = (figures.rounds_s, row(&dsync("4 KiB", figures.in_flight))) {
            // The row counts bytes; what binds small writes is how many of them there are.
            let writes =
                Ceiling { value: it.value * 1e6 / SMALL_WRITE_BYTES, unit: Unit::PerSecond, ..it.clone() };
            out.push(rate(&writes, rounds_s));
        }
    }
    out.extend(row(READ).map(|it| rate(it, figures.read_mb_s)));
    if figures.same_host {
        out.extend(row(LOOPBACK).map(|it| rate(it, figures.produced_mb_s + figures.consumed_mb_s)));
    }
    out
}

fn latency(figures: &Figures, profile: &HostProfile) -> Option<Share> {
    let name = if figures.durable { dsync("4 KiB", 1) } else { LOOPBACK_SMALL.to_owned() };
    let floor = profile.ceiling(&name)?;
    (figures.acknowledge_p50_us > 0.0).then(|| Share {
        ceiling: name,
        value: floor.p50_us,
        reached: figures.acknowledge_p50_us,
        unit: "us".to_owned(),
        share: floor.p50_us / figures.acknowledge_p50_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_profile::{FORMAT_VERSION, Host};

    fn profile(rows: &[(&str, f64, Unit, f64)]) -> HostProfile {
        let ceilings = rows.iter().map(|(name, value, unit, p50_us)| Ceiling {
            name: (*name).to_owned(),
            value: *value,
            unit: *unit,
            p50_us: *p50_us,
            p99_us: *p50_us,
        });
        HostProfile {
            format_version: FORMAT_VERSION,
            measured_unix_s: 0,
            host: Host::default(),
            directory: "/".into(),
            seconds: 1.0,
            ceilings: ceilings.collect(),
        }
    }

    fn host() -> HostProfile {
        use Unit::{MbPerSecond, PerSecond};
        profile(&[
            ("write 1 MiB, pre-written, dsync, depth 1", 500.0, MbPerSecond, 2000.0),
            ("write 1 MiB, pre-written, dsync, depth 2", 800.0, MbPerSecond, 2500.0),
            ("write 1 MiB, pre-written, dsync, depth 4", 1000.0, MbPerSecond, 4000.0),
            // 2,000 and 8,000 writes per second.
            ("write 4 KiB, pre-written, dsync, depth 1", 8.192, MbPerSecond, 500.0),
            ("write 4 KiB, pre-written, dsync, depth 4", 32.768, MbPerSecond, 600.0),
            (READ, 2000.0, MbPerSecond, 500.0),
            (LOOPBACK, 4000.0, MbPerSecond, 200.0),
            (LOOPBACK_SMALL, 20_000.0, PerSecond, 50.0),
        ])
    }

    #[track_caller]
    fn check(figures: Figures, expect: &[(&str, f64)]) {
        let found = shares(&figures, &host());
        let got: Vec<(&str, f64)> = found.iter().map(|it| (it.ceiling.as_str(), it.share)).collect();
        assert_eq!(got.len(), expect.len(), "{figures:?}: {got:?}");
        for ((name, share), (expect_name, expect_share)) in got.iter().zip(expect) {
            assert_eq!(name, expect_name, "{figures:?}");
            assert!((share - expect_share).abs() < 1e-9, "{figures:?}: {name} {share}");
        }
        assert_eq!(binding_ceiling(&figures, &host()), found.first().cloned());
    }

    const DURABLE: Figures = Figures {
        durable: true,
        same_host: true,
        fixed_rate: false,
        in_flight: 4,
        produced_mb_s: 0.0,
        consumed_mb_s: 0.0,
        read_mb_s: 0.0,
        rounds_s: None,
        acknowledge_p50_us: 1000.0,
    };

    #[test]
    fn the_ceiling_that_binds() {
        let [large_1, large_2, large_4] = DEPTHS.map(|depth| dsync("1 MiB", depth));
        let [small_1, _, small_4] = DEPTHS.map(|depth| dsync("4 KiB", depth));
        // Large batches: bytes bind, at the depth that was in flight, or the nearest measured below it.
        for (in_flight, name, ceiling) in
            [(1, &large_1, 500.0), (2, &large_2, 800.0), (3, &large_2, 800.0), (4, &large_4, 1000.0)]
                .into_iter()
                .chain([(64, &large_4, 1000.0), (0, &large_4, 1000.0)])
        {
            let figures = Figures { in_flight, produced_mb_s: 400.0, ..DURABLE };
            check(figures, &[(name.as_str(), 400.0 / ceiling), (LOOPBACK, 0.1)]);
        }
        // Single small records of one connection: the number of durable writes binds.
        let figures = Figures { in_flight: 1, produced_mb_s: 0.15, rounds_s: Some(1500.0), ..DURABLE };
        check(figures, &[(&small_1, 0.75), (&large_1, 0.0003), (LOOPBACK, 0.15 / 4000.0)]);
        // Of many connections: rounds are shared, the records do not count.
        let figures = Figures { in_flight: 64, produced_mb_s: 8.0, rounds_s: Some(4000.0), ..DURABLE };
        check(figures, &[(&small_4, 0.5), (&large_4, 0.008), (LOOPBACK, 0.002)]);
        // Consumption out of memory, and from the device.
        let figures = Figures { consumed_mb_s: 3000.0, ..DURABLE };
        check(figures, &[(LOOPBACK, 0.75)]);
        let figures = Figures { consumed_mb_s: 1800.0, read_mb_s: 1800.0, ..DURABLE };
        check(figures, &[(READ, 0.9), (LOOPBACK, 0.45)]);
        // Both ways go over the same loopback.
        let figures = Figures { durable: false, produced_mb_s: 1000.0, consumed_mb_s: 1000.0, ..DURABLE };
        check(figures, &[(LOOPBACK, 0.5)]);
        // Another host's loopback is not ours; its device is not either, unless it says it is.
        let figures = Figures { durable: false, same_host: false, produced_mb_s: 1000.0, ..DURABLE };
        check(figures, &[]);
        // A given rate: only latency says something.
        let fixed = Figures { fixed_rate: true, produced_mb_s: 10.0, ..DURABLE };
        check(fixed, &[(&small_1, 0.5)]);
        check(Figures { durable: false, ..fixed }, &[(LOOPBACK_SMALL, 0.05)]);
        check(Figures { acknowledge_p50_us: 0.0, ..fixed }, &[]);
    }

    #[test]
    fn a_profile_without_the_rows_binds_nothing() {
        let figures = Figures { produced_mb_s: 10.0, consumed_mb_s: 10.0, ..DURABLE };
        assert_eq!(binding_ceiling(&figures, &profile(&[])), None);
        assert_eq!(binding_ceiling(&figures, &profile(&[(LOOPBACK, 0.0, Unit::MbPerSecond, 0.0)])), None);
    }

    #[test]
    fn every_row_that_is_looked_for_is_measured() {
        let measured = crate::ceilings::names();
        let sizes = ["1 MiB", "4 KiB"];
        let writes = sizes.into_iter().flat_map(|size| DEPTHS.map(|depth| dsync(size, depth)));
        for name in writes.chain([LOOPBACK, LOOPBACK_SMALL, READ].map(str::to_owned)) {
            assert!(measured.contains(&name), "{name} is no case");
        }
    }

    #[test]
    fn a_share_reads_as_a_sentence() {
        let figures = Figures { produced_mb_s: 400.0, ..DURABLE };
        let expect = "40 % of \"write 1 MiB, pre-written, dsync, depth 4\": 400 of 1000 MB/s";
        assert_eq!(binding_ceiling(&figures, &host()).unwrap().to_string(), expect);
    }
}
