//! Clients, a broker and the network between them, driven by dice; and the judge.
//!
//! A connection carries batches in order. When it breaks, its client hears nothing more of what was on it; the
//! broker may still read what was sent, a part of it, later than what came over the next connection. A crash of the
//! broker ends all connections, and with them what was on them.

use super::broker::Broker;
use super::client::{Client, Settled};
use super::{Answer, Dice, Mutant, Sent};
use std::collections::{BTreeMap, VecDeque};

const STEPS: u64 = 400;
/// Longer than a seed lasts.
const PATIENT: u32 = 1_000_000;
/// Steps without faults in which everything must end.
const QUIET_STEPS: u64 = 20_000;

/// Which client, over which connection, which of its batches.
type Address = (usize, u64, u64);

struct Connection {
    number: u64,
    to_broker: VecDeque<Sent>,
    to_client: VecDeque<(u64, Answer)>,
    waiting: Vec<u64>,
}

/// What happened in one seed, or several.
#[derive(Default)]
pub struct Outcome {
    steps: u64,
    acknowledged: u64,
    duplicates: u64,
    gaps: u64,
    epochs: u64,
    given_up: u64,
    broken: u64,
    late: u64,
    crashes: u64,
    pub violations: Vec<String>,
}

impl Outcome {
    pub fn add(&mut self, other: Outcome) {
        self.steps += other.steps;
        self.acknowledged += other.acknowledged;
        self.duplicates += other.duplicates;
        self.gaps += other.gaps;
        self.epochs += other.epochs;
        self.given_up += other.given_up;
        self.broken += other.broken;
        self.late += other.late;
        self.crashes += other.crashes;
        self.violations.extend(other.violations);
    }

    /// What must have happened for the rest to mean anything.
    pub fn events(&self) -> [(&'static str, u64); 8] {
        [
            ("batches acknowledged", self.acknowledged),
            ("duplicates answered", self.duplicates),
            ("gaps found", self.gaps),
            ("epochs begun", self.epochs),
            ("batches given up", self.given_up),
            ("connections broken", self.broken),
            ("batches read late", self.late),
            ("crashes", self.crashes),
        ]
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} steps", self.steps)?;
        for (what, happened) in self.events() {
            write!(f, ", {happened} {what}")?;
        }
        write!(f, ", {} violations", self.violations.len())
    }
}

struct World {
    dice: Dice,
    broker: Broker<Address>,
    clients: Vec<Client>,
    connections: Vec<Connection>,
    /// What was sent on connections that broke, per connection.
    broken: Vec<VecDeque<Sent>>,
    next_connection: u64,
    outcome: Outcome,
    /// What the broker refuses for reasons of its own, of a hundred.
    busy_percent: u64,
    /// Nothing is given up because time is up.
    patient: bool,
}

/// Runs one seed.
pub fn run(seed: u64, mutant: Mutant) -> Outcome {
    let mut dice = Dice::new(seed);
    let clients = 1 + dice.below(3) as usize;
    let (break_weight, crash_weight) = (dice.below(4), dice.below(3));
    let busy_percent = [0, 3, 15][dice.below(3) as usize];
    let patience = [2, 6, PATIENT][dice.below(3) as usize];
    let connection = |number| Connection {
        number,
        to_broker: VecDeque::new(),
        to_client: VecDeque::new(),
        waiting: Vec::new(),
    };
    let mut world = World {
        dice,
        broker: Broker::new(mutant),
        clients: (0..clients).map(|id| Client::new(id, mutant)).collect(),
        connections: (0..clients as u64).map(connection).collect(),
        broken: Vec::new(),
        next_connection: clients as u64,
        outcome: Outcome::default(),
        busy_percent,
        patient: patience == PATIENT,
    };
    for _ in 0..STEPS {
        world.outcome.steps += 1;
        let client = world.dice.below(clients as u64) as usize;
        match world.dice.below(100) {
            0..15 if world.clients[client].unsettled() < 12 => {
                let records = 1 + world.dice.below(3);
                world.clients[client].append(records, patience);
            }
            0..35 => world.send(client),
            35..60 => world.reach_broker(client),
            60..78 => world.reach_client(client),
            78..86 => world.write(),
            86..88 => world.broker.summarise(),
            88..91 => world.read_late(),
            91..95 if world.dice.below(4) < break_weight => world.break_connection(client),
            95..97 if world.dice.below(12) < crash_weight => world.crash(),
            _ => world.clients.iter_mut().for_each(Client::pass),
        }
    }
    world.end()
}

impl World {
    fn send(&mut self, client: usize) {
        while let Some(sent) = self.clients[client].send() {
            self.connections[client].waiting.push(sent.number);
            self.connections[client].to_broker.push_back(sent);
        }
    }

    fn reach_broker(&mut self, client: usize) {
        let Some(sent) = self.connections[client].to_broker.pop_front() else { return };
        let address = (client, self.connections[client].number, sent.number);
        let answered = match self.dice.chance(self.busy_percent) {
            true => Some((address, Answer::Busy)),
            false => self.broker.produce(&sent, address),
        };
        if let Some((address, answer)) = answered {
            self.answer(address, answer);
        }
    }

