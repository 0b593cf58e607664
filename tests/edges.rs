//! Where offsets end, destinations that append, and a file copied onto itself.

mod common;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use common::oracle::position;
use common::{
    Before, Claim, Data, DestinationKind, Source, SourceKind, each_backend, make, skipped, within,
};
use nix::fcntl::OFlag;
use zcio::{End, Error, ErrorKind, Side, Status, TransferOptions};

const DATA: Data = Data::new(0xed6e);
const EDGE: u64 = i64::MAX as u64;

fn source(kind: SourceKind, len: u64) -> Source {
    kind.make(DATA, len).unwrap()
}

fn content(file: impl AsFd) -> Vec<u8> {
    let file = File::from(make::reopen(file, OFlag::O_RDONLY).unwrap());
    let len = file.metadata().unwrap().len();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn number(error: &Error) -> Option<i32> {
    error.io_error().and_then(io::Error::raw_os_error)
}

// --- offsets ----------------------------------------------------------------------------------

/// The last bytes that a file can have: what fits is delivered, then comes a typed error.
#[test]
fn a_destination_at_the_largest_offset() {
    within(10, |pulse| {
        for room in [0, 1, 5, 4096, 70_000] {
            for explicit in [true, false] {
                let sample = (source(SourceKind::Memfd, 10), make::memfd());
                for (name, mut options) in each_backend(&sample.0, &sample.1) {
                    let case = format!("{room} bytes before 2^63 - 1 by {name}, {explicit}");
                    pulse.at(&case);
                    let (src, mut dst) = (source(SourceKind::Memfd, 100_000), make::memfd());
                    if explicit {
                        options.dst_offset(EDGE - room);
                    } else {
                        dst.seek(SeekFrom::Start(EDGE - room)).unwrap();
                    }
                    let offsets = (None, explicit.then_some(EDGE - room));
                    let before = Before::new(&src, &dst);
                    let result = options.transfer(&src, &dst, 100_000);
                    let claim = Claim::from(&result);
                    before
                        .leaves(&src, &dst, offsets, &claim)
                        .unwrap_or_else(|e| panic!("{case}: {e}: {result:?}"));
                    let error = result.expect_err(&case);
                    // A mechanism forced may refuse what it cannot do; what went before counts.
                    match error.kind() {
                        ErrorKind::Unfit => assert!(error.delivered() <= room, "{case}: {error}"),
                        _ if explicit => {
                            assert_eq!(number(&error), Some(libc::EFBIG), "{case}: {error}");
                            assert_eq!(error.delivered(), room, "{case}: {error}");
                        }
                        // At its own position the kernel refuses a count that reaches beyond.
                        _ => {
                            let answers = [libc::EFBIG, libc::EINVAL, libc::EOVERFLOW];
                            assert!(
                                answers.contains(&number(&error).unwrap()),
                                "{case}: {error}"
                            );
                            assert!(error.delivered() <= room, "{case}: {error}");
                        }
                    }
                    if error.kind() == ErrorKind::Io {
                        assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
                    }
                    if name.starts_with("the probe") {
                        assert_eq!(error.kind(), ErrorKind::Io, "{case}: {error}");
                    }
                    let mut bytes = vec![0; error.delivered() as usize];
                    dst.read_exact_at(&mut bytes, EDGE - room).unwrap();
                    assert_eq!(DATA.check(0, &bytes), Ok(()), "{case}");
                    src.settle(error.delivered()).unwrap();
                }
            }
        }
    });
}

/// A source that reaches to the largest offset there is: all of it, and its end.
#[test]
fn a_source_up_to_the_largest_offset() {
    within(10, |pulse| {
        let src = make::memfd();
        src.set_len(EDGE).unwrap();
        let tail = DATA.bytes(0, 5000);
        src.write_all_at(&tail, EDGE - 5000).unwrap();
        for to in [
            DestinationKind::Memfd,
            DestinationKind::Pipe,
            DestinationKind::Unix,
        ] {
            for (name, mut options) in each_backend(&src, to.make().unwrap()) {
                for len in [5000, 5001, EDGE, u64::MAX] {
                    let case = format!("{len} bytes to {to:?} by {name}");
                    pulse.at(&case);
                    let dst = to.make().unwrap();
                    let before = Before::new(&src, &dst);
                    let result = options.src_offset(EDGE - 5000).transfer(&src, &dst, len);
                    let claim = Claim::from(&result);
                    before
                        .leaves(&src, &dst, (Some(0), None), &claim)
                        .unwrap_or_else(|e| panic!("{case}: {e}: {result:?}"));
                    let held = dst.settle(claim.delivered).unwrap();
                    let common::destination::Held::Bytes(held) = held else {
                        unreachable!("all of these can be read back")
                    };
                    assert_eq!(held.len() as u64, claim.delivered, "{case}: {result:?}");
                    assert!(tail.starts_with(&held), "{case}");
                    match result {
                        Ok(report) => assert_eq!(report.bytes, 5000, "{case}: {report:?}"),
                        // A mechanism forced may refuse what it cannot do; once it has served, what the
                        // kernel says is the error. No page can be mapped that reaches to 2^63, and
                        // Linux 5.10 tells of a hole just before it.
                        Err(error) => {
                            let served = error.delivered() > 0;
                            let beyond = number(&error) == Some(libc::EOVERFLOW);
                            let refused = error.kind() == ErrorKind::Unfit || served && beyond;
                            assert!(refused, "{case}: {error}");
                            assert!(!name.starts_with("the probe"), "{case}: {error}");
                        }
                    }
                }
            }
        }
    });
}

// --- O_APPEND ---------------------------------------------------------------------------------

const HEAD: &[u8] = b"what stood there before";

/// Set at open: every backend that fits appends, wherever the descriptor stood.
#[test]
fn a_destination_that_appends() {
    within(10, |pulse| {
        for kind in [
            SourceKind::DiskFile,
            SourceKind::Memfd,
            SourceKind::Pipe,
            SourceKind::Tcp,
        ] {
            let sample = DestinationKind::AppendFile.make().unwrap();
            for (name, options) in each_backend(source(kind, 10), &sample) {
                let case = format!("{kind:?} by {name}");
                pulse.at(&case);
                let dst = DestinationKind::AppendFile.make().unwrap();
                nix::unistd::write(&dst, HEAD).unwrap();
                let mut own = File::from(dst.fd.try_clone().unwrap());
                own.rewind().unwrap();
                drop(own);
                let src = source(kind, 600_000);
                let before = Before::new(&src, &dst);
                let result = options.transfer(&src, &dst, u64::MAX);
                assert_eq!(result.as_ref().unwrap().bytes, 600_000, "{case}");
                assert_eq!(content(&dst)[..HEAD.len()], *HEAD, "{case}");
                let dst = dst.delivered_from(HEAD.len() as u64);
                before.judge(&case, src, dst, (None, None), 0, &Claim::from(&result));
            }
        }
    });
}

/// Set by somebody else who shares the description, before the first step or in the middle: the
/// bytes land at the end, in order, or a typed error counts exactly.
#[test]
fn a_destination_that_somebody_else_makes_append() {
    within(10, |pulse| {
        for kind in [
            SourceKind::DiskFile,
            SourceKind::Memfd,
            SourceKind::Pipe,
            SourceKind::Unix,
        ] {
            let sample = DestinationKind::DiskFile.make().unwrap();
            for (name, mut options) in each_backend(source(kind, 10), &sample) {
                for steps in 0..3 {
                    let case = format!("{kind:?} by {name}, after {steps} steps");
                    pulse.at(&case);
                    let dst = DestinationKind::DiskFile.make().unwrap();
                    nix::unistd::write(&dst, HEAD).unwrap();
                    let src = source(kind, 600_000);
                    options.chunk_size(100_000.try_into().unwrap());
                    let mut transfer = options.start(&src, &dst, 600_000).unwrap();
                    for _ in 0..steps {
                        assert!(matches!(transfer.advance(), Ok(Status::Moved(_))), "{case}");
                    }
                    let other = dst.fd.try_clone().unwrap();
                    make::set_flags(&other, make::flags(&other) | OFlag::O_APPEND);
                    let result = loop {
                        match transfer.advance() {
                            Ok(Status::Moved(_)) => {}
                            Ok(Status::Blocked(side)) => panic!("{case}: blocked on the {side}"),
                            Ok(Status::Finished(End::Complete)) => break Ok(transfer.report()),
                            Ok(Status::Finished(end)) => panic!("{case}: {end:?}"),
                            Err(error) => break Err(error),
                        }
                    };
                    drop(transfer);
                    let claim = Claim::from(&result);
                    if name.starts_with("the probe") {
                        assert!(result.is_ok(), "{case}: {result:?}");
                    }
                    let bytes = content(&dst);
                    let mut expected = HEAD.to_vec();
                    expected.extend(DATA.bytes(0, claim.delivered as usize));
                    assert!(bytes == expected, "{case}: {result:?}");
                    assert_eq!(position(&dst), bytes.len() as u64, "{case}: {result:?}");
                    assert_eq!(
                        DATA.check(claim.delivered, &claim.handed_back),
                        Ok(()),
                        "{case}"
                    );
                    src.settle(claim.taken())
                        .unwrap_or_else(|e| panic!("{case}: {e}"));
                }
            }
        }
    });
}

// --- the same file ----------------------------------------------------------------------------

/// A file of 64 KiB copied onto itself, by each backend.
fn onto_itself(
    kind: SourceKind,
    (from, to, len): (u64, u64, u64),
    check: impl Fn(&str, &[u8], zcio::Result<zcio::Report>),
) {
    let sample = source(kind, SIZE);
    let backends = each_backend(&sample, make::reopen(&sample, OFlag::O_RDWR).unwrap());
    for (name, mut options) in backends {
        let case = format!("{kind:?}: {len} from {from} to {to} by {name}");
        let src = source(kind, SIZE);
        let dst = make::reopen(&src, OFlag::O_RDWR).unwrap();
        options.src_offset(from).dst_offset(to);
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
        let before = Before::new(&src, &dst);
        let result = options.transfer(&src, &dst, len);
        let claim = Claim::from(&result);
        before
            .leaves(&src, &dst, (Some(from), Some(to)), &claim)
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        check(&case, &content(&src), result);
    }
}

const SIZE: u64 = 64 << 10;

#[test]
fn a_file_onto_itself_apart() {
    within(10, |pulse| {
        for kind in [SourceKind::DiskFile, SourceKind::Memfd] {
            for (from, to, len) in [
                (0, SIZE, u64::MAX), // onto its own end: once, not for ever
                (0, SIZE, SIZE),
                (0, SIZE / 2, SIZE / 2), // touching
                (SIZE / 2, 0, u64::MAX),
                (1, 30_001, 30_000),
                (30_001, 1, 30_000),
                (100, SIZE + 9, u64::MAX), // beyond its end, leaving a gap
                (SIZE, 0, 10),             // nothing there
            ] {
                pulse.at(format!("{len} from {from} to {to}"));
                onto_itself(kind, (from, to, len), |case, bytes, result| {
                    let moved = len.min(SIZE - from);
                    let report = match result {
                        Ok(report) => report,
                        // A filesystem that shares extents shares whole blocks only.
                        Err(e) if e.kind() == ErrorKind::Unfit && case.contains("reflink") => {
                            return;
                        }
                        Err(e) => panic!("{case}: {e}"),
                    };
                    assert_eq!(report.bytes, moved, "{case}");
                    let mut expected = DATA.bytes(0, SIZE as usize);
                    let (at, end) = (to as usize, (to + moved) as usize);
                    let piece = expected[from as usize..(from + moved) as usize].to_vec();
                    expected.resize(expected.len().max(if moved > 0 { end } else { 0 }), 0);
                    expected[at..end.max(at)].copy_from_slice(&piece);
                    assert!(bytes == expected, "{case}");
                });
            }
        }
    });
}

#[test]
fn a_file_onto_itself_overlapping() {
    within(10, |pulse| {
        for kind in [SourceKind::DiskFile, SourceKind::Memfd] {
            for (from, to, len) in [
                (0, 0, SIZE),
                (0, 0, 1),
                (0, SIZE / 2, SIZE / 2 + 1),
                (0, 1, SIZE),
                (1, 0, SIZE),
                (SIZE / 2, 1, u64::MAX),
                (0, SIZE - 1, u64::MAX),
            ] {
                pulse.at(format!("{len} from {from} to {to}"));
                onto_itself(kind, (from, to, len), |case, bytes, result| {
                    let error = result.expect_err(case);
                    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{case}: {error}");
                    assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
                    let text =
                        "destination refused: it is the source itself, and the ranges overlap";
                    assert_eq!(error.to_string(), text, "{case}");
                    assert_eq!(
                        (error.delivered(), DATA.check(0, bytes)),
                        (0, Ok(())),
                        "{case}"
                    );
                    assert_eq!(bytes.len() as u64, SIZE, "{case}");
                });
            }
        }
    });
}

/// By the descriptors' own positions, and by one that appends: the file doubles, and that is that.
#[test]
fn a_file_appended_to_itself() {
    within(10, |pulse| {
        for kind in [SourceKind::DiskFile, SourceKind::Memfd] {
            for flags in [OFlag::O_RDWR, OFlag::O_RDWR | OFlag::O_APPEND] {
                let sample = source(kind, SIZE);
                for (name, options) in each_backend(&sample, make::reopen(&sample, flags).unwrap())
                {
                    let case = format!("{kind:?} by {name}, {flags:?}");
                    pulse.at(&case);
                    let src = source(kind, SIZE);
                    let mut dst = File::from(make::reopen(&src, flags).unwrap());
                    dst.seek(SeekFrom::End(0)).unwrap();
                    let before = Before::new(&src, &dst);
                    let result = options.transfer(&src, &dst, u64::MAX);
                    let claim = Claim::from(&result);
                    before.leaves(&src, &dst, (None, None), &claim).unwrap();
                    let report = result.unwrap_or_else(|e| panic!("{case}: {e}"));
                    assert_eq!(
                        (report.bytes, report.end),
                        (SIZE, End::SourceEnded),
                        "{case}"
                    );
                    let once = DATA.bytes(0, SIZE as usize);
                    assert!(content(&src) == [once.clone(), once].concat(), "{case}");
                }
            }
        }
        // One descriptor for both sides has one position: the ranges are the same.
        let same = source(SourceKind::Memfd, SIZE);
        let error = zcio::transfer(&same, &same, 10).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        // Unless offsets say otherwise.
        let report = TransferOptions::new()
            .dst_offset(SIZE)
            .transfer(&same, &same, 10);
        assert_eq!(report.unwrap().bytes, 10);
        assert_eq!(position(&same), 10);
    });
}

/// A hole takes no time, whatever the rate, and the largest that there can be overflows nothing.
#[test]
fn the_largest_hole_at_the_lowest_rate() {
    let (src, dst) = (make::memfd(), make::memfd());
    src.set_len(i64::MAX as u64).unwrap();
    if let Ok(at) = nix::unistd::lseek(&src, 0, nix::unistd::Whence::SeekData) {
        let text = format!("this kernel finds data at {at}, where nothing was written");
        return skipped("the largest hole there can be", text);
    }
    let mut options = TransferOptions::new();
    let options = options.rate(std::num::NonZeroU64::MIN);
    let mut transfer = options.start(&src, &dst, u64::MAX).unwrap();
    transfer.advance().unwrap();
    assert_eq!(transfer.resume_at(), None);
    assert_eq!(transfer.delivered(), i64::MAX as u64);
    assert_eq!(dst.metadata().unwrap().len(), i64::MAX as u64);
}

/// A description that appends has one position: what is written would move where it is read. It ended
/// early, as if the source had.
#[test]
fn a_description_appended_to_itself_needs_an_offset() {
    let file = make::disk_file();
    let data = Data::new(9).bytes(0, 1 << 20);
    file.write_all_at(&data, 0).unwrap();
    let both = File::from(make::reopen(&file, OFlag::O_RDWR | OFlag::O_APPEND).unwrap());
    for dst in [both.as_fd(), both.try_clone().unwrap().as_fd()] {
        let error = zcio::transfer(&both, dst, u64::MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.side(), Some(Side::Destination));
    }
    let report = TransferOptions::new()
        .src_offset(0)
        .transfer(&both, &both, u64::MAX);
    assert_eq!(report.unwrap().bytes, 1 << 20);
    assert!(content(&file) == [&data[..], &data[..]].concat());
}

/// `SO_RCVLOWAT` makes poll(2) call a source unreadable that has bytes: the destination is full, and it
/// is the side to wait for.
#[test]
#[allow(unsafe_code)]
fn a_low_water_mark_does_not_make_the_source_block() {
    let (mut peer, src) = common::make::tcp();
    src.set_nonblocking(true).unwrap();
    let mark: libc::c_int = 65536;
    // SAFETY: SO_RCVLOWAT is one int, which is read. (No crate here has a safe name for it.)
    let set = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&src),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const mark).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    common::make::set_nonblocking(std::os::fd::AsFd::as_fd(&writer), true);
    while std::io::Write::write(&mut writer, &[9; 4096]).is_ok() {}
    std::io::Write::write_all(&mut peer, &[5; 10]).unwrap();
    while nix::sys::socket::recv(
        std::os::fd::AsRawFd::as_raw_fd(&src),
        &mut [0; 1],
        nix::sys::socket::MsgFlags::MSG_PEEK,
    )
    .is_err()
    {
        std::thread::yield_now();
    }
    let mut transfer = zcio::TransferOptions::new()
        .start(&src, &writer, u64::MAX)
        .unwrap();
    assert_eq!(
        transfer.advance().unwrap(),
        zcio::Status::Blocked(zcio::Side::Destination)
    );
    std::io::Read::read_exact(&mut reader, &mut [0; 8192]).unwrap();
    assert!(matches!(transfer.advance().unwrap(), zcio::Status::Moved(n) if n.get() == 10));
}
