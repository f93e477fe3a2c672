//! `ringlog demo --brokers N`: a cluster of processes, one of which is killed in the middle.
//!
//! Story: N brokers, each a process of its own on a directory of its own → a topic whose partitions are kept three times,
//! `min.insync.replicas` 2 → January's flights produced steadily with acks=all while a group of two reads them → the
//! broker that leads most is killed with SIGKILL at a third of the way → the rest is produced → everything is read once
//! more from the start and compared with what was acknowledged → the killed broker is started again and fills up.
//! Owner: `main`. Invariants: as those of the demo with one broker; the processes are gone when this one is, however it
//! ends. Absent on purpose: a claim about speed. All brokers, the producer and the readers share one host.

mod children;
mod group;
mod outcome;
mod produce;

use super::flights::Flights;
use super::ledger::Tally;
use super::reader::{self, Until};
use super::{Bars, PARTITIONS, TOPIC, on_a_thread};
use crate::failure::Failure;
use crate::output::{Output, counted};
use crate::place::Place;
use children::Children;
use outcome::Outcome;
use ringlog_client::{Admin, Client, ClientConfig, ClusterDescription, NewTopic};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// How long a cluster may take to come together, and a broker to fill up again.
const COMES_TOGETHER: Duration = Duration::from_secs(60);
/// Between two looks at that.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often each partition is kept, at most.
const REPLICATION_FACTOR: u32 = 3;

/// What is asked for.
pub struct Wanted {
    /// Brokers, at least 3.
    pub brokers: u32,
    /// Of keys and values.
    pub bytes: u64,
    /// How long producing them takes if nothing fails.
    pub produce_for: Duration,
    /// Shards of each broker.
    pub shards: u16,
}

/// Runs it.
pub fn run(wanted: &Wanted, place: &Place, output: &mut Output) -> Result<(), Failure> {
    let people = !output.is_json();
    let children = Children::start(wanted.brokers, wanted.shards, place.directory.path())?;
    if people {
        output.line(&format!(
            "{} on {}, {} each, data in {}",
            counted(u64::from(wanted.brokers), "broker"),
            children.addresses().join(", "),
            counted(u64::from(wanted.shards), "shard"),
            place.describe()
        ))?;
        output.flush()?;
    }
    let flights = Arc::new(Flights::load(wanted.bytes));
    let outcome = crate::block_on(async {
        tokio::select! {
            outcome = show(&children, &flights, wanted.produce_for, people) => outcome,
            () = crate::interrupt::interrupted() => {
                Err(Failure::operation("interrupted; the brokers are ended, the temporary directory is removed"))
            }
        }
    });
    // A failure is told with what the brokers said last.
    let outcome = outcome.inspect_err(|_| children.tell_last_words());
    drop(children);
    let mut outcome = outcome?;
    outcome.data_directory = place.describe();
    outcome.print(output)?;
    output.flush()?;
    match outcome.fault() {
        None => Ok(()),
        Some(fault) => Err(Failure::operation(format!("the demo found a fault: {fault}"))),
    }
}

