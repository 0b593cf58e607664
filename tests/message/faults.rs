//! Every call of a message made to fail in every way: what is claimed is what has arrived, to the
//! byte and at every boundary of a part, and the rest can still be sent.

use std::io::ErrorKind as IoKind;
use std::os::fd::OwnedFd;

use zcio::message::Sending;
use zcio::{Error, ErrorKind, Message, Report, Result, Side};

use crate::common::within;
use crate::hooks::{Answer, Site, Stage};
use crate::lane::{Kind, LARGE, Lane, boundaries, content, file, mixed, mixed_file};

const ANSWERS: [Answer; 16] = [
    Answer::Errno(libc::EINTR),
    Answer::Errno(libc::EAGAIN),
    Answer::Errno(libc::EINVAL),
    Answer::Errno(libc::ENOSYS),
    Answer::Errno(libc::EPERM),
    Answer::Errno(libc::EOPNOTSUPP),
    Answer::Errno(libc::ENOMEM),
    Answer::Errno(libc::EIO),
    Answer::Errno(libc::ENOSPC),
    Answer::Errno(libc::EPIPE),
    Answer::Errno(libc::ECONNRESET),
    Answer::Errno(libc::EFBIG),
    Answer::Errno(libc::ENOBUFS),
    Answer::AtMost(1),
    Answer::Half,
    Answer::Zero,
];

/// What says only that a mechanism does not serve: another one goes on.
const UNFIT: [i32; 5] = [
    libc::EINVAL,
    libc::ENOSYS,
    libc::EPERM,
    libc::EOPNOTSUPP,
    libc::ENOMEM,
];

/// What has to become of a message that meets a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    All,
    /// An error of the destination, with the errno that was given.
    Destination,
    /// The file seems to end there.
    Truncated,
    /// Either of these: it depends on what the call was for.
    AllOr(ErrorKind),
}

fn expect(kind: Kind, site: Site, answer: Answer) -> Expect {
    let from_files = matches!(kind, Kind::File | Kind::Append);
    match (site, answer) {
        (Site::Pread, Answer::Zero) => Expect::Truncated,
        (_, Answer::AtMost(_) | Answer::Half) => Expect::All,
        (_, Answer::Errno(libc::EINTR)) => Expect::All,
        (Site::Poll, Answer::Zero) => Expect::All,
        (Site::Poll, Answer::Errno(_)) => Expect::Destination,
        (_, Answer::Errno(libc::EAGAIN)) => Expect::All,
        // A small file that cannot be read goes to a driver, which sends it another way. Into a
        // file, large ones are read as well.
        (Site::Pread, _) if from_files => Expect::AllOr(ErrorKind::Io),
        (Site::Pread, _) => Expect::All,
        (Site::SpliceOut | Site::Sendfile | Site::Range, Answer::Errno(errno))
            if UNFIT.contains(&errno) =>
        {
            Expect::All
        }
        (Site::Gather | Site::Write | Site::SpliceOut, _) => Expect::Destination,
        // A first 0 is looked into; a later one is the end.
        (Site::Sendfile | Site::Range, Answer::Zero) => Expect::AllOr(ErrorKind::SourceTruncated),
        (Site::Sendfile | Site::Range, Answer::Errno(libc::EIO)) => Expect::AllOr(ErrorKind::Io),
        (Site::Sendfile | Site::Range, _) => Expect::Destination,
        (Site::SpliceIn, Answer::Zero) => Expect::AllOr(ErrorKind::SourceTruncated),
        (Site::SpliceIn, _) => Expect::AllOr(ErrorKind::Io),
        (Site::Reap | Site::Look, _) => unreachable!("not made to fail"),
    }
}

