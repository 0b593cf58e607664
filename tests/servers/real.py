#!/usr/bin/env python3
"""The example `proxy` between programs that know nothing of it: curl and nginx, both ways, and a
conversation that stays half open for a while, as those of WebSocket and ssh do.

    cargo build --release --features tokio --examples
    tests/servers/real.py [--mib 512]

Needs Debian's packages curl and nginx (any flavour with the module dav); without them it says what it
skips. Ends with 1 where anything is wrong.
"""

import argparse
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(HERE)), "benches", "peers"))

import common  # noqa: E402

CONFIG = """
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/p;
    fastcgi_temp_path {dir}/f;
    uwsgi_temp_path {dir}/u;
    scgi_temp_path {dir}/s;
    server {{
        listen 127.0.0.1:{port};
        root {dir}/www;
        client_max_body_size 0;
        sendfile on;
        location /up/ {{ {put} }}
    }}
}}
"""

wrong = []


def check(what, holds, more=""):
    print(f"{'ok' if holds else 'WRONG'}: {what}{more}")
    if not holds:
        wrong.append(what)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def skip(what, reason):
    print(f"SKIPPED {what}: {reason}", file=sys.stderr)


def web(processes, directory, mib):
    """Downloads and uploads through the proxy, alone and several at once."""
    for program in ("nginx", "curl"):
        if not shutil.which(program):
            return skip("curl through the proxy to nginx", f"no {program}: apt-get install {program}")
    www = os.path.join(directory, "www")
    os.makedirs(os.path.join(www, "up"))
    # nginx without a master serves as whoever starts it.
    os.chmod(directory, 0o755)
    large = os.path.join(www, "large")
    with open(large, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
        file.write(os.urandom(12_345))
    dav = "--with-http_dav_module" in subprocess.run(
        ["nginx", "-V"], capture_output=True, text=True
    ).stderr
    port = common.free_port()
    config = os.path.join(directory, "nginx.conf")
    with open(config, "w") as file:
        put = "dav_methods PUT;" if dav else ""
        file.write(CONFIG.format(dir=directory, port=port, put=put))
    cpu = common.processors()
    processes.start(["nginx", "-p", directory, "-c", config], cpu[1], stderr=subprocess.DEVNULL)
    common.await_port(port)
    proxy, through = common.proxy(processes, port, cpu[0])
    url, sum_of_large = f"http://127.0.0.1:{through}", digest(large)

    def curl(*arguments):
        argv = ["curl", "-sS", "--fail", "--max-time", "120", *arguments]
        return subprocess.run(argv, capture_output=True, text=True)

    got = os.path.join(directory, "got")
    done = curl("-o", got, f"{url}/large")
    check(
        f"curl downloads {os.path.getsize(large)} bytes",
        done.returncode == 0 and digest(got) == sum_of_large,
        done.stderr,
    )
    several = [os.path.join(directory, f"got{n}") for n in range(4)]
    children = [
        subprocess.Popen(["curl", "-sS", "--fail", "-o", path, f"{url}/large"]) for path in several
    ]
    codes = [child.wait(120) for child in children]
    check("four at once", codes == [0] * 4 and {digest(path) for path in several} == {sum_of_large})
    part = os.path.join(directory, "part")
    done = curl("-o", part, "-r", "1000000-1999999", "--limit-rate", "2M", f"{url}/large")
    with open(large, "rb") as one, open(part, "rb") as other:
        one.seek(1_000_000)
        check("a range, slowly", done.returncode == 0 and one.read(1_000_000) == other.read())
    # One connection for many small ones.
    with open(os.path.join(www, "small"), "wb") as file:
        file.write(b"small")
    done = curl(f"{url}/small?[1-500]")
    check("500 requests on one connection", done.returncode == 0 and done.stdout == "small" * 500)
    if not dav:
        return skip("curl uploads to nginx", "this nginx has no module dav")
    done = curl("-T", large, f"{url}/up/large")
    uploaded = os.path.join(www, "up", "large")
    check(
        f"curl uploads {os.path.getsize(large)} bytes",
        done.returncode == 0 and digest(uploaded) == sum_of_large,
        done.stderr,
    )
    proxy.terminate()
    check("the proxy ends with 0", proxy.wait(10) == 0)


def conversation(processes, seconds):
    """Frames both ways with pauses between, then one side ends and the other goes on for a while."""
    server = common.listener()
    cpu = common.processors()
    proxy, through = common.proxy(processes, server.getsockname()[1], cpu[0])
    heard = {}

    def serve():
        # The first connection only asked whether the proxy listens.
        while True:
            connection, _ = server.accept()
            first = connection.recv(4, socket.MSG_WAITALL)
            if first:
                break
            connection.close()
        got = first
        for _ in range(seconds * 5):
            connection.sendall(b"tick")
            time.sleep(0.1)
        while piece := connection.recv(65536):
            got += piece
        heard["up"] = got
        # The client has ended. It still hears.
        for _ in range(seconds * 5):
            connection.sendall(b"tock")
            time.sleep(0.1)
        connection.sendall(bytes(3 << 20))
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with socket.create_connection(("127.0.0.1", through)) as client:
        said = b""
        for number in range(seconds * 5):
            frame = number.to_bytes(4, "big") * (1 + number % 50)
            client.sendall(frame)
            said += frame
            time.sleep(0.1)
        client.shutdown(socket.SHUT_WR)
        got = bytearray()
        while piece := client.recv(65536):
            got += piece
    thread.join()
    ticks = seconds * 5
    check("a long conversation arrives, frame by frame", heard["up"] == said)
    check(
        "and what is said after one side has ended, too",
        bytes(got) == b"tick" * ticks + b"tock" * ticks + bytes(3 << 20),
    )
    proxy.terminate()
    check("the proxy ends with 0", proxy.wait(10) == 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--seconds", type=int, default=6)
    args = parser.parse_args()
    with common.Processes() as processes, tempfile.TemporaryDirectory() as directory:
        conversation(processes, args.seconds)
        web(processes, directory, args.mib)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
