//! Input that makes no sense, each kind with its own clear error before anything is touched; and
//! lengths and offsets at the edges of what there is.
// A closed descriptor can only be named by its number.
#![allow(unsafe_code)]

mod common;

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{
    Before, Claim, Data, DestinationKind, Source, SourceKind, each_backend, make, within,
};
use nix::fcntl::OFlag;
use zcio::{Backend, End, Error, ErrorKind, Side, Status, TransferOptions};

const DATA: Data = Data::new(0x1259);
const LEN: u64 = 300_000;

fn source() -> Source {
    SourceKind::DiskFile.make(DATA, LEN).unwrap()
}

/// All ways to ask refuse with this side, this kind of answer and this message, and leave both
/// sides as they were.
fn refused(
    options: &TransferOptions,
    src: impl AsFd,
    dst: impl AsFd,
    side: Side,
    answer: io::ErrorKind,
    message: &str,
) {
    let (src, dst) = (src.as_fd(), dst.as_fd());
    let before = Before::new(src, dst);
    let is_the_one = |error: &Error| {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(error.side(), Some(side), "{error}");
        assert_eq!(error.backend(), None, "{error}");
        assert_eq!(error.delivered(), 0, "{error}");
        assert!(error.undelivered().is_empty(), "{error}");
        assert_eq!(error.to_string(), format!("{side} refused: {message}"));
        assert_eq!(error.io_error().unwrap().kind(), answer, "{error}");
    };
    let error = options.transfer(src, dst, 10).expect_err(message);
    is_the_one(&error);
    // As an io::Error it keeps its kind, and the whole of it stays reachable.
    let error = io::Error::from(error);
    assert_eq!(error.kind(), answer, "{error}");
    is_the_one(&error.downcast::<Error>().unwrap());
    is_the_one(&options.start(src, dst, 10).expect_err(message));
    is_the_one(&options.start(src, dst, 0).expect_err(message));
    let error = options.probe(src, dst).expect_err(message);
    assert_eq!(error.kind(), answer, "{error}");
    is_the_one(&error.downcast::<Error>().unwrap());
    for backend in Backend::ALL {
        let mut forced = options.clone();
        is_the_one(
            &forced
                .backend(backend)
                .transfer(src, dst, 10)
                .expect_err(message),
        );
    }
    let claim = Claim::default();
    before
        .leaves(src, dst, (None, None), &claim)
        .unwrap_or_else(|e| panic!("{message}: {e}"));
}

#[test]
fn kinds_that_no_transfer_serves() {
    use io::ErrorKind::{InvalidInput, IsADirectory, Unsupported};
    const MESSAGES: &str = "it is a socket that keeps message boundaries";
    const ANONYMOUS: &str = "it is an anonymous inode";
    let options = TransferOptions::new();
    within(10, move |pulse| {
        for (kind, answer, message) in [
            (SourceKind::UnixDatagram, Unsupported, MESSAGES),
            (SourceKind::Seqpacket, Unsupported, MESSAGES),
            (SourceKind::Udp, Unsupported, MESSAGES),
            (SourceKind::Directory, IsADirectory, "it is a directory"),
            (
                SourceKind::OPath,
                InvalidInput,
                "it is an O_PATH descriptor",
            ),
            (SourceKind::Eventfd, InvalidInput, ANONYMOUS),
            (SourceKind::Timerfd, InvalidInput, ANONYMOUS),
            (SourceKind::Epoll, InvalidInput, ANONYMOUS),
            (SourceKind::Inotify, InvalidInput, ANONYMOUS),
        ] {
            pulse.at(format!("{kind:?}"));
            // One by one: a message socket has the one message still in it.
            let bad = kind.make(DATA, LEN).unwrap();
            let good = DestinationKind::Memfd.make().unwrap();
            refused(&options, &bad, &good, Side::Source, answer, message);
            bad.settle(0).unwrap();
            refused(
                &options,
                source(),
                kind.make(DATA, LEN).unwrap(),
                Side::Destination,
                answer,
                message,
            );
        }
        for kind in [
            DestinationKind::UnixDatagram,
            DestinationKind::Seqpacket,
            DestinationKind::Udp,
        ] {
            let (src, bad) = (source(), kind.make().unwrap());
            refused(
                &options,
                &src,
                &bad,
                Side::Destination,
                Unsupported,
                MESSAGES,
            );
            // Not one message came through.
            bad.settle(0).unwrap();
        }
    });
}

