//! The errors a move answers with: what, which object, what to do.

use fs_client::CallError;
use proto::WireError;
use proto::control::{ApiError, ApiErrorCode};

/// A check before anything was started says no.
pub fn precheck(message: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError { code: ApiErrorCode::Precheck, message: message.into(), hint: Some(hint.into()) }
}

/// The object is not there.
pub fn not_found(message: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError { code: ApiErrorCode::NotFound, message: message.into(), hint: Some(hint.into()) }
}

/// The object's state forbids it.
pub fn conflict(message: impl Into<String>) -> ApiError {
    ApiError { code: ApiErrorCode::Conflict, message: message.into(), hint: None }
}

/// The move was started and failed; it has been or is being rolled back.
pub fn failed(message: impl Into<String>, hint: Option<String>) -> ApiError {
    ApiError { code: ApiErrorCode::Failed, message: message.into(), hint }
}

/// The move was cancelled.
pub fn cancelled(message: impl Into<String>) -> ApiError {
    ApiError { code: ApiErrorCode::Cancelled, message: message.into(), hint: None }
}

/// A datastore refused a step of a move that had started.
pub fn step_failed(step: &str, error: &CallError) -> ApiError {
    let hint = match error {
        CallError::Wire(WireError::NoSpace { datastore, .. }) => {
            Some(format!("free space on {datastore} or choose another datastore; nothing was changed"))
        }
        CallError::Wire(WireError::Busy { .. }) => Some("try again when it is free".into()),
        _ => None,
    };
    failed(format!("{step}: {error}"), hint)
}

/// A datastore refused a check.
pub fn check_failed(step: &str, error: &CallError) -> ApiError {
    ApiError { code: ApiErrorCode::Precheck, ..step_failed(step, error) }
}
