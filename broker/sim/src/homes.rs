//! The shards of a broker: each follows images at its own pace, and partitions move from one to another while they serve.
//!
//! The order of things, what is asked, and what is answered are those of the server (`shard.rs` and `homes.rs` there); what
//! should be open where is `reconcile`'s. Messages between shards keep their order and are late. What is checked here: a
//! partition is open on one shard at most (I13), nothing is deleted that is open, and whoever opens a log without reading
//! it believes what it was handed.

use crate::disk::{Attested, Checkpoint};
use crate::network::NodeIndex;
use crate::node::Node;
use crate::world::{DriverRule, Event, World, broker_of};
use logic::ids::{BrokerEpoch, Offset, ReplicaGeneration, ShardId, TopicPartition};
use logic::metadata::reconcile::{Judgement, judge};
use logic::metadata::{Action, Here, Image, LocalPartition, LocalPartitions, reconcile};
use logic::replication::{self, message::Status};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// How long what goes may take to come to rest.
const RELEASE_PATIENCE_US: u64 = 2_000_000;

/// How often what found no room is tried again.
const FULL_DISK_RETRY_US: u64 = 200_000;

/// One shard of a broker's process.
#[derive(Debug, Default)]
pub struct Shard {
    /// The image that it follows, or has followed.
    image: Arc<Image>,
    /// The registration that its replicas live in.
    pub registration: BrokerEpoch,
    local: LocalPartitions,
    /// The image that it is on its way to.
    work: Option<Work>,
    /// Everything has been closed that the image of this version takes away.
    closed_until: u64,
    /// To be opened by that image, and not yet; those that others may have.
    opening: BTreeSet<TopicPartition>,
    /// What it has closed because it is at home elsewhere.
    left: BTreeMap<(TopicPartition, ReplicaGeneration), Left>,
    /// What its checkpoints say of logs that it has not open.
    carried: BTreeMap<TopicPartition, Attested>,
    /// Who asks by an image that it has not got to yet.
    asked: Vec<Question>,
}

impl Shard {
    /// The version of the image that it has reached.
    pub fn followed(&self) -> u64 {
        self.local.version()
    }

    /// Whether something could not be opened for want of room: until it is, the disk counts as full.
    pub fn waits_for_room(&self) -> bool {
        !self.local.unopened().is_empty()
    }
}

impl Shard {
    /// What was handed over stays here, for whoever opens it.
    fn keep(&mut self, here: ShardId, id: TopicPartition, version: u64, mut handed: HandedOver) {
        self.carried.insert(id, handed.attested.clone());
        handed.carriers.retain(|(carrier, _)| *carrier != here);
        handed.carriers.push((here, version));
        self.left.insert((id, handed.attested.generation), Left { version, handed: Some(handed) });
    }
}

#[derive(Debug)]
struct Work {
    image: Arc<Image>,
    closes: VecDeque<Action>,
    others: Vec<Action>,
    asking: BTreeMap<TopicPartition, Asking>,
}

/// An opening that waits for what the other shards say.
#[derive(Debug)]
struct Asking {
    state: LocalPartition,
    missing: usize,
    refused: bool,
    found: Vec<HandedOver>,
}

/// A partition on its way from one shard to another.
#[derive(Clone, Debug)]
pub struct HandedOver {
    attested: Attested,
    /// Everything that was taken is durable.
    at_rest: bool,
    doubted_from: Option<Offset>,
    /// Whose checkpoints say where the log stood, and the version at which each of them let it go.
    carriers: Vec<(ShardId, u64)>,
}

#[derive(Debug)]
struct Left {
    /// By the image of this version.
    version: u64,
    /// For whoever asks first.
    handed: Option<HandedOver>,
}

/// A partition that takes nothing any more and is not closed yet.
#[derive(Debug)]
pub struct Leaving {
    /// The shard that closes it.
    pub shard: ShardId,
    /// Which life of the replica.
    pub generation: ReplicaGeneration,
    /// Which opening of its log it is.
    pub incarnation: u64,
    /// How often the log was cut.
    pub cuts: u64,
    /// Flushes under way.
    pub flushes: u32,
    /// The log is being cut.
    pub is_cut: bool,
    version: u64,
    since_us: u64,
    doubted_from: Option<Offset>,
    /// It was at rest when it was asked last, or patience is over.
    rest: Option<bool>,
}

