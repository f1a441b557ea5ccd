//! Bodies in and out: JSON, and errors with the status that fits.

use axum::Json;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use proto::control::{ApiError, ApiErrorCode};
use serde::de::DeserializeOwned;

/// What most handlers give back.
pub type Answer<T> = Result<Json<T>, Refusal>;

/// An answer with 200.
pub fn json<T>(value: T) -> Answer<T> {
    Ok(Json(value))
}

/// An error on its way out.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    error: ApiError,
}

impl Refusal {
    /// The request itself is wrong.
    pub fn usage(message: String) -> Self {
        ApiError { code: ApiErrorCode::Usage, message, hint: None }.into()
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let status = match error.code {
            ApiErrorCode::Usage => StatusCode::BAD_REQUEST,
            ApiErrorCode::Precheck => StatusCode::UNPROCESSABLE_ENTITY,
            ApiErrorCode::NotFound => StatusCode::NOT_FOUND,
            ApiErrorCode::Conflict | ApiErrorCode::Cancelled => StatusCode::CONFLICT,
            ApiErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal { status, error }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.error)).into_response()
    }
}

/// A JSON body, whatever its content type says (curl's default is another).
pub fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|e| Refusal::usage(format!("the request's JSON is not understood: {e}")))
}

/// The same, where no body means the default.
pub fn parse_or_default<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, Refusal> {
    if body.is_empty() { Ok(T::default()) } else { parse(body) }
}
