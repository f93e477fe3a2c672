//! `cargo sim -- --seeds N [--from S] [--trace]`: runs N seeds, prints figures, and how to replay what failed.

use sim::{Counts, Report, run};
use std::panic;
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "usage: cargo sim -- --seeds N [--from S] [--trace]";

struct Asked {
    seeds: u64,
    from: u64,
    trace: bool,
}

fn asked() -> Option<Asked> {
    let mut asked = Asked { seeds: 100, from: 0, trace: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seeds" => asked.seeds = arguments.next()?.parse().ok()?,
            "--from" => asked.from = arguments.next()?.parse().ok()?,
            "--trace" => asked.trace = true,
            _ => return None,
        }
    }
    Some(asked)
}

fn main() -> ExitCode {
    let Some(Asked { seeds, from, trace }) = asked() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    panic::set_hook(Box::new(|violation| println!("{violation}")));
    let began = Instant::now();
    let mut total = Report::default();
    let mut faults = Counts::new();
    let mut violations = 0;
    for seed in from..from + seeds {
        // The message of a panic is the violation; the seed that goes with it comes after.
        let Ok(report) = panic::catch_unwind(|| run(seed, trace, None)) else {
            violations += 1;
            println!("seed {seed} failed: cargo sim -- --seeds 1 --from {seed} --trace");
            continue;
        };
        total.events += report.events;
        total.simulated_us += report.simulated_us;
        total.acknowledged += report.acknowledged;
        total.leaders += report.leaders;
        total.cuts += report.cuts;
        total.duplicates += report.duplicates;
        total.commands += report.commands;
        total.moves += report.moves;
        total.followed += report.followed;
        for (what, count) in report.met {
            *total.met.entry(what).or_default() += count;
        }
        for (fault, count) in report.faults {
            *faults.entry(fault).or_default() += count;
        }
    }
    let hours = total.simulated_us as f64 / 3.6e9;
    let took_hours = began.elapsed().as_secs_f64() / 3600.0;
    println!(
        "{seeds} seeds from {from}: {violations} violations; {} faults, {} events, {hours:.1} simulated hours, {:.0} per \
         hour; {} batches acknowledged, {} duplicates, {} leaderships, {} logs cut, {} metadata commands, {} moves between \
         shards, {} batches read at followers",
        faults.values().sum::<u64>(),
        total.events,
        hours / took_hours,
        total.acknowledged,
        total.duplicates,
        total.leaders,
        total.cuts,
        total.commands,
        total.moves,
        total.followed,
    );
    let kinds: Vec<String> = faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
    println!("{}", kinds.join(", "));
    let met: Vec<String> = total.met.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!("{}", met.join(", "));
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
