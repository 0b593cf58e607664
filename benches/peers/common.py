"""What the comparisons share: processes that are pinned and looked after, their processor time, and
figures that are compared by pairs.

Each way is run once per round, in an order that is drawn anew each round, and compared with another
way of the same round: so what the machine does meanwhile falls on both.
"""

import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
GIB = 1 << 30


def examples():
    """Where the release builds of the examples are."""
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    path = os.path.join(target, "release", "examples")
    if not os.path.exists(os.path.join(path, "proxy")):
        sys.exit(
            f"no {path}/proxy: build it first, by "
            "cargo build --release --features tokio --examples"
        )
    return path


def processors():
    """One for the way that is measured, one for everything around it."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        print("only one processor: all share it, and the figures are noisy", file=sys.stderr)
    return allowed[0], allowed[-1]


def in_own_network(congestion):
    """Runs this program once more, in a network namespace of its own whose loopback has TCP use
    `congestion`. Needs root. Does nothing the second time."""
    if not congestion or os.environ.get("OWN_NETWORK"):
        return
    os.environ["OWN_NETWORK"] = congestion
    # A route's own choice: the setting for the whole machine may not be ours to change.
    routes = " && ".join(
        f"ip route replace local {to} dev lo proto kernel scope host src 127.0.0.1 table local "
        f"congctl {congestion}"
        for to in ("127.0.0.0/8", "127.0.0.1")
    )
    script = f'ip link set lo up && {routes} && exec "$@"'
    argv = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.argv]
    os.execvp(argv[0], argv)


def congestion():
    """The congestion control that TCP uses here."""
    with listener() as server, socket.create_connection(server.getsockname()) as connection:
        name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.split(b"\0")[0].decode()


class Processes:
    """Child processes that end with this one, however it ends."""

    def __init__(self):
        self.children = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children:
            child.kill()
        for child in self.children:
            child.wait()

    def start(self, argv, cpu, **options):
        """Starts a program on one processor."""
        child = subprocess.Popen(
            argv, preexec_fn=lambda: os.sched_setaffinity(0, {cpu}), **options
        )
        self.children.append(child)
        return child

    def call(self, function, cpu):
        """Runs a function of this program in a process of its own."""
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.sched_setaffinity(0, {cpu})
            try:
                function()
            finally:
                os._exit(1)
        child = Forked(pid)
        self.children.append(child)
        return child


class Forked:
    """A forked process, with the face of a Popen."""

    def __init__(self, pid):
        self.pid = pid

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        os.waitpid(self.pid, 0)


def spent(pid):
    """Processor time of a process in seconds, threads that have ended included."""
    # The kernel's number for the clock of another process: see clock_getcpuclockid(3).
    return time.clock_gettime((~pid << 3) | 2)


def listener():
    return socket.create_server(("127.0.0.1", 0), backlog=4096)


def free_port():
    with listener() as probe:
        return probe.getsockname()[1]


def await_port(port, seconds=10):
    """Waits until somebody listens there."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                sys.exit(f"nobody listens on port {port}")
            time.sleep(0.02)


def discard(connection, block=4 << 20):
    """Takes all that comes, without copying it; the number of bytes."""
    total = 0
    # With MSG_TRUNC, TCP throws away what it would have copied.
    buffer = bytearray(block)
    while got := connection.recv_into(buffer, block, socket.MSG_TRUNC):
        total += got
    return total


HAPROXY = """
global
    nbthread 1
    maxconn 4096
    tune.pipesize 1048576
    tune.bufsize 16384
defaults
    mode tcp
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    {splice}
frontend f
    bind 127.0.0.1:{listen}
    default_backend b
backend b
    server s 127.0.0.1:{to}
"""


def haproxy(processes, to, cpu, directory, splice=True):
    """Starts HAProxy with one thread, splicing both ways; its process and port."""
    port = free_port()
    config = os.path.join(directory, f"haproxy-{port}.cfg")
    options = "option splice-request\n    option splice-response" if splice else ""
    with open(config, "w") as file:
        file.write(HAPROXY.format(listen=port, to=to, splice=options))
    child = processes.start(["haproxy", "-db", "-q", "-f", config], cpu)
    await_port(port)
    return child, port


def proxy(processes, to, cpu, *arguments):
    """Starts the example `proxy`; its process and port."""
    port = free_port()
    argv = [f"{examples()}/proxy", "--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{to}"]
    child = processes.start([*argv, *arguments], cpu, stderr=subprocess.DEVNULL)
    await_port(port)
    return child, port


def serve(processes, root, cpu, *arguments):
    """Starts the example `serve`; its process and port."""
    argv = [f"{examples()}/serve", "--root", root, "--listen", "127.0.0.1:0"]
    child = processes.start([*argv, *arguments], cpu, stdout=subprocess.PIPE, text=True)
    return child, int(child.stdout.readline().strip().rstrip("/").rpartition(":")[2])


def rounds(ways, count, measure):
    """Measures each of `ways` once a round, `count` rounds after one to warm up. A list of figures
    for each."""
    seed = int(os.environ.get("SEED", "1"))
    draw = random.Random(seed)
    figures = {way: [] for way in ways}
    for number in range(count + 1):
        order = list(ways)
        draw.shuffle(order)
        for way in order:
            figure = measure(way)
            if number > 0:
                figures[way].append(figure)
    return figures


def interval(ratios):
    """The median of some ratios, and the interval that holds it with 95 % confidence: by order
    statistics, which assume nothing of how they are spread."""
    ordered = sorted(ratios)
    n = len(ordered)
    # The binomial's normal approximation for the ranks.
    reach = 1.96 * n**0.5 / 2
    low = max(0, round(n / 2 - reach) - 1)
    high = min(n - 1, round(n / 2 + reach))
    return statistics.median(ordered), ordered[low], ordered[high]


def table(title, unit, figures, against):
    """Prints each way's median and spread, and its ratio to those in `against`."""
    print(f"\n{title}: {unit}, median (least to most); ratios by pairs, with 95 % confidence")
    for way, values in figures.items():
        text = f"  {way:<24} {statistics.median(values):9.1f} ({min(values):.1f} to {max(values):.1f})"
        for other in against:
            if other != way and other in figures:
                middle, low, high = interval(
                    [one / two for one, two in zip(values, figures[other])]
                )
                text += f"   {middle:.3f} [{low:.3f}, {high:.3f}] of {other}"
        print(text)
