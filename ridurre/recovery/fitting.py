"""Refit layers so that they compute what the original's do, from inputs that lack channels."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from ridurre.forward import Step
from ridurre.recovery.pair import Pair
from ridurre.recovery.sites import Site, site_of
from ridurre.recovery.solve import Ridge, rows_for

logger = logging.getLogger("ridurre")
#: As many numbers of inputs are held from one round to the next; more are gathered again.
HELD = 1 << 25


def sites(pair: Pair, title: str) -> Iterator[tuple[Site, Step, Step]]:
    """Every layer that can be refitted, when it is its turn in a walk through both models."""
    for index, (old, new) in enumerate(pair.walk(title)):
        site = site_of(pair, old.call, new.call, index)
        if site is not None:
            yield site, old, new


def least_squares(pair: Pair) -> None:
    """Refit every layer to what it computes in the original: masked least squares.

    Layer by layer in running order, with inputs X from the pruned network as it was repaired so
    far and targets Y from the original (before the activation function), the change D of the
    kernel and c of the bias minimise ``‖Y − X(W + D) − b − c‖² + λ‖D‖²`` with λ = ridge · mean
    diag(XᵀX). Where a layer's output is added to others that are known already (the last layer of
    a residual branch), Y makes up for what these lack.

    Where a ReLU comes next and cuts Y off, whatever it cuts off is as good: the layer is refitted
    in several rounds, each with targets that leave alone what is cut off in both networks, and ask
    for zero where it is not in the pruned one. That never makes the loss after the ReLU larger, but
    for the pull towards the present weights.

    Single weights that are masked stay zero: every output is then solved for on its own.

    Source: He, Zhang & Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks",
    sections 3.1 and 3.2; with the ReLU, Zhang et al. 2015, "Accelerating Very Deep Convolutional
    Networks for Classification and Detection", solve a like problem. Needs samples, no labels.
    Cost: a forward pass of each model, and per layer a Gram matrix of ``rows × columns²`` and its
    Cholesky factor.
    """
    for site, old, new in sites(pair, "by least squares"):
        linear, settings = site.after, pair.settings
        limit = min(settings.max_rows, site.available(old))
        rows = rows_for(linear.groups, linear.columns, limit)
        shape = linear.matrices.shape
        free = site.free
        if free is not None and rows < linear.columns:
            logger.info("%s is too wide to be refitted around its zeros.", site.new.name)
            continue
        fit = Ridge(*shape, rows=rows, intercept=site.movable, ridge=settings.ridge, free=free)
        rounds = settings.rounds if site.cut_off else 1
        small = rows * linear.groups * linear.columns <= HELD
        held = list(site.rows(old, new, rows)) if rounds > 1 and small else None
        offset = np.zeros(linear.outputs, linear.dtype)
        for _ in range(rounds):
            for part in site.rows(old, new, rows) if held is None else held:
                made = linear(part.inputs) + offset
                fit.add(part.inputs, linear.split(part.aim(made) - made))
            change, moved = fit.solve()
            offset += moved.reshape(-1).astype(linear.dtype)
            site.change(change, None)
        site.change(None, offset)  # not before: what is wanted depends on the batch norm


def mean(pair: Pair) -> None:
    """Move every layer's bias so that the mean of its outputs is that of the original.

    ``b ← b + E[Y − X·W − b]``; for the first layer after a cut that is ``b + W_P · E[x_P]`` with
    the removed channels P. Layers without bias are left alone unless a batch norm follows.

    Source: the compensation of FLAP (An et al. 2024) and Variance-Based Pruning (2025). Needs
    samples, no labels. Cost: a forward pass of each model.
    """
    for site, old, new in sites(pair, "of means"):
        if not site.movable:
            continue
        total, count = np.zeros(site.after.outputs), 0
        for part in site.rows(old, new, pair.settings.max_rows):
            total += (part.wanted - site.after(part.inputs)).sum(axis=0, dtype="float64")
            count += len(part.wanted)
        site.change(None, total / count)
