//! A filesystem whose sizes are wrong and whose reads fail in any way (B44, B45, B52): the end is where
//! read(2) finds it, whatever is stated; a read that fails is the source's failure; one that says "not
//! now" is not asked for ever.

use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use nix::unistd::{Whence, lseek};
use zcio::{Backend, End, Error, ErrorKind, Message, Side, TransferOptions};

use super::cell::{Moved, Sheet, options, outcome};
use super::daemon::{DATA, Daemon, Spec};
use super::disk::{Disk, Fs};
use crate::common::oracle::arrived;
use crate::common::{Claim, Content, Destination, DestinationKind, Pulse, drive, make, skipped};

const LEN: u64 = 300_000;

/// Where reads begin to fail: some pieces into the file, and with no piece of it before.
const FROM: u64 = 128 << 10;

/// The sizes that are no ends.
const SIZES: [(&str, Spec); 8] = {
    let right = Spec {
        stated: LEN,
        held: LEN,
        grown: 0,
        direct: true,
        believed: false,
        no_seek: false,
        fails: None,
    };
    let cached = Spec {
        direct: false,
        ..right
    };
    [
        (
            "too small",
            Spec {
                stated: 4096,
                ..right
            },
        ),
        ("none", Spec { stated: 0, ..right }),
        (
            "too large",
            Spec {
                stated: 1 << 40,
                ..right
            },
        ),
        (
            "grown",
            Spec {
                stated: 4096,
                held: 4096,
                grown: LEN,
                believed: true,
                ..right
            },
        ),
        (
            "too small, cached",
            Spec {
                stated: 4096,
                ..cached
            },
        ),
        (
            "too large, cached",
            Spec {
                stated: 1 << 40,
                believed: true,
                ..cached
            },
        ),
        (
            "stale, cached",
            Spec {
                stated: 4096,
                held: 4096,
                grown: LEN,
                believed: true,
                ..cached
            },
        ),
        (
            "no position",
            Spec {
                no_seek: true,
                ..right
            },
        ),
    ]
};

const TO: [DestinationKind; 4] = [
    DestinationKind::Memfd,
    DestinationKind::Pipe,
    DestinationKind::Tcp,
    DestinationKind::Unix,
];

/// How a transfer is asked for.
#[derive(Clone, Copy, Debug)]
enum Form {
    Blocking,
    /// Step by step, on a non-blocking destination.
    Stepwise,
}

/// One transfer of a file, held to the oracle.
fn run(
    options: &TransferOptions,
    form: Form,
    source: &File,
    destination: Destination,
) -> Result<Moved, String> {
    let result = match form {
        Form::Blocking => options.transfer(source, &destination, u64::MAX),
        Form::Stepwise => {
            make::set_nonblocking(&destination, true);
            options
                .start(source, &destination, u64::MAX)
                .and_then(|mut transfer| {
                    drive::to_end(&mut transfer)?;
                    Ok(transfer.report())
                })
        }
    };
    let claim = Claim::from(&result);
    let wrong = |breach| format!("{breach}; it says {result:?}");
    let at = lseek(source, 0, Whence::SeekCur);
    if at.is_ok_and(|at| at.unsigned_abs() != claim.taken()) {
        return Err(wrong(format!("the source is at {at:?}")));
    }
    arrived(&Content::Known(DATA, LEN), destination, 0, &claim).map_err(wrong)?;
    Ok(result.map_err(Box::new))
}

/// Where a loop over read(2) finds the end.
fn end_by_read(mut file: File) -> u64 {
    let (mut at, mut buf) = (0, vec![0; 64 << 10]);
    loop {
        match file.read(&mut buf).expect("it can be read") {
            0 => return at,
            n => {
                assert_eq!(DATA.check(at, &buf[..n]), Ok(()), "read(2) at {at}");
                at += n as u64;
            }
        }
    }
}

fn daemon(what: &str) -> Option<Daemon> {
    match Daemon::new(what) {
        Ok(daemon) => Some(daemon),
        Err(reason) => {
            skipped(&format!("root {what}"), reason);
            None
        }
    }
}

