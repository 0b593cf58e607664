//! The matrix in `docs/backends.md` against the probe's answers on real descriptors. With
//! `ZCIO_BLESS=1` in the environment, the page is written anew.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::{env, fs, io};

use common::{make, skipped, within};
use nix::fcntl::OFlag;
use zcio::{Backend, Consistency, Probe, TransferOptions, Unfit};

const SOURCES: [&str; 9] = [
    "file",
    "file below 256 KiB",
    "file with O_DIRECT",
    "generated file",
    "block device",
    "character device",
    "pipe",
    "TCP",
    "UNIX stream",
];

const DESTINATIONS: [&str; 11] = [
    "file, same filesystem",
    "file, same filesystem that shares extents",
    "file, other filesystem",
    "file with O_APPEND",
    "file with O_DIRECT",
    "generated file",
    "block device",
    "character device",
    "pipe",
    "TCP",
    "UNIX stream",
];

/// What stands in one cell: the candidates in order, and why each of the others is not among them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cell {
    candidates: Vec<Backend>,
    refused: Vec<(Backend, String)>,
}

type Matrix = BTreeMap<(usize, usize), Cell>;

fn letter(backend: Backend) -> char {
    match backend {
        Backend::Reflink => 'R',
        Backend::CopyFileRange => 'C',
        Backend::Sendfile => 'S',
        Backend::Splice => 'P',
        Backend::Mmap => 'M',
        Backend::Direct => 'D',
        Backend::ReadWrite => 'W',
        other => panic!("{other} has no letter"),
    }
}

fn by_letter(name: char) -> Option<Backend> {
    Backend::ALL
        .into_iter()
        .find(|backend| letter(*backend) == name)
}

// --- from the code ----------------------------------------------------------------------------

/// A file on a filesystem that cannot share extents.
fn plain_file() -> File {
    let disk = make::disk_file();
    match make::may_share_extents(&disk) {
        true => make::memfd(),
        false => disk,
    }
}

/// One on another filesystem than [`plain_file`]'s.
fn other_file() -> io::Result<File> {
    match make::is_tmpfs(plain_file()) {
        false => Ok(make::memfd()),
        true if make::is_tmpfs(make::disk_file()) => {
            Err(io::Error::other("all files are on tmpfs"))
        }
        true => Ok(make::disk_file()),
    }
}

fn block_device() -> io::Result<File> {
    let backing = make::disk_file();
    backing.set_len(1 << 20)?;
    make::loop_device(&backing)
}

/// Both descriptors of a pair, and what has to stay open behind them.
fn pair(source: &str, destination: &str) -> io::Result<(OwnedFd, OwnedFd, Vec<OwnedFd>)> {
    let base = || match destination {
        "file, same filesystem that shares extents" => make::overlay_file(),
        _ => Ok(plain_file()),
    };
    let mut behind = Vec::new();
    let src = match source {
        "file" => {
            let file = base()?;
            file.set_len(1 << 20)?;
            file.into()
        }
        "file below 256 KiB" => base()?.into(),
        "file with O_DIRECT" => make::reopen(base()?, OFlag::O_RDWR | OFlag::O_DIRECT)?,
        "generated file" => make::open("/proc/version", libc::O_RDONLY)?,
        "block device" => block_device()?.into(),
        "character device" => make::open("/dev/zero", libc::O_RDONLY)?,
        "pipe" => keep(make::pipe(), &mut behind),
        "TCP" => keep(make::tcp(), &mut behind),
        "UNIX stream" => keep(make::unix(), &mut behind),
        other => panic!("{other}"),
    };
    let dst = match destination {
        "file, same filesystem" => plain_file().into(),
        // Files of two mounts of overlay are akin as far as the facts tell.
        "file, same filesystem that shares extents" => make::overlay_file()?.into(),
        "file, other filesystem" => other_file()?.into(),
        "file with O_APPEND" => make::reopen(plain_file(), OFlag::O_RDWR | OFlag::O_APPEND)?,
        "file with O_DIRECT" => make::reopen(plain_file(), OFlag::O_RDWR | OFlag::O_DIRECT)?,
        "generated file" => make::open("/proc/self/comm", libc::O_WRONLY)?,
        "block device" => block_device()?.into(),
        "character device" => make::open("/dev/null", libc::O_WRONLY)?,
        "pipe" => {
            let (reader, writer) = make::pipe();
            keep((writer, reader), &mut behind)
        }
        "TCP" => keep(make::tcp(), &mut behind),
        "UNIX stream" => keep(make::unix(), &mut behind),
        other => panic!("{other}"),
    };
    Ok((src, dst, behind))
}

fn keep<F: Into<OwnedFd>>((end, other): (F, F), behind: &mut Vec<OwnedFd>) -> OwnedFd {
    behind.push(other.into());
    end.into()
}

/// A reason as the page gives it: the kind itself is in the row or the column.
fn reason(unfit: Unfit) -> String {
    match unfit {
        Unfit::Kind(side, _) => format!("not with a {side} of this kind"),
        other => other.to_string(),
    }
}

fn cell(probe: &Probe) -> Cell {
    let refused = Backend::ALL
        .into_iter()
        .filter_map(|backend| Some((backend, reason(probe.verdict(backend).err()?))));
    Cell {
        candidates: probe.candidates().collect(),
        refused: refused.collect(),
    }
}

