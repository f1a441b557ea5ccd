//! One session a host: who gets it, who loses it, and what the one that lost it can still do.

use std::sync::Barrier;
use std::time::Duration;

use bytes::Bytes;
use godwit_tests::process::wait_for;
use proto::ops::names::NewNode;
use proto::ops::session::{Attached, Renew};
use proto::ops::{Operation, Reply};
use proto::{Epoch, Generation, RequestId, WireError};

use super::site::{BOTH_PATHS, ENOENT, Site, a_write, new_node, posix};
use super::wire::{Host, Wire};

/// Attach as soon as the server allows it.
fn attach_when_free(site: &Site, host: &Host) -> (Wire, Attached) {
    let mut got = None;
    wait_for("the host's name to be free", || {
        match Wire::try_attach(&site.address(), host.attach(0, None)).unwrap() {
            Ok(pair) => got = Some(pair),
            Err(WireError::Busy { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        got.is_some()
    });
    got.unwrap()
}

fn assert_fenced(result: Result<impl std::fmt::Debug, WireError>) {
    assert!(matches!(result, Err(WireError::Fenced { .. })), "{result:?}");
}

fn resume(site: &Site, host: &Host, generation: Generation) -> Result<(Wire, Attached), WireError> {
    Wire::try_attach(&site.address(), host.attach(0, Some(generation))).unwrap()
}

#[test]
fn a_second_run_of_a_host_is_refused_while_the_first_lives() {
    let site = Site::new();
    let (first, second) = (Host::run("a"), Host::run("a"));
    let (mut wire, attached) = site.host(&first);
    for channel in [0, 1] {
        match Wire::try_attach(&site.address(), second.attach(channel, None)).unwrap().map(|(_, a)| a) {
            Err(WireError::Busy { object, holder }) => {
                assert!(object.contains('a') && holder.contains("127.0.0.1"), "{object} {holder}");
            }
            other => panic!("{other:?}"),
        }
    }
    wire.attr(attached.root).unwrap();
    // Another host is somebody else.
    let other = site.host(&Host::run("b")).1;
    assert!(other.session > attached.session);
}

#[test]
fn a_run_that_is_gone_is_superseded_and_fenced() {
    let mut site = Site::new();
    let (first, second) = (Host::run("a"), Host::run("a"));
    let (wire, old) = site.host(&first);
    drop(wire);
    let (mut wire, new) = attach_when_free(&site, &second);
    assert!(new.session > old.session);
    assert_fenced(resume(&site, &first, old.session).map(|(_, a)| a));
    let late = Wire::try_attach(&site.address(), first.attach(0, None)).unwrap().map(|(_, a)| a);
    assert!(matches!(late, Err(WireError::Busy { .. })), "{late:?}");
    wire.make_file(new.root, "of the second run");

    // Nor does a restart of the server bring the old run back.
    site.restart();
    let mut wire = site.resume(&second, &new);
    assert_fenced(resume(&site, &first, old.session).map(|(_, a)| a));
    wire.lookup(new.root, "of the second run").unwrap();
    drop(wire);
    let third = attach_when_free(&site, &Host::run("a")).1;
    assert!(third.session > new.session);
}

#[test]
fn a_silent_run_is_superseded_once_its_lease_is_over() {
    let site = Site::new();
    let (first, second) = (Host::run("a"), Host::run("a"));
    let (mut silent, old) = site.host(&first);
    let (mut wire, new) = attach_when_free(&site, &second);
    assert!(new.session > old.session);
    assert!(silent.is_closed_by_server());
    assert_fenced(resume(&site, &first, old.session).map(|(_, a)| a));
    wire.attr(new.root).unwrap();
}

#[test]
fn a_run_that_renews_keeps_its_session_beyond_a_lease() {
    let site = Site::new();
    let (first, second) = (Host::run("a"), Host::run("a"));
    let (mut wire, attached) = site.host(&first);
    let step = Duration::from_millis(u64::from(attached.renew_ms));
    for _ in 0..=attached.lease_ms / attached.renew_ms {
        wire.call(Renew {}).unwrap();
        std::thread::sleep(step);
    }
    wire.call(Renew {}).unwrap();
    let refused = Wire::try_attach(&site.address(), second.attach(0, None)).unwrap().map(|(_, a)| a);
    assert!(matches!(refused, Err(WireError::Busy { .. })), "{refused:?}");
    wire.attr(attached.root).unwrap();
}

/// An old run that wakes up late must not take the session from the run that has it now.
#[test]
fn a_late_resume_of_an_old_run_does_no_harm_to_the_present_one() {
    let mut site = Site::new();
    let (first, second) = (Host::run("a"), Host::run("a"));
    let (wire, old) = site.host(&first);
    drop(wire);
    let (wire, new) = attach_when_free(&site, &second);
    drop(wire);
    // The second run is between two connections while the first one asks.
    site.restart();
    assert_fenced(resume(&site, &first, old.session).map(|(_, a)| a));
    let mut wire = site.resume(&second, &new);
    wire.attr(new.root).expect("the present run's session goes on");
}

/// However many runs of one host come at the same moment, one of them has the session.
#[test]
fn of_runs_that_attach_at_once_one_gets_the_session() {
    const RUNS: usize = 6;
    let site = Site::new();
    for round in 0..20 {
        let name = format!("h{round}");
        let start = Barrier::new(RUNS);
        let wires: Vec<(Wire, Attached)> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..RUNS)
                .map(|_| {
                    scope.spawn(|| {
                        let ask = Host::run(&name).attach(0, None);
                        start.wait();
                        Wire::try_attach(&site.address(), ask)
                    })
                })
                .collect();
            runs.into_iter().filter_map(|run| run.join().unwrap().ok()?.ok()).collect()
        });
        let mut working = Vec::new();
        for (mut wire, attached) in wires {
            if matches!(wire.try_call(Renew {}), Ok(Ok(_))) {
                working.push((wire, attached.session));
            }
        }
        let sessions: Vec<_> = working.iter().map(|(_, session)| session).collect();
        assert_eq!(sessions.len(), 1, "round {round}: sessions {sessions:?} of one host work side by side");
    }
}

