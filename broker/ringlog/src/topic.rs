//! `ringlog topic`: create, list, describe, alter, delete, delete-records.
//!
//! Each is one or two admin requests and their answer as a table or JSON lines; nothing is kept.

use crate::client::{BrokersArguments, setting};
use crate::cluster::describe::{replica_json, state};
use crate::cluster::moves::{MoveArguments, Moves, list as brokers};
use crate::cluster::refused;
use crate::failure::Failure;
use crate::output::{FormatArguments, Output, Table, bytes, counted, grouped};
use ringlog_client::{Admin, NewTopic, PartitionLog, PartitionReplicas, TopicReplicas, plan};
use serde_json::json;

/// `ringlog topic …`
#[derive(clap::Args)]
pub struct TopicArguments {
    #[command(flatten)]
    brokers: BrokersArguments,
    #[command(flatten)]
    format: FormatArguments,
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(clap::Subcommand)]
enum TopicCommand {
    /// Make a topic
    Create {
        /// 1 to 249 of a-z A-Z 0-9 . _ -
        name: String,
        /// How many partitions; without it the broker decides
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        partitions: Option<u32>,
        /// On how many brokers each partition is kept [default: 3, or as many as there are; see
        /// default-replication-factor of ringlog serve]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        replication_factor: Option<u32>,
        /// A setting, as retention.ms=7d; may be repeated. See them with: ringlog topic describe NAME
        #[arg(long = "config", value_name = "NAME=VALUE", value_parser = setting)]
        configs: Vec<(String, String)>,
    },
    /// Every topic
    List,
    /// A topic's partitions and settings
    Describe {
        /// The topic
        name: String,
    },
    /// Change settings, or add partitions
    #[command(group(clap::ArgGroup::new("change").required(true).multiple(true)
        .args(["set", "unset", "partitions", "replication_factor"])))]
    Alter {
        /// The topic
        name: String,
        /// A setting to change; may be repeated
        #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
        set: Vec<(String, String)>,
        /// A setting to return to its default; may be repeated
        #[arg(long, value_name = "NAME")]
        unset: Vec<String>,
        /// The new number of partitions; keys may land in another one from then on
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        partitions: Option<u32>,
        /// On how many brokers each partition is to be kept; shown, then moved
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        replication_factor: Option<u32>,
        #[command(flatten)]
        how: MoveArguments,
    },
    /// Delete a topic with all its records
    Delete {
        /// The topic
        name: String,
    },
    /// Delete a topic's oldest records: what is below an offset is gone once this says so
    #[command(group(clap::ArgGroup::new("which").required(true).args(["before", "all"])))]
    DeleteRecords {
        /// The topic
        name: String,
        /// Delete the records of a partition below an offset; may be repeated
        #[arg(long, value_name = "PARTITION:OFFSET", value_parser = place)]
        before: Vec<(u32, u64)>,
        /// Delete every record that is there now, of every partition
        #[arg(long)]
        all: bool,
    },
}

/// `PARTITION:OFFSET`.
fn place(text: &str) -> Result<(u32, u64), String> {
    let numbers = text
        .split_once(':')
        .and_then(|(partition, offset)| Some((partition.trim().parse().ok()?, offset.trim().parse().ok()?)));
    numbers.ok_or_else(|| "write PARTITION:OFFSET, as 0:1500".to_owned())
}

/// Runs it.
pub fn run(arguments: TopicArguments) -> Result<(), Failure> {
    let mut output = Output::new(arguments.format.format);
    crate::block_on(async {
        let admin = arguments.brokers.connect().await?.admin();
        match arguments.command {
            TopicCommand::Create { name, partitions, replication_factor, configs } => {
                let partitions = partitions.unwrap_or(0);
                let replication_factor = replication_factor.unwrap_or(0);
                let topic = NewTopic { name, partitions, replication_factor, configs };
                create(&admin, &topic, &mut output).await?;
            }
            TopicCommand::List => list(&admin, &mut output).await?,
            TopicCommand::Describe { name } => describe(&admin, &name, &mut output).await?,
            TopicCommand::Alter { name, set, unset, partitions, replication_factor, how } => {
                if how.dry_run && (!set.is_empty() || !unset.is_empty() || partitions.is_some()) {
                    let text = "--dry-run is for --replication-factor alone: the others take effect at once";
                    return Err(Failure::usage(text));
                }
                // Settings first: they are refused as a whole, and partitions cannot be taken back.
                if !set.is_empty() || !unset.is_empty() {
                    admin.alter_configs(&name, &set, &unset).await?;
                }
                if let Some(total) = partitions {
                    admin.create_partitions(&name, total).await?;
                }
                if let Some(factor) = replication_factor {
                    let moves = Moves::of(&admin).await?;
                    let plan = plan::replication_factor(&moves.cluster, &name, factor as usize, &moves.loads);
                    moves.carry_out(&admin, &plan.map_err(refused)?, &how, &mut output).await?;
                }
                if !how.dry_run {
                    done(&mut output, "altered", &name)?;
                }
            }
            TopicCommand::Delete { name } => {
                admin.delete_topic(&name).await?;
                done(&mut output, "deleted", &name)?;
            }
            TopicCommand::DeleteRecords { name, before, all } => {
                let before: Vec<(u32, Option<u64>)> = match all {
                    true => {
                        let partitions = admin.describe_topic(&name).await?.partitions;
                        partitions.iter().map(|place| (place.partition, None)).collect()
                    }
                    false => {
                        before.into_iter().map(|(partition, offset)| (partition, Some(offset))).collect()
                    }
                };
                delete_records(&admin, &name, &before, &mut output).await?;
            }
        }
        output.flush()
    })
}

