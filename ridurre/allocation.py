"""How many channels of each group go, by dynamic programming over a budget."""

from __future__ import annotations

import numpy as np

from ridurre.costs import Cost
from ridurre.errors import RequestError
from ridurre.selection import Ranking, Request


def knapsack(
    errors: list[np.ndarray], costs: list[np.ndarray], budget: float, buckets: int = 10_000
) -> list[int]:
    """One option per group, so that the errors' sum is least and the costs' sum in the budget.

    Dynamic programme over costs in buckets (rounded up, so that the budget holds): ``D[l][t] =
    min_s D[l−1][t − c_{l,s}] + e_{l,s}``; Frantar & Alistarh, "SPDY", ICML 2022.

    Args:
        errors: for every group the error of each option.
        costs: for every group the cost of each option, of the same lengths.
        budget: the most that all costs together may be.
        buckets: how finely costs are told apart.

    Returns:
        The chosen option of every group.

    Raises:
        RequestError: even the cheapest options cost more than the budget.
    """
    least = sum(float(np.min(c)) for c in costs)
    if least > budget * (1 + 1e-12):
        raise RequestError(
            f"The budget cannot be kept: expected at least {least:g}, the cost of the cheapest "
            f"options. Received: {budget:g}."
        )
    # What is spent beyond the cheapest options is counted, so that rounding can't break a budget.
    spare = max(budget - least, 1e-12)
    steps = [np.ceil((c - np.min(c)) / spare * buckets - 1e-9).astype(int) for c in costs]
    best = np.zeros(buckets + 1)
    choices: list[np.ndarray] = []
    for error, step in zip(errors, steps, strict=True):
        options = np.full((len(error), buckets + 1), np.inf)
        for s, (e, c) in enumerate(zip(error, step, strict=True)):
            if c <= buckets:
                options[s, c:] = best[: buckets + 1 - c] + e
        choices.append(options.argmin(axis=0))
        best = options.min(axis=0)
    left, picked = buckets, []
    for choice, step in zip(reversed(choices), reversed(steps), strict=True):
        picked.append(int(choice[left]))
        left -= int(step[picked[-1]])
    return picked[::-1]


def allocate(ranking: Ranking, cost: Cost, budget: float, levels: int = 32) -> Request:
    """Units to remove by dynamic programming: the least sum of scores, a cost within a budget.

    A group's options are numbers of its weakest units; their error is the sum of the scores. What
    an option costs is taken with the other groups as the last round left them, and the rounds'
    budgets are adjusted until the cost of the whole cut lands on the budget.

    Args:
        ranking: the units, their scores and limits.
        cost: what is limited.
        budget: the most that may remain.
        levels: options per group at most.

    Raises:
        RequestError: the budget cannot be reached.
    """
    options = [_options(n, levels) for n in ranking.most]
    errors = [ranking.errors(i)[o] for i, o in enumerate(options)]
    lost = np.zeros(len(options), int)
    found: Request = {}
    for _ in range(3):  # with the other groups at full size, then as the last round left them
        tables = _cost_tables(ranking, cost, options, lost)
        low, high = sum(float(t.min()) for t in tables), sum(float(t.max()) for t in tables)
        for _ in range(25):
            middle = (low + high) / 2
            picks = knapsack(errors, tables, max(middle, low), buckets=2000)
            counts = np.array([o[p] for o, p in zip(options, picks, strict=True)])
            request = ranking.weakest(counts)
            fits = cost.total(ranking.alive(request)) <= budget
            low, high = (middle, high) if fits else (low, middle)
            if fits:
                found, lost = request, counts
    if not found and cost.total(ranking.alive({})) > budget:
        everything = cost.total(ranking.alive(ranking.weakest(ranking.most)))
        raise RequestError(
            f"The target cannot be reached. Expected at most {budget:g}; {everything:g} remain "
            "when everything that may go is gone."
        )
    return ranking.give_back(found, lambda r: cost.total(ranking.alive(r)) <= budget)


def _options(most: int, levels: int) -> np.ndarray:
    return np.unique(np.linspace(0, most, min(levels, most + 1)).round().astype(int))


def _cost_tables(
    ranking: Ranking, cost: Cost, options: list[np.ndarray], lost: np.ndarray
) -> list[np.ndarray]:
    """What every option costs with the other groups as they are, from the cheapest up."""
    tables = []
    for i, option in enumerate(options):
        others = np.where(np.arange(len(lost)) == i, 0, lost)
        table = cost.after(ranking.alive(ranking.weakest(others)), i, option)
        tables.append(table - table.min())
    return tables
