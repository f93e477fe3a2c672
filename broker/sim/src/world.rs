//! One run: a cluster, its clients and its faults, as events in virtual time.
//!
//! A run is a function of its seed and its [`Plan`]. First the cluster is made, then faults and load go on
//! together (safety), then everything is repaired and the cluster must become whole (liveness, I12).
//! Brokers are in [`node`](crate::node), metadata in [`metadata`](crate::metadata), clients in
//! [`clients`](crate::clients), faults in [`faults`](crate::faults).

use crate::checker::Checker;
use crate::clients::{Client, Consumer, Produce, Reply};
use crate::faults::Counts;
use crate::homes::Step;
use crate::metadata::Consensus;
use crate::network::{Link, Network, NodeIndex};
use crate::node::Node;
use crate::random::Random;
use crate::replicas::Flush;
use crate::streams::Packet;
use logic::ids::{BrokerId, Offset, PartitionIndex, ShardId, TopicId, TopicPartition};
use logic::metadata::controller::Heartbeat;
use logic::metadata::{Command, Outcome, Suspect};
use logic::replication::Stream;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// What the topic of a run is called. Its id is another one each time that it is made.
pub const TOPIC: &str = "topic";

/// The id of the topic that was made as the `made`th, from 0. Later ones are greater.
pub fn topic_id(made: u64) -> TopicId {
    TopicId::new(7 + u128::from(made))
}

/// What a seed decides about a whole run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Brokers at the start…
    pub brokers: usize,
    /// … and others that may join later.
    pub join_later: usize,
    /// Partitions of the topic at first.
    pub partitions: u32,
    /// Replicas of each partition at least, when that is changed.
    pub replicas_min: usize,
    /// `min.insync.replicas` of the topic.
    pub min_in_sync: u32,
    /// `replica.lag.time.max.ms`.
    pub lag_ms_max: u64,
    /// How long faults go on.
    pub faults_us: u64,
    /// Microseconds between two faults, typically.
    pub fault_every_us: u64,
    /// How likely it is that a broker notes on its disk what it knows of metadata, each time that it looks.
    pub notes_permille: u64,
    /// How likely each kind of fault is, by [`Fault`](crate::faults::Fault).
    pub weights: Vec<u64>,
}

impl Plan {
    fn new(random: &mut Random) -> Self {
        // Each run leaves kinds of faults out, so that the others meet undisturbed.
        let weights = crate::faults::Fault::ALL.into_iter().map(|fault| match random.below(4) {
            0 => 0,
            // A topic that goes takes all that has been reached with it: seldom.
            _ if fault == crate::faults::Fault::DeleteTopic => 1,
            1 => 1,
            2 => 4,
            _ => 10,
        });
        Self {
            weights: weights.collect(),
            brokers: random.between(3, 5) as usize,
            join_later: random.between(0, 2) as usize,
            partitions: random.between(1, 3) as u32,
            replicas_min: if random.chance(100) { 1 } else { 2 },
            min_in_sync: if random.chance(150) { 1 } else { 0 },
            lag_ms_max: random.between(300, 3_000),
            faults_us: random.between(8, 30) * 1_000_000,
            fault_every_us: random.between(50, 1_500) * 1_000,
            notes_permille: if random.chance(300) { 10 } else { 300 },
        }
    }
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// A message arrives.
    Deliver { packet: Packet },
    /// A shard tries to connect.
    Connect { link: Link },
    /// A link that was cut breaks, unless the cut is gone.
    Break { link: Link, connection: u64 },
    /// A node looks for newer metadata.
    Poll { node: NodeIndex, life: u64 },
    /// A node says that it is alive.
    Beat { node: NodeIndex, life: u64 },
    /// The metadata's leader hears it.
    Heard { heartbeat: Heartbeat },
    /// A deadline of a node's machines may be over.
    Timer { node: NodeIndex, life: u64 },
    /// A flush round is over.
    Flush { node: NodeIndex, life: u64, flush: Flush },
    /// A log was cut or emptied, in one of its openings.
    Cut { node: NodeIndex, life: u64, id: TopicPartition, incarnation: u64, work: Cut },
    /// It is a partition's turn to send to a peer.
    Push { node: NodeIndex, life: u64, id: TopicPartition, to: BrokerId, stream: Stream },
    /// A fingerprint was read.
    Fingerprint { node: NodeIndex, life: u64, id: TopicPartition, offset: Offset },
    /// A command arrives where metadata is led.
    Propose { from: Option<(NodeIndex, u64)>, command: Command },
    /// A majority has it, if the leader is the same still.
    Commit { term: u64, from: Option<(NodeIndex, u64)>, command: Command },
    /// Its outcome gets to who asked; of a registration with whom it named.
    Answer { node: NodeIndex, life: u64, outcome: Outcome, suspects: Vec<Suspect> },
    /// Metadata may need another leader.
    Elect,
    /// A process starts.
    Start { node: NodeIndex },
    /// It has recovered its logs.
    Recovered { node: NodeIndex, life: u64 },
    /// One of its shards does what is next.
    Shard { node: NodeIndex, life: u64, shard: ShardId, step: Step },
    /// A client does something.
    Client { client: usize },
    /// Its request arrives.
    Request { node: NodeIndex, produce: Produce },
    /// Its reply arrives.
    Reply { client: usize, attempt: u64, reply: Reply },
    /// A consumer reads.
    Read { consumer: usize },
    /// Something goes wrong.
    Fault,
    /// A process dies that has got that far.
    Kill { node: NodeIndex, life: u64 },
    /// A replica that was taken away comes back.
    Back { id: TopicPartition, replicas: Vec<BrokerId>, tries: u32 },
    /// The operator looks after a broker that is to get its first replicas.
    Settle { node: NodeIndex, tries: u32 },
    /// The operator looks after a broker that is to leave the cluster.
    Retire { node: NodeIndex, tries: u32 },
    /// Everything is repaired.
    Heal,
    /// Is the cluster whole?
    Look,
}

