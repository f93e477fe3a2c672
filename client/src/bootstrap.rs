//! The connection to whichever broker answers, for what any broker can answer.
//!
//! Owner: the [`crate::cluster::Cluster`]. Lifecycle: connects when first asked, to the first of the configured brokers
//! that answers; when the connection is lost, or its broker of no use, to another one, of the configured and of all that
//! were learnt. Invariant: a broker that does not answer holds nobody up for longer than [`NEXT_BROKER_AFTER`], because
//! the next one is tried beside it. Absent on purpose: what is asked.

use crate::client::ClientError;
use crate::config::{ClientConfig, ConfigError};
use crate::connection::{Connection, ConnectionError};
use crate::reply::BrokerEndpoint;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long one broker is tried before the next is tried beside it.
const NEXT_BROKER_AFTER: Duration = Duration::from_millis(250);
/// Addresses that are remembered for their failures.
const FAILED_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub(crate) struct Bootstrap {
    state: Mutex<State>,
}

/// No broker answers.
pub(crate) struct NoBroker {
    /// Why not the first that was tried.
    pub first: ClientError,
    /// One takes connections: another attempt may be answered.
    pub may_answer: bool,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// The host at which the cluster was found last.
    host: Option<String>,
    /// When an address was of no use last.
    failed: HashMap<String, Instant>,
}

impl Bootstrap {
    /// The connection, opened if need be.
    ///
    /// # Errors
    /// None answers.
    pub(crate) async fn connection(
        &self,
        config: &ClientConfig,
        brokers: &HashMap<u32, BrokerEndpoint>,
    ) -> Result<Connection, NoBroker> {
        let mut state = self.state.lock().await;
        if let Some(connection) = state.connection.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        if let Some(lost) = state.connection.take() {
            state.note_failure(lost.address());
        }
        let mut addresses = config.brokers.clone();
        let mut learnt: Vec<_> = brokers.values().collect();
        learnt.sort_by_key(|broker| (broker.fenced, broker.id));
        for broker in learnt {
            let address = state.address_of(broker);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        // Those that have not failed first, in their order; then the one whose failure is longest ago.
        addresses.sort_by_key(|address| state.failed.get(address).copied());
        let mut none = NoBroker { first: ClientError::Config(ConfigError::NoBrokers), may_answer: false };
        let mut waiting = addresses.into_iter();
        let mut trying = FuturesUnordered::new();
        loop {
            let exhausted = match waiting.next() {
                Some(address) => {
                    trying.push(async move {
                        let opened = Connection::open(&address, None, config).await;
                        (address, opened)
                    });
                    false
                }
                None => true,
            };
            let tried = tokio::select! {
                tried = trying.next() => tried,
                () = tokio::time::sleep(NEXT_BROKER_AFTER), if !exhausted => continue,
            };
            match tried {
                Some((_, Ok(connection))) => {
                    drop(trying);
                    state.host = connection.address().rsplit_once(':').map(|(host, _)| host.to_owned());
                    return Ok(state.connection.insert(connection).clone());
                }
                Some((address, Err(error))) => {
                    state.note_failure(&address);
                    none.may_answer |= matches!(error, ConnectionError::Unanswered { .. });
                    if matches!(none.first, ClientError::Config(_)) {
                        none.first = error.into();
                    }
                }
                None => return Err(none),
            }
        }
    }

    /// The broker that was asked is of no use just now: the next question goes to another, if there is one.
    pub(crate) async fn turn_away(&self) {
        let mut state = self.state.lock().await;
        if let Some(connection) = state.connection.take() {
            state.note_failure(connection.address());
        }
    }

    /// Host and port of a broker. One that listens on every address advertises none: then it is where
    /// the cluster was found.
    pub(crate) async fn address_of(&self, endpoint: &BrokerEndpoint) -> String {
        if !is_anywhere(endpoint) {
            return address(&endpoint.host, endpoint.port);
        }
        self.state.lock().await.address_of(endpoint)
    }
}

impl State {
    fn note_failure(&mut self, address: &str) {
        if self.failed.len() >= FAILED_MAX {
            self.failed.clear();
        }
        self.failed.insert(address.to_owned(), Instant::now());
    }

    fn address_of(&self, endpoint: &BrokerEndpoint) -> String {
        match &self.host {
            Some(host) if is_anywhere(endpoint) => format!("{host}:{}", endpoint.port),
            None if is_anywhere(endpoint) => format!("127.0.0.1:{}", endpoint.port),
            _ => address(&endpoint.host, endpoint.port),
        }
    }
}

fn is_anywhere(endpoint: &BrokerEndpoint) -> bool {
    matches!(endpoint.host.as_str(), "" | "0.0.0.0" | "::" | "[::]")
}

fn address(host: &str, port: u16) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}
