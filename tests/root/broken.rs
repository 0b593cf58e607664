//! Filesystems that break under a transfer: bad blocks, a wrong checksum, a shutdown, a remount.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use zcio::{Backend, End, Side, Status};

use super::cell::{Cell, Ends, Moved, Sheet, content, fails, is_unfit, is_whole, options, outcome};
use super::disk::{BLOCK, Disk, Fs, drop_cached};
use super::full::shares_by_itself;
use super::plain::on_each;
use crate::common::{Claim, Content, Data, Pulse, oracle, skipped};

const LEN: u64 = (4 << 20) + 777;

const CHUNK: NonZeroUsize = NonZeroUsize::new(256 << 10).unwrap();

/// The first byte that cannot be read: the start of a block, and of nothing larger.
const BAD: u64 = (2 << 20) + 5 * BLOCK as u64;

fn block(data: Data, at: u64) -> Vec<u8> {
    data.bytes(at, BLOCK)
}

/// EIO at the source: its image is cut under the loop device, in the midst of the file.
pub(crate) fn cut(pulse: &Pulse) {
    on_each("bad block", pulse, &Fs::ON_DISK, 64, |disk, sheet| {
        let data = Data::new(LEN);
        let content = Content::Known(data, LEN);
        drop(disk.source(content.clone()));
        disk.sync();
        let at = disk.locate(&block(data, BAD));
        let end = disk.locate(&block(
            data,
            LEN / BLOCK as u64 * BLOCK as u64 - BLOCK as u64,
        ));
        assert!(at < end, "the file lies in one piece");
        drop(disk.destination("destination"));
        disk.sync();
        disk.cut(at);
        if !disk.errs_at(LEN, BAD) {
            let what = format!("root bad block on {}", disk.fs.name());
            return skipped(&what, "the loop device makes up what its image has lost");
        }
        // Extents cannot be shared on a device that takes no more writes.
        let same = [Ends::Same].into_iter().filter(|_| !disk.fs.shares());
        for ends in Ends::FROM_IT.into_iter().chain(same) {
            unreadable(disk, sheet, ends, &content);
        }
    });
}

/// A byte that changed on the device: btrfs finds that the checksum is wrong, and says EIO.
pub(crate) fn flipped(pulse: &Pulse) {
    on_each("flipped", pulse, &[Fs::Btrfs], 128, |disk, sheet| {
        let data = Data::new(LEN);
        let content = Content::Known(data, LEN);
        drop(disk.source(content.clone()));
        disk.sync();
        let at = disk.locate(&block(data, BAD)) + 99;
        disk.flip(at);
        for ends in Ends::FROM_IT.into_iter().chain([Ends::Same]) {
            unreadable(disk, sheet, ends, &content);
        }
        // Mended, it is what it was: nothing was written to it.
        disk.flip(at);
        let ends = Ends::ToMemfd;
        sheet.row(disk.fs.name(), "mended", |backend| {
            let cell = Cell::new(ends, backend);
            let result = cell.run(ends.source(disk, &content), ends.destination(disk))?;
            match backend {
                Some(backend) if !ends.served_by(backend, disk, false) => is_unfit(&result)?,
                _ => is_whole(&result, LEN)?,
            }
            Ok(outcome(backend, &result))
        });
    });
}

