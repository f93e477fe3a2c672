//! Receipts and anatomies of a real broker, on the command line and in the client: what each acknowledgement says,
//! and that it fits what the log then holds. Receipts of duplicates need lost answers: `idempotence` has them.

use crate::process::{Broker, directory};
use ringlog_client::reply::Reply;
use ringlog_client::request::{ProduceEntry, Request};
use ringlog_client::{
    Acks, Client, ClientConfig, Connection, Durability, NewTopic, ProducerConfig, ProducerRecord, Receipt,
};
use schema::record_batch::BatchBuilder;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

/// The broker's parts, in their order.
const PARTS: [&str; 6] =
    ["receive_ns", "core_hop_ns", "append_ns", "device_ns", "replicate_ns", "acknowledge_ns"];

fn number(object: &Value, field: &str) -> u64 {
    object[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {object}"))
}

#[test]
fn every_record_has_its_receipt() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "r", "--partitions", "3"]).ok();
    let lines: String = (0..500).map(|n| format!("key-{},{n}\n", n % 7)).collect();
    // With every parts' sum: what the broker says it took fits into the round trip, and the device was waited for.
    for (acks, durability) in [("1", "leader-device"), ("all", "all-in-sync-device")] {
        let line = [
            "produce",
            "r",
            "--key-field",
            "1",
            "--acks",
            acks,
            "--receipts",
            "--explain",
            "--format",
            "json",
        ];
        let mut said = broker.run_with(&line, lines.as_bytes()).ok().json();
        let summary = said.pop().unwrap();
        assert_eq!((&summary["acknowledged"], &summary["duplicates"]), (&json!(500), &json!(0)), "{summary}");
        assert_eq!(said.len(), 500);
        for (at, receipt) in said.iter().map(|line| &line["receipt"]).enumerate() {
            assert_eq!(number(receipt, "line"), at as u64 + 1);
            assert_eq!(receipt["durability"], durability, "{receipt}");
            assert_eq!(receipt["duplicate"], false, "{receipt}");
            assert!(number(receipt, "durable_end") > number(receipt, "offset"), "{receipt}");
            let anatomy = &receipt["anatomy"];
            let brokers: u64 = PARTS.iter().map(|part| number(anatomy, part)).sum();
            assert!(brokers <= number(anatomy, "round_trip_ns"), "{receipt}");
            assert!(number(anatomy, "device_ns") > 0 && number(anatomy, "append_ns") > 0, "{receipt}");
        }
        // What a receipt names is what the log holds there.
        let held = broker.run(&["consume", "r", "--until-end", "--format", "json"]).ok().json();
        let expected: Vec<&str> = lines.lines().collect();
        for receipt in said.iter().map(|line| &line["receipt"]) {
            let place = (&receipt["partition"], &receipt["offset"]);
            let at_place = held.iter().find(|record| (&record["partition"], &record["offset"]) == place);
            let value = expected[number(receipt, "line") as usize - 1];
            let record = at_place.unwrap_or_else(|| panic!("nothing at {place:?}"));
            assert_eq!(
                (&record["value"], &record["timestamp_ms"]),
                (&json!(value), &receipt["timestamp_ms"])
            );
        }
    }
}

#[test]
fn receipts_for_people() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "p"]).ok();
    let rows: [(&[&str], &[&str]); 3] = [
        (&[], &["1", "0", "0", "1", "all-in-sync-device", "no"]),
        (&["--acks", "1"], &["1", "0", "1", "2", "leader-device", "no"]),
        (&["--acks", "0"], &["1", "0", "-", "-", "none", "no"]),
    ];
    for (arguments, expect) in rows {
        let mut line = vec!["produce", "p", "--receipts"];
        line.extend(arguments);
        let said = broker.run_with(&line, b"x\n").ok().text();
        let cells =
            |at: usize| said.lines().nth(at).unwrap_or_default().split_whitespace().collect::<Vec<_>>();
        assert_eq!(
            cells(0),
            ["LINE", "PARTITION", "OFFSET", "DURABLE", "END", "DURABILITY", "DUPLICATE"],
            "{said}"
        );
        assert_eq!(cells(1), expect, "{said}");
    }
    let said = broker.run_with(&["produce", "p", "--receipts", "--explain"], b"x\n").ok().text();
    let heading = said.lines().next().unwrap_or_default();
    for part in ["ROUND TRIP", "RECEIVE", "CORE HOP", "APPEND", "DEVICE", "REPLICATE", "ACKNOWLEDGE"] {
        assert!(heading.contains(part), "no {part} in:\n{said}");
    }
}

