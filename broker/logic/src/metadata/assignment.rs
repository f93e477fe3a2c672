//! Commands about partitions that are there: in-sync sets, leaders, reassignments, homes.

use super::command::{AlterPartition, Reassignment, Suspect};
use super::image::{CommandError, Image, Outcome, Topic};
use super::partition::{Brokers, Change, Partition, Replica, Settled};
use crate::ids::{
    BrokerEpoch, BrokerId, LeaderEpoch, Offset, PartitionEpoch, ReplicaGeneration, ShardId, TopicPartition,
};
use crate::limits::REPLICAS_PER_PARTITION_MAX;
use crate::replication::rules::{Rule, holds};
use crate::routing;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a leader did not get the in-sync set that it asked for, although it leads and knew the state of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlterRefusal {
    /// The sender is not in its own set.
    #[error("the leader is not in it")]
    WithoutLeader,
    /// A broker without a replica, or one twice.
    #[error("broker {0} has no replica, or is there twice")]
    NotReplica(BrokerId),
    /// The replica that the leader saw is an earlier one.
    #[error("broker {0} has another replica by now")]
    StaleGeneration(BrokerId),
    /// The broker has started again since.
    #[error("broker {0} has started again")]
    StaleBroker(BrokerId),
    /// Not heard, or it has just started.
    #[error("broker {0} is fenced")]
    Fenced(BrokerId),
    /// It gives its leaderships away.
    #[error("broker {0} drains")]
    Draining(BrokerId),
    /// It may have lost its tail.
    #[error("the replica of broker {0} is suspect")]
    Suspect(BrokerId),
    /// Leadership goes only to a member of the set.
    #[error("broker {0} cannot lead, it is not in it")]
    NotInSync(BrokerId),
}

impl Image {
    /// A refusal is an effect too: the partition's epoch rises, so that copies of the question that are still on
    /// their way mean nothing any more, and the leader knows where it stands.
    pub(super) fn apply_alter_partition(&mut self, alter: &AlterPartition) -> Result<Outcome, CommandError> {
        let id = alter.partition;
        let (topic, before) = self.existing(id)?;
        let leads = (Some(alter.sender), alter.leader_epoch) == (before.leader, before.leader_epoch);
        let knows = alter.partition_epoch == before.partition_epoch;
        if (!leads && holds(Rule::ChangeAsLeader)) || (!knows && holds(Rule::ChangeKnownState)) {
            return Err(CommandError::Stale(format!(
                "{id}: the in-sync set was to change from leader epoch {} and partition epoch {}, and these are \
                 {} and {}",
                alter.leader_epoch, alter.partition_epoch, before.leader_epoch, before.partition_epoch,
            )));
        }
        let mut change = Change::new(id, &before);
        let refusal = self.refuse_in_sync(&before, alter);
        match refusal {
            None => {
                change.next.in_sync = alter.in_sync.iter().map(|member| member.broker).collect();
                change.next.leader = alter.transfer_to.or(before.leader);
            }
            Some(_) if holds(Rule::RefusalsCount) => {}
            Some(refusal) => {
                let partition_epoch = before.partition_epoch;
                return Ok(Outcome::PartitionAlterRefused { partition: id, partition_epoch, refusal });
            }
        }
        let settled = change.settle(Brokers(&self.brokers), &topic.config);
        // The same set as before is an answer as well.
        let settled = settled.unwrap_or_else(|| unchanged(&before));
        let partition_epoch = settled.partition.partition_epoch;
        self.put_partitions(&topic, vec![(id.partition, settled)])?;
        Ok(match refusal {
            None => Outcome::PartitionAltered { partition: id, partition_epoch },
            Some(refusal) => Outcome::PartitionAlterRefused { partition: id, partition_epoch, refusal },
        })
    }

