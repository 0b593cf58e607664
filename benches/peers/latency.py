#!/usr/bin/env python3
"""How long a request and its answer take through the example `proxy`, against the same on tokio's
`copy_bidirectional` and no proxy at all: sizes from 1 to 20,000 bytes, one connection each.

    cargo build --release --features tokio --examples
    benches/peers/latency.py [--exchanges 2000]

Ends with 1 where the 99th percentile through `proxy` is more than twice the other proxy's, or one
exchange waited as long as a corked segment or a delayed acknowledgement does.
"""

import argparse
import os
import socket
import sys
import time

import common

SIZES = (1, 100, 536, 1448, 1449, 4096, 16384, 20000)


def receive(connection, count):
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise SystemExit("an early end")
        data += piece
    return bytes(data)


def echo(server):
    """Answers one connection after the other; each begins with the size of its messages."""
    while True:
        connection, _ = server.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = connection.recv(4, socket.MSG_WAITALL)
            if len(head) < 4:
                continue
            size = int.from_bytes(head, "little")
            while message := connection.recv(size, socket.MSG_WAITALL):
                connection.sendall(message)


def exchange(port, size, count):
    """Microseconds that each of `count` exchanges took."""
    message = os.urandom(size)
    took = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(size.to_bytes(4, "little"))
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(message)
            answer = receive(connection, size)
            took.append((time.perf_counter() - began) * 1e6)
            if answer != message:
                raise SystemExit("another answer")
        connection.shutdown(socket.SHUT_WR)
        if connection.recv(1):
            raise SystemExit("more than was asked for")
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--exchanges", type=int, default=2000)
    args = parser.parse_args()
    ours, others = common.processors()
    wrong = []
    with common.Processes() as processes:
        server = common.listener()
        to = server.getsockname()[1]
        processes.call(lambda: echo(server), others)
        ways = {
            "proxy": common.proxy(processes, to, ours)[1],
            "copy_bidirectional": common.proxy(processes, to, ours, "--engine", "read-write")[1],
            "no proxy": to,
        }
        os.sched_setaffinity(0, {others})
        print(f"{args.exchanges} exchanges a size; microseconds: median, 99th percentile, most")
        for size in SIZES:
            figures = {way: [] for way in ways}
            # In turns, so that what the machine does meanwhile falls on all.
            for _ in range(10):
                for way, port in ways.items():
                    figures[way] += exchange(port, size, args.exchanges // 10)
            line, at = f"{size:>6} bytes", {}
            for way, values in figures.items():
                values.sort()
                at[way] = values[len(values) * 99 // 100]
                line += f"   {way} {values[len(values) // 2]:.0f} {at[way]:.0f} {values[-1]:.0f}"
            ratio = at["proxy"] / at["copy_bidirectional"]
            print(f"{line}   99th: {ratio:.2f} of copy_bidirectional")
            if ratio > 2:
                wrong.append(f"{size} bytes: the 99th percentile is {ratio:.2f} times the other's")
            if figures["proxy"][-1] > 40e3:
                wrong.append(f"{size} bytes: one took {figures['proxy'][-1] / 1e3:.0f} ms")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
