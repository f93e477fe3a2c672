//! A broker in memory that speaks the real frames and does as a test tells it.
//!
//! Owner: one test. Lifecycle: [`FakeBroker::start`] listens on a port of its own until it is dropped.
//! Every request is recorded, then a hook decides: serve, refuse, hold the reply, hang up. Absent on
//! purpose: anything durable, and any check of what a client sends beyond what the tests ask.

use crate::fake_producers::FakeProducers;
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use ringlog_client::request::{
    Acks, DeleteRecordsEntry, FetchEntry, ListOffsetsEntry, NewTopic, OffsetSpec, ProduceEntry, Request,
    TopicId,
};
use ringlog_client::{Client, ClientConfig, ErrorCode};
use schema::frame::{self, Aligned, Prefix};
use schema::record_batch::{self, BatchBuilder};
use schema::wire;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Call {
    /// The broker that it came to.
    pub broker: u32,
    /// The shard that the connection asked for.
    pub shard: Option<u32>,
    pub id: u64,
    pub request: Request,
}

/// What to do with a request.
pub enum Do {
    Serve,
    /// Serve, but keep the reply until [`FakeBroker::release`].
    HoldReply,
    /// Refuse the whole request, with `retry_after_ms`.
    Refuse(ErrorCode, u32),
    /// Refuse each entry.
    RefuseEntries(ErrorCode),
    /// Never answer.
    Ignore,
    HangUp,
    /// Serve, then hang up without the reply.
    ServeAndHangUp,
    /// Send these bytes instead of a reply.
    Bytes(Vec<u8>),
    /// Serve, over a link so slow that the reply comes in as many pieces, with this time before each.
    Drip(usize, Duration),
}

pub type Hook = Box<dyn FnMut(&Call) -> Do + Send>;

pub struct FakePartition {
    pub shard: u32,
    /// Who takes its produces; `None` = nobody.
    pub leader: Option<u32>,
    pub leader_epoch: u32,
    /// Who serves it to consumers with a rack besides, and up to where it sees it.
    pub follower: Option<(u32, u64)>,
    pub log_start: u64,
    /// Base offset, end offset, bytes.
    pub batches: Vec<(u64, u64, Bytes)>,
    pub producers: FakeProducers,
}

impl FakePartition {
    pub fn end(&self) -> u64 {
        self.batches.last().map_or(self.log_start, |(_, end, _)| *end)
    }

    fn new(shard: u32) -> Self {
        Self {
            shard,
            leader: Some(FIRST),
            leader_epoch: 3,
            follower: None,
            log_start: 0,
            batches: Vec::new(),
            producers: FakeProducers::default(),
        }
    }

    /// The base offset, and whether the batch was there already.
    pub fn append(&mut self, batch: &[u8]) -> Result<(u64, bool), ErrorCode> {
        let base = self.end();
        let mut stored = batch.to_vec();
        record_batch::set_base_offset(&mut stored, base);
        let header = record_batch::verify(&stored).expect("a producer sends sound batches");
        if let Some(original) = self.producers.admit(&header, base)? {
            return Ok((original, true));
        }
        self.batches.push((base, header.end_offset(), stored.into()));
        Ok((base, false))
    }

    /// The values of all records, in order.
    pub fn values(&self) -> Vec<String> {
        let mut values = Vec::new();
        for (_, _, batch) in &self.batches {
            for record in record_batch::records(batch).unwrap() {
                let value = record.unwrap().value.unwrap_or_default().to_vec();
                values.push(String::from_utf8(value).unwrap());
            }
        }
        values
    }
}

pub struct FakeTopic {
    pub id: TopicId,
    pub partitions: Vec<FakePartition>,
}

struct Held {
    call: Call,
    frame: Vec<u8>,
    out: mpsc::UnboundedSender<Option<Vec<u8>>>,
}

struct State {
    /// The ports of the brokers.
    brokers: BTreeMap<u32, u16>,
    /// What a broker that lags behind tells of the metadata instead.
    stale: BTreeMap<u32, Stale>,
    version: u64,
    topics: BTreeMap<String, FakeTopic>,
    calls: Vec<Call>,
    hook: Hook,
    held: Vec<Held>,
    topics_made: u128,
    producers_made: i64,
}

/// Metadata of the past: its version, and the leader of each partition of a topic.
struct Stale {
    version: u64,
    leaders: BTreeMap<String, Vec<(Option<u32>, u32)>>,
}

/// One broker. Several of one cluster share what they store, as if replication were perfect.
pub struct FakeBroker {
    pub id: u32,
    pub address: String,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    listening: tokio::task::AbortHandle,
}

