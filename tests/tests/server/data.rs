//! File data on both data paths: contents, digests, answers out of order, and kills.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proto::ops::data::{Allocate, Discard, Flush, Map, Read, Resize, Write, Zero};
use proto::ops::{Operation, Reply};
use proto::{RequestId, WireError};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::site::{BOTH_PATHS, Site, a_read, a_write};
use super::wire::{Host, Wire};

/// Contents that tell where they belong and which time they were written.
fn pattern(seed: u64, len: usize) -> Bytes {
    let mut data = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut data[..]);
    data.into()
}

#[test]
fn a_file_is_what_was_written_zeroed_discarded_and_resized() {
    const SPACE: usize = 256 << 10;
    for env in BOTH_PATHS {
        let mut site = Site::with(&[], env);
        let host = Host::run("a");
        let (mut wire, attached) = site.host(&host);
        let file = wire.make_file(attached.root, "f");
        let mut model = Vec::<u8>::new();
        let mut rng = StdRng::seed_from_u64(11);
        for step in 0..400u64 {
            let at = rng.random_range(0..SPACE);
            let len = rng.random_range(1..=SPACE / 8);
            let (offset, bytes) = (at as u64, len as u64);
            match rng.random_range(0..8) {
                0..=3 => {
                    let data = pattern(step, len);
                    let fua = step % 16 == 0;
                    wire.call_data(Write { fua, ..a_write(file, offset) }, &data).unwrap();
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].copy_from_slice(&data);
                }
                4 => {
                    wire.call(Discard { file, offset, len: bytes, incoming: None }).unwrap();
                    let end = model.len();
                    model[at.min(end)..(at + len).min(end)].fill(0);
                }
                5 => {
                    let keep_size = step % 2 == 0;
                    wire.call(Zero { file, offset, len: bytes, keep_size, incoming: None }).unwrap();
                    if !keep_size {
                        model.resize(model.len().max(at + len), 0);
                    }
                    let end = model.len();
                    model[at.min(end)..(at + len).min(end)].fill(0);
                }
                6 => {
                    let keep_size = step % 2 == 0;
                    wire.call(Allocate { file, offset, len: bytes, keep_size, incoming: None }).unwrap();
                    if !keep_size {
                        model.resize(model.len().max(at + len), 0);
                    }
                }
                _ => {
                    wire.call(Resize { file, size: offset, incoming: None }).unwrap();
                    model.resize(at, 0);
                }
            }
            if step == 200 {
                site.restart();
                wire = site.resume(&host, &attached);
            }
            if step % 10 == 0 {
                let read = wire.read(file, 0, 1 << 20).unwrap();
                assert!(read == model, "{env:?}: step {step}");
                assert_eq!(wire.attr(file).unwrap().size, model.len() as u64);
                assert_eq!(wire.read(file, model.len() as u64, 10).unwrap().len(), 0);
            }
        }
        // Whatever the list of extents leaves out is zero.
        let extents = wire.call(Map { file, offset: 0, len: u64::MAX, incoming: None }).unwrap();
        assert_eq!(extents.upto, model.len() as u64);
        for (at, len) in extents.extents {
            model[at as usize..(at + len) as usize].fill(0);
        }
        assert!(model.iter().all(|b| *b == 0), "{env:?}");
    }
}

#[test]
fn a_file_without_data_reads_as_empty() {
    for env in BOTH_PATHS {
        let mut site = Site::with(&[], env);
        let (mut wire, attached) = site.host(&Host::run("a"));
        let file = wire.make_file(attached.root, "f");
        assert_eq!(wire.read(file, 0, 4096).unwrap().len(), 0);
        wire.flush(file).unwrap();
        wire.call(Discard { file, offset: 0, len: 4096, incoming: None }).unwrap();
        let map = wire.call(Map { file, offset: 0, len: 4096, incoming: None }).unwrap();
        assert!(map.extents.is_empty());
        assert_eq!(site.server().data_files(), 0);
        let dir = wire.make_dir(attached.root, "d");
        assert!(matches!(wire.write(dir, 0, b"x"), Err(WireError::Invalid { .. })));
        assert!(matches!(wire.read(dir, 0, 1), Err(WireError::Invalid { .. })));
    }
}

