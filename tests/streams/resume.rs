//! Putting a transfer aside and going on: extended, stopped, taken back.

use std::io::Read;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use zcio::{Backend, End, Side, Status, TransferOptions};

use crate::common::oracle::position;
use crate::common::{Before, Claim, Data, DestinationKind, SourceKind, make, skipped, within};
use crate::lane::{KINDS, Kind, Lane, STREAMS, by, case, contents, engines};

/// Small enough for one step of every backend.
const PIECE: u64 = 32 << 10;

/// The calls that move one piece, from an explicit offset to a stream: nothing else is needed once
/// a transfer is under way.
fn calls(backend: Backend, to: Kind) -> u64 {
    match backend {
        Backend::Sendfile => 1,
        Backend::Splice if to == Kind::Pipe => 1,
        // In and out of the private pipe; read and write.
        Backend::Splice | Backend::ReadWrite | Backend::Direct => 2,
        // fstat, mmap, write, fstat once more, munmap.
        Backend::Mmap => 5,
        other => panic!("{other} does not write to streams"),
    }
}

#[test]
fn extending_makes_no_call_but_those_that_move_the_data() {
    within(20, |pulse| {
        for to in STREAMS {
            for engine in engines(Kind::File, to) {
                let case = case(Kind::File, to, engine);
                pulse.at(&case);
                let mut lane = Lane::new(Kind::File, to, 4 * PIECE);
                let (src, dst) = lane.ends();
                let mut options = by(engine);
                let mut transfer = options.src_offset(0).start(src, dst, PIECE).expect(&case);
                let piece = NonZeroUsize::new(PIECE as usize).expect("not zero");
                assert_eq!(
                    transfer.advance().expect(&case),
                    Status::Moved(piece),
                    "{case}"
                );
                for turn in 2..=4 {
                    let before = transfer.report().syscalls();
                    let status = transfer.advance().expect(&case);
                    assert_eq!(status, Status::Finished(End::Complete), "{case}");
                    transfer.extend(PIECE);
                    assert_eq!(transfer.remaining(), PIECE, "{case}");
                    lane.take(1 << 20);
                    assert_eq!(
                        transfer.advance().expect(&case),
                        Status::Moved(piece),
                        "{case}"
                    );
                    assert_eq!(transfer.delivered(), turn * PIECE, "{case}");
                    let made = transfer.report().syscalls() - before;
                    assert_eq!(made, calls(transfer.backend(), to), "{case}: calls");
                }
                drop(transfer);
                lane.settle_at(&case, 4 * PIECE, &[], 0);
            }
        }
    });
}

/// Several times the pipe and the buffer.
const TOTAL: u64 = 3 << 20;

#[test]
fn what_is_reclaimed_in_the_middle_is_what_was_in_flight() {
    within(20, |pulse| {
        for (from, to) in KINDS.iter().flat_map(|from| STREAMS.map(|to| (*from, to))) {
            for engine in engines(from, to) {
                let case = case(from, to, engine);
                pulse.at(&case);
                reclaim(&case, from, to, engine);
            }
        }
    });
}

fn reclaim(case: &str, from: Kind, to: Kind, engine: Option<Backend>) {
    let mut lane = Lane::new(from, to, TOTAL).nonblocking();
    let (src, dst) = lane.ends();
    let mut transfer = by(engine).start(src, dst, TOTAL).expect(case);
    // What the test delivered with its own hands.
    let mut by_hand = 0;
    let mut most = 0;
    loop {
        lane.feed(50_000, 20, TOTAL);
        let status = transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}"));
        match status {
            Status::Moved(_) => {}
            Status::Blocked(Side::Source) => {
                assert!(lane.fed < TOTAL, "{case}: blocked with everything there");
                assert_eq!(transfer.in_flight(), 0, "{case}");
            }
            Status::Blocked(Side::Destination) => {
                let held = transfer.in_flight();
                most = most.max(held);
                let bytes = transfer.reclaim().unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(transfer.in_flight(), 0, "{case}");
                let next = transfer.delivered() + by_hand;
                if from == Kind::File {
                    assert!(
                        bytes.is_empty(),
                        "{case}: bytes from a file that can rewind"
                    );
                    assert_eq!(position(&lane.src), next, "{case}: rewound");
                } else {
                    assert_eq!(bytes.len() as u64, held, "{case}: all of them");
                    let checked = lane.data.check(next, &bytes);
                    assert_eq!(checked, Ok(()), "{case}: reclaimed");
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        lane.take(64 << 10);
                        match nix::unistd::write(&lane.dst, rest) {
                            Ok(n) => rest = &rest[n..],
                            Err(e) => assert_eq!(e, nix::errno::Errno::EAGAIN, "{case}"),
                        }
                    }
                    by_hand += bytes.len() as u64;
                }
                lane.take(100_000);
            }
            Status::Finished(End::Complete) => break,
            Status::Finished(end) => panic!("{case}: {end:?}"),
        }
        if transfer.delivered() + by_hand == TOTAL {
            break;
        }
    }
    let through_a_pipe = engine == Some(Backend::Splice) && ![from, to].contains(&Kind::Pipe);
    let through_a_buffer = matches!(engine, Some(Backend::ReadWrite | Backend::Direct));
    if through_a_pipe || through_a_buffer {
        assert!(most > 0, "{case}: nothing was ever in flight");
    }
    drop(transfer);
    lane.end();
    lane.settle(case, TOTAL, &[]);
}

