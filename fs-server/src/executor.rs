//! The one thread that changes metadata: it takes all requests that wait, plans each on top of the
//! ones before, commits once, and answers them all (group commit).

use std::cell::RefCell;
use std::sync::{Arc, mpsc};

use proto::ops::moves::{MoveRecord, MoveSide, MoveState};
use proto::ops::session::OpenMode;
use proto::ops::{Done, Reply, Request};
use proto::{FileId, Generation, Position, RequestId, WireError};

use crate::core::names::Planned;
use crate::core::plan::{Context, Effect};
use crate::core::records::{Records, Session, file_key, reply_key};
use crate::core::tables::{Table, Tables, Txn};
use crate::core::{attrs, incoming, moves, names, rename, trees};
use crate::datastore::{Datastore, now};
use crate::halt::halt_at;
use crate::sessions::LiveSession;

/// Requests in one transaction at most.
const BATCH: usize = 256;
/// Kept replies forgotten per request at most.
const FORGET: usize = 64;

/// Called once with the result.
pub type Answer = Box<dyn FnOnce(Result<Reply, WireError>) + Send>;

/// Something for the executor.
pub enum Job {
    /// A host's request.
    Request {
        /// Whose.
        session: Arc<LiveSession>,
        /// Its id.
        id: RequestId,
        /// The host will not ask again below this.
        settled_below: RequestId,
        /// What.
        request: Request,
        /// Where the result goes.
        answer: Answer,
    },
    /// Make a durable session for a host.
    OpenSession {
        /// The host.
        host: String,
        /// Its run.
        instance: proto::InstanceId,
        /// Where the generation goes.
        answer: Box<dyn FnOnce(Result<Generation, WireError>) + Send>,
    },
    /// Sessions that have been fenced are never to be resumed, not after a restart either.
    Forget {
        /// Hosts with their sessions.
        sessions: Vec<(String, Generation)>,
        /// Told when that is durable.
        answer: Box<dyn FnOnce(Result<(), WireError>) + Send>,
    },
    /// Erase orphans that nobody has open.
    Sweep,
}

/// The executor's inbox.
#[derive(Clone)]
pub struct Executor {
    jobs: mpsc::Sender<Job>,
}

impl Executor {
    /// Start the thread.
    pub fn start(datastore: Arc<Datastore>) -> std::io::Result<Executor> {
        let (jobs, inbox) = mpsc::channel();
        std::thread::Builder::new().name("metadata".into()).spawn(move || {
            let mut worker = Worker { datastore, broken: None, buried: Vec::new() };
            while let Ok(first) = inbox.recv() {
                let mut batch = vec![first];
                while batch.len() < BATCH
                    && let Ok(next) = inbox.try_recv()
                {
                    batch.push(next);
                }
                worker.run(batch);
            }
        })?;
        Ok(Executor { jobs })
    }

    /// Queue a job.
    pub fn submit(&self, job: Job) {
        // The thread lives as long as the process.
        let _ = self.jobs.send(job);
    }
}

struct Worker {
    datastore: Arc<Datastore>,
    broken: Option<WireError>,
    /// Files whose data has been removed since the last commit.
    buried: Vec<FileId>,
}

/// An answer that waits for the commit.
type Pending = (Answer, Result<Reply, WireError>);

impl Worker {
    fn run(&mut self, batch: Vec<Job>) {
        let mut group = Vec::new();
        for job in batch {
            match job {
                Job::Request { request, session, answer, .. } if is_alone(&request) => {
                    self.run_group(std::mem::take(&mut group));
                    let result = self.run_alone(&session.host, &request);
                    answer(result);
                }
                other => group.push(other),
            }
        }
        self.run_group(group);
    }

