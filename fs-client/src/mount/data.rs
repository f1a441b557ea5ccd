//! File data: everything goes through the file's slot.

use std::sync::Arc;

use block_mirror::{Completion, Disk, DiskError, DiskResult, Request, Response};
use bytes::Bytes;
use fuser::{ReplyData, ReplyEmpty, ReplyWrite};
use proto::FileId;
use proto::ops::names::GetAttr;
use tokio::sync::oneshot;
use tracing::warn;

use super::answers::refuse;
use super::view::{Outcome, View, errno};
use crate::nodes::{Access, Node};

/// A disk's failure as the kernel hears it.
pub fn disk_errno(error: DiskError) -> i32 {
    let errno = error.errno();
    if matches!(errno, libc::EIO | libc::ESTALE) {
        warn!("{error}");
    }
    errno
}

/// A request through the node's slot, for those who can wait.
pub async fn through_slot(node: &Node, request: Request) -> DiskResult {
    let (answer, answered) = oneshot::channel();
    let done: Completion = Box::new(move |result| {
        let _ = answer.send(result);
    });
    node.slot().submit(request, done);
    answered.await.unwrap_or(Err(DiskError::Closed))
}

impl View {
    /// Answered from the completion; the calling thread goes on at once.
    pub fn read(&self, file: FileId, offset: u64, len: u32, reply: ReplyData) {
        let node = match self.node(file) {
            Ok(node) => node,
            Err(e) => return reply.error(refuse(e)),
        };
        node.slot().submit(
            Request::Read { offset, len },
            Box::new(move |result| match result {
                Ok(Response::Data { data, .. }) => reply.data(&data),
                Ok(_) => reply.error(refuse(libc::EIO)),
                Err(e) => reply.error(refuse(disk_errno(e))),
            }),
        );
    }

    /// Answered from the completion; the calling thread goes on at once.
    pub fn write(&self, file: FileId, offset: u64, data: Bytes, reply: ReplyWrite) {
        let node = match self.node(file) {
            Ok(node) => node,
            Err(e) => return reply.error(refuse(e)),
        };
        let len = data.len() as u32;
        node.slot().submit(
            Request::Write { offset, data, digest: None, fua: false },
            Box::new(move |result| match result {
                Ok(_) => reply.written(len),
                Err(e) => reply.error(refuse(disk_errno(e))),
            }),
        );
    }

    /// A request without data in its answer; answered from the completion.
    pub fn change(&self, file: FileId, request: Request, reply: ReplyEmpty) {
        let node = match self.node(file) {
            Ok(node) => node,
            Err(e) => return reply.error(refuse(e)),
        };
        node.slot().submit(
            request,
            Box::new(move |result| match result {
                Ok(_) => reply.ok(),
                Err(e) => reply.error(refuse(disk_errno(e))),
            }),
        );
    }

    pub async fn open(&self, file: FileId, access: Access) -> Outcome<()> {
        let node = self.node(file)?;
        let _ticket = self.enter(&[file]).await;
        node.open(access).await.map_err(errno)
    }

    pub async fn release(&self, node: Arc<Node>, access: Access) {
        let _ticket = self.enter(&[node.id()]).await;
        self.files.clone().close(node, access).await;
    }

    /// SEEK_DATA and SEEK_HOLE.
    pub async fn seek(&self, file: FileId, from: u64, whence: i32) -> Outcome<u64> {
        let node = self.node(file)?;
        let size = {
            let _ticket = self.enter(&[file]).await;
            node.call(GetAttr { file }).await.map_err(errno)?.size
        };
        if from >= size {
            return Err(libc::ENXIO);
        }
        let mut at = from;
        while at < size {
            let map = Request::Map { offset: at, len: size - at };
            let Response::Extents { extents, upto } = through_slot(&node, map).await.map_err(disk_errno)?
            else {
                return Err(libc::EIO);
            };
            match whence {
                libc::SEEK_DATA => {
                    if let Some(extent) = extents.first() {
                        return Ok(extent.offset.max(from));
                    }
                }
                libc::SEEK_HOLE => {
                    for extent in &extents {
                        if extent.offset > at {
                            return Ok(at);
                        }
                        at = at.max(extent.offset + extent.len);
                    }
                    if at < upto.min(size) {
                        return Ok(at);
                    }
                }
                _ => return Err(libc::EINVAL),
            }
            if upto <= at && extents.is_empty() {
                break;
            }
            at = at.max(upto);
        }
        if whence == libc::SEEK_HOLE { Ok(size) } else { Err(libc::ENXIO) }
    }
}

/// What fallocate(2) asks for in a mode; none when that is not supported.
pub fn fallocate_request(mode: i32, offset: u64, len: u64) -> Option<Request> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Some(Request::Allocate { offset, len, keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(Request::Discard { offset, len }),
        libc::FALLOC_FL_ZERO_RANGE => Some(Request::Zero { offset, len, keep_size }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallocate_modes() {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(
            fallocate_request(0, 1, 2),
            Some(Request::Allocate { offset: 1, len: 2, keep_size: false })
        );
        assert_eq!(
            fallocate_request(keep, 1, 2),
            Some(Request::Allocate { offset: 1, len: 2, keep_size: true })
        );
        assert_eq!(
            fallocate_request(libc::FALLOC_FL_PUNCH_HOLE | keep, 1, 2),
            Some(Request::Discard { offset: 1, len: 2 })
        );
        assert_eq!(
            fallocate_request(libc::FALLOC_FL_ZERO_RANGE, 1, 2),
            Some(Request::Zero { offset: 1, len: 2, keep_size: false })
        );
        for unsupported in
            [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE]
        {
            assert_eq!(fallocate_request(unsupported, 1, 2), None);
        }
    }
}
