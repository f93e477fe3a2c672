//! The metadata thread: this broker's part of the Raft group that decides what the cluster looks like.
//!
//! One thread, off the data cores, runs Raft (a library), the state machine (`logic::metadata`) and the controller.
//! A command goes into Raft's log, wherever it was given: [`MetadataHandle::submit`] sends it to whoever leads. Once a
//! majority has it on its devices it is applied on every broker, the new image is published, and only then the
//! command is answered: whoever has an answer finds the change in every image that he reads later on this broker.
//! A single broker is a group of one: the same code, the same files, and no clock ticks.
//!
//! Lifecycle: [`start`] recovers and publishes what is known to be committed before it returns; a broker that is alone
//! has everything by then. [`MetadataHandle::begin`] joins and registers, once the shards serve.
//! [`MetadataThread::stop`] finishes what is queued and joins. Handles may outlive the thread; they then say
//! `Stopped`.
//!
//! | File | Does |
//! |---|---|
//! | `store.rs` | one file for log, vote and snapshot |
//! | `log.rs` | the log in memory, and the thread that writes it |
//! | `machine.rs` | commands → image |
//! | `network.rs`, `service.rs` | what is asked of others, and what others ask |
//! | `member.rs` | joining, registering, heartbeats, the controller, who votes |
//! | `lag.rs` | what is asked of other brokers about groups, and what they ask |
//!
//! Invariants: an image is published only after a majority's devices have every command in it. A refused command
//! leaves no trace in the image. The data path never waits here: shards read images, they do not ask.

mod codec;
mod lag;
mod log;
mod machine;
mod member;
mod network;
mod panics;
mod peers;
mod raft;
mod service;
mod store;

pub use service::HandedPeer;
pub use store::StoreError;

use crate::group::lag::{Answer, Question};
use crate::mailbox::Mailboxes;
use async_channel::{Receiver, Sender};
use logic::ids::{BrokerEpoch, BrokerId, TopicId, TopicPartition};
use logic::limits::{
    BROKER_HEARTBEAT_MS_DEFAULT, BROKER_SESSION_MS_DEFAULT, LAG_QUESTIONS_MAX, METADATA_ELECTION_MS_DEFAULT,
    METADATA_QUEUE_MAX, METADATA_VOTERS_DEFAULT, PEER_CONNECTIONS_MAX, REPLICA_LAG_MS_DEFAULT,
    REPLICATION_FACTOR_DEFAULT,
};
use logic::metadata::command::{COMMAND_BYTES_MAX, Suspect};
use logic::metadata::{BrokerRegistration, Command, CommandError, Image, Outcome, controller};
use logic::rules::{self, Rule, holds};
use member::Beaten;
use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, TokioInstant};
use peers::{Member, Peers};
use schema::error_code::ErrorCode;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::{Gate, Owner, Store};
use tokio::sync::{Notify, mpsc, watch};

/// What a broker says that was removed from its cluster.
pub const REMOVED: &str = "this broker was removed from its cluster (`ringlog cluster remove`): to join again, start it with \
                           an empty data directory and --join";

/// How long the note of that may take.
const NOTE_PATIENCE: Duration = Duration::from_secs(5);

/// Told of every new image, on the metadata thread (the first time: on the thread that starts it). Must not
/// block for long: commands wait meanwhile.
pub type Publish = Box<dyn Fn(Arc<Image>) + Send>;

/// Why a command was not done, or the thread did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The store cannot be used: the broker does not start.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The thread could not be made.
    #[error("cannot start the metadata thread: {0}")]
    Thread(String),
    /// The command makes no sense now.
    #[error(transparent)]
    Rejected(#[from] CommandError),
    /// The command is above the limit.
    #[error("the command has {bytes} bytes, the limit is {COMMAND_BYTES_MAX}; place fewer replicas at once")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Nobody leads the metadata, or its store takes nothing. The command had no effect.
    #[error("the metadata cannot be changed now: {0}")]
    Unavailable(String),
    /// It was asked for, and whether it is done is not known: see the metadata.
    #[error("the change may or may not be done: {0}")]
    OutcomeUnknown(String),
    /// The cluster did not let this broker in.
    #[error("cannot join the cluster: {0}")]
    Join(String),
    /// This data directory has no place in its cluster any more.
    #[error("{REMOVED}")]
    Removed,
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Stopped,
}