    fn begin<'a>(&self, snapshot: &'a dyn Tables) -> Txn<'a> {
        let mut txn = Txn::new(snapshot);
        self.buried.iter().for_each(|file| txn.delete(Table::Doomed, file_key(*file)));
        txn
    }

    fn commit(&mut self, mut txn: Txn) -> Result<(), WireError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if txn.is_empty() {
            return Ok(());
        }
        let position: Position = txn.read(Table::Header, b"position")?.unwrap_or_default();
        txn.write(Table::Header, b"position".to_vec(), &position.next());
        let result = self.datastore.meta.commit(&txn.into_changes());
        if let Err(error) = &result {
            // What is durable now is unknown: nothing more may be promised until a restart has looked.
            tracing::error!("{error}; no change of metadata is accepted until restart");
            self.broken = Some(error.clone());
        }
        result
    }

    fn run_group(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let datastore = self.datastore.clone();
        let snapshot = datastore.meta.snapshot();
        let mut outer = self.begin(&*snapshot);
        let (mut answers, mut effects, mut sessions) = (Vec::<Pending>::new(), Vec::new(), Vec::new());
        let mut forgotten = Vec::new();
        for job in jobs {
            match job {
                Job::Request { session, id, settled_below, request, answer } => {
                    let result = session.check().and_then(|()| {
                        self.plan_once(&mut outer, &session, id, settled_below, &request, &mut effects)
                    });
                    answers.push((answer, result));
                }
                Job::OpenSession { host, instance, answer } => {
                    sessions.push((answer, open_session(&mut outer, host, instance)));
                }
                Job::Forget { sessions: fenced, answer } => {
                    let result = fenced.iter().try_for_each(|(host, g)| forget_session(&mut outer, host, *g));
                    forgotten.push((answer, result));
                }
                Job::Sweep => {
                    for file in datastore.dead_orphans() {
                        if let Ok(Some(inode)) = outer.find_inode(file) {
                            let _ = names::erase(&mut outer, file, &inode, &mut effects);
                        }
                    }
                }
            }
        }
        let committed = self.commit(outer);
        if committed.is_ok() {
            self.buried = datastore.perform(&effects);
        }
        for (answer, result) in forgotten {
            answer(committed.clone().and(result));
        }
        for (answer, result) in sessions {
            answer(committed.clone().and(result));
        }
        for (answer, result) in answers {
            answer(committed.clone().and(result).and_then(|reply| self.completed(reply)));
        }
    }

    /// Plan a request, unless its reply is kept already.
    fn plan_once(
        &self,
        outer: &mut Txn,
        session: &LiveSession,
        id: RequestId,
        settled_below: RequestId,
        request: &Request,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, WireError> {
        let key = reply_key(session.generation, id);
        if request.once()
            && let Some((code, body)) = outer.read::<(u16, Vec<u8>)>(Table::Replies, &key)?
        {
            let reply = Reply::decode(code, &body)
                .map_err(|e| WireError::Failed { reason: format!("a kept reply: {e}") })?;
            note_open(session, request, &reply);
            return Ok(reply);
        }
        let mut txn = Txn::new(&*outer);
        let (reply, mut wanted) = self.plan(&mut txn, session, request)?;
        if request.once() {
            txn.write(Table::Replies, key, &(reply.code(), reply.body()));
            forget_replies(&mut txn, session.generation, settled_below)?;
        }
        note_open(session, request, &reply);
        let changes = txn.into_changes();
        outer.absorb(changes);
        for effect in &wanted {
            if let Effect::Joined { parent, file } = effect {
                self.datastore.join(*parent, *file);
            }
        }
        effects.append(&mut wanted);
        Ok(reply)
    }

    fn plan(&self, txn: &mut Txn, session: &LiveSession, request: &Request) -> Planned {
        let datastore = &self.datastore;
        let is_open = |file| datastore.sessions.is_open(file);
        let exclusive = |name: &proto::ops::names::Name| datastore.is_exclusive(name);
        let moving = |file| datastore.mover_of(file);
        let ctx = Context {
            now: now(),
            host: &session.host,
            is_open: &is_open,
            exclusive: &exclusive,
            moving: &moving,
            prefix: datastore.identity.prefix,
        };
        for file in touched(request) {
            datastore.check_here(file)?;
        }
        let mut effects = Vec::new();
        let reply = match request {
            Request::Create(ask) => return names::create(&ctx, txn, ask),
            Request::Unlink(ask) => return names::unlink(&ctx, txn, ask),
            Request::Rmdir(ask) => return names::rmdir(&ctx, txn, ask),
            Request::Rename(ask) => return rename::rename(&ctx, txn, ask),
            Request::Link(ask) => return names::link(&ctx, txn, ask),
            Request::SetAttr(ask) => return attrs::set_attr(&ctx, txn, ask),
            Request::SetXattr(ask) => return attrs::set_xattr(&ctx, txn, ask),
            Request::RemoveXattr(ask) => return attrs::remove_xattr(&ctx, txn, ask),
            Request::MoveBegin(ask) => {
                let _deciding = datastore.sessions.deciding.lock();
                let fenced = RefCell::new(Vec::new());
                let writer = |file| match datastore.sessions.no_writer_besides(&session.host, file) {
                    Ok(sessions) => {
                        fenced.borrow_mut().extend(sessions);
                        None
                    }
                    Err(host) => Some(host),
                };
                let (record, files) = moves::begin(&ctx, txn, ask, &writer)?;
                for session in fenced.into_inner() {
                    forget_session(txn, &session.host, session.generation)?;
                }
                // Before the commit: from now on other hosts must be kept out.
                if record.state == MoveState::Copying {
                    datastore.start_moving(ask.id, &session.host, &files);
                }
                Reply::MoveBegin(record)
            }
            Request::IncomingBegin(ask) => {
                let free = datastore.space()?.free;
                Reply::IncomingBegin(incoming::begin(&ctx, txn, ask, free, &datastore.identity.name)?)
            }
            Request::IncomingPut(ask) => {
                incoming::put_entries(&ctx, txn, ask, &mut effects)?;
                Reply::IncomingPut(Done {})
            }
            Request::IncomingRemove(ask) => {
                incoming::remove(&ctx, txn, ask, &mut effects)?;
                Reply::IncomingRemove(Done {})
            }
            other => {
                return Err(WireError::Invalid {
                    reason: format!("{} is no change of metadata", other.name()),
                });
            }
        };
        Ok((reply, effects))
    }

    /// Requests with a transaction of their own.
    fn run_alone(&mut self, host: &str, request: &Request) -> Result<Reply, WireError> {
        match request {
            Request::MoveCommit(ask) => self.commit_move(host, ask.id).map(Reply::MoveCommit),
            Request::MoveFinish(ask) => self.finish_move(host, ask.id).map(Reply::MoveFinish),
            Request::MoveAbort(ask) => {
                self.transact(host, |_, txn, _| moves::abort(txn, ask.id))?;
                self.datastore.stop_moving(ask.id);
                Ok(Reply::MoveAbort(Done {}))
            }
            Request::IncomingSeal(ask) => {
                let record =
                    self.transact(host, |ctx, txn, effects| incoming::seal(ctx, txn, ask, effects))?;
                halt_at("seal-after-durable");
                Ok(Reply::IncomingSeal(record))
            }
            Request::IncomingPublish(ask) => {
                halt_at("publish-before-durable");
                let record =
                    self.transact(host, |ctx, txn, effects| incoming::publish(ctx, txn, ask, effects))?;
                halt_at("publish-after-durable");
                Ok(Reply::IncomingPublish(record))
            }
            Request::IncomingDrop(ask) => {
                while !self.transact(host, |_, txn, effects| incoming::drop_some(txn, ask, effects))? {}
                Ok(Reply::IncomingDrop(Done {}))
            }
            other => Err(WireError::Invalid { reason: format!("{} is not run alone", other.name()) }),
        }
    }

    /// One transaction by itself.
    fn transact<T>(
        &mut self,
        host: &str,
        plan: impl FnOnce(&Context, &mut Txn, &mut Vec<Effect>) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        let datastore = self.datastore.clone();
        let snapshot = datastore.meta.snapshot();
        let mut txn = self.begin(&*snapshot);
        let mut effects = Vec::new();
        let is_open = |file| datastore.sessions.is_open(file);
        let exclusive = |name: &proto::ops::names::Name| datastore.is_exclusive(name);
        let moving = |file| datastore.mover_of(file);
        let ctx = Context {
            now: now(),
            host,
            is_open: &is_open,
            exclusive: &exclusive,
            moving: &moving,
            prefix: datastore.identity.prefix,
        };
        let result = plan(&ctx, &mut txn, &mut effects)?;
        self.commit(txn)?;
        self.buried = datastore.perform(&effects);
        Ok(result)
    }

    /// Fence, drain, then the one durable record.
    fn commit_move(&mut self, host: &str, id: proto::MoveId) -> Result<MoveRecord, WireError> {
        let snapshot = self.datastore.meta.snapshot();
        let record = moves::find(&*snapshot, id, MoveSide::Source)?.ok_or(WireError::NoSuchMove)?;
        if record.state >= MoveState::Committed {
            return Ok(record);
        }
        let files: Vec<FileId> = trees::inodes_of(&*snapshot, record.root)?.into_keys().collect();
        drop(snapshot);
        self.datastore.fence(&record, &files);
        halt_at("commit-before-durable");
        match self.transact(host, |ctx, txn, _| moves::commit(ctx, txn, id)) {
            Ok(record) => {
                halt_at("commit-after-durable");
                self.datastore.stop_moving(id);
                Ok(record)
            }
            Err(error) => {
                // A failed write may have become durable all the same: then the fence must stay.
                if self.broken.is_none() {
                    self.datastore.unfence(&files);
                }
                Err(error)
            }
        }
    }

    fn finish_move(&mut self, host: &str, id: proto::MoveId) -> Result<MoveRecord, WireError> {
        let snapshot = self.datastore.meta.snapshot();
        let record = moves::find(&*snapshot, id, MoveSide::Source)?.ok_or(WireError::NoSuchMove)?;
        let files: Vec<FileId> = trees::inodes_of(&*snapshot, record.root)?.into_keys().collect();
        drop(snapshot);
        loop {
            let (record, done) =
                self.transact(host, |ctx, txn, effects| moves::finish(ctx, txn, id, effects))?;
            halt_at("finish-mid");
            if done {
                self.datastore.unfence(&files);
                return Ok(record);
            }
        }
    }

    fn completed(&self, reply: Reply) -> Result<Reply, WireError> {
        Ok(match reply {
            Reply::Create(mut created) => {
                created.attr = self.datastore.complete(created.attr)?;
                Reply::Create(created)
            }
            Reply::Link(attr) => Reply::Link(self.datastore.complete(attr)?),
            Reply::SetAttr(attr) => Reply::SetAttr(self.datastore.complete(attr)?),
            other => other,
        })
    }
}

