//! Bytes in flight: taken from the source and not yet in the destination, they are taken back, let
//! go, handed back by an error or carried on, and never counted wrong.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use common::oracle::position;
use common::{
    Before, Claim, Data, DestinationKind, Source, SourceKind, drive, each_backend, make, within,
};
use zcio::{End, ErrorKind, Side, Status, Transfer};

const DATA: Data = Data::new(0xf119);
/// Where a file is read from.
const START: u64 = 12_345;
const LEN: u64 = 900_000;

/// What becomes of a transfer that is stuck with bytes in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Reclaim,
    Drop,
    IntoParts,
    /// The reader goes away: the next step fails.
    Fail,
}

/// The three kinds of stream that a transfer can be stuck on: (reading end, writing end).
fn stuck_kinds() -> [(&'static str, OwnedFd, OwnedFd); 3] {
    let (pipe, tcp, unix) = (make::pipe(), make::tcp(), make::unix());
    [
        ("a pipe", pipe.0, pipe.1),
        ("TCP", tcp.0.into(), tcp.1.into()),
        ("a UNIX socket", unix.0.into(), unix.1.into()),
    ]
}

/// Reads what there is, without waiting for more.
fn read_available(fd: &OwnedFd) -> Vec<u8> {
    make::set_nonblocking(fd, true);
    let mut file = File::from(fd.try_clone().unwrap());
    let mut bytes = Vec::new();
    // EAGAIN ends it: what had been read by then stays.
    let _ = file.read_to_end(&mut bytes);
    bytes
}

/// Reads everything that was delivered to `dst`. What a socket took may still be on its way: there
/// the end is waited for, which a shutdown of the sending side makes.
fn read_delivered(reader: &OwnedFd, dst: &OwnedFd) -> Vec<u8> {
    use nix::sys::socket::{Shutdown, shutdown};
    if shutdown(dst.as_raw_fd(), Shutdown::Write).is_err() {
        return read_available(reader);
    }
    let mut bytes = Vec::new();
    let mut file = File::from(reader.try_clone().unwrap());
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn stuck<'a>(transfer: &mut Transfer<&'a Source, &'a OwnedFd>) -> zcio::Result<()> {
    loop {
        match transfer.advance()? {
            Status::Moved(_) => {}
            Status::Blocked(Side::Destination) => return Ok(()),
            Status::Blocked(Side::Source) => drive::wait_for(transfer, Side::Source),
            Status::Finished(end) => panic!("{end:?}: the reader reads nothing"),
        }
    }
}

/// More than any stream on loopback takes without its reader.
const MUCH: u64 = 12 << 20;

#[test]
fn stuck_with_bytes_in_flight() {
    use SourceKind::{DiskFile, Memfd, Pipe, Tcp, Unix};
    within(20, |pulse| {
        let mut held_some = 0;
        for from in [DiskFile, Memfd, Pipe, Tcp, Unix] {
            let shared = (!from.is_stream()).then(|| from.make(DATA, MUCH).unwrap());
            for (index, (to, _, sample)) in stuck_kinds().into_iter().enumerate() {
                for (name, options) in each_backend(from.make(DATA, 10).unwrap(), &sample) {
                    for then in [Then::Reclaim, Then::Drop, Then::IntoParts, Then::Fail] {
                        for explicit in [false, true] {
                            if explicit && from.is_stream() {
                                continue;
                            }
                            let case = format!("{from:?} to {to} by {name}, {then:?}, {explicit}");
                            pulse.at(&case);
                            let start = if from.is_stream() { 0 } else { START };
                            let mut options = options.clone();
                            if explicit {
                                options.src_offset(start);
                            }
                            let fresh = shared.is_none().then(|| from.make(DATA, MUCH).unwrap());
                            let src = shared.as_ref().or(fresh.as_ref()).unwrap();
                            let (_, reader, dst) = stuck_kinds().into_iter().nth(index).unwrap();
                            if !from.is_stream() {
                                make::seek(src, if explicit { 0 } else { start });
                            }
                            make::set_nonblocking(src, true);
                            make::set_nonblocking(&dst, true);
                            let before = Before::new(src, &dst);
                            let mut transfer = options.start(src, &dst, MUCH).unwrap();
                            stuck(&mut transfer).unwrap_or_else(|e| panic!("{case}: {e}"));
                            let (mut delivered, held) =
                                (transfer.delivered(), transfer.in_flight());
                            held_some += usize::from(held > 0);
                            assert_eq!(transfer.remaining(), MUCH - delivered, "{case}");
                            let mut back = Vec::new();
                            // A stream's bytes go with the transfer that is let go.
                            let mut lost = 0;
                            let received;
                            match then {
                                Then::Reclaim => {
                                    back = transfer.reclaim().unwrap().to_vec();
                                    assert_eq!(transfer.in_flight(), 0, "{case}");
                                    drop(transfer);
                                    received = read_delivered(&reader, &dst);
                                }
                                Then::Drop => {
                                    drop(transfer);
                                    lost = held;
                                    received = read_delivered(&reader, &dst);
                                }
                                Then::IntoParts => {
                                    let _ = transfer.into_parts();
                                    lost = held;
                                    received = read_delivered(&reader, &dst);
                                }
                                Then::Fail => {
                                    received = read_available(&reader);
                                    drop(reader);
                                    let error = loop {
                                        match transfer.advance() {
                                            Ok(Status::Moved(_)) => {}
                                            Ok(Status::Blocked(side)) => {
                                                drive::wait_for(&transfer, side);
                                            }
                                            Ok(other) => panic!("{case}: {other:?}"),
                                            Err(error) => break error,
                                        }
                                    };
                                    assert_eq!(error.side(), Some(Side::Destination), "{case}");
                                    assert_eq!(error.kind(), ErrorKind::Io, "{case}: {error}");
                                    delivered = error.delivered();
                                    back = error.into_undelivered().to_vec();
                                    assert_eq!(transfer.in_flight(), 0, "{case}");
                                    drop(transfer);
                                }
                            }
                            if !from.is_stream() {
                                lost = 0;
                                assert!(back.is_empty(), "{case}: the source can rewind");
                            }
                            // What a hung-up reader had in its buffer is gone, and was delivered.
                            if then != Then::Fail {
                                assert_eq!(received.len() as u64, delivered, "{case}");
                            }
                            assert_eq!(DATA.check(start, &received), Ok(()), "{case}");
                            assert_eq!(DATA.check(start + delivered, &back), Ok(()), "{case}");
                            let claim = Claim {
                                delivered,
                                handed_back: back,
                            };
                            let taken = claim.taken() + lost;
                            if then != Then::Fail {
                                let offsets = (explicit.then_some(start), None);
                                before
                                    .leaves(src, &dst, offsets, &claim)
                                    .unwrap_or_else(|e| panic!("{case}: {e}"));
                            } else if !from.is_stream() {
                                let moved = if explicit { 0 } else { start + delivered };
                                assert_eq!(position(src), moved, "{case}");
                            }
                            if let Some(src) = fresh {
                                src.settle(taken).unwrap_or_else(|e| panic!("{case}: {e}"));
                            }
                        }
                    }
                }
            }
            if let Some(src) = shared {
                src.settle(0).unwrap_or_else(|e| panic!("{from:?}: {e}"));
            }
        }
        assert!(held_some > 40, "only {held_some} cases had bytes in flight");
    });
}

/// Taken back, a transfer goes on: what a stream handed back is the caller's, the rest arrives.
#[test]
fn goes_on_after_taking_back() {
    use SourceKind::{DiskFile, Memfd, Pipe, Tcp};
    within(20, |pulse| {
        for from in [DiskFile, Memfd, Pipe, Tcp] {
            let (_, sample) = make::unix();
            let sample = OwnedFd::from(sample);
            for (name, options) in each_backend(from.make(DATA, 10).unwrap(), &sample) {
                let case = format!("{from:?} by {name}");
                pulse.at(&case);
                let src = from.make(DATA, 3 << 20).unwrap();
                let (reader, dst) = make::unix();
                let (reader, dst) = (OwnedFd::from(reader), OwnedFd::from(dst));
                make::set_nonblocking(&src, true);
                make::set_nonblocking(&dst, true);
                let mut transfer = options.start(&src, &dst, u64::MAX).unwrap();
                stuck(&mut transfer).unwrap();
                let first = transfer.delivered();
                let back = transfer.reclaim().unwrap();
                assert_eq!(DATA.check(first, &back), Ok(()), "{case}");
                let mut received = read_available(&reader);
                assert_eq!(received.len() as u64, first, "{case}");
                let end = loop {
                    match transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}")) {
                        Status::Finished(end) => break end,
                        Status::Blocked(Side::Source) => drive::wait_for(&transfer, Side::Source),

                        _ => received.extend(read_available(&reader)),
                    }
                };
                received.extend(read_available(&reader));
                assert_eq!(end, End::SourceEnded, "{case}");
                let delivered = transfer.delivered();
                assert_eq!(received.len() as u64, delivered, "{case}");
                assert_eq!(delivered + back.len() as u64, 3 << 20, "{case}");
                let (one, two) = received.split_at(first as usize);
                assert_eq!(DATA.check(0, one), Ok(()), "{case}");
                assert_eq!(DATA.check(first + back.len() as u64, two), Ok(()), "{case}");
                drop(transfer);
                src.settle(3 << 20).unwrap();
            }
        }
    });
}

