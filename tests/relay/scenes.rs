//! What every form of the relay is held to (B35): half-closes, both directions at once, a slow side,
//! idleness.
#![allow(dead_code, unreachable_pub)]

use std::thread;
use std::time::Duration;

use zcio::relay::{HalfClose, RelayEnd, RelayOptions, RelayReport};

use crate::common::make;
use crate::rig::{Form, Lost, NETS, Net, Peer, Rig, judge, within, writable};

/// Several times a pipe, a buffer, and what both sockets hold.
const MUCH: u64 = 5 << 20;

/// Plays `scene` between each two kinds of socket; the relay must then end by itself.
fn each(form: &'static Form, options: &RelayOptions, scene: fn(&mut Rig)) {
    let options = options.clone();
    within(60, move || {
        for nets in NETS {
            let mut rig = Rig::start(form, &options, nets);
            scene(&mut rig);
            settle(rig, RelayEnd::Closed);
        }
    });
}

/// Waits for the relay's end, takes what has been delivered and not yet received, and judges.
fn settle(mut rig: Rig, end: RelayEnd) -> RelayReport {
    let case = &rig.case;
    let report = rig.relay.join().unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(report.end, end, "{case}");
    let (a, b) = (&mut rig.a, &mut rig.b);
    a.ear.expect(report.b_to_a.bytes - a.ear.received);
    b.ear.expect(report.a_to_b.bytes - b.ear.received);
    judge(
        case,
        &report,
        (&a.sums(), &b.sums()),
        &rig.ends,
        Lost::default(),
    );
    report
}

/// Requests and answers, one after the other, of every size.
pub fn requests_and_answers(form: &'static Form) {
    each(form, &RelayOptions::new(), |rig| {
        for len in [1, 100, 1448, 20_000, 65_536, 100_000, MUCH, 1, 70_000, 3] {
            pass(&mut rig.a, &mut rig.b, len);
            pass(&mut rig.b, &mut rig.a, 2 * len);
        }
        end(&rig.a, &mut rig.b);
        end(&rig.b, &mut rig.a);
    });
}

/// So many bytes from one peer to the other.
fn pass(from: &mut Peer, to: &mut Peer, len: u64) {
    thread::scope(|scope| {
        scope.spawn(|| from.mouth.send(len).expect("sent"));
        to.ear.expect(len);
    });
}

/// An end with nothing before it.
fn end(from: &Peer, to: &mut Peer) {
    from.mouth.end();
    assert_eq!(to.ear.expect_end(), 0);
}

/// Urgent data (B41) in both directions, beside the stream and as a part of it: all that is the
/// stream's arrives while the connection stays, and nobody asks in vain.
pub fn urgent_data(form: &'static Form) {
    within(60, || {
        for (nets, inline) in NETS.iter().flat_map(|nets| [(*nets, false), (*nets, true)]) {
            let mut rig = Rig::start(form, &RelayOptions::new(), nets);
            for (net, end) in [(nets.0, &rig.ends.a), (nets.1, &rig.ends.b)] {
                if inline && net == Net::Tcp {
                    make::set_urgent_inline(end);
                }
            }
            for len in [100_000, 1, MUCH, 100_000, 70_000] {
                pass_with_urgent(&mut rig.a, &mut rig.b, len, inline);
                pass_with_urgent(&mut rig.b, &mut rig.a, len, inline);
            }
            end(&rig.a, &mut rig.b);
            end(&rig.b, &mut rig.a);
            let case = rig.case.clone();
            let report = settle(rig, RelayEnd::Closed);
            let made = report.a_to_b.syscalls + report.b_to_a.syscalls;
            assert!(made < 50_000, "{case}: {made} system calls");
        }
    });
}

/// So many bytes from one peer to the other, then urgent ones where there is such a thing, and as many
/// again.
fn pass_with_urgent(from: &mut Peer, to: &mut Peer, len: u64, inline: bool) {
    let urgent = from.net == Net::Tcp;
    thread::scope(|scope| {
        scope.spawn(|| {
            from.mouth.send(len).expect("sent");
            if urgent {
                from.mouth.send_urgent(inline).expect("sent");
            }
            from.mouth.send(len).expect("sent");
        });
        to.ear.expect(2 * len + u64::from(urgent && inline));
    });
}

/// Both directions at once, each as fast as it goes.
pub fn both_at_once(form: &'static Form) {
    each(form, &RelayOptions::new(), |rig| {
        let (a, b) = (&mut rig.a, &mut rig.b);
        thread::scope(|scope| {
            for (mouth, len) in [(&mut a.mouth, 4 * MUCH), (&mut b.mouth, 3 * MUCH)] {
                scope.spawn(move || {
                    mouth.send(len).expect("sent");
                    mouth.end();
                });
            }
            scope.spawn(|| a.ear.expect_end());
            b.ear.expect_end();
        });
        assert_eq!(a.ear.received, 3 * MUCH, "{}", rig.case);
        assert_eq!(b.ear.received, 4 * MUCH, "{}", rig.case);
    });
}

/// One side ends; everything before its end arrives before it, and the other side goes on talking.
pub fn half_close(form: &'static Form) {
    each(form, &RelayOptions::new(), |rig| {
        one_ends_first(&mut rig.a, &mut rig.b);
    });
    each(form, &RelayOptions::new(), |rig| {
        one_ends_first(&mut rig.b, &mut rig.a);
    });
}

