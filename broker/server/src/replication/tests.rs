//! What a leader's shard gives to be sent to a follower, which is made here.

use super::*;
use crate::homes::tests::{BROKER, Rig, SHARDS, registration, run, until};
use crate::peer::Replicas as _;
use logic::ids::{PartitionIndex, TopicId};
use logic::metadata::Placement;
use logic::replication::message::Opened;
use logic::routing::home_shard;

const FOLLOWER: BrokerId = BrokerId::new(2);

/// A partition of the first shard that the broker leads and the follower keeps, too.
async fn replicated(rig: &Rig) -> TopicPartition {
    let registration = registration(FOLLOWER, 1);
    rig.submit(Command::RegisterBroker { registration, suspects: Vec::new(), starts_fenced: false }).await;
    let partition = PartitionIndex::new(0);
    let mut ids = (1..).map(TopicId::new);
    let topic =
        ids.find(|id| home_shard(*id, partition, SHARDS) == ShardId::new(0)).expect("half of them are");
    let placement = Placement { replication_factor: 2, brokers: vec![BROKER, FOLLOWER] };
    rig.submit(Command::CreateTopic { id: topic, name: "topic".into(), placement, configs: Vec::new() })
        .await;
    TopicPartition { topic, partition }
}

/// The follower has nothing, and is ready for everything.
fn follow(rig: &Rig, id: TopicPartition) {
    let (image, replicas) = (rig.metadata.image(), &rig.shards[0].replicas);
    let partition = image.partition(id).expect("it is there");
    let say = |said: FromFollower| {
        let (leader_epoch, open_sequence) = (partition.leader_epoch, OpenSequence::new(1));
        let message = Message { leader_epoch, open_sequence, body: Body::FromFollower(said) };
        replicas.receive(FOLLOWER, id, message, &[]);
    };
    replicas.link_up(FOLLOWER);
    say(FromFollower::Opened(Box::new(Opened {
        broker_epoch: image.broker(FOLLOWER).expect("it is registered").epoch,
        generation: partition.replica(FOLLOWER).expect("it keeps one").generation,
        epochs: Vec::new(),
        log_start: Offset::new(0),
        durable_end: Offset::new(0),
        status: Status::Clean,
    })));
    say(FromFollower::Matched { end: Offset::new(0) });
}

/// What is read for a push is bounded, or one batch.
#[test]
fn no_more_is_given_to_be_sent_than_may_be() {
    let files = tempfile::tempdir().expect("a directory");
    run(async move {
        let rig = Rig::start(files.path()).await;
        let id = replicated(&rig).await;
        rig.follow([0, 1]).await;
        let told: Vec<_> = (0..4).map(|_| rig.append(0, id, 100_000)).collect();
        until("appends", || told.iter().all(|told| told.durable.get())).await;
        follow(&rig, id);
        let shard = &rig.shards[0];
        let batches =
            |batches: Batches| batches.slices.iter().map(|slice| slice.range.len()).sum::<usize>() / 100_000;
        // (at most so many bytes, batches)
        let bounds = [(1, 1), (150_000, 1), (250_000, 2), (1_000_000, 4)];
        for (max_bytes, expect) in bounds {
            let Chunk::Batches(read) = shard.replicas.read(FOLLOWER, id, max_bytes) else {
                panic!("{max_bytes}: they are in memory")
            };
            assert_eq!(batches(read), expect, "from memory, at most {max_bytes} bytes");
        }
        let partition = shard.store.partition(&id).expect("it is open");
        while partition.tail_groups() > 0 {
            partition.evict_tail();
        }
        for (max_bytes, expect) in bounds {
            assert!(matches!(shard.replicas.read(FOLLOWER, id, max_bytes), Chunk::Device));
            let read = shard.replicas.read_device(FOLLOWER, id, max_bytes).await.expect("it is there");
            assert_eq!(batches(read), expect, "from the device, at most {max_bytes} bytes");
        }
        rig.end();
    });
}
