//! The mirror core under random guests, schedules and faults, compared with two plain disks.
//!
//! A script of random events steers a [`sim::Sim`]; after every step the core's promises are
//! checked against the bytes. Then the faults stop, the guest goes on writing, and the mirror must
//! come to an end. Failures shrink to short scripts.
#![allow(clippy::unwrap_used)]

mod script;
mod sim;

use block_mirror::Mode;
use proptest::prelude::*;
use script::Event;

fn config() -> impl Strategy<Value = script::Setup> {
    (
        (prop_oneof![3 => Just(Mode::Auto), 1 => Just(Mode::Background), 1 => Just(Mode::Mirror)], 1usize..5),
        (0u64..12, 0u64..6, 1u64..5, 1u64..3),
        (any::<u64>(), any::<bool>(), 0u64..600),
    )
        .prop_map(
            |((mode, depth), (converged, zero_both, bulk, strict), (contents, slow_start, size))| {
                script::Setup { mode, depth, converged, zero_both, bulk, strict, contents, slow_start, size }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_destination_becomes_what_the_guest_wrote(
        setup in config(),
        events in prop::collection::vec(script::event(false), 0..120),
        seed: u64,
    ) {
        script::run(&setup, &events, seed);
    }

    #[test]
    fn faults_never_reach_the_guest_and_heal(
        setup in config(),
        events in prop::collection::vec(script::event(true), 0..120),
        seed: u64,
    ) {
        script::run(&setup, &events, seed);
    }
}

#[test]
fn no_space_ends_the_mirror_and_not_the_guest() {
    let setup = script::Setup::plain(400);
    let mut events = vec![Event::Start, Event::Guest(script::Ask::Write(0, 40))];
    events.extend((0..30).map(|index| Event::NoSpace(index * 7)));
    script::run(&setup, &events, 1);
}
