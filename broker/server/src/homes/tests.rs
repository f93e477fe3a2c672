//! Partitions that move between the shards of one broker: all shards in one executor, real files, real metadata. A test
//! says which shard follows the metadata when.

use super::*;
use crate::broker::{self, System};
use crate::data_directory::DataDirectory;
use crate::fetch::{self, FetchEntry, RemoteWait, WaitedEntry};
use crate::mailbox::mailboxes;
use crate::metadata::{self, ClusterConfig, MetadataHandle, MetadataThread};
use crate::partition::{DurabilityWaiter, Standing};
use crate::shard::{Capacity, Identity, Location, TimeOuts};
use crate::small_disk::SmallDisk;
use crate::socket::Sockets;
use crate::storage::ring::RingDisk;
use crate::storage::{DiskPolicy, Storage};
use crate::store::Store;
use async_channel::Receiver;
use futures_channel::oneshot;
use logic::ids::{BrokerId, PartitionIndex, TopicId};
use logic::metadata::command::Reassignment;
use logic::metadata::{BrokerRegistration, Command, Placement};
use logic::replication::NotAdmitted;
use logic::routing::home_shard;
use schema::error_code::ErrorCode;
use schema::record_batch::{BatchBuilder, validate_produced};
use std::path::Path;
use std::time::Instant;
use tempfile::TempDir;

const BROKER: BrokerId = BrokerId::new(1);
const SHARDS: u16 = 2;

/// Longer than anything here takes on a busy machine.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < limit, "not in time: {what}");
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    glommio::LocalExecutorBuilder::default().make().expect("an executor").run(test);
}

fn registration(broker: BrokerId, shards: u16) -> BrokerRegistration {
    let (host, rack) = ("127.0.0.1".to_owned(), String::new());
    BrokerRegistration { broker, host, port: 1, shards, storage_uuid: broker.get().into(), rack }
}

/// What became of a batch.
#[derive(Default)]
struct Told {
    durable: Cell<bool>,
}

impl DurabilityWaiter for Told {
    fn durable(&self, _: u32, _: Offset) {
        self.durable.set(true);
    }
    fn closed(&self, _: u32) {}
}

/// A broker.
struct Rig {
    shards: Vec<Rc<Shard>>,
    metadata: MetadataHandle,
    thread: MetadataThread,
    signals: Vec<Receiver<()>>,
    _directory: DataDirectory,
    _metadata_files: TempDir,
}

impl Rig {
    /// Its logs are below `root`; its metadata has a disk of its own, which never is full.
    async fn start(root: &Path) -> Self {
        let directory = DataDirectory::open(root).expect("it can be used");
        let metadata_files = tempfile::tempdir().expect("a directory");
        let settings =
            ClusterConfig { broker: BROKER, session: Duration::from_secs(600), ..ClusterConfig::default() };
        let (senders, signals): (Vec<_>, Vec<_>) =
            (0..SHARDS).map(|_| async_channel::bounded::<()>(1)).unzip();
        let publish = Box::new(move |_| {
            senders.iter().for_each(|sender| {
                // One that has a signal waiting needs no second.
                let _ = sender.try_send(());
            });
        });
        let (mailboxes, own) = mailboxes(usize::from(SHARDS));
        let address = "127.0.0.1:1".to_owned();
        let started = metadata::start(metadata_files.path(), settings, address, &mailboxes, publish);
        let (metadata, thread) = started.expect("it starts");
        metadata.begin(registration(BROKER, SHARDS)).await.expect("it is alone");
        let (image, began) = (metadata.image(), Instant::now());
        let mut shards = Vec::new();
        for (number, mailbox) in own.into_iter().enumerate() {
            let id = ShardId::new(number as u16);
            let disk = RingDisk::new(false, false).expect("a ring");
            let opened = Storage::open(
                disk,
                Rc::new(System { began }),
                DiskPolicy::default(),
                root,
                id,
                directory.uuid,
            );
            let (storage, checkpoint) = opened.await.expect("it opens");
            let identity = Identity {
                broker: BROKER,
                shard: id,
                shards: SHARDS,
                time_outs: TimeOuts::default(),
                capacity: Capacity::default(),
                groups: Default::default(),
                replication_factor: 1,
                replication: Default::default(),
            };
            let (store, sockets) = (Store::new(storage, checkpoint, 2), Sockets::new().expect("descriptors"));
            let shard = Shard::new(identity, store, sockets, metadata.clone(), mailboxes.clone(), began);
            shard.follow_first(&image).await;
            shard.store.begin_service().await.expect("the first checkpoint");
            let receiver = shard.clone();
            glommio::spawn_local(async move {
                while let Some(message) = mailbox.receive().await {
                    broker::receive(&receiver, message);
                }
            })
            .detach();
            shards.push(shard);
        }
        Self { shards, metadata, thread, signals, _directory: directory, _metadata_files: metadata_files }
    }

