//! A storm of real signals (B22, B58): a timer at 1 kHz or more interrupts the moving thread, by a handler
//! without SA_RESTART, while every kind of pair waits in its calls.
// A timer that signals one thread, and its handler, have no safe maker among the dependencies.
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use zcio::{Backend, End, Message, Side, Status, TransferOptions, fan_out};

use crate::common::{make, within};
use crate::lane::{KINDS, Kind, Lane, by, case, engines};
use crate::tended::Tended;

/// Signals that were handled so far.
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn handle(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// A signal to this thread every so often, as long as it lives.
struct Storm(libc::timer_t);

impl Storm {
    fn new(every: Duration) -> Self {
        // SAFETY: a sigaction is integers and pointers, for which zero is a value: no flag, no
        // SA_RESTART above all.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as extern "C" fn(libc::c_int) as usize;
        // SAFETY: `action` is a whole sigaction; the handler does nothing but count.
        let set =
            unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        // SAFETY: as for the sigaction.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGUSR1;
        // SAFETY: takes nothing.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers lead to values that outlive the call.
        let made =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        assert_eq!(made, 0);
        let time = libc::timespec {
            tv_sec: 0,
            tv_nsec: every.as_nanos() as _,
        };
        let every = libc::itimerspec {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: the timer was made above; the old value is not asked for.
        let started =
            unsafe { libc::timer_settime(timer, 0, &raw const every, std::ptr::null_mut()) };
        assert_eq!(started, 0);
        Self(timer)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        // SAFETY: made by `new`, deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

const TOTAL: u64 = 2 << 20;

#[test]
fn a_storm_of_signals_loses_nothing() {
    within(30, |pulse| {
        let mut least = u64::MAX;
        for (from, to) in KINDS.iter().flat_map(|from| KINDS.map(|to| (*from, to))) {
            for engine in engines(from, to) {
                for nonblocking in [false, true] {
                    let case = format!("{}, {nonblocking}", case(from, to, engine));
                    pulse.at(&case);
                    let handled = storm(&case, from, to, engine, nonblocking);
                    if (from, to) != (Kind::File, Kind::File) {
                        least = least.min(handled);
                    }
                }
            }
        }
        println!("at least {least} signals during each transfer with a stream");
        assert!(least >= 4, "the storm did not reach the transfers");
    });
}

/// The signals that were handled during the transfer.
fn storm(case: &str, from: Kind, to: Kind, engine: Option<Backend>, nonblocking: bool) -> u64 {
    let mut lane = Lane::new(from, to, TOTAL);
    if nonblocking {
        lane = lane.nonblocking();
    }
    // The other ends move only when a signal has come since: so the transfer waits, and is
    // interrupted, each time.
    let over = Arc::new(AtomicBool::new(false));
    let gate = {
        let over = Arc::clone(&over);
        move || {
            let seen = HANDLED.load(Ordering::SeqCst);
            while HANDLED.load(Ordering::SeqCst) == seen && !over.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
    };
    let tended = Tended::new(lane, TOTAL, gate);
    let before = HANDLED.load(Ordering::SeqCst);
    let storm = Storm::new(Duration::from_millis(1));
    let result = by(engine).transfer(&tended.lane.src, &tended.lane.dst, TOTAL);
    drop(storm);
    let handled = HANDLED.load(Ordering::SeqCst) - before;
    over.store(true, Ordering::SeqCst);
    let report = result.unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(report.bytes, TOTAL, "{case}");
    assert_eq!(report.end, End::Complete, "{case}");
    tended.settle(case, TOTAL, &[]);
    handled
}

/// Every way to move bytes from or to a stream.
fn ways() -> impl Iterator<Item = TransferOptions> {
    let backends = [Backend::Splice, Backend::Sendfile, Backend::ReadWrite];
    let forced = backends.map(|backend| TransferOptions::new().backend(backend).clone());
    [TransferOptions::new()].into_iter().chain(forced)
}

/// What a blocking socket may wait for at most, as its owner has set it.
fn limit() -> TimeVal {
    TimeVal::milliseconds(150)
}

/// The kernel begins a socket's time limit anew with each call, and each signal makes for one.
#[test]
fn a_sockets_own_time_limit_is_not_stretched_by_signals() {
    within(10, |pulse| {
        let storm = Storm::new(Duration::from_millis(20));
        let timed_out = |error: &zcio::Error, side, case: &str| {
            let kind = error.io_error().map(io::Error::kind);
            assert_eq!(kind, Some(io::ErrorKind::TimedOut), "{case}: {error}");
            assert_eq!(error.side(), Some(side), "{case}: {error}");
        };
        let sockets: [fn() -> (OwnedFd, OwnedFd); 2] = [
            || {
                let (near, far) = make::tcp();
                (near.into(), far.into())
            },
            || {
                let (near, far) = make::unix();
                (near.into(), far.into())
            },
        ];
        for (i, socket) in sockets.into_iter().enumerate() {
            for (j, options) in ways().enumerate() {
                for to_pipe in [false, true] {
                    let case = format!("from socket {i} by {j}, to a pipe: {to_pipe}");
                    pulse.at(&case);
                    let ((src, _silent), (_reader, writer)) = (socket(), make::pipe());
                    setsockopt(&src, sockopt::ReceiveTimeout, &limit()).expect("SO_RCVTIMEO");
                    let dst = if to_pipe {
                        writer
                    } else {
                        make::disk_file().into()
                    };
                    match options.transfer(&src, &dst, u64::MAX) {
                        Err(error) if error.kind() == zcio::ErrorKind::Unfit => continue,
                        other => timed_out(&other.expect_err(&case), Side::Source, &case),
                    }
                    let mut transfer = options.start(&src, &dst, u64::MAX).expect(&case);
                    let status = transfer.advance().expect(&case);
                    assert_eq!(status, Status::Blocked(Side::Source), "{case}");
                }
                let case = format!("to socket {i} by {j}");
                pulse.at(&case);
                let (dst, _silent) = socket();
                setsockopt(&dst, sockopt::SendTimeout, &limit()).expect("SO_SNDTIMEO");
                let src = make::memfd();
                src.set_len(64 << 20).expect("ftruncate(2)");
                let error = options.transfer(&src, &dst, u64::MAX).expect_err(&case);
                timed_out(&error, Side::Destination, &case);
            }
            let case = format!("a message to socket {i}");
            pulse.at(&case);
            let (dst, _silent) = socket();
            setsockopt(&dst, sockopt::SendTimeout, &limit()).expect("SO_SNDTIMEO");
            let message = Message::new().bytes(vec![0; 64 << 20]);
            timed_out(
                &message.send(&dst).expect_err(&case),
                Side::Destination,
                &case,
            );
        }
        drop(storm);
    });
}

/// However many come while there is something to wait for, they are signals.
#[test]
fn thousands_of_signals_are_no_error() {
    within(20, |pulse| {
        let storm = Storm::new(Duration::from_micros(50));
        // Feeds once so many have come.
        let later = |mut far: std::fs::File| {
            let before = HANDLED.load(Ordering::SeqCst);
            thread::spawn(move || {
                while HANDLED.load(Ordering::SeqCst) < before + 2500 {
                    thread::sleep(Duration::from_millis(1));
                }
                far.write_all(b"at last").expect("a reader");
            })
        };
        let streams: [fn() -> (OwnedFd, OwnedFd); 3] = [
            make::pipe,
            || {
                let (near, far) = make::tcp();
                (near.into(), far.into())
            },
            || {
                let (near, far) = make::unix();
                (near.into(), far.into())
            },
        ];
        for (i, stream) in streams.into_iter().enumerate() {
            for (j, options) in ways().enumerate() {
                for limited in if i == 0 { &[false][..] } else { &[false, true] } {
                    let case = format!("from stream {i} by {j}, limited {limited}");
                    pulse.at(&case);
                    let ((src, far), (_reader, dst)) = (stream(), make::pipe());
                    if *limited {
                        // Longer than all of this takes.
                        let limit = TimeVal::seconds(600);
                        let _ = setsockopt(&src, sockopt::ReceiveTimeout, &limit);
                    }
                    let fed = later(far.into());
                    match options.transfer(&src, &dst, 7) {
                        Ok(report) => assert_eq!(report.bytes, 7, "{case}"),
                        Err(e) => assert_eq!(e.kind(), zcio::ErrorKind::Unfit, "{case}: {e}"),
                    }
                    fed.join().expect("no panic");
                }
            }
            pulse.at(format!("fan-out from stream {i}"));
            let ((src, far), dst) = (stream(), make::disk_file());
            let fed = later(far.into());
            let report = fan_out(src.as_fd(), [&dst], 7).expect("a stream");
            assert_eq!(report.branches[0].bytes, 7);
            fed.join().expect("no panic");
        }
        drop(storm);
    });
}
