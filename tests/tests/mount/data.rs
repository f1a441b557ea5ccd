//! File data: direct, mapped, sparse, random against a model.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use godwit_tests::cluster::Cluster;
use godwit_tests::process::run;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn direct_io_at_all_sizes() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let path = host.path("ds1/f");
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    let mut noise = vec![0u8; 6 << 20];
    StdRng::seed_from_u64(1).fill(&mut noise[..]);
    // Up to sizes that neither the kernel nor the wire carries in one piece.
    let mut at = 0;
    for len in [512usize, 4096, 65536, 1 << 20, (1 << 20) + 4096, 3 << 20] {
        direct.write_all_at(&noise[at..at + len], at as u64).unwrap();
        at += len;
    }
    let mut back = vec![0u8; at];
    direct.read_exact_at(&mut back, 0).unwrap();
    assert!(back == noise[..at]);
    assert_eq!(direct.read_at(&mut back[..4096], at as u64 - 512).unwrap(), 512, "short at the end");
    assert_eq!(direct.read_at(&mut back[..4096], at as u64 + 4096).unwrap(), 0);
    let mut all = fs::read(&path).unwrap();
    all.truncate(at);
    assert!(all == noise[..at]);
}

#[test]
fn random_operations_agree_with_a_model() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let path = host.path("ds1/f");
    let file = read_write(&path);
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut model: Vec<u8> = Vec::new();
    const SPAN: usize = 3 << 20;
    for _ in 0..3000 {
        let (offset, len) = (random.random_range(0..SPAN), random.random_range(1..200_000usize));
        match random.random_range(0..10) {
            0..4 => {
                let mut data = vec![0; len];
                random.fill(&mut data[..]);
                file.write_all_at(&data, offset as u64).unwrap();
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&data);
            }
            4..8 => {
                let mut data = vec![0; len];
                let got = file.read_at(&mut data, offset as u64).unwrap();
                let expected = &model[offset.min(model.len())..(offset + len).min(model.len())];
                assert!(data[..got] == *expected, "at {offset}, {len} bytes: {got} came");
            }
            8 => {
                fallocate(
                    &file,
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    offset as u64,
                    len as u64,
                )
                .unwrap();
                let end = (offset + len).min(model.len());
                if offset < end {
                    model[offset..end].fill(0);
                }
            }
            _ => {
                file.set_len(offset as u64).unwrap();
                model.resize(offset, 0);
            }
        }
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64);
    }
    file.sync_all().unwrap();
    assert!(fs::read(&path).unwrap() == model);
}

#[test]
fn a_shared_mapping_and_descriptors_see_each_other() {
    const LEN: usize = 1 << 20;
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let path = host.path("ds1/f");
    let file = read_write(&path);
    file.set_len(LEN as u64).unwrap();
    // SAFETY: a fresh mapping at an address that the kernel chooses.
    #[allow(unsafe_code)]
    let map = unsafe {
        mmap(std::ptr::null_mut(), LEN, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)
            .unwrap()
    };
    // SAFETY: the mapping is LEN bytes long, is unmapped last, and no other reference to it exists.
    #[allow(unsafe_code)]
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), LEN) };
    bytes[5] = 55;
    bytes[700_000] = 77;
    // SAFETY: exactly the mapping made above.
    #[allow(unsafe_code)]
    unsafe {
        msync(map, LEN, MsyncFlags::SYNC).unwrap();
    }
    let content = fs::read(&path).unwrap();
    assert_eq!((content[5], content[700_000], content[6]), (55, 77, 0));
    file.write_all_at(&[99], 6).unwrap();
    assert_eq!(bytes[6], 99);
    // SAFETY: exactly the mapping made above; `bytes` is not used any more.
    #[allow(unsafe_code)]
    unsafe {
        munmap(map, LEN).unwrap();
    }
}

#[test]
fn holes_are_found_and_cost_nothing() {
    const MIB: u64 = 1 << 20;
    let mut cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let path = host.path("ds1/f");
    let file = read_write(&path);
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&vec![1; 65536], MIB).unwrap();
    file.write_all_at(&vec![2; 65536], 4 * MIB).unwrap();
    let data = |at| seek(&file, SeekFrom::Data(at));
    let hole = |at| seek(&file, SeekFrom::Hole(at));
    assert_eq!(data(0), Ok(MIB));
    assert_eq!(data(MIB + 4096), Ok(MIB + 4096));
    assert_eq!(hole(MIB), Ok(MIB + 65536));
    assert_eq!(data(MIB + 65536), Ok(4 * MIB));
    assert_eq!(hole(0), Ok(0));
    assert_eq!(data(5 * MIB), Err(Errno::NXIO));
    assert_eq!(hole(1 << 40), Err(Errno::NXIO));
    assert_eq!(file.metadata().unwrap().blocks() * 512, 2 * 65536);
    assert_eq!(run("du", &["-B1", path.to_str().unwrap()]).split('\t').next(), Some("131072"));
    assert_eq!(cluster.server("ds1").allocated(), 131_072);

    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, MIB, 65536).unwrap();
    assert_eq!(data(0), Ok(4 * MIB));
    assert_eq!(cluster.server("ds1").allocated(), 65536);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 4 * MIB, 4096).unwrap();
    let mut first = [9; 2];
    file.read_exact_at(&mut first, 4 * MIB + 4095).unwrap();
    assert_eq!(first, [0, 2]);
    file.set_len(10).unwrap();
    assert_eq!(cluster.server("ds1").allocated(), 0);
    fallocate(&file, FallocateFlags::empty(), 0, MIB).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks() * 512), (MIB, MIB));
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 2 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), MIB);
    assert_eq!(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096), Err(Errno::OPNOTSUPP));
    assert!(file.as_raw_fd() >= 0);
    run("cp", &["--sparse=always", &host.arg("ds1/f"), &host.arg("ds1/g")]);
}

#[test]
fn truncation_cuts_and_grows_by_zeroes() {
    let cluster = Cluster::new(&["ds1"]);
    let host = cluster.host("a");
    let path = host.path("ds1/f");
    fs::write(&path, vec![5; 10_000]).unwrap();
    let file = read_write(&path);
    file.set_len(5000).unwrap();
    file.set_len(8000).unwrap();
    let content = fs::read(&path).unwrap();
    assert!(
        content.len() == 8000
            && content[..5000].iter().all(|&b| b == 5)
            && content[5000..].iter().all(|&b| b == 0)
    );
    File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0, "O_TRUNC");
    run("truncate", &["-s", "1T", path.to_str().unwrap()]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 40);
}

#[test]
fn a_full_datastore_says_so_and_harms_nothing() {
    let cluster = Cluster::with(&[("ds1", &["--capacity", "8MiB"])]);
    let host = cluster.host("a");
    let (kept, full) = (host.path("ds1/kept"), host.path("ds1/full"));
    let noise = vec![3; 4 << 20];
    fs::write(&kept, &noise).unwrap();
    let error = fs::write(&full, vec![4; 16 << 20]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(fs::read(&kept).unwrap() == noise);
    fs::remove_file(&full).unwrap();
    fs::write(&full, vec![4; 2 << 20]).unwrap();
}
