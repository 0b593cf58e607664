"""What `run` leaves to Python: reading cargo's and apt's answers, packing a guest's files, the table.

Each command below is called by `run` only; it says there what for.
"""

import functools
import json
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import textwrap
from pathlib import Path


def fail(text):
    sys.exit(text)


# ---- cargo ---------------------------------------------------------------------------------------


def suite_name(target):
    """The suite that a cargo target makes, or None."""
    kinds = set(target["kind"])
    if "test" in kinds:
        return target["name"]
    if kinds & {"lib", "rlib", "cdylib", "dylib", "staticlib"}:
        return "lib"
    return None


def targets(manifest):
    """Prints the suites of the crate of this manifest; stdin: `cargo metadata --no-deps`."""
    for package in json.load(sys.stdin)["packages"]:
        if os.path.samefile(package["manifest_path"], manifest):
            names = [suite_name(t) for t in package["targets"] if t.get("test", True)]
            names = sorted({n for n in names if n}, key=lambda n: (n != "lib", n))
            for name in names:
                print(name)


def executables(manifest):
    """Prints `suite TAB path` for each test binary built; stdin: cargo's messages."""
    for line in sys.stdin:
        if not line.startswith("{"):
            continue
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact" or not message.get("executable"):
            continue
        if not message["profile"]["test"] or not os.path.samefile(message["manifest_path"], manifest):
            continue
        name = suite_name(message["target"])
        if name:
            print(f"{name}\t{message['executable']}")


def is_static(path):
    """Exit status 0 if no program interpreter is asked for in this ELF file."""
    data = Path(path).read_bytes()
    if data[:5] != b"\x7fELF\x02":
        sys.exit(1)
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    kinds = [struct.unpack_from("<I", data, offset + i * size)[0] for i in range(count)]
    sys.exit(1 if 3 in kinds else 0)


# ---- apt -----------------------------------------------------------------------------------------


