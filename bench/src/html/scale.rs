//! From values to places on an axis, and the values that get a label.
//!
//! Made once per axis from the values it must show. Invariants: what lies outside is drawn at the edge;
//! an axis without a value or with one alone still has a length; a label fits its value to three digits.

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From zero, evenly.
    FromZero,
    /// Every factor has the same length; values above zero only.
    Log,
}

/// One axis: values, and the places of its ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    kind: Kind,
    from: f64,
    until: f64,
    start: f64,
    end: f64,
}

impl Scale {
    /// An axis for `values`, drawn from `start` to `end`.
    pub fn new(kind: Kind, values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let usable = values.filter(|value| value.is_finite() && (kind == Kind::FromZero || *value > 0.0));
        let (least, most) =
            usable.fold((f64::MAX, 0f64), |(least, most), value| (least.min(value), most.max(value)));
        let (from, until) = match kind {
            Kind::FromZero if most > 0.0 => (0.0, most * 1.05),
            Kind::FromZero => (0.0, 1.0),
            Kind::Log if most > 0.0 => {
                let (from, until) = (round_down(least), round_up(most));
                if from < until { (from, until) } else { (from / 2.0, until * 2.0) }
            }
            Kind::Log => (1.0, 10.0),
        };
        Self { kind, from, until, start, end }
    }

    /// An axis that ends exactly at `from` and `until`.
    pub fn exact(kind: Kind, from: f64, until: f64, start: f64, end: f64) -> Self {
        Self { kind, from, until: if until > from { until } else { from + 1.0 }, start, end }
    }

    /// Where a value is drawn.
    pub fn at(&self, value: f64) -> f64 {
        let part = match self.kind {
            Kind::FromZero => (value - self.from) / (self.until - self.from),
            Kind::Log => (value.max(f64::MIN_POSITIVE) / self.from).ln() / (self.until / self.from).ln(),
        };
        self.start + part.clamp(0.0, 1.0) * (self.end - self.start)
    }

    /// Whether a value has a place: a logarithm of zero has none.
    pub fn has(&self, value: f64) -> bool {
        value.is_finite() && (self.kind == Kind::FromZero || value > 0.0)
    }

    /// Values to be labelled, at most about eight.
    pub fn ticks(&self) -> Vec<f64> {
        match self.kind {
            Kind::FromZero => {
                let step = nice_step((self.until - self.from) / 5.0);
                let count = ((self.until - self.from) / step + 1e-9).floor() as usize;
                (0..=count).map(|n| self.from + n as f64 * step).collect()
            }
            Kind::Log => {
                let (first, last) = (self.from.log10().floor() as i32, self.until.log10().ceil() as i32);
                let factors: &[f64] =
                    if (self.until / self.from).log10() <= 2.4 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let all = (first..=last)
                    .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
                let inside = |tick: &f64| *tick >= self.from * 0.999 && *tick <= self.until * 1.001;
                all.filter(inside).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn nice_step(step: f64) -> f64 {
    round_up(step.max(f64::MIN_POSITIVE))
}

fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= value * 0.999_999);
    factor.unwrap_or(10.0) * power
}

fn round_down(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let factor = [5.0, 2.0, 1.0].into_iter().find(|factor| factor * power <= value * 1.000_001);
    factor.unwrap_or(1.0) * power
}

/// Three digits and the thousands by letter: `1.25 M`.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 999_500_000.0 => format!("{} G", digits(value / 1e9)),
        size if size >= 999_500.0 => format!("{} M", digits(value / 1e6)),
        size if size >= 9_995.0 => format!("{} k", digits(value / 1e3)),
        _ => digits(value),
    }
}

/// Microseconds with the unit that reads best.
pub fn duration(us: f64) -> String {
    match us {
        us if us >= 999_500.0 => format!("{} s", digits(us / 1e6)),
        us if us >= 999.5 => format!("{} ms", digits(us / 1e3)),
        us => format!("{} µs", digits(us)),
    }
}

/// Three digits, without zeros behind the point.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 || size == 0.0 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_their_values_and_label_some() {
        // Kind, values, (from, until), labels.
        type Row = (Kind, &'static [f64], (f64, f64), &'static [f64]);
        let rows: [Row; 8] = [
            (Kind::FromZero, &[0.0, 100.0], (0.0, 105.0), &[0.0, 50.0, 100.0]),
            (Kind::FromZero, &[0.0, 95.0], (0.0, 99.75), &[0.0, 20.0, 40.0, 60.0, 80.0]),
            (Kind::FromZero, &[], (0.0, 1.0), &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (
                Kind::Log,
                &[30.0, 4000.0],
                (20.0, 5000.0),
                &[20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0],
            ),
            (Kind::Log, &[3.0, 400_000.0], (2.0, 500_000.0), &[10.0, 100.0, 1000.0, 10_000.0, 100_000.0]),
            (Kind::Log, &[0.0, 100.0, 100.0], (50.0, 200.0), &[50.0, 100.0, 200.0]),
            (Kind::Log, &[150.0, f64::NAN], (100.0, 200.0), &[100.0, 200.0]),
            (Kind::Log, &[0.0], (1.0, 10.0), &[1.0, 2.0, 5.0, 10.0]),
        ];
        for (kind, values, (from, until), ticks) in rows {
            let scale = Scale::new(kind, values.iter().copied(), 10.0, 110.0);
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
            assert!(close(scale.from, from) && close(scale.until, until), "{values:?}: {scale:?}");
            let got = scale.ticks();
            assert_eq!(got.len(), ticks.len(), "{values:?}: {got:?}");
            assert!(got.iter().zip(ticks).all(|(a, b)| close(*a, *b)), "{values:?}: {got:?}");
            for value in values.iter().filter(|value| scale.has(**value)) {
                assert!((10.0..=110.0).contains(&scale.at(*value)), "{value}");
            }
            assert!(close(scale.at(from), 10.0) && close(scale.at(until), 110.0), "{values:?}");
        }
    }

    #[test]
    fn values_are_labelled_briefly() {
        let rows = [
            (short(0.0), "0"),
            (short(0.25), "0.25"),
            (short(950.0), "950"),
            (short(5000.0), "5000"),
            (short(20_000.0), "20 k"),
            (short(1_250_000.0), "1.25 M"),
            (short(999_900.0), "1 M"),
            (short(2.5e9), "2.5 G"),
            (duration(0.5), "0.5 µs"),
            (duration(20.0), "20 µs"),
            (duration(999.9), "1 ms"),
            (duration(12_345.0), "12.3 ms"),
            (duration(2e6), "2 s"),
        ];
        for (got, expect) in rows {
            assert_eq!(got, expect);
        }
    }
}
