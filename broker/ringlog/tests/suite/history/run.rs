//! One history: producers, two groups, and a plan of faults by seed; then peace, and the verdict.

use super::checker::{Anomaly, Event, History, Verdict, check};
use super::worker::{self, TOPIC};
use crate::process::{Broker, directory};
use fastrand::Rng;
use ringlog_client::{
    Client, ClientConfig, ConsumerConfig, NewTopic, ProducerConfig, ProducerRecord, StartFrom,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 4;
const PRODUCERS: usize = 2;
/// Members of the group that has all the faults, at most.
const MEMBERS_MAX: usize = 5;
/// The group with the faults, and one whose only member has none but those of the broker.
const GROUPS: [&str; 2] = ["busy", "calm"];
/// Longer than healing takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Events of one member as they come.
#[derive(Default)]
struct Heard {
    events: Mutex<Vec<Event>>,
    changed: Condvar,
}

struct Member {
    child: Child,
    group: &'static str,
    heard: Arc<Heard>,
    reader: Option<JoinHandle<()>>,
    is_running: bool,
    is_paused: bool,
}

impl Member {
    fn start(address: &str, group: &'static str, auto: bool, session: Duration) -> Self {
        let mut child = worker::start(address, group, auto, session);
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let heard = Arc::new(Heard::default());
        let to = heard.clone();
        let reader = std::thread::spawn(move || {
            let (mut output, mut line) = (output, Vec::new());
            while output.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                // The last line of one that was killed may be cut.
                let whole = line.strip_suffix(b"\n").map(String::from_utf8_lossy);
                if let Some(event) = whole.and_then(|line| worker::parse(&line)) {
                    to.events.lock().unwrap().push(event);
                    to.changed.notify_all();
                }
                line.clear();
            }
        });
        Self { child, group, heard, reader: Some(reader), is_running: true, is_paused: false }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the process is ours and not waited for yet, so that its id is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    fn pause(&mut self, paused: bool) {
        if self.is_paused != paused {
            self.signal(if paused { libc::SIGSTOP } else { libc::SIGCONT });
            self.is_paused = paused;
        }
    }

    /// Waits for its end; whether it was in order.
    fn wait(&mut self) -> bool {
        let ended = self.child.wait().expect("it is our child").success();
        self.is_running = false;
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading lines does not panic");
        }
        ended
    }

    fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }

    /// Its standard input ends: it closes in order.
    fn close(&mut self) -> bool {
        self.pause(false);
        drop(self.child.stdin.take());
        self.wait()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Already gone after the run.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a run was, for its line in the output.
#[derive(Default, Debug)]
struct Faults {
    kills: usize,
    pauses: usize,
    joins: usize,
    leaves: usize,
    restarts: usize,
}

struct Run {
    data: tempfile::TempDir,
    broker: Option<Broker>,
    address: String,
    members: Vec<Member>,
    auto: bool,
    session: Duration,
    faults: Faults,
}

impl Run {
    fn new(auto: bool, session: Duration) -> Self {
        let data = directory();
        let broker = Broker::start(data.path());
        let address = broker.address.clone();
        let faults = Faults::default();
        Self { data, broker: Some(broker), address, members: Vec::new(), auto, session, faults }
    }

    fn add(&mut self, group: &'static str) {
        self.members.push(Member::start(&self.address, group, self.auto, self.session));
    }

    fn restart(&mut self) {
        self.broker.take().expect("it runs").stop(libc::SIGKILL);
        let line = ["--shards", "2", "--cores", "none", "--listen", &self.address];
        self.broker = Some(Broker::start_with(self.data.path(), &line));
        self.faults.restarts += 1;
    }

    /// Members of the busy group that run.
    fn busy(&self) -> Vec<usize> {
        let running = self.members.iter().enumerate();
        running.filter(|(_, one)| one.group == GROUPS[0] && one.is_running).map(|(at, _)| at).collect()
    }

    /// One fault.
    fn disturb(&mut self, random: &mut Rng) {
        let busy = self.busy();
        let one = busy[random.usize(..busy.len())];
        match random.u32(..10) {
            0 | 1 if busy.len() > 1 => {
                self.members[one].kill();
                self.faults.kills += 1;
            }
            2 | 3 => {
                // Some pauses outlast the session, some do not.
                self.members[one].pause(true);
                self.faults.pauses += 1;
            }
            4 if busy.len() > 1 => {
                assert!(self.members[one].close(), "a member did not close in order");
                self.faults.leaves += 1;
            }
            5 => self.restart(),
            6..=8 if busy.len() < MEMBERS_MAX => {
                self.add(GROUPS[0]);
                self.faults.joins += 1;
            }
            _ => {
                for at in busy {
                    self.members[at].pause(false);
                }
            }
        }
    }

    /// Waits until each group has read all of `log`.
    fn wait_for_all(&self, log: &[Vec<String>]) {
        let until = Instant::now() + LIMIT;
        let whole: BTreeSet<(u32, u64)> = log
            .iter()
            .enumerate()
            .flat_map(|(partition, log)| (0..log.len() as u64).map(move |offset| (partition as u32, offset)))
            .collect();
        for group in GROUPS {
            loop {
                let mut missing = whole.clone();
                for member in self.members.iter().filter(|member| member.group == group) {
                    for event in member.heard.events.lock().unwrap().iter() {
                        if let Event::Polled { partition, offset, .. } = event {
                            missing.remove(&(*partition, *offset));
                        }
                    }
                }
                if missing.is_empty() {
                    break;
                }
                // What is still missing then is an anomaly, which the checker names.
                if Instant::now() > until {
                    return;
                }
                let running = self.members.iter().find(|member| member.group == group && member.is_running);
                let heard = &running.expect("somebody is left to read").heard;
                let events = heard.events.lock().unwrap();
                drop(heard.changed.wait_timeout(events, Duration::from_millis(100)).unwrap());
            }
        }
    }
}

type Acknowledged = Vec<(u32, u64, String)>;

/// Produces until told to stop; what was acknowledged.
fn produce(address: String, name: usize, stop: Arc<AtomicBool>, sent: Arc<AtomicUsize>) -> Acknowledged {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(ClientConfig::new(address).unwrap()).await.unwrap();
        let producer = client.producer(ProducerConfig::default());
        let mut random = Rng::with_seed(name as u64);
        let mut acknowledged = Vec::new();
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut pending = Vec::new();
            for _ in 0..random.usize(1..40) {
                let value = format!("p{name}-{number}");
                number += 1;
                let record = ProducerRecord::new(TOPIC, value.clone());
                let record = record.to_partition(random.u32(..PARTITIONS));
                // A refusal is no acknowledgement; the record may be there or not.
                if let Ok(delivery) = producer.send(record).await {
                    pending.push((value, delivery));
                }
            }
            for (value, delivery) in pending {
                if let Ok(receipt) = delivery.await {
                    acknowledged.push((receipt.partition, receipt.offset, value));
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Only the pace of the load.
            tokio::time::sleep(Duration::from_millis(random.u64(1..20))).await;
        }
        producer.close().await.unwrap();
        acknowledged
    })
}

