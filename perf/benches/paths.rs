//! Time of the paths whose instructions are budgeted: `cargo bench -p perf`, on a quiet machine.
//!
//! The same closures as `perf::budgets` counts; throughput is in bytes of values. Never run by a check: a time
//! is a figure to look at.

use divan::Bencher;
use divan::counter::BytesCount;
use perf::budgets::paths::PATHS;
use perf::budgets::{SHAPES, Shape};

fn main() {
    divan::main();
}

fn time(bencher: Bencher, path: &str, shape: &Shape) {
    let path = PATHS.iter().find(|it| it.name == path).expect("a path of the budgets");
    let pass = path.prepare(*shape);
    bencher.counter(BytesCount::new(shape.records as usize * shape.record_bytes)).bench_local(pass);
}

#[divan::bench(args = SHAPES)]
fn build_a_batch(bencher: Bencher, shape: &Shape) {
    time(bencher, "build a batch", shape);
}

#[divan::bench(args = SHAPES)]
fn decode_a_produce_request(bencher: Bencher, shape: &Shape) {
    time(bencher, "decode a produce request", shape);
}

#[divan::bench(args = SHAPES)]
fn validate_a_batch(bencher: Bencher, shape: &Shape) {
    time(bencher, "validate a batch", shape);
}

#[divan::bench(args = SHAPES)]
fn append_to_the_log(bencher: Bencher, shape: &Shape) {
    time(bencher, "append to the log", shape);
}

#[divan::bench(args = SHAPES)]
fn flush_round(bencher: Bencher, shape: &Shape) {
    time(bencher, "plan, seal, end a flush round", shape);
}

#[divan::bench(args = SHAPES)]
fn plan_a_read(bencher: Bencher, shape: &Shape) {
    time(bencher, "plan a read", shape);
}

#[divan::bench(args = SHAPES)]
fn encode_a_fetch_reply(bencher: Bencher, shape: &Shape) {
    time(bencher, "encode a fetch reply", shape);
}

#[divan::bench(args = SHAPES)]
fn read_the_records_of_a_batch(bencher: Bencher, shape: &Shape) {
    time(bencher, "read the records of a batch", shape);
}
