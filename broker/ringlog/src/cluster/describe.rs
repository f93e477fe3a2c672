//! `ringlog cluster status` and `describe`: the cluster as tables, or as one JSON object per line.

use super::moves::list;
use crate::failure::Failure;
use crate::output::{Output, Table, bytes, counted, duration_ms, grouped};
use futures_util::StreamExt;
use futures_util::future::join_all;
use ringlog_client::{
    Admin, BrokerDescription, ClusterDescription, PartitionLog, PartitionReplicas, ReplicaProgress,
    ReplicaState,
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::time::Duration;

/// How long a broker may take to say how it is.
pub const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Questions about topics on their way at the same time.
const ASKED_TOGETHER: usize = 16;

/// How many partitions are in which trouble.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    partitions: u64,
    leaderless: u64,
    under_replicated: u64,
    below_minimum: u64,
    moving: u64,
    not_preferred: u64,
}

impl Health {
    /// Of every partition described.
    pub fn of(cluster: &ClusterDescription) -> Self {
        let mut health = Self::default();
        for (_, partition) in cluster.partitions() {
            health.partitions += 1;
            health.leaderless += u64::from(partition.leader.is_none());
            health.under_replicated += u64::from(partition.is_under_replicated());
            health.below_minimum += u64::from(partition.is_below_minimum());
            health.moving += u64::from(partition.is_moving());
            health.not_preferred += u64::from(partition.leader != partition.preferred_leader());
        }
        health
    }

    /// In words; what is well is not mentioned.
    pub fn words(&self) -> String {
        let troubles = [
            (self.leaderless, "without a leader"),
            (self.below_minimum, "below min.insync.replicas"),
            (self.under_replicated, "under-replicated"),
            (self.moving, "moving"),
            (self.not_preferred, "not led by the preferred leader"),
        ];
        let troubles: Vec<String> = troubles
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{} {what}", grouped(*count)))
            .collect();
        let partitions = counted(self.partitions, "partition");
        match troubles.is_empty() {
            true => format!("{partitions}, all well"),
            false => format!("{partitions}: {}", troubles.join(", ")),
        }
    }
}

/// `ringlog cluster status`.
pub async fn status(admin: &Admin, output: &mut Output) -> Result<(), Failure> {
    let cluster = admin.describe_cluster(None).await?;
    head(&cluster, &rot(admin, &cluster).await, output)
}

/// `ringlog cluster describe`.
pub async fn describe(
    admin: &Admin,
    topics: &[String],
    troubled: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let cluster = admin.describe_cluster((!topics.is_empty()).then_some(topics)).await?;
    for topic in &cluster.topics {
        if let Some(code) = topic.error {
            return Err(Failure::operation(format!("topic '{}': {code}: {}", topic.name, code.advice())));
        }
    }
    let progress = progress(admin, &cluster).await;
    head(&cluster, &rot(admin, &cluster).await, output)?;
    if !output.is_json() {
        output.line("")?;
    }
    let mut table = Table::new(&[
        "TOPIC",
        ">PARTITION",
        ">LEADER",
        ">EPOCH",
        "REPLICAS",
        "IN SYNC",
        "ELIGIBLE",
        ">MINIMUM",
        ">LAG",
        ">BEHIND",
        "STATE",
    ]);
    for (topic, partition) in cluster.partitions() {
        let state = state(partition);
        if troubled && state == "ok" {
            continue;
        }
        let lag = |replica: &ReplicaState| {
            progress.get(&(topic.name.as_str(), partition.partition, replica.broker))
        };
        let lags: Vec<&ReplicaProgress> = partition.replicas.iter().filter_map(lag).collect();
        if output.is_json() {
            output.json(&json!({
                "kind": "partition", "topic": topic.name, "id": topic.id.to_string(),
                "partition": partition.partition, "leader": partition.leader,
                "leader_epoch": partition.leader_epoch, "partition_epoch": partition.partition_epoch,
                "min_in_sync": partition.min_in_sync, "state": state,
                "replicas": partition.replicas.iter().map(replica_json).collect::<Vec<_>>(),
                "lags": lags.iter().map(|lag| json!({
                    "broker": lag.broker, "end": lag.end, "lag_records": lag.lag_records,
                    "lag_ms": lag.lag_ms, "connected": lag.connected,
                })).collect::<Vec<_>>(),
            }))?;
            continue;
        }
        let which = |is: &dyn Fn(&ReplicaState) -> bool| {
            let brokers = partition.replicas.iter().filter(|replica| is(replica));
            list(&brokers.map(|replica| replica.broker).collect::<Vec<_>>())
        };
        // Of which nobody has heard since its leader leads, it may be the one that is furthest behind.
        let records = match lags.iter().map(|lag| lag.lag_records).collect::<Option<Vec<_>>>() {
            Some(records) => records.into_iter().max().map_or("-".to_owned(), grouped),
            None => "?".to_owned(),
        };
        let behind = lags.iter().map(|lag| lag.lag_ms).max().map_or("-".to_owned(), duration_ms);
        table.row([
            topic.name.clone(),
            partition.partition.to_string(),
            partition.leader.map_or("none".to_owned(), |leader| leader.to_string()),
            partition.leader_epoch.to_string(),
            which(&|_| true),
            which(&|replica| replica.in_sync),
            which(&|replica| replica.eligible),
            partition.min_in_sync.to_string(),
            records,
            behind,
            state.to_owned(),
        ]);
    }
    if output.is_json() { Ok(()) } else { output.table(&table) }
}