    async fn submit(&self, command: Command) {
        self.metadata.submit(command).await.expect("it is done");
    }

    /// These shards follow the metadata of now, all at once.
    async fn follow(&self, which: impl IntoIterator<Item = usize>) {
        join_all(which.into_iter().map(|at| self.shards[at].follow_metadata())).await;
    }

    /// From now on all of them do by themselves.
    fn keep_following(&self) {
        for (shard, signal) in self.shards.iter().cloned().zip(self.signals.clone()) {
            glommio::spawn_local(async move { shard.keep_following(signal).await }).detach();
        }
    }

    /// Waits until all follow the metadata of now.
    async fn settled(&self) {
        let version = self.metadata.image().version();
        join_all(self.shards.iter().map(|shard| shard.settled(version))).await;
    }

    /// A topic of one partition, which is at home with `home` unless it is moved.
    async fn topic(&self, number: u128, home: u16, on: BrokerId) -> TopicPartition {
        let partition = PartitionIndex::new(0);
        let ids = (number * 1000..).map(TopicId::new);
        let topic = ids.into_iter().find(|id| home_shard(*id, partition, SHARDS) == ShardId::new(home));
        let topic = topic.expect("half of them are");
        let (placement, configs) = (Placement::single(on, 1), Vec::new());
        self.submit(Command::CreateTopic { id: topic, name: format!("topic-{number}"), placement, configs })
            .await;
        TopicPartition { topic, partition }
    }

    async fn move_home(&self, partition: TopicPartition, to: u16) {
        self.submit(Command::MoveHome { partition, broker: BROKER, shard: ShardId::new(to) }).await;
    }

    fn append(&self, at: usize, id: TopicPartition, bytes: usize) -> Rc<Told> {
        let mut builder = BatchBuilder::new();
        builder.append(1_700_000_000_000, None, Some(&vec![7; bytes]), &[]);
        let batch = builder.finish();
        let header = validate_produced(&batch, batch.len()).expect("a sound batch");
        let (store, told) = (&self.shards[at].store, Rc::new(Told::default()));
        let partition = store.partition(&id).expect("it is open");
        partition.when_durable(partition.append_copy(&batch, &header).end, told.clone(), 0);
        store.mark_dirty(id);
        told
    }

    async fn append_durably(&self, at: usize, id: TopicPartition) {
        let told = self.append(at, id, 1000);
        until("an append", || told.durable.get()).await;
    }

    fn end(self) {
        self.thread.stop();
    }
}

