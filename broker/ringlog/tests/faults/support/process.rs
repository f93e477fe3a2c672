//! `ringlog serve` as a process: started, watched, stopped in order or killed by its id.

use super::DEADLINE;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The binary that is tested, unless `RINGLOG_BINARY` names another: a copy, for a run of hours.
const BINARY: &str = env!("CARGO_BIN_EXE_ringlog");

type Prepare = Box<dyn FnOnce(&mut Command)>;

/// How a broker is to be started.
pub struct Serve {
    data: PathBuf,
    listen: String,
    shards: usize,
    /// The program, that which is tested unless another is put here.
    pub binary: OsString,
    wrapper: Vec<OsString>,
    prepare: Option<Prepare>,
}

/// A start that came to nothing.
#[derive(Debug)]
pub struct NotStarted {
    /// How it ended.
    pub status: ExitStatus,
    /// All that it said on standard error.
    pub stderr: String,
}

/// A broker that serves; killed when dropped.
pub struct Broker {
    child: Child,
    /// Where it listens, once it is ready.
    pub address: SocketAddr,
    /// What it said before it was ready.
    pub said: Vec<String>,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

impl Serve {
    /// One shard on any free port, wherever the kernel puts it.
    pub fn new(data: &Path) -> Self {
        Self {
            data: data.to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            shards: 1,
            binary: std::env::var_os("RINGLOG_BINARY").unwrap_or_else(|| BINARY.into()),
            wrapper: Vec::new(),
            prepare: None,
        }
    }

    /// With so many shards.
    pub fn shards(self, shards: usize) -> Self {
        Self { shards, ..self }
    }

    /// On this address.
    pub fn listen(self, address: SocketAddr) -> Self {
        Self { listen: address.to_string(), ..self }
    }

    /// Run by these words, which must end by executing what follows them in their own process.
    pub fn through(self, wrapper: &[&str]) -> Self {
        Self { wrapper: wrapper.iter().map(Into::into).collect(), ..self }
    }

    /// With a last change of the command.
    pub fn prepared(self, prepare: impl FnOnce(&mut Command) + 'static) -> Self {
        Self { prepare: Some(Box::new(prepare)), ..self }
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Broker {
        self.try_start().unwrap_or_else(|refusal| panic!("the broker does not start: {refusal:?}"))
    }

    /// Starts it and waits until it serves or has ended.
    pub fn try_start(self) -> Result<Broker, NotStarted> {
        let mut broker = self.spawn();
        match broker.until_ready() {
            Ok(()) => Ok(broker),
            Err(status) => Err(NotStarted { status, stderr: broker.stderr() }),
        }
    }

    /// Starts it, and does not wait: see [`Broker::until_ready`].
    pub fn spawn(self) -> Broker {
        let mut words = self.wrapper;
        words.push(self.binary);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("serve").arg("--data").arg(&self.data);
        command.args(["--listen", &self.listen, "--cores", "none", "--shards", &self.shards.to_string()]);
        // A measurement at each of hundreds of starts would be most of the time.
        command.args(["--disk-profile", "none"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(prepare) = self.prepare {
            prepare(&mut command);
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let stdout = child.stdout.take().expect("it is piped");
        let mut stderr = child.stderr.take().expect("it is piped");
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What cannot be read has not been said.
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        Broker { child, address, said: Vec::new(), lines, stderr: Some(stderr) }
    }
}

impl Broker {
    /// Waits until it serves, or has ended with a status.
    pub fn until_ready(&mut self) -> Result<(), ExitStatus> {
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => {
                    let ready = line.strip_prefix("ready ").map(|at| at.parse().expect("an address"));
                    self.said.push(line);
                    if let Some(address) = ready {
                        self.address = address;
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("neither ready nor ended: {:?}", self.said),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`; what it had said on standard error.
    pub fn kill(mut self) -> String {
        self.child.kill().expect("it runs");
        self.ended();
        self.stderr()
    }

    /// SIGTERM, and an orderly end; what it said on standard error.
    #[track_caller]
    pub fn stop(mut self) -> String {
        // SAFETY: sends a signal to our own child, which has not been waited for; touches no memory.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        assert_eq!(sent, 0, "it runs");
        let status = self.ended();
        let stderr = self.stderr();
        assert!(status.success(), "{status}: {stderr}");
        self.said.extend(self.lines.iter());
        assert!(self.said.iter().any(|line| line == "stopped in order"), "{:?}", self.said);
        stderr
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// A line of `/proc/<id>/status`, in KiB.
    pub fn memory_kib(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let line = text.lines().find(|line| line.starts_with(name)).expect("the kernel tells");
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
    }

    fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) if began.elapsed() > DEADLINE => panic!("process {} does not end", self.id()),
                Ok(None) => {}
                Err(error) => panic!("process {}: {error}", self.id()),
            }
            // Nothing tells of a child's end with a deadline; its output ends a little before.
            match self.lines.recv_timeout(Duration::from_millis(5)) {
                Ok(line) => self.said.push(line),
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    fn stderr(&mut self) -> String {
        self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("broker {} said on standard error:\n{}", self.id(), self.stderr());
        }
    }
}