async fn create(admin: &Admin, topic: &NewTopic, output: &mut Output) -> Result<(), Failure> {
    admin.create_topic(topic).await?;
    let (made, copies) = made(admin, &topic.name).await?;
    if output.is_json() {
        let partitions = made.partitions.len();
        return output
            .json(&json!({ "topic": made.name, "id": made.id.to_string(), "partitions": partitions }));
    }
    output.line(&format!("created topic {} with {}", made.name, extent(&made, copies)))
}

/// A topic that was made just now, and on how many brokers each partition is.
pub async fn made(admin: &Admin, name: &str) -> Result<(TopicReplicas, usize), Failure> {
    let mut cluster = admin.describe_cluster(Some(&[name.to_owned()])).await?;
    let made = cluster.topics.pop().filter(|made| made.error.is_none());
    let made =
        made.ok_or_else(|| Failure::operation(format!("topic {name} was created, and deleted meanwhile")))?;
    let copies = made.partitions.first().map_or(0, |partition| partition.replicas.len());
    Ok((made, copies))
}

/// In words, as `3 partitions, on 3 brokers each`.
pub fn extent(made: &TopicReplicas, copies: usize) -> String {
    let partitions = counted(made.partitions.len() as u64, "partition");
    match copies {
        1 => format!("{partitions}, on one broker"),
        copies if made.partitions.len() == 1 => format!("{partitions}, on {copies} brokers"),
        copies => format!("{partitions}, on {copies} brokers each"),
    }
}

async fn list(admin: &Admin, output: &mut Output) -> Result<(), Failure> {
    let topics = admin.list_topics().await?;
    if output.is_json() {
        return topics.iter().try_for_each(|topic| {
            let partitions = topic.partitions.len();
            output.json(&json!({ "topic": topic.name, "id": topic.id.to_string(), "partitions": partitions }))
        });
    }
    if topics.is_empty() {
        return output.line("no topics; make one: ringlog topic create NAME");
    }
    let mut table = Table::new(&["TOPIC", ">PARTITIONS", "ID"]);
    for topic in &topics {
        table.row([topic.name.clone(), topic.partitions.len().to_string(), topic.id.to_string()]);
    }
    output.table(&table)
}