    fn answer(&mut self, (client, connection, number): Address, answer: Answer) {
        self.outcome.gaps += u64::from(answer == Answer::OutOfOrder);
        let open = &mut self.connections[client];
        // Nobody listens on a broken one.
        if open.number == connection {
            open.to_client.push_back((number, answer));
        }
    }

    fn reach_client(&mut self, client: usize) {
        let open = &mut self.connections[client];
        let Some((number, answer)) = open.to_client.pop_front() else { return };
        open.waiting.retain(|waiting| *waiting != number);
        if let Answer::Appended { duplicate: true, .. } = answer {
            self.outcome.duplicates += 1;
        }
        self.clients[client].receive(number, Some(answer));
    }

    fn write(&mut self) {
        for waiter in self.broker.write(&mut self.dice) {
            self.answer(waiter.address, waiter.answer);
        }
    }

    fn break_connection(&mut self, client: usize) {
        self.outcome.broken += 1;
        let mut left = self.hang_up(client);
        // The rest never arrives.
        let arrives = self.dice.below(left.len() as u64 + 1) as usize;
        left.truncate(arrives);
        self.broken.push(left);
    }

    /// The client's end of its connection: a new one, and no word of what was on the last.
    fn hang_up(&mut self, client: usize) -> VecDeque<Sent> {
        let open = &mut self.connections[client];
        open.number = self.next_connection;
        self.next_connection += 1;
        open.to_client.clear();
        let waiting = std::mem::take(&mut open.waiting);
        let left = std::mem::take(&mut open.to_broker);
        for number in waiting {
            self.clients[client].receive(number, None);
        }
        left
    }

    /// The broker reads on from a connection that its client has given up.
    fn read_late(&mut self) {
        self.broken.retain(|left| !left.is_empty());
        if self.broken.is_empty() {
            return;
        }
        let at = self.dice.below(self.broken.len() as u64) as usize;
        let Some(sent) = self.broken[at].pop_front() else { return };
        self.outcome.late += 1;
        // Nobody hears the answer.
        let _ = self.broker.produce(&sent, (sent.client, u64::MAX, sent.number));
    }

    fn crash(&mut self) {
        self.outcome.crashes += 1;
        self.broken.clear();
        self.broker.crash(&mut self.dice);
        for client in 0..self.clients.len() {
            self.hang_up(client);
        }
        // As `begin_service` does.
        self.broker.summarise();
    }

    /// Faults end, everything settles, the judge looks.
    fn end(mut self) -> Outcome {
        self.busy_percent = 0;
        for _ in 0..QUIET_STEPS {
            if self.clients.iter().all(|client| client.unsettled() == 0) {
                break;
            }
            self.outcome.steps += 1;
            for client in 0..self.clients.len() {
                self.send(client);
                self.reach_broker(client);
                self.reach_client(client);
            }
            self.write();
            self.read_late();
        }
        while self.broken.iter().any(|left| !left.is_empty()) {
            self.read_late();
        }
        self.judge();
        self.outcome
    }

    fn judge(&mut self) {
        let mut wrong = Vec::new();
        // Per client: record → its offset.
        let mut there: Vec<BTreeMap<u64, u64>> = vec![BTreeMap::new(); self.clients.len()];
        let mut last: Vec<Option<u64>> = vec![None; self.clients.len()];
        for stored in &self.broker.log {
            let client = stored.sent.client;
            for (at, record) in stored.sent.records.iter().enumerate() {
                if there[client].insert(*record, stored.base + at as u64).is_some() {
                    wrong.push(format!("record {record} of client {client} is there twice"));
                } else if last[client].is_some_and(|last| last > *record) {
                    wrong.push(format!("record {record} of client {client} comes late"));
                }
                last[client] = last[client].max(Some(*record));
            }
        }
        for (id, client) in self.clients.iter().enumerate() {
            if client.unsettled() > 0 {
                wrong.push(format!("{} batches of client {id} do not end", client.unsettled()));
            }
            self.outcome.epochs += client.epochs_begun;
            for settled in &client.settled {
                match settled {
                    Settled::Acknowledged { records, base } => {
                        self.outcome.acknowledged += 1;
                        for (at, record) in records.iter().enumerate() {
                            let (told, found) = (base + at as u64, there[id].get(record));
                            if found != Some(&told) {
                                wrong.push(format!(
                                    "record {record} of client {id}: told {told}, is at {found:?}"
                                ));
                            }
                        }
                    }
                    Settled::Failed { records, unknown } => {
                        self.outcome.given_up += 1;
                        if self.patient {
                            wrong.push(format!(
                                "records {records:?} of client {id} are given up with time left"
                            ));
                        }
                        let found = records.iter().find(|record| there[id].contains_key(record));
                        if let (Some(record), false) = (found, unknown) {
                            wrong.push(format!("record {record} of client {id} was said not to be there"));
                        }
                    }
                }
            }
        }
        self.outcome.violations = wrong;
    }
}
