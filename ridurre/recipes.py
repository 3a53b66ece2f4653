"""Carry strategies out: on a whole model, layer by layer, in stages."""

from __future__ import annotations

import dataclasses
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from ridurre.checks import check_callable, check_list
from ridurre.dependency import DependencyGraph
from ridurre.errors import RequestError, RidurreWarning
from ridurre.masking import keep_zeros
from ridurre.progress import shown, track
from ridurre.shrinking import Settings, Shrinking, merged_requests
from ridurre.sparsity import WeightPrune
from ridurre.strategy import ChannelPrune
from ridurre.surgery import duplicate
from ridurre.values import Strategy
from ridurre.weights import prunable_layers

logger = logging.getLogger("ridurre")
#: One strategy for the whole model, one per layer, or one by layer.
Recipe: TypeAlias = "Strategy | Sequence[Strategy | None] | Mapping[Any, Strategy]"


def prune(strategy: Recipe, model: keras.Model, *, verbose: int = 1) -> keras.Model:
    """A pruned model by a strategy; the original is not touched.

    Channels go first, physically; single weights are set to zero in what is left. Fractions are of
    the model that is given, whatever goes through neighbouring layers: where the inputs of a layer
    are cut by half, a level of 0.8 sets another 0.3 of its weights to zero.

    Args:
        strategy: one for the whole model; a list, one per layer with channels of its own
            (convolutions and dense layers in order, the last one included; None leaves a layer
            alone); or a dictionary from names or regular expressions of layers to strategies.
        model: a built Functional or Sequential model; for single weights any built model.
        verbose: 1 shows progress bars of what takes long, 0 none.

    Returns:
        The new model, compiled like the original if that is compiled.

    Raises:
        RequestError: something else than strategies, or a list of another length.
        NothingToPruneError: nothing of the model can be removed.
    """
    with shown(verbose):
        return _pruned(strategy, model, model)


def iterative_prune(
    finetune: Callable[[keras.Model], bool],
    stages: Sequence[Recipe],
    model: keras.Model,
    max_tries: int = 5,
    *,
    verbose: int = 1,
) -> keras.Model:
    """Prune in stages, and train until each is good enough.

    Fractions are of the model that is given, in every stage: ``ChannelPrune(0.2)`` after
    ``ChannelPrune(0.1)`` removes another tenth of the original's channels. What is zero stays zero
    while `finetune` trains.

    Args:
        finetune: ``fn(model) -> bool``: train the model in place and say whether it is good enough
            for the next stage.
        stages: what `prune` takes, one after the other.
        model: is not changed.
        max_tries: how often `finetune` is called in a stage, at most.
        verbose: 1 shows progress bars, 0 none.

    Returns:
        The model of the last stage that was good enough; if there is none, a copy of `model`. With
        a warning unless it is the last one of all.

    Raises:
        RequestError: arguments that make no sense, or `finetune` returns no truth value.
    """
    check_callable("finetune", finetune)
    stages = check_list("stages", stages)
    if not isinstance(max_tries, int) or max_tries < 1:
        raise RequestError(f"Expected max_tries from 1. Received: {max_tries!r}.")
    reached = duplicate(model, keep_compiled=True)
    counted = track(stages, "Pruning", unit="stage", patience=0)
    with shown(verbose):
        for number, stage in enumerate(counted, 1):
            pruned = _pruned(stage, reached, model)
            if not _good_enough(finetune, pruned, max_tries):
                warnings.warn(
                    f"Stage {number} of {len(stages)} was not good enough after {max_tries} "
                    f"fine-tunings; the result is the model of stage {number - 1}.",
                    RidurreWarning,
                    stacklevel=2,
                )
                return reached
            logger.info("Stage %d of %d is good enough.", number, len(stages))
            reached = pruned
    return reached


def _good_enough(
    finetune: Callable[[keras.Model], bool], model: keras.Model, max_tries: int
) -> bool:
    with keep_zeros(model):
        for _ in range(max_tries):
            answer = finetune(model)
            if not isinstance(answer, bool | np.bool_):
                raise RequestError(
                    "Expected finetune(model) to return True (good enough, next stage) or False. "
                    f"Received: {answer!r}."
                )
            if answer:
                return True
    return False


def _pruned(strategy: Recipe, model: keras.Model, original: keras.Model) -> keras.Model:
    """What a strategy makes of a model; fractions are of the original."""
    if isinstance(strategy, ChannelPrune):
        *_, (pruned, _) = Shrinking(strategy.settings, model, original).all_steps()
        return pruned
    if isinstance(strategy, WeightPrune):
        return strategy.run(model, original)[0]
    pairs = _pairs(strategy, model)
    channels = [(k, s) for k, s in pairs if isinstance(s, ChannelPrune)]
    if channels:
        pruned = _without_channels(channels, model, original)
    else:
        pruned = duplicate(model, keep_compiled=True)
    for layers, one in pairs:
        if isinstance(one, WeightPrune):
            own = dataclasses.replace(one, layers=layers, data=one.settings.data)
            pruned = own.by_name(model).run(pruned, original)[0]
    return pruned


def _without_channels(
    pairs: list[tuple[Any, ChannelPrune]], model: keras.Model, original: keras.Model
) -> keras.Model:
    for _, one in pairs:
        _check_single(one)
    graph = DependencyGraph(model)
    request = merged_requests(_families(pairs), graph, original)
    if not request:
        return graph.complete({}).exec(keep_compiled=model.compiled)
    return graph.get_pruning_plan(request).exec(keep_compiled=model.compiled)


def _pairs(strategy: Any, model: keras.Model) -> list[tuple[Any, Strategy]]:
    """Layers and what happens to them."""
    pairs: list[tuple[Any, Any]] = [("", strategy)]
    if isinstance(strategy, Mapping):
        pairs = list(strategy.items())
    elif isinstance(strategy, Sequence) and not isinstance(strategy, str):
        layers = prunable_layers(model)
        if len(layers) != len(strategy):
            raise RequestError(
                f"Expected one strategy per layer, {len(layers)} in all: {layers}. Received: "
                f"{len(strategy)}. None leaves a layer alone; a dictionary names layers."
            )
        named = zip(layers, strategy, strict=True)
        pairs = [(re.compile(f"^{re.escape(n)}$"), s) for n, s in named if s is not None]
    for _, one in pairs:
        if not isinstance(one, Strategy):
            raise RequestError(
                "Expected a strategy such as ridurre.ChannelPrune(0.3) or ridurre.LevelPrune(0.7), "
                f"a list of them or a dictionary. Received: {one!r}."
            )
    return pairs


def _check_single(strategy: ChannelPrune) -> None:
    """Whether a channel strategy can be one of several."""
    s = strategy.settings
    if not isinstance(s.amount, float) or s.scope != "local" or s.steps > 1 or s.recover:
        raise RequestError(
            "A strategy for single layers has an amount, the scope 'local', one step and no repair "
            "(see ridurre.recover for that). Targets, rankings and steps are for the whole model. "
            f"Received: {strategy!r}."
        )


def _families(pairs: list[tuple[Any, ChannelPrune]]) -> list[Settings]:
    """Strategies that differ in nothing but layers and amounts, as one with amounts by layer."""
    families: list[tuple[Settings, dict[Any, Any]]] = []
    for layers, one in pairs:
        rest = dataclasses.replace(one.settings, amount=None)
        amounts = next((found for known, found in families if known == rest), None)
        if amounts is None:
            families.append((rest, amounts := {}))
        amounts[layers] = one.settings.amount
    return [dataclasses.replace(rest, amount=amounts) for rest, amounts in families]