async fn show(
    children: &Children,
    flights: &Arc<Flights>,
    produce_for: Duration,
    people: bool,
) -> Result<Outcome, Failure> {
    let brokers = children.addresses().join(",");
    let client = connect(&brokers).await?;
    let admin = client.admin();
    let count = children.addresses().len();
    until(&admin, "the brokers have found each other", |cluster| {
        cluster.brokers.iter().filter(|broker| !broker.fenced).count() == count
    })
    .await?;
    let replication_factor = REPLICATION_FACTOR.min(count as u32);
    let configs = [("retention.ms", "-1"), ("min.insync.replicas", "2")];
    let configs = configs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let topic = NewTopic { name: TOPIC.into(), partitions: PARTITIONS, replication_factor, configs };
    admin.create_topic(&topic).await?;
    until(&admin, "every partition has all its replicas", |cluster| {
        cluster
            .partitions()
            .all(|(_, partition)| partition.leader.is_some() && !partition.is_under_replicated())
    })
    .await?;

    let bars = Bars::new(people);
    let (finished, watching) = watch::channel(None);
    let reading = {
        let (brokers, flights, bar) =
            (brokers.clone(), flights.clone(), bars.add("read by a group", flights.total_records()));
        on_a_thread(
            move || async move { group::read(&connect(&brokers).await?, &flights, watching, &bar).await },
        )
    };
    let (third, at_a_third) = oneshot::channel();
    let writing = {
        let (brokers, flights, bar) =
            (brokers.clone(), flights.clone(), bars.add("produce", flights.total_records()));
        on_a_thread(move || async move {
            produce::write(&connect(&brokers).await?, &flights, produce_for, third, &bar).await
        })
    };
    let mut writing = std::pin::pin!(super::joined(writing));
    let begun = tokio::select! {
        begun = at_a_third => begun.is_ok(),
        // Ended before the third: it has failed, and says why.
        written = &mut writing => return written.and(Err(Failure::operation("the producer ended early"))),
    };
    if !begun {
        writing.await?;
        return Err(Failure::operation("the producer ended early"));
    }
    let before = admin.describe_cluster(Some(&[TOPIC.to_owned()])).await?;
    let victim = leads_most(&before)?;
    let killed_at = Instant::now();
    children.kill(victim)?;
    bars.say(&format!("broker {victim} killed with SIGKILL"));
    let written = writing.await?;
    let ends = written.ledger.ends();
    // Nobody watching means that the reader has failed, which its result tells.
    let _ = finished.send(Some(ends.clone()));
    let read = super::joined(reading).await?;

    let bar = bars.add("read from the start", flights.total_records());
    let zero = [0; PARTITIONS as usize];
    let whole = reader::read(&client, flights, &zero, Until::Ends(ends), killed_at, &bar).await?;

    let bar = bars.add("fill up again", u64::from(PARTITIONS));
    let restarted_at = Instant::now();
    children.restart(victim)?;
    until(&admin, "the killed broker has filled up again", |cluster| {
        let well =
            |(_, partition): &(_, &ringlog_client::PartitionReplicas)| !partition.is_under_replicated();
        bar.set_position(cluster.partitions().filter(well).count() as u64);
        cluster.partitions().all(|partition| well(&partition))
    })
    .await?;
    let filled_up = restarted_at.elapsed();
    bars.clear();

    let expected = Tally::expected(flights, &written.ledger, &zero);
    let mut outcome = Outcome::new(&before, victim, &written, killed_at);
    outcome.replication_factor = replication_factor;
    outcome.filled_up_s = filled_up.as_secs_f64();
    outcome.add_reading(&read, &expected);
    outcome.add_reading(&whole.tally, &expected);
    Ok(outcome)
}

async fn connect(brokers: &str) -> Result<Client, Failure> {
    Ok(Client::connect(ClientConfig::new(brokers)?).await?)
}

/// The broker that leads most partitions of the topic.
fn leads_most(cluster: &ClusterDescription) -> Result<u32, Failure> {
    let mut led: BTreeMap<u32, u32> = BTreeMap::new();
    cluster
        .partitions()
        .filter_map(|(_, partition)| partition.leader)
        .for_each(|id| *led.entry(id).or_default() += 1);
    let most = led.iter().max_by_key(|(_, count)| **count).map(|(id, _)| *id);
    most.ok_or_else(|| Failure::operation("no partition has a leader"))
}

/// Waits until `is_so` of the demo's topic.
async fn until(
    admin: &Admin,
    what: &str,
    mut is_so: impl FnMut(&ClusterDescription) -> bool,
) -> Result<(), Failure> {
    let deadline = Instant::now() + COMES_TOGETHER;
    let topics = [TOPIC.to_owned()];
    loop {
        if is_so(&admin.describe_cluster(Some(&topics)).await?) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::operation(format!("it is not so after {COMES_TOGETHER:?} that {what}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
