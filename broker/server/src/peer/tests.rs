//! Streams between made-up replicas: two brokers in one executor, real sockets.
//!
//! The leader's log is a list of batches, the follower appends what comes next and acknowledges it. What is asserted: every
//! batch arrives once, in order and unchanged, by whichever stream; what is under way is bounded; a cut link begins anew.

use super::*;
use crate::mailbox::{Mailbox, mailboxes};
use crate::socket::Socket;
use crate::storage::buffer::BufferPool;
use futures_util::FutureExt;
use logic::ids::{PartitionIndex, TopicId};
use logic::limits::{
    CATCH_UP_PUSH_BYTES_MAX, PUSH_BYTES_MAX, REPLICATION_LIVE_BYTES_MAX, REPLICATION_PARTITION_BYTES_MAX,
    REPLICATION_READS_MAX,
};
use logic::replication::message::{FromFollower, Nack, Opened, Status};
use schema::error_code::ErrorCode;
use schema::frame::{self, Aligned, PREFIX_BYTES, Prefix};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const CLUSTER: u128 = 77;
const LEADER: BrokerId = BrokerId::new(1);
const FOLLOWER: BrokerId = BrokerId::new(2);
const EPOCH: LeaderEpoch = LeaderEpoch::new(3);

fn id(partition: u32) -> TopicPartition {
    TopicPartition { topic: TopicId::new(9), partition: PartitionIndex::new(partition) }
}

/// Longer than anything here takes on a busy machine.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < limit, "not in time: {what}");
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}

fn run(test: impl Future<Output = ()> + 'static) {
    glommio::LocalExecutorBuilder::default().make().expect("an executor").run(test);
}

// ---- Made-up replicas ---------------------------------------------------------------------------------

/// A partition of the leader: its batches, one record each, and how far the follower is.
#[derive(Default)]
struct Led {
    batches: Vec<Slice>,
    /// The next to be sent; `None` = not opened.
    next: Option<u64>,
    asked: bool,
    open_sequence: u32,
    acknowledged: u64,
}

/// A partition of the follower: the bytes of each batch.
#[derive(Default)]
struct Followed {
    batches: Vec<Vec<u8>>,
    opened: u32,
}

#[derive(Default)]
struct Made {
    peers: RefCell<Option<Rc<Peers>>>,
    led: RefCell<BTreeMap<TopicPartition, Led>>,
    followed: RefCell<BTreeMap<TopicPartition, Followed>>,
    links_up: Cell<u32>,
    links_down: Cell<u32>,
    full: Cell<bool>,
    /// Everything is read from the device, and sent by the catch-up stream.
    behind: Cell<bool>,
    /// Bytes per second of that.
    catch_up_rate: Cell<Option<NonZeroU64>>,
    /// Reads of the device do not end, and how many are under way.
    reads_held: Cell<bool>,
    /// How much the last read was to bring at most.
    read_bytes_max: Cell<usize>,
    reads: Cell<usize>,
    /// Where partitions are; absent = here.
    homes: RefCell<BTreeMap<TopicPartition, ShardId>>,
    /// Follower: acknowledges nothing.
    silent: Cell<bool>,
}

impl Made {
    fn peers(&self) -> Rc<Peers> {
        self.peers.borrow().clone().expect("it was begun")
    }

    fn message(open_sequence: u32, body: Body) -> Message {
        Message { leader_epoch: EPOCH, open_sequence: OpenSequence::new(open_sequence), body }
    }

    fn lead(&self, partition: u32, batches: impl IntoIterator<Item = usize>) {
        let pool = BufferPool::new();
        let batches = batches.into_iter().enumerate().map(|(at, bytes)| {
            let mut buffer = pool.take(bytes);
            buffer[..bytes].fill((at as u8).wrapping_mul(31) ^ partition as u8);
            Slice { buffer: Rc::new(buffer), range: 0..bytes }
        });
        self.led.borrow_mut().entry(id(partition)).or_default().batches.extend(batches);
    }

