"""``ridurre prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import keras

from ridurre import costs, recovery, schedules
from ridurre.cli.app import COMMON, CRITERION, DATA, EXISTING, FORCE, LOADING, LOSS, NEW, SEED, main
from ridurre.cli.inputs import TARGETS, parse_target, read_data, read_model
from ridurre.cli.outputs import check_ending, check_free, check_page, save_model, save_report, show
from ridurre.errors import RequestError
from ridurre.measure import Complexity, model_complexity
from ridurre.plan import PruningPlan
from ridurre.reports import compare
from ridurre.selection import SCOPES, STREAMS
from ridurre.strategy import ChannelPrune
from ridurre.surgery import apply
from ridurre.tables import aligned
from ridurre.targets import Target
from ridurre.verification import verify


def _as_targets(
    ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> list[Target]:
    try:
        return [parse_target(text) for text in texts]
    except RequestError as error:
        raise click.BadParameter(str(error), ctx, option) from error


@main.command()
@click.argument("model", type=EXISTING)
@click.option("-o", "--output", type=NEW, help="Where the smaller model goes, a .keras file.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME=NUMBER",
    callback=_as_targets,
    help=f"What should remain: {', '.join(TARGETS)}. macs=0.5 or 50% is half of the model's, "
    "params=200000 a count, ms=4 milliseconds. Several have to hold together.",
)
@click.option("--amount", type=float, help="Fraction of the channels to remove, in place of it.")
@CRITERION
@click.option("--scope", type=click.Choice(SCOPES), default="local", show_default=True)
@click.option("--cost", type=click.Choice([*costs.COSTS, "latency"]), help="Divide scores by it.")
@DATA
@LOSS
@click.option(
    "--recover",
    multiple=True,
    type=click.Choice(list(recovery.METHODS)),
    help="Repair with the samples, without training; several in their order.",
)
@click.option(
    "--steps",
    type=int,
    default=1,
    show_default=True,
    help="Cut in so many rounds, and score anew before each.",
)
@click.option("--schedule", type=click.Choice(list(schedules.SCHEDULES)), default="linear")
@click.option(
    "--streams",
    type=click.Choice(STREAMS),
    default="rank",
    help="Residual streams: rank with the rest, leave alone, or rank apart.",
)
@click.option("--round-to", type=int, default=1, help="What stays is a multiple of this.")
@click.option("--min-channels", type=int, default=1, help="What stays at least in every group.")
@click.option(
    "--only", multiple=True, metavar="REGEX", help="Only these layers lose channels; as --exclude."
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="REGEX",
    help="These layers keep all channels: names that fit as a whole, such as 'stage4_.*'.",
)
@SEED
@click.option(
    "--verify",
    "verified",
    is_flag=True,
    help="Check that the smaller model equals the original with zeros in what went.",
)
@click.option(
    "--report", "page", type=NEW, help="Where a report goes: .html, .md or .json; of a dry run too."
)
@click.option("--dry-run", is_flag=True, help="Show what would go; write no model.")
@FORCE
@LOADING
@COMMON
def prune(model: Path, output: Path | None, **options: Any) -> None:
    """Remove channels of MODEL down to a target."""
    _check_prune(output, options)
    original = read_model(model, unsafe=options["unsafe"], modules=options["modules"])
    data = read_data(options["data"], original)
    strategy = _strategy(options, data)
    smaller, plan = strategy.run(original)
    difference = _verified(original, smaller, plan, strategy) if options["verified"] else None
    if not options["dry_run"] and output is not None:
        save_model(smaller, output)
    if options["page"] is not None:
        save_report(compare(original, smaller, plan=plan, data=data), options["page"])
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
    if options["amount"] is None and not options["targets"]:
        raise click.UsageError("Give --target, such as --target macs=0.5, or --amount.")
    if options["amount"] is not None and options["targets"]:
        raise click.UsageError("Give --target or --amount, not both.")
    if output is None and not options["dry_run"]:
        raise click.UsageError("Give --output, where the smaller model goes, or --dry-run.")
    model = None if options["dry_run"] else output
    if model is not None:
        check_ending(model, (".keras",))
    check_page(options["page"])
    check_free([model, options["page"]], options["force"])


def _strategy(options: dict[str, Any], data: Any) -> ChannelPrune:
    asked = {
        name: options[name]
        for name in ("amount", "criterion", "scope", "cost", "loss", "steps", "schedule",
                     "streams", "round_to", "min_channels", "seed")
    }  # fmt: skip
    return ChannelPrune(
        **asked,
        target=options["targets"] or None,
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