/// Every backend, to everything, by both forms.
pub(crate) fn sizes(pulse: &Pulse) {
    let Some(mut daemon) = daemon("sizes") else {
        return;
    };
    let mut sheet = Sheet::new("sizes");
    for (name, spec) in SIZES {
        let end = end_by_read(daemon.open(spec));
        for (to, form) in TO
            .iter()
            .flat_map(|to| [(*to, Form::Blocking), (*to, Form::Stepwise)])
        {
            pulse.at(format!("{name} to {to:?}, {form:?}"));
            sheet.row("fuse", &format!("{name}→{to:?} {form:?}"), |backend| {
                let (source, destination) = (daemon.open(spec), to.make().expect("a destination"));
                let result = run(&options(backend), form, &source, destination)?;
                is_all(&result, backend, end)?;
                Ok(outcome(backend, &result))
            });
        }
    }
    sheet.conclude();
}

/// All of it, to the end; or by force, that this is no file for that backend.
fn is_all(result: &Moved, backend: Option<Backend>, end: u64) -> Result<(), String> {
    match result {
        Ok(report) if report.bytes == end && report.end == End::SourceEnded => Ok(()),
        // Around the page cache, there may be more.
        Ok(report) if backend == Some(Backend::Direct) && report.bytes == LEN => Ok(()),
        Err(error) if backend.is_some() && error.kind() == ErrorKind::Unfit => Ok(()),
        other => Err(format!("expected {end} bytes and the end: {other:?}")),
    }
}

/// The other verbs.
pub(crate) fn sizes_elsewhere(pulse: &Pulse) {
    let Some(mut daemon) = daemon("sizes elsewhere") else {
        return;
    };
    for (name, spec) in SIZES {
        pulse.at(name);
        let end = end_by_read(daemon.open(spec));
        let whole = |destination: Destination| {
            let content = Content::Known(DATA, LEN);
            arrived(&content, destination, 0, &Claim::complete(end))
                .unwrap_or_else(|breach| panic!("{name}: {breach}"));
        };
        let dsts = TO.map(|to| to.make().expect("a destination"));
        let report = zcio::fan_out(daemon.open(spec), &dsts, u64::MAX);
        let report = report.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (report.taken, report.end),
            (end, End::SourceEnded),
            "{name}"
        );
        dsts.into_iter().for_each(whole);

        if !spec.no_seek {
            let dst = DestinationKind::Tcp.make().expect("a destination");
            let message = Message::new().file(daemon.open(spec), 0..end);
            let report = message.send(&dst).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(report.bytes, end, "{name}");
            whole(dst);
        }
        #[cfg(feature = "tokio")]
        whole(awaiting::all(name, &daemon.open(spec), end));
    }
}

/// A size that is made up is no reason to say that there is no room.
pub(crate) fn sizes_beyond_the_disk(pulse: &Pulse) {
    let Some(mut daemon) = daemon("beyond") else {
        return;
    };
    let mut sheet = Sheet::new("beyond");
    for fs in [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs] {
        pulse.at(fs.name());
        let disk = match Disk::new(fs, "small", 64) {
            Ok(disk) => disk,
            Err(reason) => {
                skipped(&format!("root beyond on {}", fs.name()), reason);
                continue;
            }
        };
        for (name, spec) in [SIZES[2], SIZES[5]] {
            let end = end_by_read(daemon.open(spec));
            sheet.row(fs.name(), name, |backend| {
                let (source, destination) = (daemon.open(spec), disk.destination("destination"));
                let result = run(&options(backend), Form::Blocking, &source, destination)?;
                is_all(&result, backend, end)?;
                Ok(outcome(backend, &result))
            });
        }
    }
    sheet.conclude();
}

/// What a read may fail with: numbers that are usually a file's, a destination's or a socket's, and some
/// that are usually nobody's.
const NUMBERS: [i32; 18] = [
    libc::EIO,
    libc::ENOENT,
    libc::EBADF,
    libc::ESTALE,
    libc::EACCES,
    libc::ENODATA,
    libc::EREMOTEIO,
    libc::ENOSPC,
    libc::EDQUOT,
    libc::EFBIG,
    libc::EROFS,
    libc::EPIPE,
    libc::ECONNRESET,
    libc::ENOTCONN,
    libc::ETIMEDOUT,
    libc::EHOSTUNREACH,
    libc::ECONNABORTED,
    libc::ENOMEM,
];

