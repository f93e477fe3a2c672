//! Tables of images against what a shard has open.

use super::*;
use crate::metadata::command::{Command, Placement};
use crate::metadata::image::tests::{alter, any_command, broker, create, delete, grow, image_of};
use proptest::prelude::*;

const HERE: Here = Here { broker: BrokerId::new(1), shard: ShardId::new(0), shards: 1 };

fn perform(local: &mut LocalPartitions, image: &Image, here: Here) -> Vec<Action> {
    let actions = reconcile(local, image, here);
    actions.iter().for_each(|action| local.record(action));
    local.finish(image);
    assert_eq!(reconcile(local, image, here), [], "a second time there is nothing to do");
    actions
}

/// One line per action: `open topic/partition epoch`, `close topic/partition [delete]`, `change …`.
fn text(actions: &[Action]) -> Vec<String> {
    let at = |p: &TopicPartition| format!("{}/{}", p.topic.get(), p.partition);
    let line = |action: &Action| match action {
        Action::OpenPartition { partition, state } => {
            format!("open {} {} epoch {}", at(partition), state.topic_name, state.leader_epoch)
        }
        Action::ClosePartition { partition, delete, .. } => {
            format!("close {}{}", at(partition), if *delete { " delete" } else { "" })
        }
        Action::Reconfigure { partition, state } => {
            format!("change {} retention {}", at(partition), state.config.retention_ms)
        }
    };
    actions.iter().map(line).collect()
}

/// After `before`, the commands of `then` make the only shard of broker 1 do what `expect` says.
fn check(before: &[Command], then: &[Command], expect: &[&str]) {
    let history: Vec<_> = before.iter().chain(then).cloned().collect();
    let mut local = LocalPartitions::default();
    perform(&mut local, &image_of(before), HERE);
    let got = perform(&mut local, &image_of(&history), HERE);
    assert_eq!(text(&got), expect, "{before:?} then {then:?}");
}

#[test]
fn one_shard() {
    let start = || vec![broker(1, 1), create(10, "a", 2)];
    let rows: [(Vec<Command>, Vec<Command>, &[&str]); 9] = [
        (vec![], vec![], &[]),
        (vec![], start(), &["open 10/0 a epoch 0", "open 10/1 a epoch 0"]),
        (start(), vec![], &[]),
        (start(), vec![delete(10)], &["close 10/0 delete", "close 10/1 delete"]),
        (
            start(),
            vec![delete(10), create(5, "a", 1)],
            &["close 10/0 delete", "close 10/1 delete", "open 5/0 a epoch 0"],
        ),
        (
            start(),
            vec![grow(10, 3, 1), alter(10, &[("retention.ms", "1h")], &[])],
            &["open 10/2 a epoch 0", "change 10/0 retention 3600000", "change 10/1 retention 3600000"],
        ),
        (start(), vec![alter(10, &[("retention.ms", "7d")], &[])], &[]),
        (start(), vec![create(11, "b", 1), delete(11)], &[]),
        (start(), vec![broker(2, 1)], &[]),
    ];
    for (before, then, expect) in rows {
        check(&before, &then, expect);
    }
}

#[test]
fn a_partition_is_opened_once_when_a_broker_came_with_it() {
    let start = [broker(1, 1), create(9, "z", 1)];
    let both = [broker(2, 1), create(10, "a", 1)];
    check(&start, &both, &["open 10/0 a epoch 0"]);
    check(&start, &[both[1].clone(), both[0].clone()], &["open 10/0 a epoch 0"]);
    let mut local = LocalPartitions::default();
    let before = image_of(&start);
    perform(&mut local, &before, HERE);
    // The broker that changed keeps the new partition.
    let placement = Placement { replication_factor: 2, brokers: vec![BrokerId::new(1), BrokerId::new(2)] };
    let create = Command::CreateTopic { id: TopicId::new(10), name: "a".into(), placement, configs: vec![] };
    let image = before.apply(&both[0]).unwrap().0.apply(&create).unwrap().0;
    assert_eq!(text(&perform(&mut local, &image, HERE)), ["open 10/0 a epoch 0"]);
    // It comes again: only what it keeps is told.
    let image = image.apply(&broker(2, 1)).unwrap().0;
    assert_eq!(text(&perform(&mut local, &image, HERE)), ["change 10/0 retention 604800000"]);
}

#[test]
fn an_unregistered_broker_serves_nothing() {
    let image = image_of(&[broker(1, 1), create(10, "a", 2)]);
    let stranger = Here { broker: BrokerId::new(2), ..HERE };
    assert_eq!(reconcile(&LocalPartitions::default(), &image, stranger), []);
}

/// A broker that starts with another number of shards opens its partitions where they are at home in this life, before
/// anybody knows of it, and nothing moves when it has registered.
#[test]
fn homes_follow_the_shards_of_this_life() {
    let registered = image_of(&[broker(1, 1), create(10, "a", 4)]);
    let shards = [0, 1].map(|shard| Here { shard: ShardId::new(shard), shards: 2, ..HERE });
    let mut followed = shards.map(|_| LocalPartitions::default());
    for (here, local) in shards.iter().zip(&mut followed) {
        assert_eq!(perform(local, &registered, *here).len(), 2);
    }
    let again = registered.apply(&broker(1, 2)).unwrap().0;
    for (here, local) in shards.iter().zip(&mut followed) {
        let changed = perform(local, &again, *here);
        let is_change = |action: &Action| matches!(action, Action::Reconfigure { .. });
        assert!(
            changed.len() == 2 && changed.iter().all(is_change),
            "the broker's life is another: {changed:?}"
        );
    }
}

