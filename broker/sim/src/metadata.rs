//! The metadata log as what Raft promises: commands in one order, a leader that may change, outcomes that may stay unknown.
//!
//! Raft itself is a library and is tested as such. What matters to brokers is here: a command is lost, or committed and
//! its answer lost, or comes twice; who leads may be paused or cut off from the majority; everybody learns of
//! images in their order, at their own time, perhaps skipping some.

use crate::network::NodeIndex;
use crate::world::{Event, World, broker_of, node_of};
use logic::metadata::controller::{self, Heartbeat};
use logic::metadata::{Command, Image, Outcome, snapshot};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Brokers that vote, if there are as many.
const VOTERS: usize = 3;

/// The metadata.
#[derive(Debug)]
pub struct Consensus {
    /// The newest image.
    pub image: Arc<Image>,
    /// Who leads.
    pub leader: Option<NodeIndex>,
    /// How often the topic was made.
    pub topics_made: u64,
    /// Who votes.
    pub voters: Vec<NodeIndex>,
    /// Who has been removed.
    removed: BTreeSet<NodeIndex>,
    term: u64,
    history: Vec<Arc<Image>>,
    leaderless_since_us: Option<u64>,
    patience_us: u64,
}

impl Consensus {
    /// An empty log.
    pub fn new() -> Self {
        let image = Arc::new(Image::default());
        Self {
            image: image.clone(),
            leader: None,
            topics_made: 0,
            voters: (0..VOTERS).collect(),
            removed: BTreeSet::new(),
            term: 0,
            history: vec![image],
            leaderless_since_us: None,
            patience_us: 0,
        }
    }

    /// The image of `version`.
    pub fn at(&self, version: u64) -> Arc<Image> {
        self.history[version as usize].clone()
    }
}

impl World {
    fn has_majority(&self, leader: NodeIndex) -> bool {
        let lives = |node: NodeIndex| self.nodes[node].up && self.paused_until(node).is_none();
        let follows = |node: &NodeIndex| {
            *node == leader || (lives(*node) && self.network.is_open_both_ways(leader, *node))
        };
        let voters = &self.consensus.voters;
        let following = voters.iter().copied().filter(follows).count();
        lives(leader) && voters.contains(&leader) && following * 2 > voters.len()
    }

    /// Who has been removed votes no more. Others take their places as soon as they serve, so that an odd number votes; as the
    /// server's `member.rs` does it, whose change of the group is Raft's and happens or not.
    fn look_after_voters(&mut self) {
        let image = self.consensus.image.clone();
        let known = |node: &NodeIndex| image.broker(broker_of(*node));
        let mut voters = self.consensus.voters.clone();
        // At the beginning nobody is registered.
        voters.retain(|node| known(node).is_some() || !self.consensus.removed.contains(node));
        let able =
            (0..self.nodes.len()).filter(|node| known(node).is_some_and(|it| !it.fenced && !it.draining));
        let others: Vec<NodeIndex> = able.filter(|node| !voters.contains(node)).collect();
        voters.extend(others);
        voters.truncate(VOTERS);
        if voters.len().is_multiple_of(2) {
            voters.pop();
        }
        if voters != self.consensus.voters && !voters.is_empty() {
            self.trace(|| format!("{voters:?} vote"));
            self.met("changes of the voters");
            self.consensus.voters = voters;
        }
    }

    pub(crate) fn elect(&mut self) {
        self.after(50_000, Event::Elect);
        if self.consensus.leader.is_some_and(|leader| self.has_majority(leader)) {
            self.consensus.leaderless_since_us = None;
            self.look_after_voters();
            return;
        }
        let since_us = *self.consensus.leaderless_since_us.get_or_insert(self.now_us);
        if since_us == self.now_us {
            self.consensus.patience_us = self.random.between(400, 800) * 1000;
        }
        if self.now_us >= since_us + self.consensus.patience_us {
            self.lead_metadata_anew();
        }
    }

    /// Another leader, if one can be.
    pub(crate) fn lead_metadata_anew(&mut self) {
        let able = self.consensus.voters.iter().copied();
        let able: Vec<NodeIndex> = able.filter(|node| self.has_majority(*node)).collect();
        let Some(&leader) = self.random.choose(&able) else { return };
        if let Some(before) = self.consensus.leader.replace(leader).filter(|before| *before != leader) {
            self.control(before, controller::Event::LeadsNot);
        }
        self.consensus.term += 1;
        self.consensus.leaderless_since_us = None;
        self.trace(|| format!("{} leads the metadata", broker_of(leader)));
        // It has everything committed, whatever its shards have followed.
        self.control(leader, controller::Event::Image(self.consensus.image.clone()));
        self.control(leader, controller::Event::Leads);
    }

