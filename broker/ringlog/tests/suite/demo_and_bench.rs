//! The demo finds nothing wrong, and the measuring commands give figures. No figure is judged.

use crate::process::{Broker, directory, run};

#[test]
fn the_demo_verifies_every_record() {
    let directory = directory();
    let path = directory.path().to_str().unwrap();
    let ran = run(&["demo", "--megabytes", "5", "--data", path, "--format", "json"]).ok();
    let report = ran.json().pop().unwrap();
    let number =
        |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {report}"));
    // Two repetitions of 27,004 flights are 5.3 MB.
    assert_eq!(report["produced"], 54_008);
    for name in ["consumed", "consumed_live"] {
        assert_eq!(report[name], report["produced"], "{name}");
    }
    let late = number("consumed_from_timestamp");
    assert!(late > 0.0 && late < number("produced"), "{report}");
    for name in ["lost", "duplicated", "out_of_order", "unexpected", "differing_partitions", "wrong_receipts"]
    {
        assert_eq!(report[name], 0, "{name} in {report}");
    }
    for name in ["produce_mb_s", "consume_mb_s", "ack_p50_us", "ack_p99_us", "ack_p999_us", "e2e_p99_us"] {
        assert!(number(name) > 0.0, "{name} in {report}");
    }
    for name in ["flush_rounds", "bytes_per_round"] {
        assert!(number(name) > 0.0, "{name} in {report}");
    }
    assert_eq!(report["forwarded_requests"], 0, "the client knows the owning core");
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 0, "the temporary directory is gone");

    let ran = run(&["demo", "--megabytes", "1", "--data", path, "--shards", "2"]).ok();
    for part in ["produced, durable", "send to live reader", "flush rounds", "every record"] {
        assert!(ran.text().contains(part), "'{part}' is not in:\n{}", ran.text());
    }
}

#[test]
fn load_reports_its_settings_and_leaves_nothing() {
    let data = directory();
    let broker = Broker::start(data.path());
    let rows = [
        "--record-bytes 100 --records-per-request 1 --connections 4 --acks 1",
        "--record-bytes 1000 --records-per-request 100 --in-flight 4 --connections 2 --partitions 1",
        "--mode consume --records-per-request 100 --connections 2 --fill-bytes 1000000 --verify",
        "--record-bytes 100 --records-per-request 10 --acks 0",
    ];
    for row in rows {
        let common = ["--seconds", "0.2", "--warmup", "0.05", "--format", "json"];
        let line: Vec<&str> = ["bench", "load"].into_iter().chain(row.split(' ')).chain(common).collect();
        let report = broker.run(&line).ok().json().remove(0);
        for name in ["requests", "requests_s", "records_s", "mb_s", "p50_us", "max_us"] {
            assert!(report[name].as_f64().is_some_and(|value| value > 0.0), "{row}: {name} in {report}");
        }
        assert_eq!((report["seconds"].as_f64(), report["broker_shards"].as_u64()), (Some(0.2), Some(2)));
    }
    assert!(broker.run(&["topic", "list", "--format", "json"]).ok().text().is_empty());
    broker.run(&["bench", "load", "--in-flight", "0"]).failed(2, &["in flight"]);

    let text = broker.run(&["status"]).ok().text();
    assert!(text.contains("COUNTER") && text.contains("flush_rounds_total"), "{text}");
}

