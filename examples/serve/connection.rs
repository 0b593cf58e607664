//! One connection: requests one after the other, each answered by one message.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, copy, sink};
use tokio::net::{TcpStream, tcp::WriteHalf};
use tokio::time::{timeout, timeout_at};
use zcio::message::{Message, Part, Sending};
use zcio::tokio::drive_sending;

use crate::Engine;
use crate::accept::Ending;
use crate::request::Request;
use crate::site::{Reply, Site};

/// Answers requests until one side wants no more.
pub(crate) async fn serve(site: Arc<Site>, tcp: TcpStream, ending: Ending) -> io::Result<()> {
    let (mut stream, mut ending, patience) = (tcp, ending, Duration::from_secs(site.1.patience));
    // An answer's last segment is not to wait for the client's word on the one before.
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.split();
    let mut output = match site.1.engine {
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
                buf.reserve(4096);
                let more = timeout_at(deadline.into(), read.read_buf(&mut buf));
                tokio::select! {
                    more = more => if more?? == 0 { break },
                    _ = ending.wait_for(|ending| *ending), if idle => break,
                }
                continue;
            }
        };
        output.send(&message, patience).await?;
        deadline = Instant::now() + patience;
    }
    // To close while the client's bytes are on their way would be a reset, which can take what was
    // sent last away from it again.
    drop(output);
    write.shutdown().await?;
    let drain = async { copy(&mut read.take(8 << 20), &mut sink()).await };
    timeout(Duration::from_secs(2), drain).await?.map(drop)
}

enum Output<'a, 'b> {
    /// One for the whole connection, so that the socket is looked at once.
    Auto(Box<Sending<'static, &'a TcpStream>>),
    ReadWrite(&'a mut WriteHalf<'b>),
}

impl Output<'_, '_> {
    /// Sends a message, as long as the client takes any of it.
    async fn send(&mut self, message: &Message<'static>, patience: Duration) -> io::Result<()> {
        let write = match self {
            Output::ReadWrite(write) => write,
            Output::Auto(sending) => {
                sending.extend(message);
                loop {
                    let before = sending.delivered();
                    // The future that time runs out for leaves the sending whole.
                    match timeout(patience, drive_sending(sending)).await {
                        Ok(sent) => return Ok(sent.map(drop)?),
                        Err(late) if sending.delivered() == before => return Err(late.into()),
                        Err(_) => {}
                    }
                }
            }
        };
        for part in message.parts() {
            match part {
                Part::File { file, range } => {
                    let file = file.as_fd().try_clone_to_owned()?;
                    let mut file = tokio::fs::File::from_std(file.into());
                    file.seek(io::SeekFrom::Start(range.start)).await?;
                    let (mut file, mut buf) = (file.take(part.len()), vec![0; 64 << 10]);
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
