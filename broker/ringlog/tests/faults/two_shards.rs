//! A client on the wrong core: everything works, is forwarded and counted, and keeps its order.

use crate::support::process::Serve;
use crate::support::raw::{Raw, Target, fetch};
use crate::support::records::{Maker, prove};
use crate::support::{Directory, block_on, client, counter, create_topic, in_time};
use ringlog_client::reply::Reply;
use ringlog_client::request::{FetchEntry, ListOffsetsEntry, ProduceEntry, Request};
use ringlog_client::{Acks, Connection, OffsetSpec};
use schema::record_batch;
use std::time::Duration;

const PARTITIONS: u32 = 6;
const TIMEOUT: Duration = Duration::from_secs(30);

async fn ask(connection: &Connection, request: Request) -> Reply {
    let response = connection.request(request, TIMEOUT).await.expect("it answers");
    response.into_result().expect("it does not refuse")
}

#[test]
fn the_wrong_core_forwards_and_counts() {
    let directory = Directory::new();
    let broker = Serve::new(directory.path()).shards(2).start();
    block_on(async {
        let client = client(broker.address).await;
        let topic = create_topic(&client, "apart", PARTITIONS, &[]).await;
        let shards: Vec<u32> = topic.partitions.iter().map(|place| place.shard).collect();
        assert!(shards.contains(&0) && shards.contains(&1), "{shards:?}");
        let connections = [
            client.open_connection(0, 0).await.expect("a core"),
            client.open_connection(0, 1).await.expect("a core"),
        ];
        let forwarded = async || {
            let status = client.admin().status().await.expect("it answers");
            counter(&status, "forwarded_requests_total")
        };
        let mut maker = Maker::new(1, 1);
        for place in &topic.partitions {
            let (partition, leader_epoch) = (place.partition, place.leader_epoch);
            let (right, wrong) = (&connections[place.shard as usize], &connections[1 - place.shard as usize]);
            let before = forwarded().await;

            // Produce: pipelined on the wrong core, small and large in turns; offsets in the order sent.
            let mut replies = Vec::new();
            let mut proofs = Vec::new();
            for at in 0..20 {
                let made = maker.batch(1 + at % 3, if at % 5 == 0 { 60_000 } else { 200 });
                let entry = ProduceEntry { topic: topic.id, partition, leader_epoch, batch: made.batch };
                let request = Request::Produce { acks: Acks::All, explain: true, entries: vec![entry] };
                replies.push((proofs.len() as u64, wrong.send(request, TIMEOUT).expect("it is open")));
                proofs.extend(made.proofs);
            }
            for (base_offset, reply) in replies {
                let response = reply.wait().await.expect("it answers").into_result().expect("not refused");
                let Reply::Produce { results, anatomy } = response else { panic!("no produce") };
                assert_eq!((results[0].error, results[0].base_offset), (None, base_offset));
                assert!(anatomy.expect("asked for").total_ns() > 0);
            }
            let after_produce = forwarded().await;
            assert!(after_produce >= before + 20, "{before} {after_produce}");

            // Fetch, from both: the same bytes.
            let mut found = Vec::new();
            for connection in [right, wrong] {
                let mut bytes = Vec::new();
                let mut offset = 0;
                while offset < proofs.len() as u64 {
                    let entries = vec![FetchEntry {
                        topic: topic.id,
                        partition,
                        leader_epoch,
                        offset,
                        max_bytes: 1 << 20,
                    }];
                    let fetch = Request::Fetch {
                        max_wait_ms: 1000,
                        min_bytes: 1,
                        max_bytes: 1 << 20,
                        rack: None,
                        entries,
                    };
                    let Reply::Fetch(results) = ask(connection, fetch).await else { panic!("no fetch") };
                    assert_eq!(results[0].error, None);
                    for batch in record_batch::batches(&results[0].batches) {
                        let (header, batch) = batch.expect("whole batches");
                        assert_eq!(header.base_offset, offset);
                        bytes.extend_from_slice(batch);
                        offset = header.end_offset();
                    }
                }
                found.push(bytes);
            }
            assert!(found[0] == found[1], "partition {partition}: the cores serve different bytes");
            let read: Vec<_> = record_batch::batches(&found[0])
                .flat_map(|batch| record_batch::records(batch.expect("whole").1).expect("records"))
                .map(|record| record.expect("sound").value.and_then(prove).expect("its own bytes"))
                .collect();
            assert!(read == proofs, "partition {partition}: not in the order sent");

            // A long poll on the wrong core, woken by a produce on the right one.
            let offset = proofs.len() as u64;
            let entries =
                vec![FetchEntry { topic: topic.id, partition, leader_epoch, offset, max_bytes: 1 << 20 }];
            let fetch =
                Request::Fetch { max_wait_ms: 25_000, min_bytes: 1, max_bytes: 1 << 20, rack: None, entries };
            let waiting = wrong.send(fetch, TIMEOUT).expect("it is open");
            let made = maker.batch(1, 300);
            let entry = ProduceEntry { topic: topic.id, partition, leader_epoch, batch: made.batch };
            let produce = Request::Produce { acks: Acks::Leader, explain: false, entries: vec![entry] };
            ask(right, produce).await;
            let response = in_time("the long poll", waiting.wait()).await.expect("it answers");
            let Reply::Fetch(results) = response.into_result().expect("not refused") else {
                panic!("no fetch")
            };
            assert!(!results[0].batches.is_empty(), "it was answered by its deadline, not by the record");

            // Offsets.
            for (spec, expect) in
                [(OffsetSpec::Earliest, 0), (OffsetSpec::Latest, offset + 1), (OffsetSpec::Timestamp(0), 0)]
            {
                let entries = vec![ListOffsetsEntry { topic: topic.id, partition, spec }];
                let Reply::ListOffsets(listed) = ask(wrong, Request::ListOffsets { entries }).await else {
                    panic!("no offsets")
                };
                assert_eq!((listed[0].error, listed[0].offset), (None, expect), "{spec:?}");
            }
            assert!(forwarded().await > after_produce + 1);
        }

        // Logs of all partitions, from either core.
        for connection in &connections {
            let describe = Request::DescribeLogs { topic: "apart".to_owned() };
            let Reply::Logs(logs) = ask(connection, describe).await else { panic!("no logs") };
            let described: Vec<(u32, u32)> =
                logs[0].partitions.iter().map(|log| (log.partition, log.shard)).collect();
            let expected: Vec<_> =
                topic.partitions.iter().map(|place| (place.partition, place.shard)).collect();
            assert_eq!(described, expected);
            assert!(logs[0].partitions.iter().all(|log| log.error.is_none() && log.high_watermark > 0));
        }

        // One request for partitions of both cores: what is there is answered at once, the empty end of
        // the other core does not hold it up.
        let entries: Vec<FetchEntry> = topic
            .partitions
            .iter()
            .map(|place| FetchEntry {
                topic: topic.id,
                partition: place.partition,
                leader_epoch: place.leader_epoch,
                offset: 0,
                max_bytes: 1000,
            })
            .collect();
        let fetch =
            Request::Fetch { max_wait_ms: 25_000, min_bytes: 1, max_bytes: 1 << 20, rack: None, entries };
        let Reply::Fetch(results) = in_time("both cores", ask(&connections[0], fetch)).await else {
            panic!("no fetch")
        };
        assert_eq!(results.len(), PARTITIONS as usize);
        assert!(results.iter().all(|result| result.error.is_none()));
        assert!(results.iter().any(|result| !result.batches.is_empty()));
        println!("two shards: {} requests forwarded, order kept", forwarded().await);
    });
    // A stale epoch and a stranger partition are told by the home core too.
    let topic = block_on(async {
        client(broker.address).await.admin().describe_topic("apart").await.expect("there")
    });
    for place in &topic.partitions {
        let mut raw = Raw::hello(broker.address, 1 - place.shard as i32);
        let target = Target { topic: topic.id.0, partition: place.partition, epoch: place.leader_epoch + 1 };
        let answer = raw.ask(&fetch(1, target, 0, 0, 1000));
        assert_eq!(answer.any_error(), Some(ringlog_client::ErrorCode::FencedLeaderEpoch));
        assert_eq!(answer.shard, None);
    }
    broker.stop();
}