#[test]
fn wrong_access_modes() {
    const READING: &str = "it is not open for reading";
    const WRITING: &str = "it is not open for writing";
    let denied = io::ErrorKind::PermissionDenied;
    let options = TransferOptions::new();
    within(10, move |_| {
        let file = make::disk_file();
        let write_only = make::reopen(&file, OFlag::O_WRONLY).unwrap();
        let read_only = make::reopen(&file, OFlag::O_RDONLY).unwrap();
        let (reading_end, writing_end) = make::pipe();
        let good = make::memfd();
        for bad in [&write_only, &writing_end] {
            refused(&options, bad, &good, Side::Source, denied, READING);
        }
        for bad in [&read_only, &reading_end] {
            refused(&options, source(), bad, Side::Destination, denied, WRITING);
        }
        // The source is looked at first.
        refused(
            &options,
            &write_only,
            &read_only,
            Side::Source,
            denied,
            READING,
        );
    });
}

#[test]
fn offsets_where_there_can_be_none() {
    use io::ErrorKind::{InvalidInput, NotSeekable};
    within(10, |pulse| {
        let with_src = |at| TransferOptions::new().src_offset(at).clone();
        let with_dst = |at| TransferOptions::new().dst_offset(at).clone();
        let good = make::memfd();
        for offset in [1 << 63, (1 << 63) + 1, u64::MAX] {
            let text = format!("offset {offset} is beyond 2^63 - 1, the largest there is");
            let (by_src, by_dst) = (with_src(offset), with_dst(offset));
            refused(&by_src, source(), &good, Side::Source, InvalidInput, &text);
            refused(
                &by_dst,
                source(),
                &good,
                Side::Destination,
                InvalidInput,
                &text,
            );
        }
        for (kind, to, name) in [
            (SourceKind::Pipe, DestinationKind::Pipe, "a pipe"),
            (SourceKind::Fifo, DestinationKind::Fifo, "a pipe"),
            (SourceKind::Tcp, DestinationKind::Tcp, "a TCP socket"),
            (
                SourceKind::Unix,
                DestinationKind::Unix,
                "a UNIX stream socket",
            ),
        ] {
            pulse.at(name);
            let text = format!("it is {name} and takes no offset");
            let (src, dst) = (kind.make(DATA, LEN).unwrap(), to.make().unwrap());
            refused(&with_src(0), &src, &good, Side::Source, NotSeekable, &text);
            refused(
                &with_dst(0),
                source(),
                &dst,
                Side::Destination,
                NotSeekable,
                &text,
            );
            src.settle(0).unwrap();
        }
        let append = DestinationKind::AppendFile.make().unwrap();
        let text = "it appends (O_APPEND), whatever the offset";
        refused(
            &with_dst(0),
            source(),
            &append,
            Side::Destination,
            InvalidInput,
            text,
        );
        refused(
            &with_dst(LEN),
            source(),
            &append,
            Side::Destination,
            InvalidInput,
            text,
        );
    });
}

#[test]
fn a_closed_descriptor() {
    within(10, |_| {
        // The table is this test's own: the number stays closed.
        let closed = make::memfd().as_raw_fd();
        // SAFETY: it is not open, which is what is tested: each call on it answers EBADF.
        let closed = unsafe { BorrowedFd::borrow_raw(closed + 10) };
        let good = make::memfd();
        let check = |error: Error, side| {
            assert_eq!((error.kind(), error.side()), (ErrorKind::Io, Some(side)));
            assert_eq!((error.delivered(), error.backend()), (0, None));
            let number = error.io_error().and_then(io::Error::raw_os_error);
            assert_eq!(number, Some(libc::EBADF), "{error}");
            let text = format!("{side} failed after 0 bytes: Bad file descriptor (os error 9)");
            assert_eq!(error.to_string(), text);
        };
        check(zcio::transfer(closed, &good, 10).unwrap_err(), Side::Source);
        check(
            zcio::transfer(&good, closed, 10).unwrap_err(),
            Side::Destination,
        );
        let error = zcio::Probe::new(closed, &good).unwrap_err();
        check(error.downcast().unwrap(), Side::Source);
    });
}

