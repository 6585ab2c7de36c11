"""The scheme of one network with several exits, in which deeper exits teach shallower ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxkd import losses
from jaxkd.counts import refuse_parts, scaled
from jaxkd.errors import ConfigError
from jaxkd.fields import names
from jaxkd.losses._numerics import mean_log_probabilities
from jaxkd.methods._labels import accuracy, label_terms, refuse_multi_hot
from jaxkd.methods._stages import AUTO, inner_stages
from jaxkd.methods.base import BASELINE, PhaseSpec, Setup, sizes
from jaxkd.methods.distillation import Loss, WholeBatch, call_with_mask
from jaxkd.models import (
  MultiExit,
  cut_at_exit,
  exit_ensemble,
  plain_network,
  with_exits,
)
from jaxkd.networks import infer, initialize, key_for, learn, merge
from jaxkd.shapes import InputShape
from jaxkd.types import (
  Array,
  Aux,
  Batch,
  Context,
  Network,
  Participants,
  Scheme,
  Terms,
)

TEMPERATURE = "temperature"

# The stages at which exits are added to a network that has none, and the heads of these exits.
EXITS = {"exits": names((AUTO,))}
HEADS = ("linear", "conv", "projected", "bottleneck", "attention")


@dataclasses.dataclass(frozen=True)
class AdaptiveTemperature:
  """A temperature that rises while the deepest exit is too confident.

  It starts at `start`, and is multiplied by `factor` after every step in which the deepest exit's
  mean largest probability, softened with it, exceeds `confidence`.

  Attributes:
    start: the first temperature.
    confidence: 0..1.
    factor: at least 1.

  Source: Phuong & Lampert, "Distillation-Based Training for Multi-Exit Architectures", ICCV 2019,
  the authors' code. That code loses the temperature when training is resumed.
  """

  start: float = 1.0
  confidence: float = 0.5
  factor: float = 1.05

  def __post_init__(self) -> None:
    if not self.start > 0:
      raise ConfigError(f"start is {self.start}: a temperature must be greater than 0")
    if not 0 <= self.confidence <= 1:
      raise ConfigError(f"confidence is {self.confidence}: it must lie between 0 and 1")
    if not self.factor >= 1:
      raise ConfigError(f"factor is {self.factor}: it must be at least 1")


def multi_exit(
  network: nn.Module,
  distillation: Loss | None,
  *,
  label_weights: Sequence[float],
  weight: float = 1.0,
  temperature: AdaptiveTemperature | None = None,
  summed: bool = False,
  image_shape: InputShape,
) -> Scheme:
  """Return the scheme of one network that learns at all of its exits, and from its deeper exits.

  The objective is sum_m label_weights[m] * CE(exit m) + weight * distillation(exits). Examples
  without labels (weight 0) count in the second part only.

  Participants: "student", and with an adaptive temperature "temperature", which has no parameters
  but a state that changes with training and is saved with it. Predictors: "exit_0" (the
  shallowest), ..., and the "ensemble", the mean of all exits' probabilities.

  Args:
    network: `num_exits`, `__call__(images, train) -> tuple[Output, ...]` and `run_block`
      (`jaxkd.models.MSDNet`, `jaxkd.models.MultiExit`).
    distillation: (exits, temperature, batch, context) -> Terms, the exits being Outputs, shallowest
      first, and the temperature None unless it adapts; a mean over the examples that count, or a
      `WholeBatch`. `of_exits` makes it of a function of `jaxkd.losses`. None trains every exit
      from labels alone.
    label_weights: weight of the cross-entropy of each exit.
    weight: factor of the distillation.
    temperature: None leaves it to `distillation`.
    summed: its feature term is a sum over the examples of the batch, not a mean.
    image_shape: (H, W, C), or the shapes of other inputs (`jaxkd.shapes`); the layers before an
      exit are found by tracing when it is exported.

  Raises:
    ConfigError: if there is not one label weight for each exit.

  Source: Phuong & Lampert, ICCV 2019 (`losses.multi_exit`); Zhang et al., "Be Your Own Teacher",
  ICCV 2019 (`losses.be_your_own_teacher`).
  """
  exits = network.num_exits
  if len(label_weights) != exits:
    raise ConfigError(f"label_weights is {tuple(label_weights)}: expected {exits}, one per exit")
  adapts = temperature is not None and distillation is not None

  def init(rng: Array, batch: Batch) -> Participants:
    participants = {"student": initialize(network, rng, "student", batch.inputs)}
    if adapts:
      assert temperature is not None
      state = {TEMPERATURE: jnp.float32(temperature.start)}
      participants[TEMPERATURE] = {"params": {}, "adapted": state}
    return participants

  def targets(participants: Participants, batch: Batch) -> None:
    return None

  def loss(
    learning: Participants,
    participants: Participants,
    batch: Batch,
    targets: None,
    context: Context,
  ) -> tuple[Array, Aux]:
    if exits > 1:
      refuse_multi_hot("several exits", batch)
    variables = merge(participants, learning)
    state: Participants = {}
    outputs, state["student"] = learn(
      network,
      variables["student"],
      batch.inputs,
      key_for(context.rng, "student"),
      where=batch.mask,
    )
    metrics = {
      f"accuracy_exit_{m}": accuracy(output.logits, batch) for m, output in enumerate(outputs)
    }
    metrics["accuracy"] = metrics[f"accuracy_exit_{exits - 1}"]
    labels = [
      share * label_terms(output.logits, batch, context)
      for share, output in zip(label_weights, outputs, strict=True)
      if share
    ]
    terms = {"labels": sum(labels, start=Terms())} if labels else {}
    if distillation is not None:
      now = None
      if adapts:
        now = variables[TEMPERATURE]["adapted"][TEMPERATURE]
        metrics["temperature"] = (now, jnp.float32(1))
        state[TEMPERATURE] = {"adapted": {TEMPERATURE: adapted(now, outputs[-1], batch, context)}}
      if isinstance(distillation, WholeBatch):
        refuse_parts("'exits'", context, distillation.reason)
      what = "the exits' distillation"
      found = call_with_mask(what, distillation, outputs, now, batch, context)
      terms["exits"] = weight * (
        found
        if isinstance(distillation, WholeBatch)
        else _pooled(found, batch, context, summed=summed)
      )
    total = sum((t.total for t in terms.values()), start=jnp.float32(0))
    return total, Aux(terms, metrics, state)

  def adapted(now: Array, deepest: Any, batch: Batch, context: Context) -> Array:
    assert temperature is not None
    refuse_parts(
      "an adaptive temperature", context, "which follows the mean confidence of a whole batch"
    )
    return losses.adapted_temperature(
      now,
      deepest.logits,
      confidence=temperature.confidence,
      factor=temperature.factor,
      axis_name=context.axis_name,
      where=batch.mask,
    )

  def predict(participants: Participants, images: Array) -> dict[str, Array]:
    outputs = infer(network, participants["student"], images)
    logits = {f"exit_{m}": output.logits for m, output in enumerate(outputs)}
    if exits > 1:
      logits["ensemble"] = mean_log_probabilities(list(logits.values()))
    return logits

  def export(participants: Participants) -> dict[str, Network]:
    student = participants["student"]
    networks = {f"exit_{m}": cut_at_exit(network, student, m, image_shape) for m in range(exits)}
    if isinstance(network, MultiExit):
      # The deepest exit is the network without the added exits.
      networks[f"exit_{exits - 1}"] = plain_network(network, student)
    if exits > 1:
      networks["ensemble"] = exit_ensemble(network, student)
    return networks

  learners = ("student", TEMPERATURE) if adapts else ("student",)
  return Scheme(init, targets, loss, predict, learners, export)


def of_exits(kernel: Callable[..., Terms], *, whole: bool = False, **options: Any) -> Loss:
  """Return the distillation of `multi_exit` for a function of `jaxkd.losses`.

  Args:
    kernel: (exits, where=mask, **options) -> Terms; also `temperature` if that adapts.
    whole: whether it compares the examples of a batch with each other; it then takes `axis_name`.
    **options: passed to it.
  """

  def loss(exits: Any, temperature: Any, batch: Batch, context: Context) -> Terms:
    given = {} if temperature is None else {"temperature": temperature}
    if whole:
      given["axis_name"] = context.axis_name
    return kernel(exits, where=batch.mask, **options, **given)

  return WholeBatch(loss) if whole else loss


def _pooled(terms: Terms, batch: Batch, context: Context, *, summed: bool) -> Terms:
  """Return terms whose mean over parts and devices equals the terms of the whole batch."""
  local = scaled(terms, batch, context)
  if not summed:
    return local
  devices = 1 if context.axis_name is None else lax.axis_size(context.axis_name)
  return Terms(feature=devices * context.parts * terms.feature, logit=local.logit)


def network_with_exits(setup: Setup) -> Any:
  """Return the student if it has exits of its own, else the student with the config's exits."""
  hyperparameters = setup.hyperparameters
  if isinstance(setup.student_output, tuple):
    return setup.student
  assert setup.student_output.logits is not None
  return with_exits(
    setup.student,
    setup.student_output,
    _exit_stages(setup),
    kind=hyperparameters.head,
    num_classes=setup.student_output.logits.shape[-1],
    **setup.options,
  )


