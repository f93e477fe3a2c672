//! Brokers of one cluster as processes on this host: started one after the other, stopped, killed, started again.
//!
//! Owner: one test. Needs no rights: the ports are the system's choice, and a broker that comes back has its old one. What
//! only a network of their own can do is in [`crate::faults`].

use crate::DEADLINE;
use crate::process::{Broker, Serve};
use crate::scrape::Scrape;
use crate::stopped::stop;
use ringlog_client::{
    Acks, BrokerStatus, Client, ClientConfig, ClusterDescription, PartitionReplicas, Producer,
    ProducerConfig, TopicReplicas,
};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A place for a broker: its directory, its port, and the broker when it runs. Broker `id` has place `id - 1`.
struct Place {
    data: tempfile::TempDir,
    address: SocketAddr,
    broker: Option<Broker>,
    shards: usize,
    arguments: Vec<String>,
}

/// See the [module](self).
#[derive(Default)]
pub struct Cluster {
    places: Vec<Place>,
}

/// A command that has not ended.
pub struct UnderWay {
    child: Child,
    lines: Receiver<String>,
}

impl Cluster {
    /// So many brokers with two shards each, all of one cluster.
    pub fn of(brokers: usize) -> Self {
        Self::with(brokers, &[])
    }

    /// The same, with these arguments for each.
    pub fn with(brokers: usize, arguments: &[&str]) -> Self {
        let mut cluster = Self::default();
        for _ in 0..brokers {
            cluster.grow(arguments);
        }
        cluster
    }

    /// Starts one more broker, which joins if it is not the first; its number.
    pub fn grow(&mut self, arguments: &[&str]) -> u32 {
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("it can be written to");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        self.places.push(Place { data, address, broker: None, shards: 2, arguments });
        let id = self.places.len() as u32;
        self.start(id);
        id
    }

    fn place(&mut self, id: u32) -> &mut Place {
        &mut self.places[id as usize - 1]
    }

    /// The process of a broker that runs.
    pub fn process(&self, id: u32) -> u32 {
        self.places[id as usize - 1].broker.as_ref().expect("it runs").id()
    }

    /// Where a broker keeps everything.
    pub fn data(&self, id: u32) -> &Path {
        self.places[id as usize - 1].data.path()
    }

    /// Starts a broker that does not run.
    pub fn start(&mut self, id: u32) {
        let broker = self.serve(id).start();
        let place = self.place(id);
        place.address = broker.address;
        place.broker = Some(broker);
    }

    /// What a broker says that does not start.
    pub fn refusal(&mut self, id: u32) -> String {
        let started = self.serve(id).try_start();
        started.map(|broker| broker.said.clone()).expect_err("it is not to start").stderr
    }

    /// How a broker that does not run is to be started.
    fn serve(&mut self, id: u32) -> Serve {
        let running = |place: &&Place| place.broker.is_some();
        // Any broker that is known will do.
        let join =
            self.places.iter().find(running).or(self.places.iter().rfind(|place| place.address.port() > 0));
        let join = join.map(|place| place.address.to_string());
        let place = self.place(id);
        let arguments = place.arguments.clone();
        let serve = Serve::new(place.data.path()).shards(place.shards).listen(place.address);
        serve.prepared(move |command| {
            command.args(["--broker-id", &id.to_string()]).args(arguments);
            if let Some(join) = join {
                command.args(["--join", &join]);
            }
        })
    }

    /// Starts a broker that does not run, with so many shards from now on.
    pub fn start_with_shards(&mut self, id: u32, shards: usize) {
        self.place(id).shards = shards;
        self.start(id);
    }

    /// An orderly stop.
    pub fn stop(&mut self, id: u32) {
        drop(self.place(id).broker.take().expect("it runs").stop());
    }

    /// An orderly stop of all that run, at once: the last one alone would wait for the others.
    pub fn stop_all(&mut self) {
        let running: Vec<Broker> = self.places.iter_mut().filter_map(|place| place.broker.take()).collect();
        std::thread::scope(|scope| {
            for broker in running {
                scope.spawn(move || broker.stop());
            }
        });
    }

    /// A broker does nothing until it is [resumed](Self::resume).
    pub fn pause(&self, id: u32) {
        stop(self.process(id));
    }

    /// See [`Self::pause`].
    pub fn resume(&self, id: u32) {
        self.signal(id, libc::SIGCONT);
    }

    fn signal(&self, id: u32, signal: i32) {
        // SAFETY: sends a signal to our own child, which has not been waited for; touches no memory.
        assert_eq!(unsafe { libc::kill(self.process(id) as libc::pid_t, signal) }, 0);
    }

    /// The end of its process.
    pub fn kill(&mut self, id: u32) {
        drop(self.place(id).broker.take().expect("it runs").kill());
    }

    /// Where a broker that was started with `--http` tells its metrics.
    pub fn http(&self, id: u32) -> &str {
        let broker = self.places[id as usize - 1].broker.as_ref().expect("it runs");
        broker.said.iter().find_map(|line| line.strip_prefix("http ")).expect("it says where")
    }

    /// Waits until a broker has ended by itself; with which status, and what it said on standard error.
    pub fn ended(&mut self, id: u32) -> (ExitStatus, String) {
        let mut broker = self.place(id).broker.take().expect("it runs");
        let status = broker.until_ready().expect_err("it has been ready before");
        (status, broker.kill())
    }

