//! Commands about brokers: what their coming, going and staying away does to the partitions that they keep.
//!
//! A broker's life begins when it registers: its epoch is the version of the image that this makes. In the
//! cluster it starts fenced, reads what it missed, and is unfenced; it is fenced when it is not heard any more. Each
//! of these goes over all partitions, which is why they are rare and partition changes are not.

use super::command::{BrokerRegistration, Suspect};
use super::image::{Broker, CommandError, HOST_BYTES_MAX, Image, Outcome, RACK_BYTES_MAX, Topic};
use super::partition::{Brokers, Change, Partition};
use crate::ids::{BrokerEpoch, BrokerId, PartitionIndex, ReplicaGeneration, TopicPartition};
use crate::limits::BROKERS_MAX;
use crate::replication::rules::{Rule, holds};
use std::sync::Arc;

impl Broker {
    /// What recovery said about its replica `generation` of `partition`, if that is suspect.
    pub fn suspect(&self, partition: TopicPartition, generation: ReplicaGeneration) -> Option<&Suspect> {
        let at = self.suspects.binary_search_by_key(&partition, |suspect| suspect.partition).ok()?;
        Some(&self.suspects[at]).filter(|suspect| suspect.generation == generation)
    }
}

impl Image {
    pub(super) fn apply_register_broker(
        &mut self,
        registration: &BrokerRegistration,
        suspects: &[Suspect],
        starts_fenced: bool,
    ) -> Result<Outcome, CommandError> {
        let broker = registration.broker;
        let before = self.brokers.get(&broker).cloned();
        check_registration(registration).map_err(|problem| invalid(broker, problem))?;
        if before.is_none() && self.brokers.len() >= BROKERS_MAX {
            return Err(invalid(broker, "the cluster has no room for it"));
        }
        let known = before.as_ref().map(|before| before.registration.storage_uuid);
        let lost_disk = known.is_some_and(|known| known != registration.storage_uuid);
        if lost_disk && !starts_fenced {
            return Err(invalid(
                broker,
                format!(
                    "its disk is {:032x}, and it is known with {:032x}: this data directory is not the one \
                     that its metadata belongs to",
                    registration.storage_uuid,
                    known.unwrap_or_default()
                ),
            ));
        }
        let epoch = BrokerEpoch::new(self.version);
        let doubted = match &before {
            Some(before) if !lost_disk && holds(Rule::DoubtsOutliveLives) => &before.suspects[..],
            _ => &[],
        };
        let entry = Broker {
            registration: registration.clone(),
            epoch,
            fenced: starts_fenced,
            draining: before.as_ref().is_some_and(|before| before.draining),
            suspects: self.suspects_of(broker, suspects, doubted),
            version: self.version,
        };
        self.brokers.insert(broker, Arc::new(entry));
        if starts_fenced && before.is_some() && holds(Rule::RegisteringEndsLife) {
            let has_nothing = lost_disk && holds(Rule::OtherDiskHasNothing);
            self.change_partitions(
                |entry| entry.is_replica(broker),
                |change| change.without(broker, has_nothing),
            )?;
        }
        if before.is_some_and(|before| before.registration.shards != registration.shards) {
            self.count_loads_of(broker)?;
        }
        Ok(Outcome::BrokerRegistered { broker, epoch })
    }

    /// What the broker says itself, and what is doubted since an earlier life: only following a leader ends that.
    fn suspects_of(&self, broker: BrokerId, said: &[Suspect], doubted: &[Suspect]) -> Arc<[Suspect]> {
        let is_its = |suspect: &&Suspect| {
            self.partition(suspect.partition)
                .is_some_and(|entry| entry.has_replica(broker, suspect.generation))
        };
        let mut all: Vec<Suspect> = said.iter().chain(doubted).filter(is_its).copied().collect();
        // Stable: what it says now comes before what is known.
        all.sort_by_key(|suspect| suspect.partition);
        all.dedup_by_key(|suspect| suspect.partition);
        all.into()
    }

    pub(super) fn apply_fence(
        &mut self,
        broker: BrokerId,
        epoch: BrokerEpoch,
    ) -> Result<Outcome, CommandError> {
        let known = self.current_broker(broker, epoch)?;
        if known.fenced {
            return Err(invalid(broker, "it is fenced already"));
        }
        self.put_broker(Broker { fenced: true, ..known });
        let concerns = |entry: &Partition| entry.is_in_sync(broker) && holds(Rule::FencedLeaveSets);
        self.change_partitions(concerns, |change| change.without(broker, false))?;
        Ok(Outcome::BrokerFenced { broker })
    }

    pub(super) fn apply_unfence(
        &mut self,
        broker: BrokerId,
        epoch: BrokerEpoch,
    ) -> Result<Outcome, CommandError> {
        let known = self.current_broker(broker, epoch)?;
        if !known.fenced {
            return Err(invalid(broker, "it is not fenced"));
        }
        self.put_broker(Broker { fenced: false, ..known });
        // Whoever waits for a leader may have one now.
        self.change_partitions(
            |entry| entry.leader.is_none() && entry.eligible.contains(&broker),
            |change| change,
        )?;
        Ok(Outcome::BrokerUnfenced { broker })
    }

