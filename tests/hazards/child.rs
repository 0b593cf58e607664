//! Test bodies that need a process of their own: the test binary runs itself once more, for one
//! test alone.
// Namespaces are entered between fork(2) and execve(2), where only bare system calls are safe.
#![allow(unsafe_code, dead_code, unreachable_pub)]

use std::ffi::CString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};

use crate::common::skipped;

const WHICH: &str = "ZCIO_TEST_CHILD";
const MOUNT: &str = "ZCIO_TEST_MOUNT";

/// Runs `body` in a child process. `name` is the path of the test that calls this.
pub fn alone(name: &str, body: impl FnOnce()) {
    if is_child(name) {
        return body();
    }
    let output = command(name).output().expect("the test binary starts");
    check(name, &output);
}

/// Runs `body` in a child process that may come to any end; `None` in that process itself.
pub fn outcome(name: &str, body: impl FnOnce()) -> Option<ExitStatus> {
    if is_child(name) {
        body();
        return None;
    }
    let output = command(name).output().expect("the test binary starts");
    Some(output.status)
}

/// The same with a tmpfs of its own mounted, of `bytes`, in a namespace of its own. Skips aloud
/// where that is refused.
pub fn on_small_tmpfs(name: &str, bytes: u64, body: impl FnOnce(&Path)) {
    if is_child(name) {
        return body(&PathBuf::from(std::env::var_os(MOUNT).expect("set below")));
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let target = CString::new(dir.path().as_os_str().as_bytes()).expect("a plain path");
    let options = CString::new(format!("size={bytes},mode=0700")).expect("plain text");
    let namespace = Namespace::new();
    let mut command = command(name);
    // Temporary files go there as well.
    command.env(MOUNT, dir.path()).env("TMPDIR", dir.path());
    // SAFETY: the closure makes system calls on memory that was prepared before, nothing else.
    unsafe {
        command.pre_exec(move || {
            namespace.enter()?;
            mount_tmpfs(&target, &options)
        })
    };
    match command.output() {
        Ok(output) => check(name, &output),
        Err(e) => skipped(name, format!("no tmpfs in a namespace of our own: {e}")),
    }
}

fn is_child(name: &str) -> bool {
    std::env::var(WHICH).is_ok_and(|which| which == name)
}

fn command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this very binary"));
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(WHICH, name);
    command
}

fn check(name: &str, output: &Output) {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    for line in err.lines().filter(|line| line.starts_with("SKIPPED")) {
        let _ = writeln!(io::stderr(), "{line}");
    }
    let passed = output.status.success() && out.contains("1 passed");
    assert!(
        passed,
        "{name} in a process of its own: {}\n{out}{err}",
        output.status
    );
    print!("{out}");
}

/// A mount namespace, and for all but root a user namespace around it.
struct Namespace {
    flags: libc::c_int,
    uid_map: String,
    gid_map: String,
}

impl Namespace {
    fn new() -> Self {
        // SAFETY: takes nothing and cannot fail.
        let uid = unsafe { libc::geteuid() };
        // SAFETY: as above.
        let gid = unsafe { libc::getegid() };
        let user = if uid == 0 { 0 } else { libc::CLONE_NEWUSER };
        Self {
            flags: libc::CLONE_NEWNS | user,
            uid_map: format!("0 {uid} 1"),
            gid_map: format!("0 {gid} 1"),
        }
    }

    fn enter(&self) -> io::Result<()> {
        // SAFETY: no pointer is passed.
        done(unsafe { libc::unshare(self.flags) })?;
        if self.flags & libc::CLONE_NEWUSER != 0 {
            write_all(c"/proc/self/setgroups", "deny")?;
            write_all(c"/proc/self/uid_map", &self.uid_map)?;
            write_all(c"/proc/self/gid_map", &self.gid_map)?;
        }
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        mount(c"none", c"/", c"", flags, c"")
    }
}

fn mount_tmpfs(target: &CString, options: &CString) -> io::Result<()> {
    mount(c"zcio-test", target, c"tmpfs", 0, options)
}

fn mount(
    what: &std::ffi::CStr,
    target: &std::ffi::CStr,
    kind: &std::ffi::CStr,
    flags: libc::c_ulong,
    options: &std::ffi::CStr,
) -> io::Result<()> {
    // SAFETY: all four are C strings that outlive the call.
    done(unsafe {
        libc::mount(
            what.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    })
}

fn write_all(path: &std::ffi::CStr, text: &str) -> io::Result<()> {
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    done(fd)?;
    // SAFETY: `text` is readable for its whole length.
    let written = unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
    // SAFETY: `fd` was opened above and is not used again.
    unsafe { libc::close(fd) };
    if written == text.len() as isize {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
