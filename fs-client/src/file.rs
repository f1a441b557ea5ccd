//! A datastore's file as a disk: requests become data operations, large ones several.

use std::sync::Arc;

use block_mirror::{Completion, Disk, DiskError, DiskResult, Extent, Request, Response};
use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use proto::frame::MAX_DATA;
use proto::ops::{Reply, Request as Op, data};
use proto::{FileId, MoveId, WireError};
use tracing::{info, warn};

use crate::datastore::{ARRIVAL_RETRY, ARRIVAL_TRIES, Datastore, MAX_HOPS};
use crate::error::CallError;
use crate::transport::Channel;

/// How a request has been led on so far.
#[derive(Clone, Copy, Default)]
struct Trail {
    /// Datastores that said that the file has moved.
    hops: u32,
    /// Times that the last of them was asked in vain.
    tries: u32,
}

/// A disk over the data operations of one file.
pub(crate) struct DatastoreFile {
    inner: Arc<Inner>,
}

struct Inner {
    home: RwLock<Arc<Datastore>>,
    file: FileId,
    incoming: Option<MoveId>,
    channel: Channel,
    label: String,
}

impl DatastoreFile {
    pub fn new(
        home: Arc<Datastore>,
        file: FileId,
        incoming: Option<MoveId>,
        channel: Channel,
        label: String,
    ) -> Self {
        Self { inner: Arc::new(Inner { home: RwLock::new(home), file, incoming, channel, label }) }
    }
}

impl Disk for DatastoreFile {
    fn submit(&self, request: Request, done: Completion) {
        match request {
            Request::Read { offset, len } if len > MAX_DATA => read_pieces(&self.inner, offset, len, done),
            Request::Write { offset, data, digest: None, fua } if data.len() > MAX_DATA as usize => {
                write_pieces(&self.inner, offset, data, fua, done);
            }
            request => start(self.inner.clone(), request, Trail::default(), done),
        }
    }

    fn describe(&self) -> String {
        self.inner.label.clone()
    }
}

/// Send a request that fits into one frame; when the file has moved, again to where it is.
fn start(inner: Arc<Inner>, request: Request, trail: Trail, done: Completion) {
    let Some((op, payload)) = inner.operation(&request) else {
        let context = format!("{}: a digest covers at most {MAX_DATA} bytes", inner.label);
        return done(Err(DiskError::Io { errno: libc::EINVAL, context }));
    };
    let home = inner.home.read().clone();
    let keeper = home.clone();
    keeper.submit(
        inner.channel,
        op,
        payload,
        Box::new(move |result| match result {
            Err(CallError::Wire(WireError::Moved { to, name }))
                if inner.follows() && trail.hops < MAX_HOPS =>
            {
                match home.follow(inner.file, to, &name) {
                    Some(next) => {
                        info!(file = inner.label, from = home.name(), to = name, "the file has moved");
                        *inner.home.write() = next;
                        start(inner, request, Trail { hops: trail.hops + 1, tries: 0 }, done);
                    }
                    None => {
                        warn!(file = inner.label, "moved to datastore {name}, which this host does not have");
                        let reason = format!("{} has moved to datastore {name}", inner.label);
                        done(Err(DiskError::Stale { reason }));
                    }
                }
            }
            // Between the source's commit and the destination's publishing nobody has it.
            Err(e) if e.errno() == libc::ENOENT && trail.hops > 0 && trail.tries < ARRIVAL_TRIES => {
                let later = Trail { tries: trail.tries + 1, ..trail };
                // A thread, as this one is the channel's; that few requests wait here allows it.
                std::thread::spawn(move || {
                    std::thread::sleep(ARRIVAL_RETRY);
                    start(inner, request, later, done);
                });
            }
            result => done(inner.answer(&home, result)),
        }),
    );
}

impl Inner {
    /// Mirrors must not be led elsewhere: they name the side they mean.
    fn follows(&self) -> bool {
        self.incoming.is_none() && self.channel == Channel::Io
    }

