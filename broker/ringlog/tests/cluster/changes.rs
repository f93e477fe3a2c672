//! Changes of who keeps what, made with `ringlog cluster` as a person makes them, while something happens to a broker.
//!
//! A command may end with an error when a broker that it asked has gone; then it is given again, until it is done.

use crate::DEADLINE;
use fastrand::Rng;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Commands, the first of which may be under way.
pub struct Change {
    commands: Vec<String>,
    under_way: Option<Child>,
}

fn command(brokers: &str, words: &str) -> Command {
    let program = std::env::var_os("RINGLOG_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_ringlog").into());
    let mut command = Command::new(program);
    command.args(["cluster", "--brokers", brokers]).args(words.split(' ')).stdin(Stdio::null());
    command
}

impl Change {
    /// A partition of `topic` moves to three of the brokers, whichever.
    pub fn move_one(random: &mut Rng, brokers: usize, topic: &str, partitions: u32) -> Self {
        let mut all: Vec<String> = (1..=brokers).map(|broker| broker.to_string()).collect();
        random.shuffle(&mut all);
        let to = all[..3].join(",");
        Self {
            commands: vec![format!("move {topic}:{} --to {to}", random.u32(..partitions))],
            under_way: None,
        }
    }

    /// These are done to a broker, one after the other.
    pub fn of_broker(what: &[&str], broker: u8) -> Self {
        let commands = what.iter().map(|what| format!("{what} {broker}")).collect();
        Self { commands, under_way: None }
    }

    /// Gives the first command, and does not wait for its end.
    pub fn begin(mut self, brokers: &str) -> Self {
        let mut first = command(brokers, &self.commands[0]);
        first.stdout(Stdio::null()).stderr(Stdio::null());
        self.under_way = Some(first.spawn().expect("it runs"));
        self
    }

    /// All of them are done.
    pub fn finish(mut self, brokers: &str) {
        let limit = Instant::now() + DEADLINE;
        let begun = self.under_way.take().map(|mut child| child.wait().expect("it is our child").success());
        let done = usize::from(begun == Some(true));
        for words in &self.commands[done..] {
            loop {
                let output = command(brokers, words).output().expect("it runs");
                if output.status.success() {
                    break;
                }
                let said = String::from_utf8_lossy(&output.stderr);
                // Its answer got lost before.
                if words.starts_with("remove") && said.contains("UNKNOWN_BROKER") {
                    break;
                }
                assert!(Instant::now() < limit, "ringlog cluster {words}: {said}");
            }
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        // Still there when a run has failed.
        if let Some(child) = &mut self.under_way {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
