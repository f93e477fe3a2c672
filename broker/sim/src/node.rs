//! A broker: the production machines with a disk, a clock and links that the run gives it.
//!
//! What the broker's server does around the machines is done here in the same order: its shards open what its last metadata
//! says ([`homes`](crate::homes)), it registers with the suspects that they found, follows the metadata, and performs
//! effects ([`replicas`](crate::replicas), [`streams`](crate::streams)).

use crate::disk::Disk;
use crate::homes::{Leaving, Shard, Step};
use crate::network::{Link, NodeIndex};
use crate::random::Random;
use crate::replicas::Host;
use crate::world::{Event, World, broker_of};
use logic::ids::{BrokerEpoch, BrokerId, ShardId, TopicPartition};
use logic::limits::BROKER_SESSION_MS_DEFAULT;
use logic::metadata::controller::{self, Controller, Heartbeat};
use logic::metadata::reconcile::{Judgement, judge};
use logic::metadata::{BrokerRegistration, Command, Here, Image, Outcome, Suspect};
use logic::replication;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Shards that a process has at most.
pub const SHARDS_MAX: u64 = 3;

/// The time of day when a run begins, milliseconds since 1970.
const WALL_MS: i64 = 1_790_000_000_000;

/// A broker's process, and its disk.
#[derive(Debug)]
pub struct Node {
    /// Its place.
    pub at: NodeIndex,
    /// Whether its process lives.
    pub up: bool,
    /// Which process: events of another one are void.
    pub life: u64,
    /// It does nothing before.
    pub paused_until_us: u64,
    /// It learns nothing of metadata before.
    pub lags_until_us: u64,
    /// Nor for a while after the next change of a set that it asked for, as its leader.
    pub lags_after_alter: bool,
    /// It was asked to stop in order.
    pub stopping: bool,
    /// The last batch of a log that counts for nothing is another one at its next start.
    pub rots_unseen: bool,
    /// The last batches of logs that count for nothing are gone at its next start.
    pub loses_unseen: bool,
    /// It is being taken out of the cluster.
    pub retires: bool,
    /// Nobody starts its process.
    pub stays_down: bool,
    /// It was removed while its process lived: until that starts again it hears nothing of metadata.
    pub removed: bool,
    /// How far its time of day is from that of others.
    pub wall_jump_ms: i64,
    /// What stays.
    pub disk: Disk,
    /// What it knows of metadata; its shards follow.
    pub image: Arc<Image>,
    /// Its shards, by number.
    pub shards: Vec<Shard>,
    /// How many its next process has.
    pub next_shards: usize,
    /// What is open here.
    pub hosts: BTreeMap<TopicPartition, Host>,
    /// What is being closed for another shard.
    pub leaving: BTreeMap<TopicPartition, Leaving>,
    /// What is suspect, and on its way from one shard to another.
    pub moving_suspects: BTreeSet<TopicPartition>,
    /// When the last message between two shards arrives.
    pub mail_us: BTreeMap<(ShardId, ShardId), u64>,
    /// By which link a leader has opened a partition last.
    pub ways: BTreeMap<(TopicPartition, BrokerId), Link>,
    /// The registration that it lives in, as far as its image has it.
    pub registered: Option<BrokerEpoch>,
    /// The metadata's leader has answered a heartbeat last.
    pub heard_us: Option<u64>,
    /// Replicas that may lack something, to be named by the next registration.
    pub doubted: BTreeMap<TopicPartition, Suspect>,
    /// It is asked to lead metadata, or not.
    pub controller: Controller,
    /// Its shards have opened what they found.
    pub recovered: bool,
    /// A registration that its image does not have yet, and whom it named.
    answered: Option<(BrokerEpoch, Vec<Suspect>)>,
    register_after_us: u64,
    timer_us: u64,
    /// Its clock: where it began, and how many of its microseconds pass in a million.
    clock_offset_ms: u64,
    clock_rate: u64,
}

