//! The real binary, end to end: a broker process per test, commands against it, what they print and how they
//! exit. One test binary, because it links once.
//!
//! Absent on purpose: the inside of the broker and crashes, which have suites of their own.

mod back_pressure;
mod backup;
mod bench_reports;
mod cluster;
mod compaction;
mod compaction_due;
mod demo_and_bench;
mod disk_profile;
mod errors;
mod examples;
mod first_message;
mod group_client;
mod group_lag;
mod group_protocol;
mod groups;
mod history;
mod idempotence;
mod observability;
mod other_readers;
mod process;
mod proxy;
mod receipts;
mod records;
mod retention;
mod scrape;
mod settings;
#[path = "../faults/support/skipped.rs"]
mod skipped;
#[path = "../faults/support/stopped.rs"]
mod stopped;
mod topics;
mod workers;