/// Who wants to know of a partition.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    from: ShardId,
    id: TopicPartition,
    generation: ReplicaGeneration,
    version: u64,
}

/// What is said to it.
#[derive(Clone, Debug)]
pub enum Answer {
    Nothing,
    Outdated,
    Given(Box<HandedOver>),
}

/// What a shard does next.
#[derive(Clone, Debug)]
pub enum Step {
    /// Looks for a newer image.
    Look,
    /// Its background work on what goes may have ended.
    WoundDown { id: TopicPartition, since_us: u64 },
    /// What goes may have come to rest.
    Rested { id: TopicPartition },
    /// Another one asks.
    Asked(Question),
    /// Another one has answered.
    Answered { id: TopicPartition, version: u64, answer: Answer },
    /// Opens a partition, after a look at its files.
    Open { id: TopicPartition, version: u64, handed: Option<Box<HandedOver>> },
    /// Writes a checkpoint, and tells whose need not name these any more.
    Checkpoint { again: bool, taken_over: Option<(TopicPartition, HandedOver)> },
    /// Another one's checkpoint says where a log stands.
    Forget { id: TopicPartition, generation: ReplicaGeneration, version: u64 },
}

/// Whether another shard may have a partition that this one is to open.
fn may_be_elsewhere(state: &LocalPartition) -> bool {
    state.partition_epoch.get() > state.generation.get()
}

impl Node {
    /// Which of its shards serves a partition, as it knows.
    pub fn home(&self, id: TopicPartition) -> ShardId {
        self.image.home_here(self.here(ShardId::new(0)), id)
    }

    /// The same as one of its shards knows.
    pub fn home_as_known_by(&self, shard: ShardId, id: TopicPartition) -> ShardId {
        let image = &self.shards[usize::from(shard.get())].image;
        image.home_here(self.here(shard), id)
    }

    fn here(&self, shard: ShardId) -> Here {
        Here { broker: broker_of(self.at), shard, shards: self.shards.len() as u16 }
    }

    /// Whether one of its shards has no room for more.
    pub fn is_full(&self, shard: ShardId) -> bool {
        self.disk.full || self.shards[usize::from(shard.get())].waits_for_room()
    }

    fn shard(&mut self, shard: ShardId) -> &mut Shard {
        &mut self.shards[usize::from(shard.get())]
    }

    fn numbers(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards.len() as u16).map(ShardId::new)
    }

    /// What a checkpoint of `shard` says now.
    fn attests(&self, shard: ShardId) -> BTreeMap<TopicPartition, Attested> {
        let own = &self.shards[usize::from(shard.get())];
        let open = self.hosts.iter().map(|(id, host)| (*id, host.shard, host.generation));
        let leaving = self.leaving.iter().map(|(id, leaving)| (*id, leaving.shard, leaving.generation));
        let mut logs = own.carried.clone();
        for (id, _, generation) in open.chain(leaving).filter(|(_, of, _)| *of == shard) {
            logs.insert(id, self.disk.logs[&(id, generation)].attest(generation));
        }
        logs
    }

    /// The last checkpoints of a process that stops in order.
    pub fn stop_in_order(&mut self) {
        for log in self.disk.logs.values_mut() {
            let end = log.end();
            log.synced(end);
        }
        let last = |shard| {
            let carries = !self.shards[usize::from(ShardId::get(shard))].carried.is_empty();
            let is_cut = self.hosts.values().any(|host| host.shard == shard && host.is_cut);
            let clean = !carries && self.leaving.is_empty() && !is_cut;
            Checkpoint { clean, logs: self.attests(shard) }
        };
        self.disk.checkpoints = self.numbers().map(last).collect();
    }
}

// ---- Images ------------------------------------------------------------------------------------------

impl World {
    /// All shards of a process that has started follow one image. Nothing is open yet, so nobody is asked; what a clean
    /// checkpoint says of a log is believed, if all that they say is of logs that are at home there.
    pub(crate) fn follow_first(&mut self, at: NodeIndex) {
        let node = &self.nodes[at];
        let image = node.image.clone();
        let checkpoints = node.disk.checkpoints.clone();
        let is_home = |(shard, checkpoint): (usize, &Checkpoint)| {
            checkpoint.logs.keys().all(|id| usize::from(node.home(*id).get()) == shard)
        };
        let as_before = checkpoints.len() == node.shards.len() && checkpoints.iter().enumerate().all(is_home);
        for shard in node.numbers() {
            let own = checkpoints.get(usize::from(shard.get())).filter(|own| as_before && own.clean);
            self.begin_image(at, shard, image.clone());
            self.open_all(at, shard, own);
            self.write_checkpoint(at, shard);
        }
    }

