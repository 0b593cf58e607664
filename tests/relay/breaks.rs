//! What every form of the relay is held to where a connection is broken off, or time is up: the error
//! names the direction and the side, and both directions' counts are exact.
#![allow(dead_code, unreachable_pub)]

use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::AsRawFd;
use zcio::relay::{Direction, RelayEnd, RelayError, RelayOptions};

use crate::common::make;
use crate::rig::{Ends, Form, Lost, Net, Peer, Rig, Sums, judge, pair, within, writable};

const MUCH: u64 = 5 << 20;

/// Where a relay stands when a peer resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// Nothing has been said.
    Start,
    /// All that was said has been heard.
    Quiet,
    /// What the peer says is under way, and the other does not listen.
    Speaking,
    /// What is said to the peer is under way, and it does not listen.
    Deaf,
    /// Both.
    Both,
    /// The peer has ended, and the other has not.
    HalfClosed,
}

const POINTS: [Point; 6] = [
    Point::Start,
    Point::Quiet,
    Point::Speaking,
    Point::Deaf,
    Point::Both,
    Point::HalfClosed,
];

/// Sends until nobody takes more: neither the kernel nor the relay.
fn stuff(peer: &mut Peer) {
    make::set_nonblocking(&peer.ear.fd, true);
    let mut idle = 0;
    while idle < 3 {
        idle = match peer.mouth.send(MUCH) {
            Ok(0) => idle + 1,
            Ok(_) => 0,
            Err(e) => panic!("stuffing: {e}"),
        };
        writable(&peer.ear.fd, 30);
    }
    make::set_nonblocking(&peer.ear.fd, false);
}

/// A TCP peer resets its connection at each point; the other one keeps all that was delivered to it.
pub fn resets(form: &'static Form) {
    within(120, || {
        for (point, other, mirrored) in POINTS.iter().flat_map(|point| {
            [
                (*point, Net::Tcp, false),
                (*point, Net::Tcp, true),
                (*point, Net::Unix, false),
            ]
        }) {
            reset_at(form, point, other, mirrored);
        }
    });
}

fn reset_at(form: &Form, point: Point, other: Net, mirrored: bool) {
    let nets = match mirrored {
        false => (Net::Tcp, other),
        true => (other, Net::Tcp),
    };
    let rig = Rig::start(form, &RelayOptions::new(), nets);
    let case = format!("{}, {point:?}, mirrored {mirrored}", rig.case);
    let Rig { mut a, mut b, ends, relay, .. } = rig;
    let (who, whom) = match mirrored {
        false => (&mut a, &mut b),
        true => (&mut b, &mut a),
    };
    match point {
        Point::Start => {}
        Point::Quiet => {
            for len in [1000, 300_000] {
                thread::scope(|scope| {
                    scope.spawn(|| who.mouth.send(len).expect("sent"));
                    whom.ear.expect(len);
                });
                thread::scope(|scope| {
                    scope.spawn(|| whom.mouth.send(len).expect("sent"));
                    who.ear.expect(len);
                });
            }
        }
        Point::Speaking => stuff(who),
        Point::Deaf => stuff(whom),
        Point::Both => {
            stuff(who);
            stuff(whom);
        }
        Point::HalfClosed => {
            who.mouth.send(10).expect("sent");
            who.mouth.end();
            assert_eq!(whom.ear.expect_end(), 10);
            // Unread when it goes: so that it is a reset.
            stuff(whom);
        }
    }
    // The peer goes, the other stays; in the end it gets what was delivered, and then the end.
    let (gone, mut stays) = match mirrored {
        false => (a.reset(), b),
        true => (b.reset(), a),
    };
    // Where it is deaf, nothing tells of the reset until somebody else speaks: a write does.
    let error = relay.join().expect_err(&case);
    let report = error.report();
    assert_eq!(report.end, RelayEnd::Stopped, "{case}");
    let raw = error.error().io_error().and_then(|e| e.raw_os_error());
    assert!(matches!(raw, Some(libc::ECONNRESET | libc::EPIPE)), "{case}: {error}");
    // It came from the socket that was reset, as a source or as a destination.
    let as_source = match mirrored {
        false => Direction::AToB,
        true => Direction::BToA,
    };
    let side = match error.direction() == as_source {
        true => zcio::Side::Source,
        false => zcio::Side::Destination,
    };
    assert_eq!(error.error().side(), Some(side), "{case}: {error}");
    let flow = match error.direction() {
        Direction::AToB => &report.a_to_b,
        Direction::BToA => &report.b_to_a,
    };
    assert_eq!(error.error().delivered(), flow.bytes, "{case}");
    assert_eq!(error.error().undelivered(), &flow.undelivered, "{case}");
    let (there, back) = match mirrored {
        false => (&report.a_to_b, &report.b_to_a),
        true => (&report.b_to_a, &report.a_to_b),
    };
    let stays_end = match mirrored {
        false => &ends.b,
        true => &ends.a,
    };
    let _ = shutdown(stays_end.as_raw_fd(), Shutdown::Write);
    take_the_rest(&mut stays, there.bytes, &case);
    println!(
        "{case}: {error}; {} + {} there, {} + {} back",
        there.bytes,
        there.undelivered.len(),
        back.bytes,
        back.undelivered.len()
    );
    let lost = |one: bool| one || form.shuts_down;
    judge_gone(&case, &error, (&gone, &stays.sums()), &ends, mirrored, Lost {
        a: lost(!mirrored),
        b: form.shuts_down && mirrored,
    });
}

/// Takes what was delivered; an error at the very end is the reset that shutting down made.
fn take_the_rest(peer: &mut Peer, delivered: u64, case: &str) {
    let left = delivered - peer.ear.received;
    let got = peer.ear.receive(left).unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(got.bytes, left, "{case}: all that was delivered arrives");
}
