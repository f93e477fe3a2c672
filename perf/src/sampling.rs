//! Looking at a running process from outside: stacks many times a second, and how many system calls it makes.
//!
//! Drives `perf record`, `perf script` and `perf stat`, and `strace` where the kernel does not let `perf` count
//! system calls. A sampler is made for one process, looks for as long as it is told to, and leaves the process
//! as it was. Invariants: every child that is started is waited for; a refusal says what to install or which
//! setting to change. Absent on purpose: `perf_event_open` by hand: unwinding and symbols are `perf`'s.

mod system_calls;

pub use system_calls::{Source, SystemCallCounter, SystemCalls};

use crate::flame::Stacks;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

const DATA: &str = "perf.data";
/// What is printed of a sample: all but its period, so that every sample counts the same.
const FIELDS: &str = "comm,pid,tid,time,event,ip,sym,dso";

/// How `perf` finds the callers of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallGraph {
    /// By frame pointers: cheap, and only for programs that were built with them
    /// (`RUSTFLAGS=-Cforce-frame-pointers=yes`).
    FramePointers,
    /// By copying the stack and unwinding it afterwards: for every program; some 8 MB per second and core.
    Dwarf,
}

/// Why a process could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SamplingError {
    /// `perf` is not there.
    #[error(
        "perf is not installed: apt-get install linux-perf (Debian), linux-tools-generic (Ubuntu), dnf install perf (Fedora)"
    )]
    NoPerf,
    /// The kernel forbids it.
    #[error(
        "the kernel does not let this user look at processes (kernel.perf_event_paranoid = {paranoid}): run as root, or: sysctl -w kernel.perf_event_paranoid=1"
    )]
    Forbidden {
        /// The setting, as it is.
        paranoid: i32,
    },
    /// The process has ended.
    #[error("the process {pid} has ended")]
    Gone {
        /// Which one.
        pid: u32,
    },
    /// `perf` ended with something else.
    #[error("{command} failed: {message}")]
    Failed {
        /// `perf record`, `perf script`.
        command: &'static str,
        /// Its last words.
        message: String,
    },
    /// A process or a file.
    #[error("{command}: {error}")]
    Io {
        /// What was run.
        command: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// What to look at, and how.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    /// The process, all its threads.
    pub pid: u32,
    /// For how long.
    pub duration: Duration,
    /// Samples per second of each thread that runs.
    pub frequency_hz: u32,
    /// How callers are found.
    pub call_graph: CallGraph,
}

/// `perf record` under way. Dropped, it ends and leaves no process behind.
#[derive(Debug)]
pub struct Recording {
    sampler: Sampler,
    tool: Tool,
}

/// A program that looks at another one. Dropped, it is asked to end as a user would and waited for: interrupted,
/// it lets go of the process that it looks at.
#[derive(Debug)]
struct Tool(Child);

impl Tool {
    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    fn interrupt(&self) {
        // SAFETY: a signal to a child that has not been waited for, so that the number is still its own.
        unsafe { libc::kill(self.0.id() as libc::pid_t, libc::SIGINT) };
    }

    /// Waits for its end: how it ended, and what it wrote to its standard error.
    fn finish(&mut self) -> io::Result<(ExitStatus, String)> {
        let mut words = String::new();
        if let Some(stderr) = &mut self.0.stderr {
            stderr.read_to_string(&mut words)?;
        }
        Ok((self.0.wait()?, words))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.interrupt();
            let _ = self.0.wait();
        }
    }
}

/// The version of `perf`.
///
/// # Errors
/// [`SamplingError::NoPerf`], also for a wrapper whose program for this kernel is missing.
pub fn perf_version() -> Result<String, SamplingError> {
    match Command::new("perf").arg("--version").output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(_) => Err(SamplingError::NoPerf),
        Err(error) => Err(start_error("perf --version", error)),
    }
}

