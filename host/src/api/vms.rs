//! Routes of VMs.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use proto::control::vm::{CreateVm, StopVm, VmInfo};

use super::answer::{Answer, Refusal, json, parse, parse_or_default};
use super::{Backend, Shared};

type Host<B> = State<Arc<Shared<B>>>;

pub async fn list<B: Backend>(State(shared): Host<B>) -> Answer<Vec<VmInfo>> {
    json(shared.backend.vms().await?)
}

pub async fn create<B: Backend>(
    State(shared): Host<B>,
    body: Bytes,
) -> Result<(StatusCode, Json<VmInfo>), Refusal> {
    let vm: CreateVm = parse(&body)?;
    Ok((StatusCode::CREATED, Json(shared.backend.create_vm(vm).await?)))
}

pub async fn show<B: Backend>(State(shared): Host<B>, Path(name): Path<String>) -> Answer<VmInfo> {
    json(shared.backend.vm(&name).await?)
}

pub async fn delete<B: Backend>(
    State(shared): Host<B>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    shared.backend.delete_vm(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn start<B: Backend>(State(shared): Host<B>, Path(name): Path<String>) -> Answer<VmInfo> {
    json(shared.backend.start_vm(&name).await?)
}

pub async fn stop<B: Backend>(
    State(shared): Host<B>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<VmInfo> {
    let how: StopVm = parse_or_default(&body)?;
    json(shared.backend.stop_vm(&name, how).await?)
}
