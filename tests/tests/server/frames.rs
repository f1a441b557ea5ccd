//! Bytes that are no frames end their connection, do nothing, and trouble nobody else.

use bytes::Bytes;
use proto::frame::{HEADER_LEN, Header, KIND_ERROR, KIND_REPLY, MAX_BODY, MAX_DATA, payload_crc};
use proto::ops::{CODES, Operation, Request, Stamp, frame_request};
use proto::{FileId, InstanceId, RequestId};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::site::{Site, a_read, a_write};
use super::wire::{Host, Wire};

/// A frame as bytes, to be spoiled.
struct Raw {
    header: Header,
    payload: Vec<u8>,
}

impl Raw {
    fn of(wire: &Wire, request: &Request, data: &[u8]) -> Raw {
        let stamp = Stamp {
            version: 1,
            request: RequestId(7),
            session: wire.session,
            epoch: wire.epoch,
            settled_below: RequestId(1),
        };
        let frame = frame_request(stamp, request, Bytes::copy_from_slice(data));
        let (head, body) = frame.head.split_first_chunk::<HEADER_LEN>().unwrap();
        Raw { header: Header::decode(head).unwrap(), payload: [body, data].concat() }
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.header.encode()[..], &self.payload].concat()
    }

    fn with(mut self, change: impl FnOnce(&mut Header)) -> Vec<u8> {
        change(&mut self.header);
        self.bytes()
    }
}

fn stranger(site: &Site) -> Wire {
    site.host(&Host::run(&InstanceId::new().to_string())).0
}

#[test]
fn frames_that_are_broken_end_their_connection_only() {
    let mut site = Site::new();
    let (mut good, attached) = site.host(&Host::run("good"));
    let file = good.make_file(attached.root, "f");
    good.write(file, 0, b"as it was").unwrap();
    type Spoil = Box<dyn Fn(&Wire) -> Vec<u8>>;
    let write = move |wire: &Wire| Raw::of(wire, &a_write(file, 0).request(), b"spoilt!!!");
    let look = move |wire: &Wire| Raw::of(wire, &a_read(file, 0, 9).request(), b"");
    let flipped = move |at: usize| -> Spoil {
        Box::new(move |wire| {
            let mut bytes = write(wire).bytes();
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 0x10;
            bytes
        })
    };
    let spoilt: Vec<(&str, Spoil)> = vec![
        ("magic", flipped(0)),
        ("request id", flipped(9)),
        ("header checksum", flipped(61)),
        ("body", flipped(HEADER_LEN + 1)),
        ("data", flipped(usize::MAX)),
        ("payload checksum", Box::new(move |wire| write(wire).with(|h| h.payload_crc ^= 1))),
        ("body too long", Box::new(move |wire| write(wire).with(|h| h.body_len = MAX_BODY + 1))),
        ("data too long", Box::new(move |wire| write(wire).with(|h| h.data_len = MAX_DATA + 1))),
        ("all too long", Box::new(move |wire| write(wire).with(|h| h.data_len = u32::MAX))),
        ("kind 0", Box::new(move |wire| look(wire).with(|h| h.kind = 0))),
        ("unknown operation", Box::new(move |wire| look(wire).with(|h| h.kind = 0x4fff))),
        ("a reply", Box::new(move |wire| look(wire).with(|h| h.kind |= KIND_REPLY))),
        ("an error", Box::new(move |wire| look(wire).with(|h| h.kind = KIND_ERROR))),
        ("another operation's body", Box::new(move |wire| look(wire).with(|h| h.kind = 0x0017))),
        (
            "bytes behind the body",
            Box::new(move |wire| {
                let mut raw = look(wire);
                raw.payload.push(0);
                raw.header.body_len += 1;
                raw.header.payload_crc = payload_crc(&raw.payload, b"");
                raw.bytes()
            }),
        ),
        ("half a header", Box::new(move |wire| write(wire).bytes()[..30].to_vec())),
        ("half a body", Box::new(move |wire| write(wire).bytes()[..HEADER_LEN + 3].to_vec())),
        ("half the data", Box::new(move |wire| write(wire).bytes().split_last().unwrap().1.to_vec())),
    ];
    for (what, spoil) in spoilt {
        let mut wire = stranger(&site);
        let bytes = spoil(&wire);
        wire.send_raw(&bytes).unwrap();
        wire.shut_down_sending();
        assert!(wire.is_closed_by_server(), "{what}: the connection is closed without an answer");
        assert_eq!(good.read(file, 0, 100).unwrap(), "as it was", "{what}");
        stranger(&site).attr(attached.root).expect(what);
    }
    assert!(site.server().process().ended().is_none());
}

/// The session outlives a connection that ended in the middle of a frame.
#[test]
fn a_session_goes_on_after_half_a_frame() {
    let site = Site::new();
    let host = Host::run("a");
    let (mut wire, attached) = site.host(&host);
    let file = wire.make_file(attached.root, "f");
    let bytes = Raw::of(&wire, &a_write(file, 0).request(), b"whole").bytes();
    wire.send_raw(&bytes[..bytes.len() - 2]).unwrap();
    let mut next = site.resume(&host, &attached);
    assert_eq!(next.attr(file).unwrap().size, 0, "half a request is not done");
    next.write(file, 0, b"whole").unwrap();
    assert_eq!(next.read(file, 0, 100).unwrap(), "whole");
}

#[test]
fn noise_and_random_bodies_do_not_trouble_the_server() {
    let mut site = Site::new();
    let (mut good, attached) = site.host(&Host::run("good"));
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..60 {
        let mut wire = stranger(&site);
        let noise: Vec<u8> = (0..rng.random_range(1..500)).map(|_| rng.random()).collect();
        wire.send_raw(&noise).unwrap();
        wire.shut_down_sending();
        assert!(wire.is_closed_by_server());
    }
    // Bodies that decode are requests about files that are not there, mostly.
    for (code, name) in CODES {
        for _ in 0..20 {
            let payload: Vec<u8> = (0..rng.random_range(0..60)).map(|_| rng.random()).collect();
            let mut wire = stranger(&site);
            let header = Header {
                kind: *code,
                body_len: payload.len() as u32,
                data_len: 0,
                payload_crc: payload_crc(&payload, b""),
                ..Raw::of(&wire, &a_read(FileId(9), 0, 0).request(), b"").header
            };
            let frame = Raw { header, payload }.bytes();
            wire.send_raw(&frame).unwrap();
            wire.shut_down_sending();
            // An answer, or the end; the server lives on.
            let _ = wire.receive();
            assert!(site.server().process().ended().is_none(), "{name}");
        }
    }
    good.attr(attached.root).unwrap();
}
