//! Why a command ends early, and the exit status that tells programs.
//!
//! Owner: whoever fails; `main` prints it once. Invariant: the text of a failure says what to do, or names
//! what the user gave. Absent on purpose: kinds that nobody tells apart.

use ringlog_client::{ClientError, ConfigError, ConsumeError, GroupError, ProduceError, SettingError};
use std::process::ExitCode;

/// The end of a command that did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// The operation failed: exit status 1.
    Operation(String),
    /// Wrong usage, or nothing could be started: exit status 2.
    Usage(String),
    /// The operation failed and everything is already said: exit status 1.
    Reported,
    /// Whoever read the output has hung up; that is no failure.
    ReaderGone,
}

impl Failure {
    /// A failed operation.
    pub fn operation(message: impl Into<String>) -> Self {
        Self::Operation(message.into())
    }

    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// What to print.
    pub fn message(&self) -> Option<&str> {
        match self {
            Failure::Operation(message) | Failure::Usage(message) => Some(message),
            Failure::Reported | Failure::ReaderGone => None,
        }
    }

    /// What to exit with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::ReaderGone => ExitCode::SUCCESS,
            Failure::Operation(_) | Failure::Reported => ExitCode::FAILURE,
            Failure::Usage(_) => ExitCode::from(2),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Config(error) => error.into(),
            error => Self::operation(error.to_string()),
        }
    }
}

impl From<ProduceError> for Failure {
    fn from(error: ProduceError) -> Self {
        Self::operation(error.to_string())
    }
}

impl From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Self {
        Self::operation(error.to_string())
    }
}

impl From<GroupError> for Failure {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::NoSubscription { .. } => Self::usage(error.to_string()),
            error => Self::operation(error.to_string()),
        }
    }
}