/// A file that was created open is open.
fn note_open(session: &LiveSession, request: &Request, reply: &Reply) {
    if let (Request::Create(ask), Reply::Create(created)) = (request, reply)
        && !created.existed
        && ask.open != OpenMode::Closed
    {
        session.set_open(created.attr.file, ask.open);
    }
}

/// The inodes that a change is about: none of them may have moved away.
fn touched(request: &Request) -> Vec<FileId> {
    match request {
        Request::Create(ask) => vec![ask.parent],
        Request::Unlink(ask) => vec![ask.parent],
        Request::Rmdir(ask) => vec![ask.parent],
        Request::Rename(ask) => vec![ask.parent, ask.new_parent],
        Request::Link(ask) => vec![ask.file, ask.new_parent],
        Request::SetAttr(ask) => vec![ask.file],
        Request::SetXattr(ask) => vec![ask.file],
        Request::RemoveXattr(ask) => vec![ask.file],
        Request::IncomingBegin(ask) => vec![ask.parent],
        _ => Vec::new(),
    }
}

fn is_alone(request: &Request) -> bool {
    matches!(
        request,
        Request::MoveCommit(_)
            | Request::MoveFinish(_)
            | Request::MoveAbort(_)
            | Request::IncomingSeal(_)
            | Request::IncomingPublish(_)
            | Request::IncomingDrop(_)
    )
}

