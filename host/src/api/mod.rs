//! The control API: JSON over HTTP on a unix socket, as `proto::control` describes it.
//!
//! | file | subject |
//! |---|---|
//! | `backend` | what the handlers need of the host |
//! | `answer` | errors and bodies |
//! | `moves`, `vms` | the routes |
//! | `events` | a move as server-sent events |
//! | `metrics` | Prometheus text |
//! | `socket` | binding and serving |
//!
//! The handlers decode, call the backend, encode; they decide nothing.

mod answer;
mod backend;
mod events;
mod metrics;
mod moves;
mod socket;
#[cfg(test)]
mod tests;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, Uri};
use axum::routing::{get, post};
use proto::control::{ApiError, ApiErrorCode, HostStatus};

use answer::{Answer, Refusal, json};
pub use backend::Backend;
pub use socket::{Listener, serve};

use self::metrics::Metrics;

/// What the handlers share.
pub(crate) struct Shared<B> {
    backend: B,
    metrics: Metrics,
}

/// All routes.
pub fn router<B: Backend>(backend: B) -> Router {
    let shared = Arc::new(Shared { backend, metrics: Metrics::new() });
    Router::new()
        .route("/v1/status", get(status::<B>))
        .route("/v1/moves", get(moves::list::<B>).post(moves::start::<B>))
        .route("/v1/moves/{id}", get(moves::show::<B>))
        .route("/v1/moves/{id}/events", get(moves::follow::<B>))
        .route("/v1/moves/{id}/cancel", post(moves::cancel::<B>))
        .route("/v1/moves/{id}/pause", post(moves::pause::<B>))
        .route("/v1/moves/{id}/resume", post(moves::resume::<B>))
        .route("/v1/moves/{id}/limit", post(moves::limit::<B>))
        .route("/v1/vms", get(vms::list::<B>).post(vms::create::<B>))
        .route("/v1/vms/{name}", get(vms::show::<B>).delete(vms::delete::<B>))
        .route("/v1/vms/{name}/start", post(vms::start::<B>))
        .route("/v1/vms/{name}/stop", post(vms::stop::<B>))
        .route("/metrics", get(scrape::<B>))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(shared)
}

async fn status<B: Backend>(State(shared): State<Arc<Shared<B>>>) -> Answer<HostStatus> {
    json(shared.backend.status().await)
}

async fn scrape<B: Backend>(State(shared): State<Arc<Shared<B>>>) -> String {
    let status = shared.backend.status().await;
    shared.metrics.render(&status, &shared.backend.moves())
}

async fn no_route(method: Method, uri: Uri) -> Refusal {
    Refusal::usage(format!("no such route: {method} {}", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    Refusal::usage(format!("{} does not take {method}", uri.path()))
}

/// An answer for an object that is not there.
fn no_such_move(id: &str) -> ApiError {
    ApiError {
        code: ApiErrorCode::NotFound,
        message: format!("no move {id}"),
        hint: Some("`dsctl move list` shows those since dshost was started".into()),
    }
}
