//! The settings of a broker: arguments over file over defaults.
//!
//! Owner: `ringlog serve`. The file has the arguments' names, and a name that it does not know is an error.
//! Absent on purpose: settings of topics, which are the metadata's.

use crate::disk_profile::ProfileSource;
use crate::failure::Failure;
use logic::ids::BrokerId;
use logic::limits::{METADATA_VOTERS_MAX, REPLICAS_PER_PARTITION_MAX, SCRUB_INTERVAL_MS_DEFAULT};
use serde::Deserialize;
use server::{ClusterConfig, GroupSettings};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A day.
const PRODUCER_ID_EXPIRATION_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// Less than a pause of the device, and members would leave and join all the time.
const REPLICA_LAG_MIN: Duration = Duration::from_millis(100);

/// Coordinators of consumer groups at most.
const OFFSETS_PARTITIONS_MAX: u32 = 1000;

/// `ringlog serve`
#[derive(clap::Args)]
pub struct ServeArguments {
    /// Where the log is kept; made if missing [default: ./ringlog-data]
    #[arg(long, value_name = "DIR", env = "RINGLOG_DATA")]
    data: Option<PathBuf>,
    /// Where to listen; port 0 takes any free one [default: 127.0.0.1:9644]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// How many shards, each a thread of its own [default: one per core]
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// The cores that the shards run on, as 0,1, or none for wherever the kernel puts them
    /// [default: the first ones, if there is more than one]
    #[arg(long, value_name = "LIST")]
    cores: Option<Cores>,
    /// Also serve metrics and health by HTTP: /metrics (Prometheus), /health/live, /health/ready; port 0 takes any
    /// free one [default: off; 127.0.0.1:9645 if no address is named]
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, default_missing_value = DEFAULT_HTTP)]
    http: Option<SocketAddr>,
    /// A TOML file with these settings, under the same names
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long an idle shard looks for work before it sleeps: less latency, a busy core [default: 0]
    #[arg(long, value_name = "N")]
    poll_us: Option<u64>,
    /// End, as by a crash, when the process of this number, which started this one, is gone
    #[arg(long, value_name = "PID", hide = true)]
    pub end_with_parent: Option<i32>,
    /// Flush rounds in flight per shard, 1 to 4 [default: what the disk's profile says, else 2]
    #[arg(long, value_name = "N")]
    rounds_in_flight: Option<usize>,
    /// A round of at most so many writes makes each durable by itself, a larger one shares a flush, 0 to 64
    /// [default: what the disk's profile says, else 2]
    #[arg(long, value_name = "N")]
    dsync_writes: Option<usize>,
    /// What is known of the disk: auto = the data directory's profile, measured in short (a second) where there
    /// is none; none = nothing; or a file that ringlog doctor --disk has made [default: auto]
    #[arg(long, value_name = "auto|none|PATH")]
    disk_profile: Option<ProfileSource>,
    /// The host that clients and other brokers are told to connect to [default: the address that it listens on]
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Its number in the cluster, which stays with the data directory [default: 0]
    #[arg(long, value_name = "N")]
    broker_id: Option<u32>,
    /// Brokers of the cluster to join, if the data directory is new; any of them will do
    #[arg(long, value_name = "HOST:PORT,..", value_delimiter = ',')]
    join: Option<Vec<String>>,
    /// Where it stands; the replicas of a partition are spread over racks [default: nowhere in particular]
    #[arg(long, value_name = "NAME")]
    rack: Option<String>,
    /// How many brokers vote on the metadata, if there are as many: 1, 3, 5 or 7 [default: 3]
    #[arg(long, value_name = "N")]
    metadata_voters: Option<usize>,
    /// Between two heartbeats to the brokers of a cluster, milliseconds [default: 150]
    #[arg(long, value_name = "N")]
    heartbeat_ms: Option<u64>,
    /// A broker that was not heard for so long is fenced and others lead, milliseconds [default: 1000]
    #[arg(long, value_name = "N")]
    session_ms: Option<u64>,
    /// The least time without a leader of the metadata before another is elected, milliseconds; the most is twice as
    /// long [default: 400]
    #[arg(long, value_name = "N")]
    election_ms: Option<u64>,
    /// A replica that is behind for longer leaves the in-sync set, and acknowledgements do not wait for it any more,
    /// milliseconds (replica.lag.time.max.ms) [default: 10000]
    #[arg(long, value_name = "N")]
    replica_lag_ms: Option<u64>,
    /// On how many brokers each partition of a topic is kept that is made without saying so, if there are as many
    /// (default.replication.factor); the same for all brokers of a cluster [default: 3]
    #[arg(long, value_name = "N")]
    default_replication_factor: Option<u32>,
    /// A producer that has been silent for so long is forgotten, milliseconds (producer.id.expiration.ms)
    /// [default: 86400000, a day]
    #[arg(long, value_name = "N")]
    producer_id_expiration_ms: Option<u64>,
    /// From the begin of one reading of all that is stored, which finds what has rotted, to that of the next, seconds;
    /// 0 = nothing is read without need [default: 604800, a week]
    #[arg(long, value_name = "N")]
    scrub_interval_s: Option<u64>,
    /// Partitions of the topic of committed offsets when it is made: how many coordinators of groups there are
    /// [default: 16]
    #[arg(long, value_name = "N")]
    offsets_partitions: Option<u32>,
    /// How long committed offsets outlive their group's last member, minutes [default: 10080, 7 days]
    #[arg(long, value_name = "N")]
    offsets_retention_minutes: Option<u64>,
}

