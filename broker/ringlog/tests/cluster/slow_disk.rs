//! One broker's disk gives a fraction of what it is asked for: as a follower it leaves the in-sync set, `acks=all` goes on
//! without it, and it comes back by itself when the disk is well.
//!
//! The kernel slows it: the block controller limits what one process writes to a device per second ([`Brake`]). Without the
//! right to that, or on a file system that is no block device's, the test says so and passes; else it fails.

use crate::DEADLINE;
use crate::brokers::{Cluster, leader_of, producer, run};
use crate::faults::{read_log, whole};
use ringlog_client::{Client, NewTopic, Producer, ProducerRecord};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{fs, io};

const TOPIC: &str = "as-fast-as-two";
/// How long a member may be behind.
const LAG: [&str; 2] = ["--replica-lag-ms", "1000"];
/// What the slow disk takes, bytes per second: a fraction of what is sent to it.
const BYTES_PER_SECOND: u64 = 64 << 10;
const VALUE_BYTES: usize = 32 << 10;

/// A group of processes whose writes to one device are held to a rate.
struct Brake {
    group: PathBuf,
    /// The group that its processes go back to.
    parent: PathBuf,
    limit: PathBuf,
    /// How no limit is written, with the device before it.
    none: String,
}

impl Brake {
    /// For the device below `directory`.
    fn new(directory: &Path, bytes_per_second: u64) -> io::Result<Self> {
        let at = |place: &Path| {
            let place = place.display().to_string();
            move |error: io::Error| io::Error::new(error.kind(), format!("{place}: {error}"))
        };
        let device = fs::metadata(directory).map_err(at(directory))?.dev();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let name = format!("ringlog-test-{}", std::process::id());
        // The first version of control groups has a tree of its own for block devices, the second one tree for all.
        let first = Path::new("/sys/fs/cgroup/blkio");
        let brake = if first.is_dir() {
            let group = first.join(&name);
            let limit = group.join("blkio.throttle.write_bps_device");
            Self { group, parent: first.to_owned(), limit, none: format!("{major}:{minor} 0") }
        } else {
            let parent = PathBuf::from("/sys/fs/cgroup");
            let control = parent.join("cgroup.subtree_control");
            fs::write(&control, "+io").map_err(at(&control))?;
            let group = parent.join(&name);
            let limit = group.join("io.max");
            Self { group, parent, limit, none: format!("{major}:{minor} wbps=max") }
        };
        fs::create_dir(&brake.group).map_err(at(&brake.group))?;
        let limit = brake.none.replace(" 0", " ").replace("max", "") + &bytes_per_second.to_string();
        fs::write(&brake.limit, limit).map_err(at(&brake.limit))?;
        Ok(brake)
    }

    /// A process gets slow, with all its threads.
    fn slow(&self, process: u32) {
        fs::write(self.group.join("cgroup.procs"), process.to_string()).expect("it runs");
    }

    /// And is as fast as ever.
    fn release(&self) {
        fs::write(&self.limit, &self.none).expect("it was written before");
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        // Whoever is left goes back, or the group could not go.
        for process in fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.parent.join("cgroup.procs"), process);
        }
        let _ = fs::remove_dir(&self.group);
    }
}

/// Control groups may be another's, or mounted for reading only, as in a container.
fn is_missing_right(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn has_block_device(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|directory| libc::major(directory.dev()) != 0)
}

async fn in_sync(client: &Client) -> Vec<u32> {
    let cluster = client.admin().describe_cluster(Some(&[TOPIC.to_owned()])).await.expect("it answers");
    let (_, partition) = cluster.partitions().next().expect("there is one");
    partition.replicas.iter().filter(|replica| replica.in_sync).map(|replica| replica.broker).collect()
}

/// Sends so many records one after the other, each acknowledged by all that count.
async fn produce(producer: &Producer, sent: &mut Vec<String>, records: usize) {
    for _ in 0..records {
        let mut value = format!("{} ", sent.len());
        value.extend(std::iter::repeat_n('.', VALUE_BYTES));
        let record = ProducerRecord::new(TOPIC, value.clone()).to_partition(0);
        producer.send(record).await.expect("it is taken").await.expect("it is acknowledged");
        sent.push(value);
    }
}

#[test]
fn a_follower_with_a_slow_disk_leaves_the_set_and_comes_back() {
    run(async || {
        let cluster = Cluster::with(3, &LAG);
        let brake = match Brake::new(cluster.data(1), BYTES_PER_SECOND) {
            Ok(brake) => brake,
            Err(error) if is_missing_right(&error) => {
                return crate::skipped::skipped(&format!("writes may not be slowed here: {error}"));
            }
            Err(error) if !has_block_device(cluster.data(1)) => {
                return crate::skipped::skipped(&format!("no block device is below the data here: {error}"));
            }
            Err(error) => panic!("writes cannot be slowed: {error}"),
        };
        let client = cluster.connect().await;
        whole(&client, 3).await;
        let topic = NewTopic { partitions: 1, replication_factor: 3, ..NewTopic::named(TOPIC) };
        client.admin().create_topic(&topic).await.expect("there are three brokers");
        whole(&client, 3).await;
        let producer = producer(&client);
        let mut sent = Vec::new();
        produce(&producer, &mut sent, 20).await;
        let (leads, controls) = (leader_of(&client, TOPIC, 0).await, controller(&client).await);
        let slow = (1..=3).find(|broker| *broker != leads && *broker != controls).expect("there are three");
        brake.slow(cluster.process(slow));
        let limit = Instant::now() + DEADLINE;
        let mut left = false;
        while !left {
            // More than the disk takes, whatever becomes of it: the sender does not wait.
            let mut pending = Vec::new();
            for _ in 0..40 {
                let mut value = format!("{} ", sent.len());
                value.extend(std::iter::repeat_n('.', VALUE_BYTES));
                let record = ProducerRecord::new(TOPIC, value.clone()).to_partition(0);
                pending.push(producer.send(record).await.expect("it is taken"));
                sent.push(value);
            }
            for delivery in pending {
                delivery.await.expect("it is acknowledged");
            }
            let members = in_sync(&client).await;
            left = !members.contains(&slow);
            assert!(members.len() >= 2, "only who is slow leaves: {members:?}");
            assert!(Instant::now() < limit, "broker {slow} is in sync with a slow disk");
        }
        // Nobody waits for it now.
        produce(&producer, &mut sent, 64).await;
        assert!(!in_sync(&client).await.contains(&slow), "it is slow still");
        brake.release();
        whole(&client, 3).await;
        assert_eq!(read_log(&client, TOPIC, 1).await, [sent]);
        producer.close().await.expect("the brokers are there");
    });
}

async fn controller(client: &Client) -> u32 {
    let cluster = client.admin().describe_cluster(None).await.expect("it answers");
    cluster.controller.expect("there is one")
}