    pub(crate) fn heard(&mut self, heartbeat: Heartbeat) {
        let Some(leader) = self.consensus.leader else { return };
        if self.nodes[leader].up
            && self.paused_until(leader).is_none()
            && self.network.is_open(node_of(heartbeat.broker), leader)
        {
            self.control(leader, controller::Event::Heartbeat(heartbeat));
            let from = node_of(heartbeat.broker);
            if self.has_majority(leader)
                && self.network.is_open(leader, from)
                && self.nodes[from].registered == Some(heartbeat.epoch)
            {
                self.nodes[from].heard_us = Some(self.now_us);
            }
        }
    }

    /// Sends a command to who leads the metadata. Nobody promises that it gets there, or once.
    pub(crate) fn propose(&mut self, from: Option<NodeIndex>, command: Command) {
        let Some(leader) = self.consensus.leader else { return };
        if from.is_some_and(|from| !self.network.is_open(from, leader)) || self.random.chance(10) {
            return;
        }
        let from = from.map(|from| (from, self.nodes[from].life));
        let delay_us = self.random.delay_us(self.network.delay_us);
        if self.random.chance(30) {
            let late_us = self.random.between(1, 3_000) * 1000;
            self.after(late_us, Event::Propose { from, command: command.clone() });
        }
        self.after(delay_us, Event::Propose { from, command });
    }

    pub(crate) fn proposed(&mut self, from: Option<(NodeIndex, u64)>, command: Command) {
        if self.consensus.leader.is_some_and(|leader| self.has_majority(leader)) {
            let delay_us = self.random.delay_us(2 * self.network.delay_us + 300);
            self.after(delay_us, Event::Commit { term: self.consensus.term, from, command });
        }
    }

    pub(crate) fn commit(&mut self, term: u64, from: Option<(NodeIndex, u64)>, command: Command) {
        let Some(leader) = self.consensus.leader.filter(|leader| self.has_majority(*leader)) else { return };
        if term != self.consensus.term {
            return;
        }
        let command = Command::decode(&command.encode()).expect("a command survives its bytes");
        let before = self.consensus.image.clone();
        let (after, outcome) = match before.apply(&command) {
            Ok(applied) => applied,
            Err(error) => {
                self.trace(|| format!("refused: {error}"));
                return;
            }
        };
        self.trace(|| format!("{outcome:?}"));
        let after = if after.version().is_multiple_of(64) {
            snapshot::decode(&snapshot::encode(&after)).expect("an image survives its bytes")
        } else {
            after
        };
        self.checker.metadata(&before, &after);
        self.report.commands += 1;
        self.consensus.image = Arc::new(after);
        self.consensus.history.push(self.consensus.image.clone());
        self.note(&outcome);
        if let Command::AlterPartition(alter) = &command {
            let sender = node_of(alter.sender);
            if std::mem::take(&mut self.nodes[sender].lags_after_alter) {
                let lag_us = self.random.between(1_000, 5_000) * 1000;
                self.nodes[sender].lags_until_us = self.now_us + lag_us;
            }
        }
        self.check_sets();
        let image = self.consensus.image.clone();
        if self.nodes[leader].up {
            self.control(leader, controller::Event::Image(image));
        }
        if let Some((node, life)) = from
            && self.network.is_open(leader, node)
            && !self.random.chance(20)
        {
            let delay_us = self.random.delay_us(self.network.delay_us);
            let suspects = match command {
                Command::RegisterBroker { suspects, .. } => suspects,
                _ => Vec::new(),
            };
            self.after(delay_us, Event::Answer { node, life, outcome, suspects });
        }
    }
    /// What a command has done to the run.
    fn note(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::TopicCreated { .. } => {
                self.met("topics made");
                self.consensus.topics_made += 1;
                self.clients_come();
            }
            Outcome::TopicDeleted { .. } => self.met("topics deleted"),
            Outcome::PartitionsCreated { .. } => {
                self.met("times partitions added");
                self.clients_come();
            }
            Outcome::BrokerRemoved { broker } => {
                self.met("brokers removed");
                self.consensus.removed.insert(node_of(*broker));
                let node = &mut self.nodes[node_of(*broker)];
                node.removed = node.up;
            }
            _ => {}
        }
    }
}