#[test]
fn data_with_a_wrong_digest_is_not_written() {
    for env in BOTH_PATHS {
        let mut site = Site::with(&[], env);
        let (mut wire, attached) = site.host(&Host::run("a"));
        let file = wire.make_file(attached.root, "f");
        let data = pattern(1, 100_000);
        let digest = *blake3::hash(&data).as_bytes();
        let mut altered = data.to_vec();
        altered[50_000] ^= 1;
        let write = Write { digest: Some(digest), ..a_write(file, 8192) };
        let refused = |wire: &mut Wire| wire.call_data(write.clone(), &altered);
        assert_eq!(refused(&mut wire), Err(WireError::Digest { offset: 8192, len: 100_000 }));
        assert_eq!(site.server().data_files(), 0, "not even an empty file");
        wire.call_data(write.clone(), &data).unwrap();
        assert_eq!(refused(&mut wire), Err(WireError::Digest { offset: 8192, len: 100_000 }));
        let id = wire.post(Read { digest: true, ..a_read(file, 8192, 200_000) }, Bytes::new());
        let (reply, read) = wire.receive_for(id).unwrap().unwrap();
        assert_eq!(read, data);
        assert!(matches!(reply, Reply::Read(done) if done.digest == Some(digest)));
    }
}

/// Many requests at once: each answer belongs to the request whose id it bears.
#[test]
fn answers_out_of_order_are_matched_by_their_ids() {
    const SLOT: usize = 32 << 10;
    for env in BOTH_PATHS {
        let site = Site::with(&[], env);
        let (mut wire, attached) = site.host(&Host::run("a"));
        let files = [0, 1].map(|i| wire.make_file(attached.root, &format!("f{i}")));
        for slot in 0..64 {
            for file in files {
                wire.write(file, slot * SLOT as u64, &pattern(file.0 ^ slot, SLOT)).unwrap();
            }
        }
        let mut rng = StdRng::seed_from_u64(3);
        let mut expected = BTreeMap::new();
        for _ in 0..400 {
            let (file, slot) = (files[rng.random_range(0..2)], rng.random_range(0..64));
            let offset = slot * SLOT as u64;
            let data = pattern(file.0 ^ slot, SLOT);
            let (id, answer) = match rng.random_range(0..4) {
                0 => (wire.post(Write { fua: true, ..a_write(file, offset) }, data), None),
                1 => (wire.post(Flush { file, incoming: None }, Bytes::new()), None),
                _ => (wire.post(a_read(file, offset, SLOT as u32), Bytes::new()), Some(data)),
            };
            expected.insert(id, answer);
        }
        while !expected.is_empty() {
            let (id, answer) = wire.receive().unwrap();
            let (reply, data) = answer.unwrap();
            match expected.remove(&id).expect("one answer to each") {
                Some(wanted) => assert!(data == wanted && matches!(reply, Reply::Read(_)), "{env:?}"),
                None => assert!(matches!(reply, Reply::Write(_) | Reply::Flush(_)), "{env:?}"),
            }
        }
    }
}

