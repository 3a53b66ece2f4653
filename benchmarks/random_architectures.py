"""Check ridurre on many random models, for as long as one likes.

::

    python benchmarks/random_architectures.py --examples 10000
    python benchmarks/random_architectures.py --seed 1234 --examples 1 --show
    python benchmarks/random_architectures.py --sequences --steps 8 --examples 1000
    python benchmarks/random_architectures.py --transformers --examples 1000
    python benchmarks/random_architectures.py --own --examples 1000

Example i is the model of seed ``--seed + i`` and always the same. Exit code 1 if any fails.
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("tests", ".")]

from architectures import STEPS, Program, describe  # noqa: E402 - found above
from random_checks import Failed, Outcome, run, smallest  # noqa: E402
from random_classes import LINES  # noqa: E402
from random_own import DRAWS  # noqa: E402

KINDS = {
    "sequences": "models with recurrent layers",
    "transformers": "models with attention",
    "own": "layers and models of random classes",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check ridurre on random models.")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first example")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--most-failures", type=int, default=10, help="stop after this many")
    parser.add_argument("--steps", type=int, help="most steps of one model")
    for kind, text in KINDS.items():
        parser.add_argument(
            f"--{kind}", dest="kind", action="store_const", const=kind, help=text,
            default="convolutions",
        )  # fmt: skip
    parser.add_argument("--show", action="store_true", help="print every model")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    warnings.simplefilter("ignore")
    total, failures, rounded, start = Outcome(), [], [], time.perf_counter()
    most = [options.steps] if options.steps else []
    for index in range(options.examples):
        passed = time.perf_counter() - start
        if passed > options.seconds or len(failures) >= options.most_failures:
            break
        seed = options.seed + index
        program = DRAWS[options.kind](seed, *most)
        if options.show:
            print(describe(program))
        try:
            outcome = run(program)
            total.add(outcome)
            rounded += [seed] * outcome.rounded
        except Failed as failure:
            failures.append(seed)
            report(seed, program, failure)
        if index % 10 == 9:
            progress(total, failures, time.perf_counter() - start)
    summary(total, failures, time.perf_counter() - start, options.kind)
    if rounded:
        print(f"  seeds that agree in another batch or in float64: {rounded}")
    return bool(failures)


def progress(total: Outcome, failures: list[int], passed: float) -> None:
    ran = total.models + len(failures)
    print(
        f"\r{ran} models, {total.prunable} prunable, {total.plans} plans, {len(failures)} failures,"
        f" {passed / ran:.2f} s each",
        end="",
        file=sys.stderr,
        flush=True,
    )


def report(seed: int, program: Program, failure: Failed) -> None:
    print(f"\n--- seed {seed}: {str(failure)[:1500]}")
    program, failure = smallest(program, failure)
    print(f"--- smallest: {str(failure)[:1500]}\n{describe(program)}", flush=True)


def summary(total: Outcome, failures: list[int], passed: float, kind: str) -> None:
    ran = total.models + len(failures)
    print(f"\n{ran} models in {passed:.0f} s: {len(failures)} failures")
    for name, value in vars(total).items():
        if name != "steps":
            print(f"  {name:12} {value}")
    counts = sorted(total.steps.items(), key=lambda item: -item[1])
    print("  steps: " + ", ".join(f"{name} {count}" for name, count in counts))
    never = (LINES if kind == "own" else STEPS).keys() - dict(counts).keys()
    if never:
        print(f"  never taken: {', '.join(sorted(never))}")
    if failures:
        print(f"  failing seeds: {failures}")


if __name__ == "__main__":
    sys.exit(main())
