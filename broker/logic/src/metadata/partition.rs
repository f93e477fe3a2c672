//! One partition's place in the cluster: who keeps it, who leads it, who may lead it, and the rules that hold after
//! every change of that.
//!
//! The rules are those of Kafka's controller with eligible leaders (KIP-966) and broker epochs (KIP-841, KIP-903).
//! Whoever changes a partition says what the change is and calls [`Change::settle`]; it completes a
//! reassignment, elects, and keeps the sets in order, so that no command can forget one of them.
//!
//! Invariants, after every change: the leader is in the in-sync set, or there is none; in-sync set and eligible
//! leaders are disjoint sets of replicas; the in-sync set has no fenced broker; there are eligible leaders only
//! while the in-sync set is smaller than the minimum; epochs rise by at most one per change and never fall; a
//! generation is used once per partition.

use super::command::Suspect;
use super::image::Broker;
use super::topic_config::TopicConfig;
use crate::ids::{BrokerId, LeaderEpoch, Offset, PartitionEpoch, ReplicaGeneration, ShardId, TopicPartition};
use crate::replication::rules::{Rule, holds};
use imbl::OrdMap;
use std::sync::Arc;

/// Who serves a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The broker that takes its produces; `None` while nobody who may lead is there.
    pub leader: Option<BrokerId>,
    /// Rises with every new leader, also with none.
    pub leader_epoch: LeaderEpoch,
    /// Rises with every change of this entry.
    pub partition_epoch: PartitionEpoch,
    /// Who keeps it, the preferred leader first. While it is reassigned: the future replicas, then those that go.
    pub replicas: Arc<[Replica]>,
    /// Those that have everything acknowledged, in the order of `replicas`.
    pub in_sync: Arc<[BrokerId]>,
    /// Those that had everything acknowledged when they left the in-sync set, which since then is too small for
    /// anything to be acknowledged, or when the partition was made: they may lead too, in the order of `replicas`.
    pub eligible: Arc<[BrokerId]>,
    /// Replicas that a reassignment adds.
    pub adding: Arc<[BrokerId]>,
    /// Replicas that go as soon as those are in sync.
    pub removing: Arc<[BrokerId]>,
    /// Who is to lead next: the leader hands over as soon as it can.
    pub transfer_to: Option<BrokerId>,
    /// Shards that serve it in place of those that topic and index give.
    pub homes: Arc<[(BrokerId, ShardId)]>,
}

/// A broker's copy of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Whose.
    pub broker: BrokerId,
    /// Which life of it: the partition epoch that added it.
    pub generation: ReplicaGeneration,
}

impl Partition {
    /// A new partition of `replicas`, led by the first that is `in_sync`; the others have everything, too, as long as those are
    /// too few for anything to be acknowledged.
    pub(super) fn new(replicas: &[BrokerId], in_sync: &[BrokerId], config: &TopicConfig) -> Self {
        let is_late = |broker: &BrokerId| !in_sync.contains(broker);
        let can_commit = in_sync.len() >= config.min_in_sync(replicas.len()) || !holds(Rule::NewAreEligible);
        let generation = ReplicaGeneration::new(0);
        Self {
            leader: in_sync.first().copied(),
            leader_epoch: LeaderEpoch::new(0),
            partition_epoch: PartitionEpoch::new(0),
            replicas: replicas.iter().map(|&broker| Replica { broker, generation }).collect(),
            in_sync: in_sync.into(),
            eligible: replicas.iter().copied().filter(|broker| is_late(broker) && !can_commit).collect(),
            adding: Arc::default(),
            removing: Arc::default(),
            transfer_to: None,
            homes: Arc::default(),
        }
    }

