#!/usr/bin/env python3
"""Many idle connections through the example `proxy`: what they cost in memory, that none of them holds
a pipe, and that all of them still work afterwards: each passes 64 KiB to the server and back, and the
checksums are compared.

    cargo build --release --features tokio --examples
    benches/peers/idle.py [--connections 10000] [--engine auto]

As many as the limit on descriptors allows, and it says so. Ends with 1 where anything is wrong.
"""

import argparse
import hashlib
import os
import resource
import select
import signal
import socket
import sys
import time

import common

EACH = 64 << 10
POOL = os.urandom(1 << 20)


def payload(number):
    """What connection `number` sends: its number first, so that no two are alike."""
    at = number * 97 % (len(POOL) - EACH)
    return number.to_bytes(4, "little") + POOL[at : at + EACH - 4]


class Side:
    """One end of a connection that sends a message and receives one."""

    def __init__(self, connection):
        connection.setblocking(False)
        self.connection = connection
        self.fd = connection.fileno()
        self.out = memoryview(b"")
        self.got = bytearray()

    def step(self):
        """Sends and receives what it can."""
        try:
            while self.out:
                self.out = self.out[self.connection.send(self.out) :]
        except BlockingIOError:
            pass
        try:
            while len(self.got) < EACH:
                piece = self.connection.recv(EACH - len(self.got))
                if not piece:
                    raise SystemExit("a connection ended before its time")
                self.got += piece
        except BlockingIOError:
            pass


def serve(listener):
    """Gives each connection back what it sent, once all of it is there."""
    poll, sides = select.epoll(), {}
    poll.register(listener.fileno(), select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                connection, _ = listener.accept()
                side = Side(connection)
                sides[side.fd] = side
                poll.register(side.fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
                continue
            side = sides[fd]
            try:
                side.step()
            except SystemExit:
                poll.unregister(fd)
                sides.pop(fd).connection.close()
                continue
            if len(side.got) == EACH and not side.out:
                side.out = memoryview(bytes(side.got))
                side.got = bytearray()
                side.step()


def status(pid, key):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) << 10
    raise SystemExit(f"no {key} of process {pid}")


def descriptors(pid):
    """How many descriptors a process has, and how many of them are pipes."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            pass
    return len(links), sum(link.startswith("pipe:") for link in links)


def kernel_memory():
    """What TCP's buffers take, and what the kernel's small objects do: of the whole machine."""
    with open("/proc/net/sockstat") as file:
        pages = next(int(line.split()[-1]) for line in file if line.startswith("TCP:"))
    with open("/proc/meminfo") as file:
        slab = next(int(line.split()[1]) for line in file if line.startswith("Slab:"))
    return pages * resource.getpagesize(), slab << 10


def until(what, holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def all_move(sides):
    """Every connection at once: sends its message and waits for it to come back."""
    poll, left = select.epoll(), {}
    for number, side in enumerate(sides):
        side.out = memoryview(payload(number))
        side.got = bytearray()
        left[side.fd] = (number, side)
        poll.register(side.fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    wrong = 0
    while left:
        ready = poll.poll(30)
        if not ready:
            raise SystemExit(f"{len(left)} connections have stalled")
        for fd, _ in ready:
            if fd not in left:
                continue
            number, side = left[fd]
            side.step()
            if len(side.got) == EACH:
                sums = [hashlib.sha256(data).digest() for data in (side.got, payload(number))]
                wrong += sums[0] != sums[1]
                del left[fd]
                poll.unregister(fd)
                side.got = bytearray()
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--engine", default="auto")
    args = parser.parse_args()
    count = args.connections
    # The proxy needs two for each, and a few of its own.
    needed = 2 * count + 100
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and needed > hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))
            hard = needed
        except (ValueError, PermissionError):
            pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and needed > hard:
        count = (hard - 100) // 2
        print(f"the limit of {hard} descriptors allows {count} connections of {args.connections}")
    with common.Processes() as processes:
        listener = common.listener()
        cpus = common.processors()
        processes.call(lambda: serve(listener), cpus[1])
        child, port = common.proxy(
            processes, listener.getsockname()[1], cpus[0], "--engine", args.engine
        )
        time.sleep(0.3)
        before, kernel = status(child.pid, "VmRSS"), kernel_memory()
        own, own_pipes = descriptors(child.pid)
        sides = [Side(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
        until(
            "all connections are relayed",
            lambda: descriptors(child.pid)[0] >= own + 2 * count,
        )
        time.sleep(1)
        open_now, pipes = descriptors(child.pid)
        after, kernel_after = status(child.pid, "VmRSS"), kernel_memory()
        ticks = common.spent(child.pid)
        time.sleep(2)
        idle = common.spent(child.pid) - ticks
        print(
            f"{count} idle connections: {open_now - own} descriptors, {pipes - own_pipes} pipes, "
            f"{(after - before) / count:.0f} bytes of the process's memory each, "
            f"{idle * 500:.2f} ms of processor time a second"
        )
        print(
            "the kernel's for the four sockets of each, the whole machine: "
            f"{(kernel_after[1] - kernel[1]) / count:.0f} bytes of objects, "
            f"{(kernel_after[0] - kernel[0]) / count:.0f} of buffers"
        )
        wrong = 0
        for turn in range(2):
            began = time.monotonic()
            wrong += all_move(sides)
            took = time.monotonic() - began
            time.sleep(0.5)
            pipes = descriptors(child.pid)[1]
            print(
                f"turn {turn + 1}: {count} times 64 KiB there and back in {took:.1f} s, {wrong} wrong; "
                f"{pipes - own_pipes} pipe ends kept for the next, "
                f"{(status(child.pid, 'VmRSS') - before) / count:.0f} bytes each"
            )
        for side in sides:
            side.connection.close()
        until("the proxy lets go of all", lambda: descriptors(child.pid)[0] <= own + 1)
        os.kill(child.pid, signal.SIGTERM)
        code = child.wait(10)
        print(f"all closed: {own} descriptors as before; exit code {code}")
        if wrong or idle > 0.02 or code != 0:
            sys.exit(1)


if __name__ == "__main__":
    main()
