//! Building, slicing, chaining: shared, not copied, and the length always that of the parts.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use zcio::Message;
use zcio::message::Part;

use crate::lane::{Kind, Lane, assert_same, boundaries, content, file, mixed, mixed_file};

fn pointers(message: &Message<'_>) -> Vec<usize> {
    let bytes = message.parts().iter().filter_map(|part| match part {
        Part::Bytes(bytes) => Some(bytes.as_ptr() as usize),
        _ => None,
    });
    bytes.collect()
}

#[test]
fn clones_slices_and_chains_share_memory() {
    let header = Bytes::from(vec![1; 1000]);
    let at = header.as_ptr() as usize;
    let message = Message::new().bytes(header).bytes(vec![2; 10]);
    assert_eq!(pointers(&message)[0], at);
    assert_eq!(pointers(&message.clone()), pointers(&message));
    assert_eq!(
        pointers(&message.slice(300..)),
        [at + 300, pointers(&message)[1]]
    );
    let chained = message.slice(..500).chain(message.slice(500..));
    assert_eq!(pointers(&chained)[..2], [at, at + 500]);
    assert_eq!(chained.len(), message.len());
    // What is sent is the same memory still.
    let mut lane = Lane::new(Kind::Unix);
    let report = message.send(&lane.dst).unwrap();
    assert_eq!(report.bytes, 1010);
    lane.assert_landed("sent", &content(&message));
    assert_eq!(pointers(&message)[0], at);
}

#[test]
fn files_are_lent_shared_or_handed_over() {
    let lent = file(1, 100);
    let shared = Arc::new(file(2, 100));
    let descriptor: Arc<OwnedFd> = Arc::new(file(3, 100).into());
    let owned: File = file(4, 100);
    let number = owned.as_raw_fd();
    let message = Message::new()
        .file(&lent, 0..100)
        .file(Arc::clone(&shared), 10..20)
        .file(descriptor, 0..1)
        .file(owned, 99..100);
    let copy = message.clone();
    drop(message);
    assert_eq!(
        Arc::strong_count(&shared),
        2,
        "shared by one message and its clone"
    );
    let Some(Part::File { file, range }) = copy.parts().last() else {
        panic!("{copy:?}");
    };
    assert_eq!((file.as_fd().as_raw_fd(), range.clone()), (number, 99..100));
    drop(copy);
    assert_eq!(Arc::strong_count(&shared), 1);
    fn is_static(message: Message<'static>) -> Message<'static> {
        message
    }
    assert_eq!(is_static(Message::new().file(shared, 0..5)).len(), 5);
}

#[test]
fn a_message_can_be_sent_from_another_thread() {
    fn check<T: Send + Sync>(value: T) -> T {
        value
    }
    let file = Arc::new(file(1, 5000));
    let message = check(Message::new().bytes("head").file(file, 0..5000));
    let expected = content(&message);
    let mut lane = Lane::new(Kind::Pipe);
    let dst = lane.dst.try_clone().unwrap();
    std::thread::spawn(move || message.send(dst).unwrap())
        .join()
        .unwrap();
    lane.assert_landed("from a thread", &expected);
}

#[test]
fn empty_parts_are_none() {
    let file = file(1, 10);
    let message = Message::new()
        .bytes("")
        .file(&file, 7..7)
        .bytes(Bytes::new());
    assert!(message.is_empty() && message.parts().is_empty());
    assert_eq!(message.slice(..).len(), 0);
    assert!(message.chain(Message::new()).is_empty());
}

#[test]
#[should_panic(expected = "is reversed")]
#[allow(clippy::reversed_empty_ranges)]
fn a_reversed_range_of_a_file_is_a_mistake() {
    let _ = Message::new().file(file(1, 10), 5..4);
}

#[test]
#[should_panic(expected = "5..11 of a message of 10 bytes")]
fn a_slice_beyond_the_end_is_a_mistake() {
    let _ = Message::new().bytes(vec![0; 10]).slice(5..=10);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_slice_is_that_range_of_the_content(a in 0..1_700_000_u64, b in 0..1_700_000_u64) {
        let file = mixed_file();
        let message = mixed(&file);
        let all = content(&message);
        let (from, to) = (a.min(b).min(message.len()), a.max(b).min(message.len()));
        let slice = message.slice(from..to);
        prop_assert_eq!(slice.len(), to - from);
        prop_assert!(content(&slice) == all[from as usize..to as usize]);
    }
}

#[test]
fn slices_at_every_boundary_join_again() {
    let file = mixed_file();
    let message = mixed(&file);
    let all = content(&message);
    for at in boundaries(&message) {
        let joined = message.slice(..at).chain(message.slice(at..));
        assert_same(&format!("cut at {at}"), &content(&joined), &all);
    }
}
