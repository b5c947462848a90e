"""Diagnosis of a run that diverged: the first tensor that is not finite, the setting likely behind it, how to go on.

Nothing here is part of the compiled training step. After a non-finite loss or gradient was seen, the chunk in which it
occurred is run again from the last good state, one step at a time, by a program that looks at every tensor in the order of
their computation: parameters, outputs of modules, the loss, gradients from the loss downwards, and the updated parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.config import RunConfig
from jaxrec.files import as_word
from jaxrec.optim import trained_mask
from jaxrec.options import option_name
from jaxrec.tasks import Task
from jaxrec.training.feed import fill_batches
from jaxrec.training.setup import TrainingSetup, build_task
from jaxrec.training.state import Params, TrainState
from jaxrec.training.step import gradients_of
from jaxrec.training.trees import flatten

#: Seconds of training up to which a chunk is run again to find the tensor.
REPLAY_SECONDS = 300.0


class Finding(NamedTuple):
    """The first tensor that is not finite.

    Attributes:
      step: of the run, from 1.
      kind: "parameter" (before the step), "activation", "loss", "gradient", "gradient norm" or "update" (the parameter after
        the step).
      name: of the parameter or module, as in ``layers_0/attention/query/kernel``; "" where the kind says it all.
      others: how many further tensors of that kind are not finite.
      largest: greatest finite size of a parameter before the step.
      cures: options with which the same step from the same state is finite, as the user types them.
    """

    step: int
    kind: str
    name: str = ""
    others: int = 0
    largest: float = 0.0
    cures: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In words, for the message."""
        subject = {
            "parameter": f"the parameter {self.name}",
            "activation": f"the activation {self.name}",
            "loss": "the loss itself, of finite activations",
            "gradient": f"the gradient of {self.name}",
            "gradient norm": "the norm of the gradients, each of them finite",
            "update": f"the parameter {self.name} after its update",
        }[self.kind]
        return subject + (f" (with {self.others} more)" if self.others else "")


class _Watch:
    """Outputs of modules in the order of their computation, and which of them were not finite in the last step."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._bad: set[int] = set()

    def __call__(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Look at the output of a module's method; see `flax.linen.intercept_methods`."""
        output = call(*args, **kwargs)
        if context.method_name != "setup" and _arrays(output):
            scope, method = context.module.scope, context.method_name
            path = "" if scope is None else "/".join(scope.path)
            number = len(self.names)
            # The encoder itself has an empty path; its table of items is asked for without a scope.
            if not path:
                path = "hidden states" if method == "__call__" else method
            elif method != "__call__":
                path = f"{path} ({method})"
            self.names.append(path)
            jax.debug.callback(lambda good: self._note(number, good), _is_finite(output))
        return output

    def _note(self, number: int, good: Any) -> None:
        if not np.all(good):
            self._bad.add(number)

    def take(self) -> list[str]:
        """Return the names of the outputs that were not finite since the last call, in order."""
        jax.effects_barrier()
        bad, self._bad = sorted(self._bad), set()
        return list(dict.fromkeys(self.names[number] for number in bad))

    def place(self, parameter: str) -> int:
        """Return the position of the module that owns a parameter; modules further down the network come later."""
        if parameter.startswith("task/"):
            return len(self.names)
        owner = parameter.rsplit("/", 1)[0]
        return self.names.index(owner) if owner in self.names else -1


def _arrays(tree: Any) -> list[Any]:
    """Leaves that can be NaN or infinite; outputs of methods may hold other things than arrays."""
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, (jax.Array, np.ndarray))]
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]


def _is_finite(tree: Any) -> jax.Array:
    arrays = _arrays(tree)
    return jnp.stack([jnp.isfinite(x).all() for x in arrays]).all() if arrays else jnp.bool_(True)


def largest_size(params: Params) -> jax.Array:
    """Greatest finite absolute value of the trained parameters: codes of items and a count of steps have any size."""
    trained = jax.tree.map(lambda x, on: x if on else None, params, trained_mask(params))
    sizes = [jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0), initial=0.0) for x in _arrays(trained)]
    return jnp.max(jnp.stack(sizes))


