//! `ringlog cluster` and what of `ringlog topic` is about replicas, against one broker: a cluster of one.

use crate::process::{Broker, directory};

#[test]
fn one_broker_is_a_cluster_of_one() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "clicks", "--partitions", "3", "--replication-factor", "1"]).ok();
    broker.run_with(&["produce", "clicks", "--partition", "0"], b"a\nb\n").ok();

    let status = broker.run(&["cluster", "status"]).ok().text();
    for part in ["1 broker", "3 partitions, all well", &broker.address, "alive"] {
        assert!(status.contains(part), "'{part}' is not in:\n{status}");
    }
    let lines = broker.run(&["cluster", "describe", "--format", "json"]).ok().json();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    let (clusters, brokers, partitions) = (of("cluster"), of("broker"), of("partition"));
    assert_eq!((clusters.len(), brokers.len(), partitions.len()), (1, 1, 3), "{lines:?}");
    assert_eq!(clusters[0]["health"]["partitions"], 3);
    let id = &brokers[0]["id"];
    assert_eq!((&brokers[0]["fenced"], &brokers[0]["leaders"]), (&false.into(), &3.into()));
    for partition in &partitions {
        assert_eq!((&partition["leader"], &partition["state"]), (id, &"ok".into()));
        let replica = &partition["replicas"][0];
        assert_eq!((&replica["broker"], &replica["in_sync"]), (id, &true.into()));
    }
    let troubled = broker.run(&["cluster", "describe", "--troubled", "--format", "json"]).ok().json();
    assert!(troubled.iter().all(|line| line["kind"] != "partition"), "{troubled:?}");
    broker.run(&["cluster", "describe", "--topic", "none"]).failed(1, &["UNKNOWN_TOPIC"]);

    // The same in the pages of topics and of the broker.
    let lines = broker.run(&["topic", "describe", "clicks", "--format", "json"]).ok().json();
    let first = &lines[0];
    assert_eq!((&first["leader"], &first["high_watermark"]), (id, &2.into()), "{first}");
    assert_eq!((&first["min_in_sync"], &first["replicas"][0]["in_sync"]), (&1.into(), &true.into()));
    let text = broker.run(&["topic", "describe", "clicks"]).ok().text();
    assert!(text.contains("IN SYNC") && text.contains("LEADER"), "{text}");
    assert!(broker.run(&["status"]).ok().text().contains("cluster: 3 partitions, all well"));
    let status = broker.run(&["status", "--format", "json"]).ok().json();
    assert_eq!(status[0]["cluster"]["under_replicated"], 0);
    let top = broker.run(&["top", "--once", "--every", "0.05", "--format", "json"]).ok().json();
    assert_eq!(top[0]["cluster"]["partitions"], 3);
}

#[test]
fn what_one_broker_cannot_do_is_said() {
    let data = directory();
    let broker = Broker::start(data.path());
    broker.run(&["topic", "create", "clicks"]).ok();
    let lines = broker.run(&["cluster", "status", "--format", "json"]).ok().json();
    let id = lines.iter().find(|line| line["kind"] == "broker").expect("it is there")["id"].to_string();

    let few = ["topic", "create", "orders", "--replication-factor", "2"];
    broker.run(&few).failed(1, &["INVALID_REPLICATION_FACTOR"]);
    let more = ["topic", "alter", "clicks", "--replication-factor", "2", "--dry-run"];
    broker.run(&more).failed(1, &["2 replicas", "add brokers first"]);
    let both = ["topic", "alter", "clicks", "--partitions", "2", "--replication-factor", "1", "--dry-run"];
    broker.run(&both).failed(2, &["--dry-run is for --replication-factor alone"]);
    broker.run(&["cluster", "move", "clicks:0", "--to", "99"]).failed(1, &["no broker 99"]);
    broker.run(&["cluster", "move", "clicks:7", "--to", &id]).failed(1, &["UNKNOWN_PARTITION"]);
    broker.run(&["cluster", "move", "clicks:0", "--cancel"]).failed(1, &["NO_REASSIGNMENT"]);
    broker.run(&["cluster", "move", "clicks", "--to", &id]).failed(2, &["TOPIC:PARTITION"]);
    broker.run(&["cluster", "drain", "99"]).failed(1, &["no broker 99"]);
    broker.run(&["cluster", "undrain", "99"]).failed(1, &["UNKNOWN_BROKER"]);
    broker.run(&["cluster", "drain", &id]).failed(1, &["add brokers first"]);
    broker.run(&["cluster", "remove", &id]).failed(1, &["BROKER_IN_USE", "stop it first"]);
    broker.run(&["cluster", "add", "99"]).failed(1, &["no broker 99"]);
    let unclean = ["cluster", "elect", "--partition", "clicks", "--unclean"];
    broker.run(&unclean).failed(2, &["name the partition"]);

    // What there is to do is done, and nothing is nothing.
    broker.run(&["cluster", "move", "clicks:0", "--to", &id]).ok();
    let nothing = broker.run(&["cluster", "rebalance"]).ok().text();
    assert!(nothing.contains("nothing is to be moved"), "{nothing}");
    let led = broker.run(&["cluster", "elect"]).ok().text();
    assert!(led.contains("led as it should be"), "{led}");
    let outcome = ["cluster", "elect", "--partition", "clicks:0", "--format", "json"];
    assert_eq!(broker.run(&outcome).ok().json()[0]["error"], "ELECTION_NOT_NEEDED");
    broker.run(&["cluster", "drain", &id, "--leaders-only"]).ok();
    let status = broker.run(&["cluster", "status"]).ok().text();
    assert!(status.contains("draining"), "{status}");
    // A draining broker gets no replicas, and there is no other.
    broker.run(&["topic", "create", "orders"]).failed(1, &["INVALID_REPLICATION_FACTOR"]);
    broker.run(&["cluster", "undrain", &id]).ok();
    broker.run(&["topic", "create", "orders"]).ok();
}
