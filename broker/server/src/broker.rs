//! A running broker: the metadata thread and one shard per core.
//!
//! [`Broker::start`] returns when every shard serves; [`Broker::stop`] makes everything pending durable,
//! writes clean checkpoints and joins all threads. The same type is the embedded broker of tests, demo
//! and bench. A panic in a shard ends the process: the others must not go on acknowledging.

use crate::alarm::Alarm;
use crate::connection::Connection;
use crate::data_directory::{DataDirectory, DataDirectoryError};
use crate::group::GroupSettings;
use crate::mailbox::{Mailbox, Mailboxes, Message, mailboxes};
use crate::metadata::{self, MetadataError, MetadataHandle, MetadataThread};
pub use crate::metadata::{ClusterConfig, REMOVED};
use crate::observe::Observer;
pub use crate::shard::{Capacity, TimeOuts};
use crate::shard::{Identity, Shard};
use crate::socket::Sockets;
pub use crate::storage::DiskPolicy;
use crate::storage::leftovers;
use crate::storage::ring::RingDisk;
use crate::storage::{Environment, Storage};
use crate::store::Store;
use crate::{accept, admin, fetch, group, homes, produce, stall, traffic};
use async_channel::{Receiver, Sender};
use glommio::net::TcpListener;
use glommio::{LocalExecutorBuilder, Placement};
use logic::ids::ShardId;
use logic::limits::{
    COMPACTION_LOOK_MS, FREE_SPACE_LOW_BYTES, IDLE_FLOOR_MS, PRODUCER_EXPIRATION_MS_DEFAULT,
    ROUNDS_IN_FLIGHT_DEFAULT, SCRUB_DELAY_MS_MAX, SCRUB_INTERVAL_MS_DEFAULT,
};
use logic::metadata::reconcile::Here;
use logic::metadata::{BrokerRegistration, Image};
use logic::replication;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Connections that may wait to be accepted by a shard; the host's somaxconn may be lower.
const LISTEN_BACKLOG: i32 = 1024;
/// How often retention is looked at, ticks of [`IDLE_FLOOR_MS`].
const RETENTION_TICKS: u64 = 10;

/// How often the expiry of fetches looks whether the shard stops.
const EXPIRY_LOOK_MS: u64 = 1_000;
/// How long a stopping broker waits for its last replies to be taken.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// What a broker is started with.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Where its files are.
    pub data_directory: PathBuf,
    /// Where it listens; port 0 = any free one.
    pub listen: SocketAddr,
    /// The host that clients and other brokers are told; else the address it listens on.
    pub advertised_host: Option<String>,
    /// How it takes part in a cluster.
    pub cluster: ClusterConfig,
    /// Shards.
    pub shards: usize,
    /// Shard k runs on core `cores[k]`; `None` = wherever the kernel puts it.
    pub cores: Option<Vec<usize>>,
    /// Flush rounds in flight per shard, 1 to 4.
    pub rounds_in_flight: usize,
    /// How long a shard polls before it sleeps: lower latency for a whole core.
    pub poll: Duration,
    /// Silence after which a producer is forgotten (`producer.id.expiration.ms`).
    pub producer_id_expiration: Duration,
    /// From the begin of one reading of all that is stored to that of the next; zero = none is read without need.
    pub scrub_interval: Duration,
    /// The data directory supports O_DIRECT.
    pub direct: bool,
    /// How the disk is to be used.
    pub disk: DiskPolicy,
    /// What `Status` says from the start on.
    pub notices: Vec<String>,
    /// Coordinators of consumer groups.
    pub groups: GroupSettings,
    /// How long peers may take; a tool for tests, not a setting.
    pub time_outs: TimeOuts,
    /// How much a shard takes from its peers; a tool for tests, not a setting.
    pub capacity: Capacity,
}