    pub(crate) fn look_everywhere(&mut self, at: NodeIndex) {
        for shard in self.nodes[at].numbers() {
            let late = if self.random.chance(50) { 100 } else { 1 };
            let delay_us = self.random.between(5, 1_500) * late;
            self.shard_later(at, shard, delay_us, Step::Look);
        }
    }

    pub(crate) fn shard_later(&mut self, at: NodeIndex, shard: ShardId, delay_us: u64, step: Step) {
        let life = self.nodes[at].life;
        self.after(delay_us, Event::Shard { node: at, life, shard, step });
    }

    /// From one shard to another.
    fn mail(&mut self, at: NodeIndex, from: ShardId, to: ShardId, step: Step) {
        let now_us = self.now_us;
        let delay_us = self.random.delay_us(20);
        let arrives_us = self.nodes[at].mail_us.entry((from, to)).or_default();
        *arrives_us = (*arrives_us).max(now_us + delay_us);
        let delay_us = *arrives_us - now_us;
        self.shard_later(at, to, delay_us, step);
    }

    pub(crate) fn shard_step(&mut self, at: NodeIndex, shard: ShardId, step: Step) {
        match step {
            Step::Look => {
                let node = &mut self.nodes[at];
                let (image, registration) = (node.image.clone(), node.registered.unwrap_or_default());
                let own = node.shard(shard);
                let is_news = own.followed() < image.version()
                    || own.registration < registration
                    || own.waits_for_room();
                if own.work.is_none() && is_news {
                    self.begin_image(at, shard, image);
                    self.close_next(at, shard);
                }
            }
            Step::WoundDown { id, since_us } => self.wound_down(at, shard, id, since_us),
            Step::Rested { id } => self.rested(at, shard, id),
            Step::Asked(question) => {
                let own = self.nodes[at].shard(shard);
                if own.closed_until < question.version && self.deleted != Some(DriverRule::CloseBeforeAnswer)
                {
                    return own.asked.push(question);
                }
                self.answer(at, shard, question);
            }
            Step::Answered { id, version, answer } => self.answered_home(at, shard, id, version, answer),
            Step::Open { id, version, handed } => {
                let own = self.nodes[at].shard(shard);
                let Some(work) = own.work.as_mut().filter(|work| work.image.version() == version) else {
                    return;
                };
                let Some(asking) = work.asking.remove(&id) else { return };
                if self.nodes[at].disk.full && self.random.chance(700) {
                    return self.has_no_room(at, shard, id, version, handed);
                }
                self.open(at, shard, id, &asking.state, handed.map(|handed| *handed), None);
                self.opened_or_not(at, shard, id, Some(asking.state));
            }
            Step::Checkpoint { again, taken_over } => {
                self.write_checkpoint(at, shard);
                if let Some((id, handed)) = taken_over {
                    let generation = handed.attested.generation;
                    for (carrier, version) in handed.carriers.into_iter().filter(|(of, _)| *of != shard) {
                        self.mail(at, shard, carrier, Step::Forget { id, generation, version });
                    }
                }
                if again {
                    let again_us = self.random.between(100, 3_000) * 1000;
                    self.shard_later(at, shard, again_us, Step::Checkpoint { again, taken_over: None });
                }
            }
            Step::Forget { id, generation, version } => {
                let own = self.nodes[at].shard(shard);
                let meant = |left: &Left| left.version == version && left.handed.is_none();
                if own.left.get(&(id, generation)).is_some_and(meant) {
                    own.left.remove(&(id, generation));
                    own.carried.remove(&id);
                }
            }
        }
    }

    fn write_checkpoint(&mut self, at: NodeIndex, shard: ShardId) {
        let node = &mut self.nodes[at];
        let logs = node.attests(shard);
        let shards = node.shards.len();
        node.disk.checkpoints.resize(shards, Checkpoint::default());
        node.disk.checkpoints[usize::from(shard.get())] = Checkpoint { clean: false, logs };
    }

