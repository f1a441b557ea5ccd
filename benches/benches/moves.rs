//! Moves beside the tools that people use today, all in one run on a store in memory; what counts are the ratios.
//!
//! `make bench`, or `cargo build --release && cargo bench --package godwit-benches`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use godwit_tests::lab::Lab;
use godwit_tests::process::run;

const MIB: usize = 1 << 20;
const SIZE: usize = 768 * MIB;
const ROUNDS: usize = 3;

/// The median of what `work` takes; `work` is told the round.
fn median(mut work: impl FnMut(usize) -> Duration) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS).map(|round| work(round).as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn lab() -> Lab {
    Lab::under(Some(Path::new("/dev/shm")), &[("ds1", &[]), ("ds2", &[])], &[])
}

/// A disk that nobody writes to: dsmove against copies by others through the same mount.
fn idle() {
    let lab = lab();
    let pattern: Vec<u8> = (0..MIB).map(|i| (i * 31 + i / 251) as u8).collect();
    fs::write(lab.path("ds1/disk.raw"), pattern.repeat(SIZE / MIB)).expect("fill the disk");
    let moved = median(|round| {
        let (from, to) = if round % 2 == 0 { ("ds1", "ds2") } else { ("ds2", "ds1") };
        timed(|| drop(lab.must_move(&format!("{from}/disk.raw"), to)))
    });
    let (from, to) = if ROUNDS.is_multiple_of(2) { ("ds1", "ds2") } else { ("ds2", "ds1") };
    let (source, copy) = (lab.arg(&format!("{from}/disk.raw")), lab.arg(&format!("{to}/copy.raw")));
    let others: [(&str, &str, Vec<&str>); 3] = [
        (
            "qemu-img convert",
            "qemu-img",
            vec!["convert", "-f", "raw", "-O", "raw", "-t", "none", "-T", "none", &source, &copy],
        ),
        ("cp", "cp", vec![&source, &copy]),
        ("rsync -W", "rsync", vec!["-W", "--inplace", &source, &copy]),
    ];
    println!(
        "idle disk of {} MiB: dsmove (BLAKE3 of every chunk included) {:.0} MiB/s",
        SIZE / MIB,
        rate(moved)
    );
    for (name, program, args) in others {
        if Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            println!("  {name} is not installed");
            continue;
        }
        let time = median(|_| {
            let _ = fs::remove_file(&copy);
            timed(|| drop(run(program, &args)))
        });
        println!("  {name}: {:.0} MiB/s; dsmove is {:.2} times as fast", rate(time), time / moved);
    }
}

fn rate(seconds: f64) -> f64 {
    SIZE as f64 / MIB as f64 / seconds
}

/// What fio says: writes per second and the 99th percentile of their latency in microseconds.
fn fio(lab: &Lab, filename: &str, seconds: u32) -> std::process::Child {
    Command::new("fio")
        .args(["--name=guest", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=4"])
        .args(["--time_based", "--rate_iops=4000", "--output-format=json", "--size=256m"])
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--filename={filename}"))
        .current_dir(lab.root())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start fio")
}

fn figures(fio: std::process::Child) -> (f64, f64) {
    let output = fio.wait_with_output().expect("wait for fio");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("fio's report");
    let write = &report["jobs"][0]["write"];
    let p99 = write["clat_ns"]["percentile"]["99.000000"].as_f64().unwrap_or(f64::NAN) / 1000.0;
    (write["iops"].as_f64().unwrap_or(f64::NAN), p99)
}

/// A disk in use at 4,000 writes per second: what the writer feels.
fn busy() {
    let lab = lab();
    let pattern = vec![7; MIB].repeat(SIZE / MIB);
    fs::write(lab.path("ds1/disk.raw"), pattern).expect("fill the disk");
    let disk = fs::File::options().read(true).write(true).open(lab.path("ds1/disk.raw")).expect("open");
    let open = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&disk));
    let (iops, p99) = figures(fio(&lab, &open, 4));
    let running = fio(&lab, &open, 4);
    std::thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    let mut pauses = Vec::new();
    let mut here = "ds1";
    while began.elapsed() < Duration::from_secs(3) {
        let there = if here == "ds1" { "ds2" } else { "ds1" };
        let result = lab.must_move(&format!("{here}/disk.raw"), there);
        pauses.push(result["pause_ms"].as_f64().unwrap_or(f64::NAN));
        here = there;
    }
    let (iops_moving, p99_moving) = figures(running);
    let longest = pauses.iter().copied().fold(0.0, f64::max);
    println!("busy disk, {} moves one after another:", pauses.len());
    println!("  the writer keeps {:.0} % of {iops:.0} writes/s", 100.0 * iops_moving / iops);
    println!("  its p99 is {:.2} times {p99:.0} us", p99_moving / p99);
    println!("  longest pause of a switchover {longest:.1} ms");
}

fn main() {
    // cargo passes --bench.
    idle();
    busy();
}