impl BrokerConfig {
    /// One unpinned shard, no polling, the safe choices for a disk that nothing is known of.
    pub fn new(data_directory: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            data_directory: data_directory.into(),
            listen,
            advertised_host: None,
            cluster: ClusterConfig::default(),
            shards: 1,
            cores: None,
            rounds_in_flight: ROUNDS_IN_FLIGHT_DEFAULT,
            poll: Duration::ZERO,
            producer_id_expiration: Duration::from_millis(PRODUCER_EXPIRATION_MS_DEFAULT),
            scrub_interval: Duration::from_millis(SCRUB_INTERVAL_MS_DEFAULT),
            direct: true,
            disk: DiskPolicy::default(),
            notices: Vec::new(),
            groups: GroupSettings::default(),
            time_outs: TimeOuts::default(),
            capacity: Capacity::default(),
        }
    }
}

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDirectory(#[from] DataDirectoryError),
    /// The metadata.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The port.
    #[error(
        "cannot listen on {address}: {error}; stop what listens there, or choose another port with --listen"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// A shard's thread or files.
    #[error("shard {shard} cannot start: {error}")]
    Shard {
        /// Which one.
        shard: usize,
        /// Why.
        error: String,
    },
    /// A setting that makes no sense.
    #[error("{0}")]
    Setting(String),
}

/// Why a broker did not stop in order; what was acknowledged is safe all the same.
#[derive(Debug, thiserror::Error)]
#[error("shard {shard} did not stop in order: {error}; the next start recovers")]
pub struct StopError {
    shard: usize,
    error: String,
}

/// A running broker.
pub struct Broker {
    address: SocketAddr,
    mailboxes: Mailboxes,
    observer: Observer,
    stop: Vec<Sender<()>>,
    threads: Vec<JoinHandle<Result<(), String>>>,
    metadata: MetadataThread,
    _directory: DataDirectory,
}

impl Broker {
    /// Starts a broker; it serves when this returns.
    pub fn start(config: BrokerConfig) -> Result<Self, StartError> {
        check(&config)?;
        let directory = DataDirectory::open(&config.data_directory)?;
        let (address, port) = take_port(config.listen)?;
        let (mailboxes, own) = mailboxes(config.shards);
        let (signals, signalled): (Vec<_>, Vec<_>) =
            (0..config.shards).map(|_| async_channel::bounded::<()>(1)).unzip();
        let publish = {
            let signals = signals.clone();
            Box::new(move |_| signals.iter().for_each(notify))
        };
        let host = config.advertised_host.clone().unwrap_or_else(|| advertised(address.ip()));
        let cluster = config.cluster.clone();
        if host.is_empty() && !cluster.join.is_empty() {
            return Err(StartError::Setting(
                "a broker of a cluster that listens on every address must say by which host others reach it; add \
                 --advertise HOST"
                    .to_owned(),
            ));
        }
        let at = format!("{host}:{}", address.port());
        let (handle, metadata) = metadata::start(&directory.path, cluster.clone(), at, &mailboxes, publish)?;
        // Before a shard opens anything: what is here is read by the names that the metadata gave it.
        let known = handle.image().broker(cluster.broker).map(|known| known.registration.storage_uuid);
        if let Some(known) = known.filter(|known| *known != directory.uuid) {
            return Err(StartError::Setting(format!(
                "broker {}: its disk is {:032x}, and it is known with {known:032x}: this data directory is not the one \
                 that its metadata belongs to",
                cluster.broker, directory.uuid
            )));
        }
        let registration = BrokerRegistration {
            broker: cluster.broker,
            host,
            port: address.port(),
            shards: config.shards as u16,
            storage_uuid: directory.uuid,
            rack: cluster.rack,
        };
        // A broker that is alone asks nobody, and leads from the first moment.
        let alone = handle.quorum().alone;
        if alone {
            futures_executor::block_on(handle.begin(registration.clone()))?;
        }
        // One for all shards: no two of them open the same partition by it.
        let image = handle.image();
        let here = Here { broker: cluster.broker, shard: ShardId::new(0), shards: config.shards as u16 };
        directory.set_shards(config.shards, |id| image.home_here(here, id).get().into())?;
        let (ready, started) = async_channel::bounded(config.shards);
        let (stop, stopped): (Vec<_>, Vec<_>) =
            (0..config.shards).map(|_| async_channel::bounded::<()>(1)).unzip();
        let alarm =
            Alarm::start().map_err(|error| StartError::Shard { shard: 0, error: error.to_string() })?;
        let began = Instant::now();
        let mut threads = Vec::with_capacity(config.shards);
        for (number, ((mailbox, signal), stop)) in own.into_iter().zip(signalled).zip(stopped).enumerate() {
            let setup = Setup {
                number,
                config: config.clone(),
                address,
                root: directory.path.clone(),
                uuid: directory.uuid,
                metadata: handle.clone(),
                image: image.clone(),
                mailboxes: mailboxes.clone(),
                mailbox,
                signal,
                stop,
                alarm: alarm.clone(),
                ready: ready.clone(),
                began,
            };
            let thread = std::thread::Builder::new()
                .name(format!("ringlog-{number}"))
                .spawn(move || run_shard(setup))
                .map_err(|error| StartError::Shard { shard: number, error: error.to_string() })?;
            threads.push(thread);
        }
        drop(ready);
        let observer = Observer {
            mailboxes: mailboxes.clone(),
            metadata: handle.clone(),
            broker: cluster.broker,
            shards: config.shards as u16,
            began,
        };
        let mut broker =
            Self { address, mailboxes, observer, stop, threads, metadata, _directory: directory };
        for _ in 0..config.shards {
            match started.recv_blocking() {
                Ok((_, Ok(()))) => {}
                Ok((shard, Err(error))) => {
                    broker.abandon();
                    return Err(StartError::Shard { shard, error });
                }
                Err(_) => {
                    let error = "its thread ended".to_owned();
                    return Err(StartError::Shard { shard: 0, error });
                }
            }
        }
        // The listeners have the port now.
        drop(port);
        // Only now: the others answer by this port.
        if !alone && let Err(error) = futures_executor::block_on(handle.begin(registration)) {
            broker.abandon();
            return Err(error.into());
        }
        Ok(broker)
    }

