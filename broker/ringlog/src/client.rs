//! How every client command reaches a broker.
//!
//! Owner: the command that parsed it. Absent on purpose: settings of producing and consuming, which stand
//! with their commands.

use crate::failure::Failure;
use ringlog_client::{Client, ClientConfig};

/// `--brokers`, for every command that talks to a broker.
#[derive(Clone, Debug, clap::Args)]
pub struct BrokersArguments {
    /// Brokers to ask first; the others are learnt from them
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        env = "RINGLOG_BROKERS",
        default_value = "127.0.0.1:9644",
        global = true
    )]
    pub brokers: String,
}

impl BrokersArguments {
    /// A client of the first broker that answers.
    pub async fn connect(&self) -> Result<Client, Failure> {
        let mut config = ClientConfig::new(self.brokers.as_str())?;
        config.client_id = "ringlog-cli".to_owned();
        Ok(Client::connect(config).await?)
    }
}

/// `NAME=VALUE`, as `--config` and `--set` take it.
pub fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("write NAME=VALUE, for example retention.ms=7d".to_owned()),
    }
}
