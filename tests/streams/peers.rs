//! The other end goes away (B20): FIN, RST, a side shut for writing. Each error is exact and names
//! the side.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use zcio::{Backend, End, ErrorKind, Side, Status, Transfer};

use crate::common::within;
use crate::lane::{KINDS, Kind, Lane, STREAMS, by, case, engines, waiting};

/// What every stream takes without a reader.
const LITTLE: u64 = 40_000;
const TOTAL: u64 = 4 << 20;

type Owned = Transfer<OwnedFd, OwnedFd>;

/// Advances until it ends, fails or waits.
fn settle_down(transfer: &mut Owned) -> zcio::Result<Status> {
    loop {
        match transfer.advance() {
            Ok(Status::Moved(_)) => {}
            other => return other,
        }
    }
}

fn each_pair(from: &[Kind], to: &[Kind], test: impl Fn(&str, Kind, Kind, Option<Backend>)) {
    for from in from {
        for to in to {
            for engine in engines(*from, *to) {
                test(&case(*from, *to, engine), *from, *to, engine);
            }
        }
    }
}

#[test]
fn a_source_that_is_closed_ends_and_one_that_is_reset_fails() {
    within(20, |pulse| {
        each_pair(&STREAMS, &KINDS, |case, from, to, engine| {
            pulse.at(case);
            let closed = |lane: &mut Lane| lane.end();
            source_goes_away(case, (from, to, engine), closed, Ok(End::SourceEnded));
            let reset = |lane: &mut Lane| {
                let feed = lane.feed.take().expect("a stream");
                match from {
                    // Closed with an answer unread.
                    Kind::Unix => drop(nix::unistd::write(&lane.src, b"unread")),
                    _ => {
                        let at_once = libc::linger {
                            l_onoff: 1,
                            l_linger: 0,
                        };
                        setsockopt(&feed, sockopt::Linger, &at_once).expect("SO_LINGER");
                    }
                }
            };
            if from != Kind::Pipe {
                source_goes_away(case, (from, to, engine), reset, Err(libc::ECONNRESET));
            }
        });
    });
}

/// Moves everything that the source has been given.
fn take_all(case: &str, lane: &mut Lane, transfer: &mut Owned) {
    loop {
        match settle_down(transfer) {
            Ok(Status::Blocked(_)) if transfer.delivered() + transfer.in_flight() == lane.fed => {
                return;
            }
            Ok(Status::Blocked(side)) => {
                lane.take(LITTLE as usize);
                assert!(lane.is_ready(side, 10_000), "{case}: {side}");
            }
            other => panic!("{case}: {other:?}"),
        }
    }
}

fn source_goes_away(
    case: &str,
    (from, to, engine): (Kind, Kind, Option<Backend>),
    go: impl Fn(&mut Lane),
    expected: Result<End, i32>,
) {
    // Once with everything moved by then, once with bytes still on their way.
    for moved_before in [true, false] {
        let mut lane = Lane::new(from, to, 0).nonblocking();
        let (src, dst) = lane.ends();
        let mut transfer = by(engine).start(src, dst, u64::MAX).expect(case);
        while lane.fed < LITTLE {
            lane.feed(1000, 10, LITTLE);
        }
        // A reset takes with it what has not arrived.
        while waiting(&lane.src) < LITTLE as usize {
            std::thread::yield_now();
        }
        if moved_before {
            take_all(case, &mut lane, &mut transfer);
        }
        go(&mut lane);
        let outcome = loop {
            match settle_down(&mut transfer) {
                Ok(Status::Blocked(side)) => {
                    lane.take(LITTLE as usize);
                    assert!(lane.is_ready(side, 10_000), "{case}: {side}");
                }
                other => break other,
            }
        };
        let mut back = bytes::Bytes::new();
        match (outcome, expected) {
            (Ok(Status::Finished(end)), Ok(expected)) => assert_eq!(end, expected, "{case}"),
            (Err(error), Err(number)) => {
                let raw = error.io_error().and_then(std::io::Error::raw_os_error);
                assert_eq!(raw, Some(number), "{case}: {error}");
                assert_eq!(error.kind(), ErrorKind::Io, "{case}: {error}");
                assert_eq!(error.side(), Some(Side::Source), "{case}: {error}");
                assert_eq!(error.delivered(), transfer.delivered(), "{case}: {error}");
                back = error.into_undelivered();
            }
            (outcome, expected) => panic!("{case}: {outcome:?}, expected {expected:?}"),
        }
        let delivered = transfer.delivered();
        assert_eq!(transfer.in_flight(), 0, "{case}");
        drop(transfer);
        lane.settle(case, delivered, &back);
    }
}

#[test]
fn a_destination_that_goes_away_is_named_and_the_rest_stays() {
    within(20, |pulse| {
        each_pair(&KINDS, &STREAMS, |case, from, to, engine| {
            pulse.at(case);
            destination_goes_away(case, (from, to, engine), false, |lane| {
                // With bytes unread, so that a socket resets the connection.
                lane.sink = None;
            });
            if to != Kind::Pipe {
                destination_goes_away(case, (from, to, engine), true, |lane| {
                    shutdown(lane.dst.as_raw_fd(), Shutdown::Write).expect("shutdown(2)");
                });
            }
        });
    });
}

fn destination_goes_away(
    case: &str,
    (from, to, engine): (Kind, Kind, Option<Backend>),
    readable_after: bool,
    go: impl Fn(&mut Lane),
) {
    let mut lane = Lane::new(from, to, TOTAL).nonblocking();
    let (src, dst) = lane.ends();
    let mut transfer = by(engine).start(src, dst, TOTAL).expect(case);
    // Some bytes through, more under way.
    while transfer.delivered() < 100_000 {
        lane.feed(10_000, 10, TOTAL);
        lane.take(5_000);
        let status = transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}"));
        assert!(!matches!(status, Status::Finished(_)), "{case}");
    }
    lane.feed(10_000, 30, TOTAL);
    go(&mut lane);
    let error = loop {
        match settle_down(&mut transfer) {
            Ok(Status::Blocked(side)) => {
                lane.feed(10_000, 10, TOTAL);
                assert!(lane.is_ready(side, 10_000), "{case}: {side}");
            }
            Ok(status) => panic!("{case}: {status:?}"),
            Err(error) => break error,
        }
    };
    let raw = error.io_error().and_then(std::io::Error::raw_os_error);
    assert!(
        matches!(raw, Some(libc::EPIPE | libc::ECONNRESET)),
        "{case}: {error}"
    );
    assert_eq!(error.kind(), ErrorKind::Io, "{case}: {error}");
    assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
    let delivered = transfer.delivered();
    assert_eq!(error.delivered(), delivered, "{case}: {error}");
    assert_eq!(transfer.in_flight(), 0, "{case}: {error}");
    drop(transfer);
    let back = error.into_undelivered();
    if from == Kind::File {
        assert!(back.is_empty(), "{case}: a file rewinds");
    }
    if readable_after {
        lane.settle(case, delivered, &back);
    } else {
        lane.settle_source(case, delivered, &back);
    }
}