/// Where metrics and health are served if no address is named.
const DEFAULT_HTTP: &str = "127.0.0.1:9645";

/// `--cores`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "CoresInFile")]
pub enum Cores {
    /// Wherever the kernel puts them.
    NotPinned,
    /// One each.
    Pinned(Vec<usize>),
}

/// In a file a list of numbers is natural; text as on the command line is fine too.
#[derive(Deserialize)]
#[serde(untagged)]
enum CoresInFile {
    List(Vec<usize>),
    Text(String),
}

impl TryFrom<CoresInFile> for Cores {
    type Error = String;

    fn try_from(cores: CoresInFile) -> Result<Self, String> {
        match cores {
            CoresInFile::List(list) => Cores::pinned(list),
            CoresInFile::Text(text) => text.parse(),
        }
    }
}

impl std::str::FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Cores::NotPinned);
        }
        let list: Result<Vec<usize>, _> = text.split(',').map(|core| core.trim().parse()).collect();
        Cores::pinned(list.map_err(|_| "write cores as 0,1,2, or none".to_owned())?)
    }
}

impl Cores {
    fn pinned(list: Vec<usize>) -> Result<Self, String> {
        let mut sorted = list.clone();
        sorted.sort_unstable();
        sorted.dedup();
        match list.len() {
            0 => Err("name at least one core, or write none".to_owned()),
            count if count != sorted.len() => Err("a core is named twice".to_owned()),
            _ => Ok(Cores::Pinned(list)),
        }
    }
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    data: Option<PathBuf>,
    listen: Option<SocketAddr>,
    http: Option<SocketAddr>,
    shards: Option<usize>,
    cores: Option<Cores>,
    poll_us: Option<u64>,
    rounds_in_flight: Option<usize>,
    dsync_writes: Option<usize>,
    disk_profile: Option<ProfileSource>,
    advertise: Option<String>,
    broker_id: Option<u32>,
    join: Option<Vec<String>>,
    rack: Option<String>,
    metadata_voters: Option<usize>,
    heartbeat_ms: Option<u64>,
    session_ms: Option<u64>,
    election_ms: Option<u64>,
    replica_lag_ms: Option<u64>,
    default_replication_factor: Option<u32>,
    offsets_partitions: Option<u32>,
    offsets_retention_minutes: Option<u64>,
    producer_id_expiration_ms: Option<u64>,
    scrub_interval_s: Option<u64>,
}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Data directory.
    pub data: PathBuf,
    /// Listening address.
    pub listen: SocketAddr,
    /// Where metrics and health are served, if anywhere.
    pub http: Option<SocketAddr>,
    /// Shards, at least 1.
    pub shards: usize,
    /// One per shard.
    pub cores: Option<Vec<usize>>,
    /// Spinning before sleeping.
    pub poll: Duration,
    /// 1 to 4; `None` = as the disk's profile says.
    pub rounds_in_flight: Option<usize>,
    /// 0 to 64; `None` = as the disk's profile says.
    pub dsync_writes: Option<usize>,
    /// Where that profile is.
    pub disk_profile: ProfileSource,
    /// The host that clients and other brokers are told.
    pub advertise: Option<String>,
    /// How it takes part in a cluster.
    pub cluster: ClusterConfig,
    /// Silence after which a producer is forgotten.
    pub producer_id_expiration: Duration,
    /// Between the begins of two readings of all that is stored; zero = none.
    pub scrub_interval: Duration,
    /// Coordinators of consumer groups.
    pub groups: GroupSettings,
}