    /// Begins to follow an image.
    fn begin_image(&mut self, at: NodeIndex, shard: ShardId, image: Arc<Image>) {
        let registration = self.nodes[at].registered.unwrap_or_default();
        self.nodes[at].shard(shard).image = image.clone();
        self.registered_on(at, shard, registration, &image);
        let here = self.nodes[at].here(shard);
        let own = self.nodes[at].shard(shard);
        let actions = reconcile(&own.local, &image, here);
        let closes = |action: &Action| matches!(action, Action::ClosePartition { .. });
        let (closes, others): (Vec<_>, Vec<_>) = actions.into_iter().partition(closes);
        own.work = Some(Work { image, closes: closes.into(), others, asking: BTreeMap::new() });
    }

    fn registered_on(&mut self, at: NodeIndex, shard: ShardId, epoch: BrokerEpoch, image: &Image) {
        let own = self.nodes[at].shard(shard);
        if epoch <= own.registration {
            return;
        }
        own.registration = epoch;
        let known = image.broker(broker_of(at));
        let hosts = self.nodes[at].hosts.iter().filter(|(_, host)| host.shard == shard);
        // A doubt that no registration has named is not known with this one.
        let is_known = |id: TopicPartition, generation| {
            known.is_some_and(|known| known.suspect(id, generation).is_some())
        };
        let hosts: Vec<TopicPartition> = hosts
            .filter(|(id, host)| is_known(**id, host.generation) || host.replica.is_named())
            .map(|(id, _)| *id)
            .collect();
        for id in hosts {
            self.step(at, id, replication::Event::Registered(epoch), Vec::new());
        }
    }

    /// What the first image says, at once: others open nothing of it.
    fn open_all(&mut self, at: NodeIndex, shard: ShardId, clean: Option<&Checkpoint>) {
        let own = self.nodes[at].shard(shard);
        let Some(work) = &mut own.work else { return };
        own.closed_until = work.image.version();
        for action in std::mem::take(&mut work.others) {
            if let Action::OpenPartition { partition, state } = &action {
                let attested = clean.and_then(|clean| clean.logs.get(partition)).cloned();
                self.open(at, shard, *partition, state, None, attested);
            }
            self.nodes[at].shard(shard).local.record(&action);
        }
        self.finish_if_done(at, shard);
    }

    // ---- Closing -------------------------------------------------------------------------------------

    fn close_next(&mut self, at: NodeIndex, shard: ShardId) {
        loop {
            let Some(work) = &mut self.nodes[at].shard(shard).work else { return };
            let Some(action) = work.closes.pop_front() else { break };
            let Action::ClosePartition { partition: id, delete, .. } = action else { continue };
            let is_here = self.nodes[at].hosts.get(&id).is_some_and(|host| host.shard == shard);
            if is_here && !delete {
                let long = if self.random.chance(100) { 100 } else { 1 };
                let delay_us = self.random.between(1, 1_500) * long;
                let since_us = self.now_us;
                return self.shard_later(at, shard, delay_us, Step::WoundDown { id, since_us });
            }
            if is_here {
                let host = self.forget_host(at, id);
                self.nodes[at].disk.logs.remove(&(id, host.generation));
            }
            self.nodes[at].shard(shard).local.record(&action);
        }
        self.closed(at, shard);
    }

    /// The background work has ended: from here on nothing is taken.
    fn wound_down(&mut self, at: NodeIndex, shard: ShardId, id: TopicPartition, since_us: u64) {
        // Unless another replica has been opened in place of this one.
        let Some(host) = self.nodes[at].hosts.get(&id).filter(|host| host.shard == shard) else {
            return self.close_next(at, shard);
        };
        if host.is_cut && self.now_us < since_us + RELEASE_PATIENCE_US {
            return self.shard_later(at, shard, 1_000, Step::WoundDown { id, since_us });
        }
        let version = self.nodes[at].shard(shard).image.version();
        let host = self.forget_host(at, id);
        let leaving = Leaving {
            shard,
            generation: host.generation,
            incarnation: host.incarnation,
            cuts: host.cuts,
            flushes: host.flushes,
            is_cut: host.is_cut,
            version,
            since_us: self.now_us,
            doubted_from: host.replica.doubted_from(),
            rest: None,
        };
        let node = &mut self.nodes[at];
        if host.replica.status() == Status::Suspect {
            node.moving_suspects.insert(id);
        }
        node.leaving.insert(id, leaving);
        self.trace(|| format!("{id} leaves shard {shard} of {}", broker_of(at)));
        self.rested(at, shard, id);
    }