    fn kind(&self) -> StreamKind {
        if self.behind.get() { StreamKind::CatchUp } else { StreamKind::Live }
    }

    fn ask(&self, id: TopicPartition) {
        let asks = {
            let mut led = self.led.borrow_mut();
            let led = led.get_mut(&id).expect("it is led");
            let asks = led.next.is_some_and(|next| next < led.batches.len() as u64) && !led.asked;
            led.asked |= asks;
            asks
        };
        if asks {
            self.peers().push(FOLLOWER, id, self.kind());
        }
    }

    fn batches(&self, id: TopicPartition, max_bytes: usize) -> Option<Batches> {
        let mut led = self.led.borrow_mut();
        let led = led.get_mut(&id)?;
        led.asked = false;
        let next = led.next?;
        let mut bytes = 0;
        let slices: Vec<Slice> = led.batches[next as usize..]
            .iter()
            .take_while(|slice| {
                let fits = bytes == 0 || bytes + slice.range.len() <= max_bytes;
                bytes += slice.range.len();
                fits
            })
            .cloned()
            .collect();
        let (open_sequence, end) = (OpenSequence::new(led.open_sequence), next + slices.len() as u64);
        let head = Append {
            base: Offset::new(next),
            previous_epoch: (next > 0).then_some(EPOCH),
            high_watermark: Offset::new(led.acknowledged),
            log_start: Offset::new(0),
        };
        let end = Offset::new(end);
        (!slices.is_empty()).then_some(Batches { leader_epoch: EPOCH, open_sequence, head, end, slices })
    }

    /// Whether the follower has exactly what the leader has, and the leader knows.
    fn agrees_with(&self, follower: &Made) -> bool {
        let led = self.led.borrow();
        let followed = follower.followed.borrow();
        led.iter().all(|(id, led)| {
            let same = followed.get(id).is_some_and(|followed| {
                followed.batches.len() == led.batches.len()
                    && followed.batches.iter().zip(&led.batches).all(|(ours, theirs)| ours == theirs.bytes())
            });
            same && led.acknowledged == led.batches.len() as u64
        })
    }
}

/// The batches of an append are of one byte value each.
fn split(batches: &[u8]) -> Vec<Vec<u8>> {
    batches.chunk_by(|a, b| a == b).map(<[u8]>::to_vec).collect()
}

impl Replicas for Rc<Made> {
    fn link_up(&self, peer: BrokerId) {
        assert_eq!(peer, FOLLOWER);
        self.links_up.set(self.links_up.get() + 1);
        let ids: Vec<TopicPartition> = self.led.borrow().keys().copied().collect();
        for id in ids {
            let open_sequence = {
                let mut led = self.led.borrow_mut();
                let led = led.get_mut(&id).expect("it is led");
                led.open_sequence += 1;
                (led.next, led.asked) = (None, false);
                led.open_sequence
            };
            let (generation, log_start) = (logic::ids::ReplicaGeneration::new(1), Offset::new(0));
            let open = Body::FromLeader(FromLeader::Open { generation, log_start });
            self.peers().send(peer, id, &Made::message(open_sequence, open));
        }
    }

    fn link_down(&self, _peer: BrokerId) {
        self.links_down.set(self.links_down.get() + 1);
    }

    fn catch_up_rate(&self) -> Option<NonZeroU64> {
        self.catch_up_rate.get()
    }

    fn home(&self, id: TopicPartition) -> Option<ShardId> {
        self.homes.borrow().get(&id).copied()
    }

