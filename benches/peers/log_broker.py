#!/usr/bin/env python3
"""Processor time of fetching from the example `log_broker`, with either engine, and of a bare sendfile
loop that is asked for the same ranges of the same kind of file. The client, which discards what it gets,
is a process of its own on another processor.

    cargo build --release --features tokio --examples
    benches/peers/log_broker.py [--rounds 15] [--mib 1024] [--fetch-kib 1024 8192 1048576]
"""

import argparse
import os
import socket
import struct
import subprocess
import tempfile

import common

BATCH_RECORDS = 16


def crc32c(data):
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def varint(number):
    number, out = number << 1 ^ number >> 63, b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def batch(records=BATCH_RECORDS, size=4080):
    """A batch of records of random bytes."""
    body = b""
    for i in range(records):
        record = b"\0\0" + varint(i) + varint(-1) + varint(size) + os.urandom(size) + b"\0"
        body += varint(len(record)) + record
    covered = struct.pack(">hiqqqhii", 0, records - 1, 1, 1, -1, -1, -1, records) + body
    rest = struct.pack(">ibI", 0, 2, crc32c(covered)) + covered
    return struct.pack(">qi", 0, len(rest)) + rest


def ask(connection, key, version, body):
    """Sends a request; the length of what follows the answer's own."""
    request = struct.pack(">hhih", key, version, 1, -1) + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    return struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))[0]


def produce(connection, topic, records):
    head = struct.pack(">hhiih", -1, -1, 10_000, 1, len(topic)) + topic
    head += struct.pack(">iii", 1, 0, len(records))
    answer = connection.recv(ask(connection, 0, 3, head + records), socket.MSG_WAITALL)
    (error,) = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(topic) + 4 + 4)
    if error:
        raise SystemExit(f"produce: error {error}")


def discard(connection, count, buffer=bytearray(4 << 20)):
    """Takes so many bytes without copying them."""
    while count:
        got = connection.recv_into(buffer, min(count, len(buffer)), socket.MSG_TRUNC)
        if not got:
            raise SystemExit("closed")
        count -= got


def fetch(connection, topic, offset, most):
    """Fetches and discards; the number of bytes."""
    body = struct.pack(">iiiibih", -1, 0, 1, most, 0, 1, len(topic)) + topic
    count = ask(connection, 1, 4, body + struct.pack(">iiqi", 1, 0, offset, most))
    discard(connection, count)
    return count


def broker(processes, directory, cpu, *arguments):
    """Starts the example; its process and port."""
    port = common.free_port()
    argv = [f"{common.examples()}/log_broker", "--dir", directory, "--listen", f"127.0.0.1:{port}"]
    child = processes.start([*argv, *arguments], cpu, stdout=subprocess.DEVNULL)
    common.await_port(port)
    return child, port


def fill(port, count):
    """At least so many bytes in one topic. The length of a batch."""
    one = batch()
    many = one * 32
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(-(-count // len(many))):
            produce(connection, b"fetched", many)
    return len(one)


def sendfile_loop(server, path):
    """Sends a header of 55 bytes and a range, as often as one is asked for."""
    file = os.open(path, os.O_RDONLY)
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while request := connection.recv(16, socket.MSG_WAITALL):
        at, end = struct.unpack(">qq", request)
        connection.send(bytes(55), socket.MSG_MORE)
        while at < end:
            at += os.sendfile(connection.fileno(), file, at, min(end - at, 2 << 20))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--fetch-kib", type=int, nargs="*", default=[1024, 8192, 1 << 20])
    args = parser.parse_args()
    total = args.mib << 20
    ours, others = common.processors()
    with common.Processes() as processes, tempfile.TemporaryDirectory() as directory:
        ways, length = {}, 0
        for engine in ("auto", "read-write"):
            log = os.path.join(directory, engine)
            # One file, so that one fetch can have all of it.
            options = ("--engine", engine, "--segment-bytes", str(4 * total))
            child, port = broker(processes, log, ours, *options)
            length = fill(port, total)
            ways[engine] = child, socket.create_connection(("127.0.0.1", port))
        os.sync()
        path = os.path.join(directory, "auto", "fetched", f"{0:020}.log")
        loop = common.listener()
        child = processes.call(lambda: sendfile_loop(loop, path), ours)
        ways["sendfile loop"] = child, socket.create_connection(loop.getsockname())
        os.sched_setaffinity(0, {others})

        for most in (kib << 10 for kib in args.fetch_kib):
            whole = max(most // length, 1) * length

            def measure(way):
                child, connection = ways[way]
                before, got = common.spent(child.pid), 0
                while got < total // length * length:
                    if way == "sendfile loop":
                        end = min(got + whole, total // length * length)
                        connection.sendall(struct.pack(">qq", got, end))
                        discard(connection, 55 + end - got)
                        got = end
                    else:
                        count = fetch(connection, b"fetched", got // length * BATCH_RECORDS, most)
                        got += count // length * length
                return (common.spent(child.pid) - before) * 1e3 * common.GIB / got

            figures = common.rounds(ways, args.rounds, measure)
            common.table(
                f"{args.mib} MiB in fetches of {most >> 10} KiB, {args.rounds} rounds",
                "ms of processor time per GiB",
                figures,
                ["read-write", "sendfile loop"],
            )


if __name__ == "__main__":
    main()