pub const MAX_REQUEST_BYTES: u32 = 8 << 20;
const SHARDS: u32 = 2;
/// Nothing that a test waits for takes so long.
const WAIT_MAX: Duration = Duration::from_secs(100);
/// The number of the first broker.
pub const FIRST: u32 = 7;

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl FakeBroker {
    /// A broker with topic `t` of `partitions`, spread over two shards.
    pub async fn start(partitions: u32) -> Self {
        Self::cluster(1, partitions).await.remove(0)
    }

    /// A cluster of brokers from [`FIRST`] on, with topic `t`, whose partitions they lead in turns.
    pub async fn cluster(brokers: u32, partitions: u32) -> Vec<Self> {
        let state = Arc::new(Mutex::new(State {
            brokers: BTreeMap::new(),
            stale: BTreeMap::new(),
            version: 1,
            topics: BTreeMap::new(),
            calls: Vec::new(),
            hook: Box::new(|_| Do::Serve),
            held: Vec::new(),
            topics_made: 0,
            producers_made: 0,
        }));
        let changed = Arc::new(Notify::new());
        let mut cluster = Vec::new();
        for id in FIRST..FIRST + brokers {
            cluster.push(Self::listen(id, state.clone(), changed.clone()).await);
        }
        cluster[0].create("t", partitions);
        for partition in 0..partitions {
            let leader = Some(FIRST + partition % brokers);
            cluster[0].topic("t", |topic| topic.partitions[partition as usize].leader = leader);
        }
        cluster
    }

    async fn listen(id: u32, state: Arc<Mutex<State>>, changed: Arc<Notify>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        state.lock().unwrap().brokers.insert(id, port);
        let listening = {
            let (state, changed) = (state.clone(), changed.clone());
            tokio::spawn(async move {
                // They end with this task.
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(serve(stream, state.clone(), changed.clone(), id));
                }
            })
        };
        Self { id, address: format!("127.0.0.1:{port}"), state, changed, listening: listening.abort_handle() }
    }

    /// Ends the broker as kill -9 would: connections break, nobody listens. It stays in the metadata.
    pub fn kill(&self) {
        self.listening.abort();
    }

    /// The broker is not in the metadata any more.
    pub fn unregister(&self) {
        let mut state = self.state.lock().unwrap();
        state.brokers.remove(&self.id);
        state.version += 1;
    }

    /// Another leader for a partition of `t`, or none.
    pub fn lead(&self, partition: usize, leader: Option<u32>) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let partition = &mut state.topics.get_mut("t").unwrap().partitions[partition];
        (partition.leader, partition.leader_epoch) = (leader, partition.leader_epoch + 1);
        drop(state);
        self.changed.notify_waiters();
    }

    /// From now on the broker tells of the metadata what is true now, whatever happens.
    pub fn freeze(&self) {
        let mut state = self.state.lock().unwrap();
        let leaders =
            |topic: &FakeTopic| topic.partitions.iter().map(|p| (p.leader, p.leader_epoch)).collect();
        let leaders = state.topics.iter().map(|(name, topic)| (name.clone(), leaders(topic))).collect();
        let version = state.version;
        state.stale.insert(self.id, Stale { version, leaders });
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig {
            retry_backoff: Duration::from_millis(1),
            leader_check_after: Duration::from_millis(50),
            ..ClientConfig::new(&self.address).unwrap()
        }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }

    pub fn create(&self, name: &str, partitions: u32) {
        create(&mut self.state.lock().unwrap(), name, partitions);
    }

    pub fn hook(&self, hook: impl FnMut(&Call) -> Do + Send + 'static) {
        self.state.lock().unwrap().hook = Box::new(hook);
    }

    /// The broker's view of a topic.
    pub fn topic<T>(&self, name: &str, look: impl FnOnce(&mut FakeTopic) -> T) -> T {
        let result = look(self.state.lock().unwrap().topics.get_mut(name).unwrap());
        self.changed.notify_waiters();
        result
    }

    pub fn values(&self, partition: usize) -> Vec<String> {
        self.topic("t", |topic| topic.partitions[partition].values())
    }

    /// Appends one batch with these values to a partition of `t`.
    pub fn append(&self, partition: usize, values: &[&str]) {
        let batch = batch_of(values);
        self.topic("t", |topic| topic.partitions[partition].append(&batch)).expect("it has no producer");
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().unwrap().calls.clone()
    }

    /// Per Produce request that arrived: record counts of its batches.
    pub fn produced(&self) -> Vec<Vec<u32>> {
        let counts = |call: &Call| match &call.request {
            Request::Produce { entries, .. } => {
                let count =
                    |entry: &ProduceEntry| record_batch::Header::decode(&entry.batch).unwrap().record_count;
                Some(entries.iter().map(count).collect())
            }
            _ => None,
        };
        self.calls().iter().filter_map(counts).collect()
    }

    /// Waits until `enough` holds of the recorded calls.
    pub async fn until(&self, enough: impl Fn(&[Call]) -> bool) {
        self.wait_for("these calls are not enough", |state| enough(&state.calls)).await;
    }

    /// Waits until `enough` holds of what happened; a wait without end is a failure that says what did.
    async fn wait_for(&self, complaint: &str, enough: impl Fn(&State) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if enough(&self.state.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(WAIT_MAX, waiting).await.is_err() {
            let calls = self.calls();
            let last = &calls[calls.len().saturating_sub(20)..];
            panic!("{complaint}, after {WAIT_MAX:?}: the last of {}: {last:?}", calls.len());
        }
    }

    /// Waits until this many replies are held.
    pub async fn until_held(&self, count: usize) {
        self.wait_for("not enough replies are held", |state| state.held.len() >= count).await;
    }

    /// Sends the held replies, the last first if `reversed`, and holds no more.
    pub fn release(&self, reversed: bool) {
        let mut state = self.state.lock().unwrap();
        state.hook = Box::new(|_| Do::Serve);
        let mut held = std::mem::take(&mut state.held);
        if reversed {
            held.reverse();
        }
        for held in held {
            let _ = held.out.send(Some(held.frame));
        }
    }

    pub fn held_ids(&self) -> Vec<u64> {
        self.state.lock().unwrap().held.iter().map(|held| held.call.id).collect()
    }
}

