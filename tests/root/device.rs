//! A disk as source and destination of one transfer: by one node, by another, and by a partition.
// BLKPG has no safe wrapper among the dependencies.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, mknod};
use zcio::{Backend, ErrorKind, Side, TransferOptions, fan_out};

use super::cell::choices;
use super::child::ROOM;
use crate::common::{Data, Pulse, make, skipped};

const SIZE: u64 = 16 << 20;
/// Where the partition begins, and its length.
const PART: (u64, u64) = (1 << 20, 8 << 20);

const DATA: Data = Data::new(48);

/// `struct blkpg_ioctl_arg` and `struct blkpg_partition`.
#[repr(C)]
struct Blkpg {
    op: i32,
    flags: i32,
    len: i32,
    data: *mut Partition,
}

#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

fn add_partition(disk: &File) -> io::Result<()> {
    const BLKPG: libc::c_ulong = 0x1269;
    let mut partition = Partition {
        start: PART.0 as i64,
        length: PART.1 as i64,
        number: 1,
        names: [0; 128],
    };
    let arg = Blkpg {
        op: 1,
        flags: 0,
        len: size_of::<Partition>() as i32,
        data: &raw mut partition,
    };
    // SAFETY: BLKPG reads one argument and the partition that it points to.
    match unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw const arg) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn node(name: &str, device: u64) -> File {
    let path = Path::new(ROOM).join(name);
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    mknod(&path, SFlag::S_IFBLK, mode, device).expect("mknod(2)");
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).expect("a node")
}

fn fill(disk: &File) {
    disk.write_all_at(&DATA.bytes(0, SIZE as usize), 0)
        .expect("room");
    disk.sync_all().expect("fsync(2)");
}

fn content(disk: &File, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    disk.read_exact_at(&mut bytes, at).expect("readable");
    bytes
}

/// Onto itself by the same node and by another one: overlapping it is refused, apart it is copied.
pub(crate) fn onto_itself(pulse: &Pulse) {
    let backing = make::memfd();
    backing.set_len(SIZE).expect("a memfd");
    let disk = make::loop_device(&backing).expect("a loop device");
    let number = disk.metadata().expect("fstat(2)").rdev();
    let other = node("other", number);
    let overlapping = [
        (0, 0, 1),
        (0, 4096, 8192),
        (4096, 0, 8192),
        (0, 1 << 20, u64::MAX),
        (SIZE / 2, SIZE / 2 - 1, u64::MAX),
    ];
    let apart = [
        (0, SIZE / 2, SIZE / 2),
        (SIZE / 2, 0, u64::MAX),
        (0, 8192, 8192),
    ];
    for (name, second) in [("one node", &disk), ("another node", &other)] {
        for (from, to, len) in overlapping {
            let case = format!("{name}: {len} from {from} to {to}");
            pulse.at(&case);
            fill(&disk);
            for explicit in [true, false] {
                let mut options = TransferOptions::new();
                // By one description there is one position.
                let explicit = explicit || name == "one node";
                if explicit {
                    options.src_offset(from).dst_offset(to);
                } else {
                    make::seek(&disk, from);
                    make::seek(second, to);
                }
                let error = options.transfer(&disk, second, len).expect_err(&case);
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{case}: {error}");
                assert_eq!(error.side(), Some(Side::Destination), "{case}: {error}");
                assert_eq!(error.delivered(), 0, "{case}: {error}");
            }
            assert_eq!(DATA.check(0, &content(&disk, 0, SIZE)), Ok(()), "{case}");
        }
        for (from, to, len) in apart {
            for backend in choices() {
                let case = format!("{name}: {len} from {from} to {to} by {backend:?}");
                pulse.at(&case);
                fill(&disk);
                let mut options = TransferOptions::new();
                backend.map(|backend| options.backend(backend));
                let result = options
                    .src_offset(from)
                    .dst_offset(to)
                    .transfer(&disk, second, len);
                let moved = match result {
                    Ok(report) => report.bytes,
                    Err(e) => {
                        let unable = [Backend::Reflink, Backend::CopyFileRange, Backend::Sendfile];
                        let fits = backend.is_none_or(|b| !unable.contains(&b));
                        assert!(!fits && e.kind() == ErrorKind::Unfit, "{case}: {e}");
                        continue;
                    }
                };
                assert_eq!(moved, len.min(SIZE - from), "{case}");
                assert_eq!(
                    DATA.check(from, &content(&disk, to, moved)),
                    Ok(()),
                    "{case}"
                );
            }
        }
        make::seek(&disk, 0);
        let error = fan_out(&disk, [second], 4096).expect_err("itself");
        assert_eq!(error.error().kind(), ErrorKind::InvalidInput);
    }
    let two = make::memfd();
    two.set_len(SIZE).expect("a memfd");
    let two = make::loop_device(&two).expect("a loop device");
    fill(&disk);
    make::seek(&disk, 0);
    let report = zcio::transfer(&disk, &two, u64::MAX).expect("another disk");
    assert_eq!(report.bytes, SIZE);
    assert_eq!(DATA.check(0, &content(&two, 0, SIZE)), Ok(()));
}

/// A partition and the disk that it lies on.
pub(crate) fn partition(pulse: &Pulse) {
    let backing = make::memfd();
    backing.set_len(SIZE).expect("a memfd");
    let disk = make::loop_device_with_partitions(&backing).expect("a loop device");
    if let Err(e) = add_partition(&disk) {
        return skipped("root a partition of a loop device", e);
    }
    let number = disk.metadata().expect("fstat(2)").rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let dir = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).expect("sysfs");
    let name = dir
        .file_name()
        .and_then(|name| name.to_str())
        .expect("text");
    let number = fs::read_to_string(dir.join(format!("{name}p1/dev"))).expect("a partition");
    let (major, minor) = number.trim().split_once(':').expect("two numbers");
    let parsed = |number: &str| number.parse().expect("a number");
    let part = node("part", libc::makedev(parsed(major), parsed(minor)));
    fill(&disk);
    let (start, length) = PART;
    for (name, src, dst, from, to, len, overlaps) in [
        ("onto its disk", &part, &disk, 0, start, length, true),
        ("onto its disk", &part, &disk, 0, start + 4096, 8192, true),
        (
            "onto its disk",
            &part,
            &disk,
            0,
            start + length,
            4 << 20,
            false,
        ),
        ("from its disk", &disk, &part, start, 4096, 8192, true),
        ("from its disk", &disk, &part, 0, 0, start + 1, true),
        ("from its disk", &disk, &part, 0, 4096, start, false),
        ("onto itself", &part, &part, 0, 4096, 8192, true),
    ] {
        let case = format!("a partition {name}: {len} from {from} to {to}");
        pulse.at(&case);
        let mut options = TransferOptions::new();
        let result = options
            .src_offset(from)
            .dst_offset(to)
            .transfer(src, dst, len);
        match result {
            Ok(report) => assert!(!overlaps && report.bytes == len, "{case}: {report:?}"),
            Err(e) => assert!(
                overlaps && e.kind() == ErrorKind::InvalidInput,
                "{case}: {e}"
            ),
        }
    }
}