/// The whole log, by partition.
async fn read_log(client: &Client) -> Vec<Vec<String>> {
    let partitions: Vec<_> =
        (0..PARTITIONS).map(|partition| (partition, ringlog_client::OffsetSpec::Latest)).collect();
    let ends = client.admin().list_offsets(TOPIC, &partitions).await.unwrap();
    let mut log = vec![Vec::new(); PARTITIONS as usize];
    for end in ends.iter().filter(|end| end.offset > 0) {
        let mut consumer = client.consumer(ConsumerConfig::default());
        consumer.assign(TOPIC, &[(end.partition, StartFrom::Earliest)]).await.unwrap();
        let log = &mut log[end.partition as usize];
        while (log.len() as u64) < end.offset {
            let record = consumer.next().await.expect("it is assigned").unwrap();
            assert_eq!(record.offset, log.len() as u64, "offsets follow each other");
            log.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
        }
    }
    log
}

/// What a group has committed.
async fn committed(client: &Client, group: &str) -> BTreeMap<u32, u64> {
    let described = client.admin().describe_group(group).await.unwrap();
    described.offsets.iter().filter_map(|one| Some((one.partition, one.offset?))).collect()
}

/// A history with faults for `length`, or one without any.
fn history(seed: u64, length: Duration, with_faults: bool) -> (Verdict, Faults) {
    let mut random = Rng::with_seed(seed);
    // Without faults nobody is to be put out, however busy the machine is.
    let session = if with_faults { worker::SESSION } else { Duration::from_secs(60) };
    let mut run = Run::new(seed % 2 == 1, session);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let client = Client::connect(ClientConfig::new(&run.address).unwrap()).await.unwrap();
        let topic = NewTopic { partitions: PARTITIONS, ..NewTopic::named(TOPIC) };
        client.admin().create_topic(&topic).await.unwrap();
        client
    });
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|name| {
            let (address, stop, sent) = (run.address.clone(), stop.clone(), sent.clone());
            std::thread::spawn(move || produce(address, name, stop, sent))
        })
        .collect();
    run.add(GROUPS[1]);
    run.add(GROUPS[0]);
    run.add(GROUPS[0]);
    let until = Instant::now() + length;
    while Instant::now() < until || sent.load(Ordering::Relaxed) == 0 {
        // The plan of the seed: when the next fault comes.
        std::thread::sleep(Duration::from_millis(random.u64(100..900)));
        if with_faults {
            run.disturb(&mut random);
        } else if run.busy().len() < MEMBERS_MAX {
            run.add(GROUPS[0]);
            run.faults.joins += 1;
        } else {
            let one = run.busy()[0];
            assert!(run.members[one].close(), "a member did not close in order");
            run.faults.leaves += 1;
        }
    }
    for at in run.busy() {
        run.members[at].pause(false);
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged: Acknowledged =
        producers.into_iter().flat_map(|producer| producer.join().expect("a producer panicked")).collect();
    let log = runtime.block_on(read_log(&client));
    run.wait_for_all(&log);
    let wait_until = Instant::now() + LIMIT;
    let committed = loop {
        let committed: BTreeMap<String, BTreeMap<u32, u64>> =
            GROUPS.map(|group| (group.to_owned(), runtime.block_on(committed(&client, group)))).into();
        let whole = |of: &BTreeMap<u32, u64>| {
            (0..)
                .zip(&log)
                .all(|(partition, log)| of.get(&partition).copied().unwrap_or(0) == log.len() as u64)
        };
        if committed.values().all(whole) || Instant::now() > wait_until {
            break committed;
        }
    };
    for member in run.members.iter_mut().filter(|member| member.is_running) {
        assert!(member.close(), "seed {seed}: a member did not close in order");
    }
    let members = run
        .members
        .iter()
        .map(|member| (member.group.to_owned(), std::mem::take(&mut *member.heard.events.lock().unwrap())));
    let history = History { members: members.collect(), log, acknowledged, committed };
    (check(&history), std::mem::take(&mut run.faults))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs seeds and prints what they were.
fn run_seeds(first: u64, seeds: u64, length: Duration, with_faults: bool) -> BTreeMap<Anomaly, usize> {
    let started = Instant::now();
    let mut counts: BTreeMap<Anomaly, usize> = BTreeMap::new();
    let (mut operations, mut read_again) = (0, 0);
    let mut words = Vec::new();
    for seed in first..first + seeds {
        let (verdict, faults) = history(seed, length, with_faults);
        println!(
            "seed {seed}: {} operations checked, {} read again, {faults:?}, {} anomalies",
            verdict.operations,
            verdict.read_again,
            verdict.anomalies.len()
        );
        for (kind, count) in verdict.counts() {
            *counts.entry(kind).or_default() += count;
        }
        operations += verdict.operations;
        read_again += verdict.read_again;
        words.extend(verdict.anomalies.into_iter().take(5).map(|one| format!("seed {seed}: {one:?}")));
        if !with_faults {
            assert_eq!(verdict.read_again, 0, "without faults nothing is handed out twice; seed {seed}");
        }
    }
    println!(
        "{seeds} seeds in {} s: {operations} operations checked, {read_again} read again, anomalies {counts:?}",
        started.elapsed().as_secs()
    );
    assert!(words.is_empty(), "{words:#?}");
    counts
}

#[test]
fn histories_with_faults_have_no_anomalies() {
    let seeds = number("RINGLOG_HISTORY_SEEDS", 2);
    let length = Duration::from_secs(if seeds > 2 { 20 } else { 5 });
    run_seeds(number("RINGLOG_HISTORY_FIRST", 0), seeds, length, true);
}

#[test]
fn histories_without_faults_read_nothing_twice() {
    run_seeds(number("RINGLOG_HISTORY_FIRST", 0), 2, Duration::from_secs(3), false);
}
