//! A transfer and a relay in an event loop: a step never waits and moves at most 2 MiB, the side that
//! it names is the one to wait for, and under edge-triggered epoll(7) no wake-up is lost.
// epoll(7) has no safe wrapper among the dependencies, and splice(2) stands in front of libc's here.
#![allow(unsafe_code)]

mod common;
#[path = "event_loop/epoll.rs"]
mod epoll;
#[path = "streams/lane.rs"]
mod lane;
#[path = "event_loop/race.rs"]
mod race;

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use zcio::relay::{RelayOptions, RelayStatus, Wait};
use zcio::{Side, Status};

use common::{make, within};
use epoll::Epoll;
use lane::{KINDS, Kind, Lane, STREAMS, by, case, engines};

/// The most that one step may move between streams.
const FAIR: usize = 2 << 20;

/// Several times that, and any buffer.
const TOTAL: u64 = 9 << 20;

/// As much as a socket takes, and then some, by each mechanism: a step stays bounded, and comes back
/// with nobody at the other end.
#[test]
fn a_step_neither_waits_nor_moves_more_than_its_share() {
    within(60, |pulse| {
        for (from, to) in KINDS.iter().flat_map(|from| STREAMS.map(|to| (*from, to))) {
            for engine in engines(from, to) {
                let case = case(from, to, engine);
                pulse.at(&case);
                let mut lane = Lane::new(from, to, TOTAL).nonblocking();
                for fd in [&lane.dst, lane.sink.as_ref().expect("a stream")] {
                    // As large as a privileged server could have them.
                    let _ = setsockopt(fd, sockopt::SndBufForce, &(16 << 20));
                    let _ = setsockopt(fd, sockopt::RcvBufForce, &(16 << 20));
                }
                let (src, dst) = lane.ends();
                let mut transfer = by(engine).start(src, dst, TOTAL).expect(&case);
                let mut most = 0;
                while transfer.delivered() < TOTAL {
                    lane.feed(128 << 10, 64, TOTAL);
                    match transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}")) {
                        Status::Moved(bytes) => most = most.max(bytes.get()),
                        Status::Blocked(_) => drop(lane.take(1 << 20)),
                        Status::Finished(end) => panic!("{case}: {end:?}"),
                    }
                }
                println!("{case}: at most {most} a step");
                assert!(most <= FAIR, "{case}: {most} bytes at once");
                drop(transfer);
                lane.end();
                lane.settle(&case, TOTAL, &[]);
            }
        }
    });
}

/// Both other ends stall and go on at random, on threads of their own. The loop waits for an edge of
/// the side that was named, and of no other; ten seconds without one are a lost wake-up.
#[test]
fn edges_are_enough_for_a_transfer() {
    within(120, |pulse| {
        for (from, to) in KINDS.iter().flat_map(|from| STREAMS.map(|to| (*from, to))) {
            for engine in engines(from, to) {
                let case = case(from, to, engine);
                pulse.at(&case);
                transfer_by_edges(&case, Lane::new(from, to, TOTAL).nonblocking(), engine);
            }
        }
    });
}

fn transfer_by_edges(case: &str, mut lane: Lane, engine: Option<zcio::Backend>) {
    let (src, dst) = lane.ends();
    let (feed, sink) = (lane.feed.take(), lane.sink.take());
    let feed = feed.map(|feed| feeding(feed, lane.data));
    let sink = sink.map(|sink| draining(sink, lane.data));
    let epoll = Epoll::new();
    // A file is always ready, and cannot be waited for.
    if feed.is_some() {
        epoll.add(&src, Side::Source as u64);
    }
    epoll.add(&dst, Side::Destination as u64);
    let mut transfer = by(engine).start(src, dst, u64::MAX).expect(case);
    let mut awaited = None;
    loop {
        match transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}")) {
            Status::Moved(_) => {}
            Status::Finished(_) => break,
            Status::Blocked(side) => {
                awaited = Some(side);
                while awaited.is_some() {
                    let edges = epoll.wait(10_000);
                    assert!(!edges.is_empty(), "{case}: no edge of the {side}");
                    if edges.iter().any(|edge| edge.token == side as u64) {
                        awaited = None;
                    }
                }
            }
        }
    }
    assert_eq!(awaited, None);
    assert_eq!(transfer.delivered(), TOTAL, "{case}");
    drop((transfer, lane, epoll));
    let fed = feed.map_or(TOTAL, |feed| feed.join().expect("fed"));
    let drained = sink.map_or(TOTAL, |sink| sink.join().expect("drained"));
    assert_eq!((fed, drained), (TOTAL, TOTAL), "{case}");
}

/// A pause of some microseconds now and then, and a length.
fn whim(state: &mut u64) -> usize {
    *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
    let draw = (*state >> 33) as usize;
    if draw % 16 == 0 {
        thread::sleep(Duration::from_micros((draw >> 8) as u64 % 300));
    }
    1 + (draw >> 4) % [100, 3_000, 70_000, 200_000][draw % 4]
}

