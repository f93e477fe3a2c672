//! Prints this machine's ceilings: `cargo run --release -p perf --example ceilings -- [DIR] [--seconds S]
//! [--only TEXT] [--format table|json]`. Exit status 2 for a bad argument, 1 when it cannot measure.
//!
//! Absent on purpose: an argument parser, and saving; `ringlog perf ceilings` has both.

use perf::ceilings::{Ceiling, Options, run_each, table};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut directory = PathBuf::from(".");
    let mut options = Options::default();
    let mut json = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_default();
        match argument.as_str() {
            "--seconds" => match value().parse() {
                Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => options.seconds = seconds,
                _ => return usage("--seconds takes a number above 0, at most 3600"),
            },
            "--only" => options.only = Some(value()),
            "--format" => match value().as_str() {
                "json" => json = true,
                "table" => json = false,
                _ => return usage("--format takes table or json"),
            },
            flag if flag.starts_with('-') => return usage(&format!("unknown option {flag}")),
            path => directory = path.into(),
        }
    }
    let mut ceilings: Vec<Ceiling> = Vec::new();
    let done = run_each(&directory, &options, &mut |ceiling| {
        if json {
            println!("{}", serde_json::to_string(&ceiling).expect("plain data serialises"));
        } else {
            eprintln!("{}: {:.0} {}", ceiling.name, ceiling.value, ceiling.unit);
        }
        ceilings.push(ceiling);
    });
    if !json {
        print!("{}", table(&ceilings));
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ceilings: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("ceilings: {message}\nusage: ceilings [DIR] [--seconds S] [--only TEXT] [--format table|json]");
    ExitCode::from(2)
}
