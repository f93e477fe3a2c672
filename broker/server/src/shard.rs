//! Everything one core owns: partitions, files, connections, caches, counters.
//!
//! One shard is one executor, pinned with its core if asked. Nothing of it is shared; other shards reach
//! it through its mailbox, metadata reaches it as immutable images. It follows the image: partitions are
//! opened, reconfigured and closed by `reconcile`, never by a request.

use crate::connection::Connection;
use crate::fetch::ParkedFetch;
use crate::group::{self, GroupSettings, Groups};
use crate::histogram::{Histogram, HistogramReport};
use crate::homes::{self, HandedOver, Homes};
use crate::mailbox::{DescribedCompaction, DescribedLog, DescribedReplica, Mailboxes, ShardReport};
use crate::metadata::MetadataHandle;
use crate::observe::Timed;
use crate::partition::{self, PartitionSettings};
use crate::peer::{self, PeerAddress, Peers};
use crate::producer_ids::ProducerIds;
use crate::replication::Replicas;
use crate::reply_budget::ReplyBudget;
use crate::socket::Sockets;
use crate::stall;
use crate::storage::is_no_space;
use crate::storage::ring::RingDisk;
use crate::storage::room::{FULL_DISK_RETRY, NoRoom, Patience};
use crate::store::Store;
use crate::timer::Timer;
use async_channel::Receiver;
use flatbuffers::FlatBufferBuilder;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use logic::fetch_waiters::FetchWaiters;
use logic::ids::{BrokerEpoch, BrokerId, ShardId, TopicPartition};
use logic::limits::{
    CATCH_UP_PATIENCE_MS, CONNECTIONS_PER_SHARD_MAX, FRAME_BYTES_MAX_BEFORE_HELLO, FRAME_TIMEOUT_MS,
    HELLO_TIMEOUT_MS, IN_FLIGHT_BYTES_PER_SHARD_MAX, PARTITIONS_OPENING_MAX, PEER_PROBE_AFTER_MS,
    RECEIVE_SCRATCH_BYTES, REPLY_BYTES_PER_SHARD_MAX, WRITE_TIMEOUT_MS,
};
use logic::log::compaction::{self, CompactionSettings};
use logic::log::retention::RetentionSettings;
use logic::log::{LogIdentity, LogSettings};
use logic::metadata::reconcile::{Action, Here, LocalPartition, LocalPartitions, reconcile};
use logic::metadata::topic_config::{CleanupPolicy, TimestampType};
use logic::metadata::{self, Image, TopicConfig};
use logic::replication::{self, PeerProgress};
use schema::error_code::ErrorCode;
use schema::frame::Aligned;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::num::NonZeroU64;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Between two looks whether the broker has caught up.
const CATCH_UP_LOOK: Duration = Duration::from_millis(5);

/// A partition of the running broker.
pub type Partition = partition::Partition<RingDisk>;

/// What a shard has done, read by `Status`.
#[derive(Debug, Default)]
pub struct ShardCounters {
    /// Connections taken over.
    pub connections: Cell<u64>,
    /// Requests handled.
    pub requests: Cell<u64>,
    /// Batches appended.
    pub batches: Cell<u64>,
    /// Records appended.
    pub records: Cell<u64>,
    /// Bytes of batches appended.
    pub produced_bytes: Cell<u64>,
    /// Bytes of batches sent to consumers.
    pub fetched_bytes: Cell<u64>,
    /// Fetches, by partition, that this broker answered as a follower.
    pub follower_fetches: Cell<u64>,
    /// Of those bytes sent to consumers, bytes of partitions that this broker follows.
    pub follower_fetched_bytes: Cell<u64>,
    /// Fetches served from memory.
    pub fetches_from_memory: Cell<u64>,
    /// Fetches that read the device.
    pub fetches_from_device: Cell<u64>,
    /// Requests, or parts of them, that were sent on to another core.
    pub forwarded: Cell<u64>,
    /// Requests refused because a queue or budget was full.
    pub overloaded: Cell<u64>,
    /// Batches received straight into the buffer that went to the device.
    pub in_place_batches: Cell<u64>,
    /// Frames that were not this protocol.
    pub invalid_frames: Cell<u64>,
    /// Batches refused.
    pub invalid_batches: Cell<u64>,
    /// Batches that were in the log already.
    pub duplicate_batches: Cell<u64>,
    /// Batches refused for their producer's sequence or epoch.
    pub out_of_sequence_batches: Cell<u64>,
    /// Connections closed because they were too slow.
    pub timed_out_connections: Cell<u64>,
    /// Requests that were not done because their deadline had passed.
    pub late_requests: Cell<u64>,
}

