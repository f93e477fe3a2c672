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
use std::ffi::OsString;
use std::fmt;
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
    /// [`Fault::Kill`] while something of the cluster changes.
    KillDuring(Changing, Whom),
}

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Changing {
    /// A partition moves to other brokers.
    Move,
    /// A broker is drained. Afterwards it takes part again.
    Drain,
    /// A broker that was drained and has stopped is removed. Afterwards it joins with an empty disk.
    Remove,
    /// A broker that was removed joins with an empty disk.
    Join,
}

/// Who is killed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whom {
    /// One that does not lead the metadata, and is not the one that is drained, removed or joins.
    Another,
    /// Whoever leads the metadata.
    Controller,
    /// The broker that is drained or joins.
    Itself,
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
/// Those of a cluster that has a broker to spare.
pub const OF_CHANGES: [Fault; 10] = [
    Fault::KillDuring(Changing::Move, Whom::Another),
    Fault::KillDuring(Changing::Move, Whom::Controller),
    Fault::KillDuring(Changing::Drain, Whom::Another),
    Fault::KillDuring(Changing::Drain, Whom::Controller),
    Fault::KillDuring(Changing::Drain, Whom::Itself),
    Fault::KillDuring(Changing::Remove, Whom::Another),
    Fault::KillDuring(Changing::Remove, Whom::Controller),
    Fault::KillDuring(Changing::Join, Whom::Another),
    Fault::KillDuring(Changing::Join, Whom::Controller),
    Fault::KillDuring(Changing::Join, Whom::Itself),
];

/// As the table of docs/TESTING.md names it.
impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::Kill => "`kill -9`, start, of one that does not lead the metadata",
            Self::KillController => "`kill -9`, start, of the one that leads the metadata",
            Self::Restart => "stop in order, start",
            Self::Pause => "SIGSTOP",
            Self::Isolate => "link down",
            Self::Mute => "nothing from it gets anywhere",
            Self::Deafen => "nothing gets to it",
            Self::Sever => "nothing from it gets to one other",
            Self::Slow => "slow link (60 to 180 ms, 200 kB/s)",
            Self::KillDuring(changing, whom) => return write!(formatter, "`kill -9` of {whom}, {changing}"),
        })
    }
}

impl fmt::Display for Changing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Move => "while a partition moves",
            Self::Drain => "while a broker is drained",
            Self::Remove => "while a broker is removed",
            Self::Join => "while a broker joins",
        })
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Another => "another that does not lead the metadata",
            Self::Controller => "the one that leads the metadata",
            Self::Itself => "that broker itself",
        })
    }
}

/// A broker on its host.
struct Host {
    number: u8,
    data: tempfile::TempDir,
    broker: Option<Broker>,
    /// What everybody goes through.
    slow: Option<SlowLink>,
}

/// The build that a host's broker has where two are mixed: `RINGLOG_OTHER_BINARY` names that of every second host.
fn other_build(number: u8) -> Option<OsString> {
    std::env::var_os("RINGLOG_OTHER_BINARY").filter(|_| number.is_multiple_of(2))
}

/// The brokers of a run.
pub struct Hosts {
    network: Network,
    hosts: Vec<Host>,
    random: Rng,
    partitions: u32,
    change: Option<Change>,
    /// The host whose broker is drained, removed or joins.
    changing: Option<usize>,
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
        let mut hosts = Self { network, hosts, random, partitions, change: None, changing: None };
        (0..hosts.len()).for_each(|at| hosts.serve(at));
        hosts
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Starts the broker of a host, and waits until it serves.
    fn serve(&mut self, at: usize) {
        let mut broker = self.spawn(at);
        broker.until_ready().expect("it serves");
        self.hosts[at].broker = Some(broker);
    }

    /// Starts the broker of a host.
    fn spawn(&self, at: usize) -> Broker {
        let host = &self.hosts[at];
        let enter = self.network.enter(host.number);
        let words: Vec<&str> = enter.iter().map(String::as_str).collect();
        let listen = SocketAddr::from((self.network.address(host.number), PORT));
        let advertised = host.slow.as_ref().map(|slow| slow.address().ip().to_string());
        let id = (self.hosts.len() > 1).then(|| host.number.to_string());
        // Any broker that is there will do; the first of all is alone.
        let other = self.hosts.iter().find(|other| other.number != host.number && other.broker.is_some());
        let join =
            other.map(|other| SocketAddr::from((self.network.address(other.number), PORT)).to_string());
        let mut serve = Serve::new(host.data.path()).shards(2).listen(listen).through(&words);
        if let Some(other) = other_build(host.number) {
            serve.binary = other;
        }
        serve
            .prepared(move |command| {
                let settings = [("--advertise", advertised), ("--broker-id", id), ("--join", join)];
                for (name, value) in settings {
                    if let Some(value) = value {
                        command.args([name, &value]);
                    }
                }
            })
            .spawn()
    }

