//! Who is to have which partition: the assignors `uniform` and `range`.
//!
//! Pure functions of the members' subscriptions, what they were going to have before, and the topics. Called by a
//! group whenever one of these changes; nothing is kept here. Invariants: every partition of a subscribed topic
//! goes to exactly one member that subscribes to it; the same input gives the same output, also on another
//! broker. Absent on purpose: racks, which matter once partitions have followers to read from.

use crate::ids::{PartitionIndex, TopicId, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};

/// A way to share partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Assignor {
    /// As many for each as the subscriptions permit, moving as few as possible.
    #[default]
    Uniform,
    /// Each topic cut into as many ranges as it has subscribers, in their order: partitions of the same number
    /// of several topics meet at one member. A change moves the borders of all ranges.
    Range,
}

impl Assignor {
    /// Its name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    /// The assignor of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Uniform, Self::Range].into_iter().find(|assignor| assignor.name() == name)
    }
}

/// A member as an assignor sees it.
#[derive(Clone, Copy, Debug)]
pub struct Subscriber<'a> {
    /// Topics that it subscribes to.
    pub topics: &'a BTreeSet<TopicId>,
    /// What it was going to have before.
    pub previous: &'a BTreeSet<TopicPartition>,
}

/// Partitions of each topic.
pub type Counts = BTreeMap<TopicId, u32>;