impl ServeArguments {
    /// Arguments over file over defaults.
    pub fn settings(self) -> Result<Settings, Failure> {
        let file = match &self.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let usable = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
        self.resolve(file, usable)
    }

    /// `usable`: the cores that this process may run on.
    fn resolve(self, file: File, usable: Vec<usize>) -> Result<Settings, Failure> {
        let cluster = self.cluster(&file)?;
        let listen = self.listen.or(file.listen);
        let default_listen = SocketAddr::from(([127, 0, 0, 1], schema::DEFAULT_PORT));
        let (shards, cores) = place(self.shards.or(file.shards), self.cores.or(file.cores), usable)?;
        let rounds_in_flight = self.rounds_in_flight.or(file.rounds_in_flight);
        if let Some(rounds) = rounds_in_flight.filter(|rounds| !(1..=4).contains(rounds)) {
            return Err(Failure::usage(format!("rounds-in-flight is 1 to 4, not {rounds}")));
        }
        let dsync_writes = self.dsync_writes.or(file.dsync_writes);
        if let Some(writes) = dsync_writes.filter(|writes| *writes > 64) {
            return Err(Failure::usage(format!("dsync-writes is 0 to 64, not {writes}")));
        }
        let poll_us = self.poll_us.or(file.poll_us).unwrap_or(0);
        if poll_us > 1_000_000 {
            return Err(Failure::usage(format!("poll-us is at most 1000000, not {poll_us}")));
        }
        let mut groups = GroupSettings::default();
        groups.partitions = self.offsets_partitions.or(file.offsets_partitions).unwrap_or(groups.partitions);
        if !(1..=OFFSETS_PARTITIONS_MAX).contains(&groups.partitions) {
            let found = groups.partitions;
            return Err(Failure::usage(format!(
                "offsets-partitions is 1 to {OFFSETS_PARTITIONS_MAX}, not {found}"
            )));
        }
        let minutes = self.offsets_retention_minutes.or(file.offsets_retention_minutes);
        groups.offsets_retention_minutes = minutes.unwrap_or(groups.offsets_retention_minutes);
        let producer_id_expiration_ms = self.producer_id_expiration_ms.or(file.producer_id_expiration_ms);
        if producer_id_expiration_ms == Some(0) {
            return Err(Failure::usage("producer-id-expiration-ms is at least 1"));
        }
        Ok(Settings {
            data: self.data.or(file.data).unwrap_or_else(|| PathBuf::from("ringlog-data")),
            listen: listen.unwrap_or(default_listen),
            http: self.http.or(file.http),
            shards,
            cores,
            poll: Duration::from_micros(poll_us),
            rounds_in_flight,
            dsync_writes,
            disk_profile: self.disk_profile.or(file.disk_profile).unwrap_or_default(),
            advertise: self.advertise.or(file.advertise),
            cluster,
            groups,
            producer_id_expiration: producer_id_expiration_ms
                .map_or(PRODUCER_ID_EXPIRATION_DEFAULT, Duration::from_millis),
            scrub_interval: self
                .scrub_interval_s
                .or(file.scrub_interval_s)
                .map_or(Duration::from_millis(SCRUB_INTERVAL_MS_DEFAULT), Duration::from_secs),
        })
    }
}

