//! `ringlog consume --group G`: one of many workers that share the partitions of some topics.
//!
//! Lifecycle: joins → prints what it is given → at SIGINT, SIGTERM or `--max` commits what it has printed, leaves, so that
//! its partitions move on at once. A worker that is killed is missed after its session timeout. Invariants: a record is
//! committed after it was printed and the output flushed, so that it is printed at least once by some worker; which
//! partitions come and go is said on standard error, one line each. Absent on purpose: other ways to commit.

use super::{ConsumeArguments, Printer};
use crate::failure::Failure;
use crate::output::Output;
use ringlog_client::{
    AssignedPartition, AutoOffsetReset, GroupConfig, GroupConsumer, GroupPartition, RebalanceListener,
    RevokedPartition, StartFrom,
};
use std::time::Duration;

/// The options of `ringlog consume` that only members of groups have.
#[derive(clap::Args)]
pub struct MemberArguments {
    /// With --group: a topic to share; may be repeated
    #[arg(long = "topic", value_name = "TOPIC", requires = "group")]
    topics: Vec<String>,
    /// With --group: share every topic whose whole name matches this regular expression, also those made later
    #[arg(long, value_name = "REGEX", requires = "group")]
    pattern: Option<String>,
    /// With --group: be the member of this name; when it comes back in time it has its partitions again
    #[arg(long, value_name = "ID", requires = "group")]
    instance_id: Option<String>,
    /// With --group: silence after which the others get the partitions, milliseconds, 1000 to 1800000
    #[arg(long, value_name = "MS", requires = "group", value_parser = clap::value_parser!(u32).range(1000..=1_800_000))]
    session_timeout_ms: Option<u32>,
    /// With --group: how often what was printed is committed, milliseconds
    #[arg(long, value_name = "MS", requires = "group", value_parser = clap::value_parser!(u32).range(1..))]
    commit_interval_ms: Option<u32>,
}

/// Says what comes and goes.
struct Announce;

impl RebalanceListener for Announce {
    fn assigned(&mut self, partitions: &mut [AssignedPartition]) {
        for AssignedPartition { partition, offset, .. } in partitions {
            eprintln!("assigned {partition} from {offset}");
        }
    }

    fn revoked(&mut self, partitions: &mut [RevokedPartition]) {
        for RevokedPartition { partition, position, .. } in partitions {
            eprintln!("revoked {partition} at {position}");
        }
    }

    fn lost(&mut self, partitions: &[GroupPartition]) {
        partitions.iter().for_each(|partition| eprintln!("lost {partition}"));
    }
}

fn config(group: &str, arguments: &ConsumeArguments) -> Result<GroupConfig, Failure> {
    let member = &arguments.member;
    let mut config = GroupConfig::new(group);
    config.topics.extend(arguments.topic.clone());
    config.topics.extend(member.topics.iter().cloned());
    config.pattern.clone_from(&member.pattern);
    if config.topics.is_empty() && config.pattern.is_none() {
        return Err(Failure::usage("name what the group shares: TOPIC, --topic TOPIC, or --pattern REGEX"));
    }
    config.instance_id.clone_from(&member.instance_id);
    if let Some(ms) = member.session_timeout_ms {
        config.session_timeout = Duration::from_millis(u64::from(ms));
    }
    if let Some(ms) = member.commit_interval_ms {
        config.auto_commit_interval = Some(Duration::from_millis(u64::from(ms)));
    }
    config.consumer.auto_offset_reset = match arguments.offset {
        StartFrom::Earliest => AutoOffsetReset::Earliest,
        StartFrom::Latest => AutoOffsetReset::Latest,
        StartFrom::Offset(_) | StartFrom::Timestamp(_) => {
            return Err(Failure::usage(format!(
                "a member begins where its group was; --offset is earliest or latest, for partitions without a committed \
                 offset. To begin elsewhere: ringlog group reset {group} --to …"
            )));
        }
    };
    for (name, value) in &arguments.set {
        config.set(name, value)?;
    }
    Ok(config)
}

/// Runs it.
pub(super) async fn consume(
    group: &str,
    arguments: &ConsumeArguments,
    output: Output,
) -> Result<(), Failure> {
    let config = config(group, arguments)?;
    let client = arguments.brokers.connect().await?;
    let mut consumer = client.group_consumer(config)?;
    consumer.set_listener(Announce);
    let mut printer = Printer { arguments, output, left: arguments.max, refused: false };
    let ended = tokio::select! {
        ended = print_all(&mut printer, &mut consumer) => ended,
        () = crate::interrupt::interrupted() => Ok(()),
    };
    // What nobody has read is not committed: then the session ends by itself.
    printer.output.flush()?;
    let closed = consumer.close().await;
    ended?;
    closed?;
    if printer.refused { Err(Failure::Reported) } else { Ok(()) }
}

async fn print_all(printer: &mut Printer<'_>, consumer: &mut GroupConsumer) -> Result<(), Failure> {
    while printer.left != Some(0) {
        // To poll again says that everything before has been dealt with: so it must be with the reader.
        printer.output.flush()?;
        let fetched = match consumer.poll().await {
            Ok(fetched) => fetched,
            Err(error) if error.is_final() => return Err(error.into()),
            Err(error) => {
                eprintln!("ringlog: {error}");
                continue;
            }
        };
        let before = printer.left;
        printer.print(&fetched, None)?;
        if let (Some(before), Some(0)) = (before, printer.left) {
            // The rest of the batch is for whoever comes next.
            let last = fetched.records().take(before as usize).flatten().last();
            if let Some(last) = last {
                let next = StartFrom::Offset(last.offset + 1);
                consumer.seek(fetched.topic(), fetched.partition(), next).await?;
            }
        }
    }
    Ok(())
}
