//! Files with holes, and a file that must not be written.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use zcio::{Backend, Reflink, Side};

use super::cell::{Cell, Ends, content, fails, is_unfit, is_whole, options, outcome};
use super::child::{need, run};
use super::disk::{Disk, Fs, extents};
use super::plain::on_each;
use crate::common::{Content, Data, Pulse, make, skipped};

/// Half of it holes of 128 KiB.
const LEN: u64 = (4 << 20) + (100 << 10) + 777;

/// By every backend, the content is right; where the filesystem has holes, they are kept, also in
/// a destination that held bytes before.
pub(crate) fn holes(pulse: &Pulse) {
    on_each("holes", pulse, &Fs::SPARSE, 64, |disk, sheet| {
        let content = Content::Sparse(Data::new(LEN), LEN);
        drop(disk.source(content.clone()));
        for old in [0, LEN] {
            let name = if old == 0 { "into empty" } else { "into full" };
            sheet.row(disk.fs.name(), name, |backend| {
                if backend.is_some_and(|b| !Ends::Same.served_by(b, disk, false)) {
                    return Ok("–".to_owned());
                }
                let destination = disk.destination("destination");
                let file = File::from(destination.fd.try_clone().expect("a descriptor"));
                file.write_all_at(&vec![0x5a; old as usize], 0)
                    .expect("room");
                file.sync_all().expect("fsync(2)");
                let cell = Cell::new(Ends::Same, backend);
                let result = cell.run(disk.open(content.clone()), destination)?;
                is_whole(&result, LEN)?;
                let kib = allocated(disk, &file) >> 10;
                let data = (LEN / 2 + (256 << 10)) >> 10;
                if disk.fs.keeps_holes() && kib > data {
                    let bare = bare(disk, &content) >> 10;
                    if bare <= data {
                        return Err(format!("{kib} KiB allocated, for {data} KiB of data"));
                    }
                    let what = format!("root holes kept on {}", disk.fs.name());
                    let reason = format!("write(2) allocates {bare} KiB for {data} as well");
                    skipped(&what, reason);
                }
                Ok(format!("{kib} KiB"))
            });
        }
    });
}

/// What a bare loop allocates that writes the data alone, in pieces as the kernel's own are.
fn bare(disk: &Disk, content: &Content) -> u64 {
    const PIECE: u64 = 64 << 10;
    let destination = disk.destination("bare");
    let file = File::from(destination.fd.try_clone().expect("a descriptor"));
    for at in (0..LEN).step_by(PIECE as usize) {
        let piece = content.bytes(at, (LEN - at).min(PIECE) as usize);
        let piece = piece.expect("known");
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(&piece, at).expect("room");
        }
    }
    file.set_len(LEN).expect("ftruncate(2)");
    allocated(disk, &file)
}

/// Bytes of blocks that hold data.
fn allocated(disk: &Disk, file: &File) -> u64 {
    match disk.fs {
        // They have no FIEMAP.
        Fs::Tmpfs | Fs::Fuse => file.metadata().expect("fstat(2)").blocks() * 512,
        _ => {
            let (shared, own) = extents(file);
            shared + own
        }
    }
}

