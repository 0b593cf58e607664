#!/usr/bin/env python3
"""Processor time of one file sent to a socket: the example `serve_raw`, the same on `tokio::io::copy`,
and a bare sendfile loop, all on one thread. The receiver, which discards, is a process of its own on
the other processor.

    cargo build --release --features tokio --examples
    benches/peers/serve_raw.py [--rounds 15] [--mib 1024] [--congestion cubic]
"""

import argparse
import os
import socket
import subprocess
import tempfile

import common

# What nginx gives a connection at once, and zcio too.
CHUNK = 2 << 20


def sendfile_loop(server, path):
    """The bare loop that everything is held against: blocking, one connection after the other."""
    file = os.open(path, os.O_RDONLY)
    while True:
        connection, _ = server.accept()
        with connection:
            at = 0
            while sent := os.sendfile(connection.fileno(), file, at, CHUNK):
                at += sent


def serve(processes, path, cpu, *arguments):
    """Starts the example `serve_raw`; its process and port."""
    port = common.free_port()
    argv = [f"{common.examples()}/serve_raw", "--listen", f"127.0.0.1:{port}", path]
    child = processes.start([*argv, *arguments], cpu, stderr=subprocess.DEVNULL)
    common.await_port(port)
    return child, port


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--dir", help="where the file is written (default: the current directory)")
    parser.add_argument("--congestion", help="as for relay.py")
    args = parser.parse_args()
    common.in_own_network(args.congestion)
    count = args.mib << 20
    ours, others = common.processors()
    with (
        common.Processes() as processes,
        tempfile.NamedTemporaryFile(dir=args.dir or os.getcwd()) as file,
    ):
        for _ in range(args.mib):
            file.write(os.urandom(1 << 20))
        file.flush()
        # Pages that are still to be written back cost the sender more.
        os.fsync(file.fileno())
        loop = common.listener()
        ways = {
            "sendfile loop": (
                processes.call(lambda: sendfile_loop(loop, file.name), ours),
                loop.getsockname()[1],
            ),
            "serve_raw": serve(processes, file.name, ours),
            "tokio::io::copy": serve(processes, file.name, ours, "--engine", "read-write"),
        }
        os.sched_setaffinity(0, {others})

        def measure(way):
            child, port = ways[way]
            before = common.spent(child.pid)
            with socket.create_connection(("127.0.0.1", port)) as connection:
                got = common.discard(connection)
            if got != count:
                raise SystemExit(f"{way}: {got} of {count} bytes arrived")
            return (common.spent(child.pid) - before) * 1e3 * common.GIB / count


        figures = common.rounds(ways, args.rounds, measure)
    common.table(
        f"a warm file of {args.mib} MiB to a socket, {args.rounds} rounds, {common.congestion()}",
        "ms of processor time per GiB",
        figures,
        ["sendfile loop", "tokio::io::copy"],
    )


if __name__ == "__main__":
    main()
