//! A broker of this very program, in a process of its own, for as long as a benchmark lasts.
//!
//! Owner: the benchmark. A process of its own, so that its processor time, memory and cores are its own
//! too. Lifecycle: started on a temporary directory, `ready` read from its output, stopped with SIGTERM and
//! waited for when dropped; then the directory goes.

use crate::failure::Failure;
use crate::place::Place;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A running broker.
pub struct EmbeddedBroker {
    child: Child,
    address: String,
    /// Removed after the process has ended.
    place: Place,
}

impl EmbeddedBroker {
    /// Starts a broker with `shards` shards on `cores` (empty = wherever the kernel puts them).
    pub fn start(place: Place, cores: &[usize]) -> Result<Self, Failure> {
        let fail = |what: String| Failure::usage(format!("the embedded broker cannot start: {what}"));
        let program = std::env::current_exe().map_err(|error| fail(error.to_string()))?;
        let shards = cores.len().max(1);
        let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
        let mut child = Command::new(program)
            .arg("serve")
            .arg("--data")
            .arg(place.directory.path().join("data"))
            .args(["--listen", "127.0.0.1:0", "--shards", &shards.to_string()])
            // What is compared must not depend on a second's measurement.
            .args(["--disk-profile", "none"])
            .args(["--cores", &if cores.is_empty() { "none".to_owned() } else { cores.join(",") }])
            .env("RINGLOG_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| fail(error.to_string()))?;
        let output = child.stdout.take().map(BufReader::new);
        let ready = output.into_iter().flat_map(BufRead::lines).map_while(Result::ok);
        let address = ready.filter_map(|line| line.strip_prefix("ready ").map(str::to_owned)).next();
        match address {
            Some(address) => Ok(Self { child, address, place }),
            None => {
                let _ = child.wait();
                Err(fail("see its message above".to_owned()))
            }
        }
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its data is.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
