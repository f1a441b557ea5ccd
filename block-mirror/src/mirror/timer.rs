//! One thread of the process that wakes mirrors at the times they asked for.

use std::collections::BTreeMap;
use std::sync::{OnceLock, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// Somebody who can be woken. An early or extra wake does no harm.
pub(super) trait Wake: Send + Sync {
    fn wake(&self);
}

/// Alarms in the order of their time; the number tells those of one instant apart.
type Alarms = BTreeMap<(Instant, u64), Weak<dyn Wake>>;

#[derive(Default)]
struct Clock {
    alarms: Mutex<(Alarms, u64)>,
    changed: Condvar,
}

/// Wake `who` at `due` or soon after, unless it is gone by then.
pub(super) fn wake_at(due: Instant, who: Weak<dyn Wake>) {
    let clock = clock();
    let mut alarms = clock.alarms.lock();
    let number = alarms.1;
    alarms.1 += 1;
    alarms.0.insert((due, number), who);
    let first = alarms.0.first_key_value().is_some_and(|(key, _)| *key == (due, number));
    drop(alarms);
    if first {
        clock.changed.notify_one();
    }
}

fn clock() -> &'static Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    static THREAD: OnceLock<()> = OnceLock::new();
    let clock = CLOCK.get_or_init(Clock::default);
    THREAD.get_or_init(|| {
        // Without the thread moves would hang silently; better to end here.
        let thread = std::thread::Builder::new().name("mirror-timer".into());
        thread.spawn(|| clock.run()).expect("a process can start a thread");
    });
    clock
}

impl Clock {
    fn run(&self) {
        let mut alarms = self.alarms.lock();
        loop {
            match alarms.0.first_key_value().map(|((due, _), _)| *due) {
                None => self.changed.wait(&mut alarms),
                Some(due) if due > Instant::now() => {
                    self.changed.wait_until(&mut alarms, due);
                }
                Some(_) => {
                    let who = alarms.0.pop_first().and_then(|(_, who)| who.upgrade());
                    MutexGuard::unlocked(&mut alarms, || {
                        if let Some(who) = who {
                            who.wake();
                        }
                    });
                }
            }
        }
    }
}
