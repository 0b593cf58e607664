//! The source becomes ready just after the kernel said EAGAIN: whoever then looks which side it was
//! sees a source that is ready, and must not blame a destination that never blocked. An edge of that
//! one would not come.

use std::cell::RefCell;
use std::ffi::{c_int, c_long, c_uint};

use nix::errno::Errno;
use zcio::{Backend, Side, Status};

use crate::common::within;
use crate::lane::{Lane, STREAMS, by, case, engines};

thread_local! {
    /// What happens once, in this thread, right after the kernel has answered EAGAIN.
    static AFTER: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// Does what was armed, and leaves errno as it was.
fn after(result: c_long) -> isize {
    let errno = Errno::last_raw();
    if result < 0 && errno == libc::EAGAIN {
        let armed = AFTER.try_with(|after| after.borrow_mut().take());
        if let Ok(Some(armed)) = armed {
            armed();
        }
    }
    Errno::set_raw(errno);
    isize::try_from(result).unwrap_or(-1)
}

/// In front of libc's.
///
/// # Safety
/// As splice(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn splice(
    fd_in: c_int,
    off_in: *mut libc::loff_t,
    fd_out: c_int,
    off_out: *mut libc::loff_t,
    len: usize,
    flags: c_uint,
) -> isize {
    // SAFETY: the caller's own arguments, for the very call that it meant.
    after(unsafe { libc::syscall(libc::SYS_splice, fd_in, off_in, fd_out, off_out, len, flags) })
}

/// In front of libc's.
///
/// # Safety
/// As sendfile(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendfile64(
    fd_out: c_int,
    fd_in: c_int,
    offset: *mut libc::off64_t,
    count: usize,
) -> isize {
    // SAFETY: as above.
    after(unsafe { libc::syscall(libc::SYS_sendfile, fd_out, fd_in, offset, count) })
}

#[test]
fn bytes_that_arrive_just_after_eagain_are_not_blamed_on_the_destination() {
    within(30, |pulse| {
        for from in STREAMS {
            for to in STREAMS {
                for engine in engines(from, to).into_iter().flatten() {
                    let case = case(from, to, Some(engine));
                    pulse.at(&case);
                    arrives_late(&case, Lane::new(from, to, 0).nonblocking(), engine);
                }
            }
        }
    });
}

fn arrives_late(case: &str, mut lane: Lane, engine: Backend) {
    let (src, dst) = lane.ends();
    let mut transfer = by(Some(engine)).start(src, dst, u64::MAX).expect(case);
    let feed = lane
        .feed
        .as_ref()
        .expect("a stream")
        .try_clone()
        .expect("dup(2)");
    let byte = lane.data.bytes(0, 1);
    let arm: Box<dyn FnOnce()> = Box::new(move || {
        nix::unistd::write(&feed, &byte).expect("room");
    });
    AFTER.with(|after| *after.borrow_mut() = Some(arm));
    let status = transfer.advance().unwrap_or_else(|e| panic!("{case}: {e}"));
    let late = AFTER.with(|after| after.borrow_mut().take());
    match late {
        // By read(2), no look at the other side is needed, and none is made.
        Some(arm) => arm(),
        None => assert_ne!(engine, Backend::ReadWrite),
    }
    lane.fed = 1;
    match status {
        // An edge of the source is on its way: the byte came after it was looked at.
        Status::Blocked(Side::Source) => {
            assert!(matches!(transfer.advance(), Ok(Status::Moved(_))), "{case}");
        }
        Status::Moved(_) => {}
        other => panic!("{case}: {other:?}, and the destination has room"),
    }
    assert_eq!(transfer.delivered(), 1, "{case}");
    drop(transfer);
    lane.end();
    lane.settle(case, 1, &[]);
}
