"""The commands that only look: ``inspect``, ``sensitivity``, ``compare`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import keras

from ridurre.checkpoints import Checkpoints
from ridurre.cli.app import (
    COMMON,
    CRITERION,
    DATA,
    EXISTING,
    FOLDER,
    FORCE,
    LOADING,
    LOSS,
    NEW,
    SEED,
    main,
)
from ridurre.cli.inputs import import_modules, read_data, read_model
from ridurre.cli.inspection import inspection
from ridurre.cli.outputs import check_free, check_page, save_report, show, writing
from ridurre.errors import RequestError
from ridurre.history import Step
from ridurre.optional import load
from ridurre.reports import Report, compare
from ridurre.sensitivities import sensitivity
from ridurre.sensitivities.arguments import GRAINS

_PAGE = click.option(
    "-o", "--output", type=NEW, help="Where the whole report goes: .html, .md or .json."
)


@main.command()
@click.argument("model", type=EXISTING)
@LOADING
@COMMON
def inspect(model: Path, unsafe: bool, modules: tuple[str, ...], as_json: bool) -> None:
    """Show what is in MODEL: size by layer, groups, and what cannot be pruned and why."""
    found = inspection(read_model(model, unsafe=unsafe, modules=modules))
    show(as_json, found.to_dict(), found)


@main.command(name="sensitivity")
@click.argument("model", type=EXISTING)
@DATA
@click.option("-o", "--output", type=NEW, required=True, help="A folder for the results.")
@CRITERION
@click.option(
    "--amounts",
    default="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    show_default=True,
    help="Fractions to remove, with commas.",
)
@click.option("--grain", type=click.Choice(GRAINS), default="channels", show_default=True)
@click.option("--metric", help="The compiled metric that counts, or loss.")
@LOSS
@click.option("--samples", type=int, help="At most that many samples.")
@click.option("--max-seconds", type=float, help="Stop in time for this.")
@click.option("--workers", default="1", show_default=True, help="Processes, or ray.")
@SEED
@FORCE
@LOADING
@COMMON
def sensitivity_command(model: Path, output: Path, **options: Any) -> None:
    """Measure what cutting each part of MODEL alone costs, without retraining.

    Writes sensitivity.json, sensitivity.csv, curves.png and heatmap.png to the output folder. If it
    is interrupted, the same command goes on where it was.
    """
    load("matplotlib", "The command's pictures")
    if options["data"] is None:
        raise click.UsageError("Give --data, samples with labels.")
    names = ("sensitivity.json", "sensitivity.csv", "curves.png", "heatmap.png")
    paths = [output / name for name in names]
    if output.exists():
        check_free(paths, options["force"])
    else:
        check_free([output], force=False)
    original = read_model(model, unsafe=options["unsafe"], modules=options["modules"])
    asked = {n: options[n] for n in ("criterion", "grain", "metric", "loss", "samples",
                                     "max_seconds", "seed")}  # fmt: skip
    found = sensitivity(
        original,
        read_data(options["data"], original),
        amounts=_amounts(options["amounts"]),
        workers=_workers(options["workers"]),
        folder=output,
        verbose=0 if options["as_json"] else 1,
        **asked,
    )
    for path, write in zip(
        paths, (found.to_json, found.to_csv, found.plot, found.heatmap), strict=True
    ):
        with writing(path):
            write(path)
    show(options["as_json"], found.to_dict(), found)


def _amounts(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"Expected fractions with commas, such as 0.25,0.5. Received: {text!r}.",
            param_hint="--amounts",
        ) from error


def _workers(text: str) -> int | str:
    if text != "ray" and not text.isdigit():
        raise click.BadParameter(f"Expected a number or ray. Received: {text!r}.",
                                 param_hint="--workers")  # fmt: skip
    return text if text == "ray" else int(text)


@main.command(name="compare")
@click.argument("original", type=EXISTING)
@click.argument("pruned", type=EXISTING)
@DATA
@_PAGE
@FORCE
@LOADING
@COMMON
def compare_command(original: Path, pruned: Path, output: Path | None, **options: Any) -> None:
    """Show what differs between two models: size, cost, speed, accuracy, layer by layer."""
    _check_page(output, options)
    before, after = (
        read_model(path, unsafe=options["unsafe"], modules=options["modules"])
        for path in (original, pruned)
    )
    report = compare(before, after, data=read_data(options["data"], before))
    _hand_over(report, output, options)


@main.command(name="report")
@click.argument("run_dir", type=FOLDER)
@DATA
@click.option("--loss", help="Name of a Keras loss to evaluate with; needs --data.")
@click.option("--metric", "metrics", multiple=True, help="Name of a Keras metric; needs --loss.")
@_PAGE
@FORCE
@LOADING
@COMMON
def report_command(run_dir: Path, output: Path | None, **options: Any) -> None:
    """Show what a run of pruning did, from the folder that it keeps (checkpoint_dir)."""
    _check_page(output, options)
    if options["metrics"] and not options["loss"]:
        raise click.UsageError(
            "--metric needs --loss, such as --loss sparse_categorical_crossentropy."
        )
    if options["loss"] and options["data"] is None:
        raise click.UsageError("--loss needs --data, samples with labels.")
    import_modules(options["modules"])
    if options["unsafe"]:
        keras.config.enable_unsafe_deserialization()
    folder = Checkpoints(run_dir)
    state = folder.load()
    if state is None:
        raise RequestError(
            f"{str(run_dir)!r} holds no run. Expected a folder that run_pruning had as "
            "checkpoint_dir."
        )
    original = folder.load_original()
    pruned = folder.load_model() or original
    for model in (original, pruned):
        if options["loss"] or options["metrics"]:
            model.compile(loss=options["loss"], metrics=list(options["metrics"]))
    report = compare(
        original,
        pruned,
        data=read_data(options["data"], original),
        history=[Step(**step) for step in state["steps"]],
    )
    _hand_over(report, output, options)


def _check_page(output: Path | None, options: dict[str, Any]) -> None:
    check_page(output)
    check_free([output], options["force"])


def _hand_over(report: Report, output: Path | None, options: dict[str, Any]) -> None:
    save_report(report, output)
    show(options["as_json"], report.to_dict(), report)
