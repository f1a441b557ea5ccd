//! One copy: read a chunk with its digest, write what is not zero, discard what is.
//!
//! What is written carries a BLAKE3 digest that the destination checks. A chunk that goes on as it
//! came keeps the digest that the source's keeper computed; one that is cut into runs is checked
//! here first, and each run gets a digest of its own. So no byte is accepted that differs from what
//! the keeper read.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::hashers;
use super::messages::{Outcome, Side};
use crate::{DiskError, DiskResult, Request, Response, SharedDisk};

/// Zeroes are looked for in units of this many bytes.
const BLOCK: usize = 4096;

/// What to copy; see [`super::Output::Copy`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) read_len: u64,
    pub(super) fresh: bool,
}

pub(super) type Done = Box<dyn FnOnce(Outcome) + Send>;

pub(super) fn copy(source: &SharedDisk, destination: &SharedDisk, chunk: Chunk, done: Done) {
    if chunk.read_len == 0 {
        return write(destination, chunk, &Bytes::new(), None, done);
    }
    let destination = destination.clone();
    let len = u32::try_from(chunk.read_len).expect("chunks are far smaller than 4 GiB");
    source.submit(
        Request::ReadDigest { offset: chunk.offset, len },
        Box::new(move |result| match result {
            Ok(Response::Data { data, digest }) if data.len() as u64 <= chunk.read_len => {
                hashers::run(Box::new(move || write(&destination, chunk, &data, digest, done)));
            }
            Ok(_) => {
                let context = format!("read {len} bytes at {}: a wrong answer", chunk.offset);
                let errno = rustix::io::Errno::PROTO.raw_os_error();
                done(failed(Side::Source, DiskError::Io { errno, context }));
            }
            Err(error) => done(failed(Side::Source, error)),
        }),
    );
}

fn failed(side: Side, error: DiskError) -> Outcome {
    Outcome::Failed { side, error }
}

#[derive(Debug, PartialEq, Eq)]
struct Run {
    range: Range<u64>,
    zero: bool,
}

fn is_zero(block: &[u8]) -> bool {
    block.chunks(64).all(|piece| piece.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// The runs of a chunk of `len` bytes that begins with `data` and goes on with zeroes.
fn runs(data: &[u8], len: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut push = |range: Range<u64>, zero| match runs.last_mut() {
        Some(last) if last.zero == zero => last.range.end = range.end,
        _ if range.is_empty() => {}
        _ => runs.push(Run { range, zero }),
    };
    let mut at = 0;
    for block in data.chunks(BLOCK) {
        let end = at + block.len() as u64;
        push(at..end, is_zero(block));
        at = end;
    }
    push(at..len, true);
    runs
}

/// The requests that bring `data` to the destination, and how many bytes of it they write.
fn requests(chunk: Chunk, data: &Bytes, digest: Option<[u8; 32]>) -> Result<(Vec<Request>, u64), DiskError> {
    let runs = runs(data, chunk.len);
    let as_it_came = |run: &Run| !run.zero && run.range == (0..data.len() as u64);
    let whole = runs.first().is_some_and(as_it_came);
    if let (false, Some(expected)) = (whole, digest)
        && *blake3::hash(data).as_bytes() != expected
    {
        return Err(DiskError::Digest { offset: chunk.offset, len: data.len() as u64 });
    }
    let (mut requests, mut written) = (Vec::new(), 0);
    for Run { range, zero } in runs {
        let (offset, len) = (chunk.offset + range.start, range.end - range.start);
        if !zero {
            let part = data.slice(range.start as usize..range.end as usize);
            let digest = digest.filter(|_| whole).unwrap_or_else(|| *blake3::hash(&part).as_bytes());
            written += len;
            requests.push(Request::Write { offset, data: part, digest: Some(digest), fua: false });
        } else if !chunk.fresh {
            requests.push(Request::Discard { offset, len });
        }
    }
    Ok((requests, written))
}

/// The requests of one chunk that are still in flight.
struct Parts {
    left: usize,
    outcome: Outcome,
    done: Option<Done>,
}

fn write(destination: &SharedDisk, chunk: Chunk, data: &Bytes, digest: Option<[u8; 32]>, done: Done) {
    let (requests, written) = match requests(chunk, data, digest) {
        Ok(requests) => requests,
        Err(error) => return done(failed(Side::Source, error)),
    };
    let outcome = Outcome::Copied { written, zeroes: chunk.read_len.saturating_sub(written) };
    if requests.is_empty() {
        return done(outcome);
    }
    let parts = Arc::new(Mutex::new(Parts { left: requests.len(), outcome, done: Some(done) }));
    for request in requests {
        let parts = parts.clone();
        destination.submit(request, Box::new(move |result| part_ended(&parts, result)));
    }
}

fn part_ended(parts: &Mutex<Parts>, result: DiskResult) {
    let mut state = parts.lock();
    if let Err(error) = result {
        state.outcome = failed(Side::Destination, error);
    }
    state.left -= 1;
    if state.left == 0
        && let Some(done) = state.done.take()
    {
        let outcome = state.outcome.clone();
        drop(state);
        done(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(range: Range<u64>, zero: bool) -> Run {
        Run { range, zero }
    }

    #[test]
    fn runs_are_cut_at_blocks() {
        let mut data = vec![0u8; 3 * 4096];
        data[8191] = 1;
        let parts = [run(0..4096, true), run(4096..8192, false), run(8192..12288, true)];
        assert_eq!(runs(&data, 3 * 4096), parts);
        assert_eq!(runs(&data[4096..8192], 8192), [run(0..4096, false), run(4096..8192, true)]);
        assert_eq!(runs(&data[8192..], 8192), [run(0..8192, true)]);
        assert_eq!(runs(&[], 100), [run(0..100, true)]);
        assert_eq!(runs(&[7; 100], 100), [run(0..100, false)]);
        assert_eq!(runs(&[], 0), []);
    }

    #[test]
    fn a_whole_chunk_keeps_its_digest_and_a_cut_one_is_checked() {
        let chunk = Chunk { offset: 65536, len: 8192, read_len: 8192, fresh: false };
        let full = Bytes::from(vec![5u8; 8192]);
        let (parts, written) = requests(chunk, &full, Some([9; 32])).unwrap();
        assert_eq!(written, 8192);
        let expected = Request::Write { offset: 65536, data: full, digest: Some([9; 32]), fua: false };
        assert_eq!(parts, [expected]);
        let half = Bytes::from([vec![5u8; 4096], vec![0; 4096]].concat());
        let altered = requests(chunk, &half, Some([9; 32]));
        assert_eq!(altered, Err(DiskError::Digest { offset: 65536, len: 8192 }));
        let (parts, written) = requests(chunk, &half, Some(*blake3::hash(&half).as_bytes())).unwrap();
        let data = half.slice(..4096);
        let digest = Some(*blake3::hash(&data).as_bytes());
        let write = Request::Write { offset: 65536, data, digest, fua: false };
        assert_eq!(parts, [write, Request::Discard { offset: 65536 + 4096, len: 4096 }]);
        assert_eq!(written, 4096);
    }

    #[test]
    fn zeroes_read_as_zeroes_are_checked_too() {
        let chunk = Chunk { offset: 0, len: 4096, read_len: 4096, fresh: true };
        let zeroes = Bytes::from(vec![0u8; 4096]);
        assert!(requests(chunk, &zeroes, Some([1; 32])).is_err());
        assert_eq!(requests(chunk, &zeroes, None), Ok((vec![], 0)));
    }
}
