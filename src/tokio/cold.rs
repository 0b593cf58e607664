//! Files that are not in the page cache: what is missing is fetched on the blocking pool.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Readiness, Stride};
use crate::backend::{Fault, Side};
use crate::driver::{Driver, FAIR};
use crate::error::Result;
use crate::sys::call;

/// Brings what the next piece needs into the page cache, on the blocking pool, if it is not there,
/// and limits the piece to that.
pub(super) async fn warm_up<S>(driver: &mut Driver, src: &S, stride: &mut Stride<'_>) -> Result<()>
where
    S: Readiness + ?Sized,
{
    let mut most = FAIR;
    if let Some((offset, len)) = driver.next_range(src.fd()) {
        if !stride.warm.contains(&offset) {
            let fetched = fetch_cold(src.fd(), offset, len).await;
            let end = fetched.map_err(|e| driver.fail(Fault::new(Side::Source, e), src.fd()))?;
            stride.warm = offset..end;
        }
        most = most.min(stride.warm.end - offset);
    }
    driver.at_most(most);
    Ok(())
}

/// Pieces of a file that are looked for in the page cache at once.
const PIECES: u64 = 4;

/// Brings a range of a file into the page cache, if it is not there. The end of what is there.
pub(super) async fn fetch_cold(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
    // What lies beyond the end is not missing.
    let size = call::stat(file).map_or(0, |stat| stat.size);
    let rest = size.saturating_sub(offset);
    if rest == 0 {
        return Ok(offset + len);
    }
    let (near, far) = (len.min(rest), (len * PIECES).min(rest));
    if call::is_cached(file, offset, far) {
        return Ok(offset + far.max(len));
    }
    if !call::is_cached(file, offset, near) {
        fetch(file, offset, near).await?;
    }
    Ok(offset + near)
}

/// Brings a range of a file into the page cache, on the blocking pool.
pub(super) async fn fetch(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let file = file.try_clone_to_owned()?;
    let fetch = move || {
        // A read that fails here fails in the transfer too, which reports it.
        let _ = call::fetch(file.as_fd(), offset, len);
    };
    let fetched = ::tokio::task::spawn_blocking(fetch).await;
    fetched.map_err(io::Error::other)
}
