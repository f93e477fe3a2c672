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
use tokio::task::JoinHandle;
use view::View;

/// How long a broker may take to say how it is. It asks others about its groups, and does not wait for those as long.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// The same of one that did not answer the last time.
const LATE_ANSWER_MAX: Duration = Duration::from_millis(100);

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

/// Brokers that did not answer in time, and what they are still asked: it is an answer to the next look.
type Late = BTreeMap<u32, Question>;
type Question = JoinHandle<Result<Answer, String>>;

impl Look {
    async fn at(admin: &Admin, late: &mut Late) -> Result<Self, Failure> {
        let cluster = admin.describe_cluster(None).await?;
        let asked = cluster.brokers.iter().map(|broker| ask(admin, broker, late.remove(&broker.id)));
        let asked = asked.collect::<Vec<_>>();
        let mut brokers = BTreeMap::new();
        for (id, answer, asking) in join_all(asked).await {
            brokers.insert(id, answer);
            late.extend(asking.map(|asking| (id, asking)));
        }
        Ok(Self {
            brokers,
            partitions: cluster
                .topics
                .iter()
                .map(|topic| (topic.name.clone(), topic.partitions.len()))
                .collect(),
            health: Health::of(&cluster),
        })
    }
}

/// What `broker` says, or why it says nothing; and the question, if it is late.
async fn ask(
    admin: &Admin,
    broker: &BrokerDescription,
    late: Option<Question>,
) -> (u32, Result<Answer, String>, Option<Question>) {
    if broker.fenced {
        return (broker.id, Err("the cluster does not hear it".to_owned()), None);
    }
    let limit = if late.is_some() { LATE_ANSWER_MAX } else { ANSWER_MAX };
    match in_time(late, limit, || tokio::spawn(status_of(admin.clone(), broker.id))).await {
        Ok(answer) => (broker.id, answer, None),
        Err(asking) => (broker.id, Err("it does not answer".to_owned()), Some(asking)),
    }
}

/// The answer to the question that is under way, or else to a new one; the question, if it takes longer than `limit`.
async fn in_time<T>(
    late: Option<JoinHandle<Result<T, String>>>,
    limit: Duration,
    question: impl FnOnce() -> JoinHandle<Result<T, String>>,
) -> Result<Result<T, String>, JoinHandle<Result<T, String>>> {
    let mut asking = late.unwrap_or_else(question);
    match tokio::time::timeout(limit, &mut asking).await {
        Ok(answer) => Ok(answer.unwrap_or_else(|error| Err(error.to_string()))),
        Err(_) => Err(asking),
    }
}

async fn status_of(admin: Admin, broker: u32) -> Result<Answer, String> {
    let status = admin.full_status_of(broker).await.map_err(|error| error.to_string())?;
    Ok(Answer { at: Instant::now(), status })
}

async fn watch(arguments: &TopArguments) -> Result<(), Failure> {
    let client = arguments.brokers.connect().await?;
    let admin = client.admin();
    let live = !arguments.once && arguments.format.format == Format::Text && std::io::stdout().is_terminal();
    let _screen = live.then(Screen::take);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut late = Late::new();
    let mut before = Look::at(&admin, &mut late).await?;
    loop {
        let next = async {
            tokio::time::sleep(Duration::from_secs_f64(arguments.every)).await;
            Look::at(&admin, &mut late).await
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
    fn a_late_answer_is_one_to_the_next_look() {
        crate::block_on(async {
            let (answer, answered) = tokio::sync::oneshot::channel();
            let moment = Duration::from_millis(1);
            let question = || tokio::spawn(async { Ok(answered.await.expect("it is answered")) });
            let late = in_time(None, moment, question).await.expect_err("it is late");
            let again = || -> JoinHandle<Result<u32, String>> { panic!("it is not asked again") };
            let late = in_time(Some(late), moment, again).await.expect_err("it is late");
            answer.send(7).expect("it is waited for");
            assert_eq!(in_time(Some(late), ANSWER_MAX, again).await.expect("in time"), Ok(7));
            Ok(())
        })
        .expect("it ends");
    }

    #[test]
    fn how_often() {
        for (text, good) in
            [("1", true), ("0.05", true), ("0", false), ("-1", false), ("NaN", false), ("x", false)]
        {
            assert_eq!(seconds(text).is_ok(), good, "{text}");
        }
    }
}
