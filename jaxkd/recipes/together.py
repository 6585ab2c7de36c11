"""Recipes of methods without a teacher that was trained before: born-again, mutual, ONE."""

from __future__ import annotations

import functools

from jaxkd import config, losses, schemes
from jaxkd.adapters import Gate
from jaxkd.config import choice, flag, number, text
from jaxkd.errors import ConfigError
from jaxkd.recipes.method import Method, Pair, Training, feature_shape, sizes
from jaxkd.recipes.objective import ALONE, DISTILLED, check_something_learns
from jaxkd.recipes.pairing import inner_stages
from jaxkd.recipes.stages import AUTO
from jaxkd.schemes import RAMPS, Distillation, ramp
from jaxkd.schemes.born_again import generation_name
from jaxkd.schemes.distillation import Weight
from jaxkd.schemes.mutual import UPDATES

# Far enough from the seeds that experiments are repeated with.
_NEXT_GENERATION = 1000


def _born_again(pair: Pair) -> list[Training]:
  check_something_learns(pair)
  own = pair.hyperparameters
  if own.form == "confidence" and not own.weight:
    raise ConfigError("method.weight=0.0: expected a number > 0 with form='confidence'")
  # At the rate of all generations, which differ in their teachers alone.
  first = Training(ALONE, schemes.supervised(pair.student), learning_rate=own.learning_rate)
  found = [first]
  for generation in range(1, own.generations + 1):
    inherit = {
      generation_name(earlier): f"{training.name}/student" for earlier, training in enumerate(found)
    }
    distillation = _from_generation(pair, generation_name(generation - 1))
    # Where the teacher's confidence weighs the labels, they are in that term.
    label_weight = 0.0 if own.form == "confidence" else own.label_weight
    found.append(
      Training(
        generation_name(generation),
        schemes.born_again(
          pair.student, [distillation], generation=generation, label_weight=label_weight
        ),
        inherit,
        learning_rate=own.learning_rate,
        seed_offset=generation * _NEXT_GENERATION,
      )
    )
  return found


def _from_generation(pair: Pair, teacher: str) -> Distillation:
  """What a generation learns from the one before."""
  own = pair.hyperparameters
  if own.form == "confidence":
    return Distillation(
      "confident_labels",
      losses.confidence_weighted_by_teacher_max,
      own.weight,
      teacher,
      labelled=True,
    )
  if own.form == "permuted":
    loss = functools.partial(losses.dark_knowledge_permuted, temperature=own.temperature)
    return Distillation("permuted", loss, own.weight, teacher, random=True)
  loss = functools.partial(losses.knowledge_distillation, temperature=own.temperature)
  return Distillation("kd", loss, own.weight, teacher)


def _mutual(pair: Pair) -> list[Training]:
  own = pair.hyperparameters
  if len(own.models) > own.peers:
    raise ConfigError(
      f"method.models={tuple(own.models)}: expected at most {own.peers}, as method.peers says"
    )
  peers = {}
  for place in range(own.peers):
    name = own.models[place % len(own.models)]
    peers[f"peer_{place}"] = pair.student if name == "student" else pair.create(name)
  scheme = schemes.mutual(
    peers,
    weight=own.weight,
    label_smoothing=own.label_smoothing,
    updates=own.updates,
    temperature=own.temperature,
    squared_temperature=own.squared_temperature,
    over_peers=own.over_peers,
    target=own.target,
    detached=own.detached,
  )
  first = own.models[0]
  return [
    Training(
      DISTILLED,
      scheme,
      learning_rate=own.learning_rate,
      reported="peer_0",
      label="" if first == "student" else first,
      turns=tuple(peers) if own.updates == "alternating" else (),
    )
  ]


def _native_ensemble(pair: Pair) -> list[Training]:
  own = pair.hyperparameters
  from_stage = own.from_stage if own.from_stage != AUTO else _before_last(pair)
  shape = feature_shape(pair.plain_output, from_stage, "student")
  weight: Weight = own.weight
  if own.ramp != "none":
    steps = own.ramp_epochs * pair.steps_per_epoch
    weight = ramp(own.ramp, steps=steps, end=own.weight)
  scheme = schemes.native_ensemble(
    pair.student,
    Gate(own.branches, **pair.options),
    branches=own.branches,
    from_stage=from_stage,
    weight=weight,
    temperature=own.temperature,
    detached=own.detached,
  )
  shared = f"{own.branches} branches share what is up to {from_stage} {sizes(shape)}"
  return [
    Training(
      DISTILLED,
      scheme,
      learning_rate=own.learning_rate,
      reported="branch_0",
      notes=(shared,),
    )
  ]


def _before_last(pair: Pair) -> str:
  """The stage before the last one that is not pooled."""
  *earlier, last = inner_stages(pair.student_shapes())
  return earlier[-1] if earlier else last


METHODS = {
  "born_again": Method(
    "born-again networks: each generation taught by the one before (Furlanello et al., 2018)",
    {
      # Those after the first, which has only labels.
      "generations": config.integer(3, minimum=1, maximum=64),
      # What a generation learns of its teacher: its distribution, how sure it is of each example
      # (a weight of the labels: CWTM), or its distribution with all but the largest entry
      # permuted (DKPP).
      "form": choice("distribution", ("distribution", "confidence", "permuted")),
      "weight": number(1.0),
      # 0 is born-again without labels.
      "label_weight": number(1.0),
      "temperature": number(1.0, exclusive=True),
    },
    trainings=_born_again,
    without_teacher=True,
  ),
  "dml": Method(
    "deep mutual learning: peers that teach each other (Zhang et al., 2018)",
    {
      "peers": config.integer(2, minimum=1, maximum=64),
      # Peer i is a models[i % len(models)]; "student" is student.model.
      "models": config.names(("student",)),
      "weight": number(1.0),
      "temperature": number(1.0, exclusive=True),
      "squared_temperature": flag(True),
      "over_peers": choice("sum", ("sum", "mean")),
      "target": choice("pairwise", ("pairwise", "ensemble")),
      "detached": flag(True),
      # Alternating, each peer is updated at every peers-th step.
      "updates": choice("synchronous", UPDATES),
      "label_smoothing": number(0.0, maximum=1.0),
    },
    trainings=_mutual,
    without_teacher=True,
  ),
  "one": Method(
    "ONE: branches that learn from their gated ensemble (Lan et al., 2018)",
    {
      "branches": config.integer(3, minimum=1, maximum=64),
      "from_stage": text(AUTO),
      "weight": number(1.0),
      "temperature": number(3.0, exclusive=True),
      "detached": flag(True),
      "ramp": choice("exponential", ("none", *RAMPS)),
      "ramp_epochs": number(80.0, exclusive=True),
    },
    trainings=_native_ensemble,
    without_teacher=True,
    needs="stages",
  ),
}
