//! Scripts of random events, and the healing that follows them.

use std::ops::Range;

use block_mirror::{DiskError, GuestId, Input, MirrorConfig, Mode, Mutation, Phase};
use proptest::prelude::*;

use crate::sim::{Guest, Plain, REGION, Sim};

/// The largest disk that guests make.
const LIMIT: u64 = 800;

#[derive(Clone, Debug)]
pub struct Setup {
    pub mode: Mode,
    pub depth: usize,
    /// Regions: when little is left, what a large zeroing is, chunks.
    pub converged: u64,
    pub zero_both: u64,
    pub bulk: u64,
    pub strict: u64,
    /// Which regions of the source hold data at first (bits, repeated).
    pub contents: u64,
    /// Requests are in flight to the source when the mirror is attached.
    pub slow_start: bool,
    pub size: u64,
}

impl Setup {
    pub fn plain(size: u64) -> Setup {
        Setup {
            mode: Mode::Auto,
            depth: 2,
            converged: 2,
            zero_both: 4,
            bulk: 3,
            strict: 1,
            contents: u64::MAX,
            slow_start: false,
            size,
        }
    }
}

/// A guest's request: offset and length, or a size.
#[derive(Clone, Debug)]
pub enum Ask {
    Write(u64, u64),
    Discard(u64, u64),
    Zero(u64, u64, bool),
    Allocate(u64, u64, bool),
    Resize(u64),
}

#[derive(Clone, Debug)]
pub enum Event {
    Start,
    Guest(Ask),
    /// So many things happen to ops chosen by these numbers.
    Advance(Vec<usize>),
    /// The oldest op takes a step: what a fair disk does.
    Oldest(usize),
    Wait(u64),
    Pause,
    Resume,
    Limit(Option<u64>),
    TryToSwitch,
    Break(usize, u64, bool),
    Alter(usize),
    NoSpace(usize),
    Lose(u64),
    Cancel,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        6 => (0u64..600, 0u64..60),
        2 => (0u64..40, 1u64..20).prop_map(|(region, regions)| (region * REGION, regions * REGION)),
        2 => (0u64..64, 1u64..16),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        12 => range().prop_map(|(at, len)| Ask::Write(at, len)),
        2 => range().prop_map(|(at, len)| Ask::Discard(at, len)),
        2 => (range(), any::<bool>()).prop_map(|((at, len), keep)| Ask::Zero(at, len, keep)),
        1 => (range(), any::<bool>()).prop_map(|((at, len), keep)| Ask::Allocate(at, len, keep)),
        1 => (0u64..700).prop_map(Ask::Resize),
    ]
}

pub fn event(faults: bool) -> impl Strategy<Value = Event> {
    let calm = prop_oneof![
        2 => Just(Event::Start),
        10 => ask().prop_map(Event::Guest),
        8 => prop::collection::vec(any::<usize>(), 1..12).prop_map(Event::Advance),
        6 => (1usize..20).prop_map(Event::Oldest),
        2 => (0u64..2_000).prop_map(Event::Wait),
        1 => Just(Event::Pause),
        1 => Just(Event::Resume),
        1 => prop::option::of(1_000_000u64..100_000_000).prop_map(Event::Limit),
        1 => Just(Event::TryToSwitch),
    ];
    if !faults {
        return calm.boxed();
    }
    prop_oneof![
        40 => calm,
        5 => (any::<usize>(), 0u64..64, any::<bool>())
            .prop_map(|(index, done, of_source)| Event::Break(index, done, of_source)),
        1 => any::<usize>().prop_map(Event::Alter),
        1 => (0u64..600).prop_map(Event::Lose),
        1 => (1_500u64..20_000).prop_map(Event::Wait),
        1 => prop_oneof![9 => Just(Event::Resume), 1 => Just(Event::Cancel), 1 => any::<usize>().prop_map(Event::NoSpace)],
    ]
    .boxed()
}

struct Runner {
    sim: Sim,
    next: u64,
    started: bool,
}

pub fn run(setup: &Setup, events: &[Event], seed: u64) {
    let mut source = Plain { bytes: vec![0; setup.size as usize] };
    for (at, byte) in source.bytes.iter_mut().enumerate() {
        if setup.contents >> ((at as u64 / REGION) % 64) & 1 == 1 {
            *byte = 255 - (at % 5) as u8;
        }
    }
    let config = MirrorConfig {
        mode: setup.mode,
        depth: setup.depth,
        bulk_chunk: setup.bulk * REGION,
        mirror_chunk: setup.strict * REGION,
        converged_bytes: setup.converged * REGION,
        zero_both_bytes: setup.zero_both.max(1) * REGION,
        flush_every_bytes: 8 * REGION,
        patience_ns: 1_000,
        retry_ns: 100,
        destination_attempts: 1_000,
        region_attempts: 1_000,
        ..MirrorConfig::default()
    };
    let mut runner = Runner { sim: Sim::new(config, source), next: 0, started: false };
    if setup.slow_start {
        runner.sim.before =
            vec![(Mutation::Write(5..40), 251), (Mutation::Write(590..setup.size.max(600)), 252)];
    }
    for event in events {
        runner.event(event);
    }
    runner.heal(seed);
}