fn feeding(feed: OwnedFd, data: common::Data) -> thread::JoinHandle<u64> {
    make::set_nonblocking(&feed, false);
    thread::spawn(move || {
        let (mut at, mut state) = (0, 1);
        while at < TOTAL {
            let len = (whim(&mut state) as u64).min(TOTAL - at) as usize;
            at += nix::unistd::write(&feed, &data.bytes(at, len)).expect("a reader") as u64;
        }
        at
    })
}

fn draining(sink: OwnedFd, data: common::Data) -> thread::JoinHandle<u64> {
    make::set_nonblocking(&sink, false);
    thread::spawn(move || {
        let (mut at, mut state, mut buf) = (0, 2, vec![0; 200_000]);
        loop {
            let len = whim(&mut state).min(buf.len());
            let n = nix::unistd::read(&sink, &mut buf[..len]).expect("a writer");
            assert_eq!(data.check(at, &buf[..n]), Ok(()), "drained");
            at += n as u64;
            if n == 0 {
                return at;
            }
        }
    })
}

/// The same for a relay: each direction is let on by an edge of what it waits for.
#[test]
fn edges_are_enough_for_a_relay() {
    within(120, |pulse| {
        for (one, other) in [
            (Kind::Tcp, Kind::Tcp),
            (Kind::Tcp, Kind::Unix),
            (Kind::Unix, Kind::Unix),
        ] {
            let case = format!("{one:?} and {other:?}");
            pulse.at(&case);
            relay_by_edges(&case, one, other);
        }
    });
}

fn relay_by_edges(case: &str, one: Kind, other: Kind) {
    let pair = |kind: Kind| -> (OwnedFd, OwnedFd) {
        match kind {
            Kind::Tcp => {
                let (ours, theirs) = make::tcp();
                (ours.into(), theirs.into())
            }
            _ => {
                let (ours, theirs) = make::unix();
                (ours.into(), theirs.into())
            }
        }
    };
    let ((a, a_peer), (b, b_peer)) = (pair(one), pair(other));
    let epoll = Epoll::new();
    for (token, fd) in [&a, &b].into_iter().enumerate() {
        make::set_nonblocking(fd, true);
        epoll.add(fd, token as u64);
    }
    let talk = |peer: OwnedFd, says: u64, hears: u64| {
        let again = peer.try_clone().expect("dup(2)");
        let feed = thread::spawn(move || {
            let fed = feeding(again.try_clone().expect("dup(2)"), common::Data::new(says)).join();
            nix::sys::socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(&again),
                nix::sys::socket::Shutdown::Write,
            )
            .expect("shutdown(2)");
            fed.expect("fed")
        });
        (feed, draining(peer, common::Data::new(hears)))
    };
    let (a_talk, b_talk) = (talk(a_peer, 1, 2), talk(b_peer, 2, 1));
    let mut relay = RelayOptions::new().start(a, b).expect("two sockets");
    loop {
        match relay.advance().unwrap_or_else(|e| panic!("{case}: {e}")) {
            RelayStatus::Moved => {}
            RelayStatus::Finished => break,
            RelayStatus::Blocked { a, b } => {
                let awaited = |wait: Wait, edge: &epoll::Edge| {
                    (wait.readable && edge.readable) || (wait.writable && edge.writable)
                };
                let mut woken = false;
                while !woken {
                    let edges = epoll.wait(10_000);
                    assert!(!edges.is_empty(), "{case}: no edge of {a:?} or {b:?}");
                    woken = edges
                        .iter()
                        .any(|edge| awaited([a, b][edge.token as usize], edge));
                }
            }
        }
    }
    let report = relay.into_report();
    assert_eq!(
        (report.a_to_b.bytes, report.b_to_a.bytes),
        (TOTAL, TOTAL),
        "{case}"
    );
    for (feed, drain) in [a_talk, b_talk] {
        assert_eq!(feed.join().expect("fed"), TOTAL, "{case}");
        assert_eq!(drain.join().expect("drained"), TOTAL, "{case}");
    }
}

/// Nothing to do: no processor time.
#[test]
fn an_idle_relay_makes_no_calls() {
    let (a, _a_peer) = make::unix();
    let (b, _b_peer) = make::unix();
    for fd in [a.as_fd(), b.as_fd()] {
        make::set_nonblocking(fd, true);
    }
    let epoll = Epoll::new();
    epoll.add(&a, 0);
    epoll.add(&b, 1);
    let mut relay = RelayOptions::new().start(&a, &b).expect("two sockets");
    let (began, mut rounds) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(300) {
        assert!(matches!(relay.advance(), Ok(RelayStatus::Blocked { .. })));
        rounds += 1;
        epoll.wait(100);
    }
    // The first wait tells that both are writable, which is news once.
    assert!(rounds <= 5, "{rounds} rounds in 300 ms");
}
