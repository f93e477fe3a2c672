//! Records in and out: keys, places, ends, formats.

use crate::process::{Broker, directory, file};
use crate::proxy::{self, Proxy};
use ringlog_client::{Client, ClientConfig, ConsumeError, ConsumerConfig, GroupConfig, StartFrom};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

/// Every record of a topic, as JSON.
fn all(broker: &Broker, topic: &str) -> Vec<Value> {
    broker.run(&["consume", topic, "--until-end", "--format", "json"]).ok().json()
}

#[test]
fn keys_land_where_kafka_puts_them() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "keyed", "--partitions", "10"]).ok();
    // murmur2 with Kafka's seed, without its sign bit, modulo 10; the hashes are those of
    // `UtilsTest.testMurmur2` of Kafka's clients.
    let expect = BTreeMap::from([("21", 0), ("foobar", 6), ("a-little-bit-long-string", 2), ("abc", 7)]);
    let csv = "number,key\n1,21\n2,foobar\n3,a-little-bit-long-string\n4,abc\n5,\"abc\"\n";
    let path = file(data.path(), "keys.csv", csv.as_bytes());
    let line = ["produce", "keyed", "--file", path.to_str().unwrap(), "--header", "--key-field", "2"];
    broker.run(&line).ok();
    let pairs = "foobar=>6\nabc=>7\n";
    broker.run_with(&["produce", "keyed", "--key-separator", "=>"], pairs.as_bytes()).ok();
    let records = all(&broker, "keyed");
    assert_eq!(records.len(), 7);
    for record in &records {
        let key = record["key"].as_str().unwrap();
        assert_eq!(record["partition"], json!(expect[key]), "{record}");
    }
    let of = |key: &str| -> Vec<&str> {
        let of = records.iter().filter(|record| record["key"] == key);
        of.map(|record| record["value"].as_str().unwrap()).collect()
    };
    assert_eq!(of("foobar"), ["2,foobar", "6"]);
    assert_eq!(of("abc"), ["4,abc", "5,\"abc\"", "7"]);

    let said = broker.run(&["consume", "keyed", "--partition", "6", "--until-end", "--keys"]).ok();
    assert_eq!(said.text(), "foobar\t2,foobar\nfoobar\t6\n");
    broker.run_with(&["produce", "keyed", "--key-field", "3"], b"a,b\n").failed(1, &["line 1", "2 fields"]);
    broker.run_with(&["produce", "keyed", "--key-separator", "="], b"a\n").failed(1, &["line 1", "'='"]);
}

#[test]
fn places_to_start_from() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run_with(&["produce", "t"], b"a\nb\n").ok();
    let before = all(&broker, "t");
    let last_ms = before.iter().map(|record| record["timestamp_ms"].as_u64().unwrap()).max().unwrap();
    // Timestamps are the producer's clock in whole milliseconds: the next must differ.
    while SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64 <= last_ms {
        std::hint::spin_loop();
    }
    broker.run_with(&["produce", "t"], b"c\n").ok();
    let record = all(&broker, "t").pop().unwrap();
    assert_eq!(record["value"], "c");
    let at_ms = format!("@{}", record["timestamp_ms"]);
    let at_time = format!("@{}", record["timestamp"].as_str().unwrap());
    let after_last = format!("@{}", last_ms + 1);
    let rows: [(&str, &str); 9] = [
        ("earliest", "a\nb\nc\n"),
        ("latest", ""),
        ("0", "a\nb\nc\n"),
        ("2", "c\n"),
        ("3", ""),
        ("@0", "a\nb\nc\n"),
        (&at_ms, "c\n"),
        (&at_time, "c\n"),
        (&after_last, "c\n"),
    ];
    for (place, expect) in rows {
        let ran = broker.run(&["consume", "t", "--offset", place, "--until-end"]).ok();
        assert_eq!(ran.text(), expect, "from {place}");
    }
    let future = broker.run(&["consume", "t", "--offset", "@2100-01-01T00:00:00Z", "--until-end"]).ok();
    assert_eq!(future.text(), "");
    let limited = broker.run(&["consume", "t", "--offset", "1", "--max", "1"]).ok();
    assert_eq!(limited.text(), "b\n");
    broker.run(&["consume", "t", "--offset", "9", "--until-end"]).failed(1, &["offset 9", "ends at 3"]);
    broker.run(&["consume", "t", "--offset", "9", "--max", "1"]).failed(1, &["offset 9", "earliest"]);
}