/// What is done to a log.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// What is above goes.
    Truncate { to: Offset },
    /// Everything goes.
    Reset { log_start: Offset },
}

#[derive(Debug)]
struct Due {
    at_us: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.order) == (other.at_us, other.order)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Faults by kind.
    pub faults: Counts,
    /// Events handled.
    pub events: u64,
    /// Virtual time.
    pub simulated_us: u64,
    /// Batches acknowledged.
    pub acknowledged: u64,
    /// Leaders that there were.
    pub leaders: u64,
    /// Logs cut or begun anew.
    pub cuts: u64,
    /// Repetitions that were recognised.
    pub duplicates: u64,
    /// Metadata commands that had an effect.
    pub commands: u64,
    /// Partitions that one shard took over from another.
    pub moves: u64,
    /// Batches that consumers read at followers.
    pub followed: u64,
    /// What else happened, by name.
    pub met: BTreeMap<&'static str, u64>,
}

/// Rules of drivers that a test may delete; those of the machines are `logic::replication::rules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverRule {
    /// A repetition is answered when the original is committed, not before.
    DuplicatesWait,
    /// What a flush has not covered yet is not called durable.
    SyncBeforeDurable,
    /// A client never goes back to the leader of an earlier epoch.
    ClientsKeepEpochs,
    /// The table of producers follows the log when that is cut.
    TableFollowsLog,
    /// Who reads at a follower reads what is committed.
    FollowersShowCommitted,
    /// A shard asks the others for a partition before it opens it.
    AskBeforeOpening,
    /// A shard answers once it has closed what the asker's image takes away.
    CloseBeforeAnswer,
    /// A partition that goes is closed when all that it has taken is durable.
    RestBeforeClose,
    /// What a cut takes besides what it should is doubted after a crash, too.
    NoteWhatCutsTake,
}

/// A run.
pub struct World {
    pub(crate) now_us: u64,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    pub(crate) random: Random,
    pub(crate) plan: Plan,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    /// Messages that wait for a cut to end.
    pub(crate) held: BTreeMap<(NodeIndex, NodeIndex), VecDeque<Packet>>,
    pub(crate) consensus: Consensus,
    pub(crate) clients: Vec<Client>,
    pub(crate) consumers: Vec<Consumer>,
    pub(crate) checker: Checker,
    pub(crate) report: Report,
    pub(crate) healed_us: Option<u64>,
    pub(crate) bad_disk: Option<NodeIndex>,
    pub(crate) deleted: Option<DriverRule>,
    trace: bool,
    done: bool,
}

/// A broker's number.
pub fn broker_of(node: NodeIndex) -> BrokerId {
    BrokerId::new(node as u32 + 1)
}

/// A broker's place.
pub fn node_of(broker: BrokerId) -> NodeIndex {
    broker.get() as usize - 1
}