    fn receive(&self, from: BrokerId, id: TopicPartition, message: Message, batches: &[u8]) {
        let open_sequence = message.open_sequence.get();
        let answer =
            |body| self.peers().send(from, id, &Made::message(open_sequence, Body::FromFollower(body)));
        match message.body {
            Body::FromLeader(FromLeader::Open { .. }) => {
                let end = {
                    let mut followed = self.followed.borrow_mut();
                    let followed = followed.entry(id).or_default();
                    followed.opened = open_sequence;
                    Offset::new(followed.batches.len() as u64)
                };
                answer(FromFollower::Opened(Box::new(Opened {
                    broker_epoch: BrokerEpoch::new(1),
                    generation: logic::ids::ReplicaGeneration::new(1),
                    epochs: vec![(EPOCH, Offset::new(0))],
                    log_start: Offset::new(0),
                    durable_end: end,
                    status: Status::Clean,
                })));
            }
            Body::FromLeader(FromLeader::Append(append)) => {
                let end = {
                    let mut followed = self.followed.borrow_mut();
                    let followed = followed.get_mut(&id).expect("it was opened");
                    if followed.opened != open_sequence {
                        return;
                    }
                    assert_eq!(append.base.get(), followed.batches.len() as u64, "what comes next");
                    followed.batches.extend(split(batches));
                    Offset::new(followed.batches.len() as u64)
                };
                if !self.silent.get() {
                    answer(FromFollower::Ack { durable_end: end });
                }
            }
            Body::FromFollower(FromFollower::Opened(opened)) => {
                {
                    let mut led = self.led.borrow_mut();
                    let led = led.get_mut(&id).expect("it is led");
                    if led.open_sequence != open_sequence {
                        return;
                    }
                    led.next = Some(opened.durable_end.get());
                    led.acknowledged = opened.durable_end.get();
                }
                self.ask(id);
            }
            Body::FromFollower(FromFollower::Ack { durable_end }) => {
                self.led.borrow_mut().get_mut(&id).expect("it is led").acknowledged = durable_end.get();
            }
            other => panic!("{other:?}"),
        }
    }

    fn read(&self, _to: BrokerId, id: TopicPartition, max_bytes: usize) -> Chunk {
        if self.behind.get() {
            return Chunk::Device;
        }
        self.batches(id, max_bytes).map_or(Chunk::Nothing, Chunk::Batches)
    }

    fn read_device(
        &self,
        _to: BrokerId,
        id: TopicPartition,
        max_bytes: usize,
    ) -> LocalBoxFuture<'static, Option<Batches>> {
        let made = self.clone();
        async move {
            made.reads.set(made.reads.get() + 1);
            made.read_bytes_max.set(max_bytes);
            glommio::executor().yield_task_queue_now().await;
            until("reads may end", || !made.reads_held.get()).await;
            made.reads.set(made.reads.get() - 1);
            made.batches(id, max_bytes)
        }
        .boxed_local()
    }

    fn pushed(&self, _to: BrokerId, id: TopicPartition, pushed: Pushed) {
        self.led.borrow_mut().get_mut(&id).expect("it is led").next = Some(pushed.end.get());
        self.ask(id);
    }

    fn has_room(&self) -> bool {
        !self.full.get()
    }
}

// ---- Made-up brokers ----------------------------------------------------------------------------------

struct MadeBroker {
    replicas: Rc<Made>,
    peers: Rc<Peers>,
}

impl MadeBroker {
    fn new(broker: BrokerId, shard: u16, shards: u16, mailboxes: &Mailboxes, sockets: &Rc<Sockets>) -> Self {
        let identity = Identity { broker, shard: ShardId::new(shard), shards };
        let peers = Peers::new(identity, sockets.clone(), mailboxes.clone());
        let replicas = Rc::new(Made::default());
        *replicas.peers.borrow_mut() = Some(peers.clone());
        peers.begin(Rc::new(replicas.clone()));
        Self { replicas, peers }
    }

    fn follow(&self, port: u16) {
        let address = |broker, port| {
            let (host, epoch) = ("127.0.0.1".to_owned(), BrokerEpoch::new(u64::from(u32::MAX) + 5));
            (broker, PeerAddress { host, port, shards: 1, epoch })
        };
        let known = [address(LEADER, 1), address(FOLLOWER, port)];
        self.peers.follow(Some(CLUSTER), known.into_iter());
    }
}