/// Whatever the number, it is the source that failed, and all before is delivered.
pub(crate) fn errors(pulse: &Pulse) {
    let Some(mut daemon) = daemon("errors") else {
        return;
    };
    let mut sheet = Sheet::new("errors");
    for (number, direct) in NUMBERS
        .iter()
        .flat_map(|number| [(*number, true), (*number, false)])
    {
        let spec = failing(number, u32::MAX, direct);
        let name = io::Error::from_raw_os_error(number);
        for to in TO {
            pulse.at(format!("{name}, {to:?}, direct {direct}"));
            sheet.row("fuse", &format!("{number} {direct}→{to:?}"), |backend| {
                let (source, destination) = (daemon.open(spec), to.make().expect("a destination"));
                let result = run(&options(backend), Form::Blocking, &source, destination)?;
                failed(&result, backend, &[number])?;
                Ok(outcome(backend, &result))
            });
        }
    }
    sheet.conclude();
}

/// The same of the other verbs.
pub(crate) fn errors_elsewhere(pulse: &Pulse) {
    let Some(mut daemon) = daemon("errors elsewhere") else {
        return;
    };
    for number in NUMBERS {
        pulse.at(io::Error::from_raw_os_error(number).to_string());
        let spec = failing(number, u32::MAX, true);
        let of_source = |error: &Error| {
            assert_eq!(error.side(), Some(Side::Source), "{error}");
            let told = error.io_error().and_then(io::Error::raw_os_error);
            assert_eq!(told, Some(number), "{error}");
            assert_eq!(error.delivered(), FROM, "{error}");
        };
        let dsts = TO.map(|to| to.make().expect("a destination"));
        let error = zcio::fan_out(daemon.open(spec), &dsts, u64::MAX).expect_err("it fails");
        of_source(error.error());
        for (dst, branch) in dsts.into_iter().zip(&error.report().branches) {
            let claim = Claim::complete(branch.bytes);
            assert_eq!(branch.bytes, FROM, "{:?}", branch.error);
            arrived(&Content::Known(DATA, LEN), dst, 0, &claim).expect("what is told");
        }
        let dst = DestinationKind::Tcp.make().expect("a destination");
        let message = Message::new().file(daemon.open(spec), 0..LEN);
        of_source(&message.send(&dst).expect_err("it fails"));
        #[cfg(feature = "tokio")]
        of_source(&awaiting::error(&daemon.open(spec)));
    }
}

/// A file of which reads fail behind [`FROM`].
fn failing(number: i32, times: u32, direct: bool) -> Spec {
    Spec {
        stated: LEN,
        held: LEN,
        direct,
        fails: Some((FROM, number, times)),
        ..Spec::default()
    }
}

/// The source's failure, with one of these numbers and all that comes before delivered.
fn failed(result: &Moved, backend: Option<Backend>, numbers: &[i32]) -> Result<(), String> {
    let Err(error) = result else {
        return Err(format!("expected to fail: {result:?}"));
    };
    if backend.is_some() && error.kind() == ErrorKind::Unfit {
        return Ok(());
    }
    let told = error.io_error().and_then(io::Error::raw_os_error);
    let right = error.kind() == ErrorKind::Io
        && error.side() == Some(Side::Source)
        && told.is_some_and(|told| numbers.contains(&told))
        // By pieces that the page cache reads at once, it may be less.
        && (backend.is_some() || error.delivered() == FROM);
    match right {
        true => Ok(()),
        false => Err(format!(
            "expected the source to fail with {numbers:?}: {error:?}"
        )),
    }
}

/// How many reads there are to be at most, of which each says "not now", or that it was interrupted.
const ENOUGH: u64 = 10_000;

/// EAGAIN and EINTR that end after a while: all arrives.
pub(crate) fn not_now(pulse: &Pulse) {
    let Some(mut daemon) = daemon("not now") else {
        return;
    };
    let mut sheet = Sheet::new("not now");
    for (number, times, direct) in [
        (libc::EAGAIN, 1, true),
        (libc::EAGAIN, 3, true),
        (libc::EAGAIN, 3, false),
        (libc::EINTR, 3, true),
        (libc::EINTR, 100, true),
        (libc::EINTR, 3, false),
    ] {
        let spec = failing(number, times, direct);
        for (to, form) in TO
            .iter()
            .flat_map(|to| [(*to, Form::Blocking), (*to, Form::Stepwise)])
        {
            let name = format!("{number}×{times} {direct}→{to:?} {form:?}");
            pulse.at(&name);
            sheet.row("fuse", &name, |backend| {
                let (source, destination) = (daemon.open(spec), to.make().expect("a destination"));
                let result = run(&options(backend), form, &source, destination)?;
                is_all(&result, backend, LEN)?;
                Ok(outcome(backend, &result))
            });
        }
    }
    sheet.conclude();
}

