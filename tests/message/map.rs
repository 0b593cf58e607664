//! Mapped memfds: only those whose seals make it sound.

use std::fs::File;
use std::io::ErrorKind;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use zcio::{Message, map_file, map_file_unchecked};

use crate::common::{Data, make};
use crate::lane::{Kind, Lane, assert_same};

fn seal(file: &File, seals: SealFlag) {
    fcntl(file, FcntlArg::F_ADD_SEALS(seals)).expect("F_ADD_SEALS");
}

fn sealable(len: u64) -> File {
    let file = memfd_create(c"zcio-map", MFdFlags::MFD_ALLOW_SEALING).expect("memfd_create(2)");
    let file = File::from(file);
    file.set_len(len).unwrap();
    file
}

#[test]
fn a_sealed_memfd_is_mapped() {
    let content = Data::new(4).bytes(0, 300_000);
    let file = make::sealed_memfd(&content);
    for range in [
        0..300_000,
        0..1,
        4096..8192,
        5000..299_999,
        299_999..300_000,
        7..7,
    ] {
        let bytes = map_file(&file, range.clone()).unwrap();
        let expected = &content[range.start as usize..range.end as usize];
        assert_same(&format!("{range:?}"), &bytes, expected);
    }
    // The mapping outlives the descriptor, and slices share it.
    let bytes = map_file(&file, 10..200_000).unwrap();
    drop(file);
    let slice = bytes.slice(5000..);
    assert_eq!(slice.as_ptr() as usize, bytes.as_ptr() as usize + 5000);
    drop(bytes);
    let mut lane = Lane::new(Kind::Unix);
    let message = Message::new().bytes("head").bytes(slice);
    lane.run(|_| {}, |dst| message.send(dst)).0.unwrap();
    lane.assert_landed("sent", &[b"head", &content[5010..200_000]].concat());
}

#[test]
fn writing_and_shrinking_must_both_be_sealed() {
    let (write, shrink) = (SealFlag::F_SEAL_WRITE, SealFlag::F_SEAL_SHRINK);
    for seals in [
        SealFlag::empty(),
        write,
        shrink,
        SealFlag::F_SEAL_GROW | shrink,
    ] {
        let file = sealable(100);
        seal(&file, seals);
        let error = map_file(&file, 0..100).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::PermissionDenied,
            "{seals:?}: {error}"
        );
        assert!(error.to_string().contains("sealed"), "{error}");
    }
    let file = sealable(100);
    seal(&file, write | shrink);
    assert_eq!(map_file(&file, 0..100).unwrap(), vec![0; 100]);
    for file in [make::disk_file(), File::open("/dev/zero").unwrap()] {
        let error = map_file(&file, 0..1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
}

#[test]
#[allow(clippy::reversed_empty_ranges)]
fn a_range_lies_within_the_file() {
    let file = make::sealed_memfd(&[7; 100]);
    for range in [
        0..101,
        100..101,
        200..300,
        50..40,
        0..u64::MAX,
        u64::MAX - 1..u64::MAX,
    ] {
        let error = map_file(&file, range.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{range:?}: {error}");
    }
    assert!(map_file(&file, 100..100).unwrap().is_empty());
}

#[test]
fn any_file_on_the_callers_word() {
    let file = crate::lane::file(6, 100_000);
    // SAFETY: nobody else knows this nameless file, and it is not written from here on.
    let bytes = unsafe { map_file_unchecked(&file, 50..99_999) }.unwrap();
    assert_same("a file on disk", &bytes, &Data::new(6).bytes(50, 99_949));
    // SAFETY: as above.
    let error = unsafe { map_file_unchecked(&file, 0..100_001) }.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
