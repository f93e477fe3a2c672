//! How many system calls a process makes, and which.
//!
//! Counted by the kernel's tracepoints through `perf stat`, which costs the process next to nothing; else by
//! `strace -c`, which stops it at every call: the number of calls is right, everything else of that time is
//! not. A counter is started, runs beside whatever else happens, and is stopped for its result. Invariant: a
//! counter that is dropped leaves no process behind.

use super::{SamplingError, Tool};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

const EVENTS: &str = "/sys/kernel/tracing/events/syscalls";
const ALL: &str = "raw_syscalls:sys_enter";
/// Calls that are counted by name besides all together, where the kernel has them.
const NAMED: [&str; 16] = [
    "io_uring_enter",
    "io_uring_register",
    "read",
    "write",
    "readv",
    "writev",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "epoll_wait",
    "futex",
    "pwritev2",
    "fdatasync",
    "fallocate",
    "munmap",
];

/// Who counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `perf stat` on tracepoints.
    PerfStat,
    /// `strace -c`.
    Strace,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Source::PerfStat => "perf stat",
            Source::Strace => "strace -c",
        })
    }
}

/// A count.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SystemCalls {
    /// Who counted.
    pub source: Source,
    /// For how long, seconds.
    pub seconds: f64,
    /// All of them.
    pub total: u64,
    /// By name, the most frequent first; those of `perf stat` are a chosen few.
    pub by_name: Vec<(String, u64)>,
}

/// A count under way.
#[derive(Debug)]
pub struct SystemCallCounter {
    tool: Tool,
    source: Source,
    started: Instant,
    /// Where strace writes; perf writes to its standard error.
    report: Option<NamedTempFile>,
}

impl SystemCallCounter {
    /// Starts to count the calls of all threads of `pid`: with `perf`, or else with `strace`.
    ///
    /// # Errors
    /// Neither can, with what `perf` said.
    pub fn start(pid: u32) -> Result<Self, SamplingError> {
        if tracepoints_are_there() {
            return Self::perf(pid);
        }
        Self::strace(pid)
    }

    /// Counts all calls of `pid`, not by name, which costs the process some tens of nanoseconds per call; `None`
    /// where this user may not, or without `perf`.
    pub fn total_if_allowed(pid: u32) -> Option<Self> {
        if !tracepoints_are_there() {
            return None;
        }
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ";", "--event", ALL, "--pid", &pid.to_string()]);
        Self::spawn(command, Source::PerfStat, None).ok()
    }

    /// Counts with `perf stat`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn perf(pid: u32) -> Result<Self, SamplingError> {
        let known = |name: &&&str| Path::new(EVENTS).join(format!("sys_enter_{name}")).exists();
        let named = NAMED.iter().filter(known).map(|name| format!(",syscalls:sys_enter_{name}"));
        let events = ALL.to_owned() + &named.collect::<String>();
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ";", "--event", &events, "--pid", &pid.to_string()]);
        Self::spawn(command, Source::PerfStat, None)
    }

    /// Counts with `strace -c`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn strace(pid: u32) -> Result<Self, SamplingError> {
        let report = NamedTempFile::new().map_err(|error| SamplingError::Io { command: "strace", error })?;
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "--quiet=all", "-p", &pid.to_string(), "-o"]).arg(report.path());
        Self::spawn(command, Source::Strace, Some(report))
    }

    fn spawn(
        mut command: Command,
        source: Source,
        report: Option<NamedTempFile>,
    ) -> Result<Self, SamplingError> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SamplingError::Failed {
                command: "counting system calls",
                message: format!("{source} is not installed: apt-get install linux-perf, or strace"),
            },
            _ => SamplingError::Io { command: "counting system calls", error },
        })?;
        Ok(Self { tool: Tool(child), source, started: Instant::now(), report })
    }

    /// Ends the count.
    ///
    /// # Errors
    /// What the counting program complained about.
    pub fn stop(mut self) -> Result<SystemCalls, SamplingError> {
        let failed = |error| SamplingError::Io { command: "counting system calls", error };
        let elapsed = self.started.elapsed();
        self.tool.interrupt();
        let (_, words) = self.tool.finish().map_err(failed)?;
        let counted = match &self.report {
            Some(report) => of_strace(&std::fs::read_to_string(report.path()).map_err(failed)?),
            None => of_perf(&words),
        };
        match counted {
            Some(counts) => Ok(self.result(elapsed, counts)),
            None => Err(SamplingError::Failed {
                command: "counting system calls",
                message: format!(
                    "{} said: {}",
                    self.source,
                    words.trim().lines().next().unwrap_or("nothing")
                ),
            }),
        }
    }

    fn result(&self, elapsed: Duration, mut counts: BTreeMap<String, u64>) -> SystemCalls {
        let total = counts.remove(ALL).unwrap_or_else(|| counts.values().sum());
        let mut by_name: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
        by_name.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        SystemCalls { source: self.source, seconds: elapsed.as_secs_f64(), total, by_name }
    }
}

/// Whether this user can count all system calls with `perf`. Tried, with a program that does nothing: the
/// tracepoints' files may be where only `perf` mounts them, and who may read them may not be who may count.
fn tracepoints_are_there() -> bool {
    let mut command = Command::new("perf");
    command.args(["stat", "--event", ALL, "true"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// `count;;event;…`, one line per event; `None` unless all calls were counted.
fn of_perf(text: &str) -> Option<BTreeMap<String, u64>> {
    let rows = text.lines().filter_map(|line| {
        let mut fields = line.split(';');
        let count = fields.next()?.trim().parse().ok()?;
        let event = fields.nth(1)?;
        Some((event.strip_prefix("syscalls:sys_enter_").unwrap_or(event).to_owned(), count))
    });
    let counts: BTreeMap<String, u64> = rows.collect();
    counts.contains_key(ALL).then_some(counts)
}

/// The table of `strace -c`: `% time  seconds  usecs/call  calls  [errors]  syscall`, between two lines of dashes;
/// `None` without one.
fn of_strace(text: &str) -> Option<BTreeMap<String, u64>> {
    let is_line = |line: &&str| line.starts_with("------");
    let rows = text.lines().skip_while(|line| !is_line(line)).skip(1).take_while(|line| !is_line(line));
    let counts: BTreeMap<String, u64> = rows
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            Some(((*fields.last()?).to_owned(), fields.get(3)?.parse().ok()?))
        })
        .collect();
    (!counts.is_empty()).then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(got: Option<BTreeMap<String, u64>>, expect: Option<&[(&str, u64)]>) {
        let expect = expect.map(|rows| rows.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect());
        assert_eq!(got, expect);
    }

    #[test]
    fn reports_are_read() {
        let perf =
            "1234;;raw_syscalls:sys_enter;100;100.00;;\n1200;;syscalls:sys_enter_io_uring_enter;1;1;;\n";
        check(of_perf(perf), Some(&[(ALL, 1234), ("io_uring_enter", 1200)]));
        check(of_perf("<not supported>;;raw_syscalls:sys_enter;0;0;;\n"), None);
        check(of_perf("event syntax error: unknown tracepoint\n"), None);
        let strace = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            \x20 90.00    0.100000         10     10000           io_uring_enter\n\
            \x20 10.00    0.010000         20       500        12 futex\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            100.00    0.110000         10     10500        12 total\n";
        check(of_strace(strace), Some(&[("io_uring_enter", 10_000), ("futex", 500)]));
        check(of_strace("strace: attach: ptrace(PTRACE_SEIZE): Operation not permitted"), None);
    }
}
