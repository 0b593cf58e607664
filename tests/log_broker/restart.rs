//! What is there after the process is not.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::rig::{Broker, batch, batches, command, stored};

const SMALL: &[&str] = &["--segment-bytes", "100000"];

#[test]
fn a_kill_loses_nothing_acknowledged() {
    for round in 0..5_u64 {
        let broker = Broker::start(SMALL);
        let stop = AtomicBool::new(false);
        let (acknowledged, dir) = thread::scope(|scope| {
            let producers: Vec<_> = (0..3)
                .map(|producer| {
                    let (mut client, stop) = (broker.client(), &stop);
                    scope.spawn(move || {
                        let mut done = Vec::new();
                        for i in 0.. {
                            let batch = batch(producer * 1_000_000 + i, 3, 2_000);
                            // Its end may come at any of these.
                            let stored =
                                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                                    client.produce("a", &batch)
                                }));
                            match stored {
                                Ok((0, first)) => done.push((first, batch)),
                                Ok((error, _)) => panic!("error {error}"),
                                Err(_) if stop.load(Ordering::SeqCst) => return done,
                                Err(e) => std::panic::resume_unwind(e),
                            }
                        }
                        done
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(100 + 37 * round));
            stop.store(true, Ordering::SeqCst);
            let dir = broker.kill();
            let done = producers.into_iter().flat_map(|p| p.join().unwrap());
            (done.collect::<Vec<_>>(), dir)
        });
        assert!(acknowledged.len() > 10, "only {}", acknowledged.len());
        let broker = Broker::over(dir, SMALL);
        let log = broker.client().all("a", 0, 1 << 20);
        let log = batches(&log);
        for (first, batch) in &acknowledged {
            let found = log.binary_search_by_key(first, |(first, _)| *first);
            let (_, found) = log[found.unwrap_or_else(|_| panic!("{first} is gone"))];
            assert!(found == stored(batch, *first), "{first} is another");
        }
    }
}

#[test]
fn a_torn_end_is_cut_at_the_last_whole_batch() {
    let all: Vec<_> = (0..40_u64).map(|seed| batch(seed, 2, 3_000)).collect();
    let whole = |count: usize| {
        let stored = all[..count]
            .iter()
            .enumerate()
            .map(|(i, b)| stored(b, 2 * i as i64));
        stored.flatten().collect::<Vec<u8>>()
    };
    let next = stored(&batch(99, 1, 5_000), 80);
    let mut bad_crc = next.clone();
    *bad_crc.last_mut().unwrap() ^= 1;
    let mut lie = next.clone();
    lie[8..12].copy_from_slice(&i32::MAX.to_be_bytes());
    let mut jump = next.clone();
    jump[..8].copy_from_slice(&81_i64.to_be_bytes());
    let ends: [(&str, Vec<u8>); 7] = [
        ("nothing", Vec::new()),
        ("a byte", vec![0]),
        ("zeros", vec![0; 10_000]),
        ("half a batch", next[..next.len() / 2].to_vec()),
        ("a wrong CRC", bad_crc),
        ("a length that lies", lie),
        ("an offset that does not follow", jump),
    ];
    let mut dir = None;
    for (what, end) in ends {
        let broker = match dir.take() {
            None => {
                let broker = Broker::start(SMALL);
                let mut client = broker.client();
                for batch in &all {
                    assert_eq!(client.produce("a", batch).0, 0);
                }
                broker
            }
            Some(dir) => Broker::over(dir, SMALL),
        };
        let last = broker.files("a").pop().unwrap();
        let kept = broker.kill();
        let size = fs::metadata(&last).unwrap().len();
        let mut file = OpenOptions::new().append(true).open(&last).unwrap();
        file.write_all(&end).unwrap();
        drop(file);
        let broker = Broker::over(kept, SMALL);
        assert_eq!(fs::metadata(&last).unwrap().len(), size, "{what}");
        assert!(broker.client().all("a", 0, 1 << 20) == whole(40), "{what}");
        dir = Some(broker.kill());
    }
    // A byte of the last batch itself: that one goes, and its offsets are given again.
    let broker = Broker::over(dir.unwrap(), SMALL);
    let last = broker.files("a").pop().unwrap();
    let kept = broker.kill();
    let file = OpenOptions::new().write(true).open(&last).unwrap();
    let size = file.metadata().unwrap().len();
    file.write_all_at(b"?!", size - 2_000).unwrap();
    let broker = Broker::over(kept, SMALL);
    let mut client = broker.client();
    assert!(client.all("a", 0, 1 << 20) == whole(39));
    assert_eq!(client.produce("a", &all[39]), (0, 78));
    assert!(client.all("a", 0, 1 << 20) == whole(40));
}

#[test]
fn damage_further_up_is_not_passed_over() {
    let broker = Broker::start(SMALL);
    let mut client = broker.client();
    for seed in 0..60 {
        assert_eq!(client.produce("a", &batch(seed, 2, 3_000)).0, 0);
    }
    let files = broker.files("a");
    assert!(files.len() > 2);
    let dir = broker.kill();
    let len = fs::metadata(&files[0]).unwrap().len();
    OpenOptions::new()
        .write(true)
        .open(&files[0])
        .unwrap()
        .set_len(len - 1)
        .unwrap();
    assert!(!command(&dir, SMALL).status().unwrap().success());
    fs::remove_file(&files[1]).unwrap();
    assert!(!command(&dir, SMALL).status().unwrap().success());
}

#[test]
fn one_process_a_directory() {
    let broker = Broker::start(&[]);
    let second = command(&broker.dir, &[]).status();
    assert!(!second.unwrap().success());
}

#[test]
fn flushed_it_is_the_same() {
    let broker = Broker::start(&["--sync", "--segment-bytes", "20000"]);
    let mut client = broker.client();
    let all: Vec<_> = (0..10).map(|seed| batch(seed, 1, 3_000)).collect();
    for batch in &all {
        assert_eq!(client.produce("a", batch).0, 0);
    }
    let dir = broker.kill();
    let log = Broker::over(dir, SMALL).client().all("a", 0, 1 << 20);
    let whole = all
        .iter()
        .enumerate()
        .flat_map(|(i, batch)| stored(batch, i as i64));
    assert!(log == whole.collect::<Vec<_>>());
}
