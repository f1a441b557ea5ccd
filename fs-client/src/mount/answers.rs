//! Outcomes as answers to the kernel.

use std::time::Duration;

use fuser::{Errno, Generation, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};
use proto::ops::names::Attr;

use super::convert;
use super::view::Outcome;

/// Nothing is kept by the kernel without asking: other hosts change the same files.
pub const TTL: Duration = Duration::ZERO;
/// Ids are never used twice, so one generation is enough.
pub const GENERATION: Generation = Generation(0);

/// The errno as fuser wants it.
pub fn refuse(errno: i32) -> Errno {
    Errno::from_i32(errno)
}

pub fn answer_entry(reply: ReplyEntry, outcome: Outcome<Attr>) {
    match outcome {
        Ok(attr) => reply.entry(&TTL, &convert::file_attr(&attr), GENERATION),
        Err(e) => reply.error(refuse(e)),
    }
}

pub fn answer_attr(reply: ReplyAttr, outcome: Outcome<Attr>) {
    match outcome {
        Ok(attr) => reply.attr(&TTL, &convert::file_attr(&attr)),
        Err(e) => reply.error(refuse(e)),
    }
}

pub fn answer_empty(reply: ReplyEmpty, outcome: Outcome<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(refuse(e)),
    }
}

pub fn answer_xattr(reply: ReplyXattr, outcome: Outcome<Vec<u8>>, room: u32) {
    match outcome {
        Ok(value) if room == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(refuse(e)),
    }
}