impl Drop for MadeBroker {
    fn drop(&mut self) {
        self.peers.stop();
        *self.replicas.peers.borrow_mut() = None;
    }
}

/// Reads Hello as a broker does.
fn read_hello(stream: &mut TcpStream) -> PeerHello {
    let mut prefix = [0; PREFIX_BYTES];
    stream.read_exact(&mut prefix).expect("a Hello");
    let prefix = Prefix::decode(prefix, 1 << 16).expect("a frame");
    let mut rest = vec![0; prefix.frame_bytes - PREFIX_BYTES];
    stream.read_exact(&mut rest).expect("all of it");
    let mut aligned = Aligned::default();
    let request = frame::request(aligned.align(&rest[..prefix.metadata_bytes]), 64).expect("a request");
    let hello = request.api_as_hello_request().expect("Hello");
    assert_eq!(hello.purpose(), schema::wire::Purpose::Replication);
    PeerHello {
        broker: BrokerId::new(hello.broker()),
        epoch: BrokerEpoch::new(hello.broker_epoch()),
        cluster: hello.cluster().map(|cluster| cluster.as_u128()),
    }
}

fn answer(stream: &mut TcpStream, broker: BrokerId, refused: Option<&(ErrorCode, String)>) {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let hello = schema::wire::HelloResponse::create(
        &mut builder,
        &schema::wire::HelloResponseArgs { broker: broker.get(), ..Default::default() },
    );
    let arguments = schema::wire::ResponseArgs {
        id: 1,
        error: refused.map_or(0, |(code, _)| code.to_wire()),
        api_type: schema::wire::ResponseApi::HelloResponse,
        api: Some(hello.as_union_value()),
        ..Default::default()
    };
    let root = schema::wire::Response::create(&mut builder, &arguments);
    let mut out = Vec::new();
    frame::finish_response(&mut out, &mut builder, root, 0);
    stream.write_all(&out).expect("somebody listens");
}

/// Accepts for `follower` until the test ends; the port, and the connections so far, to be cut.
fn accept(follower: &MadeBroker, sockets: &Rc<Sockets>) -> (u16, Rc<RefCell<Vec<TcpStream>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let (sender, greeted) = async_channel::bounded(16);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let hello = read_hello(&mut stream);
            if sender.send_blocking((stream, hello)).is_err() {
                return;
            }
        }
    });
    let connections = Rc::new(RefCell::new(Vec::new()));
    let (peers, sockets, noted) = (follower.peers.clone(), sockets.clone(), connections.clone());
    glommio::spawn_local(async move {
        while let Ok((mut stream, hello)) = greeted.recv().await {
            let admitted = peers.admit(hello);
            answer(&mut stream, FOLLOWER, admitted.as_ref().err());
            if admitted.is_err() {
                continue;
            }
            noted.borrow_mut().push(stream.try_clone().expect("another handle"));
            stream.set_nonblocking(true).expect("a socket");
            let socket = Socket::new(&sockets, stream.into()).expect("a watch");
            let peers = peers.clone();
            glommio::spawn_local(async move { peers.serve(socket, hello.broker).await }).detach();
        }
    })
    .detach();
    (port, connections)
}

struct Pair {
    leader: MadeBroker,
    follower: MadeBroker,
    sockets: Rc<Sockets>,
    port: u16,
    connections: Rc<RefCell<Vec<TcpStream>>>,
}

fn pair() -> Pair {
    let sockets = Sockets::new().expect("an epoll");
    let (boxes, _) = mailboxes(1);
    let leader = MadeBroker::new(LEADER, 0, 1, &boxes, &sockets);
    let follower = MadeBroker::new(FOLLOWER, 0, 1, &boxes, &sockets);
    let (port, connections) = accept(&follower, &sockets);
    follower.follow(port);
    leader.follow(port);
    Pair { leader, follower, sockets, port, connections }
}

// ---- Tests ---------------------------------------------------------------------------------------------

