//! The disk's profile: made by `doctor --disk` or the first `serve`, read by the next, ignored when it is not this
//! disk's.
//!
//! Where the build's directory has no `O_DIRECT`, or is in memory, nothing can be measured: such a run says
//! SKIPPED. Absent on purpose: the rules (tables of the `perf` crate), and what a choice is worth, which is measured.

use crate::process::{Broker, Ran, directory, run};
use crate::skipped::skipped;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const SMALL: [&str; 6] = ["--shards", "1", "--cores", "none", "--listen", "127.0.0.1:0"];

fn start(data: &Path, profile: &str, more: &[&str]) -> Broker {
    let arguments: Vec<&str> = SMALL.iter().copied().chain(["--disk-profile", profile]).collect();
    Broker::start_with(data, &[arguments.as_slice(), more].concat())
}

fn in_order(broker: Broker) {
    let (status, said) = broker.stop(libc::SIGTERM);
    assert!(status.success(), "{said:?}");
}

fn file(data: &Path) -> PathBuf {
    data.join("disk-profile.json")
}

fn profile(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("there is a profile")).expect("it is JSON")
}

/// The lines about the disk.
fn said(broker: &Broker) -> Vec<&str> {
    let lines = broker.first_lines.iter().map(String::as_str);
    lines.filter(|line| line.starts_with("disk")).collect()
}

#[track_caller]
fn says(broker: &Broker, parts: &[&str]) {
    let text = said(broker).join("\n");
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in:\n{text}");
    }
}

fn notices(broker: &Broker) -> Vec<String> {
    let status = broker.run(&["status", "--format", "json"]).ok().json().remove(0);
    let notices = status["notices"].as_array().expect("a list").iter();
    notices.map(|notice| notice.as_str().expect("text").to_owned()).collect()
}

/// A data directory with the profile of a first start; `None` where a disk cannot be measured.
fn measured() -> Option<tempfile::TempDir> {
    let data = directory();
    let broker = start(data.path(), "auto", &[]);
    let unfit = said(&broker).iter().any(|line| line.contains("disk not measured"));
    if unfit {
        skipped(&format!("what a start measures: {:?}", said(&broker)));
        return None;
    }
    says(
        &broker,
        &["disk profile of ", "(in short; ringlog doctor --disk", "in flight of up to", "disk: because "],
    );
    // Everything that was said about the disk is a notice, too.
    assert_eq!(notices(&broker), said(&broker));
    broker.run(&["topic", "create", "t", "--partitions", "8"]).ok();
    broker.run_with(&["produce", "t"], b"1\n2\n3\n").ok();
    let read = broker.run(&["consume", "t", "--until-end"]).ok();
    assert_eq!(read.text().lines().count(), 3);
    in_order(broker);
    Some(data)
}

#[test]
fn the_first_start_measures_and_the_next_one_reads() {
    let Some(data) = measured() else { return };
    let kept = profile(&file(data.path()));
    assert_eq!((&kept["measured_by"], &kept["format_version"]), (&json!("serve"), &json!(1)));
    assert!(kept["figures"].as_array().is_some_and(|figures| !figures.is_empty()), "{kept}");
    let before = std::fs::metadata(file(data.path())).unwrap().modified().unwrap();
    let broker = start(data.path(), "auto", &[]);
    says(&broker, &["disk profile of ", "in short"]);
    assert_eq!(std::fs::metadata(file(data.path())).unwrap().modified().unwrap(), before, "measured again");
    in_order(broker);
}

