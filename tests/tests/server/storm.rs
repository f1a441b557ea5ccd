//! Several hosts change names without a pause while the server is killed again and again: every
//! operation that was answered is there, exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use godwit_tests::process::wait_for;
use parking_lot::Mutex;
use proto::ops::names::{Link, ListXattr, NewNode, RemoveXattr, Rename, SetXattr, Unlink};
use proto::ops::session::Attached;
use proto::ops::{Operation, Reply, Request};
use proto::{FileId, RequestId};
use rand::Rng;

use super::site::{Site, new_node};
use super::wire::{Host, Wire};

const KILLS: u64 = 40;
const HOSTS: u64 = 3;
/// Requests of a host on their way at once.
const DEPTH: usize = 12;

/// What a host has made in its directory, if each operation was done once and in order.
struct Model {
    dir: FileId,
    target: FileId,
    names: BTreeSet<String>,
    xattrs: BTreeSet<String>,
    swapped: bool,
    step: u64,
}

impl Model {
    /// The next operation, taken as done.
    fn next(&mut self) -> Request {
        let (parent, round) = (self.dir, self.step / 6);
        let name = |kind: &str, round: u64| format!("{kind}{round}");
        let rename = |from: &str, to: &str, exchange: bool| {
            let (name, new_name, new_parent) = (from.into(), to.into(), parent);
            Rename { parent, name, new_parent, new_name, no_replace: !exchange, exchange }.request()
        };
        let request = match self.step % 6 {
            0 => {
                self.names.insert(name("made", round));
                new_node(parent, &name("made", round), NewNode::File).request()
            }
            1 => {
                self.names.insert(name("link", round));
                let new_name = name("link", round).as_str().into();
                Link { file: self.target, new_parent: parent, new_name }.request()
            }
            2 => {
                self.names.remove(&name("made", round));
                self.names.insert(name("kept", round));
                rename(&name("made", round), &name("kept", round), false)
            }
            3 => {
                self.swapped = !self.swapped;
                rename("x", "y", true)
            }
            4 => {
                self.xattrs.insert(name("user.", round));
                let (name, value) = (name("user.", round).as_str().into(), "v".into());
                SetXattr { file: self.target, name, value, create: true, replace: false }.request()
            }
            // Of every third round something goes again.
            _ if round.is_multiple_of(3) => {
                self.names.remove(&name("link", round));
                Unlink { parent, name: name("link", round).as_str().into() }.request()
            }
            _ => {
                self.xattrs.remove(&name("user.", round));
                RemoveXattr { file: self.target, name: name("user.", round).as_str().into() }.request()
            }
        };
        self.step += 1;
        request
    }

    fn compare(&self, wire: &mut Wire, x: FileId, y: FileId) {
        let there: BTreeMap<String, FileId> =
            wire.list(self.dir).into_iter().map(|e| (e.name.lossy().into_owned(), e.attr.file)).collect();
        assert_eq!(there.keys().cloned().collect::<BTreeSet<_>>(), self.names);
        let (left, right) = if self.swapped { (y, x) } else { (x, y) };
        assert_eq!((there["x"], there["y"]), (left, right), "exchanged once each time");
        let links = 1 + there.keys().filter(|name| name.starts_with("link")).count();
        assert_eq!(wire.attr(self.target).unwrap().nlink as usize, links);
        let xattrs = wire.call(ListXattr { file: self.target }).unwrap().names;
        let xattrs: BTreeSet<String> = xattrs.iter().map(|n| n.lossy().into_owned()).collect();
        assert_eq!(xattrs, self.xattrs);
    }
}

/// A host that never gives up.
struct Client {
    host: Host,
    address: Arc<Mutex<String>>,
    attached: Attached,
    wire: Option<Wire>,
    unanswered: BTreeMap<RequestId, Request>,
    /// The last answers, to be asked for again.
    answered: BTreeMap<RequestId, (Request, Reply)>,
    sent_again: u64,
}

