//! What only root can make: filesystems that fill up, break and disappear, extents that are shared,
//! a slow link, a user past his share of pipes.
//!
//! ```sh
//! cargo test --test root -- --ignored
//! ```
//!
//! Each test runs in a child with mount and PID namespaces of its own: mounts, loop devices and
//! daemons vanish with it, also where it panics or is killed. It wants `mkfs.ext4` (e2fsprogs),
//! `mkfs.xfs` (xfsprogs), `mkfs.btrfs` (btrfs-progs), `bindfs`, `ip` and `tc` (iproute2); what is
//! missing is skipped aloud. One row a case goes to stderr.
#[path = "root/broken.rs"]
mod broken;
#[path = "root/cell.rs"]
mod cell;
#[path = "root/child.rs"]
mod child;
mod common;
#[path = "root/disk.rs"]
mod disk;
#[path = "root/full.rs"]
mod full;
#[path = "root/plain.rs"]
mod plain;

use child::alone;

#[test]
#[ignore = "root: mounts filesystems"]
fn every_backend_on_every_filesystem() {
    alone("every_backend_on_every_filesystem", 60, plain::plain);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_full_filesystem_leaves_the_exact_count() {
    alone(
        "a_full_filesystem_leaves_the_exact_count",
        60,
        full::filesystem,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_quota_leaves_the_exact_count() {
    alone("a_quota_leaves_the_exact_count", 60, full::quota);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_bad_block_is_the_sources_failure() {
    alone("a_bad_block_is_the_sources_failure", 60, broken::cut);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_wrong_checksum_is_the_sources_failure() {
    alone(
        "a_wrong_checksum_is_the_sources_failure",
        60,
        broken::flipped,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_filesystem_shut_down_midway() {
    alone("a_filesystem_shut_down_midway", 60, broken::shut_down);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_filesystem_made_read_only_by_an_error() {
    alone(
        "a_filesystem_made_read_only_by_an_error",
        60,
        broken::error_read_only,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_fuse_daemon_gone_midway() {
    alone("a_fuse_daemon_gone_midway", 60, broken::daemon_gone);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_source_made_read_only_midway() {
    alone(
        "a_source_made_read_only_midway",
        60,
        broken::read_only_source,
    );
}