    fn rested(&mut self, at: NodeIndex, shard: ShardId, id: TopicPartition) {
        let skips = self.deleted == Some(DriverRule::RestBeforeClose);
        let node = &mut self.nodes[at];
        let Some(leaving) = node.leaving.get_mut(&id).filter(|leaving| leaving.shard == shard) else {
            return self.close_next(at, shard);
        };
        let log = &node.disk.logs[&(id, leaving.generation)];
        let is_used = leaving.flushes > 0 || leaving.is_cut;
        if leaving.rest.is_none() {
            let at_rest = log.durable_end == log.end() && !is_used;
            let patient = self.now_us < leaving.since_us + RELEASE_PATIENCE_US;
            leaving.rest = (at_rest || !patient || skips).then_some(at_rest || skips);
        }
        // Also without patience: until nobody of this shard writes to its files.
        let Some(at_rest) = leaving.rest.filter(|_| !is_used || skips) else {
            let delay_us = self.random.between(200, 2_000);
            return self.shard_later(at, shard, delay_us, Step::Rested { id });
        };
        let Leaving { generation, version, doubted_from, .. } = node.leaving.remove(&id).expect("it leaves");
        let attested = node.disk.logs[&(id, generation)].attest(generation);
        let handed = HandedOver {
            attested: attested.clone(),
            at_rest,
            doubted_from,
            carriers: vec![(shard, version)],
        };
        let own = node.shard(shard);
        own.carried.insert(id, attested);
        own.left.insert((id, generation), Left { version, handed: Some(handed) });
        let close = Action::ClosePartition { partition: id, generation, delete: false };
        own.local.record(&close);
        self.close_next(at, shard);
    }

    // ---- Opening -------------------------------------------------------------------------------------

    /// All is closed that the image takes away: who asks is answered, and what it gives is asked for.
    fn closed(&mut self, at: NodeIndex, shard: ShardId) {
        let own = self.nodes[at].shard(shard);
        let Some(work) = &mut own.work else { return };
        let version = work.image.version();
        let others = std::mem::take(&mut work.others);
        let opening = others.iter().filter_map(|action| match action {
            Action::OpenPartition { partition, state } if may_be_elsewhere(state) => Some(*partition),
            _ => None,
        });
        own.opening = opening.collect();
        own.closed_until = version;
        for action in &others {
            if let Action::OpenPartition { partition, state } = action {
                let asking = Asking { state: state.clone(), missing: 0, refused: false, found: vec![] };
                own.work.as_mut().expect("it is there").asking.insert(*partition, asking);
            }
        }
        let asked = std::mem::take(&mut own.asked).into_iter();
        let (answered, asked): (Vec<_>, Vec<_>) = asked.partition(|asked| asked.version <= version);
        own.asked = asked;
        for question in answered {
            self.answer(at, shard, question);
        }
        for action in &others {
            match action {
                Action::OpenPartition { partition, state } => {
                    self.take_over(at, shard, *partition, state, version)
                }
                Action::Reconfigure { partition, state } => {
                    if self.nodes[at].hosts.get(partition).is_some_and(|host| host.shard == shard) {
                        let view = Arc::new(state.view());
                        self.step(at, *partition, replication::Event::MetadataChanged(view), Vec::new());
                    }
                    self.nodes[at].shard(shard).local.record(action);
                }
                Action::ClosePartition { .. } => {}
            }
        }
        self.finish_if_done(at, shard);
    }

    fn answer(&mut self, at: NodeIndex, shard: ShardId, question: Question) {
        let Question { from, id, generation, version } = question;
        let broker = broker_of(at);
        let node = &mut self.nodes[at];
        let is_open = node.hosts.get(&id).is_some_and(|host| host.shard == shard)
            || node.leaving.get(&id).is_some_and(|leaving| leaving.shard == shard);
        let own = node.shard(shard);
        let is_ours = own.image.partition(id).is_some_and(|entry| entry.has_replica(broker, generation));
        let answer = if !is_ours || is_open || own.opening.contains(&id) {
            Answer::Outdated
        } else {
            let handed = own.left.get_mut(&(id, generation)).and_then(|left| left.handed.take());
            handed.map_or(Answer::Nothing, |handed| Answer::Given(Box::new(handed)))
        };
        self.mail(at, shard, from, Step::Answered { id, version, answer });
    }

