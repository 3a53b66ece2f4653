"""What must hold for every model, and how to shrink one for which it does not."""

import contextlib
import json
import random
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import keras
import numpy as np
from architectures import Program, build
from keras import ops

import ridurre
from ridurre.backend import has_graph, parameters_of, to_numpy
from ridurre.data import random_inputs
from ridurre.errors import FrozenChannelError, RequestError, VerificationError
from ridurre.graph.names import named_layers, variable_paths
from ridurre.testing import snapshot


@dataclass
class Outcome:
    """What happened to one model, or to several.

    Attributes:
        models: how many there were.
        prunable: how many had at least one group to prune.
        made: channels that their layers make; of these, `removable` ones may go.
        plans: plans that were carried out; of these, `exact` ones were compared number by number.
        refused: requests for a channel that cannot go, or for all of them.
        apart: requests for channels that a class of one's own cannot lose together.
        channels: channels that the plans removed, `parameters` likewise.
        rounded: models that agree only with another batch size, or in float64.
        saved: saved and loaded; `again`: pruned twice; `loaded`: plans that went through JSON.
        steps: how often each kind of step was taken.
    """

    models: int = 0
    prunable: int = 0
    made: int = 0
    removable: int = 0
    plans: int = 0
    exact: int = 0
    refused: int = 0
    apart: int = 0
    channels: int = 0
    parameters: int = 0
    rounded: int = 0
    saved: int = 0
    again: int = 0
    loaded: int = 0
    steps: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Outcome") -> None:
        for name, value in vars(other).items():
            if name != "steps":
                setattr(self, name, getattr(self, name) + value)
        for name, count in other.steps.items():
            self.steps[name] = self.steps.get(name, 0) + count