/// Files larger than the filesystem, of holes: they need the room that their data need. Every second
/// block is one, or there is one of 200 MB, in the middle or at the end.
pub(crate) fn holes_need_no_room(pulse: &Pulse) {
    const BLOCK: u64 = 4096;
    const LARGE: u64 = 200 << 20;
    // What tree and tables of a file take at most.
    const MAP: u64 = 256 << 10;
    let fine: Vec<_> = (0..256).map(|nth| 2 * nth * BLOCK).collect();
    let cases = [
        ("every second block", fine, 512 * BLOCK),
        ("a large one", vec![0, LARGE], LARGE + BLOCK),
        ("a large one last", vec![0], LARGE),
        ("nothing else", vec![], LARGE),
    ];
    let all = Fs::SPARSE.into_iter().filter(|fs| fs.keeps_holes());
    let all: Vec<_> = all.collect();
    on_each("large holes", pulse, &all, 100, |disk, sheet| {
        for (name, islands, len) in &cases {
            let data = Data::new(*len);
            let source = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(disk.dir.join("sparse"))
                .expect("a file");
            for at in islands {
                let block = data.bytes(*at, BLOCK as usize);
                source.write_all_at(&block, *at).expect("room");
            }
            source.set_len(*len).expect("holes need no room");
            source.sync_all().expect("fsync(2)");
            sheet.row(disk.fs.name(), name, |backend| {
                let unable = backend.is_some_and(|b| !Ends::Same.served_by(b, disk, false));
                if backend == Some(Backend::Reflink) || unable {
                    return Ok("–".to_owned());
                }
                let destination = disk.destination("destination");
                let mut options = options(backend);
                if backend.is_none() {
                    options.reflink(Reflink::Never);
                }
                let options = options.src_offset(0);
                let result = options.transfer(&source, &destination, u64::MAX);
                is_whole(&result.map_err(Box::new), *len)?;
                let copy = File::from(destination.fd.try_clone().expect("a descriptor"));
                copy.sync_all().expect("fsync(2)");
                let (from, to) = (source.metadata(), copy.metadata());
                let (from, to) = (from.expect("fstat(2)"), to.expect("fstat(2)"));
                let same = |at: u64| {
                    let mut blocks = [[0; BLOCK as usize]; 2];
                    source.read_at(&mut blocks[0], at)?;
                    copy.read_at(&mut blocks[1], at)?;
                    Ok::<_, std::io::Error>(blocks[0] == blocks[1])
                };
                let step = if islands.len() > 2 { BLOCK } else { 50 << 20 };
                for at in (0..*len).step_by(step as usize).chain([*len - 1]) {
                    if !same(at).map_err(|e| e.to_string())? {
                        return Err(format!("the block at {at} differs"));
                    }
                }
                let (from_kib, to_kib) = (from.blocks() / 2, to.blocks() / 2);
                // XFS allocates more than is written, and gives it back when it likes.
                let exact = disk.fs != Fs::Xfs || islands.len() <= 2;
                let most = from_kib + if exact { MAP >> 11 } else { 2 * from_kib };
                if to.len() != *len || to_kib > most {
                    let size = to.len();
                    return Err(format!("{size} bytes, {to_kib} KiB, the source {from_kib}"));
                }
                Ok(format!("{to_kib} KiB"))
            });
        }
    });
}

/// A hole larger than any file can be there: said before a byte of it moves, and nothing is filled.
pub(crate) fn holes_beyond_the_largest_file(pulse: &Pulse) {
    const FAR: u64 = 20 << 40;
    let all = [Fs::Ext2, Fs::Ext3, Fs::Ext4, Fs::Overlay];
    on_each("20 TiB", pulse, &all, 64, |disk, sheet| {
        let data = Data::new(20);
        for (name, islands, offset) in [
            ("a hole", vec![], None),
            ("hole, data", vec![FAR], None),
            ("data, hole", vec![0], None),
            ("data, hole, data", vec![0, FAR], None),
            ("a hole at 0", vec![], Some(0)),
            ("hole, data at 0", vec![FAR], Some(0)),
            ("data, hole, data at 0", vec![0, FAR], Some(0)),
        ] {
            let before = if islands.first() == Some(&0) {
                12_288
            } else {
                0
            };
            let size = FAR
                + if islands.last() == Some(&FAR) {
                    9999
                } else {
                    0
                };
            sheet.row(disk.fs.name(), name, |backend| {
                // Between two filesystems, and not by offset.
                let unable = match backend {
                    Some(Backend::Reflink | Backend::CopyFileRange) => true,
                    Some(Backend::Sendfile) => offset.is_some(),
                    _ => false,
                };
                if unable {
                    return Ok("–".to_owned());
                }
                let source = make::memfd();
                for at in &islands {
                    source
                        .write_all_at(&data.bytes(*at, 12_288), *at)
                        .expect("room");
                }
                source.set_len(size).expect("a memfd can be that long");
                let destination = disk.destination("destination");
                let mut options = options(backend);
                offset.map(|at| options.dst_offset(at));
                let result = options.transfer(&source, &destination, u64::MAX);
                let result = result.map_err(Box::new);
                let delivered = fails(&result, Side::Destination, &[libc::EFBIG])?;
                let copy = File::from(destination.fd.try_clone().expect("a descriptor"));
                let copied = copy.metadata().expect("fstat(2)");
                if delivered != before || copied.len() != before || copied.blocks() > 64 {
                    let (size, blocks) = (copied.len(), copied.blocks());
                    return Err(format!("{delivered} of {size} bytes, {blocks} blocks"));
                }
                let mut held = vec![0; before as usize];
                copy.read_exact_at(&mut held, 0).expect("readable");
                data.check(0, &held)
                    .map_err(|at| format!("wrong at {at}"))?;
                let at = |fd| crate::common::oracle::position(fd);
                let there = if offset.is_some() { 0 } else { before };
                if (at(source.as_fd()), at(copy.as_fd())) != (before, there) {
                    return Err("the positions are not where the count is".to_owned());
                }
                Ok(outcome(backend, &result))
            });
        }
    });
}

