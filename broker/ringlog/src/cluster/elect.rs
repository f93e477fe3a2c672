//! `ringlog cluster elect`: preferred leaders take over; or, by force, somebody who may lack acknowledged records, and what
//! is given up by that.
//!
//! What replicas have is asked before an election by force: nobody leads then, so nothing is appended. Absent on purpose:
//! choosing the leader, which is the cluster's.

use super::describe::ANSWER_MAX;
use super::moves::list;
use crate::failure::Failure;
use crate::output::{Output, grouped};
use futures_util::future::join_all;
use ringlog_client::{Admin, ClusterDescription, ElectionOutcome, ErrorCode};
use serde_json::json;
use std::collections::BTreeMap;

/// A topic, and which of its partitions; none: all.
type Named = (String, Vec<u32>);

/// Runs it.
pub async fn elect(
    admin: &Admin,
    partitions: Vec<(String, Option<u32>)>,
    unclean: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut topics: Vec<Named> = Vec::new();
    for (topic, partition) in partitions {
        if unclean && partition.is_none() {
            return Err(Failure::usage(format!("--unclean: name the partition, as {topic}:0")));
        }
        match topics.iter_mut().find(|(known, _)| *known == topic) {
            Some((_, partitions)) => partitions.extend(partition),
            None => topics.push((topic, partition.into_iter().collect())),
        }
    }
    let before = match unclean {
        true => Some(Before::of(admin, &topics).await?),
        false => None,
    };
    let topics = (!topics.is_empty()).then_some(topics);
    let outcomes = admin.elect_leaders(topics.as_deref(), unclean).await?;
    let mut failed = false;
    for outcome in &outcomes {
        failed |= outcome.leader.is_err_and(|code| code != ErrorCode::ElectionNotNeeded);
        let given_up = before.as_ref().and_then(|before| before.given_up(outcome));
        if output.is_json() {
            output.json(&json!({
                "topic": outcome.topic, "partition": outcome.partition, "leader": outcome.leader.ok(),
                "error": outcome.leader.err().map(|code| code.name()),
                "lost_from": given_up.as_ref().and_then(|given_up| given_up.from),
                "lost_with": given_up.as_ref().map(|given_up| &given_up.with),
            }))?;
            continue;
        }
        let what = match outcome.leader {
            Ok(leader) => format!("broker {leader} takes over"),
            Err(code) => format!("{code}: {}", code.advice()),
        };
        let given_up = given_up.map(|given_up| given_up.words()).unwrap_or_default();
        output.line(&format!("{}:{} {what}{given_up}", outcome.topic, outcome.partition))?;
    }
    if outcomes.is_empty() && !output.is_json() {
        output.line("every partition is led as it should be")?;
    }
    output.flush()?;
    if failed { Err(Failure::Reported) } else { Ok(()) }
}

/// What there is before some of it is given up.
struct Before {
    cluster: ClusterDescription,
    /// Where a replica's log ends: topic, partition, broker.
    ends: BTreeMap<(String, u32, u32), u64>,
}

/// What an election by force gives up of a partition.
struct GivenUp {
    /// Where the new leader's log ends; `None`: it has not said.
    from: Option<u64>,
    /// Who had everything that was acknowledged, but for the new leader.
    with: Vec<u32>,
}

impl Before {
    async fn of(admin: &Admin, topics: &[Named]) -> Result<Self, Failure> {
        let names: Vec<String> = topics.iter().map(|(name, _)| name.clone()).collect();
        let cluster = admin.describe_cluster(Some(&names)).await?;
        let alive = || cluster.brokers.iter().filter(|broker| !broker.fenced).map(|broker| broker.id);
        let asked = names.iter().flat_map(|name| alive().map(move |broker| (name, broker)));
        let asked = asked.map(async |(name, broker)| {
            let logs = tokio::time::timeout(ANSWER_MAX, admin.describe_logs_of(broker, name)).await;
            let logs = logs.ok()?.ok()?.into_iter();
            Some(logs.map(move |log| ((name.clone(), log.partition, broker), log.log_end)))
        });
        let ends = join_all(asked).await.into_iter().flatten().flatten().collect();
        Ok(Self { cluster, ends })
    }

    fn given_up(&self, outcome: &ElectionOutcome) -> Option<GivenUp> {
        let leader = outcome.leader.ok()?;
        let (_, partition) = self.cluster.partitions().find(|(topic, partition)| {
            topic.name == outcome.topic && partition.partition == outcome.partition
        })?;
        let had_all = partition.replicas.iter().filter(|replica| replica.in_sync || replica.eligible);
        let with = had_all.map(|replica| replica.broker).filter(|broker| *broker != leader).collect();
        let from = self.ends.get(&(outcome.topic.clone(), outcome.partition, leader)).copied();
        Some(GivenUp { from, with })
    }
}

impl GivenUp {
    /// What follows the name of the new leader.
    fn words(&self) -> String {
        let from = match self.from {
            Some(end) => {
                format!("its log ends at offset {}: what was acknowledged from there on", grouped(end))
            }
            None => {
                "it has not said where its log ends: what was acknowledged and it does not have".to_owned()
            }
        };
        let with = match &self.with[..] {
            [] => String::new(),
            [one] => format!(", which broker {one} had,"),
            several => format!(", which brokers {} had,", list(several)),
        };
        format!("; {from}{with} is LOST")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_said() {
        let rows: [(Option<u64>, &[u32], &str); 3] = [
            (
                Some(1234),
                &[4, 5],
                "; its log ends at offset 1,234: what was acknowledged from there on, which brokers 4,5 had, is LOST",
            ),
            (
                Some(0),
                &[4],
                "; its log ends at offset 0: what was acknowledged from there on, which broker 4 had, is LOST",
            ),
            (
                None,
                &[],
                "; it has not said where its log ends: what was acknowledged and it does not have is LOST",
            ),
        ];
        for (from, with, expect) in rows {
            assert_eq!(GivenUp { from, with: with.to_vec() }.words(), expect);
        }
    }
}