    fn refuse_in_sync(&self, before: &Partition, alter: &AlterPartition) -> Option<AlterRefusal> {
        let members = &alter.in_sync;
        let has = |broker: BrokerId| members.iter().any(|member| member.broker == broker);
        if !has(alter.sender) && holds(Rule::LeaderInSet) {
            return Some(AlterRefusal::WithoutLeader);
        }
        let mut seen = BTreeSet::new();
        for member in members {
            let broker = member.broker;
            let Some(replica) = before.replica(broker).filter(|_| seen.insert(broker)) else {
                return Some(AlterRefusal::NotReplica(broker));
            };
            let Some(known) = self.broker(broker) else { return Some(AlterRefusal::NotReplica(broker)) };
            let is_new = !before.is_in_sync(broker);
            if replica.generation != member.generation && holds(Rule::RefuseOtherGeneration) {
                return Some(AlterRefusal::StaleGeneration(broker));
            } else if known.epoch != member.epoch && holds(Rule::CheckBrokerEpoch) {
                return Some(AlterRefusal::StaleBroker(broker));
            } else if known.fenced && holds(Rule::RefuseFenced) {
                return Some(AlterRefusal::Fenced(broker));
            } else if known.draining && is_new && holds(Rule::RefuseDraining) {
                return Some(AlterRefusal::Draining(broker));
            } else if known.suspect(alter.partition, member.generation).is_some()
                && holds(Rule::RefuseSuspect)
            {
                return Some(AlterRefusal::Suspect(broker));
            }
        }
        let heir = alter.transfer_to.filter(|_| holds(Rule::HeirInSet));
        heir.filter(|to| !has(*to)).map(AlterRefusal::NotInSync)
    }

    pub(super) fn apply_mark_clean(
        &mut self,
        id: TopicPartition,
        generation: ReplicaGeneration,
        broker: BrokerId,
        broker_epoch: BrokerEpoch,
        leader_epoch: LeaderEpoch,
    ) -> Result<Outcome, CommandError> {
        let (topic, before) = self.existing(id)?;
        let known = self.current_broker(broker, broker_epoch)?;
        let is_now = before.leader_epoch == leader_epoch || !holds(Rule::CleanInThisEpoch);
        if !before.has_replica(broker, generation) || !is_now {
            return Err(CommandError::Stale(format!(
                "{id}: generation {generation} of broker {broker} followed in leader epoch {leader_epoch}, and that \
                 is {} now",
                before.leader_epoch
            )));
        }
        if before.leader.is_none() {
            return Err(invalid(id, "it has no leader whom a replica could have followed"));
        }
        if known.suspect(id, generation).is_none() {
            return Err(invalid(id, format!("the replica of broker {broker} is not suspect")));
        }
        self.mark_clean(broker, id);
        self.put_partitions(&topic, vec![(id.partition, unchanged(&before))])?;
        Ok(Outcome::ReplicaClean { partition: id, broker })
    }

    pub(super) fn apply_reassign(&mut self, partitions: &[Reassignment]) -> Result<Outcome, CommandError> {
        let mut seen = BTreeSet::new();
        for Reassignment { partition: id, replicas } in partitions {
            let (topic, before) = self.existing(*id)?;
            if !seen.insert(*id) {
                return Err(invalid(*id, "it is there twice"));
            }
            let change = match replicas.is_empty() {
                true => call_off(*id, &before, &topic)?,
                false => self.reassign(*id, &before, &topic, replicas)?,
            };
            let settled = change.settle(Brokers(&self.brokers), &topic.config);
            self.put_partitions(
                &topic,
                settled.map(|settled| (id.partition, settled)).into_iter().collect(),
            )?;
        }
        Ok(Outcome::PartitionsReassigned { partitions: partitions.len() })
    }