/// The cells that can be had here; the others are said aloud.
fn from_the_code() -> Matrix {
    let (mut matrix, mut missing) = (Matrix::new(), BTreeMap::<String, Vec<String>>::new());
    for (row, source) in SOURCES.into_iter().enumerate() {
        for (column, destination) in DESTINATIONS.into_iter().enumerate() {
            match pair(source, destination) {
                Ok((src, dst, _behind)) => {
                    let probe = Probe::new(&src, &dst).unwrap();
                    matrix.insert((row, column), cell(&probe));
                    snapshot(&src, &dst, &probe);
                }
                Err(e) => {
                    let cells = missing.entry(e.to_string()).or_default();
                    cells.push(format!("{source} to {destination}"));
                }
            }
        }
    }
    for (reason, cells) in missing {
        skipped(&format!("of the matrix: {}", cells.join("; ")), reason);
    }
    matrix
}

/// What the page says of `Consistency::Snapshot`: sendfile and splice are left out where pages
/// travel, and nothing else changes.
fn snapshot(src: &OwnedFd, dst: &OwnedFd, aliased: &Probe) {
    use zcio::backend::Kind::{BlockDevice, File, Pipe, Tcp, Unix};
    let mut options = TransferOptions::new();
    let probe = options
        .consistency(Consistency::Snapshot)
        .probe(src, dst)
        .unwrap();
    let travels = matches!(probe.src().kind(), File | BlockDevice)
        && matches!(probe.dst().kind(), Pipe | Tcp | Unix);
    let expected: Vec<Backend> = aliased
        .candidates()
        .filter(|b| !travels || !matches!(b, Backend::Sendfile | Backend::Splice))
        .collect();
    assert_eq!(probe.candidates().collect::<Vec<_>>(), expected, "{probe}");
}

// --- from and to the page -----------------------------------------------------------------------

const BEGIN: &str =
    "<!-- matrix: begin (written by ZCIO_BLESS=1 cargo test --test backends_page) -->\n";
const END: &str = "<!-- matrix: end -->\n";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/backends.md")
}

fn render(matrix: &Matrix) -> String {
    let mut reasons: Vec<&str> = Vec::new();
    let mut table = String::from("| from \\ to |");
    for destination in DESTINATIONS {
        write!(table, " {destination} |").unwrap();
    }
    write!(table, "\n|---|{}\n", "---|".repeat(DESTINATIONS.len())).unwrap();
    for (row, source) in SOURCES.into_iter().enumerate() {
        write!(table, "| {source} |").unwrap();
        for column in 0..DESTINATIONS.len() {
            let cell = matrix.get(&(row, column));
            let Some(cell) = cell.filter(|cell| !cell.candidates.is_empty()) else {
                table.push_str(" none |");
                continue;
            };
            let order: Vec<String> = cell
                .candidates
                .iter()
                .map(|b| letter(*b).to_string())
                .collect();
            let mut left_out = Vec::new();
            for (backend, reason) in &cell.refused {
                let known = reasons.iter().position(|r| r == reason);
                let number = known.unwrap_or_else(|| {
                    reasons.push(reason);
                    reasons.len() - 1
                });
                left_out.push(format!("{}{}", letter(*backend), number + 1));
            }
            write!(table, " **{}** ({}) |", order.join(" "), left_out.join(" ")).unwrap();
        }
        table.push('\n');
    }
    table.push('\n');
    for (index, reason) in reasons.iter().enumerate() {
        writeln!(table, "{}. {reason}", index + 1).unwrap();
    }
    table
}

/// The matrix as the page has it; what cannot be read is missing.
fn parse(text: &str) -> Matrix {
    let reasons: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(". "))
        .collect();
    let rows = text.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut matrix = Matrix::new();
    for (row, line) in rows.enumerate() {
        for (column, text) in line.split('|').skip(2).enumerate() {
            let Some((order, left_out)) = text.trim().split_once(" (") else {
                continue;
            };
            let candidates = order.chars().filter_map(by_letter).collect();
            let refused = left_out
                .trim_end_matches(')')
                .split_whitespace()
                .filter_map(|code| {
                    let backend = by_letter(code.chars().next()?)?;
                    Some((backend, (*reasons.get(&code[1..])?).to_owned()))
                });
            let refused = refused.collect();
            matrix.insert(
                (row, column),
                Cell {
                    candidates,
                    refused,
                },
            );
        }
    }
    matrix
}

#[test]
fn the_page_is_what_the_probe_says() {
    within(30, |_| {
        let page = fs::read_to_string(path()).unwrap();
        let (head, rest) = page.split_once(BEGIN).expect("the page has its marks");
        let (old, tail) = rest.split_once(END).expect("the page has its marks");
        let here = from_the_code();
        // What cannot be had on this machine stays as the page has it.
        let mut matrix = parse(old);
        matrix.extend(here.clone());
        let new = render(&matrix);
        if env::var_os("ZCIO_BLESS").is_some() {
            let all = SOURCES.len() * DESTINATIONS.len();
            assert_eq!(
                here.len(),
                all,
                "bless where every kind of descriptor can be had"
            );
            fs::write(path(), [head, BEGIN, &new, END, tail].concat()).unwrap();
            return;
        }
        assert!(
            old == new,
            "docs/backends.md differs; ZCIO_BLESS=1 writes it. It should have:\n{new}"
        );
    });
}

#[test]
fn what_is_rendered_is_read_back() {
    let mut matrix = Matrix::new();
    for row in 0..SOURCES.len() {
        for column in 0..DESTINATIONS.len() {
            let candidates = vec![Backend::Splice, Backend::ReadWrite];
            let mut refused = vec![(Backend::Mmap, format!("for a reason ({row})"))];
            refused.extend((column > 3).then(|| (Backend::Direct, "another".to_owned())));
            matrix.insert(
                (row, column),
                Cell {
                    candidates,
                    refused,
                },
            );
        }
    }
    assert_eq!(parse(&render(&matrix)), matrix);
}
