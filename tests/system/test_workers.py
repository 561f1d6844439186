"""Worker processes in whole programs: they end with the server, however it ends, and ignore a terminal's interrupt."""
from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ..tools import GUARD, Meeting, connect
from .programs import CHECKOUT, last_lines, module, next_line, program

SERVER = """
import sys
from tests import calls
from threaded_echo import LineHandler, ThreadedTCPServer

class Handler(LineHandler):
    def process(self, line):
        if line == b"compute":
            self.offload(calls.{busy})
        return self.offload(calls.meet, ("127.0.0.1", int(line)))

if __name__ == "__main__":
    server = ThreadedTCPServer(("127.0.0.1", 0), Handler, executor=3)
    server.start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    {ending}
"""

UNGUARDED = """
from threaded_echo import ThreadedTCPServer
with ThreadedTCPServer(("127.0.0.1", 0), executor=1).start() as server:
    print("serving")
"""


@contextmanager
def watching(*processes: int) -> Iterator[list[int]]:
    """Open descriptors that become readable when the processes end."""
    with ExitStack() as stack:
        watches = [os.pidfd_open(process) for process in processes]
        for watch in watches:
            stack.callback(os.close, watch)
        yield watches


def wait_for_the_end(watches: list[int]) -> None:
    """Wait until all have ended."""
    for watch in watches:
        assert select.select([watch], [], [], GUARD)[0], "a worker is left"


def children(process: subprocess.Popen[str]) -> set[int]:
    """Find the children of a process."""
    return {int(child) for task in Path(f"/proc/{process.pid}/task").iterdir()
            for child in (task / "children").read_text().split()}


@contextmanager
def busy_server(tmp_path: Path, ending: str,
                busy: str = "spin") -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Run a server with a worker that waits, one that computes, and one that is idle; yield it, and watches."""
    script = tmp_path / "script.py"
    script.write_text(SERVER.format(ending=ending, busy=busy))
    meeting = Meeting()
    with ExitStack() as stack:
        stack.callback(meeting.close)
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("PYTHONPATH", str(CHECKOUT))
        process = stack.enter_context(program(sys.executable, str(script)))
        address = ("127.0.0.1", int(next_line(process)))
        for call in (b"compute", b"%d" % meeting.address[1]):
            stack.enter_context(connect(address)).sendall(call + b"\n")
        meeting.welcome()
        yield process, stack.enter_context(watching(*children(process)))


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches processes by Linux's means")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_workers_end_with_a_server_that_is_killed(tmp_path, number):
    """They may be idle, wait, or compute. multiprocessing's own helper process ends, too."""
    with busy_server(tmp_path, "") as (process, watches):
        assert len(watches) >= 4
        process.send_signal(number)
        assert process.wait(GUARD) == -number
        wait_for_the_end(watches)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches processes by Linux's means")
@pytest.mark.parametrize(("ending", "busy"), [
    ("server.stop(0)", "backtrack"),
    ("sys.exit()", "backtrack"),
    ("raise KeyboardInterrupt", "backtrack"),
    ("os._exit(0)", "spin"),  # nothing kills the workers: one that keeps the interpreter's lock would not notice
])
def test_workers_end_with_a_server_that_ends_by_itself(tmp_path, ending, busy):
    """It may be stopped, or its script may forget that. A worker that computes in C is killed."""
    with busy_server(tmp_path, f"import os; {ending}", busy) as (process, watches):
        assert process.stdin is not None
        process.stdin.close()
        process.wait(GUARD)
        wait_for_the_end(watches)


def test_interrupt_of_a_terminal_reaches_the_server_alone(tmp_path):
    """It goes to the whole process group. The workers go on, and the server stops as one without workers does."""
    (tmp_path / "handlers.py").write_text(
        "from threaded_echo import LineHandler\nfrom tests import calls\n\n"
        "class Meet(LineHandler):\n"
        "    def process(self, line):\n"
        "        return self.offload(calls.meet, ('127.0.0.1', int(line)))\n")
    meeting = Meeting()
    command = module("threaded_echo", "--port", "0", "--workers", "2", "--handler", "handlers:Meet")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(CHECKOUT), str(tmp_path)))}
    with ExitStack() as stack:
        stack.callback(meeting.close)
        process = stack.enter_context(subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True))
        stack.callback(process.kill)
        address = ("127.0.0.1", int(next_line(process).rpartition(":")[2]))
        client = stack.enter_context(connect(address))
        client.sendall(b"%d\n" % meeting.address[1])
        meeting.welcome()
        next_line(process)
        os.killpg(process.pid, signal.SIGINT)
        assert next_line(process) == "stopping: 1 client live"
        meeting.dismiss(b"done")
        assert client.recv(16) == b"done\n"
        lines, errors = last_lines(process), process.stderr.read()
        assert process.wait(GUARD) == 0
        assert "1 drained, 0 forced, 0 still running" in lines[-1]
        assert errors == ""