    fn reassign<'a>(
        &self,
        id: TopicPartition,
        before: &'a Partition,
        topic: &Topic,
        replicas: &[BrokerId],
    ) -> Result<Change<'a>, CommandError> {
        if before.is_reassigned() {
            return Err(invalid(id, "it is being reassigned: wait for that, or call it off first"));
        }
        if replicas.iter().collect::<BTreeSet<_>>().len() != replicas.len() {
            return Err(invalid(id, "one broker is there twice"));
        }
        if replicas.len() > REPLICAS_PER_PARTITION_MAX {
            return Err(invalid(id, format!("more than {REPLICAS_PER_PARTITION_MAX} replicas")));
        }
        let needed = topic.config.min_insync_replicas as usize;
        if needed > replicas.len() {
            return Err(invalid(
                id,
                format!("min.insync.replicas={needed} can never be reached with {} replicas", replicas.len()),
            ));
        }
        let mut change = Change::new(id, before);
        let raised = before.partition_epoch.get().saturating_add(1);
        let generation = ReplicaGeneration::new(if holds(Rule::NewGeneration) { raised } else { 0 });
        let mut next = Vec::with_capacity(replicas.len() + before.replicas.len());
        let mut adding = Vec::new();
        for &broker in replicas {
            next.push(match before.replica(broker) {
                Some(replica) => *replica,
                None => match self.broker(broker) {
                    None => return Err(invalid(id, format!("broker {broker} is not registered"))),
                    Some(known) if known.draining => {
                        return Err(invalid(id, format!("broker {broker} drains and gets no new replicas")));
                    }
                    Some(_) => {
                        adding.push(broker);
                        Replica { broker, generation }
                    }
                },
            });
        }
        let goes = |replica: &&Replica| !replicas.contains(&replica.broker);
        let removing: Vec<Replica> = before.replicas.iter().filter(goes).copied().collect();
        change.next.removing = removing.iter().map(|replica| replica.broker).collect();
        // Who was alone with it has led without a thought for others. Those that come are led in an epoch that begins with
        // them, so that nobody who was alone, whatever its restarts, can be taken for their leader.
        change.new_epoch = before.replicas.len() == 1 && !adding.is_empty() && holds(Rule::LeadNewcomersAnew);
        change.next.adding = adding.into();
        next.extend(removing);
        change.next.replicas = next.into();
        Ok(change)
    }

    pub(super) fn apply_elect_leaders(
        &mut self,
        elections: &[(TopicPartition, BrokerId)],
        unclean: bool,
    ) -> Result<Outcome, CommandError> {
        for &(id, broker) in elections {
            let (topic, before) = self.existing(id)?;
            let mut change = Change::new(id, &before);
            if !unclean {
                if before.leader.is_none() || !before.is_in_sync(broker) {
                    return Err(invalid(id, format!("broker {broker} is not in sync with its leader")));
                }
                change.next.transfer_to = Some(broker);
            } else {
                if before.leader.is_some() {
                    return Err(invalid(id, "it has a leader"));
                }
                if !before.is_replica(broker) || !Brokers(&self.brokers).serves(broker) {
                    return Err(invalid(id, format!("broker {broker} has no replica, or does not serve")));
                }
                change.next.leader = Some(broker);
                change.next.in_sync = [broker].into();
                // What they have and it has not is given up: nobody else may bring it back, and they may
                // discard what was committed.
                change.next.eligible = Arc::default();
                change.had_all.clear();
                self.mark_clean(broker, id);
                let doubts = |other: &&Replica| other.broker != broker && holds(Rule::UncleanDoubtsOthers);
                for other in before.replicas.iter().filter(doubts) {
                    let suspect = Suspect {
                        partition: id,
                        generation: other.generation,
                        last_epoch: LeaderEpoch::new(0),
                        end: Offset::new(0),
                    };
                    self.doubt(other.broker, suspect);
                }
            }
            let settled = change.settle(Brokers(&self.brokers), &topic.config);
            self.put_partitions(
                &topic,
                settled.map(|settled| (id.partition, settled)).into_iter().collect(),
            )?;
        }
        Ok(Outcome::LeadersElected { partitions: elections.len(), unclean })
    }

    pub(super) fn apply_move_home(
        &mut self,
        id: TopicPartition,
        broker: BrokerId,
        shard: ShardId,
    ) -> Result<Outcome, CommandError> {
        let (topic, before) = self.existing(id)?;
        let Some((known, replica)) = self.broker(broker).zip(before.replica(broker)) else {
            return Err(invalid(id, format!("broker {broker} has no replica")));
        };
        let shards = known.registration.shards;
        if shard.get() >= shards {
            return Err(invalid(id, format!("broker {broker} has {shards} shards, from 0")));
        }
        if known.suspect(id, replica.generation).is_some() {
            return Err(invalid(
                id,
                format!("the replica of broker {broker} is suspect, and is being repaired"),
            ));
        }
        if self.home_of(broker, id, Some(&before)) == Some(shard) {
            return Ok(Outcome::HomeMoved { partition: id, broker, shard });
        }
        let mut homes: Vec<_> = before.homes.iter().filter(|(of, _)| *of != broker).copied().collect();
        if shard != routing::home_shard(id.topic, id.partition, shards) {
            homes.push((broker, shard));
            homes.sort_unstable();
        }
        let mut change = Change::new(id, &before);
        change.next.homes = homes.into();
        // Whoever leads or follows on the new shard knows nothing of what was said on the old one, and clients are to
        // learn where it is now: both see it by the epoch.
        change.new_epoch = holds(Rule::HomesMeetAnew);
        let settled = change.settle(Brokers(&self.brokers), &topic.config);
        self.put_partitions(&topic, settled.map(|settled| (id.partition, settled)).into_iter().collect())?;
        Ok(Outcome::HomeMoved { partition: id, broker, shard })
    }

    /// Who would be elected if the leader of `id`, alone in its set, gave up, and has everything that was acknowledged: one that
    /// is eligible, and not suspect.
    pub fn heir(&self, id: TopicPartition) -> Option<BrokerId> {
        let entry = self.partition(id)?;
        let brokers = Brokers(&self.brokers);
        let is_able = |broker: &BrokerId| {
            let own = entry.replica(*broker);
            brokers.serves(*broker) && own.is_some_and(|own| brokers.suspect(id, own).is_none())
        };
        entry.eligible.iter().copied().find(is_able)
    }

    fn existing(&self, id: TopicPartition) -> Result<(Arc<Topic>, Partition), CommandError> {
        let topic = self.topic(id.topic).ok_or(CommandError::UnknownTopic(id.topic))?;
        let entry = topic.partitions.get(id.partition.get() as usize);
        Ok((topic.clone(), entry.ok_or(CommandError::UnknownPartition(id))?.clone()))
    }
}

