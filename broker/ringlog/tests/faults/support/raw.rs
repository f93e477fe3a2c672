//! A client that says any bytes: frames built by hand, answers taken apart.
//!
//! Blocking, on a plain socket, so that a test decides about every byte and every pause.

use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use schema::error_code::ErrorCode;
use schema::frame::{self, Aligned, PREFIX_BYTES, Prefix};
use schema::wire;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A socket and nothing else.
pub struct Raw {
    /// For whoever wants to say half a word.
    pub stream: TcpStream,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The request's.
    pub id: u64,
    /// Of the whole request.
    pub error: Option<ErrorCode>,
    /// For people.
    pub message: String,
    /// Which response it is.
    pub kind: wire::ResponseApi,
    /// Errors and first offsets of a produce, per entry.
    pub produced: Vec<(Option<ErrorCode>, u64)>,
    /// Errors and bytes of a fetch, per entry.
    pub fetched: Vec<(Option<ErrorCode>, Vec<u8>)>,
    /// Where Hello ended.
    pub shard: Option<u32>,
}

impl Answer {
    /// The one error that there is: of the request, or of its first entry.
    pub fn any_error(&self) -> Option<ErrorCode> {
        let produced = || self.produced.first().and_then(|entry| entry.0);
        let fetched = || self.fetched.first().and_then(|entry| entry.0);
        self.error.or_else(produced).or_else(fetched)
    }
}

impl Raw {
    /// Connects and says nothing.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(Duration::from_secs(30))).expect("a socket");
        Self { stream }
    }

    /// Says nothing for `pause`, or until it hears something, which it leaves to be read: whether it did.
    pub fn hears_something_within(&self, pause: Duration) -> bool {
        self.stream.set_read_timeout(Some(pause)).expect("a socket");
        let heard = self.stream.peek(&mut [0]).is_ok();
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        heard
    }

    /// Connects and says Hello for a shard, or -1.
    pub fn hello(address: SocketAddr, shard: i32) -> Self {
        let mut raw = Self::connect(address);
        raw.send(&hello(1, shard, 1)).expect("it reads");
        let answer = raw.answer().expect("it answers").expect("it does not close");
        assert_eq!((answer.error, answer.kind), (None, wire::ResponseApi::HelloResponse), "{answer:?}");
        raw
    }

    /// Says these bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next answer; `None` when the broker has closed.
    pub fn answer(&mut self) -> io::Result<Option<Answer>> {
        let mut prefix = [0; PREFIX_BYTES];
        match self.stream.read(&mut prefix[..1]) {
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            other => other.map(drop)?,
        }
        self.stream.read_exact(&mut prefix[1..])?;
        let prefix = Prefix::decode(prefix, 1 << 30).map_err(io::Error::other)?;
        let mut rest = vec![0; prefix.frame_bytes - PREFIX_BYTES];
        self.stream.read_exact(&mut rest)?;
        let mut aligned = Aligned::default();
        let metadata = aligned.align(&rest[..prefix.metadata_bytes]);
        let response = frame::response(metadata, 100_000).map_err(io::Error::other)?;
        Ok(Some(take_apart(&response, &rest[prefix.body_start() - PREFIX_BYTES..])))
    }

    /// Says `request` and takes the answer.
    #[track_caller]
    pub fn ask(&mut self, request: &[u8]) -> Answer {
        self.send(request).expect("it reads");
        self.answer().expect("it answers").expect("it does not close")
    }
}

fn take_apart(response: &wire::Response<'_>, body: &[u8]) -> Answer {
    let code = |number: u16| match number {
        0 => None,
        _ => Some(ErrorCode::from_wire(number).expect("a known code")),
    };
    let mut produced = Vec::new();
    for topic in response.api_as_produce_response().and_then(|api| api.topics()).iter().flatten() {
        for result in topic.results().iter().flatten() {
            produced.push((code(result.error()), result.base_offset()));
        }
    }
    let mut fetched = Vec::new();
    let mut at = 0;
    for topic in response.api_as_fetch_response().and_then(|api| api.topics()).iter().flatten() {
        for result in topic.results().iter().flatten() {
            let end = at + result.body_length() as usize;
            fetched.push((code(result.error()), body[at..end].to_vec()));
            at = end;
        }
    }
    assert_eq!(at, body.len(), "the body is what the entries say");
    Answer {
        id: response.id(),
        error: code(response.error()),
        message: response.message().unwrap_or_default().to_owned(),
        kind: response.api_type(),
        produced,
        fetched,
        shard: response.api_as_hello_response().map(|hello| hello.shard()),
    }
}

/// A request around what `build` makes, for a body of `body_bytes`.
pub fn request(
    id: u64,
    kind: wire::RequestApi,
    body_bytes: usize,
    build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<UnionWIPOffset>,
) -> Vec<u8> {
    request_within((id, 0), kind, body_bytes, build)
}

