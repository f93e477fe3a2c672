//! Processes of the tests: a broker that is surely gone at the end, and commands that surely end.
//!
//! Owner: one test. A broker listens on a free port and says which; nothing waits for a time, only for lines
//! and exits, with a limit after which the test fails.

use crate::stopped::stop;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A directory on the disk of the build, which is real where `/tmp` may not be.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build's directory can be written to")
}

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlog"));
    // The test's settings, not those of who runs it.
    command.env_remove("RINGLOG_BROKERS").env_remove("RINGLOG_DATA").env_remove("RINGLOG_LOG");
    command
}

/// A broker process.
pub struct Broker {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// What it said before `ready`.
    pub first_lines: Vec<String>,
    /// Where it listens.
    pub address: String,
}

impl Broker {
    /// Two shards on `data`, wherever the kernel puts them.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &["--shards", "2", "--cores", "none", "--listen", "127.0.0.1:0"])
    }

    /// With these arguments; without a measurement of the disk, unless they say otherwise.
    pub fn start_with(data: &Path, arguments: &[&str]) -> Self {
        let mut command = binary();
        command.arg("serve").arg("--data").arg(data).args(arguments).env("RINGLOG_LOG", "warn");
        if !arguments.contains(&"--disk-profile") {
            command.args(["--disk-profile", "none"]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary was built");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut broker = Self { child, lines, first_lines: Vec::new(), address: String::new() };
        loop {
            let line = broker.lines.recv_timeout(LIMIT).unwrap_or_else(|_| {
                panic!("the broker did not become ready; it said {:?}", broker.first_lines)
            });
            match line.strip_prefix("ready ") {
                Some(address) => {
                    broker.address = address.to_owned();
                    return broker;
                }
                None => broker.first_lines.push(line),
            }
        }
    }

    /// Runs a client command against it.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, b"")
    }

    /// The same with something on standard input.
    pub fn run_with(&self, arguments: &[&str], input: &[u8]) -> Ran {
        run_command(binary().args(arguments).env("RINGLOG_BROKERS", &self.address), input)
    }

    /// The command, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.args(arguments).env("RINGLOG_BROKERS", &self.address);
        command
    }

    /// Holds the whole process for `time`.
    pub fn pause(&self, time: Duration) {
        // The delay itself is what is planted; nothing is awaited.
        self.held(|| std::thread::sleep(time));
    }

    /// Holds the whole process while `act` is done.
    pub fn held<T>(&self, act: impl FnOnce() -> T) -> T {
        stop(self.child.id());
        let done = act();
        // SAFETY: the process is ours and not waited for yet, so that its id is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, libc::SIGCONT) }, 0);
        done
    }

    /// Stops it with a signal; how it exited, and what it said after `ready`.
    pub fn stop(mut self, signal: i32) -> (ExitStatus, Vec<String>) {
        // SAFETY: the process is ours and not waited for yet, so that its id is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
        let mut said = Vec::new();
        // The lines end when the process does.
        while let Ok(line) = self.lines.recv_timeout(LIMIT) {
            said.push(line);
        }
        (self.child.wait().expect("it is our child"), said)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Already gone after `stop`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    /// It must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stderr, self.text());
        self
    }

    /// It must have failed with this exit status, saying all of this on standard error.
    #[track_caller]
    pub fn failed(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for part in says {
            assert!(self.stderr.contains(part), "'{part}' is not in:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    /// Standard output.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as one JSON object per line.
    #[track_caller]
    pub fn json(&self) -> Vec<serde_json::Value> {
        let text = self.text();
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        text.lines().map(parse).collect()
    }
}

/// Runs the binary without a broker.
pub fn run(arguments: &[&str]) -> Ran {
    run_command(binary().args(arguments), b"")
}

fn run_command(command: &mut Command, input: &[u8]) -> Ran {
    let described = format!("{command:?}");
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary was built");
    let id = child.id() as i32;
    let mut standard_input = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    // A command that fails early leaves its input unread; that is its right.
    let writer = std::thread::spawn(move || drop(standard_input.write_all(&input)));
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || drop(sender.send(child.wait_with_output())));
    let Ok(output) = ended.recv_timeout(LIMIT) else {
        // SAFETY: nobody has waited for the process, or the channel would have its output.
        unsafe { libc::kill(id, libc::SIGKILL) };
        panic!("{described} did not end");
    };
    let output = output.expect("it is our child");
    writer.join().expect("writing does not panic");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A file in `directory`.
pub fn file(directory: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, content).expect("the directory can be written to");
    path
}