/// What a shard takes from its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Connections, at most as many as `limits.rs` says.
    pub connections_max: usize,
    /// Reply bytes, queued and under way; at most as many as `limits.rs` says.
    pub reply_bytes_max: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { connections_max: CONNECTIONS_PER_SHARD_MAX, reply_bytes_max: REPLY_BYTES_PER_SHARD_MAX }
    }
}

/// How long peers may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeOuts {
    /// From the connection to the last byte of its Hello.
    pub hello: Duration,
    /// From a frame's first byte to its last.
    pub frame: Duration,
    /// For the next bytes of its replies.
    pub replies: Duration,
    /// Silent for so long, it is asked whether it is still there.
    pub probe_after: Duration,
}

impl Default for TimeOuts {
    fn default() -> Self {
        Self {
            hello: Duration::from_millis(HELLO_TIMEOUT_MS),
            frame: Duration::from_millis(FRAME_TIMEOUT_MS),
            replies: Duration::from_millis(WRITE_TIMEOUT_MS),
            probe_after: Duration::from_millis(PEER_PROBE_AFTER_MS),
        }
    }
}

/// Who this shard is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The broker.
    pub broker: BrokerId,
    /// The shard.
    pub shard: ShardId,
    /// How many there are.
    pub shards: u16,
    /// How long its peers may take.
    pub time_outs: TimeOuts,
    /// How many and how much.
    pub capacity: Capacity,
    /// Coordinators of consumer groups.
    pub groups: GroupSettings,
    /// Replicas of topics whose makers do not say how many.
    pub replication_factor: u32,
    /// Times of replication.
    pub replication: replication::Settings,
}

impl Identity {
    /// The same for who asks the metadata.
    pub fn here(&self) -> Here {
        Here { broker: self.broker, shard: self.shard, shards: self.shards }
    }
}

/// What has come of an action.
enum Performed {
    /// It is done.
    Done,
    /// A newer image says otherwise.
    NotByThisImage,
    /// There is no room on the disk to open this: it comes again.
    NoRoom(TopicPartition),
}

/// A core's share of the broker.
pub struct Shard {
    /// Who it is.
    pub identity: Identity,
    /// Its logs.
    pub store: Rc<Store<RingDisk>>,
    /// The sockets of its connections.
    pub sockets: Rc<Sockets>,
    /// The way to the metadata thread.
    pub metadata: MetadataHandle,
    /// The way to the other shards.
    pub mailboxes: Mailboxes,
    /// The streams to and from other brokers.
    pub peers: Rc<Peers>,
    /// Replicas of partitions that other brokers have too.
    pub replicas: Rc<Replicas>,
    /// What has been done.
    pub counters: ShardCounters,
    /// From a produce request's first byte to its answer.
    pub produce_times: Histogram,
    /// From a fetch request's last byte to its answer, long polls included.
    pub fetch_times: Histogram,
    /// Fetches that wait for bytes.
    pub waiters: RefCell<FetchWaiters<Rc<ParkedFetch>>>,
    /// When the first of them does not wait any longer.
    pub expiry: Timer,
    /// One receive buffer for all connections: what it holds is used up before the next await.
    pub scratch: RefCell<Vec<u8>>,
    /// Aligned room for metadata of frames.
    pub aligned: RefCell<Aligned>,
    /// One builder for all replies of the shard.
    pub builder: RefCell<FlatBufferBuilder<'static>>,
    /// Bytes of replies: queued, and reserved by fetches under way.
    pub replies: Rc<ReplyBudget>,
    /// Connections that are being told that there is no room for them.
    pub refusing: Rc<Cell<usize>>,
    /// Its coordinators of consumer groups.
    pub groups: Groups,
    /// Partitions that come from other shards, and go there.
    pub homes: Homes,
    /// Its connections.
    pub connections: RefCell<HashMap<u64, Rc<Connection>>>,
    /// Ids for new producers.
    pub producer_ids: ProducerIds,
    image: RefCell<Arc<Image>>,
    local: RefCell<LocalPartitions>,
    /// Something is not open that should be.
    no_room: RefCell<Option<NoRoom<RingDisk>>>,
    /// When to try that again: it reads logs anew.
    patience: RefCell<Patience>,
    in_flight_bytes: Cell<usize>,
    /// Of those, bytes of frames that are not complete.
    partial_bytes: Cell<usize>,
    room: RefCell<VecDeque<Waker>>,
    settling: RefCell<Vec<Waker>>,
    next_connection: Cell<u64>,
    started: Instant,
    /// Until then questions about the metadata wait, if this broker has still to learn what was decided without it.
    catches_up_until: Cell<Instant>,
    stopping: Cell<bool>,
}