impl ServeArguments {
    fn cluster(&self, file: &File) -> Result<ClusterConfig, Failure> {
        let default = ClusterConfig::default();
        let ms = |value: Option<u64>, default: Duration| value.map_or(default, Duration::from_millis);
        let cluster = ClusterConfig {
            broker: self.broker_id.or(file.broker_id).map_or(default.broker, BrokerId::new),
            join: self.join.clone().or_else(|| file.join.clone()).unwrap_or_default(),
            rack: self.rack.clone().or_else(|| file.rack.clone()).unwrap_or_default(),
            metadata_voters: self.metadata_voters.or(file.metadata_voters).unwrap_or(default.metadata_voters),
            heartbeat: ms(self.heartbeat_ms.or(file.heartbeat_ms), default.heartbeat),
            session: ms(self.session_ms.or(file.session_ms), default.session),
            election: ms(self.election_ms.or(file.election_ms), default.election),
            replica_lag: ms(self.replica_lag_ms.or(file.replica_lag_ms), default.replica_lag),
            replication_factor: self
                .default_replication_factor
                .or(file.default_replication_factor)
                .unwrap_or(default.replication_factor),
        };
        if !(1..=REPLICAS_PER_PARTITION_MAX).contains(&(cluster.replication_factor as usize)) {
            let found = cluster.replication_factor;
            return Err(Failure::usage(format!(
                "default-replication-factor is 1 to {REPLICAS_PER_PARTITION_MAX}, not {found}"
            )));
        }
        if cluster.replica_lag < REPLICA_LAG_MIN {
            return Err(Failure::usage(format!(
                "replica-lag-ms is at least {}",
                REPLICA_LAG_MIN.as_millis()
            )));
        }
        let voters = cluster.metadata_voters;
        if voters.is_multiple_of(2) || voters > METADATA_VOTERS_MAX {
            return Err(Failure::usage(format!("metadata-voters is 1, 3, 5 or 7, not {voters}")));
        }
        let ms = |duration: Duration| duration.as_millis();
        let beat = ms(cluster.heartbeat);
        if beat < 10 || 2 * beat > ms(cluster.session) || 2 * beat > ms(cluster.election) {
            return Err(Failure::usage(format!(
                "heartbeat-ms is at least 10, and session-ms and election-ms are at least twice as much; they are {beat}, \
                 {} and {}",
                ms(cluster.session),
                ms(cluster.election)
            )));
        }
        if let Some(wrong) = cluster.join.iter().find(|address| !address.contains(':')) {
            return Err(Failure::usage(format!("join takes HOST:PORT, not {wrong}")));
        }
        Ok(cluster)
    }
}

/// How many shards, and on which cores.
pub fn place(
    shards: Option<usize>,
    cores: Option<Cores>,
    usable: Vec<usize>,
) -> Result<(usize, Option<Vec<usize>>), Failure> {
    let listed = |list: &[usize]| list.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    if shards == Some(0) || shards.is_some_and(|shards| shards > usize::from(u16::MAX)) {
        return Err(Failure::usage("shards is 1 to 65535; without it there is one per core"));
    }
    match cores {
        Some(Cores::NotPinned) => Ok((shards.unwrap_or(usable.len().max(1)), None)),
        Some(Cores::Pinned(list)) => {
            if let Some(core) = list.iter().find(|core| !usable.contains(core)) {
                let usable = listed(&usable);
                return Err(Failure::usage(format!("core {core} cannot be used; cores are {usable}")));
            }
            match shards {
                Some(shards) if shards != list.len() => Err(Failure::usage(format!(
                    "{shards} shards on cores {}: name one core for each shard, or leave one of the two out",
                    listed(&list)
                ))),
                _ => Ok((list.len(), Some(list))),
            }
        }
        None => {
            let shards = shards.unwrap_or(usable.len().max(1));
            let pinned = usable.len() > 1 && shards <= usable.len();
            Ok((shards, pinned.then(|| usable[..shards].to_vec())))
        }
    }
}