#[test]
fn a_moved_home_is_closed_and_opened_and_nothing_is_deleted() {
    let image = image_of(&[broker(1, 2), create(10, "a", 1)]);
    let [first, second] = [0, 1].map(|shard| Here { shard: ShardId::new(shard), shards: 2, ..HERE });
    let id = TopicPartition { topic: TopicId::new(10), partition: PartitionIndex::new(0) };
    let home = image.home_here(first, id);
    let (from, to) = if home == first.shard { (first, second) } else { (second, first) };
    let mut local = LocalPartitions::default();
    assert_eq!(perform(&mut local, &image, from).len(), 1);
    let moved = Command::MoveHome { partition: id, broker: HERE.broker, shard: to.shard };
    let image = image.apply(&moved).unwrap().0;
    let closed = perform(&mut local, &image, from);
    assert!(matches!(closed[..], [Action::ClosePartition { delete: false, .. }]), "{closed:?}");
    assert_eq!(reconcile(&LocalPartitions::default(), &image, to).len(), 1);
    // A life without that shard has it at home where topic and index say.
    let alone = Here { shards: 1, ..first };
    assert_eq!(reconcile(&LocalPartitions::default(), &image, alone).len(), 1);
}

#[test]
fn a_failed_action_comes_again() {
    let image = image_of(&[broker(1, 1), create(10, "a", 2)]);
    let mut local = LocalPartitions::default();
    let actions = reconcile(&local, &image, HERE);
    local.record(&actions[1]);
    assert_eq!(reconcile(&local, &image, HERE), actions[..1]);
}

#[test]
fn what_failed_comes_again_until_it_works_or_is_not_wanted() {
    let image = image_of(&[broker(1, 1), create(10, "a", 2), create(11, "b", 1)]);
    let failed = |local: &mut LocalPartitions, image: &Image| {
        let actions = reconcile(local, image, HERE);
        for action in &actions {
            match action {
                Action::OpenPartition { partition, .. } => local.failed(*partition),
                action => local.record(action),
            }
        }
        local.finish(image);
        text(&actions)
    };
    let all = ["open 10/0 a epoch 0", "open 10/1 a epoch 0", "open 11/0 b epoch 0"];
    let mut local = LocalPartitions::default();
    assert_eq!(failed(&mut local, &image), all);
    assert_eq!(
        (local.version(), local.unopened().len()),
        (image.version(), 3),
        "it is followed all the same"
    );
    assert_eq!(failed(&mut local, &image), all, "nothing has changed since");
    // Others may change meanwhile, and so may a broker: each comes once.
    let other = image.apply(&create(12, "c", 1)).unwrap().0;
    let [first, second, third] = all;
    let with_c = [first, second, third, "open 12/0 c epoch 0"];
    let mut seen = failed(&mut local, &other);
    seen.sort();
    assert_eq!(seen, with_c);
    let touched = other.apply(&broker(2, 1)).unwrap().0;
    assert_eq!(failed(&mut local, &touched), with_c);
    let deleted = touched.apply(&delete(10)).unwrap().0;
    assert_eq!(failed(&mut local, &deleted), [third, "open 12/0 c epoch 0"]);
    assert_eq!(perform(&mut local, &deleted, HERE).len(), 2);
    assert!(local.unopened().is_empty());
}

#[test]
pub(crate) fn directories_are_judged() {
    let image = image_of(&[broker(1, 2), create(10, "a", 2), create(11, "b", 1), delete(11)]);
    let judged_as = |topic: u128, partition: u32, generation: u32| {
        let partition = PartitionIndex::new(partition);
        let id = TopicPartition { topic: TopicId::new(topic), partition };
        judge(id, ReplicaGeneration::new(generation), &image, Here { shards: 2, ..HERE })
    };
    let judged = |topic: u128, partition: u32| judged_as(topic, partition, 0);
    let both = [judged(10, 0), judged(10, 1)];
    assert!(
        both.contains(&Judgement::Serve) && both.contains(&Judgement::ServedBy(ShardId::new(1))),
        "{both:?}"
    );
    assert_eq!(judged(11, 0), Judgement::Delete);
    assert_eq!(judged(10, 2), Judgement::Unknown);
    assert_eq!(judged(99, 0), Judgement::Unknown);
    // The image is older than the replica: it says nothing of it.
    assert_eq!(judged_as(10, 0, 1), Judgement::Unknown);
}

proptest! {
    /// Following some images of a history leads where a look at the last one alone leads, and no partition
    /// is served by two shards.
    #[test]
    fn following_agrees_with_starting_anew(
        commands in prop::collection::vec((any_command(), any::<bool>()), 0..40),
    ) {
        let mut image = image_of(&[broker(1, 2)]);
        let shards = [0, 1, 2, 3].map(|shard| Here { shard: ShardId::new(shard), shards: 4, ..HERE });
        let mut followed = shards.map(|_| LocalPartitions::default());
        for (command, look) in commands {
            if let Ok((next, _)) = image.apply(&command) {
                image = next;
            }
            if look {
                for (here, local) in shards.iter().zip(&mut followed) {
                    perform(local, &image, *here);
                }
            }
        }
        let mut served = 0;
        for (here, local) in shards.iter().zip(&mut followed) {
            perform(local, &image, *here);
            let mut fresh = LocalPartitions::default();
            perform(&mut fresh, &image, *here);
            prop_assert_eq!(&fresh.open, &local.open);
            served += local.len();
        }
        let placed = image.topics().flat_map(|topic| topic.partitions.iter());
        let mine = placed.filter(|entry| entry.is_replica(HERE.broker)).count();
        prop_assert_eq!(served, mine);
    }
}