    fn take_over(
        &mut self,
        at: NodeIndex,
        shard: ShardId,
        id: TopicPartition,
        state: &LocalPartition,
        version: u64,
    ) {
        let others: Vec<ShardId> = self.nodes[at].numbers().filter(|other| *other != shard).collect();
        if !may_be_elsewhere(state) || self.deleted == Some(DriverRule::AskBeforeOpening) {
            let delay_us = self.disk_us(at);
            return self.shard_later(at, shard, delay_us, Step::Open { id, version, handed: None });
        }
        let own = self.nodes[at].shard(shard);
        let found = own.left.get_mut(&(id, state.generation)).and_then(|left| left.handed.take());
        let Some(asking) = own.work.as_mut().and_then(|work| work.asking.get_mut(&id)) else { return };
        (asking.missing, asking.found) = (others.len(), found.into_iter().collect());
        if others.is_empty() {
            return self.decide(at, shard, id, version);
        }
        let question = Question { from: shard, id, generation: state.generation, version };
        for other in others {
            self.mail(at, shard, other, Step::Asked(question));
        }
    }

    fn answered_home(
        &mut self,
        at: NodeIndex,
        shard: ShardId,
        id: TopicPartition,
        version: u64,
        answer: Answer,
    ) {
        let own = self.nodes[at].shard(shard);
        let work = own.work.as_mut().filter(|work| work.image.version() == version);
        let asking =
            work.and_then(|work| work.asking.get_mut(&id)).expect("it waits until all have answered");
        match answer {
            Answer::Given(handed) => asking.found.push(*handed),
            Answer::Nothing => {}
            Answer::Outdated => asking.refused = true,
        }
        asking.missing -= 1;
        if asking.missing == 0 {
            self.decide(at, shard, id, version);
        }
    }

    /// All have answered: it is opened from the newest that was handed over, or not by this image.
    fn decide(&mut self, at: NodeIndex, shard: ShardId, id: TopicPartition, version: u64) {
        let own = self.nodes[at].shard(shard);
        let Some(asking) = own.work.as_mut().and_then(|work| work.asking.get_mut(&id)) else { return };
        let generation = asking.state.generation;
        let found = std::mem::take(&mut asking.found);
        let carriers: Vec<_> = found.iter().flat_map(|handed| handed.carriers.clone()).collect();
        let newest = found.into_iter().max_by_key(|handed| handed.attested.age());
        let newest = newest.map(|newest| HandedOver { carriers, ..newest });
        if !asking.refused {
            own.left.remove(&(id, generation));
            let delay_us = self.disk_us(at);
            let handed = newest.map(Box::new);
            return self.shard_later(at, shard, delay_us, Step::Open { id, version, handed });
        }
        if let Some(newest) = newest {
            own.keep(shard, id, version, newest);
        }
        if let Some(work) = &mut own.work {
            work.asking.remove(&id);
        }
        self.opened_or_not(at, shard, id, None);
    }

    /// It cannot be opened on a full disk: it is tried again, and is still to be opened by this image.
    fn has_no_room(
        &mut self,
        at: NodeIndex,
        shard: ShardId,
        id: TopicPartition,
        version: u64,
        handed: Option<Box<HandedOver>>,
    ) {
        self.met("openings that found no room");
        let own = self.nodes[at].shard(shard);
        handed.into_iter().for_each(|handed| own.keep(shard, id, version, *handed));
        own.local.failed(id);
        self.finish_if_done(at, shard);
    }

    fn opened_or_not(
        &mut self,
        at: NodeIndex,
        shard: ShardId,
        id: TopicPartition,
        opened: Option<LocalPartition>,
    ) {
        let own = self.nodes[at].shard(shard);
        own.opening.remove(&id);
        if let Some(state) = opened {
            own.local.record(&Action::OpenPartition { partition: id, state });
        }
        self.finish_if_done(at, shard);
    }

    fn finish_if_done(&mut self, at: NodeIndex, shard: ShardId) {
        let own = self.nodes[at].shard(shard);
        let is_done =
            |work: &Work| work.closes.is_empty() && work.others.is_empty() && work.asking.is_empty();
        if !own.work.as_ref().is_some_and(is_done) {
            return;
        }
        let image = own.work.take().expect("it is there").image;
        self.tidy(at, shard, &image);
        let own = self.nodes[at].shard(shard);
        own.local.finish(&image);
        let waits = own.waits_for_room();
        if self.nodes[at].image.version() > image.version() {
            self.shard_later(at, shard, 1, Step::Look);
        } else if waits {
            self.shard_later(at, shard, FULL_DISK_RETRY_US, Step::Look);
        }
    }