    /// The operation and its payload; none when it can't be one frame.
    fn operation(&self, request: &Request) -> Option<(Op, Bytes)> {
        let (file, incoming) = (self.file, self.incoming);
        let plain = |op| Some((op, Bytes::new()));
        match *request {
            Request::Read { len, .. } | Request::ReadDigest { len, .. } if len > MAX_DATA => None,
            Request::Write { ref data, .. } if data.len() > MAX_DATA as usize => None,
            Request::Read { offset, len } => {
                plain(Op::Read(data::Read { file, offset, len, digest: false, incoming }))
            }
            Request::ReadDigest { offset, len } => {
                plain(Op::Read(data::Read { file, offset, len, digest: true, incoming }))
            }
            Request::Write { offset, ref data, digest, fua } => {
                Some((Op::Write(data::Write { file, offset, digest, fua, incoming }), data.clone()))
            }
            Request::Flush => plain(Op::Flush(data::Flush { file, incoming })),
            Request::Discard { offset, len } => {
                plain(Op::Discard(data::Discard { file, offset, len, incoming }))
            }
            Request::Zero { offset, len, keep_size } => {
                plain(Op::Zero(data::Zero { file, offset, len, keep_size, incoming }))
            }
            Request::Allocate { offset, len, keep_size } => {
                plain(Op::Allocate(data::Allocate { file, offset, len, keep_size, incoming }))
            }
            Request::Resize { size } => plain(Op::Resize(data::Resize { file, size, incoming })),
            Request::Map { offset, len } => plain(Op::Map(data::Map { file, offset, len, incoming })),
        }
    }

    fn answer(&self, home: &Datastore, result: Result<(Reply, Bytes), CallError>) -> DiskResult {
        match result {
            Ok((Reply::Read(data::ReadDone { digest }), data)) => Ok(Response::Data { data, digest }),
            Ok((Reply::Map(extents), _)) => Ok(Response::Extents {
                extents: extents.extents.into_iter().map(|(offset, len)| Extent { offset, len }).collect(),
                upto: extents.upto,
            }),
            Ok(_) => Ok(Response::Done),
            Err(error) => Err(error.into_disk_error(&format!("datastore {}", home.name()), &self.label)),
        }
    }
}

/// Answers of the pieces of one request, until all are there.
struct Pieces {
    left: usize,
    answers: Vec<Option<DiskResult>>,
    done: Option<Completion>,
}

fn in_pieces(inner: &Arc<Inner>, pieces: Vec<Request>, done: Completion) {
    let count = pieces.len();
    let gathered = Arc::new(Mutex::new(Pieces { left: count, answers: vec![None; count], done: Some(done) }));
    for (at, piece) in pieces.into_iter().enumerate() {
        let gathered = gathered.clone();
        let piece_done = move |result| {
            let mut all = gathered.lock();
            all.answers[at] = Some(result);
            all.left -= 1;
            if all.left > 0 {
                return;
            }
            let answers = std::mem::take(&mut all.answers);
            let done = all.done.take();
            drop(all);
            if let Some(done) = done {
                done(join(answers.into_iter().flatten()));
            }
        };
        start(inner.clone(), piece, Trail::default(), Box::new(piece_done));
    }
}

/// One answer out of those of the pieces, in order.
fn join(answers: impl Iterator<Item = DiskResult>) -> DiskResult {
    let mut read = BytesMut::new();
    let mut is_read = false;
    for answer in answers {
        if let Response::Data { data, .. } = answer? {
            is_read = true;
            read.extend_from_slice(&data);
        }
    }
    if !is_read {
        return Ok(Response::Done);
    }
    Ok(Response::Data { data: read.freeze(), digest: None })
}

fn read_pieces(inner: &Arc<Inner>, offset: u64, len: u32, done: Completion) {
    let pieces = (0..len)
        .step_by(MAX_DATA as usize)
        .map(|at| Request::Read { offset: offset + at as u64, len: MAX_DATA.min(len - at) })
        .collect();
    in_pieces(inner, pieces, done);
}

fn write_pieces(inner: &Arc<Inner>, offset: u64, data: Bytes, fua: bool, done: Completion) {
    let pieces = (0..data.len())
        .step_by(MAX_DATA as usize)
        .map(|at| Request::Write {
            offset: offset + at as u64,
            data: data.slice(at..data.len().min(at + MAX_DATA as usize)),
            digest: None,
            fua,
        })
        .collect();
    in_pieces(inner, pieces, done);
}
