//! What the leader of the metadata proposes by itself: who is fenced and unfenced, who hands leaderships over, and more
//! copies of the brokers' own topics when brokers have come.
//!
//! One [`Controller`] runs beside the metadata on every broker that votes, on the metadata thread; it does
//! something only while that broker leads the metadata. It is told what is heard from brokers and which image is in
//! force, and hands out commands. Whether a command is committed it learns from the next image alone; a
//! command that gets lost is proposed again after [`Settings::retry_ms`], and one that comes twice is refused by the
//! epoch in it.
//!
//! Invariants: only a broker that was silent for the whole session timeout, whose process is gone, or that stops, is
//! fenced. A leader that has just been elected knows nothing of the silence before and gives everybody a whole
//! timeout. Leaderships move by wish only, to members of the in-sync set that serve and stay. Copies are added and never
//! taken away.
//!
//! Absent on purpose: elections, in-sync sets and the end of reassignments are rules of
//! [`partition`](super::partition), in force the moment that their cause is. An unclean election is only ever asked
//! for by a person.

use super::command::{Command, Reassignment};
use super::image::{Broker, Image};
use super::partition::Partition;
use crate::ids::{BrokerEpoch, BrokerId, PartitionIndex, TopicPartition};
use crate::limits::{
    BROKER_HEARTBEAT_MS_DEFAULT, BROKER_SESSION_MS_DEFAULT, ELECTIONS_PER_COMMAND_MAX,
    LEADER_REBALANCE_MS_DEFAULT, OFFSETS_TOPIC_REPLICAS_MAX, UNFENCE_LAG_COMMANDS_MAX,
};
use crate::replication::rules::{Rule, holds};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Times that an operator may set, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A broker that is not heard for so long is fenced.
    pub session_ms: u64,
    /// A broker whose port refuses connections and that was not heard for so long is fenced.
    pub refused_ms: u64,
    /// A command whose effect is not seen after so long is proposed again.
    pub retry_ms: u64,
    /// So often leaderships go back to the preferred leaders; 0 = never.
    pub rebalance_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            session_ms: BROKER_SESSION_MS_DEFAULT,
            // One heartbeat may be late.
            refused_ms: 2 * BROKER_HEARTBEAT_MS_DEFAULT,
            retry_ms: BROKER_SESSION_MS_DEFAULT,
            rebalance_ms: LEADER_REBALANCE_MS_DEFAULT,
        }
    }
}

/// What a broker says every [`BROKER_HEARTBEAT_MS_DEFAULT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who.
    pub broker: BrokerId,
    /// In which life.
    pub epoch: BrokerEpoch,
    /// The image that all its shards have followed.
    pub version: u64,
    /// It wants to stop as soon as it leads nothing that another broker could lead. It may when it is fenced.
    pub stopping: bool,
}

/// What the controller is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// This broker leads the metadata from here on.
    Leads,
    /// It does not any more.
    LeadsNot,
    /// The image in force. It is never older than one before.
    Image(Arc<Image>),
    /// A broker is heard.
    Heartbeat(Heartbeat),
    /// Nobody listens at the broker's port: its process is gone, unless it has just started again.
    ConnectionRefused(BrokerId),
    /// [`Controller::next_deadline_ms`] is over.
    Tick,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Propose it; the next image is the answer.
    Propose(Command),
}

/// What is known of a broker that cannot be read from the image.
#[derive(Clone, Copy, Debug)]
struct Heard {
    epoch: BrokerEpoch,
    at_ms: u64,
    version: u64,
    stopping: bool,
    refused: bool,
    /// A command about it was proposed, and when.
    asked_ms: Option<u64>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Controller {
    settings: Settings,
    image: Arc<Image>,
    leads: bool,
    heard: BTreeMap<BrokerId, Heard>,
    /// When leaderships were last looked at for those who drain or stop…
    drained_ms: u64,
    /// … and for the preferred leaders.
    rebalanced_ms: u64,
    /// When more copies were proposed last.
    grown_ms: Option<u64>,
}

impl Controller {
    /// One that does not lead.
    pub fn new(settings: Settings, image: Arc<Image>) -> Self {
        Self {
            settings,
            image,
            leads: false,
            heard: BTreeMap::new(),
            drained_ms: 0,
            rebalanced_ms: 0,
            grown_ms: None,
        }
    }

    /// Takes one event at `now_ms`, of a clock that does not go back.
    pub fn step(&mut self, now_ms: u64, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Leads => {
                self.leads = true;
                if holds(Rule::WholeSession) {
                    self.heard.clear();
                }
                (self.drained_ms, self.rebalanced_ms) = (now_ms, now_ms);
                self.grown_ms = None;
            }
            Event::LeadsNot => self.leads = false,
            Event::Image(image) => self.follow(image),
            Event::Heartbeat(heartbeat) => self.hear(now_ms, heartbeat),
            Event::ConnectionRefused(broker) => {
                if let Some(heard) = self.heard.get_mut(&broker) {
                    heard.refused = true;
                }
            }
            Event::Tick => {}
        }
        if self.leads {
            self.judge(now_ms, effects);
            self.move_leaderships(now_ms, effects);
            self.grow(now_ms, effects);
        }
    }