impl MetadataError {
    /// The code on the wire.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            Self::Store(_) | Self::Thread(_) | Self::Join(_) | Self::Removed | Self::Unavailable(_) => {
                ErrorCode::MetadataUnavailable
            }
            Self::Rejected(error) => error.error_code(),
            Self::TooLarge { .. } => ErrorCode::InvalidRequest,
            Self::OutcomeUnknown(_) => ErrorCode::TimedOut,
            Self::Stopped => ErrorCode::ShuttingDown,
        }
    }

    /// What to tell people, who know topics by their names: as `image` has them.
    pub fn in_words(&self, image: &Image) -> String {
        let named = |id: &TopicPartition| {
            let topic = image.topic(id.topic)?;
            Some(format!("topic {} partition {}", topic.name, id.partition))
        };
        let words = match self {
            Self::Rejected(CommandError::InvalidPartition { partition, problem }) => {
                named(partition).map(|partition| format!("{partition}: {problem}"))
            }
            Self::Rejected(CommandError::UnknownPartition(partition)) => {
                named(partition).map(|partition| format!("there is no {partition}"))
            }
            _ => None,
        };
        words.unwrap_or_else(|| self.to_string())
    }
}

/// How a broker takes part in a cluster; a broker without others is a cluster of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Its number, for ever: no two brokers of a cluster have the same.
    pub broker: BrokerId,
    /// Brokers of the cluster that it joins when its data directory is new, host:port each.
    pub join: Vec<String>,
    /// Where it stands; replicas are spread over racks.
    pub rack: String,
    /// How many brokers vote on the metadata, if there are as many.
    pub metadata_voters: usize,
    /// Between two heartbeats, to the controller and of Raft's leader.
    pub heartbeat: Duration,
    /// A broker that was not heard for so long is fenced.
    pub session: Duration,
    /// The least time without a leader of the metadata before another is elected; the most is twice as long.
    pub election: Duration,
    /// A member of an in-sync set that is behind for longer is taken out of it (`replica.lag.time.max.ms`).
    pub replica_lag: Duration,
    /// Replicas of topics that are made without saying how many, if there are as many brokers
    /// (`default.replication.factor`).
    pub replication_factor: u32,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            broker: BrokerId::new(0),
            join: Vec::new(),
            rack: String::new(),
            metadata_voters: METADATA_VOTERS_DEFAULT,
            heartbeat: Duration::from_millis(BROKER_HEARTBEAT_MS_DEFAULT),
            session: Duration::from_millis(BROKER_SESSION_MS_DEFAULT),
            election: Duration::from_millis(METADATA_ELECTION_MS_DEFAULT),
            replica_lag: Duration::from_millis(REPLICA_LAG_MS_DEFAULT),
            replication_factor: REPLICATION_FACTOR_DEFAULT,
        }
    }
}

impl ClusterConfig {
    /// Who has not heard from the others for so long does not know any more what they have decided.
    fn contact(&self) -> Duration {
        2 * self.session
    }

    fn controller(&self) -> controller::Settings {
        controller::Settings {
            session_ms: self.session.as_millis() as u64,
            refused_ms: 2 * self.heartbeat.as_millis() as u64,
            retry_ms: self.session.as_millis() as u64,
            ..controller::Settings::default()
        }
    }

    fn raft(&self) -> openraft::Config {
        let ms = |duration: Duration| duration.as_millis() as u64;
        openraft::Config {
            cluster_name: "ringlog".to_owned(),
            election_timeout_min: ms(self.election),
            election_timeout_max: 2 * ms(self.election),
            heartbeat_interval: ms(self.heartbeat),
            install_snapshot_timeout: 60_000,
            // Asked for by what is applied, over all lives: see `Member::keep_log_short`. The library's own policies go by what
            // is committed, and do not ask again in a life in which little has come since.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: machine::SNAPSHOT_EVERY,
            replication_lag_threshold: 4 * machine::SNAPSHOT_EVERY,
            backoff: "20ms 50ms 100ms ...300ms".to_owned(),
            // A leader that has lost its unsynced tail must not lead the same term again (docs/adr/0014).
            enable_leader_restore: Some(false),
            // One that comes back with an old log does not unseat who leads.
            enable_pre_vote: Some(true),
            // Until somebody else is in the group.
            enable_tick: false,
            ..openraft::Config::default()
        }
    }
}

