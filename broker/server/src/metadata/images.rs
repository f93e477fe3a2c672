//! Images of small clusters for unit tests.

use logic::ids::{BrokerId, TopicId};
use logic::metadata::{BrokerRegistration, Command, Image, Placement};

/// The one topic.
pub(crate) const TOPIC: TopicId = TopicId::new(1);

/// A broker of two shards.
pub(crate) fn registration(broker: u32) -> BrokerRegistration {
    BrokerRegistration {
        broker: BrokerId::new(broker),
        host: "localhost".into(),
        port: 1,
        shards: 2,
        storage_uuid: u128::from(broker),
        rack: String::new(),
    }
}

/// Brokers 1, 2 and 3, and [`TOPIC`] under `name`, of as many replicas per partition, one after another on the brokers of
/// `replicas`.
pub(crate) fn three_brokers(name: &str, replication_factor: u32, replicas: &[u32]) -> Image {
    let register = |broker| Command::RegisterBroker {
        registration: registration(broker),
        suspects: Vec::new(),
        starts_fenced: false,
    };
    let brokers = replicas.iter().copied().map(BrokerId::new).collect();
    let create = Command::CreateTopic {
        id: TOPIC,
        name: name.into(),
        placement: Placement { replication_factor, brokers },
        configs: Vec::new(),
    };
    (1..=3).map(register).chain([create]).fold(Image::default(), |image, command| applied(&image, &command))
}

/// The image after `command`.
pub(crate) fn applied(image: &Image, command: &Command) -> Image {
    image.apply(command).expect("it makes sense").0
}

/// The image after `broker` has not been heard.
pub(crate) fn fenced(image: &Image, broker: u32) -> Image {
    let broker = BrokerId::new(broker);
    let epoch = image.broker(broker).expect("it is registered").epoch;
    applied(image, &Command::FenceBroker { broker, epoch })
}
