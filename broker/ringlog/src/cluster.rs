//! `ringlog cluster`: who is in it, who keeps and leads what, and changes of that.
//!
//! Changes of replicas are plans (`plan`): shown, carried out, and followed until they are done. Nothing is kept between
//! commands: what a plan has begun goes on without the command that made it. Absent on purpose: choosing brokers, which
//! is the client library's.

pub mod cores;
pub mod describe;
mod elect;
pub mod moves;

use crate::client::BrokersArguments;
use crate::failure::Failure;
use crate::output::{FormatArguments, Output};
use moves::{MoveArguments, Moves, Rate};
use ringlog_client::{Admin, HomeMove, Reassignment, plan};
use serde_json::json;
use std::time::Duration;

/// `ringlog cluster …`
#[derive(clap::Args)]
pub struct ClusterArguments {
    #[command(flatten)]
    brokers: BrokersArguments,
    #[command(flatten)]
    format: FormatArguments,
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(clap::Subcommand)]
enum ClusterCommand {
    /// Brokers, the metadata's quorum, and how many partitions are not as they should be
    Status,
    /// The same, and the replicas of each partition: leader, in-sync set, lag
    Describe {
        /// Only this topic; may be repeated
        #[arg(long = "topic", value_name = "TOPIC")]
        topics: Vec<String>,
        /// Only partitions that are not as they should be
        #[arg(long)]
        troubled: bool,
    },
    /// Give a partition other replicas, or give up a move that is under way
    #[command(group(clap::ArgGroup::new("where").required(true).args(["to", "cancel"])))]
    Move {
        /// The partition, as TOPIC:NUMBER
        #[arg(value_name = "TOPIC:PARTITION", value_parser = partition)]
        partition: (String, u32),
        /// The brokers that are to keep it, the preferred leader first
        #[arg(long, value_name = "ID,…", value_delimiter = ',')]
        to: Vec<u32>,
        /// Give up the move that is under way
        #[arg(long)]
        cancel: bool,
        #[command(flatten)]
        how: MoveArguments,
    },
    /// Move everything off a broker: leaderships at once, replicas as others fill up
    Drain {
        /// The broker
        broker: u32,
        /// Only leaderships: for a restart. Its replicas stay
        #[arg(long)]
        leaders_only: bool,
        #[command(flatten)]
        how: MoveArguments,
    },
    /// Have a drained broker take part again; it gets replicas with: ringlog cluster add
    Undrain {
        /// The broker
        broker: u32,
    },
    /// Move a share of the replicas to a broker that has joined (ringlog serve --join)
    Add {
        /// The broker
        broker: u32,
        #[command(flatten)]
        how: MoveArguments,
    },
    /// Forget a broker that is stopped and has no replicas
    Remove {
        /// The broker
        broker: u32,
    },
    /// Have a partition served by another core of its broker: it takes nothing for some milliseconds, and clients follow
    MoveHome {
        /// The partition, as TOPIC:NUMBER
        #[arg(value_name = "TOPIC:PARTITION", value_parser = partition)]
        partition: (String, u32),
        /// The core that is to have it, from 0
        #[arg(long, value_name = "CORE")]
        core: u32,
        /// The broker whose replica moves, if not the leader's
        #[arg(long, value_name = "ID")]
        broker: Option<u32>,
    },
    /// Even out what brokers carry, by bytes, and who leads how much; or, with --cores, what the cores of each carry
    Rebalance {
        #[command(flatten)]
        how: MoveArguments,
        /// Move partitions from busy cores of a broker to idle ones, by what goes in and out now
        #[arg(long, conflicts_with_all = ["throttle", "no_wait"])]
        cores: bool,
        /// With --cores: only this broker
        #[arg(long, value_name = "ID", requires = "cores")]
        broker: Option<u32>,
        /// With --cores: for how long what goes in and out is looked at, seconds
        #[arg(long, value_name = "SECONDS", requires = "cores", default_value = "5", value_parser = seconds)]
        over: Duration,
    },
    /// Bound what each broker sends to replicas that catch up, moved ones and those that come back
    Throttle {
        /// Bytes per second, as 50MB, or none
        #[arg(value_parser = moves::rate)]
        rate: Rate,
    },
    /// Have preferred leaders take over where they are in sync
    Elect {
        /// Only this partition, as TOPIC:NUMBER, or all of TOPIC; may be repeated
        #[arg(long = "partition", value_name = "TOPIC[:PARTITION]", value_parser = topic_or_partition)]
        partitions: Vec<(String, Option<u32>)>,
        /// Where nobody can lead without loss: let a replica lead that may lack acknowledged records. They are LOST
        #[arg(long, requires = "partitions")]
        unclean: bool,
    },
}

/// `TOPIC:NUMBER`.
fn partition(text: &str) -> Result<(String, u32), String> {
    match topic_or_partition(text)? {
        (topic, Some(partition)) => Ok((topic, partition)),
        (topic, None) => Err(format!("write TOPIC:PARTITION, as {topic}:0")),
    }
}

