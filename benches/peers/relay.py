#!/usr/bin/env python3
"""Processor time of a relay: 1 GiB through the example `proxy`, HAProxy, a `copy_bidirectional` proxy and
a bare splice loop, all on one thread. The sender and the receiver, which discards, are processes of
their own on the other processor.

    cargo build --release --features tokio --examples
    benches/peers/relay.py [--rounds 15] [--mib 1024] [--congestion cubic]

Needs HAProxy 2.6 or later in the path. Where the machine's congestion control paces what it sends (bbr),
half of what is measured is timers, and they run for whoever happens to be at work: with
`--congestion cubic`, as root, all of it takes place in a network namespace of its own without that.
"""

import argparse
import fcntl
import os
import shutil
import socket
import tempfile

import common

PIPE = 1 << 20


def receive(server):
    """Answers each connection with how many bytes it brought."""
    while True:
        connection, _ = server.accept()
        with connection:
            total = common.discard(connection)
            connection.sendall(total.to_bytes(8, "little"))


def send(port, count):
    """Sends so many bytes and waits for the answer."""
    block = bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(count >> 20):
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(8, socket.MSG_WAITALL)
    if int.from_bytes(answer, "little") != count:
        raise SystemExit(f"port {port}: {int.from_bytes(answer, 'little')} of {count} bytes arrived")


def splice_loop(server, to):
    """The bare loop that everything is held against: blocking, one direction."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE)
    while True:
        client, _ = server.accept()
        upstream = socket.create_connection(("127.0.0.1", to))
        source, destination = client.fileno(), upstream.fileno()
        while held := os.splice(source, write_end, PIPE):
            while held > 0:
                held -= os.splice(read_end, destination, held)
        upstream.shutdown(socket.SHUT_WR)
        client.sendall(upstream.recv(8, socket.MSG_WAITALL))
        client.close()
        upstream.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--congestion")
    args = parser.parse_args()
    common.in_own_network(args.congestion)
    count = args.mib << 20
    ours, others = common.processors()
    with common.Processes() as processes, tempfile.TemporaryDirectory() as directory:
        sink = common.listener()
        to = sink.getsockname()[1]
        processes.call(lambda: receive(sink), others)
        loop = common.listener()
        ways = {
            "splice loop": (
                processes.call(lambda: splice_loop(loop, to), ours),
                loop.getsockname()[1],
            ),
            "proxy": common.proxy(processes, to, ours),
            "copy_bidirectional": common.proxy(processes, to, ours, "--engine", "read-write"),
        }
        if shutil.which("haproxy"):
            ways["haproxy splicing"] = common.haproxy(processes, to, ours, directory)
        os.sched_setaffinity(0, {others})

        def measure(way):
            child, port = ways[way]
            before = common.spent(child.pid)
            send(port, count)
            return (common.spent(child.pid) - before) * 1e3 * common.GIB / count

        figures = common.rounds(ways, args.rounds, measure)
    common.table(
        f"relay of {args.mib} MiB, {args.rounds} rounds, {common.congestion()}",
        "ms of processor time per GiB",
        figures,
        ["haproxy splicing", "copy_bidirectional", "splice loop"],
    )


if __name__ == "__main__":
    main()
