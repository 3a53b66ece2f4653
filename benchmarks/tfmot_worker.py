"""Prune the small network with tensorflow-model-optimization; tfmot.py runs this with Keras 2.

Reads the weights of the trained network and settings from a file, prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import small_net
import tensorflow_model_optimization as tfmot
import tf_keras as keras


# What a user writes, from here …
def prune_while_training(model: Any, data: small_net.Data, level: float, epochs: int) -> Any:
    steps = epochs * -(-len(data.x) // 128)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.0, final_sparsity=level, begin_step=0, end_step=int(0.75 * steps)
    )
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule)
    small_net.compile_model(keras, wrapped)
    wrapped.fit(
        data.x, data.y, batch_size=128, epochs=epochs, verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep(), *CLOCK],
    )  # fmt: skip
    return tfmot.sparsity.keras.strip_pruning(wrapped)


# … to here.


CLOCK: list[Any] = []


def main() -> None:
    settings = json.loads(sys.argv[1])
    data = small_net.load(Path(settings["data"]))
    model = small_net.build(keras)
    with np.load(settings["weights"]) as file:
        model.set_weights([file[f"arr_{i}"] for i in range(len(file.files))])
    keras.utils.set_random_seed(settings["seed"])
    CLOCK.append(small_net.clock(keras))
    pruned = prune_while_training(model, data, settings["level"], settings["epochs"])
    found = {
        "accuracy": small_net.accuracy(pruned, data),
        "sparsity": small_net.sparsity(pruned),
        "seconds": CLOCK[0].seconds,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
