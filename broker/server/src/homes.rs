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
//! Who finds no room on the disk to open what it was handed keeps it, and opens it when there is: it is served by nobody
//! meanwhile.
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

/// How often a checkpoint that found no room is tried again: it is written anew each time.
const CONFIRM_AGAIN: Duration = Duration::from_secs(1);

/// Whose checkpoints say where a log stood, and the version at which each of them let it go.
pub type Carriers = Vec<(ShardId, u64)>;

/// A partition on its way from one shard to another.
#[derive(Clone, Debug)]
pub struct HandedOver {
    /// Where its log stands.
    pub released: Released,
    /// Whatever its replica holds against the log: see [`crate::replication::Replicas::doubted_from`].
    pub doubted_from: Option<Offset>,
    /// The shard that had it open; `None`: none has in this life of the broker, because there was no room.
    pub from: Option<ShardId>,
    /// Who keeps it in checkpoints.
    pub carriers: Carriers,
}

impl HandedOver {
    /// What a start has found no room to open.
    pub fn never_opened(released: Released) -> Self {
        Self { released, doubted_from: None, from: None, carriers: Vec::new() }
    }
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

/// What a shard says of a partition that was to come to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// It serves it.
    Here(Arrival),
    /// It is to serve it, and finds no room on the disk.
    NoRoom,
    /// It has nothing of it, or has had it from the start.
    Not,
}

/// A log that this shard has closed because it is at home elsewhere.
struct Left {
    /// By the image of this version.
    version: u64,
    /// For whoever asks first.
    handed: Option<HandedOver>,
}

/// What a shard knows of partitions that move.
#[derive(Default)]
pub struct Homes {
    /// Everything has been closed that the image of this version takes away.
    closed_until: Cell<u64>,
    /// To be opened by that image, and not yet; those that others may have.
    opening: RefCell<BTreeSet<TopicPartition>>,
    left: RefCell<BTreeMap<LogIdentity, Left>>,
    arrivals: RefCell<BTreeMap<TopicPartition, Arrival>>,
    /// What has come and stands in no checkpoint of this shard yet, and whose do have it.
    unconfirmed: RefCell<Vec<(LogIdentity, Carriers)>>,
    confirming: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
    taken_over: Cell<u64>,
    handed_over: Cell<u64>,
    pauses_us: Cell<u64>,
    longest_pause_us: Cell<u64>,
}

impl Homes {
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

    /// Takes what is here of a log, to be handed over.
    fn take(&self, log: &LogIdentity) -> Option<HandedOver> {
        self.left.borrow_mut().get_mut(log).and_then(|left| left.handed.take())
    }

    /// Takes back what is kept here of a log that no other shard has had.
    pub fn take_back(&self, log: &LogIdentity) -> Option<HandedOver> {
        self.left.borrow_mut().remove(log).and_then(|left| left.handed)
    }

    /// Keeps what came from another shard, or stood in the last checkpoint at a start: for whoever is to have it instead, or until there is room to open it.
    pub fn keep(&self, shard: &Shard, log: LogIdentity, version: u64, mut handed: HandedOver) {
        let own = shard.identity.shard;
        shard.store.carry(log.partition, handed.released.checkpoint.clone());
        handed.carriers.retain(|(carrier, _)| *carrier != own);
        handed.carriers.push((own, version));
        self.left.borrow_mut().insert(log, Left { version, handed: Some(handed) });
    }
}