impl Runner {
    fn event(&mut self, event: &Event) {
        let sim = &mut self.sim;
        match event {
            Event::Start => self.start(),
            Event::Guest(ask) => self.ask(ask),
            Event::Advance(choices) => {
                for choice in choices {
                    // One of those in flight to the old backing may land first.
                    if choice % 5 == 0 && !sim.before.is_empty() {
                        let (mutation, value) = sim.before.remove(0);
                        sim.source.apply(&mutation, value);
                    } else if !sim.ops.is_empty() {
                        sim.advance(*choice);
                    }
                }
            }
            Event::Oldest(times) => {
                for _ in 0..*times {
                    if !sim.ops.is_empty() {
                        sim.advance(0);
                    }
                }
            }
            Event::Wait(ns) => {
                sim.now += ns;
                self.tick();
            }
            Event::Pause => sim.input(Input::Pause),
            Event::Resume => sim.input(Input::Resume),
            Event::Limit(rate) => sim.input(Input::SetLimit(*rate)),
            Event::TryToSwitch => self.switch_and_roll_back(),
            Event::Break(index, done, of_source) => {
                let error = DiskError::Io { errno: 5, context: "broken".into() };
                sim.break_op(*index, *done, error, *of_source);
            }
            Event::Alter(index) => {
                sim.break_op(*index, 0, DiskError::Digest { offset: 0, len: 1 }, false);
            }
            Event::NoSpace(index) => {
                sim.break_op(*index, 0, DiskError::NoSpace { keeper: "ds2".into() }, false);
            }
            Event::Lose(from) => sim.lose(*from),
            Event::Cancel => sim.input(Input::Cancel),
        }
    }

    fn start(&mut self) {
        if self.started {
            return;
        }
        self.started = true;
        // The slot says so only now.
        for (mutation, value) in std::mem::take(&mut self.sim.before) {
            self.sim.source.apply(&mutation, value);
        }
        let size = self.sim.source.bytes.len() as u64;
        self.sim.input(Input::Start { size });
    }

    fn tick(&mut self) {
        if self.sim.wake.is_some_and(|at| at <= self.sim.now) {
            self.sim.wake = None;
            self.sim.input(Input::Tick);
        }
    }

    fn ask(&mut self, ask: &Ask) {
        let range = |at: u64, len: u64| -> Range<u64> { at..(at + len).min(LIMIT) };
        let mutation = match *ask {
            Ask::Write(at, len) => Mutation::Write(range(at, len)),
            Ask::Discard(at, len) => Mutation::Discard(range(at, len)),
            Ask::Zero(at, len, keep_size) => Mutation::Zero { range: range(at, len.max(1)), keep_size },
            Ask::Allocate(at, len, keep_size) => {
                Mutation::Allocate { range: range(at, len.max(1)), keep_size }
            }
            Ask::Resize(size) => Mutation::Resize { size },
        };
        let id = GuestId(self.next);
        self.next += 1;
        let value = 1 + (id.0 % 200) as u8;
        let guest = Guest { mutation: mutation.clone(), value, issued: 0, ended: 0, answered: false };
        self.sim.guests.insert(id, guest);
        self.sim.input(Input::Guest { guest: id, mutation });
    }

    /// Hold, drain, look, and go on.
    fn switch_and_roll_back(&mut self) {
        if self.sim.core.phase() == Phase::Synced && self.drain_guests() && self.sim.core.ready_to_switch() {
            self.sim.source.assert_same(&self.sim.destination, "ready");
        }
    }

    /// Lets ops run until every guest has its answer.
    fn drain_guests(&mut self) -> bool {
        for _ in 0..20_000 {
            if self.sim.unanswered() == 0 {
                return true;
            }
            self.idle_or_advance(0);
        }
        panic!("guests wait for ever: {:?}", self.sim.core);
    }

    /// Ops end, and when there are none time passes until the core wants to be woken.
    fn idle_or_advance(&mut self, choice: usize) {
        if self.sim.ops.is_empty() {
            self.sim.now = self.sim.wake.unwrap_or(self.sim.now).max(self.sim.now + 1);
        } else {
            self.sim.advance(choice);
            self.sim.now += 1;
        }
        self.tick();
    }

    /// No more faults; a guest that goes on writing. The mirror must be synced in bounded time.
    fn heal(&mut self, seed: u64) {
        let mut random = seed | 1;
        let mut roll = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as usize
        };
        self.start();
        self.sim.input(Input::Resume);
        self.sim.input(Input::SetLimit(None));
        let begun = self.sim.steps;
        loop {
            while self.sim.core.phase() != Phase::Synced {
                if self.sim.core.phase().is_over() {
                    return self.check_over();
                }
                assert!(self.sim.steps - begun < 30_000, "no end: {:?}", self.sim.core);
                // A guest with a bounded queue, so that the destination never stalls it for long;
                // in the background mode only one that lets passes converge.
                let rate = if self.sim.core.phase().is_mirroring() { 3 } else { 40 };
                if roll() % rate == 0 && self.sim.unanswered() < 6 {
                    let (at, len) = (roll() as u64 % 500, 1 + roll() as u64 % 50);
                    self.ask(&if roll() % 6 == 0 { Ask::Zero(at, len, true) } else { Ask::Write(at, len) });
                }
                let choice = if roll() % 2 == 0 { 0 } else { roll() };
                self.idle_or_advance(choice);
            }
            self.drain_guests();
            if self.sim.core.ready_to_switch() {
                break;
            }
            for _ in 0..roll() % 20 {
                self.idle_or_advance(roll());
            }
        }
        self.sim.source.assert_same(&self.sim.destination, "ready to switch");
        let last = self.sim.source.clone();
        self.sim.input(Input::Switched);
        self.ask(&Ask::Write(3, 9));
        self.drain_guests();
        self.sim.source.assert_same(&last, "the source after the switch");
        assert!(self.sim.destination != last, "the late request went nowhere");
    }

    /// Given up: the guest must have all its answers, and go on.
    fn check_over(&mut self) {
        self.ask(&Ask::Write(1, 1));
        self.drain_guests();
        assert!(self.sim.core.phase() != Phase::Failed || self.sim.failed);
    }
}
