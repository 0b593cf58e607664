//! Copying a file: a process that copies by `transfer` against `cp` and against one that copies by
//! `std::fs::copy`, on the filesystem of the build directory. Counted are the processor time of the
//! copying process, that of the whole machine until the copy is on the disk (fsync), and the time
//! until then. And, as root, what sharing 10 GiB costs beside sharing 10 MiB, on an XFS in a file.
//!
//! `cargo bench --bench file_copy -- [--quick] [--rounds N] [--json FILE] [FILTER...]`

mod support;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::time::Instant;
use std::{env, path};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::sync;
use serde_json::json;
use support::{Cost, GIB, MIB, Way, clock, fill, judge, ratio, size, take_turns};
use zcio::{Reflink, TransferOptions};

const WAY: &str = "ZCIO_BENCH_COPY";

fn main() -> io::Result<()> {
    if let Ok(way) = env::var(WAY) {
        let [src, dst] = [1, 2].map(|at| PathBuf::from(env::args_os().nth(at).unwrap_or_default()));
        match way.as_str() {
            "std" => drop(fs::copy(&src, &dst)?),
            _ => drop(zcio::transfer(
                File::open(&src)?,
                File::create(&dst)?,
                u64::MAX,
            )?),
        }
        exit(0);
    }
    let args = support::begin();
    println!("{}", support::machine());
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let sizes = if args.quick {
        &[4 * MIB][..]
    } else {
        &[256 * MIB, GIB][..]
    };
    let mut rows = Vec::new();
    for &bytes in sizes {
        let name = format!("copying a file of {}", size(bytes));
        if args.wants(&name) {
            let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
            fill(&mut File::create(&src)?, bytes);
            rows.extend(copies(&name, bytes, args.rounds(15), &src, &dst)?);
            args.write(&rows);
        }
    }
    let name = "sharing a file's extents on XFS";
    if args.wants(name) && !args.quick {
        match shared(dir.path(), args.rounds(15)) {
            Ok(row) => rows.push(row),
            Err(e) => println!("\nSKIPPED {name}: {e}"),
        }
    }
    args.write(&rows);
    Ok(())
}

/// The copying process's own cost, and that until the copy is on the disk.
type Costs = (Vec<Cost>, Vec<Cost>);

fn copies(
    name: &str,
    bytes: u64,
    rounds: usize,
    src: &Path,
    dst: &Path,
) -> io::Result<Vec<serde_json::Value>> {
    let own = |way: &str| {
        let mut command = Command::new("/proc/self/exe");
        command.env(WAY, way);
        command
    };
    let names = ["zcio", "cp", "std::fs::copy"];
    let commands = [own("zcio"), Command::new("cp"), own("std")];
    let to_disk: Vec<Costs> = names.iter().map(|_| Costs::default()).collect();
    let mut own: Vec<Way<(Command, Costs)>> = names
        .iter()
        .zip(commands.into_iter().zip(to_disk))
        .map(|(name, (mut command, costs))| {
            command.args([src, dst]);
            Way::new(*name, (command, costs))
        })
        .collect();
    take_turns(&mut own, rounds, |(command, costs)| {
        let (process, machine) = copy_once(command, dst, bytes).expect("a copy");
        costs.1.push(machine);
        process
    });
    let mut machine: Vec<Way<()>> = Vec::new();
    for way in &mut own {
        let mut costs = std::mem::take(&mut way.work.1.1);
        // The round that warmed up.
        costs.remove(0);
        machine.push(Way {
            name: way.name.clone(),
            work: (),
            costs,
        });
    }
    let bounds = [("cp", 0.70), ("std::fs::copy", 0.70)];
    let mut rows = vec![judge(&format!("{name}, the process"), bytes, &own, &bounds)];
    let name = format!("{name}, the machine until fsync");
    let mut row = judge(&name, bytes, &machine, &bounds);
    for way in &machine[1..] {
        let time = ratio(&machine[0].costs, &way.costs, |c| c.time);
        let verdict = if time.low <= 0.90 {
            "holds"
        } else {
            "FALLS SHORT"
        };
        println!(
            "  time until fsync against {}: {time}, at most 0.90 {verdict}",
            way.name
        );
    }
    row["time_at_most"] = json!(0.90);
    rows.push(row);
    Ok(rows)
}

