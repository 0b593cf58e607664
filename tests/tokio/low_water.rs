//! A steady stream's `SO_RCVLOWAT` is raised for as long as it is steady: whatever ends that, the option
//! is as it was, and no byte waits for others to come.

use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use zcio::relay::RelayOptions;
use zcio::tokio::drive_relay;

use crate::common::{make, skipped};
use crate::forms::{single, tcp};
use crate::rig::{Net, Peer, pair, within};

/// What the owner of the socket has set.
const OWN: libc::c_int = 3;

/// Several times what makes a stream steady.
const MUCH: u64 = 48 << 20;

/// Longer than any of this takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

const NAME: &str = "a raised low-water mark";
/// Where each wait takes more than a millisecond, as under emulation, no stream is ever steady.
const TOO_SLOW: &str = "no stream is steady here";

fn mark(fd: &OwnedFd) -> libc::c_int {
    let (mut value, mut len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: there is room for one integer.
    let got = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    assert_eq!(got, 0, "SO_RCVLOWAT");
    value
}

fn set_mark(fd: &OwnedFd, value: libc::c_int) {
    // SAFETY: one integer is read.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "SO_RCVLOWAT");
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// A relay's two sockets, the first of them once more, and the two peers.
fn ends() -> (TcpStream, TcpStream, OwnedFd, Peer, Peer) {
    let (a, a_peer) = pair(Net::Tcp);
    let (b, b_peer) = pair(Net::Tcp);
    for fd in [&a, &b] {
        make::set_nonblocking(fd, true);
    }
    set_mark(&a, OWN);
    let again = a.try_clone().expect("dup(2)");
    let (a_peer, b_peer) = (
        Peer::new(Net::Tcp, a_peer, 1, 2),
        Peer::new(Net::Tcp, b_peer, 2, 1),
    );
    (a.into(), b.into(), again, a_peer, b_peer)
}

#[test]
fn a_pause_puts_it_back_and_holds_no_byte() {
    within(60, || {
        let (a, b, watched, mut from, mut to) = ends();
        let relay = thread::spawn(move || {
            single().block_on(async {
                let (a, b) = (tcp(a.into()), tcp(b.into()));
                zcio::tokio::relay(&a, &b).await.expect("two connections")
            })
        });
        for round in 0..3 {
            let mut most = OWN;
            thread::scope(|scope| {
                let sending = scope.spawn(|| from.mouth.send(MUCH).expect("sent"));
                // Slow enough for the relay to have to wait for this side, too.
                for _ in 0..MUCH >> 20 {
                    to.ear.expect(1 << 20);
                    most = most.max(mark(&watched));
                }
                sending.join().expect("sent");
            });
            match most {
                OWN => skipped(NAME, TOO_SLOW),
                raised => assert!(raised >= 128 << 10, "round {round}: at most {raised}"),
            }
            // The end of a run, and what comes after it, far below the mark.
            for size in [5, OWN as u64, 70_000] {
                from.mouth.send(size).expect("sent");
                to.ear.expect(size);
            }
            until("put back after a pause", || mark(&watched) == OWN);
            from.mouth.send(7).expect("sent");
            to.ear.expect(7);
        }
        from.mouth.end();
        to.ear.expect_end();
        to.mouth.end();
        let report = relay.join().expect("no panic");
        assert_eq!(report.a_to_b.bytes, from.mouth.sent);
        assert_eq!(mark(&watched), OWN);
    });
}

#[test]
fn a_future_that_is_dropped_puts_it_back() {
    within(60, || {
        let (a, b, watched, mut from, mut to) = ends();
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let sending = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                from.mouth.send(1 << 20).expect("sent");
            }
            from.mouth.end();
            from.mouth.sent
        });
        let draining = thread::spawn(move || {
            to.ear.expect_end();
            to.mouth.end();
            to.ear.received
        });
        let report = single().block_on(async {
            let (a, b) = (tcp(a.into()), tcp(b.into()));
            let mut relay = RelayOptions::new().start(&a, &b).expect("two sockets");
            for _ in 0..3 {
                let raised = async {
                    while mark(&watched) == OWN {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::select! {
                    end = drive_relay(&mut relay) => panic!("{end:?}"),
                    raised = tokio::time::timeout(PATIENCE, raised) => if raised.is_err() {
                        skipped(NAME, TOO_SLOW);
                    }
                }
                assert_eq!(mark(&watched), OWN, "dropped");
            }
            over.store(true, Ordering::Relaxed);
            // Nothing is lost over the three times.
            drive_relay(&mut relay).await.expect("two connections")
        });
        let sent = sending.join().expect("no panic");
        assert_eq!(draining.join().expect("no panic"), sent);
        assert_eq!(report.a_to_b.bytes, sent);
        assert_eq!(mark(&watched), OWN, "ended");
    });
}
