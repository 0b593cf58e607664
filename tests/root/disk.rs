//! The filesystems, mounted: over a loop device where they need a disk.
// The ioctls that break a filesystem and FIEMAP have no safe wrapper among the dependencies.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, SealFlag, fcntl, posix_fadvise};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::child::{ROOM, need, run};
use crate::common::{
    Content, Data, Destination, DestinationKind, Source, SourceKind, make, skipped,
};

/// A filesystem that is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fs {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Btrfs,
    /// Over ext4; sources lie in its lower layer, destinations in its upper one.
    Overlay,
    Tmpfs,
    /// bindfs over ext4.
    Fuse,
}

impl Fs {
    pub(crate) const ALL: [Fs; 6] = [
        Fs::Ext4,
        Fs::Xfs,
        Fs::Btrfs,
        Fs::Overlay,
        Fs::Tmpfs,
        Fs::Fuse,
    ];

    /// Those that are sparse in ways of their own.
    pub(crate) const SPARSE: [Fs; 8] = [
        Fs::Ext2,
        Fs::Ext3,
        Fs::Ext4,
        Fs::Xfs,
        Fs::Btrfs,
        Fs::Overlay,
        Fs::Tmpfs,
        Fs::Fuse,
    ];

    /// Those that a device lies under, however deep.
    pub(crate) const ON_DISK: [Fs; 5] = [Fs::Ext4, Fs::Xfs, Fs::Btrfs, Fs::Overlay, Fs::Fuse];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Fs::Ext2 => "ext2",
            Fs::Ext3 => "ext3",
            Fs::Ext4 => "ext4",
            Fs::Xfs => "xfs",
            Fs::Btrfs => "btrfs",
            Fs::Overlay => "overlay",
            Fs::Tmpfs => "tmpfs",
            Fs::Fuse => "fuse",
        }
    }

    /// Whether files can share extents.
    pub(crate) fn shares(self) -> bool {
        matches!(self, Fs::Xfs | Fs::Btrfs)
    }

    /// Whether a hole is seen as such in a file freshly written.
    pub(crate) fn keeps_holes(self) -> bool {
        self != Fs::Fuse
    }
}

/// One of them, mounted.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) fs: Fs,
    pub(crate) dir: PathBuf,
    /// What it stands on: the filesystem below.
    below: Option<Box<Disk>>,
    /// The image under its loop device, and the device's name.
    image: Option<(File, String)>,
    /// Whether files can be opened with O_DIRECT; tmpfs learned it with Linux 6.6.
    pub(crate) takes_direct: bool,
}

impl Disk {
    /// Makes one of `mib` MiB (as far as it can be that small) and mounts it under a name of its
    /// own. An error says why it cannot be had here.
    pub(crate) fn new(fs: Fs, name: &str, mib: u64) -> Result<Self, String> {
        let dir = Path::new(ROOM).join(format!("{name} {}", fs.name()));
        fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let mut disk = Self {
            fs,
            dir,
            below: None,
            image: None,
            takes_direct: false,
        };
        let target = disk.dir.to_str().expect("a plain path").to_owned();
        match fs {
            Fs::Ext2 | Fs::Ext3 | Fs::Ext4 => {
                let options = "nodiscard,lazy_itable_init=0";
                disk.format(
                    mib,
                    &format!("mkfs.{}", fs.name()),
                    &["-q", "-F", "-b", "4096", "-m", "0", "-E", options],
                )?;
            }
            Fs::Xfs => {
                disk.format(mib.max(300), "mkfs.xfs", &["-q", "-f", "-m", "reflink=1"])?;
            }
            Fs::Btrfs => {
                let profiles = ["-q", "-f", "-d", "single", "-m", "dup"];
                disk.format(mib.max(128), "mkfs.btrfs", &profiles)?;
            }
            Fs::Tmpfs => {
                let size = format!("size={mib}m");
                run("mount", &["-t", "tmpfs", "-o", &size, "zcio", &target])?;
            }
            Fs::Overlay => {
                let below = Self::new(Fs::Ext4, &format!("{name}-under"), mib)?;
                let layer = |layer: &str| {
                    let path = below.dir.join(layer);
                    fs::create_dir(&path).map_err(|e| e.to_string())?;
                    Ok::<_, String>(path.to_str().expect("a plain path").to_owned())
                };
                let (lower, upper, work) = (layer("lower")?, layer("upper")?, layer("work")?);
                let layers = format!("lowerdir={lower},upperdir={upper},workdir={work}");
                run("mount", &["-t", "overlay", "-o", &layers, "zcio", &target])?;
                disk.below = Some(Box::new(below));
            }
            Fs::Fuse => {
                need("bindfs")?;
                if !Path::new("/dev/fuse").exists() {
                    return Err("there is no /dev/fuse".to_owned());
                }
                let below = Self::new(Fs::Ext4, &format!("{name}-behind"), mib)?;
                // It returns once it is mounted; its daemon ends with the namespace.
                run("bindfs", &[below.dir.to_str().expect("plain"), &target])?;
                disk.below = Some(Box::new(below));
            }
        }
        disk.takes_direct = disk.is_direct_taken();
        Ok(disk)
    }

