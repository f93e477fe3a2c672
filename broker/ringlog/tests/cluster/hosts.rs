//! Brokers on hosts of their own, and what is done to them.
//!
//! Owner: one run; its brokers are killed with it. One fault at a time: it begins at one broker, and ends. Where a run has
//! slow links, clients and the other brokers reach each broker through one of its own.

use crate::changes::Change;
use crate::history::worker::TOPIC;
use crate::network::Network;
use crate::process::{Broker, Serve};
use crate::slow_link::{SlowLink, Slowness};
use fastrand::Rng;
use std::net::SocketAddr;
use std::time::Duration;

const PORT: u16 = 9644;
/// A link under [`Fault::Slow`].
const SLOW: Slowness =
    Slowness { delay: Duration::from_millis(60), jitter: Duration::from_millis(120), rate: 200_000 };

/// What is done to a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing, to compare with.
    None,
    /// `kill -9`, and a start a while later.
    Kill,
    /// The same, of whoever leads the metadata.
    KillController,
    /// An orderly stop, and a start a while later.
    Restart,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// Its link is down.
    Isolate,
    /// Nothing from it gets to anybody.
    Mute,
    /// Nothing from anybody gets to it.
    Deafen,
    /// Nothing from it gets to one other broker.
    Sever,
    /// Its link is slow. Only in runs with slow links.
    Slow,
    /// [`Fault::Kill`] while a partition moves to other brokers.
    KillWhileMoving,
    /// [`Fault::Kill`] while a broker is drained, that one or another.
    KillWhileDraining,
}

/// Those that need no other broker.
pub const OF_ONE: [Fault; 6] =
    [Fault::Kill, Fault::Restart, Fault::Pause, Fault::Isolate, Fault::Mute, Fault::Deafen];
/// Those of a cluster, but for changes of its membership.
pub const OF_SEVERAL: [Fault; 9] = [
    Fault::Kill,
    Fault::Restart,
    Fault::Pause,
    Fault::Isolate,
    Fault::Mute,
    Fault::Deafen,
    Fault::Sever,
    Fault::KillController,
    Fault::None,
];

/// A broker on its host.
struct Host {
    number: u8,
    data: tempfile::TempDir,
    broker: Option<Broker>,
    /// What everybody goes through.
    slow: Option<SlowLink>,
}

/// The brokers of a run.
pub struct Hosts {
    network: Network,
    hosts: Vec<Host>,
    random: Rng,
    partitions: u32,
    change: Option<Change>,
}

