//! Runs under faults: producers and a group of consumers on this host, brokers on theirs, a plan of faults by a seed.
//!
//! One fault at a time: it begins, lasts a while, ends; then the run waits until producers are acknowledged again. In the
//! end everything that anybody was told is judged. What is measured and not judged is how long nothing was acknowledged.

use crate::DEADLINE;
use crate::history::checker::{Event, History, check};
use crate::history::worker::{self, TOPIC};
use crate::hosts::{Changing, Fault, Hosts, OF_CHANGES, OF_ONE, OF_SEVERAL, Whom};
use crate::network::{Network, network};
use crate::silences::Silences;
use crate::slow_link::Slowness;
use fastrand::Rng;
use ringlog_client::{
    Acks, Client, ClientConfig, ConsumerConfig, NewTopic, OffsetSpec, ProducerConfig, ProducerRecord,
    StartFrom,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 4;
const PRODUCERS: usize = 2;
const MEMBERS: usize = 2;
const GROUP: &str = "cluster";
/// Acknowledgements after a fault before the next one begins.
const ACKNOWLEDGED_BETWEEN: usize = 200;

/// What producers were told, as it comes.
#[derive(Default)]
struct Told {
    acknowledged: Mutex<Vec<(Instant, u32, u64, String)>>,
    changed: Condvar,
}

impl Told {
    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits until there are so many.
    fn wait_for(&self, count: usize) {
        let limit = Instant::now() + DEADLINE;
        let mut told = self.acknowledged.lock().unwrap();
        while told.len() < count {
            let left = limit.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} acknowledged", told.len());
            told = self.changed.wait_timeout(told, left).unwrap().0;
        }
    }

    /// The longest time without an acknowledgement that reaches into `from..until`.
    fn longest_silence(&self, from: Instant, until: Instant) -> Duration {
        let told = self.acknowledged.lock().unwrap();
        let mut longest = Duration::ZERO;
        let mut before = from;
        for (at, ..) in told.iter() {
            if *at > from && before < until {
                longest = longest.max(at.duration_since(before));
            }
            before = before.max(*at);
        }
        longest
    }
}

/// A member of the group, and what it said.
struct Member {
    child: Child,
    events: Arc<Mutex<Vec<Event>>>,
    reader: Option<JoinHandle<()>>,
}

impl Member {
    fn start(brokers: &str) -> Self {
        // Longer than any fault: a member that is put out for one is not what is looked for here.
        let mut child = worker::start(brokers, GROUP, false, Duration::from_secs(30));
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = events.clone();
        let reader = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                heard.lock().unwrap().extend(worker::parse(&line));
            }
        });
        Self { child, events, reader: Some(reader) }
    }

    /// Closes it in order; all that it said.
    fn close(mut self) -> Vec<Event> {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("it is our child").success(), "a member did not close in order");
        self.reader.take().expect("once").join().expect("reading lines does not panic");
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Already gone after the run.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn connect(brokers: &str) -> Client {
    let mut config = ClientConfig::new(brokers).expect("addresses");
    // A request into a cut link is answered by nobody.
    config.request_timeout = Duration::from_secs(1);
    let limit = Instant::now() + DEADLINE;
    loop {
        match Client::connect(config.clone()).await {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < limit, "{error}"),
        }
    }
}

/// Produces until told to stop; everything is sent until it is acknowledged.
fn produce(brokers: &str, name: usize, stop: &AtomicBool, told: &Told) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = connect(brokers).await;
        let producer = client.producer(ProducerConfig { acks: Acks::All, ..ProducerConfig::default() });
        let mut random = Rng::with_seed(name as u64);
        let mut number = 0u64;
        while !stop.load(Ordering::Relaxed) {
            let mut pending = Vec::new();
            for _ in 0..random.usize(1..20) {
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
                    let at = Instant::now();
                    told.acknowledged.lock().unwrap().push((at, receipt.partition, receipt.offset, value));
                    told.changed.notify_all();
                }
            }
        }
        producer.close().await.expect("the brokers are there in the end");
    });
}

