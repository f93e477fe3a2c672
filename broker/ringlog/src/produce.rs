//! `ringlog produce`: each line of a file or of standard input becomes a record; with `--input json` each object.
//!
//! Lifecycle: connect → make the topic where it is missing (and say so) → read lines, send, collect
//! acknowledgements as they come → print what was acknowledged. SIGINT ends the reading; what was read is
//! still sent and reported.
//! Invariants: memory is bounded by the client's and by a few chunks of lines; a line is sent unchanged,
//! without its end; every record is acknowledged or counted as failed before the command ends.
//! Absent on purpose: records over several lines.

mod json;
mod key;
mod lines;
mod receipts;
mod tally;

use crate::client::{BrokersArguments, setting};
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, counted};
use crate::topic;
use indicatif::{ProgressBar, ProgressStyle};
use key::KeyRule;
use lines::Lines;
use receipts::Receipts;
use ringlog_client::{
    Acks, Client, ClientError, Compression, DeliveryFuture, ErrorCode, NewTopic, ProduceError, Producer,
    ProducerConfig, ProducerRecord,
};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally::Tally;
use tokio::sync::mpsc;

/// `ringlog produce`
#[derive(clap::Args)]
pub struct ProduceArguments {
    /// The topic; made with the broker's defaults if there is none
    topic: String,
    /// Read lines from here instead of standard input
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// What a line is: lines = the value; json = an object as consume --format json prints it, with key, value, headers,
    /// timestamp_ms, partition, each optional
    #[arg(long, value_enum, default_value = "lines", value_name = "lines|json")]
    input: Input,
    /// The key is this field of a CSV line, counted from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "key_separator")]
    key_field: Option<u32>,
    /// The key is what stands before the first S of a line, the value what follows it
    #[arg(long, value_name = "S", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// The first line is a heading and is skipped
    #[arg(long)]
    header: bool,
    /// Send everything to this partition instead of where keys belong
    #[arg(long, value_name = "P")]
    partition: Option<u32>,
    /// What an acknowledgement waits for: 0 nothing, 1 the leader's device, all every in-sync replica's
    #[arg(long, value_parser = acks, default_value = "all")]
    acks: Acks,
    /// Compress batches: none, lz4, zstd, snappy, gzip
    #[arg(long, value_name = "CODEC", default_value = "none")]
    compression: Compression,
    /// Do without producer id and sequences: what is sent again after a lost answer can be there twice
    #[arg(long)]
    no_idempotence: bool,
    /// Print the receipt of every record as it comes: offset, durability reached, durable end, duplicate or not
    #[arg(long)]
    receipts: bool,
    /// Say where the time of the acknowledgements went, and of each with --receipts
    #[arg(long)]
    explain: bool,
    /// A setting of the producer by its usual name, as linger.ms=5, batch.size=256KiB, partitioner=modulo; may be
    /// repeated, and wins over the options above
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Fail if the topic is missing
    #[arg(long)]
    no_create: bool,
    #[command(flatten)]
    brokers: BrokersArguments,
    #[command(flatten)]
    format: FormatArguments,
}

/// `--input`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Input {
    /// A value, perhaps with a key in it.
    Lines,
    /// An object with everything that a record has.
    Json,
}

/// `--acks`
pub fn acks(text: &str) -> Result<Acks, String> {
    match text {
        "0" => Ok(Acks::None),
        "1" => Ok(Acks::Leader),
        "all" | "-1" => Ok(Acks::All),
        _ => Err("write 0, 1 or all".to_owned()),
    }
}

/// Runs it.
pub fn run(arguments: ProduceArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    let config = config(&arguments)?;
    let input = match &arguments.file {
        Some(path) => Lines::of_file(path),
        None => Ok(Lines::of_standard_input()),
    };
    let input = input.map_err(|error| {
        let path = arguments.file.clone().unwrap_or_default();
        Failure::usage(format!("cannot read {}: {error}", path.display()))
    })?;
    crate::block_on(produce(arguments, config, input, &mut output))
}

fn config(arguments: &ProduceArguments) -> Result<ProducerConfig, Failure> {
    let mut config = ProducerConfig {
        acks: arguments.acks,
        compression: arguments.compression,
        enable_idempotence: !arguments.no_idempotence,
        explain: arguments.explain,
        // A person waits.
        delivery_timeout: Duration::from_secs(30),
        ..ProducerConfig::default()
    };
    for (name, value) in &arguments.set {
        config.set(name, value)?;
    }
    let has_rule = arguments.key_field.is_some() || arguments.key_separator.is_some() || arguments.header;
    if arguments.input == Input::Json && has_rule {
        return Err(Failure::usage(
            "with --input json the key is a field of the object, and there is no heading",
        ));
    }
    Ok(config)
}