impl Expect {
    fn judge(self, answer: Answer, result: &Result<Report>) -> std::result::Result<(), String> {
        let fits = match (self, result) {
            (Expect::All | Expect::AllOr(_), Ok(_)) => true,
            (Expect::AllOr(kind), Err(error)) => error.kind() == kind,
            (Expect::Truncated, Err(error)) => error.kind() == ErrorKind::SourceTruncated,
            (Expect::Destination, Err(error)) => {
                let number = error.io_error().and_then(std::io::Error::raw_os_error);
                let same = match answer {
                    Answer::Errno(errno) => number == Some(errno),
                    _ => error.io_error().map(std::io::Error::kind) == Some(IoKind::WriteZero),
                };
                same && error.side() == Some(Side::Destination)
            }
            _ => false,
        };
        fits.then_some(())
            .ok_or_else(|| format!("{self:?} expected, not {result:?}"))
    }
}

fn claimed(result: &Result<Report>) -> u64 {
    result
        .as_ref()
        .map_or_else(Error::delivered, |report| report.bytes)
}

/// That so many bytes are delivered, by what the sending says and by what has arrived.
fn account(what: &str, sending: &Sending<'_, OwnedFd>, lane: &mut Lane, all: &[u8], ends: &[u64]) {
    let (part, offset) = sending.position();
    assert_eq!(
        ends[part] + offset,
        sending.delivered(),
        "{what}: where it stands"
    );
    assert_eq!(
        sending.delivered() + sending.remaining(),
        all.len() as u64,
        "{what}"
    );
    assert_eq!(sending.report().bytes, sending.delivered(), "{what}");
    lane.assert_landed(what, &all[..sending.delivered() as usize]);
}

/// Sends under a fault, judges what became of it, and then sends the rest. Says how many calls
/// there were and whether the fault struck.
fn try_one(
    kind: Kind,
    lacks: Option<Site>,
    message: &Message<'_>,
    all: &[u8],
    (site, at, answer): (Site, usize, Answer),
) -> (usize, bool) {
    let what = format!("{kind:?}: {answer:?} at call {at} of {site:?}");
    let ends = boundaries(message);
    let mut lane = Lane::new(kind);
    let mut sending = message.start(lane.dst.try_clone().unwrap()).unwrap();
    let fault = |stage: &mut Stage<'_>| {
        stage.lacks = lacks;
        stage.fault = Some((site, at, answer));
    };
    let (result, stage) = lane.run(fault, |_| sending.finish());
    if stage.seen(site) < at {
        return (stage.calls.len(), false);
    }
    let judged = expect(kind, site, answer).judge(answer, &result);
    judged.unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    assert_eq!(claimed(&result), sending.delivered(), "{what}: {result:?}");
    account(&what, &sending, &mut lane, all, &ends);
    let (rest, _) = lane.run(|_| {}, |_| sending.finish());
    rest.unwrap_or_else(|e| panic!("{what}: the rest: {e}"));
    account(&what, &sending, &mut lane, all, &ends);
    (stage.calls.len(), true)
}

fn one_fault_at_every_call(
    kinds: &[Kind],
    lacks: Option<Site>,
    message: &Message<'_>,
    at: impl Fn(String),
) -> usize {
    let all = content(message);
    let mut struck = 0;
    for kind in kinds {
        let mut lane = Lane::new(*kind);
        let (result, clean) = lane.run(|stage| stage.lacks = lacks, |dst| message.send(dst));
        assert_eq!(result.unwrap().bytes, message.len());
        for site in Site::ALL.into_iter().filter(|site| lacks != Some(*site)) {
            let seen = clean.seen(site);
            let last = seen.saturating_sub(1).max(13)..=seen;
            for call in (1..=seen.min(12)).chain(last) {
                at(format!("{kind:?}: call {call} of {site:?}"));
                for answer in ANSWERS {
                    let fault = (site, call, answer);
                    let (calls, hit) = try_one(*kind, lacks, message, &all, fault);
                    struck += usize::from(hit);
                    let most = 2 * clean.calls.len() + 16;
                    assert!(
                        calls <= most,
                        "{kind:?} {fault:?}: {calls} of at most {most} calls"
                    );
                }
            }
        }
    }
    struck
}

