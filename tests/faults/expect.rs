//! What has to become of a transfer, by where it fails and how.

use std::io;

use zcio::{Backend, End as Ending, Side};

use crate::bench::End;
use crate::case::{Case, Run};
use crate::common::skipped;
use crate::plan::{Answer, EVER, Site};

/// What must become of one transfer that meets one fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// All bytes arrive.
    All,
    /// The source seemed to end there.
    Ends,
    /// An error, of this side.
    Fails(Option<Side>),
    /// An error of the mechanism, which need not name this side.
    Refused(Option<Side>),
    /// All bytes, or an error of this side.
    Either(Side),
}

/// What is at work where the fault strikes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    pub(crate) pair: (End, End),
    pub(crate) backend: Backend,
    /// Another backend is left to go on.
    pub(crate) fallback: bool,
    /// This backend has moved something before.
    pub(crate) proven: bool,
    /// The side that is being waited for.
    pub(crate) waits: Option<Side>,
}

impl Scene {
    /// The first backend of a case at work.
    pub(crate) fn first(case: &Case, proven: bool) -> Self {
        let backend = case.chain[0];
        Self {
            pair: case.pair,
            backend,
            fallback: case.chain.len() > 1 && backend != Backend::ReadWrite,
            proven,
            waits: None,
        }
    }

    /// The backend at work that the first gave way to, in a run in which it did. Where the kernel
    /// refuses the pair to that one as well, it is said so aloud: that is a third one's scene.
    pub(crate) fn second(case: &Case, run: &Run) -> Option<Self> {
        let report = run.result.as_ref().ok()?;
        if let [_, refused, ..] = report.refused() {
            skipped(
                &format!("fallback of {}", case.name()),
                format!("refused here: {refused:?}"),
            );
            return None;
        }
        let backend = report.shares().last()?.0;
        let last = case.chain.last() == Some(&backend);
        Some(Self {
            backend,
            fallback: !last && backend != Backend::ReadWrite,
            ..Self::first(case, false)
        })
    }

    /// Whether EAGAIN from this site does not tell by itself which side it speaks of: the source is
    /// looked at, and where it is ready the call is made once more.
    pub(crate) fn is_ambiguous(&self, site: Site) -> bool {
        matches!(site, Site::Splice | Site::Sendfile) && self.pair.0 != End::File
    }

    /// Whether EAGAIN from this site is not believed of either side: TCP's urgent data are answered so.
    /// Both are asked, and where both are ready the call is made again.
    pub(crate) fn is_doubtful(&self, site: Site) -> bool {
        let calls = matches!(site, Site::Splice | Site::SpliceIn | Site::Sendfile);
        calls && self.pair.0 == End::Tcp
    }

    /// Whether the source is waited for before each call, which would wait with the pipe locked.
    pub(crate) fn polls_first(&self) -> bool {
        let pipes = matches!(self.backend, Backend::Splice | Backend::Sendfile);
        pipes && matches!(self.pair, (End::Tcp | End::Unix, End::Pipe))
    }

    /// The side that blocks where a call of this site does, both sides being ready: none of them is
    /// the source's alone.
    pub(crate) fn blocks(&self, site: Site) -> Option<Side> {
        match site {
            _ if self.is_doubtful(site) => None,
            Site::Splice | Site::Sendfile => Some(Side::Destination),
            other => other.side(),
        }
    }

    /// The side that is asked about after one EAGAIN.
    pub(crate) fn polls(&self, site: Site) -> Option<Side> {
        if self.is_doubtful(site) {
            // Both are, and which comes last is not the point.
            return None;
        }
        if self.is_ambiguous(site) {
            Some(Side::Source)
        } else {
            self.blocks(site)
        }
    }

    /// What `answer` from `site` must lead to.
    pub(crate) fn expect(&self, site: Site, answer: Answer) -> Expect {
        let errno = match answer {
            Answer::One | Answer::Half => return Expect::All,
            Answer::Zero => return self.expect_zero(site),
            Answer::Errno(errno) => errno,
        };
        let or_fails = |side| match self.backend {
            _ if self.fallback => Expect::All,
            // What serves every pair is never the wrong mechanism.
            Backend::ReadWrite => Expect::Fails(side),
            _ => Expect::Refused(side),
        };
        match (errno, site) {
            (libc::EINTR, _) | (libc::EAGAIN, Site::Poll) => Expect::All,
            // Asked before the call, it is as if the call itself had failed.
            (
                libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM | libc::ENOMEM,
                Site::Poll,
            ) if self.waits.is_none() => or_fails(Some(Side::Source)),
            (_, Site::Poll) => Expect::Fails(self.waits.or(Some(Side::Source))),
            // Whatever it is: bytes go through the pipe that there is.
            (_, Site::PipeSize | Site::Reclaim) => Expect::All,
            // A pipe that is not to be had is no fault of either side.
            (_, Site::Pipe2) => or_fails(None),
            // A lock in the way of the whole file: nothing tells when it is gone.
            (libc::EAGAIN, Site::CopyFileRange | Site::Clone) => or_fails(None),
            (libc::EAGAIN, _) => Expect::All,
            (
                libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM,
                Site::ReadUncached | Site::WriteUncached,
            ) => Expect::All,
            // A profile that has no send(2) may have write(2).
            (libc::ENOSYS | libc::EPERM, Site::Send) => Expect::All,
            // Aligned blocks go buffered then; what went buffered already has no other way.
            (libc::EINVAL, Site::Write)
                if self.backend == Backend::Direct && self.pair.1 == End::File =>
            {
                Expect::Either(Side::Destination)
            }
            (libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM, _) => {
                or_fails(self.side(site, errno))
            }
            (libc::ENOMEM, _) => or_fails(self.side(site, errno)),
            (libc::EXDEV | libc::EBADF, Site::CopyFileRange | Site::Clone) => or_fails(None),
            (libc::EIO | libc::EFBIG, Site::CopyFileRange) => or_fails(self.side(site, errno)),
            _ => Expect::Fails(self.side(site, errno)),
        }
    }