#[test]
fn sockets_that_are_not_connected() {
    within(10, |_| {
        let listener = OwnedFd::from(TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let error = zcio::transfer(&listener, make::memfd(), 10).unwrap_err();
        assert_eq!(error.side(), Some(Side::Source), "{error}");
        assert_eq!(
            error.io_error().unwrap().kind(),
            io::ErrorKind::NotConnected
        );
        let src = source();
        let before = Before::new(&src, &listener);
        let result = zcio::transfer(&src, &listener, 10);
        before
            .leaves(&src, &listener, (None, None), &Claim::from(&result))
            .unwrap();
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert_eq!(error.side(), Some(Side::Destination), "{error}");
    });
}

/// Nothing tells when a listener would have bytes: it is refused where it would be waited for, by every
/// form, and a deadline is not needed for it.
#[test]
fn sockets_that_listen() {
    within(10, |pulse| {
        for listener in [make::tcp_listener(), make::unix_listener()] {
            for nonblocking in [false, true] {
                make::set_nonblocking(&listener, nonblocking);
                for to in TARGETS {
                    pulse.at(format!("{to:?}, non-blocking {nonblocking}"));
                    let dst = to.make().unwrap();
                    let before = Before::new(&listener, &dst);
                    let result = zcio::transfer(&listener, &dst, u64::MAX);
                    before
                        .leaves(&listener, &dst, (None, None), &Claim::from(&result))
                        .unwrap();
                    is_refused(&result.unwrap_err());
                    let mut transfer = TransferOptions::new()
                        .start(&listener, &dst, u64::MAX)
                        .unwrap();
                    is_refused(&transfer.advance().unwrap_err());
                    let dsts = [&dst];
                    let error = zcio::fan_out(&listener, dsts, u64::MAX).unwrap_err();
                    is_refused(error.error());
                }
            }
        }
        fn is_refused(error: &Error) {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert_eq!(error.side(), Some(Side::Source), "{error}");
            assert_eq!(error.delivered(), 0, "{error}");
        }
    });
}

/// What is read from it would be written to it, for ever: a pipe by its two ends, a named one by one
/// descriptor that reads and writes.
#[test]
fn a_pipe_onto_itself() {
    within(10, |pulse| {
        let (reader, writer) = make::pipe();
        let named = both_ways();
        for nonblocking in [false, true] {
            for (src, dst) in [(&reader, &writer), (&named, &named)] {
                for len in [1, 1000, u64::MAX] {
                    for held in [0, 100] {
                        let case = format!("{len} of {held}, non-blocking {nonblocking}");
                        pulse.at(&case);
                        for fd in [src, dst] {
                            make::set_nonblocking(fd, nonblocking);
                        }
                        let bytes = DATA.bytes(0, held);
                        assert_eq!(nix::unistd::write(dst, &bytes), Ok(held));
                        let mut options = TransferOptions::new();
                        // Were it waited for, this would not be heeded.
                        options.deadline(Instant::now() + Duration::from_secs(1));
                        let error = options.transfer(src, dst, len).expect_err(&case);
                        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{case}: {error}");
                        assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
                        assert_eq!(error.delivered(), 0, "{case}: {error}");
                        for backend in [Backend::Splice, Backend::ReadWrite] {
                            let mut forced = options.clone();
                            let forced = forced.backend(backend);
                            let error = forced.transfer(src, dst, len).expect_err(&case);
                            let kind = error.kind();
                            assert_eq!(kind, ErrorKind::InvalidInput, "{case}: {error}");
                            assert_eq!(error.delivered(), 0, "{case}, {backend}: {error}");
                        }
                        // What it held is there still.
                        let mut there = vec![0; held + 1];
                        make::set_nonblocking(src, true);
                        let got = nix::unistd::read(src, &mut there).unwrap_or(0);
                        assert_eq!(there[..got], bytes[..], "{case}");
                    }
                }
            }
        }
    });
}

/// A named pipe, whose name is gone, by one descriptor that reads and writes.
fn both_ways() -> OwnedFd {
    let (reader, _writer) = make::fifo();
    make::reopen(&reader, OFlag::O_RDWR).unwrap()
}

#[test]
fn no_backend_is_left() {
    within(10, |_| {
        let (src, dst) = (source(), make::memfd());
        let mut options = TransferOptions::new();
        for backend in Backend::ALL {
            options.deny(backend);
        }
        let error = options.transfer(&src, &dst, 10).unwrap_err();
        assert_eq!((error.kind(), error.delivered()), (ErrorKind::Unfit, 0));
        assert!(
            error
                .to_string()
                .ends_with("the options leave out every backend that serves"),
            "{error}"
        );
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::Unsupported);
        src.settle(0).unwrap();
    });
}

