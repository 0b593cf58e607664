//! A source file that others truncate, grow and overwrite in the middle of a transfer (B24), at a
//! moment that the test chooses: when so much has been delivered and nothing else moves.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;

use nix::fcntl::OFlag;
use zcio::{Backend, End, Error, ErrorKind, Side, Status, TransferOptions};

use crate::common::oracle::position;
use crate::common::{Data, make, within};
use crate::lane::{KINDS, Kind, Lane, by, case, contents, engines};

/// Several times a pipe and the buffer, and not a whole number of pages.
const TOTAL: u64 = (1 << 20) + 1234;

/// What becomes of the source when `delivered` and `taken` are so far.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Down to this many bytes before (negative) or behind what was delivered.
    CutAt(i64),
    /// Cut within its last page.
    CutTail,
    Grow(u64),
    /// Other bytes, all over.
    Overwrite,
    /// Cut to nothing, then as long as before with other bytes.
    Replace,
}

const CHANGES: [Change; 9] = [
    Change::CutAt(-70_000),
    Change::CutAt(-1),
    Change::CutAt(0),
    Change::CutAt(700),
    Change::CutAt(500_001),
    Change::CutTail,
    Change::Grow(700_003),
    Change::Overwrite,
    Change::Replace,
];

const NEW: Data = Data::new(0xbeef);

/// What the source is after the change, by size and by bytes.
struct After {
    size: u64,
    data: Data,
}

impl Change {
    fn make(self, file: &File, old: Data, delivered: u64) -> After {
        let cut = |size: u64| {
            file.set_len(size).expect("ftruncate(2)");
            After { size, data: old }
        };
        match self {
            Self::CutAt(by) => cut(delivered.saturating_add_signed(by).min(TOTAL)),
            Self::CutTail => cut(TOTAL - 1000),
            Self::Grow(more) => {
                let bytes = old.bytes(TOTAL, more as usize);
                file.write_all_at(&bytes, TOTAL).expect("room");
                let size = TOTAL + more;
                After { size, data: old }
            }
            Self::Overwrite | Self::Replace => {
                if matches!(self, Self::Replace) {
                    file.set_len(0).expect("ftruncate(2)");
                }
                let bytes = NEW.bytes(0, TOTAL as usize);
                file.write_all_at(&bytes, 0).expect("room");
                let (size, data) = (TOTAL, NEW);
                After { size, data }
            }
        }
    }
}

#[test]
fn a_source_that_changes_is_followed_and_no_byte_is_made_up() {
    within(30, |pulse| {
        for to in KINDS {
            for engine in engines(Kind::File, to) {
                for change in CHANGES {
                    for explicit in [false, true] {
                        let case = case(Kind::File, to, engine);
                        let case = format!("{case}, explicit {explicit}, {change:?}");
                        pulse.at(&case);
                        change_under_way(&case, to, engine, explicit, change);
                    }
                }
            }
        }
    });
}