def sources(etc, out, *suites):
    """Copies the machine's Debian sources to `out`, with these suites in place of their own."""
    plain_names = {"stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"}
    plain_names |= {s for s in suites if "-" not in s}
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            plain_names.add(line.split("=", 1)[1].strip('"'))
    security = [s for s in suites if s.endswith("-security")]
    plain = [s for s in suites if not s.endswith("-security")]

    def replacement(own, components):
        if "main" not in components:
            return []
        chosen = []
        if any(s in plain_names for s in own):
            chosen += plain
        if any(s.endswith("-security") or s.endswith("/updates") for s in own):
            chosen += security
        return list(dict.fromkeys(chosen))

    etc = Path(etc)
    one_line = [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]
    written = 0
    lines = []
    for file in one_line:
        if not file.is_file():
            continue
        for line in file.read_text().splitlines():
            match = re.match(r"\s*deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
            if match:
                options, uri, suite, components = match.groups()
                for new in replacement([suite], components.split()):
                    lines.append(f"deb {options or ''}{uri} {new} {components.strip()}")
    if lines:
        (Path(out) / "zcio.list").write_text("\n".join(lines) + "\n")
        written += len(lines)
    stanzas = []
    for file in sorted(etc.glob("sources.list.d/*.sources")):
        text = "\n".join(l for l in file.read_text().splitlines() if not l.startswith("#"))
        for stanza in re.split(r"\n\s*\n", text):
            fields = {k.lower(): v for k, v in re.findall(r"(?m)^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza)}
            if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
                continue
            new = replacement(fields.get("suites", "").split(), fields.get("components", "").split())
            if new:
                stanza = re.sub(r"(?mi)^suites:.*(?:\n[ \t].*)*", "Suites: " + " ".join(new), stanza)
                stanza = re.sub(r"(?mi)^types:.*", "Types: deb", stanza)
                stanzas.append(stanza.strip())
    if stanzas:
        (Path(out) / "zcio.sources").write_text("\n\n".join(stanzas) + "\n")
        written += len(stanzas)
    if not written:
        fail("this machine's package sources have no Debian suite")


def records(stream):
    """Debian control stanzas as dictionaries."""
    for stanza in re.split(r"\n\s*\n", stream.read()):
        fields = dict(re.findall(r"(?m)^([\w-]+): (.*)", stanza))
        if fields:
            yield fields


def newest(prefix):
    """Prints `package version` of the newest cloud kernel with this version prefix, of those on stdin."""
    name = re.compile(rf"linux-image-{re.escape(prefix)}(\d+\.)*\d+[^-]*(-[^-]*)?-cloud-amd64")
    found = []
    for fields in records(sys.stdin):
        package = fields["Package"]
        # Not the metapackages, which are called by fewer numbers: linux-image-6.1-cloud-amd64.
        if name.fullmatch(package) and re.match(r"linux-image-\d+\.\d+\.\d", package):
            found.append((fields["Version"], package))

    def compare(a, b):
        if a[0] == b[0]:
            return 0
        return 1 if subprocess.run(["dpkg", "--compare-versions", a[0], "gt", b[0]]).returncode == 0 else -1

    if found:
        version, package = max(found, key=functools.cmp_to_key(compare))
        print(package, version)


def parts():
    """Prints `package=version` of the kernel packages that the one on stdin depends on exactly."""
    for fields in records(sys.stdin):
        for package, version in re.findall(r"(linux-(?:image|binary|modules|base)-\S+) \(= ([^)]+)\)", fields.get("Depends", "")):
            print(f"{package}={version}")
        return


# ---- kernels -------------------------------------------------------------------------------------


def kernel(root):
    """Makes of unpacked kernel packages: `vmlinuz`, `modules`, `release`."""
    root = Path(root)
    images = [p for p in root.rglob("vmlinuz*") if p.is_file() and not p.is_symlink()]
    if len(images) != 1:
        fail(f"{len(images)} files called vmlinuz in it")
    trees = [p for p in root.glob("**/lib/modules/*") if (p / "kernel").is_dir()]
    if len(trees) != 1:
        fail(f"{len(trees)} module trees in it")
    before = list(root.iterdir())
    images[0].rename(root / "vmlinuz.kernel")
    built_in = next(iter(root.rglob("modules.builtin")), None)
    if built_in and built_in.parent != trees[0]:
        built_in.rename(trees[0] / "modules.builtin")
    trees[0].rename(root / "modules")
    for path in before:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    (root / "vmlinuz.kernel").rename(root / "vmlinuz")
    (root / "release").write_text(trees[0].name + "\n")


def module_bytes(path):
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return data


def module_closure(tree, wanted):
    """The files of the wanted modules and of what they need, in the order to load them; and what is not there."""
    def plain(name):
        return name.split(".ko")[0].replace("-", "_")

    files = {plain(p.name): p for p in tree.glob("kernel/**/*.ko*")}
    built_in = set()
    if (tree / "modules.builtin").is_file():
        built_in = {plain(os.path.basename(l.strip())) for l in (tree / "modules.builtin").open()}
    order, missing = {}, []

    def visit(name, needed, trail):
        name = plain(name)
        if name in order or name in built_in or name in trail:
            return
        if name not in files:
            if needed:
                missing.append(name)
            return
        data = module_bytes(files[name])
        info = data.decode("latin-1")
        for depends in re.findall(r"(?<=\0)depends=([^\0]*)\0", info):
            for other in filter(None, depends.split(",")):
                visit(other, True, trail | {name})
        # Named by the module as useful to have first, under a name or an alias; an alias is no file.
        for softdep in re.findall(r"(?<=\0)softdep=pre: ([^\0]*)\0", info):
            for other in softdep.split():
                for candidate in (other, other + "_generic"):
                    visit(candidate, False, trail | {name})
        order[name] = data

    for name in wanted:
        visit(name, True, frozenset())
    return order, missing


# ---- a guest's files -----------------------------------------------------------------------------


class Cpio:
    """Writes the one format of archive that a kernel unpacks at its start (cpio, newc)."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.inode = 0
        self.made = set()

    def entry(self, name, mode, data=b""):
        self.inode += 1
        raw = name.encode() + b"\0"
        fields = [self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0]
        self.file.write(b"070701" + b"".join(b"%08X" % f for f in fields) + raw)
        self.pad()
        self.file.write(data)
        self.pad()

    def pad(self):
        self.file.write(b"\0" * (-self.file.tell() % 4))

    def directory(self, name):
        name = name.strip("/")
        if not name or name in self.made:
            return
        self.directory(os.path.dirname(name))
        self.made.add(name)
        self.entry(name, stat.S_IFDIR | 0o755)

    def add(self, name, data, mode=0o644):
        name = name.strip("/")
        self.directory(os.path.dirname(name))
        self.entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name, target):
        name = name.strip("/")
        self.directory(os.path.dirname(name))
        self.entry(name, stat.S_IFLNK | 0o777, target.encode())

    def close(self):
        self.entry("TRAILER!!!", 0)
        self.file.close()


def base(out, busybox, here, suites, root, *tools):
    """What every guest gets: busybox, the first process, the suites, the crate's sources, tools."""
    here = Path(here)
    cpio = Cpio(out)
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "zcio/modules.d", "zcio/on-demand"):
        cpio.directory(name)
    cpio.add("bin/busybox", Path(busybox).read_bytes(), 0o755)
    cpio.symlink("bin/sh", "busybox")
    cpio.add("init", (here / "init").read_bytes(), 0o755)
    for name in ("run-suites", "modprobe"):
        cpio.add(f"zcio/{name}", (here / name).read_bytes(), 0o755)
    cpio.add("zcio/root", (root + "\n").encode())
    cpio.add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    cpio.add("etc/group", b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
    cpio.add("etc/hosts", b"127.0.0.1 localhost\n")
    for path in sorted(Path(suites).iterdir()):
        cpio.add(f"zcio/suites/{path.name}", path.read_bytes(), 0o755)
    libraries = set()
    for tool in tools:
        found = shutil.which(tool)
        if not found:
            continue
        cpio.add(f"usr/sbin/{tool}", Path(found).read_bytes(), 0o755)
        needed = subprocess.run(["ldd", found], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        libraries |= set(re.findall(r"(/\S+) \(0x", needed))
    for library in sorted(libraries):
        cpio.add(library, Path(library).read_bytes(), 0o755)
    # Tests may read the crate's own files; `init` puts them where the crate is on this machine.
    cpio.directory("zcio/tree")
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            f for f in folders
            if not f.startswith(".") and f != "target" and not os.path.exists(os.path.join(folder, f, "CACHEDIR.TAG"))
        )
        for file in sorted(files):
            path = Path(folder) / file
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= 1 << 20:
                cpio.add(f"zcio/tree/{path.relative_to(root)}", path.read_bytes(), path.stat().st_mode & 0o777)
    cpio.close()


def kernel_part(out, home, plan, *modules):
    """What one kernel's guest gets besides: its modules, at the start -- on demand, and its plan."""
    tree = Path(home) / "modules"
    at = modules.index("--")
    order, missing = module_closure(tree, modules[:at])
    files = dict(order)
    cpio = Cpio(out)
    for wanted in modules[at + 1:]:
        needed, not_there = module_closure(tree, [wanted])
        missing += not_there
        if wanted in needed:
            files.update(needed)
            cpio.add(f"zcio/on-demand/{wanted}", "".join(f"{n}.ko\n" for n in needed).encode())
    for name, data in files.items():
        cpio.add(f"zcio/modules.d/{name}.ko", data)
    cpio.add("zcio/modules", "".join(f"{n}.ko\n" for n in order).encode())
    cpio.add("zcio/modules.missing", "".join(f"{n}\n" for n in missing).encode())
    cpio.add("zcio/plan", Path(plan).read_bytes())
    cpio.close()


# ---- results -------------------------------------------------------------------------------------


def console(kernel_name):
    """Prints what a console says in our words as lines for the table; stdin: the console."""
    text = sys.stdin.buffer.read().decode("utf-8", "replace").replace("\r", "")
    for line in text.splitlines():
        at = line.find("@zcio ")
        if at >= 0:
            words = line[at + 6:].replace("\t", " ").strip()
            print(f"{kernel_name}\tline\t{words}")
    for cause in re.findall(r"Kernel panic[^\n]*|^qemu-system[^\n]*", text, re.MULTILINE)[:1]:
        print(f"{kernel_name}\tstopped\t{cause}")


def plural(n, what):
    return f"{n} {what}" + ("" if n == 1 else "s")


def table(results, allow_missing, logs, count, *names):
    """Prints the table. Exit status 1 if something failed or could not be run."""
    suites, kernels = list(names[: int(count)]), list(names[int(count):])
    facts = {k: {"cells": {}, "planned": [], "begun": set(), "stopped": "", "missing": "", "release": "", "tmp": "?",
                 "wall": 0.0, "boot": "", "done": False} for k in kernels}
    notes, rules, failures = {}, {}, []
    passed = failed = skipped = 0

    for line in Path(results).read_text().splitlines():
        name, what, *rest = line.split("\t")
        fact = facts[name]
        if what in ("stopped", "missing", "release"):
            fact[what] = fact[what] or rest[0]
        elif what == "planned":
            fact["planned"].append(rest[0])
        elif what == "wall":
            fact["wall"] = float(rest[1]) - float(rest[0])
        elif what == "rule":
            rules.setdefault((rest[0], rest[1]), []).append(name)
        elif what == "line":
            word, _, text = rest[0].partition(" ")
            fields = dict(w.split("=", 1) for w in text.split() if "=" in w)
            suite = text.split()[0] if text else ""
            if word == "BOOT":
                fact["boot"] = suite
            elif word == "START":
                fact["begun"].add(suite)
            elif word == "DONE":
                fact["done"] = True
            elif word == "STOPPED":
                fact["stopped"] = fact["stopped"] or text
            elif word == "TMP":
                fact["tmp"] = suite
                if suite == "tmpfs" and text != suite:
                    notes.setdefault("temporary files are on tmpfs: " + text.split(" ", 1)[1], []).append(name)
            elif word == "NOTE":
                where, _, reason = text.partition(" ")
                notes.setdefault(reason if where == "-" else f"{where}: {reason}", []).append(name)
            elif word == "SKIPPED":
                fact["cells"][suite] = ("skipped", "skipped: " + text.split(" ", 1)[1])
            elif word == "RAN":
                n = {k: int(v) for k, v in fields.items() if v.isdigit()}
                if n.get("results") and not any(n[k] for k in ("passed", "ignored", "filtered")):
                    fact["cells"][suite] = ("skipped", "skipped: no tests in it")
                    continue
                if n.get("results") and n["passed"] == 0 and n["filtered"] == 0:
                    fact["cells"][suite] = ("skipped", f"skipped: {n['ignored']} ignored")
                    continue
                if n.get("results"):
                    more = [f"{n[k]} {w}" for k, w in (("ignored", "ignored"), ("filtered", "left out"), ("noted", "SKIPPED inside")) if n.get(k)]
                    cell = f"ran ({', '.join([str(n['passed']) + ' passed', *more])})"
                else:
                    cell = "ran (exit 0)"
                fact["cells"][suite] = ("passed", cell)
            elif word == "FAILED":
                bad = [t for t in fields.get("names", "").split(",") if t]
                why = fields.get("why", "").replace("_", " ")
                shown = ", ".join(bad[:2]) + (f", {len(bad) - 2} more" if len(bad) > 2 else "")
                if why != "tests":
                    shown = why + (f": {shown}" if shown else "")
                fact["cells"][suite] = ("failed", f"FAILED ({shown})")
                failures.append((suite, name, why, fields.get("passed", "?"), bad))

    bad_kernels = []
    for name in kernels:
        fact = facts[name]
        if fact["missing"]:
            for suite in suites:
                fact["cells"][suite] = ("skipped", "skipped: no package")
            if allow_missing != "yes":
                bad_kernels.append(name)
            continue
        if name != "host" and not fact["done"] and not fact["stopped"]:
            fact["stopped"] = "powered off before its end"
        for suite in fact["planned"]:
            if suite not in fact["cells"]:
                fact["cells"][suite] = ("failed", "FAILED (did not end)" if suite in fact["begun"] else "FAILED (not reached)")
        if fact["stopped"]:
            bad_kernels.append(name)

    head = ["suite"] + [(f"{facts[k]['release'] or k}" + (" (this machine)" if k == "host" else "")) for k in kernels]
    rows = []
    for suite in suites:
        row = [suite]
        for name in kernels:
            state, cell = facts[name]["cells"].get(suite, ("skipped", "skipped: no plan"))
            passed += state == "passed"
            failed += state == "failed"
            skipped += state == "skipped"
            row.append(cell)
        rows.append(row)
    rows.append(["(files on)"] + ["" if facts[k]["missing"] else facts[k]["tmp"] for k in kernels])
    rows.append(["(seconds)"] + [
        "" if facts[k]["missing"] else f"{facts[k]['wall']:.0f}" + (f", boot {facts[k]['boot']}" if facts[k]["boot"] else "")
        for k in kernels
    ])
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    print()
    for i, row in enumerate([head, *rows]):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print()

    def say(text):
        print(textwrap.fill(text, 110, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))

    for suite, name, why, before, bad in failures:
        tests = ", ".join(bad) if bad else "no test is named"
        say(f"FAILED: {suite} on {name}{'' if why == 'tests' else ', ' + why}: {tests} ({before} passed); see {logs}/{name}.log")
    for name in kernels:
        fact = facts[name]
        if fact["missing"]:
            say(f"{name} skipped: {fact['missing']}")
        elif fact["stopped"]:
            say(f"{name} could not be run to its end: {fact['stopped']}; see {logs}/{name}.log")
    for (suite, why), where in rules.items():
        say(f"left out of {suite} on {', '.join(where)}: {why}")
    for text, where in notes.items():
        say(f"note on {', '.join(dict.fromkeys(where))}: {text}")
    print(f"suites: {passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed or bad_kernels or not passed else 0)


COMMANDS = {
    "targets": targets, "executables": executables, "is-static": is_static, "sources": sources, "newest": newest,
    "parts": parts, "kernel": kernel, "base": base, "kernel-part": kernel_part, "console": console, "table": table,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
