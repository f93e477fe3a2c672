//! Replication modelled: orders of what can happen in a [`World`] within bounds, explored by a model checker over the real
//! machines and the real metadata; in the small bound every order there is, in the others as many as are asked for. There
//! is no clock: what could be due at some time may happen at any.
//!
//! Bounds are budgets: so many produces, crashes, losses of synced data, fences, and so on, within so many leader
//! epochs. `RINGLOG_MODEL_STATES` sets how many states are explored of each bound, the nearest first, and
//! `RINGLOG_MODEL_DEEP_STATES` how many as deep as the budgets go; without them, enough for a smoke.
//! With `--ignored`, all states of the small bound. Figures are in `docs/TESTING.md`.
//!
//! Where brokers are [`Bound::in_touch`], what is sent arrives, and what it asks for is done, before anything else
//! happens: only syncs, metadata, faults and repair come in every order. One such bound, [`Bound::is_small`], is
//! exhausted, in seconds; no other is.
//! A search also has [`GOALS`], so that its bounds are not empty: where all is explored it must come by each; else it says by
//! which it came, since the nearest states are near, and the deepest are of one corner.
//! Absent on purpose: liveness and long histories, which the seeded simulation checks, and clocks.

use super::world::{Action, ID, Ledger, Task, World, quietly};
use crate::ids::BrokerId;
use stateright::{Checker, Model, Property};
use std::collections::{BTreeMap, BTreeSet};
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
    /// All its states can be explored, in minutes.
    is_small: bool,
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
        is_small: false,
        budget: Budget { produces: 2, crashes: 2, fences: 2, ticks: 1, ..NONE },
    },
    Bound {
        name: "a disk loses what it had synced",
        brokers: 3,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: false,
        is_small: false,
        budget: Budget { produces: 2, crashes: 1, losses: 1, fences: 2, ticks: 1, ..NONE },
    },
    Bound {
        name: "a disk is replaced",
        brokers: 3,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: false,
        is_small: false,
        budget: Budget { produces: 2, crashes: 1, wipes: 1, fences: 1, ticks: 1, ..NONE },
    },
    Bound {
        name: "one minimal set, streams that break, answers that do not come",
        brokers: 3,
        replicas: 3,
        min_in_sync: 1,
        epochs: 3,
        in_touch: false,
        is_small: false,
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
        is_small: false,
        budget: Budget { produces: 1, crashes: 1, fences: 1, ticks: 2, reassigns: 1, transfers: 1, ..NONE },
    },
    Bound {
        name: "a lossy restart and a reassignment",
        brokers: 4,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: false,
        is_small: false,
        budget: Budget { produces: 2, crashes: 1, losses: 1, fences: 1, ticks: 2, reassigns: 1, ..NONE },
    },
    Bound {
        name: "a lossy restart and a reassignment, in touch",
        brokers: 4,
        replicas: 3,
        min_in_sync: 2,
        epochs: 4,
        in_touch: true,
        is_small: false,
        budget: Budget { produces: 1, losses: 1, fences: 1, ticks: 1, reassigns: 1, ..NONE },
    },
    Bound {
        name: "two replicas of three brokers, a lossy restart and a replacement, in touch",
        brokers: 3,
        replicas: 2,
        min_in_sync: 2,
        epochs: 4,
        in_touch: true,
        is_small: true,
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
        let goals = GOALS.iter().map(|goal| Property::sometimes(goal.name, goal.is_met));
        std::iter::once(Property::always("invariants", |_, state: &State| state.world.broken.is_none()))
            .chain(goals)
            .collect()
    }

    fn within_boundary(&self, state: &State) -> bool {
        let partition = state.world.image().partition(ID).expect("it is there");
        partition.leader_epoch.get() < self.epochs
    }
}

/// What must happen in some state, or the bounds would be worth little.
struct Goal {
    name: &'static str,
    /// Whether the budgets of a bound can lead there, and it shows.
    fits: fn(&Bound) -> bool,
    is_met: fn(&Bound, &State) -> bool,
}

const GOALS: [Goal; 6] = [
    Goal {
        name: "acknowledged by a later leader",
        fits: Bound::changes_leaders,
        is_met: |_, state| {
            let Ledger { committed, acked, .. } = &state.world.ledger;
            let mut later = committed.iter().filter(|record| record.epoch.get() > 0);
            later.any(|record| acked.contains(&record.sequence))
        },
    },
    Goal {
        name: "acknowledged by one leader, shown by the next",
        fits: Bound::changes_leaders,
        is_met: |_, state| {
            let Ledger { committed, acked, led, .. } = &state.world.ledger;
            let shows = |broker: usize, offset: usize| {
                let replica = state.world.nodes[broker].replica.as_ref();
                let Some((replica, epoch)) = replica.and_then(|replica| Some((replica, replica.leads()?)))
                else {
                    return false;
                };
                let record = committed[offset];
                replica.is_applied()
                    && replica.high_watermark().get() > offset as u64
                    && record.epoch < epoch
                    && led.get(&record.epoch).is_some_and(|before| before.get() as usize != broker)
                    && acked.contains(&record.sequence)
            };
            (0..state.world.nodes.len())
                .any(|broker| (0..committed.len()).any(|offset| shows(broker, offset)))
        },
    },
    Goal {
        name: "a tail is cut that others do not have",
        // In touch it is cut before anybody looks.
        fits: |bound| bound.changes_leaders() && !bound.in_touch,
        is_met: |_, state| {
            state.world.nodes.iter().any(|node| {
                let end = node.disk.as_ref().map_or(0, |disk| disk.records.len() as u64);
                node.tasks.iter().any(|task| matches!(task, Task::Truncate(to) if to.get() < end))
            })
        },
    },
    Goal {
        name: "what was synced is lost",
        fits: |bound| bound.budget.losses > 0,
        is_met: |_, state| {
            state.world.nodes.iter().any(|node| node.up && node.lost && node.replica.is_some())
        },
    },
    Goal {
        name: "what was lost is there again",
        fits: |bound| bound.budget.losses + bound.budget.wipes > 0,
        is_met: |bound, state| {
            state.left.losses + state.left.wipes < bound.budget.losses + bound.budget.wipes
                && !state.world.ledger.acked.is_empty()
                && state.world.nodes.iter().all(|node| node.up && !node.lost)
        },
    },
    Goal {
        name: "a reassignment is done",
        fits: |bound| bound.budget.reassigns > 0,
        is_met: |bound, state| {
            let partition = state.world.image().partition(ID).expect("it is there");
            state.left.reassigns < bound.budget.reassigns
                && partition.adding.is_empty()
                && partition.removing.is_empty()
                && partition.replicas.iter().all(|replica| replica.broker.get() > 0)
        },
    },
];