impl Shard {
    /// A shard over its store; it opens nothing yet.
    pub fn new(
        identity: Identity,
        store: Rc<Store<RingDisk>>,
        sockets: Rc<Sockets>,
        metadata: MetadataHandle,
        mailboxes: Mailboxes,
        started: Instant,
    ) -> Rc<Self> {
        let own = peer::Identity { broker: identity.broker, shard: identity.shard, shards: identity.shards };
        let shard = Rc::new(Self {
            replicas: Replicas::new(identity.replication),
            identity,
            store,
            peers: Peers::new(own, sockets.clone(), mailboxes.clone()),
            sockets,
            image: RefCell::new(metadata.image()),
            metadata,
            mailboxes,
            counters: ShardCounters::default(),
            produce_times: Histogram::default(),
            fetch_times: Histogram::default(),
            waiters: RefCell::new(FetchWaiters::new(Default::default())),
            expiry: Timer::default(),
            scratch: RefCell::new(vec![0; RECEIVE_SCRATCH_BYTES]),
            aligned: RefCell::default(),
            builder: RefCell::new(FlatBufferBuilder::new()),
            groups: Groups::default(),
            homes: Homes::default(),
            connections: RefCell::default(),
            producer_ids: ProducerIds::default(),
            local: RefCell::default(),
            no_room: RefCell::new(None),
            patience: RefCell::default(),
            in_flight_bytes: Cell::new(0),
            partial_bytes: Cell::new(0),
            replies: ReplyBudget::new(identity.capacity.reply_bytes_max.min(REPLY_BYTES_PER_SHARD_MAX)),
            refusing: Rc::default(),
            room: RefCell::default(),
            settling: RefCell::default(),
            next_connection: Cell::new(0),
            started,
            catches_up_until: Cell::new(started),
            stopping: Cell::new(false),
        });
        shard.replicas.begin(&shard);
        shard.peers.begin(shard.replicas.clone());
        let weak = Rc::downgrade(&shard);
        shard.store.on_advance(Rc::new(move |partition, advance| {
            if let Some(shard) = weak.upgrade() {
                let mut woken = Vec::new();
                shard.waiters.borrow_mut().advanced(partition.id(), advance.bytes, &mut woken);
                woken.iter().for_each(|parked| parked.wake());
            }
        }));
        shard
    }

    /// Milliseconds since the broker started, the clock of deadlines.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Nanoseconds since the broker started, the clock of measurements.
    pub fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Whether the broker is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// From now on no connection and no request is taken.
    pub fn begin_stop(&self) {
        self.stopping.set(true);
    }

    /// Clients come from now on.
    pub fn begin_to_serve(&self) {
        let patience = Duration::from_millis(CATCH_UP_PATIENCE_MS);
        self.catches_up_until.set(Instant::now() + patience);
    }

    /// Whether the image has everything that was decided before this life of the broker: its registration is in it.
    pub fn is_registered(&self) -> bool {
        let registration = self.metadata.registration().get();
        registration > 0 && self.image.borrow().version() >= registration
    }

