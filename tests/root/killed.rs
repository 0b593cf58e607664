//! Nothing is left behind, also where the test's process is killed in the midst of it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::child::{alone, is_root};
use super::disk::{Disk, Fs};
use crate::common::skipped;

/// Set where this is the process to be killed, or its child.
const ROLE: &str = "ZCIO_ROOT_TO_BE_KILLED";

const MARK: &str = "mounted: ";

pub(crate) fn killed(name: &'static str) {
    if std::env::var_os(ROLE).is_some() {
        return alone(name, 60, |_| {
            let disks = [Fs::Ext4, Fs::Overlay, Fs::Fuse].map(|fs| Disk::new(fs, "killed", 64));
            let devices: Vec<_> = disks.iter().flatten().map(Disk::device).collect();
            let _ = writeln!(std::io::stderr(), "{MARK}{}", devices.join(" "));
            loop {
                thread::park();
            }
        });
    }
    if !is_root() {
        return skipped("root killed", "it needs root");
    }
    let mut command = Command::new(std::env::current_exe().expect("this very binary"));
    command
        .args([name, "--exact", "--ignored", "--nocapture"])
        .env(ROLE, "1")
        .stderr(Stdio::piped())
        .stdout(Stdio::null());
    let mut process = command.spawn().expect("the test binary starts");
    let said = BufReader::new(process.stderr.take().expect("piped"));
    let mut lines = said.lines().map(|line| line.expect("text"));
    let devices = lines.find_map(|line| Some(line.strip_prefix(MARK)?.to_owned()));
    process.kill().expect("it runs");
    process.wait().expect("it is our child");
    let Some(devices) = devices else {
        return skipped("root killed", "nothing could be mounted");
    };
    assert!(!devices.is_empty(), "some filesystem is to be had");
    // The kernel takes its time, and tells nobody when it is done.
    let start = Instant::now();
    while let Some(left) = what_is_left(&devices) {
        assert!(start.elapsed() < Duration::from_secs(30), "left: {left}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Something that belongs to the killed test: a loop device, a mount, or a process.
fn what_is_left(devices: &str) -> Option<String> {
    let in_use = |device: &&str| {
        // Its image has the name of where it was mounted; another test may have it by now.
        let image = format!("/sys/block/{device}/loop/backing_file");
        fs::read_to_string(image).is_ok_and(|image| image.contains("/killed"))
    };
    if let Some(device) = devices.split(' ').find(in_use) {
        return Some(device.to_owned());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs");
    if let Some(mount) = mounts.lines().find(|line| line.contains("/killed")) {
        return Some(mount.to_owned());
    }
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    let mut commands = processes.filter_map(|process| {
        let path = process.path();
        let command = fs::read(Path::new(&path).join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&command).replace('\0', " "))
    });
    commands.find(|command| command.contains("bindfs") && command.contains("/killed"))
}
