"""Commands of `flq` that are forked from a process which has imported flq: importing it anew costs up to 0.4 s a time.

`python -m tests.acceptance.fork_server FD` is that process. It is asked through a socket, for one command at a time.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from flq.cli.main import main
from flq.local.process import python, python_environment

IMPORTED = ("flq.apps.bundle_file", "flq.cli.run", "flq.cli.show", "flq.link.control", "flq.local.federation")


class ForkServer:
    """The process, as it is asked; it ends with `close`, or with the process that has started it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = python("-m", __name__, str(theirs.fileno()))
            self._process = subprocess.Popen(command, env=python_environment({}), pass_fds=[theirs.fileno()])
        self._answers = self._socket.makefile("r")

    def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `flq ARGUMENTS` in a process of its own, its output in pipes. Kills it, and raises `TimeoutError`."""
        (out, writes_out), (err, writes_err) = os.pipe(), os.pipe()
        request = json.dumps({"arguments": arguments, "environment": environment, "folder": str(Path.cwd())})
        socket.send_fds(self._socket, [b"\n"], [writes_out, writes_err])
        self._socket.sendall(f"{request}\n".encode())
        os.close(writes_out)
        os.close(writes_err)
        pid = int(self._answers.readline())
        try:
            printed = _read([out, err], time.monotonic() + timeout)
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise
        finally:
            os.close(out)
            os.close(err)
            code = int(self._answers.readline())
        return subprocess.CompletedProcess(arguments, code, printed[out], printed[err])

    def close(self) -> None:
        """End the process."""
        self._answers.close()
        self._socket.close()
        self._process.wait()


@functools.cache
def fork_server() -> ForkServer:
    """The one of this process."""
    found = ForkServer()
    atexit.register(found.close)
    return found


def _read(pipes: Sequence[int], deadline: float) -> dict[int, str]:
    """What is written to each of the pipes, until nobody holds their other ends."""
    found, still_open = dict.fromkeys(pipes, b""), [*pipes]
    while still_open:
        ready, _, _ = select.select(still_open, [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            raise TimeoutError(f"the command goes on, or what it has started holds its output: {found}")
        for pipe in ready:
            part = os.read(pipe, 1 << 16)
            found[pipe] += part
            if not part:
                still_open.remove(pipe)
    return {pipe: text.decode() for pipe, text in found.items()}


def serve(requests: socket.socket) -> None:
    """Fork for each request. In the child this raises `SystemExit`, as the command does."""
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # a child that ends has nothing to collect of what it shares
    lines = requests.makefile("r")
    while fds := socket.recv_fds(requests, 1, 2)[1]:
        request = json.loads(lines.readline())
        pid = os.fork()
        if pid == 0:
            lines.close()
            requests.close()
            _become(fds, request["environment"], request["folder"])
            main(request["arguments"], prog_name="flq")
        for fd in fds:
            os.close(fd)
        requests.sendall(f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        requests.sendall(f"{code}\n".encode())


def _become(output: Sequence[int], environment: Mapping[str, str], folder: str) -> None:
    """Be as a process that was started with these pipes for its output, these variables and this folder."""
    for fd, standard in zip(output, (1, 2), strict=True):
        os.dup2(fd, standard)
        os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        serve(channel)