    /// What a site's answer for ever must lead to: all bytes where another backend has other calls, and an
    /// error with that number where none has; in a limited transfer, it may be the limit's.
    pub(crate) fn judge_for_ever(
        &self,
        site: Site,
        answer: Answer,
        limited: bool,
        run: &Run,
    ) -> Result<(), String> {
        if run.script.fired() == [EVER] {
            return Err("it asks in vain, again and again".to_owned());
        }
        let error = match &run.result {
            Ok(report) if report.bytes == run.whole => return Ok(()),
            Ok(report) => return Err(format!("{} of {} bytes", report.bytes, run.whole)),
            Err(error) => error,
        };
        let cause = error.io_error();
        let late = cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut);
        if limited && late {
            return Ok(());
        }
        if self.fallback && !matches!(site, Site::Read | Site::Write | Site::Send | Site::Poll) {
            return Err(format!("others had other calls: {error}"));
        }
        if site.side().is_some() && error.side().is_some() && error.side() != site.side() {
            return Err(format!("{:?} is named: {error}", error.side()));
        }
        let number = cause.and_then(io::Error::raw_os_error);
        match number.map(Answer::Errno) == Some(answer) {
            true => Ok(()),
            false => Err(format!("not the number that was given: {error}")),
        }
    }

    fn expect_zero(&self, site: Site) -> Expect {
        match site {
            // Time ran out without a limit: to be waited again.
            Site::Poll => Expect::All,
            Site::Write | Site::Send | Site::WriteUncached | Site::SpliceOut => {
                Expect::Fails(Some(Side::Destination))
            }
            Site::Reclaim => Expect::All,
            // Only read(2) can be believed at once where a file is concerned. What it contradicts is
            // asked once more.
            _ if self.proven || self.backend == Backend::ReadWrite || self.pair.0 != End::File => {
                Expect::Ends
            }
            _ => Expect::All,
        }
    }

    /// The side that has to be named.
    fn side(&self, site: Site, errno: i32) -> Option<Side> {
        let named = match errno {
            libc::ENOSPC | libc::EPIPE | libc::EFBIG => Some(Side::Destination),
            // Of two sides, the one that it cannot be is told by what they are: a pipe neither
            // loses its storage nor its connection, and a file that can be read has not failed.
            libc::EIO | libc::ECONNRESET => match self.pair {
                (End::File | End::Pipe, _) => Some(Side::Destination),
                (_, End::Pipe) => Some(Side::Source),
                _ => None,
            },
            _ => None,
        };
        site.side().or(named)
    }
}

impl Expect {
    /// Whether that is what became of it; else what is wrong.
    pub(crate) fn judge(self, answer: Answer, first: Backend, run: &Run) -> Result<(), String> {
        let expected = match (self, &run.result) {
            (Expect::Either(_), Ok(_)) => Expect::All,
            (Expect::Either(side), Err(_)) => Expect::Fails(Some(side)),
            (Expect::Refused(_), Err(error)) if error.side().is_none() => Expect::Fails(None),
            (Expect::Refused(side), _) => Expect::Fails(side),
            (expected, _) => expected,
        };
        match (expected, &run.result) {
            (Expect::All, Ok(report)) if report.bytes == run.whole => Ok(()),
            (Expect::Ends, Ok(report)) if report.end == Ending::SourceEnded => Ok(()),
            (Expect::Fails(side), Err(error)) => {
                if error.side() != side {
                    return Err(format!(
                        "{:?} is named, not {side:?}: {error}",
                        error.side()
                    ));
                }
                let number = error.io_error().and_then(io::Error::raw_os_error);
                if let Answer::Errno(errno) = answer {
                    if number != Some(errno) {
                        return Err(format!("not the errno {errno} that was given: {error}"));
                    }
                }
                if error.backend() != Some(first) {
                    return Err(format!("{first} was at work, not {:?}", error.backend()));
                }
                Ok(())
            }
            (_, Ok(report)) => {
                let Run { whole, .. } = run;
                Err(format!(
                    "{self:?} expected, but {} of {whole} bytes, {:?}",
                    report.bytes, report.end
                ))
            }
            (_, Err(error)) => Err(format!(
                "{self:?} expected, but {:?}: {error}",
                error.side()
            )),
        }
    }
}