/// The channels of one run share one session, also when they come at the same moment.
#[test]
fn channels_that_attach_at_once_get_one_session() {
    let site = Site::new();
    for round in 0..20 {
        let host = Host::run(&format!("h{round}"));
        let start = Barrier::new(2);
        let generations: Vec<_> = std::thread::scope(|scope| {
            let channels: Vec<_> = [0, 1]
                .map(|channel| {
                    let (host, start, site) = (&host, &start, &site);
                    scope.spawn(move || {
                        start.wait();
                        site.channel(host, channel)
                    })
                })
                .into();
            channels.into_iter().map(|c| c.join().unwrap().1.session).collect()
        });
        assert_eq!(generations[0], generations[1], "round {round}");
    }
}

#[test]
fn requests_of_another_epoch_or_session_are_refused_and_not_done() {
    let site = Site::new();
    let (mut wire, attached) = site.host(&Host::run("a"));
    let (epoch, session, root) = (wire.epoch, wire.session, attached.root);
    let file = wire.make_file(root, "f");
    let mut attempt = |epoch, session| {
        (wire.epoch, wire.session) = (epoch, session);
        let made = wire.call(new_node(root, "made", NewNode::File)).map(drop);
        let written = wire.write(file, 0, b"written");
        let looked = wire.attr(root).map(drop);
        [made, written, looked]
    };
    for wrong in [Epoch(0), Epoch(epoch.0 + 1), Epoch(u64::MAX)] {
        for result in attempt(wrong, session) {
            assert_eq!(result, Err(WireError::WrongEpoch { current: epoch }));
        }
    }
    for wrong in [Generation(0), session.next(), Generation(u64::MAX)] {
        attempt(epoch, wrong).into_iter().for_each(assert_fenced);
    }
    (wire.epoch, wire.session) = (epoch, session);
    assert_eq!(posix(wire.lookup(root, "made")), ENOENT);
    assert_eq!(wire.attr(file).unwrap().size, 0);
}

/// Nothing of a connection lands later than what is said on the connection that took its channel.
#[test]
fn data_of_an_old_connection_lands_before_the_new_one_is_attached() {
    const SLOT: usize = 32 << 10;
    const SLOTS: usize = 64;
    const LEN: usize = SLOT * SLOTS;
    for env in BOTH_PATHS {
        let site = Site::with(&[], env);
        let host = Host::run("a");
        let (mut wire, attached) = site.host(&host);
        let [file, other] = ["f", "g"].map(|name| wire.make_file(attached.root, name));
        for round in 0..8u8 {
            // Flushes of much data come first, so that the writes behind them wait for long.
            wire.keep_busy(other, round);
            for at in 0..SLOTS {
                wire.post(a_write(file, (at * SLOT) as u64), Bytes::from(vec![2 * round + 1; SLOT]));
            }
            std::thread::sleep(Duration::from_millis(u64::from(round)));
            let mut next = site.resume(&host, &attached);
            let fresh = vec![2 * round + 2; LEN];
            next.write(file, 0, &fresh).unwrap();
            for _ in 0..10 {
                let read = next.read(file, 0, LEN as u32).unwrap();
                assert!(read == fresh, "{env:?}, round {round}: an old write landed late");
                std::thread::sleep(Duration::from_millis(3));
            }
            wire = next;
        }
    }
}

#[test]
fn names_of_an_old_connection_land_before_the_new_one_is_attached() {
    let site = Site::new();
    let host = Host::run("a");
    let (mut wire, attached) = site.host(&host);
    for round in 0..10 {
        let dir = wire.make_dir(attached.root, &format!("d{round}"));
        for i in 0..100 {
            wire.post(new_node(dir, &format!("{i}"), NewNode::File), Bytes::new());
        }
        let mut next = site.resume(&host, &attached);
        let at_once = next.names(dir);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(next.names(dir), at_once, "round {round}: an old create landed late");
        wire = next;
    }
}

#[test]
fn a_channel_has_one_connection_and_channels_do_not_disturb_each_other() {
    let site = Site::new();
    let host = Host::run("a");
    let (mut names, attached) = site.channel(&host, 0);
    let (mut copies, same) = site.channel(&host, 1);
    assert_eq!(attached.session, same.session);
    let (mut taken, same) = site.channel(&host, 1);
    assert_eq!(attached.session, same.session);
    assert!(copies.is_closed_by_server());
    names.attr(attached.root).unwrap();
    taken.attr(attached.root).unwrap();
}

/// What was kept for a session is nobody else's: the same request id of another host is another request.
#[test]
fn request_ids_belong_to_their_session() {
    let site = Site::new();
    let (mut a, attached) = site.host(&Host::run("a"));
    let (mut b, _) = site.host(&Host::run("b"));
    let id = RequestId(5);
    let made = |wire: &mut Wire, name: &str| {
        wire.send(id, &new_node(attached.root, name, NewNode::File).request(), Bytes::new()).unwrap();
        match wire.receive_for(id).unwrap().unwrap().0 {
            Reply::Create(created) => created.attr.file,
            other => panic!("{other:?}"),
        }
    };
    let first = made(&mut a, "of a");
    let second = made(&mut b, "of b");
    assert_ne!(first, second);
    assert_eq!(made(&mut a, "of a"), first);
    assert_eq!(a.names(attached.root), ["of a", "of b"]);
}
