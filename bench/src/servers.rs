//! Servers of other brokers, started for a comparison or a test: installed binaries on a directory of ours.
//!
//! Owner: whoever compares. Lifecycle: a [`ServerPlan`] can be started again where clients expect it; a
//! [`Server`] is a child process, killed and waited for when dropped, and says where it listens. Its log is
//! `server.log` in the directory. Invariants: loopback only; the settings are those of `bench/servers/*.conf`, which
//! `bench/servers.sh` uses too.
//! Absent on purpose: installing (the script does), and removing the directory.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long a server may take to be ready; it may have a log of gigabytes to read first.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Lines of its log that the message of a failed start carries.
const LAST_LINES: usize = 4;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// `nats-server` with JetStream.
    Nats,
    /// `redis-server`.
    Redis,
    /// `iggy-server`.
    Iggy,
}

/// What its acknowledgement is to mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledge {
    /// Whatever it means as the server comes.
    Defaults,
    /// The operating system has it.
    FromPageCache,
    /// The device has it.
    FromDevice,
}

impl ServerKind {
    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Nats => "nats-server",
            Self::Redis => "redis-server",
            Self::Iggy => "iggy-server",
        }
    }

    /// Names another program than the one on `PATH`.
    fn variable(self) -> &'static str {
        match self {
            Self::Nats => "NATS_SERVER",
            Self::Redis => "REDIS_SERVER",
            Self::Iggy => "IGGY_SERVER",
        }
    }

    /// Where the program is, if it is installed.
    pub fn find(self) -> Option<PathBuf> {
        if let Some(named) = std::env::var_os(self.variable()) {
            return Some(named.into());
        }
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(self.program())).find(|file| file.is_file())
    }

    fn config(self, acknowledge: Acknowledge) -> &'static str {
        match (self, acknowledge) {
            (Self::Nats, Acknowledge::Defaults) => include_str!("../servers/nats-defaults.conf"),
            (Self::Nats, Acknowledge::FromPageCache) => include_str!("../servers/nats-page-cache.conf"),
            (Self::Nats, Acknowledge::FromDevice) => include_str!("../servers/nats-device.conf"),
            (Self::Redis, Acknowledge::Defaults) => include_str!("../servers/redis-defaults.conf"),
            (Self::Redis, Acknowledge::FromPageCache) => include_str!("../servers/redis-page-cache.conf"),
            (Self::Redis, Acknowledge::FromDevice) => include_str!("../servers/redis-device.conf"),
            (Self::Iggy, Acknowledge::Defaults) => include_str!("../servers/iggy-defaults.conf"),
            (Self::Iggy, Acknowledge::FromPageCache) => include_str!("../servers/iggy-page-cache.conf"),
            (Self::Iggy, Acknowledge::FromDevice) => include_str!("../servers/iggy-device.conf"),
        }
    }

    /// What it logs when clients may come; `again`: on the data and the port of a life before.
    fn ready(self, again: bool) -> &'static str {
        match self {
            Self::Nats => "Server is ready",
            Self::Redis => "Ready to accept connections",
            Self::Iggy if again => "server has started on",
            // Its last step: by then it listens, and can tell its configuration, as it does only where it chose the port.
            Self::Iggy => "Current config written",
        }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No such program.
    #[error(
        "{program} is not installed: bench/servers.sh install {kind} says how, or name one in {variable}"
    )]
    Missing {
        /// Which.
        program: &'static str,
        /// As the script calls it.
        kind: &'static str,
        /// Of the environment.
        variable: &'static str,
    },
    /// The host.
    #[error("cannot start {program}: {error}")]
    Host {
        /// Which.
        program: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// It cannot sync before it acknowledges.
    #[error(
        "this nats-server is older than 2.10 and cannot acknowledge from the device: bench/servers.sh install nats"
    )]
    TooOld,
    /// It ended, or was not ready in time.
    #[error("{program} was not ready: {lines}")]
    NotReady {
        /// Which.
        program: &'static str,
        /// The end of its log.
        lines: String,
    },
}

/// A server that can be started, more than once on the same data and the same ports.
#[derive(Clone, Debug)]
pub struct ServerPlan {
    kind: ServerKind,
    acknowledge: Acknowledge,
    directory: PathBuf,
    cores: Vec<usize>,
    port: u16,
    monitor_port: u16,
    /// Where a server that chooses its port listened in its first life.
    told: OnceCell<String>,
}

