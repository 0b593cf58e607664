//! io_uring_enter(2) fails, at whichever call: reading ahead goes on without a ring, and no byte is lost
//! or made up. (Without the feature `io-uring` there is none, and nothing fails.)
// The kernel's questions come by ioctl(2).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zcio::{Backend, TransferOptions};

use crate::common::{Data, drive, make, skipped, within};
use crate::filter::{self, Verdict};

const LEN: usize = (28 << 20) + 777;
const DATA: Data = Data::new(0xe1);

/// Which calls fail, counted from 0, and by what.
#[derive(Clone, Copy, Debug)]
struct Fault {
    from: usize,
    count: usize,
    errno: i32,
}

impl Fault {
    fn hits(self, call: usize) -> bool {
        (self.from..self.from.saturating_add(self.count)).contains(&call)
    }
}

#[test]
fn a_ring_that_fails_at_any_call() {
    within(60, |pulse| {
        let src = make::disk_file();
        src.write_all_at(&DATA.bytes(0, LEN), 0).expect("room");
        src.sync_all().expect("fsync(2)");
        if make::reopen(&src, OFlag::O_RDONLY | OFlag::O_DIRECT).is_err() {
            return skipped(
                "a ring that fails",
                "the temporary directory does not take O_DIRECT",
            );
        }
        let mut calls = 0;
        for errno in [libc::EAGAIN, libc::EBADF] {
            for from in 0..12 {
                for count in [1, usize::MAX] {
                    let fault = Fault { from, count, errno };
                    pulse.at(format!("{fault:?}"));
                    match copy(&src, fault) {
                        Ok(made) => calls = calls.max(made),
                        Err(e) => return skipped("a ring that fails", e),
                    }
                }
            }
        }
        println!("at most {calls} calls of io_uring_enter(2)");
    });
}

/// Copies by a thread whose ring meets the fault. How many calls it made.
fn copy(src: &File, fault: Fault) -> io::Result<usize> {
    let dst = make::disk_file();
    let (tell, told) = mpsc::channel();
    let calls = thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let calls = [filter::any(libc::SYS_io_uring_enter)];
            let installed = filter::install(&calls, Verdict::Ask, Verdict::Allow);
            let refused = installed.is_err();
            tell.send(installed).expect("a listener");
            if refused {
                return;
            }
            let mut options = TransferOptions::new();
            options.backend(Backend::Direct).src_offset(0).dst_offset(0);
            options.chunk_size(NonZeroUsize::new(17 << 20).expect("not zero"));
            let mut transfer = options.start(src, &dst, u64::MAX).expect("files");
            drive::to_end(&mut transfer).expect("it goes on without");
            assert_eq!(transfer.report().shares(), [(Backend::Direct, LEN as u64)]);
        });
        let listener = told.recv().expect("the thread says so either way")?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        let listener = unsafe { OwnedFd::from_raw_fd(listener) };
        let calls = answer(&listener, fault)?;
        mover.join().expect("no panic");
        Ok::<_, io::Error>(calls)
    })?;
    let mut bytes = vec![0; LEN];
    dst.read_exact_at(&mut bytes, 0).expect("a file");
    assert_eq!(dst.metadata()?.len(), LEN as u64, "{fault:?}");
    assert_eq!(DATA.check(0, &bytes), Ok(()), "{fault:?}");
    Ok(calls)
}

/// Answers the kernel's questions until the thread that they are about has ended.
fn answer(listener: &OwnedFd, fault: Fault) -> io::Result<usize> {
    let mut calls = 0;
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE)?;
        if !fds[0]
            .revents()
            .is_some_and(|e| e.contains(PollFlags::POLLIN))
        {
            return Ok(calls);
        }
        // SAFETY: plain integers, which the kernel wants to be zero.
        let mut question: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        let receive = libc::SECCOMP_IOCTL_NOTIF_RECV;
        // SAFETY: the call writes one `seccomp_notif`.
        if unsafe { libc::ioctl(listener.as_raw_fd(), receive, &raw mut question) } != 0 {
            continue;
        }
        let fails = fault.hits(calls);
        calls += 1;
        let reply = libc::seccomp_notif_resp {
            id: question.id,
            val: 0,
            error: if fails { -fault.errno } else { 0 },
            flags: if fails {
                0
            } else {
                libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32
            },
        };
        let send = libc::SECCOMP_IOCTL_NOTIF_SEND;
        // SAFETY: the call reads one `seccomp_notif_resp`.
        if unsafe { libc::ioctl(listener.as_raw_fd(), send, &raw const reply) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
}
