//! The client's examples of classic uses, each against a real broker: what they print.
//!
//! They are compiled into this binary from `client/examples`, so that what a reader copies is what is tested; the
//! addresses and the output are the test's. Absent on purpose: their `main`, which has neither.

use crate::process::{Broker, directory};

#[expect(dead_code, reason = "its main is not run here")]
#[path = "../../../../client/examples/activity.rs"]
mod activity;
#[expect(dead_code, reason = "its main is not run here")]
#[path = "../../../../client/examples/change_log.rs"]
mod change_log;
#[expect(dead_code, reason = "its main is not run here")]
#[path = "../../../../client/examples/metrics_and_logs.rs"]
mod metrics_and_logs;
#[expect(dead_code, reason = "its main is not run here")]
#[path = "../../../../client/examples/notifications.rs"]
mod notifications;
#[expect(dead_code, reason = "its main is not run here")]
#[path = "../../../../client/examples/work_queue.rs"]
mod work_queue;

/// Runs `$example` against a broker of its own; its lines.
macro_rules! lines_of {
    ($example:ident) => {{
        let data = directory();
        let broker = Broker::start(data.path());
        let mut out = Vec::new();
        $example::run(&broker.address, &mut out).await.expect("the example works");
        let text = String::from_utf8(out).expect("it prints text");
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    }};
}

#[tokio::test]
async fn activity_by_user() {
    let mut lines = lines_of!(activity);
    // A user has one worker, whichever it is: murmur2 decides.
    lines.sort_by_key(|line| line.split_once(": ").expect("a worker").1.to_owned());
    let users: Vec<&str> = lines.iter().map(|line| line.split_once(": ").expect("a worker").1).collect();
    let expected =
        ["ann", "bob", "cem", "dia", "eve"].map(|user| format!("{user} clicked 15 times, uploaded 5 files"));
    assert_eq!(users, expected);
}

#[tokio::test]
async fn metrics_by_time_and_logs_by_level() {
    let lines = lines_of!(metrics_and_logs);
    let expected = [
        "db-1: cpu 4.5 % over the last 60 seconds",
        "web-1: cpu 14.5 % over the last 60 seconds",
        "web-2: cpu 24.5 % over the last 60 seconds",
        "db-1: disk is full",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn the_change_log_gives_state_and_stream() {
    let lines = lines_of!(change_log);
    let expected = [
        "state: 17 is cem, house 999",
        "state: 19 is eve, Oslo",
        "live: 20 is fay, Rome",
        "live: 17 is gone",
        "rows now: 19, 20",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn notifications_reach_every_group() {
    let lines = lines_of!(notifications);
    let expected = ["audit", "email", "push"]
        .map(|service| format!("{service}: 30 delivered, the last to ann 27, bob 28, cem 29"));
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn a_queue_shares_jobs() {
    let mut lines = lines_of!(work_queue);
    assert_eq!(lines.pop().as_deref(), Some("40 jobs, 0 of them twice"));
    // The first worker goes home after five; the others do the rest, each some of it.
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(lines[0], "worker 0 did 5 jobs");
}