/// The destination fails in the middle, at a place that is known: a memfd sealed against growing.
/// The source stands where the count says, and a second transfer brings the rest.
#[test]
fn failed_in_the_middle() {
    use SourceKind::{DirectFile, DiskFile, Memfd, Pipe, Tcp, Unix};
    const ROOM: u64 = 500_000;
    within(20, |pulse| {
        for from in [DiskFile, Memfd, DirectFile, Pipe, Tcp, Unix] {
            for (name, options) in each_backend(from.make(DATA, 10).unwrap(), make::memfd()) {
                let case = format!("{from:?} by {name}");
                pulse.at(&case);
                let src = from.make(DATA, LEN).unwrap();
                let dst = make::sealed_against_growing(ROOM);
                let before = Before::new(&src, &dst);
                let result = options.transfer(&src, &dst, LEN);
                let claim = Claim::from(&result);
                let error = result.expect_err(&case);
                before
                    .leaves(&src, &dst, (None, None), &claim)
                    .unwrap_or_else(|e| panic!("{case}: {e}: {error}"));
                // A call that would pass the end as a whole may be refused as a whole.
                assert!(claim.delivered <= ROOM, "{case}: {error}");
                let mut held = vec![0; claim.delivered as usize];
                dst.read_exact_at(&mut held, 0).unwrap();
                assert_eq!(DATA.check(0, &held), Ok(()), "{case}");
                let back = &claim.handed_back;
                assert_eq!(DATA.check(claim.delivered, back), Ok(()), "{case}");
                if !from.is_stream() {
                    assert!(back.is_empty(), "{case}");
                    // From here a second one goes on.
                    let rest = DestinationKind::Memfd.make().unwrap();
                    let before = Before::new(&src, &rest);
                    let result = zcio::transfer(&src, &rest, u64::MAX);
                    let again = Claim::from(&result);
                    assert_eq!(claim.delivered + again.delivered, LEN, "{case}");
                    before.judge(&case, src, rest, (None, None), claim.delivered, &again);
                } else {
                    src.settle(claim.taken())
                        .unwrap_or_else(|e| panic!("{case}: {e}"));
                }
            }
        }
    });
}