/// Runs `seed` to its end. `trace` prints what happens.
///
/// # Panics
/// If an invariant does not hold; the message begins with its number.
pub fn run(seed: u64, trace: bool, deleted: Option<DriverRule>) -> Report {
    let mut random = Random::new(seed);
    let plan = Plan::new(&mut random);
    let nodes = plan.brokers + plan.join_later;
    let delay_us = random.between(100, 3_000);
    let mut world = World {
        now_us: 1_000_000,
        queue: BinaryHeap::new(),
        order: 0,
        nodes: (0..nodes).map(|at| Node::new(at, &mut random)).collect(),
        network: Network::new(delay_us),
        held: BTreeMap::new(),
        consensus: Consensus::new(),
        clients: Vec::new(),
        consumers: Vec::new(),
        checker: Checker::default(),
        report: Report::default(),
        healed_us: None,
        bad_disk: None,
        deleted,
        trace,
        done: false,
        plan,
        random,
    };
    world.begin();
    while !world.done {
        let Reverse(due) = world.queue.pop().expect("a run ends by itself");
        world.now_us = due.at_us;
        world.report.events += 1;
        world.handle(due.event);
        if world.report.events.is_multiple_of(16) {
            world.check_sets();
        }
    }
    world.report.simulated_us = world.now_us;
    world.report
}

impl World {
    pub(crate) fn after(&mut self, delay_us: u64, event: Event) {
        self.at(self.now_us + delay_us, event);
    }