fn read(path: &Path) -> Result<File, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

/// The cores in words.
pub fn pinning(settings: &Settings) -> String {
    match &settings.cores {
        None => "not pinned to cores".to_owned(),
        Some(cores) => {
            let s = if cores.len() == 1 { "" } else { "s" };
            let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
            format!("pinned to core{s} {}", cores.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        serve: ServeArguments,
    }

    fn settings(line: &str, file: &str, usable: &[usize]) -> Result<Settings, String> {
        let file = toml::from_str(file).map_err(|error| error.to_string())?;
        let words = std::iter::once("serve").chain(line.split_whitespace());
        let command = Command::try_parse_from(words).map_err(|error| error.to_string())?;
        let settings = command.serve.resolve(file, usable.to_vec());
        settings.map_err(|failure| failure.message().unwrap_or_default().to_owned())
    }

    #[test]
    fn shards_and_cores() {
        type Expect<'a> = Result<(usize, Option<&'a [usize]>), &'a str>;
        let rows: [(&str, &str, &[usize], Expect<'_>); 15] = [
            ("", "", &[0, 1], Ok((2, Some(&[0, 1])))),
            ("", "", &[3], Ok((1, None))),
            ("", "", &[], Ok((1, None))),
            ("--shards 1", "", &[4, 5], Ok((1, Some(&[4])))),
            ("--shards 3", "", &[0, 1], Ok((3, None))),
            ("--cores none", "", &[0, 1], Ok((2, None))),
            ("--cores 1", "", &[0, 1], Ok((1, Some(&[1])))),
            ("--cores 1,0", "", &[0, 1], Ok((2, Some(&[1, 0])))),
            ("--cores 2", "", &[0, 1], Err("core 2 cannot be used; cores are 0,1")),
            ("--cores 0,0", "", &[0, 1], Err("named twice")),
            ("--cores all", "", &[0, 1], Err("write cores as 0,1,2, or none")),
            ("--shards 2 --cores 0", "", &[0, 1], Err("one core for each shard")),
            ("--shards 0", "", &[0, 1], Err("1 to 65535")),
            ("", "cores = [1]", &[0, 1], Ok((1, Some(&[1])))),
            ("--cores none", "cores = '1'\nshards = 1", &[0, 1], Ok((1, None))),
        ];
        for (line, file, usable, expect) in rows {
            match (settings(line, file, usable), expect) {
                (Ok(got), Ok((shards, cores))) => {
                    assert_eq!((got.shards, got.cores.as_deref()), (shards, cores), "'{line}' '{file}'");
                }
                (Err(error), Err(expect)) => assert!(error.contains(expect), "'{line}' '{file}': {error}"),
                (got, expect) => panic!("'{line}' '{file}': {got:?}, expected {expect:?}"),
            }
        }
    }

    #[test]
    fn arguments_over_file_over_defaults() {
        let file = "data = '/f'\nlisten = '127.0.0.1:1'\nhttp = '127.0.0.1:3'\npoll-us = 7\nrounds-in-flight = 3\n\
                    dsync-writes = 5\ndisk-profile = 'none'\nadvertise = 'f'\noffsets-partitions = 5\n\
                    offsets-retention-minutes = 6\nbroker-id = 4\njoin = ['a:1', 'b:2']\nrack = 'r'\n\
                    metadata-voters = 5\nheartbeat-ms = 20\nsession-ms = 50\nelection-ms = 60\nreplica-lag-ms = 700\nscrub-interval-s = 0\n\
                    default-replication-factor = 2";
        let defaults = settings("", "", &[0]).unwrap();
        assert_eq!((defaults.listen.to_string().as_str(), defaults.http), ("127.0.0.1:9644", None));
        assert_eq!((defaults.poll, defaults.rounds_in_flight), (Duration::ZERO, None));
        assert_eq!((defaults.dsync_writes, defaults.disk_profile), (None, ProfileSource::Auto));
        let from_file = settings("", file, &[0]).unwrap();
        let expect = Settings {
            data: "/f".into(),
            listen: "127.0.0.1:1".parse().unwrap(),
            http: Some("127.0.0.1:3".parse().unwrap()),
            shards: 1,
            cores: None,
            poll: Duration::from_micros(7),
            rounds_in_flight: Some(3),
            dsync_writes: Some(5),
            disk_profile: ProfileSource::Nothing,
            advertise: Some("f".into()),
            cluster: ClusterConfig {
                broker: BrokerId::new(4),
                join: vec!["a:1".into(), "b:2".into()],
                rack: "r".into(),
                metadata_voters: 5,
                heartbeat: Duration::from_millis(20),
                session: Duration::from_millis(50),
                election: Duration::from_millis(60),
                replica_lag: Duration::from_millis(700),
                replication_factor: 2,
            },
            groups: GroupSettings { partitions: 5, offsets_retention_minutes: 6 },
            producer_id_expiration: PRODUCER_ID_EXPIRATION_DEFAULT,
            scrub_interval: Duration::ZERO,
        };
        assert_eq!(from_file, expect);
        let line = "--data /a --listen 127.0.0.1:2 --http --poll-us 8 --rounds-in-flight 4 --dsync-writes 0 \
                    --disk-profile /p --advertise a --broker-id 5 --join c:3 --rack s --metadata-voters 1 \
                    --heartbeat-ms 30 --session-ms 70 --election-ms 80 --replica-lag-ms 800 --scrub-interval-s 9 \
                    --default-replication-factor 5";
        let from_line = settings(line, file, &[0]).unwrap();
        let expect = Settings {
            data: "/a".into(),
            listen: "127.0.0.1:2".parse().unwrap(),
            http: Some("127.0.0.1:9645".parse().unwrap()),
            poll: Duration::from_micros(8),
            rounds_in_flight: Some(4),
            dsync_writes: Some(0),
            disk_profile: ProfileSource::File("/p".into()),
            advertise: Some("a".into()),
            cluster: ClusterConfig {
                broker: BrokerId::new(5),
                join: vec!["c:3".into()],
                rack: "s".into(),
                metadata_voters: 1,
                heartbeat: Duration::from_millis(30),
                session: Duration::from_millis(70),
                election: Duration::from_millis(80),
                replica_lag: Duration::from_millis(800),
                replication_factor: 5,
            },
            scrub_interval: Duration::from_secs(9),
            ..expect
        };
        assert_eq!(from_line, expect);
    }

    #[test]
    fn values_that_cannot_be() {
        let rows = [
            ("--rounds-in-flight 5", "", "1 to 4"),
            ("--dsync-writes 65", "", "0 to 64"),
            ("--poll-us 1000001", "", "at most 1000000"),
            ("", "producer-id-expiration-ms = 0", "at least 1"),
            ("--offsets-partitions 0", "", "1 to 1000"),
            ("--metadata-voters 2", "", "1, 3, 5 or 7"),
            ("--metadata-voters 9", "", "1, 3, 5 or 7"),
            ("--heartbeat-ms 9", "", "at least 10"),
            ("--session-ms 299", "", "at least twice"),
            ("--election-ms 299", "", "at least twice"),
            ("--replica-lag-ms 99", "", "at least 100"),
            ("--default-replication-factor 0", "", "1 to 16"),
            ("--default-replication-factor 17", "", "1 to 16"),
            ("--join here", "", "HOST:PORT"),
            ("--listen here", "", "invalid"),
            ("--http here", "", "invalid"),
            ("", "port = 1", "unknown field"),
            ("", "listen = 'here'", "invalid"),
            ("", "shards = -1", "invalid"),
        ];
        for (line, file, expect) in rows {
            let error = settings(line, file, &[0]).expect_err(&format!("'{line}' '{file}'"));
            assert!(error.contains(expect), "'{line}' '{file}': {error}");
        }
    }
}