class Failed(AssertionError):
    """What should hold for every model does not; `stage` says what."""

    def __init__(self, stage: str, error: object) -> None:
        self.stage = stage
        super().__init__(f"{stage}: {type(error).__name__}: {error}")


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is a failure of this stage."""
    try:
        yield
    except (Failed, KeyboardInterrupt):
        raise
    except Exception as error:
        raise Failed(name, error) from error


def run(program: Program) -> Outcome:
    """Build the model and check it; numbers that differ a little are looked at in float64.

    Raises:
        Failed: a property does not hold; stage "generate" is a mistake of this module.
    """
    try:
        return _run(program)
    except Failed as failure:
        if not isinstance(failure.__cause__, VerificationError):
            raise
        return replace(_run_again(program, failure), rounded=1)


def _run_again(program: Program, failure: Failed) -> Outcome:
    """Raise the failure if it is neither chance nor rounding.

    Keras on TensorFlow takes a second addend with one axis of size n for a bias if the first one
    has n channels, whichever axis that is (a batch of 2 and 2 channels, say); so try another batch.
    """
    with contextlib.suppress(Failed):
        return _run(program, batch_size=29)
    with contextlib.suppress(Failed), float64():
        return _run(program, batch_size=29)
    raise failure


def _run(program: Program, batch_size: int = 2) -> Outcome:
    with stage("generate"):
        model, taken = build(program)
        _outputs(model, _inputs(model, random.Random(0), batch_size))
    outcome = check(model, random.Random(program.seed), batch_size)
    return replace(outcome, steps={name: taken.count(name) for name in taken})


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Build models in double precision."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def check(model: keras.Model, rng: random.Random, batch_size: int = 2) -> Outcome:
    """Everything that should hold for a model with random weights.

    Raises:
        Failed: something does not hold.
    """
    before = snapshot(model)
    outcome = Outcome(models=1)
    with warnings.catch_warnings(), stage("graph"):
        warnings.simplefilter("ignore", ridurre.RidurreWarning)
        graph = ridurre.DependencyGraph(model)
        groups = graph.groups
    outcome.prunable = int(bool(groups))
    for name in dict.fromkeys(
        w.layer for w in graph.trace.space.weights.values() if w.role == "out"
    ):
        removable = graph.removable(name)
        outcome.made += removable.size
        outcome.removable += int(removable.sum())
    plans = [
        plan for request in _requests(graph, rng) if (plan := _planned(graph, request, outcome))
    ]
    if groups:
        some = {g: min(max(1, g.size // 2), g.size - g.least) for g in groups}
        half = {g: sorted(rng.sample(range(g.size), n)) for g, n in some.items() if n > 0}
        with stage(f"half of every group {half}"):
            if half and (planned := _planned(graph, half, outcome)):
                plans.append(planned)
                _check_units(graph, *planned)
    for request, plan in plans:
        inputs = _inputs(model, rng, batch_size)
        pruned = _carry_out(model, plan, request, inputs, outcome)
    if plans:
        _check_further(model, pruned, plan, inputs, rng, outcome)
    with stage("original"):
        assert snapshot(model) == before, "the original was changed"
    return outcome


def _requests(graph: ridurre.DependencyGraph, rng: random.Random, count: int = 2) -> Iterator[dict]:
    """Random channels of random layers, mostly of those that make channels."""
    makers = list(dict.fromkeys(m for g in graph.groups for m in g.producers))
    for _ in range(count):
        names = makers if makers and rng.random() < 0.8 else list(graph.layers)
        request = {}
        for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2)))):
            with contextlib.suppress(FrozenChannelError):
                channels = len(graph.channels(name))
                some = (
                    np.flatnonzero(graph.removable(name)) if rng.random() < 0.8 else range(channels)
                )
                most = max(1, channels // 2)
                if len(some):
                    chosen = rng.sample(list(some), rng.randint(1, min(len(some), most)))
                    request[name] = [int(i) for i in chosen]
        if request:
            yield request


def _planned(graph: ridurre.DependencyGraph, request: dict, outcome: Outcome):
    with stage(f"plan {request}"):
        try:
            plan = graph.get_pruning_plan(request)
        except FrozenChannelError:
            outcome.refused += 1
            return None
        except RequestError as error:
            if "go together" in str(error):
                outcome.apart += 1
            elif "every channel" in str(error):
                outcome.refused += 1
            else:
                raise
            return None
        for cut in plan.cuts:
            if cut.role == "output channels" and cut.size == len(graph.channels(cut.layer)):
                missing = set(request.get(cut.layer, ())) - set(cut.indices)
                assert not missing, f"{missing} of {cut.layer} are not in the plan"
    return request, plan


def _carry_out(model, plan, request, inputs, outcome: Outcome) -> keras.Model:
    with stage(f"carry out {request}"):
        pruned = plan.exec()
        shapes = [_shapes(m, inputs) for m in (model, pruned)]
        assert shapes[0] == shapes[1], "the outputs have other shapes"
        _check_weights(model, pruned, plan)
    with stage(f"verify {request}"):
        if plan.exact:
            ridurre.verify(model, pruned, plan, inputs=inputs, tolerance=_tolerance())
            outcome.exact += 1
        else:
            outputs = _outputs(pruned, inputs)
            assert all(np.isfinite(y).all() for y in outputs), "the outputs are not finite"
    outcome.plans += 1
    outcome.channels += sum(len(c.indices) for c in plan.cuts if c.role == "output channels")
    outcome.parameters += plan.parameters
    return pruned


def _check_units(graph: ridurre.DependencyGraph, half: dict, plan: ridurre.PruningPlan) -> None:
    """Of the positions of a group just those go whose unit was named."""
    for group, units in half.items():
        for member in group.members:
            weight = member.weight
            if weight.labels.shape[1] == 1:
                gone = plan.removed.get(graph.paths[id(weight.variable)], {}).get(weight.axis, [])
                owned = np.flatnonzero(member.units >= 0)
                expected = np.flatnonzero(np.isin(member.units, units))
                assert np.array_equal(np.intersect1d(gone, owned), expected), f"{group} {weight}"


def _check_weights(model: keras.Model, pruned: keras.Model, plan: ridurre.PruningPlan) -> None:
    """Every weight has lost what the plan says and nothing else; names and flags stay."""
    before, after = _layers(model), _layers(pruned)
    assert before.keys() == after.keys(), "the layers have other names"
    paths = variable_paths(before)
    for name, old in before.items():
        new = after[name]
        assert old.trainable == new.trainable, f"{name}.trainable is {new.trainable}"
        for a, b in zip(old.variables, new.variables, strict=True):
            value = to_numpy(a)
            for axis, indices in plan.removed.get(paths[id(a)], {}).items():
                value = np.delete(value, indices, axis)
            assert _is_left(value, to_numpy(b), a), f"{paths[id(a)]} is cut wrongly"
    assert plan.removed.keys() <= set(paths.values()), "the plan names unknown variables"
    lost = _parameters(before) - _parameters(after)
    assert plan.parameters == lost > 0, f"the plan says {plan.parameters} parameters, not {lost}"


def _is_left(value: np.ndarray, new: np.ndarray, variable: keras.Variable) -> bool:
    """Whether a weight is what is left of it; queries also make up for the size of their heads."""
    if np.array_equal(value, new):
        return True
    scaled = "/query/" in variable.path and value.shape == new.shape
    return scaled and np.allclose(new, value * (value.shape[-1] / variable.shape[-1]) ** 0.5)


def _layers(model: keras.Model) -> dict[str, keras.Layer]:
    """The layers by name; a subclassed model is one."""
    return named_layers(model) if has_graph(model) else {model.name: model}


def _parameters(layers: dict[str, keras.Layer]) -> int:
    counted = {key for x in layers.values() for key in parameters_of(x)}
    sizes = {id(v): to_numpy(v).size for x in layers.values() for v in x.variables}
    return sum(size for key, size in sizes.items() if key in counted)


def _check_further(model, pruned, plan, inputs, rng: random.Random, outcome: Outcome) -> None:
    """Some of what takes long: files, plans in JSON, pruning once more."""
    if rng.random() < 0.35:
        outcome.saved += _check_file(model, pruned, inputs)
    if rng.random() < 0.35:
        _check_loaded_plan(model, pruned, plan)
        outcome.loaded += 1
    if rng.random() < 0.25:
        _check_again(pruned, rng, len(keras.tree.flatten(inputs)[0]))
        outcome.again += 1


def _check_loaded_plan(model, pruned, plan) -> None:
    with stage("load the plan"):
        loaded = ridurre.PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
        assert loaded == plan, "the plan is another one after JSON"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ridurre.RidurreWarning)
            same = ridurre.apply(model, loaded)
        values = zip(pruned.get_weights(), same.get_weights(), strict=True)
        assert all(np.array_equal(a, b) for a, b in values), "apply gives another model"


def _check_again(pruned: keras.Model, rng: random.Random, batch_size: int) -> None:
    """What came out is a model like any other."""
    with stage("prune again"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ridurre.RidurreWarning)
            graph = ridurre.DependencyGraph(pruned)
        groups = [g for g in graph.groups if g.size > g.least]
        if groups:
            plan = graph.get_pruning_plan(rng.choice(groups), [0])
            again = plan.exec()
            if plan.exact:
                inputs = _inputs(pruned, rng, batch_size)
                ridurre.verify(pruned, again, plan, inputs=inputs, tolerance=_tolerance())


def _tolerance() -> float:
    return 1e-4 if keras.config.floatx() == "float32" else 1e-9


def _check_file(model, pruned, inputs) -> bool:
    """The pruned model survives a file, if the original does."""
    try:
        _check_loads(pruned, inputs)
    except Exception as error:
        try:
            _check_loads(model, inputs)
        except Exception:
            return False  # nor does Keras load the original, or it loads something else
        raise Failed("save", error) from error
    return True


def _check_loads(model: keras.Model, inputs) -> None:
    outputs, again = _outputs(model, inputs), _outputs(_through_file(model), inputs)
    close = (np.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(outputs, again, strict=True))
    assert all(close), "the loaded model computes something else"


def _through_file(model: keras.Model) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return keras.saving.load_model(path)


def _inputs(model: keras.Model, rng: random.Random, batch_size: int):
    inputs = random_inputs(model, batch_size, open_size=7, seed=rng.randrange(2**32))
    return keras.tree.map_structure(ops.convert_to_tensor, inputs)


def _shapes(model: keras.Model, inputs) -> list[tuple]:
    """Of the outputs; a call of a recurrent layer with dropout would change the model."""
    outputs = model.outputs if has_graph(model) else _outputs(model, inputs)
    return [tuple(y.shape) for y in outputs]


def _outputs(model: keras.Model, inputs) -> list[np.ndarray]:
    return [to_numpy(y) for y in keras.tree.flatten(model(inputs, training=False))]


def smallest(program: Program, failure: Failed, tries: int = 80) -> tuple[Program, Failed]:
    """Leave out steps for as long as the program fails at the same kind of stage."""
    kind = failure.stage.split()[0]

    def fails(candidate: Program) -> Failed | None:
        try:
            run(candidate)
        except Failed as error:
            return error if error.stage.split()[0] == kind else None
        return None

    shrunk = True
    while shrunk and tries > 0:
        shrunk = False
        for index in reversed(range(len(program.steps))):
            steps = program.steps[:index] + program.steps[index + 1 :]
            tries -= 1
            if error := fails(replace(program, steps=steps)):
                program, failure, shrunk = replace(program, steps=steps), error, True
            if tries <= 0:
                break
    return program, failure