#[test]
fn a_stopped_transfer_has_delivered_or_left_every_byte() {
    use DestinationKind as To;
    use SourceKind as From;
    let ends = |kind| match kind {
        Kind::File => (From::DiskFile, To::DiskFile),
        Kind::Pipe => (From::Pipe, To::Pipe),
        Kind::Tcp => (From::Tcp, To::Tcp),
        Kind::Unix => (From::Unix, To::Unix),
    };
    within(20, move |pulse| {
        for (from, to) in KINDS.iter().flat_map(|from| KINDS.map(|to| (*from, to))) {
            for (engine, nonblocking) in engines(from, to)
                .into_iter()
                .flat_map(|engine| [(engine, false), (engine, true)])
            {
                let case = format!("{}, nonblocking {nonblocking}", case(from, to, engine));
                pulse.at(&case);
                let source = ends(from).0.make(Data::new(7), TOTAL).expect(&case);
                let destination = ends(to).1.make().expect(&case);
                make::set_nonblocking(&source, nonblocking);
                make::set_nonblocking(&destination, nonblocking);
                let before = Before::new(&source, &destination);
                let mut last = 0;
                let result = by(engine)
                    .chunk_size(NonZeroUsize::new(100_000).expect("not zero"))
                    .transfer_with(&source, &destination, TOTAL, |progress| {
                        assert!(progress.delivered > last, "{case}: each call, more");
                        assert_eq!(progress.len, TOTAL, "{case}");
                        last = progress.delivered;
                        match last {
                            300_000.. => ControlFlow::Break(()),
                            _ => ControlFlow::Continue(()),
                        }
                    });
                let report = result.as_ref().unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(report.end, End::Stopped, "{case}");
                // What was in flight is a chunk at most.
                assert!((last..=last + 100_000).contains(&report.bytes), "{case}");
                let claim = Claim::from(&result);
                before.judge(&case, source, destination, (None, None), 0, &claim);
            }
        }
    });
}

/// The watcher's panic goes through; the source is still where delivery stopped.
#[test]
fn a_watcher_that_panics_loses_nothing_of_a_file() {
    within(20, |pulse| {
        for engine in engines(Kind::File, Kind::Unix) {
            let case = case(Kind::File, Kind::Unix, engine);
            pulse.at(&case);
            let mut lane = Lane::new(Kind::File, Kind::Unix, TOTAL).nonblocking();
            let (src, dst) = lane.ends();
            let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                by(engine).transfer_with(&src, &dst, TOTAL, |_| {
                    std::panic::resume_unwind(Box::new(()))
                })
            }));
            assert!(unwound.is_err(), "{case}: the panic goes through");
            drop((src, dst));
            let arrived = lane.take(TOTAL as usize) as u64;
            assert!(arrived > 0, "{case}");
            assert_eq!(
                position(&lane.src),
                arrived,
                "{case}: the source's position"
            );
            lane.settle(&case, arrived, &[]);
        }
    });
}

