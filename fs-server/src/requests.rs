//! What is done with each request: read at once, sent to the executor, or to the ring.

use std::sync::Arc;

use bytes::Bytes;
use proto::ops::data::{Extents, Read, ReadDone, Write};
use proto::ops::moves::{MoveRecords, MoveState};
use proto::ops::names::Attr;
use proto::ops::session::{OpenMode, Opened, Renewed, SetOpen, StatusReport};
use proto::ops::{Done, Reply, Request};
use proto::{FileId, MoveId, WireError};

use crate::connection::{Arrived, Connection, Ticket};
use crate::core::plan::{errno::*, posix};
use crate::core::records::{Records, file_key};
use crate::core::tables::{Table, Tables};
use crate::core::{attrs, listing, moves};
use crate::datastore::{Admitted, Datastore};
use crate::executor::Job;
use crate::ring::Work;
use crate::sessions::LiveSession;

/// Do a request or have it done.
pub fn dispatch(ticket: Ticket, arrived: Arrived) {
    let Arrived { header, request, data } = arrived;
    match request {
        Request::Read(ask) => read(ticket, ask),
        Request::Write(ask) => write(ticket, ask, data),
        Request::Flush(ask) => flush(ticket, ask.file, ask.incoming),
        Request::Discard(_)
        | Request::Zero(_)
        | Request::Allocate(_)
        | Request::Resize(_)
        | Request::Map(_) => {
            let result = shape(&ticket, &request);
            ticket.answer(result.map(|reply| (reply, Bytes::new())));
        }
        request if is_change(&request) => {
            let connection = ticket.connection().clone();
            let job = Job::Request {
                session: connection.session.clone(),
                id: header.request,
                settled_below: header.settled_below,
                request,
                answer: Box::new(move |result| ticket.answer(result.map(|reply| (reply, Bytes::new())))),
            };
            connection.service.executor.submit(job);
        }
        request => {
            let result = look(&ticket, &request);
            ticket.answer(result.map(|reply| (reply, Bytes::new())));
        }
    }
}

fn is_change(request: &Request) -> bool {
    request.once()
        || matches!(
            request,
            Request::SetAttr(_)
                | Request::MoveBegin(_)
                | Request::MoveCommit(_)
                | Request::MoveFinish(_)
                | Request::MoveAbort(_)
                | Request::IncomingBegin(_)
                | Request::IncomingPut(_)
                | Request::IncomingRemove(_)
                | Request::IncomingSeal(_)
                | Request::IncomingPublish(_)
                | Request::IncomingDrop(_)
        )
}

fn io_error(file: FileId, context: &str) -> impl FnOnce(std::io::Error) -> WireError {
    let context = format!("{context} file {file}");
    move |e| posix(e.raw_os_error().unwrap_or(EIO), context)
}

fn admit(
    ticket: &Ticket,
    file: FileId,
    incoming: Option<MoveId>,
    create: bool,
) -> Result<Option<Admitted>, WireError> {
    let connection = ticket.connection();
    connection.service.datastore.admit(&connection.session.host, file, incoming, create)
}

/// A request that makes the data file if there is none.
fn admit_change(ticket: &Ticket, file: FileId, incoming: Option<MoveId>) -> Result<Admitted, WireError> {
    admit(ticket, file, incoming, true)?.ok_or_else(|| posix(EIO, format!("make the data of file {file}")))
}

fn read(ticket: Ticket, ask: Read) {
    let admitted = match admit(&ticket, ask.file, ask.incoming, false) {
        Ok(Some(admitted)) => admitted,
        Ok(None) => return ticket.answer(Ok(read_reply(Vec::new(), ask.digest))),
        Err(error) => return ticket.answer(Err(error)),
    };
    if ask.len > proto::frame::MAX_DATA {
        return ticket.answer(Err(WireError::Invalid { reason: format!("a read of {} bytes", ask.len) }));
    }
    if ask.offset > i64::MAX as u64 {
        return ticket.answer(Err(posix(EINVAL, format!("file {} at {}", ask.file, ask.offset))));
    }
    let file = admitted.file.clone();
    let connection = ticket.connection().clone();
    let done = Box::new(move |result: crate::ring::Finished| {
        drop(admitted);
        ticket.answer(match result {
            Ok(data) => Ok(read_reply(data, ask.digest)),
            Err(errno) => Err(posix(errno, format!("read file {}", ask.file))),
        });
    });
    connection.ring().submit(file, Work::Read { offset: ask.offset, len: ask.len }, done);
}

fn read_reply(data: Vec<u8>, digest: bool) -> (Reply, Bytes) {
    let digest = digest.then(|| *blake3::hash(&data).as_bytes());
    (Reply::Read(ReadDone { digest }), Bytes::from(data))
}