impl Node {
    /// One whose process has not started yet.
    pub fn new(at: NodeIndex, random: &mut Random) -> Self {
        Self {
            at,
            up: false,
            life: 0,
            paused_until_us: 0,
            lags_until_us: 0,
            lags_after_alter: false,
            stopping: false,
            rots_unseen: false,
            loses_unseen: false,
            retires: false,
            stays_down: false,
            removed: false,
            wall_jump_ms: 0,
            disk: Disk::new(at as u128 + 1),
            image: Arc::default(),
            shards: Vec::new(),
            next_shards: random.between(1, SHARDS_MAX) as usize,
            hosts: BTreeMap::new(),
            leaving: BTreeMap::new(),
            moving_suspects: BTreeSet::new(),
            mail_us: BTreeMap::new(),
            ways: BTreeMap::new(),
            registered: None,
            heard_us: None,
            doubted: BTreeMap::new(),
            controller: Controller::new(controller::Settings::default(), Arc::default()),
            recovered: false,
            answered: None,
            register_after_us: 0,
            timer_us: u64::MAX,
            clock_offset_ms: random.below(1_000_000),
            clock_rate: random.between(970_000, 1_030_000),
        }
    }

    /// Its clock at `now_us`.
    pub fn clock_ms(&self, now_us: u64) -> u64 {
        self.clock_offset_ms + now_us / 1000 * self.clock_rate / 1_000_000
    }

    /// Its time of day, milliseconds since 1970.
    pub fn wall_ms(&self, now_us: u64) -> i64 {
        WALL_MS + (now_us / 1000) as i64 + self.wall_jump_ms
    }

    fn time_us(&self, clock_ms: u64) -> u64 {
        let own_ms = clock_ms.saturating_sub(self.clock_offset_ms);
        own_ms.saturating_mul(1_000_000).div_ceil(self.clock_rate).saturating_add(1).saturating_mul(1000)
    }

    fn broker(&self) -> BrokerId {
        broker_of(self.at)
    }

    /// Whether the metadata's leader has lately answered it: then what its image says is not old.
    pub fn is_heard(&self, now_us: u64) -> bool {
        self.heard_us.is_some_and(|heard_us| now_us < heard_us + 2_000 * BROKER_SESSION_MS_DEFAULT)
    }
}

// ---- Processes ---------------------------------------------------------------------------------------

impl World {
    /// The process starts, unless it lives.
    pub(crate) fn start(&mut self, at: NodeIndex) {
        if self.nodes[at].up || self.nodes[at].stays_down {
            return;
        }
        self.trace(|| format!("broker {} starts", broker_of(at)));
        if std::mem::take(&mut self.nodes[at].rots_unseen) {
            self.rot_unseen(at);
        }
        if std::mem::take(&mut self.nodes[at].loses_unseen) {
            self.lose_unseen(at);
        }
        let node = &mut self.nodes[at];
        node.up = true;
        node.life += 1;
        node.stopping = false;
        node.removed = false;
        node.image = node.disk.image.clone();
        node.shards = (0..node.next_shards).map(|_| Shard::default()).collect();
        node.controller = Controller::new(controller::Settings::default(), node.image.clone());
        let life = node.life;
        let delay_us = self.random.between(20, 200) * 1000;
        self.after(delay_us, Event::Recovered { node: at, life });
    }

    /// What is left over goes, and the shards open what the last metadata says, and doubt what they find.
    pub(crate) fn recovered(&mut self, at: NodeIndex) {
        if self.read_fails(at) && self.random.chance(200) {
            // A log cannot be recovered.
            return self.crash_and_start(at);
        }
        let node = &mut self.nodes[at];
        node.recovered = true;
        let here = Here { broker: broker_of(at), shard: ShardId::new(0), shards: node.shards.len() as u16 };
        let image = node.image.clone();
        node.disk
            .logs
            .retain(|(id, generation), _| judge(*id, *generation, &image, here) != Judgement::Delete);
        self.follow_first(at);
        for shard in 0..here.shards {
            let delay_us = self.random.between(100, 3_000) * 1000;
            let checkpoint = Step::Checkpoint { again: true, taken_over: None };
            self.shard_later(at, ShardId::new(shard), delay_us, checkpoint);
        }
        let life = self.nodes[at].life;
        self.after(1, Event::Poll { node: at, life });
        self.after(1, Event::Beat { node: at, life });
    }

