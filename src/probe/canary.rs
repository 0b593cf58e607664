//! Does this kernel hand the file's own pages on, or a copy? Measured, not claimed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;

use crate::backend::{Backend, Endpoint, Facts, Kind, Step};

/// What travelled when a file's bytes were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pages {
    /// The file's own pages: a write to the file after the send showed through.
    Shared,
    /// A copy: what was received is what the file held at the time of the send.
    Copied,
    /// The backend does not serve this destination here, or the destination could not be made.
    Unknown,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Pages::Shared => "shared pages",
            Pages::Copied => "a copy",
            Pages::Unknown => "not measurable here",
        })
    }
}

/// What [`canary()`] saw.
#[derive(Clone, Debug)]
pub struct Canary {
    seen: Vec<(Backend, Kind, Pages)>,
}

impl Canary {
    /// What travels from a file to a destination of this kind (pipe, UNIX or TCP socket) by this
    /// backend (sendfile or splice).
    pub fn pages(&self, backend: Backend, dst: Kind) -> Pages {
        let found = self
            .seen
            .iter()
            .find(|(b, kind, _)| (*b, *kind) == (backend, dst));
        found.map_or(Pages::Unknown, |(_, _, pages)| *pages)
    }
}

impl fmt::Display for Canary {
    /// One line for each backend and destination.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (backend, kind, pages) in &self.seen {
            writeln!(f, "{:<9} from a file to {kind}: {pages}", backend.name())?;
        }
        Ok(())
    }
}

/// Sends a page of a memfd of its own to a pipe, a UNIX and a TCP socket of its own, by sendfile
/// and by splice, overwrites the memfd before the receipt, and looks at what arrives.
///
/// It depends on the kernel: 5.10 copies where later ones share, and the next may copy again.
///
/// # Errors
/// Where not even a memfd can be had. A destination that cannot be made is [`Pages::Unknown`].
pub fn canary() -> io::Result<Canary> {
    let file = File::from(memfd_create("zcio-canary", MFdFlags::MFD_CLOEXEC)?);
    let mut seen = Vec::new();
    for backend in [Backend::Sendfile, Backend::Splice] {
        let pipe = pipe2(OFlag::O_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|(reader, writer)| {
                look(&file, writer.as_fd(), &mut File::from(reader), backend)
            });
        let unix = UnixStream::pair()
            .and_then(|(near, mut far)| look(&file, near.as_fd(), &mut far, backend));
        let tcp =
            tcp_pair().and_then(|(near, mut far)| look(&file, near.as_fd(), &mut far, backend));
        for (kind, pages) in [(Kind::Pipe, pipe), (Kind::Unix, unix), (Kind::Tcp, tcp)] {
            seen.push((backend, kind, pages.unwrap_or(Pages::Unknown)));
        }
    }
    Ok(Canary { seen })
}

fn tcp_pair() -> io::Result<(TcpStream, TcpStream)> {
    connected(&TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
}

/// Both ends of one connection to `listener`, whoever else connects to it.
fn connected(listener: &TcpListener) -> io::Result<(TcpStream, TcpStream)> {
    let near = TcpStream::connect(listener.local_addr()?)?;
    let own = near.local_addr()?;
    loop {
        let (far, peer) = listener.accept()?;
        if peer == own {
            return Ok((near, far));
        }
    }
}

const PAGE: usize = 4096;

fn look(
    file: &File,
    dst: BorrowedFd<'_>,
    far: &mut impl Read,
    backend: Backend,
) -> io::Result<Pages> {
    const LEN: NonZeroUsize = NonZeroUsize::new(PAGE).unwrap();
    file.write_all_at(&[b'a'; PAGE], 0)?;
    let (src_facts, dst_facts) = (Facts::new(file)?, Facts::new(dst)?);
    let mut from = Endpoint::new(file.as_fd(), &src_facts, Some(0));
    let mut to = Endpoint::new(dst, &dst_facts, None);
    let mut mechanism = backend.instance();
    match mechanism.step(&mut from, &mut to, LEN) {
        Ok(Step::Moved(LEN)) => {}
        _ => return Ok(Pages::Unknown),
    }
    file.write_all_at(&[b'b'; PAGE], 0)?;
    let mut got = [0; PAGE];
    far.read_exact(&mut got)?;
    Ok(match got[0] {
        b'a' => Pages::Copied,
        _ => Pages::Shared,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_who_connects_is_not_taken_for_the_other_end() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let _stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, far) = connected(&listener).unwrap();
        assert_eq!(far.peer_addr().unwrap(), near.local_addr().unwrap());
    }

    #[test]
    fn tells_a_copy_from_shared_pages() {
        let canary = canary().unwrap();
        // By read and write it is a copy, whatever the kernel: the look itself is not fooled.
        let file = File::from(memfd_create("zcio-canary", MFdFlags::MFD_CLOEXEC).unwrap());
        let (near, mut far) = UnixStream::pair().unwrap();
        let plain = look(&file, near.as_fd(), &mut far, Backend::ReadWrite).unwrap();
        assert_eq!(plain, Pages::Copied);
        for kind in [Kind::Pipe, Kind::Unix, Kind::Tcp] {
            for backend in [Backend::Sendfile, Backend::Splice] {
                assert_ne!(
                    canary.pages(backend, kind),
                    Pages::Unknown,
                    "{backend} {kind}"
                );
            }
        }
        assert_eq!(canary.to_string().lines().count(), 6);
    }
}
