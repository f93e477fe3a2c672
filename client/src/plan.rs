//! Where replicas should go: plans of moves, made from what the cluster says of itself.
//!
//! Pure: nothing here asks anybody, so that a plan can be shown before it is carried out
//! ([`crate::Admin::reassign_partitions`]). Rules, in this order: a broker that is fenced or draining gets nothing; a
//! replica goes to a rack that the partition is not on yet, as long as there is one; then to the broker with the
//! least to carry. Nothing is moved that may stay. Absent on purpose: traffic. Bytes stored stand for it, as they are
//! what a move costs.

use crate::cluster_request::{BrokerDescription, ClusterDescription, PartitionReplicas, Reassignment};
use std::collections::{BTreeMap, BTreeSet};

/// What a replica weighs besides its bytes: an empty partition is to be spread, too.
const REPLICA_WEIGHT: u64 = 1 << 20;
/// Brokers whose loads differ by less than this share of the mean are left alone, percent.
const SPREAD_PERCENT: u64 = 10;

/// Bytes on disk of one replica of each partition, by topic and partition; what is missing counts as empty.
pub type Loads = BTreeMap<(String, u32), u64>;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No broker of this number.
    #[error("there is no broker {0}; see: ringlog cluster status")]
    UnknownBroker(u32),
    /// The broker cannot take anything.
    #[error("broker {0} is fenced or draining and gets nothing; see: ringlog cluster status")]
    Unable(u32),
    /// Not described.
    #[error("there is no topic '{0}'; see: ringlog topic list")]
    UnknownTopic(String),
    /// A partition needs more brokers than there are.
    #[error(
        "topic '{topic}' partition {partition} is to have {needed} replicas, and {able} brokers can take one; add brokers \
         first, or keep fewer copies: ringlog topic alter NAME --replication-factor N"
    )]
    TooFewBrokers {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// Replicas that it needs.
        needed: usize,
        /// Brokers that are neither fenced nor draining.
        able: usize,
    },
}

/// The brokers and what they carry, while a plan is made.
struct Scales<'a> {
    cluster: &'a ClusterDescription,
    able: Vec<&'a BrokerDescription>,
    weight: BTreeMap<u32, u64>,
}

impl<'a> Scales<'a> {
    fn new(cluster: &'a ClusterDescription, loads: &Loads) -> Self {
        let able = cluster.brokers.iter().filter(|broker| !broker.fenced && !broker.draining).collect();
        let mut weight: BTreeMap<u32, u64> = cluster.brokers.iter().map(|broker| (broker.id, 0)).collect();
        for (topic, partition) in cluster.partitions() {
            for replica in partition.replicas.iter().filter(|replica| !replica.removing) {
                *weight.entry(replica.broker).or_default() += weigh(loads, &topic.name, partition.partition);
            }
        }
        Self { cluster, able, weight }
    }

    fn rack(&self, broker: u32) -> Option<&'a str> {
        self.cluster.broker(broker)?.rack.as_deref()
    }

    /// Whether `broker` stands on a rack where none of `others` is. Without a rack it stands alone.
    fn is_apart(&self, broker: u32, others: &[u32]) -> bool {
        let rack = self.rack(broker);
        rack.is_none() || others.iter().all(|other| *other == broker || self.rack(*other) != rack)
    }

    /// The best broker for one more replica of a partition that `others` keep.
    fn choose(&self, others: &[u32]) -> Option<u32> {
        let free = self.able.iter().map(|broker| broker.id).filter(|id| !others.contains(id));
        free.min_by_key(|id| (!self.is_apart(*id, others), self.weight[id], *id))
    }

    fn add(&mut self, broker: u32, weight: u64) {
        *self.weight.entry(broker).or_default() += weight;
    }

    fn take(&mut self, broker: u32, weight: u64) {
        let carried = self.weight.entry(broker).or_default();
        *carried = carried.saturating_sub(weight);
    }
}

fn weigh(loads: &Loads, topic: &str, partition: u32) -> u64 {
    REPLICA_WEIGHT + loads.get(&(topic.to_owned(), partition)).copied().unwrap_or(0)
}

/// Who keeps a partition once the move under way, if there is one, is done.
fn future(partition: &PartitionReplicas) -> Vec<u32> {
    partition.replicas.iter().filter(|replica| !replica.removing).map(|replica| replica.broker).collect()
}