    /// The replica of `broker`.
    pub fn replica(&self, broker: BrokerId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.broker == broker)
    }

    /// Whether `broker` keeps it.
    pub fn is_replica(&self, broker: BrokerId) -> bool {
        self.replica(broker).is_some()
    }

    /// Whether `broker` keeps it as `generation`.
    pub fn has_replica(&self, broker: BrokerId, generation: ReplicaGeneration) -> bool {
        self.replica(broker).is_some_and(|replica| replica.generation == generation)
    }

    /// Whether `broker` has everything acknowledged.
    pub fn is_in_sync(&self, broker: BrokerId) -> bool {
        self.in_sync.contains(&broker)
    }

    /// The brokers that keep it.
    pub fn brokers(&self) -> impl Iterator<Item = BrokerId> {
        self.replicas.iter().map(|replica| replica.broker)
    }

    /// Who leads it when all are well.
    pub fn preferred_leader(&self) -> Option<BrokerId> {
        self.replicas.first().map(|replica| replica.broker)
    }

    /// Whether other replicas are on their way.
    pub fn is_reassigned(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// How many replicas it has when no reassignment is under way: the smaller number while one is, so that a
    /// topic that gets more replicas does not stop until they have caught up.
    pub fn replication_factor(&self) -> usize {
        let all = self.replicas.len();
        (all - self.adding.len()).min(all - self.removing.len())
    }

    /// How many must be in sync for `acks=all`.
    pub fn min_in_sync(&self, config: &TopicConfig) -> usize {
        config.min_in_sync(self.replication_factor())
    }

    /// Whether a replica that should be in sync is not.
    pub fn is_under_replicated(&self) -> bool {
        let lags = |broker: BrokerId| !self.is_in_sync(broker) && !self.adding.contains(&broker);
        self.brokers().any(lags)
    }
}

/// What the rules ask about brokers.
#[derive(Clone, Copy)]
pub(super) struct Brokers<'a>(pub &'a OrdMap<BrokerId, Arc<Broker>>);

impl<'a> Brokers<'a> {
    pub fn serves(&self, broker: BrokerId) -> bool {
        self.0.get(&broker).is_some_and(|broker| !broker.fenced)
    }

    pub fn drains(&self, broker: BrokerId) -> bool {
        self.0.get(&broker).is_some_and(|broker| broker.draining)
    }

    pub fn suspect(&self, id: TopicPartition, replica: &Replica) -> Option<&'a Suspect> {
        self.0.get(&replica.broker)?.suspect(id, replica.generation)
    }
}

/// A change of a partition on its way.
pub(super) struct Change<'a> {
    pub id: TopicPartition,
    pub before: &'a Partition,
    /// As it is to be; whoever made this change has set what it is about.
    pub next: Partition,
    /// Who had everything acknowledged before; they become eligible if the in-sync set gets too small.
    pub had_all: Vec<BrokerId>,
    /// The leader's epoch rises even if the leader stays.
    pub new_epoch: bool,
}

/// A partition after the rules.
pub(super) struct Settled {
    pub partition: Partition,
    /// This broker's replica was suspect and leads now, because it has the most of all that could: it is clean.
    pub cleaned: Option<BrokerId>,
}

impl<'a> Change<'a> {
    pub fn new(id: TopicPartition, before: &'a Partition) -> Self {
        Self { id, before, next: before.clone(), had_all: before.in_sync.to_vec(), new_epoch: false }
    }

    /// `broker` is out of the in-sync set; if its disk is another one, nothing is known to be on it.
    pub fn without(mut self, broker: BrokerId, lost_disk: bool) -> Self {
        let others = |set: &[BrokerId]| set.iter().copied().filter(|other| *other != broker).collect();
        self.next.in_sync = others(&self.next.in_sync);
        if lost_disk {
            self.next.eligible = others(&self.next.eligible);
            self.had_all.retain(|other| *other != broker);
        }
        self
    }

    /// Applies the rules. `None` if nothing has changed.
    pub fn settle(mut self, brokers: Brokers<'_>, config: &TopicConfig) -> Option<Settled> {
        self.complete_reassignment(config);
        self.keep_sets(config);
        let cleaned = self.elect(brokers);
        self.keep_sets(config);
        let Self { before, mut next, new_epoch, .. } = self;
        let leads_on = next.leader == before.leader;
        next.transfer_to =
            next.transfer_to.filter(|to| leads_on && next.leader != Some(*to) && next.is_in_sync(*to));
        if next == *before && !new_epoch {
            return None;
        }
        if (!leads_on && holds(Rule::NewLeaderNewEpoch)) || new_epoch {
            next.leader_epoch = LeaderEpoch::new(rise(before.leader_epoch.get()));
        }
        if holds(Rule::ChangesRaiseEpoch) {
            next.partition_epoch = PartitionEpoch::new(rise(before.partition_epoch.get()));
        }
        Some(Settled { partition: next, cleaned })
    }

