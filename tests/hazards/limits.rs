//! Limits of the process and small pipes: RLIMIT_FSIZE (B25), RLIMIT_NOFILE and one-page pipes
//! (B29). Limits are the process's, so these tests run in one of their own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::OFlag;
use zcio::{Backend, End, ErrorKind, Side, Status};

use crate::child;
use crate::common::{Before, Claim, Data, DestinationKind, SourceKind, make, within};
use crate::lane::{KINDS, Kind, Lane, by, case, engines, set_pipe_size};
use crate::rlimit::{Limit, ignore_sigxfsz};
use crate::tended::Tended;

fn number(error: &zcio::Error) -> Option<i32> {
    error.io_error().and_then(std::io::Error::raw_os_error)
}

/// The file size that the limit allows: not a whole number of pages.
const ROOM: u64 = 1_000_000;
const TOTAL: u64 = 3 << 20;

#[test]
fn a_file_at_its_size_limit_is_an_exact_error() {
    child::alone("limits::a_file_at_its_size_limit_is_an_exact_error", || {
        ignore_sigxfsz();
        within(20, |pulse| {
            use SourceKind::{DiskFile, Memfd, Pipe, SparseFile, Tcp, Unix};
            for source in [DiskFile, SparseFile, Memfd, Pipe, Tcp, Unix] {
                let from = if source.is_stream() {
                    Kind::Pipe
                } else {
                    Kind::File
                };
                let other = source == Memfd;
                for engine in engines(from, Kind::File) {
                    if other && engine == Some(Backend::CopyFileRange) {
                        continue;
                    }
                    let case = format!("{source:?} by {engine:?}");
                    pulse.at(&case);
                    let source = source.make(Data::new(4), TOTAL).expect(&case);
                    let destination = DestinationKind::DiskFile.make().expect(&case);
                    let before = Before::new(&source, &destination);
                    let limit = Limit::new(libc::RLIMIT_FSIZE, ROOM);
                    let result = by(engine).transfer(&source, &destination, u64::MAX);
                    drop(limit);
                    let error = result.as_ref().expect_err(&case);
                    assert_eq!(number(error), Some(libc::EFBIG), "{case}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Io, "{case}: {error}");
                    assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
                    let most = ROOM.next_multiple_of(4096);
                    assert!(
                        (ROOM / 2..=most).contains(&error.delivered()),
                        "{case}: {error}"
                    );
                    let claim = Claim::from(&result);
                    before.judge(&case, source, destination, (None, None), 0, &claim);
                }
            }
        });
    });
}

/// After an error the same transfer goes on, and brings nothing along from before it (B30).
#[test]
fn a_transfer_goes_on_after_its_error() {
    child::alone("limits::a_transfer_goes_on_after_its_error", || {
        ignore_sigxfsz();
        within(20, |pulse| {
            for from in KINDS {
                for engine in engines(from, Kind::File) {
                    let case = case(from, Kind::File, engine);
                    pulse.at(&case);
                    go_on(&case, from, engine);
                }
            }
        });
    });
}

fn go_on(case: &str, from: Kind, engine: Option<Backend>) {
    let lane = Lane::new(from, Kind::File, TOTAL);
    let tended = Tended::new(lane, TOTAL, || {});
    let (src, dst) = tended.lane.ends();
    let mut transfer = by(engine).start(src, dst, u64::MAX).expect(case);
    let mut by_hand = 0;
    let mut limit = Some(Limit::new(libc::RLIMIT_FSIZE, ROOM));
    let mut errors = 0;
    loop {
        match transfer.advance() {
            Ok(Status::Moved(_)) => {}
            Ok(Status::Finished(End::SourceEnded)) => break,
            Ok(status) => panic!("{case}: {status:?}"),
            Err(error) => {
                assert_eq!(number(&error), Some(libc::EFBIG), "{case}: {error}");
                assert_eq!(transfer.in_flight(), 0, "{case}: {error}");
                errors += 1;
                limit = None;
                // A stream's bytes are the caller's now, and go before what comes.
                let bytes = error.into_undelivered();
                let file = File::from(make::reopen(&tended.lane.dst, OFlag::O_WRONLY).expect(case));
                let at = transfer.delivered() + by_hand;
                file.write_all_at(&bytes, at).expect(case);
                by_hand += bytes.len() as u64;
                let whence = nix::unistd::Whence::SeekSet;
                nix::unistd::lseek64(&tended.lane.dst, (at + bytes.len() as u64) as i64, whence)
                    .expect(case);
            }
        }
    }
    assert!(limit.is_none() && errors == 1, "{case}: {errors} errors");
    assert_eq!(transfer.delivered() + by_hand, TOTAL, "{case}");
    drop(transfer);
    tended.settle(case, TOTAL, &[]);
}

/// No descriptor is left for a pipe or a second description: what needs one gives way, and where
/// it is forced it says so, before it has touched anything.
#[test]
fn without_descriptors_what_needs_none_delivers() {
    child::alone(
        "limits::without_descriptors_what_needs_none_delivers",
        || {
            within(20, |pulse| {
                for (from, to) in KINDS.iter().flat_map(|from| KINDS.map(|to| (*from, to))) {
                    for engine in engines(from, to) {
                        for spare in [0, 1] {
                            let case = format!("{}, {spare} left", case(from, to, engine));
                            pulse.at(&case);
                            without_descriptors(&case, from, to, engine, spare);
                        }
                    }
                }
            });
        },
    );
}

fn without_descriptors(case: &str, from: Kind, to: Kind, engine: Option<Backend>, spare: usize) {
    let tended = Tended::new(Lane::new(from, to, TOTAL), TOTAL, || {});
    // The lowest number that is free: this thread's table has no gaps above it.
    let next = tended.lane.src.try_clone().expect("dup(2)").as_raw_fd();
    let next = next.unsigned_abs();
    let limit = Limit::new(libc::RLIMIT_NOFILE, u64::from(next) + spare as u64);
    let result = by(engine).transfer(&tended.lane.src, &tended.lane.dst, TOTAL);
    drop(limit);
    let through_a_pipe = engine == Some(Backend::Splice) && ![from, to].contains(&Kind::Pipe);
    // A description of its own for each file.
    let files = [from, to]
        .iter()
        .filter(|kind| **kind == Kind::File)
        .count();
    let reopens = engine == Some(Backend::Direct) && files > spare;
    match result {
        Ok(report) => {
            assert!(!through_a_pipe, "{case}: by a pipe that cannot be had");
            assert_eq!((report.bytes, report.end), (TOTAL, End::Complete), "{case}");
            tended.settle(case, TOTAL, &[]);
        }
        Err(error) => {
            assert!(through_a_pipe || reopens, "{case}: {error}");
            assert_eq!(error.kind(), ErrorKind::Unfit, "{case}: {error}");
            assert_eq!(number(&error), Some(libc::EMFILE), "{case}: {error}");
            assert_eq!(error.delivered(), 0, "{case}: {error}");
            tended.settle(case, 0, error.undelivered());
        }
    }
}

#[test]
fn pipes_of_one_and_two_pages_lose_nothing_and_stay_as_they_are() {
    within(20, |pulse| {
        for (from, to) in KINDS.iter().flat_map(|from| KINDS.map(|to| (*from, to))) {
            if ![from, to].contains(&Kind::Pipe) {
                continue;
            }
            for engine in engines(from, to) {
                for (size, nonblocking) in [(4096, false), (4096, true), (8192, false)] {
                    let case = case(from, to, engine);
                    let case = format!("{case}, {size}, nonblocking {nonblocking}");
                    pulse.at(&case);
                    let mut lane = Lane::new(from, to, TOTAL / 4);
                    for (kind, fd) in [(from, &lane.src), (to, &lane.dst)] {
                        if kind == Kind::Pipe {
                            set_pipe_size(fd, size);
                        }
                    }
                    if nonblocking {
                        lane = lane.nonblocking();
                    }
                    let tended = Tended::new(lane, TOTAL / 4, || {});
                    let result = by(engine).transfer(&tended.lane.src, &tended.lane.dst, u64::MAX);
                    let report = result.unwrap_or_else(|e| panic!("{case}: {e}"));
                    assert_eq!(report.bytes, TOTAL / 4, "{case}");
                    for (kind, fd) in [(from, &tended.lane.src), (to, &tended.lane.dst)] {
                        if kind == Kind::Pipe {
                            assert_eq!(make::pipe_size(fd), Some(size), "{case}");
                        }
                    }
                    tended.settle(&case, TOTAL / 4, &[]);
                }
            }
        }
    });
}
