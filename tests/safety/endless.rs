//! EINTR that does not end (B45): a filesystem's daemon may answer it for ever. That is an error of the
//! file's side, with the exact count, and no spin.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;

use zcio::{Backend, ErrorKind, Message, Side, TransferOptions, fan_out};

use crate::common::{Data, make, skipped, within};
use crate::filter::{self, Call, Verdict};

const LEN: usize = (3 << 20) + 77;
const DATA: Data = Data::new(0xe4);

fn file() -> File {
    let file = make::disk_file();
    file.write_all_at(&DATA.bytes(0, LEN), 0).expect("room");
    file
}

/// Every call that moves bytes of a file, as its source or its destination.
fn calls_of(file: &File, side: Side) -> Vec<Call> {
    let with = |(nr, arg)| filter::with(nr, arg, file.as_raw_fd().unsigned_abs());
    match side {
        Side::Source => [
            (libc::SYS_read, 0),
            (libc::SYS_pread64, 0),
            (libc::SYS_preadv2, 0),
            (libc::SYS_sendfile, 1),
            (libc::SYS_splice, 0),
            (libc::SYS_copy_file_range, 0),
            (libc::SYS_mmap, 4),
        ]
        .map(with)
        .into(),
        Side::Destination => [
            (libc::SYS_write, 0),
            (libc::SYS_pwrite64, 0),
            (libc::SYS_pwritev2, 0),
            (libc::SYS_writev, 0),
            (libc::SYS_sendfile, 0),
            (libc::SYS_splice, 2),
            (libc::SYS_copy_file_range, 2),
        ]
        .map(with)
        .into(),
    }
}

/// Runs `body` in a thread whose `calls` answer EINTR. Skips aloud where that cannot be had.
fn interrupted<T: Send>(calls: &[Call], body: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            let verdict = Verdict::Fail(libc::EINTR);
            match filter::install(calls, verdict, Verdict::Allow) {
                Ok(_) => Some(body()),
                Err(e) => {
                    skipped("EINTR that does not end", e);
                    None
                }
            }
        });
        work.join().expect("no panic")
    })
}

/// `arrived` is what the destination holds.
fn is_told(case: &str, error: zcio::Error, side: Option<Side>, arrived: u64) {
    assert!(
        error.undelivered().is_empty() || side == Some(Side::Destination),
        "{case}: {error}"
    );
    assert_eq!(
        (error.side(), error.delivered()),
        (side, arrived),
        "{case}: {error}"
    );
    let number = error.io_error().and_then(io::Error::raw_os_error);
    assert_eq!(number, Some(libc::EINTR), "{case}: {error}");
    // Whoever begins anew upon `Interrupted` would do so for ever.
    assert_eq!(
        io::Error::from(error).kind(),
        io::ErrorKind::ResourceBusy,
        "{case}"
    );
}

#[test]
fn a_file_that_is_interrupted_for_ever_fails() {
    within(30, |pulse| {
        for backend in [None].into_iter().chain(Backend::ALL.map(Some)) {
            for side in [Side::Source, Side::Destination] {
                for explicit in [false, true] {
                    let case = format!("{backend:?}, {side}, explicit {explicit}");
                    pulse.at(&case);
                    let (src, dst) = (file(), make::disk_file());
                    let mut options = TransferOptions::new();
                    backend.map(|backend| options.backend(backend));
                    if explicit {
                        options.src_offset(0).dst_offset(0);
                    }
                    let failing = if side == Side::Source { &src } else { &dst };
                    let calls = calls_of(failing, side);
                    let Some(result) =
                        interrupted(&calls, || options.transfer(&src, &dst, u64::MAX))
                    else {
                        return;
                    };
                    let len = dst.metadata().expect("fstat(2)").len();
                    match result {
                        // Through a mapping or around the cache, none of these calls is made of it.
                        Ok(report) => {
                            assert_eq!(report.bytes, LEN as u64, "{case}");
                            let by = [Backend::Direct, Backend::Mmap].map(Some);
                            assert!(by.contains(&backend), "{case}");
                        }
                        Err(error) if error.kind() == ErrorKind::Unfit => {
                            assert!(backend.is_some(), "{case}: {error}");
                            assert_eq!(error.delivered(), 0, "{case}: {error}");
                        }
                        Err(error) => is_told(&case, error, Some(side), len),
                    }
                }
            }
        }
    });
}

/// To a socket, by a message and by a fan-out.
#[test]
fn so_it_is_by_every_verb() {
    within(30, |pulse| {
        let drained = || {
            let (near, mut far) = make::unix();
            (
                near,
                thread::spawn(move || far.read_to_end(&mut Vec::new())),
            )
        };
        let src = file();
        let calls = calls_of(&src, Side::Source);
        pulse.at("a transfer");
        let (dst, drain) = drained();
        let result = interrupted(&calls, || zcio::transfer(&src, &dst, u64::MAX));
        let Some(result) = result else { return };
        is_told(
            "a transfer",
            result.expect_err("never read"),
            Some(Side::Source),
            0,
        );
        drop(dst);
        drain.join().expect("no panic").expect("a socket");

        for len in [100, LEN as u64] {
            pulse.at(format!("a message of {len}"));
            let (dst, drain) = drained();
            let message = Message::new().file(&src, 0..len);
            let result = interrupted(&calls, || message.send(&dst)).expect("as before");
            is_told(
                "a message",
                result.expect_err("never read"),
                Some(Side::Source),
                0,
            );
            drop(dst);
            drain.join().expect("no panic").expect("a socket");
        }

        pulse.at("a fan-out");
        let dst = make::disk_file();
        let result = interrupted(&calls, || fan_out(&src, [&dst], u64::MAX)).expect("as before");
        let error = result.expect_err("never read");
        assert_eq!(error.error().side(), Some(Side::Source), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ResourceBusy);
        let calls = calls_of(&dst, Side::Destination);
        let report = interrupted(&calls, || fan_out(&src, [&dst], u64::MAX)).expect("as before");
        let report = report.expect("the source serves");
        let error = report.branches[0].error.as_ref().expect("never written");
        assert_eq!(error.side(), Some(Side::Destination), "{error}");
        assert_eq!(
            error.delivered() + error.undelivered().len() as u64,
            report.taken
        );

        // What only looks at it.
        pulse.at("facts");
        let looks = [libc::SYS_statx, libc::SYS_fstat, libc::SYS_newfstatat].map(filter::any);
        let facts = interrupted(&looks, || zcio::backend::Facts::new(&src)).expect("as before");
        let kind = facts.expect_err("it cannot be looked at").kind();
        assert_eq!(kind, io::ErrorKind::ResourceBusy);
        let result = interrupted(&looks, || zcio::transfer(&src, &dst, 5)).expect("as before");
        is_told(
            "a look",
            result.expect_err("it cannot be looked at"),
            Some(Side::Source),
            0,
        );
    });
}