def _examiner(task: Task, setup: TrainingSetup, watch: _Watch) -> Callable[[TrainState, Any], Any]:
    """A compiled step that also says of every tensor whether it is finite."""

    def finite(params: Params) -> Params:
        return jax.tree.map(_is_finite, params)

    @jax.jit
    def step(state: TrainState, batch: Any, resources: Any) -> tuple[TrainState, dict[str, Any]]:
        state = state._replace(params=task.remember(state.params, batch, resources))
        with nn.intercept_methods(watch):
            loss, _, gradients = gradients_of(
                task, setup.config.training.accumulate_steps, state, batch, resources
            )
        updates, opt_state = setup.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        facts = {
            "parameter": finite(state.params),
            "loss": jnp.isfinite(loss),
            "gradient": finite(gradients),
            "gradient norm": jnp.isfinite(optax.tree.norm(gradients)),
            "update": finite(params),
            "largest": largest_size(state.params),
        }
        return TrainState(state.step + 1, state.seed, params, opt_state), facts

    return lambda state, batch: step(state, batch, setup.resources)


def _judged(number: int, facts: dict[str, Any], activations: list[str], watch: _Watch) -> Finding | None:
    """The first tensor of step ``number`` that is not finite."""
    bad = {
        kind: [name for name, good in flatten(facts[kind]).items() if not bool(good)]
        for kind in ("parameter", "gradient", "update")
    }
    largest = float(facts["largest"])
    if bad["parameter"]:
        first = min(bad["parameter"], key=watch.place)
        return Finding(number, "parameter", first, len(bad["parameter"]) - 1, largest)
    if activations:
        return Finding(number, "activation", activations[0], len(activations) - 1, largest)
    if not bool(facts["loss"]):
        return Finding(number, "loss", largest=largest)
    if bad["gradient"]:
        # Gradients are computed from the loss downwards: the first is that of the last module.
        last = max(bad["gradient"], key=watch.place)
        return Finding(number, "gradient", last, len(bad["gradient"]) - 1, largest)
    if not bool(facts["gradient norm"]):
        return Finding(number, "gradient norm", largest=largest)
    if bad["update"]:
        first = min(bad["update"], key=watch.place)
        return Finding(number, "update", first, len(bad["update"]) - 1, largest)
    return None


def examine(setup: TrainingSetup, state: TrainState, inputs: Any, seed: int, step: int) -> Finding | None:
    """Run a chunk again, one step at a time, and find the first tensor that is not finite.

    Args:
      setup: of the run.
      state: of all seeds, before the chunk.
      inputs: of the chunk.
      seed: index of the seed that diverged.
      step: steps done before the chunk.

    Returns:
      None where every tensor is finite this time, which rounding can do.
    """
    own, own_inputs = jax.jit(lambda tree: jax.tree.map(lambda x: x[seed], tree))((state, inputs))
    fill = jax.jit(
        lambda rows, resources: setup.sharding.batches(fill_batches(rows, resources, setup.config.batches))
    )
    batches = fill(own_inputs, setup.resources)
    watch = _Watch()
    run = _examiner(setup.task, setup, watch)
    usual: set[str] = set()
    for number in range(setup.schedule.chunk_steps):
        batch = jax.tree.map(lambda x, n=number: x[n], batches)
        after, facts = run(own, batch)
        activations = [name for name in watch.take() if name not in usual]
        finding = _judged(step + number + 1, facts, activations, watch)
        if finding is None or (finding.kind == "activation" and not _spread(facts)):
            # What a healthy step computes and masks, such as the logarithm of zero, is no cause.
            usual.update(activations)
            own = after
            continue
        return finding._replace(cures=_cures(setup, own, batch))
    return None


def _spread(facts: dict[str, Any]) -> bool:
    """Whether a value that is not finite reached the loss, a gradient or a parameter."""
    return not all(
        bool(x)
        for key in ("loss", "gradient", "gradient norm", "update")
        for x in jax.tree.leaves(facts[key])
    )


def _cures(setup: TrainingSetup, state: TrainState, batch: Any) -> tuple[str, ...]:
    """Options of the model with which the same step from the same state is finite."""
    config, cures = setup.config, []
    trials: list[tuple[str, Any, Any]] = []
    if config.encoder.dtype != "float32":
        trials.append(("encoder.dtype", config.encoder.dtype, "float32"))
    temperature = config.objective.temperature
    if temperature < 1.0:
        trials.append(("objective.temperature", temperature, 1.0))
    for path, _, usual in trials:
        task = build_task(config.updated({path: usual}), setup.task.spec, setup.mesh)
        _, facts = _examiner(task, setup, _Watch())(state, batch)
        if not _spread(facts):
            cures.append(path)
    return tuple(cures)


