//! Other threads shut, close and cancel while a transfer waits in its call (B23), and nothing is
//! left behind on any way out (B38).

use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{Shutdown, shutdown};
use zcio::{Backend, End, Error, Report, Side, Status};

use crate::common::oracle::is_mapped;
use crate::common::watch::descriptors;
use crate::common::within;
use crate::lane::{KINDS, Kind, Lane, STREAMS, by, case, engines, set_pipe_size, waiting};

/// More than any destination here takes without a reader.
const TOTAL: u64 = 8 << 20;

/// Runs a blocking transfer in a thread, with ends of its own.
fn moving(lane: &Lane, engine: Option<Backend>) -> std::thread::JoinHandle<Result<Report, Error>> {
    let (src, dst): (OwnedFd, OwnedFd) = lane.ends();
    std::thread::spawn(move || by(engine).transfer(&src, &dst, u64::MAX))
}

#[test]
fn shutting_a_destination_ends_the_wait_for_it() {
    within(20, |pulse| {
        for (from, to) in KINDS
            .iter()
            .flat_map(|from| [Kind::Tcp, Kind::Unix].map(|to| (*from, to)))
        {
            for engine in engines(from, to) {
                // By its owner, and by the peer, who closes with bytes unread.
                let feed = |lane: &mut Lane| match from {
                    Kind::Tcp | Kind::Unix => lane.feed(50_000, 1, TOTAL),
                    Kind::File | Kind::Pipe => 0,
                };
                for by_peer in [false, true] {
                    let case = format!("{}, by peer {by_peer}", case(from, to, engine));
                    pulse.at(&case);
                    let mut lane = Lane::new(from, to, TOTAL);
                    if from == Kind::Pipe {
                        // Filled beforehand: splice(2) holds a pipe's lock while it waits for a
                        // blocking socket, and whoever writes to that pipe waits along.
                        set_pipe_size(&lane.src, 1 << 20);
                        while lane.feed(50_000, 1, TOTAL) > 0 {}
                    }
                    let moving = moving(&lane, engine);
                    while lane.sink.as_ref().is_some_and(|sink| waiting(sink) == 0) {
                        std::thread::yield_now();
                        feed(&mut lane);
                    }
                    // Nobody reads: until the source is full itself.
                    while feed(&mut lane) > 0 {}
                    if by_peer {
                        lane.sink = None;
                    } else {
                        let number = lane.dst.as_raw_fd();
                        shutdown(number, Shutdown::Write).expect("shutdown(2)");
                    }
                    // What was not full by then learns of it by the next bytes.
                    while !moving.is_finished() {
                        feed(&mut lane);
                        std::thread::yield_now();
                    }
                    let error = moving.join().expect("no panic").expect_err(&case);
                    let number = error.io_error().and_then(std::io::Error::raw_os_error);
                    let gone = [Some(libc::EPIPE), Some(libc::ECONNRESET)].contains(&number);
                    assert!(gone, "{case}: {error}");
                    assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
                    let delivered = error.delivered();
                    let back = error.into_undelivered();
                    if by_peer {
                        lane.settle_source(&case, delivered, &back);
                    } else {
                        lane.settle(&case, delivered, &back);
                    }
                }
            }
        }
    });
}

#[test]
fn shutting_a_source_ends_the_wait_for_it() {
    const LITTLE: u64 = 30_000;
    within(20, |pulse| {
        for (from, to) in [Kind::Tcp, Kind::Unix]
            .iter()
            .flat_map(|from| KINDS.map(|to| (*from, to)))
        {
            for engine in engines(from, to) {
                let case = case(from, to, engine);
                pulse.at(&case);
                let mut lane = Lane::new(from, to, 0);
                lane.feed(10_000, 3, LITTLE);
                let moving = moving(&lane, engine);
                // All is taken: what comes now is the wait for more.
                while waiting(&lane.src) > 0 {
                    lane.take(LITTLE as usize);
                    std::thread::yield_now();
                }
                shutdown(lane.src.as_raw_fd(), Shutdown::Read).expect("shutdown(2)");
                while !moving.is_finished() {
                    lane.take(LITTLE as usize);
                    std::thread::yield_now();
                }
                let report = moving.join().expect("no panic").expect(&case);
                assert_eq!(
                    (report.bytes, report.end),
                    (LITTLE, End::SourceEnded),
                    "{case}"
                );
                lane.settle(&case, LITTLE, &[]);
            }
        }
    });
}

