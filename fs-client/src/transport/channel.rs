//! A channel's thread: connects, sends again what was not answered, receives replies and runs
//! their completions, renews the lease, notices a silent peer, and starts over when the connection ends.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::WireError;
use proto::frame::{FrameError, Header, KIND_ERROR, KIND_REPLY};
use proto::ops::decode_reply;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use tracing::{debug, warn};

use super::connect::{ConnectError, Established, establish};
use super::inbox::{Inbox, Received};
use super::{Channel, Line, Session};
use crate::error::CallError;

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_LAST: Duration = Duration::from_secs(1);
/// A peer that is asked every few seconds and says nothing for this long is taken for dead.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// Renewals are sent at least this often, whatever the server asks for.
const RENEW_AT_LEAST: Duration = Duration::from_secs(2);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the server closed the connection")]
    End,
    #[error("connection lost: {0}")]
    Socket(Errno),
    #[error("connection dropped: {0}")]
    Frame(#[from] FrameError),
    #[error("the server has been silent for {} s", SILENCE_LIMIT.as_secs())]
    Silent,
    #[error("the datastore's epoch changed")]
    Epoch,
    #[error("closed by this host")]
    Over,
}

/// Until the session is over.
pub fn run(session: &Arc<Session>, channel: Channel) {
    let mut backoff = BACKOFF_FIRST;
    while !session.is_over() {
        // The I/O channel makes and resumes the session and declares opens; the others follow.
        if channel != Channel::Io && !session.wait_io_connected(BACKOFF_LAST) {
            continue;
        }
        match establish(session, channel) {
            Ok(established) if channel != Channel::Io && is_ahead(session, &established) => {}
            Ok(established) => {
                backoff = BACKOFF_FIRST;
                let lost = serve(session, channel, established);
                session.line(channel).outbox.lock().close();
                session.note_link(channel, Some(lost.to_string()));
            }
            Err(ConnectError::Fenced(reason)) => session.fence(reason),
            Err(e) => session.note_link(channel, Some(e.to_string())),
        }
        pause(session.line(channel), backoff);
        backoff = (backoff * 2).min(BACKOFF_LAST);
    }
    session.line(channel).outbox.lock().close();
}

/// Whether this channel reached a server run that the I/O channel has not met yet.
fn is_ahead(session: &Session, established: &Established) -> bool {
    session.attached().is_none_or(|known| known.server != established.attached.server)
}

fn serve(session: &Arc<Session>, channel: Channel, established: Established) -> Lost {
    let Established { link, mut inbox, attached } = established;
    let socket = link.socket.clone();
    let renew_every =
        Duration::from_millis(attached.renew_ms.into()).clamp(Duration::from_millis(50), RENEW_AT_LEAST);
    if channel == Channel::Io {
        let before = session.attached();
        if before.as_ref().is_none() {
            session.requests.lock().core.start_at(attached.next_request);
        }
        session.attached.send_replace(Some(attached.clone()));
        if before.is_some_and(|b| b.boot != attached.boot) {
            warn!(datastore = session.config.name, "the server's machine was booted anew");
            let listeners = session.boot_listeners.lock().clone();
            listeners.iter().for_each(|listener| listener());
        }
    }
    resend(session, channel, link);
    session.note_link(channel, None);
    let line = session.line(channel);
    let (mut heard, mut renewed) = (Instant::now(), Instant::now());
    loop {
        match take_frames(session, channel, &mut inbox) {
            Ok(()) => {}
            Err(lost) => return lost,
        }
        if session.is_over() {
            return Lost::Over;
        }
        if renewed.elapsed() >= renew_every {
            session.renew(channel);
            renewed = Instant::now();
        }
        if heard.elapsed() >= SILENCE_LIMIT {
            return Lost::Silent;
        }
        let ready = match wait(line, &socket, renew_every.saturating_sub(renewed.elapsed())) {
            Ok(ready) => ready,
            Err(e) => return Lost::Socket(e),
        };
        if ready.contains(PollFlags::OUT) {
            line.outbox.lock().drain();
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            match inbox.receive(&socket) {
                Ok(Received::Some) => heard = Instant::now(),
                Ok(Received::Nothing) => {}
                Ok(Received::End) => return Lost::End,
                Err(e) => return Lost::Socket(e),
            }
        }
    }
}

/// Open the outbox and put into it, in order, everything that was not answered. Requests that are
/// submitted meanwhile wait for the outbox's lock and come behind.
fn resend(session: &Session, channel: Channel, link: super::outbox::Link) {
    let line = session.line(channel);
    let mut outbox = line.outbox.lock();
    outbox.open(link);
    let requests = session.requests.lock();
    let settled_below = requests.core.settled_below();
    let again: Vec<(Header, Bytes, Bytes)> = requests
        .core
        .unanswered(channel.number())
        .map(|(request, p)| (Header { request, settled_below, ..p.header }, p.body.clone(), p.data.clone()))
        .collect();
    drop(requests);
    if !again.is_empty() {
        debug!(
            datastore = session.config.name,
            channel = channel.number(),
            count = again.len(),
            "sent again"
        );
    }
    for (header, body, data) in again {
        outbox.send(header, body, data);
    }
}

/// Complete the requests whose replies have arrived.
fn take_frames(session: &Session, channel: Channel, inbox: &mut Inbox) -> Result<(), Lost> {
    while let Some((header, payload)) = inbox.next_frame()? {
        let number = channel.number();
        let asked = session.requests.lock().core.get(number, header.request).map(|p| p.header.kind);
        let Some(asked) = asked else {
            if session.is_over() {
                return Err(Lost::Over);
            }
            warn!(datastore = session.config.name, request = %header.request, "a reply to no request");
            continue;
        };
        if header.kind != KIND_ERROR && header.kind != asked | KIND_REPLY {
            return Err(FrameError::Kind.into());
        }
        let body_len = header.body_len as usize;
        let answer = match decode_reply(&header, &payload[..body_len])? {
            Ok(reply) => Ok((reply, payload.slice(body_len..))),
            // Not this request's fault: it is sent again under the new epoch.
            Err(WireError::WrongEpoch { .. }) => return Err(Lost::Epoch),
            Err(error) => Err(CallError::Wire(error)),
        };
        let pending = session.requests.lock().core.complete(number, header.request);
        if let Some(pending) = pending {
            (pending.done)(answer);
        }
    }
    Ok(())
}

/// Wait for bytes, for room if something is to be sent, to be roused, or for `limit`.
fn wait(line: &Line, socket: &TcpStream, limit: Duration) -> Result<PollFlags, Errno> {
    let mut wanted = PollFlags::IN;
    if line.outbox.lock().is_backed_up() {
        wanted |= PollFlags::OUT;
    }
    let mut fds = [PollFd::new(socket, wanted), PollFd::new(&line.wake, PollFlags::IN)];
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e),
    }
    let ready = fds[0].revents();
    if fds[1].revents().contains(PollFlags::IN) {
        rest(line);
    }
    Ok(ready)
}

/// Wait until roused, at most `limit`.
fn pause(line: &Line, limit: Duration) {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    let mut fds = [PollFd::new(&line.wake, PollFlags::IN)];
    if poll(&mut fds, Some(&limit)).is_ok_and(|n| n > 0) {
        rest(line);
    }
}

/// Take back what roused this thread.
fn rest(line: &Line) {
    let _ = rustix::io::read(&line.wake, &mut [0u8; 8]);
}