/// A closed loop, an open one, and a backlog, through the client library: every record that is acknowledged
/// is received, and the rate is the one that was asked for.
#[test]
fn workloads_are_measured_and_leave_nothing() {
    let data = directory();
    let broker = Broker::start(data.path());
    let file = data.path().join("small-backlog.yaml");
    std::fs::write(&file, "name: small\nconsumerBacklogSizeGB: 0.002\nproducerRate: 300\n").unwrap();
    let rows = [
        ("simple --rate 500 --explain", Some(500.0)),
        ("30-producers-180-partitions --rate 600 --partitions 12 --acks 1", Some(600.0)),
        ("two-million-writes-100b", None),
        (file.to_str().unwrap(), Some(300.0)),
    ];
    for (row, rate) in rows {
        let common = ["--brokers", &broker.address, "--seconds", "1", "--warmup", "0.2", "--format", "json"];
        let line: Vec<&str> = ["bench"].into_iter().chain(row.split(' ')).chain(common).collect();
        let report = broker.run(&line).ok().json().remove(0);
        assert_eq!(report["not_received"], 0, "{row}: {report}");
        assert_eq!(report["failed"], 0, "{row}: {report}");
        // An open loop intends as many records as the rate says, whatever the broker does.
        let intended = report["acknowledge"]["count"].as_f64().unwrap();
        assert!(rate.is_none_or(|rate| (intended - rate).abs() <= 2.0 + rate / 100.0), "{row}: {intended}");
        assert!(intended > 0.0 && report["end_to_end"]["count"].as_f64() > Some(0.0), "{row}: {report}");
        assert_eq!(report["explained"].as_array().unwrap().is_empty(), !row.contains("--explain"), "{row}");
        assert_eq!(report["durability"], "device");
    }
    assert!(broker.run(&["topic", "list", "--format", "json"]).ok().text().is_empty());
    broker.run(&["bench", "no-such-workload"]).failed(2, &["no-such-workload", "simple"]);
}

/// A broker of its own, in a process of its own, that is gone afterwards.
#[test]
fn an_embedded_broker_is_measured_and_removed() {
    let parent = directory();
    let place = parent.path().to_str().unwrap();
    let line = "bench --rate 200 --warmup 0.1 --format json --data";
    let line: Vec<&str> = line.split(' ').chain([place]).collect();
    let measured = |more: &[&str]| {
        let ran = run(&[&line, more].concat()).ok();
        (ran.json().remove(0), ran.stderr)
    };
    let (report, _) = measured(&["--seconds", "0.5"]);
    assert!(report["broker_usage"]["resident_max_bytes"].as_u64() > Some(1 << 20), "{report}");
    assert!(report["counters"]["flush_rounds_total"].as_u64() > Some(0), "{report}");
    assert!(report["broker_usage"]["system_calls"].is_null(), "nobody asked for them: {report}");
    // Until a volume is acknowledged: 50 records of 1,024 bytes, in about a quarter of a second.
    let (report, said) = measured(&["--volume-gb", "0.00005", "--system-calls"]);
    // Acknowledged in the measured time, whenever they were due.
    let [from_s, until_s] = [0, 1].map(|end| report["window_s"][end].as_f64().expect("a time"));
    let produced = report["produced"]["records_s"].as_f64().expect("a rate") * (until_s - from_s);
    assert!(produced > 48.0, "{produced} in {report}");
    let calls = |side: &str| report[side]["system_calls"].as_u64();
    match calls("client_usage") {
        // Each record of the load is sent by itself at this rate, and each round is written.
        Some(_) => assert!(calls("broker_usage") > Some(48) && calls("client_usage") > Some(48), "{report}"),
        None => assert!(said.contains("system calls are not counted"), "{said}"),
    }
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0, "the directory is removed");
}

#[test]
fn ceilings_are_measured_in_the_given_directory() {
    let directory = directory();
    let path = directory.path().to_str().unwrap();
    let line = ["perf", "ceilings", path, "--seconds", "0.02", "--only", "CRC-32C", "--format", "json"];
    let lines = run(&line).ok().json();
    assert!(lines.len() == 1 && lines[0]["value"].as_f64().is_some_and(|value| value > 0.0), "{lines:?}");
    run(&["perf", "ceilings", path, "--seconds", "0"]).failed(2, &["--seconds"]);
    run(&["perf", "ceilings", "/no/such/directory"]).failed(1, &["/no/such/directory"]);
}