/// Dropped or taken apart, a transfer leaves a file where delivery stopped (B23).
#[test]
fn a_dropped_transfer_rewinds_its_file() {
    within(20, |pulse| {
        for engine in engines(Kind::File, Kind::Tcp) {
            for apart in [false, true] {
                let case = case(Kind::File, Kind::Tcp, engine);
                pulse.at(&case);
                let lane = Lane::new(Kind::File, Kind::Tcp, TOTAL).nonblocking();
                let (src, dst) = lane.ends();
                let mut transfer = by(engine).start(src, dst, TOTAL).expect(&case);
                while let Status::Moved(_) = transfer.advance().expect(&case) {}
                let delivered = transfer.delivered();
                assert!(delivered < TOTAL, "{case}: blocked in the middle");
                if apart {
                    drop(transfer.into_parts());
                } else {
                    drop(transfer);
                }
                assert_eq!(
                    position(&lane.src),
                    delivered,
                    "{case}: the source's position"
                );
                lane.settle(&case, delivered, &[]);
            }
        }
    });
}

/// After the end, a source that has grown goes on.
#[test]
fn a_source_that_grows_after_its_end_goes_on() {
    within(20, |pulse| {
        for engine in engines(Kind::File, Kind::File) {
            let case = case(Kind::File, Kind::File, engine);
            pulse.at(&case);
            let data = Data::new(3);
            let (src, dst) = (make::disk_file(), make::disk_file());
            let mut transfer = by(engine).start(&src, &dst, u64::MAX).expect(&case);
            let mut size = 0;
            for grown in [0, 100_000, 4096, 1, 300_000] {
                src.write_all_at(&data.bytes(size, grown), size)
                    .expect("room");
                size += grown as u64;
                let end = loop {
                    match transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}")) {
                        Status::Moved(_) => {}
                        Status::Blocked(side) => panic!("{case}: the {side} blocked"),
                        Status::Finished(end) => break end,
                    }
                };
                assert_eq!(end, End::SourceEnded, "{case}");
                assert_eq!(transfer.delivered(), size, "{case}");
            }
            drop(transfer);
            assert_eq!((position(&src), position(&dst)), (size, size), "{case}");
            for (name, file) in [("source", &src), ("destination", &dst)] {
                let bytes = contents(file);
                assert_eq!(data.check(0, &bytes), Ok(()), "{case}: {name}");
                assert_eq!(bytes.len() as u64, size, "{case}: {name}");
            }
        }
    });
}

/// What has ended and goes on has not ended.
#[test]
fn a_report_says_stopped_while_it_goes_on() {
    let (src, dst) = (make::disk_file(), make::disk_file());
    src.write_all_at(&Data::new(4).bytes(0, 100), 0).unwrap();
    let mut transfer = by(None).start(&src, &dst, 60).unwrap();
    let finish = |transfer: &mut zcio::Transfer<_, _>| {
        while !matches!(transfer.advance().unwrap(), Status::Finished(_)) {}
    };
    finish(&mut transfer);
    assert_eq!(transfer.report().end, End::Complete);
    transfer.extend(60);
    assert_eq!(transfer.report().end, End::Stopped);
    finish(&mut transfer);
    assert_eq!(transfer.report().end, End::SourceEnded);
    src.write_all_at(&Data::new(4).bytes(100, 10), 100).unwrap();
    assert!(matches!(transfer.advance().unwrap(), Status::Moved(_)));
    assert_eq!(transfer.report().end, End::Stopped);
}

/// An explicit offset follows from the counts, whatever kind of file it is of: what is taken back is
/// read again, and must not be handed back besides.
#[test]
fn what_is_read_again_is_not_handed_back() {
    within(20, |_| {
        // Generated, and more than a socket's buffer takes.
        let Ok(src) = std::fs::File::open("/proc/kallsyms") else {
            return skipped("a generated file taken back", "there is no /proc/kallsyms");
        };
        let all = std::fs::read("/proc/kallsyms").unwrap();
        let (dst, mut far) = make::unix();
        dst.set_nonblocking(true).unwrap();
        let options = TransferOptions::new().src_offset(0).clone();
        let mut transfer = options.start(&src, &dst, u64::MAX).unwrap();
        let mut got = Vec::new();
        let mut take = |transfer: &mut zcio::Transfer<_, _>| {
            while !matches!(transfer.advance().unwrap(), Status::Blocked(_)) {}
            let start = got.len();
            got.resize(transfer.delivered() as usize, 0);
            far.read_exact(&mut got[start..]).unwrap();
        };
        take(&mut transfer);
        assert!(transfer.in_flight() > 0, "something to take back");
        assert!(transfer.reclaim().unwrap().is_empty());
        take(&mut transfer);
        drop(transfer);
        assert!(all.starts_with(&got));
    });
}
