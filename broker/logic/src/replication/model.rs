//! Replication modelled: every order of what can happen in a [`World`] within bounds, explored by a model checker over
//! the real machines and the real metadata. There is no clock: what could be due at some time may happen at any.
//!
//! Bounds are budgets: so many produces, crashes, losses of synced data, fences, and so on, within so many leader
//! epochs. `RINGLOG_MODEL_STATES` sets how many states are explored of each bound, the nearest first, and
//! `RINGLOG_MODEL_DEEP_STATES` how many as deep as the budgets go; without them, enough for a smoke.
//! With `--ignored`, the figures of `docs/TESTING.md`.
//!
//! Where brokers are [`Bound::in_touch`], what is sent arrives, and what it asks for is done, before anything else
//! happens: only syncs, metadata, faults and repair come in every order. Such a bound can be exhausted.
//! Absent on purpose: liveness, which the seeded simulation checks, and clocks.

use super::world::{Action, ID, World, quietly};
use crate::ids::BrokerId;
use stateright::{Checker, Model, Property};
use std::hash::{DefaultHasher, Hash, Hasher};

/// How often what costs states may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Budget {
    produces: u32,
    crashes: u32,
    losses: u32,
    wipes: u32,
    fences: u32,
    reconnects: u32,
    ticks: u32,
    drops: u32,
    reassigns: u32,
    transfers: u32,
    retains: u32,
}

#[derive(Clone, Debug)]
struct State {
    world: World,
    left: Budget,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.world, self.left).hash(state);
    }
}

impl PartialEq for State {
    /// By what the checker compares, too.
    fn eq(&self, other: &Self) -> bool {
        let hash = |state: &Self| {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        hash(self) == hash(other)
    }
}

struct Bound {
    name: &'static str,
    brokers: u32,
    replicas: u32,
    min_in_sync: u32,
    epochs: u32,
    in_touch: bool,
    budget: Budget,
}

const BOUNDS: [Bound; 8] = [
    Bound {
        name: "crashes and fences",
        brokers: 3,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: false,
        budget: Budget { produces: 2, crashes: 2, fences: 2, ticks: 1, ..NONE },
    },
    Bound {
        name: "a disk loses what it had synced",
        brokers: 3,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: false,
        budget: Budget { produces: 2, crashes: 1, losses: 1, fences: 2, ticks: 1, ..NONE },
    },
    Bound {
        name: "a disk is replaced",
        brokers: 3,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: false,
        budget: Budget { produces: 2, crashes: 1, wipes: 1, fences: 1, ticks: 1, ..NONE },
    },
    Bound {
        name: "one minimal set, streams that break, answers that do not come",
        brokers: 3,
        replicas: 3,
        min_in_sync: 1,
        epochs: 3,
        in_touch: false,
        budget: Budget {
            produces: 2,
            crashes: 1,
            fences: 1,
            reconnects: 2,
            ticks: 2,
            drops: 1,
            retains: 1,
            ..NONE
        },
    },
    Bound {
        name: "a reassignment and a transfer",
        brokers: 4,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: false,
        budget: Budget { produces: 1, crashes: 1, fences: 1, ticks: 2, reassigns: 1, transfers: 1, ..NONE },
    },
    Bound {
        name: "a lossy restart and a reassignment",
        brokers: 4,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: false,
        budget: Budget { produces: 2, crashes: 1, losses: 1, fences: 1, ticks: 2, reassigns: 1, ..NONE },
    },
    Bound {
        name: "a lossy restart and a reassignment, in touch",
        brokers: 4,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: true,
        budget: Budget { produces: 1, losses: 1, fences: 1, ticks: 1, reassigns: 1, ..NONE },
    },
    Bound {
        name: "a lossy restart and a reassignment and nothing else, in touch",
        brokers: 4,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: true,
        budget: Budget { produces: 1, losses: 1, reassigns: 1, ..NONE },
    },
];

const NONE: Budget = Budget {
    produces: 0,
    crashes: 0,
    losses: 0,
    wipes: 0,
    fences: 0,
    reconnects: 0,
    ticks: 0,
    drops: 0,
    reassigns: 0,
    transfers: 0,
    retains: 0,
};

impl Model for Bound {
    type State = State;
    type Action = Action;

