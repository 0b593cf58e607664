//! What only root can make: filesystems that fill up, break and disappear, extents that are shared,
//! a slow link, a user past his share of pipes.
//!
//! ```sh
//! cargo test --test root -- --ignored
//! ```
//!
//! Each test runs in a child with mount and PID namespaces of its own: mounts, loop devices and
//! daemons vanish with it, also where it panics or is killed. It wants `mkfs.ext4` and its elders (e2fsprogs),
//! `mkfs.xfs` (xfsprogs), `mkfs.btrfs` (btrfs-progs), `bindfs`, `ip` and `tc` (iproute2); what is
//! missing is skipped aloud. One row a case goes to stderr.
#[path = "root/broken.rs"]
mod broken;
#[path = "root/cell.rs"]
mod cell;
#[path = "root/child.rs"]
mod child;
mod common;
#[path = "root/crash.rs"]
mod crash;
#[path = "root/daemon.rs"]
mod daemon;
#[path = "root/device.rs"]
mod device;
#[path = "root/direct.rs"]
mod direct;
#[path = "root/disk.rs"]
mod disk;
#[path = "root/full.rs"]
mod full;
#[path = "root/fuse.rs"]
mod fuse;
#[path = "root/killed.rs"]
mod killed;
#[path = "root/network.rs"]
mod network;
#[path = "root/pipes.rs"]
mod pipes;
#[path = "root/plain.rs"]
mod plain;
#[path = "root/reflink.rs"]
mod reflink;
#[path = "model/second.rs"]
mod second;
#[path = "root/second.rs"]
mod second_writer;
#[path = "root/setup.rs"]
mod setup;
#[path = "root/sparse.rs"]
mod sparse;

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
fn a_size_that_is_no_end() {
    alone("a_size_that_is_no_end", 60, fuse::sizes);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_size_that_is_no_end_for_the_other_verbs() {
    alone(
        "a_size_that_is_no_end_for_the_other_verbs",
        60,
        fuse::sizes_elsewhere,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_made_up_size_is_no_want_of_room() {
    alone(
        "a_made_up_size_is_no_want_of_room",
        60,
        fuse::sizes_beyond_the_disk,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn an_error_of_reading_is_the_sources_whatever_its_number() {
    alone(
        "an_error_of_reading_is_the_sources_whatever_its_number",
        60,
        fuse::errors,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn an_error_of_reading_for_the_other_verbs() {
    alone(
        "an_error_of_reading_for_the_other_verbs",
        60,
        fuse::errors_elsewhere,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn reads_that_say_not_now_for_a_while() {
    alone("reads_that_say_not_now_for_a_while", 60, fuse::not_now);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn reads_that_say_not_now_for_ever() {
    alone("reads_that_say_not_now_for_ever", 60, fuse::never);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn reads_that_say_not_now_for_ever_to_the_other_verbs() {
    alone(
        "reads_that_say_not_now_for_ever_to_the_other_verbs",
        60,
        fuse::never_elsewhere,
    );
}

/// Not a test: the process that serves the filesystem of those above.
#[test]
#[ignore = "root: a part of the tests with FUSE"]
fn a_fuse_daemon() {
    daemon::serve();
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

#[test]
#[ignore = "root: mounts filesystems"]
fn a_file_replaced_before_a_crash() {
    alone("a_file_replaced_before_a_crash", 60, crash::crash);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn o_direct_with_unaligned_head_and_tail() {
    alone(
        "o_direct_with_unaligned_head_and_tail",
        60,
        direct::unaligned,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn shared_extents_are_isolated() {
    alone(
        "shared_extents_are_isolated",
        60,
        reflink::shared_and_isolated,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn reflink_never_gives_blocks_of_its_own() {
    alone("reflink_never_gives_blocks_of_its_own", 60, reflink::never);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn reflink_always_shares_or_fails() {
    alone(
        "reflink_always_shares_or_fails",
        60,
        reflink::always_or_an_error,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn ranges_that_cannot_be_shared() {
    alone("ranges_that_cannot_be_shared", 60, reflink::alignment);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn holes_are_kept() {
    alone("holes_are_kept", 60, sparse::holes);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_tebibyte_of_holes() {
    alone("a_tebibyte_of_holes", 60, sparse::one_tebibyte);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn holes_need_no_room() {
    alone("holes_need_no_room", 60, sparse::holes_need_no_room);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_hole_beyond_the_largest_file_is_an_error() {
    alone(
        "a_hole_beyond_the_largest_file_is_an_error",
        60,
        sparse::holes_beyond_the_largest_file,
    );
}

#[test]
#[ignore = "root: makes loop devices"]
fn a_disk_onto_itself() {
    alone("a_disk_onto_itself", 60, device::onto_itself);
}

#[test]
#[ignore = "root: makes loop devices"]
fn a_partition_and_its_disk() {
    alone("a_partition_and_its_disk", 60, device::partition);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_second_writer_in_turns() {
    alone("a_second_writer_in_turns", 120, second_writer::in_turns);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn a_second_writer_at_once() {
    alone("a_second_writer_at_once", 120, second_writer::at_once);
}

#[test]
#[ignore = "root: mounts filesystems"]
fn an_immutable_file_is_no_refusal_of_the_mechanism() {
    alone(
        "an_immutable_file_is_no_refusal_of_the_mechanism",
        60,
        sparse::immutable,
    );
}

#[test]
#[ignore = "root: makes network namespaces"]
fn a_slow_link_costs_no_processor_time() {
    alone(
        "a_slow_link_costs_no_processor_time",
        60,
        network::slow_link,
    );
}

#[test]
#[ignore = "root: becomes another user"]
fn pipes_past_the_users_share() {
    alone("pipes_past_the_users_share", 60, pipes::past_the_soft_limit);
}

#[test]
#[ignore = "root: unmounts /proc in a namespace of its own"]
fn without_proc_what_needs_it_gives_way() {
    alone(
        "without_proc_what_needs_it_gives_way",
        60,
        setup::without_proc,
    );
}

#[test]
#[ignore = "root: reserves huge pages"]
fn huge_pages_are_mapped_and_unmapped_whole() {
    alone(
        "huge_pages_are_mapped_and_unmapped_whole",
        60,
        setup::huge_pages,
    );
}

#[test]
#[ignore = "root: mounts filesystems"]
fn nothing_is_left_where_it_is_killed() {
    killed::killed("nothing_is_left_where_it_is_killed");
}