fn topic_or_partition(text: &str) -> Result<(String, Option<u32>), String> {
    match text.rsplit_once(':') {
        None if !text.is_empty() => Ok((text.to_owned(), None)),
        Some((topic, number)) if !topic.is_empty() => match number.parse() {
            Ok(number) => Ok((topic.to_owned(), Some(number))),
            Err(_) => Err("write TOPIC:PARTITION, as clicks:0".to_owned()),
        },
        _ => Err("write TOPIC:PARTITION, as clicks:0".to_owned()),
    }
}

/// A time that is worth looking at traffic for.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.01..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write seconds, from 0.01 to 3600".to_owned())
}

/// Runs it.
pub fn run(arguments: ClusterArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    crate::block_on(async {
        let admin = arguments.brokers.connect().await?.admin();
        match arguments.command {
            ClusterCommand::Status => describe::status(&admin, &mut output).await?,
            ClusterCommand::Describe { topics, troubled } => {
                describe::describe(&admin, &topics, troubled, &mut output).await?;
            }
            ClusterCommand::Move { partition: (topic, partition), to, cancel: _, how } => {
                let one = Reassignment { topic, partition, replicas: to };
                let moves = Moves::of(&admin).await?;
                moves.carry_out(&admin, &[one], &how, &mut output).await?;
            }
            ClusterCommand::Drain { broker, leaders_only, how } => {
                drain(&admin, broker, leaders_only, &how, &mut output).await?;
            }
            ClusterCommand::Undrain { broker } => {
                admin.drain_broker(broker, false).await?;
                done(&mut output, "undrained", broker)?;
            }
            ClusterCommand::Add { broker, how } => {
                let moves = Moves::of(&admin).await?;
                let plan = plan::rebalance(&moves.cluster, Some(broker), &moves.loads).map_err(refused)?;
                moves.carry_out(&admin, &plan, &how, &mut output).await?;
            }
            ClusterCommand::Remove { broker } => {
                admin.remove_broker(broker).await?;
                done(&mut output, "removed", broker)?;
            }
            ClusterCommand::MoveHome { partition: (topic, partition), core, broker } => {
                let to = HomeMove { topic, partition, shard: core };
                cores::move_home(&admin, to, broker, &mut output).await?;
            }
            ClusterCommand::Rebalance { how, cores: true, broker, over } => {
                cores::rebalance(&admin, broker, over, how.dry_run, &mut output).await?;
            }
            ClusterCommand::Rebalance { how, .. } => {
                let moves = Moves::of(&admin).await?;
                let plan = plan::rebalance(&moves.cluster, None, &moves.loads).map_err(refused)?;
                moves.carry_out(&admin, &plan, &how, &mut output).await?;
            }
            ClusterCommand::Throttle { rate: Rate(rate) } => {
                admin.limit_catch_up(rate).await?;
                describe::limit(rate, &mut output)?;
            }
            ClusterCommand::Elect { partitions, unclean } => {
                elect::elect(&admin, partitions, unclean, &mut output).await?;
            }
        }
        output.flush()
    })
}

/// A plan that cannot be made.
pub fn refused(error: plan::PlanError) -> Failure {
    Failure::operation(error.to_string())
}

async fn drain(
    admin: &Admin,
    broker: u32,
    leaders_only: bool,
    how: &MoveArguments,
    output: &mut Output,
) -> Result<(), Failure> {
    let moves = Moves::of(admin).await?;
    // Before anything has changed: where there is no room for its replicas, nothing is begun.
    let plan = match leaders_only {
        true => Vec::new(),
        false => plan::drain(&moves.cluster, broker, &moves.loads).map_err(refused)?,
    };
    if !how.dry_run {
        admin.drain_broker(broker, true).await?;
    }
    moves.carry_out(admin, &plan, how, output).await?;
    if how.dry_run {
        return Ok(());
    }
    if !how.no_wait {
        moves::wait_until_it_leads_nothing(admin, broker).await?;
    }
    done(output, "drained", broker)
}

fn done(output: &mut Output, what: &str, broker: u32) -> Result<(), Failure> {
    match output.is_json() {
        true => output.json(&json!({ "broker": broker, "done": what })),
        false => output.line(&format!("{what} broker {broker}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_partitions() {
        type Named = Option<(&'static str, Option<u32>)>;
        let rows: [(&str, Named); 6] = [
            ("clicks", Some(("clicks", None))),
            ("clicks:3", Some(("clicks", Some(3)))),
            ("clicks:x", None),
            (":3", None),
            ("", None),
            ("clicks:", None),
        ];
        for (text, expect) in rows {
            let expect = expect.map(|(topic, partition)| (topic.to_owned(), partition));
            assert_eq!(topic_or_partition(text).ok(), expect, "{text}");
        }
        assert!(partition("clicks").is_err());
    }
}
