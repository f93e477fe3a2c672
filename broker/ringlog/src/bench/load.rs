//! `ringlog bench load`: closed-loop load on a running broker, and its figures.
//!
//! The load is the `bench` crate's; here are arguments and output. Every report carries all its settings.

use crate::client::BrokersArguments;
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table, duration_us, grouped};
use ::bench::load::{LoadConfig, LoadError, LoadReport, Mode};
use ringlog_client::Acks;

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ModeArgument {
    Produce,
    Consume,
}

/// `ringlog bench load`
#[derive(clap::Args)]
pub struct LoadArguments {
    #[command(flatten)]
    brokers: BrokersArguments,
    #[command(flatten)]
    format: FormatArguments,
    /// Append, or read from the start again and again
    #[arg(long, value_enum, default_value = "produce")]
    mode: ModeArgument,
    /// The topic; made where it is missing, and then deleted at the end
    #[arg(long, default_value = "bench-load")]
    topic: String,
    /// Bytes of one record's value
    #[arg(long, value_name = "N", default_value_t = 1000)]
    record_bytes: usize,
    /// Records of one request
    #[arg(long, value_name = "N", default_value_t = 1000)]
    records_per_request: usize,
    /// Requests in flight per connection
    #[arg(long, value_name = "N", default_value_t = 1)]
    in_flight: usize,
    /// Connections; connection i of n works on partition i modulo their number, and in turn on i + n, i + 2n, …
    #[arg(long, value_name = "N", default_value_t = 1)]
    connections: usize,
    /// Partitions of the topic if it is made; default: one per connection
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// What an acknowledgement waits for
    #[arg(long, value_parser = crate::produce::acks, default_value = "all")]
    acks: Acks,
    /// How long to measure
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// How long to run before that
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    warmup: f64,
    /// The core that the load runs on
    #[arg(long, value_name = "N")]
    client_core: Option<usize>,
    /// retention.bytes of the topic if it is made
    #[arg(long, value_name = "N", default_value_t = 4 << 30)]
    retention_bytes: u64,
    /// Consuming: bytes at most in one reply
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    fetch_bytes: u32,
    /// Consuming: bytes that each partition is filled to if the topic is made
    #[arg(long, value_name = "N", default_value_t = 512 << 20)]
    fill_bytes: u64,
    /// Consuming: check the CRC of every batch
    #[arg(long)]
    verify: bool,
    /// Leave a topic that this run made
    #[arg(long)]
    keep: bool,
}

/// Runs it.
pub fn run(arguments: LoadArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    let config = LoadConfig {
        brokers: arguments.brokers.brokers,
        topic: arguments.topic,
        mode: match arguments.mode {
            ModeArgument::Produce => Mode::Produce,
            ModeArgument::Consume => Mode::Consume,
        },
        record_bytes: arguments.record_bytes,
        records_per_request: arguments.records_per_request,
        in_flight: arguments.in_flight,
        connections: arguments.connections,
        partitions: arguments.partitions.unwrap_or(arguments.connections as u32),
        acks: arguments.acks,
        seconds: arguments.seconds,
        warmup_seconds: arguments.warmup,
        client_core: arguments.client_core,
        retention_bytes: arguments.retention_bytes,
        fetch_bytes: arguments.fetch_bytes,
        fill_bytes: arguments.fill_bytes,
        verify: arguments.verify,
        keep_topic: arguments.keep,
    };
    let report = ::bench::load::run(&config).map_err(|error| match error {
        LoadError::Invalid(text) => Failure::usage(text),
        error => Failure::operation(error.to_string()),
    })?;
    if output.is_json() {
        output.json(&report)?;
    } else {
        output.table(&table(&report))?;
    }
    output.flush()
}

fn table(report: &LoadReport) -> Table {
    let config = &report.config;
    let mut table = Table::new(&["MEASURED", ">VALUE"]);
    let mode = match config.mode {
        Mode::Produce => format!("produce, acks {:?}", config.acks).to_lowercase(),
        Mode::Consume => "consume".to_owned(),
    };
    let rows = [
        ("mode", mode),
        ("record bytes", grouped(config.record_bytes as u64)),
        ("records per request", grouped(config.records_per_request as u64)),
        ("connections", config.connections.to_string()),
        ("in flight per connection", config.in_flight.to_string()),
        ("broker cores", report.broker_shards.to_string()),
        ("durability", report.durability.unwrap_or("-").to_owned()),
        ("seconds", format!("{}", config.seconds)),
        ("requests", grouped(report.requests)),
        ("refused and sent again", grouped(report.refused)),
        ("requests/s", grouped(report.requests_s.round() as u64)),
        ("records/s", grouped(report.records_s.round() as u64)),
        ("MB/s", format!("{:.1}", report.mb_s)),
        ("p50", duration_us(report.p50_us)),
        ("p99", duration_us(report.p99_us)),
        ("p99.9", duration_us(report.p999_us)),
        ("max", duration_us(report.max_us)),
    ];
    for (name, value) in rows {
        table.row([name.to_owned(), value]);
    }
    table
}