    pub(super) fn apply_drain(&mut self, broker: BrokerId, draining: bool) -> Result<Outcome, CommandError> {
        let known = self.brokers.get(&broker).ok_or_else(|| invalid(broker, "it is not registered"))?;
        let known = Broker::clone(known);
        if known.draining == draining {
            return Err(invalid(broker, if draining { "it drains already" } else { "it does not drain" }));
        }
        self.put_broker(Broker { draining, ..known });
        Ok(Outcome::BrokerDrains { broker, draining })
    }

    pub(super) fn apply_remove_broker(&mut self, broker: BrokerId) -> Result<Outcome, CommandError> {
        let known = self.brokers.get(&broker).ok_or_else(|| invalid(broker, "it is not registered"))?;
        if !known.fenced {
            return Err(invalid(broker, "it is alive: stop it first"));
        }
        let replicas = self.replicas_of(broker);
        if replicas > 0 {
            return Err(invalid(broker, format!("it has {replicas} replicas: move them to others first")));
        }
        self.brokers.remove(&broker);
        Ok(Outcome::BrokerRemoved { broker })
    }

    /// The broker in the life `epoch`.
    pub(super) fn current_broker(
        &self,
        broker: BrokerId,
        epoch: BrokerEpoch,
    ) -> Result<Broker, CommandError> {
        let known = self.brokers.get(&broker).ok_or_else(|| invalid(broker, "it is not registered"))?;
        if known.epoch != epoch && holds(Rule::CheckLife) {
            let problem = format!("its epoch is {}, and {epoch} was meant", known.epoch);
            return Err(CommandError::Stale(format!("broker {broker}: {problem}")));
        }
        Ok(Broker::clone(known))
    }

    /// A change of the broker that concerns all its replicas.
    fn put_broker(&mut self, broker: Broker) {
        let broker = Broker { version: self.version, ..broker };
        self.brokers.insert(broker.registration.broker, Arc::new(broker));
    }

    /// The replica leads now, or has followed long enough: nothing is doubted about it any more. Concerns one
    /// partition only, whose epoch tells of it.
    pub(super) fn mark_clean(&mut self, broker: BrokerId, partition: TopicPartition) {
        if let Some(known) = self.brokers.get_mut(&broker) {
            let known = Arc::make_mut(known);
            let others = known.suspects.iter().filter(|suspect| suspect.partition != partition);
            known.suspects = others.copied().collect();
        }
    }

    /// The replica of `broker` may have what the partition has no longer.
    pub(super) fn doubt(&mut self, broker: BrokerId, suspect: Suspect) {
        let Some(known) = self.brokers.get_mut(&broker) else { return };
        let known = Arc::make_mut(known);
        let mut suspects = known.suspects.to_vec();
        match suspects.binary_search_by_key(&suspect.partition, |known| known.partition) {
            Ok(at) if suspects[at].generation == suspect.generation => return,
            Ok(at) => suspects[at] = suspect,
            Err(at) => suspects.insert(at, suspect),
        }
        known.suspects = suspects.into();
    }

    /// Changes every partition that `concerns` as `change` says, by the rules.
    fn change_partitions(
        &mut self,
        concerns: impl Fn(&Partition) -> bool,
        change: impl for<'a> Fn(Change<'a>) -> Change<'a>,
    ) -> Result<(), CommandError> {
        let topics: Vec<Arc<Topic>> = self.topics.values().cloned().collect();
        for topic in topics {
            let mut changed = Vec::new();
            for (at, entry) in topic.partitions.iter().enumerate().filter(|(_, entry)| concerns(entry)) {
                let partition = PartitionIndex::new(at as u32);
                let id = TopicPartition { topic: topic.id, partition };
                let settled = change(Change::new(id, entry)).settle(Brokers(&self.brokers), &topic.config);
                changed.extend(settled.map(|settled| (partition, settled)));
            }
            self.put_partitions(&topic, changed)?;
        }
        Ok(())
    }
}

fn invalid(broker: BrokerId, problem: impl Into<String>) -> CommandError {
    CommandError::InvalidBroker { broker, problem: problem.into() }
}

fn check_registration(registration: &BrokerRegistration) -> Result<(), &'static str> {
    let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let host = &registration.host;
    if host.is_empty() || host.len() > HOST_BYTES_MAX || !printable(host) {
        return Err("its host is not the name or address of a host");
    }
    if registration.port == 0 {
        return Err("its port is 0");
    }
    if registration.shards == 0 {
        return Err("it has no shards");
    }
    if registration.rack.len() > RACK_BYTES_MAX || !printable(&registration.rack) {
        return Err("its rack is longer than 249 characters or has others than printable ones");
    }
    Ok(())
}