pub fn batch_of(values: &[&str]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder.append(1_000, None, Some(value.as_bytes()), &[]);
    }
    builder.finish()
}

fn create(state: &mut State, name: &str, partitions: u32) -> TopicId {
    state.topics_made += 1;
    let id = TopicId(state.topics_made);
    let partition = |at: u32| FakePartition::new(at % SHARDS);
    let topic = FakeTopic { id, partitions: (0..partitions).map(partition).collect() };
    state.topics.insert(name.to_owned(), topic);
    id
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>, changed: Arc<Notify>, broker: u32) {
    stream.set_nodelay(true).unwrap();
    let (mut read_half, write_half) = stream.into_split();
    let (out, frames) = mpsc::unbounded_channel();
    let writing = tokio::spawn(write(write_half, frames));
    let mut shard = None;
    while let Some((id, request)) = read(&mut read_half).await {
        if let Request::Hello { shard: asked } = request {
            shard = asked;
        }
        let call = Call { broker, shard, id, request };
        let action = {
            let mut state = state.lock().unwrap();
            state.calls.push(call.clone());
            (state.hook)(&call)
        };
        changed.notify_waiters();
        let (state, changed, out) = (state.clone(), changed.clone(), out.clone());
        match action {
            Do::Ignore => {}
            Do::HangUp => break,
            Do::Bytes(bytes) => drop(out.send(Some(bytes))),
            Do::Refuse(code, retry_after_ms) => {
                drop(out.send(Some(response(id, Some((code, retry_after_ms)), no_api, &[]))));
            }
            Do::RefuseEntries(code) => drop(out.send(Some(refuse_entries(&call, code)))),
            Do::ServeAndHangUp => {
                answer(&call, &state, &changed).await;
                break;
            }
            Do::Drip(pieces, pause) => {
                let Some(frame) = answer(&call, &state, &changed).await else { continue };
                for piece in frame.chunks(frame.len().div_ceil(pieces)) {
                    // The link is what is planted; nothing is awaited.
                    tokio::time::sleep(pause).await;
                    let _ = out.send(Some(piece.to_vec()));
                }
            }
            // A produce is appended in the order of arrival.
            Do::Serve if matches!(call.request, Request::Fetch { .. }) => {
                tokio::spawn(async move {
                    let frame = answer(&call, &state, &changed).await;
                    let _ = out.send(frame);
                });
            }
            Do::Serve => drop(out.send(answer(&call, &state, &changed).await)),
            Do::HoldReply => {
                if let Some(frame) = answer(&call, &state, &changed).await {
                    state.lock().unwrap().held.push(Held { call, frame, out });
                    changed.notify_waiters();
                }
            }
        }
    }
    writing.abort();
}

async fn write(mut socket: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<Option<Vec<u8>>>) {
    while let Some(frame) = frames.recv().await {
        if let Some(frame) = frame
            && socket.write_all(&frame).await.is_err()
        {
            return;
        }
    }
}

async fn read(socket: &mut OwnedReadHalf) -> Option<(u64, Request)> {
    let mut lengths = [0; frame::PREFIX_BYTES];
    socket.read_exact(&mut lengths).await.ok()?;
    let prefix = Prefix::decode(lengths, MAX_REQUEST_BYTES as usize).unwrap();
    let mut rest = vec![0; prefix.frame_bytes - frame::PREFIX_BYTES];
    socket.read_exact(&mut rest).await.ok()?;
    let body = Bytes::copy_from_slice(&rest[prefix.body_start() - frame::PREFIX_BYTES..]);
    let mut aligned = Aligned::default();
    let request = frame::request(aligned.align(&rest[..prefix.metadata_bytes]), 1000).unwrap();
    assert!(request.deadline_ms() > 0);
    Some((request.id(), decode(&request, body)))
}