    /// When a [`Event::Tick`] is due, if any.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        if !self.leads {
            return None;
        }
        let silence = self.heard.iter().filter_map(|(broker, heard)| {
            let known = self.image.broker(*broker).filter(|known| known.epoch == heard.epoch)?;
            let retry = heard.asked_ms.map_or(0, |asked_ms| asked_ms + self.settings.retry_ms);
            let expires = heard.at_ms + self.patience_ms(heard);
            match (known.fenced, heard.stopping) {
                (false, _) => Some(expires.max(retry)),
                (true, _) => heard.asked_ms.map(|_| retry),
            }
        });
        let rebalance = self.settings.rebalance_ms;
        let rebalance = (rebalance > 0).then(|| self.rebalanced_ms + rebalance);
        let drain = self.anybody_leaves().then(|| self.drained_ms + self.settings.retry_ms);
        let grow = self.grown_ms.map(|grown_ms| grown_ms + self.settings.retry_ms);
        silence.chain(rebalance).chain(drain).chain(grow).min()
    }

    fn patience_ms(&self, heard: &Heard) -> u64 {
        if heard.refused { self.settings.refused_ms } else { self.settings.session_ms }
    }

    fn follow(&mut self, image: Arc<Image>) {
        assert!(image.version() >= self.image.version(), "the metadata goes back");
        for (broker, heard) in &mut self.heard {
            // What was asked for is done, or another state makes it worth asking anew.
            let state = |image: &Image| image.broker(*broker).map(|broker| (broker.epoch, broker.fenced));
            if state(&image) != state(&self.image) {
                heard.asked_ms = None;
            }
        }
        self.image = image;
    }

    fn hear(&mut self, now_ms: u64, heartbeat: Heartbeat) {
        let Heartbeat { broker, epoch, version, stopping } = heartbeat;
        let heard = self.heard.get(&broker).filter(|heard| heard.epoch == epoch);
        // A heartbeat of an earlier life is late.
        if self.heard.get(&broker).is_some_and(|heard| heard.epoch > epoch) {
            return;
        }
        let asked_ms = heard.and_then(|heard| heard.asked_ms);
        let heard = Heard { epoch, at_ms: now_ms, version, stopping, refused: false, asked_ms };
        self.heard.insert(broker, heard);
    }

    /// Fences who is silent, gone or stopped, and unfences who serves.
    fn judge(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let image = self.image.clone();
        self.heard.retain(|broker, _| image.broker(*broker).is_some());
        for known in image.brokers() {
            let (broker, epoch) = (known.registration.broker, known.epoch);
            let silent =
                Heard { epoch, at_ms: now_ms, version: 0, stopping: false, refused: false, asked_ms: None };
            let heard = self.heard.entry(broker).or_insert(silent);
            if heard.epoch < epoch {
                // It has registered anew and not been heard since.
                *heard = silent;
            }
            let heard = *heard;
            if heard.epoch != epoch
                || heard.asked_ms.is_some_and(|asked_ms| now_ms < asked_ms + self.settings.retry_ms)
            {
                continue;
            }
            let is_gone = now_ms >= heard.at_ms + self.patience_ms(&heard);
            let leads = || leads_for_others(&image, broker) && holds(Rule::StopWithoutLeading);
            let may_stop = || heard.stopping && !leads();
            let caught_up = heard.version >= epoch.get()
                && heard.version.saturating_add(UNFENCE_LAG_COMMANDS_MAX) >= image.version();
            let serves = !heard.stopping && (caught_up || !holds(Rule::UnfenceCaughtUp));
            let command = if !known.fenced && (is_gone || may_stop()) {
                Command::FenceBroker { broker, epoch }
            } else if known.fenced && !is_gone && serves {
                Command::UnfenceBroker { broker, epoch }
            } else {
                continue;
            };
            effects.push(Effect::Propose(command));
            self.heard.entry(broker).and_modify(|heard| heard.asked_ms = Some(now_ms));
        }
    }

    fn leaves(&self, broker: &Broker) -> bool {
        let stops = self.heard.get(&broker.registration.broker);
        !broker.fenced
            && (broker.draining || stops.is_some_and(|heard| heard.epoch == broker.epoch && heard.stopping))
    }

    fn anybody_leaves(&self) -> bool {
        self.image.brokers().any(|broker| self.leaves(broker))
    }

    /// Wishes for other leaders: of what is led by who leaves, and, once in a while, of what is not led by the
    /// preferred leader.
    fn move_leaderships(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let every = self.settings.rebalance_ms;
        let rebalance = every > 0 && now_ms >= self.rebalanced_ms + every;
        let drain = now_ms >= self.drained_ms + self.settings.retry_ms && self.anybody_leaves();
        if rebalance {
            self.rebalanced_ms = now_ms;
        }
        if drain {
            self.drained_ms = now_ms;
        }
        if !rebalance && !drain {
            return;
        }
        let stays = |broker: BrokerId| {
            self.image.broker(broker).is_some_and(|known| !known.fenced && !self.leaves(known))
        };
        let mut elections = Vec::new();
        for (id, entry) in partitions(&self.image) {
            let Some(leader) = entry.leader.filter(|_| entry.transfer_to.is_none()) else { continue };
            let mut heirs = entry.in_sync.iter().copied().filter(|heir| *heir != leader && stays(*heir));
            let heir = if stays(leader) {
                heirs.find(|heir| rebalance && entry.preferred_leader() == Some(*heir))
            } else {
                // Not always the next in order, lest one broker gets them all.
                let heirs: Vec<_> = heirs.collect();
                heirs.get(id.partition.get() as usize % heirs.len().max(1)).copied()
            };
            elections.extend(heir.map(|heir| (id, heir)));
            if elections.len() == ELECTIONS_PER_COMMAND_MAX {
                break;
            }
        }
        if !elections.is_empty() {
            effects.push(Effect::Propose(Command::ElectLeaders { elections, unclean: false }));
        }
    }
}