    /// Where clients begin.
    pub fn brokers(&self) -> String {
        let of = |host: &Host| match &host.slow {
            Some(slow) => slow.address().to_string(),
            None => SocketAddr::from((self.network.address(host.number), PORT)).to_string(),
        };
        self.hosts.iter().map(of).collect::<Vec<_>>().join(",")
    }

    /// What a fault at a broker needs before it begins. The metadata goes on being led by the broker of `leads`.
    pub fn prepare(&mut self, fault: Fault, at: usize, leads: usize) {
        let Fault::KillDuring(changing, whom) = fault else { return };
        if changing == Changing::Move {
            return;
        }
        let others: Vec<usize> = (0..self.hosts.len()).filter(|one| ![at, leads].contains(one)).collect();
        let one = if whom == Whom::Itself { at } else { others[self.random.usize(..others.len())] };
        self.changing = Some(one);
        if changing == Changing::Drain {
            return;
        }
        self.done(&["drain"], one);
        drop(self.hosts[one].broker.take().expect("it runs").stop());
        if changing == Changing::Join {
            self.done(&["remove"], one);
            self.replace_disk(one);
        }
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
            Fault::KillDuring(changing, _) => {
                self.begin_changing(changing);
                // How far it gets meanwhile is what is planted.
                std::thread::sleep(Duration::from_millis(self.random.u64(..400)));
                self.kill(at);
            }
        }
    }

    fn begin_changing(&mut self, changing: Changing) {
        let brokers = self.brokers();
        let one = self.changing;
        let number = |one: Option<usize>| self.hosts[one.expect("it was prepared")].number;
        let change = match changing {
            Changing::Move => Change::move_one(&mut self.random, self.hosts.len(), TOPIC, self.partitions),
            Changing::Drain => Change::of_broker(&["drain", "undrain", "add"], number(one)),
            Changing::Remove => Change::of_broker(&["remove"], number(one)),
            Changing::Join => {
                let one = one.expect("it was prepared");
                self.hosts[one].broker = Some(self.spawn(one));
                return;
            }
        };
        self.change = Some(change.begin(&brokers));
    }

    /// It ends.
    pub fn end(&mut self, fault: Fault, at: usize) {
        let number = self.hosts[at].number;
        match fault {
            Fault::None => {}
            Fault::Kill | Fault::KillController | Fault::Restart | Fault::KillDuring(..) => self.serve(at),
            Fault::Pause => self.signal(at, libc::SIGCONT),
            Fault::Isolate => self.network.join(number),
            Fault::Mute => self.others(number).for_each(|other| self.network.mend(number, other)),
            Fault::Deafen => self.others(number).for_each(|other| self.network.mend(other, number)),
            Fault::Sever => self.network.mend(number, self.next(at)),
            Fault::Slow => self.slow(at).set(None),
        }
    }

    /// What was begun beside a fault is done, and the cluster has all its brokers.
    pub fn finish(&mut self, fault: Fault, at: usize) {
        let brokers = self.brokers();
        if let Some(change) = self.change.take() {
            change.finish(&brokers);
        }
        let Some(one) = self.changing.take() else { return };
        match fault {
            Fault::KillDuring(Changing::Remove, _) => {
                self.replace_disk(one);
                self.serve(one);
            }
            Fault::KillDuring(Changing::Join, _) if one != at => {
                let broker = self.hosts[one].broker.as_mut();
                broker.expect("it was started").until_ready().expect("it joins");
            }
            Fault::KillDuring(Changing::Join, _) => {}
            _ => return,
        }
        self.done(&["add"], one);
    }

    /// Does all that to a broker.
    fn done(&self, what: &[&str], at: usize) {
        Change::of_broker(what, self.hosts[at].number).finish(&self.brokers());
    }

    /// An empty disk takes the place of that of a broker that does not run.
    fn replace_disk(&self, at: usize) {
        assert!(self.hosts[at].broker.is_none(), "it runs");
        std::fs::remove_dir_all(self.hosts[at].data.path()).expect("nobody uses it");
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
