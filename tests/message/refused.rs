//! What cannot be sent is a typed error, with the exact count, and before any byte where it can be
//! known; a peer that is gone kills nobody.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind as IoKind;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{Shutdown, shutdown};
use zcio::{ErrorKind, Message, Side};

use crate::child;
use crate::common::make;
use crate::hooks::Site;
use crate::lane::{Kind, LARGE, Lane, SMALL, assert_same, content, file, mixed, mixed_file};

#[test]
fn a_file_that_is_too_short_says_how_far_it_came() {
    for kind in Kind::ALL {
        // A small one is found out before its header goes.
        let short = file(1, 1000);
        let message = Message::new()
            .bytes("head")
            .file(&short, 0..SMALL)
            .bytes("tail");
        let mut lane = Lane::new(kind);
        let error = lane.run(|_| {}, |dst| message.send(dst)).0.unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::SourceTruncated,
            "{kind:?}: {error}"
        );
        assert_eq!(error.side(), Some(Side::Source));
        assert_eq!(error.io_error().unwrap().kind(), IoKind::UnexpectedEof);
        assert_eq!(
            (error.delivered(), lane.landed(0).len()),
            (0, 0),
            "{kind:?}"
        );

        // Of a large one, what there is has gone.
        let len = LARGE as usize - 1;
        let short = file(1, len);
        let message = Message::new()
            .bytes("head")
            .file(&short, 0..LARGE)
            .bytes("tail");
        let mut lane = Lane::new(kind);
        let error = lane.run(|_| {}, |dst| message.send(dst)).0.unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::SourceTruncated,
            "{kind:?}: {error}"
        );
        assert_eq!(error.delivered(), 4 + len as u64, "{kind:?}: {error}");
        let expected = content(&message.slice(..4 + len as u64));
        lane.assert_landed(kind, &expected);
    }
}

#[test]
fn a_file_cut_on_the_way_says_how_far_it_came() {
    for kind in [Kind::Tcp, Kind::Unix, Kind::Pipe] {
        let large = file(1, 20 << 20);
        let message = Message::new().bytes("head").file(&large, 0..20 << 20);
        let all = content(&message);
        let mut lane = Lane::new(kind);
        let mut sending = message.start(lane.dst.try_clone().unwrap()).unwrap();
        while sending.delivered() < 100_000 {
            sending.advance().unwrap();
            lane.taker.pump();
        }
        large.set_len(sending.delivered() - 4 + 1000).unwrap();
        let error = loop {
            match sending.advance() {
                Ok(_) => lane.taker.pump(),
                Err(error) => break error,
            }
        };
        assert_eq!(
            error.kind(),
            ErrorKind::SourceTruncated,
            "{kind:?}: {error}"
        );
        assert_eq!(error.delivered(), sending.delivered());
        let landed = lane.landed(error.delivered() as usize);
        assert_eq!(landed.len() as u64, error.delivered(), "{kind:?}");
        // The page in which the file now ends may have been cut under what was sent already.
        let whole = landed.len().min(90_000);
        assert_same(&format!("{kind:?}"), &landed[..whole], &all[..whole]);
    }
}

#[test]
fn what_cannot_be_read_is_known_before_its_header_goes() {
    let directory = File::from(make::directory());
    let dir = tempfile::tempdir().unwrap();
    let write_only = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.path().join("file"))
        .unwrap();
    let (pipe, _writer) = make::pipe();
    for kind in Kind::ALL {
        for len in [100, 1 << 20] {
            for file in [
                directory.as_fd_ref(),
                write_only.as_fd_ref(),
                pipe.as_fd_ref(),
            ] {
                let message = Message::new().bytes("head").file(file, 0..len);
                let mut lane = Lane::new(kind);
                let error = lane.run(|_| {}, |dst| message.send(dst)).0.unwrap_err();
                assert_eq!(
                    error.kind(),
                    ErrorKind::InvalidInput,
                    "{kind:?} {len}: {error}"
                );
                assert_eq!(error.side(), Some(Side::Source), "{kind:?} {len}: {error}");
                assert_eq!(
                    (error.delivered(), lane.landed(0).len()),
                    (0, 0),
                    "{kind:?}"
                );
            }
        }
    }
}