fn decode(request: &wire::Request<'_>, mut body: Bytes) -> Request {
    let id_of = |id: Option<&wire::TopicId>| TopicId(id.unwrap().as_u128());
    if let Some(hello) = request.api_as_hello_request() {
        assert_eq!(hello.protocol_version(), schema::PROTOCOL_VERSION);
        return Request::Hello { shard: u32::try_from(hello.shard()).ok() };
    }
    if let Some(metadata) = request.api_as_metadata_request() {
        let names = metadata.topics().map(|names| names.iter().map(str::to_owned).collect());
        return Request::Metadata { topics: names };
    }
    if let Some(produce) = request.api_as_produce_request() {
        let mut entries = Vec::new();
        for topic in produce.topics().unwrap() {
            for entry in topic.entries().unwrap() {
                entries.push(ProduceEntry {
                    topic: id_of(topic.id()),
                    partition: entry.partition(),
                    leader_epoch: entry.leader_epoch(),
                    batch: body.split_to(entry.body_length() as usize),
                });
            }
        }
        assert!(body.is_empty());
        let acks = [Acks::All, Acks::None, Acks::Leader][(produce.acks() + 1) as usize];
        return Request::Produce { acks, explain: produce.explain(), entries };
    }
    if let Some(fetch) = request.api_as_fetch_request() {
        let mut entries = Vec::new();
        for topic in fetch.topics().unwrap() {
            entries.extend(topic.entries().unwrap().iter().map(|entry| FetchEntry {
                topic: id_of(topic.id()),
                partition: entry.partition(),
                leader_epoch: entry.leader_epoch(),
                offset: entry.offset(),
                max_bytes: entry.max_bytes(),
            }));
        }
        return Request::Fetch {
            max_wait_ms: fetch.max_wait_ms(),
            min_bytes: fetch.min_bytes(),
            max_bytes: fetch.max_bytes(),
            rack: fetch.rack().map(Arc::from),
            entries,
        };
    }
    if let Some(list) = request.api_as_list_offsets_request() {
        let mut entries = Vec::new();
        for topic in list.topics().unwrap() {
            entries.extend(topic.entries().unwrap().iter().map(|entry| ListOffsetsEntry {
                topic: id_of(topic.id()),
                partition: entry.partition(),
                spec: match entry.timestamp_ms() {
                    -2 => OffsetSpec::Earliest,
                    -1 => OffsetSpec::Latest,
                    ms => OffsetSpec::Timestamp(ms),
                },
            }));
        }
        return Request::ListOffsets { entries };
    }
    decode_admin(request)
}

fn decode_admin(request: &wire::Request<'_>) -> Request {
    let pair =
        |entry: wire::ConfigEntry<'_>| (entry.name().unwrap().to_owned(), entry.value().unwrap().to_owned());
    if let Some(create) = request.api_as_create_topics_request() {
        let topic = create.topics().unwrap().get(0);
        let topic = NewTopic {
            name: topic.name().unwrap().to_owned(),
            partitions: topic.partitions(),
            replication_factor: topic.replication_factor(),
            configs: topic.configs().unwrap().iter().map(pair).collect(),
        };
        return Request::CreateTopic { topic, validate_only: create.validate_only() };
    }
    if let Some(delete) = request.api_as_delete_topics_request() {
        return Request::DeleteTopic { name: delete.names().unwrap().get(0).to_owned() };
    }
    if let Some(alter) = request.api_as_alter_configs_request() {
        return Request::AlterConfigs {
            topic: alter.topic().unwrap().to_owned(),
            set: alter.set().unwrap().iter().map(pair).collect(),
            unset: alter.unset().unwrap().iter().map(str::to_owned).collect(),
        };
    }
    if let Some(describe) = request.api_as_describe_configs_request() {
        return Request::DescribeConfigs { topic: describe.topics().unwrap().get(0).to_owned() };
    }
    if let Some(create) = request.api_as_create_partitions_request() {
        return Request::CreatePartitions {
            topic: create.topic().unwrap().to_owned(),
            count: create.count(),
        };
    }
    if let Some(delete) = request.api_as_delete_records_request() {
        let topic = delete.topics().unwrap().get(0);
        let entry = |entry: &wire::DeleteRecordsEntry| DeleteRecordsEntry {
            topic: TopicId(topic.id().unwrap().as_u128()),
            partition: entry.partition(),
            before: (entry.before() != u64::MAX).then(|| entry.before()),
        };
        return Request::DeleteRecords { entries: topic.entries().unwrap().iter().map(entry).collect() };
    }
    if let Some(describe) = request.api_as_describe_logs_request() {
        return Request::DescribeLogs { topic: describe.topics().unwrap().get(0).to_owned() };
    }
    if let Some(init) = request.api_as_init_producer_request() {
        let known = (init.producer_id() >= 0).then(|| (init.producer_id(), init.producer_epoch()));
        return Request::InitProducer { known };
    }
    let status = request.api_as_status_request().unwrap();
    Request::Status { topics: status.topics(), groups: status.groups(), partitions: status.partitions() }
}

type Builder = FlatBufferBuilder<'static>;
type Api = (wire::ResponseApi, Option<WIPOffset<UnionWIPOffset>>);

fn no_api(_: &mut Builder) -> Api {
    (wire::ResponseApi::NONE, None)
}

/// A whole response frame.
pub fn response(
    id: u64,
    error: Option<(ErrorCode, u32)>,
    api: impl FnOnce(&mut Builder) -> Api,
    body: &[u8],
) -> Vec<u8> {
    let mut builder = Builder::new();
    let (api_type, api) = api(&mut builder);
    let root = wire::Response::create(
        &mut builder,
        &wire::ResponseArgs {
            id,
            error: error.map_or(0, |(code, _)| code.to_wire()),
            retry_after_ms: error.map_or(0, |(_, ms)| ms),
            api_type,
            api,
            ..Default::default()
        },
    );
    let mut frame = Vec::new();
    frame::finish_response(&mut frame, &mut builder, root, body.len());
    frame.extend_from_slice(body);
    frame
}