#[test]
fn batches_arrive_once_and_in_order_by_either_stream() {
    for behind in [false, true] {
        run(async move {
            let pair = pair();
            let (leader, follower) = (&pair.leader, &pair.follower);
            leader.replicas.behind.set(behind);
            // Small ones that share frames, some that fill one, one that exceeds every buffer.
            leader.replicas.lead(1, (0..3_000).map(|at| 1 + at % 90));
            leader.replicas.lead(2, [900_000, 5, 8 << 20, 7, 1 << 20, 1]);
            leader.replicas.lead(3, []);
            assert!(!leader.peers.want(FOLLOWER));
            until("everything is there", || leader.replicas.agrees_with(&follower.replicas)).await;
            assert!(leader.peers.want(FOLLOWER));
            // More of it over the same link.
            leader.replicas.lead(1, [10, 20, 30]);
            leader.replicas.ask(id(1));
            until("more is there", || leader.replicas.agrees_with(&follower.replicas)).await;
            let links = (leader.replicas.links_up.get(), leader.replicas.links_down.get());
            assert_eq!((links, pair.connections.borrow().len()), ((1, 0), if behind { 2 } else { 1 }));
            let link = leader.peers.links.borrow()[&FOLLOWER].clone();
            assert_eq!(link.unacknowledged_bytes(), 0, "all credit is back");
        });
    }
}

#[test]
fn what_is_ready_at_once_goes_out_in_one_frame() {
    run(async {
        let pair = pair();
        let (leader, follower) = (&pair.leader, &pair.follower);
        (0..50).for_each(|partition| leader.replicas.lead(partition, []));
        leader.peers.want(FOLLOWER);
        let opened = || leader.replicas.led.borrow().values().all(|led| led.next.is_some());
        until("all are opened", opened).await;
        let before = (leader.peers.counters.frames_sent.get(), leader.peers.counters.sends.get());
        for partition in 0..50 {
            leader.replicas.lead(partition, [100]);
            leader.replicas.ask(id(partition));
        }
        until("everything is there", || leader.replicas.agrees_with(&follower.replicas)).await;
        let sent = (leader.peers.counters.frames_sent.get(), leader.peers.counters.sends.get());
        assert_eq!((sent.0 - before.0, sent.1 - before.1), (1, 1), "frames and calls for 50 partitions");
    });
}

#[test]
fn a_cut_link_begins_anew() {
    run(async {
        let pair = pair();
        let (leader, follower) = (&pair.leader, &pair.follower);
        leader.replicas.lead(1, (0..200).map(|_| 100_000));
        leader.replicas.lead(2, (0..200).map(|_| 50_000));
        leader.peers.want(FOLLOWER);
        for cut in 1..=3u32 {
            until("a connection", || pair.connections.borrow().len() >= cut as usize).await;
            let stream = pair.connections.borrow()[cut as usize - 1].try_clone().expect("a handle");
            stream.shutdown(std::net::Shutdown::Both).expect("it was open");
            until("it is noticed", || leader.replicas.links_down.get() >= cut).await;
        }
        until("everything is there", || leader.replicas.agrees_with(&follower.replicas)).await;
        assert_eq!(leader.replicas.links_up.get(), 4);
        // A broker that registers anew is connected to anew; one that is gone is not.
        let mut known = leader.peers.addresses.borrow().clone();
        known.get_mut(&FOLLOWER).expect("it is known").epoch = BrokerEpoch::new(1 << 50);
        leader.peers.follow(Some(CLUSTER), known.clone().into_iter());
        until("a new link", || leader.replicas.links_up.get() == 5).await;
        known.remove(&FOLLOWER);
        leader.peers.follow(Some(CLUSTER), known.into_iter());
        until("its end", || leader.replicas.links_down.get() == 5).await;
        assert!(!leader.peers.want(FOLLOWER));
        assert_eq!(leader.peers.report()[0], ("replication_links", 0));
    });
}

