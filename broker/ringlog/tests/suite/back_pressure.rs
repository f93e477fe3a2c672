//! Consumers that do not keep up: they are sent no more than they may hold, and lose nothing.
//!
//! Nothing is timed: what a consumer was sent is the broker's own count of bytes, and it is asked for it often enough for
//! one that fetched on and on to be far ahead.

use crate::process::{Broker, directory};
use ringlog_client::{Client, ClientConfig, ConsumerConfig, FetchedBatch, GroupConfig, StartFrom};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Records of the topic, each a batch of its own, dealt out to its partitions.
const RECORDS: u64 = 400;
const VALUE_BYTES: usize = 10_000;
/// A batch of one such record at most.
const BATCH_BYTES: u64 = VALUE_BYTES as u64 + 100;
/// `prefetch.bytes`: a fortieth of what there is.
const PREFETCH_BYTES: u64 = 100_000;
/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A broker of one core, and so of one connection of each consumer, with a topic that is full.
fn start(partitions: u64) -> (tempfile::TempDir, Broker) {
    let data = directory();
    let line = ["--shards", "1", "--cores", "none", "--listen", "127.0.0.1:0"];
    let broker = Broker::start_with(data.path(), &line);
    broker.run(&["topic", "create", "t", "--partitions", &partitions.to_string()]).ok();
    let lines = format!("{}\n", "x".repeat(VALUE_BYTES)).repeat((RECORDS / partitions) as usize);
    for partition in 0..partitions {
        let line = ["produce", "t", "--partition", &partition.to_string(), "--set", "batch.size=1"];
        broker.run_with(&line, lines.as_bytes()).ok();
    }
    (data, broker)
}

async fn client_of(broker: &Broker) -> Client {
    Client::connect(ClientConfig::new(&broker.address).expect("an address")).await.expect("a broker")
}

/// Bytes that the broker has sent to consumers.
async fn sent_bytes(client: &Client) -> u64 {
    let status = client.admin().status().await.expect("it answers");
    status.counter("fetched_bytes_total").expect("it is counted")
}

/// Nothing is taken for a while. The consumer, which was handed `handed` bytes, fetches ahead, and no more than it may;
/// `again` is what it may have asked for twice.
async fn holds_what_it_may(client: &Client, handed: u64, again: u64) {
    for _ in 0..20 {
        let sent = sent_bytes(client).await;
        assert!(
            sent <= handed + again + PREFETCH_BYTES + BATCH_BYTES,
            "{sent} bytes sent, {handed} handed out"
        );
    }
}

/// Waits until half of what may be there is.
async fn fetches_ahead(client: &Client, handed: u64) {
    let until = Instant::now() + LIMIT;
    while sent_bytes(client).await < handed + PREFETCH_BYTES / 2 {
        assert!(Instant::now() < until, "it does not fetch ahead");
    }
}

#[tokio::test]
async fn a_consumer_is_sent_no_more_than_it_may_hold() {
    let (_data, broker) = start(1);
    let client = client_of(&broker).await;
    let mut config = ConsumerConfig::default();
    config.set("prefetch.bytes", &PREFETCH_BYTES.to_string()).expect("a setting");
    let mut consumer = client.consumer(config);
    consumer.assign("t", &[(0, StartFrom::Earliest)]).await.expect("the topic");
    let (mut handed, mut records) = (0, 0);
    while records < RECORDS {
        let fetched = consumer.next_batch().await.expect("assigned").expect("it is sound");
        handed += fetched.bytes().len() as u64;
        records += fetched.records().count() as u64;
        if records < RECORDS / 2 {
            fetches_ahead(&client, handed).await;
        }
        holds_what_it_may(&client, handed, 0).await;
    }
    assert_eq!((records, sent_bytes(&client).await), (RECORDS, handed));
}

/// What was read of two partitions.
#[derive(Default)]
struct Read {
    bytes: u64,
    next: [u64; 2],
}