    /// When all added replicas are in sync, and enough of those that stay, the others go.
    fn complete_reassignment(&mut self, config: &TopicConfig) {
        let next = &mut self.next;
        let stays = |broker: &BrokerId| !next.removing.contains(broker);
        let staying = next.replicas.iter().filter(|replica| stays(&replica.broker)).count();
        let in_sync: Arc<[BrokerId]> = next.in_sync.iter().copied().filter(stays).collect();
        let added = next.adding.iter().all(|broker| in_sync.contains(broker));
        let enough = in_sync.len() >= config.min_in_sync(staying);
        if !next.is_reassigned()
            || (!added && holds(Rule::CompleteWithAdded))
            || (!enough && holds(Rule::CompleteWithMinimum))
        {
            return;
        }
        next.replicas = next.replicas.iter().copied().filter(|replica| stays(&replica.broker)).collect();
        next.in_sync = in_sync;
        next.adding = Arc::default();
        next.removing = Arc::default();
        self.new_epoch |= holds(Rule::CompletionIsNewEpoch);
    }

    /// The sets are of replicas, in their order. Who had everything stays eligible while the in-sync set is too small
    /// to acknowledge anything more.
    ///
    /// Also a suspect, which may not lead: the protocol lets the best suspect lead only when everybody who could have
    /// everything is there and suspect, so it must stay known who they are.
    fn keep_sets(&mut self, config: &TopicConfig) {
        let next = &mut self.next;
        let in_order = |member: &dyn Fn(&BrokerId) -> bool| -> Arc<[BrokerId]> {
            next.replicas.iter().map(|replica| replica.broker).filter(member).collect()
        };
        let in_sync = in_order(&|broker| next.in_sync.contains(broker));
        let had_all = |broker: &BrokerId| next.eligible.contains(broker) || self.had_all.contains(broker);
        let can_commit = in_sync.len() >= next.min_in_sync(config);
        let eligible = if (can_commit && holds(Rule::ForgetEligible)) || !holds(Rule::KeepEligible) {
            Arc::default()
        } else {
            in_order(&|broker| had_all(broker) && !in_sync.contains(broker))
        };
        next.in_sync = in_sync;
        next.eligible = eligible;
        let kept =
            |(broker, _): &(BrokerId, ShardId)| next.replicas.iter().any(|kept| kept.broker == *broker);
        if !next.homes.iter().all(kept) {
            next.homes = next.homes.iter().copied().filter(kept).collect();
        }
    }

    /// A leader for a partition that has none, or whose leader is out of the in-sync set. Returns whose suspect
    /// replica was chosen.
    fn elect(&mut self, brokers: Brokers<'_>) -> Option<BrokerId> {
        let next = &mut self.next;
        if next.leader.is_some_and(|leader| next.is_in_sync(leader)) {
            return None;
        }
        // Who drains leads only if nobody else can.
        let choose = |candidates: &[BrokerId], may: &dyn Fn(BrokerId) -> bool| {
            let serves = |broker| brokers.serves(broker) || !holds(Rule::ElectServing);
            let able = || candidates.iter().copied().filter(|broker| serves(*broker) && may(*broker));
            able().find(|broker| !brokers.drains(*broker)).or_else(|| able().next())
        };
        next.leader = choose(&next.in_sync, &|_| true);
        if next.leader.is_some() {
            return None;
        }
        let suspicion = |broker: BrokerId| {
            let replica = next.replica(broker)?;
            brokers.suspect(self.id, replica)
        };
        let candidates =
            if holds(Rule::ElectEligible) { next.eligible.clone() } else { next.brokers().collect() };
        let clean = choose(&candidates, &|broker| suspicion(broker).is_none() || !holds(Rule::ElectClean));
        // Each of them may be the one that has everything, so all must be heard before the best is taken.
        let heard = |&broker: &BrokerId| {
            let suspect = suspicion(broker).filter(|_| brokers.serves(broker))?;
            Some((suspect.last_epoch, suspect.end, broker))
        };
        let doubted: Vec<(LeaderEpoch, Offset, BrokerId)> = next.eligible.iter().filter_map(heard).collect();
        let all = doubted.len() == next.eligible.len() || !holds(Rule::HearAllSuspects);
        // The first of equals: the one preferred.
        let best = doubted.into_iter().filter(|_| all).rev().max_by_key(|(epoch, end, _)| (*epoch, *end));
        let best = best.map(|(_, _, broker)| broker);
        next.leader = clean.or(best);
        if let Some(leader) = next.leader {
            next.in_sync = [leader].into();
        }
        best.filter(|_| clean.is_none())
    }
}

fn rise(epoch: u32) -> u32 {
    epoch.checked_add(1).expect("an epoch is a count of changes and 32 bits hold all that there can be")
}

#[cfg(test)]
#[path = "partition_tests.rs"]
pub(crate) mod tests;
