//! Routes of moves.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use proto::MoveId;
use proto::control::{LimitRequest, MoveRequest, MoveStatus};

use super::answer::{Answer, Refusal, json, parse};
use super::{Backend, Shared, events, no_such_move};

type Host<B> = State<Arc<Shared<B>>>;

pub async fn list<B: Backend>(State(shared): Host<B>) -> Answer<Vec<MoveStatus>> {
    json(shared.backend.moves())
}

pub async fn start<B: Backend>(State(shared): Host<B>, body: Bytes) -> Result<Response, Refusal> {
    let request: MoveRequest = parse(&body)?;
    if request.dry_run {
        return Ok(Json(shared.backend.plan_move(&request).await?).into_response());
    }
    let status = shared.backend.start_move(request).await?;
    Ok((StatusCode::CREATED, Json(status)).into_response())
}

pub async fn show<B: Backend>(State(shared): Host<B>, Path(id): Path<String>) -> Answer<MoveStatus> {
    let watch = shared.backend.watch_move(parse_id(&id)?).ok_or_else(|| no_such_move(&id))?;
    let status = watch.borrow().clone();
    json(status)
}

pub async fn follow<B: Backend>(
    State(shared): Host<B>,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let watch = shared.backend.watch_move(parse_id(&id)?).ok_or_else(|| no_such_move(&id))?;
    Ok(Sse::new(events::of_move(watch)).keep_alive(KeepAlive::default()))
}

pub async fn cancel<B: Backend>(State(shared): Host<B>, Path(id): Path<String>) -> Answer<MoveStatus> {
    json(shared.backend.cancel_move(parse_id(&id)?).await?)
}

pub async fn pause<B: Backend>(State(shared): Host<B>, Path(id): Path<String>) -> Answer<MoveStatus> {
    json(shared.backend.pause_move(parse_id(&id)?).await?)
}

pub async fn resume<B: Backend>(State(shared): Host<B>, Path(id): Path<String>) -> Answer<MoveStatus> {
    json(shared.backend.resume_move(parse_id(&id)?).await?)
}

pub async fn limit<B: Backend>(
    State(shared): Host<B>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<MoveStatus> {
    let LimitRequest { limit } = parse(&body)?;
    json(shared.backend.limit_move(parse_id(&id)?, limit).await?)
}

fn parse_id(text: &str) -> Result<MoveId, Refusal> {
    text.parse().map(MoveId).map_err(|_| no_such_move(text).into())
}
