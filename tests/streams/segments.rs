//! Non-blocking streams in small segments (B16 to B19): no stall, no byte lost, and the side that
//! is named is the one that blocks.

use zcio::{Backend, Side};

use crate::common::{make, skipped, within};
use crate::lane::{Kind, Lane, SEGMENT, STREAMS, by, case, engines, waiting};
use crate::slow::{go_on, slow_destination};

#[test]
fn a_slow_destination_stalls_and_loses_nothing() {
    within(20, |pulse| {
        for (from, to) in STREAMS
            .iter()
            .flat_map(|from| STREAMS.map(|to| (*from, to)))
        {
            for engine in engines(from, to) {
                let case = case(from, to, engine);
                pulse.at(&case);
                slow_destination(&case, (from, to), |src, dst| {
                    by(engine).start(src, dst, u64::MAX).expect(&case)
                });
            }
        }
    });
}

/// A pipe that has run out of slots has room for bytes, the socket has more, and the answer to the
/// next splice(2) is the same EAGAIN as from an empty socket (B18).
#[test]
fn a_pipe_out_of_slots_is_not_taken_for_an_empty_source() {
    within(20, |pulse| {
        let engines = engines(Kind::Tcp, Kind::Pipe).into_iter();
        for engine in engines.filter(|engine| *engine != Some(Backend::ReadWrite)) {
            let case = case(Kind::Tcp, Kind::Pipe, engine);
            pulse.at(&case);
            let mut lane = Lane::new(Kind::Tcp, Kind::Pipe, 0).nonblocking();
            let (src, dst) = lane.ends();
            let total = 150 * SEGMENT as u64;
            let mut transfer = by(engine).start(src, dst, total).expect(&case);
            // Taken in one by one, they stay segments; queued up behind a full window they would be
            // merged.
            while lane.fed < total {
                assert!(
                    lane.feed(SEGMENT, 1, total) > 0,
                    "{case}: room for {total} bytes"
                );
            }
            let mut proven = false;
            while transfer.delivered() < total {
                let side = go_on(&case, &mut transfer);
                if transfer.delivered() == total {
                    break;
                }
                let (held, left) = (waiting(&lane.dst), waiting(&lane.src));
                assert_eq!(
                    side,
                    Ok(Side::Destination),
                    "{case}: {held} in, {left} waiting"
                );
                let size = make::pipe_size(&lane.dst).expect("a pipe").unsigned_abs() as usize;
                println!("{case}: {held} bytes fill a pipe of {size}, {left} wait");
                proven |= held < size && left > 0;
                lane.take(1 << 20);
            }
            if !proven {
                skipped(&case, "this kernel packs small segments together");
            }
            drop(transfer);
            lane.settle(&case, total, &[]);
        }
    });
}
