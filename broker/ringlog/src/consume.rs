//! `ringlog consume`: prints records; with `--group` as one of many workers ([`member`]).
//!
//! Lifecycle: connect → learn where each partition starts and, with `--until-end`, ends → read and print
//! until enough, the end, SIGINT or SIGTERM. Without `--max` and `--until-end` it follows the topic.
//! Invariants: output is flushed whenever nothing more is at hand, so that a follower sees a record at once;
//! a partition that cannot be read is named on standard error, the others go on, and the exit status is 1.
//! Absent on purpose: committed offsets without a group; whoever consumes alone remembers where it was.

mod member;
mod record;
mod start;

use crate::client::{BrokersArguments, setting};
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, counted};
use ringlog_client::{
    AutoOffsetReset, Client, ConsumeError, Consumer, ConsumerConfig, FetchedBatch, OffsetSpec, Record,
    StartFrom,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// A place in a partition, as the user writes it.
pub use start::parse as place;

/// `ringlog consume`
#[derive(clap::Args)]
pub struct ConsumeArguments {
    /// The topic
    #[arg(required_unless_present = "group")]
    topic: Option<String>,
    /// Be a member of this group: it shares the topics' partitions with its other members, begins where the group was, and
    /// commits what it has printed
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["partition", "until_end"])]
    group: Option<String>,
    #[command(flatten)]
    member: member::MemberArguments,
    /// earliest, latest, an offset, or @TIME: the first record at or after it (RFC 3339, or milliseconds
    /// since 1970)
    #[arg(long, visible_alias = "from", value_name = "PLACE", value_parser = start::parse, default_value = "earliest", allow_hyphen_values = true)]
    offset: StartFrom,
    /// Only this partition; may be repeated
    #[arg(long, value_name = "P")]
    partition: Vec<u32>,
    /// End after so many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// End where the topic ended when the command began
    #[arg(long)]
    until_end: bool,
    /// A setting of the consumer by its usual name, as fetch.max.wait.ms=100, auto.offset.reset=latest,
    /// enable.auto.commit=false; may be repeated, and wins over the other options
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Text: print the key and a tab before each value
    #[arg(long)]
    keys: bool,
    #[command(flatten)]
    brokers: BrokersArguments,
    #[command(flatten)]
    format: FormatArguments,
}

impl ConsumeArguments {
    /// The topic; without a group there is one.
    fn topic(&self) -> &str {
        self.topic.as_deref().unwrap_or_default()
    }
}

/// Runs it.
pub fn run(arguments: &ConsumeArguments) -> Result<(), Failure> {
    let output = Output::new(arguments.format.format);
    crate::block_on(consume(arguments, output))
}

async fn consume(arguments: &ConsumeArguments, output: Output) -> Result<(), Failure> {
    if let Some(group) = &arguments.group {
        return member::consume(group, arguments, output).await;
    }
    let mut config = ConsumerConfig {
        // An offset that is not there is the user's mistake, not to be guessed away.
        auto_offset_reset: match arguments.offset {
            StartFrom::Offset(_) => AutoOffsetReset::Error,
            _ => AutoOffsetReset::Earliest,
        },
        ..ConsumerConfig::default()
    };
    for (name, value) in &arguments.set {
        config.set(name, value)?;
    }
    let client = arguments.brokers.connect().await?;
    let partitions = partitions(&client, arguments).await?;
    let ends = match arguments.until_end {
        true => Some(limits(&client, arguments, &partitions, OffsetSpec::Latest).await?),
        false => None,
    };
    if let (StartFrom::Offset(offset), Some(ends)) = (arguments.offset, &ends)
        && config.auto_offset_reset == AutoOffsetReset::Error
        && ends.values().all(|end| *end < offset)
    {
        let last = ends.values().max().copied().unwrap_or(0);
        return Err(Failure::operation(format!(
            "offset {offset} is not there yet: the topic ends at {last}"
        )));
    }
    // With an end to come to, a place outside of what is kept is reset here and now: the consumer does it with its first
    // fetch, and whoever waits for records until then may wait for ever.
    let reset = match (config.auto_offset_reset, arguments.offset, &ends) {
        (AutoOffsetReset::Earliest, StartFrom::Offset(offset), Some(ends)) => {
            Some((offset, StartFrom::Earliest, ends))
        }
        (AutoOffsetReset::Latest, StartFrom::Offset(offset), Some(ends)) => {
            Some((offset, StartFrom::Latest, ends))
        }
        _ => None,
    };
    let starts = match reset {
        Some(_) => limits(&client, arguments, &partitions, OffsetSpec::Earliest).await?,
        None => BTreeMap::new(),
    };
    let place = |partition: &u32| match reset {
        Some((offset, to, ends)) if offset < starts[partition] || offset > ends[partition] => to,
        _ => arguments.offset,
    };
    let assigned: Vec<_> = partitions.iter().map(|partition| (*partition, place(partition))).collect();
    let mut consumer = client.consumer(config);
    consumer.assign(arguments.topic(), &assigned).await?;
    let mut printer = Printer { arguments, output, left: arguments.max, refused: false };
    let ended = tokio::select! {
        ended = printer.print_all(&mut consumer, ends.as_ref()) => ended,
        () = crate::interrupt::interrupted() => Ok(()),
    };
    printer.output.flush()?;
    ended?;
    if let (Some(max), Some(left @ 1..)) = (arguments.max, printer.left) {
        eprintln!("{} of {}", counted(max - left, "record"), counted(max, "record"));
    }
    if printer.refused { Err(Failure::Reported) } else { Ok(()) }
}

