//! Backups as `docs/OPERATIONS.md` has them: a copy of a stopped broker's directory, a snapshot of one that runs, records.

use crate::process::{Broker, directory};
use ringlog_client::{Client, ClientConfig, ProducerConfig, ProducerRecord};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().expect("there is cp");
    assert!(status.success());
}

fn values(broker: &Broker) -> Vec<String> {
    let lines = broker.run(&["consume", "t", "--until-end", "--format", "json"]).ok().json();
    lines.iter().map(|line| line["value"].as_str().expect("text").to_owned()).collect()
}

/// What a copy holds: it is started beside the original, and elsewhere.
fn restored(copy: &Path) -> Vec<String> {
    let broker = Broker::start(copy);
    let found = values(&broker);
    let described = broker.run(&["topic", "describe", "t", "--format", "json"]).ok().json();
    let setting = described.iter().find(|line| line["name"] == "retention.ms").expect("it is a setting");
    assert_eq!(setting["value"], "3600000");
    // It takes more.
    broker.run_with(&["produce", "t"], b"more\n").ok();
    assert_eq!(values(&broker).len(), found.len() + 1);
    found
}

#[test]
fn a_copy_of_a_stopped_broker_has_everything() {
    let (data, backup) = (directory(), directory());
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "t", "--partitions", "1", "--config", "retention.ms=1h"]).ok();
    let lines: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    broker.run_with(&["produce", "t"], format!("{}\n", lines.join("\n")).as_bytes()).ok();
    let (status, said) = broker.stop(libc::SIGTERM);
    assert!(status.success() && said.iter().any(|line| line.contains("stopped in order")), "{said:?}");
    copy(data.path(), backup.path());
    assert_eq!(restored(backup.path()), lines);
}

/// A snapshot is all files as of one moment: here of a moment in which the process is held.
#[test]
fn a_snapshot_of_a_running_broker_has_what_was_acknowledged() {
    let (data, snapshot) = (directory(), directory());
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "t", "--partitions", "1", "--config", "retention.ms=1h"]).ok();
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let producing = {
        let (address, acknowledged, stop) = (broker.address.clone(), acknowledged.clone(), stop.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = Client::connect(ClientConfig::new(address).unwrap()).await.unwrap();
                let producer = client.producer(ProducerConfig::default());
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    let record = ProducerRecord::new("t", number.to_string());
                    producer.send(record).await.unwrap().await.unwrap();
                    number += 1;
                    acknowledged.store(number, Ordering::Release);
                }
                producer.close().await.unwrap();
            });
        })
    };
    while acknowledged.load(Ordering::Acquire) < 100 {
        assert!(!producing.is_finished());
        std::thread::yield_now();
    }
    let before = broker.held(|| {
        let before = acknowledged.load(Ordering::Acquire);
        copy(data.path(), snapshot.path());
        before
    });
    stop.store(true, Ordering::Relaxed);
    producing.join().unwrap();
    let found = restored(snapshot.path());
    assert!(found.len() >= before, "{} of {before}", found.len());
    assert!(found.iter().zip(0..).all(|(value, number)| *value == number.to_string()), "{found:?}");
}