    /// Tries it, and says aloud where it is not so.
    fn is_direct_taken(&self) -> bool {
        let sample = self.destination("sample");
        let again = make::reopen(&sample, OFlag::O_RDWR | OFlag::O_DIRECT);
        self.remove("sample");
        if let Err(e) = &again {
            skipped(&format!("root O_DIRECT on {}", self.fs.name()), e);
        }
        again.is_ok()
    }

    fn format(&mut self, mib: u64, mkfs: &str, options: &[&str]) -> Result<(), String> {
        need(mkfs)?;
        let of_io = |e: io::Error| format!("loop device: {e}");
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // mkfs.btrfs takes two devices for one whose images have the same name.
        let image = memfd_create(self.dir.as_os_str(), flags);
        let image = File::from(image.map_err(|e| of_io(e.into()))?);
        image.set_len(mib << 20).map_err(of_io)?;
        let device = make::loop_device(&image).map_err(of_io)?;
        let link = format!("/proc/thread-self/fd/{}", device.as_raw_fd());
        let path = fs::read_link(link).map_err(of_io)?;
        let path = path.to_str().expect("a plain path");
        run(mkfs, &[options, &[path]].concat())?;
        let target = self.dir.to_str().expect("a plain path");
        let options = match self.fs {
            Fs::Ext4 => "errors=remount-ro,commit=600",
            _ => "defaults",
        };
        run(
            "mount",
            &["-t", self.fs.name(), "-o", options, path, target],
        )?;
        let name = path.trim_start_matches("/dev/").to_owned();
        self.image = Some((image, name));
        Ok(())
    }

    /// The filesystem that has the device.
    fn bottom(&self) -> &Disk {
        self.below.as_ref().map_or(self, |below| below.bottom())
    }

    fn image(&self) -> &(File, String) {
        let image = self.bottom().image.as_ref();
        image.expect("a filesystem on a device")
    }

    /// The name of the loop device.
    pub(crate) fn device(&self) -> String {
        self.image().1.clone()
    }

    // --- files --------------------------------------------------------------------------------

    /// Where the bytes of a source really lie: for what stands on another filesystem, there.
    fn home(&self, name: &str) -> PathBuf {
        match (self.fs, &self.below) {
            (Fs::Overlay, Some(below)) => below.dir.join("lower").join(name),
            (_, Some(below)) => below.dir.join(name),
            _ => self.dir.join(name),
        }
    }