fn write(ticket: Ticket, ask: Write, data: Vec<u8>) {
    let len = data.len() as u64;
    if ask.digest.is_some_and(|digest| *blake3::hash(&data).as_bytes() != digest) {
        return ticket.answer(Err(WireError::Digest { offset: ask.offset, len }));
    }
    if ask.offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
        return ticket.answer(Err(posix(27, format!("file {} at {}", ask.file, ask.offset))));
    }
    let admitted = match admit_change(&ticket, ask.file, ask.incoming) {
        Ok(admitted) => admitted,
        Err(error) => return ticket.answer(Err(error)),
    };
    let connection = ticket.connection().clone();
    let reserved = match connection.service.datastore.data.reserve(&admitted.file, ask.offset, len) {
        Ok(reserved) => reserved,
        Err(error) => return ticket.answer(Err(error)),
    };
    if len == 0 {
        return ticket.answer(Ok((Reply::Write(Done {}), Bytes::new())));
    }
    let file = admitted.file.clone();
    let again = connection.clone();
    let done = Box::new(move |result: crate::ring::Finished| {
        let store = &again.service.datastore.data;
        store.settle(&admitted.file, reserved);
        match result {
            Ok(_) if ask.fua => flush_admitted(ticket, admitted, Reply::Write(Done {})),
            Ok(_) => {
                drop(admitted);
                ticket.answer(Ok((Reply::Write(Done {}), Bytes::new())));
            }
            Err(ENOSPC) => {
                let free = again.service.datastore.space().map_or(0, |s| s.free);
                let datastore = again.service.datastore.identity.name.clone();
                ticket.answer(Err(WireError::NoSpace { datastore, free, needed: len }));
            }
            Err(errno) => ticket.answer(Err(posix(errno, format!("write file {}", ask.file)))),
        }
    });
    connection.ring().submit(file, Work::Write { offset: ask.offset, data }, done);
}

fn flush(ticket: Ticket, file: FileId, incoming: Option<MoveId>) {
    match admit(&ticket, file, incoming, false) {
        Ok(Some(admitted)) => flush_admitted(ticket, admitted, Reply::Flush(Done {})),
        Ok(None) => ticket.answer(Ok((Reply::Flush(Done {}), Bytes::new()))),
        Err(error) => ticket.answer(Err(error)),
    }
}

fn flush_admitted(ticket: Ticket, admitted: Admitted, reply: Reply) {
    let file = admitted.file.clone();
    let connection = ticket.connection().clone();
    let done = Box::new(move |result: crate::ring::Finished| {
        let id = admitted.file.id;
        let named = admitted.file.sync_name();
        drop(admitted);
        ticket.answer(match (result, named) {
            (Err(errno), _) => Err(posix(errno, format!("flush file {id}"))),
            (Ok(_), Err(e)) => Err(io_error(id, "flush the name of")(e)),
            (Ok(_), Ok(())) => Ok((reply, Bytes::new())),
        });
    });
    connection.ring().submit(file, Work::Flush, done);
}

/// Requests about space and size: short system calls, done here.
fn shape(ticket: &Ticket, request: &Request) -> Result<Reply, WireError> {
    let store = &ticket.connection().service.datastore.data;
    match request {
        Request::Discard(ask) => {
            // Without data there is nothing to discard, and nothing to be made.
            if admit(ticket, ask.file, ask.incoming, false)?.is_some() {
                let admitted = admit_change(ticket, ask.file, ask.incoming)?;
                admitted.file.punch(ask.offset, ask.len).map_err(io_error(ask.file, "discard in"))?;
                store.settle(&admitted.file, 0);
            }
            Ok(Reply::Discard(Done {}))
        }
        Request::Zero(ask) => {
            allocate(ticket, ask.file, ask.incoming, ask.offset, ask.len, ask.keep_size, true)?;
            Ok(Reply::Zero(Done {}))
        }
        Request::Allocate(ask) => {
            allocate(ticket, ask.file, ask.incoming, ask.offset, ask.len, ask.keep_size, false)?;
            Ok(Reply::Allocate(Done {}))
        }
        Request::Resize(ask) => {
            let admitted = admit_change(ticket, ask.file, ask.incoming)?;
            admitted.file.resize(ask.size).map_err(io_error(ask.file, "resize"))?;
            store.settle(&admitted.file, 0);
            Ok(Reply::Resize(Done {}))
        }
        Request::Map(ask) => {
            let (extents, upto) = match admit(ticket, ask.file, ask.incoming, false)? {
                Some(admitted) => {
                    admitted.file.extents(ask.offset, ask.len).map_err(io_error(ask.file, "map"))?
                }
                None => (Vec::new(), ask.offset),
            };
            Ok(Reply::Map(Extents { extents, upto }))
        }
        other => Err(WireError::Invalid { reason: format!("{} does not shape a file", other.name()) }),
    }
}

#[allow(clippy::too_many_arguments)]
fn allocate(
    ticket: &Ticket,
    file: FileId,
    incoming: Option<MoveId>,
    offset: u64,
    len: u64,
    keep_size: bool,
    zero: bool,
) -> Result<(), WireError> {
    let store = &ticket.connection().service.datastore.data;
    let admitted = admit_change(ticket, file, incoming)?;
    let reserved = store.reserve(&admitted.file, offset, len)?;
    let result = admitted.file.allocate(offset, len, keep_size, zero).map_err(io_error(file, "allocate in"));
    store.settle(&admitted.file, reserved);
    result
}