    /// For whoever looks at it from another thread.
    pub fn observer(&self) -> Observer {
        self.observer.clone()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the cluster says that this broker was removed from it; for ever in most lives. It is to be
    /// [stopped](Self::stop) then, with [`REMOVED`] as the reason.
    pub async fn removed(&self) {
        self.observer.metadata.removed().await;
    }

    /// Stops in order: no new requests, everything pending durable, clean checkpoints.
    /// In a cluster, others lead what this broker led before it stops, if they can.
    pub fn stop(mut self) -> Result<(), StopError> {
        futures_executor::block_on(self.observer.metadata.leave());
        self.stop.iter().for_each(notify);
        let mut result = Ok(());
        for (shard, thread) in self.threads.drain(..).enumerate() {
            let ended = thread.join().unwrap_or_else(|_| Err("it panicked".to_owned()));
            if let Err(error) = ended {
                result = Err(StopError { shard, error });
            }
        }
        self.mailboxes.close();
        self.metadata.stop();
        result
    }

    fn abandon(&mut self) {
        self.stop.iter().for_each(notify);
        for thread in self.threads.drain(..) {
            // The first error is the one that is told.
            let _ = thread.join();
        }
    }
}

/// Signals a shard; one that has a signal waiting needs no second.
fn notify(signal: &Sender<()>) {
    let _ = signal.try_send(());
}

fn check(config: &BrokerConfig) -> Result<(), StartError> {
    let most = usize::from(u16::MAX);
    if config.shards == 0 || config.shards > most {
        return Err(StartError::Setting(format!("shards must be 1 to {most}, not {}", config.shards)));
    }
    if let Some(cores) = &config.cores
        && cores.len() != config.shards
    {
        let (cores, shards) = (cores.len(), config.shards);
        return Err(StartError::Setting(format!(
            "{cores} cores named for {shards} shards; name one for each"
        )));
    }
    if !(1..=logic::limits::ROUNDS_IN_FLIGHT_MAX).contains(&config.rounds_in_flight) {
        let rounds = config.rounds_in_flight;
        return Err(StartError::Setting(format!("rounds in flight must be 1 to 4, not {rounds}")));
    }
    if let Some(complaint) = config.disk.complaint() {
        return Err(StartError::Setting(complaint));
    }
    Ok(())
}

/// Takes the port for this broker: every shard's listener shares it, so a second broker on it would be let
/// in silently. The socket keeps the port, without listening, until the shards' listeners have it.
fn take_port(listen: SocketAddr) -> Result<(SocketAddr, socket2::Socket), StartError> {
    let take = || -> io::Result<(SocketAddr, socket2::Socket)> {
        let domain = socket2::Domain::for_address(listen);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        // Connections of an earlier life that are not forgotten yet are no obstacle; a listener is.
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into())?;
        socket.set_reuse_port(true)?;
        let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((address, socket))
    };
    take().map_err(|error| StartError::Listen { address: listen, error })
}

/// The host to tell clients: the address listened on; empty if that is every address, which clients
/// take as the host they came by.
fn advertised(ip: IpAddr) -> String {
    if ip.is_unspecified() { String::new() } else { ip.to_string() }
}