/// Two partitions wait for room, one with a torn group. That one moves, and its new shard finds no room to open it: it is
/// served by nobody, which is told, until the other one's deletion gives room.
#[test]
fn a_partition_that_moves_on_a_full_disk_waits_for_room() {
    let Some(disk) = SmallDisk::mount(48) else { return };
    run(async move {
        let rig = Rig::start(disk.path()).await;
        let moved = rig.topic(1, 0, BROKER).await;
        let deleted = rig.topic(2, 0, BROKER).await;
        rig.follow([0, 1]).await;
        for _ in 0..3 {
            rig.append_durably(0, moved).await;
            rig.append_durably(0, deleted).await;
        }
        let large = [moved, deleted].map(|id| rig.append(0, id, 1_200_000));
        until("large appends", || large.iter().all(|told| told.durable.get())).await;
        let [from, to] = [0, 1].map(|at| rig.shards[at].clone());
        assert!(to.store.storage.spend_reserve().await);
        disk.fill();
        disk.leave(64 << 10);
        let torn = rig.append(0, moved, 900_000);
        until("the round waits", || from.store.storage.is_full()).await;
        let waits = rig.append(0, deleted, 7_500_000);
        // So that even the group that makes the cut durable needs another segment.
        let set = [("segment.bytes", "1048576"), ("max.message.bytes", "1000000")];
        let set = set.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        rig.submit(Command::AlterTopicConfigs { id: moved.topic, set, unset: Vec::new() }).await;
        rig.move_home(moved, 1).await;
        disk.fill();
        rig.keep_following();
        rig.settled().await;
        assert!(!torn.durable.get() && !waits.durable.get());
        assert!(from.store.partition(&moved).is_none() && to.store.partition(&moved).is_none());
        assert!(matches!(to.locate(moved), Location::Nowhere(ErrorCode::LeaderNotAvailable)));
        assert_eq!((arrival(&to, &moved), arrival(&from, &moved)), (Arrived::NoRoom, Arrived::Not));
        assert!(to.store.storage.is_full(), "nothing is taken meanwhile");
        let notices = to.store.storage.notices();
        assert!(
            notices.iter().any(|notice| notice.contains("cannot be opened: the disk is full")),
            "{notices:?}"
        );
        // The first look is followed by a try, because nobody knows what room there was before it; no other one is.
        until("a look for room", || to.looks_for_room() > 1).await;
        let (looks, reads) = (to.looks_for_room(), to.store.storage.counters.reads.get());
        until("more looks for room", || to.looks_for_room() >= looks + 3).await;
        assert_eq!(
            to.store.storage.counters.reads.get(),
            reads,
            "its log is not read again before there is room"
        );

        rig.submit(Command::DeleteTopic { id: deleted.topic }).await;
        until("it is served", || to.store.partition(&moved).is_some()).await;
        assert!(matches!(arrival(&to, &moved), Arrived::Here(_)));
        let ends =
            to.store.partition(&moved).expect("it is open").with_log(|log| (log.log_start(), log.log_end()));
        assert_eq!(ends, (Offset::new(0), Offset::new(4)), "what was acknowledged, and nothing else");
        assert!(!to.store.storage.is_full());
        rig.append_durably(1, moved).await;
        until("nobody else waits", || !from.store.storage.is_full()).await;
        let other = rig.topic(3, 0, BROKER).await;
        rig.settled().await;
        rig.append_durably(0, other).await;
        until("the old shard forgets it", || from.homes.left.borrow().is_empty()).await;
        let reports = to.store.storage.counters.damaged_ranges.get();
        assert_eq!(reports, 1, "the tail was told of once");
        rig.end();
    });
}

/// The directory of a new partition finds no room: it is made when there is.
#[test]
fn a_new_partition_on_a_full_disk_waits_for_room() {
    let Some(disk) = SmallDisk::mount(16) else { return };
    run(async move {
        let rig = Rig::start(disk.path()).await;
        rig.keep_following();
        let before = rig.topic(1, 0, BROKER).await;
        rig.settled().await;
        let files = disk.take_all_files();
        let id = rig.topic(2, 0, BROKER).await;
        rig.settled().await;
        let shard = &rig.shards[0];
        assert!(shard.waits_for_room(&id) && shard.store.partition(&before).is_some());
        assert!(matches!(shard.locate(id), Location::Nowhere(ErrorCode::LeaderNotAvailable)));
        assert_eq!(arrival(shard, &id), Arrived::NoRoom);
        assert!(shard.store.storage.is_full(), "nothing is taken meanwhile");
        let notices = shard.store.storage.notices();
        assert!(
            notices.iter().any(|notice| notice.contains("cannot be opened: the disk is full")),
            "{notices:?}"
        );
        std::fs::remove_dir_all(files).expect("they are there");
        until("it is served", || shard.store.partition(&id).is_some()).await;
        assert!(!shard.waits_for_room(&id) && !shard.store.storage.is_full());
        rig.append_durably(0, id).await;
        rig.end();
    });
}

/// The new shard's first checkpoint finds no room. Once there is some, the old one is told all the same.
#[test]
fn the_old_shard_forgets_what_moved_on_a_full_disk() {
    let Some(disk) = SmallDisk::mount(16) else { return };
    run(async move {
        let rig = Rig::start(disk.path()).await;
        let moved = rig.topic(1, 0, BROKER).await;
        rig.follow([0, 1]).await;
        rig.append_durably(0, moved).await;
        let [from, to] = [0, 1].map(|at| rig.shards[at].clone());
        assert!(to.store.storage.spend_reserve().await);
        disk.fill();
        rig.move_home(moved, 1).await;
        rig.follow([0, 1]).await;
        assert!(to.store.partition(&moved).is_some(), "nothing has to be written for that");
        until("a checkpoint finds no room", || to.store.storage.has_no_room_for_checkpoint()).await;
        assert_eq!(from.homes.left.borrow().len(), 1, "it goes on saying where the log stood");
        std::fs::remove_file(disk.ballast()).expect("it is there");
        until("the old shard forgets it", || from.homes.left.borrow().is_empty()).await;
        rig.end();
    });
}

