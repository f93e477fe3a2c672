//! Worker processes of a group, `ringlog consume --group …`, and everything they say, in one log.
//!
//! Owner: one test. Two threads per worker read its two outputs into the log of the test; the test waits for what
//! it wants to see there, with a limit after which it fails. Killed at the end, whatever happens.

use crate::process::Broker;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What a worker said.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// A partition, as `topic/partition`, and where it begins.
    Assigned(String, u64),
    Revoked(String),
    Lost(String),
    /// Partition, offset and value.
    Record(String, u64, String),
    /// Anything else on standard error.
    Other(String),
}

/// Who said it, and when.
#[derive(Clone, Debug)]
pub struct Line {
    pub worker: usize,
    pub at: Instant,
    pub said: Said,
}

type Log = Arc<(Mutex<Vec<Line>>, Condvar)>;

/// All workers of a test.
#[derive(Default)]
pub struct Workers {
    log: Log,
    children: Vec<Child>,
}

impl Workers {
    /// Starts another worker with these arguments of `ringlog consume`; its number.
    pub fn start(&mut self, broker: &Broker, arguments: &[&str]) -> usize {
        let worker = self.children.len();
        let mut command = broker.command(&["consume", "--format", "json"]);
        let command = command.args(arguments).stdin(Stdio::null());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary was built");
        self.follow(worker, child.stdout.take().expect("it is piped"), record);
        self.follow(worker, child.stderr.take().expect("it is piped"), change);
        self.children.push(child);
        worker
    }

    fn follow(&self, worker: usize, output: impl Read + Send + 'static, parse: fn(&str) -> Said) {
        let log = self.log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let said = parse(&line);
                log.0.lock().unwrap().push(Line { worker, at: Instant::now(), said });
                log.1.notify_all();
            }
        });
    }

    /// Waits until `look` finds what it looks for in everything said so far.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut(&[Line]) -> Option<T>) -> T {
        let until = Instant::now() + LIMIT;
        let mut lines = self.log.0.lock().unwrap();
        loop {
            if let Some(found) = look(&lines) {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last = &lines[lines.len().saturating_sub(40)..];
                let panic = format!("waited for {what}; last said: {last:#?}");
                drop(lines);
                panic!("{panic}");
            }
            lines = self.log.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Waits until the workers hold so many partitions each; when the last of it was said.
    #[track_caller]
    pub fn wait_for_shares(&self, expect: &[usize]) -> Instant {
        self.wait(&format!("shares {expect:?}"), |lines| {
            let held = holdings(lines);
            let shares = (0..expect.len()).map(|worker| held.get(&worker).map_or(0, BTreeSet::len));
            shares.eq(expect.iter().copied()).then(|| last_change(lines))
        })
    }

    /// What they hold now.
    pub fn holdings(&self) -> BTreeMap<usize, BTreeSet<String>> {
        holdings(&self.log.0.lock().unwrap())
    }

    /// Everything said.
    pub fn lines(&self) -> Vec<Line> {
        self.log.0.lock().unwrap().clone()
    }

    /// Sends a signal to a worker.
    pub fn signal(&self, worker: usize, signal: i32) {
        // SAFETY: the process is ours and not waited for yet, so that its id is still its own.
        assert_eq!(unsafe { libc::kill(self.children[worker].id() as i32, signal) }, 0);
    }

    /// Sends a signal and waits for the end; whether it exited with 0. It holds nothing from then on.
    pub fn stop(&mut self, worker: usize, signal: i32) -> bool {
        self.signal(worker, signal);
        let status = self.children[worker].wait().expect("it is our child");
        let held = self.holdings().remove(&worker).unwrap_or_default();
        let mut lines = self.log.0.lock().unwrap();
        let at = Instant::now();
        lines.extend(held.into_iter().map(|one| Line { worker, at, said: Said::Lost(one) }));
        status.success()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Already gone after `stop`.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn record(line: &str) -> Said {
    let Ok(record) = serde_json::from_str::<Value>(line) else { return Said::Other(line.to_owned()) };
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let offset = record["offset"].as_u64().expect("a record has an offset");
    Said::Record(format!("{}/{}", text("topic"), record["partition"]), offset, text("value"))
}

fn change(line: &str) -> Said {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["assigned", partition, "from", offset] => {
            Said::Assigned(partition.to_owned(), offset.parse().expect("an offset is a number"))
        }
        ["revoked", partition, "at", _] => Said::Revoked(partition.to_owned()),
        ["lost", partition] => Said::Lost(partition.to_owned()),
        _ => Said::Other(line.to_owned()),
    }
}

fn holdings(lines: &[Line]) -> BTreeMap<usize, BTreeSet<String>> {
    let mut held: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for line in lines {
        let held = held.entry(line.worker).or_default();
        match &line.said {
            Said::Assigned(partition, _) => {
                held.insert(partition.clone());
            }
            Said::Revoked(partition) | Said::Lost(partition) => {
                held.remove(partition);
            }
            Said::Record(..) | Said::Other(_) => {}
        }
    }
    held
}

fn last_change(lines: &[Line]) -> Instant {
    let changes = lines.iter().filter(|line| matches!(line.said, Said::Assigned(..) | Said::Revoked(_)));
    changes.map(|line| line.at).next_back().expect("something was assigned")
}

/// How often each value was printed by these workers.
pub fn values(lines: &[Line], of: &[usize]) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for line in lines.iter().filter(|line| of.contains(&line.worker)) {
        if let Said::Record(_, _, value) = &line.said {
            *seen.entry(value.clone()).or_default() += 1;
        }
    }
    seen
}
