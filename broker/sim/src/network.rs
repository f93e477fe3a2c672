//! Links between brokers: connections that come and go, delays, cuts of one direction or both.
//!
//! A connection keeps the order of what is sent in one direction and loses everything on its way when it breaks, as TCP
//! does. While a direction is cut, what is sent that way waits; after a while the connection breaks.

use crate::random::Random;
use std::collections::BTreeSet;

/// A broker's place in the lists of a run.
pub type NodeIndex = usize;

/// All links of a run.
#[derive(Debug)]
pub struct Network {
    nodes: usize,
    /// The number of the connection between two nodes, at both of its places; 0 = none.
    connections: Vec<u64>,
    /// When what was sent last in a direction arrives.
    last_us: Vec<u64>,
    /// Directions that are cut.
    cuts: BTreeSet<(NodeIndex, NodeIndex)>,
    next_connection: u64,
    /// A typical delay.
    pub delay_us: u64,
}

impl Network {
    /// One between `nodes` nodes, without connections.
    pub fn new(nodes: usize, delay_us: u64) -> Self {
        let all = nodes * nodes;
        Self {
            nodes,
            connections: vec![0; all],
            last_us: vec![0; all],
            cuts: BTreeSet::new(),
            next_connection: 1,
            delay_us,
        }
    }

    fn at(&self, from: NodeIndex, to: NodeIndex) -> usize {
        from * self.nodes + to
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

    /// Pairs with a connection that a cut will break.
    pub fn strained(&self) -> Vec<(NodeIndex, NodeIndex)> {
        let connected = |pair: &&(NodeIndex, NodeIndex)| self.connection(pair.0, pair.1) != 0;
        self.cuts.iter().filter(connected).copied().collect()
    }

    /// The connection between two, 0 if there is none.
    pub fn connection(&self, from: NodeIndex, to: NodeIndex) -> u64 {
        self.connections[self.at(from, to)]
    }

    /// A new connection.
    pub fn connect(&mut self, one: NodeIndex, other: NodeIndex) {
        for (from, to) in [(one, other), (other, one)] {
            let at = self.at(from, to);
            self.connections[at] = self.next_connection;
            self.last_us[at] = 0;
        }
        self.next_connection += 1;
    }

    /// The connection is gone. False = there was none.
    pub fn disconnect(&mut self, one: NodeIndex, other: NodeIndex) -> bool {
        let had = self.connection(one, other) != 0;
        for (from, to) in [(one, other), (other, one)] {
            let at = self.at(from, to);
            self.connections[at] = 0;
        }
        had
    }

    /// When what is sent at `now_us` arrives: after what was sent before it.
    pub fn arrival_us(&mut self, from: NodeIndex, to: NodeIndex, now_us: u64, random: &mut Random) -> u64 {
        let delay_us = random.delay_us(self.delay_us);
        let at = self.at(from, to);
        self.last_us[at] = self.last_us[at].max(now_us + delay_us);
        self.last_us[at]
    }
}
