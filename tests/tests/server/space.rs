//! A datastore with `--capacity`: full is full to the byte, and what was given back can be used again.

use bytes::Bytes;
use godwit_tests::process::wait_for;
use proto::ops::data::{Allocate, Discard, Resize, Write, Zero};
use proto::ops::names::Unlink;
use proto::{FileId, WireError};

use super::site::{BOTH_PATHS, Env, Site, a_write};
use super::wire::{Host, Wire};

const CAPACITY: u64 = 4 << 20;
const CHUNK: u64 = 64 << 10;
const BLOCK: u64 = 4096;

fn small_site(env: Env) -> Site {
    Site::with(&["--capacity", "4MiB"], env)
}

fn chunk(byte: u8) -> Vec<u8> {
    vec![byte; CHUNK as usize]
}

fn no_space(free: u64, needed: u64) -> Result<(), WireError> {
    Err(WireError::NoSpace { datastore: "ds1".into(), free, needed })
}

/// Write chunks 1, 2, … from the start until nothing is free.
fn fill(wire: &mut Wire, file: FileId) {
    for at in 0..CAPACITY / CHUNK {
        assert_eq!(wire.space().free, CAPACITY - at * CHUNK);
        wire.write(file, at * CHUNK, &chunk(at as u8 + 1)).unwrap();
    }
    assert_eq!(wire.space().free, 0);
}

fn check(wire: &mut Wire, file: FileId) {
    for at in 0..CAPACITY / CHUNK {
        let read = wire.read(file, at * CHUNK, CHUNK as u32).unwrap();
        assert!(read == chunk(at as u8 + 1), "chunk {at}");
    }
}

#[test]
fn a_full_datastore_refuses_exactly_what_does_not_fit() {
    for env in BOTH_PATHS {
        let mut site = small_site(env);
        let host = Host::run("a");
        let (mut wire, attached) = site.host(&host);
        let [file, other] = ["f", "g"].map(|name| wire.make_file(attached.root, name));
        assert_eq!(wire.space().capacity, CAPACITY);
        fill(&mut wire, file);
        for data in [&b"x"[..], &chunk(9)] {
            let needed = data.len() as u64;
            assert_eq!(wire.write(file, CAPACITY, data), no_space(0, needed));
            assert_eq!(wire.write(other, 0, data), no_space(0, needed));
        }
        let (offset, len, keep_size, incoming) = (CAPACITY, BLOCK, false, None);
        let refused = wire.call(Allocate { file, offset, len, keep_size, incoming });
        assert_eq!(refused.map(drop), no_space(0, BLOCK));
        let refused = wire.call(Zero { file, offset, len, keep_size, incoming });
        assert_eq!(refused.map(drop), no_space(0, BLOCK));
        assert_eq!(wire.attr(file).unwrap().size, CAPACITY, "a refused write does not extend the file");
        check(&mut wire, file);

        // What is there can be written over.
        for at in 0..CAPACITY / CHUNK {
            wire.write(file, at * CHUNK, &chunk(99)).unwrap();
            wire.write(file, at * CHUNK + 17, &chunk(98)[..1000]).unwrap();
            wire.write(file, at * CHUNK, &chunk(at as u8 + 1)).unwrap();
        }
        check(&mut wire, file);
        assert_eq!(site.server().allocated(), CAPACITY);

        // A hole gives its space to anybody.
        wire.call(Discard { file, offset: 2 * CHUNK, len: CHUNK, incoming: None }).unwrap();
        assert_eq!(wire.space().free, CHUNK);
        assert_eq!(wire.write(other, 0, &[1; CHUNK as usize + 1]), no_space(CHUNK, CHUNK + 1));
        wire.write(other, 0, &chunk(7)).unwrap();
        assert_eq!(wire.write(file, 2 * CHUNK, b"x"), no_space(0, 1));
        wire.call(Resize { file: other, size: 0, incoming: None }).unwrap();
        assert_eq!(wire.space().free, CHUNK);
        wire.write(file, 2 * CHUNK, &chunk(3)).unwrap();
        check(&mut wire, file);

        // A killed server counts again, and comes to the same.
        site.restart();
        let mut wire = site.resume(&host, &attached);
        assert_eq!(wire.space().free, 0);
        assert_eq!(wire.write(other, 0, b"x"), no_space(0, 1));
        check(&mut wire, file);
        wire.call(Unlink { parent: attached.root, name: "f".into() }).unwrap();
        assert_eq!(wire.space().free, CAPACITY);
        fill(&mut wire, other);
    }
}