/// One topic's results under its id.
pub fn produce_reply(results: Vec<(TopicId, wire::ProduceResult)>) -> impl FnOnce(&mut Builder) -> Api {
    move |b| {
        let mut topics = Vec::new();
        for run in results.chunk_by(|one, next| one.0 == next.0) {
            let id = wire::TopicId::from_u128(run[0].0.0);
            let results = Some(b.create_vector_from_iter(run.iter().map(|(_, result)| *result)));
            let args = wire::ProduceTopicResultArgs { id: Some(&id), results };
            topics.push(wire::ProduceTopicResult::create(b, &args));
        }
        let topics = Some(b.create_vector(&topics));
        let anatomy = wire::Anatomy::new(1, 2, 3, 4, 5, 6);
        let args = wire::ProduceResponseArgs { topics, anatomy: Some(&anatomy) };
        (wire::ResponseApi::ProduceResponse, Some(wire::ProduceResponse::create(b, &args).as_union_value()))
    }
}

pub fn fetch_reply(results: Vec<(TopicId, wire::FetchResult)>) -> impl FnOnce(&mut Builder) -> Api {
    preferring_reply(results, Vec::new())
}

fn preferring_reply(
    results: Vec<(TopicId, wire::FetchResult)>,
    preferred: Vec<wire::PreferredReplica>,
) -> impl FnOnce(&mut Builder) -> Api {
    move |b| {
        let mut topics = Vec::new();
        for run in results.chunk_by(|one, next| one.0 == next.0) {
            let id = wire::TopicId::from_u128(run[0].0.0);
            let results = Some(b.create_vector_from_iter(run.iter().map(|(_, result)| *result)));
            let args = wire::FetchTopicResultArgs { id: Some(&id), results };
            topics.push(wire::FetchTopicResult::create(b, &args));
        }
        let topics = Some(b.create_vector(&topics));
        let preferred = (!preferred.is_empty()).then(|| b.create_vector(&preferred));
        let args = wire::FetchResponseArgs { topics, preferred };
        (wire::ResponseApi::FetchResponse, Some(wire::FetchResponse::create(b, &args).as_union_value()))
    }
}

fn refuse_entries(call: &Call, code: ErrorCode) -> Vec<u8> {
    match &call.request {
        Request::Produce { entries, .. } => {
            let refuse = |entry: &ProduceEntry| (entry.topic, produce_result(entry.partition, Err(code)));
            response(call.id, None, produce_reply(entries.iter().map(refuse).collect()), &[])
        }
        Request::Fetch { entries, .. } => {
            let error = code.to_wire();
            let refuse =
                |e: &FetchEntry| (e.topic, wire::FetchResult::new(e.partition, 0, error, 0, 0, 0, 0));
            response(call.id, None, fetch_reply(entries.iter().map(refuse).collect()), &[])
        }
        other => panic!("no entries in {other:?}"),
    }
}

fn produce_result(partition: u32, result: Result<(u64, bool, u64), ErrorCode>) -> wire::ProduceResult {
    match result {
        Ok((base, duplicate, end)) => wire::ProduceResult::new(
            partition,
            0,
            wire::Durability::LeaderDevice,
            u8::from(duplicate),
            base,
            77,
            end,
        ),
        Err(code) => wire::ProduceResult::new(partition, code.to_wire(), wire::Durability::None, 0, 0, 0, 0),
    }
}

/// The reply of a broker in good health; none to a request that gets none.
async fn answer(call: &Call, state: &Mutex<State>, changed: &Notify) -> Option<Vec<u8>> {
    let id = call.id;
    match &call.request {
        Request::Hello { shard } => {
            let (shard, broker) = (shard.unwrap_or(0), call.broker);
            let hello = move |b: &mut Builder| {
                let software = Some(b.create_string("fake"));
                let args = wire::HelloResponseArgs {
                    protocol_version: schema::PROTOCOL_VERSION,
                    broker,
                    shard,
                    shards: SHARDS,
                    max_request_bytes: MAX_REQUEST_BYTES,
                    software,
                };
                (
                    wire::ResponseApi::HelloResponse,
                    Some(wire::HelloResponse::create(b, &args).as_union_value()),
                )
            };
            Some(response(id, None, hello, &[]))
        }
        Request::Metadata { topics } => Some(metadata(call, &state.lock().unwrap(), topics.as_deref())),
        Request::Produce { acks, entries, .. } => {
            let results = {
                let mut state = state.lock().unwrap();
                entries.iter().map(|entry| (entry.topic, append(&mut state, call.broker, entry))).collect()
            };
            changed.notify_waiters();
            (*acks != Acks::None).then(|| response(id, None, produce_reply(results), &[]))
        }
        Request::Fetch { max_wait_ms, min_bytes, max_bytes, rack, entries } => {
            let deadline = tokio::time::Instant::now() + Duration::from_millis(u64::from(*max_wait_ms));
            loop {
                let news = changed.notified();
                let (results, body) = fetch(
                    &state.lock().unwrap(),
                    (call.broker, rack.is_some()),
                    entries,
                    *max_bytes as usize,
                );
                let failed = results.iter().any(|(_, result)| result.error() != 0);
                if failed || body.len() >= *min_bytes as usize || tokio::time::Instant::now() >= deadline {
                    let preferred = match rack {
                        Some(_) => preferred(&state.lock().unwrap(), call.broker, entries),
                        None => Vec::new(),
                    };
                    return Some(response(id, None, preferring_reply(results, preferred), &body));
                }
                let _ = tokio::time::timeout_at(deadline, news).await;
            }
        }
        Request::InitProducer { .. } => {
            let mut state = state.lock().unwrap();
            state.producers_made += 1;
            let args =
                wire::InitProducerResponseArgs { producer_id: state.producers_made, producer_epoch: 0 };
            let init = move |b: &mut Builder| -> Api {
                let api = wire::InitProducerResponse::create(b, &args).as_union_value();
                (wire::ResponseApi::InitProducerResponse, Some(api))
            };
            Some(response(id, None, init, &[]))
        }
        Request::ListOffsets { entries } => Some(list_offsets(call, &state.lock().unwrap(), entries)),
        Request::DeleteRecords { entries } => Some(delete_records(id, &mut state.lock().unwrap(), entries)),
        _ => Some(administer(call, &mut state.lock().unwrap())),
    }
}