/// EAGAIN and EINTR that never end: an error of the source, with the count, after few reads; and no
/// later than a deadline.
pub(crate) fn never(pulse: &Pulse) {
    const SOON: Duration = Duration::from_millis(100);
    let Some(mut daemon) = daemon("never") else {
        return;
    };
    let mut sheet = Sheet::new("never");
    for (number, direct) in [libc::EAGAIN, libc::EINTR]
        .iter()
        .flat_map(|number| [(*number, true), (*number, false)])
    {
        let spec = failing(number, u32::MAX, direct);
        for (to, form) in TO
            .iter()
            .flat_map(|to| [(*to, Form::Blocking), (*to, Form::Stepwise)])
        {
            for limited in [false, true] {
                let name = format!("{number} {direct}→{to:?} {form:?} limited {limited}");
                pulse.at(&name);
                sheet.row("fuse", &name, |backend| {
                    let mut options = options(backend);
                    let start = Instant::now();
                    if limited {
                        options.deadline(start + SOON);
                    }
                    let before = daemon.reads();
                    let (source, destination) = (daemon.open(spec), to.make().expect("one"));
                    let result = run(&options, form, &source, destination)?;
                    let reads = daemon.reads() - before;
                    if reads > ENOUGH {
                        return Err(format!("{reads} reads"));
                    }
                    match &result {
                        Err(error) if limited && is_timeout(error) => {}
                        _ => failed(&result, backend, &[number])?,
                    }
                    Ok(outcome(backend, &result))
                });
            }
        }
    }
    sheet.conclude();
}

fn is_timeout(error: &Error) -> bool {
    error
        .io_error()
        .is_some_and(|e| e.kind() == io::ErrorKind::TimedOut)
}

/// The same of the other verbs.
pub(crate) fn never_elsewhere(pulse: &Pulse) {
    let Some(mut daemon) = daemon("never elsewhere") else {
        return;
    };
    for number in [libc::EAGAIN, libc::EINTR] {
        let spec = failing(number, u32::MAX, true);
        let before = daemon.reads();
        let of_source = |error: &Error| {
            assert_eq!(error.side(), Some(Side::Source), "{error}");
            let told = error.io_error().and_then(io::Error::raw_os_error);
            assert_eq!(told, Some(number), "{error}");
            assert_eq!(error.delivered(), FROM, "{error}");
        };
        pulse.at(format!("{number}: fan_out"));
        let dsts = TO.map(|to| to.make().expect("a destination"));
        let error = zcio::fan_out(daemon.open(spec), &dsts, u64::MAX).expect_err("it fails");
        of_source(error.error());
        pulse.at(format!("{number}: a message"));
        let dst = DestinationKind::Tcp.make().expect("a destination");
        let message = Message::new().file(daemon.open(spec), 0..LEN);
        of_source(&message.send(&dst).expect_err("it fails"));
        #[cfg(feature = "tokio")]
        {
            pulse.at(format!("{number}: awaiting"));
            of_source(&awaiting::error(&daemon.open(spec)));
        }
        let reads = daemon.reads() - before;
        assert!(reads < 3 * ENOUGH, "{number}: {reads} reads");
    }
}

#[cfg(feature = "tokio")]
mod awaiting {
    use std::os::fd::AsFd;

    use super::*;

    fn transfer(file: &File, destination: &Destination) -> zcio::Result<zcio::Report> {
        make::set_nonblocking(destination, true);
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let again = destination.as_fd().try_clone_to_owned().expect("dup(2)");
            let stream = std::net::TcpStream::from(again);
            let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
            zcio::tokio::transfer(file, &stream, u64::MAX).await
        })
    }

    pub(super) fn all(name: &str, file: &File, end: u64) -> Destination {
        let dst = DestinationKind::Tcp.make().expect("a destination");
        let report = transfer(file, &dst).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (report.bytes, report.end),
            (end, End::SourceEnded),
            "{name}"
        );
        dst
    }

    pub(super) fn error(file: &File) -> Error {
        let dst = DestinationKind::Tcp.make().expect("a destination");
        transfer(file, &dst).expect_err("it fails")
    }
}