def test_script_without_a_guard_is_an_error(tmp_path):
    """The error comes at once, and says what to do."""
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=GUARD,
                          env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("threaded_echo.errors.WorkerDied: a worker process has ended as it")
    assert "__main__" in last


def test_function_of_the_script_itself_can_be_offloaded(tmp_path):
    """A worker imports the script as well."""
    script = tmp_path / "script.py"
    script.write_text("""
from threaded_echo import ThreadedTCPServer

def double(number):
    return 2 * number

if __name__ == "__main__":
    with ThreadedTCPServer(("127.0.0.1", 0), executor=1).start() as server:
        print(server.offload(double, 21))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=GUARD,
                          env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


def test_program_ends_though_calls_go_on(tmp_path):
    """Its threads may start a worker when the interpreter has begun to end. Nothing waits for that one."""
    script = tmp_path / "script.py"
    script.write_text("""
import atexit
import os
import threading
from tests import calls
from threaded_echo import ThreadedTCPServer, WorkerDied

def call():
    while True:
        try:
            server.offload(calls.square, 1)
        except WorkerDied:
            met.set()

if __name__ == "__main__":
    met = threading.Event()
    atexit.register(met.wait, 5)
    server = ThreadedTCPServer(("127.0.0.1", 0), executor=2).start()
    for _ in range(4):
        threading.Thread(target=call, daemon=True).start()
    server.offload(calls.square, 1)
    print("the end")
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=GUARD,
                          env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
    assert (done.returncode, done.stdout) == (0, "the end\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_workers_end_with_a_server_whose_forked_child_lives(tmp_path):
    """The child keeps open the pipe that the server's death would have closed."""
    script = tmp_path / "script.py"
    script.write_text("""
import os
import signal
import sys
from tests import calls
from threaded_echo import ThreadedTCPServer

if __name__ == "__main__":
    server = ThreadedTCPServer(("127.0.0.1", 0), executor=1).start()
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print(server.offload(calls.describe)["process"], flush=True)
    signal.pause()
""")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(CHECKOUT))
        with (program(sys.executable, "-W", "ignore", str(script)) as process,
              watching(int(next_line(process))) as watches):
            process.send_signal(signal.SIGKILL)
            wait_for_the_end(watches)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forked_process_leaves_the_workers_alone(tmp_path):
    """It has workers of its own, and ends them at its exit."""
    script = tmp_path / "script.py"
    script.write_text("""
import os
import sys
from tests import calls
from threaded_echo import ThreadedTCPServer

if __name__ == "__main__":
    with ThreadedTCPServer(("127.0.0.1", 0), executor=1) as server:
        before = server.offload(calls.describe)["process"]
        child = os.fork()
        if child == 0:
            own = server.offload(calls.describe)
            sys.exit(own["process"] == before or own["parent"] != os.getpid())
        assert os.waitpid(child, 0)[1] == 0
        print(server.offload(calls.describe)["process"] == before)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=GUARD,
                          env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
    assert (done.returncode, done.stdout) == (0, "True\n")  # on standard error, multiprocessing itself complains


def test_script_from_standard_input_is_an_error():
    """A worker cannot import it."""
    done = subprocess.run([sys.executable, "-"], input=UNGUARDED, capture_output=True, text=True, timeout=GUARD,
                          cwd=CHECKOUT)
    assert done.returncode == 1
    assert "has to be a file" in done.stderr.splitlines()[-1]


def test_function_of_a_command_is_an_error():
    """A worker cannot import it either, but starts without it."""
    code = """
from threaded_echo import ThreadedTCPServer

def double(number):
    return 2 * number

with ThreadedTCPServer(("127.0.0.1", 0), executor=1).start() as server:
    try:
        server.offload(double, 21)
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=GUARD, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a worker process cannot load __main__.double")
