//! Scripts of what a controller hears against what it proposes.

use super::*;
use crate::ids::TopicId;
use crate::metadata::command::{AlterPartition, BrokerRegistration, InSyncMember, Placement};

const SETTINGS: Settings = Settings { session_ms: 1000, refused_ms: 300, retry_ms: 500, rebalance_ms: 5000 };

struct Bench {
    controller: Controller,
    image: Arc<Image>,
    now_ms: u64,
}

impl Bench {
    /// Brokers 1 to 3 that serve, and a topic of two partitions on all of them, led by 1.
    fn new() -> Self {
        let mut image = Image::default();
        for id in 1..=3 {
            image = image.apply(&register(id)).unwrap().0;
            let broker = BrokerId::new(id);
            let epoch = image.broker(broker).unwrap().epoch;
            image = image.apply(&Command::UnfenceBroker { broker, epoch }).unwrap().0;
        }
        let brokers = [1, 2, 3, 1, 3, 2].map(BrokerId::new).to_vec();
        let placement = Placement { replication_factor: 3, brokers };
        let create =
            Command::CreateTopic { id: TopicId::new(7), name: "t".into(), placement, configs: vec![] };
        Self::of(image.apply(&create).unwrap().0)
    }

    fn of(image: Image) -> Self {
        let image = Arc::new(image);
        let mut bench = Self { controller: Controller::new(SETTINGS, image.clone()), image, now_ms: 10_000 };
        assert_eq!(bench.step(Event::Leads), Vec::<String>::new());
        bench
    }

    fn step(&mut self, event: Event) -> Vec<String> {
        let mut effects = Vec::new();
        self.controller.step(self.now_ms, event, &mut effects);
        effects.iter().map(|Effect::Propose(command)| text(command)).collect()
    }

    fn at(&mut self, now_ms: u64) -> Vec<String> {
        self.now_ms = 10_000 + now_ms;
        self.step(Event::Tick)
    }

    fn beat(&mut self, id: u32) -> Vec<String> {
        self.say(id, false)
    }

    fn say(&mut self, id: u32, stopping: bool) -> Vec<String> {
        let broker = BrokerId::new(id);
        let epoch = self.image.broker(broker).unwrap().epoch;
        let version = self.image.version();
        self.step(Event::Heartbeat(Heartbeat { broker, epoch, version, stopping }))
    }

    fn apply(&mut self, command: &Command) -> Vec<String> {
        self.image = Arc::new(self.image.apply(command).unwrap().0);
        let image = self.image.clone();
        self.step(Event::Image(image))
    }

    fn unfence(&mut self, id: u32) -> Vec<String> {
        let broker = BrokerId::new(id);
        let epoch = self.image.broker(broker).unwrap().epoch;
        self.apply(&Command::UnfenceBroker { broker, epoch })
    }

    fn fence(&mut self, id: u32) {
        let broker = BrokerId::new(id);
        let epoch = self.image.broker(broker).unwrap().epoch;
        self.apply(&Command::FenceBroker { broker, epoch });
    }
}

fn register(id: u32) -> Command {
    let registration = BrokerRegistration {
        broker: BrokerId::new(id),
        host: "h".into(),
        port: 1,
        shards: 1,
        storage_uuid: 1,
        rack: String::new(),
    };
    Command::RegisterBroker { registration, suspects: vec![], starts_fenced: true }
}