    /// The process is gone from one moment to the next.
    pub(crate) fn crash(&mut self, at: NodeIndex) {
        let node = &mut self.nodes[at];
        if !node.up {
            return;
        }
        for ((id, _), log) in &mut node.disk.logs {
            assert!(
                log.durable_end >= log.promised || log.damaged.is_some(),
                "I5: broker {} acknowledged {id} up to {}, and has it up to {}",
                broker_of(at),
                log.promised,
                log.durable_end
            );
            log.crash(&mut self.random);
            log.promised = 0;
            // Also a recovery that cannot tell whether what is missing was ever acknowledged.
            if log.end() > 0 && self.random.chance(20) {
                log.doubt_tail();
            }
        }
        node.up = false;
        node.life += 1;
        node.paused_until_us = 0;
        node.recovered = false;
        node.registered = None;
        node.heard_us = None;
        node.answered = None;
        node.register_after_us = 0;
        node.hosts.clear();
        node.leaving.clear();
        node.moving_suspects.clear();
        node.mail_us.clear();
        node.ways.clear();
        node.doubted.clear();
        node.shards.clear();
        node.timer_us = u64::MAX;
        self.trace(|| format!("broker {} is gone", broker_of(at)));
        // Should it come back as the leader, it would have to be elected anew.
        self.consensus.leader = self.consensus.leader.filter(|leader| *leader != at);
        for link in self.network.links_of(at) {
            self.disconnect(link);
        }
        if let Some(leader) = self
            .consensus
            .leader
            .filter(|leader| *leader != at && self.network.is_open_both_ways(*leader, at))
        {
            self.control(leader, controller::Event::ConnectionRefused(broker_of(at)));
        }
    }

    // ---- Metadata ------------------------------------------------------------------------------------

    pub(crate) fn poll(&mut self, at: NodeIndex) {
        let again_us = self.random.between(10, 60) * 1000;
        let life = self.nodes[at].life;
        self.after(again_us, Event::Poll { node: at, life });
        let newest = self.consensus.image.version();
        let node = &self.nodes[at];
        let known = node.image.version();
        let reaches = self.consensus.leader.is_some_and(|leader| self.network.is_open(leader, at));
        let reaches = reaches && !node.removed;
        if reaches && known < newest && node.lags_until_us <= self.now_us {
            let to = match self.random.below(10) {
                0..3 => known + 1,
                3..5 => self.random.between(known + 1, newest),
                _ => newest,
            };
            self.nodes[at].image = self.consensus.at(to);
            self.settle_registration(at);
            self.look_everywhere(at);
        }
        if self.random.chance(self.plan.notes_permille) {
            self.nodes[at].disk.image = self.nodes[at].image.clone();
        }
        self.register(at);
        self.connect_soon(at, 500);
        // It stops when it may.
        let node = &mut self.nodes[at];
        let known = node.image.broker(node.broker());
        let fenced = known.is_some_and(|known| Some(known.epoch) == node.registered && known.fenced);
        // What is cut has to be whole again before the last checkpoint; on a full disk there is none that says so.
        let is_at_rest = node.disk.full || !node.hosts.values().any(|host| host.is_cut);
        if node.stopping && fenced && is_at_rest {
            node.stop_in_order();
            self.trace(|| format!("broker {} stops", broker_of(at)));
            self.crash(at);
            let delay_us = self.random.between(100, 2_000) * 1000;
            self.after(delay_us, Event::Start { node: at });
        }
    }

    /// Registers, or registers anew: something is doubted that the last registration did not name, or it is not the last.
    pub(crate) fn register(&mut self, at: NodeIndex) {
        let node = &mut self.nodes[at];
        let known = node.image.broker(node.broker());
        // A copy of an earlier registration was late; what it named may not be all.
        let is_last = node.registered.is_some_and(|own| known.is_none_or(|known| known.epoch <= own));
        if (is_last && node.doubted.is_empty()) || self.now_us < node.register_after_us {
            return;
        }
        let registration = BrokerRegistration {
            broker: node.broker(),
            host: format!("node{at}"),
            port: 9644,
            shards: node.shards.len() as u16,
            storage_uuid: node.disk.uuid,
            rack: String::new(),
        };
        let suspects = node.doubted.values().copied().collect();
        let command = Command::RegisterBroker { registration, suspects, starts_fenced: true };
        node.register_after_us = self.now_us + 500_000;
        self.propose(Some(at), command);
    }

