//! Rates, sums and orders of what `ringlog top` shows.

use super::*;
use ringlog_client::group_request::GroupState;
use ringlog_client::{BrokerStatus, GroupBehind};
use std::time::{Duration, Instant};

/// What a broker with one core said: requests so far, and bytes produced to each topic.
fn answer(broker: u32, at: Instant, requests: u64, topics: &[(&str, u64)]) -> (u32, Result<Answer, String>) {
    let counters = vec![("requests_total".to_owned(), requests), ("connections_open".to_owned(), 3)];
    let topics = topics.iter().map(|(name, produced_bytes)| TopicStatus {
        name: (*name).to_owned(),
        partitions: 2,
        produced_bytes: *produced_bytes,
        log_bytes: 10,
        ..TopicStatus::default()
    });
    let shards = vec![ShardStatus { shard: 1, counters }];
    let status = BrokerStatus { broker, shards, topics: topics.collect(), ..BrokerStatus::default() };
    (broker, Ok(Answer { at, status }))
}

/// Topics of two partitions, and what brokers said.
fn look<const N: usize>(topics: &[&str], brokers: [(u32, Result<Answer, String>); N]) -> Look {
    Look {
        brokers: brokers.into_iter().collect(),
        partitions: topics.iter().map(|name| ((*name).to_owned(), 2)).collect(),
        health: Health::default(),
    }
}

fn rates(view: &View) -> Vec<(&str, f64)> {
    view.topics.iter().map(|it| (it.topic.as_str(), it.produced_bytes_s)).collect()
}

#[test]
fn rates_are_differences_and_the_busiest_is_first() {
    let now = Instant::now();
    let first = || look(&["a", "b", "gone"], [answer(0, now, 100, &[("a", 10), ("b", 500), ("gone", 7)])]);
    let later = now + Duration::from_secs(2);
    let after = look(&["a", "b", "new"], [answer(0, later, 300, &[("a", 30), ("b", 500), ("new", 60)])]);
    let view = View::between(&first(), &after);
    assert_eq!((view.shards[0].requests_s, view.shards[0].connections), (100.0, 3));
    assert_eq!(rates(&view), [("new", 30.0), ("a", 10.0), ("b", 0.0)]);
    // The broker was started anew: no rate is negative.
    let anew = look(&["a"], [answer(0, later + Duration::from_secs(1), 5, &[("a", 1)])]);
    assert_eq!(View::between(&after, &anew).shards[0].requests_s, 0.0);
}

#[test]
fn topics_are_sums_over_brokers_and_who_is_silent_is_named() {
    let now = Instant::now();
    let [first, second, third] = [1, 2, 3].map(|seconds| now + Duration::from_secs(seconds));
    let silent = |broker| (broker, Err("it is silent".to_owned()));
    let before = look(&["a"], [answer(1, now, 0, &[("a", 0)]), answer(2, now, 0, &[("a", 0)]), silent(3)]);
    // Each by the time between its own two answers; the third has given one only.
    let brokers = [
        answer(1, first, 10, &[("a", 10)]),
        answer(2, second, 40, &[("a", 40)]),
        answer(3, third, 70, &[("a", 1000)]),
    ];
    let all = look(&["a"], brokers);
    let view = View::between(&before, &all);
    assert_eq!(rates(&view), [("a", 30.0)]);
    assert_eq!((view.topics[0].partitions, view.topics[0].log_bytes), (2, 30));
    let shards: Vec<_> = view.shards.iter().map(|shard| (shard.broker, shard.requests_s)).collect();
    assert_eq!(shards, [(1, 10.0), (2, 20.0), (3, 0.0)]);
    assert!(view.brokers.iter().all(|broker| broker.missing.is_none()));
    let later = look(&["a"], [silent(1), answer(2, third, 60, &[("a", 60)]), silent(3)]);
    let view = View::between(&all, &later);
    let missing: Vec<_> = view.brokers.iter().map(|it| (it.broker, it.missing.as_deref())).collect();
    assert_eq!(missing, [(1, Some("it is silent")), (2, None), (3, Some("it is silent"))]);
    assert_eq!((rates(&view), view.shards.len()), (vec![("a", 20.0)], 1));
}

#[test]
fn the_group_that_is_furthest_behind_is_first() {
    let group = |name: &str, unknown_partitions, lag: Option<(u64, Option<u64>)>| GroupStatus {
        group: name.to_owned(),
        state: GroupState::Empty,
        members: 0,
        partitions: 1,
        unknown_partitions,
        lag: lag.map(|(records, ms)| GroupBehind { records, time: ms.map(Duration::from_millis) }),
    };
    let now = Instant::now();
    let with = |groups: Vec<GroupStatus>, broker| {
        let (id, said) = answer(broker, now, 1, &[]);
        let said = said.map(|said| Answer { status: BrokerStatus { groups, ..said.status }, ..said });
        (id, said)
    };
    let after = look(
        &[],
        [
            with(vec![group("done", 0, Some((0, Some(0)))), group("late", 0, Some((7, Some(61_000))))], 1),
            with(
                vec![group("many", 0, None), group("silent", 1, None), group("no-time", 0, Some((7, None)))],
                2,
            ),
        ],
    );
    let view = View::between(&look(&[], []), &after);
    let names: Vec<_> = view.groups.iter().map(|group| (group.group.as_str(), group.broker)).collect();
    assert_eq!(names, [("silent", 2), ("late", 1), ("done", 1), ("no-time", 2), ("many", 2)]);
    let shown = group_table(&view.groups).to_string();
    let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1][5..], ["?", "?"]);
    assert_eq!(rows[2], ["late", "1", "empty", "0", "1", "7", "1", "min", "1", "s"]);
    assert_eq!(rows[3][5..], ["0", "-"]);
    assert_eq!(rows[4][5..], ["7", "?"]);
    assert_eq!(rows[5][5..], ["?", "?"]);
}
