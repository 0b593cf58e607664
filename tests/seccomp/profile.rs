//! Profiles as containers have them: whole families of calls refused.

use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::thread;

use bytes::Bytes;
use zcio::{Backend, Report};

use crate::case::{Case, Made, Run, open_descriptors};
use crate::common::POLL;
use crate::filter::{Call, Verdict, any, install, with};
use crate::plan::Script;
use crate::sources::{CHUNK, Sources};

/// What a profile refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// All but read(2) and write(2), looking at descriptors, and what any program needs to live.
    AllButReadAndWrite,
    /// The calls that move bytes within the kernel, and making pipes for them.
    NoOffload,
}

pub(crate) const ALL: [(Profile, i32); 5] = [
    (Profile::AllButReadAndWrite, libc::EPERM),
    (Profile::AllButReadAndWrite, libc::EACCES),
    (Profile::AllButReadAndWrite, libc::ENOSYS),
    (Profile::NoOffload, libc::EPERM),
    (Profile::NoOffload, libc::ENOSYS),
];

impl Profile {
    fn install(self, errno: i32) -> io::Result<()> {
        let refuse = Verdict::Fail(errno);
        let installed = match self {
            Profile::AllButReadAndWrite => install(&allowed(), Verdict::Allow, refuse),
            Profile::NoOffload => install(&OFFLOAD, refuse, Verdict::Allow),
        };
        installed.map(drop)
    }
}

const OFFLOAD: [Call; 5] = [
    any(libc::SYS_splice),
    any(libc::SYS_sendfile),
    any(libc::SYS_copy_file_range),
    any(libc::SYS_ioctl),
    any(libc::SYS_pipe2),
];

fn allowed() -> Vec<Call> {
    let mut calls: Vec<Call> = [
        // What is left for moving bytes, and for looking at what there is.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_lseek,
        libc::SYS_fcntl,
        libc::SYS_fstat,
        libc::SYS_newfstatat,
        libc::SYS_getsockopt,
        POLL,
        libc::SYS_ppoll,
        // Memory, threads, time, signals.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_sched_yield,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_tgkill,
        libc::SYS_getrandom,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
    ]
    .map(any)
    .into();
    // Memory of no file.
    calls.push(with(libc::SYS_mmap, 4, u32::MAX));
    calls
}

/// Transfers everything in a thread of its own under a profile, and holds what became of it to the
/// oracle.
pub(crate) fn run(case: &Case, profile: Profile, errno: i32, sources: &Sources) -> io::Result<Run> {
    let mut bench = case.bench(sources);
    let feeder = bench.peers.feeder();
    let open = || open_descriptors() & !feeder;
    let mut options = case.options.clone();
    options.chunk_size(NonZeroUsize::new(CHUNK).expect("not zero"));
    let (src, dst, peers) = (bench.src.as_fd(), bench.dst.as_fd(), &mut bench.peers);
    let (made, leaks) = thread::scope(|scope| {
        let mover = scope.spawn(move || {
            profile.install(errno)?;
            let before = open();
            peers.pump();
            let result = options.transfer_with(src, dst, u64::MAX, |_| {
                peers.pump();
                ControlFlow::Continue(())
            });
            let handed_back = Bytes::new();
            Ok::<_, io::Error>((
                Made {
                    result,
                    handed_back,
                },
                open() != before,
            ))
        });
        mover.join().expect("no transfer panics")
    })?;
    Ok(Run::new(made, Script::default(), None, leaks, bench))
}

/// A line of what was moved by which backend, and which were refused on the way.
pub(crate) fn row(case: &Case, profile: Profile, errno: i32, report: &Report) -> String {
    let errno = io::Error::from_raw_os_error(errno);
    let names = |backends: Vec<Backend>| {
        let names: Vec<_> = backends.into_iter().map(Backend::name).collect();
        names.join(", ")
    };
    let moved = names(
        report
            .shares()
            .iter()
            .map(|(backend, _)| *backend)
            .collect(),
    );
    let refused = names(
        report
            .refused()
            .iter()
            .map(|(backend, _)| *backend)
            .collect(),
    );
    let (from, to) = (case.pair.0.name(), case.pair.1.name());
    format!("| {profile:?}: {errno} | {from} to {to} | {moved} | {refused} |\n")
}