async fn partitions(client: &Client, arguments: &ConsumeArguments) -> Result<Vec<u32>, Failure> {
    let known = client.admin().describe_topic(arguments.topic()).await?.partitions;
    Ok(match arguments.partition.is_empty() {
        true => known.iter().map(|place| place.partition).collect(),
        false => arguments.partition.clone(),
    })
}

/// Where each partition ends, or begins, now.
async fn limits(
    client: &Client,
    arguments: &ConsumeArguments,
    partitions: &[u32],
    which: OffsetSpec,
) -> Result<BTreeMap<u32, u64>, Failure> {
    let places: Vec<_> = partitions.iter().map(|partition| (*partition, which)).collect();
    let listed = client.admin().list_offsets(arguments.topic(), &places).await?;
    Ok(listed.into_iter().map(|listed| (listed.partition, listed.offset)).collect())
}

struct Printer<'a> {
    arguments: &'a ConsumeArguments,
    output: Output,
    /// Records that are still wanted.
    left: Option<u64>,
    /// Whether some partition could not be read.
    refused: bool,
}

impl Printer<'_> {
    async fn print_all(
        &mut self,
        consumer: &mut Consumer,
        ends: Option<&BTreeMap<u32, u64>>,
    ) -> Result<(), Failure> {
        // Partitions that stopped with an error never reach their end.
        let mut stopped = Vec::new();
        loop {
            let at_end = |(partition, end): (&u32, &u64)| {
                stopped.contains(partition)
                    || consumer.position(self.arguments.topic(), *partition).is_none_or(|at| at >= *end)
            };
            if self.left == Some(0) || ends.is_some_and(|ends| ends.iter().all(at_end)) {
                return Ok(());
            }
            // What is at hand is printed before anything is waited for.
            let next = tokio::time::timeout(Duration::ZERO, consumer.next_batch()).await;
            let next = match next {
                Ok(next) => next,
                Err(_) => {
                    self.output.flush()?;
                    consumer.next_batch().await
                }
            };
            match next {
                None => return Ok(()),
                Some(Ok(fetched)) => self.print(&fetched, ends)?,
                Some(Err(error)) => {
                    self.output.flush()?;
                    eprintln!("ringlog: {error}");
                    match error {
                        ConsumeError::Refused { partition, .. }
                        | ConsumeError::CorruptBatch { partition, .. } => {
                            stopped.push(partition);
                            self.refused = true;
                        }
                        ConsumeError::Unreachable { .. } if ends.is_none() && self.left.is_none() => {}
                        _ => return Err(Failure::Reported),
                    }
                }
            }
        }
    }

    /// Prints until the end or the limit.
    fn print(&mut self, fetched: &FetchedBatch, ends: Option<&BTreeMap<u32, u64>>) -> Result<(), Failure> {
        let end = ends.and_then(|ends| ends.get(&fetched.partition())).copied().unwrap_or(u64::MAX);
        for record in fetched.records() {
            let record = match record {
                Ok(record) => record,
                // A compressed batch, or one whose checksum is right over nonsense. Its partition goes on
                // with the next fetch.
                Err(error) => {
                    eprintln!("ringlog: {error}");
                    self.refused = true;
                    return Ok(());
                }
            };
            if record.offset >= end || self.left == Some(0) {
                return Ok(());
            }
            self.print_one(fetched, &record)?;
            self.left = self.left.map(|left| left - 1);
        }
        Ok(())
    }

    fn print_one(&mut self, fetched: &FetchedBatch, record: &Record<'_>) -> Result<(), Failure> {
        let value = record.value.unwrap_or(b"null");
        if self.output.is_json() {
            self.output.json(&record::Json::of(fetched.topic(), fetched.partition(), record))
        } else if self.arguments.keys {
            self.output.bytes(&[record.key.unwrap_or(b"null"), b"\t", value])
        } else {
            self.output.bytes(&[value])
        }
    }
}
