//! The oracle: what every transfer is held to, whatever became of it.
//!
//! Bytes taken from the source = delivered + handed back, and the count reported, inside an error
//! too, is what the destination holds; the destination's bytes are the source's from the start;
//! the source is unchanged; positions, status flags and pipe sizes as promised; open descriptors
//! and mappings as before. That it ends in time is [`within`](super::within)'s business.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek64};

use super::destination::{Destination, Held};
use super::source::{Content, Source};
use super::{make, watch};

/// What a transfer said of itself, in its report or in its error.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    pub delivered: u64,
    pub handed_back: Vec<u8>,
}

impl From<&zcio::Result<zcio::Report>> for Claim {
    fn from(result: &zcio::Result<zcio::Report>) -> Self {
        match result {
            Ok(report) => {
                let shares: u64 = report.shares().iter().map(|(_, bytes)| bytes).sum();
                assert_eq!(shares, report.bytes, "the shares are not the whole");
                Self::complete(report.bytes)
            }
            Err(error) => Self {
                delivered: error.delivered(),
                handed_back: error.undelivered().to_vec(),
            },
        }
    }
}

impl Claim {
    /// So many bytes delivered, and none handed back.
    pub fn complete(delivered: u64) -> Self {
        let handed_back = Vec::new();
        Self {
            delivered,
            handed_back,
        }
    }

    pub fn taken(&self) -> u64 {
        self.delivered + self.handed_back.len() as u64
    }
}

/// One side before a transfer.
#[derive(Clone, Debug)]
struct Look {
    /// The descriptor's own position; `None` where it has none that means anything.
    position: Option<u64>,
    flags: OFlag,
    pipe_size: Option<i32>,
}

impl Look {
    fn at(fd: BorrowedFd<'_>) -> Self {
        let is_file = nix::sys::stat::fstat(fd)
            .is_ok_and(|stat| matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFBLK));
        let flags = make::flags(fd);
        let seekable = is_file && !flags.contains(OFlag::O_PATH);
        Self {
            position: seekable.then(|| at(fd)).flatten(),
            flags,
            pipe_size: make::pipe_size(fd),
        }
    }
}

/// A file's own position by this descriptor.
pub fn position(fd: impl AsFd) -> u64 {
    at(fd).expect("lseek(2)")
}

/// The same; `None` for a file that has none (a namespace).
fn at(fd: impl AsFd) -> Option<u64> {
    Some(lseek64(fd, 0, Whence::SeekCur).ok()?.unsigned_abs())
}

/// The state of both sides and of the thread's descriptors before a transfer.
#[derive(Clone, Debug)]
pub struct Before {
    src: Look,
    dst: Look,
    descriptors: BTreeMap<RawFd, String>,
}

impl Before {
    pub fn new(src: impl AsFd, dst: impl AsFd) -> Self {
        Self {
            src: Look::at(src.as_fd()),
            dst: Look::at(dst.as_fd()),
            descriptors: watch::descriptors(),
        }
    }

    /// The part of the oracle that needs no bytes: positions, flags, pipe sizes, descriptors,
    /// mappings. `src_offset` and `dst_offset` are the explicit offsets that were given.
    pub fn leaves(
        &self,
        src: impl AsFd,
        dst: impl AsFd,
        (src_offset, dst_offset): (Option<u64>, Option<u64>),
        claim: &Claim,
    ) -> Result<(), String> {
        let (src, dst) = (src.as_fd(), dst.as_fd());
        let taken = claim.taken() * u64::from(src_offset.is_none());
        side("source", &self.src, &Look::at(src), |at| at + taken)?;
        let delivered = claim.delivered * u64::from(dst_offset.is_none());
        let append = self.dst.flags.contains(OFlag::O_APPEND) && delivered > 0;
        let size = nix::sys::stat::fstat(dst).map_or(0, |stat| stat.st_size.unsigned_abs());
        side(
            "destination",
            &self.dst,
            &Look::at(dst),
            |at| match append {
                // Where it was does not matter to what appends; it ends behind what it wrote.
                true => size,
                false => at + delivered,
            },
        )?;
        let now = watch::descriptors();
        if now != self.descriptors {
            let before = &self.descriptors;
            return Err(format!("descriptors: before {before:?}, after {now:?}"));
        }
        for (name, fd) in [("source", src), ("destination", dst)] {
            if is_mapped(fd) {
                return Err(format!("the {name} is still mapped"));
            }
        }
        Ok(())
    }

    /// The whole oracle, for a transfer that began at `content_at` in the source's content. Both
    /// ends are closed by it.
    pub fn verdict(
        &self,
        source: Source,
        destination: Destination,
        offsets: (Option<u64>, Option<u64>),
        content_at: u64,
        claim: &Claim,
    ) -> Result<(), String> {
        self.leaves(&source, &destination, offsets, claim)?;
        arrived(&source.content, destination, content_at, claim)?;
        source.settle(content_at + claim.taken())
    }

    /// The whole oracle, failing the test: see [`verdict`](Self::verdict). `case` says what was
    /// tried.
    #[track_caller]
    pub fn judge(
        &self,
        case: &str,
        source: Source,
        destination: Destination,
        offsets: (Option<u64>, Option<u64>),
        content_at: u64,
        claim: &Claim,
    ) {
        if let Err(breach) = self.verdict(source, destination, offsets, content_at, claim) {
            let (delivered, back) = (claim.delivered, claim.handed_back.len());
            panic!("{case}: {breach} (claims {delivered} delivered, {back} handed back)");
        }
    }
}

/// The part of the oracle that is about bytes: the destination holds as many as claimed, and they,
/// then those handed back, are the source's from `content_at` on. Closes the destination.
pub fn arrived(
    content: &Content,
    destination: Destination,
    content_at: u64,
    claim: &Claim,
) -> Result<(), String> {
    if let Held::Bytes(bytes) = destination.settle(claim.delivered)? {
        if bytes.len() as u64 != claim.delivered {
            let (held, claimed) = (bytes.len(), claim.delivered);
            return Err(format!(
                "claims {claimed} bytes, the destination has {held}"
            ));
        }
        content
            .check(content_at, &bytes)
            .map_err(|e| format!("delivered: {e}"))?;
    }
    content
        .check(content_at + claim.delivered, &claim.handed_back)
        .map_err(|e| format!("handed back: {e}"))
}

fn side(name: &str, was: &Look, is: &Look, moved: impl Fn(u64) -> u64) -> Result<(), String> {
    if was.flags != is.flags {
        return Err(format!(
            "{name}: flags {:?}, were {:?}",
            is.flags, was.flags
        ));
    }
    if was.pipe_size != is.pipe_size {
        let (was, is) = (was.pipe_size, is.pipe_size);
        return Err(format!("{name}: pipe size {is:?}, was {was:?}"));
    }
    let expected = was.position.map(moved);
    if is.position != expected {
        let is = is.position;
        return Err(format!("{name}: position {is:?}, expected {expected:?}"));
    }
    Ok(())
}

/// Whether this process has the file mapped.
pub fn is_mapped(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    let Ok(stat) = nix::sys::stat::fstat(fd) else {
        return false;
    };
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG || stat.st_ino == 0 {
        return false;
    }
    let (major, minor) = (libc::major(stat.st_dev), libc::minor(stat.st_dev));
    let id = format!(" {major:02x}:{minor:02x} {} ", stat.st_ino);
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    maps.lines().any(|line| line.contains(&id))
}

/// The number of a descriptor, for messages.
pub fn number(fd: impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
