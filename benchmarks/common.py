"""What the benchmarks share: interleaved timing, worker processes, Markdown tables.

Only the standard library is imported here, because workers in other environments use it too.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"

sys.path.insert(0, str(HERE.parent))  # measure the checkout that the benchmark stands in
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def say(text: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def seconds(action: Callable[[], Any]) -> float:
    """Wall time of one call; garbage is collected before."""
    gc.collect()
    start = time.perf_counter()
    result = action()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def interleaved(
    actions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Wall times of several actions that take turns, so that a busy machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(warmup + repeats):
        for name, action in actions.items():
            elapsed = seconds(action)
            if turn >= warmup:
                times[name].append(elapsed)
    return times


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median of the ratios of neighbouring measurements."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def peak_mb() -> float:
    """Largest resident memory of this process so far, or since `reset_peak`, in MB."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> float:
    """Start a new high-water mark (Linux only) and return where it starts, in MB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


# --- worker processes -------------------------------------------------------------------------


class WorkerError(Exception):
    """A worker process failed; the text says how."""


class Worker:
    """A process that measures when it is told to, so that several can take turns.

    Args:
        command: starts a program that ends in `serve`.
        timeout: seconds that one call may take.
    """

    def __init__(self, command: Sequence[str], timeout: float = 600) -> None:
        self.timeout = timeout
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=HERE.parent,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def call(self, command: str, **arguments: Any) -> Any:
        """Have a command run in the worker and return what it returns."""
        timer = threading.Timer(self.timeout, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps([command, arguments]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            tail = self.errors.read()[-2000:]
            why = "ran out of time" if timed_out else f"ended ({self.process.returncode})"
            raise WorkerError(f"The worker {why} during {command!r}.\n{tail}")
        result = json.loads(answer)
        if "error" in result:
            raise WorkerError(result["error"])
        return result["value"]


def other_python(env: Path, packages: Sequence[str], module: str) -> Path:
    """The interpreter of an environment with these packages, which is made if it is not there.

    Args:
        env: its folder.
        packages: what is installed.
        module: can be imported in it when it is complete.
    """
    python = env / "bin" / "python"
    probe = [str(python), "-c", f"import {module}"]
    if python.exists() and not subprocess.run(probe, capture_output=True, check=False).returncode:
        return python
    say(f"making an environment with {', '.join(packages)} in {env}")
    venv.create(env, with_pip=True, clear=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Carry out the calls of a `Worker` until it closes the pipe."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not get into the answers
    for line in sys.stdin:
        command, arguments = json.loads(line)
        try:
            answer = {"value": commands[command](**arguments)}
        except Exception as error:
            text = " ".join(str(error).split())
            answer = {"error": f"{type(error).__name__}: {text[:2000]}"}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


# --- tables -----------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in [header, align, *rows])


def here_and_now(packages: Sequence[str] = ("keras", "tensorflow", "numpy")) -> str:
    """When, on what machine and with which versions something was measured."""
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in packages)
    return (
        f"Measured {datetime.date.today().isoformat()} on {os.cpu_count()} cores "
        f"({_processor()}, shared with other work), {platform.system()}, "
        f"Python {platform.python_version()}, {versions}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.machine()


def write(name: str, title: str, *parts: str) -> Path:
    """Write a page of results; the command that makes it again stands on top."""
    path = RESULTS / f"{name}.md"
    path.parent.mkdir(exist_ok=True)
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        command = f"KERAS_BACKEND={backend} {command}"
    page = [f"# {title}", f"```\n{command}\n```", *parts]
    path.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    say(f"written to {path}")
    return path
