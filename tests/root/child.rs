//! A test body in namespaces of its own, where mounts, loop devices and daemons vanish with it.
//!
//! The test binary runs itself once more for one test alone, as the first process of a PID
//! namespace with a mount namespace: when it ends, in whatever way, the kernel kills what it
//! started and unmounts what it mounted, and a loop device clears itself with its last user. When
//! the test's own process is killed, a parent-death signal ends the child.
// Between fork(2) and execve(2) only bare system calls are safe.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::{Pulse, skipped, within};

const WHICH: &str = "ZCIO_ROOT_TEST";

/// Where a test mounts: a tmpfs in its own namespace lies over it.
pub(crate) const ROOM: &str = "/mnt";

/// Runs the test `name`, which is the caller, in a child process; every step that `body` reports
/// has `seconds`. Skips aloud where not root.
pub(crate) fn alone(name: &'static str, seconds: u64, body: impl FnOnce(&Pulse) + Send + 'static) {
    if is_child(name) {
        let room = run("mount", &["-t", "tmpfs", "-o", "size=2g", "zcio", ROOM]);
        room.expect("a tmpfs in a namespace of our own");
        return within(seconds, body);
    }
    match start(name) {
        Err(reason) => skipped(&format!("root {name}"), reason),
        Ok(child) => {
            let output = child.wait_with_output().expect("the child ends");
            let out = String::from_utf8_lossy(&output.stdout);
            let passed = output.status.success() && out.contains("1 passed");
            assert!(passed, "{name} in its child: {}\n{out}", output.status);
        }
    }
}

pub(crate) fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn is_child(name: &str) -> bool {
    std::env::var(WHICH).is_ok_and(|which| which == name)
}

/// Starts the child; an error says why there can be none here.
fn start(name: &str) -> Result<Child, String> {
    if !is_root() {
        return Err("it needs root".to_owned());
    }
    need("unshare")?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().expect("this very binary"))
        .args([name, "--exact", "--ignored", "--nocapture"])
        .arg("--test-threads=1")
        .env(WHICH, name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // SAFETY: what is called between fork(2) and execve(2) makes one system call.
    unsafe { command.pre_exec(die_with_parent) };
    command.spawn().map_err(|e| format!("unshare: {e}"))
}

/// Should the test's process die, so does unshare(1), and by `--kill-child` its child.
fn die_with_parent() -> io::Result<()> {
    // SAFETY: no pointer is passed.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs a command to its end; an error has what it said.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    let output = command.args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", args.join(" "), said.trim()))
}

/// Whether a program is installed; the error says that it is not.
pub(crate) fn need(program: &str) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(Into::into);
    let mut dirs = std::env::split_paths(&path).chain(sbin);
    let found = dirs.any(|dir| Path::new(&dir).join(program).exists());
    found
        .then_some(())
        .ok_or_else(|| format!("{program} is not installed"))
}
