//! Links between brokers: connections that come and go, delays, cuts of one direction or both.
//!
//! Each shard that leads has a link to each broker that follows, as the product's do: a live stream, a stream for catching
//! up, and the answers, each in its order and none in that of another. A link loses everything on its way when it breaks, as
//! TCP does. While a direction is cut, what is sent that way waits; after a while the link breaks.

use crate::random::Random;
use logic::ids::ShardId;
use std::collections::{BTreeMap, BTreeSet};

/// A broker's place in the lists of a run.
pub type NodeIndex = usize;

/// From a shard that leads to a broker that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Whose shard.
    pub from: NodeIndex,
    /// Which of its shards.
    pub shard: ShardId,
    /// To which broker.
    pub to: NodeIndex,
}

/// What of a link keeps an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// What the leader says, and batches for those who are near.
    Live,
    /// Batches for those who are far behind.
    CatchUp,
    /// What the follower says.
    Answers,
}

#[derive(Debug, Default)]
struct Connection {
    number: u64,
    /// When what was sent last arrives, for each [`Lane`].
    last_us: [u64; 3],
}

/// All links of a run.
#[derive(Debug)]
pub struct Network {
    connections: BTreeMap<Link, Connection>,
    /// Directions that are cut.
    cuts: BTreeSet<(NodeIndex, NodeIndex)>,
    connected: u64,
    /// A typical delay.
    pub delay_us: u64,
}

impl Network {
    /// One without connections.
    pub fn new(delay_us: u64) -> Self {
        Self { connections: BTreeMap::new(), cuts: BTreeSet::new(), connected: 0, delay_us }
    }

    /// Whether anything gets from one to the other.
    pub fn is_open(&self, from: NodeIndex, to: NodeIndex) -> bool {
        !self.cuts.contains(&(from, to))
    }

    /// Whether they can talk.
    pub fn is_open_both_ways(&self, one: NodeIndex, other: NodeIndex) -> bool {
        self.is_open(one, other) && self.is_open(other, one)
    }

    /// Nothing gets from one to the other any more.
    pub fn cut(&mut self, from: NodeIndex, to: NodeIndex) {
        self.cuts.insert((from, to));
    }

    /// All cuts are gone.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Links that a cut will break, and their connections.
    pub fn strained(&self) -> Vec<(Link, u64)> {
        let strained = |link: &Link| !self.is_open_both_ways(link.from, link.to);
        let all = self.connections.iter().filter(|(link, _)| strained(link));
        all.map(|(link, connection)| (*link, connection.number)).collect()
    }

    /// The number of a link's connection; 0 if it has none.
    pub fn connection(&self, link: Link) -> u64 {
        self.connections.get(&link).map_or(0, |connection| connection.number)
    }

    /// A new connection.
    pub fn connect(&mut self, link: Link) {
        self.connected += 1;
        self.connections.insert(link, Connection { number: self.connected, last_us: [0; 3] });
    }

    /// The connection is gone. False = there was none.
    pub fn disconnect(&mut self, link: Link) -> bool {
        self.connections.remove(&link).is_some()
    }

    /// Connected links of a broker, to it or from it.
    pub fn links_of(&self, node: NodeIndex) -> Vec<Link> {
        let its = |link: &&Link| link.from == node || link.to == node;
        self.connections.keys().filter(its).copied().collect()
    }

    /// Brokers that a shard is connected to.
    pub fn peers_of(&self, node: NodeIndex, shard: ShardId) -> Vec<NodeIndex> {
        let its = |link: &&Link| (link.from, link.shard) == (node, shard);
        self.connections.keys().filter(its).map(|link| link.to).collect()
    }

    /// When what is sent at `now_us` arrives: after what was sent before it.
    pub fn arrival_us(&mut self, link: Link, lane: Lane, now_us: u64, random: &mut Random) -> u64 {
        let delay_us = random.delay_us(self.delay_us);
        let Some(connection) = self.connections.get_mut(&link) else { return now_us + delay_us };
        let last_us = &mut connection.last_us[lane as usize];
        *last_us = (*last_us).max(now_us + delay_us);
        *last_us
    }
}
