//! Operations that must not be done twice, sent again under their request id after the server was killed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proto::ops::names::{
    FileKind, GetXattr, Link, ListXattr, NewNode, RemoveXattr, Rename, Rmdir, SetXattr, Unlink,
};
use proto::ops::session::Attached;
use proto::ops::{Operation, Reply, Request};
use proto::{FileId, RequestId, WireError};
use rand::Rng;

use super::site::{Site, new_node};
use super::wire::{Host, Wire};

/// A directory with something to work on.
struct Ground {
    dir: FileId,
    labels: BTreeMap<FileId, &'static str>,
    file: FileId,
}

impl Ground {
    fn make(wire: &mut Wire, root: FileId, name: &str) -> Ground {
        let dir = wire.make_dir(root, name);
        let mut labels = BTreeMap::new();
        for name in ["file", "x", "y"] {
            labels.insert(wire.make_file(dir, name), name);
        }
        labels.insert(wire.make_dir(dir, "empty"), "empty");
        let file = *labels.iter().find(|(_, name)| **name == "file").unwrap().0;
        let value = "v".into();
        wire.call(SetXattr { file, name: "user.old".into(), value, create: false, replace: false }).unwrap();
        Ground { dir, labels, file }
    }

    /// Everything below the directory, with names for the ids.
    fn look(&self, wire: &mut Wire) -> String {
        let mut lines: Vec<String> = wire
            .list(self.dir)
            .iter()
            .map(|e| {
                let whose = self.labels.get(&e.attr.file).copied().unwrap_or("new");
                format!("{} is {whose}, {:?} with {} links", e.name.lossy(), e.attr.kind, e.attr.nlink)
            })
            .collect();
        lines.sort();
        for name in wire.call(ListXattr { file: self.file }).unwrap().names {
            let value = wire.call(GetXattr { file: self.file, name: name.clone() }).unwrap().value;
            lines.push(format!("{name:?}={value:?}"));
        }
        lines.push(format!("dir has {} links", wire.attr(self.dir).unwrap().nlink));
        lines.join("\n")
    }

    /// Each fails, or changes something more, when it is done a second time.
    fn requests(&self) -> Vec<(&'static str, Request)> {
        let (parent, file) = (self.dir, self.file);
        let node = |node| new_node(parent, "new", node).request();
        let rename = |name: &str, new_name: &str, exchange| {
            let (name, new_name, new_parent) = (name.into(), new_name.into(), parent);
            Rename { parent, name, new_parent, new_name, no_replace: false, exchange }.request()
        };
        let (name, value) = ("user.new".into(), "w".into());
        vec![
            ("create a file", node(NewNode::File)),
            ("create a directory", node(NewNode::Directory)),
            ("create a symlink", node(NewNode::Symlink("target".into()))),
            ("create a fifo", node(NewNode::Special { kind: FileKind::Fifo, rdev: 0 })),
            ("unlink", Unlink { parent, name: "x".into() }.request()),
            ("rmdir", Rmdir { parent, name: "empty".into() }.request()),
            ("rename", rename("x", "z", false)),
            ("rename over another", rename("x", "y", false)),
            ("exchange", rename("x", "y", true)),
            ("link", Link { file, new_parent: parent, new_name: "link".into() }.request()),
            ("set an xattr", SetXattr { file, name, value, create: true, replace: false }.request()),
            ("remove an xattr", RemoveXattr { file, name: "user.old".into() }.request()),
        ]
    }
}

fn ask(wire: &mut Wire, id: RequestId, request: &Request) -> Result<Reply, WireError> {
    wire.send(id, request, Bytes::new()).unwrap();
    wire.receive_for(id).unwrap().map(|(reply, _)| reply)
}

struct Rig {
    site: Site,
    host: Host,
    attached: Attached,
    wire: Wire,
}

impl Rig {
    fn new() -> Rig {
        let (site, host) = (Site::new(), Host::run("a"));
        let (wire, attached) = site.host(&host);
        Rig { site, host, attached, wire }
    }

    fn kill_and_resume(&mut self) {
        self.site.restart();
        self.wire = self.site.resume(&self.host, &self.attached);
    }
}

