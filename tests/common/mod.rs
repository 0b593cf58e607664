//! What the tests share: known bytes, descriptors of every kind, one oracle, a watchdog.
//!
//! - [`data`]: bytes that follow from seed and position, so that any range can be checked alone.
//! - [`watch`]: [`within`] runs a test body under a watchdog, in a descriptor table of its own.
//! - [`source`], [`destination`]: makers for every kind of descriptor, with the other end tended.
//! - [`oracle`]: what every transfer is held to, whatever became of it.
//! - [`drive`]: advances a transfer to its end, as an event loop would.
//! - [`make`]: the bare descriptors.
//! - [`example()`]: the examples as child processes.
// Each test binary includes all of this and uses a part; `pub` here means "for the tests".
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod data;
pub mod destination;
pub mod drive;
pub mod example;
pub mod make;
pub mod oracle;
pub mod source;
pub mod watch;

pub use data::Data;
pub use destination::{Destination, DestinationKind};
pub use example::example;
pub use oracle::{Before, Claim};
pub use source::{Content, Source, SourceKind};
pub use watch::{Pulse, within};

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Mutex;

use nix::fcntl::OFlag;
use zcio::{Backend, TransferOptions};

/// The call that poll(3) makes: not every architecture has poll(2) itself.
#[cfg(target_arch = "x86_64")]
pub const POLL: libc::c_long = libc::SYS_poll;
#[cfg(not(target_arch = "x86_64"))]
pub const POLL: libc::c_long = libc::SYS_ppoll;

/// Says aloud that something was not tested, once, and past the capture of the test harness.
pub fn skipped(what: &str, reason: impl std::fmt::Display) {
    use std::io::Write;
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let line = format!("SKIPPED {what}: {reason}");
    let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if said.insert(line.clone()) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// The probe's own choice, and every backend that serves this pair by force, each with its name and
/// options for it.
pub fn each_backend(src: impl AsFd, dst: impl AsFd) -> Vec<(String, TransferOptions)> {
    let mut all = vec![("the probe's choice".to_owned(), TransferOptions::new())];
    for backend in Backend::ALL {
        let options = TransferOptions::new().backend(backend).clone();
        let probe = options.probe(src.as_fd(), dst.as_fd()).expect("a fit pair");
        if probe.verdict(backend).is_ok() && kernel_can(backend, src.as_fd(), dst.as_fd()) {
            all.push((backend.to_string(), options));
        }
    }
    all
}

/// Whether this kernel can do what a backend needs for a pair that it fits by the facts: asked by
/// trying it, without moving a byte. O_DIRECT came to tmpfs with Linux 6.6, sendfile(2) from a
/// socket to a pipe with 5.12.
pub fn kernel_can(backend: Backend, src: impl AsFd, dst: impl AsFd) -> bool {
    let able = match backend {
        Backend::Direct => {
            let direct = |fd, flags| make::reopen(fd, flags | OFlag::O_DIRECT).is_ok();
            // What appends is written as it is opened.
            let appends = make::flags(&dst).contains(OFlag::O_APPEND);
            direct(src.as_fd(), OFlag::O_RDONLY) || !appends && direct(dst.as_fd(), OFlag::O_WRONLY)
        }
        Backend::Sendfile => {
            let result = nix::sys::sendfile::sendfile64(dst.as_fd(), src.as_fd(), None, 0);
            result != Err(nix::errno::Errno::EINVAL)
        }
        _ => true,
    };
    if !able {
        let what = |fd| match zcio::backend::Facts::new(fd) {
            Ok(_) if make::is_tmpfs(fd) => "a file in memory".to_owned(),
            Ok(facts) => facts.kind().to_string(),
            Err(e) => e.to_string(),
        };
        let (from, to) = (what(src.as_fd()), what(dst.as_fd()));
        skipped(
            &format!("{backend} from {from} to {to}"),
            "this kernel cannot do it",
        );
    }
    able
}
