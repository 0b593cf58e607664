//! Every kind of source to every kind of destination, by the probe's choice and by each backend,
//! blocking and not: the right bytes or a typed error, the oracle either way, and no hang.

mod common;

use std::collections::BTreeMap;
use std::io;

use common::{
    Before, Claim, Content, Data, DestinationKind, Pulse, SourceKind, make, skipped, within,
};
use zcio::{Backend, Error, ErrorKind, Report, Side, TransferOptions};

/// What each source holds, as far as that is up to us: several times a pipe.
const LEN: u64 = 200_003;
/// What is asked for where a source has no end, or is not to be read to its end.
const PART: u64 = 150_001;

/// Kinds that no transfer takes, whatever the other side.
fn refuses(kind: SourceKind) -> bool {
    use SourceKind::*;
    matches!(
        kind,
        UnixDatagram | Seqpacket | Udp | Eventfd | Timerfd | Epoll | Inotify | Directory | OPath
    )
}

/// The same for destinations.
fn rejects(kind: DestinationKind) -> bool {
    use DestinationKind::*;
    matches!(kind, UnixDatagram | Seqpacket | Udp | Eventfd | OPath)
}

/// Sockets that have no other end.
fn is_alone(kind: SourceKind) -> bool {
    use SourceKind::*;
    matches!(kind, TcpUnconnected | UnixUnconnected | VsockUnconnected) || listens(kind)
}

fn listens(kind: SourceKind) -> bool {
    matches!(kind, SourceKind::TcpListener | SourceKind::UnixListener)
}

/// The same for destinations.
fn leads_nowhere(kind: DestinationKind) -> bool {
    use DestinationKind::*;
    matches!(
        kind,
        TcpListener | UnixListener | TcpUnconnected | UnixUnconnected | VsockUnconnected
    )
}

/// Of these, splice(2) and sendfile(2) stop in front of urgent data.
fn is_urgent(kind: SourceKind) -> bool {
    matches!(kind, SourceKind::TcpUrgent | SourceKind::TcpUrgentInline)
}

/// Kinds that look like a file, of which only the kernel knows whether they can be read.
fn is_doubtful(kind: SourceKind) -> bool {
    matches!(kind, SourceKind::SecretMemfd | SourceKind::Namespace)
}

fn number(error: &Error) -> Option<i32> {
    error.io_error().and_then(io::Error::raw_os_error)
}

/// What must be true of the outcome, beyond the oracle.
fn plausible(
    (from, to): (SourceKind, DestinationKind),
    backend: Option<Backend>,
    expected: Option<u64>,
    result: &zcio::Result<Report>,
) -> Result<(), String> {
    let is = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
    match result {
        Ok(report) => {
            is(!refuses(from) && !rejects(to), "served what cannot be")?;
            is(
                expected.is_none_or(|n| report.bytes == n),
                "too few or too many bytes",
            )?;
            let to_full = to == DestinationKind::Full && report.bytes > 0;
            is(!to_full, "/dev/full took something")?;
            let nobody = is_alone(from) || leads_nowhere(to) && report.bytes > 0;
            is(!nobody, "served what has no other end")
        }
        Err(error) if refuses(from) || rejects(to) => {
            let side = match refuses(from) {
                true => Side::Source,
                false => Side::Destination,
            };
            is(error.kind() == ErrorKind::InvalidInput, "not invalid input")?;
            is(error.side() == Some(side), "the wrong side")?;
            is(error.delivered() == 0, "delivered something")
        }
        Err(error) if is_alone(from) || leads_nowhere(to) => {
            is(error.delivered() == 0, "delivered something")?;
            let by_force = backend.is_some() && error.backend() == backend;
            // With O_DIRECT there is but one backend, which does not ask whose EINVAL it is.
            let alone = to == DestinationKind::DirectFile && number(error) == Some(libc::EINVAL);
            match (error.kind(), error.side()) {
                (ErrorKind::Unfit, _) => is(by_force || alone, "no backend served"),
                (ErrorKind::InvalidInput, Some(Side::Source)) => {
                    is(listens(from), "refused as one that listens")
                }
                (ErrorKind::Io, Some(Side::Source)) => is(
                    is_alone(from) && !listens(from) || is_doubtful(from),
                    "the wrong side, or one that listens",
                ),
                (ErrorKind::Io, Some(Side::Destination)) => is(
                    leads_nowhere(to) || to == DestinationKind::Full,
                    "the wrong side",
                ),
                _ => is(false, "without a side"),
            }
        }
        Err(error) if to == DestinationKind::Full && error.kind() == ErrorKind::Io => {
            is(
                number(error) == Some(libc::ENOSPC) || is_doubtful(from),
                "not ENOSPC",
            )?;
            is(error.delivered() == 0, "delivered something")
        }
        Err(error) if is_doubtful(from) => {
            is(error.delivered() == 0, "failed in the middle")?;
            is(
                number(error).is_some() || backend.is_some(),
                "without the kernel's answer",
            )
        }
        Err(error) if backend.is_some() && is_urgent(from) && error.delivered() > 0 => {
            let again = number(error) == Some(libc::EAGAIN);
            is(
                error.kind() == ErrorKind::Unfit || again,
                "neither moved nor unfit",
            )?;
            is(error.backend() == backend, "another backend")
        }
        Err(error) if backend.is_some() => {
            is(error.kind() == ErrorKind::Unfit, "neither moved nor unfit")?;
            is(error.backend() == backend, "another backend")?;
            is(error.delivered() == 0, "unfit in the middle")
        }
        Err(_) => is(false, "no backend served"),
    }
}

