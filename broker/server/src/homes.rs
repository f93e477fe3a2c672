//! Partitions that move from one shard of this broker to another, while it serves.
//!
//! ```text
//! image: another home ─▶ old shard: winds down, stops taking, closes ([`release`])
//!                     └▶ new shard: asks all others ([`take_over`]) ─▶ opens where the log stands ─▶ tells how long it took
//! ```
//!
//! The metadata decides, and every shard follows images at its own pace: an asker names the version that it follows, and
//! is answered by a shard that has closed what that version takes away from it. So a partition is open on one shard at
//! most, whatever images shards skip. Who has it open by a newer image says so, and the asker waits for that image. Who
//! waits follows a newer image than who is waited for, so that nobody waits in a circle.
//!
//! Invariants: nothing of a partition is written by a shard that has not been handed it; at every moment a checkpoint on
//! the device says where its log stood when it was handed over, of the old shard or of the new one
//! (`docs/adr/0019-moving-homes.md`). Owned by the shard. Absent on purpose: which partition should move (the client
//! library's `core_plan`), and files, which stay where they are.

use crate::admin;
use crate::mailbox::Message;
use crate::shard::Shard;
use crate::stall;
use crate::storage::{count, is_no_space, partition_directory};
use crate::store::Released;
use futures_util::future::join_all;
use logic::ids::{Offset, ReplicaGeneration, ShardId, TopicPartition};
use logic::log::LogIdentity;
use logic::metadata::Image;
use logic::metadata::reconcile::{Action, Judgement, LocalPartition, judge};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// A partition on its way from one shard to another.
#[derive(Clone, Debug)]
pub struct HandedOver {
    /// Where its log stands.
    pub released: Released,
    /// Whatever its replica holds against the log: see [`crate::replication::Replicas::doubted_from`].
    pub doubted_from: Option<Offset>,
    /// The shard that had it open.
    pub from: ShardId,
    /// Whose checkpoints say where the log stood, and the version at which each of them let it go.
    pub carriers: Vec<(ShardId, u64)>,
}

/// What a shard says that is asked for a partition.
#[derive(Debug)]
pub enum Answer {
    /// It has nothing of it.
    Nothing,
    /// Not by that image: by a newer one it serves it itself, or nobody does.
    Outdated,
    /// It has closed it.
    Given(Box<HandedOver>),
}

/// How a partition came to this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// From which one.
    pub from: ShardId,
    /// For how long it took nothing.
    pub pause: Duration,
}

/// A partition that this shard has closed because it is at home elsewhere.
struct Left {
    /// By the image of this version.
    version: u64,
    /// Which life of the replica.
    generation: ReplicaGeneration,
    /// For whoever asks first.
    handed: Option<HandedOver>,
}

impl Left {
    fn new(version: u64, handed: HandedOver) -> Self {
        let generation = ReplicaGeneration::new(handed.released.checkpoint.generation);
        Self { version, generation, handed: Some(handed) }
    }
}

/// What a shard knows of partitions that move.
#[derive(Default)]
pub struct Homes {
    /// Everything has been closed that the image of this version takes away.
    closed_until: Cell<u64>,
    /// To be opened by that image, and not yet; those that others may have.
    opening: RefCell<BTreeSet<TopicPartition>>,
    left: RefCell<BTreeMap<TopicPartition, Left>>,
    arrivals: RefCell<BTreeMap<TopicPartition, Arrival>>,
    waiting: RefCell<Vec<Waker>>,
    taken_over: Cell<u64>,
    handed_over: Cell<u64>,
    pauses_us: Cell<u64>,
    longest_pause_us: Cell<u64>,
}

impl Homes {
    /// How a partition of this shard came here; `None` = it was opened at the start, or made here.
    pub fn arrival(&self, id: &TopicPartition) -> Option<Arrival> {
        self.arrivals.borrow().get(id).copied()
    }

