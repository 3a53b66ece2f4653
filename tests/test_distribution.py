"""Distributed models are scored, cut and fine-tuned as they are, and come back distributed.

Several devices have to be set up before a backend starts, so that these checks run in processes of
their own: see distributed.py.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ridurre

SCRIPT = Path(__file__).with_name("distributed.py")
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")


# Two devices, and quick compiling rather than good: what is compiled runs for milliseconds.
XLA_FLAGS = (
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)


def run(kind, backend, folder):
    env = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join([str(Path(ridurre.__file__).parents[1]), str(SCRIPT.parent)]),
        "XLA_FLAGS": XLA_FLAGS,
    }
    command = [sys.executable, str(SCRIPT), kind, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all well\n")


def test_mirrored_over_two_devices(tmp_path):
    run("mirrored", "tensorflow", tmp_path)


@pytest.mark.core
@needs_jax
@pytest.mark.parametrize("kind", ["data", "model"])
def test_parallel_over_two_devices(kind, tmp_path):
    run(kind, "jax", tmp_path)
