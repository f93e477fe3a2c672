//! A run on the terminal while it goes on: what it does, how long still, how fast the last second was.
//!
//! Owner: one benchmark. Invariant: nothing is shown unless a person looks, at standard output and at
//! standard error, where it is drawn; it is gone when the run is over.

use crate::output::{duration_us, grouped};
use ::bench::run::{Phase, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// Steps of the bar: thousandths of the run.
const STEPS: u64 = 1000;

/// The view.
#[derive(Clone)]
pub struct LiveView {
    bar: ProgressBar,
}

impl LiveView {
    /// A view for `people`, or one that shows nothing.
    pub fn new(people: bool) -> Self {
        let seen = people && std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let target = if seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{prefix} [{bar:24}] {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        Self { bar: ProgressBar::with_draw_target(Some(STEPS), target).with_style(style) }
    }

    /// Shows `now`.
    pub fn show(&self, now: &Progress) {
        let done = if now.total_s > 0.0 { now.elapsed_s / now.total_s } else { 0.0 };
        self.bar.set_prefix(prefix(now));
        self.bar.set_position((done.clamp(0.0, 1.0) * STEPS as f64) as u64);
        self.bar.set_message(message(now));
    }

    /// Takes it away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn prefix(now: &Progress) -> String {
    let phase = match now.phase {
        Phase::Connecting => "connecting",
        Phase::Backlog => "making a backlog",
        Phase::WarmUp => "warming up",
        Phase::Measuring => "measuring",
        Phase::Draining => "draining",
    };
    match now.step {
        Some((step, records_s)) => format!("trial {step} at {}/s: {phase}", grouped(records_s as u64)),
        None => phase.to_owned(),
    }
}

fn message(now: &Progress) -> String {
    let left_s = (now.total_s - now.elapsed_s).max(0.0).ceil();
    let mut parts = Vec::new();
    if now.total_s > 0.0 {
        parts.push(format!("{left_s:.0} s left"));
    }
    parts.push(format!("{} records/s", grouped(now.speed.records_s as u64)));
    parts.push(format!("{:.1} MB/s", now.speed.mb_s));
    if now.speed.p99_us > 0.0 {
        parts.push(format!("p99 {}", duration_us(now.speed.p99_us)));
    }
    if now.speed.received_s > 0.0 {
        parts.push(format!("{} received/s", grouped(now.speed.received_s as u64)));
    }
    if now.failed > 0 {
        parts.push(format!("{} failed", grouped(now.failed)));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::bench::live::Speed;

    #[test]
    fn a_line_says_what_where_and_how_fast() {
        let speed = Speed { records_s: 12_345.6, mb_s: 12.34, received_s: 12_000.0, p99_us: 2500.0 };
        let now =
            Progress { phase: Phase::Measuring, speed, elapsed_s: 4.2, total_s: 10.0, ..Progress::default() };
        let rows = [
            (Progress::default(), "connecting", "0 records/s, 0.0 MB/s"),
            (now, "measuring", "6 s left, 12,345 records/s, 12.3 MB/s, p99 2.50 ms, 12,000 received/s"),
            (
                Progress { step: Some((3, 80_000.0)), failed: 2, elapsed_s: 11.0, ..now },
                "trial 3 at 80,000/s: measuring",
                "0 s left, 12,345 records/s, 12.3 MB/s, p99 2.50 ms, 12,000 received/s, 2 failed",
            ),
        ];
        for (now, before, behind) in rows {
            assert_eq!((prefix(&now).as_str(), message(&now).as_str()), (before, behind));
        }
    }
}
