"""Train a small network, prune it step by step with ridurre, and compare before and after.

    python example/prune_cnn.py                                   # digits, a minute or two
    python example/prune_cnn.py --model vgg --method random --factor 0.15
    python example/prune_cnn.py --data cifar10.npz --train-limit 10000 --epochs 10
    python example/prune_cnn.py --dataset cifar10                 # takes hours without a GPU

The output folder gets the trained and the pruned model (.keras), a plot of accuracy and size over
the pruning steps (history.png) and the same figures as text (history.json).
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import data
import keras
import matplotlib
import models

import ridurre

matplotlib.use("Agg")  # Draw into files: there may be no display.
from matplotlib import pyplot as plt

METHODS: dict[str, Callable[..., ridurre.BasePruning]] = {
    "kmeans": ridurre.KMeansFilterPruning,
    "random": ridurre.RandomFilterPruning,
}
# The two methods count in opposite directions (see --help); both remove a tenth or so per step.
DEFAULT_FACTORS = {"kmeans": 0.9, "random": 0.1}
LEARNING_RATE = 3e-3
EVALUATION_BATCH_SIZE = 256


@dataclass(frozen=True)
class Measurement:
    """What the final table compares; latencies are of one image and of a whole batch."""

    test_accuracy: float
    filters: int
    parameters: int
    macs: int
    file_bytes: int
    latency_ms: float
    batch_latency_ms: float


@dataclass(frozen=True)
class Step:
    """The network after a pruning step and its fine-tuning; step 0 is the trained baseline."""

    step: int
    validation_accuracy: float
    filters: int
    parameters: int
    macs: int
    seconds: float


@dataclass
class Trainer:
    """Holds what training needs beside the model, and the two functions that ridurre calls."""

    dataset: data.Dataset
    batch_size: int
    seed: int
    verbose: int
    # Validation accuracy at the end of every round; the first round is the training itself.
    accuracies: list[float] = field(default_factory=list)

    def compile(self, model: keras.Model, epochs: int) -> None:
        """Compiles for one round, at whose end the learning rate reaches zero."""
        batches = math.ceil(len(self.dataset.train[0]) / self.batch_size)
        rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, decay_steps=batches * epochs)
        model.compile(
            optimizer=keras.optimizers.Adam(rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            # Every pruning step trains a new network for a few epochs only: on a CPU, compiling
            # it with XLA takes 5 s to 10 s, more than the faster epochs give back.
            jit_compile=False,
        )

    def fit(self, model: keras.Model, initial_epoch: int, final_epoch: int) -> None:
        """Trains up to an absolute epoch and notes the validation accuracy."""
        # The seed differs from round to round, or each would see the same shifts again.
        seed = self.seed + len(self.accuracies)
        history = model.fit(
            data.ShiftedImages(self.dataset.train, self.batch_size, seed),
            initial_epoch=initial_epoch,
            epochs=final_epoch,
            validation_data=self.dataset.validation,
            validation_batch_size=EVALUATION_BATCH_SIZE,
            verbose=self.verbose,
        )
        self.accuracies.append(history.history["val_accuracy"][-1])
        size = ridurre.model_complexity(model)
        print(
            f"step {len(self.accuracies) - 1}: {size.filters} filters, "
            f"{size.parameters:,} parameters, {size.macs:,} MACs, "
            f"validation accuracy {self.accuracies[-1]:.2%}",
            flush=True,
        )


def train(trainer: Trainer, model: keras.Model, epochs: int) -> Step:
    """Trains the network that is going to be pruned; returns what the plot starts from."""
    start = time.perf_counter()
    trainer.compile(model, epochs)
    trainer.fit(model, 0, epochs)
    size = ridurre.model_complexity(model)
    return Step(
        step=0,
        validation_accuracy=trainer.accuracies[0],
        filters=size.filters,
        parameters=size.parameters,
        macs=size.macs or 0,
        seconds=time.perf_counter() - start,
    )


def prune(
    trainer: Trainer, model: keras.Model, options: argparse.Namespace
) -> tuple[keras.Model, list[Step]]:
    """Prunes step by step, fine-tuning after each step; returns the smaller network."""

    def compile_my_model(model: keras.Model) -> None:
        trainer.compile(model, options.finetune_epochs)

    def finetune_my_model(model: keras.Model, initial_epoch: int, finetune_epochs: int) -> None:
        trainer.fit(model, initial_epoch, finetune_epochs)

    pruning = METHODS[options.method](
        options.factor,
        compile_my_model,
        finetune_my_model,
        options.finetune_epochs,
        maximum_prune_iterations=options.max_steps,
        maximum_pruning_percent=options.max_pruned,
        nb_trained_for_epochs=options.epochs,
        seed=options.seed,
    )
    pruned, _ = pruning.run_pruning(model)
    accuracies = trainer.accuracies[1:]
    steps = [
        Step(number, accuracy, r.filters, r.parameters, r.macs or 0, r.seconds)
        for number, (accuracy, r) in enumerate(zip(accuracies, pruning.history, strict=True), 1)
    ]
    return pruned, steps


def save(model: keras.Model, file: Path) -> None:
    """Saves for inference: a copy without the optimizer, whose state would triple the file."""
    bare = type(model).from_config(model.get_config())
    bare.set_weights(model.get_weights())
    bare.save(file)


def measure(
    networks: Sequence[keras.Model], files: Sequence[Path], test: data.Part
) -> list[Measurement]:
    """Measures networks and their files; nothing else in this script sees the test images."""
    single, batch = (latencies_ms(networks, size) for size in (1, EVALUATION_BATCH_SIZE))
    measurements = []
    for index, (model, file) in enumerate(zip(networks, files, strict=True)):
        predictions = model.predict(test[0], batch_size=EVALUATION_BATCH_SIZE, verbose=0)
        size = ridurre.model_complexity(model)
        measurements.append(
            Measurement(
                test_accuracy=float((predictions.argmax(axis=-1) == test[1]).mean()),
                filters=size.filters,
                parameters=size.parameters,
                macs=size.macs or 0,
                file_bytes=file.stat().st_size,
                latency_ms=single[index],
                batch_latency_ms=batch[index],
            )
        )
    return measurements


def latencies_ms(networks: Sequence[keras.Model], batch_size: int) -> list[float]:
    """Times a prediction of each network, in milliseconds.

    The networks take turns and each one's best round counts, so that other programs on the
    machine, which can only slow a prediction down, do not fall on one of them alone.
    """
    rounds = [
        [ridurre.measure_latency(model, batch_size=batch_size) for model in networks]
        for _ in range(5)
    ]
    return [1000 * min(times) for times in zip(*rounds, strict=True)]


def table(before: Measurement, after: Measurement) -> str:
    """Lays the two measurements side by side, with the change."""
    points = 100 * (after.test_accuracy - before.test_accuracy)
    rows = [
        ("", "before", "after", "change"),
        (
            "test accuracy",
            f"{before.test_accuracy:.2%}",
            f"{after.test_accuracy:.2%}",
            f"{points:+.2f} points",
        ),
        _size_row("filters (Conv2D)", before.filters, after.filters),
        _size_row("parameters", before.parameters, after.parameters),
        _size_row("MACs per image", before.macs, after.macs),
        _size_row("file size (bytes)", before.file_bytes, after.file_bytes),
        _size_row("latency, 1 image (ms)", before.latency_ms, after.latency_ms),
        _size_row(
            f"latency, {EVALUATION_BATCH_SIZE} images (ms)",
            before.batch_latency_ms,
            after.batch_latency_ms,
        ),
    ]
    return "\n".join(f"{a:<24} {b:>14} {c:>14} {d:>14}" for a, b, c, d in rows)


def _size_row(name: str, before: float, after: float) -> tuple[str, str, str, str]:
    form = ",d" if isinstance(before, int) else ".2f"
    return name, f"{before:{form}}", f"{after:{form}}", f"{after / before - 1:+.1%}"


def plot(steps: Sequence[Step], title: str, file: Path) -> None:
    """Draws validation accuracy above, and filters, parameters and MACs below, over the steps."""
    x = [step.step for step in steps]
    figure, (top, bottom) = plt.subplots(2, sharex=True, figsize=(7, 6), layout="constrained")
    accuracies = [100 * step.validation_accuracy for step in steps]
    top.plot(x, accuracies, "o-", color="black")
    top.set(title=title, ylabel="validation accuracy (%)")
    lowest, highest = top.get_ylim()
    # A range of a point or less would make a single image look like a slump.
    best = max(accuracies)
    top.set_ylim(min(lowest, best - 5), max(highest, best + 0.5))
    for name, label, marker in (
        ("filters", "filters (Conv2D)", "o"),
        ("parameters", "parameters", "s"),
        ("macs", "MACs", "^"),
    ):
        sizes = [getattr(step, name) for step in steps]
        bottom.plot(x, [100 * size / sizes[0] for size in sizes], f"{marker}-", label=label)
    bottom.set(xlabel="pruning step (0: as trained)", ylabel="size left (% of the baseline)")
    bottom.set_ylim(0, 105)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    bottom.legend()
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def prepare_output(folder: Path) -> None:
    """Makes the output folder and tries to write there, before hours of training are spent.

    Raises:
        OSError: The folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"The output folder {str(folder)!r} cannot be used: {error.strerror}. Expected a "
            "folder, or a place for a new one, where you may write. Give another one with "
            "--output."
        ) from error