fn delete_records(id: u64, state: &mut State, entries: &[DeleteRecordsEntry]) -> Vec<u8> {
    let mut look = |entry: &DeleteRecordsEntry| {
        let topic = state.topics.values_mut().find(|topic| topic.id == entry.topic);
        let (error, start) = match topic.map(|topic| &mut topic.partitions[entry.partition as usize]) {
            None => (ErrorCode::UnknownTopic.to_wire(), 0),
            Some(partition) if entry.before.is_some_and(|before| before > partition.end()) => {
                (ErrorCode::OffsetOutOfRange.to_wire(), 0)
            }
            Some(partition) => {
                let end = partition.end();
                partition.log_start = partition.log_start.max(entry.before.unwrap_or(end));
                (0, partition.log_start)
            }
        };
        wire::DeleteRecordsResult::new(entry.partition, error, 0, start)
    };
    let results: Vec<_> = entries.iter().map(&mut look).collect();
    let topic = entries[0].topic;
    let api = move |b: &mut Builder| {
        let results = Some(b.create_vector(&results));
        let args =
            wire::DeleteRecordsTopicResultArgs { id: Some(&wire::TopicId::from_u128(topic.0)), results };
        let topic = wire::DeleteRecordsTopicResult::create(b, &args);
        let topics = Some(b.create_vector(&[topic]));
        let api = wire::DeleteRecordsResponse::create(b, &wire::DeleteRecordsResponseArgs { topics });
        (wire::ResponseApi::DeleteRecordsResponse, Some(api.as_union_value()))
    };
    response(id, None, api, &[])
}

fn append(state: &mut State, broker: u32, entry: &ProduceEntry) -> wire::ProduceResult {
    let topic = state.topics.values_mut().find(|topic| topic.id == entry.topic);
    let result = match topic.map(|topic| topic.partitions.get_mut(entry.partition as usize)) {
        None => Err(ErrorCode::UnknownTopic),
        Some(None) => Err(ErrorCode::UnknownPartition),
        Some(Some(partition)) if partition.leader != Some(broker) => Err(ErrorCode::NotLeader),
        Some(Some(partition)) => {
            let appended = partition.append(&entry.batch);
            appended.map(|(base, duplicate)| (base, duplicate, partition.end()))
        }
    };
    produce_result(entry.partition, result)
}

/// Whom a leader names in its own place.
fn preferred(state: &State, broker: u32, entries: &[FetchEntry]) -> Vec<wire::PreferredReplica> {
    let mut preferred = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let topic = state.topics.values().find(|topic| topic.id == entry.topic);
        let partition = topic.and_then(|topic| topic.partitions.get(entry.partition as usize));
        let led = partition.filter(|partition| partition.leader == Some(broker));
        if let Some((follower, _)) = led.and_then(|partition| partition.follower) {
            preferred.push(wire::PreferredReplica::new(at as u32, follower, 0, 0));
        }
    }
    preferred
}

fn fetch(
    state: &State,
    (broker, has_rack): (u32, bool),
    entries: &[FetchEntry],
    max_bytes: usize,
) -> (Vec<(TopicId, wire::FetchResult)>, Vec<u8>) {
    let mut body = Vec::new();
    let mut results = Vec::new();
    for entry in entries {
        let topic = state.topics.values().find(|topic| topic.id == entry.topic);
        let Some(partition) = topic.and_then(|topic| topic.partitions.get(entry.partition as usize)) else {
            let error = ErrorCode::UnknownTopic.to_wire();
            results.push((entry.topic, wire::FetchResult::new(entry.partition, 0, error, 0, 0, 0, 0)));
            continue;
        };
        let (mut end, start) = (partition.end(), partition.log_start);
        let before = body.len();
        let mut error = 0;
        if let Some((_, sees)) = partition.follower.filter(|(id, _)| has_rack && *id == broker) {
            end = sees;
        } else if partition.leader != Some(broker) {
            error = ErrorCode::NotLeader.to_wire();
        } else if entry.offset < start || entry.offset > end {
            error = ErrorCode::OffsetOutOfRange.to_wire();
        }
        for (_, batch_end, batch) in
            partition.batches.iter().filter(|(_, until, _)| error == 0 && *until <= end)
        {
            let taken = body.len() - before;
            let fits =
                taken + batch.len() <= entry.max_bytes as usize && body.len() + batch.len() <= max_bytes;
            if *batch_end > entry.offset && (fits || body.is_empty()) {
                body.extend_from_slice(batch);
            } else if *batch_end > entry.offset {
                break;
            }
        }
        let length = (body.len() - before) as u32;
        results.push((entry.topic, wire::FetchResult::new(entry.partition, length, error, 0, 0, end, start)));
    }
    (results, body)
}