    /// Waits until everything that was decided before this life of the broker has been done on this shard.
    pub async fn registered(&self) {
        poll_fn(|context| {
            if self.is_registered() && self.local.borrow().version() >= self.metadata.registration().get() {
                return Poll::Ready(());
            }
            self.settling.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Waits until this broker knows what was decided while it was away, but not for ever: the others may be away by now.
    pub async fn caught_up(&self) {
        let is_so = || self.is_registered() && self.metadata.is_current(self.identity.broker);
        while Instant::now() < self.catches_up_until.get() && !is_so() && !self.is_stopping() {
            glommio::timer::sleep(CATCH_UP_LOOK).await;
        }
    }

    /// Waits until everything that the image of `version` asks of this shard has been done.
    pub async fn settled(&self, version: u64) {
        poll_fn(|context| {
            if self.local.borrow().version() >= version {
                return Poll::Ready(());
            }
            self.settling.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Follows the image that all shards of the broker start from. Nobody has anything open, so nobody is asked.
    pub async fn follow_first(self: &Rc<Self>, image: &Arc<Image>) {
        self.follow(self.metadata.registration(), image, false).await;
    }

    /// Follows every image that `signal` tells of, until nobody can send any more; what found no room to be opened is tried
    /// again when there is some.
    pub async fn keep_following(self: &Rc<Self>, signal: Receiver<()>) {
        loop {
            let waits_for_room = self.no_room.borrow().is_some();
            let again = async {
                match waits_for_room {
                    true => glommio::timer::sleep(FULL_DISK_RETRY).await,
                    false => std::future::pending().await,
                }
            };
            let told = match select(pin!(signal.recv()), pin!(again)).await {
                Either::Left((told, _)) => told.is_ok(),
                Either::Right(_) if self.may_have_room().await => true,
                Either::Right(_) => continue,
            };
            if !told {
                return;
            }
            self.follow_metadata().await;
        }
    }

    /// Whether what waits for room is worth a try.
    async fn may_have_room(&self) -> bool {
        let storage = &self.store.storage;
        match storage.disk.room(storage.root()).await {
            Ok(room) => self.patience.borrow_mut().tries(room, self.started.elapsed()),
            Err(error) => {
                tracing::debug!(%error, "it is not known what room there is");
                true
            }
        }
    }

    /// How often it was looked for room.
    #[cfg(test)]
    pub fn looks_for_room(&self) -> u64 {
        self.patience.borrow().looks()
    }

    /// Follows the newest image. Run by one task only.
    pub async fn follow_metadata(self: &Rc<Self>) {
        loop {
            // Before the image: it has this registration, or a later one.
            let registration = self.metadata.registration();
            let image = self.metadata.image();
            self.follow(registration, &image, true).await;
            if self.metadata.image().version() == image.version() {
                return;
            }
        }
    }

    /// Closing before opening, many partitions at once, as each waits for its disk. `asks`: other shards may have what is
    /// to be opened here.
    async fn follow(self: &Rc<Self>, registration: BrokerEpoch, image: &Arc<Image>, asks: bool) {
        *self.image.borrow_mut() = image.clone();
        self.replicas.registered(registration, image);
        // Each shard has its share: they have no common clock.
        let share = |rate: NonZeroU64| rate.get().div_ceil(self.identity.shards.into());
        self.peers.limit_catch_up(image.catch_up_bytes_per_second().map(share).and_then(NonZeroU64::new));
        self.peers.follow(image.cluster_id(), image.brokers().map(|broker| address_of(broker)));
        let actions = reconcile(&self.local.borrow(), image, self.identity.here());
        let closes = |action: &Action| matches!(action, Action::ClosePartition { .. });
        let (closes, others) = actions.split_at(actions.partition_point(closes));
        let each = |action| async move {
            match self.perform(action, image.version(), asks).await {
                Performed::Done => self.local.borrow_mut().record(action),
                Performed::NotByThisImage => {}
                Performed::NoRoom(partition) => self.local.borrow_mut().failed(partition),
            }
            // Long lists of partitions must not keep requests from being served.
            glommio::yield_if_needed().await;
        };
        futures_util::stream::iter(closes).for_each_concurrent(1, each).await;
        self.homes.closed(image.version(), others);
        futures_util::stream::iter(others).for_each_concurrent(PARTITIONS_OPENING_MAX, each).await;
        homes::tidy(self, image).await;
        // Before anybody is told that the change is in force.
        group::follow(self, image);
        self.local.borrow_mut().finish(image);
        self.wait_for_room();
        self.metadata.note_followed(self.identity.shard.get().into(), image.version());
        std::mem::take(&mut *self.settling.borrow_mut()).into_iter().for_each(Waker::wake);
    }

    /// One step towards the image of `version`.
    async fn perform(self: &Rc<Self>, action: &Action, version: u64, asks: bool) -> Performed {
        match action {
            Action::OpenPartition { partition, state } => {
                let opened = self.open(*partition, state, version, asks).await;
                // What waits for room is still to be opened by this image.
                if !matches!(opened, Performed::NoRoom(_)) {
                    self.homes.opened(partition);
                }
                return opened;
            }
            Action::Reconfigure { partition, state } => self.reconfigure(partition, state),
            Action::ClosePartition { partition, delete: false, .. } => {
                homes::release(self, *partition, version).await;
            }
            Action::ClosePartition { partition, delete: true, .. } => {
                self.replicas.forget(*partition);
                let closed = self.store.close_partition(partition);
                self.homes.closed_for_good(partition);
                self.disturb_fetches(*partition);
                if let Some(closed) = closed {
                    let shard = self.clone();
                    stall::spawn("deleting a partition", async move { shard.delete_files(&closed).await })
                        .detach();
                }
            }
        }
        Performed::Done
    }

    async fn open(
        self: &Rc<Self>,
        partition: TopicPartition,
        state: &LocalPartition,
        version: u64,
        asks: bool,
    ) -> Performed {
        let log = LogIdentity { partition, generation: state.generation.get() };
        let settings = partition_settings(&state.config);
        let storage = &self.store.storage;
        storage.name_topic(partition.topic, state.topic_name.clone());
        // Where there are other replicas, only who is made leader by its replica learns of an epoch.
        let epoch = (state.replicas.len() < 2).then_some(state.leader_epoch);
        let handed = match asks && homes::may_be_elsewhere(state) {
            true => match homes::take_over(self, &log, version).await {
                Some(handed) => handed,
                None => return Performed::NotByThisImage,
            },
            // What a start has found no room to open was kept.
            false => self.homes.take_back(&log),
        };
        let opened = match &handed {
            Some(handed) => self.store.take_over(log, settings, epoch, &handed.released).await,
            None => self.store.open_partition(log, settings, epoch).await,
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) if is_no_space(&error) => {
                // Whoever opens it, here or elsewhere, must know what the last checkpoint says.
                let known = || self.store.not_opened(&log).map(HandedOver::never_opened);
                let kept = handed.or_else(known);
                kept.into_iter().for_each(|kept| self.homes.keep(self, log, version, kept));
                if !self.waits_for_room(&partition) {
                    let label = storage.label(partition);
                    storage.notice(format!(
                        "{label} cannot be opened: the disk is full. It is not served until there is room"
                    ));
                }
                return Performed::NoRoom(partition);
            }
            Err(error) => storage.fail("opening its directory", Some(partition), &error),
        };
        self.replicas.follow(&opened, state, true);
        if let Some(handed) = &handed {
            handed.doubted_from.into_iter().for_each(|from| self.replicas.doubt(&partition, from));
            homes::arrived(self, partition, handed);
        }
        Performed::Done
    }

    /// Whether a partition of this shard could not be opened because the disk is full.
    pub fn waits_for_room(&self, id: &TopicPartition) -> bool {
        self.local.borrow().unopened().contains(id)
    }

    /// As long as something waits for room to be opened, the disk counts as full.
    fn wait_for_room(&self) {
        let waits = !self.local.borrow().unopened().is_empty();
        let mut no_room = self.no_room.borrow_mut();
        match (waits, no_room.is_some()) {
            (true, false) => *no_room = Some(self.store.storage.wait_for_room()),
            (false, true) => {
                *no_room = None;
                *self.patience.borrow_mut() = Patience::default();
            }
            _ => {}
        }
    }

    fn reconfigure(&self, id: &TopicPartition, state: &LocalPartition) {
        if let Some(partition) = self.store.partition(id) {
            partition.set_settings(partition_settings(&state.config));
            if !partition.is_replicated() && state.replicas.len() < 2 {
                let before = partition.leader_epoch();
                partition.set_leader_epoch(state.leader_epoch);
                if partition.leader_epoch() != before {
                    // Who waits believes in an earlier one.
                    self.disturb_fetches(*id);
                }
            }
            self.replicas.follow(&partition, state, false);
        }
    }

    /// Has fetches that wait for a partition look again.
    pub fn disturb_fetches(&self, id: TopicPartition) {
        let mut woken = Vec::new();
        self.waiters.borrow_mut().disturb(id, &mut woken);
        woken.iter().for_each(|parked| parked.wake());
    }

    async fn delete_files(&self, partition: &Rc<Partition>) {
        let id = partition.id();
        if let Err(error) = partition.delete_files().await {
            self.store.storage.notice(format!(
                "{} is deleted but its files are not: {error}",
                self.store.storage.label(id)
            ));
            return;
        }
        // The last of the topic's partitions takes the directory with it; others are still in it until then.
        self.store.storage.remove_topic_directory(id.topic).await;
    }

    /// The image that it follows, or has followed.
    pub fn image(&self) -> Arc<Image> {
        self.image.borrow().clone()
    }

    /// Where a partition is to be found.
    pub fn locate(&self, id: TopicPartition) -> Location {
        if let Some(partition) = self.store.partition(&id) {
            return Location::Here(partition);
        }
        let image = self.image.borrow();
        let Some(topic) = image.topic(id.topic) else {
            // Who has yet to learn of it leads nothing of it.
            let known = self.is_registered();
            return Location::Nowhere(if known { ErrorCode::UnknownTopic } else { ErrorCode::NotLeader });
        };
        let Some(placed) = topic.partitions.get(id.partition.get() as usize) else {
            return Location::Nowhere(ErrorCode::UnknownPartition);
        };
        if placed.leader != Some(self.identity.broker) {
            let nobody = placed.leader.is_none();
            return Location::Nowhere(if nobody {
                ErrorCode::LeaderNotAvailable
            } else {
                ErrorCode::NotLeader
            });
        }
        match image.home_here(self.identity.here(), id) {
            // Ours, and still being opened: nothing is appended that nobody would know of.
            shard if shard == self.identity.shard => Location::Nowhere(ErrorCode::LeaderNotAvailable),
            shard => Location::Shard(shard),
        }
    }

    /// A number for a new connection.
    pub fn connection_id(&self) -> u64 {
        self.next_connection.set(self.next_connection.get() + 1);
        self.next_connection.get()
    }

    /// Takes budget for request bytes; `false` if the shard has none left.
    pub fn take_in_flight(&self, bytes: usize) -> bool {
        let total = self.in_flight_bytes.get() + bytes;
        if total > IN_FLIGHT_BYTES_PER_SHARD_MAX {
            return false;
        }
        self.in_flight_bytes.set(total);
        true
    }

    /// Waits until there is budget for a frame of `bytes` that is not complete, then takes it. Incomplete
    /// frames get half of the budget, large ones half of that: peers that begin frames and do not end them
    /// leave room for those that do.
    pub async fn wait_partial(&self, bytes: usize) {
        let most = IN_FLIGHT_BYTES_PER_SHARD_MAX / if bytes > FRAME_BYTES_MAX_BEFORE_HELLO { 4 } else { 2 };
        poll_fn(|context| {
            if self.partial_bytes.get() + bytes <= most && self.take_in_flight(bytes) {
                self.partial_bytes.set(self.partial_bytes.get() + bytes);
                return Poll::Ready(());
            }
            self.room.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// A frame is complete: its bytes go on counting as in flight.
    pub fn complete_partial(&self, bytes: usize) {
        self.partial_bytes.set(self.partial_bytes.get() - bytes);
        self.wake_waiting();
    }

    /// A frame was given up.
    pub fn give_partial(&self, bytes: usize) {
        self.complete_partial(bytes);
        self.give_in_flight(bytes);
    }

    /// Gives request bytes back.
    pub fn give_in_flight(&self, bytes: usize) {
        self.in_flight_bytes.set(self.in_flight_bytes.get() - bytes);
        self.wake_waiting();
    }

    fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut *self.room.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Bytes of requests that are not answered.
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes.get()
    }

    /// Whether one more connection can be served.
    pub fn has_place(&self) -> bool {
        let most = self.identity.capacity.connections_max.min(CONNECTIONS_PER_SHARD_MAX);
        self.connections.borrow().len() < most
    }

    /// A log as people see it.
    pub fn describe_log(&self, id: TopicPartition) -> DescribedLog {
        let mut described = DescribedLog {
            id,
            shard: self.identity.shard,
            leader_epoch: 0,
            error: Some(ErrorCode::NotLeader),
            log_start: 0,
            high_watermark: 0,
            log_end: 0,
            segments: 0,
            bytes: 0,
            compaction: None,
            replicas: self.describe_replicas(&id),
        };
        let Some(partition) = self.store.partition(&id) else { return described };
        described.leader_epoch = partition.leader_epoch().get();
        partition.with_log(|log| {
            described.error = (!log.damaged().is_empty()).then_some(ErrorCode::CorruptRange);
            described.log_start = log.log_start().get();
            described.high_watermark = log.high_watermark().get();
            described.log_end = log.log_end().get();
            described.segments = log.segments().len() as u64;
            described.bytes = log.segments().iter().map(|segment| segment.end_position).sum();
            described.compaction = partition.settings().compaction.map(|settings| {
                let now_ms = self.store.storage.environment.now_ms();
                let look = compaction::look(log, &settings, now_ms);
                DescribedCompaction {
                    clean_bytes: look.clean_bytes,
                    dirty_bytes: look.dirty_bytes,
                    last_pass_ms: partition.compaction().last_pass_ms,
                }
            });
        });
        described
    }

    fn describe_replicas(&self, id: &TopicPartition) -> Vec<DescribedReplica> {
        let now_ms = self.now_ms();
        let described = self.replicas.look(id, |replica| {
            let log_end = replica.log_end();
            let describe = |peer: PeerProgress| {
                let lag_records = peer.acked.map(|acked| log_end.get().saturating_sub(acked.get()));
                let late_ms = now_ms.saturating_sub(peer.caught_up_ms);
                DescribedReplica {
                    broker: peer.broker,
                    end: peer.acked,
                    lag_records,
                    lag_ms: if lag_records == Some(0) { 0 } else { late_ms },
                    connected: peer.following,
                }
            };
            replica.peers().map(describe).collect()
        });
        described.unwrap_or_default()
    }

    /// Counters and notices.
    pub fn report(&self) -> ShardReport {
        let own = &self.counters;
        let storage = &self.store.storage.counters;
        let times = self.store.round_times();
        let (rounds_in_flight, dirty) = self.store.load();
        let (waiting, waiting_bytes) = self.mailboxes.waiting(self.identity.shard);
        let stalls = stall::seen();
        let partitions = self.store.partitions();
        let damaged: usize =
            partitions.iter().map(|partition| partition.with_log(|log| log.damaged().len())).sum();
        let mut counters = vec![
            ("connections_open", self.connections.borrow().len() as u64),
            ("connections_total", own.connections.get()),
            ("requests_total", own.requests.get()),
            ("batches_total", own.batches.get()),
            ("records_total", own.records.get()),
            ("produced_bytes_total", own.produced_bytes.get()),
            ("fetched_bytes_total", own.fetched_bytes.get()),
            ("follower_fetches_total", own.follower_fetches.get()),
            ("follower_fetched_bytes_total", own.follower_fetched_bytes.get()),
            ("fetches_from_memory_total", own.fetches_from_memory.get()),
            ("fetches_from_device_total", own.fetches_from_device.get()),
            ("forwarded_requests_total", own.forwarded.get()),
            ("overloaded_total", own.overloaded.get()),
            ("in_place_batches_total", own.in_place_batches.get()),
            ("invalid_frames_total", own.invalid_frames.get()),
            ("invalid_batches_total", own.invalid_batches.get()),
            ("duplicate_batches_total", own.duplicate_batches.get()),
            ("out_of_sequence_batches_total", own.out_of_sequence_batches.get()),
            ("producers", self.store.storage.producers() as u64),
            ("timed_out_connections_total", own.timed_out_connections.get()),
            ("late_requests_total", own.late_requests.get()),
            ("partitions", partitions.len() as u64),
            ("flush_rounds_total", storage.rounds.get()),
            ("flush_groups_total", storage.groups.get()),
            ("flush_bytes_total", storage.group_bytes.get()),
            ("flush_payload_bytes_total", storage.payload_bytes.get()),
            ("device_flushes_total", storage.device_flushes.get()),
            ("durable_writes_total", storage.durable_writes.get()),
            ("unprepared_groups_total", storage.unprepared_groups.get()),
            ("round_p50_us", times.value_at_quantile(0.5)),
            ("round_p99_us", times.value_at_quantile(0.99)),
            ("round_p999_us", times.value_at_quantile(0.999)),
            ("rounds_in_flight", rounds_in_flight as u64),
            ("dirty_partitions", dirty as u64),
            ("dirty_bytes", self.store.storage.dirty_bytes() as u64),
            ("in_flight_bytes", self.in_flight_bytes() as u64),
            ("reply_bytes", self.replies.queued_bytes() as u64),
            ("reserved_reply_bytes", self.replies.reserved_bytes() as u64),
            ("tail_cache_bytes", self.store.tail_bytes() as u64),
            ("buffer_bytes", self.store.storage.pool.live_bytes() as u64),
            ("buffer_allocations_total", self.store.storage.pool.allocations()),
            ("parked_fetches", self.waiters.borrow().len() as u64),
            ("zeroed_bytes_total", storage.zeroed_bytes.get()),
            ("segments_created_total", storage.segments_created.get()),
            ("segments_recycled_total", storage.segments_recycled.get()),
            ("device_reads_total", storage.reads.get()),
            ("device_read_bytes_total", storage.read_bytes.get()),
            ("checkpoints_total", storage.checkpoints.get()),
            ("compaction_passes_total", storage.compaction_passes.get()),
            ("compaction_given_up_total", storage.compaction_given_up.get()),
            ("compaction_read_bytes_total", storage.compaction_read_bytes.get()),
            ("compaction_written_bytes_total", storage.compaction_written_bytes.get()),
            ("compaction_removed_records_total", storage.compaction_removed_records.get()),
            ("compaction_removed_bytes_total", storage.compaction_removed_bytes.get()),
            ("scrub_passes_total", storage.scrub_passes.get()),
            ("scrubbed_bytes_total", storage.scrubbed_bytes.get()),
            ("damaged_ranges_total", storage.damaged_ranges.get()),
            ("damaged_ranges", damaged as u64),
            ("mailbox_messages", waiting as u64),
            ("mailbox_bytes", waiting_bytes as u64),
            ("stalls_total", stalls.count),
            ("stalled_ms_total", stalls.total_ms),
            ("longest_stall_ms", stalls.longest_ms),
        ];
        counters.extend(self.peers.report());
        counters.extend(self.replicas.report());
        counters.extend(self.homes.report());
        let timed = vec![
            Timed { name: "round", took: HistogramReport::of(&times) },
            Timed { name: "produce", took: self.produce_times.report() },
            Timed { name: "fetch", took: self.fetch_times.report() },
        ];
        let notices = self.store.storage.notices().into_iter().chain(stalls.notices).collect();
        ShardReport { shard: self.identity.shard, counters, timed, notices }
    }
}

/// Where a partition is to be found.
pub enum Location {
    /// On this shard.
    Here(Rc<Partition>),
    /// On another shard of this broker.
    Shard(ShardId),
    /// Not on this broker, or not yet.
    Nowhere(ErrorCode),
}

/// Where the metadata says a broker is to be found.
fn address_of(broker: &metadata::Broker) -> (BrokerId, PeerAddress) {
    let known = &broker.registration;
    let (host, port, shards) = (known.host.clone(), known.port, known.shards);
    (known.broker, PeerAddress { host, port, shards, epoch: broker.epoch })
}

/// What a partition obeys of its topic's settings.
fn partition_settings(config: &TopicConfig) -> PartitionSettings {
    let compacts = config.cleanup_policy != CleanupPolicy::Delete;
    let deletes = config.cleanup_policy != CleanupPolicy::Compact;
    let segment_ms = i64::try_from(config.segment_ms).unwrap_or(i64::MAX);
    PartitionSettings {
        log: LogSettings {
            segment_bytes: config.segment_bytes,
            // What is appended to is never compacted.
            segment_ms: if compacts { segment_ms.min(config.max_compaction_lag_ms) } else { segment_ms },
        },
        retention: RetentionSettings {
            retention_ms: if deletes { config.retention_ms } else { -1 },
            retention_bytes: if deletes { config.retention_bytes } else { -1 },
        },
        compaction: compacts.then_some(CompactionSettings {
            min_dirty_millionths: config.min_dirty_millionths,
            min_lag_ms: config.min_compaction_lag_ms,
            max_lag_ms: config.max_compaction_lag_ms,
            delete_retention_ms: config.delete_retention_ms,
        }),
        max_message_bytes: config.max_message_bytes as usize,
        log_append_time: config.message_timestamp_type == TimestampType::LogAppendTime,
    }
}