/// Where the metadata's group stands, as this broker sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    /// Who leads; `None` if that is not known.
    pub leader: Option<BrokerId>,
    /// How often a leader was elected.
    pub term: u64,
    /// Who votes.
    pub voters: Vec<BrokerId>,
    /// Who follows without a vote.
    pub observers: Vec<BrokerId>,
    /// Nobody is in it but this broker.
    pub alone: bool,
    /// Entries in this broker's log.
    pub log_end: u64,
    /// Of those, entries that are in its image.
    pub applied: u64,
    /// Of those, entries that a majority has on its devices.
    pub committed: u64,
    /// On the leader: entries that are on each member's device.
    pub matched: BTreeMap<BrokerId, u64>,
    /// On the leader: when each of the others was last heard.
    pub heard: BTreeMap<BrokerId, Instant>,
}

/// Reads and changes the metadata; cheap to clone, for every shard.
#[derive(Clone, Debug)]
pub struct MetadataHandle {
    queue: Sender<Request>,
    lag: lag::Queue,
    current: Arc<RwLock<Arc<Image>>>,
    quorum: Arc<RwLock<Quorum>>,
    /// The newest image that each shard follows.
    followed: Arc<RwLock<Vec<AtomicU64>>>,
    life: Arc<Life>,
}

/// What the shards and the metadata thread tell each other about this life of the broker.
#[derive(Debug)]
struct Life {
    began: Instant,
    /// The epoch of its last registration; 0 = it has none yet.
    registration: AtomicU64,
    /// When the cluster has last answered a heartbeat, milliseconds since it began; 0 = never.
    heard_ms: AtomicU64,
    /// An answer that is older says nothing any more.
    heard_for: Duration,
    /// The epoch of the registration after which it was removed, as the others say; 0 = they do not.
    removed_epoch: AtomicU64,
    /// It was removed, and has noted that.
    removed: watch::Sender<bool>,
    /// Replicas that may lack something, to be named by the next registration.
    doubted: Mutex<BTreeMap<TopicPartition, Suspect>>,
    noticed: Notify,
}

impl Life {
    fn new(settings: &ClusterConfig) -> Self {
        Self {
            began: Instant::now(),
            registration: AtomicU64::new(0),
            heard_ms: AtomicU64::new(0),
            heard_for: settings.contact(),
            removed_epoch: AtomicU64::new(0),
            removed: watch::Sender::new(false),
            doubted: Mutex::default(),
            noticed: Notify::default(),
        }
    }

    /// The cluster knows that this life goes on.
    fn note_heard(&self) {
        self.heard_ms.store((self.began.elapsed().as_millis() as u64).max(1), Ordering::Relaxed);
    }

    fn is_heard(&self) -> bool {
        let heard_ms = self.heard_ms.load(Ordering::Relaxed);
        heard_ms > 0 && self.began.elapsed() < Duration::from_millis(heard_ms) + self.heard_for
    }