/// Found by the demo with three brokers: a task runs as soon as it is spawned, so that a link can be up before whoever wanted
/// it goes on. What was said then found no link, and its partition was opened ten seconds later.
#[test]
fn a_link_that_is_up_at_once_is_known() {
    run(async {
        let sockets = Sockets::new().expect("an epoll");
        let leader = MadeBroker::new(LEADER, 0, 1, &mailboxes(1).0, &sockets);
        leader.replicas.lead(1, [5]);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        // Its answer is on its way before Hello: often enough the leader finds it at its first look.
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                answer(&mut stream, FOLLOWER, None);
                std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
            }
        });
        let mut at_once = 0;
        for round in 1..=500 {
            leader.follow(port);
            at_once += u32::from(leader.peers.want(FOLLOWER));
            until("a link", || leader.replicas.links_up.get() == round).await;
            until("an opening", || leader.peers.counters.messages_sent.get() == u64::from(round)).await;
            leader.peers.follow(Some(CLUSTER), std::iter::empty());
            until("its end", || leader.replicas.links_down.get() == round).await;
        }
        println!("{at_once} of 500 links were up at once");
    });
}

#[test]
fn what_is_under_way_is_bounded() {
    run(async {
        let pair = pair();
        let (leader, follower) = (&pair.leader, &pair.follower);
        // A follower without room takes nothing from its stream.
        follower.replicas.full.set(true);
        follower.replicas.silent.set(true);
        (0..8).for_each(|partition| leader.replicas.lead(partition, (0..14).map(|_| 1 << 20)));
        leader.peers.want(FOLLOWER);
        until("a link", || leader.peers.want(FOLLOWER)).await;
        let link = leader.peers.links.borrow()[&FOLLOWER].clone();
        let sent = || link.unacknowledged_bytes() as usize;
        until("something is sent", || sent() > 0).await;
        let received =
            || follower.replicas.followed.borrow().values().map(|one| one.batches.len()).sum::<usize>();
        assert_eq!(received(), 0);
        // One that says nothing is sent its credit, and nobody more than a share of it.
        follower.replicas.full.set(false);
        until("the credit is used", || sent() >= REPLICATION_LIVE_BYTES_MAX).await;
        until("all of it has arrived", || received() * PUSH_BYTES_MAX >= sent()).await;
        assert!(sent() <= REPLICATION_LIVE_BYTES_MAX + PUSH_BYTES_MAX);
        let shares = || {
            let led = leader.replicas.led.borrow();
            led.values().map(|led| led.next.unwrap_or(0) as usize * PUSH_BYTES_MAX).max().unwrap_or(0)
        };
        assert!(shares() <= REPLICATION_PARTITION_BYTES_MAX, "{}", shares());
        follower.replicas.silent.set(false);
        for partition in 0..8 {
            let end = follower.replicas.followed.borrow()[&id(partition)].batches.len() as u64;
            let ack = Body::FromFollower(FromFollower::Ack { durable_end: Offset::new(end) });
            follower.peers.send(LEADER, id(partition), &Made::message(1, ack));
        }
        until("everything is there", || leader.replicas.agrees_with(&follower.replicas)).await;
    });
}

#[test]
fn live_batches_wait_for_no_read_of_those_that_are_behind() {
    let bounds = [
        (None, REPLICATION_READS_MAX, PUSH_BYTES_MAX),
        (NonZeroU64::new(1 << 40), 1, CATCH_UP_PUSH_BYTES_MAX),
    ];
    for (rate, reads, bytes_max) in bounds {
        run(async move {
            let pair = pair();
            let (leader, follower) = (&pair.leader, &pair.follower);
            let made = &leader.replicas;
            (1..=4).for_each(|partition| made.lead(partition, [10]));
            leader.peers.want(FOLLOWER);
            until("all are level", || made.agrees_with(&follower.replicas)).await;
            // Three fall behind, and the device takes its time. At a rate one is read after another, less of each.
            made.catch_up_rate.set(rate);
            made.reads_held.set(true);
            made.behind.set(true);
            (1..=3).for_each(|partition| made.lead(partition, [20]));
            (1..=3).for_each(|partition| made.ask(id(partition)));
            until("reads are under way", || made.reads.get() == reads).await;
            made.behind.set(false);
            made.lead(4, [30]);
            made.ask(id(4));
            until("the live batch is there", || made.led.borrow()[&id(4)].acknowledged == 2).await;
            assert_eq!((made.reads.get(), made.read_bytes_max.get()), (reads, bytes_max));
            made.reads_held.set(false);
            until("everything is there", || made.agrees_with(&follower.replicas)).await;
        });
    }
}

