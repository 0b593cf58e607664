//! Positions: every mix of own position and explicit offset, by every backend, exact after
//! success and stopping. (With bytes in flight: `in_flight.rs`.)

mod common;

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use common::{Before, Claim, Data, DestinationKind, SourceKind, each_backend, make, within};
use nix::fcntl::OFlag;
use zcio::{End, ErrorKind};

const DATA: Data = Data::new(0x9051);
/// What stood in a destination before.
const OLD: Data = Data::new(0x01d);

// --- own position and explicit offset ---------------------------------------------------------

/// Offsets on no boundary, and positions that differ from them.
const SRC_POSITION: u64 = 12_345;
const SRC_OFFSET: u64 = 70_001;
const DST_POSITION: u64 = 5_003;
const DST_OFFSET: u64 = 20_011;
const OLD_LEN: u64 = 30_000;
const LEN: u64 = 900_000;

#[test]
fn every_mix_between_files() {
    use DestinationKind as D;
    use SourceKind as S;
    within(20, |pulse| {
        for (from, to) in [
            (S::DiskFile, D::DiskFile),
            (S::Memfd, D::Memfd),
            (S::Memfd, D::DiskFile),
            (S::SparseFile, D::Memfd),
            (S::DirectFile, D::DiskFile),
            (S::DiskFile, D::DirectFile),
            (S::DirectFile, D::DirectFile),
        ] {
            let sample = (from.make(DATA, 10).unwrap(), to.make().unwrap());
            for (name, options) in each_backend(&sample.0, &sample.1) {
                for mix in 0..4 {
                    let src_offset = (mix & 1 != 0).then_some(SRC_OFFSET);
                    let dst_offset = (mix & 2 != 0).then_some(DST_OFFSET);
                    for len in [1, 5000, 700_000, u64::MAX] {
                        let case = format!(
                            "{from:?} to {to:?} by {name}: {len} from {src_offset:?} to {dst_offset:?}"
                        );
                        pulse.at(&case);
                        let mut options = options.clone();
                        src_offset.map(|at| options.src_offset(at));
                        dst_offset.map(|at| options.dst_offset(at));
                        let (src, dst) = (from.make(DATA, LEN).unwrap(), to.make().unwrap());
                        if options
                            .probe(&src, &dst)
                            .unwrap()
                            .candidates()
                            .next()
                            .is_none()
                        {
                            // sendfile(2) takes no offset for its destination.
                            continue;
                        }
                        let old = make::reopen(&dst, OFlag::O_WRONLY).unwrap();
                        File::from(old)
                            .write_all_at(&OLD.bytes(0, OLD_LEN as usize), 0)
                            .unwrap();
                        make::seek(&src, SRC_POSITION);
                        make::seek(&dst, DST_POSITION);
                        let (at, put) = (
                            src_offset.unwrap_or(SRC_POSITION),
                            dst_offset.unwrap_or(DST_POSITION),
                        );
                        let before = Before::new(&src, &dst);
                        let result = options.transfer(&src, &dst, len);
                        let claim = Claim::from(&result);
                        let moved = match &result {
                            Ok(_) => len.min(LEN - at),
                            // Of these ranges not one is aligned.
                            Err(e) if name == "reflink" && e.kind() == ErrorKind::Unfit => 0,
                            Err(e) => panic!("{case}: {e}"),
                        };
                        assert_eq!(claim.delivered, moved, "{case}");
                        // What stood before and behind is as it was.
                        let view = File::from(make::reopen(&dst, OFlag::O_RDONLY).unwrap());
                        let size = view.metadata().unwrap().len();
                        assert_eq!(size, OLD_LEN.max(put + moved), "{case}");
                        let mut head = vec![0; put as usize];
                        view.read_exact_at(&mut head, 0).unwrap();
                        assert_eq!(OLD.check(0, &head), Ok(()), "{case}: before");
                        let behind = OLD_LEN.saturating_sub(put + moved);
                        let mut tail = vec![0; behind as usize];
                        view.read_exact_at(&mut tail, put + moved).unwrap();
                        assert_eq!(OLD.check(put + moved, &tail), Ok(()), "{case}: behind");
                        if behind > 0 {
                            cut(&dst, put + moved);
                        }
                        drop(view);
                        let dst = dst.delivered_from(put);
                        before.judge(&case, src, dst, (src_offset, dst_offset), at, &claim);
                    }
                }
            }
        }
    });
}

/// Cuts off what stands behind the bytes delivered, once it was looked at.
fn cut(dst: impl AsFd, len: u64) {
    let view = make::reopen(dst, OFlag::O_WRONLY).unwrap();
    File::from(view).set_len(len).unwrap();
}

