"""The service under load, and under uploads that mean harm.

    python benchmarks/service.py [--seconds 60] [--connections 16]

Trains the default run (digits, `cnn`) unless it is there, serves it by `fl-app serve`
in a process of its own and measures, one after the other:

- `/predict` with one image a request: answers a second and the time of the slowest
  hundredth, as `wrk` sees them (Debian's package `wrk`), over so many connections;
- 500 hostile uploads among valid ones, eight at a time: how each was answered, and the
  most memory the service ever held (VmHWM of its process).
"""

import argparse
import collections
import http.client
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

PROJECT = Path(__file__).parents[1]
FL_APP = Path(sys.executable).with_name("fl-app")
RUN = "benchmark-digits"
BOUNDARY = "fl-app-benchmark"
_MEGABYTE = 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not there: install it (Debian: apt-get install wrk)")
    if not (PROJECT / "results" / RUN / "model.safetensors").exists():
        command = [str(FL_APP), "run", "-c", f'run-name="{RUN}"']
        subprocess.run(command, cwd=PROJECT, check=True)
    with served() as (port, pid):
        under_load(port, options.seconds, options.connections)
        print(f"memory {peak(pid) / _MEGABYTE:.0f} MiB at most")
        under_attack(port)
        print(f"memory {peak(pid) / _MEGABYTE:.0f} MiB at most")


@contextmanager
def served() -> Iterator[tuple[int, int]]:
    """Serve the project's results; yield the port and the process."""
    port = 8765
    with tempfile.TemporaryFile() as log:
        service = subprocess.Popen(
            [str(FL_APP), "serve", "--port", str(port)],
            cwd=PROJECT,
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(200):
                time.sleep(0.1)
                if answers(port):
                    break
            else:
                sys.exit("the service does not answer")
            yield port, service.pid
        finally:
            service.terminate()
            service.wait()


def answers(port: int) -> bool:
    """Whether the service is well."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def peak(pid: int) -> int:
    """Return the most bytes a process has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


# --- load


def under_load(port: int, seconds: int, connections: int) -> None:
    """Print what `wrk` measures."""
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(form(encoded(digit(0))))
        script = Path(folder) / "post.lua"
        script.write_text(
            f'local f = io.open("{body}", "rb")\n'
            'wrk.method = "POST"\nwrk.body = f:read("*all")\n'
            f'wrk.headers["Content-Type"] = "multipart/form-data; boundary={BOUNDARY}"'
        )
        address = f"http://127.0.0.1:{port}/predict?model={RUN}"
        load = ["wrk", "-t1", f"-c{connections}", "--latency", "-s", str(script)]
        subprocess.run([*load, "-d3s", address], check=True, capture_output=True)
        done = subprocess.run(
            [*load, f"-d{seconds}s", address],
            check=True,
            capture_output=True,
            text=True,
        )
    print(done.stdout)


def digit(index: int) -> np.ndarray:
    """Return an image of the digits, 8 x 8 bytes."""
    return (load_digits().images[index] * 255 / 16).round().astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Return an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def form(content: bytes) -> bytes:
    """Return a body with one file."""
    head = (
        f"--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="file"; filename="image"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


# --- harm


def under_attack(port: int) -> None:
    """Send 500 hostile uploads, eight at a time; print how each kind is answered."""
    kinds = hostile()
    draws = np.random.default_rng(0)
    chosen = [list(kinds)[i] for i in draws.integers(len(kinds), size=500)]
    said: dict[str, collections.Counter[int]] = {
        k: collections.Counter() for k in kinds
    }
    lock = threading.Lock()

    def send(kind: str) -> None:
        status = upload(port, kinds[kind])
        with lock:
            said[kind][status] += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, chosen))
    for kind, statuses in said.items():
        print(f"{kind:40} {json.dumps(dict(statuses))}")
    print(f"answers afterwards: {answers(port)}")


def hostile() -> dict[str, bytes | int]:
    """Return uploads by name; a number stands for so many bytes of nothing."""
    valid = encoded(digit(3))
    noise = np.random.default_rng(1).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    photo = encoded(noise, "JPEG")
    bomb = io.BytesIO()
    Image.new("1", (9_999, 9_999)).save(bomb, format="PNG")
    strip = io.BytesIO()
    Image.new("1", (100_000, 1)).save(strip, format="PNG")
    large = io.BytesIO()
    Image.new("L", (4_990, 4_990)).save(large, format="PNG")
    return {
        "valid": valid,
        "valid, a foreign tail": valid + b"PK\x03\x04" + os.urandom(2000),
        "valid, 12 million noisy pixels": photo,
        "valid, 25 million pixels in 25 kB": large.getvalue(),
        "truncated": photo[: len(photo) // 2],
        "cut header": valid[:20],
        "decompression bomb": bomb.getvalue(),
        "100,000 x 1 pixels": strip.getvalue(),
        "text": b"GIF of a cat, honestly",
        "empty": b"",
        "noise": os.urandom(100_000),
        "200 MB": 200 * _MEGABYTE,
    }


def upload(port: int, content: bytes | int) -> int:
    """Return the status of the answer; 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    try:
        if isinstance(content, int):
            connection.putrequest("POST", f"/predict?model={RUN}")
            connection.putheader("Transfer-Encoding", "chunked")
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            block = b"x" * _MEGABYTE
            try:
                for _ in range(content // _MEGABYTE):
                    connection.send(b"%x\r\n%b\r\n" % (len(block), block))
            except OSError:
                pass  # it has heard enough; what it says of that is still to be read
        else:
            connection.request("POST", f"/predict?model={RUN}", form(content), headers)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    main()