#[test]
fn a_partition_of_another_shard_is_reached_through_its_mailbox() {
    run(async {
        let sockets = Sockets::new().expect("an epoll");
        let (boxes, own) = mailboxes(2);
        let leader = MadeBroker::new(LEADER, 0, 1, &mailboxes(1).0, &sockets);
        let followers = [0, 1].map(|shard| MadeBroker::new(FOLLOWER, shard, 2, &boxes, &sockets));
        for (mailbox, follower) in own.into_iter().zip(&followers) {
            let peers = follower.peers.clone();
            glommio::spawn_local(async move { serve_mailbox(&mailbox, &peers).await }).detach();
        }
        let (port, _connections) = accept(&followers[0], &sockets);
        [&leader, &followers[0], &followers[1]].iter().for_each(|broker| broker.follow(port));
        for partition in [1, 2] {
            leader.replicas.lead(partition, (0..300).map(|at| 1 + at * 37 % 9_000));
        }
        followers[0].replicas.homes.borrow_mut().insert(id(2), ShardId::new(1));
        leader.peers.want(FOLLOWER);
        let whole = |partition: u32, at: usize| {
            let followed = followers[at].replicas.followed.borrow();
            followed.get(&id(partition)).map_or(0, |followed| followed.batches.len()) == 300
        };
        until("both are there", || whole(1, 0) && whole(2, 1)).await;
        let acknowledged = || leader.replicas.led.borrow().values().all(|led| led.acknowledged == 300);
        until("both are acknowledged", acknowledged).await;
        assert_eq!(followers[0].replicas.followed.borrow().len(), 1);
        boxes.close();
    });
}

async fn serve_mailbox(mailbox: &Mailbox, peers: &Peers) {
    while let Some(message) = mailbox.receive().await {
        match message {
            crate::mailbox::Message::Replication(forwarded) => peers.receive_forwarded(forwarded),
            crate::mailbox::Message::ReplicationAnswers(answers) => peers.receive_answers(answers),
            _ => panic!("nothing else was sent"),
        }
    }
}

#[test]
fn strangers_are_not_admitted() {
    run(async {
        let pair = pair();
        let epoch = BrokerEpoch::new(u64::from(u32::MAX) + 5);
        let hello = PeerHello { broker: LEADER, epoch, cluster: Some(CLUSTER) };
        let rows = [
            (hello, None),
            (PeerHello { epoch: BrokerEpoch::new(epoch.get() + 1), ..hello }, None),
            (PeerHello { epoch: BrokerEpoch::new(4), ..hello }, Some(ErrorCode::InvalidRequest)),
            (PeerHello { cluster: None, ..hello }, Some(ErrorCode::InvalidRequest)),
            (PeerHello { cluster: Some(CLUSTER + 1), ..hello }, Some(ErrorCode::InvalidRequest)),
            (PeerHello { broker: FOLLOWER, ..hello }, Some(ErrorCode::InvalidRequest)),
            (PeerHello { broker: BrokerId::new(9), ..hello }, Some(ErrorCode::Overloaded)),
        ];
        for (hello, refused) in rows {
            assert_eq!(pair.follower.peers.admit(hello).err().map(|(code, _)| code), refused, "{hello:?}");
        }
        // Whoever is refused goes on trying, and is admitted when it may be.
        pair.leader.peers.follow(Some(CLUSTER + 1), pair.leader.peers.addresses.borrow().clone().into_iter());
        pair.leader.replicas.lead(1, [5]);
        pair.leader.peers.want(FOLLOWER);
        let link = pair.leader.peers.links.borrow()[&FOLLOWER].clone();
        until("it is refused", || link.failed_connects() >= 2).await;
        assert_eq!(pair.connections.borrow().len(), 0);
        pair.leader.follow(pair.port);
        until("it is admitted", || pair.leader.replicas.agrees_with(&pair.follower.replicas)).await;
    });
}

