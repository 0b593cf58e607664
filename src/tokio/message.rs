//! Messages, awaiting.

use std::io;
use std::os::fd::AsFd;

use super::cold::{fetch, fetch_cold};
use super::{LEAST, Lent, Readiness, require_nonblocking};
use crate::backend::Side;
use crate::driver::FAIR;
use crate::error::Result;
use crate::message::{Message, Sending};
use crate::report::{Report, Status};

/// Sends a message: [`Message::send`], awaiting.
///
/// Dropping the future breaks the message off; to go on where it stood, [`drive_sending`] one, started
/// by [`Message::start`] (on a stream's half, on a [`Lent`] one).
///
/// # Errors
/// As [`Sending::advance`].
pub async fn send<D: Readiness>(message: &Message<'_>, dst: &D) -> Result<Report> {
    drive_sending(&mut message.start(Lent::new(dst))?).await
}

/// Advances a sending to its end. Dropping the future leaves it whole: drive it again.
///
/// # Errors
/// As [`Sending::advance`]; and [`InvalidInput`](crate::ErrorKind::InvalidInput) for a pipe or a
/// socket without `O_NONBLOCK`.
pub async fn drive_sending<D>(sending: &mut Sending<'_, D>) -> Result<Report>
where
    D: AsFd + Readiness,
{
    let (core, dst) = sending.apart();
    let dst = Lent::new(dst);
    require_nonblocking(Side::Destination, core.dst_facts())?;
    // How far the file that comes next is known to be in the page cache, and whether that has been
    // seen to for a small one.
    let (mut warm, mut fetched, mut passed) = ((usize::MAX, 0), false, 0);
    loop {
        let is_warm = |part, end| warm.0 == part && warm.1 >= end;
        if matches!(core.next_file(), Some((part, _, next, false)) if !is_warm(part, next.end)) {
            // It may have to be waited for.
            core.let_go_on(dst.fd());
            if let Some((part, file, next, _)) = core.next_file() {
                let end = fetch_cold(file, next.start, next.end - next.start).await;
                warm = (part, end);
            }
        }
        let (mut outcome, delivered) = (None, core.remaining() == 0);
        let mut advance = || {
            let status = match fetched {
                true => core.advance(dst.fd()),
                false => core.advance_at_hand(dst.fd()),
            };
            let blocked = matches!(status, Ok(Status::Blocked(Side::Destination)));
            outcome = Some(status);
            if blocked {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(())
            }
        };
        // Its answer is our own, or that it did not run: `outcome` tells. That buffers are free
        // does not depend on room in the socket.
        let _ = match delivered {
            true => advance(),
            false => dst.try_io(Side::Destination, &mut advance),
        };
        let ready = match outcome.unwrap_or(Ok(Status::Blocked(Side::Destination)))? {
            Status::Finished(_) => return Ok(core.report()),
            Status::Blocked(Side::Destination) if core.remaining() == 0 => dst.errored().await,
            Status::Blocked(Side::Destination) => dst.ready(Side::Destination).await,
            Status::Blocked(Side::Source) => {
                match core.next_file() {
                    Some((_, file, next, true)) if !fetched => {
                        fetch(file, next.start, next.end - next.start).await;
                        fetched = true;
                    }
                    _ => ::tokio::task::yield_now().await,
                }
                Ok(())
            }
            Status::Moved(bytes) => {
                fetched = false;
                passed += LEAST.max(bytes.get() as u64);
                if passed >= FAIR {
                    // Everything else on this thread has its turn.
                    passed = 0;
                    ::tokio::task::yield_now().await;
                }
                // As it has after many small messages in a row.
                ::tokio::task::coop::consume_budget().await;
                Ok(())
            }
        };
        ready.map_err(|e| core.fail(Side::Destination, e))?;
    }
}