impl ServerPlan {
    /// On `directory`, which is there, and on `cores` (empty = wherever the kernel puts it).
    ///
    /// # Errors
    /// No free port.
    pub fn new(
        kind: ServerKind,
        acknowledge: Acknowledge,
        directory: &Path,
        cores: &[usize],
    ) -> Result<Self, ServerError> {
        // Both are held at once, or they could be the same.
        let listen = || TcpListener::bind("127.0.0.1:0").and_then(|it| Ok((it.local_addr()?.port(), it)));
        let ports = listen().and_then(|first| Ok((first, listen()?)));
        let ((port, _held), (monitor_port, _held_too)) =
            ports.map_err(|error| ServerError::Host { program: kind.program(), error })?;
        let (directory, cores) = (directory.to_owned(), cores.to_vec());
        Ok(Self { kind, acknowledge, directory, cores, port, monitor_port, told: OnceCell::new() })
    }

    /// `HOST:PORT` of the monitoring port, if it has one.
    pub fn monitor(&self) -> Option<String> {
        (self.kind == ServerKind::Nats).then(|| format!("127.0.0.1:{}", self.monitor_port))
    }

    /// Starts it, and waits until clients may come.
    ///
    /// # Errors
    /// It is not installed, too old, or did not come up.
    pub fn start(&self) -> Result<Server, ServerError> {
        let program = self.kind.program();
        let kind = program.trim_end_matches("-server");
        let found = self.kind.find();
        let found = found.ok_or(ServerError::Missing { program, kind, variable: self.kind.variable() })?;
        let host = |error| ServerError::Host { program, error };
        let again = self.told.get();
        let spawned = self.spawn(&found, again).map_err(host)?;
        let (mut server, output, log) = spawned;
        let (tell, told) = mpsc::channel();
        let ready = self.kind.ready(again.is_some());
        // Ends with the server's output.
        std::thread::spawn(move || follow(output, log, ready, &tell));
        match told.recv_timeout(READY_TIMEOUT) {
            Ok(Ok(())) => {
                if self.kind == ServerKind::Iggy {
                    let told = again.map_or_else(|| told_address(&self.directory), |it| Ok(it.clone()));
                    server.address = told.map_err(host)?;
                    let _ = self.told.set(server.address.clone());
                }
                Ok(server)
            }
            ended => {
                server.kill();
                let lines = match ended {
                    Ok(Err(lines)) => lines,
                    _ => format!("it said nothing of it for {READY_TIMEOUT:?}"),
                };
                if lines.contains("unknown field \"sync_interval\"") {
                    return Err(ServerError::TooOld);
                }
                Err(ServerError::NotReady { program, lines })
            }
        }
    }

    fn spawn(
        &self,
        program: &Path,
        again: Option<&String>,
    ) -> io::Result<(Server, Box<dyn Read + Send>, std::fs::File)> {
        let config = self.directory.join("server.conf");
        std::fs::write(&config, self.kind.config(self.acknowledge))?;
        let log =
            std::fs::File::options().create(true).append(true).open(self.directory.join("server.log"))?;
        // Iggy pins its shards itself, and refuses a range beyond the number of cores that it may use.
        let mut command = if self.cores.is_empty() || self.kind == ServerKind::Iggy {
            Command::new(program)
        } else {
            // Becomes the program: the process is the server's own.
            let cores: Vec<String> = self.cores.iter().map(usize::to_string).collect();
            let mut command = Command::new("taskset");
            command.args(["-c", &cores.join(",")]).arg(program);
            command
        };
        let (port, monitor_port) = (self.port.to_string(), self.monitor_port.to_string());
        match self.kind {
            ServerKind::Nats => {
                command.arg("--config").arg(&config).arg("--store_dir").arg(&self.directory);
                command.args(["--addr", "127.0.0.1", "--port", &port, "--http_port", &monitor_port]);
                command.stdout(Stdio::null()).stderr(Stdio::piped());
            }
            ServerKind::Redis => {
                command.arg(&config).arg("--dir").arg(&self.directory);
                command.args(["--bind", "127.0.0.1", "--port", &port, "--daemonize", "no"]);
                command.stdout(Stdio::piped()).stderr(Stdio::null());
            }
            ServerKind::Iggy => {
                command.arg("--with-default-root-credentials").env("IGGY_CONFIG_PATH", &config);
                command.env("IGGY_SYSTEM_PATH", &self.directory).current_dir(&self.directory);
                command.env("IGGY_TCP_ADDRESS", again.map_or("127.0.0.1:0", String::as_str));
                // It pins its shards itself, from core 0 on if it is not told.
                if let Some(range) = core_range(&self.cores)? {
                    command.env("IGGY_SYSTEM_SHARDING_CPU_ALLOCATION", range);
                }
                command.stdout(Stdio::piped()).stderr(Stdio::null());
            }
        }
        let mut child = command.stdin(Stdio::null()).spawn()?;
        let output: Option<Box<dyn Read + Send>> = match self.kind {
            ServerKind::Nats => child.stderr.take().map(|it| Box::new(it) as Box<_>),
            ServerKind::Redis | ServerKind::Iggy => child.stdout.take().map(|it| Box::new(it) as Box<_>),
        };
        let address = format!("127.0.0.1:{port}");
        Ok((Server { child, address }, output.unwrap_or_else(|| Box::new(io::empty())), log))
    }
}