impl Bound {
    fn changes_leaders(&self) -> bool {
        let Budget { crashes, losses, fences, transfers, reassigns, .. } = self.budget;
        crashes + losses + fences + transfers + reassigns > 0
    }
}

/// What was found within the bounds, over all searches.
#[derive(Default)]
struct Found {
    exhausted: BTreeSet<&'static str>,
    met: BTreeMap<&'static str, BTreeSet<&'static str>>,
}

/// Explores every bound that is not exhausted, the nearest states first or the deepest, and says how many there were.
fn explore(name: &str, states: usize, deep: bool, meant: fn(&Bound) -> bool, found: &mut Found) -> usize {
    let mut explored = 0;
    for bound in BOUNDS.into_iter().filter(meant) {
        if found.exhausted.contains(&bound.name) {
            continue;
        }
        let (bound_name, epochs) = (bound.name, bound.epochs);
        let builder = bound.checker().target_state_count(states);
        let outcome = if deep {
            Outcome::of(&builder.spawn_dfs().join())
        } else {
            Outcome::of(&builder.spawn_bfs().join())
        };
        let Outcome { unique, depth, total, broken, met } = outcome;
        explored += unique;
        let all = if total < states { "all" } else { name };
        if total < states {
            found.exhausted.insert(bound_name);
        }
        println!(
            "{bound_name}: {all} {unique} states, to depth {depth}, {epochs} leader epochs; met: {met:?}"
        );
        found.met.entry(bound_name).or_default().extend(met);
        if let Some(broken) = broken {
            panic!("{bound_name}: {broken}");
        }
    }
    explored
}

struct Outcome {
    unique: usize,
    depth: usize,
    total: usize,
    broken: Option<String>,
    met: BTreeSet<&'static str>,
}

impl Outcome {
    fn of(checker: &impl Checker<Bound>) -> Self {
        let mut discovered = checker.discoveries();
        let broken = discovered.remove("invariants").map(|path| {
            let broken = path.last_state().world.broken.clone();
            format!("{broken:?} after {:#?}", path.into_actions())
        });
        Self {
            unique: checker.unique_state_count(),
            depth: checker.max_depth(),
            total: checker.state_count(),
            broken,
            met: discovered.into_keys().collect(),
        }
    }
}

#[test]
fn no_order_of_events_breaks_an_invariant() {
    let states = |text: Option<&str>, default| text.and_then(|text| text.parse().ok()).unwrap_or(default);
    let (near, deep) = (option_env!("RINGLOG_MODEL_STATES"), option_env!("RINGLOG_MODEL_DEEP_STATES"));
    check(states(near, 25_000), states(deep, 40_000), |_| true);
}

#[test]
#[ignore = "minutes"]
fn no_order_of_events_at_all_breaks_an_invariant_of_a_small_cluster() {
    let meant = |bound: &Bound| bound.is_small;
    let found = check(1_000, usize::MAX, meant);
    found.demand(meant);
    let small: BTreeSet<_> = BOUNDS.iter().filter(|bound| bound.is_small).map(|bound| bound.name).collect();
    assert_eq!(found.exhausted, small);
}

fn check(near: usize, deep: usize, meant: fn(&Bound) -> bool) -> Found {
    let mut found = Found::default();
    let near = explore("the nearest", near, false, meant, &mut found);
    let deep = explore("the deepest", deep, true, meant, &mut found);
    println!(
        "model of replication: {near} nearest and {deep} deep states explored, 0 violations; exhausted: {:?}",
        found.exhausted
    );
    found
}

impl Found {
    /// Every goal that a bound can lead to must have been met in it.
    fn demand(&self, meant: fn(&Bound) -> bool) {
        for bound in BOUNDS.into_iter().filter(meant) {
            let met = self.met.get(bound.name).cloned().unwrap_or_default();
            let missing: Vec<_> =
                GOALS.iter().filter(|goal| (goal.fits)(&bound) && !met.contains(goal.name)).collect();
            let names: Vec<_> = missing.iter().map(|goal| goal.name).collect();
            assert!(names.is_empty(), "{}: never met: {names:?}", bound.name);
        }
    }
}