/// The server is killed while many writes are under way; what it had answered is there at once
/// after its restart, the rest after it was sent again.
#[test]
fn every_acknowledged_write_is_there_after_kills() {
    const SLOT: usize = 16 << 10;
    const WRITES: u64 = 150;
    for env in BOTH_PATHS {
        let mut site = Site::with(&[], env);
        let host = Host::run("a");
        let (mut wire, attached) = site.host(&host);
        let file = wire.make_file(attached.root, "f");
        let mut rng = rand::rng();
        let (mut cut, mut kept) = (0, BTreeMap::<u64, u64>::new());
        for round in 0..12u64 {
            let first = round * WRITES;
            // The odd ones are written over again in each round.
            let slot_of = |id: u64| if id.is_multiple_of(2) { id } else { id - first };
            let send = |wire: &mut Wire, id: u64| {
                let write = Write { fua: id.is_multiple_of(9), ..a_write(file, slot_of(id) * SLOT as u64) };
                wire.send(RequestId(id + 1), &write.request(), pattern(id, SLOT))
            };
            let check = |wire: &mut Wire, kept: &BTreeMap<u64, u64>| {
                for (slot, id) in kept {
                    let read = wire.read(file, slot * SLOT as u64, SLOT as u32).unwrap();
                    assert!(read == pattern(*id, SLOT), "{env:?}: round {round}, write {id}");
                }
            };
            let mut open: Vec<u64> = (first..first + WRITES).collect();
            open.iter().for_each(|id| send(&mut wire, *id).unwrap());
            let answers = rng.random_range(0..WRITES);
            let mut acknowledged = BTreeMap::new();
            for _ in 0..answers {
                let (id, answer) = wire.receive().unwrap();
                answer.unwrap();
                open.retain(|o| *o != id.0 - 1);
                acknowledged.insert(slot_of(id.0 - 1), id.0 - 1);
            }
            std::thread::sleep(Duration::from_micros(rng.random_range(0..500)));
            site.restart();
            cut += open.len();
            wire = site.resume(&host, &attached);
            check(&mut wire, &acknowledged);
            for id in &open {
                send(&mut wire, *id).unwrap();
            }
            for id in &open {
                wire.receive_for(RequestId(id + 1)).unwrap().unwrap();
            }
            kept.extend((first..first + WRITES).map(|id| (slot_of(id), id)));
            check(&mut wire, &kept);
        }
        assert!(cut > 0, "no write was under way at any kill");
    }
}

#[test]
fn what_was_flushed_is_there_after_a_kill() {
    for env in BOTH_PATHS {
        let mut site = Site::with(&[], env);
        let host = Host::run("a");
        let (mut wire, attached) = site.host(&host);
        for round in 0..5u64 {
            let file = wire.make_file(attached.root, &format!("f{round}"));
            let data = pattern(round, 300_000);
            let write = wire.post(a_write(file, 0), data.clone());
            wire.receive_for(write).unwrap().unwrap();
            wire.flush(file).unwrap();
            site.restart();
            wire = site.resume(&host, &attached);
            assert!(wire.read(file, 0, 400_000).unwrap() == data);
        }
    }
}

/// Ranges beyond all files are refused, or are empty; contents stay.
#[test]
fn absurd_ranges_do_no_harm() {
    for env in BOTH_PATHS {
        let mut site = Site::with(&["--capacity", "64MiB"], env);
        let (mut wire, attached) = site.host(&Host::run("a"));
        let file = wire.make_file(attached.root, "f");
        wire.write(file, 0, b"as it was").unwrap();
        let free = wire.space().free;
        let (keep_size, incoming) = (false, None);
        for offset in [i64::MAX as u64 - 1, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX] {
            wire.write(file, offset, b"xxx").expect_err("no file is that long");
            for len in [3, i64::MAX as u64, u64::MAX] {
                let _ = wire.call(Discard { file, offset, len, incoming });
                wire.call(Zero { file, offset, len, keep_size, incoming }).expect_err("too far");
                wire.call(Allocate { file, offset, len, keep_size, incoming }).expect_err("too far");
                let _ = wire.call(Map { file, offset, len, incoming });
            }
        }
        wire.call(Allocate { file, offset: 0, len: u64::MAX, keep_size, incoming }).expect_err("too long");
        wire.call(Resize { file, size: u64::MAX, incoming }).expect_err("too long");
        assert!(matches!(wire.read(file, 0, u32::MAX), Err(WireError::Invalid { .. })));
        assert_eq!(wire.read(file, 0, 100).unwrap(), "as it was");
        assert_eq!(wire.attr(file).unwrap().size, 9);
        assert_eq!(wire.space().free, free);
        assert!(site.server().process().ended().is_none());
    }
}

#[test]
fn a_read_beyond_all_files_has_no_bytes() {
    for env in BOTH_PATHS {
        let site = Site::with(&[], env);
        let (mut wire, attached) = site.host(&Host::run("a"));
        let file = wire.make_file(attached.root, "f");
        wire.write(file, 0, b"from the start").unwrap();
        for offset in [1 << 40, i64::MAX as u64 - 100, i64::MAX as u64 + 1, u64::MAX] {
            let read = wire.read(file, offset, 10).unwrap_or_default();
            assert_eq!(read, "", "{env:?}: at {offset}");
        }
    }
}