/// Every backend meets the bad block: all that stands before it is delivered, and it is the source
/// that failed.
fn unreadable(disk: &Disk, sheet: &mut Sheet, ends: Ends, content: &Content) {
    sheet.row(disk.fs.name(), ends.name(), |backend| {
        let (source, destination) = (ends.source(disk, content), ends.destination(disk));
        if ends == Ends::Same && disk.fs.shares() && shares_by_itself(backend) {
            // The bad block is shared and not read; the copy cannot be read either.
            let result = options(backend).transfer(&source, &destination, u64::MAX);
            is_whole(&result.map_err(Box::new), LEN)?;
            return Ok("shared".to_owned());
        }
        let mut cell = Cell::new(ends, backend);
        cell.readable = false;
        cell.on_device = false;
        let result = cell.run(source, destination)?;
        if backend.is_some_and(|b| !ends.served_by(b, disk, false)) {
            is_unfit(&result)?;
        } else if disk.fs == Fs::Fuse && ends_there(disk, &result) {
            let what = "root bad block on fuse";
            skipped(
                what,
                "read(2) gives the end of the file there, and no error",
            );
        } else {
            let delivered = fails(&result, Side::Source, &[libc::EIO])?;
            // The kernel reads some pages at once, and the device's own reads are one each: all of
            // such a piece fails with the block. Of btrfs it is a page, and since it has large folios
            // (7.2) one of those.
            let close = disk.fs == Fs::Btrfs && backend != Some(Backend::Direct);
            if delivered > BAD || close && delivered < BAD - FOLIO {
                return Err(format!("{delivered} delivered, of {BAD} that are good"));
            }
        }
        Ok(outcome(backend, &result))
    });
}

/// The largest folio that a read may fail with.
const FOLIO: u64 = 256 << 10;

/// Whether a transfer ended where a bare loop over read(2) sees the end as well: some kernels take the
/// short answer of a daemon for that, and make the file shorter.
fn ends_there(disk: &Disk, result: &Moved) -> bool {
    let Ok(report) = result else { return false };
    let file = File::open(disk.source_path(LEN)).expect("a source made before");
    // What is cached up to there would have it ask for the bad block first.
    drop_cached(&file);
    let (mut at, mut buf) = (0, vec![0; 256 << 10]);
    let end = loop {
        match file.read_at(&mut buf, at) {
            Ok(0) => break Some(at),
            Ok(n) => at += n as u64,
            Err(_) => break None,
        }
    };
    report.bytes <= BAD && end == Some(report.bytes)
}

/// The whole filesystem goes down between two steps, under the source or under the destination.
pub(crate) fn shut_down(pulse: &Pulse) {
    let errnos = [libc::EIO];
    let harm = |disk: &Disk| disk.shut_down().expect("it goes down");
    let ends = [Ends::FROM_IT, Ends::INTO_IT].concat();
    for fs in [Fs::Xfs, Fs::Ext4, Fs::Overlay, Fs::Fuse] {
        midway("shut down", pulse, fs, &ends, &errnos, harm);
    }
}

/// The destination's filesystem finds an error in itself and becomes read-only.
pub(crate) fn error_read_only(pulse: &Pulse) {
    let harm = |disk: &Disk| disk.find_an_error().expect("it takes note of an error");
    for fs in [Fs::Ext4, Fs::Overlay, Fs::Fuse] {
        midway(
            "error → ro",
            pulse,
            fs,
            &Ends::INTO_IT,
            // Of 6.12 it is EIO, as of a filesystem that is gone.
            &[libc::EROFS, libc::EIO],
            harm,
        );
    }
}

/// A source's filesystem that is made read-only changes nothing for those who read.
pub(crate) fn read_only_source(pulse: &Pulse) {
    for fs in Fs::ALL {
        midway(
            "read-only",
            pulse,
            fs,
            &Ends::FROM_IT,
            &[],
            Disk::remount_read_only,
        );
    }
}

/// A FUSE daemon that dies.
pub(crate) fn daemon_gone(pulse: &Pulse) {
    // What was asked for already and is waited for: EIO (7.2).
    let errnos = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO];
    let ends = [Ends::FROM_IT, Ends::INTO_IT].concat();
    midway("daemon gone", pulse, Fs::Fuse, &ends, &errnos, Disk::abort);
}

/// Does harm midway to each transfer, on a filesystem of its own.
fn midway(
    what: &'static str,
    pulse: &Pulse,
    fs: Fs,
    all: &[Ends],
    errnos: &[i32],
    harm: impl Fn(&Disk),
) {
    let mut sheet = Sheet::new(what);
    for ends in all {
        pulse.at(format!("{what}: {} {}", fs.name(), ends.name()));
        if let Err(reason) = Disk::new(fs, &format!("{what} {ends:?}"), 64) {
            return skipped(&format!("root {what} on {}", fs.name()), reason);
        }
        sheet.row(fs.name(), ends.name(), |backend| {
            let disk = Disk::new(fs, &format!("{what} {ends:?} {backend:?}"), 64)?;
            let outcome = broken_midway(&disk, *ends, backend, errnos, &harm);
            disk.unmount();
            outcome
        });
    }
    sheet.conclude();
}

