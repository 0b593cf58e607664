//! What a user of tokio would write.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::unix::pipe;
use tokio::runtime::{Builder, Runtime};

use super::End;

/// A runtime on this thread alone, as cheap as tokio has it.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn again(file: &File) -> OwnedFd {
    file.try_clone().expect("the descriptor, again").into()
}

/// The same connection for a runtime, which wants it non-blocking. It stays so.
pub(crate) fn tcp(file: &File) -> tokio::net::TcpStream {
    let socket = TcpStream::from(again(file));
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    tokio::net::TcpStream::from_std(socket).expect("a runtime")
}

fn unix(file: &File) -> tokio::net::UnixStream {
    let socket = UnixStream::from(again(file));
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    tokio::net::UnixStream::from_std(socket).expect("a runtime")
}

/// `tokio::io::copy`, for a link of its own: its streams stay non-blocking.
pub(crate) fn by_tokio_copy(from: End, to: End, src: &File, dst: &File, len: u64) -> u64 {
    runtime().block_on(async {
        let src: Box<dyn AsyncRead + Unpin> = match from {
            End::File => Box::new(tokio::fs::File::from(File::from(again(src)))),
            End::Pipe => Box::new(pipe::Receiver::from_owned_fd(again(src)).expect("a pipe")),
            End::Tcp => Box::new(tcp(src)),
            End::Unix => Box::new(unix(src)),
        };
        let mut dst: Box<dyn AsyncWrite + Unpin> = match to {
            End::File => Box::new(tokio::fs::File::from(File::from(again(dst)))),
            End::Pipe => Box::new(pipe::Sender::from_owned_fd(again(dst)).expect("a pipe")),
            End::Tcp => Box::new(tcp(dst)),
            End::Unix => Box::new(unix(dst)),
        };
        let moved = tokio::io::copy(&mut src.take(len), &mut dst).await;
        moved.expect("tokio::io::copy")
    })
}