#[test]
fn a_receipt_is_there_before_the_next_line() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "i"]).ok();
    let mut command = broker.command(&["produce", "i", "--receipts", "--format", "json"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for offset in 0..3u64 {
        input.write_all(b"one line\n").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(number(&said["receipt"], "offset"), offset);
    }
    drop(input);
    let mut summary = String::new();
    output.read_line(&mut summary).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&summary).unwrap()["acknowledged"], 3);
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn receipts_in_the_client() {
    let data = directory();
    let broker = Broker::start(data.path());
    let config = ClientConfig::new(&broker.address).expect("an address");
    let client = Client::connect(config).await.expect("the broker answers");
    client.admin().create_topic(&NewTopic::named("c")).await.expect("it is new");
    for (offset, acks, explain, durability) in [
        (0, Acks::Leader, false, Durability::LeaderDevice),
        (1, Acks::All, true, Durability::AllInSyncDevice),
        (Receipt::OFFSET_UNKNOWN, Acks::None, true, Durability::None),
    ] {
        let producer = client.producer(ProducerConfig { acks, explain, ..Default::default() });
        let sent = producer.send(ProducerRecord::new("c", "x")).await.expect("there is memory for it");
        let receipt = sent.await.expect("it is acknowledged");
        assert_eq!((receipt.offset, receipt.durability), (offset, durability));
        assert!(!receipt.duplicate);
        if acks == Acks::None {
            continue;
        }
        assert_eq!(receipt.durable_end, offset + 1);
        assert_eq!(receipt.anatomy.is_some(), explain);
        if let Some(anatomy) = receipt.anatomy {
            assert!(anatomy.broker.device_ns > 0, "{anatomy:?}");
            assert!(anatomy.broker.total_ns() <= anatomy.round_trip_ns, "{anatomy:?}");
        }
        producer.close().await.expect("all is acknowledged");
    }
}

/// Both requests come to core 0, which sends one of them on: the way there has a share of its own.
#[tokio::test]
async fn the_way_to_another_core_is_told() {
    let data = directory();
    let broker = Broker::start(data.path());
    let config = ClientConfig::new(&broker.address).expect("an address");
    let client = Client::connect(config.clone()).await.expect("the broker answers");
    let topic = NewTopic { partitions: 2, ..NewTopic::named("h") };
    client.admin().create_topic(&topic).await.expect("it is new");
    let topic = client.admin().describe_topic("h").await.expect("it is there");
    let connection = Connection::open(&broker.address, Some(0), &config).await.expect("the broker answers");
    let mut shards = Vec::new();
    for place in &topic.partitions {
        let mut builder = BatchBuilder::new();
        builder.append(1, None, Some(b"x"), &[]);
        let entry = ProduceEntry {
            topic: topic.id,
            partition: place.partition,
            leader_epoch: place.leader_epoch,
            batch: builder.finish().into(),
        };
        let request = Request::Produce { acks: Acks::All, explain: true, entries: vec![entry] };
        let response = connection.request(request, Duration::from_secs(60)).await.expect("it is answered");
        let anatomy = match response.into_result() {
            Ok(Reply::Produce { anatomy: Some(anatomy), .. }) => anatomy,
            other => panic!("{other:?}"),
        };
        assert_eq!(anatomy.core_hop_ns > 0, place.shard != 0, "{place:?}: {anatomy:?}");
        assert!(anatomy.append_ns > 0 && anatomy.device_ns > 0, "{anatomy:?}");
        assert_eq!(anatomy.replicate_ns, 0, "there is one replica: {anatomy:?}");
        shards.push(place.shard);
    }
    shards.sort_unstable();
    assert_eq!(shards, [0, 1]);
}