trait AsFdRef {
    fn as_fd_ref(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl<T: std::os::fd::AsFd> AsFdRef for T {
    fn as_fd_ref(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

#[test]
fn offsets_at_the_edge_are_typed_errors() {
    let source = file(1, 100);
    let edge = i64::MAX as u64;
    for range in [
        edge..edge + 10,
        edge - 5..edge,
        u64::MAX - 9..u64::MAX,
        1 << 40..1 << 41,
    ] {
        let message = Message::new().bytes("head").file(&source, range.clone());
        let mut lane = Lane::new(Kind::Tcp);
        let error = lane.run(|_| {}, |dst| message.send(dst)).0.unwrap_err();
        let typed = matches!(
            error.kind(),
            ErrorKind::SourceTruncated | ErrorKind::InvalidInput
        );
        assert!(typed, "{range:?}: {error:?}");
        let landed = lane.landed(error.delivered() as usize).len();
        assert_eq!(error.delivered(), landed as u64, "{range:?}: {error}");
    }
}

#[test]
fn destinations_that_keep_message_boundaries_are_refused() {
    let message = Message::new().bytes("head");
    let (datagram, _peer) = make::unix_datagram();
    let (packets, _other) = make::seqpacket();
    let read_only = File::open("/dev/null").unwrap();
    let refused: [OwnedFd; 5] = [
        datagram.into(),
        packets,
        make::eventfd(),
        make::o_path(),
        read_only.into(),
    ];
    for dst in refused {
        let error = message.start(&dst).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(error.side(), Some(Side::Destination), "{error}");
    }
}

#[test]
fn an_empty_message_touches_nothing() {
    let mut lane = Lane::new(Kind::Tcp);
    let (result, stage) = lane.run(|_| {}, |dst| Message::new().send(dst));
    assert_eq!(result.unwrap().bytes, 0);
    assert_eq!(stage.calls, []);
}

#[test]
fn a_full_device_is_an_error_of_the_destination() {
    let source = mixed_file();
    let message = mixed(&source);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = message.send(&full).unwrap_err();
    assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(
        (error.side(), error.delivered()),
        (Some(Side::Destination), 0)
    );
}

/// Sends to peers that are gone: an error, and no byte counted that did not arrive.
fn to_closed_peers() {
    let source = mixed_file();
    for message in [
        mixed(&source),
        Message::new().file(&source, 0..LARGE),
        Message::new().file(&source, 0..SMALL),
    ] {
        for kind in [Kind::Tcp, Kind::Unix, Kind::Pipe] {
            let lane = Lane::new(kind);
            let Lane { dst, taker } = lane;
            // A TCP peer that is gone resets first, without a signal; this end shut raises it.
            if kind == Kind::Tcp {
                shutdown(dst.as_raw_fd(), Shutdown::Write).unwrap();
            }
            drop(taker);
            let error = message.send(&dst).unwrap_err();
            let raw = error.io_error().unwrap().raw_os_error();
            assert_eq!(raw, Some(libc::EPIPE), "{kind:?}: {error}");
            assert_eq!(error.side(), Some(Side::Destination), "{kind:?}: {error}");
            assert_eq!(error.delivered(), 0, "{kind:?}: {error}");
        }
    }
}

#[test]
fn sigpipe_at_its_default_kills_nobody() {
    child::alone("refused::sigpipe_at_its_default_kills_nobody", || {
        // SAFETY: the default action runs no code of ours.
        let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        assert_ne!(before, libc::SIG_ERR);
        to_closed_peers();
    });
}

#[test]
fn a_blocking_socket_with_a_time_limit_keeps_to_it() {
    let (dst, _peer) = make::unix();
    dst.set_write_timeout(Some(std::time::Duration::from_millis(20)))
        .unwrap();
    let source = mixed_file();
    let error = mixed(&source).send(&dst).unwrap_err();
    assert_eq!(
        error.io_error().unwrap().kind(),
        IoKind::TimedOut,
        "{error}"
    );
    let mut lane = Lane::new(Kind::Unix);
    // Not so a non-blocking one: it is waited for.
    let fault = Some((Site::Gather, 1, crate::hooks::Answer::Errno(libc::EAGAIN)));
    let message = Message::new().bytes("head");
    let (result, stage) = lane.run(|stage| stage.fault = fault, |dst| message.send(dst));
    assert_eq!(result.unwrap().bytes, 4);
    assert_eq!(stage.seen(Site::Poll), 1);
}
