"""Kernels that are there at once: forks of one process that has imported what the chapters import, on Linux.

`serve` is that process. `connect` is what Jupyter takes for the kernel: it asks for a fork and passes interrupts on,
and when one of the two ends, so does the other. Where nothing answers it becomes a plain kernel.
"""

import importlib
import json
import os
import signal
import socket
import sys
import threading

IMPORTED = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipywidgets",
    "matplotlib.pyplot",
    "pandas",
    "scipy.special",
    "torch._dynamo",  # with the first optimiser
)


def serve(descriptor):
    with socket.socket(fileno=int(descriptor)) as listener:  # who asks meanwhile is served once all is imported
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel has it
        for name in IMPORTED:
            importlib.import_module(name)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            client, _ = listener.accept()
            if not os.fork():
                listener.close()
                kernel(client)
            client.close()


def kernel(client):
    """Be the kernel that was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked = json.loads(client.makefile().readline())
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.path[0] = ""
    client.sendall(b"!")

    def watch():
        while client.recv(1):
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    try:
        sys.modules["ipykernel.kernelapp"].IPKernelApp.launch_instance(asked["arguments"])
    finally:
        os._exit(0)


def connect(address, *arguments):
    with socket.socket(socket.AF_UNIX) as server:
        asked = {"folder": os.getcwd(), "environment": dict(os.environ), "arguments": arguments}
        try:
            server.connect(address)
            server.sendall(json.dumps(asked).encode() + b"\n")
            there = server.recv(1)
        except OSError:
            there = b""
        if not there:
            os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *arguments])
        signal.signal(signal.SIGINT, lambda *_: server.send(b"i"))
        server.recv(1)  # until it has ended


if __name__ == "__main__":
    {"serve": serve, "connect": connect}[sys.argv[1]](*sys.argv[2:])
