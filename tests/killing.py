"""A run of pruning that is killed again and again; a script of its own (see test_checkpoints.py).

The script imports Keras once and forks: a fork prunes, the parent kills it. Every time a run gets
to its end, its model is held against that of an undisturbed run, and the next run begins in a new
folder, until enough processes were killed.

Usage: killing.py FOLDER KILLS SEED. Prints one line of JSON.
"""

import collections
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import keras
import numpy as np

import ridurre
from ridurre import checkpoints, files

L = keras.layers
ROUNDS, BATCHES = 4, 5


def build():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(11, 3, name="a")(inputs)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Dropout(0.3, name="dropout")(L.ReLU(name="relu")(x))
    x = L.GlobalAveragePooling2D(name="pool")(L.Conv2D(13, 3, name="b")(x))
    return keras.Model(inputs, L.Dense(3, activation="softmax", name="head")(x), name="killed")


def compile_model(model):
    phase("compile")
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)


def finetune(model, start, end):
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(size=(4 * BATCHES, 6, 6, 3)).astype("float32"),
        rng.integers(0, 3, 4 * BATCHES),
    )
    phase("finetune")
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: phase("finetune"))
    model.fit(
        x, y, batch_size=4, initial_epoch=start, epochs=end, verbose=0, callbacks=[watch],
        shuffle=True,
    )  # fmt: skip


def phase(name):
    """Say in a file what is being done, for statistics."""
    Path(os.environ["PHASE"]).write_text(name, encoding="utf-8")


def prune(folder, result):
    """One whole run. Saving takes longer than it would, so that it is hit too."""
    sync, write = files.sync, checkpoints._write
    files.sync = lambda path: (time.sleep(0.03), sync(path), time.sleep(0.03))
    checkpoints._write = lambda *args: (phase("save"), write(*args), phase("cut"))
    phase("start")
    pruning = ridurre.RandomFilterPruning(0.2, compile_model, finetune, 2, ROUNDS, None, seed=7)
    model, epochs = pruning.run_pruning(build(), checkpoint_dir=folder)
    history = [(s.step, s.filters, s.epochs, s.layers) for s in pruning.history]
    values = {v.path: np.asarray(v) for v in model.weights}
    np.savez(result, epochs=epochs, history=np.array(json.dumps(history)), **values)


def fork(folder, result):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        prune(folder, result)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finished(child):
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("a run failed")
    return True


def same(one, two):
    with np.load(one) as a, np.load(two) as b:
        return a.files == b.files and all(a[k].tobytes() == b[k].tobytes() for k in a.files)


def main(folder, kills, seed):
    os.environ["PHASE"] = str(folder / "phase")
    start = time.perf_counter()
    finished(fork(folder / "undisturbed", folder / "undisturbed.npz"))
    duration = time.perf_counter() - start
    rng = random.Random(seed)
    phases, runs = collections.Counter(), []
    while sum(phases.values()) < kills or not runs or runs[-1] is None:
        if not runs or runs[-1] is not None:
            runs.append(None)
        name = f"run{len(runs)}"
        child = fork(folder / name, folder / f"{name}.npz")
        if sum(phases.values()) < kills:
            time.sleep(rng.uniform(0, 0.5 * duration))
            os.kill(child, signal.SIGKILL)
        if finished(child):
            runs[-1] = same(folder / "undisturbed.npz", folder / f"{name}.npz")
        else:
            phases[(folder / "phase").read_text(encoding="utf-8") or "start"] += 1
    print(json.dumps({"kills": phases, "runs": runs, "seconds": duration}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
