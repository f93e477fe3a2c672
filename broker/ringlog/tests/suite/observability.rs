//! Metrics, health, `ringlog top` and the stall detector of a real broker: scraped, parsed, and set against what
//! was done.

use crate::process::{Broker, directory, run};
use crate::scrape::{Scrape, ask, get};
use std::fs::File;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

const TWO_SHARDS: [&str; 8] =
    ["--shards", "2", "--cores", "none", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

/// A broker with an HTTP port, and where that is.
fn start(data: &Path) -> (Broker, String) {
    let broker = Broker::start_with(data, &TWO_SHARDS);
    let line = broker.first_lines.iter().find_map(|line| line.strip_prefix("http "));
    let address = line.expect("it says where").to_owned();
    (broker, address)
}

/// Waits for what happens in the background.
#[track_caller]
fn until(what: &str, happens: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !happens() {
        assert!(Instant::now() < patience, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn figures_rise_with_what_is_done() {
    let data = directory();
    let (broker, http) = start(data.path());
    broker.run(&["topic", "create", "seen", "--partitions", "3"]).ok();
    broker.run(&["topic", "create", "idle"]).ok();
    let before = Scrape::of(&http);
    assert_eq!(before.sum("ringlog_records_total", &[]), 0.0);
    assert_eq!(before.sum("ringlog_topic_partitions", &[("topic", "seen")]), 3.0);
    assert_eq!(before.sum("ringlog_partitions", &[]), 4.0);
    let lines: String = (0..100).map(|n| format!("record {n}\n")).collect();
    broker.run_with(&["produce", "seen"], lines.as_bytes()).ok();
    let consumed = broker.run(&["consume", "seen", "--max", "100"]).ok();
    assert_eq!(consumed.text().lines().count(), 100);
    let after = Scrape::of(&http);
    let rise = |name: &str, labels: &[(&str, &str)]| after.sum(name, labels) - before.sum(name, labels);
    assert_eq!(rise("ringlog_records_total", &[]), 100.0);
    let seen = [("topic", "seen")];
    assert_eq!(rise("ringlog_topic_produced_records_total", &seen), 100.0);
    assert_eq!(rise("ringlog_topic_produced_bytes_total", &seen), rise("ringlog_produced_bytes_total", &[]));
    assert!(
        rise("ringlog_topic_fetched_bytes_total", &seen) >= rise("ringlog_topic_produced_bytes_total", &seen)
    );
    assert_eq!(rise("ringlog_partition_log_end_offset", &seen), 100.0);
    assert_eq!(rise("ringlog_partition_high_watermark", &seen), 100.0);
    assert_eq!(rise("ringlog_partition_log_start_offset", &seen), 0.0);
    assert!(rise("ringlog_topic_log_bytes", &seen) > 0.0);
    assert_eq!(rise("ringlog_topic_produced_records_total", &[("topic", "idle")]), 0.0);
    assert!(
        rise("ringlog_produce_seconds_count", &[]) > 0.0 && rise("ringlog_produce_seconds_sum", &[]) > 0.0
    );
    assert!(rise("ringlog_fetch_seconds_count", &[]) > 0.0);
    let rounds = ("ringlog_round_seconds_count", "ringlog_flush_rounds_total");
    assert_eq!(after.sum(rounds.0, &[]), after.sum(rounds.1, &[]));
    assert_eq!(after.sum("ringlog_silent_shards", &[]), 0.0);
    // Every counter of a shard is explained, and none is missing.
    let (_, text) = get(&http, "/metrics");
    assert!(!text.contains("A figure of a shard."), "a counter has no help: {text}");
    let status = broker.run(&["status", "--format", "json"]).ok().json();
    let names = after.names();
    for name in status[0]["shards"][0]["counters"].as_object().expect("counters").keys() {
        assert!(name.starts_with("round_p") || names.contains(format!("ringlog_{name}").as_str()), "{name}");
    }
    // What is deleted is not shown any more.
    broker.run(&["topic", "delete", "seen"]).ok();
    until("the topic goes", || {
        let (_, text) = get(&http, "/metrics");
        !text.contains("topic=\"seen\"")
    });
}

#[test]
fn health_and_what_is_no_question() {
    let data = directory();
    let (broker, http) = start(data.path());
    for (path, status, part) in [
        ("/health/live", 200, "live"),
        ("/health/ready", 200, "ready"),
        ("/", 200, "/metrics"),
        ("/nothing", 404, "/metrics"),
        ("/metrics?x=1", 200, "ringlog_build_info"),
    ] {
        let (got, body) = get(&http, path);
        assert!(got == status && body.contains(part), "{path}: {got} {body}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 405),
        ("nonsense\r\n\r\n", 400),
        (long.as_str(), 431),
    ] {
        let shown = &request[..40.min(request.len())];
        assert_eq!(ask(&http, request.as_bytes()).0, status, "{shown:?}");
    }
    let (_, head, _) = ask(&http, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(head.to_ascii_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    // More silent connections than there are places: they are let go, and the next is answered.
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&http).expect("it listens")).collect();
    assert_eq!(get(&http, "/health/live").0, 200);
    drop(silent);
    let (status, said) = broker.stop(libc::SIGTERM);
    assert!(status.success(), "{said:?}");
}

#[test]
fn without_a_port_there_is_none_and_a_taken_one_is_refused() {
    let data = directory();
    let broker = Broker::start(data.path());
    assert!(!broker.first_lines.iter().any(|line| line.starts_with("http")), "{:?}", broker.first_lines);
    let other = directory();
    let path = other.path().join("data").display().to_string();
    let ran = run(&["serve", "--data", &path, "--listen", "127.0.0.1:0", "--http", &broker.address]);
    ran.failed(2, &["cannot serve metrics on", "--http"]);
}

#[test]
fn top_shows_what_goes_on() {
    let data = directory();
    let (broker, _) = start(data.path());
    broker.run(&["topic", "create", "busy", "--partitions", "2"]).ok();
    broker.run(&["topic", "create", "quiet"]).ok();
    let shown = broker.run(&["top", "--once", "--every", "0.1"]).ok().text();
    for part in ["broker 0", "CORE", "REQUESTS/S", "TOPIC", "busy", "quiet", "STALLS"] {
        assert!(shown.contains(part), "{part} is not in:\n{shown}");
    }
    let few = broker.run(&["top", "--once", "--every", "0.1", "--topics", "1"]).ok().text();
    assert!(few.contains("and 1 topic more"), "{few}");
    // Something is produced for as long as is looked.
    let over = Arc::new(AtomicBool::new(false));
    let load = {
        let (over, address) = (over.clone(), broker.address.clone());
        std::thread::spawn(move || produce_until(&over, &address, "busy", 1000))
    };
    let busy = || {
        let seen = broker.run(&["top", "--once", "--every", "0.2", "--format", "json"]).ok().json();
        let first = &seen[0]["topics"][0];
        let requests: f64 = (seen[0]["shards"].as_array().expect("shards").iter())
            .map(|shard| shard["requests_s"].as_f64().expect("a rate"))
            .sum();
        first["topic"] == "busy" && first["records_s"].as_f64() > Some(0.0) && requests > 0.0
    };
    until("the busy topic is first", busy);
    over.store(true, Ordering::Relaxed);
    load.join().expect("it only produces");
    broker.run(&["top", "--every", "0"]).failed(2, &["--every"]);
}

/// A terminal: what is written to the second end can be read from the first.
fn terminal() -> (File, OwnedFd) {
    let (mut first, mut second) = (-1, -1);
    let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: both numbers are ours to be written; what is null is not asked for.
    assert_eq!(unsafe { libc::openpty(&mut first, &mut second, name, settings, size) }, 0);
    // SAFETY: both were opened just now, and nobody else has them.
    unsafe { (File::from_raw_fd(first), OwnedFd::from_raw_fd(second)) }
}

/// Killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // One that has ended needs no end.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn top_refreshes_a_terminal_and_leaves_it_as_it_was() {
    const HOME: &str = "\x1b[H\x1b[2J";
    let data = directory();
    let (broker, _) = start(data.path());
    let (mut screen, other_end) = terminal();
    let mut command = broker.command(&["top", "--every", "0.05"]);
    let mut top = Killed(command.stdin(Stdio::null()).stdout(other_end).spawn().expect("it was built"));
    // Only the process has the other end now: the screen ends with it.
    drop(command);
    let (sender, read) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let (mut shown, mut interrupted) = (String::new(), false);
    loop {
        match read.recv_timeout(Duration::from_secs(60)) {
            Ok(bytes) => shown.push_str(&String::from_utf8_lossy(&bytes)),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("it does nothing more: {shown:?}"),
        }
        if !interrupted && shown.matches(HOME).count() > 2 {
            // SAFETY: a signal to our own child, which has not been waited for.
            assert_eq!(unsafe { libc::kill(top.0.id() as i32, libc::SIGINT) }, 0);
            interrupted = true;
        }
    }
    assert!(top.0.wait().expect("it is ours").success(), "{shown:?}");
    let shown = shown.strip_prefix("\x1b[?1049h\x1b[?25l").unwrap_or_else(|| panic!("{shown:?}"));
    let shown = shown.strip_suffix("\x1b[?25h\x1b[?1049l").unwrap_or_else(|| panic!("{shown:?}"));
    let mut pictures = shown.split(HOME);
    assert_eq!(pictures.next(), Some(""), "nothing is on the screen before the first");
    for picture in pictures {
        for part in ["broker 0", "REQUESTS/S", "TOPIC"] {
            assert!(picture.contains(part), "{part} is not in {picture:?}");
        }
    }
}

/// Produces values of so many bytes until it is told to end.
fn produce_until(over: &AtomicBool, address: &str, topic: &str, bytes: usize) {
    use ringlog_client::{Client, ClientConfig, ProducerConfig, ProducerRecord};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client =
            Client::connect(ClientConfig::new(address).expect("an address")).await.expect("connects");
        let producer = client.producer(ProducerConfig::default());
        while !over.load(Ordering::Relaxed) {
            let mut deliveries = Vec::new();
            for _ in 0..64 {
                deliveries
                    .push(producer.send(ProducerRecord::new(topic, vec![7; bytes])).await.expect("taken"));
            }
            for delivery in deliveries {
                delivery.await.expect("acknowledged");
            }
        }
        producer.close().await.expect("closed");
    });
}

/// A process that is stopped in the middle of a task's work is what a task that does not yield looks like from
/// inside. It is stopped under load until it was caught at work.
#[test]
fn a_held_core_is_counted_and_named() {
    let data = directory();
    let (broker, http) = start(data.path());
    broker.run(&["topic", "create", "load", "--partitions", "4"]).ok();
    let over = Arc::new(AtomicBool::new(false));
    let load = {
        let (over, address) = (over.clone(), broker.address.clone());
        std::thread::spawn(move || produce_until(&over, &address, "load", 100_000))
    };
    until("a stall is counted", || {
        broker.pause(Duration::from_millis(80));
        Scrape::of(&http).sum("ringlog_stalls_total", &[]) > 0.0
    });
    over.store(true, Ordering::Relaxed);
    load.join().expect("it only produces");
    let seen = Scrape::of(&http);
    assert!(seen.sum("ringlog_longest_stall_ms", &[]) >= 50.0);
    assert!(seen.sum("ringlog_stalled_ms_total", &[]) >= 50.0);
    let status = broker.run(&["status"]).ok().text();
    assert!(status.contains("notice: STALL: this core was held for "), "{status}");
}
