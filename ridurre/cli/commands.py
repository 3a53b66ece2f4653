"""The commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import keras

from ridurre import costs, recovery, schedules
from ridurre.cli.app import COMMON, EXISTING, FORCE, LOADING, NEW, Commands
from ridurre.cli.inputs import TARGETS, parse_target, read_data, read_model
from ridurre.cli.outputs import check_ending, check_free, save_model, show
from ridurre.criteria.base import CRITERIA
from ridurre.measure import Complexity, model_complexity
from ridurre.optional import load
from ridurre.plan import PruningPlan
from ridurre.selection import SCOPES, STREAMS
from ridurre.sensitivities import sensitivity
from ridurre.sensitivities.arguments import GRAINS
from ridurre.strategy import ChannelPrune
from ridurre.surgery import apply
from ridurre.tables import aligned
from ridurre.verification import verify

_CRITERION = click.option(
    "--criterion", type=click.Choice(list(CRITERIA)), help="What matters; by default what fits."
)
_SEED = click.option("--seed", type=int, default=0, show_default=True, help="Of random choices.")
_DATA = click.option(
    "--data", type=EXISTING, help="Samples: an .npz file with x, and if need be y, sample_weight."
)
_LOSS = click.option("--loss", help="Name of a Keras loss, in place of the compiled model's.")


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 it cannot be done, and why; 2 wrong usage; 130 interrupted.",
)
@click.version_option(package_name="ridurre")
def main() -> None:
    """Make Keras models smaller by removing channels, and see what that does to them."""


@main.command()
@click.argument("model", type=EXISTING)
@click.option("-o", "--output", type=NEW, help="Where the smaller model goes, a .keras file.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME=NUMBER",
    help=f"What should remain: {', '.join(TARGETS)}. macs=0.5 or 50% is half of the model's, "
    "params=200000 a count, ms=4 milliseconds. Several have to hold together.",
)
@click.option("--amount", type=float, help="Fraction of the channels to remove, in place of it.")
@_CRITERION
@click.option("--scope", type=click.Choice(SCOPES), default="local", show_default=True)
@click.option("--cost", type=click.Choice([*costs.COSTS, "latency"]), help="Divide scores by it.")
@_DATA
@_LOSS
@click.option(
    "--recover",
    multiple=True,
    type=click.Choice(list(recovery.METHODS)),
    help="Repair with the samples, without training; several in their order.",
)
@click.option("--steps", type=int, default=1, show_default=True, help="Score anew before each.")
@click.option("--schedule", type=click.Choice(list(schedules.SCHEDULES)), default="linear")
@click.option(
    "--streams",
    type=click.Choice(STREAMS),
    default="rank",
    help="Residual streams: rank with the rest, leave alone, or rank apart.",
)
@click.option("--round-to", type=int, default=1, help="What stays is a multiple of this.")
@click.option("--min-channels", type=int, default=1, help="What stays at least in every group.")
@click.option("--only", multiple=True, metavar="REGEX", help="Only these layers lose channels.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="These layers keep all channels.")
@_SEED
@click.option(
    "--verify",
    "verified",
    is_flag=True,
    help="Check that the smaller model equals the original with zeros in what went.",
)
@click.option("--dry-run", is_flag=True, help="Show what would go; write nothing.")
@FORCE
@LOADING
@COMMON
def prune(model: Path, output: Path | None, **options: Any) -> None:
    """Remove channels of MODEL down to a target."""
    _check_prune(output, options)
    original = read_model(model, unsafe=options["unsafe"], modules=options["modules"])
    strategy = _strategy(options, read_data(options["data"], original))
    smaller, plan = strategy.run(original)
    difference = _verified(original, smaller, plan, strategy) if options["verified"] else None
    if not options["dry_run"] and output is not None:
        save_model(smaller, output)
    sizes = {"before": model_complexity(original), "after": model_complexity(smaller)}
    facts = {
        "output": None if options["dry_run"] else str(output),
        **{name: _counts(size) for name, size in sizes.items()},
        "plan": plan.to_dict(),
        "verified": difference,
    }
    lines = [_sizes_table(**sizes)]
    if options["dry_run"]:
        lines.insert(0, str(plan))
    if difference is not None:
        lines.append(f"Verified: the cut is exact to {difference:.1e}.")
    show(options["as_json"], facts, "\n".join(lines))


def _check_prune(output: Path | None, options: dict[str, Any]) -> None:
    if (options["amount"] is None) == (not options["targets"]):
        raise click.UsageError("Give --target, such as --target macs=0.5, or --amount.")
    if options["dry_run"]:
        return
    if output is None:
        raise click.UsageError("Give --output, where the smaller model goes, or --dry-run.")
    check_ending(output, (".keras",))
    check_free([output], options["force"])


def _strategy(options: dict[str, Any], data: Any) -> ChannelPrune:
    asked = {
        name: options[name]
        for name in ("amount", "criterion", "scope", "cost", "loss", "steps", "schedule",
                     "streams", "round_to", "min_channels", "seed")
    }  # fmt: skip
    return ChannelPrune(
        **asked,
        target=[parse_target(text) for text in options["targets"]] or None,
        data=data,
        recover=list(options["recover"]) or None,
        layers=list(options["only"]) or None,
        protect=list(options["exclude"]) or None,
    )


def _verified(
    original: keras.Model, smaller: keras.Model, plan: PruningPlan, strategy: ChannelPrune
) -> float:
    """The largest difference of the cut itself: a repair changes what stays, on purpose."""
    return verify(original, smaller if strategy.recover is None else apply(original, plan), plan)


def _counts(size: Complexity) -> dict[str, Any]:
    names = ("parameters", "macs", "filters", "activation_memory")
    return {name: getattr(size, name) for name in names}


def _sizes_table(before: Complexity, after: Complexity) -> str:
    rows: list[tuple[str, ...]] = [("", "before", "after", "left")]
    for name, old in _counts(before).items():
        new = _counts(after)[name]
        left = "" if not old or new is None else f"{new / old:.1%}"
        rows.append((name.replace("_", " "), *(_number(n) for n in (old, new)), left))
    return aligned(rows, left=1)


def _number(value: int | None) -> str:
    return "open" if value is None else f"{value:,}"


@main.command(name="sensitivity")
@click.argument("model", type=EXISTING)
@_DATA
@click.option("-o", "--output", type=NEW, required=True, help="A folder for the results.")
@_CRITERION
@click.option(
    "--amounts",
    default="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    show_default=True,
    help="Fractions to remove, with commas.",
)
@click.option("--grain", type=click.Choice(GRAINS), default="channels", show_default=True)
@click.option("--metric", help="The compiled metric that counts, or loss.")
@_LOSS
@click.option("--samples", type=int, help="At most that many samples.")
@click.option("--max-seconds", type=float, help="Stop in time for this.")
@click.option("--workers", default="1", show_default=True, help="Processes, or ray.")
@_SEED
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