impl Client {
    /// The connection; a new one says all again that has no answer, and some that has.
    fn wire(&mut self) -> &mut Wire {
        while self.wire.is_none() {
            let mut found = None;
            wait_for("the server", || {
                let ask = self.host.attach(0, Some(self.attached.session));
                let address = self.address.lock().clone();
                found = Wire::try_attach(&address, ask).ok();
                found.is_some()
            });
            let (mut wire, attached) = found.unwrap().expect("the session goes on");
            assert_eq!(attached.session, self.attached.session);
            let mut again = || {
                for (id, (request, reply)) in &self.answered {
                    wire.settled_below = *id;
                    wire.send(*id, request, Bytes::new())?;
                    assert_eq!(&wire.receive_for(*id)?.expect("was answered well").0, reply);
                }
                wire.settled_below = self.settled_below();
                for (id, request) in &self.unanswered {
                    wire.send(*id, request, Bytes::new())?;
                }
                std::io::Result::Ok(self.unanswered.len() as u64)
            };
            if let Ok(count) = again() {
                self.sent_again += count;
                self.wire = Some(wire);
            }
        }
        self.wire.as_mut().unwrap()
    }

    fn settled_below(&self) -> RequestId {
        let known = self.answered.keys().chain(self.unanswered.keys());
        known.min().copied().unwrap_or(RequestId(1))
    }

    fn send(&mut self, id: RequestId, request: Request) {
        self.wire();
        self.unanswered.insert(id, request.clone());
        let settled_below = self.settled_below();
        let wire = self.wire.as_mut().unwrap();
        wire.settled_below = settled_below;
        if wire.send(id, &request, Bytes::new()).is_err() {
            self.wire = None;
        }
    }

    fn receive(&mut self) {
        match self.wire().receive() {
            Ok((id, answer)) => {
                let request = self.unanswered.remove(&id).expect("an answer to what was asked");
                let reply = answer.unwrap_or_else(|e| panic!("{request:?}: {e}")).0;
                self.answered.insert(id, (request, reply));
                while self.answered.len() > 5 {
                    self.answered.pop_first();
                }
            }
            Err(_) => self.wire = None,
        }
    }
}

/// A host with its directory.
struct Worker {
    client: Client,
    model: Model,
    x: FileId,
    y: FileId,
}

impl Worker {
    fn new(site: &Site, number: u64) -> Worker {
        let host = Host::run(&format!("h{number}"));
        let (mut wire, attached) = site.host(&host);
        let dir = wire.make_dir(attached.root, &host.name);
        let [target, x, y] = ["target", "x", "y"].map(|name| wire.make_file(dir, name));
        let names = ["target", "x", "y"].map(String::from).into();
        let model = Model { dir, target, names, xattrs: BTreeSet::new(), swapped: false, step: 0 };
        let client = Client {
            host,
            address: site.shared_address(),
            attached,
            wire: Some(wire),
            unanswered: BTreeMap::new(),
            answered: BTreeMap::new(),
            sent_again: 0,
        };
        Worker { client, model, x, y }
    }

    fn run(&mut self, done: &AtomicBool, answered: &AtomicU64) {
        let mut id = RequestId(1);
        while !done.load(Ordering::Relaxed) || !self.client.unanswered.is_empty() {
            while self.client.unanswered.len() < DEPTH && !done.load(Ordering::Relaxed) {
                self.client.send(id, self.model.next());
                id = id.next();
            }
            if !self.client.unanswered.is_empty() {
                self.client.receive();
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn compare(&mut self) {
        self.model.compare(self.client.wire(), self.x, self.y);
    }
}

#[test]
fn every_answered_change_of_names_is_there_once_after_a_storm_of_kills() {
    let mut site = Site::new();
    let mut workers: Vec<_> = (0..HOSTS).map(|number| Worker::new(&site, number)).collect();
    let (done, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for worker in &mut workers {
            scope.spawn(|| worker.run(&done, &answered));
        }
        for _ in 0..KILLS {
            let before = answered.load(Ordering::Relaxed);
            let mut waits = 0;
            while answered.load(Ordering::Relaxed) < before + 20 && waits < 6_000 {
                std::thread::sleep(Duration::from_millis(10));
                waits += 1;
            }
            std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..40_000)));
            site.restart();
        }
        done.store(true, Ordering::Relaxed);
    });
    let steps: u64 = workers.iter().map(|w| w.model.step).sum();
    let again: u64 = workers.iter().map(|w| w.client.sent_again).sum();
    assert!(steps > KILLS * 20, "{steps} operations were done");
    assert!(again > KILLS, "only {again} requests were under way when the server died");
    workers.iter_mut().for_each(Worker::compare);
    for worker in &mut workers {
        worker.client.wire = None;
    }
    site.restart();
    workers.iter_mut().for_each(Worker::compare);
}
