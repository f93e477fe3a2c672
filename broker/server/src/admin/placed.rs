//! Commands that place partitions on brokers, made anew when those do not serve any more by the time that it counts.
//!
//! Whoever makes such a command reads an image, and the command is applied to a later one: a broker may be fenced in
//! between. It is then refused, and where it should go is asked again.

use crate::metadata::MetadataError;
use logic::limits::PLACEMENTS_MAX;
use logic::metadata::{Command, CommandError, Image, Outcome};
use std::sync::Arc;

/// Has `submit` do what `make` makes of the newest image, at most [`PLACEMENTS_MAX`] times.
pub async fn submit(
    newest: impl Fn() -> Arc<Image>,
    submit: impl AsyncFn(Command) -> Result<Outcome, MetadataError>,
    make: impl Fn(&Image) -> Result<Command, CommandError>,
) -> Result<Outcome, MetadataError> {
    let mut tries = 1;
    loop {
        let image = newest();
        match submit(make(&image)?).await {
            Err(MetadataError::Rejected(CommandError::InvalidPlacement(_)))
                if tries < PLACEMENTS_MAX && newest().version() > image.version() =>
            {
                tries += 1;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::images::registration;
    use futures_executor::block_on;
    use logic::ids::{BrokerId, TopicId};
    use logic::metadata::{NewTopic, Placement};
    use std::cell::{Cell, RefCell};

    const TOPIC: TopicId = TopicId::new(7);

    /// What others do to the metadata between the making of a command and its turn.
    type Meanwhile<'a> = &'a dyn Fn(&Image, &Command) -> Vec<Command>;

    /// The metadata of four brokers, as whoever submits sees it.
    struct Scripted<'a> {
        image: RefCell<Arc<Image>>,
        meanwhile: Meanwhile<'a>,
        submitted: Cell<u32>,
    }

    impl<'a> Scripted<'a> {
        fn new(meanwhile: Meanwhile<'a>) -> Self {
            let scripted = Self { image: RefCell::default(), meanwhile, submitted: Cell::new(0) };
            for broker in 1..=4 {
                let registration = registration(broker);
                let register =
                    Command::RegisterBroker { registration, suspects: vec![], starts_fenced: false };
                scripted.apply(&register).unwrap();
            }
            scripted
        }

        fn apply(&self, command: &Command) -> Result<Outcome, MetadataError> {
            let (image, outcome) = self.image.borrow().apply(command)?;
            *self.image.borrow_mut() = Arc::new(image);
            Ok(outcome)
        }

        /// Has a topic made with so many replicas of its partition.
        fn create_topic(&self, replication_factor: u32) -> Result<Outcome, MetadataError> {
            let new =
                NewTopic { id: TOPIC, name: "t".into(), partitions: 1, replication_factor, configs: vec![] };
            let in_turn = async |command: Command| {
                self.submitted.set(self.submitted.get() + 1);
                let image = self.image.borrow().clone();
                for other in (self.meanwhile)(&image, &command) {
                    self.apply(&other).unwrap();
                }
                self.apply(&command)
            };
            block_on(submit(|| self.image.borrow().clone(), in_turn, |image| image.create_topic(new.clone())))
        }
    }

    fn placed_on(command: &Command) -> &[BrokerId] {
        let Command::CreateTopic { placement, .. } = command else { panic!("{command:?}") };
        &placement.brokers
    }

    fn fence(image: &Image, broker: BrokerId) -> Command {
        Command::FenceBroker { broker, epoch: image.broker(broker).unwrap().epoch }
    }

    /// Of whoever is fenced.
    fn unfence(image: &Image) -> Option<Command> {
        let fenced = image.brokers().find(|broker| broker.fenced)?;
        Some(Command::UnfenceBroker { broker: fenced.registration.broker, epoch: fenced.epoch })
    }

    /// The first of its brokers is fenced when it is placed for the first time. Where another one keeps it too, that one
    /// leads, and nothing needs to be placed anew.
    #[test]
    fn a_topic_goes_elsewhere_when_its_broker_is_fenced_meanwhile() {
        for (replication_factor, tries) in [(1, 2), (2, 1)] {
            let once = |image: &Image, command: &Command| match unfence(image) {
                None => vec![fence(image, placed_on(command)[0])],
                Some(_) => vec![],
            };
            let scripted = Scripted::new(&once);
            scripted.create_topic(replication_factor).unwrap();
            assert_eq!(scripted.submitted.get(), tries, "{replication_factor}");
            let image = scripted.image.borrow();
            let partition = &image.topic(TOPIC).unwrap().partitions[0];
            let serves = |broker: &BrokerId| !image.broker(*broker).unwrap().fenced;
            assert!(partition.leader.as_ref().is_some_and(serves), "{partition:?}");
            assert_eq!(partition.in_sync.len(), 1, "{partition:?}");
        }
    }

    #[test]
    fn brokers_that_never_stay_are_given_up() {
        let always = |image: &Image, command: &Command| {
            let back = unfence(image);
            back.into_iter().chain([fence(image, placed_on(command)[0])]).collect()
        };
        let scripted = Scripted::new(&always);
        let refused = scripted.create_topic(1);
        let is_misplaced = matches!(refused, Err(MetadataError::Rejected(CommandError::InvalidPlacement(_))));
        assert!(is_misplaced, "{refused:?}");
        assert_eq!(scripted.submitted.get(), PLACEMENTS_MAX);
    }

    /// What the newest image refuses is refused for good.
    #[test]
    fn a_placement_that_nothing_has_changed_is_not_tried_again() {
        let scripted = Scripted::new(&|_, _| vec![]);
        let nowhere = Placement { replication_factor: 1, brokers: vec![BrokerId::new(9)] };
        let command =
            Command::CreateTopic { id: TOPIC, name: "t".into(), placement: nowhere, configs: vec![] };
        let newest = || scripted.image.borrow().clone();
        let count = async |command: Command| {
            scripted.submitted.set(scripted.submitted.get() + 1);
            scripted.apply(&command)
        };
        block_on(submit(newest, count, |_| Ok(command.clone()))).unwrap_err();
        assert_eq!(scripted.submitted.get(), 1);
    }
}
