//! SIGPIPE at its default action (B21): a transfer to a closed peer is an error, and the process
//! lives. Each test runs in a process of its own, because a signal's action is the process's.
// Signal actions and masks have no safe calls among the dependencies that leave the rest alone.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use zcio::{Side, Status};

use crate::child;
use crate::lane::{KINDS, Kind, Lane, STREAMS, by, case, engines};

/// Several times a pipe and the buffer.
const TOTAL: u64 = 1 << 20;

fn default_action() {
    // SAFETY: the default action runs no code of ours.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    assert_ne!(before, libc::SIG_ERR);
}

fn mask() -> SigSet {
    let mut now = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, None, Some(&mut now)).expect("the mask");
    now
}

fn is_pending() -> bool {
    let mut set = SigSet::empty();
    // SAFETY: the set is writable for one signal set.
    let result = unsafe { libc::sigpending(std::ptr::from_mut(&mut set).cast()) };
    assert_eq!(result, 0);
    set.contains(Signal::SIGPIPE)
}

/// Transfers by every backend to every kind of stream whose reader is gone.
fn to_closed_peers() {
    for (from, to) in KINDS.iter().flat_map(|from| STREAMS.map(|to| (*from, to))) {
        for engine in engines(from, to) {
            let case = case(from, to, engine);
            let mut lane = Lane::new(from, to, TOTAL).nonblocking();
            lane.feed(10_000, 10, TOTAL);
            if to == Kind::Tcp {
                // A peer that is gone resets first, without a signal; this end shut raises it.
                let number = lane.dst.as_raw_fd();
                nix::sys::socket::shutdown(number, nix::sys::socket::Shutdown::Write)
                    .expect("shutdown(2)");
            } else {
                lane.sink = None;
            }
            let (src, dst) = lane.ends();
            let mut transfer = by(engine).start(src, dst, TOTAL).expect(&case);
            let error = loop {
                match transfer.advance() {
                    Ok(Status::Blocked(side)) => assert!(lane.is_ready(side, 10_000), "{case}"),
                    Ok(status) => panic!("{case}: {status:?}"),
                    Err(error) => break error,
                }
            };
            let raw = error.io_error().and_then(std::io::Error::raw_os_error);
            assert_eq!(raw, Some(libc::EPIPE), "{case}: {error}");
            assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
            assert_eq!(error.delivered(), 0, "{case}: {error}");
            drop(transfer);
            lane.settle_source(&case, 0, error.undelivered());
        }
    }
}

#[test]
fn the_default_action_kills_nobody() {
    child::alone("sigpipe::the_default_action_kills_nobody", || {
        default_action();
        let before = mask();
        to_closed_peers();
        assert_eq!(mask(), before, "the mask is as before");
        assert!(!is_pending(), "nothing is left pending");
    });
}

#[test]
fn a_signal_that_was_pending_stays_pending() {
    child::alone("sigpipe::a_signal_that_was_pending_stays_pending", || {
        default_action();
        let mut sigpipe = SigSet::empty();
        sigpipe.add(Signal::SIGPIPE);
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&sigpipe), None).expect("the mask");
        let before = mask();
        to_closed_peers();
        assert!(!is_pending(), "what the calls raised is taken away");
        raise(Signal::SIGPIPE).expect("raise(3)");
        assert!(is_pending());
        to_closed_peers();
        assert!(is_pending(), "the caller's own stays");
        assert_eq!(mask(), before, "the mask is as before");
        assert_eq!(sigpipe.wait().expect("sigwait(3)"), Signal::SIGPIPE);
    });
}

/// Counts what arrives.
static ARRIVED: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: libc::c_int) {
    ARRIVED.fetch_add(1, Ordering::SeqCst);
}

/// A SIGPIPE that somebody else sends to the thread while a call is under way is not the call's: it
/// arrives, and once.
#[test]
fn a_signal_that_somebody_else_sends_arrives() {
    let name = "sigpipe::a_signal_that_somebody_else_sends_arrives";
    child::alone(name, || {
        // SAFETY: the handler only adds to an atomic number.
        let before =
            unsafe { libc::signal(libc::SIGPIPE, count as *const () as libc::sighandler_t) };
        assert_ne!(before, libc::SIG_ERR);
        for engine in engines(Kind::File, Kind::Pipe) {
            let case = case(Kind::File, Kind::Pipe, engine);
            let lane = Lane::new(Kind::File, Kind::Pipe, TOTAL);
            ARRIVED.store(0, Ordering::SeqCst);
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let transfer = scope.spawn(|| {
                    // SAFETY: takes nothing and cannot fail.
                    tell.send(unsafe { libc::pthread_self() }).expect("heard");
                    // It blocks as soon as the pipe is full.
                    by(engine)
                        .transfer(&lane.src, &lane.dst, TOTAL)
                        .expect(&case)
                });
                let thread = told.recv().expect("said");
                let full = std::time::Duration::from_millis(50);
                std::thread::sleep(full);
                // SAFETY: the thread runs until what it waits for below is read.
                assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGPIPE) }, 0);
                std::thread::sleep(full);
                let sink = lane.sink.as_ref().expect("a stream");
                let (mut got, mut buf) = (Vec::new(), vec![0; 1 << 16]);
                while got.len() < TOTAL as usize {
                    match nix::unistd::read(sink, &mut buf) {
                        Ok(n) => got.extend_from_slice(&buf[..n]),
                        Err(nix::errno::Errno::EAGAIN) => std::thread::yield_now(),
                        Err(e) => panic!("{case}: {e}"),
                    }
                }
                assert_eq!(lane.data.check(0, &got), Ok(()), "{case}");
                assert_eq!(transfer.join().expect(&case).bytes, TOTAL, "{case}");
            });
            assert_eq!(ARRIVED.load(Ordering::SeqCst), 1, "{case}");
        }
    });
}

/// The control: without care, one such call ends the process. Else the tests above prove nothing.
#[test]
fn a_bare_call_does_kill() {
    let status = child::outcome("sigpipe::a_bare_call_does_kill", || {
        default_action();
        let mut lane = Lane::new(Kind::File, Kind::Pipe, TOTAL);
        lane.sink = None;
        let result = nix::sys::sendfile::sendfile64(&lane.dst, &lane.src, None, 4096);
        panic!("still alive after {result:?}");
    });
    let signal = status.map(|status| status.signal());
    assert!(
        matches!(signal, None | Some(Some(libc::SIGPIPE))),
        "{signal:?}"
    );
}
