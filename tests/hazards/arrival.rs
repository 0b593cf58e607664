//! How long a transfer's last byte takes to arrive at the other end of a TCP connection that stays
//! open (B40).
#![allow(unreachable_pub)]

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::lane::{Kind, Lane};
use crate::tended::Tended;

/// Less than the 200 ms of a cork, more than a busy machine makes of a few microseconds.
const BOUND: Duration = Duration::from_millis(150);

/// The time of the first of five tries that is in time: a delay that is meant comes every time.
pub fn in_time(
    case: &str,
    from: Kind,
    len: u64,
    move_all: impl Fn(&OwnedFd, &OwnedFd),
) -> Result<Duration, String> {
    in_time_by(|| arrival(case, from, len, &move_all))
}

/// The same for a delay that is measured otherwise.
pub fn in_time_by(measure: impl Fn() -> Duration) -> Result<Duration, String> {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        best = best.min(measure());
        if best < BOUND {
            return Ok(best);
        }
    }
    Err(format!("held back for {best:?}"))
}

/// How long it takes from the call to the last byte's arrival, the connection staying open.
fn arrival(
    case: &str,
    from: Kind,
    len: u64,
    move_all: impl FnOnce(&OwnedFd, &OwnedFd),
) -> Duration {
    let mut lane = Lane::new(from, Kind::Tcp, len);
    let sink = lane.sink.take().expect("a stream");
    nix::sys::socket::setsockopt(
        &sink,
        nix::sys::socket::sockopt::ReceiveTimeout,
        &TEN_SECONDS,
    )
    .expect("SO_RCVTIMEO");
    crate::common::make::set_nonblocking(&sink, false);
    let data = lane.data;
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; len as usize];
        let mut at = 0;
        while at < got.len() {
            match nix::unistd::read(&sink, &mut got[at..]) {
                Ok(n @ 1..) => at += n,
                other => panic!("the receiver at {at}: {other:?}"),
            }
        }
        assert_eq!(data.check(0, &got), Ok(()));
        (Instant::now(), sink)
    });
    let tended = Tended::new(lane, len, || {});
    let start = Instant::now();
    move_all(&tended.lane.src, &tended.lane.dst);
    let (arrived, _open) = reader.join().expect(case);
    arrived.duration_since(start)
}

const TEN_SECONDS: nix::sys::time::TimeVal = nix::sys::time::TimeVal::new(10, 0);
