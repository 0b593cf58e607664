//! Something on a socket's error queue (B42), which nobody reads: a transmit time stamp, a notification
//! of MSG_ZEROCOPY. poll(2) says POLLERR as long as it lies there; that is neither bytes nor room.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use zcio::{Backend, End, Side, Status, Transfer};

use crate::common::{Pulse, make, skipped, within};
use crate::lane::{KINDS, Kind, Lane, by, case, engines};

const TOTAL: u64 = 300_000;

/// A lane with something on the error queue of one side, and the other end of it where it was.
fn lane(at: Side, from: Kind, to: Kind) -> Option<Lane> {
    let mut lane = Lane::new(from, to, TOTAL);
    let (ours, theirs) = match make::tcp_with_error_queue() {
        Ok((ours, theirs)) => (OwnedFd::from(ours), OwnedFd::from(theirs)),
        Err(e) => {
            skipped("an error queue", e);
            return None;
        }
    };
    make::set_nonblocking(&theirs, true);
    match at {
        Side::Source => (lane.src, lane.feed) = (ours, Some(theirs)),
        Side::Destination => {
            setsockopt(&theirs, sockopt::RcvBuf, &(64 << 10)).expect("SO_RCVBUF");
            setsockopt(&ours, sockopt::SndBuf, &(64 << 10)).expect("SO_SNDBUF");
            (lane.dst, lane.sink) = (ours, Some(theirs));
        }
    }
    Some(lane)
}

/// Whether a side is ready for what a transfer wants of it; poll(2) alone does not say.
fn is_ready(fd: impl AsFd, events: PollFlags, ms: u16) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    poll(&mut fds, PollTimeout::from(ms)).expect("poll(2)");
    let told = fds[0].revents().expect("known flags");
    told.intersects(events | PollFlags::POLLHUP)
}

/// Advances until it blocks, or ends: a side that is named is not ready.
fn go_on(case: &str, transfer: &mut Transfer<OwnedFd, OwnedFd>) -> Status {
    let mut named = None;
    loop {
        match transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}")) {
            Status::Moved(_) => named = None,
            Status::Blocked(side) => {
                let ready = match side {
                    Side::Source => is_ready(transfer.src(), PollFlags::POLLIN, 0),
                    Side::Destination => is_ready(transfer.dst(), PollFlags::POLLOUT, 0),
                };
                if !ready {
                    return Status::Blocked(side);
                }
                assert_ne!(named, Some(side), "{case}: the {side} is ready");
                named = Some(side);
            }
            finished => return finished,
        }
    }
}

fn each(at: Side, pulse: &Pulse, test: impl Fn(&str, Lane, Option<Backend>)) {
    for other in KINDS {
        let (from, to) = match at {
            Side::Source => (Kind::Tcp, other),
            Side::Destination => (other, Kind::Tcp),
        };
        for engine in engines(from, to) {
            let case = format!("{}, an error queue at the {at}", case(from, to, engine));
            pulse.at(&case);
            if let Some(lane) = lane(at, from, to) {
                test(&case, lane, engine);
            }
        }
    }
}

/// An empty source is what blocks, how often it is asked; and what comes goes on.
#[test]
fn an_error_queue_is_no_byte_to_read() {
    within(20, |pulse| {
        each(Side::Source, pulse, |case, lane, engine| {
            let mut lane = lane.nonblocking();
            let (src, dst) = lane.ends();
            let mut transfer = by(engine).start(src, dst, u64::MAX).expect(case);
            for _ in 0..300 {
                let status = transfer.advance().expect(case);
                assert_eq!(status, Status::Blocked(Side::Source), "{case}");
            }
            lane.fed = 0;
            while lane.fed < TOTAL {
                lane.feed(10_000, 100, TOTAL);
                lane.take(1 << 20);
                go_on(case, &mut transfer);
            }
            lane.end();
            loop {
                match go_on(case, &mut transfer) {
                    Status::Finished(end) => break assert_eq!(end, End::SourceEnded, "{case}"),
                    Status::Blocked(Side::Source) => {
                        assert!(is_ready(&lane.src, PollFlags::POLLIN, 10_000), "{case}");
                    }
                    _ => drop(lane.take(1 << 20)),
                }
            }
            assert_eq!(transfer.delivered(), TOTAL, "{case}");
            drop(transfer);
            lane.settle(case, TOTAL, &[]);
        });
    });
}

/// A full destination is what blocks, how often it is asked; and when there is room, it goes on.
#[test]
fn an_error_queue_is_no_room_to_write() {
    within(20, |pulse| {
        each(Side::Destination, pulse, |case, lane, engine| {
            let mut lane = lane.nonblocking();
            let (src, dst) = lane.ends();
            let mut transfer = by(engine).start(src, dst, u64::MAX).expect(case);
            let mut blocked = 0;
            let end = loop {
                lane.feed(10_000, 100, TOTAL);
                if lane.fed == TOTAL {
                    lane.end();
                }
                match go_on(case, &mut transfer) {
                    Status::Finished(end) => break end,
                    // What has been fed may be on its way.
                    Status::Blocked(Side::Source) => {
                        is_ready(&lane.src, PollFlags::POLLIN, 1);
                    }
                    _ => {
                        blocked += 1;
                        for _ in 0..300 {
                            let status = transfer.advance().expect(case);
                            assert_eq!(status, Status::Blocked(Side::Destination), "{case}");
                        }
                        while lane.take(20_000) == 0 {}
                    }
                }
            };
            assert_eq!(
                (end, transfer.delivered()),
                (End::SourceEnded, TOTAL),
                "{case}"
            );
            assert!(blocked > 0, "{case}: it never was full");
            drop(transfer);
            lane.settle(case, TOTAL, &[]);
        });
    });
}

/// The blocking form waits for either side without using the processor, until its deadline.
#[test]
fn an_error_queue_costs_no_processor_time() {
    const PATIENCE: Duration = Duration::from_millis(300);
    within(20, |pulse| {
        for at in [Side::Source, Side::Destination] {
            each(at, pulse, |case, lane, engine| {
                let lane = lane.nonblocking();
                if at == Side::Destination {
                    fill(&lane.dst);
                }
                let (before, start) = (processor_time(), Instant::now());
                let mut options = by(engine);
                options.deadline(start + PATIENCE);
                let error = options
                    .transfer(&lane.src, &lane.dst, TOTAL)
                    .expect_err(case);
                let (spent, passed) = (processor_time() - before, start.elapsed());
                let kind = error.io_error().expect(case).kind();
                assert_eq!(kind, std::io::ErrorKind::TimedOut, "{case}: {error}");
                assert_eq!(error.delivered(), 0, "{case}");
                assert!(
                    spent * 20 < passed,
                    "{case}: {spent:?} of {passed:?} on the processor"
                );
            });
        }
    });
}

/// Until it takes nothing more.
fn fill(fd: &OwnedFd) {
    let mut full = 0;
    while full < 3 {
        match nix::unistd::write(fd, &[0; 10_000]) {
            Ok(_) => full = 0,
            // What is on its way may make room yet.
            Err(nix::errno::Errno::EAGAIN) => {
                full += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => panic!("filling: {e}"),
        }
    }
}

/// Of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.expect("a clock").into()
}
