//! The second writer of `tests/model.rs` on filesystems of its own.

use super::disk::Fs;
use super::plain::on_each;
use crate::common::Pulse;
use crate::second;

const ALL: [Fs; 7] = [
    Fs::Ext2,
    Fs::Ext3,
    Fs::Ext4,
    Fs::Xfs,
    Fs::Btrfs,
    Fs::Overlay,
    Fs::Tmpfs,
];

pub(crate) fn in_turns(pulse: &Pulse) {
    on_each("second writer", pulse, &ALL, 512, |disk, _| {
        let make = || tempfile::tempfile_in(&disk.dir).expect("a file");
        second::in_turns(disk.fs.name(), 200, make);
    });
}

pub(crate) fn at_once(pulse: &Pulse) {
    on_each("second writer at once", pulse, &ALL, 512, |disk, _| {
        let make = || tempfile::tempfile_in(&disk.dir).expect("a file");
        second::at_once(disk.fs.name(), make);
    });
}