/// What an operation leaves when it is done once and nothing goes wrong.
fn expected(rig: &mut Rig) -> BTreeMap<&'static str, String> {
    let count = Ground::make(&mut rig.wire, rig.attached.root, "all").requests().len();
    (0..count)
        .map(|at| {
            let ground = Ground::make(&mut rig.wire, rig.attached.root, &format!("expected {at}"));
            let (what, request) = ground.requests().swap_remove(at);
            let id = rig.wire.fresh();
            ask(&mut rig.wire, id, &request).expect(what);
            (what, ground.look(&mut rig.wire))
        })
        .collect()
}

#[test]
fn what_was_answered_is_answered_again_in_the_same_words() {
    let mut rig = Rig::new();
    let expected = expected(&mut rig);
    for (at, (what, after)) in expected.iter().enumerate() {
        let ground = Ground::make(&mut rig.wire, rig.attached.root, what);
        let request = &ground.requests().into_iter().find(|(w, _)| w == what).unwrap().1;
        let id = RequestId(100 + at as u64);
        let first = ask(&mut rig.wire, id, request).expect(what);
        assert_eq!(ask(&mut rig.wire, id, request).expect(what), first, "{what}: again at once");
        rig.wire = rig.site.resume(&rig.host, &rig.attached);
        assert_eq!(ask(&mut rig.wire, id, request).expect(what), first, "{what}: on another connection");
        rig.kill_and_resume();
        assert_eq!(ask(&mut rig.wire, id, request).expect(what), first, "{what}: after a kill");
        rig.kill_and_resume();
        assert_eq!(&ground.look(&mut rig.wire), after, "{what}: done once");
    }
}

/// The server dies somewhere between the arrival of the request and its answer.
#[test]
fn what_was_not_answered_is_done_once_when_it_is_sent_again() {
    let mut rig = Rig::new();
    let expected = expected(&mut rig);
    let mut number = 1_000;
    for most_us in [0, 1_000, 4_000, 20_000] {
        for (what, after) in &expected {
            number += 1;
            let ground = Ground::make(&mut rig.wire, rig.attached.root, &format!("{what} {number}"));
            let request = &ground.requests().into_iter().find(|(w, _)| w == what).unwrap().1;
            rig.wire.send(RequestId(number), request, Bytes::new()).unwrap();
            std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..=most_us)));
            rig.kill_and_resume();
            let first = ask(&mut rig.wire, RequestId(number), request).expect(what);
            assert_eq!(&ground.look(&mut rig.wire), after, "{what}");
            assert_eq!(ask(&mut rig.wire, RequestId(number), request).expect(what), first, "{what}");
            assert_eq!(&ground.look(&mut rig.wire), after, "{what}");
        }
    }
}

/// Names in one order are done in this order, also when all of them are sent again.
#[test]
fn a_row_of_requests_is_done_once_and_in_order() {
    let mut rig = Rig::new();
    let dir = rig.wire.make_dir(rig.attached.root, "d");
    let step = |from: u64| {
        let (name, new_name) = (format!("{from}").as_str().into(), format!("{}", from + 1).as_str().into());
        Rename { parent: dir, name, new_parent: dir, new_name, no_replace: true, exchange: false }.request()
    };
    let file = rig.wire.make_file(dir, "0");
    for round in 0..12 {
        let ids = || (round * 50..(round + 1) * 50).map(|at| (RequestId(at + 1), step(at)));
        ids().for_each(|(id, request)| rig.wire.send(id, &request, Bytes::new()).unwrap());
        std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..=8_000)));
        rig.kill_and_resume();
        ids().for_each(|(id, request)| rig.wire.send(id, &request, Bytes::new()).unwrap());
        for (id, _) in ids() {
            rig.wire.receive_for(id).unwrap().unwrap();
        }
        let there: Vec<_> = rig.wire.list(dir).into_iter().map(|e| (e.name, e.attr.file)).collect();
        assert_eq!(there, [(format!("{}", (round + 1) * 50).as_str().into(), file)]);
    }
}
