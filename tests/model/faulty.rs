//! A sparse source that is cut between two calls, and a call that fails soon after: the holes that
//! were passed by then count only as far as the destination is that long.

use std::ffi::{c_int, c_long};
use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::fcntl::OFlag;
use zcio::{Backend, Status, TransferOptions};

use super::{PIECE, WHOLE, old, write};
use crate::common::{make, oracle};
use crate::interpose::{self, Answer, kernel};

/// Fails one call, and cuts the source before another.
struct Faulty<'a> {
    src: &'a File,
    calls: usize,
    cut_at: usize,
    fails_at: usize,
    errno: c_int,
}

impl interpose::Stage for Faulty<'_> {
    fn answer(&mut self, nr: c_long, args: [usize; 6]) -> Answer {
        self.calls += 1;
        if self.calls == self.cut_at {
            self.src.set_len(PIECE + 4096).expect("ftruncate(2)");
        }
        // What sets a position back is `looks` to fail.
        let seeks = nr == libc::SYS_lseek && args[2] as c_int <= libc::SEEK_END;
        if self.calls == self.fails_at && !seeks {
            return Err(self.errno);
        }
        kernel(nr, args)
    }
}

/// Whether it has so many calls.
fn run(
    case: &str,
    (src, dst): (&File, &File),
    faults: (usize, usize, c_int),
    options: &TransferOptions,
) -> bool {
    let old = old();
    for at in [0, 2 * PIECE] {
        write(src, at, &old[at as usize..][..PIECE as usize]);
    }
    src.set_len(WHOLE).expect("ftruncate(2)");
    let his_src = File::from(make::reopen(src, OFlag::O_RDWR).expect("a description"));
    let (cut_at, fails_at, errno) = faults;
    let mut transfer = options.start(src, dst, u64::MAX).expect(case);
    let mut stage = Faulty {
        src: &his_src,
        calls: 0,
        cut_at,
        fails_at,
        errno,
    };
    let (mut ends, mut errors, mut counted) = (0, 0, 0);
    while ends < 2 {
        match interpose::run(&mut stage, || transfer.advance()) {
            Ok(Status::Finished(_)) => ends += 1,
            Ok(Status::Moved(bytes)) => counted += bytes.get() as u64,
            Ok(status) => panic!("{case}: {status:?}"),
            Err(error) => {
                errors += 1;
                assert!(errors == 1, "{case}: {error}");
                assert_eq!(error.delivered(), transfer.delivered(), "{case}: {error}");
                assert!(error.undelivered().is_empty(), "{case}: {error}");
                // Whatever a step had delivered before it failed.
                counted = error.delivered();
            }
        }
        let delivered = transfer.delivered();
        assert_eq!(delivered, counted, "{case}");
        let size = dst.metadata().expect("fstat(2)").len();
        assert!(
            size >= delivered,
            "{case}: {size} bytes, {delivered} delivered"
        );
    }
    let delivered = transfer.delivered();
    let explicit = case.contains("true");
    drop(transfer);
    let whole = src.metadata().expect("fstat(2)").len();
    assert!(
        delivered >= whole && delivered <= WHOLE,
        "{case}: {delivered}"
    );
    let mut held = vec![0; delivered as usize];
    dst.read_exact_at(&mut held, 0).expect("readable");
    assert!(held == old[..delivered as usize], "{case}");
    let there = if explicit { 0 } else { delivered };
    let positions = (oracle::position(src), oracle::position(dst));
    assert_eq!(positions, (there, there), "{case}");
    stage.calls >= fails_at.max(cut_at)
}

/// On files that `make` makes, both on one filesystem.
pub(crate) fn faulty(place: &str, make: impl Fn() -> File) {
    let mut places = 0;
    for explicit in [false, true] {
        for errno in [libc::EPERM, libc::ENOSPC, libc::EIO] {
            for cut_at in 0.. {
                let mut any = false;
                for later in 1..10 {
                    let fails_at = cut_at + later;
                    let case =
                        format!("{place}, {explicit}, cut at {cut_at}, {errno} at {fails_at}");
                    let mut options = TransferOptions::new();
                    // It has nothing to give way to, and its faults are faults.
                    options.backend(Backend::ReadWrite);
                    if explicit {
                        options.src_offset(0).dst_offset(0);
                    }
                    let faults = (cut_at, fails_at, errno);
                    any |= run(&case, (&make(), &make()), faults, &options);
                    places += 1;
                }
                if !any {
                    break;
                }
            }
        }
    }
    println!("{place}: {places} faults");
    assert!(places > 300, "{place}: {places}");
}