async fn produce(
    arguments: ProduceArguments,
    config: ProducerConfig,
    input: Lines,
    output: &mut Output,
) -> Result<(), Failure> {
    let client = arguments.brokers.connect().await?;
    let made = ensure_topic(&client, &arguments).await?;
    let producer = client.producer(config);
    let progress = progress(&input, &arguments);
    let started = Instant::now();
    // Bounded by the producer's memory: a record is in this queue only while that memory is held, or
    // until the collector's next turn.
    let (deliveries, collector) = mpsc::unbounded_channel();
    let send = async {
        let sent = send_lines(&arguments, input, &producer, &deliveries, &progress).await;
        // The collector sees that no more will come.
        drop(deliveries);
        // The failures of records are in the tally.
        let _ = producer.close().await;
        sent
    };
    let receipts = arguments.receipts.then(Receipts::default);
    let collect = Tally::collect(&arguments.topic, collector, receipts, output);
    let (sent, tally) = tokio::join!(send, collect);
    progress.finish_and_clear();
    let tally = tally?;
    tally.print(&arguments.topic, made, started.elapsed(), output)?;
    output.flush()?;
    if let Some(error) = &tally.first_error {
        let total = tally.failed + tally.acknowledged;
        return Err(Failure::operation(format!(
            "{} of {} were not acknowledged: {error}",
            tally.failed,
            counted(total, "record")
        )));
    }
    sent
}

/// Sends until the input ends, the user interrupts, or a record fails.
async fn send_lines(
    arguments: &ProduceArguments,
    mut input: Lines,
    producer: &Producer,
    deliveries: &mpsc::UnboundedSender<Delivery>,
    progress: &ProgressBar,
) -> Result<(), Failure> {
    let topic: Arc<str> = arguments.topic.as_str().into();
    let mut rule = KeyRule::new(arguments.key_field, arguments.key_separator.as_deref());
    let mut line_number = 0u64;
    // Once: a signal between two of them would be missed.
    let mut interrupted = std::pin::pin!(crate::interrupt::interrupted());
    loop {
        let chunk = tokio::select! {
            chunk = input.next() => chunk,
            _ = &mut interrupted => return Ok(()),
            () = deliveries.closed() => return Ok(()),
        };
        let Some(chunk) = chunk else {
            return Ok(());
        };
        for line in chunk.map_err(|error| Failure::operation(format!("after line {line_number}: {error}")))? {
            line_number += 1;
            // The line's end is one byte, or two.
            progress.inc(line.len() as u64 + 1);
            if arguments.header && line_number == 1 {
                continue;
            }
            let bytes = line.len() as u64;
            let failed =
                |error: &dyn std::error::Error| Failure::operation(format!("line {line_number}: {error}"));
            let record = match arguments.input {
                Input::Json => json::record(&line).map_err(|error| failed(&error))?,
                Input::Lines => {
                    let (key, value) = rule.split(line).map_err(|error| failed(&error))?;
                    ProducerRecord { key, value: Some(value), ..ProducerRecord::default() }
                }
            };
            let partition = arguments.partition.or(record.partition);
            let record = ProducerRecord { topic: topic.clone(), partition, ..record };
            let future = producer.send(record).await.map_err(|error| match error {
                error @ ProduceError::KeyRequired { .. } => Failure::operation(format!(
                    "line {line_number}: {error}; --key-separator S or --key-field N take it from the line"
                )),
                error => error.into(),
            })?;
            if deliveries.send(Delivery { future, line: line_number, bytes }).is_err() {
                return Ok(());
            }
        }
    }
}

/// A record on its way.
struct Delivery {
    future: DeliveryFuture,
    /// Counted from 1.
    line: u64,
    /// Of the line.
    bytes: u64,
}

/// Whether the topic was made.
async fn ensure_topic(client: &Client, arguments: &ProduceArguments) -> Result<bool, Failure> {
    let admin = client.admin();
    let name = &arguments.topic;
    match admin.describe_topic(name).await {
        Ok(_) => return Ok(false),
        // Nobody knows how many partitions one wants who asks for one that is not the first.
        Err(error @ ClientError::UnknownTopic { .. })
            if arguments.no_create || arguments.partition.is_some_and(|partition| partition > 0) =>
        {
            return Err(error.into());
        }
        Err(ClientError::UnknownTopic { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match admin.create_topic(&NewTopic::named(name)).await {
        Ok(_) => {}
        // Somebody else was faster.
        Err(ClientError::Broker(error)) if error.code == ErrorCode::TopicExists => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let (made, copies) = topic::made(&admin, name).await?;
    eprintln!(
        "created topic {name} with {} (to choose: ringlog topic create NAME --partitions N --replication-factor N)",
        topic::extent(&made, copies)
    );
    Ok(true)
}

/// Only where a person watches and does not type; hidden unless standard error is a terminal.
fn progress(input: &Lines, arguments: &ProduceArguments) -> ProgressBar {
    let style = |template| ProgressStyle::with_template(template).expect("a constant template is valid");
    match input.total_bytes {
        Some(total) => ProgressBar::new(total).with_style(style(
            "{bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {eta}",
        )),
        None if arguments.file.is_none() && std::io::stdin().is_terminal() => ProgressBar::hidden(),
        None => {
            ProgressBar::no_length().with_style(style("{spinner} {decimal_bytes} {decimal_bytes_per_sec}"))
        }
    }
}
