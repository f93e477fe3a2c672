//! Plans of moves: shown, carried out, followed until they are done.

use crate::failure::Failure;
use crate::output::{Output, Table, bytes, counted};
use indicatif::{ProgressBar, ProgressStyle};
use ringlog_client::plan::Loads;
use ringlog_client::{Admin, ClusterDescription, Reassignment};
use serde_json::json;
use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How moves are carried out.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct MoveArguments {
    /// Show what would be moved, and move nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until it is done; look with: ringlog cluster status
    #[arg(long)]
    pub no_wait: bool,
    /// What each broker may send per second to replicas that catch up, as 50MB, or none; it stays so afterwards
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub throttle: Option<Rate>,
}

/// A bound of catching up, bytes per second; `None` = no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<NonZeroU64>);

/// `none`, or a number with `kB`, `MB` or `GB`, which count by thousands, or bare bytes.
pub fn rate(text: &str) -> Result<Rate, String> {
    if text == "none" {
        return Ok(Rate(None));
    }
    let wrong = || "write bytes per second, as 50MB, or none".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    let number = number.and_then(NonZeroU64::new).ok_or_else(wrong)?;
    Ok(Rate(Some(number)))
}

/// What plans are made from.
pub struct Moves {
    /// Brokers and replicas.
    pub cluster: ClusterDescription,
    /// Bytes of each partition.
    pub loads: Loads,
}

impl Moves {
    /// As it is now.
    pub async fn of(admin: &Admin) -> Result<Self, Failure> {
        let cluster = admin.describe_cluster(None).await?;
        let mut loads = Loads::new();
        for topic in &cluster.topics {
            for log in admin.describe_logs(&topic.name).await? {
                loads.insert((topic.name.clone(), log.partition), log.bytes);
            }
        }
        Ok(Self { cluster, loads })
    }

    /// Shows `plan`, carries it out unless it is only to be shown, and waits unless it is not to be waited for.
    pub async fn carry_out(
        &self,
        admin: &Admin,
        plan: &[Reassignment],
        how: &MoveArguments,
        output: &mut Output,
    ) -> Result<(), Failure> {
        self.show(plan, output)?;
        output.flush()?;
        if how.dry_run || plan.is_empty() {
            return Ok(());
        }
        if let Some(Rate(throttle)) = how.throttle {
            admin.limit_catch_up(throttle).await?;
        }
        admin.reassign_partitions(plan).await?;
        if how.no_wait { Ok(()) } else { wait(admin, plan).await }
    }

    fn show(&self, plan: &[Reassignment], output: &mut Output) -> Result<(), Failure> {
        let before = |one: &Reassignment| -> Vec<u32> {
            let mut partitions = self.cluster.partitions();
            let found = partitions
                .find(|(topic, partition)| topic.name == one.topic && partition.partition == one.partition);
            let replicas = found.map(|(_, partition)| &partition.replicas[..]).unwrap_or_default();
            replicas.iter().filter(|replica| !replica.removing).map(|replica| replica.broker).collect()
        };
        // A reordering moves leaders, not bytes.
        let copied = |one: &Reassignment, from: &[u32]| {
            let load = self.loads.get(&(one.topic.clone(), one.partition)).copied().unwrap_or(0);
            load * one.replicas.iter().filter(|id| !from.contains(id)).count() as u64
        };
        if output.is_json() {
            return plan.iter().try_for_each(|one| {
                let from = before(one);
                output.json(&json!({
                    "kind": "move", "topic": one.topic, "partition": one.partition, "from": from,
                    "to": one.replicas, "bytes": copied(one, &from),
                }))
            });
        }
        if plan.is_empty() {
            return output.line("nothing is to be moved");
        }
        let mut table = Table::new(&["TOPIC", ">PARTITION", "FROM", "TO", ">TO COPY"]);
        let mut all = 0;
        for one in plan {
            let from = before(one);
            let copied = copied(one, &from);
            all += copied;
            let to = if one.replicas.is_empty() { "as before".to_owned() } else { list(&one.replicas) };
            table.row([one.topic.clone(), one.partition.to_string(), list(&from), to, bytes(copied)]);
        }
        output.table(&table)?;
        output.line(&format!("{}, {} to copy", counted(plan.len() as u64, "partition"), bytes(all)))
    }
}

/// Brokers, as `1,2,3`.
pub fn list(brokers: &[u32]) -> String {
    match brokers {
        [] => "-".to_owned(),
        brokers => brokers.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
    }
}

/// Until none of the planned partitions moves any more.
async fn wait(admin: &Admin, plan: &[Reassignment]) -> Result<(), Failure> {
    let topics: BTreeSet<String> = plan.iter().map(|one| one.topic.clone()).collect();
    let topics: Vec<String> = topics.into_iter().collect();
    let planned: BTreeSet<(&str, u32)> = plan.iter().map(|one| (one.topic.as_str(), one.partition)).collect();
    let style = ProgressStyle::with_template("moving {bar:40} {pos}/{len} partitions, {elapsed}{msg}");
    let bar = ProgressBar::new(plan.len() as u64);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    loop {
        let cluster = admin.describe_cluster(Some(&topics)).await?;
        let mine = cluster
            .partitions()
            .filter(|(topic, partition)| planned.contains(&(topic.name.as_str(), partition.partition)));
        let moving: Vec<_> = mine.filter(|(_, partition)| partition.is_moving()).collect();
        bar.set_position((plan.len() - moving.len()) as u64);
        if moving.is_empty() {
            bar.finish_and_clear();
            return Ok(());
        }
        let mut lag = 0;
        for topic in moving.iter().map(|(topic, _)| topic.name.as_str()).collect::<BTreeSet<_>>() {
            let logs = admin.describe_logs(topic).await?;
            let adding = |partition: u32, broker: u32| {
                moving.iter().any(|(of, state)| {
                    of.name == topic
                        && state.partition == partition
                        && state.replicas.iter().any(|replica| replica.adding && replica.broker == broker)
                })
            };
            for log in &logs {
                let replicas = log.replicas.iter().filter(|replica| adding(log.partition, replica.broker));
                // One that the leader has not heard yet has just been made.
                let all = log.log_end - log.log_start;
                lag += replicas.map(|replica| replica.lag_records.unwrap_or(all)).sum::<u64>();
            }
        }
        bar.set_message(format!(", {} behind", counted(lag, "record")));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Until a draining broker leads nothing that somebody else can lead.
pub async fn wait_until_it_leads_nothing(admin: &Admin, broker: u32) -> Result<(), Failure> {
    loop {
        let cluster = admin.describe_cluster(None).await?;
        let others = |(_, partition): &(_, &ringlog_client::PartitionReplicas)| {
            let able = |id: u32| cluster.broker(id).is_some_and(|other| !other.fenced && !other.draining);
            let other = |replica: &ringlog_client::ReplicaState| {
                replica.broker != broker && replica.in_sync && able(replica.broker)
            };
            partition.leader == Some(broker) && partition.replicas.iter().any(other)
        };
        if !cluster.partitions().any(|partition| others(&partition)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let rows: [(&str, Option<Option<u64>>); 9] = [
            ("none", Some(None)),
            ("50MB", Some(Some(50_000_000))),
            ("1kB", Some(Some(1_000))),
            ("2GB", Some(Some(2_000_000_000))),
            ("17", Some(Some(17))),
            ("0", None),
            ("50 MB", None),
            ("MB", None),
            ("99999999999GB", None),
        ];
        for (text, expect) in rows {
            assert_eq!(rate(text).ok(), expect.map(|rate| Rate(rate.and_then(NonZeroU64::new))), "{text}");
        }
    }
}