fn open_session(txn: &mut Txn, host: String, instance: proto::InstanceId) -> Result<Generation, WireError> {
    let last: Generation = txn.read(Table::Header, b"session")?.unwrap_or_default();
    let generation = last.next();
    txn.write(Table::Header, b"session".to_vec(), &generation);
    if let Some(old) = txn.read::<Session>(Table::Sessions, host.as_bytes())? {
        forget_all_replies(txn, old.generation)?;
    }
    let session = Session { host: host.clone(), instance, generation, settled_below: RequestId(1) };
    txn.write(Table::Sessions, host.into_bytes(), &session);
    Ok(generation)
}

fn forget_session(txn: &mut Txn, host: &str, generation: Generation) -> Result<(), WireError> {
    let row: Option<Session> = txn.read(Table::Sessions, host.as_bytes())?;
    if row.is_some_and(|session| session.generation == generation) {
        txn.delete(Table::Sessions, host.as_bytes().to_vec());
    }
    forget_all_replies(txn, generation)
}

fn forget_all_replies(txn: &mut Txn, session: Generation) -> Result<(), WireError> {
    let prefix = session.0.to_be_bytes();
    for (key, _) in txn.scan(Table::Replies, &prefix, &prefix, false, usize::MAX)? {
        txn.delete(Table::Replies, key);
    }
    Ok(())
}

fn forget_replies(txn: &mut Txn, session: Generation, settled_below: RequestId) -> Result<(), WireError> {
    let prefix = session.0.to_be_bytes();
    let end = reply_key(session, settled_below);
    for (key, _) in txn.scan(Table::Replies, &prefix, &prefix, false, FORGET)? {
        if key < end {
            txn.delete(Table::Replies, key);
        }
    }
    Ok(())
}
