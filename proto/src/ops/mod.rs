//! Operations: what a host asks of a datastore and what it gets back.
//!
//! Each operation has a code (the frame's kind), a request structure and a reply structure, both
//! in postcard encoding. Codes are never reused.

pub mod data;
pub mod moves;
pub mod names;
pub mod session;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::WireError;
use crate::frame::{FrameError, Header, KIND_ERROR, KIND_REPLY, payload_crc};
use crate::ids::{Epoch, Generation, RequestId};

/// The empty reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

macro_rules! operations {
    ($($(#[$doc:meta])* $code:literal $name:ident ($request:ty) -> $reply:ty, $once:literal;)*) => {
        /// A request of any operation.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Request {
            $($(#[$doc])* $name($request),)*
        }

        /// The reply of any operation.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Reply {
            $($name($reply),)*
        }

        impl Request {
            /// The operation's code.
            pub fn code(&self) -> u16 {
                match self { $(Request::$name(_) => $code,)* }
            }

            /// The operation's name, for logs and metrics.
            pub fn name(&self) -> &'static str {
                match self { $(Request::$name(_) => stringify!($name),)* }
            }

            /// Whether doing it twice differs from doing it once, so that the server must keep the
            /// reply until the client has settled the request.
            pub fn once(&self) -> bool {
                match self { $(Request::$name(_) => $once,)* }
            }

            fn body(&self) -> Vec<u8> {
                match self { $(Request::$name(body) => encode_body(body),)* }
            }

            /// Read the body of a request of kind `code`.
            pub fn decode(code: u16, body: &[u8]) -> Result<Request, FrameError> {
                match code {
                    $($code => decode_body(body).map(Request::$name),)*
                    _ => Err(FrameError::Kind),
                }
            }
        }

        impl Reply {
            /// The operation's code.
            pub fn code(&self) -> u16 {
                match self { $(Reply::$name(_) => $code,)* }
            }

            /// The body's bytes.
            pub fn body(&self) -> Vec<u8> {
                match self { $(Reply::$name(body) => encode_body(body),)* }
            }

            /// Read the body of a reply to operation `code`.
            pub fn decode(code: u16, body: &[u8]) -> Result<Reply, FrameError> {
                match code {
                    $($code => decode_body(body).map(Reply::$name),)*
                    _ => Err(FrameError::Kind),
                }
            }
        }

        $(impl Operation for $request {
            type Reply = $reply;
            fn request(self) -> Request {
                Request::$name(self)
            }
            fn reply(reply: Reply) -> Option<Self::Reply> {
                match reply { Reply::$name(body) => Some(body), _ => None }
            }
        })*

        /// Every code in use, for tests and docs.
        pub const CODES: &[(u16, &str)] = &[$(($code, stringify!($name)),)*];
    };
}

/// Ties a request structure to its reply structure.
pub trait Operation: Sized {
    /// What it is answered with.
    type Reply;
    /// As a request of any operation.
    fn request(self) -> Request;
    /// Take this operation's reply out of a reply of any operation.
    fn reply(reply: Reply) -> Option<Self::Reply>;
}

operations! {
    /// Open or resume a session; the first frame of each connection.
    0x0001 Attach(session::Attach) -> session::Attached, false;
    /// Renew the session's lease.
    0x0002 Renew(session::Renew) -> session::Renewed, false;
    /// End the session in order: drop its opens.
    0x0003 Detach(session::Detach) -> Done, false;
    /// Declare how this session has a file open (absolute state, so it can be said again).
    0x0004 SetOpen(session::SetOpen) -> session::Opened, false;
    /// Sessions, opens, space: for administrators.
    0x0005 Status(session::Status) -> session::StatusReport, false;

    0x0010 Lookup(names::Lookup) -> names::Attr, false;
    0x0011 GetAttr(names::GetAttr) -> names::Attr, false;
    0x0012 SetAttr(names::SetAttr) -> names::Attr, false;
    0x0013 ReadDir(names::ReadDir) -> names::DirPage, false;
    0x0014 Create(names::Create) -> names::Created, true;
    0x0015 Unlink(names::Unlink) -> Done, true;
    0x0016 Rmdir(names::Rmdir) -> Done, true;
    0x0017 Rename(names::Rename) -> Done, true;
    0x0018 Link(names::Link) -> names::Attr, true;
    0x0019 ReadLink(names::ReadLink) -> names::Target, false;
    0x001a GetXattr(names::GetXattr) -> names::XattrValue, false;
    0x001b SetXattr(names::SetXattr) -> Done, true;
    0x001c ListXattr(names::ListXattr) -> names::XattrNames, false;
    0x001d RemoveXattr(names::RemoveXattr) -> Done, true;
    0x001e StatFs(names::StatFs) -> names::Space, false;
    /// Walk a tree, every inode of it with all that a move must carry.
    0x001f TreeList(names::TreeList) -> names::TreePage, false;

    0x0020 Read(data::Read) -> data::ReadDone, false;
    /// Data follows the body.
    0x0021 Write(data::Write) -> Done, false;
    0x0022 Flush(data::Flush) -> Done, false;
    0x0023 Discard(data::Discard) -> Done, false;
    0x0024 Zero(data::Zero) -> Done, false;
    0x0025 Allocate(data::Allocate) -> Done, false;
    0x0026 Resize(data::Resize) -> Done, false;
    0x0027 Map(data::Map) -> data::Extents, false;

    /// On the source: durable record of a move; keeps other hosts from changing the tree.
    0x0030 MoveBegin(moves::MoveBegin) -> moves::MoveRecord, false;
    /// On the source: THE commit point. Idempotent.
    0x0031 MoveCommit(moves::MoveCommit) -> moves::MoveRecord, false;
    /// On the source, after the destination published: free the space.
    0x0032 MoveFinish(moves::MoveFinish) -> moves::MoveRecord, false;
    /// On the source, before the commit: forget the move.
    0x0033 MoveAbort(moves::MoveAbort) -> Done, false;
    /// On either: all records, or one.
    0x0034 MoveList(moves::MoveList) -> moves::MoveRecords, false;
    /// On the destination: reserve the name, check the space.
    0x0035 IncomingBegin(moves::IncomingBegin) -> moves::MoveRecord, false;
    /// On the destination: add or update inodes and names of the incoming tree.
    0x0036 IncomingPut(moves::IncomingPut) -> Done, false;
    /// On the destination: drop names from the incoming tree.
    0x0037 IncomingRemove(moves::IncomingRemove) -> Done, false;
    /// On the destination: everything is there and durable; only the source's record decides now.
    0x0038 IncomingSeal(moves::IncomingSeal) -> moves::MoveRecord, false;
    /// On the destination, after the source committed: the tree becomes live. Idempotent.
    0x0039 IncomingPublish(moves::IncomingPublish) -> moves::MoveRecord, false;
    /// On the destination: delete the incoming tree and the record. Idempotent.
    0x003a IncomingDrop(moves::IncomingDrop) -> Done, false;
}

fn encode_body<T: Serialize>(body: &T) -> Vec<u8> {
    postcard::to_stdvec(body).expect("plain structures in memory always encode")
}

fn decode_body<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(FrameError::Body),
    }
}