impl Read {
    /// Each record is the next of its partition.
    fn take(&mut self, fetched: &FetchedBatch) {
        self.bytes += fetched.bytes().len() as u64;
        let next = &mut self.next[fetched.partition() as usize];
        for record in fetched.records() {
            assert_eq!(record.expect("it is sound").offset, *next);
            *next += 1;
        }
    }
}

/// A member that is busy with its first batch, then has one partition paused, then reads all: in no state is it sent more
/// than it may hold, it stays in the group, and each record is handed out once.
#[tokio::test]
async fn a_member_that_does_not_keep_up_is_sent_no_more_and_stays() {
    const OF_EACH: u64 = RECORDS / 2;
    let (_data, broker) = start(2);
    let client = client_of(&broker).await;
    let mut config = GroupConfig::new("g").with_topic("t");
    config.set("prefetch.bytes", &PREFETCH_BYTES.to_string()).expect("a setting");
    let mut member = client.group_consumer(config).expect("it has a topic");
    let mut read = Read::default();
    read.take(&member.poll().await.expect("it is sound"));
    fetches_ahead(&client, read.bytes).await;
    holds_what_it_may(&client, read.bytes, 0).await;
    let described = broker.run(&["group", "describe", "g", "--format", "json"]).ok().json();
    assert_eq!((&described[0]["state"], &described[0]["members"]), (&"stable".into(), &1.into()));

    // What was fetched ahead is let go, and asked for again: of all partitions, since one request is for all.
    let again = 2 * (PREFETCH_BYTES + BATCH_BYTES);
    member.pause("t", 0);
    let paused_at = read.next[0];
    while read.next[1] < OF_EACH {
        read.take(&member.poll().await.expect("it is sound"));
        assert_eq!((read.next[0], member.position("t", 0)), (paused_at, Some(paused_at)), "it is paused");
        holds_what_it_may(&client, read.bytes, again).await;
    }
    member.resume("t", 0);
    while read.next[0] < OF_EACH {
        read.take(&member.poll().await.expect("it is sound"));
        holds_what_it_may(&client, read.bytes, again).await;
    }
    assert_eq!(read.next, [OF_EACH; 2]);
    member.close().await.expect("it commits");
    let described = broker.run(&["group", "describe", "g", "--format", "json"]).ok().json();
    assert_eq!(described[0]["lag_records"], 0);
}

/// On the command line, alone and as a member: nobody reads what it prints, so it asks for no more.
#[test]
fn a_command_whose_output_is_not_read_asks_for_no_more() {
    /// What a pipe and the command's own buffer hold, and the batch that is being printed.
    const ON_THE_WAY: u64 = 2 * (64 << 10) + PREFETCH_BYTES;
    let (_data, broker) = start(1);
    let sent_bytes = || -> u64 {
        let status = broker.run(&["status", "--format", "json"]).ok().json().remove(0);
        status["shards"][0]["counters"]["fetched_bytes_total"].as_u64().expect("it is counted")
    };
    let setting = format!("prefetch.bytes={PREFETCH_BYTES}");
    for more in [&[][..], &["--group", "g"]] {
        let before = sent_bytes();
        let line = [&["consume", "t", "--set", &setting], more].concat();
        let mut child =
            broker.command(&line).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
        let (mut sent, mut same) = (0, 0);
        let until = Instant::now() + LIMIT;
        while sent == 0 || same < 10 {
            let now = sent_bytes() - before;
            same = if now == sent { same + 1 } else { 0 };
            sent = now;
            assert!(sent <= ON_THE_WAY + PREFETCH_BYTES + BATCH_BYTES, "{more:?}: {sent} bytes sent");
            assert!(Instant::now() < until, "{more:?}: {sent} bytes sent");
        }
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let lines = output.lines().take(RECORDS as usize).map(|line| line.expect("it is text").len());
        assert_eq!(lines.filter(|bytes| *bytes == VALUE_BYTES).count() as u64, RECORDS, "{more:?}");
        child.kill().expect("it runs");
        child.wait().expect("it is our child");
    }
}
