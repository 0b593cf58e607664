//! What is made to fail: the call sites, the answers, and when each is given.

use zcio::Side;

/// A call, told apart by what it does in a transfer and not by its name alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Site {
    /// read(2), pread(2), recv(2) on the source.
    Read,
    /// write(2), pwrite(2) on the destination.
    Write,
    /// send(2) on the destination.
    Send,
    /// preadv2(2) with `RWF_DONTCACHE`.
    ReadUncached,
    /// pwritev2(2) with `RWF_DONTCACHE`.
    WriteUncached,
    /// splice(2) from the source into the private pipe.
    SpliceIn,
    /// splice(2) from the private pipe into the destination.
    SpliceOut,
    /// splice(2) from the source straight into the destination.
    Splice,
    Sendfile,
    CopyFileRange,
    /// ioctl(2) `FICLONERANGE`.
    Clone,
    Pipe2,
    /// fcntl(2) `F_SETPIPE_SZ`.
    PipeSize,
    Poll,
    /// read(2) on the private pipe: taking back what it holds.
    Reclaim,
}

impl Site {
    pub(crate) const ALL: [Site; 15] = [
        Site::Read,
        Site::Write,
        Site::Send,
        Site::ReadUncached,
        Site::WriteUncached,
        Site::SpliceIn,
        Site::SpliceOut,
        Site::Splice,
        Site::Sendfile,
        Site::CopyFileRange,
        Site::Clone,
        Site::Pipe2,
        Site::PipeSize,
        Site::Poll,
        Site::Reclaim,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Site::Read => "read",
            Site::Write => "write",
            Site::Send => "send",
            Site::ReadUncached => "preadv2",
            Site::WriteUncached => "pwritev2",
            Site::SpliceIn => "splice in",
            Site::SpliceOut => "splice out",
            Site::Splice => "splice through",
            Site::Sendfile => "sendfile",
            Site::CopyFileRange => "copy_file_range",
            Site::Clone => "FICLONERANGE",
            Site::Pipe2 => "pipe2",
            Site::PipeSize => "F_SETPIPE_SZ",
            Site::Poll => "poll",
            Site::Reclaim => "read back",
        }
    }

    /// The side that a failure of this call lies with, where the call names one side only.
    pub(crate) fn side(self) -> Option<Side> {
        match self {
            Site::Read | Site::ReadUncached | Site::SpliceIn => Some(Side::Source),
            Site::Write | Site::Send | Site::WriteUncached | Site::SpliceOut => {
                Some(Side::Destination)
            }
            _ => None,
        }
    }

    /// Whether it moves bytes, so that it can move fewer of them.
    pub(crate) fn moves(self) -> bool {
        !matches!(
            self,
            Site::Clone | Site::Pipe2 | Site::PipeSize | Site::Poll
        )
    }
}

/// What the call is made to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Answer {
    /// This error number; nothing is done.
    Errno(i32),
    /// The true result of the same call for one byte.
    One,
    /// The true result of the same call for half as many.
    Half,
    /// 0; nothing is done.
    Zero,
}

impl Answer {
    pub(crate) const ALL: [Answer; 17] = [
        Answer::Errno(libc::EINTR),
        Answer::Errno(libc::EAGAIN),
        Answer::Errno(libc::EINVAL),
        Answer::Errno(libc::ENOSYS),
        Answer::Errno(libc::EPERM),
        Answer::Errno(libc::EOPNOTSUPP),
        Answer::Errno(libc::EXDEV),
        Answer::Errno(libc::EBADF),
        Answer::Errno(libc::EIO),
        Answer::Errno(libc::ENOSPC),
        Answer::Errno(libc::EPIPE),
        Answer::Errno(libc::ECONNRESET),
        Answer::Errno(libc::EFBIG),
        Answer::Errno(libc::ENOMEM),
        Answer::One,
        Answer::Half,
        Answer::Zero,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Answer::Errno(libc::EINTR) => "EINTR",
            Answer::Errno(libc::EAGAIN) => "EAGAIN",
            Answer::Errno(libc::EINVAL) => "EINVAL",
            Answer::Errno(libc::ENOSYS) => "ENOSYS",
            Answer::Errno(libc::EPERM) => "EPERM",
            Answer::Errno(libc::EOPNOTSUPP) => "EOPNOTSUPP",
            Answer::Errno(libc::EXDEV) => "EXDEV",
            Answer::Errno(libc::EBADF) => "EBADF",
            Answer::Errno(libc::EIO) => "EIO",
            Answer::Errno(libc::ENOSPC) => "ENOSPC",
            Answer::Errno(libc::EPIPE) => "EPIPE",
            Answer::Errno(libc::ECONNRESET) => "ECONNRESET",
            Answer::Errno(libc::EFBIG) => "EFBIG",
            Answer::Errno(libc::ENOMEM) => "ENOMEM",
            Answer::Errno(_) => "another errno",
            Answer::One => "1 byte",
            Answer::Half => "half",
            Answer::Zero => "0",
        }
    }

    /// Whether a kernel could give this answer at that call without having done something else.
    pub(crate) fn is_for(self, site: Site) -> bool {
        match self {
            Answer::Errno(_) => true,
            // A smaller pipe than was asked for.
            Answer::One | Answer::Half => site.moves() || site == Site::PipeSize,
            // For poll(2), that time ran out.
            Answer::Zero => site.moves() || site == Site::Poll,
        }
    }
}