/// While a call that fills a pipe waits for its source, the kernel keeps the pipe locked: so the
/// wait must be elsewhere, or what has been delivered cannot be read before more comes.
#[test]
fn a_reader_of_the_pipe_does_not_wait_for_the_source() {
    const ROUNDS: u64 = 500;
    within(30, |pulse| {
        for from in [Kind::Tcp, Kind::Unix] {
            for engine in engines(from, Kind::Pipe) {
                let case = case(from, Kind::Pipe, engine);
                pulse.at(&case);
                let mut lane = Lane::new(from, Kind::Pipe, 0);
                let moving = moving(&lane, engine);
                // Each byte is read before there is another one.
                for round in 1..=ROUNDS {
                    assert_eq!(lane.feed(1, 1, ROUNDS), 1, "{case}");
                    while lane.received < round {
                        lane.take(1);
                        std::thread::yield_now();
                    }
                }
                lane.end();
                let report = moving.join().expect("no panic").expect(&case);
                assert_eq!(report.bytes, ROUNDS, "{case}");
                lane.settle(&case, ROUNDS, &[]);
            }
        }
    });
}

/// A way out of a transfer.
#[derive(Clone, Copy, Debug)]
enum Exit {
    End,
    Stop,
    Drop,
    Reclaim,
    Error,
}

#[test]
fn nothing_is_left_behind_on_any_way_out() {
    within(20, |pulse| {
        for (from, to) in KINDS.iter().flat_map(|from| STREAMS.map(|to| (*from, to))) {
            for engine in engines(from, to) {
                for exit in [
                    Exit::End,
                    Exit::Stop,
                    Exit::Drop,
                    Exit::Reclaim,
                    Exit::Error,
                ] {
                    let case = format!("{}, {exit:?}", case(from, to, engine));
                    pulse.at(&case);
                    leave(&case, from, to, engine, exit);
                }
            }
        }
    });
}

fn leave(case: &str, from: Kind, to: Kind, engine: Option<Backend>, exit: Exit) {
    let mut lane = Lane::new(from, to, TOTAL / 4).nonblocking();
    lane.feed(10_000, 100, TOTAL / 4);
    match exit {
        Exit::Error if to == Kind::Pipe => lane.sink = None,
        Exit::Error => shutdown(lane.dst.as_raw_fd(), Shutdown::Write).expect("shutdown(2)"),
        _ => {}
    }
    let before = descriptors();
    {
        let (src, dst) = (&lane.src, &lane.dst);
        match exit {
            Exit::End => {
                let report = by(engine).transfer(src, dst, 5000).expect(case);
                assert_eq!(report.bytes, 5000, "{case}");
            }
            Exit::Stop => {
                let stop = |_| ControlFlow::Break(());
                let mut options = by(engine);
                options.chunk_size(std::num::NonZeroUsize::new(5000).expect("not zero"));
                let report = options
                    .transfer_with(src, dst, TOTAL / 4, stop)
                    .expect(case);
                assert_eq!(report.end, End::Stopped, "{case}");
            }
            Exit::Drop | Exit::Reclaim => {
                let mut transfer = by(engine).start(src, dst, u64::MAX).expect(case);
                while let Status::Moved(_) = transfer.advance().expect(case) {}
                if matches!(exit, Exit::Reclaim) {
                    drop(transfer.reclaim().expect(case));
                    // Still whole, but it holds nothing: no pipe with bytes, no window.
                    assert_eq!(transfer.in_flight(), 0, "{case}");
                }
            }
            Exit::Error => {
                by(engine).transfer(src, dst, u64::MAX).expect_err(case);
            }
        }
    }
    let after = descriptors();
    assert!(after == before, "{case}: {before:?}, then {after:?}");
    assert!(!is_mapped(&lane.src), "{case}: still mapped");
}