    /// A file of `content`, on the device and out of the page cache, opened for reading.
    pub(crate) fn source(&self, content: Content) -> Source {
        let len = content.len().expect("a file's content has a length");
        let file = File::create(self.home(&source_name(len))).expect("room for a source");
        file.set_len(len).expect("room for a source");
        for at in (0..len).step_by(SPARSE_PIECE) {
            let piece = (len - at).min(SPARSE_PIECE as u64) as usize;
            let piece = content.bytes(at, piece).expect("known");
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(&piece, at).expect("room for a source");
            }
        }
        file.sync_all().expect("fsync(2)");
        drop_cached(&file);
        self.open(content)
    }

    /// Where the source of this length is found.
    pub(crate) fn source_path(&self, len: u64) -> PathBuf {
        self.dir.join(source_name(len))
    }

    /// The source of this content, made before, opened anew.
    pub(crate) fn open(&self, content: Content) -> Source {
        let len = content.len().expect("a file's content has a length");
        let file = File::open(self.source_path(len)).expect("a source made before");
        drop_cached(&file);
        let mut source = SourceKind::Memfd.make(Data::new(0), 0).expect("a memfd");
        source.kind = SourceKind::DiskFile;
        source.fd = file.into();
        source.content = content;
        source
    }

    /// A new, empty file opened for writing.
    pub(crate) fn destination(&self, name: &str) -> Destination {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(self.dir.join(name)).expect("an empty file");
        let mut destination = DestinationKind::Memfd.make().expect("a memfd");
        destination.kind = DestinationKind::DiskFile;
        destination.fd = file.into();
        destination
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.dir.join(name)).expect("a file made before");
        self.sync();
    }

    /// Waits until all is on the device and space that was given up is free.
    pub(crate) fn sync(&self) {
        let dir = File::open(&self.dir).expect("mounted");
        // SAFETY: no memory is involved.
        unsafe { libc::syncfs(dir.as_raw_fd()) };
        if let Some(below) = &self.below {
            below.sync();
        }
    }

    /// Fills it but for about `left` bytes.
    pub(crate) fn fill(&self, left: u64) {
        let below = self.bottom();
        let filler = File::create(below.dir.join("filler")).expect("a file");
        // Written for real: what is merely allocated may be counted otherwise.
        let piece = vec![0x5a; 64 << 10];
        let mut at = 0;
        while filler.write_all_at(&piece, at).is_ok() {
            at += piece.len() as u64;
        }
        filler.set_len(at - left).expect("ftruncate(2)");
        filler.sync_all().expect("fsync(2)");
        self.sync();
    }

    // --- harm ---------------------------------------------------------------------------------

    /// Where on the device the block of these bytes lies.
    pub(crate) fn locate(&self, block: &[u8]) -> u64 {
        let (image, _) = self.image();
        let len = image.metadata().expect("fstat(2)").len();
        let mut buf = vec![0; PIECE];
        for at in (0..len).step_by(PIECE) {
            let got = image.read_at(&mut buf, at).expect("an image");
            let found = (0..got).step_by(BLOCK).find(|from| {
                let from = &buf[*from..got];
                from.starts_with(block)
            });
            if let Some(found) = found {
                return at + found as u64;
            }
        }
        panic!("the block is not on the device of {}", self.fs.name());
    }

    /// Cuts the image: from there on, the device has nothing but I/O errors, whatever is written.
    pub(crate) fn cut(&self, at: u64) {
        let (image, _) = self.image();
        image.set_len(at).expect("ftruncate(2)");
        // Else the next write behind the cut would make the image longer again.
        let seal = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW);
        fcntl(image, seal).expect("F_ADD_SEALS");
    }

    /// Whether reading what was cut off gives an error. The loop device of some kernels makes up
    /// zeros for it, and for all else that the same request was to read. Asked below FUSE, which
    /// remembers a short read as the file's end.
    pub(crate) fn errs_at(&self, len: u64, at: u64) -> bool {
        let file = File::open(self.home(&source_name(len))).expect("a source made before");
        drop_cached(&file);
        let result = file.read_exact_at(&mut [0; BLOCK], at);
        drop_cached(&file);
        result.is_err()
    }

    /// Flips every bit of one byte on the device.
    pub(crate) fn flip(&self, at: u64) {
        let (image, _) = self.image();
        let mut byte = [0];
        image.read_exact_at(&mut byte, at).expect("an image");
        image.write_all_at(&[!byte[0]], at).expect("an image");
    }

    /// Read-only from now on: it, or where it has no such thing, the one below.
    pub(crate) fn remount_read_only(&self) {
        match &self.below {
            Some(below) if self.fs == Fs::Fuse => below.remount_read_only(),
            _ => {
                let dir = self.dir.to_str().expect("a plain path");
                run("mount", &["-o", "remount,ro", dir]).expect("remounted read-only");
            }
        }
    }

    /// The whole filesystem goes down, as after an error of its journal: XFS and ext4.
    pub(crate) fn shut_down(&self) -> io::Result<()> {
        /// `XFS_IOC_GOINGDOWN`, which is `EXT4_IOC_SHUTDOWN` as well.
        const GOING_DOWN: libc::c_ulong = 0x8004_587d;
        let no_log_flush: u32 = 2;
        let dir = File::open(&self.bottom().dir)?;
        // SAFETY: the ioctl reads one u32.
        let result =
            unsafe { libc::ioctl(dir.as_raw_fd(), GOING_DOWN as _, &raw const no_log_flush) };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// ext4 finds an error in itself and makes itself read-only, open files or not.
    pub(crate) fn find_an_error(&self) -> io::Result<()> {
        let (_, device) = self.image();
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1")
    }

    /// Has the journal committed every so many seconds.
    pub(crate) fn commit_every(&self, seconds: u32) -> Result<(), String> {
        let dir = self.dir.to_str().expect("a plain path");
        let options = format!("remount,commit={seconds}");
        run("mount", &["-o", &options, dir])
    }

    /// Mounted anew, as after a crash: from what the device has, the journal replayed. The device is
    /// another one, since the old one goes with its last user.
    pub(crate) fn mount_again(&self) -> Result<(), String> {
        let dir = self.dir.to_str().expect("a plain path");
        run("umount", &[dir])?;
        let device = make::loop_device(&self.image().0).map_err(|e| e.to_string())?;
        let link = format!("/proc/thread-self/fd/{}", device.as_raw_fd());
        let path = fs::read_link(link).map_err(|e| e.to_string())?;
        let path = path.to_str().expect("a plain path");
        run("mount", &["-t", self.fs.name(), path, dir])
    }

    /// Goes out of sight; what it took goes with its last user.
    pub(crate) fn unmount(&self) {
        let dir = self.dir.to_str().expect("a plain path");
        run("umount", &["-l", dir]).expect("it is mounted");
        if let Some(below) = &self.below {
            below.unmount();
        }
    }

    /// A FUSE connection is aborted, as when its daemon dies.
    pub(crate) fn abort(&self) {
        // It is in use and stays mounted; the connection is gone all the same.
        let _ = run("umount", &["-f", self.dir.to_str().expect("a plain path")]);
    }
}

