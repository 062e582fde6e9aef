"""Run by test_processes.py in a process of its own: how the start of several processes fails, in time and words."""

import socket
import sys
import time

import gft_jax as gft

CASES = {
    "alone": lambda: gft.parallel.start(f"127.0.0.1:{free_port()}", 2, 0, timeout=4),
    "no coordinator": lambda: gft.parallel.start(f"127.0.0.1:{free_port()}", 2, 1, timeout=4),
    "port in use": lambda: gft.parallel.start(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, timeout=4),
    "no environment": gft.parallel.start,
}
taken = socket.create_server(("127.0.0.1", 0))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


began = time.perf_counter()
try:
    CASES[sys.argv[1].replace("-", " ")]()
except (ValueError, OSError) as error:
    print("error", type(error).__name__, error)
    print("seconds", time.perf_counter() - began)
