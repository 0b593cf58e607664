//! A socket whose owner peeks at it (`SO_PEEK_OFF`): what recv(2) is told to leave there it finds only
//! once, so that a look may find nothing where there is something to read.
// SO_PEEK_OFF has no safe wrapper among the dependencies.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use zcio::{Side, Status};

use crate::common::{make, skipped, within};
use crate::lane::{Kind, Lane, by, case, engines};

/// Has looks begin at the first byte, and each at the end of the one before.
fn set_peek_offset(fd: &OwnedFd) -> io::Result<()> {
    let (level, name, first) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0_i32);
    let value = (&raw const first).cast();
    // SAFETY: the value is one int, which is only read.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, 4) };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Few bytes in front of a full destination: it is that one which blocks, however often the source is
/// looked at in between, and all arrives.
#[test]
fn a_source_whose_owner_peeks() {
    within(10, |pulse| {
        for from in [Kind::Unix, Kind::Tcp] {
            for engine in engines(from, Kind::Pipe) {
                for nonblocking in [false, true] {
                    let case = case(from, Kind::Pipe, engine);
                    let case = format!("{case}, non-blocking source {nonblocking}");
                    pulse.at(&case);
                    let mut lane = Lane::new(from, Kind::Pipe, 0).nonblocking();
                    make::set_nonblocking(&lane.src, nonblocking);
                    if let Err(e) = set_peek_offset(&lane.src) {
                        skipped(&format!("SO_PEEK_OFF on {from:?}"), e);
                        continue;
                    }
                    let (src, dst) = lane.ends();
                    let size = make::pipe_size(&dst).expect("a pipe") as usize;
                    assert_eq!(nix::unistd::write(&dst, &vec![0; size]), Ok(size));
                    let mut options = by(engine);
                    // Nor is a limit of use to one who asks for ever.
                    options.deadline(Instant::now() + Duration::from_secs(2));
                    let mut transfer = options.start(src, dst, u64::MAX).expect(&case);
                    lane.feed(1, 3, 3);
                    assert!(lane.is_ready(Side::Source, 10_000), "{case}");
                    for _ in 0..10 {
                        let status = transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}"));
                        assert_eq!(status, Status::Blocked(Side::Destination), "{case}");
                    }
                    assert_eq!(lane.take_unchecked(size).len(), size, "{case}");
                    while transfer.delivered() < 3 {
                        transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}"));
                    }
                    drop(transfer);
                    lane.settle(&case, 3, &[]);
                }
            }
        }
    });
}