/// A frame ready to be sent: header and body in one buffer, data beside it so that it is not copied.
#[derive(Clone, Debug)]
pub struct OutFrame {
    /// Header and body.
    pub head: Vec<u8>,
    /// File data, perhaps empty.
    pub data: Bytes,
}

/// What a sender puts into a frame's header beside the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Version agreed in the handshake.
    pub version: u16,
    /// Which request.
    pub request: RequestId,
    /// Session generation.
    pub session: Generation,
    /// Epoch.
    pub epoch: Epoch,
    /// See [`Header::settled_below`].
    pub settled_below: RequestId,
}

/// Make the frame of a request.
pub fn frame_request(stamp: Stamp, request: &Request, data: Bytes) -> OutFrame {
    frame(stamp, request.code(), &request.body(), data)
}

/// Make the frame of a reply.
pub fn frame_reply(stamp: Stamp, reply: &Reply, data: Bytes) -> OutFrame {
    frame(stamp, reply.code() | KIND_REPLY, &reply.body(), data)
}

/// Make the frame of an error reply.
pub fn frame_error(stamp: Stamp, error: &WireError) -> OutFrame {
    frame(stamp, KIND_ERROR, &encode_body(error), Bytes::new())
}

/// What a received reply frame says.
pub fn decode_reply(header: &Header, body: &[u8]) -> Result<Result<Reply, WireError>, FrameError> {
    if header.kind == KIND_ERROR {
        return decode_body(body).map(Err);
    }
    if header.kind & KIND_REPLY == 0 {
        return Err(FrameError::Kind);
    }
    Reply::decode(header.kind & !KIND_REPLY, body).map(Ok)
}

fn frame(stamp: Stamp, kind: u16, body: &[u8], data: Bytes) -> OutFrame {
    let header = Header {
        version: stamp.version,
        kind,
        request: stamp.request,
        session: stamp.session,
        epoch: stamp.epoch,
        settled_below: stamp.settled_below,
        body_len: body.len() as u32,
        data_len: data.len() as u32,
        payload_crc: payload_crc(body, &data),
    };
    let mut head = Vec::with_capacity(crate::frame::HEADER_LEN + body.len());
    head.extend_from_slice(&header.encode());
    head.extend_from_slice(body);
    OutFrame { head, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::FileId;
    use proptest::prelude::*;

    #[test]
    fn codes_are_unique_and_never_zero() {
        let mut codes: Vec<u16> = CODES.iter().map(|(code, _)| *code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
        assert!(codes.iter().all(|&c| c != 0 && c < KIND_REPLY));
    }

    #[test]
    fn golden_bodies() {
        let write = Request::Write(data::Write {
            file: FileId(0x0100_0000_0002),
            offset: 4096,
            digest: None,
            fua: true,
            incoming: None,
        });
        assert_eq!(write.body(), [0x82, 0x80, 0x80, 0x80, 0x80, 0x20, 0x80, 0x20, 0, 1, 0]);
        let lookup = Request::Lookup(names::Lookup { parent: FileId(5), name: "vm42".into() });
        assert_eq!(lookup.body(), *b"\x05\x04vm42");
        let error = encode_body(&WireError::posix(2, "x"));
        assert_eq!(error, [0, 4, 1, b'x']);
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut body = Request::GetAttr(names::GetAttr { file: FileId(9) }).body();
        assert!(Request::decode(0x0011, &body).is_ok());
        body.push(0);
        assert_eq!(Request::decode(0x0011, &body), Err(FrameError::Body));
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(code in 0u16..0x50, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = Request::decode(code, &body) {
                prop_assert_eq!(Request::decode(code, &request.body()), Ok(request));
            }
            let _ = Reply::decode(code, &body);
        }
    }
}