#[test]
fn a_length_of_0_touches_nothing() {
    within(10, |_| {
        let (src, dst) = (source(), make::memfd());
        let before = Before::new(&src, &dst);
        let report = zcio::transfer(&src, &dst, 0).unwrap();
        assert_eq!((report.bytes, report.end), (0, End::Complete));
        assert_eq!(report.syscalls(), 0);
        let claim = Claim::complete(0);
        before.leaves(&src, &dst, (None, None), &claim).unwrap();
        // Not looked at, it may be anything.
        assert!(zcio::transfer(make::directory(), make::eventfd(), 0).is_ok());
        // Step by step, it ends at once.
        for backend in [
            Backend::Sendfile,
            Backend::Splice,
            Backend::Mmap,
            Backend::ReadWrite,
        ] {
            let mut options = TransferOptions::new();
            let mut transfer = options.backend(backend).start(&src, &dst, 0).unwrap();
            assert_eq!(transfer.advance().unwrap(), Status::Finished(End::Complete));
            assert_eq!(transfer.delivered(), 0);
        }
        before.leaves(&src, &dst, (None, None), &claim).unwrap();
    });
}

const TARGETS: [DestinationKind; 5] = [
    DestinationKind::DiskFile,
    DestinationKind::Memfd,
    DestinationKind::Pipe,
    DestinationKind::Tcp,
    DestinationKind::Unix,
];

#[test]
fn an_offset_at_or_beyond_the_end() {
    within(10, |pulse| {
        let edge = i64::MAX as u64;
        for offset in [
            LEN,
            LEN + 1,
            LEN + (1 << 20),
            1 << 40,
            edge - 4096,
            edge - 1,
            edge,
        ] {
            for to in TARGETS {
                for (name, mut options) in each_backend(source(), to.make().unwrap()) {
                    for len in [1, 4096, u64::MAX] {
                        let case = format!("{len} from {offset} to {to:?} by {name}");
                        pulse.at(&case);
                        let (src, dst) = (source(), to.make().unwrap());
                        let before = Before::new(&src, &dst);
                        let result = options.src_offset(offset).transfer(&src, &dst, len);
                        let claim = Claim::from(&result);
                        let report = result.unwrap_or_else(|e| panic!("{case}: {e}"));
                        assert_eq!((report.bytes, report.end), (0, End::SourceEnded), "{case}");
                        before.judge(&case, src, dst, (Some(offset), None), 0, &claim);
                    }
                }
            }
        }
    });
}

#[test]
fn lengths_beyond_the_source() {
    within(10, |pulse| {
        let lens = [
            LEN + 1,
            0x7fff_efff,
            0x7fff_f000,
            0x7fff_f001,
            u64::from(u32::MAX),
            u64::from(u32::MAX) + 1,
            i64::MAX as u64 - 1,
            i64::MAX as u64,
            i64::MAX as u64 + 1,
            u64::MAX - 1,
            u64::MAX,
        ];
        for to in TARGETS {
            for (name, options) in each_backend(source(), to.make().unwrap()) {
                let mut calls = Vec::new();
                for (len, offset) in lens.into_iter().flat_map(|l| [(l, None), (l, Some(7))]) {
                    let case = format!("{len} from {offset:?} to {to:?} by {name}");
                    pulse.at(&case);
                    let (src, dst) = (source(), to.make().unwrap());
                    let before = Before::new(&src, &dst);
                    let (at, mut asked) = (offset.unwrap_or(0), options.clone());
                    if let Some(offset) = offset {
                        asked.src_offset(offset);
                    }
                    let result = asked.transfer(&src, &dst, len);
                    let claim = Claim::from(&result);
                    let report = result.unwrap_or_else(|e| panic!("{case}: {e}"));
                    assert_eq!(report.bytes, LEN - at, "{case}");
                    assert_eq!(report.end, End::SourceEnded, "{case}");
                    calls.push(report.syscalls());
                    before.judge(&case, src, dst, (offset, None), at, &claim);
                }
                // No spin at the end: what is asked for does not change what is done. (A socket's
                // buffer decides itself how much it takes at once, so not to the call.)
                let most = calls.iter().max().unwrap();
                assert!(*most < 200, "{to:?} by {name}: {calls:?}");
            }
        }
    });
}