    /// A registration that named `suspects` is committed.
    pub(crate) fn answered(&mut self, at: NodeIndex, outcome: Outcome, suspects: Vec<Suspect>) {
        let Outcome::BrokerRegistered { epoch, .. } = outcome else { return };
        let node = &mut self.nodes[at];
        let is_known = |known: BrokerEpoch| known >= epoch;
        if node.registered.is_some_and(is_known)
            || node.answered.as_ref().is_some_and(|(known, _)| is_known(*known))
        {
            return;
        }
        node.answered = Some((epoch, suspects));
        self.settle_registration(at);
    }

    /// The broker lives in a registration as soon as its image has it.
    fn settle_registration(&mut self, at: NodeIndex) {
        let node = &mut self.nodes[at];
        let version = node.image.version();
        let Some((epoch, suspects)) = node.answered.take_if(|(epoch, _)| version >= epoch.get()) else {
            return;
        };
        node.registered = Some(epoch);
        // What was doubted meanwhile is named by the next one.
        node.doubted.retain(|_, doubted| !suspects.contains(doubted));
        self.trace(|| format!("broker {} lives in epoch {epoch}", broker_of(at)));
        self.look_everywhere(at);
    }

    pub(crate) fn beat(&mut self, at: NodeIndex) {
        let node = &self.nodes[at];
        let beat_us = 150_000 * 1_000_000 / node.clock_rate;
        let (life, broker) = (node.life, node.broker());
        if let (Some(epoch), Some(leader)) = (node.registered, self.consensus.leader)
            && self.network.is_open(at, leader)
        {
            let version = node.shards.iter().map(Shard::followed).min().unwrap_or(0);
            let heartbeat = Heartbeat { broker, epoch, version, stopping: node.stopping };
            let delay_us = self.random.delay_us(self.network.delay_us);
            self.after(delay_us, Event::Heard { heartbeat });
        }
        self.after(beat_us, Event::Beat { node: at, life });
    }

    /// Tells a controller, and proposes what it wants.
    pub(crate) fn control(&mut self, at: NodeIndex, event: controller::Event) {
        let node = &mut self.nodes[at];
        let now_ms = node.clock_ms(self.now_us);
        let mut effects = Vec::new();
        node.controller.step(now_ms, event, &mut effects);
        for controller::Effect::Propose(command) in effects {
            self.propose(Some(at), command);
        }
        if let Some(deadline_ms) = self.nodes[at].controller.next_deadline_ms() {
            self.arm(at, deadline_ms);
        }
    }

    // ---- Time ----------------------------------------------------------------------------------------

    pub(crate) fn arm(&mut self, at: NodeIndex, deadline_ms: u64) {
        if deadline_ms == u64::MAX {
            return;
        }
        let node = &mut self.nodes[at];
        let due_us = node.time_us(deadline_ms).max(self.now_us + 1000);
        if due_us < node.timer_us {
            node.timer_us = due_us;
            let life = node.life;
            self.at(due_us, Event::Timer { node: at, life });
        }
    }

    pub(crate) fn timer(&mut self, at: NodeIndex) {
        let node = &mut self.nodes[at];
        if node.timer_us > self.now_us {
            return;
        }
        node.timer_us = u64::MAX;
        let now_ms = node.clock_ms(self.now_us);
        let hosts: Vec<_> =
            node.hosts.iter().map(|(id, host)| (*id, host.replica.next_deadline_ms())).collect();
        for (id, deadline_ms) in hosts {
            if deadline_ms <= now_ms {
                self.step(at, id, replication::Event::Tick, Vec::new());
            } else {
                self.arm(at, deadline_ms);
            }
        }
        match self.nodes[at].controller.next_deadline_ms() {
            Some(deadline_ms) if deadline_ms <= now_ms => self.control(at, controller::Event::Tick),
            Some(deadline_ms) => self.arm(at, deadline_ms),
            None => {}
        }
    }
}