#[test]
fn who_does_not_speak_the_protocol_is_closed() {
    let frame = |fill: fn(&mut schema::replication::FrameWriter)| {
        let mut writer = schema::replication::FrameWriter::default();
        fill(&mut writer);
        let mut out = Vec::new();
        writer.finish(&mut out);
        out
    };
    let rows: [Vec<u8>; 4] = [
        vec![0xff; 64],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        // A follower's word on a leader's stream.
        frame(|writer| {
            let opening = schema::replication::Opening::of(9, 1, 3, 1);
            writer.acknowledgement(schema::replication::Acknowledgement::new(&opening, 5));
        }),
        // A check of a fingerprint that this version does not know.
        frame(|writer| {
            let opening = schema::replication::Opening::of(9, 1, 3, 1);
            writer.match_(schema::replication::Match::new(&opening, 1, 1, 7, 0));
        }),
    ];
    for bytes in rows {
        run(async move {
            let pair = pair();
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let mut stranger =
                TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
            let (served, _) = listener.accept().expect("its other end");
            served.set_nonblocking(true).expect("a socket");
            let socket = Socket::new(&pair.sockets, served.into()).expect("a watch");
            stranger.write_all(&bytes).expect("it is open");
            let peers = pair.follower.peers.clone();
            let ended = Rc::new(Cell::new(false));
            let note = ended.clone();
            glommio::spawn_local(async move {
                peers.serve(socket, LEADER).await;
                note.set(true);
            })
            .detach();
            until("it is closed", || ended.get()).await;
            assert!(pair.follower.replicas.followed.borrow().is_empty());
        });
    }
}

#[test]
fn answers_go_to_the_leader_that_opened_the_partition() {
    run(async {
        let pair = pair();
        pair.leader.replicas.lead(1, [5]);
        pair.leader.peers.want(FOLLOWER);
        until("it is there", || pair.leader.replicas.agrees_with(&pair.follower.replicas)).await;
        let said = || pair.follower.peers.counters.messages_sent.get();
        let before = said();
        let ack = Body::FromFollower(FromFollower::Ack { durable_end: Offset::new(1) });
        // To nobody: another leader, or a partition that nobody opened.
        pair.follower.peers.send(BrokerId::new(5), id(1), &Made::message(1, ack.clone()));
        pair.follower.peers.send(LEADER, id(2), &Made::message(1, ack.clone()));
        // A leader of the past opens it once more, too late: it does not take the answers to the one of now away.
        let (generation, log_start) = (logic::ids::ReplicaGeneration::new(1), Offset::new(0));
        let open = Body::FromLeader(FromLeader::Open { generation, log_start });
        let messages = vec![(id(1), Made::message(1, open), bytes::Bytes::new())];
        let (from, shard) = (BrokerId::new(5), ShardId::new(0));
        pair.follower.peers.receive_forwarded(ForwardedMessages { from, shard, stream: 99, messages });
        pair.follower.peers.send(LEADER, id(1), &Made::message(1, ack.clone()));
        until("one is said", || said() > before).await;
        // Whoever is not a replica any more says so once.
        let nack = Body::FromFollower(FromFollower::Nack(Nack::NotReplica));
        pair.follower.peers.accepted.forget(id(1));
        pair.follower.peers.send(LEADER, id(1), &Made::message(1, nack));
        glommio::executor().yield_task_queue_now().await;
        assert_eq!(said(), before + 1);
    });
}
