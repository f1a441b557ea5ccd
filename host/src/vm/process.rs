//! QEMU as a process: started so that it outlives this daemon, and found again by a later one.
//!
//! QEMU writes its pid file and holds a lock on it for as long as it lives, so the lock's holder
//! *is* the VM's QEMU: no pid is ever trusted that the kernel doesn't vouch for, also after a
//! reboot or when pids were used again.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Flock, FlockType, Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

/// Linux's USER_HZ: the unit of times in /proc/PID/stat.
const TICKS_PER_SECOND: u64 = 100;
/// How many of QEMU's last lines are told.
const WORDS_LINES: usize = 5;

/// A running QEMU.
#[derive(Debug)]
pub struct QemuProcess {
    pid: Pid,
    pidfd: OwnedFd,
}

impl QemuProcess {
    /// The QEMU that holds the lock on `pid_file`, if there is one.
    pub fn of(pid_file: &Path) -> io::Result<Option<Self>> {
        let Some(pid) = lock_holder(pid_file)? else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // Between the two calls the process may have ended and another one got its number.
        if lock_holder(pid_file)? != Some(pid) {
            return Ok(None);
        }
        Ok(Some(Self { pid, pidfd }))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Wait until it has ended.
    pub async fn ended(&self) -> io::Result<()> {
        watch(self.pidfd.try_clone()?)?.readable().await.map(drop)
    }

    /// SIGKILL; returns at once. A process that has ended is left alone.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

#[allow(unsafe_code)]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so it stays open and the same for as long as the `AsyncFd`
    // holds it.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

/// The pid of the process that holds a lock on `path`.
pub fn lock_holder(path: &Path) -> io::Result<Option<Pid>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let lock = rustix::process::fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?;
    Ok(lock.and_then(|l| l.pid))
}

/// Start `program` in a session of its own, with its output in a fresh `log`.
pub fn spawn(program: &str, args: &[String], log: &Path) -> io::Result<Child> {
    let out = File::create(log)?;
    let err = out.try_clone()?;
    let mut command = std::process::Command::new(program);
    // A working directory below the mount would keep it busy.
    command.args(args).current_dir("/").stdin(Stdio::null()).stdout(out).stderr(err);
    own_session(&mut command);
    Command::from(command).spawn()
}

/// A signal to the daemon's process group (Ctrl-C, a closed terminal) must not reach QEMU.
#[allow(unsafe_code)]
fn own_session(command: &mut std::process::Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; setsid is one, and
    // converting its error allocates nothing.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
    }
}

/// The last lines that a program left in its log, as one line; none when it said nothing.
/// Warnings are left out when there is anything else.
pub fn last_words(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let grave: Vec<&str> = lines.iter().copied().filter(|l| !l.contains("warning:")).collect();
    let chosen = if grave.is_empty() { lines } else { grave };
    let last = &chosen[chosen.len().saturating_sub(WORDS_LINES)..];
    let words: Vec<&str> = last.iter().map(|l| l.strip_prefix("qemu-system-x86_64: ").unwrap_or(l)).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// Seconds since process `pid` started.
pub fn uptime_s(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may contain anything.
    let after_name = &stat[stat.rfind(')')? + 1..];
    let started: u64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let now: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some((now as u64).saturating_sub(started / TICKS_PER_SECOND))
}

/// Whether process `pid` has a file open in `directory`, by the kernel's own names for its
/// descriptors, which follow renames. Asks no datastore.
pub fn has_open_in(pid: u32, directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.flatten().filter_map(|e| fs::read_link(e.path()).ok()).any(|target| target.starts_with(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_last_lines_without_prefix_and_warnings() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_words(&log), None);
        fs::write(&log, "\n").unwrap();
        assert_eq!(last_words(&log), None);
        fs::write(&log, "qemu-system-x86_64: warning: old\nqemu-system-x86_64: -foo: invalid option\n")
            .unwrap();
        assert_eq!(last_words(&log).unwrap(), "-foo: invalid option");
        fs::write(&log, "qemu-system-x86_64: warning: old\n").unwrap();
        assert_eq!(last_words(&log).unwrap(), "warning: old");
        fs::write(&log, "1\n2\n3\n4\n5\n6\n").unwrap();
        assert_eq!(last_words(&log).unwrap(), "2; 3; 4; 5; 6");
    }

    #[test]
    fn a_pid_file_without_its_holder_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        assert_eq!(lock_holder(&file).unwrap(), None);
        // A number that surely is a live process: our own.
        fs::write(&file, std::process::id().to_string()).unwrap();
        assert_eq!(lock_holder(&file).unwrap(), None);
    }

    #[test]
    fn this_process_has_an_age() {
        assert!(uptime_s(std::process::id()).is_some());
        assert_eq!(uptime_s(u32::MAX), None);
    }
}