async fn describe(admin: &Admin, name: &str, output: &mut Output) -> Result<(), Failure> {
    let topic = admin.describe_topic(name).await?;
    let logs = admin.describe_logs(name).await?;
    let settings = admin.describe_configs(name).await?;
    let cluster = admin.describe_cluster(Some(&[name.to_owned()])).await?;
    let partitions: Vec<_> = cluster.partitions().map(|(_, partition)| partition).collect();
    if output.is_json() {
        for partition in &partitions {
            let Some(log) = logs.iter().find(|log| log.partition == partition.partition) else {
                output.json(&without_leader(name, &topic.id.to_string(), partition))?;
                continue;
            };
            output.json(&json!({
                "leader": partition.leader, "partition_epoch": partition.partition_epoch,
                "min_in_sync": partition.min_in_sync,
                "replicas": partition.replicas.iter().map(replica_json).collect::<Vec<_>>(),
                "kind": "partition", "topic": name, "id": topic.id.to_string(), "partition": log.partition,
                "shard": log.shard, "leader_epoch": log.leader_epoch, "log_start": log.log_start,
                "high_watermark": log.high_watermark, "log_end": log.log_end, "segments": log.segments,
                "bytes": log.bytes, "error": log.error.map(|code| code.name()),
                "compaction": log.compaction.map(|compaction| json!({
                    "clean_bytes": compaction.clean_bytes, "dirty_bytes": compaction.dirty_bytes,
                    "dirty_ratio": compaction.dirty_ratio(), "last_pass_ms": compaction.last_pass_ms,
                })),
            }))?;
        }
        return settings.iter().try_for_each(|setting| {
            output.json(&json!({
                "kind": "setting", "topic": name, "name": setting.name, "value": setting.value,
                "is_default": setting.is_default, "documentation": setting.documentation,
            }))
        });
    }
    output.line(&format!("topic {name}, id {}", topic.id))?;
    output.line("")?;
    output.table(&partition_table(&partitions, &logs))?;
    if logs.iter().any(|log| log.compaction.is_some()) {
        output.line("")?;
        let mut table = Table::new(&[">PARTITION", ">COMPACTED", ">DIRTY", ">RATIO", "LAST PASS"]);
        for (log, compaction) in logs.iter().filter_map(|log| Some((log, log.compaction?))) {
            let last = compaction.last_pass_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            table.row([
                log.partition.to_string(),
                bytes(compaction.clean_bytes),
                bytes(compaction.dirty_bytes),
                format!("{:.2}", compaction.dirty_ratio()),
                last.map_or("-".to_owned(), |last| last.to_string()),
            ]);
        }
        output.table(&table)?;
    }
    output.line("")?;
    let mut table = Table::new(&["SETTING", "VALUE", "SET BY", "MEANING"]);
    for setting in settings {
        let by = if setting.is_default { "default" } else { "topic" };
        table.row([setting.name, setting.value, by.to_owned(), setting.documentation]);
    }
    output.table(&table)
}

/// A partition whose log nobody can tell of.
fn without_leader(topic: &str, id: &str, partition: &PartitionReplicas) -> serde_json::Value {
    json!({
        "kind": "partition", "topic": topic, "id": id, "partition": partition.partition, "leader": null,
        "leader_epoch": partition.leader_epoch, "partition_epoch": partition.partition_epoch,
        "min_in_sync": partition.min_in_sync,
        "replicas": partition.replicas.iter().map(replica_json).collect::<Vec<_>>(),
        "error": ringlog_client::ErrorCode::LeaderNotAvailable.name(),
    })
}

fn partition_table(partitions: &[&PartitionReplicas], logs: &[PartitionLog]) -> Table {
    let mut table = Table::new(&[
        ">PARTITION",
        ">LEADER",
        ">SHARD",
        ">EPOCH",
        "REPLICAS",
        "IN SYNC",
        "ELIGIBLE",
        ">FIRST",
        ">END",
        ">RECORDS",
        ">SEGMENTS",
        ">ON DISK",
        "STATE",
    ]);
    for partition in partitions {
        let log = logs.iter().find(|log| log.partition == partition.partition);
        let of = |tell: &dyn Fn(&PartitionLog) -> String| log.map_or("-".to_owned(), tell);
        let which = |is: &dyn Fn(&ringlog_client::ReplicaState) -> bool| {
            let replicas = partition.replicas.iter().filter(|replica| is(replica));
            brokers(&replicas.map(|replica| replica.broker).collect::<Vec<_>>())
        };
        table.row([
            partition.partition.to_string(),
            partition.leader.map_or("none".to_owned(), |leader| leader.to_string()),
            of(&|log| log.shard.to_string()),
            partition.leader_epoch.to_string(),
            which(&|_| true),
            which(&|replica| replica.in_sync),
            which(&|replica| replica.eligible),
            of(&|log| log.log_start.to_string()),
            of(&|log| log.high_watermark.to_string()),
            of(&|log| grouped(log.high_watermark.saturating_sub(log.log_start))),
            of(&|log| log.segments.to_string()),
            of(&|log| bytes(log.bytes)),
            match log.and_then(|log| log.error) {
                Some(code) => code.name().to_owned(),
                None => state(partition).to_owned(),
            },
        ]);
    }
    table
}

async fn delete_records(
    admin: &Admin,
    name: &str,
    before: &[(u32, Option<u64>)],
    output: &mut Output,
) -> Result<(), Failure> {
    let starts = admin.delete_records(name, before).await?;
    if output.is_json() {
        return starts.iter().try_for_each(|(partition, start)| {
            output.json(&json!({ "topic": name, "partition": partition, "log_start": start }))
        });
    }
    let mut table = Table::new(&[">PARTITION", ">FIRST"]);
    for (partition, start) in starts {
        table.row([partition.to_string(), start.to_string()]);
    }
    output.table(&table)
}

fn done(output: &mut Output, what: &str, name: &str) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&json!({ "topic": name, "done": what }));
    }
    output.line(&format!("{what} topic {name}"))
}
