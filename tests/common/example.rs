//! The examples as child processes.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

/// An example, beside this test. Cargo builds it along with all tests, but not for one alone.
pub fn example(name: &str) -> PathBuf {
    // One build at a time, and none for what another test of this process has had built.
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let test = std::env::current_exe().expect("a path");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps");
    let mut done = BUILT
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(cargo) = std::env::var_os("CARGO").filter(|_| !done.iter().any(|n| n == name)) {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--all-features", "--example", name]);
        build.args(profile.ends_with("release").then_some("--release"));
        build
            .arg("--target-dir")
            .arg(profile.parent().expect("target"));
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(built.expect("cargo").success());
        done.push(name.to_owned());
    }
    profile.join("examples").join(name)
}