struct Setup {
    number: usize,
    config: BrokerConfig,
    address: SocketAddr,
    root: PathBuf,
    uuid: u128,
    metadata: MetadataHandle,
    image: Arc<Image>,
    mailboxes: Mailboxes,
    mailbox: Mailbox,
    signal: Receiver<()>,
    stop: Receiver<()>,
    alarm: Alarm,
    ready: Sender<(usize, Result<(), String>)>,
    began: Instant,
}

fn run_shard(setup: Setup) -> Result<(), String> {
    let placement = match &setup.config.cores {
        Some(cores) => Placement::Fixed(cores[setup.number]),
        None => Placement::Unbound,
    };
    let executor = LocalExecutorBuilder::new(placement)
        .name(&format!("shard-{}", setup.number))
        .spin_before_park(setup.config.poll)
        .preempt_timer(Duration::from_millis(1))
        .make();
    let executor = match executor {
        Ok(executor) => executor,
        Err(error) => {
            let text = format!(
                "its executor cannot be made: {error}; it needs io_uring and locked memory (ulimit -l)"
            );
            let _ = setup.ready.send_blocking((setup.number, Err(text)));
            return Ok(());
        }
    };
    if let Err(error) = crate::time_slice::shorten() {
        tracing::debug!(shard = setup.number, %error, "the kernel's work waits for this shard's time slice");
    }
    setup.alarm.watch_thread(setup.number);
    let run = std::panic::AssertUnwindSafe(|| executor.run(shard_main(setup)));
    match std::panic::catch_unwind(run) {
        Ok(result) => result,
        Err(_) => crate::fatal("a shard panicked: an invariant is broken, see the message above"),
    }
}

/// Time and randomness of the running broker.
pub(crate) struct System {
    pub(crate) began: Instant,
}

impl Environment for System {
    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
    fn monotonic_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
    fn nonce(&self) -> u64 {
        rand::random()
    }
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(glommio::timer::sleep(duration))
    }
}

async fn shard_main(setup: Setup) -> Result<(), String> {
    setup.alarm.keep_awake(setup.number);
    // Held to the end: the alarm lasts as long as the last shard.
    let _alarm = setup.alarm.clone();
    let ready = setup.ready.clone();
    let number = setup.number;
    let stop = setup.stop.clone();
    let opened = open_shard(&setup).await;
    let (shard, listener) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let _ = ready.send((number, Err(error))).await;
            return Ok(());
        }
    };
    spawn_background(&shard, setup);
    shard.begin_to_serve();
    let accepting = shard.clone();
    let accept =
        stall::spawn("accepting connections", async move { accept::accept(accepting, listener).await });
    let _ = ready.send((number, Ok(()))).await;
    drop(ready);
    // A closed channel means that the broker was dropped without being stopped: stop all the same.
    let _ = stop.recv().await;
    shard.begin_stop();
    accept.cancel().await;
    for connection in shard.connections.borrow().values() {
        connection.finish();
    }
    let mut parked = Vec::new();
    shard.waiters.borrow_mut().drain(&mut parked);
    parked.iter().for_each(|parked| parked.wake());
    let result = shard.store.shut_down().await.map_err(|error| error.to_string());
    // Followers have been sent what became durable last; leaders have been told.
    shard.peers.stop();
    // What became durable is still to be told; a peer that does not listen is not waited for.
    let patience = Instant::now() + STOP_PATIENCE;
    while !shard.connections.borrow().is_empty() && Instant::now() < patience {
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
    result
}

