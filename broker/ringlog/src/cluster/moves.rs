//! Plans of moves: shown, carried out, followed until they are done.

use super::describe;
use crate::failure::Failure;
use crate::output::{Output, Table, bytes, counted};
use indicatif::{ProgressBar, ProgressStyle};
use ringlog_client::plan::Loads;
use ringlog_client::{Admin, ClusterDescription, Reassignment};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between two lines that say so, where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(3);
/// Nobody answered for so long.
const SILENCE_MAX: Duration = Duration::from_secs(60);

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

/// Says how far a plan is: a bar on a terminal, elsewhere a line on standard error once in a while.
struct Progress {
    bar: ProgressBar,
    began: Instant,
    /// When a line was written last, where nobody sees a bar.
    told: Option<Instant>,
}

impl Progress {
    fn of(partitions: usize) -> Self {
        let style = ProgressStyle::with_template("moving {bar:40} {pos}/{len} partitions, {elapsed}{msg}");
        let bar = ProgressBar::new(partitions as u64);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let began = Instant::now();
        let told = (!std::io::stderr().is_terminal()).then_some(began);
        Self { bar, began, told }
    }

    /// `lag`: records that new replicas lack; `None` while a leader does not say.
    fn tell(&mut self, moved: usize, lag: Option<u64>) {
        let behind = match lag {
            Some(lag) => format!(", {} behind", counted(lag, "record")),
            None => ", a leader does not say how far".to_owned(),
        };
        self.bar.set_position(moved as u64);
        if self.told.is_some_and(|told| told.elapsed() >= LINE_EVERY) {
            let (all, seconds) = (self.bar.length().unwrap_or_default(), self.began.elapsed().as_secs());
            eprintln!("moving: {moved} of {} done, {seconds} s{behind}", counted(all, "partition"));
            self.told = Some(Instant::now());
        }
        self.bar.set_message(behind);
    }
}

/// Until none of the planned partitions moves any more. The plan goes on without whoever looks at it, so brokers that do not
/// answer for a while end nothing.
async fn wait(admin: &Admin, plan: &[Reassignment]) -> Result<(), Failure> {
    let topics: BTreeSet<String> = plan.iter().map(|one| one.topic.clone()).collect();
    let topics: Vec<String> = topics.into_iter().collect();
    let planned: BTreeSet<(&str, u32)> = plan.iter().map(|one| (one.topic.as_str(), one.partition)).collect();
    let mut progress = Progress::of(plan.len());
    let mut answered = Instant::now();
    loop {
        let cluster = match admin.describe_cluster(Some(&topics)).await {
            Ok(cluster) => cluster,
            Err(_) if answered.elapsed() < SILENCE_MAX => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => {
                return Err(Failure::operation(format!(
                    "{error}; what has begun goes on, look with: ringlog cluster status"
                )));
            }
        };
        answered = Instant::now();
        let moving: Vec<_> = cluster
            .partitions()
            .filter(|(topic, partition)| planned.contains(&(topic.name.as_str(), partition.partition)))
            .filter(|(_, partition)| partition.is_moving())
            .collect();
        if moving.is_empty() {
            progress.bar.finish_and_clear();
            return Ok(());
        }
        let lags = &describe::progress(admin, &cluster).await;
        let lag = moving.iter().flat_map(|(topic, partition)| {
            let adding = partition.replicas.iter().filter(|replica| replica.adding);
            adding.map(move |replica| lags.get(&(topic.name.as_str(), partition.partition, replica.broker)))
        });
        let lag = lag.map(|replica| replica.and_then(|replica| replica.lag_records)).sum();
        progress.tell(plan.len() - moving.len(), lag);
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