fn text(command: &Command) -> String {
    match command {
        Command::FenceBroker { broker, .. } => format!("fence {broker}"),
        Command::UnfenceBroker { broker, .. } => format!("unfence {broker}"),
        Command::ElectLeaders { elections, unclean: false } => {
            let one = |(id, leader): &(TopicPartition, BrokerId)| format!("{}->{leader}", id.partition);
            format!("elect {}", elections.iter().map(one).collect::<Vec<_>>().join(" "))
        }
        Command::ReassignPartitions { partitions } => {
            let one = |one: &Reassignment| {
                let replicas: Vec<String> = one.replicas.iter().map(BrokerId::to_string).collect();
                format!("{}:{}", one.partition.partition, replicas.join(","))
            };
            format!("keep {}", partitions.iter().map(one).collect::<Vec<_>>().join(" "))
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn who_is_silent_is_fenced() {
    let mut bench = Bench::new();
    bench.at(600);
    bench.beat(1);
    bench.beat(2);
    assert_eq!(bench.at(999), Vec::<String>::new());
    assert_eq!(bench.at(1000), ["fence 3"]);
    assert_eq!(bench.at(1499), Vec::<String>::new(), "it waits for the answer");
    assert_eq!(bench.at(1500), ["fence 3"], "and asks again");
    bench.fence(3);
    bench.beat(1);
    bench.beat(2);
    assert_eq!(bench.at(2400), Vec::<String>::new());
    // It is heard again, and serves again.
    assert_eq!(bench.beat(3), ["unfence 3"]);
}

#[test]
pub(crate) fn a_new_controller_gives_everybody_a_whole_session() {
    let mut bench = Bench::new();
    bench.step(Event::LeadsNot);
    assert_eq!(bench.at(9_000), Vec::<String>::new(), "who does not lead proposes nothing");
    assert_eq!(bench.step(Event::Leads), Vec::<String>::new());
    assert_eq!(bench.at(9_999), Vec::<String>::new());
    assert_eq!(bench.at(10_000), ["fence 1", "fence 2", "fence 3"]);
}

#[test]
fn a_dead_process_is_fenced_early() {
    let mut bench = Bench::new();
    bench.at(100);
    bench.beat(2);
    bench.step(Event::ConnectionRefused(BrokerId::new(2)));
    assert_eq!(bench.controller.next_deadline_ms(), Some(10_400));
    assert_eq!(bench.at(399), Vec::<String>::new());
    assert_eq!(bench.at(400), ["fence 2"]);
    // One that listens again is not dead.
    let mut bench = Bench::new();
    bench.step(Event::ConnectionRefused(BrokerId::new(2)));
    bench.at(200);
    bench.beat(2);
    assert_eq!(bench.at(800), Vec::<String>::new());
}

#[test]
pub(crate) fn who_has_not_caught_up_waits() {
    let mut bench = Bench::new();
    for id in 1..=3 {
        bench.beat(id);
    }
    bench.apply(&register(3));
    let (broker, version) = (BrokerId::new(3), bench.image.version());
    let epoch = bench.image.broker(broker).unwrap().epoch;
    let beat = |version| Event::Heartbeat(Heartbeat { broker, epoch, version, stopping: false });
    assert_eq!(bench.step(beat(version - 1)), Vec::<String>::new());
    assert_eq!(bench.step(beat(version)), ["unfence 3"]);
    // What its earlier life said does not count.
    let early = Heartbeat { broker, epoch: BrokerEpoch::new(1), version, stopping: false };
    let mut bench = Bench::new();
    bench.apply(&register(3));
    assert_eq!(bench.step(Event::Heartbeat(early)), Vec::<String>::new());
}

#[test]
fn who_drains_hands_over() {
    let mut bench = Bench::new();
    bench.apply(&Command::DrainBroker { broker: BrokerId::new(1), draining: true });
    for id in 1..=3 {
        bench.beat(id);
    }
    assert_eq!(bench.at(500), ["elect 0->2 1->2"], "the first heir and the second: 1's heirs are 3, 2");
    // Heirs that leave too are none.
    let mut bench = Bench::new();
    for id in 1..=2 {
        bench.apply(&Command::DrainBroker { broker: BrokerId::new(id), draining: true });
    }
    assert_eq!(bench.at(500), ["elect 0->3 1->3"]);
}

#[test]
pub(crate) fn who_stops_hands_over_and_is_fenced_then() {
    let mut bench = Bench::new();
    assert_eq!(bench.say(3, true), ["fence 3"], "it leads nothing");
    assert_eq!(bench.say(1, true), Vec::<String>::new());
    bench.fence(3);
    assert_eq!(bench.at(500), ["elect 0->2 1->2"]);
    for partition in 0..2 {
        let partition = TopicPartition { topic: TopicId::new(7), partition: PartitionIndex::new(partition) };
        let entry = bench.image.partition(partition).unwrap();
        let member = |&broker: &BrokerId| InSyncMember {
            broker,
            epoch: bench.image.broker(broker).unwrap().epoch,
            generation: entry.replica(broker).unwrap().generation,
        };
        let alter = Command::AlterPartition(AlterPartition {
            partition,
            sender: BrokerId::new(1),
            leader_epoch: entry.leader_epoch,
            partition_epoch: entry.partition_epoch,
            in_sync: entry.in_sync.iter().map(member).collect(),
            transfer_to: Some(BrokerId::new(2)),
        });
        let proposed = bench.apply(&alter);
        assert_eq!(proposed.is_empty(), partition.partition.get() == 0, "{proposed:?}");
    }
    bench.fence(1);
    assert_eq!(bench.say(1, true), Vec::<String>::new(), "it does not come back by saying so");
}

#[test]
fn leaderships_go_back_to_the_preferred() {
    let mut bench = Bench::new();
    bench.fence(1);
    let epoch = bench.image.broker(BrokerId::new(1)).unwrap().epoch;
    bench.apply(&Command::UnfenceBroker { broker: BrokerId::new(1), epoch });
    for at in [900, 1800, 2700, 3600, 4500] {
        for id in 1..=3 {
            bench.beat(id);
        }
        assert_eq!(bench.at(at), Vec::<String>::new());
    }
    for id in 1..=3 {
        bench.beat(id);
    }
    assert_eq!(bench.at(5000), Vec::<String>::new(), "the preferred leader is not in sync");
    let partition = TopicPartition { topic: TopicId::new(7), partition: PartitionIndex::new(0) };
    let entry = bench.image.partition(partition).unwrap().clone();
    let member = |id: u32| InSyncMember {
        broker: BrokerId::new(id),
        epoch: bench.image.broker(BrokerId::new(id)).unwrap().epoch,
        generation: entry.replica(BrokerId::new(id)).unwrap().generation,
    };
    let alter = Command::AlterPartition(AlterPartition {
        partition,
        sender: entry.leader.unwrap(),
        leader_epoch: entry.leader_epoch,
        partition_epoch: entry.partition_epoch,
        in_sync: [1, 2, 3].map(member).to_vec(),
        transfer_to: None,
    });
    bench.apply(&alter);
    bench.now_ms = 19_900;
    for id in 1..=3 {
        bench.beat(id);
    }
    assert_eq!(bench.at(10_000), ["elect 0->1"]);
}

/// The offsets topic of `partitions` on broker 1, which is alone.
fn offsets_of_one(partitions: u32) -> Image {
    let mut image = Image::default().apply(&register(1)).unwrap().0;
    let broker = BrokerId::new(1);
    let epoch = image.broker(broker).unwrap().epoch;
    image = image.apply(&Command::UnfenceBroker { broker, epoch }).unwrap().0;
    let placement = Placement::single(broker, partitions);
    let name = schema::OFFSETS_TOPIC.into();
    let create = Command::CreateTopic { id: TopicId::new(7), name, placement, configs: vec![] };
    image.apply(&create).unwrap().0
}

#[test]
fn the_offsets_topic_gets_more_copies_when_brokers_come() {
    let nothing = Vec::<String>::new();
    let mut bench = Bench::of(offsets_of_one(2));
    assert_eq!(bench.apply(&register(2)), nothing, "it does not serve yet");
    assert_eq!(bench.unfence(2), ["keep 0:2,1 1:1,2"]);
    assert_eq!(bench.at(499), nothing, "it waits for the answer");
    assert_eq!(bench.controller.next_deadline_ms(), Some(10_500));
    assert_eq!(bench.at(500), ["keep 0:2,1 1:1,2"], "and asks again");
    let one = |partition, replicas: &[u32]| Reassignment {
        partition: TopicPartition { topic: TopicId::new(7), partition: PartitionIndex::new(partition) },
        replicas: replicas.iter().copied().map(BrokerId::new).collect(),
    };
    let partitions = vec![one(0, &[2, 1]), one(1, &[1, 2])];
    assert_eq!(bench.apply(&Command::ReassignPartitions { partitions }), nothing);
    // What moves is left alone until it is done.
    bench.apply(&register(3));
    assert_eq!(bench.unfence(3), nothing);
    for id in 1..=3 {
        bench.beat(id);
    }
    assert_eq!(bench.at(1000), nothing);
}

#[test]
fn the_offsets_topic_has_three_copies_at_most_and_none_for_who_leaves() {
    let mut image = offsets_of_one(3);
    for id in 2..=4 {
        image = image.apply(&register(id)).unwrap().0;
        let broker = BrokerId::new(id);
        let epoch = image.broker(broker).unwrap().epoch;
        image = image.apply(&Command::UnfenceBroker { broker, epoch }).unwrap().0;
    }
    let grown = more_copies(&image);
    assert_eq!(grown.len(), 3);
    for one in &grown {
        assert!(one.replicas.len() == 3 && one.replicas.contains(&BrokerId::new(1)), "{one:?}");
    }
    // Copies are for brokers that stay, and of partitions that do not move away.
    let drain = |id: u32| Command::DrainBroker { broker: BrokerId::new(id), draining: true };
    let without = image.apply(&drain(4)).unwrap().0;
    let grown = more_copies(&without);
    assert!(grown.iter().all(|one| !one.replicas.contains(&BrokerId::new(4))), "{grown:?}");
    assert_eq!(more_copies(&image.apply(&drain(1)).unwrap().0), []);
}