#[test]
fn a_large_file_comes_back_as_it_was() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "large", "--partitions", "4"]).ok();
    let mut text = String::new();
    for line in 0..50_000 {
        text.push_str(&format!("key-{},{line},some words to make the line longer\n", line % 97));
    }
    let path = file(data.path(), "large.csv", text.as_bytes());
    let line = ["produce", "large", "--file", path.to_str().unwrap(), "--key-field", "1", "--format", "json"];
    let produced = broker.run(&line).ok().json().remove(0);
    assert_eq!((&produced["acknowledged"], &produced["failed"]), (&json!(50_000), &json!(0)));
    let partitions = produced["partitions"].as_array().unwrap();
    let records: u64 = partitions.iter().map(|partition| partition["records"].as_u64().unwrap()).sum();
    assert_eq!((partitions.len(), records), (4, 50_000));

    let consumed = broker.run(&["consume", "large", "--until-end"]).ok().text();
    let number = |line: &str| line.split(',').nth(1).unwrap().parse::<u64>().unwrap();
    // Order per key: that of the file.
    let mut last = BTreeMap::new();
    for line in consumed.lines() {
        let key = line.split(',').next().unwrap();
        let before = last.insert(key, number(line));
        assert!(before.is_none_or(|before| before < number(line)), "{line} after {before:?}");
    }
    let mut lines: Vec<&str> = consumed.lines().collect();
    lines.sort_by_key(|line| number(line));
    assert!(lines == text.lines().collect::<Vec<_>>(), "{} lines differ from the file", lines.len());

    // A reader that hangs up, as `head` does.
    let mut child =
        broker.command(&["consume", "large"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut String::new()).unwrap();
    drop(output);
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn a_follower_sees_records_as_they_come() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "t", "--partitions", "2"]).ok();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut follower = broker.command(&["consume", "t", "--offset", "latest", "--format", "json"]);
        let mut child = follower.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            output.read_line(&mut line).map(|_| (line, output))
        });
        // It starts at the end, wherever that is when it gets there: until it has seen something, more comes.
        while !reader.is_finished() {
            broker.run_with(&["produce", "t", "--key-separator", ":"], b"k:v\n").ok();
        }
        // Its output stays open until it has ended.
        let (line, _output) = reader.join().unwrap().unwrap();
        let record: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&record["key"], &record["value"]), (&json!("k"), &json!("v")));
        // SAFETY: it is our child and not waited for yet, so that its id is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn bytes_acks_and_anatomy() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "b"]).ok();
    broker.run_with(&["produce", "b"], b"\xff\xfe\r\n\nlast").ok();
    let values: Vec<_> = all(&broker, "b")
        .into_iter()
        .map(|record| (record["value"].clone(), record["value_base64"].clone()))
        .collect();
    let expect = [(Value::Null, json!("//4=")), (json!(""), Value::Null), (json!("last"), Value::Null)];
    assert_eq!(values, expect);
    let raw = broker.run(&["consume", "b", "--until-end"]).ok();
    assert_eq!(raw.stdout, b"\xff\xfe\n\nlast\n");

    for (acks, durability, offset) in
        [("1", "leader-device", json!(3)), ("all", "all-in-sync-device", json!(4))]
    {
        let line = ["produce", "b", "--acks", acks, "--explain", "--format", "json"];
        let report = broker.run_with(&line, b"x\n").ok().json().remove(0);
        let partition = &report["partitions"][0];
        assert_eq!(partition["first_offset"], offset);
        assert!(
            ["leader-device", durability].contains(&partition["durability"].as_str().unwrap()),
            "{report}"
        );
        let device_ns = report["explain"]["device"]["p50_ns"].as_u64().unwrap();
        let round_trip_ns = report["explain"]["round_trip"]["p50_ns"].as_u64().unwrap();
        assert!(device_ns > 0 && device_ns <= round_trip_ns, "{report}");
    }
    let report =
        broker.run_with(&["produce", "b", "--acks", "0", "--format", "json"], b"y\n").ok().json().remove(0);
    assert_eq!(report["partitions"][0]["durability"], "none");
    assert_eq!(report["partitions"][0]["first_offset"], Value::Null);
    let partition = broker.run_with(&["produce", "b", "--partition", "0"], b"z\n").ok();
    assert!(partition.text().contains("partition 0"), "{}", partition.text());
    broker
        .run_with(&["produce", "b", "--partition", "1"], b"z\n")
        .failed(1, &["no partition 1", "topic describe b"]);
}

