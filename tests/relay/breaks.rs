//! What every form of the relay is held to where a connection is broken off, or time is up: the error
//! names the direction and the side, and both directions' counts are exact.
#![allow(dead_code, unreachable_pub)]

use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use zcio::Side;
use zcio::relay::{Direction, Flow, RelayEnd, RelayOptions};

use crate::common::make;
use crate::rig::{Form, Lost, NETS, Net, Peer, Rig, judge, within, writable};

const MUCH: u64 = 5 << 20;

/// Where a relay stands when a peer resets its connection.
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
    /// The peer has ended; what is said to it is under way.
    HalfClosed,
}

impl Point {
    const ALL: [Point; 6] = [
        Point::Start,
        Point::Quiet,
        Point::Speaking,
        Point::Deaf,
        Point::Both,
        Point::HalfClosed,
    ];

    fn play(self, who: &mut Peer, whom: &mut Peer) {
        match self {
            Point::Start => {}
            Point::Quiet => {
                for len in [1000, 300_000] {
                    pass(who, whom, len);
                    pass(whom, who, len);
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
                stuff(whom);
            }
        }
    }
}

fn pass(from: &mut Peer, to: &mut Peer, len: u64) {
    thread::scope(|scope| {
        scope.spawn(|| from.mouth.send(len).expect("sent"));
        to.ear.expect(len);
    });
}

/// Sends until nobody takes more: neither the kernel nor the relay.
fn stuff(peer: &mut Peer) {
    make::set_nonblocking(&peer.ear.fd, true);
    let mut idle = 0;
    while idle < 3 {
        idle = match peer.mouth.send(MUCH).expect("the connection stands") {
            0 => idle + 1,
            _ => 0,
        };
        writable(&peer.ear.fd, 20);
    }
    make::set_nonblocking(&peer.ear.fd, false);
}

/// A TCP peer resets its connection at each point; the other one has got all that was delivered.
pub fn resets(form: &'static Form) {
    within(120, || {
        for point in Point::ALL {
            for (other, mirrored) in [(Net::Tcp, false), (Net::Tcp, true), (Net::Unix, false)] {
                reset_at(form, point, other, mirrored);
            }
        }
    });
}

fn reset_at(form: &Form, point: Point, other: Net, mirrored: bool) {
    let Rig {
        case,
        a,
        b,
        ends,
        relay,
    } = Rig::start(
        form,
        &RelayOptions::new(),
        match mirrored {
            false => (Net::Tcp, other),
            true => (other, Net::Tcp),
        },
    );
    let case = format!("{case}, {point:?}, mirrored {mirrored}");
    println!("{case}");
    let (mut who, mut whom) = turn(mirrored, (a, b));
    point.play(&mut who, &mut whom);
    let gone = who.reset();
    let stays = if mirrored { &ends.a } else { &ends.b };
    let error = thread::scope(|scope| {
        // In the end it gets what was delivered, and then the end.
        let listening = scope.spawn(|| whom.ear.receive(u64::MAX));
        let error = relay.join().expect_err(&case);
        let _ = shutdown(stays.as_raw_fd(), Shutdown::Write);
        let heard = listening.join().expect("no panic");
        assert!(
            heard.is_ok_and(|heard| heard.ended),
            "{case}: the end has come"
        );
        error
    });
    let report = error.report();
    println!(
        "    {error}; {}; {}",
        text(&report.a_to_b),
        text(&report.b_to_a)
    );
    assert_eq!(report.end, RelayEnd::Stopped, "{case}");
    let number = error.error().io_error().and_then(io::Error::raw_os_error);
    assert!(
        matches!(number, Some(libc::ECONNRESET | libc::EPIPE)),
        "{case}"
    );
    // It is the socket that was reset that failed, whichever side that is.
    let (direction, flow) = match error.direction() {
        Direction::AToB => (!mirrored, &report.a_to_b),
        Direction::BToA => (mirrored, &report.b_to_a),
    };
    let side = if direction {
        Side::Source
    } else {
        Side::Destination
    };
    assert_eq!(error.error().side(), Some(side), "{case}");
    assert_eq!(error.error().delivered(), flow.bytes, "{case}");
    assert_eq!(error.error().undelivered(), &flow.undelivered, "{case}");
    let (lost_a, lost_b) = turn(mirrored, (true, false));
    let lost = Lost {
        a: lost_a,
        b: lost_b,
    };
    let sums = whom.sums();
    let (a, b) = turn(mirrored, (&gone, &sums));
    judge(&case, report, (a, b), &ends, lost);
}

fn turn<T>(mirrored: bool, (one, two): (T, T)) -> (T, T) {
    if mirrored { (two, one) } else { (one, two) }
}

fn text(flow: &Flow) -> String {
    format!("{} + {}", flow.bytes, flow.undelivered.len())
}

/// A socket that is no longer connected when it is to be told of the end: that is no error.
pub fn not_connected_any_more(form: &'static Form) {
    within(60, || {
        for other in [Net::Tcp, Net::Unix] {
            let mut rig = Rig::start(form, &RelayOptions::new(), (other, Net::Tcp));
            // The second peer ends, is sent something, and resets: its socket is closed by then.
            rig.b.mouth.end();
            assert_eq!(rig.a.ear.expect_end(), 0);
            rig.a.mouth.send(1).expect("sent");
            rig.b.ear.expect(1);
            let gone = rig.b.reset();
            rig.a.mouth.end();
            let report = rig
                .relay
                .join()
                .unwrap_or_else(|e| panic!("{}: {e}", rig.case));
            assert_eq!(report.end, RelayEnd::Closed, "{}", rig.case);
            let lost = Lost { a: false, b: true };
            judge(&rig.case, &report, (&rig.a.sums(), &gone), &rig.ends, lost);
        }
    });
}

/// Time is up in the middle: an error that says so, with exact counts.
pub fn deadline(form: &'static Form) {
    within(60, || {
        for (nets, point) in NETS.iter().flat_map(|nets| {
            [Point::Quiet, Point::Speaking, Point::Both].map(|point| (*nets, point))
        }) {
            let mut options = RelayOptions::new();
            options.deadline(Instant::now() + Duration::from_secs(2));
            let Rig {
                case,
                mut a,
                mut b,
                ends,
                relay,
            } = Rig::start(form, &options, nets);
            let case = format!("{case}, {point:?}");
            point.play(&mut a, &mut b);
            let error = relay.join().expect_err(&case);
            let kind = error.error().io_error().map(io::Error::kind);
            assert_eq!(kind, Some(io::ErrorKind::TimedOut), "{case}: {error}");
            let report = error.report();
            println!(
                "{case}: {error}; {}; {}",
                text(&report.a_to_b),
                text(&report.b_to_a)
            );
            a.ear.expect(report.b_to_a.bytes - a.ear.received);
            b.ear.expect(report.a_to_b.bytes - b.ear.received);
            let sums = (&a.sums(), &b.sums());
            judge(&case, report, sums, &ends, Lost::default());
        }
    });
}

/// The rate holds each direction back, and neither the other direction nor an error.
pub fn rate(form: &'static Form) {
    within(60, || {
        let rate = NonZeroU64::new(1 << 20).expect("not zero");
        let mut options = RelayOptions::new();
        options.rate(rate);
        for nets in NETS {
            let mut rig = Rig::start(form, &options, nets);
            let began = Instant::now();
            pass(&mut rig.a, &mut rig.b, 600_000);
            // What may go ahead: a tenth of a second's worth, twice.
            let least = Duration::from_secs_f64((600_000.0 - 220_000.0) / rate.get() as f64);
            let took = began.elapsed();
            assert!(took >= least, "{}: {took:?}", rig.case);
            rig.a.mouth.end();
            rig.b.mouth.end();
            rig.relay
                .join()
                .unwrap_or_else(|e| panic!("{}: {e}", rig.case));
        }
        // A pause of hours is neither idleness nor in the way of an error.
        let mut options = RelayOptions::new();
        options.rate(NonZeroU64::MIN).idle(Duration::from_secs(1));
        let mut rig = Rig::start(form, &options, (Net::Unix, Net::Tcp));
        rig.a.mouth.send(100_000).expect("sent");
        rig.b.ear.expect(4096);
        thread::sleep(Duration::from_millis(1500));
        assert!(!rig.relay.is_over(), "{}: idle", rig.case);
        let gone = rig.b.reset();
        let error = rig.relay.join().expect_err(&rig.case);
        assert_eq!(error.direction(), Direction::BToA, "{}: {error}", rig.case);
        let lost = Lost { a: false, b: true };
        judge(
            &rig.case,
            error.report(),
            (&rig.a.sums(), &gone),
            &rig.ends,
            lost,
        );
    });
}
