//! One transfer in a thread whose system calls the kernel asks another thread about.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::bench::Peers;
use crate::case::{Case, Made, Run, open_descriptors};
use crate::common::POLL;
use crate::filter::{Call, Verdict, any, install, with};
use crate::plan::{Answer, Numbers, Script, Site};
use crate::sources::Sources;

/// The calls that are asked about.
fn calls() -> Vec<Call> {
    let mut calls: Vec<Call> = [
        libc::SYS_read,
        libc::SYS_recvfrom,
        libc::SYS_pread64,
        libc::SYS_preadv2,
        libc::SYS_write,
        libc::SYS_sendto,
        libc::SYS_pwrite64,
        libc::SYS_pwritev2,
        libc::SYS_splice,
        libc::SYS_sendfile,
        libc::SYS_copy_file_range,
        libc::SYS_pipe2,
        POLL,
    ]
    .map(any)
    .into();
    calls.push(with(libc::SYS_ioctl, 1, libc::FICLONERANGE as u32));
    calls.push(with(libc::SYS_fcntl, 1, libc::F_SETPIPE_SZ.unsigned_abs()));
    calls
}

/// Transfers everything in a thread of its own, whose calls `script` answers through the kernel,
/// and holds what became of it to the oracle.
pub(crate) fn run(case: &Case, mut script: Script, sources: &Sources) -> io::Result<Run> {
    let mut bench = case.bench(sources);
    let numbers = case.numbers(&bench);
    let feeder = bench.peers.feeder();
    let open = || open_descriptors() & !feeder;
    let (src, dst, peers) = (bench.src.as_fd(), bench.dst.as_fd(), &mut bench.peers);
    let mut polled = None;
    let (sender, listener) = mpsc::channel();
    let (made, leaks) = thread::scope(|scope| {
        let mover = scope.spawn(move || {
            let installed = install(&calls(), Verdict::Ask, Verdict::Allow);
            let failed = installed.is_err();
            let _ = sender.send(installed);
            if failed {
                return None;
            }
            let before = open();
            let result = case.options.transfer(src, dst, u64::MAX);
            let handed_back = Bytes::new();
            Some((
                Made {
                    result,
                    handed_back,
                },
                open() != before,
            ))
        });
        let listener = listener.recv().expect("the thread says so either way")?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        let listener = unsafe { OwnedFd::from_raw_fd(listener) };
        answer(&listener, &numbers, &mut script, (peers, &mut polled))?;
        let made = mover.join().expect("no transfer panics");
        made.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    })?;
    Ok(Run::new(made, script, polled, leaks, bench))
}

/// Answers the kernel's questions until the thread that they are about has ended.
fn answer(
    listener: &OwnedFd,
    numbers: &Numbers,
    script: &mut Script,
    (peers, polled): (&mut Peers, &mut Option<i32>),
) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE)?;
        let ready = fds[0].revents().unwrap_or(PollFlags::empty());
        if !ready.contains(PollFlags::POLLIN) {
            return Ok(());
        }
        // SAFETY: plain integers, which the kernel wants to be zero.
        let mut question: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        let receive = libc::SECCOMP_IOCTL_NOTIF_RECV;
        // SAFETY: the call writes one `seccomp_notif`.
        let received = unsafe { libc::ioctl(listener.as_raw_fd(), receive, &raw mut question) };
        if received != 0 {
            match io::Error::last_os_error() {
                // Interrupted, or the thread is gone since.
                e if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => continue,
                e => return Err(e),
            }
        }
        let args = question.data.args.map(|arg| arg as usize);
        // The thread stands still meanwhile, and its other ends have what the call will need.
        peers.pump();
        let site = numbers.site(question.data.nr.into(), &args);
        let mut reply = libc::seccomp_notif_resp {
            id: question.id,
            val: 0,
            error: 0,
            flags: 0,
        };
        if site == Some(Site::Poll) {
            // SAFETY: this process's own memory; the thread that waits there has a `pollfd` in it.
            *polled = Some(unsafe { (*(args[0] as *const libc::pollfd)).fd });
        }
        match site.and_then(|site| script.next(site)) {
            Some(Answer::Errno(errno)) => reply.error = -errno,
            Some(_) => {}
            None => reply.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        }
        let send = libc::SECCOMP_IOCTL_NOTIF_SEND;
        // SAFETY: the call reads one `seccomp_notif_resp`.
        let sent = unsafe { libc::ioctl(listener.as_raw_fd(), send, &raw const reply) };
        if sent != 0 {
            return Err(io::Error::last_os_error());
        }
    }
}
