//! Brokers of one cluster as processes on this host: started one after the other, stopped, killed, started again.
//!
//! Owner: one test. Needs no rights: the ports are the system's choice, and a broker that comes back has its old one.

use crate::DEADLINE;
use crate::process::{Broker, Serve};
use ringlog_client::{
    BrokerStatus, Client, ClientConfig, ClusterDescription, PartitionReplicas, TopicReplicas,
};
use std::net::SocketAddr;
use std::process::Command;
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

impl Cluster {
    /// So many brokers with two shards each, all of one cluster.
    pub fn of(brokers: usize) -> Self {
        let mut cluster = Self::default();
        for _ in 0..brokers {
            cluster.grow(&[]);
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

    /// Starts a broker that does not run.
    pub fn start(&mut self, id: u32) {
        let running = |place: &&Place| place.broker.is_some();
        // Any broker that is known will do.
        let join =
            self.places.iter().find(running).or(self.places.iter().rfind(|place| place.address.port() > 0));
        let join = join.map(|place| place.address.to_string());
        let place = self.place(id);
        let arguments = place.arguments.clone();
        let serve = Serve::new(place.data.path()).shards(place.shards).listen(place.address);
        let serve = serve.prepared(move |command| {
            command.args(["--broker-id", &id.to_string()]).args(arguments);
            if let Some(join) = join {
                command.args(["--join", &join]);
            }
        });
        let broker = serve.start();
        place.address = broker.address;
        place.broker = Some(broker);
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

    /// The end of its process.
    pub fn kill(&mut self, id: u32) {
        drop(self.place(id).broker.take().expect("it runs").kill());
    }

    /// Where a broker that was started with `--http` tells its metrics.
    pub fn http(&self, id: u32) -> &str {
        let broker = self.places[id as usize - 1].broker.as_ref().expect("it runs");
        broker.said.iter().find_map(|line| line.strip_prefix("http ")).expect("it says where")
    }

    /// A broker does nothing until it is [resumed](Self::resume).
    pub fn pause(&self, id: u32) {
        self.signal(id, libc::SIGSTOP);
    }

    /// See [`Self::pause`].
    pub fn resume(&self, id: u32) {
        self.signal(id, libc::SIGCONT);
    }

    fn signal(&self, id: u32, signal: i32) {
        let broker = self.places[id as usize - 1].broker.as_ref().expect("it runs");
        // SAFETY: sends a signal to our own child, which has not been waited for; touches no memory.
        assert_eq!(unsafe { libc::kill(broker.id() as libc::pid_t, signal) }, 0);
    }

    /// An empty disk takes the place of that of a broker that does not run.
    pub fn replace_disk(&mut self, id: u32) {
        let place = self.place(id);
        assert!(place.broker.is_none(), "it runs");
        std::fs::remove_dir_all(place.data.path()).expect("nobody uses it");
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
        let mut config = ClientConfig::new(self.running()).expect("addresses");
        config.request_timeout = Duration::from_secs(2);
        Client::connect(config).await.expect("a broker is there")
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
        let address = self.places[id as usize - 1].address.to_string();
        let client = Client::connect(ClientConfig::new(address).expect("an address")).await;
        client.expect("it is there").admin().status().await.expect("it answers")
    }

    /// Runs `ringlog …` against it; whether it succeeded, and all that it said.
    pub fn run(&self, command: &str) -> (bool, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringlog"));
        child.args(command.split_whitespace()).env("RINGLOG_BROKERS", self.running());
        let output = child.output().expect("it runs");
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