fn one(
    case: &str,
    (from, to): (SourceKind, DestinationKind),
    backend: Option<Backend>,
    nonblocking: bool,
) -> io::Result<bool> {
    let source = from.make(Data::new(from as u64), LEN)?;
    let destination = to.make()?;
    if nonblocking {
        // A place only has no flags to set.
        for (fd, is_path) in [
            (&source.fd, from == SourceKind::OPath),
            (&destination.fd, to == DestinationKind::OPath),
        ] {
            if !is_path {
                make::set_nonblocking(fd, true);
            }
        }
    }
    let to_the_end = !nonblocking && !from.is_endless();
    let len = if to_the_end { u64::MAX } else { PART };
    let expected = match source.content {
        Content::Volatile => None,
        // More of it may have come by then.
        Content::Growing(..) if to_the_end => None,
        Content::Refused | Content::Message(_) => Some(0),
        _ => Some(source.content.len().unwrap_or(u64::MAX).min(len)),
    };
    let mut options = TransferOptions::new();
    if let Some(backend) = backend {
        options.backend(backend);
    }
    let before = Before::new(&source, &destination);
    let result = options.transfer(&source, &destination, len);
    if let Err(what) = plausible((from, to), backend, expected, &result) {
        panic!("{case}: {what}: {result:?}");
    }
    if let (Content::Growing(_, least), Ok(report)) = (&source.content, &result) {
        assert!(report.bytes >= len.min(*least), "{case}: {result:?}");
    }
    let claim = Claim::from(&result);
    before.judge(case, source, destination, (None, None), 0, &claim);
    Ok(result.is_ok())
}

fn matrix(pulse: &Pulse, sources: &[SourceKind]) {
    let (mut served, mut refused) = (0, 0);
    let mut missing = BTreeMap::new();
    for from in sources.iter().copied() {
        for to in DestinationKind::ALL {
            for backend in Backend::ALL.map(Some).into_iter().chain([None]) {
                for nonblocking in [false, true] {
                    let by = backend.map_or("the probe's choice", Backend::name);
                    let mode = if nonblocking {
                        "non-blocking"
                    } else {
                        "blocking"
                    };
                    let case = format!("{from:?} to {to:?} by {by}, {mode}");
                    pulse.at(&case);
                    match one(&case, (from, to), backend, nonblocking) {
                        Ok(true) => served += 1,
                        Ok(false) => refused += 1,
                        Err(e) => {
                            let absent = from.make(Data::new(0), LEN).is_err();
                            let what = match absent {
                                true => format!("{from:?} as source"),
                                false => format!("{to:?} as destination"),
                            };
                            missing.insert(what, e.to_string());
                        }
                    }
                }
            }
        }
    }
    for (what, reason) in missing {
        skipped(&what, reason);
    }
    println!("{served} served, {refused} refused with a typed error");
    assert!(served + refused > 0);
}

macro_rules! matrices {
    ($($name:ident: $from:expr),* $(,)?) => {$(
        #[test]
        fn $name() {
            within(10, |pulse| matrix(pulse, $from));
        }
    )*};
}

matrices! {
    files: &SourceKind::ALL[..9],
    streams: &SourceKind::ALL[9..15],
    devices_and_generated_files: &SourceKind::ALL[15..23],
    what_holds_no_stream_of_bytes: &SourceKind::ALL[23..33],
    what_others_do_to_it: &SourceKind::ALL[33..37],
    sockets_without_another_end: &SourceKind::ALL[37..],
}

/// The parts above are all there is.
#[test]
fn the_parts_are_the_whole() {
    use SourceKind::*;
    let at = |kind| SourceKind::ALL.iter().position(|k| *k == kind).unwrap();
    assert_eq!((at(Pipe), at(Zero), at(UnixDatagram)), (9, 15, 23));
    assert_eq!((at(TcpUrgent), at(TcpListener)), (33, 37));
    assert_eq!(
        (SourceKind::ALL.len(), DestinationKind::ALL.len()),
        (42, 26)
    );
}
