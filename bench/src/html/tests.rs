//! Pages of made-up reports: what must be on them, and what must not.

use super::*;
use crate::driver::Durability;
use crate::report::{Explained, HostReport, Latency, SecondPoint, Throughput};
use crate::search::{RateSearch, SearchLimits, Trial};
use crate::workload::Workload;

/// A report of a run that took `slow` times as long as another.
fn report(driver: &str, durability: Durability, slow: f64) -> Report {
    let second = |at: u32| SecondPoint {
        at_s: f64::from(at),
        produced: Throughput { records_s: 1000.0 / slow, mb_s: 1.0 / slow },
        consumed: Throughput { records_s: 990.0 / slow, mb_s: 0.99 / slow },
        p50_us: 500.0 * slow,
        p99_us: 2000.0 * slow * (1.0 + f64::from(at % 3)),
        max_us: 9000.0 * slow,
        counts: Vec::new(),
    };
    let latency = Latency {
        count: 10_000,
        mean_us: 600.0 * slow,
        p50_us: 500.0 * slow,
        p99_us: 2000.0 * slow,
        p999_us: 8000.0 * slow,
        p9999_us: 9000.0 * slow,
        max_us: 9000.0 * slow,
        curve: vec![(0.0, 90.0 * slow), (0.5, 500.0 * slow), (0.99, 2000.0 * slow), (1.0, 9000.0 * slow)],
    };
    let parts_us = vec![("client queue".to_owned(), 400.0), ("device".to_owned(), 1600.0)];
    Report {
        ended_unix_s: 1_700_000_000,
        workload: Workload { name: "made up <&>".to_owned(), producer_rate: 1000.0, ..Workload::default() },
        driver: driver.to_owned(),
        durability,
        durability_settings: "as it is".to_owned(),
        client_cores: vec![1],
        broker_cores: vec![0],
        explain: true,
        host: HostReport {
            kernel: "6.1".to_owned(),
            commit: "0123abcd+".to_owned(),
            ..HostReport::default()
        },
        produced: second(0).produced,
        consumed: second(0).consumed,
        acknowledge: latency.clone(),
        end_to_end: latency,
        explained: vec![Explained { quantile: 0.99, parts_us }],
        failed: 0,
        last_failure: None,
        not_received: 0,
        backlog_drained_s: None,
        broker_usage: None,
        client_usage: None,
        counters: [("flush_rounds_total".to_owned(), 77)].into(),
        window_s: (2.0, 10.0),
        seconds: (0..11).map(second).collect(),
        search: None,
        ceiling: Some("12 % of what the disk does".to_owned()),
    }
}

fn check(page: &str, wanted: &[&str], unwanted: &[&str]) {
    for text in wanted {
        assert!(page.contains(text), "{text} is missing: {page}");
    }
    // Nothing runs, nothing is fetched.
    for text in unwanted.iter().chain(&["<script", "<link", "<img", "@import", "url(", "NaN", "inf\""]) {
        assert!(!page.contains(text), "{text} is on the page: {page}");
    }
    assert_eq!(page.matches("http").count(), page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
}

#[test]
fn a_page_about_one_run_says_everything() {
    let page = page("made up <&>", &[report("ringlog", Durability::Device, 1.0)]);
    let wanted = [
        "made up &lt;&amp;&gt;",
        "2023-11-14T22:13:20Z",
        "0123abcd+",
        "Linux 6.1",
        "prefers-color-scheme: dark",
        "Throughput over time",
        "Acknowledge latency over time",
        "Percentiles",
        ">99.9 %<",
        "Where the time went",
        "width:80.00%",
        "intended rate",
        "workload: partitionsPerTopic",
        "durability settings",
        "flush_rounds_total",
        "12 % of what the disk does",
    ];
    check(&page, &wanted, &["do not promise the same", "Highest rate", "made up <&>"]);
    assert_eq!(page.matches("<svg").count(), 3, "{page}");
}

#[test]
fn a_search_is_shown_with_every_trial() {
    let mut search = RateSearch::new(SearchLimits::new(20_000.0, 1000));
    for (records_s, p99_us) in [(1000.0, 900.0), (2000.0, 90_000.0), (2000.0, 90_000.0)] {
        search.tried(Trial { records_s, achieved_records_s: records_s, p99_us, lost: 0 });
    }
    let search = Some(search.finish(crate::search::Ended::OutOfTime));
    let page = page("search", &[Report { search, ..report("ringlog", Durability::Device, 1.0) }]);
    check(
        &page,
        &["Highest rate with a p99 of at most", "1000 records/s", "a lower bound", "p99 wanted"],
        &[],
    );
    assert_eq!(page.matches("missed: p99 too long").count(), 2);
    assert_eq!(page.matches("<path class=\"cross").count(), 2);
}

#[test]
fn several_runs_are_compared_by_driver_and_durability() {
    let same = [
        report("ringlog", Durability::Device, 1.0),
        report("nats", Durability::Device, 3.0),
        report("ringlog", Durability::Device, 1.2),
        report("nats", Durability::Device, 3.1),
    ];
    let wanted = [
        "ringlog, device (as it is) × 2",
        "3. ringlog",
        "Percentiles of acknowledgements",
        "span class=\"run\"",
    ];
    check(&page("same", &same), &wanted, &["do not promise the same"]);
    let different = [report("ringlog", Durability::Device, 1.0), report("nats", Durability::PageCache, 0.5)];
    check(&page("different", &different), &["do not promise the same", "nats, page cache"], &[]);
}

#[test]
fn nothing_measured_is_no_reason_to_fail() {
    let empty = Report {
        seconds: Vec::new(),
        acknowledge: Latency::default(),
        end_to_end: Latency::default(),
        explained: Vec::new(),
        window_s: (0.0, 0.0),
        ..report("ringlog", Durability::None, 1.0)
    };
    check(&page("empty", &[empty]), &["Nothing was measured here."], &["Where the time went"]);
    check(&page("none at all", &[]), &["none at all"], &[]);
}
