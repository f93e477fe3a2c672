//! `ringlog top`: cores, topics and groups of a running cluster, refreshed in place.
//!
//! Asks all brokers for their counters again and again through the client library; what is shown are the differences
//! of two answers, divided by the time between them. Owner: one command. Invariants: nothing is kept but the last
//! answers; a broker that does not answer is named, since every sum is without it; on a terminal the screen is left as it
//! was found, however the command ends. Absent on purpose: keys, colours, history: metrics systems have them
//! (`serve --http`).

mod view;

use crate::client::BrokersArguments;
use crate::cluster::describe::Health;
use crate::failure::Failure;
use crate::output::{Format, FormatArguments, Output};
use futures_util::future::join_all;
use ringlog_client::{Admin, BrokerDescription, BrokerStatus};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use view::View;

/// How long a broker may take to say how it is. It asks others about its groups, and does not wait for those as long.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// `ringlog top`
#[derive(clap::Args)]
pub struct TopArguments {
    #[command(flatten)]
    brokers: BrokersArguments,
    /// How long between two looks, seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    every: f64,
    /// How many topics, the busiest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    topics: usize,
    /// How many consumer groups, those furthest behind in time first
    #[arg(long, value_name = "N", default_value_t = 20)]
    groups: usize,
    /// Look twice, print once, and end: for scripts
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    format: FormatArguments,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("from 0.05 to 3600".to_owned()),
    }
}

/// Runs it.
pub fn run(arguments: &TopArguments) -> Result<(), Failure> {
    crate::block_on(watch(arguments))
}

/// What a broker said, and when.
struct Answer {
    at: Instant,
    status: BrokerStatus,
}

/// One look at all brokers.
struct Look {
    /// By number: what each said, or why it said nothing.
    brokers: BTreeMap<u32, Result<Answer, String>>,
    /// How many partitions each topic has.
    partitions: BTreeMap<String, usize>,
    health: Health,
}

impl Look {
    async fn at(admin: &Admin) -> Result<Self, Failure> {
        let cluster = admin.describe_cluster(None).await?;
        let brokers = cluster.brokers.iter().map(|broker| ask(admin, broker));
        Ok(Self {
            brokers: join_all(brokers).await.into_iter().collect(),
            partitions: cluster
                .topics
                .iter()
                .map(|topic| (topic.name.clone(), topic.partitions.len()))
                .collect(),
            health: Health::of(&cluster),
        })
    }
}

async fn ask(admin: &Admin, broker: &BrokerDescription) -> (u32, Result<Answer, String>) {
    let answer = match broker.fenced {
        true => Err("the cluster does not hear it".to_owned()),
        false => match tokio::time::timeout(ANSWER_MAX, admin.full_status_of(broker.id)).await {
            Ok(Ok(status)) => Ok(Answer { at: Instant::now(), status }),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ANSWER_MAX.as_secs())),
        },
    };
    (broker.id, answer)
}

async fn watch(arguments: &TopArguments) -> Result<(), Failure> {
    let client = arguments.brokers.connect().await?;
    let admin = client.admin();
    let live = !arguments.once && arguments.format.format == Format::Text && std::io::stdout().is_terminal();
    let _screen = live.then(Screen::take);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut before = Look::at(&admin).await?;
    loop {
        let next = async {
            tokio::time::sleep(Duration::from_secs_f64(arguments.every)).await;
            Look::at(&admin).await
        };
        let after = tokio::select! {
            after = next => after?,
            _ = &mut interrupted => return Ok(()),
        };
        let view = View::between(&before, &after);
        let mut output = Output::new(arguments.format.format);
        if live {
            output.bytes(&[Screen::HOME.as_bytes()])?;
        }
        view.print(arguments.topics, arguments.groups, &mut output)?;
        output.flush()?;
        if arguments.once {
            return Ok(());
        }
        before = after;
    }
}

/// The terminal's second screen, for as long as it is held.
struct Screen;

impl Screen {
    /// To the upper left, and everything behind it cleared.
    const HOME: &'static str = "\x1b[H\x1b[2J";

    fn take() -> Self {
        Self::write("\x1b[?1049h\x1b[?25l");
        Self
    }

    fn write(text: &str) {
        let mut output = std::io::stdout().lock();
        // A terminal that is gone needs no care.
        let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        Self::write("\x1b[?25h\x1b[?1049l");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_often() {
        for (text, good) in
            [("1", true), ("0.05", true), ("0", false), ("-1", false), ("NaN", false), ("x", false)]
        {
            assert_eq!(seconds(text).is_ok(), good, "{text}");
        }
    }
}