/// Steps half the way, does the harm, and goes on until it ends or fails. Afterwards the filesystem
/// may answer nothing any more, so that what lies there is looked at before: behind the harm it can
/// take no byte, and give none but out of the page cache.
fn broken_midway(
    disk: &Disk,
    ends: Ends,
    backend: Option<Backend>,
    errnos: &[i32],
    harm: impl Fn(&Disk),
) -> Result<String, String> {
    let into_it = Ends::INTO_IT.contains(&ends);
    let content = content(LEN);
    if !into_it {
        drop(disk.source(content.clone()));
    }
    let (source, destination) = (ends.source(disk, &content), ends.destination(disk));
    let mut options = options(backend);
    options.chunk_size(CHUNK);
    let mut transfer = match options.start(&source, &destination, u64::MAX) {
        Ok(transfer) => transfer,
        Err(e) if backend.is_some_and(|b| !ends.served_by(b, disk, false)) => {
            return Ok(outcome(backend, &Err(Box::new(e))));
        }
        Err(e) => return Err(e.to_string()),
    };
    while transfer.delivered() < LEN / 2 {
        match transfer.advance() {
            Ok(Status::Moved(_)) => {}
            Err(e) if backend.is_some_and(|b| !ends.served_by(b, disk, false)) => {
                let result = Err(Box::new(e));
                is_unfit(&result)?;
                return Ok(outcome(backend, &result));
            }
            other => return Err(format!("before the harm: {other:?}")),
        }
    }
    let halfway = transfer.delivered();
    if into_it {
        let held = read_from_start(&destination);
        if held.len() as u64 != halfway {
            return Err(format!("{} bytes lie there, of {halfway}", held.len()));
        }
        content.check(0, &held)?;
    }
    let bystander = into_it.then(|| disk.destination("bystander"));
    harm(disk);
    if let (Some(bystander), [libc::EROFS]) = (&bystander, errnos) {
        // Some kernels let those write on who have a file open.
        if nix::unistd::write(bystander, b"on").is_ok() {
            let what = format!("root made read-only by an error, {}", disk.fs.name());
            skipped(&what, "open files are written to all the same");
            return Ok("written to".to_owned());
        }
    }
    let result = loop {
        match transfer.advance() {
            Ok(Status::Moved(_)) => {}
            Ok(Status::Finished(End::SourceEnded)) => break Ok(transfer.report()),
            other => break other.map(|_| transfer.report()),
        }
    };
    if transfer.in_flight() > 0 {
        return Err(format!(
            "{} bytes are still in flight",
            transfer.in_flight()
        ));
    }
    drop(transfer);
    let claim = Claim::from(&result);
    let result = result.map_err(Box::new);
    if into_it {
        if fails(&result, Side::Destination, errnos)? != halfway {
            return Err(format!("{halfway} bytes lie there, it says {result:?}"));
        }
        content.check(halfway, &claim.handed_back)?;
        if ends == Ends::FromMemfd && oracle::position(&source) != halfway {
            return Err(format!("the source is not at {halfway}"));
        }
        source.settle(claim.taken())?;
    } else {
        match errnos {
            [] => is_whole(&result, LEN)?,
            // Out of the page cache, or out of a mapping, all may still come.
            _ if result.is_ok() => is_whole(&result, LEN)?,
            errnos => drop(fails(&result, Side::Source, errnos)?),
        }
        oracle::arrived(&content, destination, 0, &claim)?;
    }
    Ok(outcome(backend, &result))
}

fn read_from_start(file: impl AsFd) -> Vec<u8> {
    let file = File::from(file.as_fd().try_clone_to_owned().expect("a descriptor"));
    let mut bytes = vec![0; file.metadata().expect("fstat(2)").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("its bytes");
    bytes
}