fn list_offsets(call: &Call, state: &State, entries: &[ListOffsetsEntry]) -> Vec<u8> {
    let look = |entry: &ListOffsetsEntry| {
        let topic = state.topics.values().find(|topic| topic.id == entry.topic);
        let partition = topic.and_then(|topic| topic.partitions.get(entry.partition as usize));
        match partition.filter(|partition| partition.leader == Some(call.broker)) {
            None => wire::ListOffsetsResult::new(entry.partition, ErrorCode::NotLeader.to_wire(), 0, 0, -1),
            Some(partition) => {
                let offset = match entry.spec {
                    OffsetSpec::Earliest => partition.log_start,
                    OffsetSpec::Latest => partition.end(),
                    // The fake keeps no time: a timestamp is an offset.
                    OffsetSpec::Timestamp(ms) => ms as u64,
                };
                wire::ListOffsetsResult::new(entry.partition, 0, 0, offset, -1)
            }
        }
    };
    let results: Vec<_> = entries.iter().map(look).collect();
    let topic = entries[0].topic;
    let api = move |b: &mut Builder| {
        let results = Some(b.create_vector(&results));
        let args = wire::ListOffsetsTopicResultArgs { id: Some(&wire::TopicId::from_u128(topic.0)), results };
        let topic = wire::ListOffsetsTopicResult::create(b, &args);
        let topics = Some(b.create_vector(&[topic]));
        let api = wire::ListOffsetsResponse::create(b, &wire::ListOffsetsResponseArgs { topics });
        (wire::ResponseApi::ListOffsetsResponse, Some(api.as_union_value()))
    };
    response(call.id, None, api, &[])
}

fn metadata(call: &Call, state: &State, names: Option<&[String]>) -> Vec<u8> {
    let all: Vec<String> = state.topics.keys().cloned().collect();
    let stale = state.stale.get(&call.broker);
    let api = |b: &mut Builder| {
        let mut topics = Vec::new();
        for name in names.unwrap_or(&all) {
            let topic = state.topics.get(name);
            let past = stale.and_then(|stale| stale.leaders.get(name));
            let places = topic.into_iter().flat_map(|topic| {
                let place = |(at, p): (usize, &FakePartition)| {
                    let (leader, epoch) = past.map_or((p.leader, p.leader_epoch), |past| past[at]);
                    wire::PartitionPlace::new(at as u32, leader.unwrap_or(u32::MAX), p.shard, epoch)
                };
                topic.partitions.iter().enumerate().map(place)
            });
            let partitions = Some(b.create_vector_from_iter(places.collect::<Vec<_>>().into_iter()));
            let args = wire::TopicMetadataArgs {
                name: Some(b.create_string(name)),
                id: Some(&wire::TopicId::from_u128(topic.map_or(0, |topic| topic.id.0))),
                error: topic.map_or(ErrorCode::UnknownTopic.to_wire(), |_| 0),
                partitions,
                internal: false,
                compacted: false,
            };
            topics.push(wire::TopicMetadata::create(b, &args));
        }
        let topics = Some(b.create_vector(&topics));
        let mut brokers = Vec::new();
        for (id, port) in &state.brokers {
            let host = Some(b.create_string("127.0.0.1"));
            let args =
                wire::BrokerEndpointArgs { id: *id, host, port: *port, shards: SHARDS, ..Default::default() };
            brokers.push(wire::BrokerEndpoint::create(b, &args));
        }
        let brokers = Some(b.create_vector(&brokers));
        let version = stale.map_or(state.version, |stale| stale.version);
        let args = wire::MetadataResponseArgs { version, brokers, topics, cluster: None };
        (wire::ResponseApi::MetadataResponse, Some(wire::MetadataResponse::create(b, &args).as_union_value()))
    };
    response(call.id, None, api, &[])
}