#[test]
fn every_mix_with_a_stream() {
    use DestinationKind as D;
    use SourceKind as S;
    within(20, |pulse| {
        for from in [S::DiskFile, S::Memfd, S::DirectFile] {
            for to in [D::Pipe, D::Tcp, D::Unix, D::Null] {
                let sample = (from.make(DATA, 10).unwrap(), to.make().unwrap());
                for (name, options) in each_backend(&sample.0, &sample.1) {
                    for src_offset in [None, Some(SRC_OFFSET)] {
                        let case = format!("{from:?} to {to:?} by {name} from {src_offset:?}");
                        pulse.at(&case);
                        let mut options = options.clone();
                        src_offset.map(|at| options.src_offset(at));
                        let (src, dst) = (from.make(DATA, LEN).unwrap(), to.make().unwrap());
                        make::seek(&src, SRC_POSITION);
                        let at = src_offset.unwrap_or(SRC_POSITION);
                        let before = Before::new(&src, &dst);
                        let result = options.transfer(&src, &dst, 700_000);
                        assert_eq!(result.as_ref().unwrap().bytes, 700_000, "{case}");
                        let claim = Claim::from(&result);
                        before.judge(&case, src, dst, (src_offset, None), at, &claim);
                    }
                }
            }
        }
        for from in [S::Pipe, S::Tcp, S::Unix, S::Zero] {
            for to in [D::DiskFile, D::Memfd, D::DirectFile] {
                let sample = (from.make(DATA, 10).unwrap(), to.make().unwrap());
                for (name, options) in each_backend(&sample.0, &sample.1) {
                    for dst_offset in [None, Some(DST_OFFSET)] {
                        let case = format!("{from:?} to {to:?} by {name} to {dst_offset:?}");
                        pulse.at(&case);
                        let mut options = options.clone();
                        dst_offset.map(|at| options.dst_offset(at));
                        let (src, dst) = (from.make(DATA, LEN).unwrap(), to.make().unwrap());
                        make::seek(&dst, DST_POSITION);
                        let put = dst_offset.unwrap_or(DST_POSITION);
                        let before = Before::new(&src, &dst);
                        let result = options.transfer(&src, &dst, 700_000);
                        assert_eq!(result.as_ref().unwrap().bytes, 700_000, "{case}");
                        let (dst, claim) = (dst.delivered_from(put), Claim::from(&result));
                        before.judge(&case, src, dst, (None, dst_offset), 0, &claim);
                    }
                }
            }
        }
    });
}

// --- stopped ----------------------------------------------------------------------------------

#[test]
fn stopped_by_its_watcher() {
    use DestinationKind as D;
    use SourceKind as S;
    within(20, |pulse| {
        for from in [
            S::DiskFile,
            S::Memfd,
            S::DirectFile,
            S::Pipe,
            S::Tcp,
            S::Unix,
        ] {
            for to in [D::DiskFile, D::Memfd, D::Pipe, D::Tcp, D::Unix] {
                let sample = (from.make(DATA, 10).unwrap(), to.make().unwrap());
                for (name, mut options) in each_backend(&sample.0, &sample.1) {
                    for (pieces, nonblocking) in [(1, false), (3, false), (1, true), (3, true)] {
                        let case = format!(
                            "{from:?} to {to:?} by {name}, after {pieces} pieces, {nonblocking}"
                        );
                        pulse.at(&case);
                        let (src, dst) = (from.make(DATA, LEN).unwrap(), to.make().unwrap());
                        make::set_nonblocking(&src, nonblocking);
                        make::set_nonblocking(&dst, nonblocking);
                        let before = Before::new(&src, &dst);
                        options.chunk_size(50_000.try_into().unwrap());
                        let mut seen = Vec::new();
                        let result = options.transfer_with(&src, &dst, LEN, |progress| {
                            seen.push(progress.delivered);
                            assert_eq!(progress.len, LEN);
                            match seen.len() < pieces {
                                true => ControlFlow::Continue(()),
                                false => ControlFlow::Break(()),
                            }
                        });
                        let report = result.as_ref().unwrap_or_else(|e| panic!("{case}: {e}"));
                        assert_eq!(report.end, End::Stopped, "{case}");
                        assert_eq!(seen.len(), pieces, "{case}");
                        assert!(seen.is_sorted(), "{case}: {seen:?}");
                        // At most what was in flight came after the last look.
                        let last = *seen.last().unwrap();
                        assert!((last..=last + 50_000).contains(&report.bytes), "{case}");
                        let claim = Claim::from(&result);
                        before.judge(&case, src, dst, (None, None), 0, &claim);
                    }
                }
            }
        }
    });
}