    pub(crate) fn at(&mut self, at_us: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due { at_us, order: self.order, event }));
    }

    pub(crate) fn trace(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10.3} ms  {}", self.now_us as f64 / 1000.0, text());
        }
    }

    /// Something happened that is counted.
    pub(crate) fn met(&mut self, what: &'static str) {
        *self.report.met.entry(what).or_default() += 1;
    }

    /// Those of the topic of now.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = TopicPartition> + use<> {
        let topic = self.consensus.image.topic_by_name(TOPIC);
        let (topic, count) =
            topic.map_or((topic_id(0), 0), |topic| (topic.id, topic.partitions.len() as u32));
        (0..count).map(move |partition| TopicPartition { topic, partition: PartitionIndex::new(partition) })
    }

    /// Two producers and a consumer for each partition that there has ever been.
    pub(crate) fn clients_come(&mut self) {
        for id in self.partitions().skip(self.consumers.len()) {
            for _ in 0..2 {
                let client = self.clients.len();
                self.clients.push(Client::new(client as i64 + 1, id.partition));
                let delay_us = self.random.between(1, 50) * 1000;
                self.after(delay_us, Event::Client { client });
            }
            let consumer = self.consumers.len();
            self.consumers.push(Consumer::new(id.partition));
            let delay_us = self.random.between(1, 50) * 1000;
            self.after(delay_us, Event::Read { consumer });
        }
    }

    fn begin(&mut self) {
        self.trace(|| format!("{:?}", self.plan));
        for node in 0..self.plan.brokers {
            self.after(node as u64 * 1000, Event::Start { node });
        }
        self.after(1, Event::Elect);
        self.after(1_500_000, Event::Fault);
        self.after(self.plan.faults_us, Event::Heal);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { packet } => self.deliver(packet),
            Event::Connect { link } => self.connect(link),
            Event::Break { link, connection } => {
                let strained = !self.network.is_open_both_ways(link.from, link.to);
                if strained && self.network.connection(link) == connection {
                    self.disconnect(link);
                }
            }
            Event::Elect => self.elect(),
            Event::Heard { heartbeat } => self.heard(heartbeat),
            Event::Propose { from, command } => self.proposed(from, command),
            Event::Commit { term, from, command } => self.commit(term, from, command),
            Event::Start { node } => self.start(node),
            Event::Client { client } => self.client(client),
            Event::Request { node, produce } => match self.paused_until(node) {
                Some(until_us) => self.at(until_us, Event::Request { node, produce }),
                None => self.produce(node, produce),
            },
            Event::Reply { client, attempt, reply } => self.replied(client, attempt, reply),
            Event::Read { consumer } => self.read(consumer),
            Event::Fault => self.fault(),
            Event::Kill { node, life } => {
                if self.nodes[node].life == life {
                    self.crash_and_start(node);
                }
            }
            Event::Back { id, replicas, tries } => self.take_back(id, replicas, tries),
            Event::Settle { node, tries } => self.settle(node, tries),
            Event::Retire { node, tries } => self.retire(node, tries),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
            Event::Poll { node, life }
            | Event::Beat { node, life }
            | Event::Timer { node, life }
            | Event::Flush { node, life, .. }
            | Event::Cut { node, life, .. }
            | Event::Push { node, life, .. }
            | Event::Fingerprint { node, life, .. }
            | Event::Answer { node, life, .. }
            | Event::Shard { node, life, .. }
            | Event::Recovered { node, life } => {
                if self.nodes[node].life != life {
                    return;
                }
                match self.paused_until(node) {
                    Some(until_us) => self.at(until_us, event),
                    None => self.node_event(node, event),
                }
            }
        }
    }

    fn node_event(&mut self, node: NodeIndex, event: Event) {
        match event {
            Event::Poll { .. } => self.poll(node),
            Event::Beat { .. } => self.beat(node),
            Event::Timer { .. } => self.timer(node),
            Event::Flush { flush, .. } => self.flushed(node, flush),
            Event::Cut { id, incarnation, work, .. } => self.cut(node, id, incarnation, work),
            Event::Push { id, to, stream, .. } => self.push(node, id, to, stream),
            Event::Fingerprint { id, offset, .. } => self.fingerprint(node, id, offset),
            Event::Answer { outcome, suspects, .. } => self.answered(node, outcome, suspects),
            Event::Shard { shard, step, .. } => self.shard_step(node, shard, step),
            Event::Recovered { .. } => self.recovered(node),
            other => unreachable!("{other:?} is not a node's"),
        }
    }

    pub(crate) fn paused_until(&self, node: NodeIndex) -> Option<u64> {
        let until_us = self.nodes[node].paused_until_us;
        (until_us > self.now_us).then_some(until_us)
    }

    /// I3: whoever metadata counts on has everything that is committed.
    pub(crate) fn check_sets(&mut self) {
        let image = self.consensus.image.clone();
        for id in self.partitions() {
            let Some(entry) = image.partition(id) else { continue };
            for &broker in entry.in_sync.iter().chain(entry.eligible.iter()) {
                let node = &self.nodes[node_of(broker)];
                let Some(known) = image.broker(broker) else { continue };
                let Some(replica) = entry.replica(broker) else { continue };
                let key = (id, replica.generation);
                let doubted = known.suspect(id, replica.generation).is_some()
                    || known.registration.storage_uuid != node.disk.uuid
                    || node.is_suspect(id);
                if doubted {
                    continue;
                }
                match node.disk.logs.get(&key) {
                    Some(log) if log.damaged.is_some() || log.torn.is_some() => {}
                    Some(log) => self.checker.member_has_everything(id, broker, log),
                    None => self.checker.member_has_everything(id, broker, &Default::default()),
                }
            }
        }
    }

    /// I12: some time after everything was repaired the cluster is whole.
    fn look(&mut self) {
        let healed_us = self.healed_us.expect("looked at after the repair");
        match self.what_is_missing() {
            None => self.done = true,
            Some(what) => {
                assert!(
                    self.now_us < healed_us + LIVENESS_US,
                    "I12: after {} s {what}",
                    LIVENESS_US / 1_000_000
                );
                self.tidy_up();
                self.after(200_000, Event::Look);
            }
        }
    }

    fn what_is_missing(&mut self) -> Option<String> {
        let image = self.consensus.image.clone();
        if image.topic_by_name(TOPIC).is_none() {
            return Some("there is no topic".to_owned());
        }
        if let Some(client) = self.clients.iter().find(|client| !client.is_idle()) {
            let entries: Vec<_> = self.partitions().filter_map(|id| image.partition(id).cloned()).collect();
            return Some(format!("a client still waits: {client:?}, of {entries:?}"));
        }
        for broker in image.brokers() {
            if broker.fenced {
                return Some(format!("broker {} is fenced", broker.registration.broker));
            }
        }
        for id in self.partitions() {
            let Some(entry) = image.partition(id) else { return Some(format!("there is no {id}")) };
            let Some(leader) = entry.leader else { return Some(format!("{id} has no leader")) };
            if entry.in_sync.len() != entry.replicas.len() || entry.is_reassigned() {
                return Some(format!("{id}: {entry:?}"));
            }
            let end = self.nodes[node_of(leader)].log_end(id);
            for broker in entry.brokers() {
                let node = &self.nodes[node_of(broker)];
                let (own, hw) = (node.log_end(id), node.high_watermark(id));
                if own != end || hw != end {
                    return Some(format!(
                        "{id} at {broker} ends at {own:?}, {hw:?} is visible, the leader has {end:?}"
                    ));
                }
            }
        }
        // Whole: then every replica has all of it, byte by byte.
        for id in self.partitions() {
            for broker in image.partition(id).into_iter().flat_map(|entry| entry.brokers()) {
                if let Some(log) = self.nodes[node_of(broker)].log(id) {
                    self.checker.is_whole(id, broker, log);
                }
            }
        }
        None
    }
}

/// After so long everything must be well.
const LIVENESS_US: u64 = 60_000_000;