/// The same with its id and the milliseconds that its client waits.
fn request_within(
    (id, deadline_ms): (u64, u32),
    kind: wire::RequestApi,
    body_bytes: usize,
    build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<UnionWIPOffset>,
) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let api = build(&mut builder);
    let args = wire::RequestArgs { id, deadline_ms, api_type: kind, api: Some(api), ..Default::default() };
    let root = wire::Request::create(&mut builder, &args);
    let mut out = Vec::new();
    frame::finish_request(&mut out, &mut builder, root, body_bytes);
    out
}

/// Hello.
pub fn hello(id: u64, shard: i32, protocol_version: u32) -> Vec<u8> {
    request(id, wire::RequestApi::HelloRequest, 0, |builder| {
        let args = wire::HelloRequestArgs { shard, protocol_version, ..Default::default() };
        wire::HelloRequest::create(builder, &args).as_union_value()
    })
}

/// Metadata of no topic: the smallest question.
pub fn question(id: u64) -> Vec<u8> {
    request(id, wire::RequestApi::MetadataRequest, 0, |builder| {
        let none: [WIPOffset<&str>; 0] = [];
        let topics = Some(builder.create_vector(&none));
        wire::MetadataRequest::create(builder, &wire::MetadataRequestArgs { topics }).as_union_value()
    })
}

/// Where a produce or fetch goes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The topic.
    pub topic: u128,
    /// The partition.
    pub partition: u32,
    /// The epoch that the client claims to know.
    pub epoch: u32,
}

/// One topic's entries, each with the length that it claims; the body is what it is.
pub fn produce(id: u64, acks: i8, entries: &[(Target, u32)], body: &[u8]) -> Vec<u8> {
    produce_within((id, 0), acks, entries, body)
}

/// The same with its id and the milliseconds that its client waits.
pub fn produce_within(head: (u64, u32), acks: i8, entries: &[(Target, u32)], body: &[u8]) -> Vec<u8> {
    let mut out = request_within(head, wire::RequestApi::ProduceRequest, body.len(), |builder| {
        let list: Vec<_> = entries
            .iter()
            .map(|(target, bytes)| wire::ProduceEntry::new(target.partition, *bytes, target.epoch, 0))
            .collect();
        let list = builder.create_vector(&list);
        let topic = entries.first().map_or(0, |(target, _)| target.topic);
        let args = wire::ProduceTopicArgs { id: Some(&wire::TopicId::from_u128(topic)), entries: Some(list) };
        let topic = wire::ProduceTopic::create(builder, &args);
        let topics = Some(builder.create_vector(&[topic]));
        let args = wire::ProduceRequestArgs { acks, explain: false, topics };
        wire::ProduceRequest::create(builder, &args).as_union_value()
    });
    out.extend_from_slice(body);
    out
}

/// A produce of one batch, acknowledged by all.
pub fn produce_one(id: u64, target: Target, batch: &[u8]) -> Vec<u8> {
    produce(id, -1, &[(target, batch.len() as u32)], batch)
}

/// A fetch of one partition.
pub fn fetch(id: u64, target: Target, offset: u64, max_wait_ms: u32, max_bytes: u32) -> Vec<u8> {
    let terms = FetchTerms { id, deadline_ms: 0, max_wait_ms, min_bytes: 1, max_bytes };
    fetch_many(terms, &[(target, offset, max_bytes)])
}

/// What a fetch wants.
#[derive(Clone, Copy, Debug)]
pub struct FetchTerms {
    /// Its id.
    pub id: u64,
    /// How long its client waits; 0 = as long as it takes.
    pub deadline_ms: u32,
    /// How long it may wait for bytes.
    pub max_wait_ms: u32,
    /// For how many.
    pub min_bytes: u32,
    /// Not more of them.
    pub max_bytes: u32,
}

/// A fetch of partitions of one topic: each with its offset and its own `max_bytes`.
pub fn fetch_many(terms: FetchTerms, entries: &[(Target, u64, u32)]) -> Vec<u8> {
    request_within((terms.id, terms.deadline_ms), wire::RequestApi::FetchRequest, 0, |builder| {
        let topic = entries.first().map_or(0, |(target, _, _)| target.topic);
        let entry = |(target, offset, max_bytes): &(Target, u64, u32)| {
            wire::FetchEntry::new(target.partition, *max_bytes, *offset, target.epoch, 0)
        };
        let list: Vec<_> = entries.iter().map(entry).collect();
        let list = Some(builder.create_vector(&list));
        let args = wire::FetchTopicArgs { id: Some(&wire::TopicId::from_u128(topic)), entries: list };
        let topic = wire::FetchTopic::create(builder, &args);
        let topics = Some(builder.create_vector(&[topic]));
        let FetchTerms { max_wait_ms, min_bytes, max_bytes, .. } = terms;
        let args = wire::FetchRequestArgs { max_wait_ms, min_bytes, max_bytes, topics, rack: None };
        wire::FetchRequest::create(builder, &args).as_union_value()
    })
}
