//! Seccomp filters: small programs that the kernel runs at each system call of one thread.

use std::io;

/// What a filter looks at, as offsets into `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
/// The lower half of an argument, which is all that an `int` has.
const fn arg(index: u32) -> u32 {
    16 + 8 * index + if cfg!(target_endian = "big") { 4 } else { 0 }
}

#[cfg(target_arch = "x86_64")]
const THIS_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const THIS_ARCH: u32 = 0xc000_00b7;

/// Calls that a filter is about: all of a number, or those with one argument of a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    nr: i64,
    with: Option<(u32, u32)>,
}

pub(crate) const fn any(nr: i64) -> Call {
    Call { nr, with: None }
}

/// Calls whose argument `index` has this value in its lower half.
pub(crate) const fn with(nr: i64, index: u32, value: u32) -> Call {
    Call {
        nr,
        with: Some((index, value)),
    }
}

/// What a filter makes of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    Allow,
    Fail(i32),
    /// Another thread is asked.
    Ask,
}

impl Verdict {
    fn value(self) -> u32 {
        match self {
            Verdict::Allow => libc::SECCOMP_RET_ALLOW,
            Verdict::Fail(errno) => libc::SECCOMP_RET_ERRNO | errno.unsigned_abs(),
            Verdict::Ask => libc::SECCOMP_RET_USER_NOTIF,
        }
    }
}

/// Puts this thread, for good, under a filter that answers `matched` to `calls` and `otherwise` to
/// all others. Where it asks, the result is the descriptor by which the questions come.
pub(crate) fn install(calls: &[Call], matched: Verdict, otherwise: Verdict) -> io::Result<i32> {
    let program = program(calls, matched.value(), otherwise.value());
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a short program"),
        filter: program.as_ptr().cast_mut(),
    };
    let asks = matches!(matched, Verdict::Ask) || matches!(otherwise, Verdict::Ask);
    let flags = if asks {
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
    } else {
        0
    };
    // SAFETY: no pointer is passed.
    let bound = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let result = unsafe {
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

fn program(calls: &[Call], matched: u32, otherwise: u32) -> Vec<libc::sock_filter> {
    let step = |code: u32, k, jt, jf| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let skip_unless =
        |value, count| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, count);
    let answer = |verdict| step(libc::BPF_RET | libc::BPF_K, verdict, 0, 0);
    // Another architecture's numbers mean other calls, which no thread here makes.
    let mut program = vec![load(ARCH), skip_unless(THIS_ARCH, 1), load(NR)];
    for call in calls {
        let nr = u32::try_from(call.nr).expect("a system call's number");
        match call.with {
            None => program.extend([skip_unless(nr, 1), answer(matched)]),
            Some((index, value)) => program.extend([
                skip_unless(nr, 4),
                load(arg(index)),
                skip_unless(value, 1),
                answer(matched),
                load(NR),
            ]),
        }
    }
    program.push(answer(otherwise));
    program
}