fn change_under_way(case: &str, to: Kind, engine: Option<Backend>, explicit: bool, change: Change) {
    let mut lane = Lane::new(Kind::File, to, TOTAL).nonblocking();
    let others = File::from(make::reopen(&lane.src, OFlag::O_RDWR).expect("a second description"));
    let (src, dst) = lane.ends();
    let mut transfer = options(engine, explicit, to)
        .start(src, dst, u64::MAX)
        .expect(case);
    // Until the destination has no room; a file, which always has, is stopped at a chunk.
    while transfer.delivered() < 100_000 || to != Kind::File {
        match transfer.advance().expect(case) {
            Status::Moved(_) => {}
            Status::Blocked(Side::Destination) => break,
            status => panic!("{case}: {status:?}"),
        }
    }
    let at_change = transfer.delivered();
    let taken = at_change + transfer.in_flight();
    let backend = transfer.backend();
    let after = change.make(&others, lane.data, at_change);

    let mut arrived = Vec::new();
    let outcome = loop {
        match transfer.advance() {
            Ok(Status::Moved(_)) => {}
            Ok(Status::Blocked(side)) => {
                arrived.extend(lane.take_unchecked(1 << 20));
                assert!(
                    lane.is_ready(side, 10_000),
                    "{case}: stalled for the {side}"
                );
            }
            Ok(Status::Finished(end)) => break Ok(end),
            Err(error) => break Err(error),
        }
    };
    let delivered = transfer.delivered();
    drop(transfer);
    let data = lane.data;
    let (src, rest) = lane.close();
    arrived.extend(rest);
    if !explicit {
        assert_eq!(position(&src), delivered, "{case}: the source's position");
    }
    ended(case, backend, &outcome, delivered, &after, at_change, taken);

    // By position: what was delivered before is as it was, what was taken afterwards is as it is.
    assert_eq!(
        arrived.len() as u64,
        delivered,
        "{case}: arrived, against delivered"
    );
    // Pages that were handed on and not yet read are the file's own, cut tails included.
    let aliases = matches!(backend, Backend::Sendfile | Backend::Splice) && to != Kind::File;
    let gone = |position| position >= after.size || matches!(change, Change::Replace);
    let (before, rest) = arrived.split_at(arrived.len().min(taken as usize));
    let (old, new) = (
        data.bytes(0, before.len()),
        after.data.bytes(0, before.len()),
    );
    let changed = before
        .iter()
        .zip(&old)
        .enumerate()
        .filter(|(_, (is, was))| is != was);
    // Most often nothing is, and comparing at once is quick.
    for (at, (byte, _)) in changed.take(if before == old { 0 } else { before.len() }) {
        let position = at as u64;
        let is_new = *byte == new[at] && (aliases || position >= at_change);
        let is_cut = *byte == 0 && aliases && gone(position);
        assert!(
            is_new || is_cut,
            "{case}: {byte} at {position}, changed at {at_change}, {taken}"
        );
    }
    let checked = after.data.check(taken, rest);
    assert_eq!(
        checked,
        Ok(()),
        "{case}: taken after the change, from {taken} on"
    );
}

/// How it must end, and where.
fn ended(
    case: &str,
    backend: Backend,
    outcome: &Result<End, Error>,
    delivered: u64,
    after: &After,
    at_change: u64,
    taken: u64,
) {
    match outcome {
        Ok(end) => {
            assert_eq!(*end, End::SourceEnded, "{case}");
            // To the end as it now is; what had been taken by then cannot be untaken.
            assert_eq!(delivered, after.size.max(taken), "{case}");
        }
        Err(error) => {
            // Only a mapping can tell, and only where what it promised is gone.
            assert_eq!(backend, Backend::Mmap, "{case}: {error}");
            assert_eq!(error.kind(), ErrorKind::SourceTruncated, "{case}: {error}");
            assert_eq!(error.side(), Some(Side::Source), "{case}: {error}");
            assert_eq!(error.delivered(), delivered, "{case}: {error}");
            assert!(error.undelivered().is_empty(), "{case}: {error}");
            assert!(after.size < TOTAL, "{case}: {error}");
            assert_eq!(delivered, after.size.max(at_change), "{case}: {error}");
        }
    }
}

fn options(engine: Option<Backend>, explicit: bool, to: Kind) -> TransferOptions {
    let mut options = by(engine);
    if explicit {
        options.src_offset(0);
    }
    if to == Kind::File {
        options.chunk_size(NonZeroUsize::new(50_000).expect("not zero"));
    }
    options
}

/// The mapping's last page, cut while the call that copies it waits for its reader: the zeros that
/// the kernel shows there are not the file's, and the transfer must not end as if they were.
#[test]
fn a_source_cut_during_the_call_is_not_a_complete_one() {
    within(20, |pulse| {
        for len in [TOTAL, 4 << 20] {
            pulse.at(format!("{len} bytes"));
            let mut lane = Lane::new(Kind::File, Kind::Unix, len);
            let others = make::reopen(&lane.src, OFlag::O_RDWR).expect("a second description");
            let (src, dst) = lane.ends();
            let moving =
                std::thread::spawn(move || by(Some(Backend::Mmap)).transfer(&src, &dst, u64::MAX));
            // It has begun, and cannot have come to the end: nobody reads.
            while lane.take(1) == 0 {
                std::thread::yield_now();
            }
            File::from(others)
                .set_len(len - 1000)
                .expect("ftruncate(2)");
            let mut received = 1;
            while !moving.is_finished() {
                received += lane.take_unchecked(1 << 20).len() as u64;
            }
            received += lane.take_unchecked(1 << 20).len() as u64;
            let error = moving.join().expect("no panic").expect_err("cut");
            assert_eq!(error.kind(), ErrorKind::SourceTruncated, "{error}");
            assert_eq!(error.delivered(), received, "{error}");
            assert_eq!(position(&lane.src), received, "{error}");
        }
    });
}

