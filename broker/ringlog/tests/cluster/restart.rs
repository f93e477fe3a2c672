//! A broker that has just started, and does not know yet what was decided without it.

use crate::DEADLINE;
use crate::brokers::{Cluster, of_topic, run, until};
use crate::faults::whole;
use ringlog_client::{ErrorCode, NewTopic};
use std::time::{Duration, Instant};

/// The last that was decided before: a follower has that it is committed in memory, not on its disk.
const TOPIC: &str = "the-last";

/// Waits until it has a directory for every partition of a topic.
async fn has_directories(cluster: &Cluster, id: u32, topic: &str, partitions: usize) {
    let directory = cluster.data(id).join("topics").join(topic);
    let limit = Instant::now() + DEADLINE;
    while std::fs::read_dir(&directory).map_or(0, Iterator::count) < partitions {
        assert!(Instant::now() < limit, "broker {id} does not open the topic");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_broker_that_has_just_started_tells_nothing_old() {
    run(async || {
        let mut cluster = Cluster::of(3);
        let client = cluster.connect().await;
        whole(&client, 3).await;
        let known = client.admin().describe_cluster(None).await.expect("it answers");
        let leads = known.controller.expect("somebody leads the metadata");
        let late = (1..=3).find(|id| *id != leads).expect("there are three");
        let topic = NewTopic { partitions: 4, replication_factor: 3, ..NewTopic::named(TOPIC) };
        client.admin().create_topic(&topic).await.expect("there are three brokers");
        let topic = client.admin().describe_topic(TOPIC).await.expect("it is there").id.to_string();
        has_directories(&cluster, late, &topic, 4).await;
        cluster.kill(late);
        let others: Vec<u32> = (1..=3).filter(|id| *id != late).collect();
        others.iter().for_each(|id| cluster.pause(*id));
        cluster.start(late);

        // Nobody tells it anything: it says so.
        let lone = cluster.connect_to(late).await;
        let told = lone.admin().describe_cluster(None).await.expect("it answers");
        assert!(told.behind && told.answered_by == late, "{told:#?}");
        let is_there = async || match lone.admin().describe_topic(TOPIC).await {
            Ok(topic) => topic.partitions.len() == 4,
            Err(error) => {
                assert_ne!(error.code(), Some(ErrorCode::UnknownTopic), "it cannot know that");
                false
            }
        };
        assert!(!is_there().await);

        others.iter().for_each(|id| cluster.resume(*id));
        let limit = Instant::now() + DEADLINE;
        while !is_there().await {
            assert!(Instant::now() < limit, "it does not catch up");
        }
        until(&lone, "it has caught up", |told| !told.behind && of_topic(told, TOPIC).count() == 4).await;
        whole(&lone, 3).await;
        // Its files were looked through, and all of them are known.
        let mut notices = cluster.notices(late).await;
        notices.retain(|notice| notice.starts_with("UNKNOWN"));
        assert!(notices.is_empty(), "{notices:?}");
    });
}