#[test]
fn what_is_not_this_disks_profile_is_replaced() {
    let Some(data) = measured() else { return };
    let path = file(data.path());
    let good = profile(&path);
    let text = good.to_string();
    let changed = |key: &str, value: Value| {
        let mut profile = good.clone();
        profile["disk"][key] = value;
        profile.to_string()
    };
    let rows = [
        (changed("file_system", json!("zfs")), "file system zfs then"),
        (changed("file_system_id", json!("0123")), "is of another disk"),
        (text[..text.len() / 2].to_owned(), "is damaged"),
        (String::new(), "is damaged"),
        ("{\"format_version\": 99}".to_owned(), "has format 99"),
    ];
    for (content, expect) in rows {
        // A file system without an identity cannot be told by it.
        if content.contains("0123") && good["disk"]["file_system_id"].is_null() {
            continue;
        }
        std::fs::write(&path, &content).unwrap();
        let broker = start(data.path(), "auto", &[]);
        says(&broker, &["disk profile ignored: ", expect, "disk profile of "]);
        assert_eq!(profile(&path)["disk"], good["disk"], "{expect}");
        in_order(broker);
    }
}

#[test]
fn without_a_profile_the_defaults_are_used_and_nothing_is_written() {
    let data = directory();
    let broker = start(data.path(), "none", &[]);
    says(&broker, &["2 rounds in flight of up to 16 MiB in writes of up to 1024 KiB"]);
    assert_eq!(notices(&broker), [""; 0]);
    assert!(!file(data.path()).exists());
    in_order(broker);
}

/// A profile of `disk` from which certain choices follow.
fn made_up(disk: &Value) -> Value {
    let figure = |by: &str, bytes: usize, writes: usize, rounds: usize, us: f64| {
        json!({ "durable_by": by, "write_bytes": bytes, "writes": writes, "rounds": rounds, "p10_us": us,
                "p50_us": us, "p99_us": us, "mb_s": (bytes * writes * rounds) as f64 / us, "measured": 10 })
    };
    let mut figures = Vec::new();
    for (writes, dsync_us) in [(1, 50.0), (8, 60.0), (16, 500.0)] {
        figures.push(figure("dsync", 4096, writes, 1, dsync_us));
        figures.push(figure("flush", 4096, writes, 1, 100.0));
    }
    for (rounds, mb_s) in [(1, 100.0), (2, 200.0), (3, 320.0), (4, 330.0)] {
        figures.push(figure("dsync", 1 << 20, 1, rounds, ((rounds << 20) as f64) / mb_s));
    }
    json!({ "format_version": 1, "measured_unix_s": 1_700_000_000, "measured_by": "doctor", "kernel": "6.1",
            "disk": disk, "figures": figures })
}

#[test]
fn a_named_profile_decides_and_settings_win() {
    let Some(data) = measured() else { return };
    let elsewhere = directory();
    let path = elsewhere.path().join("p.json");
    let named = path.to_str().unwrap();
    let own = std::fs::read(file(data.path())).unwrap();
    let disk = profile(&file(data.path()))["disk"].clone();
    std::fs::write(&path, made_up(&disk).to_string()).unwrap();

    let broker = start(data.path(), named, &[]);
    says(
        &broker,
        &["measured 2023-11-14 (in full)", "3 rounds in flight of up to 6 MiB", "320 with 3, 330 with 4"],
    );
    let shared = broker.first_lines.iter().any(|line| line.contains("one flush for many writes"));
    if shared {
        says(&broker, &["up to 8 writes durable by themselves", "16 writes of 4 KiB 500 us"]);
        // Eight partitions in one round: no flush of the device. (The records may need several rounds.)
        let records = b"a\nb\nc\nd\ne\nf\ng\nh\n";
        broker.run_with(&["produce", "t"], records).ok();
        assert_eq!(counter(&broker, "device_flushes_total"), 0);
        assert!(counter(&broker, "durable_writes_total") > 0);
    }
    in_order(broker);

    let broker = start(data.path(), named, &["--rounds-in-flight", "1", "--dsync-writes", "0"]);
    says(&broker, &["1 round in flight", "(as set: rounds-in-flight, dsync-writes)"]);
    if shared {
        says(&broker, &["one flush per round"]);
        // A new topic: its first blocks are written and published, as a flush needs it.
        broker.run_with(&["produce", "new"], b"a\n").ok();
        assert!(counter(&broker, "device_flushes_total") > 0);
    }
    in_order(broker);

    let mut other = made_up(&disk);
    other["disk"]["file_system"] = json!("zfs");
    let text = other.to_string();
    std::fs::write(&path, &text).unwrap();
    let broker = start(data.path(), named, &[]);
    says(&broker, &["is of another disk", "the safe defaults are used", "2 rounds in flight"]);
    in_order(broker);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "a file that the user named was written to");
    assert_eq!(std::fs::read(file(data.path())).unwrap(), own);

    std::fs::write(&path, "nonsense").unwrap();
    for (named, says) in [(named, "damaged"), ("/not/there.json", "cannot read /not/there.json")] {
        let data = data.path().to_str().unwrap();
        let refused = run(&[&["serve", "--data", data, "--disk-profile", named], &SMALL[..]].concat());
        refused.failed(2, &["cannot start", says, "ringlog doctor --disk"]);
    }
}