    /// Counters, by name.
    pub fn report(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("homes_taken_over_total", self.taken_over.get()),
            ("homes_handed_over_total", self.handed_over.get()),
            ("home_pauses_us_total", self.pauses_us.get()),
            ("longest_home_pause_us", self.longest_pause_us.get()),
        ]
    }

    /// Everything that the image of `version` takes away is closed, and `opens` comes next.
    pub fn closed(&self, version: u64, opens: &[Action]) {
        let opening = opens.iter().filter_map(|action| match action {
            Action::OpenPartition { partition, state } if may_be_elsewhere(state) => Some(*partition),
            _ => None,
        });
        *self.opening.borrow_mut() = opening.collect();
        self.closed_until.set(version);
        std::mem::take(&mut *self.waiting.borrow_mut()).into_iter().for_each(Waker::wake);
    }

    /// A partition of this shard is deleted.
    pub fn closed_for_good(&self, id: &TopicPartition) {
        self.arrivals.borrow_mut().remove(id);
    }

    /// A partition has been opened, or is not to be opened any more.
    pub fn opened(&self, id: &TopicPartition) {
        self.opening.borrow_mut().remove(id);
    }

    /// Waits until everything is closed that the image of `version` takes away.
    async fn closed_by(&self, version: u64) {
        poll_fn(|context| {
            if self.closed_until.get() >= version {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Keeps what came from another shard for whoever is to have it instead.
    fn keep(&self, shard: &Shard, id: TopicPartition, version: u64, mut handed: HandedOver) {
        shard.store.carry(id, handed.released.checkpoint.clone());
        handed.carriers.push((shard.identity.shard, version));
        self.left.borrow_mut().insert(id, Left::new(version, handed));
    }
}

/// Whether another shard may have a partition that this one is to open: its metadata has changed since its replica was
/// made. Who makes a topic of many partitions asks nobody.
pub fn may_be_elsewhere(state: &LocalPartition) -> bool {
    state.partition_epoch.get() > state.generation.get()
}

/// Closes a partition that is at home on another shard by the image of `version`, so that its next opening finds all that
/// was taken.
pub async fn release(shard: &Rc<Shard>, id: TopicPartition, version: u64) {
    let mut doubted_from = None;
    let stopped = || {
        doubted_from = shard.replicas.doubted_from(&id);
        // From here on streams say nothing to this shard's replica, which would have it appended.
        shard.replicas.forget(id);
    };
    let released = shard.store.release(&id, stopped).await;
    shard.disturb_fetches(id);
    shard.homes.arrivals.borrow_mut().remove(&id);
    let Some(released) = released else { return };
    let from = shard.identity.shard;
    let handed = HandedOver { released, doubted_from, from, carriers: vec![(from, version)] };
    shard.homes.left.borrow_mut().insert(id, Left::new(version, handed));
    count(&shard.homes.handed_over, 1);
}

/// What this shard has of a partition that another one wants to open by the image of `version`.
pub async fn answer(shard: &Rc<Shard>, identity: LogIdentity, version: u64) -> Answer {
    let id = identity.partition;
    shard.homes.closed_by(version).await;
    // At least as new as the asker's. What is deleted goes; whoever opened it would find half of it.
    let generation = ReplicaGeneration::new(identity.generation);
    let entry = shard.image().partition(id).cloned();
    let is_ours = entry.is_some_and(|entry| entry.has_replica(shard.identity.broker, generation));
    // What a stopping shard has is in its last checkpoint, which says that nothing is written after it.
    if !is_ours
        || shard.is_stopping()
        || shard.store.partition(&id).is_some()
        || shard.homes.opening.borrow().contains(&id)
    {
        return Answer::Outdated;
    }
    let mut left = shard.homes.left.borrow_mut();
    let handed = left.get_mut(&id).and_then(|left| left.handed.take());
    handed.map_or(Answer::Nothing, |handed| Answer::Given(Box::new(handed)))
}

/// Asks the others for a partition that is to be opened here by the image of `version`. `None`: not by this image, because
/// a newer one says otherwise, or the broker stops. `Some(None)`: nobody has had it open.
pub async fn take_over(
    shard: &Rc<Shard>,
    identity: &LogIdentity,
    version: u64,
) -> Option<Option<HandedOver>> {
    let id = identity.partition;
    let own = shard.homes.left.borrow_mut().get_mut(&id).and_then(|left| left.handed.take());
    let asked = admin::other_shards(shard)
        .map(|other| admin::ask(shard, other, |reply| Message::TakeOver(*identity, version, reply)));
    let mut refused = false;
    let mut found: Vec<HandedOver> = own.into_iter().collect();
    for answer in join_all(asked).await {
        match answer {
            Some(Answer::Given(handed)) => found.push(*handed),
            Some(Answer::Nothing) => {}
            Some(Answer::Outdated) | None => refused = true,
        }
    }
    // An earlier replica's is of no use.
    found.retain(|handed| handed.released.checkpoint.generation == identity.generation);
    let carriers: Vec<_> = found.iter().flat_map(|handed| handed.carriers.clone()).collect();
    let age = |handed: &HandedOver| {
        let checkpoint = &handed.released.checkpoint;
        (checkpoint.incarnation, checkpoint.durable_end, checkpoint.log_start)
    };
    let newest = found.into_iter().max_by_key(age).map(|newest| HandedOver { carriers, ..newest });
    match (refused, newest) {
        (false, newest) => {
            shard.homes.left.borrow_mut().remove(&id);
            Some(newest)
        }
        (true, Some(newest)) => {
            shard.homes.keep(shard, id, version, newest);
            None
        }
        (true, None) => None,
    }
}

/// A partition that another shard had is open here, and serves.
pub fn arrived(shard: &Rc<Shard>, id: TopicPartition, handed: &HandedOver) {
    let homes = &shard.homes;
    let now_ns = shard.store.storage.environment.monotonic_ns();
    let pause = Duration::from_nanos(now_ns.saturating_sub(handed.released.stopped_ns));
    let pause_us = pause.as_micros() as u64;
    count(&homes.taken_over, 1);
    count(&homes.pauses_us, pause_us);
    homes.longest_pause_us.set(homes.longest_pause_us.get().max(pause_us));
    homes.arrivals.borrow_mut().insert(id, Arrival { from: handed.from, pause });
    tracing::info!(
        "{} is served by shard {} instead of {}: it took nothing for {pause_us} us",
        shard.store.storage.label(id),
        shard.identity.shard,
        handed.from
    );
    let (shard, carriers) = (shard.clone(), handed.carriers.clone());
    stall::spawn("a checkpoint of what was taken over", async move {
        match shard.store.checkpoint_now().await {
            Ok(true) => {}
            // The others go on saying where the log stood.
            Ok(false) => return,
            Err(error) if is_no_space(&error) => return,
            Err(error) => shard.store.storage.fail("writing a checkpoint", None, &error),
        }
        for (carrier, version) in carriers.into_iter().filter(|(of, _)| *of != shard.identity.shard) {
            // A shard that stops needs not be told.
            let _ = shard.mailboxes.send(carrier, Message::Forget(id, version)).await;
        }
    })
    .detach();
}

/// Whoever has a partition now has a checkpoint that says so; what was let go at `version` is meant.
pub fn forget(shard: &Shard, id: TopicPartition, version: u64) {
    let mut left = shard.homes.left.borrow_mut();
    if left.get(&id).is_some_and(|left| left.version == version && left.handed.is_none()) {
        left.remove(&id);
        shard.store.forget_released(&id);
    }
}

/// What was closed here, and opened by nobody since, goes with its topic or its replica.
pub async fn tidy(shard: &Rc<Shard>, image: &Image) {
    let gone: Vec<(TopicPartition, Option<HandedOver>)> = {
        let mut left = shard.homes.left.borrow_mut();
        let here = shard.identity.here();
        let is_gone =
            |id: &TopicPartition, left: &Left| judge(*id, left.generation, image, here) == Judgement::Delete;
        let ids: Vec<_> = left.iter().filter(|(id, left)| is_gone(id, left)).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| Some((id, left.remove(&id)?.handed))).collect()
    };
    for (id, handed) in gone {
        shard.store.forget_released(&id);
        // Else whoever opened it deletes its files.
        let Some(handed) = handed else { continue };
        let storage = &shard.store.storage;
        let identity = LogIdentity { partition: id, generation: handed.released.checkpoint.generation };
        let directory = partition_directory(storage.root(), &identity);
        if let Err(error) = storage.remove_log_directory(&directory).await {
            storage.notice(format!(
                "{} is deleted but its files are not: {error}; restart the broker to have it tried again",
                storage.label(id)
            ));
        }
        storage.remove_topic_directory(id.topic).await;
    }
}