/// Where an Iggy server listens, by the configuration that it has written into its directory.
fn told_address(directory: &Path) -> io::Result<String> {
    let told = std::fs::read_to_string(directory.join("runtime/current_config.toml"))?;
    let tcp = told.lines().skip_while(|line| *line != "[tcp]").skip(1);
    let mut tcp = tcp.take_while(|line| !line.starts_with('['));
    let address = tcp.find_map(|line| line.strip_prefix("address = "));
    let nothing = || io::Error::other("its configuration names no address in [tcp]");
    address.map(|quoted| quoted.trim_matches('"').to_owned()).ok_or_else(nothing)
}

/// Cores as Iggy wants them: `1..3` are 1 and 2; nothing where none are named.
fn core_range(cores: &[usize]) -> io::Result<Option<String>> {
    let mut cores = cores.to_vec();
    cores.sort_unstable();
    let (Some(&first), Some(&last)) = (cores.first(), cores.last()) else { return Ok(None) };
    if cores.windows(2).any(|pair| pair[1] != pair[0] + 1) {
        return Err(io::Error::other("iggy-server takes cores that follow each other only: --broker-cores"));
    }
    Ok(Some(format!("{first}..{}", last + 1)))
}

/// Copies a server's output into its log; tells once that it is ready, or with which words it ended.
fn follow(output: impl Read, mut log: impl Write, ready: &str, tell: &mpsc::Sender<Result<(), String>>) {
    let mut last = VecDeque::new();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        // A log that cannot be written is no reason to let the server's output run full.
        let _ = writeln!(log, "{line}");
        if line.contains(ready) {
            // Who waited may be gone.
            let _ = tell.send(Ok(()));
        }
        last.push_back(line);
        if last.len() > LAST_LINES {
            last.pop_front();
        }
    }
    let _ = tell.send(Err(last.make_contiguous().join(" / ")));
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// `HOST:PORT` for clients.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with SIGKILL: it writes nothing more.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_when_it_says_so_and_its_last_words_are_kept() {
        let rows: [(&str, &[Result<(), &str>]); 3] = [
            ("a\nServer is ready\nb\n", &[Ok(()), Err("a / Server is ready / b")]),
            ("1\n2\n3\n4\n5\n", &[Err("2 / 3 / 4 / 5")]),
            ("", &[Err("")]),
        ];
        for (output, expect) in rows {
            let (tell, told) = mpsc::channel();
            let mut log = Vec::new();
            follow(output.as_bytes(), &mut log, "Server is ready", &tell);
            drop(tell);
            let told: Vec<Result<(), String>> = told.iter().collect();
            let expect: Vec<Result<(), String>> = expect.iter().map(|it| it.map_err(str::to_owned)).collect();
            assert_eq!(told, expect, "{output:?}");
            assert_eq!(log, output.as_bytes());
        }
    }

    #[test]
    fn iggy_tells_where_it_listens() {
        let directory = tempfile::tempdir().expect("a directory");
        let told = || told_address(directory.path()).ok();
        assert_eq!(told(), None);
        let runtime = directory.path().join("runtime");
        std::fs::create_dir(&runtime).expect("a directory");
        let http = "[http]\naddress = \"127.0.0.1:3000\"\n\n";
        let tcp = "[tcp]\nenabled = true\naddress = \"127.0.0.1:8090\"\n\n[tcp.tls]\n";
        for (config, expect) in [(format!("{http}{tcp}"), Some("127.0.0.1:8090")), (http.to_owned(), None)] {
            std::fs::write(runtime.join("current_config.toml"), config).expect("written");
            assert_eq!(told().as_deref(), expect);
        }
    }

    #[test]
    fn iggy_gets_cores_as_a_range() {
        let rows: [(&[usize], Option<Option<&str>>); 4] =
            [(&[], Some(None)), (&[1], Some(Some("1..2"))), (&[3, 2], Some(Some("2..4"))), (&[0, 2], None)];
        for (cores, expect) in rows {
            assert_eq!(core_range(cores).ok(), expect.map(|range| range.map(str::to_owned)), "{cores:?}");
        }
    }

    #[test]
    fn plans_have_ports_of_their_own() {
        let directory = std::env::temp_dir();
        let plan = |kind| ServerPlan::new(kind, Acknowledge::Defaults, &directory, &[]).expect("free ports");
        let nats = plan(ServerKind::Nats);
        assert_ne!(nats.port, nats.monitor_port);
        assert_eq!(plan(ServerKind::Redis).monitor(), None);
    }
}
