//! Fetching in the background: one task per (broker, shard) that has assigned partitions.
//!
//! Owner: a [`Fetcher`] belongs to one consumer; its tasks share the state behind one lock. Lifecycle: a
//! task starts when a first partition lives on its shard, has one Fetch for all of them on its way at a
//! time, and ends with the last; dropping the fetcher ends all. Invariants: a partition's fetches are
//! asked for in order and never twice at once; a reply to what was asked before a seek is dropped (its
//! generation is old); a task asks only for as much as its share of the prefetch has room for. Each task
//! has a connection of its own, so that long polls and large replies never stand before a producer's
//! acknowledgements. Absent on purpose: looking into records.

mod preferred;

use crate::admin;
use crate::client::ClientError;
use crate::cluster::{Cluster, Home, Topic};
use crate::connection::Connection;
use crate::consumer::{AutoOffsetReset, ConsumeError, ConsumerConfig, FetchedBatch};
use crate::reply::{BrokerError, FetchResult, Reply, Response};
use crate::request::{FetchEntry, OffsetSpec, Request, TopicId};
use preferred::Followers;
use schema::error_code::{Class, ErrorCode};
use schema::record_batch::{self, BatchError};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// Kept free in the largest reply for the one batch that may exceed what was asked for.
const BATCH_BYTES_RESERVED: usize = 16 << 20;

/// What the background hands to the consumer.
#[derive(Debug)]
pub(crate) enum Item {
    Fetched(FetchedBatch),
    Failed(ConsumeError),
}

type Key = (Arc<str>, u32);

/// See the module.
pub(crate) struct Fetcher {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Arc<Cluster>,
    config: ConsumerConfig,
    /// Of the configuration, for every request.
    rack: Option<Arc<str>>,
    state: Mutex<State>,
    /// Something is ready, or nothing will be any more.
    ready: Notify,
    /// Rises with every change of assignment or position: fetches on their way are out of date.
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    parts: BTreeMap<Key, Part>,
    lanes: HashMap<Home, Lane>,
    ready: VecDeque<Ready>,
    next_generation: u64,
}

/// One assigned partition.
struct Part {
    topic_id: TopicId,
    leader_epoch: u32,
    leader: Home,
    /// Where it is read: at its leader, or at a follower that the leader has named.
    home: Home,
    followers: Followers,
    /// Changes with every seek and assignment.
    generation: u64,
    fetch_offset: u64,
    /// The offset after what was handed out.
    position: u64,
    high_watermark: Option<u64>,
    retry_at: Option<Instant>,
    failures: u32,
    /// Stopped by an error, until it is sought.
    halted: bool,
    /// Stopped by the application, until it says otherwise.
    paused: bool,
}

struct Lane {
    /// Bytes in `ready` that this lane fetched.
    buffered_bytes: usize,
    room: Arc<Notify>,
    /// The partition that the next request names first.
    turn: usize,
    task: AbortHandle,
}

struct Ready {
    item: Item,
    /// Partition and generation that it belongs to; none for a failure of a whole connection.
    of: Option<(Key, u64)>,
    home: Home,
    bytes: usize,
}

/// What one request asks, and for whom.
struct Plan {
    version: u64,
    asked: Vec<(Key, u64)>,
    request: Request,
}

enum Next {
    Fetch(Plan),
    Wait(Option<Instant>),
    /// No partition lives here any more.
    End,
}