/// One TiB of which almost nothing is there: done before the watchdog's time, as copying it could
/// not be.
pub(crate) fn one_tebibyte(pulse: &Pulse) {
    const TEBI: u64 = 1 << 40;
    let all = [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Tmpfs];
    on_each("1 TiB", pulse, &all, 64, |disk, sheet| {
        let file = File::create(disk.dir.join("tebibyte")).expect("a file");
        file.set_len(TEBI).expect("holes need no room");
        let data = Data::new(1);
        let islands = [12_288, TEBI / 2 + 4096, TEBI - 9999];
        for at in islands {
            file.write_all_at(&data.bytes(at, 9999), at).expect("room");
        }
        file.sync_all().expect("fsync(2)");
        sheet.row(disk.fs.name(), "file→file", |backend| {
            let unable = backend.is_some_and(|b| !Ends::Same.served_by(b, disk, false));
            if backend == Some(Backend::Reflink) || unable {
                return Ok("–".to_owned());
            }
            let source = File::open(disk.dir.join("tebibyte")).expect("made above");
            let destination = disk.destination("destination");
            let mut options = options(backend);
            if backend.is_none() {
                options.reflink(Reflink::Never);
            }
            let start = std::time::Instant::now();
            let result = options
                .transfer(&source, &destination, u64::MAX)
                .map_err(Box::new);
            let took = start.elapsed();
            is_whole(&result, TEBI)?;
            let copy = File::from(destination.fd.try_clone().expect("a descriptor"));
            for at in islands {
                let mut held = vec![0; 9999];
                copy.read_exact_at(&mut held, at)
                    .map_err(|e| e.to_string())?;
                Content::Known(data, TEBI).check(at, &held)?;
            }
            Ok(format!("{} ms", took.as_millis()))
        });
    });
}

/// A destination made immutable while it is open: what every call answers is EPERM, as from a
/// seccomp profile, and here it is the file that means it.
pub(crate) fn immutable(pulse: &Pulse) {
    if let Err(reason) = need("chattr") {
        return skipped("root immutable", reason);
    }
    // The others let those write who had the file open before.
    on_each("immutable", pulse, &[Fs::Ext4], 64, |disk, sheet| {
        for ends in Ends::INTO_IT {
            sheet.row(disk.fs.name(), ends.name(), |backend| {
                let content = content((3 << 20) + 777);
                let destination = ends.destination(disk);
                let path = disk.dir.join("destination");
                let path = path.to_str().expect("a plain path");
                run("chattr", &["+i", path])?;
                let mut cell = Cell::new(ends, backend);
                cell.on_device = false;
                let result = cell.run(ends.source(disk, &content), destination);
                run("chattr", &["-i", path])?;
                let result = result?;
                if backend.is_some_and(|b| !ends.served_by(b, disk, false)) {
                    is_unfit(&result)?;
                } else if backend.is_none_or(|b| b == Backend::ReadWrite) {
                    fails(&result, Side::Destination, &[libc::EPERM])?;
                } else {
                    // Forced, it cannot tell the file's EPERM from the mechanism's.
                    let error = result.as_ref().err().ok_or("it was written to")?;
                    let errno = error.io_error().and_then(std::io::Error::raw_os_error);
                    if errno != Some(libc::EPERM) || error.delivered() > 0 {
                        return Err(format!("{error:?}"));
                    }
                }
                Ok(outcome(backend, &result))
            });
        }
    });
}