fn one_ends_first(first: &mut Peer, second: &mut Peer) {
    thread::scope(|scope| {
        scope.spawn(|| {
            first.mouth.send(MUCH).expect("sent");
            first.mouth.end();
        });
        // Slowly at first: the end is there long before all has been drained.
        second.ear.expect(10_000);
        assert_eq!(second.ear.expect_end(), MUCH - 10_000);
    });
    for len in [1, 50_000, MUCH, 7] {
        pass(second, first, len);
    }
    end(second, first);
}

/// An end with nothing before it, both ways.
pub fn empty(form: &'static Form) {
    each(form, &RelayOptions::new(), |rig| {
        end(&rig.b, &mut rig.a);
        end(&rig.a, &mut rig.b);
    });
}

/// A side that does not read stops its own direction, and not the other one.
pub fn one_slow_side(form: &'static Form) {
    each(form, &RelayOptions::new(), |rig| {
        let (a, b) = (&mut rig.a, &mut rig.b);
        thread::scope(|scope| {
            let mouth = &mut a.mouth;
            let sending = scope.spawn(move || {
                mouth.send(4 * MUCH).expect("sent");
                mouth.end();
            });
            let mouth = &mut b.mouth;
            scope.spawn(move || mouth.send(2 * MUCH).expect("sent"));
            a.ear.expect(2 * MUCH);
            assert!(!sending.is_finished(), "{} bytes fit nowhere", 4 * MUCH);
            assert_eq!(b.ear.expect_end(), 4 * MUCH);
        });
        end(b, a);
    });
}

/// With `CloseBoth`, one end is the end of both directions; what was taken is still delivered.
pub fn close_both(form: &'static Form) {
    let mut options = RelayOptions::new();
    options.half_close(HalfClose::CloseBoth);
    each(form, &options, |rig| {
        one_ends_for_both(&mut rig.a, &mut rig.b);
    });
    each(form, &options, |rig| {
        one_ends_for_both(&mut rig.b, &mut rig.a);
    });
}

fn one_ends_for_both(first: &mut Peer, second: &mut Peer) {
    pass(second, first, 1000);
    thread::scope(|scope| {
        scope.spawn(|| {
            first.mouth.send(MUCH).expect("sent");
            first.mouth.end();
        });
        assert_eq!(second.ear.expect_end(), MUCH);
    });
    // The second has said nothing more and has not ended, and yet:
    assert_eq!(first.ear.expect_end(), 0);
}

/// With `CloseBoth` and the other direction stuck in the middle: what was taken of it is delivered,
/// what was not stays where it is.
pub fn close_both_in_the_middle(form: &'static Form) {
    let mut options = RelayOptions::new();
    options.half_close(HalfClose::CloseBoth);
    each(form, &options, |rig| {
        let (a, b) = (&mut rig.a, &mut rig.b);
        // Each byte of the second is under way somewhere when the first ends.
        make::set_nonblocking(&b.ear.fd, true);
        b.mouth.send(8 * MUCH).expect("sent");
        assert!(b.mouth.sent < 8 * MUCH);
        make::set_nonblocking(&b.ear.fd, false);
        a.mouth.send(10).expect("sent");
        a.mouth.end();
        b.ear.expect(10);
        assert_eq!(b.ear.expect_end(), 0);
        assert!(a.ear.expect_end() <= b.mouth.sent);
    });
}

/// With `CloseBoth`, a peer that goes on talking still gets all that was delivered to it: no RST takes
/// it away.
pub fn close_both_to_one_who_talks(form: &'static Form) {
    let mut options = RelayOptions::new();
    options.half_close(HalfClose::CloseBoth);
    each(form, &options, |rig| {
        let (a, b) = (&mut rig.a, &mut rig.b);
        // More than its window takes before it listens, and less than the relay's socket does.
        b.mouth.send(100_000).expect("sent");
        b.mouth.end();
        while !rig.relay.is_over() {
            thread::sleep(Duration::from_millis(1));
        }
        make::set_nonblocking(&a.ear.fd, true);
        for _ in 0..20 {
            a.mouth.send(1000).expect("the connection stands");
            thread::sleep(Duration::from_millis(1));
        }
        make::set_nonblocking(&a.ear.fd, false);
        assert_eq!(a.ear.expect_end(), 100_000);
    });
}

/// Nothing moves for a while: it ends. Bytes that nobody takes are idle as well, and are handed back.
pub fn idle(form: &'static Form) {
    within(60, || {
        let mut options = RelayOptions::new();
        options.idle(Duration::from_millis(500));
        for (nets, much) in NETS.iter().flat_map(|nets| [(*nets, 0), (*nets, 8 * MUCH)]) {
            let mut rig = Rig::start(form, &options, nets);
            make::set_nonblocking(&rig.a.ear.fd, true);
            while !rig.relay.is_over() {
                // It fails where the relay has shut its socket down.
                let _ = rig.a.mouth.send(much - rig.a.mouth.sent);
                writable(&rig.a.ear.fd, 10);
            }
            let (case, sent) = (rig.case.clone(), rig.a.mouth.sent);
            let report = settle(rig, RelayEnd::Idle);
            assert_eq!(report.a_to_b.bytes > 0, much > 0, "{case}");
            let held = report.a_to_b.undelivered.len();
            println!(
                "{case}: {sent} sent, {} delivered, {held} handed back",
                report.a_to_b.bytes
            );
        }
    });
}

/// What moves now and then is not idle, whichever way it moves.
pub fn not_idle(form: &'static Form) {
    let mut options = RelayOptions::new();
    options.idle(Duration::from_millis(1500));
    each(form, &options, |rig| {
        for _ in 0..20 {
            pass(&mut rig.b, &mut rig.a, 1);
            thread::sleep(Duration::from_millis(100));
        }
        end(&rig.a, &mut rig.b);
        end(&rig.b, &mut rig.a);
    });
}