async fn open_shard(setup: &Setup) -> Result<(Rc<Shard>, TcpListener), String> {
    let text = |error: io::Error| error.to_string();
    let disk = RingDisk::new(setup.config.direct, !setup.config.poll.is_zero()).map_err(|error| {
        format!("its io_uring cannot be made: {error}; see kernel.io_uring_disabled and ulimit -l")
    })?;
    let environment = Rc::new(System { began: setup.began });
    let shard_id = ShardId::new(setup.number as u16);
    let (storage, checkpoint) =
        Storage::open(disk, environment, setup.config.disk, &setup.root, shard_id, setup.uuid)
            .await
            .map_err(text)?;
    if setup.number == 0 {
        setup.config.notices.iter().for_each(|notice| storage.note(notice.clone()));
    }
    let expiration_ms = setup.config.producer_id_expiration.as_millis();
    storage.producer_expiration_ms.set(i64::try_from(expiration_ms).unwrap_or(i64::MAX));
    let store = Store::new(storage, checkpoint, setup.config.rounds_in_flight);
    let identity = Identity {
        broker: setup.config.cluster.broker,
        shard: shard_id,
        shards: setup.config.shards as u16,
        time_outs: setup.config.time_outs,
        capacity: setup.config.capacity,
        groups: setup.config.groups,
        replication_factor: setup.config.cluster.replication_factor,
        replication: replication::Settings {
            lag_ms_max: setup.config.cluster.replica_lag.as_millis() as u64,
        },
    };
    let sockets = Sockets::new().map_err(text)?;
    let (metadata, mailboxes) = (setup.metadata.clone(), setup.mailboxes.clone());
    let shard = Shard::new(identity, store, sockets, metadata, mailboxes, setup.began);
    // What is deleted by later images removes its own files.
    let at_start = setup.image.clone();
    shard.follow_first(&at_start).await;
    shard.store.begin_service().await.map_err(text)?;
    let (metadata, registering) = (setup.metadata.clone(), shard.clone());
    let registered = async move { registering.registered().await };
    leftovers::judge_in_background(
        &shard.store,
        registered,
        at_start,
        move || metadata.image(),
        identity.here(),
    );
    // Before the first produce: a start on a full disk serves reads only.
    look_at_space(&shard, low_space_bytes(&setup.root)).await;
    let listener = listen(setup.address).map_err(|error| format!("{}: {error}", setup.address))?;
    Ok((shard, listener))
}

/// One of the shards' listeners: they share the address. Connections inherit its options, and those that outlive a
/// killed broker must not keep the address from the next one: the kernel remembers them for a minute.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    // SAFETY: the socket has just given its descriptor away, bound and listening.
    Ok(unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) })
}

fn spawn_background(shard: &Rc<Shard>, setup: Setup) {
    let follower = shard.clone();
    let signal = setup.signal;
    stall::spawn("following the metadata", async move { follower.keep_following(signal).await }).detach();
    let receiver = shard.clone();
    let mailbox = setup.mailbox;
    stall::spawn("messages of other cores", async move {
        while let Some(message) = mailbox.receive().await {
            receive(&receiver, message);
        }
    })
    .detach();
    stall::spawn("deadlines of groups", group::keep_time(shard.clone())).detach();
    let keeper = shard.clone();
    let low_bytes = low_space_bytes(&setup.root);
    stall::spawn("housekeeping", async move { keep_house(&keeper, low_bytes).await }).detach();
    let interval = setup.config.scrub_interval;
    if !interval.is_zero() {
        let scrubbed = shard.clone();
        glommio::spawn_local(async move { scrub(&scrubbed, interval).await }).detach();
    }
}

/// Below so much free space nothing is taken any more; less on small disks.
fn low_space_bytes(root: &std::path::Path) -> u64 {
    match rustix::fs::statvfs(root) {
        Ok(stats) => FREE_SPACE_LOW_BYTES.min(stats.f_blocks * stats.f_frsize / 20),
        Err(_) => FREE_SPACE_LOW_BYTES,
    }
}