/// Every partition of `topic` on `factor` brokers.
///
/// # Errors
/// [`PlanError::UnknownTopic`], [`PlanError::TooFewBrokers`].
pub fn replication_factor(
    cluster: &ClusterDescription,
    topic: &str,
    factor: usize,
    loads: &Loads,
) -> Result<Vec<Reassignment>, PlanError> {
    let described = cluster.topics.iter().find(|known| known.name == topic && known.error.is_none());
    let described = described.ok_or_else(|| PlanError::UnknownTopic(topic.to_owned()))?;
    let mut scales = Scales::new(cluster, loads);
    let mut moves = Vec::new();
    for partition in &described.partitions {
        let weight = weigh(loads, topic, partition.partition);
        let before = future(partition);
        let mut replicas = before.clone();
        while replicas.len() > factor {
            let in_sync =
                |id: u32| partition.replicas.iter().any(|replica| replica.broker == id && replica.in_sync);
            // Not the leader; first who is behind, then who shares a rack, then who carries most.
            let goes =
                replicas.iter().copied().filter(|id| Some(*id) != partition.leader).max_by_key(|id| {
                    (!in_sync(*id), !scales.is_apart(*id, &replicas), scales.weight[id], *id)
                });
            let Some(goes) = goes else { break };
            replicas.retain(|id| *id != goes);
            scales.take(goes, weight);
        }
        while replicas.len() < factor {
            let Some(comes) = scales.choose(&replicas) else {
                return Err(too_few(&scales, topic, partition, factor));
            };
            replicas.push(comes);
            scales.add(comes, weight);
        }
        if replicas != before {
            moves.push(Reassignment { topic: topic.to_owned(), partition: partition.partition, replicas });
        }
    }
    Ok(moves)
}

fn too_few(scales: &Scales<'_>, topic: &str, partition: &PartitionReplicas, needed: usize) -> PlanError {
    let able = scales.able.len();
    PlanError::TooFewBrokers { topic: topic.to_owned(), partition: partition.partition, needed, able }
}

/// Every replica of `broker` on others. Of the brokers' own topics there is a copy less where there is no other broker: they
/// get it back by themselves when there is.
///
/// # Errors
/// [`PlanError::UnknownBroker`], [`PlanError::TooFewBrokers`].
pub fn drain(
    cluster: &ClusterDescription,
    broker: u32,
    loads: &Loads,
) -> Result<Vec<Reassignment>, PlanError> {
    cluster.broker(broker).ok_or(PlanError::UnknownBroker(broker))?;
    let mut scales = Scales::new(cluster, loads);
    scales.able.retain(|able| able.id != broker);
    let mut moves = Vec::new();
    for (topic, partition) in cluster.partitions() {
        let mut replicas = future(partition);
        let Some(at) = replicas.iter().position(|id| *id == broker) else { continue };
        let weight = weigh(loads, &topic.name, partition.partition);
        let others: Vec<u32> = replicas.iter().copied().filter(|id| *id != broker).collect();
        let in_set = |id: &u32| replicas.contains(id);
        let free = scales.able.iter().map(|able| able.id).filter(|id| !in_set(id));
        let comes = free.min_by_key(|id| (!scales.is_apart(*id, &others), scales.weight[id], *id));
        match comes {
            Some(comes) => {
                replicas[at] = comes;
                scales.add(comes, weight);
            }
            None if topic.internal && !others.is_empty() => replicas = others,
            None => return Err(too_few(&scales, &topic.name, partition, replicas.len())),
        }
        moves.push(Reassignment { topic: topic.name.clone(), partition: partition.partition, replicas });
    }
    Ok(moves)
}