    /// What was closed here, and opened by nobody since, goes with its topic or its replica.
    fn tidy(&mut self, at: NodeIndex, shard: ShardId, image: &Image) {
        let here = self.nodes[at].here(shard);
        let own = self.nodes[at].shard(shard);
        let is_gone = |(id, generation): &&(TopicPartition, ReplicaGeneration)| {
            judge(*id, *generation, image, here) == Judgement::Delete
        };
        let gone: Vec<_> = own.left.keys().filter(is_gone).copied().collect();
        for (id, generation) in gone {
            let own = self.nodes[at].shard(shard);
            if own.carried.get(&id).is_some_and(|carried| carried.generation == generation) {
                own.carried.remove(&id);
            }
            let Some(Left { handed: Some(_), .. }) = own.left.remove(&(id, generation)) else { continue };
            let node = &mut self.nodes[at];
            let is_open = node.hosts.get(&id).is_some_and(|host| host.generation == generation);
            assert!(!is_open, "I13: shard {shard} of broker {} deletes {id}, which is open", here.broker);
            node.disk.logs.remove(&(id, generation));
            node.moving_suspects.remove(&id);
        }
    }

    /// An earlier replica of the partition, which another shard will close when it gets that far, has files of its own:
    /// it is gone here at once.
    fn give_way(&mut self, at: NodeIndex, id: TopicPartition, generation: ReplicaGeneration) {
        let node = &mut self.nodes[at];
        if let Some(earlier) = node.leaving.get(&id).map(|leaving| leaving.generation)
            && earlier < generation
        {
            node.leaving.remove(&id);
            node.disk.logs.remove(&(id, earlier));
        }
        if let Some(earlier) = node.hosts.get(&id).map(|host| host.generation)
            && earlier < generation
        {
            self.forget_host(at, id);
            self.nodes[at].disk.logs.remove(&(id, earlier));
        }
    }

    /// Opens a log: as an orderly stop has left it, where one says so, or after a look at all of it.
    fn open(
        &mut self,
        at: NodeIndex,
        shard: ShardId,
        id: TopicPartition,
        state: &LocalPartition,
        handed: Option<HandedOver>,
        attested: Option<Attested>,
    ) {
        let broker = broker_of(at);
        let generation = state.generation;
        self.give_way(at, id, generation);
        let node = &mut self.nodes[at];
        if let Some(other) = node.hosts.get(&id) {
            panic!("I13: shards {} and {shard} of broker {broker} have {id} open", other.shard);
        }
        if let Some(other) = node.leaving.get(&id) {
            panic!("I13: shard {shard} of broker {broker} opens {id}, which shard {} closes", other.shard);
        }
        node.shard(shard).carried.remove(&id);
        node.moving_suspects.remove(&id);
        let log = node.disk.logs.entry((id, generation)).or_default();
        let at_rest = handed.as_ref().filter(|handed| handed.at_rest).map(|handed| handed.attested.clone());
        let attested = at_rest.or(attested).filter(|attested| attested.generation == generation);
        let (mut doubted, mut lost_from) = (log.torn, None);
        match attested {
            Some(attested) => log.believe(&attested),
            None => {
                if handed.is_some() {
                    // What waited for room was given up.
                    log.crash(&mut self.random);
                }
                doubted = doubted.into_iter().chain(log.damaged).min();
                lost_from = log.damaged.filter(|_| log.is_lost_to_the_end());
                log.torn = log.torn.into_iter().chain(lost_from).min();
            }
        }
        log.incarnation += 1;
        self.host(at, shard, id, state, doubted.map(Offset::new), lost_from.map(Offset::new));
        let Some(handed) = handed else { return };
        if let Some(from) = handed.doubted_from {
            self.step(at, id, replication::Event::Damaged { from }, Vec::new());
        }
        self.trace(|| format!("{id} is served by shard {shard} of {broker}"));
        self.report.moves += 1;
        let delay_us = self.disk_us(at);
        let taken_over = Some((id, handed));
        self.shard_later(at, shard, delay_us, Step::Checkpoint { again: false, taken_over });
    }
}