/// Many writers at once never get more than there is.
#[test]
fn writers_side_by_side_do_not_exceed_the_capacity() {
    for env in BOTH_PATHS {
        let mut site = small_site(env);
        let results: Vec<(FileId, Vec<u64>)> = std::thread::scope(|scope| {
            let site = &site;
            let writers: Vec<_> = (0..3).map(|number| scope.spawn(move || crowd(site, number))).collect();
            writers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        let written: usize = results.iter().map(|(_, chunks)| chunks.len()).sum();
        assert!(written as u64 * CHUNK <= CAPACITY, "{env:?}: {written} chunks were written");
        assert!(site.server().allocated() <= CAPACITY, "{env:?}");
        let (mut wire, _) = site.host(&Host::run("looks"));
        assert_eq!(wire.space().free, CAPACITY - written as u64 * CHUNK, "{env:?}");
        for (file, chunks) in results {
            for at in chunks {
                assert!(wire.read(file, at * CHUNK, CHUNK as u32).unwrap() == chunk(at as u8));
            }
        }
    }
}

/// Ask for half of the capacity at once; answers the chunks that were written.
fn crowd(site: &Site, number: u32) -> (FileId, Vec<u64>) {
    let (mut wire, attached) = site.host(&Host::run(&format!("h{number}")));
    let file = wire.make_file(attached.root, &format!("f{number}"));
    let ids: Vec<_> = (0..CAPACITY / CHUNK / 2)
        .map(|at| (at, wire.post(a_write(file, at * CHUNK), Bytes::from(chunk(at as u8)))))
        .collect();
    let mut written = Vec::new();
    for (at, id) in ids {
        match wire.receive_for(id).unwrap() {
            Ok(_) => written.push(at),
            Err(WireError::NoSpace { needed, .. }) => assert_eq!(needed, CHUNK),
            Err(other) => panic!("{other}"),
        }
    }
    (file, written)
}

/// What fits is not refused because of other writes that are still under way.
#[test]
fn writes_that_fit_together_all_succeed_side_by_side() {
    for env in BOTH_PATHS {
        let site = small_site(env);
        let (mut wire, attached) = site.host(&Host::run("a"));
        for round in 0..10 {
            let name = format!("f{round}");
            let file = wire.make_file(attached.root, &name);
            let ids: Vec<_> = (0..CAPACITY / CHUNK)
                .map(|at| wire.post(a_write(file, at * CHUNK), Bytes::from(chunk(1))))
                .collect();
            let results: Vec<_> = ids.into_iter().map(|id| wire.receive_for(id).unwrap().map(drop)).collect();
            let refused: Vec<_> = results.iter().filter(|r| r.is_err()).collect();
            assert!(
                refused.is_empty(),
                "{env:?}, round {round}: {} refused: {:?}",
                refused.len(),
                refused[0]
            );
            wire.call(Unlink { parent: attached.root, name: name.as_str().into() }).unwrap();
            assert_eq!(wire.space().free, CAPACITY);
        }
    }
}

/// Space is taken in blocks: a write of two bytes can take two of them.
#[test]
fn small_writes_do_not_exceed_the_capacity() {
    for env in BOTH_PATHS {
        let mut site = small_site(env);
        let (mut wire, attached) = site.host(&Host::run("a"));
        let file = wire.make_file(attached.root, "f");
        let almost = (CAPACITY - BLOCK) as usize;
        wire.write(file, 0, &vec![1; almost]).unwrap();
        assert_eq!(wire.space().free, BLOCK);
        let straddling = wire.write(file, CAPACITY + BLOCK - 1, b"xx");
        assert_eq!(wire.space().free, BLOCK, "{env:?}: two blocks do not fit: {straddling:?}");
        assert!(site.server().allocated() <= CAPACITY);
        wire.write(file, CAPACITY, b"x").unwrap();
        assert_eq!(wire.space().free, 0);
    }
}

#[test]
fn small_writes_side_by_side_do_not_exceed_the_capacity() {
    for env in BOTH_PATHS {
        let mut site = small_site(env);
        let (mut wire, attached) = site.host(&Host::run("a"));
        let file = wire.make_file(attached.root, "f");
        wire.write(file, 0, &vec![1; (CAPACITY - 2 * BLOCK) as usize]).unwrap();
        let ids: Vec<_> = (0..64)
            .map(|at| {
                let write = Write { fua: true, ..a_write(file, CAPACITY + at * 2 * BLOCK) };
                wire.post(write, Bytes::from_static(b"x"))
            })
            .collect();
        ids.into_iter().for_each(|id| drop(wire.receive_for(id).unwrap()));
        let allocated = site.server().allocated();
        assert!(allocated <= CAPACITY, "{env:?}: {allocated} of {CAPACITY} bytes are allocated");
    }
}

/// What was reserved can be written to when all the rest is full: that is what reserving is for.
#[test]
fn reserved_space_can_be_written_when_the_datastore_is_full() {
    for env in BOTH_PATHS {
        let site = small_site(env);
        let (mut wire, attached) = site.host(&Host::run("a"));
        let [thick, zeroed, other] = ["t", "z", "o"].map(|name| wire.make_file(attached.root, name));
        let (offset, len, keep_size, incoming) = (0, 8 * CHUNK, false, None);
        wire.call(Allocate { file: thick, offset, len, keep_size, incoming }).unwrap();
        wire.call(Zero { file: zeroed, offset, len, keep_size, incoming }).unwrap();
        assert_eq!(wire.space().free, CAPACITY - 2 * len);
        wire.write(other, 0, &vec![1; (CAPACITY - 2 * len) as usize]).unwrap();
        assert_eq!(wire.space().free, 0);
        for file in [thick, zeroed] {
            assert_eq!(wire.write(file, CHUNK, &chunk(5)), Ok(()), "{env:?}");
            assert!(wire.read(file, CHUNK, CHUNK as u32).unwrap() == chunk(5));
        }
        assert_eq!(wire.space().free, 0);
    }
}

/// Data that goes while writes to it are under way is not counted any more afterwards.
#[test]
fn space_of_files_that_go_while_they_are_written_comes_back() {
    for env in BOTH_PATHS {
        let mut site = Site::with(&["--capacity", "1GiB"], env);
        let (mut names, attached) = site.host(&Host::run("a"));
        let (mut data, _) = site.host(&Host::run("b"));
        let free = names.space().free;
        for round in 0..40 {
            let name = format!("f{round}");
            let file = names.make_file(attached.root, &name);
            let ids: Vec<_> = (0..16)
                .map(|at| data.post(a_write(file, at * CHUNK * 4), Bytes::from(vec![1; 4 * CHUNK as usize])))
                .collect();
            names.call(Unlink { parent: attached.root, name: name.as_str().into() }).unwrap();
            // Each is written or finds no file.
            ids.into_iter().for_each(|id| drop(data.receive_for(id).unwrap()));
        }
        wait_for("the data files to go", || site.server().data_files() == 0);
        assert_eq!(names.space().free, free, "{env:?}");
    }
}