fn administer(call: &Call, state: &mut State) -> Vec<u8> {
    let known = |state: &State, name: &str| match state.topics.get(name) {
        Some(topic) => (topic.id, 0),
        None => (TopicId(0), ErrorCode::UnknownTopic.to_wire()),
    };
    let outcome = |b: &mut Builder, name: &str, (id, error): (TopicId, u16)| {
        let args = wire::TopicOutcomeArgs {
            name: Some(b.create_string(name)),
            id: Some(&wire::TopicId::from_u128(id.0)),
            error,
            message: (error != 0).then(|| b.create_string("says the fake")),
        };
        wire::TopicOutcome::create(b, &args)
    };
    let mut builder = Builder::new();
    let b = &mut builder;
    let (api_type, api) = match &call.request {
        Request::CreateTopic { topic, validate_only } => {
            let result = match state.topics.get(&topic.name) {
                Some(topic) => (topic.id, ErrorCode::TopicExists.to_wire()),
                None if *validate_only => (TopicId(0), 0),
                None => (create(state, &topic.name, topic.partitions.max(1)), 0),
            };
            let outcome = outcome(b, &topic.name, result);
            let outcomes = Some(b.create_vector(&[outcome]));
            let api = wire::CreateTopicsResponse::create(b, &wire::CreateTopicsResponseArgs { outcomes });
            (wire::ResponseApi::CreateTopicsResponse, api.as_union_value())
        }
        Request::DeleteTopic { name } => {
            let result = known(state, name);
            state.topics.remove(name);
            let outcome = outcome(b, name, result);
            let outcomes = Some(b.create_vector(&[outcome]));
            let api = wire::DeleteTopicsResponse::create(b, &wire::DeleteTopicsResponseArgs { outcomes });
            (wire::ResponseApi::DeleteTopicsResponse, api.as_union_value())
        }
        Request::AlterConfigs { topic, .. } => {
            let outcome = Some(outcome(b, topic, known(state, topic)));
            let api = wire::AlterConfigsResponse::create(b, &wire::AlterConfigsResponseArgs { outcome });
            (wire::ResponseApi::AlterConfigsResponse, api.as_union_value())
        }
        Request::CreatePartitions { topic, count } => {
            let result = known(state, topic);
            if let Some(topic) = state.topics.get_mut(topic) {
                let partition = || FakePartition::new(1);
                topic.partitions.resize_with(*count as usize, partition);
            }
            let outcome = Some(outcome(b, topic, result));
            let args = wire::CreatePartitionsResponseArgs { outcome };
            let api = wire::CreatePartitionsResponse::create(b, &args);
            (wire::ResponseApi::CreatePartitionsResponse, api.as_union_value())
        }
        Request::DescribeConfigs { topic } => {
            let args = wire::ConfigValueArgs {
                name: Some(b.create_string("retention.ms")),
                value: Some(b.create_string("1000")),
                is_default: true,
                documentation: Some(b.create_string("how long")),
            };
            let value = wire::ConfigValue::create(b, &args);
            let args = wire::TopicConfigArgs {
                name: Some(b.create_string(topic)),
                error: known(state, topic).1,
                values: Some(b.create_vector(&[value])),
                ..Default::default()
            };
            let topic = wire::TopicConfig::create(b, &args);
            let topics = Some(b.create_vector(&[topic]));
            let api = wire::DescribeConfigsResponse::create(b, &wire::DescribeConfigsResponseArgs { topics });
            (wire::ResponseApi::DescribeConfigsResponse, api.as_union_value())
        }
        Request::DescribeLogs { topic } => {
            let log = wire::PartitionLog::new(0, 1, 2, 0, 0, 4, 5, 6, 7, 8);
            let args = wire::TopicLogsArgs {
                name: Some(b.create_string(topic)),
                error: known(state, topic).1,
                partitions: Some(b.create_vector(&[log])),
                ..Default::default()
            };
            let topic = wire::TopicLogs::create(b, &args);
            let topics = Some(b.create_vector(&[topic]));
            let api = wire::DescribeLogsResponse::create(b, &wire::DescribeLogsResponseArgs { topics });
            (wire::ResponseApi::DescribeLogsResponse, api.as_union_value())
        }
        Request::Status { topics, groups, partitions } => {
            let name = Some(b.create_string("flush_rounds_total"));
            let counter = wire::Counter::create(b, &wire::CounterArgs { name, value: 9 });
            let counters = Some(b.create_vector(&[counter]));
            let shard = wire::ShardStatus::create(b, &wire::ShardStatusArgs { shard: 1, counters });
            let notice = b.create_string("all is well");
            let topic = wire::TopicStatusArgs {
                name: Some(b.create_string("t")),
                partitions: 3,
                produced_batches: 4,
                produced_records: 5,
                produced_bytes: 6,
                fetched_bytes: 7,
                segments: 8,
                log_bytes: 9,
                traffic: partitions
                    .then(|| b.create_vector(&[wire::PartitionTraffic::new(2, 1, 4, 5, 6, 7, 8)])),
            };
            let topic = wire::TopicStatus::create(b, &topic);
            let topics = topics.then(|| b.create_vector(&[topic]));
            let group = wire::GroupStatusArgs {
                group: Some(b.create_string("g")),
                state: wire::GroupState::Reconciling,
                members: 2,
                partitions: 3,
                lag_known: true,
                lag_records: 4,
                lag_ms: 5,
                ..Default::default()
            };
            let known = wire::GroupStatus::create(b, &group);
            let group = wire::GroupStatusArgs {
                group: Some(b.create_string("h")),
                lag_ms: 0,
                lag_ms_unknown: true,
                ..group
            };
            let timeless = wire::GroupStatus::create(b, &group);
            let group = wire::GroupStatusArgs {
                group: Some(b.create_string("i")),
                lag_known: false,
                lag_records: 0,
                unknown_partitions: 2,
                ..group
            };
            let unknown = wire::GroupStatus::create(b, &group);
            let groups = groups.then(|| b.create_vector(&[known, timeless, unknown]));
            let args = wire::StatusResponseArgs {
                topics,
                groups,
                broker: 7,
                version: Some(b.create_string("0")),
                data_directory: Some(b.create_string("/data")),
                uptime_ms: 1500,
                shards: Some(b.create_vector(&[shard])),
                notices: Some(b.create_vector(&[notice])),
            };
            (wire::ResponseApi::StatusResponse, wire::StatusResponse::create(b, &args).as_union_value())
        }
        other => panic!("not for the administrator: {other:?}"),
    };
    let args = wire::ResponseArgs { id: call.id, api_type, api: Some(api), ..Default::default() };
    let root = wire::Response::create(b, &args);
    let mut frame = Vec::new();
    frame::finish_response(&mut frame, b, root, 0);
    frame
}