/// How far replicas are, by topic, partition and broker, as their leaders say it. A leader that does not answer soon, as in
/// the moment when it has just gone, is left out.
pub async fn progress<'a>(
    admin: &Admin,
    cluster: &'a ClusterDescription,
) -> BTreeMap<(&'a str, u32, u32), ReplicaProgress> {
    let asked = cluster.topics.iter().flat_map(|topic| {
        let leaders: BTreeSet<u32> = topic.partitions.iter().filter_map(|one| one.leader).collect();
        leaders.into_iter().map(move |leader| (topic, leader))
    });
    let asked = asked.map(async |(topic, leader)| {
        let logs = tokio::time::timeout(ANSWER_MAX, admin.describe_logs_of(leader, &topic.name)).await;
        let leads = |log: &PartitionLog| {
            let mut partitions = topic.partitions.iter();
            partitions.any(|one| one.partition == log.partition && one.leader == Some(leader))
        };
        let logs = logs.ok()?.ok()?.into_iter().filter(leads);
        let replicas = logs.flat_map(|log| {
            let of = move |replica: ReplicaProgress| ((&*topic.name, log.partition, replica.broker), replica);
            log.replicas.into_iter().map(of)
        });
        Some(replicas.collect::<Vec<_>>())
    });
    let answers: Vec<_> = futures_util::stream::iter(asked).buffered(ASKED_TOGETHER).collect().await;
    answers.into_iter().flatten().flatten().collect()
}

/// What a broker says of ranges of its logs that fail their checksum.
#[derive(Clone, Copy, Debug, Default)]
struct Rot {
    /// Damaged now, and not served.
    damaged: u64,
    /// Found since the broker's start.
    found: u64,
    /// Of those, fetched anew from other replicas.
    repaired: u64,
}

/// Asks every broker that is alive; who does not answer soon is left out.
async fn rot(admin: &Admin, cluster: &ClusterDescription) -> BTreeMap<u32, Rot> {
    let alive = cluster.brokers.iter().filter(|broker| !broker.fenced);
    let asked = alive.map(async |broker| {
        let status = tokio::time::timeout(ANSWER_MAX, admin.status_of(broker.id)).await.ok()?.ok()?;
        let counter = |name| status.counter(name).unwrap_or(0);
        let rot = Rot {
            damaged: counter("damaged_ranges"),
            found: counter("damaged_ranges_total"),
            repaired: counter("repaired_ranges_total"),
        };
        Some((broker.id, rot))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// The worst that can be said of a partition.
pub fn state(partition: &PartitionReplicas) -> &'static str {
    match partition {
        _ if partition.leader.is_none() => "no leader",
        _ if partition.is_below_minimum() => "below minimum",
        _ if partition.is_moving() => "moving",
        _ if partition.is_under_replicated() => "under-replicated",
        _ if partition.leader != partition.preferred_leader() => "not preferred",
        _ => "ok",
    }
}

/// What brokers send at most to replicas that catch up.
pub fn limit(bytes_per_second: Option<NonZeroU64>, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&json!({ "kind": "throttle", "catch_up_bytes_per_second": bytes_per_second }));
    }
    output.line(&match bytes_per_second {
        Some(rate) => format!("replicas catch up with at most {}/s from each broker", bytes(rate.get())),
        None => "replicas catch up as fast as there is room".to_owned(),
    })
}

/// A replica for programs.
pub fn replica_json(replica: &ReplicaState) -> serde_json::Value {
    json!({
        "broker": replica.broker, "generation": replica.generation, "shard": replica.shard,
        "in_sync": replica.in_sync, "eligible": replica.eligible, "adding": replica.adding,
        "removing": replica.removing,
    })
}

