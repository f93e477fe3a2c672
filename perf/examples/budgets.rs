//! Counts the instructions of the hot paths: `cargo run -p perf --example budgets -- [--check | --bless]`.
//!
//! Without an argument it prints them; `--check` compares with `perf/budgets/` and ends with status 1 when a path
//! costs over 5 % more than recorded; `--bless` makes the record anew. Without valgrind, or with another
//! toolchain than the record's, `--check` says so and ends with status 0: there is nothing to compare.

use perf::budgets::baseline::{Baseline, BaselineError, Outcome};
use perf::budgets::callgrind::{COUNTED, CountError, counted, measure};
use perf::budgets::table;
use std::process::ExitCode;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    match argument.as_str() {
        COUNTED => {
            counted();
            ExitCode::SUCCESS
        }
        "" | "--check" | "--bless" => run(&argument),
        _ => {
            eprintln!("usage: budgets [--check | --bless]");
            ExitCode::from(2)
        }
    }
}

fn run(argument: &str) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return fail(&error.to_string()),
    };
    let (toolchain, counts) = match measure(&program) {
        Ok(measured) => measured,
        Err(CountError::NoValgrind) if argument == "--check" => {
            println!("budgets: skipped: {}", CountError::NoValgrind);
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error.to_string()),
    };
    print!("{}", table(&counts));
    let path = Baseline::path();
    let done: Result<ExitCode, BaselineError> = match argument {
        "--bless" => {
            let saved = Baseline { toolchain, counts }.save(&path);
            saved.map(|()| {
                println!("budgets: recorded in {}", path.display());
                ExitCode::SUCCESS
            })
        }
        "--check" => Baseline::load(&path).map(|baseline| match baseline {
            None => {
                println!("budgets: skipped: there is no {}; record it with --bless", path.display());
                ExitCode::SUCCESS
            }
            Some(baseline) => say(baseline.compare(&toolchain, &counts)),
        }),
        _ => Ok(ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| fail(&error.to_string()))
}

fn say(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Skipped(differences) => {
            println!(
                "budgets: skipped, counted with another toolchain than recorded: {}",
                differences.join("; ")
            );
            ExitCode::SUCCESS
        }
        Outcome::Within { better } => {
            better.iter().for_each(|line| println!("better: {line}"));
            let hint = if better.is_empty() { "" } else { "; record what is better with --bless" };
            println!("budgets: every path within 5 % of its record{hint}");
            ExitCode::SUCCESS
        }
        Outcome::Over(lines) => {
            lines.iter().for_each(|line| println!("OVER: {line}"));
            fail("mend it, or record the new cost with --bless and say why in the commit")
        }
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("budgets: {message}");
    ExitCode::FAILURE
}