/// What each subscriber is to have, in their order. Topics that are not in `counts` are not there.
pub fn assign(
    assignor: Assignor,
    subscribers: &[Subscriber<'_>],
    counts: &Counts,
) -> Vec<BTreeSet<TopicPartition>> {
    match assignor {
        Assignor::Uniform => uniform(subscribers, counts),
        Assignor::Range => range(subscribers, counts),
    }
}

fn partitions(topic: TopicId, count: u32) -> impl Iterator<Item = TopicPartition> {
    (0..count).map(move |index| TopicPartition { topic, partition: PartitionIndex::new(index) })
}

fn range(subscribers: &[Subscriber<'_>], counts: &Counts) -> Vec<BTreeSet<TopicPartition>> {
    let mut shares = vec![BTreeSet::new(); subscribers.len()];
    for (&topic, &count) in counts {
        let takers: Vec<usize> = takers(subscribers, topic);
        if takers.is_empty() {
            continue;
        }
        let (each, more) = (count as usize / takers.len(), count as usize % takers.len());
        let mut rest = partitions(topic, count);
        for (turn, &taker) in takers.iter().enumerate() {
            shares[taker].extend(rest.by_ref().take(each + usize::from(turn < more)));
        }
    }
    shares
}

fn takers(subscribers: &[Subscriber<'_>], topic: TopicId) -> Vec<usize> {
    (0..subscribers.len()).filter(|&at| subscribers[at].topics.contains(&topic)).collect()
}

/// Topics that the same members subscribe to: their partitions can take each other's places.
struct Class {
    takers: Vec<usize>,
    topics: Vec<TopicId>,
    /// What each taker has of them.
    owned: BTreeMap<usize, Vec<TopicPartition>>,
}

/// Keeps what is where it may be, gives the rest to the least loaded, then moves single partitions from the most
/// to the least loaded taker of a class while that evens the loads out. With one class every such move is
/// needed: it takes from a member above its share or gives to one below. With several classes the result is
/// one that no single move improves.
fn uniform(subscribers: &[Subscriber<'_>], counts: &Counts) -> Vec<BTreeSet<TopicPartition>> {
    let mut classes: BTreeMap<Vec<usize>, Class> = BTreeMap::new();
    for &topic in counts.keys() {
        let takers = takers(subscribers, topic);
        if takers.is_empty() {
            continue;
        }
        let class = classes.entry(takers.clone()).or_insert_with(|| Class {
            takers,
            topics: Vec::new(),
            owned: BTreeMap::new(),
        });
        class.topics.push(topic);
    }
    let mut classes: Vec<Class> = classes.into_values().collect();
    // Few choices first: the others can make up for them.
    classes.sort_by_key(|class| class.takers.len());

    let mut kept: BTreeMap<TopicPartition, usize> = BTreeMap::new();
    for (at, subscriber) in subscribers.iter().enumerate() {
        for &partition in subscriber.previous {
            let exists = counts.get(&partition.topic).is_some_and(|&count| partition.partition.get() < count);
            if exists && subscriber.topics.contains(&partition.topic) {
                kept.entry(partition).or_insert(at);
            }
        }
    }
    let mut loads = vec![0usize; subscribers.len()];
    kept.values().for_each(|&at| loads[at] += 1);
    for class in &mut classes {
        for &topic in &class.topics {
            for partition in partitions(topic, counts[&topic]) {
                let owner = kept.get(&partition).copied().unwrap_or_else(|| {
                    let least = class.takers.iter().copied().min_by_key(|&at| (loads[at], at));
                    let least = least.expect("a class has takers");
                    loads[least] += 1;
                    least
                });
                class.owned.entry(owner).or_default().push(partition);
            }
        }
    }
    // Every move lowers the sum of the squares of the loads: this ends.
    let mut moved = true;
    while moved {
        moved = false;
        for class in &mut classes {
            while let Some((from, to)) = uneven(class, &loads) {
                let owned = class.owned.get_mut(&from).expect("who gives has something");
                // What was not here before costs nobody a stop.
                let fresh = owned.iter().rposition(|one| !subscribers[from].previous.contains(one));
                let partition = owned.remove(fresh.unwrap_or(owned.len() - 1));
                class.owned.entry(to).or_default().push(partition);
                loads[from] -= 1;
                loads[to] += 1;
                moved = true;
            }
        }
    }
    let mut shares = vec![BTreeSet::new(); subscribers.len()];
    for class in classes {
        for (owner, owned) in class.owned {
            shares[owner].extend(owned);
        }
    }
    shares
}

/// The most loaded taker that has something of the class, and the least loaded one, if a move helps.
fn uneven(class: &Class, loads: &[usize]) -> Option<(usize, usize)> {
    let givers = class.owned.iter().filter(|(_, owned)| !owned.is_empty()).map(|(&at, _)| at);
    let from = givers.max_by_key(|&at| (loads[at], at))?;
    let to = class.takers.iter().copied().min_by_key(|&at| (loads[at], at))?;
    (loads[from] >= loads[to] + 2).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Shares = Vec<BTreeSet<TopicPartition>>;

    fn run(assignor: Assignor, topics: &[&[u128]], previous: &Shares, counts: &[(u128, u32)]) -> Shares {
        let topics: Vec<BTreeSet<TopicId>> =
            topics.iter().map(|list| list.iter().map(|&id| TopicId::new(id)).collect()).collect();
        let none = BTreeSet::new();
        let subscribers: Vec<_> = topics
            .iter()
            .enumerate()
            .map(|(at, topics)| Subscriber { topics, previous: previous.get(at).unwrap_or(&none) })
            .collect();
        let counts = counts.iter().map(|&(id, count)| (TopicId::new(id), count)).collect();
        assign(assignor, &subscribers, &counts)
    }

    fn show(shares: &Shares) -> Vec<String> {
        let one = |p: &TopicPartition| format!("{}.{}", p.topic.get(), p.partition);
        shares.iter().map(|share| share.iter().map(one).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn ranges() {
        type Row<'a> = (&'a [&'a [u128]], &'a [(u128, u32)], &'a [&'a str]);
        let rows: [Row<'_>; 4] = [
            (&[&[1], &[1]], &[(1, 5)], &["1.0 1.1 1.2", "1.3 1.4"]),
            (&[&[1, 2], &[1, 2]], &[(1, 3), (2, 3)], &["1.0 1.1 2.0 2.1", "1.2 2.2"]),
            (&[&[1], &[2], &[1]], &[(1, 2), (2, 2)], &["1.0", "2.0 2.1", "1.1"]),
            (&[&[1], &[1], &[1]], &[(1, 2)], &["1.0", "1.1", ""]),
        ];
        for (topics, counts, expect) in rows {
            assert_eq!(show(&run(Assignor::Range, topics, &Vec::new(), counts)), expect);
        }
    }

    #[test]
    fn uniform_is_even_and_keeps_what_it_can() {
        const ONE: &[u128] = &[1];
        // Four partitions, members come one after the other; then the first goes.
        let counts = [(1, 4)];
        let one = run(Assignor::Uniform, &[&[1]], &Vec::new(), &counts);
        assert_eq!(show(&one), ["1.0 1.1 1.2 1.3"]);
        let two = run(Assignor::Uniform, &[&[1], &[1]], &one, &counts);
        assert_eq!(show(&two), ["1.0 1.1", "1.2 1.3"]);
        let four = run(Assignor::Uniform, &[ONE; 4], &two, &counts);
        assert_eq!(four.iter().map(BTreeSet::len).collect::<Vec<_>>(), [1, 1, 1, 1]);
        assert!(four[0].is_subset(&two[0]) && four[1].is_subset(&two[1]));
        let five = run(Assignor::Uniform, &[ONE; 5], &four, &counts);
        assert_eq!(five[..4], four[..], "the fifth idles");
        let gone = run(Assignor::Uniform, &[ONE; 3], &four[1..].to_vec(), &counts);
        let kept = gone.iter().zip(&four[1..]).all(|(now, before)| now.is_superset(before));
        assert!(kept, "{:?} became {:?}", show(&four), show(&gone));
    }

    fn moves_needed(previous: &[usize], total: usize) -> usize {
        let (members, before): (usize, usize) = (previous.len(), previous.iter().sum());
        let (floor, more) = (total / members, total % members);
        // The members with most keep the larger shares.
        let mut sorted = previous.to_vec();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let kept: usize =
            sorted.iter().enumerate().map(|(at, &n)| n.min(floor + usize::from(at < more))).sum();
        before - kept
    }

    proptest! {
        #[test]
        fn uniform_with_one_subscription(
            owners in proptest::collection::vec(proptest::option::of(0usize..6), 1..60),
            members in 1usize..6,
        ) {
            let mut previous: Shares = vec![BTreeSet::new(); members];
            for (partition, owner) in owners.iter().enumerate() {
                if let Some(owner) = owner.filter(|&owner| owner < members) {
                    previous[owner].insert(TopicPartition {
                        topic: TopicId::new(1),
                        partition: PartitionIndex::new(partition as u32),
                    });
                }
            }
            let subscriptions: Vec<&[u128]> = vec![&[1]; members];
            let shares = run(Assignor::Uniform, &subscriptions, &previous, &[(1, owners.len() as u32)]);
            let sizes: Vec<usize> = shares.iter().map(BTreeSet::len).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), owners.len());
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{:?}", sizes);
            let moved: usize =
                previous.iter().zip(&shares).map(|(before, now)| before.difference(now).count()).sum();
            let before: Vec<usize> = previous.iter().map(BTreeSet::len).collect();
            prop_assert_eq!(moved, moves_needed(&before, owners.len()));
        }

        #[test]
        fn whoever_subscribes(
            subscriptions in proptest::collection::vec(proptest::collection::btree_set(1u128..5, 0..4), 1..7),
            counts in proptest::collection::btree_map(1u128..5, 1u32..9, 1..5),
            uniform: bool,
        ) {
            let lists: Vec<Vec<u128>> = subscriptions.iter().map(|set| set.iter().copied().collect()).collect();
            let lists: Vec<&[u128]> = lists.iter().map(Vec::as_slice).collect();
            let table: Vec<(u128, u32)> = counts.iter().map(|(&id, &count)| (id, count)).collect();
            let assignor = if uniform { Assignor::Uniform } else { Assignor::Range };
            let shares = run(assignor, &lists, &Vec::new(), &table);
            for (&id, &count) in &counts {
                let wanted = subscriptions.iter().any(|set| set.contains(&id));
                for partition in partitions(TopicId::new(id), count) {
                    let owners: Vec<usize> =
                        (0..shares.len()).filter(|&at| shares[at].contains(&partition)).collect();
                    prop_assert_eq!(owners.len(), usize::from(wanted));
                    prop_assert!(owners.iter().all(|&at| subscriptions[at].contains(&id)));
                }
            }
            // Again, with what came out: nothing moves.
            if uniform {
                prop_assert_eq!(&run(assignor, &lists, &shares, &table), &shares);
            }
        }
    }
}