/// Replicas from those who carry most to those who carry least, until they differ little; and preferred leaders spread
/// evenly. With `only_to` they go to that broker only.
///
/// # Errors
/// [`PlanError::UnknownBroker`], [`PlanError::Unable`], of `only_to`.
pub fn rebalance(
    cluster: &ClusterDescription,
    only_to: Option<u32>,
    loads: &Loads,
) -> Result<Vec<Reassignment>, PlanError> {
    let mut scales = Scales::new(cluster, loads);
    if let Some(to) = only_to {
        cluster.broker(to).ok_or(PlanError::UnknownBroker(to))?;
        scales.able.iter().find(|able| able.id == to).ok_or(PlanError::Unable(to))?;
    }
    // Nothing that moves already is moved again.
    let resting: Vec<_> = cluster.partitions().filter(|(_, partition)| !partition.is_moving()).collect();
    let mut sets: Vec<Vec<u32>> = resting.iter().map(|(_, partition)| future(partition)).collect();
    while let Some((at, from, to)) = best_move(&scales, &resting, &sets, only_to, loads) {
        let weight = weigh(loads, &resting[at].0.name, resting[at].1.partition);
        let place = sets[at].iter().position(|id| *id == from).expect("the move is from one of the set");
        sets[at][place] = to;
        scales.take(from, weight);
        scales.add(to, weight);
    }
    spread_leaders(&scales, &mut sets, only_to);
    let changed = resting.into_iter().zip(sets).filter(|((_, partition), set)| future(partition) != *set);
    let moves = changed.map(|((topic, partition), replicas)| Reassignment {
        topic: topic.name.clone(),
        partition: partition.partition,
        replicas,
    });
    Ok(moves.collect())
}

/// The move that evens out most: which set, from whom, to whom. `None`: they differ little enough.
fn best_move(
    scales: &Scales<'_>,
    resting: &[(&crate::cluster_request::TopicReplicas, &PartitionReplicas)],
    sets: &[Vec<u32>],
    only_to: Option<u32>,
    loads: &Loads,
) -> Option<(usize, u32, u32)> {
    let weight = |id: u32| scales.weight[&id];
    let able: BTreeSet<u32> = scales.able.iter().map(|broker| broker.id).collect();
    let mean = able.iter().map(|id| weight(*id)).sum::<u64>() / (able.len() as u64).max(1);
    let to = only_to.or_else(|| able.iter().copied().min_by_key(|id| weight(*id)))?;
    let mut sources: Vec<u32> = able.iter().copied().filter(|id| *id != to).collect();
    sources.sort_by_key(|id| std::cmp::Reverse(weight(*id)));
    for from in sources {
        let gap = weight(from).saturating_sub(weight(to));
        if gap <= (mean * SPREAD_PERCENT / 100).max(REPLICA_WEIGHT) {
            return None;
        }
        let best = (0..sets.len())
            .filter(|at| sets[*at].contains(&from) && !sets[*at].contains(&to))
            .filter(|at| {
                let others: Vec<u32> = sets[*at].iter().copied().filter(|id| *id != from).collect();
                scales.is_apart(to, &others) || !scales.is_apart(from, &others)
            })
            .map(|at| (at, weigh(loads, &resting[at].0.name, resting[at].1.partition)))
            // More than the gap would only turn it round.
            .filter(|(_, weight)| *weight < gap)
            .min_by_key(|(at, weight)| (weight.abs_diff(gap / 2), *at));
        if let Some((at, _)) = best {
            return Some((at, from, to));
        }
    }
    None
}

/// Brings to the front of sets whoever is preferred less often than others.
fn spread_leaders(scales: &Scales<'_>, sets: &mut [Vec<u32>], only_to: Option<u32>) {
    let mut led: BTreeMap<u32, usize> = scales.able.iter().map(|broker| (broker.id, 0)).collect();
    for set in sets.iter() {
        if let Some(count) = set.first().and_then(|first| led.get_mut(first)) {
            *count += 1;
        }
    }
    let counted = |led: &BTreeMap<u32, usize>, id: u32| led.get(&id).copied();
    loop {
        // The swap that evens out most.
        let swap = sets
            .iter()
            .enumerate()
            .flat_map(|(at, set)| {
                let first = set.first().copied();
                set.iter().enumerate().skip(1).filter_map(move |(place, id)| Some((at, place, first?, *id)))
            })
            .filter(|(.., to)| only_to.is_none_or(|only| only == *to))
            .filter_map(|(at, place, from, to)| {
                let gap = counted(&led, from)?.checked_sub(counted(&led, to)?)?;
                (gap >= 2).then_some((gap, at, place, from, to))
            })
            .max_by_key(|(gap, at, ..)| (*gap, std::cmp::Reverse(*at)));
        let Some((_, at, place, from, to)) = swap else { return };
        sets[at].swap(0, place);
        *led.entry(from).or_default() -= 1;
        *led.entry(to).or_default() += 1;
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