/// Which calls of a site are answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// This one, counted from 1.
    At(u32),
    /// Every second one, so that the one after it goes through.
    EveryOther,
    /// Two in a row, so that the one after them goes through.
    TwoOfThree,
    /// This one and every one after it.
    From(u32),
}

/// What repeats does so this often at most: no way of asking twice in a row meets it for ever.
const MOST: u32 = 10;

/// Nor does what never ends go on longer than this: whoever is met by it so often asks in vain.
pub(crate) const EVER: u32 = 5000;

/// One fault, or the same one again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) site: Site,
    pub(crate) when: When,
    pub(crate) answer: Answer,
}

impl Rule {
    pub(crate) fn new(site: Site, when: When, answer: Answer) -> Self {
        Self { site, when, answer }
    }

    pub(crate) fn once(site: Site, at: u32, answer: Answer) -> Self {
        Self::new(site, When::At(at), answer)
    }
}

/// The descriptors of a transfer, by which its calls are told apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) src: i32,
    pub(crate) dst: i32,
    /// The backend opens the sides anew: no descriptor that is read is a pipe of its own.
    pub(crate) reopens: bool,
}

impl Numbers {
    /// Which site a system call is, if any.
    pub(crate) fn site(&self, nr: i64, args: &[usize; 6]) -> Option<Site> {
        // Descriptors and commands are `int`: the upper half of the register means nothing.
        let int = |i: usize| args[i] as i32;
        Some(match nr {
            libc::SYS_read | libc::SYS_pread64 | libc::SYS_recvfrom
                if int(0) == self.src || self.reopens =>
            {
                Site::Read
            }
            libc::SYS_read => Site::Reclaim,
            libc::SYS_write | libc::SYS_pwrite64 => Site::Write,
            libc::SYS_sendto => Site::Send,
            libc::SYS_preadv2 => Site::ReadUncached,
            libc::SYS_pwritev2 => Site::WriteUncached,
            libc::SYS_splice => match (int(0) == self.src, int(2) == self.dst) {
                (true, true) => Site::Splice,
                (true, false) => Site::SpliceIn,
                (false, _) => Site::SpliceOut,
            },
            libc::SYS_sendfile => Site::Sendfile,
            libc::SYS_copy_file_range => Site::CopyFileRange,
            libc::SYS_ioctl if int(1) == libc::FICLONERANGE as i32 => Site::Clone,
            libc::SYS_pipe2 => Site::Pipe2,
            libc::SYS_fcntl if int(1) == libc::F_SETPIPE_SZ => Site::PipeSize,
            crate::common::POLL => Site::Poll,
            _ => return None,
        })
    }
}

/// Which rules fire at which call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    rules: Vec<Rule>,
    seen: [u32; Site::ALL.len()],
    fired: Vec<u32>,
    /// The rules fire one after the other: the next is counted once the one before has fired.
    in_order: bool,
    since: Vec<u32>,
}

impl Script {
    pub(crate) fn new(rules: &[Rule]) -> Self {
        Self {
            rules: rules.to_vec(),
            fired: vec![0; rules.len()],
            since: vec![0; rules.len()],
            ..Self::default()
        }
    }

    /// As [`new`](Self::new), but a rule's calls are counted only after the rule before has fired.
    pub(crate) fn in_order(rules: &[Rule]) -> Self {
        Self {
            in_order: true,
            ..Self::new(rules)
        }
    }

    /// Takes note of a call, and says what it is to answer, if not the truth.
    pub(crate) fn next(&mut self, site: Site) -> Option<Answer> {
        self.seen[site as usize] += 1;
        for (i, rule) in self.rules.iter().enumerate() {
            let waits = self.in_order && i > 0 && self.fired[i - 1] == 0;
            if rule.site != site || waits {
                continue;
            }
            self.since[i] += 1;
            let (count, fired) = (self.since[i], self.fired[i]);
            let due = match rule.when {
                When::At(at) => count == at,
                When::EveryOther => count % 2 == 0 && fired < MOST,
                When::TwoOfThree => count % 3 != 1 && fired < MOST,
                When::From(at) => count >= at && fired < EVER,
            };
            if due {
                self.fired[i] += 1;
                return Some(rule.answer);
            }
        }
        None
    }

    /// How often each rule has fired.
    pub(crate) fn fired(&self) -> &[u32] {
        &self.fired
    }

    /// How often a site was called.
    pub(crate) fn seen(&self, site: Site) -> u32 {
        self.seen[site as usize]
    }

    /// How many calls there were of all sites.
    pub(crate) fn total(&self) -> u32 {
        self.seen.iter().sum()
    }
}