def _exit_stages(setup: Setup) -> tuple[str, ...]:
  """Return the stages of the config; "auto" is all inner stages except the last."""
  stages: list[str] = []
  for stage in setup.hyperparameters.exits:
    stages += inner_stages(setup.student_shapes())[:-1] if stage == AUTO else [stage]
  return tuple(stages)


def exits_phase(name: str, setup: Setup, network: Any, **scheme: Any) -> PhaseSpec:
  """Return the phase that trains all exits; its result is the accuracy of the deepest exit."""
  return PhaseSpec(
    name,
    multi_exit(network, image_shape=setup.image_shape, **scheme),
    learning_rate=setup.hyperparameters.get("learning_rate"),
    reported=f"exit_{network.num_exits - 1}",
    notes=_notes(setup, network),
  )


def _notes(setup: Setup, network: Any) -> tuple[str, ...]:
  if network is setup.student:
    return (f"{network.num_exits} exits of its own",)
  shapes = setup.student_shapes()
  return (f"exits on {', '.join(f'{s} {sizes(shapes[s])}' for s in network.exit_stages)}",)


def exit_wise(setup: Setup, network: Any) -> PhaseSpec:
  """Return the phase that trains each exit from labels alone, at the student's learning rate."""
  labels = (1.0,) * network.num_exits
  phase = exits_phase(BASELINE, setup, network, distillation=None, label_weights=labels)
  return dataclasses.replace(phase, learning_rate=None, role="baseline")