/// Waits until every broker is there and every partition has all its replicas.
pub async fn whole(client: &Client, brokers: usize) {
    let limit = Instant::now() + DEADLINE;
    loop {
        let cluster = client.admin().describe_cluster(None).await;
        let is_whole = cluster.as_ref().is_ok_and(|cluster| {
            cluster.brokers.iter().filter(|broker| !broker.fenced).count() == brokers
                && cluster
                    .partitions()
                    .all(|(_, partition)| partition.leader.is_some() && !partition.is_under_replicated())
        });
        if is_whole {
            return;
        }
        assert!(Instant::now() < limit, "the cluster does not come together: {cluster:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The host of the broker that leads the metadata.
async fn controller(client: &Client) -> usize {
    let limit = Instant::now() + DEADLINE;
    loop {
        let cluster = client.admin().describe_cluster(None).await;
        match cluster.ok().and_then(|cluster| cluster.controller) {
            Some(broker) => return broker as usize - 1,
            None => assert!(Instant::now() < limit, "nobody leads the metadata"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The metadata's leader is killed where that is meant, and only there: it takes another time.
fn whose_turn(fault: Fault, turn: usize, hosts: usize, controller: usize) -> usize {
    match fault {
        Fault::KillController | Fault::KillDuring(_, Whom::Controller) => controller,
        Fault::Kill | Fault::KillDuring(_, Whom::Another) if turn == controller => (turn + 1) % hosts,
        _ => turn,
    }
}

/// All that is visible of a topic, by partition.
pub async fn read_log(client: &Client, topic: &str, partitions: u32) -> Vec<Vec<String>> {
    let asked: Vec<_> = (0..partitions).map(|partition| (partition, OffsetSpec::Latest)).collect();
    let ends = client.admin().list_offsets(topic, &asked).await.expect("all have a leader");
    let mut log = vec![Vec::new(); partitions as usize];
    for end in ends.iter().filter(|end| end.offset > 0) {
        let mut consumer = client.consumer(ConsumerConfig::default());
        consumer.assign(topic, &[(end.partition, StartFrom::Earliest)]).await.expect("it is there");
        let log = &mut log[end.partition as usize];
        while (log.len() as u64) < end.offset {
            let record = consumer.next().await.expect("it is assigned").expect("the log is sound");
            assert_eq!(record.offset, log.len() as u64, "offsets follow each other");
            log.push(String::from_utf8_lossy(&record.value.expect("all have one")).into_owned());
        }
    }
    log
}

/// Waits until the group has read and committed all of `log`; what it has committed.
async fn committed(client: &Client, log: &[Vec<String>]) -> BTreeMap<u32, u64> {
    let limit = Instant::now() + DEADLINE;
    loop {
        let described = client.admin().describe_group(GROUP).await;
        let committed: BTreeMap<u32, u64> = described
            .map(|group| group.offsets.iter().filter_map(|one| Some((one.partition, one.offset?))).collect())
            .unwrap_or_default();
        let whole = (0..)
            .zip(log)
            .all(|(partition, log)| committed.get(&partition).copied().unwrap_or(0) == log.len() as u64);
        // What is missing then is an anomaly, which the checker names.
        if whole || Instant::now() > limit {
            return committed;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is done to the brokers of one run, in an order by its seed.
#[derive(Clone)]
struct Plan {
    /// How its rows in the table begin.
    name: &'static str,
    faults: Vec<Fault>,
    /// Links that clients and brokers go through.
    slow: Option<Slowness>,
}

impl Plan {
    fn of(faults: &[Fault]) -> Self {
        Self { name: "", faults: faults.to_vec(), slow: None }
    }

    /// One broker after the other, as for an upgrade.
    fn restarts(brokers: u8) -> Self {
        let faults = vec![Fault::Restart; brokers.into()];
        Self { name: "in turn: ", faults, slow: None }
    }

    /// Everything goes through links that can be slowed.
    fn slow_links() -> Self {
        let faults = [Fault::Slow, Fault::Slow, Fault::Kill, Fault::Pause, Fault::Isolate];
        Self { name: "through links: ", faults: faults.to_vec(), slow: Some(Slowness::NONE) }
    }
}

/// One run, from an empty cluster to the verdict.
fn run(cluster: (Network, u8), seed: u64, plan: &Plan, silences: &mut Silences) {
    let Plan { name, faults, slow } = plan;
    let name = *name;
    let mut random = Rng::with_seed(seed);
    let (network, count) = cluster;
    let mut hosts = Hosts::start(network, count, *slow, random.fork(), PARTITIONS);
    let brokers = hosts.brokers();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = runtime.block_on(async {
        let client = connect(&brokers).await;
        whole(&client, count.into()).await;
        let replication_factor = u32::from(count.min(3));
        let topic = NewTopic { partitions: PARTITIONS, replication_factor, ..NewTopic::named(TOPIC) };
        client.admin().create_topic(&topic).await.expect("the topic is made");
        client
    });
    let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Told::default()));
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|name| {
            let (brokers, stop, told) = (brokers.clone(), stop.clone(), told.clone());
            std::thread::spawn(move || produce(&brokers, name, &stop, &told))
        })
        .collect();
    let members: Vec<Member> = (0..MEMBERS).map(|_| Member::start(&brokers)).collect();
    told.wait_for(ACKNOWLEDGED_BETWEEN);
    // One after the other has its turn.
    let first = random.usize(..hosts.len());
    for (turn, fault) in faults.iter().enumerate() {
        let turn = (first + turn) % hosts.len();
        let (at, leads) = match hosts.len() {
            1 => (turn, turn),
            count => {
                let leads = runtime.block_on(controller(&client));
                (whose_turn(*fault, turn, count, leads), leads)
            }
        };
        hosts.prepare(*fault, at, leads);
        let began = Instant::now();
        hosts.begin(*fault, at);
        // How long it lasts is what is planted.
        std::thread::sleep(Duration::from_millis(random.u64(200..1_500)));
        hosts.end(*fault, at);
        let ended = Instant::now();
        told.wait_for(told.count() + ACKNOWLEDGED_BETWEEN);
        hosts.finish(*fault, at);
        runtime.block_on(whole(&client, count.into()));
        let silence = told.longest_silence(began, ended);
        println!("seed {seed}, {name}{fault}: nothing acknowledged for {} ms", silence.as_millis());
        silences.add(name, *fault, silence);
    }
    told.wait_for(told.count() + ACKNOWLEDGED_BETWEEN);
    stop.store(true, Ordering::Relaxed);
    producers.into_iter().for_each(|producer| producer.join().expect("a producer panicked"));
    let log = runtime.block_on(read_log(&client, TOPIC, PARTITIONS));
    let committed = runtime.block_on(committed(&client, &log));
    let members: Vec<_> = members.into_iter().map(|member| (GROUP.to_owned(), member.close())).collect();
    let acknowledged = std::mem::take(&mut *told.acknowledged.lock().unwrap());
    let acknowledged: Vec<(u32, u64, String)> =
        acknowledged.into_iter().map(|(_, partition, offset, value)| (partition, offset, value)).collect();
    let count = acknowledged.len();
    // Nothing was refused for good: every record that was acknowledged is there, and every other one once at most.
    let places: BTreeSet<(u32, u64)> = acknowledged.iter().map(|(at, offset, _)| (*at, *offset)).collect();
    assert_eq!(places.len(), count, "two records were acknowledged at one place");
    let history =
        History { members, log, acknowledged, committed: BTreeMap::from([(GROUP.to_owned(), committed)]) };
    let verdict = check(&history);
    println!(
        "seed {seed}: {} faults, {count} acknowledged, {} operations checked, {} read again, {} anomalies",
        faults.len(),
        verdict.operations,
        verdict.read_again,
        verdict.anomalies.len()
    );
    silences.judged(count, &verdict);
    assert!(
        verdict.anomalies.is_empty(),
        "seed {seed}: {:#?}",
        &verdict.anomalies[..verdict.anomalies.len().min(5)]
    );
}

/// What `RINGLOG_CLUSTER_SEEDS` asks for; `None` = a usual run.
fn wanted() -> Option<u64> {
    std::env::var("RINGLOG_CLUSTER_SEEDS").ok().and_then(|text| text.parse().ok())
}

fn seeds() -> std::ops::Range<u64> {
    let first = std::env::var("RINGLOG_CLUSTER_FIRST").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    first..first + wanted().unwrap_or(1)
}

/// Runs these plans with every seed, and prints one table of how long nothing was acknowledged.
fn all(brokers: u8, plans: &[Plan]) {
    if let Ok(other) = std::env::var("RINGLOG_OTHER_BINARY") {
        println!("of {brokers} brokers every second one is {other}");
    }
    let mut silences = Silences::of(brokers);
    for seed in seeds() {
        for plan in plans {
            let Some(network) = network(brokers) else { return };
            let mut plan = plan.clone();
            // Not the numbers that the run itself takes.
            Rng::with_seed(!seed).shuffle(&mut plan.faults);
            run((network, brokers), seed, &plan, &mut silences);
        }
    }
}

/// What a run of length is for, or a usual one.
fn usually(usual: &[Fault], all: &[Fault]) -> Plan {
    Plan::of(if wanted().is_some() { all } else { usual })
}

#[test]
fn one_broker_under_faults_loses_nothing() {
    all(1, &[Plan::of(&OF_ONE)]);
}

#[test]
fn one_broker_behind_a_slow_link_loses_nothing() {
    let slowness =
        Slowness { delay: Duration::from_millis(2), jitter: Duration::from_millis(20), rate: 2_000_000 };
    let faults = vec![Fault::Kill, Fault::Pause];
    all(1, &[Plan { name: "behind a slow link: ", faults, slow: Some(slowness) }]);
}

#[test]
fn without_faults_nothing_is_read_twice() {
    let Some(network) = network(1) else { return };
    run((network, 1), 0, &Plan::of(&[]), &mut Silences::of(1));
}

#[test]
fn three_brokers_under_faults_lose_nothing() {
    // What goes without a fault is another test's.
    let usual: Vec<Fault> = OF_SEVERAL.into_iter().filter(|fault| *fault != Fault::None).collect();
    all(3, &[usually(&usual, &OF_SEVERAL)]);
}

#[test]
fn three_brokers_restarted_in_turn_lose_nothing() {
    all(3, &[Plan::restarts(3)]);
}

#[test]
fn with_three_brokers_and_no_faults_nothing_is_read_twice() {
    let Some(network) = network(3) else { return };
    run((network, 3), 0, &Plan::of(&[]), &mut Silences::of(3));
}

#[test]
fn three_brokers_with_slow_links_lose_nothing() {
    let mut plan = Plan::slow_links();
    if wanted().is_none() {
        plan.faults.truncate(1);
    }
    all(3, &[plan]);
}

/// All that can be done to three brokers, in one table: only where runs of length are wanted.
#[test]
fn every_fault_of_three_brokers_loses_nothing() {
    if wanted().is_some() {
        all(3, &[Plan::of(&OF_SEVERAL), Plan::slow_links(), Plan::restarts(3)]);
    }
}

#[test]
fn five_brokers_under_faults_and_changes_lose_nothing() {
    // Who comes and who goes, with the metadata's leader killed and with who comes; the other faults are those of three.
    let usual = [
        Fault::KillDuring(Changing::Remove, Whom::Controller),
        Fault::KillDuring(Changing::Join, Whom::Itself),
    ];
    all(5, &[usually(&usual, &[&OF_CHANGES[..], &OF_SEVERAL].concat())]);
}

#[test]
fn five_brokers_restarted_in_turn_lose_nothing() {
    // As with three, and longer: only where runs of length are wanted.
    if wanted().is_some() {
        all(5, &[Plan::restarts(5)]);
    }
}

#[test]
fn five_brokers_with_slow_links_lose_nothing() {
    if wanted().is_some() {
        all(5, &[Plan::slow_links()]);
    }
}

/// As with three, and those of changes of membership.
#[test]
fn every_fault_of_five_brokers_loses_nothing() {
    if wanted().is_some() {
        let faults = Plan::of(&[&OF_SEVERAL[..], &OF_CHANGES].concat());
        all(5, &[faults, Plan::slow_links(), Plan::restarts(5)]);
    }
}
