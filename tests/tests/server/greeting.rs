//! The first bytes of a connection, and the first request.

use std::io::Read;
use std::net::TcpStream;

use proto::handshake::{ClientGreeting, Role, VERSION};
use proto::ops::session::{Attach, Renew};
use proto::{Generation, InstanceId, WireError};

use super::site::Site;
use super::wire::{Host, Wire, greet};

fn works(site: &Site) {
    let (mut wire, attached) = site.host(&Host::run(&InstanceId::new().to_string()));
    wire.attr(attached.root).unwrap();
}

#[test]
fn greetings_of_strangers_are_refused() {
    let site = Site::new();
    let good = ClientGreeting::ours().encode();
    let mut magic = good;
    magic[3] ^= 1;
    let mut role = good;
    role[12] = 9;
    let mut reserved = good;
    reserved[15] = 1;
    let mut reversed = good;
    (reversed[8], reversed[10]) = (2, 1);
    for bad in [magic, role, reserved, reversed, *b"GET / HTTP/1.1\r\n"] {
        greet(&site.address(), &bad).map(drop).expect_err("no version is agreed");
        works(&site);
    }
    // Half a greeting, then nothing more.
    let half = TcpStream::connect(site.address()).unwrap();
    std::io::Write::write_all(&mut &half, &good[..7]).unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!((&half).read(&mut [0]).unwrap(), 0);
    works(&site);
}

#[test]
fn versions_are_agreed_on_or_refused_with_words() {
    let site = Site::new();
    let greeting = |min_version, max_version| {
        let greeting = ClientGreeting { min_version, max_version, role: Role::Host };
        greet(&site.address(), &greeting.encode()).unwrap()
    };
    assert_eq!(greeting(1, 900).1, Ok(VERSION));
    let (mut stream, answer) = greeting(VERSION + 1, 900);
    let words = answer.expect_err("too new");
    assert!(words.contains("900") && words.contains("upgrade"), "{words}");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the connection ends after the refusal");
}

#[test]
fn the_first_request_is_attach_or_the_connection_ends() {
    let site = Site::new();
    let mut wire = Wire::connect(&site.address()).unwrap();
    wire.try_call(Renew {}).expect_err("closed");
    works(&site);
}

#[test]
fn a_second_attach_on_a_connection_is_invalid_and_changes_nothing() {
    let site = Site::new();
    let host = Host::run("a");
    let (mut wire, attached) = site.host(&host);
    let again = wire.call(host.attach(0, None));
    assert!(matches!(again, Err(WireError::Invalid { .. })), "{again:?}");
    wire.attr(attached.root).unwrap();
}

#[test]
fn attach_names_the_datastore_and_a_host() {
    let site = Site::new();
    let refused = |ask: Attach| match Wire::try_attach(&site.address(), ask).unwrap() {
        Err(WireError::Invalid { reason }) => reason,
        Err(other) => panic!("{other}"),
        Ok((_, attached)) => panic!("{attached:?}"),
    };
    let host = Host::run("a");
    let words = refused(Attach { datastore: "ds2".into(), ..host.attach(0, None) });
    assert!(words.contains("ds1") && words.contains("ds2"), "{words}");
    refused(Attach { host: String::new(), ..host.attach(0, None) });
    refused(Attach { host: "h".repeat(256), ..host.attach(0, None) });
    let attached = site.host(&host).1;
    assert_eq!((attached.name.as_str(), attached.session), ("ds1", Generation(1)));
    assert_eq!(attached.root.prefix(), attached.prefix);
}

#[test]
fn a_datastore_keeps_who_it_is_over_restarts() {
    let mut site = Site::new();
    let host = Host::run("a");
    let before = site.host(&host).1;
    site.restart();
    let after = site.host(&host).1;
    assert_eq!((before.datastore, before.prefix, before.root), (after.datastore, after.prefix, after.root));
    assert_eq!((before.epoch, before.boot), (after.epoch, after.boot));
    assert_ne!(before.server, after.server);
}
