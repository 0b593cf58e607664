//! A watchdog, and a descriptor table of one's own.
// close_range(2) has no safe wrapper among the dependencies.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{panic, thread};

/// What the watched body reports to: each report starts the time anew.
#[derive(Clone, Debug)]
pub struct Pulse(Sender<String>);

impl Pulse {
    /// Says what is tried next. The watchdog allows each such piece its whole time, and names the
    /// last one where the time ran out.
    pub fn at(&self, what: impl Into<String>) {
        // Nobody listens where the watchdog has given up; the body then runs into its own end.
        let _ = self.0.send(what.into());
    }
}

/// How many times as long as on the machine itself things may take: `ZCIO_PATIENCE` in the
/// environment, for slow ones such as an emulated processor. Only how long it takes to notice that
/// something hangs depends on it, never what passes.
pub fn patience() -> u64 {
    let set = std::env::var("ZCIO_PATIENCE").ok();
    set.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Runs `body` in a thread with a descriptor table of its own, and ends the whole process where it
/// neither ends nor reports anything for `seconds`: a transfer that never ends may fill a disk
/// meanwhile, and nothing else stops it.
///
/// The table begins empty but for the three standard descriptors, and threads that `body` starts
/// share it: so descriptors can be counted while other tests run beside, and no other test's
/// threads hold on to a pipe's end. Descriptors made outside cannot be used inside.
pub fn within<T: Send + 'static>(
    seconds: u64,
    body: impl FnOnce(&Pulse) -> T + Send + 'static,
) -> T {
    watched(seconds, body).unwrap_or_else(|hang| {
        let test = thread::current();
        let name = test.name().unwrap_or("a test");
        // Past the capture of the test harness, which would be lost with the process.
        let _ = writeln!(io::stderr(), "\n{name}: {hang}");
        std::process::abort()
    })
}

/// As [`within`], with the hang as an error, and the thread left behind.
pub fn watched<T: Send + 'static>(
    seconds: u64,
    body: impl FnOnce(&Pulse) -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, reports) = channel();
    let worker = thread::spawn(move || {
        own_table(None);
        body(&Pulse(sender))
    });
    let seconds = seconds * patience();
    let mut last = "the beginning".to_owned();
    loop {
        match reports.recv_timeout(Duration::from_secs(seconds)) {
            Ok(what) => last = what,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("no end after {seconds} s at {last}"));
            }
            // The body has ended, one way or the other.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    worker.join().map_err(|cause| {
        eprintln!("failed at {last}");
        panic::resume_unwind(cause)
    })
}

/// Runs `body` in a thread whose descriptor table holds `fd` alone (and the standard three), while
/// the caller's table no longer has it: the other end of a pipe, tended without a trace in the
/// descriptors that a test counts.
pub fn apart<T: Send + 'static>(
    fd: impl Into<OwnedFd>,
    body: impl FnOnce(File) -> T + Send + 'static,
) -> JoinHandle<T> {
    let fd = fd.into();
    let number = fd.as_raw_fd();
    let (sender, ready) = channel();
    let worker = thread::spawn(move || {
        own_table(Some(number));
        // SAFETY: this thread's table has a copy of the descriptor under that number, and nobody
        // else uses this table.
        let file = unsafe { File::from_raw_fd(number) };
        drop(sender);
        body(file)
    });
    // Until the copy is made, the number must stay open here.
    let _ = ready.recv() as Result<(), _>;
    drop(fd);
    worker
}

/// Gives this thread a descriptor table of its own, with nothing but the standard three in it, and
/// `kept`.
fn own_table(kept: Option<RawFd>) {
    let close = |first: libc::c_uint, last: libc::c_uint| {
        if first > last {
            return;
        }
        // SAFETY: no pointer is passed; this thread uses none of the descriptors closed here, and
        // other threads keep theirs.
        let result = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                first,
                last,
                libc::CLOSE_RANGE_UNSHARE,
            )
        };
        let error = io::Error::last_os_error();
        assert_eq!(result, 0, "close_range(2): {error}");
    };
    match kept.map(RawFd::unsigned_abs) {
        None => close(3, libc::c_uint::MAX),
        Some(kept) => {
            // The upper part first: so the lower call, where there is one, works on our own table.
            close(kept + 1, libc::c_uint::MAX);
            close(3, kept - 1);
        }
    }
}

/// The descriptors open in this thread's table, each with what it leads to. Within [`within`],
/// those of other tests are not among them.
pub fn descriptors() -> BTreeMap<RawFd, String> {
    let list = std::fs::read_dir("/proc/thread-self/fd").expect("procfs");
    let open = list.filter_map(|entry| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        // The descriptor that lists them is closed by now, or leads to the list itself.
        let target = std::fs::read_link(entry.path()).ok()?;
        let target = target.to_string_lossy().into_owned();
        (!target.ends_with("/fd")).then_some((number, target))
    });
    open.collect()
}