    fn doubted(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, Suspect>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running thread.
#[derive(Debug)]
pub struct MetadataThread {
    queue: Sender<Request>,
    thread: Option<JoinHandle<()>>,
}

enum Request {
    Submit { command: Command, answer: Sender<Result<Outcome, MetadataError>> },
    Peer(HandedPeer),
    Begin { registration: BrokerRegistration, answer: Sender<Result<(), MetadataError>> },
    Leave { answer: Sender<()> },
}

/// An id for a new topic: random, so that no two topics ever share one.
pub fn new_topic_id() -> TopicId {
    TopicId::new(rand::random())
}

/// Recovers the metadata in `<data_directory>/metadata`, publishes it and starts the thread. `address` is where the
/// others find this broker, host:port; `mailboxes` are those of the shards that will follow.
pub fn start(
    data_directory: &Path,
    settings: ClusterConfig,
    address: String,
    mailboxes: &Mailboxes,
    publish: Publish,
) -> Result<(MetadataHandle, MetadataThread), MetadataError> {
    start_with(data_directory, settings, address, mailboxes, publish, Arc::new(|_| Ok(())))
}

fn start_with(
    data_directory: &Path,
    settings: ClusterConfig,
    address: String,
    mailboxes: &Mailboxes,
    publish: Publish,
    gate: Gate,
) -> Result<(MetadataHandle, MetadataThread), MetadataError> {
    let owner = Owner { broker: u64::from(settings.broker.get()), address: address.clone() };
    let (store, contents) = Store::open(data_directory, &owner, gate)?;
    let (sender, queue) = async_channel::bounded(METADATA_QUEUE_MAX);
    let (lag, lag_asked) = async_channel::bounded(LAG_QUESTIONS_MAX);
    let shards = 0..mailboxes.shards();
    let handle = MetadataHandle {
        queue: sender.clone(),
        lag,
        current: Arc::default(),
        quorum: Arc::default(),
        followed: Arc::new(RwLock::new(shards.map(|_| AtomicU64::new(0)).collect())),
        life: Arc::new(Life::new(&settings)),
    };
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (mailboxes, handle_of_thread) = (mailboxes.clone(), handle.clone());
    let setup = Setup {
        store,
        contents,
        settings,
        address,
        mailboxes,
        publish,
        queue,
        lag_asked,
        handle: handle_of_thread,
        ready,
    };
    let inherit = rules::inherit();
    let thread = std::thread::Builder::new()
        .name("ringlog-metadata".to_owned())
        .spawn(move || {
            inherit();
            run(setup);
        })
        .map_err(|error| MetadataError::Thread(error.to_string()))?;
    let thread = MetadataThread { queue: sender, thread: Some(thread) };
    is_ready.recv().unwrap_or_else(|_| Err(MetadataError::Thread("it ended".to_owned())))?;
    Ok((handle, thread))
}

impl MetadataHandle {
    /// Has `command` done by whoever leads the metadata, and waits until it is durable and published here. Waits for
    /// room in the queue. Works on any executor. Dropped while it waits, the command may still be done.
    pub async fn submit(&self, command: Command) -> Result<Outcome, MetadataError> {
        let (answer, reply) = async_channel::bounded(1);
        self.queue.send(Request::Submit { command, answer }).await.map_err(|_| MetadataError::Stopped)?;
        reply.recv().await.unwrap_or(Err(MetadataError::Stopped))
    }

    /// Joins the cluster that the settings name, if this broker is in none, and registers it, with what shards have
    /// [doubted](Self::doubt) by then. A broker that is known in a cluster does not wait: whether the others can be
    /// reached is not its to know.
    pub async fn begin(&self, registration: BrokerRegistration) -> Result<(), MetadataError> {
        let (answer, reply) = async_channel::bounded(1);
        let request = Request::Begin { registration, answer };
        self.queue.send(request).await.map_err(|_| MetadataError::Stopped)?;
        reply.recv().await.unwrap_or(Err(MetadataError::Stopped))
    }

    /// Tells the cluster that this broker is about to stop, and waits, but not for long, until others lead what it
    /// led.
    pub async fn leave(&self) {
        let (answer, reply) = async_channel::bounded(1);
        if self.queue.send(Request::Leave { answer }).await.is_ok() {
            let _ = reply.recv().await;
        }
    }

    /// Hands over a connection that another broker's metadata thread has opened; waits for room in the queue.
    pub async fn take_peer(&self, peer: HandedPeer) {
        // A thread that has stopped takes nobody; the socket closes.
        let _ = self.queue.send(Request::Peer(peer)).await;
    }

    /// How far places in partitions that `broker` leads are from their ends; those of which it says nothing within
    /// [`LAG_PEER_TIMEOUT_MS`](logic::limits::LAG_PEER_TIMEOUT_MS) are not there; of a broker that owes an answer nothing is, at
    /// once. Works on any executor.
    pub async fn measure_lag(&self, broker: BrokerId, places: Vec<Question>) -> Vec<Answer> {
        lag::measure(&self.lag, broker, places).await
    }

    /// The latest image.
    pub fn image(&self) -> Arc<Image> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the group stands.
    pub fn quorum(&self) -> Quorum {
        self.quorum.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This life's registration, for which alone the broker leads; 0 before it has one. Shards are told of an image
    /// after it has changed.
    pub fn registration(&self) -> BrokerEpoch {
        BrokerEpoch::new(self.life.registration.load(Ordering::Acquire))
    }

    /// Whether a leader of the metadata with a majority behind it has lately answered this broker: then it is not
    /// taken for dead, and what its image says is not old.
    pub fn is_heard(&self) -> bool {
        self.life.is_heard()
    }

    /// Waits until this broker is told that it was removed from its cluster: then it has no business there any more, and will
    /// not start again with its data directory. Works on any executor.
    pub async fn removed(&self) {
        // The sender is as old as the handle.
        let _ = self.life.removed.subscribe().wait_for(|removed| *removed).await;
    }

    /// Whether what its image says is what the cluster has decided, as far as this broker `me` can know: it is alone, has
    /// lately been answered as [`Self::is_heard`] says, or leads others that have yet to register.
    pub fn is_current(&self, me: BrokerId) -> bool {
        let quorum = self.quorum.read().unwrap_or_else(PoisonError::into_inner);
        let leads_itself = quorum.leader == Some(me) && self.image().brokers().count() < 2;
        quorum.alone || leads_itself || self.is_heard()
    }

    /// A replica of this broker may lack something: the next registration names it, and that is at once if the broker
    /// is registered already.
    pub fn doubt(&self, suspect: Suspect) {
        self.life.doubted().insert(suspect.partition, suspect);
        self.life.noticed.notify_one();
    }

    /// `shard` does what the image of `version` says. The cluster is told of what all shards follow.
    pub fn note_followed(&self, shard: usize, version: u64) {
        let followed = self.followed.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = followed.get(shard) {
            shard.store(version, Ordering::Relaxed);
        }
    }

    /// The newest image that all shards follow.
    fn followed(&self) -> u64 {
        let followed = self.followed.read().unwrap_or_else(PoisonError::into_inner);
        let versions = followed.iter().map(|version| version.load(Ordering::Relaxed));
        versions.min().unwrap_or_else(|| self.image().version())
    }
}

impl MetadataThread {
    /// Takes no more commands, finishes those that are queued, and waits for the thread's end.
    pub fn stop(self) {}
}

impl Drop for MetadataThread {
    fn drop(&mut self) {
        self.queue.close();
        // A panic of the thread has ended the process.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Setup {
    store: Store,
    contents: store::Contents,
    settings: ClusterConfig,
    address: String,
    mailboxes: Mailboxes,
    publish: Publish,
    queue: Receiver<Request>,
    lag_asked: Receiver<lag::Asked>,
    handle: MetadataHandle,
    ready: std::sync::mpsc::Sender<Result<(), MetadataError>>,
}

fn run(setup: Setup) {
    panics::end_the_process();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ready = setup.ready.clone();
    let writer = match runtime {
        Ok(runtime) => runtime.block_on(serve(setup)),
        Err(error) => {
            let _ = ready.send(Err(MetadataError::Thread(error.to_string())));
            return;
        }
    };
    // The runtime is gone, and with it all who write.
    if let Some(writer) = writer {
        writer.join();
    }
}

async fn serve(setup: Setup) -> Option<log::Writer> {
    let Setup { store, mut contents, settings, address, mailboxes, publish, queue, lag_asked, handle, ready } =
        setup;
    let fail = |why: String| {
        let _ = ready.send(Err(MetadataError::Thread(why)));
    };
    if contents.removed {
        let _ = ready.send(Err(MetadataError::Removed));
        return None;
    }
    if contents.joining && settings.join.is_empty() {
        fail(
            "this broker had begun to join a cluster, and was not done: start it with --join again"
                .to_owned(),
        );
        return None;
    }
    let file = store.file();
    let (log, writer) = match log::Log::start(store, &mut contents) {
        Ok(started) => started,
        Err(error) => {
            fail(error.to_string());
            return None;
        }
    };
    let applied = machine::Applied::new(handle.current.clone());
    let publish = Arc::new(Mutex::new(publish));
    let machine =
        match machine::Machine::new(log.clone(), applied.clone(), publish.clone(), contents.snapshot) {
            Ok(machine) => machine,
            Err(error) => {
                fail(format!("its snapshot: {error}"));
                return Some(writer);
            }
        };
    let (words, heard) = mpsc::channel(METADATA_QUEUE_MAX);
    let peers = Peers::new(settings.broker, handle.current.clone(), words);
    let me = u64::from(settings.broker.get());
    let network = network::Network(peers.clone());
    let config = Arc::new(settings.raft());
    let raft = match raft::Raft::new(me, config, network, log.clone(), machine).await {
        Ok(raft) => raft,
        Err(error) => {
            fail(error.to_string());
            return Some(writer);
        }
    };
    let joins = contents.joining || log.is_pristine() && !settings.join.is_empty();
    // What its log speaks of first may be a group of this broker alone, which it was before it lost its disk.
    raft.runtime_config().elect(!joins || !holds(Rule::JoinersDoNotStand));
    let admitted = Arc::new(AtomicBool::new(!joins));
    let member = Member { raft, peers, applied, log, settings, address, mailboxes, admitted };
    let begun = tokio::select! {
        begun = begin_group(&member) => begun.map_err(MetadataError::Thread),
        // Nothing here would give it any: the shards have not started.
        why = member.log.no_room() => Err(store::without_room(&file, &why).into()),
    };
    note_quorum(&member, &handle);
    let failed = begun.is_err();
    let _ = ready.send(begun);
    if !failed {
        let watching = tokio::spawn(watch_quorum(member.clone(), handle.clone()));
        let driving = member.clone();
        let driving = tokio::spawn(async move { driving.drive(heard).await });
        let cutting = member.clone();
        let cutting = tokio::spawn(async move { cutting.keep_log_short().await });
        let asking = tokio::spawn(lag::ask_others(member.peers.clone(), lag_asked));
        take_requests(&member, &handle, &publish, queue).await;
        [watching, driving, cutting, asking].iter().for_each(|task| task.abort());
    }
    tokio::select! {
        _ = member.raft.shutdown() => {}
        // What it waits for may never come.
        _ = member.log.no_room() => {}
    }
    Some(writer)
}

/// Gets as far as this broker gets by itself: makes its group of one, or leads it again.
async fn begin_group(member: &Member) -> Result<(), String> {
    let me = u64::from(member.settings.broker.get());
    if !member.is_admitted() {
        // Others will make it a member.
        return Ok(());
    }
    let mut metrics = member.raft.metrics();
    if member.log.is_pristine() {
        let group = BTreeMap::from([(me, raft::Node::new(&member.address))]);
        member.raft.initialize(group).await.map_err(|error| error.to_string())?;
    } else {
        // It says what is stored a little after it has read it.
        let has_read = metrics.wait_until(|now| now.last_log_index.is_some() || now.current_term > 0);
        has_read.await.map_err(|_| "Raft has stopped".to_owned())?;
        if !member.is_alone() {
            member.keep_time(true);
            return Ok(());
        }
        member.raft.trigger().elect(false).await.map_err(|error| error.to_string())?;
    }
    let recovered = async {
        let leads = |last: Option<u64>, leader: Option<u64>| last.filter(|_| leader == Some(me));
        let led = metrics.wait_until(|now| leads(now.last_log_index, now.current_leader).is_some()).await;
        let last = led.ok()?.last_log_index?;
        member.applied.watch().wait_for(|next| *next > last).await.ok()?;
        Some(())
    };
    tokio::time::timeout(Duration::from_secs(30), recovered)
        .await
        .map_err(|_| "a group of one did not elect its member".to_owned())?
        .ok_or_else(|| "Raft has stopped".to_owned())
}

async fn take_requests(
    member: &Member,
    handle: &MetadataHandle,
    publish: &Arc<Mutex<Publish>>,
    queue: Receiver<Request>,
) {
    let (stopping, stop) = watch::channel(false);
    let mut tasks = tokio::task::JoinSet::new();
    let peers = Arc::new(tokio::sync::Semaphore::new(PEER_CONNECTIONS_MAX));
    while let Ok(request) = queue.recv().await {
        // Those that are done make room.
        while tasks.try_join_next().is_some() {}
        let member = member.clone();
        match request {
            Request::Submit { command, answer } => {
                if tasks.len() >= METADATA_QUEUE_MAX {
                    tasks.join_next().await;
                }
                tasks.spawn(async move {
                    // Nobody waits any more if this fails: a client that went away.
                    let _ = answer.try_send(member.submit(&command).await);
                });
            }
            Request::Peer(peer) => {
                // One too many is closed; its broker tries again.
                if let Ok(place) = peers.clone().try_acquire_owned() {
                    tokio::spawn(async move {
                        service::serve(member, peer).await;
                        drop(place);
                    });
                }
            }
            Request::Begin { registration, answer } => {
                let life = Living {
                    member,
                    handle: handle.clone(),
                    publish: publish.clone(),
                    registration,
                    stop: stop.clone(),
                };
                tokio::spawn(life.live(answer));
            }
            Request::Leave { answer } => {
                stopping.send_replace(true);
                let removed = *handle.life.removed.borrow();
                tokio::spawn(async move {
                    // It has nothing to leave any more.
                    if !removed {
                        leave(&member).await;
                    }
                    let _ = answer.try_send(());
                });
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// This broker in its cluster: it joins, registers, is heard, and registers anew when it must.
struct Living {
    member: Member,
    handle: MetadataHandle,
    publish: Arc<Mutex<Publish>>,
    registration: BrokerRegistration,
    stop: watch::Receiver<bool>,
}

impl Living {
    async fn live(self, answer: Sender<Result<(), MetadataError>>) {
        let member = &self.member;
        let storage_uuid = self.registration.storage_uuid;
        let mut joins = !member.is_admitted();
        if joins && let Err(error) = member.join(storage_uuid).await {
            let _ = answer.try_send(Err(error));
            return;
        }
        let alone = !joins && member.is_alone();
        // The others may look for it where it was.
        let mut announces = !joins && !alone;
        if announces {
            let _ = answer.try_send(Ok(()));
        }
        let mut told = String::new();
        loop {
            let entered = tokio::select! {
                entered = self.enter() => entered,
                () = member.announce(storage_uuid), if announces => continue,
            };
            match entered {
                Ok(epoch) => {
                    // From here on it is where its registration says.
                    announces = false;
                    // Later registrations find it noted.
                    if std::mem::take(&mut joins)
                        && let Err(error) = member.has_joined().await
                    {
                        let _ = answer.try_send(Err(error));
                        return;
                    }
                    let _ = answer.try_send(Ok(()));
                    match self.stay(epoch).await {
                        Beaten::Again => {}
                        Beaten::Removed => return self.go().await,
                        Beaten::Stopped => return,
                    }
                }
                // It is asked for again; a registration that comes twice is only a later epoch.
                Err(error)
                    if !alone && !matches!(error, MetadataError::Rejected(_)) && !member.is_stopped() =>
                {
                    // Once for each reason, not with every try.
                    let why = error.to_string();
                    if told != why {
                        tracing::warn!("broker {} is not registered yet: {why}", self.registration.broker);
                        told = why;
                    }
                    tokio::time::sleep(member.settings.heartbeat).await;
                }
                Err(error) => {
                    let me = self.registration.broker;
                    let rejected = matches!(error, MetadataError::Rejected(_));
                    let told = answer.try_send(Err(error.clone())).is_ok();
                    if rejected && !told {
                        crate::fatal(&format!("broker {me} cannot register in its cluster: {error}"));
                    }
                    return tracing::error!("broker {me} cannot register: {error}");
                }
            }
        }
    }

    /// Gives the cluster its identity, if it has none, and registers this life of the broker, naming what is doubted.
    async fn enter(&self) -> Result<BrokerEpoch, MetadataError> {
        let (member, me) = (&self.member, self.registration.broker);
        if member.leads() && member.peers.image().cluster_id().is_none() {
            let id = rand::random::<u128>().max(1);
            match member.submit(&Command::InitializeCluster { id }).await {
                // Somebody was faster.
                Ok(_) | Err(MetadataError::Rejected(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let suspects: Vec<Suspect> = self.handle.life.doubted().values().copied().collect();
        let image = member.peers.image();
        let command = Command::RegisterBroker {
            registration: self.registration.clone(),
            suspects: suspects.clone(),
            // A broker that is alone serves at once: there is nobody to watch it, and nobody to fence it from.
            starts_fenced: image.brokers().any(|other| other.registration.broker != me) || !member.leads(),
        };
        let epoch = match member.submit(&command).await? {
            Outcome::BrokerRegistered { epoch, .. } => epoch,
            other => return Err(MetadataError::OutcomeUnknown(format!("registering gave {other:?}"))),
        };
        // What was doubted meanwhile is named by the next one.
        self.handle.life.doubted().retain(|_, doubted| !suspects.contains(doubted));
        self.handle.life.registration.store(epoch.get(), Ordering::Release);
        // The shards may follow the image that has it already, and have to know whose registration it is.
        let publish = self.publish.lock().unwrap_or_else(PoisonError::into_inner);
        publish(member.peers.image());
        Ok(epoch)
    }

    /// It was removed. Noted, so that whatever starts brokers anew does not bring it back: whoever removes a broker that nobody
    /// reaches does not want to see it again.
    async fn go(&self) {
        tracing::error!("broker {}: {REMOVED}", self.registration.broker);
        // A disk that takes nothing is no reason to stay.
        match tokio::time::timeout(NOTE_PATIENCE, self.member.log.note_removed()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("it cannot note that it was removed: {error}"),
            Err(_) => tracing::error!("it cannot note that it was removed within {NOTE_PATIENCE:?}"),
        }
        self.handle.life.removed.send_replace(true);
    }

    /// Is heard until there is something to register for.
    async fn stay(&self, epoch: BrokerEpoch) -> Beaten {
        let life = &self.handle.life;
        let doubted = async {
            while life.doubted().is_empty() {
                life.noticed.notified().await;
            }
        };
        let beats = self.member.beat(
            (epoch, self.registration.storage_uuid),
            life,
            || self.handle.followed(),
            self.stop.clone(),
        );
        tokio::select! {
            beaten = beats => beaten,
            () = doubted => Beaten::Again,
        }
    }
}

/// Until nobody is led from here that another could lead, but not for long.
async fn leave(member: &Member) {
    let me = member.peers.me();
    if member.peers.image().brokers().count() < 2 {
        return;
    }
    let mut images = member.applied.watch();
    let fenced = async {
        while member.peers.image().broker(me).is_some_and(|known| !known.fenced) {
            if images.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(4 * member.settings.session, fenced).await;
    member.hand_over().await;
}

async fn watch_quorum(member: Member, handle: MetadataHandle) {
    let mut metrics = member.raft.metrics();
    while metrics.changed().await.is_ok() {
        note_quorum(&member, &handle);
    }
}

fn note_quorum(member: &Member, handle: &MetadataHandle) {
    let metrics = member.raft.metrics();
    let metrics = metrics.borrow_watched();
    let broker = |id: u64| BrokerId::new(u32::try_from(id).unwrap_or(u32::MAX));
    let end = |index: Option<u64>| index.map_or(0, |index| index + 1);
    let group = metrics.membership_config.membership();
    let matched = metrics.replication.iter().flatten();
    let heard = metrics.heartbeat.iter().flatten();
    // The library's instants only say how long ago they were.
    let now = Instant::now();
    let before = |at: &TokioInstant| now.checked_sub(at.elapsed()).unwrap_or(now);
    let quorum = Quorum {
        leader: metrics.current_leader.map(broker),
        term: metrics.current_term,
        voters: group.voter_ids().map(broker).collect(),
        observers: group.learner_ids().map(broker).collect(),
        // Its log may speak of nobody else only because it has just begun to fill again.
        alone: member.is_admitted() && member.is_alone(),
        log_end: end(metrics.last_log_index),
        applied: end(metrics.last_applied.map(|id| id.index)),
        committed: end(metrics.cluster_committed.map(|id| id.index)),
        heard: heard.filter_map(|(id, at)| Some((broker(*id), before(at.as_deref()?)))).collect(),
        matched: matched.map(|(id, matched)| (broker(*id), end(matched.map(|id| id.index)))).collect(),
    };
    *handle.quorum.write().unwrap_or_else(PoisonError::into_inner) = quorum;
}

#[cfg(test)]
mod cluster;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod founder;
#[cfg(test)]
pub(crate) mod images;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;
