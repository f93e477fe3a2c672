//! Crash images: at any moment of the real storage code's life the power goes; every image of the device
//! that may be left is recovered by the real recovery and compared with what had been acknowledged.
//!
//! Prints one line per test, past the harness's capture. `RINGLOG_CRASH_IMAGES` sets how many images are
//! checked at least, `RINGLOG_CRASH_SEED` runs one seed alone: a failure names the seed.

mod crash;

use crash::ledger::Tally;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Lines appear in a plain `cargo test` too: written past the capture of the harness.
fn print(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(name: &str, first_seed: u64, images: u64, flips: bool) -> Tally {
    let images = number("RINGLOG_CRASH_IMAGES").unwrap_or(images);
    let only = number("RINGLOG_CRASH_SEED");
    let mut total = Tally::default();
    let mut seed = only.unwrap_or(first_seed);
    loop {
        let replay =
            format!("replay: RINGLOG_CRASH_SEED={seed} cargo test -p server --test crash_images {name}");
        match catch_unwind(AssertUnwindSafe(|| crash::life::run(seed, flips))) {
            Ok(tally) => {
                let failed = !tally.failures.is_empty();
                total.merge(tally);
                if failed {
                    print(&replay);
                    break;
                }
            }
            Err(panic) => {
                print(&replay);
                std::panic::resume_unwind(panic);
            }
        }
        if only.is_some() || total.images >= images {
            break;
        }
        seed += 1;
    }
    for failure in &total.failures {
        print(failure);
    }
    if std::env::var_os("RINGLOG_CRASH_EVENTS").is_some() {
        for (event, count) in &total.events {
            print(&format!("  {count:>9} {event}"));
        }
    }
    total
}

#[test]
fn crash_images() {
    let tally = run("crash_images", 1, 40_000, false);
    print(&format!(
        "crash images: {} checked, {} acknowledged lost, {} tails misjudged",
        tally.images, tally.lost, tally.misjudged
    ));
    assert_eq!((tally.lost, tally.misjudged, tally.failures.len()), (0, 0, 0));
}

#[test]
fn crash_images_with_bit_flips() {
    let tally = run("crash_images_with_bit_flips", 1_000_001, 20_000, true);
    print(&format!(
        "crash images with bit flips: {} checked, {} acknowledged lost without being reported",
        tally.images, tally.lost
    ));
    assert_eq!((tally.lost, tally.misjudged, tally.failures.len()), (0, 0, 0));
}