#[test]
fn nothing_is_lost_whatever_a_call_answers() {
    within(120, |pulse| {
        let file = mixed_file();
        let struck =
            one_fault_at_every_call(&Kind::ALL, None, &mixed(&file), |what| pulse.at(what));
        eprintln!("{struck} faults injected");
        // Some 1,500; how often TCP finds no room differs from run to run.
        assert!(struck > 1200, "only {struck} faults");
    });
}

#[test]
fn nor_by_way_of_a_pipe() {
    within(120, |pulse| {
        let file = file(7, 6 << 20);
        let message = Message::new()
            .bytes("head")
            .file(&file, 3..(5 << 20) + 5)
            .bytes("tail");
        let lacks = Some(Site::Sendfile);
        let struck = one_fault_at_every_call(&[Kind::Unix], lacks, &message, |what| pulse.at(what));
        eprintln!("{struck} faults injected");
        assert!(struck > 300, "only {struck} faults");
    });
}

#[test]
fn counts_are_exact_at_every_boundary() {
    within(120, |pulse| {
        let file = mixed_file();
        let message = mixed(&file);
        let (all, ends) = (content(&message), boundaries(&message));
        let places = ends
            .iter()
            .flat_map(|end| [end.saturating_sub(1), *end, end + 1]);
        let places: Vec<u64> = places.filter(|at| *at < message.len()).collect();
        for kind in Kind::ALL {
            for at in &places {
                for errno in [
                    libc::EPIPE,
                    libc::ECONNRESET,
                    libc::ENOSPC,
                    libc::EFBIG,
                    libc::EIO,
                ] {
                    let what = format!("{kind:?}: errno {errno} after {at} bytes");
                    pulse.at(&what);
                    let mut lane = Lane::new(kind);
                    let mut sending = message.start(lane.dst.try_clone().unwrap()).unwrap();
                    let full = |stage: &mut Stage<'_>| stage.room = Some((*at, errno));
                    let (result, _) = lane.run(full, |_| sending.finish());
                    let error = result.expect_err(&what);
                    assert_eq!(error.delivered(), *at, "{what}: {error}");
                    let number = error.io_error().and_then(std::io::Error::raw_os_error);
                    assert_eq!(number, Some(errno), "{what}: {error}");
                    assert!(error.undelivered().is_empty(), "{what}");
                    account(&what, &sending, &mut lane, &all, &ends);
                    // The rest goes by the same sending, or by what is left of the message.
                    let (rest, _) = match at % 2 {
                        0 => lane.run(|_| {}, |_| sending.finish()),
                        _ => lane.run(|_| {}, |dst| message.slice(at..).send(dst)),
                    };
                    rest.unwrap_or_else(|e| panic!("{what}: the rest: {e}"));
                    lane.assert_landed(&what, &all);
                }
            }
        }
    });
}

#[test]
fn one_byte_at_a_time() {
    within(120, |pulse| {
        let source = file(7, LARGE as usize);
        let message = Message::new()
            .bytes("head")
            .file(&source, 0..300)
            .bytes("middle")
            .file(&source, 1..40_001)
            .bytes("tail");
        let all = content(&message);
        for kind in Kind::ALL {
            pulse.at(format!("{kind:?}"));
            let mut lane = Lane::new(kind);
            let mut sending = message.start(lane.dst.try_clone().unwrap()).unwrap();
            while sending.remaining() > 0 {
                let before = sending.delivered();
                // The last ones by sevens, so that the large file does not take an hour.
                let room = if before < 1000 { 1 } else { 777 };
                let full = |stage: &mut Stage<'_>| stage.room = Some((room, libc::EAGAIN));
                let (status, _) = lane.run(full, |_| sending.advance());
                status.unwrap();
                assert!(sending.delivered() <= before + room, "{kind:?}");
            }
            lane.assert_landed(kind, &all);
        }
    });
}