/// A replica is taken away and given again while its log is on the way to a shard that has not heard of either: what is left
/// of the first one goes.
#[test]
fn an_earlier_replica_that_was_on_its_way_goes() {
    let files = tempfile::tempdir().expect("a directory");
    run(async move {
        let rig = Rig::start(files.path()).await;
        let [from, to] = [0, 1].map(|at| rig.shards[at].clone());
        let other = BrokerId::new(2);
        let registration = registration(other, 1);
        rig.submit(Command::RegisterBroker { registration, suspects: Vec::new(), starts_fenced: false })
            .await;
        let id = rig.topic(1, 0, other).await;
        let replicas = async |replicas: &[BrokerId]| {
            let reassignment = Reassignment { partition: id, replicas: replicas.to_vec() };
            rig.submit(Command::ReassignPartitions { partitions: vec![reassignment] }).await;
        };
        let log = || {
            let image = rig.metadata.image();
            let replica = image.partition(id).and_then(|entry| entry.replica(BROKER)).copied();
            LogIdentity { partition: id, generation: replica.expect("it has one").generation.get() }
        };
        let is_there = |log: &LogIdentity| partition_directory(files.path(), log).exists();

        replicas(&[other, BROKER]).await;
        let first = log();
        rig.follow([0]).await;
        rig.move_home(id, 1).await;
        rig.follow([0]).await;
        assert!(from.store.partition(&id).is_none() && is_there(&first));
        // Called off, and begun again.
        replicas(&[]).await;
        replicas(&[other, BROKER]).await;
        rig.move_home(id, 1).await;
        let second = log();
        assert!(second.generation > first.generation);
        // So that the old shard has something to do between its answer and its tidying.
        rig.topic(2, 0, BROKER).await;
        rig.follow([1, 0]).await;
        let opened = to.store.partition(&id).map(|partition| partition.identity());
        assert_eq!(opened, Some(second));
        assert!(is_there(&second) && !is_there(&first));
        assert!(from.homes.left.borrow().is_empty() && to.homes.left.borrow().is_empty());
        rig.end();
    });
}

/// Whose role changes while a fetch looks elsewhere is not waited for, and who waits is woken by the change.
#[test]
fn a_fetch_does_not_wait_for_a_partition_whose_role_has_changed() {
    let files = tempfile::tempdir().expect("a directory");
    run(async move {
        let rig = Rig::start(files.path()).await;
        let id = rig.topic(1, 0, BROKER).await;
        rig.follow([0, 1]).await;
        let shard = &rig.shards[0];
        let partition = shard.store.partition(&id).expect("it is open");
        let wait = |leader_epoch: u32| {
            let entry = FetchEntry {
                id,
                offset: Offset::new(0),
                max_bytes: 1000,
                leader_epoch,
                from_follower: false,
            };
            let entries = vec![WaitedEntry { entry, seen: 0, room_bytes: 1000 }];
            let (reply, woken) = oneshot::channel();
            fetch::handle_wait(shard, RemoteWait { entries, min_bytes: 1, until_ms: u64::MAX }, reply);
            woken
        };
        let before = partition.leader_epoch().get();
        let mut waiting = wait(before);
        assert_eq!(waiting.try_recv(), Ok(None), "it waits");
        // There and back, and the shard hears of both at once.
        rig.move_home(id, 1).await;
        rig.move_home(id, 0).await;
        rig.follow([0, 1]).await;
        assert!(partition.leader_epoch().get() > before && !partition.is_closed());
        until("it is woken", || waiting.try_recv() == Ok(Some(true))).await;
        assert_eq!(wait(before).try_recv(), Ok(Some(true)), "it believes in an earlier epoch");
        let now = partition.leader_epoch().get();
        assert_eq!(wait(now).try_recv(), Ok(None));
        let refusal = Some(NotAdmitted::NotLeader);
        partition.set_standing(Standing { leads: false, applied: false, follows: None, refusal });
        assert_eq!(wait(now).try_recv(), Ok(Some(true)), "another broker leads");
        rig.end();
    });
}