impl Sampler {
    /// Begins to look. Samples go to `scratch`, a folder with room for some hundred MB; a second call in it
    /// forgets those of the first.
    ///
    /// # Errors
    /// `perf` cannot be started.
    pub fn start(&self, scratch: &Path) -> Result<Recording, SamplingError> {
        let call_graph = match self.call_graph {
            CallGraph::FramePointers => "fp",
            CallGraph::Dwarf => "dwarf,8192",
        };
        let child = Command::new("perf")
            .args(["record", "--quiet", "--call-graph", call_graph])
            .args(["--freq", &self.frequency_hz.to_string(), "--pid", &self.pid.to_string()])
            .arg("--output")
            .arg(scratch.join(DATA))
            .args(["--", "sleep", &self.duration.as_secs_f64().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| start_error("perf record", error))?;
        Ok(Recording { sampler: *self, tool: Tool(child) })
    }

    /// The stacks that [`Sampler::start`] has put into `scratch`; takes longer than recording them.
    ///
    /// # Errors
    /// `perf` failed.
    pub fn stacks(scratch: &Path) -> Result<Stacks, SamplingError> {
        let failed = |error| SamplingError::Io { command: "perf script", error };
        // A file takes what a pipe would have to be emptied of.
        let words = scratch.join("perf.script.messages");
        let messages = std::fs::File::create(&words).map_err(failed)?;
        // Without --no-inline, addresses are looked up one by one in the debug information: minutes.
        let mut script = Command::new("perf")
            .args(["script", "--no-inline", "--force", "--fields", FIELDS, "--input"])
            .arg(scratch.join(DATA))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(messages)
            .spawn()
            .map_err(|error| start_error("perf script", error))?;
        let folded = match script.stdout.take() {
            Some(stdout) => Stacks::fold(BufReader::new(stdout)),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let status = script.wait().map_err(failed)?;
        let stacks = folded.map_err(failed)?;
        if status.success() {
            return Ok(stacks);
        }
        let words = std::fs::read_to_string(words).unwrap_or_default();
        let message = words.lines().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
        Err(SamplingError::Failed { command: "perf script", message: message.trim().to_owned() })
    }

    /// What the words of a failed `perf record` mean.
    fn refusal(&self, words: &str, paranoid: Option<i32>) -> SamplingError {
        let says = |part: &str| words.to_ascii_lowercase().contains(part);
        if says("no such process") || says("couldn't create thread/cpu maps") {
            return SamplingError::Gone { pid: self.pid };
        }
        if says("perf_event_paranoid") || says("permission") || says("not permitted") {
            return SamplingError::Forbidden { paranoid: paranoid.unwrap_or(-1) };
        }
        let line = words.lines().map(str::trim).find(|line| !line.is_empty() && *line != "Error:");
        let message = line.unwrap_or("it did not say why").to_owned();
        SamplingError::Failed { command: "perf record", message }
    }
}

impl Recording {
    /// Whether the time is over, or it failed.
    pub fn has_ended(&mut self) -> bool {
        self.tool.has_ended()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// No permission, no process, or `perf` failed.
    pub fn finish(mut self) -> Result<(), SamplingError> {
        let failed = |error| SamplingError::Io { command: "perf record", error };
        let (status, words) = self.tool.finish().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        // Of a process that is gone, a quiet `perf` says nothing.
        if !Path::new(&format!("/proc/{}", self.sampler.pid)).exists() {
            return Err(SamplingError::Gone { pid: self.sampler.pid });
        }
        Err(self.sampler.refusal(&words, paranoid()))
    }
}

fn paranoid() -> Option<i32> {
    std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?.trim().parse().ok()
}

fn start_error(command: &'static str, error: io::Error) -> SamplingError {
    match error.kind() {
        io::ErrorKind::NotFound => SamplingError::NoPerf,
        _ => SamplingError::Io { command, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_gone_is_named() {
        if perf_version().is_err() {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let sampler = Sampler {
            // Above the largest number that Linux gives.
            pid: (1 << 22) + 1,
            duration: Duration::from_millis(10),
            frequency_hz: 99,
            call_graph: CallGraph::FramePointers,
        };
        let error = sampler.start(scratch.path()).unwrap().finish().unwrap_err();
        assert!(matches!(error, SamplingError::Gone { pid } if pid == (1 << 22) + 1), "{error}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let sampler = Sampler {
            pid: 77,
            duration: Duration::from_secs(1),
            frequency_hz: 99,
            call_graph: CallGraph::Dwarf,
        };
        let rows = [
            (
                "Error:\nAccess to performance monitoring and observability operations is limited.\n\
                 Consider adjusting /proc/sys/kernel/perf_event_paranoid setting",
                "sysctl -w kernel.perf_event_paranoid=1",
            ),
            ("Error:\nNo permission to enable cpu-clock event.", "(kernel.perf_event_paranoid = 4)"),
            ("Couldn't create thread/CPU maps: No such process", "process 77 has ended"),
            (
                "Error:\nThe sys_perf_event_open() syscall returned with 22 (Invalid argument)",
                "returned with 22",
            ),
            ("", "did not say why"),
        ];
        for (words, expect) in rows {
            let message = sampler.refusal(words, Some(4)).to_string();
            assert!(message.contains(expect), "{words}: {message}");
        }
    }
}
