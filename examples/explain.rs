//! Shows what the crate would do for a pair of descriptors:
//! `cargo run --release --example explain -- SRC DST`.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use zcio::probe::canary;
use zcio::{Probe, Side};

/// Show which ways the kernel offers to move bytes from SRC to DST, in the order in which a
/// transfer tries them, and why the others do not serve; then whether this kernel hands a file's own
/// pages on or a copy, measured on descriptors made for the purpose.
///
/// Of SRC and DST nothing is read or written, no file is created or changed.
#[derive(Parser)]
struct Args {
    /// A path, `tcp`, `unix` or `pipe` (made for the purpose), or `-` for stdin
    #[arg(value_name = "SRC")]
    src: String,
    /// A path, `tcp`, `unix` or `pipe` (made for the purpose), or `-` for stdout. For a path that
    /// does not exist, a temporary file without a name in the same directory stands in
    #[arg(value_name = "DST")]
    dst: String,
}

/// One side: the descriptor, what it is, and the other end that keeps it alive.
struct End {
    fd: OwnedFd,
    note: String,
    _peer: Option<OwnedFd>,
}

fn main() -> ExitCode {
    match explain(&Args::parse()) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("explain: {e}");
            ExitCode::FAILURE
        }
    }
}

fn explain(args: &Args) -> Result<String, Box<dyn Error>> {
    let open = |name: &str, side| open(name, side).map_err(|e| format!("{side} {name}: {e}"));
    let src = open(&args.src, Side::Source)?;
    let dst = open(&args.dst, Side::Destination)?;
    let probe = Probe::new(&src.fd, &dst.fd)?;
    Ok(format!(
        "source:      {}, {}{}\ndestination: {}, {}{}\nbest:        {}\n\n{probe}\n\
         What travels, measured on this kernel:\n{}",
        args.src,
        probe.src().kind(),
        src.note,
        args.dst,
        probe.dst().kind(),
        dst.note,
        probe.best(),
        canary()?,
    ))
}

fn open(name: &str, side: Side) -> io::Result<End> {
    let is_source = side == Side::Source;
    let alone = |fd: OwnedFd| (fd, None, "");
    let (fd, peer, note) = match name {
        "tcp" => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let ours = TcpStream::connect(listener.local_addr()?)?;
            let theirs = listener.accept()?.0;
            (ours.into(), Some(theirs.into()), " on loopback")
        }
        "unix" => {
            let (ours, theirs) = UnixStream::pair()?;
            (ours.into(), Some(theirs.into()), "")
        }
        "pipe" => {
            let (reader, writer) = nix::unistd::pipe()?;
            if is_source {
                (reader, Some(writer), "")
            } else {
                (writer, Some(reader), "")
            }
        }
        "-" if is_source => alone(io::stdin().as_fd().try_clone_to_owned()?),
        "-" => alone(io::stdout().as_fd().try_clone_to_owned()?),
        path => {
            let (file, note) = open_path(Path::new(path), is_source)?;
            (file.into(), None, note)
        }
    };
    Ok(End {
        fd,
        note: note.to_owned(),
        _peer: peer,
    })
}

/// Opens a path without changing it, and without waiting for whoever is at the other end.
fn open_path(path: &Path, is_source: bool) -> io::Result<(File, &'static str)> {
    let mut options = OpenOptions::new();
    // A FIFO open both ways needs no other end.
    let is_fifo = fs::metadata(path).is_ok_and(|facts| facts.file_type().is_fifo());
    options
        .read(is_source || is_fifo)
        .write(!is_source || is_fifo);
    options.custom_flags(nix::fcntl::OFlag::O_NOCTTY.bits() | nix::fcntl::OFlag::O_NONBLOCK.bits());
    match options.open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !is_source => {
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let file = tempfile::tempfile_in(parent.unwrap_or(Path::new(".")))?;
            Ok((
                file,
                " (does not exist: a temporary one beside it stands in)",
            ))
        }
        opened => Ok((opened?, "")),
    }
}
