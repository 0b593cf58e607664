//! A storm of real signals (B22): a timer at 1 kHz interrupts the moving thread, by a handler
//! without SA_RESTART, while every kind of pair waits in its calls.
// A timer that signals one thread, and its handler, have no safe maker among the dependencies.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use zcio::{Backend, End};

use crate::common::within;
use crate::lane::{KINDS, Kind, Lane, by, case, engines};
use crate::tended::Tended;

/// Signals that were handled so far.
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn handle(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// A signal to this thread every millisecond, as long as it lives.
struct Storm(libc::timer_t);

impl Storm {
    fn new() -> Self {
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
        let millisecond = libc::timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let every = libc::itimerspec {
            it_interval: millisecond,
            it_value: millisecond,
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
    let storm = Storm::new();
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
