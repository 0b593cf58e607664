//! A schedule for non-blocking streams (B16 to B19): empty, full, then a piece at a time.
#![allow(unreachable_pub)]

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use zcio::{End, Side, Status, Transfer};

use crate::common::make;
use crate::common::watch::descriptors;
use crate::lane::{Kind, Lane, SEGMENT, ready, waiting};

/// Several times the largest private pipe and the buffer.
const TOTAL: u64 = 5 << 20;

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

/// Advances until something blocks, and holds what it says against what is so: a side that is
/// ready cannot be the one that blocks, so a second try gets on or names the other.
pub fn go_on<S: AsFd, D: AsFd>(case: &str, transfer: &mut Transfer<S, D>) -> Result<Side, End> {
    let mut named = None;
    loop {
        match transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}")) {
            Status::Moved(_) => named = None,
            Status::Finished(end) => return Err(end),
            Status::Blocked(side) => {
                if side == Side::Source {
                    let held = transfer.in_flight();
                    assert_eq!(held, 0, "{case}: waits for the source with bytes in flight");
                }
                let (src, dst) = (transfer.src().as_fd(), transfer.dst().as_fd());
                if !ready(side, src, dst, 0) {
                    return Ok(side);
                }
                assert_ne!(
                    named,
                    Some(side),
                    "{case}: the {side} is ready and named twice"
                );
                named = Some(side);
            }
        }
    }
}

/// A transfer, as `start` makes it, through a schedule in which each side is slow in turn.
pub fn slow_destination(
    case: &str,
    (from, to): (Kind, Kind),
    start: impl FnOnce(OwnedFd, OwnedFd) -> Transfer<OwnedFd, OwnedFd>,
) {
    let mut lane = Lane::new(from, to, 0).nonblocking();
    if from == Kind::Tcp {
        lane.bound_source();
    }
    let before = descriptors();
    let (src, dst) = lane.ends();
    let mut transfer = start(src, dst);

    // An empty source is what blocks first (B17).
    assert_eq!(
        go_on(case, &mut transfer),
        Ok(Side::Source),
        "{case}: empty"
    );

    // The receiver does not read: everything fills up, and the destination is to blame (B16, B18).
    loop {
        let fed = lane.feed(SEGMENT, 512, TOTAL);
        let side = go_on(case, &mut transfer).expect(case);
        if fed == 0 && side == Side::Destination && waiting(&lane.src) > 0 {
            break;
        }
        assert!(lane.fed < TOTAL, "{case}: {TOTAL} bytes block nothing");
        if fed == 0 && side == Side::Source {
            // What has been fed is on its way.
            assert!(
                lane.is_ready(side, 10_000),
                "{case}: the {side} is named with everything full"
            );
        }
    }
    assert!(
        transfer.delivered() > 0,
        "{case}: a part went before it blocked"
    );

    // A piece at a time on both ends: what is in between must get on.
    let mut random = Random(TOTAL ^ case.len() as u64);
    let mut idle = 0;
    let end = loop {
        let took = lane.take(1 + random.below(200_000) as usize) as u64;
        let fed = lane.feed(SEGMENT, random.below(300) as usize, TOTAL);
        let before = transfer.delivered();
        if lane.fed == TOTAL {
            lane.end();
        }
        let side = match go_on(case, &mut transfer) {
            Ok(side) => side,
            Err(end) => break end,
        };
        let nothing = took + fed + (transfer.delivered() - before) == 0;
        idle = if nothing { idle + 1 } else { 0 };
        // Where nothing is left for this test to do, the side that is named becomes ready.
        let stalled = idle > 3 && lane.feed.is_none() && !lane.is_ready(side, 10_000);
        assert!(!stalled, "{case}: stalled, waiting for the {side}");
    };
    assert_eq!(end, End::SourceEnded, "{case}");
    assert_eq!(transfer.delivered(), TOTAL, "{case}");
    assert_eq!(transfer.in_flight(), 0, "{case}");
    drop(transfer);
    // Non-blocking stays non-blocking (B19), and nothing is open that was not.
    for fd in [&lane.src, &lane.dst] {
        assert!(make::flags(fd).contains(OFlag::O_NONBLOCK), "{case}");
    }
    let leaked: Vec<_> = descriptors()
        .into_keys()
        .filter(|fd| !before.contains_key(fd))
        .collect();
    assert!(leaked.is_empty(), "{case}: left open: {leaked:?}");
    lane.settle(case, TOTAL, &[]);
}
