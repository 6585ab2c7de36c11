"""One network with several exits, of which the deeper teach the shallower."""

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
from jaxkd.losses._numerics import mean_log_probabilities
from jaxkd.models import (
  MultiExit,
  cut_at_exit,
  exit_ensemble,
  plain_network,
)
from jaxkd.networks import infer, initialize, key_for, learn, merge
from jaxkd.schemes.distillation import mask_option
from jaxkd.schemes.labels import accuracy, label_terms
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


@dataclasses.dataclass(frozen=True)
class AdaptiveTemperature:
  """A temperature that rises while the deepest exit is too sure of itself.

  It starts at `start`, and is multiplied by `factor` after every step in which the deepest exit's
  mean largest probability, softened by it, exceeds `confidence`.

  Attributes:
    start: the first temperature.
    confidence: 0..1.
    factor: at least 1.

  Source: Phuong & Lampert, "Distillation-Based Training for Multi-Exit Architectures", ICCV 2019,
  the authors' code. There the temperature is lost when training is resumed.
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
  distillation: Callable[..., Terms] | None,
  *,
  label_weights: Sequence[float],
  weight: float = 1.0,
  temperature: AdaptiveTemperature | None = None,
  summed: bool = False,
  global_batch: bool = False,
  image_shape: tuple[int, int, int],
) -> Scheme:
  """A scheme of one network that learns at all of its exits, and from its own deeper ones.

  The objective is sum_m label_weights[m] * CE(exit m) + weight * distillation(exits). Examples
  without labels (weight 0) count in the second part only.

  Participants: "student", and with an adaptive temperature "temperature", which has no parameters
  but a state that changes with training and is saved with it. Predictors: "exit_0" (the
  shallowest), ..., and the "ensemble", the mean of all exits' probabilities.

  Args:
    network: `num_exits`, `__call__(images, train) -> tuple[Output, ...]` and `run_block`
      (`jaxkd.models.MSDNet`, `jaxkd.models.MultiExit`).
    distillation: the exits' Outputs, shallowest first -> Terms, its options bound
      (`functools.partial(losses.be_your_own_teacher, soft_weight=0.1)`); it is also given
      `temperature` if that adapts. None trains every exit by the labels alone.
    label_weights: one for each exit.
    weight: of the distillation.
    temperature: None leaves it to `distillation`.
    summed: its feature term is a sum over the examples of the batch, not a mean.
    global_batch: the distillation is not a mean over examples; it is also given `axis_name`, the
      device axis, so that it sees the batch of all devices. It is refused on a batch in parts.
    image_shape: (H, W, C), by which the layers before an exit are found when it is exported.

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
    participants = {"student": initialize(network, rng, "student", batch.images)}
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
    everyone = merge(participants, learning)
    state: Participants = {}
    outputs, state["student"] = learn(
      network,
      everyone["student"],
      batch.images,
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
      options = mask_option(distillation, batch, "the exits' distillation")
      if global_batch:
        refuse_parts("'exits'", context, "which compares the examples of a batch")
        options["axis_name"] = context.axis_name
      if adapts:
        now = everyone[TEMPERATURE]["adapted"][TEMPERATURE]
        options["temperature"] = now
        metrics["temperature"] = (now, jnp.float32(1))
        state[TEMPERATURE] = {"adapted": {TEMPERATURE: adapted(now, outputs[-1], batch, context)}}
      found = distillation(outputs, **options)
      terms["exits"] = weight * _pooled(found, batch, context, summed=summed, whole=global_batch)
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
      # Its deepest exit is the network it was before it was given exits.
      networks[f"exit_{exits - 1}"] = plain_network(network, student)
    if exits > 1:
      networks["ensemble"] = exit_ensemble(network, student)
    return networks

  learners = ("student", TEMPERATURE) if adapts else ("student",)
  return Scheme(init, targets, loss, predict, learners, export)


def _pooled(terms: Terms, batch: Batch, context: Context, *, summed: bool, whole: bool) -> Terms:
  """Terms whose mean over parts and devices is what the whole batch gives."""
  if whole:
    return terms
  local = scaled(terms, batch, context)
  if not summed:
    return local
  devices = 1 if context.axis_name is None else lax.axis_size(context.axis_name)
  return Terms(feature=devices * context.parts * terms.feature, logit=local.logit)