/// Holes are looked for as the transfer comes to them, so that one that is filled, or made, before
/// that is seen.
#[test]
fn holes_that_come_and_go_are_seen_in_time() {
    within(20, |pulse| {
        for engine in engines(Kind::File, Kind::File) {
            let case = case(Kind::File, Kind::File, engine);
            pulse.at(&case);
            let data = Data::new(9);
            let src = make::disk_file();
            src.set_len(8 << 20).expect("ftruncate(2)");
            for at in [0, 2 << 20, 4 << 20] {
                src.write_all_at(&data.bytes(at, 1 << 20), at)
                    .expect("room");
            }
            let dst = make::disk_file();
            let mut step = 0;
            let report = by(engine)
                .chunk_size(NonZeroUsize::new(256 << 10).expect("not zero"))
                .transfer_with(&src, &dst, u64::MAX, |_| {
                    step += 1;
                    if step == 2 {
                        // The hole at 3 MiB is filled, the data at 4 MiB is punched out.
                        let bytes = data.bytes(3 << 20, 1 << 20);
                        src.write_all_at(&bytes, 3 << 20).expect("room");
                        punch(&src, 4 << 20, 1 << 20);
                    }
                    std::ops::ControlFlow::Continue(())
                })
                .expect(&case);
            assert!(step > 2, "{case}: changed in the middle");
            assert_eq!(report.bytes, 8 << 20, "{case}");
            assert!(contents(&src) == contents(&dst), "{case}: the bytes");
        }
    });
}

fn punch(file: &File, at: i64, len: i64) {
    use nix::fcntl::{FallocateFlags, fallocate};
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, at, len).expect("a filesystem that punches holes");
}

/// A sparse source that another appends to, followed to its end again and again: what he appends
/// arrives, and not the zeros of a hole that was no longer the last thing in the file.
#[test]
fn a_sparse_source_that_grows_arrives_as_it_is() {
    const BLOCK: u64 = 4096;
    const BLOCKS: u64 = 3000;
    within(60, |pulse| {
        for (from, make) in [
            ("disk", make::disk_file as fn() -> File),
            ("memory", make::memfd),
        ] {
            for (backend, explicit) in [(None, false), (Some(Backend::ReadWrite), true)] {
                let case = format!("{from}, {backend:?}, explicit {explicit}");
                pulse.at(&case);
                let (src, dst) = (make(), make());
                src.set_len(64 * BLOCK).expect("ftruncate(2)");
                let whole = (64 + BLOCKS) * BLOCK;
                let others = File::from(make::reopen(&src, OFlag::O_RDWR).expect("another"));
                let others = std::thread::spawn(move || {
                    for at in (64 * BLOCK..whole).step_by(BLOCK as usize) {
                        others.write_all_at(&[7; BLOCK as usize], at).expect("room");
                    }
                });
                let mut options = by(backend);
                if explicit {
                    options.src_offset(0).dst_offset(0);
                }
                let mut transfer = options.start(&src, &dst, u64::MAX).expect(&case);
                while transfer.delivered() < whole {
                    transfer.advance().expect(&case);
                }
                drop(transfer);
                others.join().expect("no panic");
                let arrived = contents(&dst);
                assert_eq!(arrived.len() as u64, whole, "{case}");
                let (hole, data) = arrived.split_at(64 * BLOCK as usize);
                assert!(hole.iter().all(|byte| *byte == 0), "{case}: the hole");
                let lost = data.iter().filter(|byte| **byte != 7).count();
                assert_eq!(lost, 0, "{case}: bytes that are not in the source");
            }
        }
    });
}