def likely_setting(config: RunConfig, finding: Finding, total_steps: int) -> str:
    """Return the option that is likely behind a finding, its value and why, in words.

    Args:
      config: of the run.
      finding: what diverged first.
      total_steps: of the run.
    """
    optimizer = config.optimizer
    for path in finding.cures:
        section, field = path.split(".")
        value = getattr(getattr(config, section), field)
        usual = "float32" if field == "dtype" else "1"
        return f"{_option(path)} {value}: with {usual} the same step is finite"
    if finding.step == 1 and finding.kind in ("activation", "loss", "gradient", "gradient norm"):
        scale = getattr(config.encoder, "init_scale", 0.0)
        if scale > 1:
            return f"{_option('encoder.init_scale')} {scale:g}: no step was taken yet, and parameters start that large"
        kind = type(config.objective).__name__
        return (
            f"--objective or the data, as no step was taken yet that the optimiser could have spoilt: {kind}"
        )
    rate = float(optimizer.learning_rate_schedule(total_steps)(finding.step - 1))
    decay = rate * optimizer.weight_decay
    if decay >= 2:
        return (
            f"{_option('optimizer.weight_decay')} {optimizer.weight_decay:g}: times the learning rate {rate:g} it is above "
            "2, so that parameters grow in every step"
        )
    if optimizer.algorithm == "adamw" and optimizer.beta1**2 > optimizer.beta2:
        return (
            f"{_option('optimizer.beta2')} {optimizer.beta2:g}: it must not be below the square of beta1 "
            f"{optimizer.beta1:g}, or updates are not bounded"
        )
    if optimizer.algorithm == "adamw" and optimizer.epsilon < 1e-20 and rate < 0.1:
        return (
            f"{_option('optimizer.epsilon')} {optimizer.epsilon:g}: gradients that vanish are divided by it"
        )
    if optimizer.algorithm == "sgd" and optimizer.beta1 >= 0.99:
        return (
            f"{_option('optimizer.beta1')} {optimizer.beta1:g}: such momentum multiplies the learning rate by "
            f"{1 / (1 - optimizer.beta1):.0f}"
        )
    clip = "" if optimizer.clip_norm else f", without {_option('optimizer.clip_norm')}"
    option = _option("optimizer.learning_rate")
    return f"{option} {optimizer.learning_rate:g}{clip}: parameters have grown to {finding.largest:.3g}"


def _option(path: str) -> str:
    section, field = path.rsplit(".", 1)
    return option_name(section, field)


def smaller_rate(config: RunConfig) -> float:
    """Return a learning rate to go on with: a tenth, a usual one of the algorithm, or what weight decay asks for."""
    optimizer = config.optimizer
    rates = [optimizer.learning_rate / 10, 1e-3 if optimizer.algorithm == "adamw" else 0.1]
    rates += [0.1 / optimizer.weight_decay] if optimizer.weight_decay else []
    return float(f"{min(rates):.3g}")


def how_to_go_on(config: RunConfig, directory: Path | None, good_step: int | None) -> str:
    """Return a command that continues from the last good checkpoint, or else begins anew, with a smaller rate.

    Args:
      config: of the run.
      directory: of the run, or None.
      good_step: of the last checkpoint, or None.
    """
    rate = f"{_option('optimizer.learning_rate')} {smaller_rate(config):g}"
    if directory is None:
        return f"no checkpoint was written, as the run has no workdir: start again with {rate}"
    workdir = f"--workdir {as_word(directory)}"
    if good_step is None:
        return (
            "no checkpoint was written yet; start again with a smaller rate: jaxrec train "
            f"--preset {as_word(directory)} {workdir} --overwrite {rate}"
        )
    return (
        f"the last good checkpoint is that of step {good_step}; continue from it with a smaller rate: "
        f"jaxrec train {workdir} --resume {rate}"
    )


def broken_parameter(params: Params, step: int) -> Finding | None:
    """Return the first parameter, of any seed, that is not finite after ``step`` steps; None where all are."""
    bad = [name for name, good in flatten(jax.tree.map(_is_finite, params)).items() if not bool(good)]
    return Finding(step, "update", bad[0], len(bad) - 1) if bad else None


def explanation(setup: TrainingSetup, finding: Finding | None) -> str:
    """Return the part of the message that names the tensor and the likely setting."""
    optimizer = setup.config.optimizer
    if finding is None:
        clip = "" if optimizer.clip_norm else f", or set {_option('optimizer.clip_norm')}"
        return f"lower {_option('optimizer.learning_rate')} {optimizer.learning_rate:g}{clip}"
    return (
        f"the first tensor that is not finite is {finding} in step {finding.step}; likely behind it is "
        f"{likely_setting(setup.config, finding, setup.schedule.total_steps)}"
    )