/// Requests that change nothing.
fn look(ticket: &Ticket, request: &Request) -> Result<Reply, WireError> {
    let connection = ticket.connection();
    let datastore = &connection.service.datastore;
    let snapshot = datastore.meta.snapshot();
    let complete = |attr: Attr| datastore.complete(attr);
    let here = |file| datastore.check_here(file);
    Ok(match request {
        Request::Renew(_) => Reply::Renew(Renewed {}),
        Request::Detach(_) => {
            connection.session.close_all();
            Reply::Detach(Done {})
        }
        Request::SetOpen(ask) => Reply::SetOpen(set_open(ticket, ask)?),
        Request::Status(_) => Reply::Status(status(datastore)?),
        Request::Lookup(ask) => {
            here(ask.parent)?;
            Reply::Lookup(listing::lookup(&*snapshot, &complete, ask)?)
        }
        Request::GetAttr(ask) => {
            here(ask.file)?;
            Reply::GetAttr(datastore.complete(snapshot.inode(ask.file)?.attr(ask.file))?)
        }
        Request::ReadDir(ask) => {
            here(ask.dir)?;
            Reply::ReadDir(listing::read_dir(&*snapshot, &complete, ask)?)
        }
        Request::ReadLink(ask) => {
            here(ask.file)?;
            Reply::ReadLink(listing::read_link(&*snapshot, ask)?)
        }
        Request::GetXattr(ask) => {
            here(ask.file)?;
            Reply::GetXattr(attrs::get_xattr(&*snapshot, ask)?)
        }
        Request::ListXattr(ask) => {
            here(ask.file)?;
            Reply::ListXattr(attrs::list_xattr(&*snapshot, ask)?)
        }
        Request::StatFs(_) => Reply::StatFs(datastore.space()?),
        Request::TreeList(ask) => {
            here(ask.root)?;
            Reply::TreeList(listing::tree_list(&*snapshot, &complete, ask)?)
        }
        Request::MoveList(ask) => {
            let mut records = moves::all(&*snapshot)?;
            records.retain(|r| ask.id.map_or(r.state != MoveState::Finished, |id| r.id == id));
            Reply::MoveList(MoveRecords { records })
        }
        other => return Err(WireError::Invalid { reason: format!("{} is not expected here", other.name()) }),
    })
}

fn status(datastore: &Arc<Datastore>) -> Result<StatusReport, WireError> {
    let space = datastore.space()?;
    Ok(StatusReport {
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_s: datastore.started.elapsed().as_secs(),
        sessions: datastore.sessions.list(),
        files: space.files,
        capacity: space.capacity,
        used: datastore.data.used(),
    })
}

/// When this returns nothing of the fenced sessions can reach the store any more.
fn shut_out_for_good(connection: &Connection, fenced: &[Arc<LiveSession>]) -> Result<(), WireError> {
    fenced.iter().for_each(|session| session.wait_drained());
    let (tell, told) = std::sync::mpsc::channel();
    let sessions = fenced.iter().map(|s| (s.host.clone(), s.generation)).collect();
    let answer = Box::new(move |result| drop(tell.send(result)));
    connection.service.executor.submit(Job::Forget { sessions, answer });
    told.recv().map_err(|_| WireError::Failed { reason: "the metadata thread has ended".into() })?
}

fn set_open(ticket: &Ticket, ask: &SetOpen) -> Result<Opened, WireError> {
    let connection = ticket.connection();
    let (datastore, session) = (&connection.service.datastore, &connection.session);
    let snapshot = datastore.meta.snapshot();
    if ask.mode == OpenMode::Closed {
        session.set_open(ask.file, ask.mode);
        if snapshot.get(Table::Orphans, &file_key(ask.file))?.is_some() {
            connection.service.executor.submit(Job::Sweep);
        }
        return Ok(Opened { size: 0 });
    }
    datastore.check_here(ask.file)?;
    let inode = snapshot.inode(ask.file)?;
    let deciding = datastore.sessions.deciding.lock();
    let mut fenced = Vec::new();
    if ask.mode == OpenMode::Write {
        if let Some(mover) = datastore.mover_of(ask.file).filter(|mover| mover.host != session.host) {
            return Err(mover.busy(format!("file {}", ask.file)));
        }
        if inode.exclusive {
            fenced = datastore.sessions.no_writer_besides(&session.host, ask.file).map_err(|host| {
                let holder = format!("host {host}, which has it open for writing");
                WireError::Busy { object: format!("file {}", ask.file), holder }
            })?;
        }
    }
    session.set_open(ask.file, ask.mode);
    drop(deciding);
    if !fenced.is_empty() {
        shut_out_for_good(connection, &fenced)
            .inspect_err(|_| session.set_open(ask.file, OpenMode::Closed))?;
    }
    let attr = datastore.complete(inode.attr(ask.file))?;
    Ok(Opened { size: attr.size })
}