fn counter(broker: &Broker, name: &str) -> u64 {
    let status = broker.run(&["status", "--format", "json"]).ok().json().remove(0);
    status["shards"][0]["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn the_doctor_measures_and_serve_reads_it() {
    let data = directory();
    let text = data.path().to_str().unwrap();
    let ran: Ran = run(&["doctor", "--disk", text, "--format", "json"]);
    if ran.code == 2 && (ran.stderr.contains("in memory") || ran.stderr.contains("O_DIRECT")) {
        skipped(&format!("what the doctor measures: {}", ran.stderr.trim().replace('\n', "; ")));
        return;
    }
    let lines = ran.ok().json();
    let (summary, figures) = lines.split_last().expect("it says something");
    assert!(figures.iter().all(|figure| figure["p50_us"].as_f64() > Some(0.0)), "{figures:?}");
    let has = |bytes: u64, rounds: u64| {
        figures.iter().any(|it| it["write_bytes"] == bytes && it["rounds"] == rounds && it["writes"] == 1)
    };
    for bytes in [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        assert!([1, 2, 4].into_iter().all(|rounds| has(bytes, rounds)), "{bytes}: {figures:?}");
    }
    assert_eq!(Path::new(summary["saved"].as_str().unwrap()), file(data.path()));
    let names: Vec<_> =
        std::fs::read_dir(data.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["disk-profile.json"], "nothing else is left there");
    let rounds = summary["choice"]["rounds_in_flight"].as_u64().unwrap();

    let broker = start(data.path(), "auto", &[]);
    let s = if rounds == 1 { "" } else { "s" };
    says(&broker, &["(in full)", &format!("{rounds} round{s} in flight")]);
    run(&["doctor", "--disk", text]).failed(2, &["a running broker has the directory"]);
    in_order(broker);
}

#[test]
fn where_there_is_nothing_to_measure() {
    let memory = Path::new("/dev/shm");
    let on_disk = std::fs::read_to_string("/proc/self/mounts").unwrap().contains(" /dev/shm tmpfs");
    if on_disk && let Ok(data) = tempfile::tempdir_in(memory) {
        let text = data.path().to_str().unwrap();
        run(&["doctor", "--disk", text]).failed(2, &["tmpfs is in memory"]);
        let broker = start(data.path(), "auto", &[]);
        says(&broker, &["disk not measured: tmpfs is in memory", "2 rounds in flight"]);
        assert!(!file(data.path()).exists());
        in_order(broker);
    } else {
        skipped("a disk in memory: no tmpfs at /dev/shm");
    }
    // Somebody's photographs: refused as ever, and nothing was written to them.
    let other = directory();
    std::fs::write(other.path().join("photo"), "").unwrap();
    let text = other.path().to_str().unwrap();
    let refused = run(&[&["serve", "--data", text], &SMALL[..]].concat());
    refused.failed(2, &["not a Ringlog data directory"]);
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1);
    run(&["doctor", "--disk", text, "--all"]).failed(2, &["cannot be used with"]);
}
