//! Extents that are shared, and extents that must not be.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use zcio::{Backend, ErrorKind, Reflink};

use super::cell::{Cell, Ends, content, is_unfit, is_whole, options, outcome};
use super::disk::{Disk, Fs, extents};
use super::plain::on_each;
use crate::common::{Content, Data, Pulse, skipped};

const BLOCK: u64 = 4096;

/// Many whole blocks and a tail.
const LEN: u64 = (1 << 20) + 777;

/// A whole file is shared, its tail block included; a later write to either is not seen in the
/// other.
pub(crate) fn shared_and_isolated(pulse: &Pulse) {
    on_each("shared", pulse, &[Fs::Xfs, Fs::Btrfs], 64, |disk, sheet| {
        let data = Data::new(LEN);
        drop(disk.source(content(LEN)));
        sheet.row(disk.fs.name(), "file→file", |backend| {
            let mut options = options(backend);
            options.reflink(Reflink::Auto);
            let source = disk.open(content(LEN));
            let destination = disk.destination("destination");
            let result = options
                .transfer(&source, &destination, u64::MAX)
                .map_err(Box::new);
            is_whole(&result, LEN)?;
            let (shared, own) = extents(&destination);
            let shares = match backend {
                None | Some(Backend::Reflink) => true,
                // The filesystem shares as it likes by this call.
                Some(Backend::CopyFileRange) => shared > 0,
                Some(_) => false,
            };
            if shares != (shared >= LEN && own == 0) || (!shares && shared > 0) {
                return Err(format!("{shared} bytes shared, {own} own"));
            }
            isolated(disk, data)?;
            Ok(format!("{} shared", shared / BLOCK))
        });
    });
}

/// Writes to both files, in the midst and in the tail block, and looks at the other each time.
/// Both are mended afterwards.
fn isolated(disk: &Disk, data: Data) -> Result<(), String> {
    let open = |path: PathBuf| {
        let file = OpenOptions::new().read(true).write(true).open(path);
        file.map_err(|e| e.to_string())
    };
    let source = open(disk.source_path(LEN))?;
    let destination = open(disk.dir.join("destination"))?;
    for (written, other) in [(&source, &destination), (&destination, &source)] {
        for at in [0, 5 * BLOCK + 99, LEN - 3] {
            let of_io = |e: std::io::Error| e.to_string();
            written.write_all_at(b"new", at).map_err(of_io)?;
            written.sync_all().map_err(of_io)?;
            Content::Known(data, LEN).check(0, &read(other))?;
            written
                .write_all_at(&data.bytes(at, 3), at)
                .map_err(of_io)?;
        }
    }
    Ok(())
}

