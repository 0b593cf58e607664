//! Urgent data (B41): splice(2) and sendfile(2) out of TCP stop in front of it and answer as if the
//! stream had ended, or as if it were empty; read(2) goes past. Any peer can send it.

use std::thread;

use zcio::{Backend, End, Error, ErrorKind, Side, Status};

use crate::common::{make, within};
use crate::lane::{KINDS, Kind, Lane, by, case, engines};
use crate::slow::go_on;

/// Several times a pipe's default.
const TOTAL: u64 = 200_000;

/// Where in the stream it comes: in the middle, first, last, and again and again. Of urgent data that
/// come beside the stream there is but one byte: what is overtaken by the next comes in the stream.
const PLACES: [(&[u64], bool); 7] = [
    (&[TOTAL / 2], false),
    (&[0], false),
    (&[TOTAL], false),
    (&[TOTAL / 2], true),
    (&[0], true),
    (&[TOTAL - 1], true),
    (&[1, 65_536, 65_537, 150_000], true),
];

/// Gives the source everything, with urgent data at these places: bytes of the stream, or beside it.
fn feed(lane: &mut Lane, places: &[u64], inline: bool) {
    for at in places {
        while lane.fed < *at {
            lane.feed(10_000, 100, *at);
        }
        let urgent = lane.data.bytes(*at, 1)[0];
        make::send_urgent(lane.feed.as_ref().expect("a stream"), urgent).expect("send(2)");
        lane.fed += u64::from(inline);
    }
    while lane.fed < TOTAL {
        lane.feed(10_000, 100, TOTAL);
    }
}

fn each(test: impl Fn(&str, Kind, Option<Backend>, &[u64], bool)) {
    for to in KINDS {
        for engine in engines(Kind::Tcp, to) {
            for (places, inline) in PLACES {
                let case = case(Kind::Tcp, to, engine);
                let case = format!("{case}, urgent at {places:?}, inline {inline}");
                test(&case, to, engine, places, inline);
            }
        }
    }
}

/// What splices only may say so: it does not serve such a stream.
fn is_unfit(engine: Option<Backend>, error: &Error) -> bool {
    let again = error.io_error().and_then(std::io::Error::raw_os_error) == Some(libc::EAGAIN);
    let spliced = matches!(engine, Some(Backend::Splice | Backend::Sendfile));
    spliced && error.backend() == engine && (error.kind() == ErrorKind::Unfit || again)
}

/// Nothing is cut off, nobody asks in vain, and the empty side is the source.
#[test]
fn urgent_data_step_by_step() {
    within(20, |pulse| {
        each(|case, to, engine, places, inline| {
            for early in [true, false] {
                pulse.at(case);
                let mut lane = Lane::new(Kind::Tcp, to, 0).nonblocking();
                if inline {
                    make::set_urgent_inline(&lane.src);
                }
                let (src, dst) = lane.ends();
                let mut transfer = by(engine).start(src, dst, u64::MAX).expect(case);
                if !early {
                    assert_eq!(go_on(case, &mut transfer), Ok(Side::Source), "{case}");
                }
                feed(&mut lane, places, inline);
                let mut steps = 0;
                let refused = loop {
                    steps += 1;
                    assert!(steps < 1000, "{case}: {steps} steps");
                    let status = transfer.advance();
                    let taken = transfer.delivered() + transfer.in_flight();
                    match status {
                        Ok(Status::Moved(_)) => {}
                        Ok(Status::Blocked(Side::Destination)) => {
                            lane.take(1 << 20);
                        }
                        // Some of it may be on its way still.
                        Ok(Status::Blocked(Side::Source)) if taken < TOTAL => {
                            assert!(lane.is_ready(Side::Source, 10_000), "{case}: cut off");
                        }
                        Ok(Status::Blocked(Side::Source)) => break None,
                        Ok(Status::Finished(end)) => panic!("{case}: {end:?}, the peer is there"),
                        Err(error) if is_unfit(engine, &error) => break Some(error),
                        Err(error) => panic!("{case}: {error}"),
                    }
                };
                let mut back = bytes::Bytes::new();
                if let Some(error) = refused {
                    assert_eq!(error.delivered(), transfer.delivered(), "{case}");
                    back = error.into_undelivered();
                } else {
                    // The peer is silent, and still there.
                    assert!(!lane.is_ready(Side::Source, 0), "{case}");
                    let status = transfer.advance().expect(case);
                    assert_eq!(status, Status::Blocked(Side::Source), "{case}");
                    lane.end();
                    assert!(lane.is_ready(Side::Source, 10_000), "{case}");
                    let end = loop {
                        match transfer.advance().expect(case) {
                            Status::Finished(end) => break end,
                            status => assert!(matches!(status, Status::Moved(_)), "{case}"),
                        }
                    };
                    assert_eq!(
                        (end, transfer.delivered()),
                        (End::SourceEnded, TOTAL),
                        "{case}"
                    );
                }
                let delivered = transfer.delivered();
                drop(transfer);
                lane.settle(case, delivered, &back);
            }
        });
    });
}

/// The blocking form, on blocking and on non-blocking descriptors: all arrives while the peer stays,
/// and it ends when the peer ends.
#[test]
fn urgent_data_while_the_peer_stays() {
    within(20, |pulse| {
        each(|case, to, engine, places, inline| {
            for nonblocking in [false, true] {
                let case = format!("{case}, non-blocking {nonblocking}");
                pulse.at(&case);
                let mut lane = Lane::new(Kind::Tcp, to, 0);
                if nonblocking {
                    lane = lane.nonblocking();
                }
                if inline {
                    make::set_urgent_inline(&lane.src);
                }
                let (src, dst) = lane.ends();
                let options = by(engine);
                let moving = thread::spawn(move || options.transfer(src, dst, u64::MAX));
                feed(&mut lane, places, inline);
                // Of what goes around the page cache, the last block waits for the end.
                let due = TOTAL * u64::from(engine != Some(Backend::Direct));
                while arrived(&lane) < due && !moving.is_finished() {
                    if lane.take(1 << 20) == 0 {
                        thread::yield_now();
                    }
                }
                lane.end();
                let result = moving.join().expect("no panic");
                let (delivered, back) = match result {
                    Ok(report) => {
                        assert_eq!(
                            (report.bytes, report.end),
                            (TOTAL, End::SourceEnded),
                            "{case}"
                        );
                        // It waits by few calls.
                        assert!(report.syscalls() < 2000, "{case}: {}", report.syscalls());
                        (TOTAL, bytes::Bytes::new())
                    }
                    Err(error) if is_unfit(engine, &error) => {
                        (error.delivered(), error.into_undelivered())
                    }
                    Err(error) => panic!("{case}: {error}"),
                };
                lane.settle(&case, delivered, &back);
            }
        });
    });
}

/// How much has come so far.
fn arrived(lane: &Lane) -> u64 {
    match &lane.sink {
        Some(_) => lane.received,
        None => nix::sys::stat::fstat(&lane.dst).map_or(0, |stat| stat.st_size.unsigned_abs()),
    }
}
