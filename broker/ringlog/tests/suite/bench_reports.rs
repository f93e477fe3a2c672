//! What `ringlog bench` writes: JSON with everything, a page that needs nothing else, every trial of a search.

use crate::process::{Broker, directory, run};
use serde_json::Value;

#[test]
fn one_run_gives_a_table_json_and_a_page() {
    let data = directory();
    let broker = Broker::start(data.path());
    let (json, html) = (data.path().join("run.json"), data.path().join("run.html"));
    let (json_path, html_path) = (json.to_str().unwrap(), html.to_str().unwrap());
    let line: Vec<&str> =
        "bench --rate 300 --seconds 1 --warmup 0.2 --explain --brokers".split(' ').collect();
    let line = [&line[..], &[&broker.address, "--json", json_path, "--html", html_path]].concat();
    let ran = broker.run(&line).ok();
    for part in ["records/s", "p99.9", "WHERE THE TIME WENT", "acknowledged from", json_path, html_path] {
        assert!(ran.text().contains(part), "'{part}' is not in:\n{}", ran.text());
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let known = |pointer: &str| {
        let value = report.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {report}"));
        assert!(!value.is_null() && value != "", "{pointer} in {report}");
    };
    for pointer in [
        "/workload/partitionsPerTopic",
        "/workload/producerRate",
        "/durability",
        "/durability_settings",
        "/host/kernel",
        "/host/cores",
        "/host/version",
        "/host/commit",
        "/acknowledge/curve/0/1",
        "/explained/2/parts_us/8/1",
        "/seconds/1/produced/records_s",
        "/counters/flush_rounds_total",
    ] {
        known(pointer);
    }
    // The parts and the wait before them make up the whole, of every explained class.
    for explained in report["explained"].as_array().unwrap() {
        let parts: f64 =
            explained["parts_us"].as_array().unwrap().iter().map(|part| part[1].as_f64().unwrap()).sum();
        assert!(parts > 0.0 && parts <= report["acknowledge"]["max_us"].as_f64().unwrap() * 1.01, "{report}");
    }
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"), "{page}");
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(page.contains("Where the time went") && !page.contains("<script"), "{page}");

    run(&["bench", "--brokers", &broker.address, "--html", "/no/such/directory/a.html"])
        .failed(2, &["/no/such/directory/a.html"]);
}

#[test]
fn compression_is_run_and_recorded() {
    let data = directory();
    let broker = Broker::start(data.path());
    let html = data.path().join("run.html");
    let line = "bench simple --rate 20000 --seconds 1 --warmup 0.2 --format json --html";
    let with = |more: &[&str]| {
        let line: Vec<&str> =
            line.split(' ').chain([html.to_str().unwrap(), "--brokers", &broker.address]).collect();
        broker.run(&[&line, more].concat()).ok()
    };
    for codec in ["none", "lz4", "zstd", "snappy", "gzip"] {
        let report = with(&["--compression", codec]).json().remove(0);
        assert_eq!(report["workload"]["compression"], codec);
        assert_eq!((&report["failed"], &report["not_received"]), (&0.into(), &0.into()), "{report}");
        let counter = |name: &str| report["counters"][name].as_f64().expect("a counter");
        let stored = counter("produced_bytes_total") / counter("records_total") / 1024.0;
        let expect = if codec == "none" { 1.0..1.3 } else { 0.4..0.7 };
        // Batches of a slow second may be of one record, which has a header of its own.
        assert!(expect.contains(&stored), "{codec}: {stored}");
        let random = report["workload"]["randomBytesRatio"].as_f64();
        assert_eq!(random, Some(if codec == "none" { 1.0 } else { 0.5 }));
    }
    assert!(std::fs::read_to_string(&html).unwrap().contains("workload: compression"));
    let table = broker.run(&[
        "bench",
        "--rate",
        "500",
        "--seconds",
        "0.5",
        "--warmup",
        "0.1",
        "--compression",
        "zstd",
        "--brokers",
        &broker.address,
    ]);
    assert!(table.ok().text().contains("zstd; 50 % of each value is random"));
    run(&["bench", "--compression", "rar"]).failed(2, &["none, lz4, zstd, snappy, gzip"]);
}

#[test]
fn a_search_reports_every_trial() {
    let data = directory();
    let broker = Broker::start(data.path());
    let line = "bench --find-rate-for-p99 2000 --search-seconds 4 --seconds 0.4 --warmup 0.1 --format json";
    let line: Vec<&str> = line.split(' ').chain(["--brokers", &broker.address]).collect();
    let report = broker.run(&line).ok().json().remove(0);
    let steps = report["search"]["steps"].as_array().expect("there were trials");
    assert!(!steps.is_empty(), "{report}");
    // The report is about a rate that was tried.
    let rate = &report["workload"]["producerRate"];
    assert!(steps.iter().any(|step| step["records_s"] == *rate), "{report}");
    let held = &report["search"]["held_records_s"];
    assert!(held.is_null() || held == rate, "{report}");
    assert!(broker.run(&["topic", "list", "--format", "json"]).ok().text().is_empty(), "topics are left");
    run(&["bench", "--rate", "10", "--find-rate-for-p99", "5"]).failed(2, &["--rate"]);
}
