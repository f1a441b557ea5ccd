//! Exit codes of the tools, and how an error is said on the way out.

use std::process::ExitCode;

use proto::control::{ApiError, ApiErrorCode};
use serde_json::json;

use crate::client::ClientError;

/// How a tool ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed; a move was rolled back.
    Failed = 1,
    /// Wrong usage; nothing was tried.
    Usage = 2,
    /// Refused by a check; nothing was changed.
    Refused = 3,
    /// Cancelled; a move was rolled back.
    Cancelled = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl From<ApiErrorCode> for Exit {
    fn from(code: ApiErrorCode) -> Exit {
        match code {
            ApiErrorCode::Usage => Exit::Usage,
            ApiErrorCode::Precheck | ApiErrorCode::NotFound | ApiErrorCode::Conflict => Exit::Refused,
            ApiErrorCode::Failed => Exit::Failed,
            ApiErrorCode::Cancelled => Exit::Cancelled,
        }
    }
}

/// Why a tool ends without having done what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// One line: what, which object.
    pub message: String,
    /// What to do about it, where known.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with a hint.
    pub fn new(exit: Exit, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { exit, message: message.into(), hint: Some(hint.into()) }
    }

    /// Say it: one line and its hint on stderr, or with `json` an object on stdout.
    pub fn report(&self, json: bool) {
        if json {
            println!("{}", self.to_json());
        } else {
            eprintln!("{self}");
        }
    }

    /// `{"error":…,"hint":…,"exit":…}`
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "error": self.message, "hint": self.hint, "exit": self.exit as u8 })
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.exit == Exit::Cancelled { "cancelled" } else { "error" };
        write!(f, "{word}: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure { exit: error.code.into(), message: error.message, hint: error.hint }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let hint = error.hint();
        match error {
            ClientError::Api(error) => error.into(),
            other => Failure { exit: Exit::Failed, message: other.to_string(), hint },
        }
    }
}