impl Hosts {
    /// `brokers` of them, each of whose links is as slow as `slow` says; a topic of so many partitions will be there.
    pub fn start(
        network: Network,
        brokers: u8,
        slow: Option<Slowness>,
        mut random: Rng,
        partitions: u32,
    ) -> Self {
        let hosts = (1..=brokers)
            .map(|number| {
                let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("it can be written to");
                let front = SocketAddr::from((network.front(number), PORT));
                let broker = SocketAddr::from((network.address(number), PORT));
                let slow = slow.map(|slowness| SlowLink::start(front, broker, slowness, random.u64(..)));
                Host { number, data, broker: None, slow }
            })
            .collect();
        let mut hosts = Self { network, hosts, random, partitions, change: None };
        (0..hosts.len()).for_each(|at| hosts.serve(at));
        hosts
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Starts the broker of a host.
    fn serve(&mut self, at: usize) {
        let host = &self.hosts[at];
        let enter = self.network.enter(host.number);
        let words: Vec<&str> = enter.iter().map(String::as_str).collect();
        let listen = SocketAddr::from((self.network.address(host.number), PORT));
        let advertised = host.slow.as_ref().map(|slow| slow.address().ip().to_string());
        let id = (self.hosts.len() > 1).then(|| host.number.to_string());
        let first = SocketAddr::from((self.network.address(1), PORT)).to_string();
        let join = (host.number > 1).then_some(first);
        let broker =
            Serve::new(host.data.path()).shards(2).listen(listen).through(&words).prepared(move |command| {
                let settings = [("--advertise", advertised), ("--broker-id", id), ("--join", join)];
                for (name, value) in settings {
                    if let Some(value) = value {
                        command.args([name, &value]);
                    }
                }
            });
        self.hosts[at].broker = Some(broker.start());
    }

    /// Where clients begin.
    pub fn brokers(&self) -> String {
        let of = |host: &Host| match &host.slow {
            Some(slow) => slow.address().to_string(),
            None => SocketAddr::from((self.network.address(host.number), PORT)).to_string(),
        };
        self.hosts.iter().map(of).collect::<Vec<_>>().join(",")
    }

    /// A fault begins at a broker.
    pub fn begin(&mut self, fault: Fault, at: usize) {
        let number = self.hosts[at].number;
        match fault {
            Fault::None => {}
            Fault::Kill | Fault::KillController => self.kill(at),
            Fault::Restart => drop(self.hosts[at].broker.take().expect("it runs").stop()),
            Fault::Pause => self.signal(at, libc::SIGSTOP),
            Fault::Isolate => self.network.isolate(number),
            Fault::Mute => self.others(number).for_each(|other| self.network.cut(number, other)),
            Fault::Deafen => self.others(number).for_each(|other| self.network.cut(other, number)),
            Fault::Sever => self.network.cut(number, self.next(at)),
            Fault::Slow => self.slow(at).set(Some(SLOW)),
            Fault::KillWhileMoving | Fault::KillWhileDraining => {
                let (brokers, random) = (self.brokers(), &mut self.random);
                let change = match fault {
                    Fault::KillWhileMoving => {
                        Change::move_one(random, self.hosts.len(), TOPIC, self.partitions)
                    }
                    _ => Change::drain_one(random, self.hosts.len()),
                };
                self.change = Some(change.begin(&brokers));
                // How far it gets meanwhile is what is planted.
                std::thread::sleep(Duration::from_millis(self.random.u64(..400)));
                self.kill(at);
            }
        }
    }

    /// It ends.
    pub fn end(&mut self, fault: Fault, at: usize) {
        let number = self.hosts[at].number;
        match fault {
            Fault::None => {}
            Fault::Kill
            | Fault::KillController
            | Fault::Restart
            | Fault::KillWhileMoving
            | Fault::KillWhileDraining => self.serve(at),
            Fault::Pause => self.signal(at, libc::SIGCONT),
            Fault::Isolate => self.network.join(number),
            Fault::Mute => self.others(number).for_each(|other| self.network.mend(number, other)),
            Fault::Deafen => self.others(number).for_each(|other| self.network.mend(other, number)),
            Fault::Sever => self.network.mend(number, self.next(at)),
            Fault::Slow => self.slow(at).set(None),
        }
    }

    /// What was begun beside a fault is done, with all brokers there.
    pub fn finish(&mut self) {
        let brokers = self.brokers();
        if let Some(change) = self.change.take() {
            change.finish(&brokers);
        }
    }

    fn kill(&mut self, at: usize) {
        drop(self.hosts[at].broker.take().expect("it runs").kill());
    }

    fn slow(&self, at: usize) -> &SlowLink {
        self.hosts[at].slow.as_ref().expect("a run with slow links")
    }

    /// All hosts but one, and this process.
    fn others(&self, number: u8) -> impl Iterator<Item = u8> + use<> {
        (0..=self.hosts.len() as u8).filter(move |other| *other != number)
    }

    fn next(&self, at: usize) -> u8 {
        self.hosts[(at + 1) % self.hosts.len()].number
    }

    fn signal(&self, at: usize, signal: i32) {
        let id = self.hosts[at].broker.as_ref().expect("it runs").id();
        // SAFETY: sends a signal to our own child, which has not been waited for; touches no memory.
        assert_eq!(unsafe { libc::kill(id as libc::pid_t, signal) }, 0);
    }
}
