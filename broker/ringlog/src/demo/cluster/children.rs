//! The brokers of the demo: processes of this very program.
//!
//! Owner: the demo. Lifecycle: started one after the other, the first alone, the others joining it, on ports that the system
//! chooses; ended with SIGKILL when dropped, and by the kernel when the demo's own process is gone. Invariant: what
//! is killed is a child of this process, by its handle.

use crate::failure::Failure;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

/// How long a broker may take to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Lines of a broker's log that are shown after a failure.
const LAST_WORDS: usize = 15;

/// See the module.
pub struct Children {
    directory: PathBuf,
    shards: u16,
    addresses: Vec<String>,
    /// By broker, from 1.
    processes: Mutex<Vec<Child>>,
}

impl Children {
    /// Brokers 1 to `count`.
    pub fn start(count: u32, shards: u16, directory: &Path) -> Result<Self, Failure> {
        let mut children = Self {
            directory: directory.to_owned(),
            shards,
            addresses: Vec::new(),
            processes: Mutex::default(),
        };
        for broker in 1..=count {
            let (process, address) = children.spawn(broker, "127.0.0.1:0")?;
            children.processes.get_mut().unwrap_or_else(PoisonError::into_inner).push(process);
            children.addresses.push(address);
        }
        Ok(children)
    }

    /// Where they listen, by broker.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Kills a broker as a crash would.
    pub fn kill(&self, broker: u32) -> Result<(), Failure> {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        let process = &mut processes[broker as usize - 1];
        let killed = process.kill().and_then(|()| process.wait());
        killed
            .map(drop)
            .map_err(|error| Failure::operation(format!("broker {broker} cannot be killed: {error}")))
    }

    /// Starts a killed broker again, where it was.
    pub fn restart(&self, broker: u32) -> Result<(), Failure> {
        let (process, _) = self.spawn(broker, &self.addresses[broker as usize - 1])?;
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)[broker as usize - 1] = process;
        Ok(())
    }

    fn log(&self, broker: u32) -> PathBuf {
        self.directory.join(format!("broker-{broker}.log"))
    }

    fn spawn(&self, broker: u32, listen: &str) -> Result<(Child, String), Failure> {
        let cannot = |why: &dyn std::fmt::Display| {
            Failure::operation(format!("broker {broker} does not start: {why}"))
        };
        let program = std::env::current_exe().map_err(|error| cannot(&error))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(broker))
            .map_err(|error| cannot(&error))?;
        let mut command = Command::new(program);
        command.arg("serve").args(["--end-with-parent", &std::process::id().to_string()]);
        command.arg("--data").arg(self.directory.join(format!("broker-{broker}")));
        command.args(["--listen", listen, "--advertise", "127.0.0.1"]);
        command.args(["--broker-id", &broker.to_string(), "--shards", &self.shards.to_string()]);
        if let Some(first) = self.addresses.first().filter(|_| broker != 1) {
            command.args(["--join", first]);
        }
        // Not of the terminal's group: Ctrl-C is the demo's to hear.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().map_err(|error| cannot(&error))?;
        let output = process.stdout.take().expect("it was asked for");
        let (ready, told) = mpsc::channel();
        // Reads on to its end, so that the broker never waits for it.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("ready ") {
                    // Nobody listens any more when it comes too late.
                    let _ = ready.send(address.to_owned());
                }
            }
        });
        match told.recv_timeout(READY_WITHIN) {
            Ok(address) => Ok((process, address)),
            Err(_) => {
                let _ = process.kill().and_then(|()| process.wait());
                self.tell_last_words_of(broker);
                Err(cannot(&"it did not say that it is ready; its last words are above"))
            }
        }
    }

    /// The ends of all logs, on standard error.
    pub fn tell_last_words(&self) {
        (1..=self.addresses.len() as u32).for_each(|broker| self.tell_last_words_of(broker));
    }

    fn tell_last_words_of(&self, broker: u32) {
        let text = std::fs::read_to_string(self.log(broker)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LAST_WORDS)..] {
            eprintln!("broker {broker}: {line}");
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for process in self.processes.get_mut().unwrap_or_else(PoisonError::into_inner) {
            // One that has ended is no fault.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