/// What both begin with.
fn head(cluster: &ClusterDescription, rot: &BTreeMap<u32, Rot>, output: &mut Output) -> Result<(), Failure> {
    let id = cluster.cluster.map(|id| id.to_string());
    let health = Health::of(cluster);
    if output.is_json() {
        output.json(&json!({
            "kind": "cluster", "id": id, "version": cluster.version, "controller": cluster.controller,
            "term": cluster.term, "committed": cluster.committed, "answered_by": cluster.answered_by,
            "behind": cluster.behind,
            "health": health, "catch_up_bytes_per_second": cluster.catch_up_bytes_per_second,
        }))?;
        return cluster.brokers.iter().try_for_each(|broker| {
            let member = cluster.quorum.iter().find(|member| member.broker == broker.id);
            output.json(&json!({
                "kind": "broker", "id": broker.id, "host": broker.host, "port": broker.port,
                "rack": broker.rack, "shards": broker.shards, "epoch": broker.epoch,
                "fenced": broker.fenced, "draining": broker.draining, "replicas": broker.replicas,
                "leaders": broker.leaders, "suspects": broker.suspects,
                "damaged_ranges": rot.get(&broker.id).map(|rot| rot.damaged),
                "damaged_ranges_found": rot.get(&broker.id).map(|rot| rot.found),
                "repaired_ranges": rot.get(&broker.id).map(|rot| rot.repaired),
                "voter": member.map(|member| member.voter),
                "metadata_leader": member.map(|member| member.leader),
                "metadata_matched": member.and_then(|member| member.progress).map(|(matched, _)| matched),
                "metadata_silent_ms":
                    member.and_then(|member| member.progress).map(|(_, silent)| silent.as_millis() as u64),
            }))
        });
    }
    let led = match cluster.controller {
        Some(broker) => format!(", led by broker {broker} in term {}", cluster.term),
        None if cluster.quorum.is_empty() => String::new(),
        None => ", led by nobody".to_owned(),
    };
    output.line(&format!(
        "cluster {}: {}; metadata version {}{led}",
        id.as_deref().unwrap_or("without an identity"),
        counted(cluster.brokers.len() as u64, "broker"),
        cluster.version,
    ))?;
    output.line(&health.words())?;
    if cluster.behind {
        output.line(&format!(
            "broker {} answers, and does not hear from a majority of the metadata's voters: this may be old",
            cluster.answered_by
        ))?;
    }
    if cluster.catch_up_bytes_per_second.is_some() {
        limit(cluster.catch_up_bytes_per_second, output)?;
    }
    output.line("")?;
    let mut table = Table::new(&[
        ">BROKER",
        "ADDRESS",
        "RACK",
        ">CORES",
        "STATE",
        ">LEADS",
        ">REPLICAS",
        ">SUSPECT",
        ">DAMAGED",
        ">REPAIRED",
        "METADATA",
    ]);
    for broker in &cluster.brokers {
        table.row([
            broker.id.to_string(),
            format!("{}:{}", broker.host, broker.port),
            broker.rack.clone().unwrap_or_else(|| "-".to_owned()),
            broker.shards.to_string(),
            broker_state(broker).to_owned(),
            grouped(u64::from(broker.leaders)),
            grouped(u64::from(broker.replicas)),
            grouped(u64::from(broker.suspects)),
            rot.get(&broker.id).map_or("-".to_owned(), |rot| grouped(rot.damaged)),
            rot.get(&broker.id).map_or("-".to_owned(), |rot| grouped(rot.repaired)),
            metadata_part(cluster, broker),
        ]);
    }
    output.table(&table)
}

fn broker_state(broker: &BrokerDescription) -> &'static str {
    match (broker.fenced, broker.draining) {
        (false, false) => "alive",
        (false, true) => "draining",
        (true, false) => "not heard",
        (true, true) => "draining, not heard",
    }
}

/// What a broker is to the metadata.
fn metadata_part(cluster: &ClusterDescription, broker: &BrokerDescription) -> String {
    let Some(member) = cluster.quorum.iter().find(|member| member.broker == broker.id) else {
        return "-".to_owned();
    };
    let role = match (member.leader, member.voter) {
        (true, _) => "leads",
        (false, true) => "voter",
        (false, false) => "observer",
    };
    match member.progress {
        Some((matched, _)) if cluster.committed > matched => {
            format!("{role}, {} behind", grouped(cluster.committed - matched))
        }
        _ => role.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(leader: Option<u32>, replicas: &[(u32, bool)], minimum: u32) -> PartitionReplicas {
        let replica = |(broker, in_sync): &(u32, bool)| ReplicaState {
            broker: *broker,
            generation: 0,
            in_sync: *in_sync,
            eligible: false,
            adding: false,
            removing: false,
            shard: 0,
        };
        PartitionReplicas {
            partition: 0,
            leader,
            leader_epoch: 0,
            partition_epoch: 0,
            min_in_sync: minimum,
            replicas: replicas.iter().map(replica).collect(),
        }
    }

    #[test]
    fn the_worst_of_a_partition_is_its_state() {
        let rows = [
            (partition(Some(1), &[(1, true), (2, true)], 2), "ok"),
            (partition(Some(2), &[(1, true), (2, true)], 2), "not preferred"),
            (partition(Some(1), &[(1, true), (2, false)], 1), "under-replicated"),
            (partition(Some(1), &[(1, true), (2, false)], 2), "below minimum"),
            (partition(None, &[(1, false), (2, false)], 1), "no leader"),
        ];
        for (partition, expect) in rows {
            assert_eq!(state(&partition), expect);
        }
        let mut moving = partition(Some(1), &[(1, true), (2, false)], 1);
        moving.replicas[1].adding = true;
        assert_eq!(state(&moving), "moving");
    }

    #[test]
    fn health_says_what_is_wrong() {
        let well = Health { partitions: 3, ..Health::default() };
        assert_eq!(well.words(), "3 partitions, all well");
        let ill = Health { partitions: 3, leaderless: 1, under_replicated: 2, ..Health::default() };
        assert_eq!(ill.words(), "3 partitions: 1 without a leader, 2 under-replicated");
    }
}