#[test]
fn everything_that_a_record_has_goes_in_and_out_as_json() {
    let data = directory();
    let broker = Broker::start(data.path());
    for topic in ["from", "to"] {
        broker.run(&["topic", "create", topic, "--partitions", "3"]).ok();
    }
    let header = |name: &str, value: Value| json!({ "name": name, "value": value });
    let sent = [
        json!({ "partition": 0, "timestamp_ms": 1000, "key": "k", "value": "v", "headers": [
            header("b", json!("1")), header("a", json!(null)), header("b", json!("")),
        ] }),
        json!({ "partition": 1, "timestamp_ms": 0, "key": "gone", "value": null, "headers": [] }),
        json!({ "partition": 2, "timestamp_ms": 1_357_034_400_000_i64, "key": null, "value": "", "headers": [] }),
        json!({ "partition": 2, "timestamp_ms": 5, "key_base64": "/w==", "value_base64": "/v8=", "headers": [
            { "name": "raw", "value_base64": "gA==" },
        ] }),
    ];
    let lines: String = sent.iter().map(|record| format!("{record}\n")).collect();
    broker.run_with(&["produce", "from", "--input", "json"], lines.as_bytes()).ok();
    let stored = all(&broker, "from");
    // What was printed is what is sent on.
    let printed: String = stored.iter().map(|record| format!("{record}\n")).collect();
    broker.run_with(&["produce", "to", "--input", "json", "--compression", "zstd"], printed.as_bytes()).ok();
    for (topic, records) in [("from", stored), ("to", all(&broker, "to"))] {
        let mut records = records;
        for record in &mut records {
            let fields = record.as_object_mut().expect("an object");
            assert_eq!(fields.remove("topic"), Some(json!(topic)));
            assert!(fields.remove("offset").is_some() && fields.remove("timestamp").is_some());
        }
        records.sort_by_key(|record| record["partition"].as_u64());
        assert_eq!(records, sent, "{topic}");
    }
    // Without a partition the key decides, and without a time it is now.
    broker.run_with(&["produce", "to", "--input", "json"], br#"{"key":"foobar"}"#).ok();
    let place = broker.run_with(&["produce", "to", "--key-separator", "="], b"foobar=x").ok();
    let after: Vec<Value> =
        all(&broker, "to").into_iter().filter(|record| record["key"] == "foobar").collect();
    assert_eq!(after.len(), 2, "{}", place.text());
    assert_eq!(after[0]["partition"], after[1]["partition"]);
    assert_eq!(after[0]["value"], Value::Null);
    assert!(after[0]["timestamp_ms"].as_u64() > Some(1_700_000_000_000), "{}", after[0]);

    for (line, says) in [
        ("{}\n{\"vaule\":\"v\"}\n", &["line 2", "unknown field `vaule`"][..]),
        ("hello\n", &["line 1", "write an object as"]),
        ("{\"partition\":7}\n", &["no partition 7"]),
    ] {
        broker.run_with(&["produce", "to", "--input", "json"], line.as_bytes()).failed(1, says);
    }
    broker.run(&["produce", "to", "--input", "json", "--key-field", "1"]).failed(2, &["--input json"]);
}

#[test]
fn compressed_batches_are_stored_as_sent() {
    let data = directory();
    let broker = Broker::start(data.path());
    let lines: String = (0..3000).map(|n| format!("line {n}, which repeats what the others say\n")).collect();
    let disk_bytes = |topic: &str| {
        let described = broker.run(&["topic", "describe", topic, "--format", "json"]).ok().json();
        described[0]["bytes"].as_u64().expect("its size")
    };
    for codec in ["none", "lz4", "zstd", "snappy", "gzip"] {
        let topic = format!("packed-{codec}");
        broker.run_with(&["produce", &topic, "--compression", codec], lines.as_bytes()).ok();
        broker.run_with(&["produce", &topic], b"not compressed\n").ok();
        broker.run_with(&["produce", &topic, "--compression", codec], lines.as_bytes()).ok();
        let values: Vec<String> =
            all(&broker, &topic).iter().map(|record| record["value"].as_str().unwrap().to_owned()).collect();
        let expected = format!("{lines}not compressed\n{lines}");
        assert!(values.iter().map(String::as_str).eq(expected.lines()), "{codec}");
        // Into the middle of a compressed batch.
        let middle = broker.run(&["consume", &topic, "--offset", "1500", "--max", "2", "--until-end"]).ok();
        assert_eq!(
            middle.text(),
            lines.lines().skip(1500).take(2).map(|line| format!("{line}\n")).collect::<String>()
        );
        let smaller = disk_bytes(&topic) * 2 < disk_bytes("packed-none");
        assert_eq!(smaller, codec != "none", "{codec}: {} bytes", disk_bytes(&topic));
    }
    broker.run_with(&["produce", "t", "--compression", "rar"], b"").failed(2, &["none, lz4, zstd"]);
}

/// A bit that changes between the broker and who reads: the checksum is the producer's, so that the consumer notices. What is
/// stored is sound, and is read when nothing changes any more.
#[tokio::test]
async fn what_arrives_changed_is_named_and_not_handed_out() {
    let data = directory();
    let line = ["--shards", "1", "--cores", "none", "--listen", "127.0.0.1:0", "--advertise", proxy::HOST];
    let broker = Broker::start_with(data.path(), &line);
    let proxy = Proxy::start(&broker.address, 1);
    broker.run(&["topic", "create", "t"]).ok();
    for value in ["sound", "MARKED", "sound too"] {
        broker.run_with(&["produce", "t"], format!("{value}\n").as_bytes()).ok();
    }
    proxy.damage(Some(b"MARKED"));
    let read = |more: &[&str]| broker.run(&[&["consume", "t", "--until-end"][..], more].concat());
    let said = read(&[]);
    said.failed(1, &["topic 't' partition 0 offset 1", "seek past it"]);
    assert_eq!(said.text(), "sound\n");
    assert_eq!(read(&["--offset", "2"]).ok().text(), "sound too\n");
    // Who does not look takes what comes: it was the checksum that told.
    assert_eq!(read(&["--set", "check.crcs=false"]).ok().text(), "sound\nLARKED\nsound too\n");

    let client = Client::connect(ClientConfig::new(&broker.address).unwrap()).await.unwrap();
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign("t", &[(0, StartFrom::Earliest)]).await.unwrap();
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 0);
    let error = consumer.next().await.unwrap().unwrap_err();
    assert!(matches!(error, ConsumeError::CorruptBatch { offset: 1, partition: 0, .. }), "{error}");
    consumer.seek("t", 0, StartFrom::Offset(2)).await.unwrap();
    assert_eq!(consumer.next().await.unwrap().unwrap().value.unwrap(), "sound too");
    let mut member = client.group_consumer(GroupConfig::new("g").with_topic("t")).unwrap();
    assert_eq!(member.next().await.unwrap().offset, 0);
    let error = member.next().await.unwrap_err();
    assert!(!error.is_final() && error.to_string().contains("partition 0 offset 1"), "{error}");
    proxy.damage(None);
    member.seek("t", 0, StartFrom::Offset(1)).await.unwrap();
    assert_eq!(member.next().await.unwrap().value.unwrap(), "MARKED");
    member.close().await.unwrap();
    assert_eq!(read(&[]).ok().text(), "sound\nMARKED\nsound too\n");
}