impl Controller {
    /// Asks for the copies that the brokers' own topic has too few of for the brokers of now.
    fn grow(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.grown_ms.is_some_and(|grown_ms| now_ms < grown_ms + self.settings.retry_ms) {
            return;
        }
        let partitions = more_copies(&self.image);
        self.grown_ms = (!partitions.is_empty()).then_some(now_ms);
        if !partitions.is_empty() {
            effects.push(Effect::Propose(Command::ReassignPartitions { partitions }));
        }
    }
}

/// Partitions of the offsets topic that more brokers could keep, and those that are to keep them: who has them already, and
/// others. Nothing that moves, lacks a leader, or is on a broker that is being emptied.
fn more_copies(image: &Image) -> Vec<Reassignment> {
    let Some(topic) = image.topic_by_name(schema::OFFSETS_TOPIC) else { return Vec::new() };
    let wanted = image.replicas_at_most(OFFSETS_TOPIC_REPLICAS_MAX);
    let leaves = |broker: BrokerId| image.broker(broker).is_none_or(|known| known.draining);
    let has_too_few = |entry: &Partition| {
        entry.replicas.len() < wanted as usize
            && entry.leader.is_some()
            && !entry.is_reassigned()
            && !entry.brokers().any(leaves)
    };
    if !topic.partitions.iter().any(has_too_few) {
        return Vec::new();
    }
    // As a topic that is made now: preferred leaders are on all brokers.
    let Ok(placement) = image.place(topic.id, 0..topic.partitions.len() as u32, wanted) else {
        return Vec::new();
    };
    let sets = topic.partitions.iter().zip(placement.replica_sets()).enumerate();
    let short = sets.filter(|(_, (entry, _))| has_too_few(entry)).take(ELECTIONS_PER_COMMAND_MAX);
    let grown = short.map(|(at, (entry, placed))| {
        let mut replicas = placed.to_vec();
        if !entry.brokers().all(|broker| placed.contains(&broker)) {
            replicas = entry.brokers().collect();
            let others = placed.iter().filter(|broker| !entry.is_replica(**broker));
            replicas.extend(others.take(wanted as usize - entry.replicas.len()));
        }
        let partition = TopicPartition { topic: topic.id, partition: PartitionIndex::new(at as u32) };
        Reassignment { partition, replicas }
    });
    grown.collect()
}

/// Whether `broker` leads a partition that a member of its in-sync set could lead.
fn leads_for_others(image: &Image, broker: BrokerId) -> bool {
    let serves = |heir: &BrokerId| {
        *heir != broker && image.broker(*heir).is_some_and(|known| !known.fenced && !known.draining)
    };
    partitions(image).any(|(_, entry)| entry.leader == Some(broker) && entry.in_sync.iter().any(serves))
}

fn partitions(image: &Image) -> impl Iterator<Item = (TopicPartition, &Partition)> {
    image.topics().flat_map(|topic| {
        topic.partitions.iter().enumerate().map(|(at, entry)| {
            (TopicPartition { topic: topic.id, partition: PartitionIndex::new(at as u32) }, entry)
        })
    })
}

#[cfg(test)]
#[path = "controller_tests.rs"]
pub(crate) mod tests;