/// Does what a message from another core asks for.
pub(crate) fn receive(shard: &Rc<Shard>, message: Message) {
    match message {
        Message::Connection(handed) => {
            let stream = handed.stream.bind_to_executor();
            let shard = shard.clone();
            stall::spawn("a connection handed over", async move {
                accept::serve(shard, stream, handed.greeted).await;
            })
            .detach();
        }
        Message::Produce(remote, reply) => produce::handle_remote(shard, remote, reply),
        Message::Fetch(remote, reply) => fetch::handle_remote(shard, remote, reply),
        Message::AwaitBytes(wait, reply) => fetch::handle_wait(shard, wait, reply),
        Message::ListOffsets(asked, reply) => {
            let shard = shard.clone();
            stall::spawn("a search for offsets", async move {
                let _ = reply.send(admin::list_offsets_here(&shard, asked).await);
            })
            .detach();
        }
        Message::Groups(asked, reply) => group::handle_remote(shard, asked, reply),
        Message::DescribeLogs(ids, reply) => {
            let _ = reply.send(ids.into_iter().map(|id| shard.describe_log(id)).collect());
        }
        Message::DeleteRecords(asked, reply) => {
            let shard = shard.clone();
            glommio::spawn_local(async move {
                let _ = reply.send(admin::delete_records_here(&shard, asked).await);
            })
            .detach();
        }
        Message::Replication(forwarded) => shard.peers.receive_forwarded(forwarded),
        Message::ReplicationAnswers(answers) => shard.peers.receive_answers(answers),
        Message::Settle(version, reply) => {
            let shard = shard.clone();
            stall::spawn("waiting for the metadata", async move {
                shard.settled(version).await;
                let _ = reply.send(());
            })
            .detach();
        }
        Message::TakeOver(log, version, reply) => {
            let shard = shard.clone();
            stall::spawn("handing a partition over", async move {
                // Who asked ends with the process.
                let _ = reply.send(homes::answer(&shard, log, version).await);
            })
            .detach();
        }
        Message::Forget(log, version) => homes::forget(shard, log, version),
        Message::Arrival(id, reply) => {
            let _ = reply.send(homes::arrival(shard, &id));
        }
        Message::Status(reply) => {
            let _ = reply.send(shard.report());
        }
        Message::Traffic(reply) => {
            let shard = shard.clone();
            stall::spawn("a look at all partitions", async move {
                let _ = reply.send(traffic::gather(&shard).await);
            })
            .detach();
        }
        Message::Progress(reply) => {
            let shard = shard.clone();
            stall::spawn("a look at all groups", async move {
                let _ = reply.send(group::lag::gather(&shard).await);
            })
            .detach();
        }
        Message::Lag(asked, reply) => {
            let shard = shard.clone();
            stall::spawn("a look at the lag of groups", async move {
                let _ = reply.send(group::lag::answer(&shard, asked).await);
            })
            .detach();
        }
    }
}

/// Notes whether free space is below the low-water mark.
async fn look_at_space(shard: &Shard, low_bytes: u64) {
    use crate::storage::disk::Disk;
    let storage = &shard.store.storage;
    if let Ok(free) = storage.disk.free_bytes(storage.root()).await {
        storage.set_low(free < low_bytes);
    }
}

/// Reads all that is stored, again and again, and has repaired what is damaged and others have.
async fn scrub(shard: &Rc<Shard>, interval: Duration) {
    let mut wait = interval.min(Duration::from_millis(SCRUB_DELAY_MS_MAX));
    while !shard.is_stopping() {
        glommio::timer::sleep(wait).await;
        let began = Instant::now();
        shard.store.scrub(|partition| shard.replicas.repair(&partition.id())).await;
        wait = interval.saturating_sub(began.elapsed()).max(Duration::from_millis(IDLE_FLOOR_MS));
    }
}

/// Deadlines of fetches, slow connections, the store's housekeeping, retention, free space.
async fn keep_house(shard: &Rc<Shard>, low_bytes: u64) {
    let expiring = shard.clone();
    stall::spawn("the expiry of fetches", async move {
        while !expiring.is_stopping() {
            let now_ms = expiring.now_ms();
            let mut woken = Vec::new();
            expiring.waiters.borrow_mut().expire(now_ms, &mut woken);
            woken.iter().for_each(|parked| parked.wake());
            let next_ms = expiring.waiters.borrow().next_deadline().unwrap_or(u64::MAX);
            expiring.expiry.sleep(now_ms, next_ms.min(now_ms + EXPIRY_LOOK_MS)).await;
        }
    })
    .detach();
    let compacting = shard.clone();
    glommio::spawn_local(async move {
        while !compacting.is_stopping() {
            // At once on to the next, if one was found.
            if !compacting.store.compact().await {
                glommio::timer::sleep(Duration::from_millis(COMPACTION_LOOK_MS)).await;
            }
        }
    })
    .detach();
    let mut tick = 0u64;
    while !shard.is_stopping() {
        glommio::timer::sleep(Duration::from_millis(IDLE_FLOOR_MS)).await;
        tick += 1;
        shard.store.tick().await;
        if !tick.is_multiple_of(RETENTION_TICKS) {
            continue;
        }
        shard.store.enforce_retention().await;
        let now_ms = shard.now_ms();
        let connections: Vec<Rc<Connection>> = shard.connections.borrow().values().cloned().collect();
        connections.iter().for_each(|connection| connection.sweep(now_ms));
        look_at_space(shard, low_bytes).await;
    }
}