impl Fetcher {
    pub(crate) fn new(cluster: Arc<Cluster>, config: ConsumerConfig) -> Self {
        let rack = config.rack.as_deref().filter(|rack| !rack.is_empty());
        let shared = Shared {
            rack: rack.map(Arc::from),
            cluster,
            config,
            state: Mutex::default(),
            ready: Notify::new(),
            version: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Replaces the partitions of `topic`.
    pub(crate) fn assign(&self, topic: &Topic, positions: &[(u32, u64)]) {
        let mut state = self.shared.lock();
        state.remove_topic(&topic.name);
        for (partition, offset) in positions {
            Shared::add(&self.shared, &mut state, topic, *partition, *offset);
        }
        self.shared.changed();
    }

    pub(crate) fn unassign(&self, topic: &str) {
        self.shared.lock().remove_topic(topic);
        self.shared.changed();
    }

    /// One more partition, the others go on.
    pub(crate) fn add(&self, topic: &Topic, partition: u32, offset: u64) {
        let mut state = self.shared.lock();
        Shared::add(&self.shared, &mut state, topic, partition, offset);
        state.drop_outdated();
        self.shared.changed();
    }

    /// One partition less, and what is ready of it.
    pub(crate) fn remove(&self, topic: &str, partition: u32) {
        let mut state = self.shared.lock();
        if state.parts.remove(&(Arc::from(topic), partition)).is_some() {
            state.drop_outdated();
            self.shared.changed();
        }
    }

    /// Fetches nothing of the partition, and drops what is ready of it; or goes on.
    pub(crate) fn set_paused(&self, topic: &str, partition: u32, paused: bool) {
        let mut state = self.shared.lock();
        let generation = state.next_generation();
        if let Some(part) = state.parts.get_mut(&(Arc::from(topic), partition))
            && part.paused != paused
        {
            part.paused = paused;
            part.generation = generation;
            part.fetch_offset = part.position;
            state.drop_outdated();
            self.shared.changed();
        }
    }

    pub(crate) fn seek(&self, topic: &str, partition: u32, offset: u64) {
        let mut state = self.shared.lock();
        let generation = state.next_generation();
        let key = (Arc::from(topic), partition);
        if let Some(part) = state.parts.get_mut(&key) {
            part.generation = generation;
            part.fetch_offset = offset;
            part.position = offset;
            part.retry_at = None;
            part.failures = 0;
            part.halted = false;
        }
        state.drop_outdated();
        self.shared.changed();
    }

    pub(crate) fn position(&self, topic: &str, partition: u32) -> Option<u64> {
        self.shared.lock().part(topic, partition).map(|part| part.position)
    }

    pub(crate) fn high_watermark(&self, topic: &str, partition: u32) -> Option<u64> {
        self.shared.lock().part(topic, partition).and_then(|part| part.high_watermark)
    }

    /// The records below `position` have been handed out.
    pub(crate) fn advance(&self, topic: &Arc<str>, partition: u32, position: u64) {
        if let Some(part) = self.shared.lock().parts.get_mut(&(topic.clone(), partition)) {
            part.position = position;
        }
    }

    /// Stops a partition until it is sought.
    pub(crate) fn halt(&self, topic: &Arc<str>, partition: u32) {
        let mut state = self.shared.lock();
        let generation = state.next_generation();
        if let Some(part) = state.parts.get_mut(&(topic.clone(), partition)) {
            part.halted = true;
            part.generation = generation;
            part.fetch_offset = part.position;
        }
        state.drop_outdated();
    }

    /// What is ready, in the order of its arrival; `None` when nothing can become ready.
    pub(crate) async fn next(&self) -> Option<Item> {
        loop {
            {
                let mut state = self.shared.lock();
                if let Some(ready) = state.ready.pop_front() {
                    state.release(ready.home, ready.bytes);
                    return Some(ready.item);
                }
                if state.parts.values().all(|part| part.halted) {
                    return None;
                }
            }
            self.shared.ready.notified().await;
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        for lane in self.shared.lock().lanes.values() {
            lane.task.abort();
        }
    }
}

impl State {
    fn next_generation(&mut self) -> u64 {
        self.next_generation += 1;
        self.next_generation
    }

    fn part(&self, topic: &str, partition: u32) -> Option<&Part> {
        self.parts.get(&(Arc::from(topic), partition))
    }

    fn remove_topic(&mut self, topic: &str) {
        self.parts.retain(|(name, _), _| **name != *topic);
        self.drop_outdated();
    }

    /// Drops what is ready for partitions that have been sought or taken away since.
    fn drop_outdated(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for item in ready {
            let current = match &item.of {
                Some((key, generation)) => {
                    self.parts.get(key).is_some_and(|part| part.generation == *generation)
                }
                None => true,
            };
            match current {
                true => self.ready.push_back(item),
                false => self.release(item.home, item.bytes),
            }
        }
    }

    fn release(&mut self, home: Home, bytes: usize) {
        if let Some(lane) = self.lanes.get_mut(&home) {
            lane.buffered_bytes = lane.buffered_bytes.saturating_sub(bytes);
            lane.room.notify_one();
        }
    }

    fn has_ready(&self, key: &Key) -> bool {
        self.ready.iter().any(|ready| ready.of.as_ref().is_some_and(|(of, _)| of == key))
    }

    fn current(&mut self, key: &Key, generation: u64) -> Option<&mut Part> {
        self.parts.get_mut(key).filter(|part| part.generation == generation)
    }

    /// Stops the partition and tells the consumer why, behind all that was fetched before.
    fn fail(&mut self, key: &Key, generation: u64, error: ConsumeError) {
        if let Some(part) = self.current(key, generation) {
            part.halted = true;
            let home = part.home;
            let of = Some((key.clone(), generation));
            self.ready.push_back(Ready { item: Item::Failed(error), of, home, bytes: 0 });
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
        self.ready.notify_one();
    }

    fn add(shared: &Arc<Self>, state: &mut State, topic: &Topic, partition: u32, offset: u64) {
        let Some(place) = topic.places.get(partition as usize) else {
            return;
        };
        let home = Home::of(place);
        let part = Part {
            topic_id: topic.id,
            leader_epoch: place.leader_epoch,
            leader: home,
            home,
            followers: Followers::default(),
            generation: state.next_generation(),
            fetch_offset: offset,
            position: offset,
            high_watermark: None,
            retry_at: None,
            failures: 0,
            halted: false,
            paused: false,
        };
        state.parts.insert((topic.name.clone(), partition), part);
        Self::ensure_lane(shared, state, home);
    }

    fn ensure_lane(shared: &Arc<Self>, state: &mut State, home: Home) {
        state.lanes.entry(home).or_insert_with(|| {
            let room = Arc::new(Notify::new());
            let worker = Worker {
                shared: shared.clone(),
                home,
                room: room.clone(),
                version: shared.version.subscribe(),
                connection: None,
                failing_since: None,
                failures: 0,
            };
            let task = tokio::spawn(worker.run()).abort_handle();
            Lane { buffered_bytes: 0, room, turn: 0, task }
        });
    }

    /// Takes up where the partitions of a topic live now.
    fn rehome(shared: &Arc<Self>, topic: &Topic) {
        let mut state = shared.lock();
        let mut changed = false;
        let keys: Vec<Key> = state.parts.keys().filter(|key| key.0 == topic.name).cloned().collect();
        for key in keys {
            let place = topic.places.get(key.1 as usize);
            let Some(part) = state.parts.get_mut(&key) else {
                continue;
            };
            let generation = part.generation;
            match place {
                // Metadata that was learnt later may have been taken up earlier.
                Some(place) if part.topic_id == topic.id && place.leader_epoch < part.leader_epoch => {}
                Some(place) if part.topic_id == topic.id => {
                    let home = Home::of(place);
                    if (part.leader, part.leader_epoch) != (home, place.leader_epoch) {
                        changed = true;
                        part.leader = home;
                        part.home = home;
                        part.leader_epoch = place.leader_epoch;
                        // Whatever the old leader wanted to be waited for is over.
                        part.retry_at = None;
                        part.failures = 0;
                        Self::ensure_lane(shared, &mut state, home);
                    }
                }
                _ if part.halted => {}
                _ => {
                    changed = true;
                    let error = ConsumeError::TopicReplaced { topic: topic.name.clone() };
                    state.fail(&key, generation, error);
                }
            }
        }
        drop(state);
        if changed {
            shared.changed();
        }
    }

    async fn refresh(shared: &Arc<Self>, name: &Arc<str>, asked_at: Instant) {
        match shared.cluster.relearn(name, asked_at).await {
            Ok(topic) => Self::rehome(shared, &topic),
            Err(error @ ClientError::UnknownTopic { .. }) => {
                let mut state = shared.lock();
                let parts = state.parts.iter().filter(|(key, part)| key.0 == *name && !part.halted);
                let gone: Vec<_> = parts.map(|(key, part)| (key.clone(), part.generation)).collect();
                for (key, generation) in gone {
                    state.fail(&key, generation, error.clone().into());
                }
                drop(state);
                shared.ready.notify_one();
            }
            // Nobody answers just now; whoever tries next asks again.
            Err(_) => {}
        }
    }
}

impl Shared {
    /// While a broker takes longer to answer than it may: learns whether others lead what it was asked for, and leaves it
    /// where it follows, once nothing comes from it any more.
    async fn watch(
        shared: &Arc<Self>,
        home: Home,
        asked: &[(Key, u64)],
        connection: &OnceLock<Connection>,
    ) -> Infallible {
        let topics: BTreeSet<Arc<str>> = asked.iter().map(|((topic, _), _)| topic.clone()).collect();
        tokio::time::sleep(shared.config.fetch_max_wait + shared.cluster.config.leader_check_after).await;
        tokio::select! {
            never = Self::leave_when_silent(shared, home, connection) => never,
            never = Self::relearn(shared, &topics) => never,
        }
    }

    /// Leaves `home` where it follows as soon as no bytes have come from it for as long as a leader may be silent.
    async fn leave_when_silent(
        shared: &Arc<Self>,
        home: Home,
        connection: &OnceLock<Connection>,
    ) -> Infallible {
        let patience = shared.cluster.config.leader_check_after;
        // One that takes no connection is silent.
        while let Some(silent) = connection.get().map(Connection::silent_for)
            && silent < patience
        {
            tokio::time::sleep(patience - silent).await;
        }
        Self::leave_followers(shared, home);
        std::future::pending().await
    }

    /// Learns again and again where the topics are, at the pace of [`Cluster::relearn`].
    async fn relearn(shared: &Arc<Self>, topics: &BTreeSet<Arc<str>>) -> Infallible {
        loop {
            let asked_at = Instant::now();
            for topic in topics {
                Self::refresh(shared, topic, asked_at).await;
            }
            if topics.is_empty() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The task of one (broker, shard).
struct Worker {
    shared: Arc<Shared>,
    home: Home,
    room: Arc<Notify>,
    version: watch::Receiver<u64>,
    connection: Option<Connection>,
    failing_since: Option<Instant>,
    failures: u32,
}

impl Worker {
    async fn run(mut self) {
        loop {
            match self.plan(Instant::now()) {
                Next::End => return,
                Next::Wait(until) => {
                    let Worker { room, version, .. } = &mut self;
                    tokio::select! {
                        () = room.notified() => {}
                        _ = version.changed() => {}
                        () = sleep_until(until) => {}
                    }
                }
                Next::Fetch(plan) => {
                    if let Err(error) = self.fetch(plan).await {
                        self.back_off(error).await;
                    }
                }
            }
        }
    }

    fn plan(&mut self, now: Instant) -> Next {
        let shared = self.shared.clone();
        let config = &shared.config;
        let mut state = shared.lock();
        let version = *self.version.borrow_and_update();
        let state = &mut *state;
        let mine = state.parts.iter().filter(|(_, part)| part.home == self.home);
        let mut mine: Vec<(&Key, &Part)> = mine.collect();
        if mine.is_empty() {
            state.lanes.remove(&self.home);
            return Next::End;
        }
        let share = (config.prefetch_bytes / state.lanes.len().max(1)).max(1);
        let Some(lane) = state.lanes.get_mut(&self.home) else {
            return Next::End;
        };
        // Room for half a share, or the requests would become small.
        if lane.buffered_bytes > share / 2 {
            return Next::Wait(None);
        }
        mine.retain(|(_, part)| !part.halted && !part.paused);
        let retry_at = mine.iter().filter_map(|(_, part)| part.retry_at);
        let until = retry_at.filter(|at| *at > now).min();
        mine.retain(|(_, part)| part.retry_at.is_none_or(|at| at <= now));
        if mine.is_empty() {
            return Next::Wait(until);
        }
        // In turns, because a broker fills its reply from the front. Entries of a topic stay together.
        let split = lane.turn % mine.len();
        mine.rotate_left(split);
        lane.turn = split + 1;
        let first = mine[0].0.0.clone();
        mine.sort_by_key(|(key, _)| key.0 != first);
        let room = (share - lane.buffered_bytes.min(share)) as u32;
        // A reply above what the connection accepts would end it; a last batch comes on top.
        let accepted = shared.cluster.config.max_response_bytes.saturating_sub(BATCH_BYTES_RESERVED);
        let accepted = u32::try_from(accepted).unwrap_or(u32::MAX);
        let max_bytes = config.fetch_max_bytes.min(room).min(accepted).max(1);
        let entries = mine.iter().map(|(key, part)| FetchEntry {
            topic: part.topic_id,
            partition: key.1,
            leader_epoch: part.leader_epoch,
            offset: part.fetch_offset,
            max_bytes: config.max_partition_fetch_bytes.min(max_bytes),
        });
        let request = Request::Fetch {
            max_wait_ms: match until {
                // A partition that backs off must not wait for a long poll of the others.
                Some(until) => millis(config.fetch_max_wait.min(until.saturating_duration_since(now))).max(1),
                None => millis(config.fetch_max_wait),
            },
            min_bytes: config.fetch_min_bytes,
            max_bytes,
            rack: shared.rack.clone(),
            entries: entries.collect(),
        };
        let asked = mine.iter().map(|(key, part)| ((*key).clone(), part.generation)).collect();
        Next::Fetch(Plan { version, asked, request })
    }

    /// One round trip. An error is one of the connection; those of partitions are dealt with here.
    async fn fetch(&mut self, plan: Plan) -> Result<(), ClientError> {
        let shared = self.shared.clone();
        let (config, version) = (&shared.cluster.config, plan.version);
        // Of this request, once it is open.
        let asked_by = OnceLock::new();
        let answer = async {
            let connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
                Some(connection) => connection,
                None => shared.cluster.open(self.home).await?,
            };
            let timeout = shared.config.fetch_max_wait + config.request_timeout;
            let reply = connection.send(plan.request, timeout)?;
            let _ = asked_by.set(connection.clone());
            self.connection = Some(connection);
            Ok::<_, ClientError>(reply.wait().await?)
        };
        let response = tokio::select! {
            response = answer => response?,
            // The reply to come is out of date in part; what it brings will be asked for again.
            _ = self.version.wait_for(|now| *now != version) => return Ok(()),
            // Tells by a new version, if others lead by now.
            never = Shared::watch(&shared, self.home, &plan.asked, &asked_by) => match never {},
        };
        self.failing_since = None;
        self.failures = 0;
        let Response { error, note, throttle, reply } = response;
        let refresh = match (error, reply) {
            (Some(error), _) => self.refused(&plan.asked, &error),
            (None, Reply::Fetch(results)) if results.len() == plan.asked.len() => {
                self.take_all(&plan.asked, results, &note)
            }
            (None, _) => return Err(ClientError::UnexpectedReply { request: "Fetch" }),
        };
        if refresh.moved {
            self.shared.changed();
        }
        let asked_at = Instant::now();
        for topic in refresh.topics {
            Shared::refresh(&self.shared, &topic, asked_at).await;
        }
        for (key, generation) in refresh.out_of_range {
            self.reset(&key, generation).await;
        }
        if !throttle.is_zero() {
            tokio::time::sleep(throttle).await;
        }
        Ok(())
    }

    /// The same error for every partition of the request.
    fn refused(&self, asked: &[(Key, u64)], error: &BrokerError) -> FollowUp {
        let mut follow_up = FollowUp::default();
        let mut state = self.shared.lock();
        for (key, generation) in asked {
            self.judge(&mut state, key, *generation, error, &mut follow_up);
        }
        drop(state);
        self.shared.ready.notify_one();
        follow_up
    }

    fn take_all(&self, asked: &[(Key, u64)], results: Vec<FetchResult>, note: &Arc<str>) -> FollowUp {
        let mut follow_up = FollowUp::default();
        for ((key, generation), result) in asked.iter().zip(results) {
            // Before the lock: it costs a CRC over all bytes.
            let walked = walk(&result, self.shared.config.check_crcs);
            let mut state = self.shared.lock();
            let Some(part) = state.current(key, *generation) else {
                continue;
            };
            if part.topic_id != result.topic || key.1 != result.partition {
                let error = ClientError::UnexpectedReply { request: "Fetch" }.into();
                state.fail(key, *generation, error);
                continue;
            }
            if let Some(code) = result.error {
                let error = BrokerError { message: note.clone(), ..BrokerError::of(code) };
                self.judge(&mut state, key, *generation, &error, &mut follow_up);
                continue;
            }
            if part.is_at_follower() {
                part.is_served_by_follower();
                // What was visible stays so, although a follower hears of it a little later.
                part.high_watermark = part.high_watermark.max(Some(result.high_watermark));
            } else {
                part.high_watermark = Some(result.high_watermark);
            }
            part.retry_at = None;
            part.failures = 0;
            let from_offset = part.fetch_offset;
            let Walked { end_offset, sound_bytes, packed, damage } = walked;
            if let Some(end_offset) = end_offset.filter(|end| *end > from_offset) {
                part.fetch_offset = end_offset;
                let bytes = result.batches.slice(..sound_bytes);
                let fetched = FetchedBatch {
                    topic: key.0.clone(),
                    partition: key.1,
                    plain: (!packed).then(|| bytes.clone()),
                    bytes,
                    from_offset,
                    end_offset,
                    high_watermark: result.high_watermark,
                };
                let of = Some((key.clone(), *generation));
                let item = Item::Fetched(fetched);
                state.ready.push_back(Ready { item, of, home: self.home, bytes: sound_bytes });
                if let Some(lane) = state.lanes.get_mut(&self.home) {
                    lane.buffered_bytes += sound_bytes;
                }
            }
            if let Some((broker, shard)) = result.preferred
                && let Some(part) = state.current(key, *generation)
                && part.home == self.home
                && part.prefer(Home { broker, shard }, Instant::now())
            {
                let home = part.home;
                follow_up.moved = true;
                Shared::ensure_lane(&self.shared, &mut state, home);
            }
            if let Some((offset, error)) = damage {
                let (topic, partition) = key.clone();
                let offset = offset.unwrap_or(from_offset).max(from_offset);
                let error = ConsumeError::CorruptBatch { topic, partition, offset, error };
                state.fail(key, *generation, error);
            }
        }
        self.shared.ready.notify_one();
        follow_up
    }

    /// What an error of one partition leads to.
    fn judge(
        &self,
        state: &mut State,
        key: &Key,
        generation: u64,
        error: &BrokerError,
        follow_up: &mut FollowUp,
    ) {
        let cluster = &self.shared.cluster;
        let Some(part) = state.current(key, generation) else {
            return;
        };
        if part.home == self.home && part.is_at_follower() && error.class() != Class::Retry {
            part.back_to_leader(Instant::now());
            let home = part.home;
            follow_up.moved = true;
            // It may refuse because there is another leader.
            if error.class() == Class::RefreshAndRetry {
                follow_up.topics.insert(key.0.clone());
            }
            return Shared::ensure_lane(&self.shared, state, home);
        }
        let policy = self.shared.config.auto_offset_reset;
        if error.code == ErrorCode::OffsetOutOfRange && policy != AutoOffsetReset::Error {
            follow_up.out_of_range.push((key.clone(), generation));
            return;
        }
        match error.class() {
            Class::Fatal => {
                let (topic, partition) = key.clone();
                let offset = part.fetch_offset;
                let error = ConsumeError::Refused { topic, partition, offset, error: error.clone() };
                state.fail(key, generation, error);
            }
            Class::Retry | Class::RefreshAndRetry | Class::Unknown => {
                part.failures += 1;
                let wait = error.retry_after.max(cluster.config.backoff(part.failures));
                part.retry_at = Some(Instant::now() + wait);
                if error.class() == Class::RefreshAndRetry {
                    follow_up.topics.insert(key.0.clone());
                }
            }
        }
    }

    /// The position is outside the log: moves it as the configuration says.
    async fn reset(&self, key: &Key, generation: u64) {
        let spec = match self.shared.config.auto_offset_reset {
            AutoOffsetReset::Latest => OffsetSpec::Latest,
            AutoOffsetReset::Earliest | AutoOffsetReset::Error => OffsetSpec::Earliest,
        };
        let listed = admin::list_offsets(&self.shared.cluster, &key.0, &[(key.1, spec)]).await;
        let mut state = self.shared.lock();
        match listed {
            Ok(listed) => {
                // What was fetched before is still to be handed out, and moves the position by itself.
                let drained = !state.has_ready(key);
                if let (Some(part), Some(listed)) = (state.current(key, generation), listed.first()) {
                    part.fetch_offset = listed.offset;
                    if drained {
                        part.position = listed.offset;
                    }
                }
            }
            Err(error) => {
                state.fail(key, generation, error.into());
                drop(state);
                self.shared.ready.notify_one();
            }
        }
    }

    /// The topics of which partitions are read here.
    fn topics(&self) -> BTreeSet<Arc<str>> {
        let state = self.shared.lock();
        let mine = state.parts.iter().filter(|(_, part)| part.home == self.home);
        mine.map(|(key, _)| key.0.clone()).collect()
    }

    /// The connection failed: waits, tells the application now and then, and learns where to go.
    async fn back_off(&mut self, error: ClientError) {
        self.connection = None;
        let topics = self.topics();
        if Shared::leave_followers(&self.shared, self.home) && self.topics().is_empty() {
            // It may be new, or elsewhere by now.
            let asked_at = Instant::now();
            for topic in topics {
                Shared::refresh(&self.shared, &topic, asked_at).await;
            }
            return;
        }
        self.failures += 1;
        let failing_since = *self.failing_since.get_or_insert_with(Instant::now);
        if failing_since.elapsed() >= self.shared.cluster.config.request_timeout {
            self.failing_since = Some(Instant::now());
            let error = match error {
                ClientError::Connection(error) => ConsumeError::Unreachable { error },
                other => ConsumeError::Client(other),
            };
            let ready = Ready { item: Item::Failed(error), of: None, home: self.home, bytes: 0 };
            self.shared.lock().ready.push_back(ready);
            self.shared.ready.notify_one();
        }
        let topics = self.topics();
        let backoff = self.shared.cluster.config.backoff(self.failures);
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            // Partitions have moved, or been sought: what is left here is tried again as if nothing had been.
            _ = self.version.changed() => {}
            never = Shared::relearn(&self.shared, &topics) => match never {},
        }
    }
}

/// What is left to be done after a reply, with the lock released.
#[derive(Default)]
struct FollowUp {
    topics: BTreeSet<Arc<str>>,
    out_of_range: Vec<(Key, u64)>,
    /// Partitions are read elsewhere from now on.
    moved: bool,
}

/// What a body holds, as far as it is sound.
struct Walked {
    /// After the last sound batch; `None` without any.
    end_offset: Option<u64>,
    sound_bytes: usize,
    /// Whether one of them is compressed.
    packed: bool,
    /// The offset from which it is damaged, where that can be told, and how.
    damage: Option<(Option<u64>, BatchError)>,
}

fn walk(result: &FetchResult, check_crcs: bool) -> Walked {
    let mut walked = Walked { end_offset: None, sound_bytes: 0, packed: false, damage: None };
    for batch in record_batch::batches(&result.batches) {
        let checked = match batch {
            Ok((header, bytes)) if check_crcs => record_batch::verify(bytes).map(|_| header),
            Ok((header, _)) => Ok(header),
            Err(error) => Err(error),
        };
        match checked {
            Ok(header) => {
                walked.end_offset = Some(header.end_offset());
                walked.sound_bytes += header.batch_bytes;
                walked.packed |= header.attributes.is_compressed();
            }
            Err(error) => {
                walked.damage = Some((walked.end_offset, error));
                break;
            }
        }
    }
    walked
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}