fn copy_once(command: &mut Command, dst: &Path, bytes: u64) -> io::Result<(Cost, Cost)> {
    let _ = fs::remove_file(dst);
    sync();
    // Much more than is wanted: what is free goes to the host all the time, a part every two seconds,
    // and the large pieces first.
    clock::touch((6 * bytes).max(4 * GIB));
    let spent =
        || children().map(|usage| seconds(usage.user_time()) + seconds(usage.system_time()));
    let (start, before, machine) = (Instant::now(), spent()?, clock::machine());
    let status = command.status()?;
    let (time, cpu) = (start.elapsed().as_secs_f64(), spent()? - before);
    let copy = OpenOptions::new().write(true).open(dst)?;
    copy.sync_all()?;
    let to_disk = Cost {
        cpu: clock::machine() - machine,
        time: start.elapsed().as_secs_f64(),
    };
    assert!(status.success(), "{status}");
    assert_eq!(copy.metadata()?.len(), bytes, "in the copy");
    Ok((Cost { cpu, time }, to_disk))
}

fn children() -> io::Result<Usage> {
    Ok(getrusage(UsageWho::RUSAGE_CHILDREN)?)
}

fn seconds(time: TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

/// What sharing 10 GiB takes beside sharing 10 MiB, by the clock: nothing is copied.
fn shared(dir: &Path, rounds: usize) -> io::Result<serde_json::Value> {
    let xfs = Xfs::mount(dir)?;
    let sizes = [10 * MIB, 10 * GIB];
    let mut ways = Vec::new();
    for bytes in sizes {
        let src = xfs.0.join(format!("{bytes}"));
        fill(&mut File::create(&src)?, bytes);
        ways.push(Way::new(size(bytes), src));
    }
    let dst = xfs.0.join("copy");
    take_turns(&mut ways, rounds, |src| {
        let _ = fs::remove_file(&dst);
        sync();
        let src = File::open(src).expect("the source");
        let copy = File::create(&dst).expect("the copy");
        let (cost, report) = Cost::of(|| {
            TransferOptions::new()
                .reflink(Reflink::Always)
                .transfer(&src, &copy, u64::MAX)
        });
        let report = report.expect("XFS shares");
        let len = src.metadata().expect("its size").len();
        assert_eq!(report.bytes, len, "{report:?}");
        cost
    });
    let cost = ratio(&ways[1].costs, &ways[0].costs, |c| c.time);
    println!(
        "\nsharing on XFS: {} to {} takes {cost} times as long, at most 2",
        size(sizes[1]),
        size(sizes[0])
    );
    let median = |way: &Way<PathBuf>| support::median(&way.costs, |c| c.time) * 1e6;
    Ok(json!({
        "name": "sharing a file's extents on XFS",
        "rounds": rounds,
        "microseconds": [median(&ways[0]), median(&ways[1])],
        "time_ratio": cost.json(),
        "at_most": 2,
    }))
}

/// A filesystem in a file, unmounted when dropped.
struct Xfs(PathBuf);

impl Xfs {
    fn mount(dir: &Path) -> io::Result<Self> {
        let (image, point) = (dir.join("xfs"), dir.join("mounted"));
        File::create(&image)?.set_len(12 * GIB)?;
        fs::create_dir(&point)?;
        let run = |program: &str, args: &[&path::Path]| {
            let output = Command::new(program).args(args).output()?;
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            output
                .status
                .success()
                .then_some(())
                .ok_or_else(|| io::Error::other(text))
        };
        run("mkfs.xfs", &[&image])?;
        run("mount", &[Path::new("-oloop"), &image, &point])?;
        Ok(Self(point))
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