/// What has become of a partition that was to come to this shard.
pub fn arrival(shard: &Shard, id: &TopicPartition) -> Arrived {
    match shard.homes.arrivals.borrow().get(id) {
        Some(arrival) => Arrived::Here(*arrival),
        None if shard.waits_for_room(id) => Arrived::NoRoom,
        None => Arrived::Not,
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
    let log = LogIdentity { partition: id, generation: released.checkpoint.generation };
    let handed = HandedOver { released, doubted_from, from: Some(from), carriers: vec![(from, version)] };
    shard.homes.left.borrow_mut().insert(log, Left { version, handed: Some(handed) });
    count(&shard.homes.handed_over, 1);
}

/// What this shard has of a log that another one wants to open by the image of `version`.
pub async fn answer(shard: &Rc<Shard>, log: LogIdentity, version: u64) -> Answer {
    let id = log.partition;
    shard.homes.closed_by(version).await;
    // At least as new as the asker's. What is deleted goes; whoever opened it would find half of it.
    let (generation, image) = (ReplicaGeneration::new(log.generation), shard.image());
    let is_ours =
        image.partition(id).is_some_and(|entry| entry.has_replica(shard.identity.broker, generation));
    // What a stopping shard has is in its last checkpoint, which says that nothing is written after it.
    if !is_ours
        || shard.is_stopping()
        || shard.store.partition(&id).is_some()
        || shard.homes.opening.borrow().contains(&id)
    {
        return Answer::Outdated;
    }
    // Of an earlier replica it says nothing: that is of no use to anybody, and goes with what `tidy` finds.
    shard.homes.take(&log).map_or(Answer::Nothing, |handed| Answer::Given(Box::new(handed)))
}

/// Asks the others for a log that is to be opened here by the image of `version`. `None`: not by this image, because a
/// newer one says otherwise, or the broker stops. `Some(None)`: nobody has had it open.
pub async fn take_over(shard: &Rc<Shard>, log: &LogIdentity, version: u64) -> Option<Option<HandedOver>> {
    let own = shard.homes.take(log);
    let asked = admin::other_shards(shard)
        .map(|other| admin::ask(shard, other, |reply| Message::TakeOver(*log, version, reply)));
    let mut refused = false;
    let mut found: Vec<HandedOver> = own.into_iter().collect();
    for answer in join_all(asked).await {
        match answer {
            Some(Answer::Given(handed)) => found.push(*handed),
            Some(Answer::Nothing) => {}
            Some(Answer::Outdated) | None => refused = true,
        }
    }
    let carriers: Vec<_> = found.iter().flat_map(|handed| handed.carriers.clone()).collect();
    let age = |handed: &HandedOver| {
        let checkpoint = &handed.released.checkpoint;
        (checkpoint.incarnation, checkpoint.durable_end, checkpoint.log_start)
    };
    let newest = found.into_iter().max_by_key(age).map(|newest| HandedOver { carriers, ..newest });
    match (refused, newest) {
        (false, newest) => {
            shard.homes.left.borrow_mut().remove(log);
            Some(newest)
        }
        (true, Some(newest)) => {
            shard.homes.keep(shard, *log, version, newest);
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
    let (label, own) = (shard.store.storage.label(id), shard.identity.shard);
    match handed.from {
        Some(from) => {
            let pause_us = pause.as_micros() as u64;
            count(&homes.taken_over, 1);
            count(&homes.pauses_us, pause_us);
            homes.longest_pause_us.set(homes.longest_pause_us.get().max(pause_us));
            homes.arrivals.borrow_mut().insert(id, Arrival { from, pause });
            tracing::info!(
                "{label} is served by shard {own} instead of {from}: it took nothing for {pause_us} us"
            );
        }
        None => tracing::info!("{label} is served: it waited {} s for room", pause.as_secs()),
    }
    let log = LogIdentity { partition: id, generation: handed.released.checkpoint.generation };
    homes.unconfirmed.borrow_mut().push((log, handed.carriers.clone()));
    if !homes.confirming.replace(true) {
        let shard = shard.clone();
        stall::spawn("a checkpoint of what was taken over", async move { confirm(&shard).await }).detach();
    }
}

/// Brings what has been taken over into a checkpoint, and tells those who have gone on saying where it stood. On a full disk
/// that waits for room.
async fn confirm(shard: &Rc<Shard>) {
    let homes = &shard.homes;
    loop {
        let arrived = homes.unconfirmed.take();
        if arrived.is_empty() {
            return homes.confirming.set(false);
        }
        match shard.store.checkpoint_now().await {
            Ok(true) => {}
            // The others go on saying where the logs stood.
            Ok(false) => return,
            Err(error) if is_no_space(&error) => {
                homes.unconfirmed.borrow_mut().extend(arrived);
                shard.store.storage.environment.sleep(CONFIRM_AGAIN).await;
                continue;
            }
            Err(error) => shard.store.storage.fail("writing a checkpoint", None, &error),
        }
        for (log, carriers) in arrived {
            for (carrier, version) in carriers.into_iter().filter(|(of, _)| *of != shard.identity.shard) {
                // A shard that stops needs not be told.
                let _ = shard.mailboxes.send(carrier, Message::Forget(log, version)).await;
            }
        }
    }
}

/// Whoever has a log now has a checkpoint that says so; what was let go at `version` is meant.
pub fn forget(shard: &Shard, log: LogIdentity, version: u64) {
    let mut left = shard.homes.left.borrow_mut();
    if left.get(&log).is_some_and(|left| left.version == version && left.handed.is_none()) {
        left.remove(&log);
        shard.store.forget_released(&log);
    }
}

/// What was closed here, and opened by nobody since, goes with its topic or its replica.
pub async fn tidy(shard: &Rc<Shard>, image: &Image) {
    let gone: Vec<(LogIdentity, Option<HandedOver>)> = {
        let mut left = shard.homes.left.borrow_mut();
        let here = shard.identity.here();
        let is_gone = |log: &LogIdentity| {
            judge(log.partition, ReplicaGeneration::new(log.generation), image, here) == Judgement::Delete
        };
        let logs: Vec<_> = left.keys().filter(|log| is_gone(log)).copied().collect();
        logs.into_iter().filter_map(|log| Some((log, left.remove(&log)?.handed))).collect()
    };
    for (log, handed) in gone {
        shard.store.forget_released(&log);
        // Else whoever opened it deletes its files.
        if handed.is_none() {
            continue;
        }
        let storage = &shard.store.storage;
        if let Err(error) = storage.remove_log_directory(&partition_directory(storage.root(), &log)).await {
            storage.notice(format!(
                "{} is deleted but its files are not: {error}; restart the broker to have it tried again",
                storage.label(log.partition)
            ));
        }
        storage.remove_topic_directory(log.partition.topic).await;
    }
}

#[cfg(test)]
pub(crate) mod tests;