/// The replicas that were to be added go again.
fn call_off<'a>(
    id: TopicPartition,
    before: &'a Partition,
    topic: &Topic,
) -> Result<Change<'a>, CommandError> {
    if !before.is_reassigned() {
        return Err(invalid(id, "it is not being reassigned"));
    }
    let stays = |broker: BrokerId| !before.adding.contains(&broker);
    let staying = before.replicas.len() - before.adding.len();
    let in_sync: Arc<[BrokerId]> = before.in_sync.iter().copied().filter(|broker| stays(*broker)).collect();
    let needed = topic.config.min_in_sync(staying);
    if in_sync.len() < needed {
        return Err(invalid(
            id,
            format!("{} of the replicas of before are in sync, and {needed} must be", in_sync.len()),
        ));
    }
    let mut change = Change::new(id, before);
    change.next.replicas = before.replicas.iter().filter(|replica| stays(replica.broker)).copied().collect();
    change.next.in_sync = in_sync;
    change.next.adding = Arc::default();
    change.next.removing = Arc::default();
    change.new_epoch = true;
    Ok(change)
}

/// The same with the next partition epoch.
fn unchanged(before: &Partition) -> Settled {
    let epoch = before.partition_epoch.get();
    let partition_epoch = PartitionEpoch::new(epoch.checked_add(1).expect("32 bits hold all changes"));
    Settled { partition: Partition { partition_epoch, ..before.clone() }, cleaned: None }
}

fn invalid(partition: TopicPartition, problem: impl Into<String>) -> CommandError {
    CommandError::InvalidPartition { partition, problem: problem.into() }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
pub(crate) mod tests;