    /// An empty disk takes the place of that of a broker that does not run.
    pub fn replace_disk(&mut self, id: u32) {
        let place = self.place(id);
        assert!(place.broker.is_none(), "it runs");
        std::fs::remove_dir_all(place.data.path()).expect("nobody uses it");
    }

    /// A copy takes the place of the directory of a broker that does not run; the original is removed.
    pub fn restore(&mut self, id: u32) {
        let place = self.place(id);
        assert!(place.broker.is_none(), "it runs");
        let copy = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("it can be written to");
        let everything = place.data.path().join(".");
        let copied = Command::new("cp").arg("-a").arg(everything).arg(copy.path()).status();
        assert!(copied.expect("there is cp").success());
        place.data = copy;
    }

    /// A broker that does not run is to be found at another address when it comes back.
    pub fn move_elsewhere(&mut self, id: u32) {
        let place = self.place(id);
        assert!(place.broker.is_none(), "it runs");
        place.address.set_port(0);
    }

    /// Where the brokers are, also those that do not run just now.
    pub fn addresses(&self) -> String {
        self.places.iter().map(|place| place.address.to_string()).collect::<Vec<_>>().join(",")
    }

    /// The same without those that do not run.
    fn running(&self) -> String {
        let running = self.places.iter().filter(|place| place.broker.is_some());
        running.map(|place| place.address.to_string()).collect::<Vec<_>>().join(",")
    }

    /// A client with some patience.
    pub async fn connect(&self) -> Client {
        connect(self.running()).await
    }

    /// The same, which is told of one broker only.
    pub async fn connect_to(&self, id: u32) -> Client {
        connect(self.places[id as usize - 1].address.to_string()).await
    }

    /// What a broker's `/metrics` say, of one that was started with `--http`.
    pub fn scrape(&self, id: u32) -> Scrape {
        let broker = self.places[id as usize - 1].broker.as_ref().expect("it runs");
        let address = broker.said.iter().find_map(|line| line.strip_prefix("http "));
        Scrape::of(address.expect("it serves metrics"))
    }

    /// What a broker itself wants to be known.
    pub async fn notices(&self, id: u32) -> Vec<String> {
        self.status(id).await.notices
    }

    /// One of a broker's counters, over its shards.
    pub async fn counter(&self, id: u32, name: &str) -> u64 {
        let status = self.status(id).await;
        status.shards.iter().map(|shard| shard.counter(name).expect("there is such a counter")).sum()
    }

    async fn status(&self, id: u32) -> BrokerStatus {
        self.connect_to(id).await.admin().status().await.expect("it answers")
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog"));
        command.args(words.split_whitespace()).env("RINGLOG_BROKERS", self.running());
        command
    }

    /// Begins such a command; what it says, line by line, is heard from now on.
    pub fn begin(&self, words: &str) -> UnderWay {
        let mut command = self.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        let said = BufReader::new(child.stderr.take().expect("it is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        UnderWay { child, lines }
    }

    /// Runs `ringlog …` against it; whether it succeeded, and all that it said.
    pub fn run(&self, command: &str) -> (bool, String) {
        let output = self.command(command).output().expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// The same for what must succeed.
    #[track_caller]
    pub fn ok(&self, command: &str) -> String {
        let (is_ok, said) = self.run(command);
        assert!(is_ok, "ringlog {command}: {said}");
        said
    }

    /// What such a command says as JSON, line by line.
    #[track_caller]
    pub fn json(&self, command: &str) -> Vec<serde_json::Value> {
        let said = self.ok(&format!("{command} --format json"));
        said.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
    }
}

impl UnderWay {
    /// The next line on standard error.
    #[track_caller]
    pub fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("it says something")
    }

    /// It ends, and has done it.
    #[track_caller]
    pub fn finish(mut self) {
        let rest: Vec<String> = self.lines.iter().collect();
        assert!(self.child.wait().expect("it is our child").success(), "{rest:?}");
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Still there when a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn connect(brokers: String) -> Client {
    let mut config = ClientConfig::new(brokers).expect("addresses");
    config.request_timeout = Duration::from_secs(2);
    Client::connect(config).await.expect("a broker is there")
}

/// Runs a test to its end, or fails.
pub fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(4 * DEADLINE, test()).await.expect("it does not end");
    });
}

/// One that wants every acknowledgement from the whole in-sync set.
pub fn producer(client: &Client) -> Producer {
    client.producer(ProducerConfig { acks: Acks::All, ..ProducerConfig::default() })
}

/// The broker that leads a partition.
pub async fn leader_of(client: &Client, topic: &str, partition: u32) -> u32 {
    let cluster = client.admin().describe_cluster(Some(&[topic.to_owned()])).await.expect("it answers");
    let found = cluster.partitions().find(|(_, entry)| entry.partition == partition);
    found.and_then(|(_, entry)| entry.leader).expect("it has a leader")
}

/// Waits until the cluster is as `is_so` wants it.
pub async fn until(client: &Client, what: &str, is_so: impl Fn(&ClusterDescription) -> bool) {
    let limit = Instant::now() + DEADLINE;
    loop {
        let cluster = client.admin().describe_cluster(None).await;
        if cluster.as_ref().is_ok_and(&is_so) {
            return;
        }
        assert!(Instant::now() < limit, "not so: {what}: {cluster:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Partitions of `topic`.
pub fn of_topic<'a>(
    cluster: &'a ClusterDescription,
    topic: &'a str,
) -> impl Iterator<Item = &'a PartitionReplicas> {
    let named = move |(of, _): &(&TopicReplicas, _)| of.name == topic;
    cluster.partitions().filter(named).map(|(_, partition)| partition)
}
