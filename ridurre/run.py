"""One run of pruning: how far it has come, and what it works with."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from ridurre.ballot import Ballot
from ridurre.checkpoints import Checkpoints
from ridurre.history import Step, Stopwatch
from ridurre.limits import Accuracy, Goals
from ridurre.measure import model_complexity

logger = logging.getLogger("ridurre")


@dataclass
class Run:
    """How far a run of pruning has come, and what it works with.

    Attributes:
        model: the last good one; at first the original.
        epochs: that it was trained for.
        history: the records of all finished rounds.
        stopped: why the run ended.
        store: where finished rounds are kept, if anywhere.
        original: the model as it was given.
        ballot, goals, accuracy: what decides on layers and on the end; set before the first round.
    """

    model: keras.Model
    epochs: int
    history: list[Step] = field(default_factory=list)
    stopped: str | None = None
    store: Checkpoints | None = None
    original: keras.Model = field(init=False)
    ballot: Ballot = field(init=False)
    goals: Goals = field(init=False)
    accuracy: Accuracy = field(init=False)

    def __post_init__(self) -> None:
        self.original = self.model

    def record(self, model: keras.Model, clock: Stopwatch, **facts: Any) -> Step:
        """What the round that made this model did.

        Args:
            model: of the round that is being finished.
            clock: that was started with it.
            **facts: attributes of `Step` that cannot be measured here.
        """
        old, new = model_complexity(self.model), model_complexity(model)
        left = {x.name: x.filters for x in new.layers}
        return Step(
            step=len(self.history),
            filters=new.filters,
            parameters=new.parameters,
            macs=new.macs,
            pruned_fraction=(self.ballot.filters - new.filters) / max(1, self.ballot.filters),
            seconds=clock.seconds,
            amount=(old.filters - new.filters) / max(1, old.filters),
            layers={x.name: [x.filters, left[x.name]] for x in old.layers if x.filters},
            phases=clock.phases,
            accepted=self.accuracy.holds(facts["accuracy"]),
            **facts,
        )

    def finish(self, record: Step, model: keras.Model) -> None:
        """Go on to a round's model if it was accepted."""
        self.history.append(record)
        logger.info("%s", record)
        if record.accepted:
            self.model, self.epochs = model, record.epochs
        else:
            logger.warning(
                "Round %d came to an accuracy of %s, below the minimum of %s; the model before it "
                "is the result.",
                record.step,
                record.accuracy,
                self.accuracy.minimum,
            )

    def stop(self, reason: str | None) -> None:
        """End the run for this reason, if there is one."""
        if reason is None:
            return
        self.stopped = reason
        if self.history:
            self.history[-1] = dataclasses.replace(self.history[-1], stopped=reason)
        logger.info("Pruning ends after %d rounds: %s.", len(self.history), reason)

    def save(self, rng: np.random.Generator) -> None:
        """Put what is finished on disk, if it is to be kept."""
        if self.store is None:
            return
        state = {
            "steps": [dataclasses.asdict(step) for step in self.history],
            "epochs": self.epochs,
            "stopped": self.stopped,
            "random": rng.bit_generator.state,
        }
        self.store.save(state, self.model, sum(step.accepted for step in self.history))

    def resume(
        self, rng: np.random.Generator, compile_model: Callable[[keras.Model], keras.Model]
    ) -> bool:
        """Take up what was kept, if there is something.

        Args:
            rng: is set to where it was.
            compile_model: compiles the model.

        Returns:
            Whether there was something.
        """
        if self.store is None:
            return False
        state = self.store.load()
        if state is None:
            self.store.check_loadable(self.model)
            return False
        self.history = [Step(**step) for step in state["steps"]]
        self.epochs, self.stopped = state["epochs"], state["stopped"]
        rng.bit_generator.state = state["random"]
        model = self.store.load_model()
        if model is not None:
            self.model = compile_model(model)
        logger.info("Continuing after %d rounds, from %s.", len(self.history), self.store.folder)
        return True

    def seed_round(self, seed: int | None, step: int) -> int | None:
        """Seed a round of a run that is kept, from its number: the same whatever was before.

        Returns:
            A number to seed the model's layers with; None if they are to go on as they are.
        """
        if seed is None or self.store is None:
            return None
        number = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
        keras.utils.set_random_seed(number)
        return number


def seed_layers(model: keras.Model | None, seed: int | None) -> None:
    """Seed the random layers of a model (dropout, say), which remember their own state.

    Nothing happens without a model or a seed.
    """
    if model is None or seed is None:
        return
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    for index, state in enumerate(states):
        state.assign(np.array([seed % 2**31, index], "uint32"))