/// Bytes written or read at a time.
const PIECE: usize = 1 << 20;

/// No hole of a sparse source is smaller.
const SPARSE_PIECE: usize = 128 << 10;

/// No filesystem here has smaller blocks.
pub(crate) const BLOCK: usize = 4096;

/// One name a length: overlay and FUSE would still know another file by the same name.
fn source_name(len: u64) -> String {
    format!("source-{len}")
}

/// Drops a file's clean pages.
pub(crate) fn drop_cached(file: impl AsFd) {
    let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    posix_fadvise(file, 0, 0, advice).expect("posix_fadvise(2)");
}

/// How many bytes of a file lie in extents shared with another, and how many in those of its own.
pub(crate) fn extents(fd: impl AsFd) -> (u64, u64) {
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    const SYNC: u64 = 1;
    const SHARED: u64 = 0x2000;
    const UNWRITTEN: u64 = 0x800;
    const MOST: usize = 512;
    /// `struct fiemap` as four words, then `struct fiemap_extent` as seven each.
    const HEAD: usize = 4;
    const EXTENT: usize = 7;
    let mut map = vec![0_u64; HEAD + MOST * EXTENT];
    map[1] = u64::MAX;
    map[2] = SYNC;
    map[3] = MOST as u64;
    // SAFETY: `map` has room for the header and for as many extents as it says.
    let result =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_FIEMAP as _, map.as_mut_ptr()) };
    assert_eq!(result, 0, "FIEMAP: {}", io::Error::last_os_error());
    let count = (map[2] >> 32) as usize;
    assert!(count < MOST, "too many extents");
    let mut sums = (0, 0);
    for extent in map[HEAD..].chunks_exact(EXTENT).take(count) {
        let (len, flags) = (extent[2], extent[5] & 0xffff_ffff);
        match flags & SHARED {
            0 if flags & UNWRITTEN != 0 => {}
            0 => sums.1 += len,
            _ => sums.0 += len,
        }
    }
    sums
}