fn read(file: impl AsFd) -> Vec<u8> {
    let file = File::from(file.as_fd().try_clone_to_owned().expect("a descriptor"));
    super::disk::drop_cached(&file);
    let mut bytes = vec![0; file.metadata().expect("fstat(2)").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("its bytes");
    bytes
}

/// `Reflink::Never` gives blocks of one's own, by every backend, also on a filesystem that shares.
pub(crate) fn never(pulse: &Pulse) {
    on_each(
        "never",
        pulse,
        &[Fs::Xfs, Fs::Btrfs, Fs::Ext4],
        64,
        |disk, sheet| {
            drop(disk.source(content(LEN)));
            sheet.row(disk.fs.name(), "file→file", |backend| {
                let mut options = options(backend);
                options.reflink(Reflink::Never);
                let source = disk.open(content(LEN));
                let destination = disk.destination("destination");
                let result = options
                    .transfer(&source, &destination, u64::MAX)
                    .map_err(Box::new);
                match backend {
                    Some(Backend::Reflink) => is_unfit(&result)?,
                    Some(Backend::CopyFileRange) if disk.fs.shares() => is_unfit(&result)?,
                    _ => {
                        is_whole(&result, LEN)?;
                        let (shared, own) = extents(&destination);
                        if shared > 0 || own < LEN {
                            return Err(format!("{shared} bytes shared, {own} own"));
                        }
                    }
                }
                Ok(outcome(backend, &result))
            });
        },
    );
}

/// `Reflink::Always` shares or is an error that has touched nothing.
pub(crate) fn always_or_an_error(pulse: &Pulse) {
    on_each("always", pulse, &Fs::ALL, 64, |disk, sheet| {
        drop(disk.source(content(LEN)));
        sheet.row(disk.fs.name(), "file→file", |backend| {
            let mut cell = Cell::new(Ends::Same, backend);
            cell.options.reflink(Reflink::Always);
            let (source, destination) = (disk.open(content(LEN)), disk.destination("destination"));
            let result = cell.run(source, destination)?;
            match backend {
                None | Some(Backend::Reflink) if disk.fs.shares() => is_whole(&result, LEN)?,
                // Another backend was asked for, which cannot promise it.
                _ => is_unfit(&result)?,
            }
            Ok(outcome(backend, &result))
        });
        let other = match Disk::new(disk.fs, "always-other", 64) {
            Ok(other) => other,
            Err(reason) => return skipped("root always between two", reason),
        };
        sheet.row(disk.fs.name(), "to another", |backend| {
            let mut cell = Cell::new(Ends::Same, backend);
            cell.options.reflink(Reflink::Always);
            let source = disk.open(content(LEN));
            let result = cell.run(source, other.destination("destination"))?;
            is_unfit(&result)?;
            Ok(outcome(backend, &result))
        });
        other.unmount();
    });
}

/// Ranges that a filesystem cannot share as they are: by reflink alone what is said of them is
/// true, and with the others to fall back on all bytes arrive. What stands around the range stays.
pub(crate) fn alignment(pulse: &Pulse) {
    struct Range {
        from: u64,
        to: u64,
        len: u64,
        chunk: usize,
        /// The destination's size before.
        old: u64,
        /// What reflink alone delivers.
        alone: u64,
    }
    let range = |from, to, len, chunk, old, alone| Range {
        from,
        to,
        len,
        chunk,
        old,
        alone,
    };
    const LEFT: u64 = LEN - 2 * BLOCK;
    let ranges = [
        range(0, 0, u64::MAX, usize::MAX, 0, LEN),
        range(2 * BLOCK, 5 * BLOCK, u64::MAX, usize::MAX, 0, LEFT),
        // The length ends inside a block of the source.
        range(0, 0, 10_000, usize::MAX, 0, 2 * BLOCK),
        range(0, 0, 100, usize::MAX, 0, 0),
        // A side begins inside a block.
        range(1, 0, u64::MAX, usize::MAX, 0, 0),
        range(0, 1, u64::MAX, usize::MAX, 0, 0),
        range(512, 512, 8 * BLOCK, usize::MAX, 0, 0),
        // The source's tail block would land in the midst of the destination.
        range(0, 0, u64::MAX, usize::MAX, 2 << 20, 0),
        range(0, 0, 64 * BLOCK, usize::MAX, 2 << 20, 64 * BLOCK),
        // Chunks that are no blocks.
        range(0, 0, 64 * BLOCK, 5000, 0, 64 * BLOCK),
        range(0, 0, u64::MAX, 100_000, 0, LEN),
        range(0, 0, 64 * BLOCK, 1000, 0, 0),
    ];
    on_each(
        "alignment",
        pulse,
        &[Fs::Xfs, Fs::Btrfs],
        64,
        |disk, sheet| {
            let data = Data::new(LEN);
            drop(disk.source(content(LEN)));
            for range in &ranges {
                let Range {
                    from,
                    to,
                    len,
                    chunk,
                    old,
                    alone,
                } = *range;
                let whole = len.min(LEN - from);
                let name = format!("{from}+{} to {to} of {old}", len.min(LEN));
                sheet.row(disk.fs.name(), &name, |backend| {
                    if backend.is_some_and(|backend| backend != Backend::Reflink) {
                        return Ok("–".to_owned());
                    }
                    let (source, destination) =
                        (disk.open(content(LEN)), disk.destination("destination"));
                    let before = File::from(destination.fd.try_clone().expect("a descriptor"));
                    before
                        .write_all_at(&vec![0x5a; old as usize], 0)
                        .expect("room");
                    let mut options = options(backend);
                    options.src_offset(from).dst_offset(to);
                    if let Some(chunk) = NonZeroUsize::new(chunk).filter(|c| c.get() < usize::MAX) {
                        options.chunk_size(chunk);
                    }
                    let result = options.transfer(&source, &destination, len);
                    let delivered = match &result {
                        Ok(report) => report.bytes,
                        Err(e) if e.kind() == ErrorKind::Unfit => e.delivered(),
                        Err(e) => return Err(e.to_string()),
                    };
                    let expected = if backend.is_some() { alone } else { whole };
                    if delivered != expected || result.is_ok() != (expected == whole) {
                        return Err(format!("{expected} expected: {result:?}"));
                    }
                    let held = read(&destination);
                    let end = if delivered > 0 { to + delivered } else { 0 };
                    if held.len() as u64 != old.max(end) {
                        return Err(format!(
                            "{} bytes long, with {delivered} delivered",
                            held.len()
                        ));
                    }
                    let (head, rest) = held.split_at(to.min(held.len() as u64) as usize);
                    let (moved, tail) = rest.split_at(delivered as usize);
                    Content::Known(data, LEN).check(from, moved)?;
                    let around = head.iter().chain(tail);
                    let kept = if old > 0 { 0x5a } else { 0 };
                    if around.clone().any(|byte| *byte != kept) {
                        return Err("what stands around the range was changed".to_owned());
                    }
                    let shares = result.as_ref().map(|r| format!("{:?}", r.shares()));
                    Ok(shares.unwrap_or_else(|e| format!("{} by itself", e.delivered())))
                });
            }
        },
    );
}
