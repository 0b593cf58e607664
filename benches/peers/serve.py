#!/usr/bin/env python3
"""The example `serve` against nginx with `sendfile on`, one thread and one worker on the same processor,
the clients on another: processor time for a large file, whose receiver discards it, and requests per
second for a small one under `wrk -c 64`.

    cargo build --release --features tokio --examples
    benches/peers/serve.py [--rounds 15] [--mib 1024] [--seconds 2] [--congestion cubic]
                          [large] [small]

Needs nginx and wrk in the path.
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile

import common

# As a packager leaves it, except that nothing is logged and no connection is ended early: the first
# server with `sendfile on` alone, the second with what is often set beside it.
NGINX = """
user root;
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    root {root};
    server {{ listen 127.0.0.1:{plain}; }}
    server {{ listen 127.0.0.1:{nopush}; tcp_nopush on; }}
}}
"""
SMALL = 4096


def nginx(processes, root, cpu, directory):
    """Starts nginx; its worker's process id and the ports of its two servers."""
    plain, nopush = common.free_port(), common.free_port()
    config = os.path.join(directory, "nginx.conf")
    with open(config, "w") as file:
        file.write(NGINX.format(root=root, directory=directory, plain=plain, nopush=nopush))
    child = processes.start(["nginx", "-p", directory, "-c", config], cpu)
    common.await_port(plain)
    with open(f"/proc/{child.pid}/task/{child.pid}/children") as children:
        return int(children.read()), plain, nopush


def fill(path, count):
    """A file of so many bytes, on the disk and in the page cache."""
    block = os.urandom(1 << 20)
    with open(path, "wb") as file:
        for at in range(0, count, len(block)):
            file.write(block[: count - at])
        os.fsync(file.fileno())
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def get(port, name, count):
    """Asks for a file of so many bytes and discards it."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        request = f"GET /{name} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        total = common.discard(connection)
    if not count < total < count + 1024:
        sys.exit(f"port {port}: {total} bytes came for {count}")


def wrk(port, name, seconds, cpu):
    """How many requests were answered."""
    argv = ["wrk", "-t1", "-c64", f"-d{seconds}s", f"http://127.0.0.1:{port}/{name}"]
    ran = subprocess.run(
        argv, capture_output=True, text=True, check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
    )
    if re.search(r"Socket errors|Non-2xx", ran.stdout):
        sys.exit(f"{' '.join(argv)}:\n{ran.stdout}")
    found = re.search(r"(\d+) requests in ([\d.]+)(m?)s", ran.stdout)
    return int(found[1]), float(found[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", nargs="*", default=["large", "small"], help="large, small; both if none")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--congestion", help="as for relay.py")
    args = parser.parse_args()
    common.in_own_network(args.congestion)
    count = args.mib << 20
    ours, others = common.processors()
    with (
        common.Processes() as processes,
        tempfile.TemporaryDirectory(dir=os.path.dirname(common.examples())) as root,
        tempfile.TemporaryDirectory() as directory,
    ):
        fill(os.path.join(root, "small"), SMALL)
        if "large" in args.what:
            fill(os.path.join(root, "large"), count)
        ways = {}
        for engine in ("auto", "read-write"):
            child, port = common.serve(processes, root, ours, "--engine", engine)
            ways[f"serve {engine}"] = (child.pid, port)
        if shutil.which("nginx"):
            worker, plain, nopush = nginx(processes, root, ours, directory)
            ways["nginx"] = (worker, plain)
            ways["nginx tcp_nopush"] = (worker, nopush)
        else:
            print("SKIPPED nginx: not in the path", file=sys.stderr)
        os.sched_setaffinity(0, {others})

        def large(way):
            pid, port = ways[way]
            before = common.spent(pid)
            get(port, "large", count)
            return (common.spent(pid) - before) * 1e3 * common.GIB / count

        def small(way):
            pid, port = ways[way]
            before = common.spent(pid)
            requests, seconds = wrk(port, "small", args.seconds, others)
            if requests == 0:
                sys.exit(f"{way}: no answer in {args.seconds} s: is the machine doing something else?")
            costs.setdefault(way, []).append((common.spent(pid) - before) * 1e6 / requests)
            return requests / seconds

        against = ["nginx", "nginx tcp_nopush", "serve read-write"]
        if "large" in args.what:
            common.table(
                f"a file of {args.mib} MiB, {args.rounds} rounds, {common.congestion()}",
                "ms of processor time per GiB",
                common.rounds(ways, args.rounds, large),
                against,
            )
        if "small" in args.what:
            costs = {}
            figures = common.rounds(ways, args.rounds, small)
            title = (
                f"a file of {SMALL} bytes, wrk -c 64, {args.rounds} rounds of {args.seconds} s, "
                f"{common.congestion()}"
            )
            common.table(title, "requests per second", figures, against)
            costs = {way: values[1:] for way, values in costs.items()}
            common.table(title, "us of the server's processor time per request", costs, against)


if __name__ == "__main__":
    main()