    /// The cluster as it is made, and as it is when everybody follows and nothing has been produced.
    fn init_states(&self) -> Vec<State> {
        let mut world = World::new(self.brokers, self.replicas, self.min_in_sync, false);
        world.settle();
        vec![State { world, left: self.budget }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let State { world, left } = state;
        if world.broken.is_some() {
            return;
        }
        for ((from, to), link) in &world.links {
            for queue in 0..link.queues.len() {
                if !link.queues[queue].is_empty() {
                    actions.push(Action::Deliver(*from, *to, queue));
                }
            }
        }
        for at in 0..world.commands.len() {
            actions.push(Action::Apply(at, false));
            if left.drops > 0 {
                actions.push(Action::Drop(at));
            }
        }
        let partition = world.image().partition(ID).expect("it is there");
        for broker in 0..self.brokers {
            let node = &world.nodes[broker as usize];
            let known = world.image().broker(BrokerId::new(broker)).expect("all have registered");
            if node.epoch == known.epoch && !known.fenced && left.fences > 0 {
                actions.push(Action::Fence(broker));
            }
            if !node.up {
                if left.wipes > 0 && world.may_lose(broker) {
                    actions.push(Action::Wipe(broker));
                }
                actions.push(Action::Restart(broker));
                continue;
            }
            if node.register {
                actions.push(Action::Register(broker));
            } else if known.fenced {
                actions.push(Action::Unfence(broker));
            }
            if node.seen + 1 < world.images.len() && !(node.register && node.replica.is_none()) {
                actions.push(Action::Follow(broker, false));
            }
            if left.crashes > 0 {
                actions.push(Action::Crash(broker, 0, 0));
                if node.disk.as_ref().is_some_and(|disk| disk.synced < disk.records.len()) {
                    actions.push(Action::Crash(broker, 1, 0));
                }
            }
            let Some(replica) = &node.replica else { continue };
            if !node.tasks.is_empty() {
                actions.push(Action::Perform(broker, 0));
            }
            if replica.durable_end() < replica.log_end() {
                actions.push(Action::Flush(broker, replica.log_end().get()));
            }
            if left.losses > 0 && world.may_lose(broker) && replica.durable_end() > replica.log_start() {
                actions.push(Action::Crash(broker, 0, 1));
            }
            if left.ticks > 0 && replica.next_deadline_ms() != u64::MAX {
                actions.push(Action::Tick(broker));
            }
            if replica.leads().is_some() {
                if left.produces > 0 {
                    actions.push(Action::Produce(broker, world.next_sequence));
                }
                // What has no answer is sent again.
                for sequence in
                    (0..world.next_sequence).filter(|sequence| !world.ledger.acked.contains(sequence))
                {
                    if !node.waiters.iter().any(|(_, waits)| *waits == sequence) {
                        actions.push(Action::Produce(broker, sequence));
                    }
                }
                if left.retains > 0 && replica.log_start() < replica.high_watermark() {
                    actions.push(Action::Retain(broker, replica.high_watermark().get()));
                }
            }
        }
        for a in 0..self.brokers {
            for b in a + 1..self.brokers {
                if left.reconnects > 0 && world.nodes[a as usize].up && world.nodes[b as usize].up {
                    actions.push(Action::Reconnect(a, b));
                }
            }
        }
        if left.reassigns > 0 {
            actions.push(Action::Reassign((1..self.brokers).collect()));
        }
        if left.transfers > 0
            && let Some(to) = partition.in_sync.iter().find(|member| Some(**member) != partition.leader)
        {
            actions.push(Action::Transfer(to.get()));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let left = &mut next.left;
        match &action {
            Action::Produce(_, sequence) if *sequence == last.world.next_sequence => left.produces -= 1,
            Action::Crash(_, _, 0) => left.crashes -= 1,
            Action::Crash(..) => left.losses -= 1,
            Action::Wipe(_) => left.wipes -= 1,
            Action::Fence(_) => left.fences -= 1,
            Action::Reconnect(..) => left.reconnects -= 1,
            Action::Tick(_) => left.ticks -= 1,
            Action::Drop(_) => left.drops -= 1,
            Action::Reassign(_) => left.reassigns -= 1,
            Action::Transfer(_) => left.transfers -= 1,
            Action::Retain(..) => left.retains -= 1,
            _ => {}
        }
        // What nobody else can see in between is one step: what is sent was read, who registered serves.
        let serves = if let Action::Register(broker) = action { Some(broker) } else { None };
        let applied = quietly(|| {
            next.world.apply(action);
            if let Some(broker) = serves {
                next.world.apply(Action::Unfence(broker));
            }
            while let Some(broker) = next.world.reads() {
                next.world.apply(Action::Perform(broker, 0));
            }
            if self.in_touch {
                next.world.settle();
            }
        });
        if let Err(problem) = applied {
            next.world.broken = Some(problem);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("invariants", |_, state: &State| state.world.broken.is_none()),
            // The bounds are worth something only if this is reached.
            Property::sometimes("acknowledged after a change of leader", |_, state: &State| {
                let partition = state.world.image().partition(ID).expect("it is there");
                partition.leader_epoch.get() > 0 && !state.world.ledger.acked.is_empty()
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        let partition = state.world.image().partition(ID).expect("it is there");
        partition.leader_epoch.get() < self.epochs
    }
}

/// Explores every bound that is not exhausted, the nearest states first or the deepest, and says how many there were.
fn explore(
    name: &str,
    states: usize,
    deep: bool,
    meant: fn(&Bound) -> bool,
    exhausted: &mut Vec<&str>,
) -> usize {
    let mut explored = 0;
    for bound in BOUNDS.into_iter().filter(meant) {
        if exhausted.contains(&bound.name) {
            continue;
        }
        let (bound_name, epochs) = (bound.name, bound.epochs);
        let builder = bound.checker().target_state_count(states);
        let (unique, depth, total, broken) =
            if deep { outcome(&builder.spawn_dfs().join()) } else { outcome(&builder.spawn_bfs().join()) };
        explored += unique;
        let all = if total < states { "all" } else { name };
        exhausted.extend((total < states).then_some(bound_name));
        println!("{bound_name}: {all} {unique} states, to depth {depth}, {epochs} leader epochs");
        if let Some(broken) = broken {
            panic!("{bound_name}: {broken}");
        }
    }
    explored
}

fn outcome(checker: &impl Checker<Bound>) -> (usize, usize, usize, Option<String>) {
    let broken = checker.discovery("invariants").map(|path| {
        let broken = path.last_state().world.broken.clone();
        format!("{broken:?} after {:#?}", path.into_actions())
    });
    (checker.unique_state_count(), checker.max_depth(), checker.state_count(), broken)
}

#[test]
fn no_order_of_events_breaks_an_invariant() {
    let states = |text: Option<&str>, default| text.and_then(|text| text.parse().ok()).unwrap_or(default);
    let (near, deep) = (option_env!("RINGLOG_MODEL_STATES"), option_env!("RINGLOG_MODEL_DEEP_STATES"));
    check(states(near, 25_000), states(deep, 40_000), |_| true);
}

#[test]
#[ignore = "a quarter of an hour"]
fn no_order_of_events_breaks_an_invariant_further_on() {
    check(400_000, 1_500_000, |bound| !bound.in_touch);
}

#[test]
#[ignore = "a quarter of an hour"]
fn no_order_of_events_breaks_an_invariant_of_brokers_in_touch() {
    check(1_000, 20_000_000, |bound| bound.in_touch);
}

fn check(near: usize, deep: usize, meant: fn(&Bound) -> bool) {
    let mut exhausted = Vec::new();
    let near = explore("the nearest", near, false, meant, &mut exhausted);
    let deep = explore("the deepest", deep, true, meant, &mut exhausted);
    println!(
        "model of replication: {near} nearest and {deep} deep states explored, 0 violations; exhausted: {exhausted:?}"
    );
}
