//! One connection: requests one after the other, each answered by one message.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, copy, sink};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::time::{timeout, timeout_at};
use zcio::Message;
use zcio::message::{Part, Sending};
use zcio::tokio::drive_sending;

use crate::Engine;
use crate::accept::Ending;
use crate::request::Request;
use crate::site::{Reply, Site};

/// Read at once, at most.
const READ: usize = 4096;
/// The buffer of `--engine read-write`.
const BUFFER: usize = 64 << 10;
/// What a client may still send when it has been told that the connection ends, and for how long.
const LINGER: (u64, Duration) = (8 << 20, Duration::from_secs(2));

/// Answers requests until one side wants no more.
pub(crate) async fn serve(
    site: Arc<Site>,
    mut stream: TcpStream,
    mut ending: Ending,
) -> io::Result<()> {
    let patience = site.patience;
    // An answer's last segment is not to wait for the client's word on the one before.
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.split();
    let mut output = match site.engine {
        Engine::Auto => Output::Auto(Box::new(Message::new().start(write.as_ref())?)),
        Engine::ReadWrite => Output::ReadWrite(&mut write),
    };
    let (mut buf, mut keep) = (Vec::new(), true);
    let mut deadline = Instant::now() + patience;
    while keep {
        let message = match Request::parse(&buf) {
            Ok(Some((request, len))) => {
                let reply = site.reply(&request).await;
                keep = request.keep && !*ending.borrow();
                let message = reply.message(request.head_only, keep);
                buf.drain(..len);
                message
            }
            Err(status) => {
                keep = false;
                Reply::status(status, "Allow: GET, HEAD").message(false, keep)
            }
            Ok(None) => {
                let idle = buf.is_empty();
                buf.reserve(READ);
                let more = timeout_at(deadline.into(), read.read_buf(&mut buf));
                let more = tokio::select! {
                    more = more => more??,
                    _ = ending.wait_for(|ending| *ending), if idle => 0,
                };
                if more == 0 {
                    break;
                }
                if idle {
                    deadline = Instant::now() + patience;
                }
                continue;
            }
        };
        output.send(&message, patience).await?;
        deadline = Instant::now() + patience;
    }
    // To close while the client's bytes are on their way would be a reset, which can take what was
    // sent last away from it again.
    shutdown(read.as_ref().as_raw_fd(), Shutdown::Write)?;
    let drain = async { copy(&mut read.take(LINGER.0), &mut sink()).await };
    timeout(LINGER.1, drain).await?.map(drop)
}

/// The way out.
enum Output<'a> {
    /// One for the whole connection, so that the socket is looked at once.
    Auto(Box<Sending<'static, &'a TcpStream>>),
    ReadWrite(&'a mut WriteHalf<'a>),
}

impl Output<'_> {
    /// Sends a message, as long as the client takes any of it.
    async fn send(&mut self, message: &Message<'static>, patience: Duration) -> io::Result<()> {
        let write = match self {
            Output::Auto(sending) => {
                sending.extend(message);
                return drive(sending, patience).await;
            }
            Output::ReadWrite(write) => write,
        };
        for part in message.parts() {
            match part {
                Part::File { file, range } => {
                    let file = File::from(file.as_fd().try_clone_to_owned()?);
                    let mut file = tokio::fs::File::from_std(file);
                    file.seek(io::SeekFrom::Start(range.start)).await?;
                    let (mut file, mut buf) = (file.take(part.len()), vec![0; BUFFER]);
                    while file.limit() > 0 {
                        let n = file.read(&mut buf).await?;
                        if n == 0 {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        timeout(patience, write.write_all(&buf[..n])).await??;
                    }
                }
                Part::Bytes(bytes) => timeout(patience, write.write_all(bytes)).await??,
                _ => {}
            }
        }
        Ok(())
    }
}

async fn drive(sending: &mut Sending<'_, &TcpStream>, patience: Duration) -> io::Result<()> {
    loop {
        let before = sending.delivered();
        // The future that time runs out for leaves the sending whole.
        match timeout(patience, drive_sending(sending)).await {
            Ok(result) => return Ok(result.map(drop)?),
            Err(_) if sending.delivered() > before => {}
            Err(elapsed) => return Err(elapsed.into()),
        }
    }
}