def at_least(minimum: int) -> Callable[[str], int]:
    """Makes a reader of whole numbers that are not too small."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {minimum}, received {text}"
            )
        return int(text)

    return read


def fraction(text: str) -> float:
    """Reads a number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, received {text}")
    return value


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add(
        "--dataset",
        choices=data.DATASETS,
        default="digits",
        help="digits comes with scikit-learn, the others are downloaded (default: %(default)s)",
    )
    add(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="use x_train, y_train, x_test, y_test of this file instead of --dataset: uint8 "
        "images (n, height, width[, channels]) and class numbers (n,) or (n, 1)",
    )
    add("--train-limit", type=at_least(1), metavar="N", help="use only the first N training images")
    add("--model", choices=models.BUILDERS, default="resnet", help="default: %(default)s")
    add("--method", choices=METHODS, default="kmeans", help="default: %(default)s")
    add(
        "--factor",
        type=fraction,
        help="kmeans: the fraction of each layer's filters KEPT per step (default: 0.9); random: "
        "the fraction REMOVED per step (default: 0.1)",
    )
    add(
        "--max-pruned",
        type=fraction,
        default=0.4,
        help="stop once more than this fraction of all filters is gone (default: %(default)s)",
    )
    add(
        "--max-steps",
        type=at_least(1),
        default=12,
        help="stop after so many pruning steps (default: %(default)s)",
    )
    add(
        "--epochs",
        type=at_least(1),
        default=40,
        help="epochs of training before pruning (default: %(default)s)",
    )
    add(
        "--finetune-epochs",
        type=at_least(1),
        default=20,
        help="epochs of training after each pruning step (default: %(default)s)",
    )
    add("--batch-size", type=at_least(1), default=64, help="default: %(default)s")
    add(
        "--seed",
        type=at_least(0),
        default=0,
        help="of splits, weights, batches and clusters (default: %(default)s)",
    )
    add(
        "--output",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    add(
        "--verbose",
        type=int,
        choices=(0, 1, 2),
        default=1 if sys.stdout.isatty() else 2,
        help="while training, show 0: nothing, 1: progress bars, 2: a line per epoch (default: 1 "
        "on a terminal, else 2)",
    )
    options = parser.parse_args(arguments)
    if options.factor is None:
        options.factor = DEFAULT_FACTORS[options.method]
    return options


def run(options: argparse.Namespace) -> tuple[Measurement, Measurement]:
    """Trains, prunes, saves and draws; returns the measurements before and after.

    Raises:
        OSError: The output folder cannot be used.
        data.DataError: The data cannot be used.
    """
    start = time.perf_counter()
    prepare_output(options.output)
    dataset = data.load(options.dataset, options.data, options.train_limit, options.seed)
    print(dataset, flush=True)
    keras.utils.set_random_seed(options.seed)
    trainer = Trainer(dataset, options.batch_size, options.seed, options.verbose)

    model = models.BUILDERS[options.model](dataset.input_shape, dataset.classes)
    files = options.output / "baseline.keras", options.output / "pruned.keras"
    baseline = train(trainer, model, options.epochs)
    # The trained network is kept at once: should pruning fail, the training is not lost.
    save(model, files[0])
    pruned, steps = prune(trainer, model, options)
    save(pruned, files[1])
    steps = [baseline, *steps]

    before, after = measure((model, pruned), files, dataset.test)
    report = {
        "options": vars(options),
        "before": asdict(before),
        "after": asdict(after),
        "steps": [asdict(step) for step in steps],
    }
    (options.output / "history.json").write_text(json.dumps(report, indent=2, default=str) + "\n")
    title = f"{options.model} on {dataset.name}, {options.method} pruning"
    plot(steps, title, options.output / "history.png")
    print(f"\n{table(before, after)}\n")
    print(f"{time.perf_counter() - start:.0f} s; results in {options.output}/")
    return before, after


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    try:
        run(parse(arguments))
    except (data.DataError, ridurre.RidurreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
