//! Where the brokers are and how long to wait for them.
//!
//! Owner: the application makes one [`ClientConfig`] and gives it to [`crate::Client::connect`], which
//! keeps it for its life. Invariant: every address has a host and a port, so that an error message can
//! always name them. Absent on purpose: settings of producing and consuming, which stand in
//! [`crate::ProducerConfig`] and [`crate::ConsumerConfig`].

use std::time::Duration;

/// Why a list of brokers cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The list holds no address.
    #[error("no broker given; write HOST:PORT[,HOST:PORT…], for example 127.0.0.1:9644")]
    NoBrokers,
    /// An address has no host, or its port is not a number from 1 to 65535.
    #[error("'{address}' is not a broker's address; write HOST or HOST:PORT, an IPv6 host as [::1]:9644")]
    InvalidAddress {
        /// The address as it was given.
        address: String,
    },
}

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of some brokers; the others are learnt from them. Tried in this order.
    pub brokers: Vec<String>,
    /// The name under which the broker's logs and quotas know this client.
    pub client_id: String,
    /// How long one request may take, from its first byte written to its reply.
    pub request_timeout: Duration,
    /// How long the TCP handshake and `Hello` may take together; at most a third of `request_timeout`, so that a lost answer costs
    /// an attempt and not the request.
    pub connect_timeout: Duration,
    /// The age at which metadata is learnt anew although nothing failed, to notice added partitions.
    pub metadata_max_age: Duration,
    /// How long a broker may be silent about what it was sent before others are asked whether it still leads. What is
    /// on its way to one that does not is taken back and sent to the new leader.
    pub leader_check_after: Duration,
    /// The first wait before something is tried again; it doubles up to `retry_backoff_max`, with jitter.
    pub retry_backoff: Duration,
    /// The longest wait before something is tried again.
    pub retry_backoff_max: Duration,
    /// The largest reply that is accepted, bytes. A broker that announces more is cut off before any
    /// memory is taken for it.
    pub max_response_bytes: usize,
}

impl ClientConfig {
    /// The defaults, for a comma-separated list of brokers; a missing port is
    /// [`schema::DEFAULT_PORT`].
    pub fn new(brokers: impl Into<String>) -> Result<Self, ConfigError> {
        let brokers = brokers
            .into()
            .split(',')
            .map(str::trim)
            .filter(|address| !address.is_empty())
            .map(with_port)
            .collect::<Result<Vec<_>, _>>()?;
        if brokers.is_empty() {
            return Err(ConfigError::NoBrokers);
        }
        Ok(Self {
            brokers,
            client_id: "ringlog-client".to_owned(),
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            metadata_max_age: Duration::from_secs(60),
            leader_check_after: Duration::from_secs(1),
            retry_backoff: Duration::from_millis(20),
            retry_backoff_max: Duration::from_secs(1),
            max_response_bytes: (64 << 20) + (1 << 16),
        })
    }

    /// How long one attempt to connect may take.
    pub fn attempt_timeout(&self) -> Duration {
        self.connect_timeout.min(self.request_timeout / 3)
    }

    /// The wait before try `attempt` (1 = the first repetition): doubling, capped, and between half and
    /// the whole of that, so that clients that failed together do not come back together.
    pub(crate) fn backoff(&self, attempt: u32) -> Duration {
        let doubled = self.retry_backoff.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        doubled.min(self.retry_backoff_max).mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

fn with_port(address: &str) -> Result<String, ConfigError> {
    let invalid = || ConfigError::InvalidAddress { address: address.to_owned() };
    // A colon inside brackets belongs to an IPv6 host.
    let after_bracket = address.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match address[after_bracket..].rfind(':') {
        Some(colon) => {
            let port = &address[after_bracket + colon + 1..];
            (&address[..after_bracket + colon], port.parse::<u16>().map_err(|_| invalid())?)
        }
        None => (address, schema::DEFAULT_PORT),
    };
    let bare_ipv6 = !host.starts_with('[') && host.contains(':');
    if host.is_empty() || port == 0 || bare_ipv6 || host.contains(char::is_whitespace) {
        return Err(invalid());
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_brokers() {
        let rows: [(&str, Result<&[&str], &str>); 11] = [
            ("localhost", Ok(&["localhost:9644"])),
            ("localhost:1", Ok(&["localhost:1"])),
            (" a:1 , b ,", Ok(&["a:1", "b:9644"])),
            ("[::1]", Ok(&["[::1]:9644"])),
            ("[::1]:7", Ok(&["[::1]:7"])),
            ("", Err("no broker")),
            (" , ", Err("no broker")),
            (":9644", Err("not a broker's address")),
            ("host:port", Err("not a broker's address")),
            ("host:65536", Err("not a broker's address")),
            ("::1:9644", Err("not a broker's address")),
        ];
        for (list, expect) in rows {
            match (ClientConfig::new(list), expect) {
                (Ok(config), Ok(expect)) => assert_eq!(config.brokers, expect, "{list}"),
                (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{list}: {error}"),
                (got, expect) => panic!("{list}: {got:?}, expected {expect:?}"),
            }
        }
    }

    #[test]
    fn the_wait_grows_to_its_bound() {
        let config = ClientConfig::new("h").unwrap();
        for (attempt, low_ms, high_ms) in [(1, 10, 20), (2, 20, 40), (5, 160, 320), (50, 500, 1000)] {
            let wait = config.backoff(attempt).as_micros();
            assert!((low_ms * 1000..=high_ms * 1000).contains(&wait), "{attempt}: {wait} us");
        }
    }
}
