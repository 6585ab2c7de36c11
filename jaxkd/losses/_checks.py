"""Checks of the arguments of losses, and which stages a loss compares."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.types import Output

# By loss on Outputs, the kernels that compute it from arrays.
KERNELS: dict[str, tuple[str, ...]] = {
  "activation_boundaries": ("boundary_margin",),
  "attention_transfer": ("attention_map_mse", "attention_map_l2"),
  "be_your_own_teacher": ("soft_cross_entropy", "masked_sum_of_squares", "euclidean_distance"),
  "confidence_weighted_by_teacher_max": ("confidence_weighted_cross_entropy",),
  "dark_knowledge_permuted": ("permuted_soft_target_kl",),
  "factor_transfer": ("factor_l1", "factor_lp", "factor_map_lp"),
  "fitnets": ("hint_mse",),
  "flow_of_solution": ("fsp_mse", "fsp_column_norm"),
  "gradient_attention_transfer": ("gradient_l2", "gradient_mse"),
  "gradient_symmetry": ("gradient_l2",),
  "knowledge_distillation": ("soft_target_kl",),
  "multi_exit": ("soft_cross_entropy",),
  "mutual": ("peer_kl",),
  "native_ensemble": ("peer_kl",),
  "neuron_selectivity_transfer": ("polynomial_mmd", "gaussian_mmd", "linear_mmd"),
  "relational": ("pairwise_distance_huber", "angle_huber"),
  "simkd": ("hint_mse",),
}


def is_number(value: Any) -> bool:
  """Whether `value` is known now: a Python or numpy number, not a (traced) JAX array."""
  return isinstance(value, numbers.Real)


def check_positive(name: str, value: Any) -> None:
  """Raise a ConfigError if `value` is a number that is not finite and greater than 0."""
  if is_number(value) and not 0 < value < math.inf:
    raise ConfigError(f"{name} is {value}: it must be a finite number greater than 0")


def check_fraction(name: str, value: Any) -> None:
  """Raise a ConfigError if `value` is a number outside [0, 1]."""
  if is_number(value) and not 0 <= value <= 1:
    raise ConfigError(f"{name} is {value}: it must lie between 0 and 1")


def check_same_shape(
  what: str, student: jax.Array, teacher: jax.Array, hint: str = "", *, other: str = "teacher"
) -> None:
  """Raise a ConfigError with both shapes if they differ; `other` is what the second is called."""
  if student.shape != teacher.shape:
    message = f"{what}: student {student.shape} and {other} {teacher.shape} differ in shape"
    raise ConfigError(f"{message}; {hint}" if hint else message)


def logits_of(output: Output, *, what: str, who: str) -> jax.Array:
  """The logits of an Output.

  Raises:
    ConfigError: if `output` is no Output, or has no logits; it names `who`'s it is.
  """
  check_output(what, output, who=who, part="logits")
  if output.logits is None:
    raise ConfigError(f"{what}: the {who}'s Output has no logits")
  return output.logits


def check_output(what: str, output: Any, *, who: str, part: str) -> None:
  """Raise a ConfigError that names the kernels for arrays if `output` has no attribute `part`."""
  if hasattr(output, part):
    return
  named = "logits=..." if part == "logits" else f'{part}={{"stage": ...}}'
  kernels = " or ".join(KERNELS.get(what, ()))
  call = f"call {kernels} for arrays, or " if kernels else ""
  advice = f"{call}wrap it as Output({named})"
  if isinstance(output, Sequence) and any(isinstance(x, Output) for x in output):
    advice = "give one of the Outputs it holds"
  elif output is None:
    advice = f"give an Output({named})"
  taker = f"{what} takes Outputs" if what else "a loss takes Outputs"
  raise ConfigError(f"{taker}, got {_described(output)} as the {who}: {advice}")


def check_outputs(what: str, outputs: Any, *, who: str) -> None:
  """Raise a ConfigError unless `outputs` is a list or tuple, of which each is checked by itself."""
  if isinstance(outputs, Sequence) and not isinstance(outputs, str):
    return
  if isinstance(outputs, Output):
    raise ConfigError(f"{what}: the {who} must be a list of Outputs, got one: write [output]")
  kernels = " or ".join(KERNELS.get(what, ()))
  call = f"; call {kernels} for arrays" if kernels else ""
  raise ConfigError(
    f"{what} takes a list of Outputs, got {_described(outputs)} as the {who}: wrap each as "
    f"Output(logits=...){call}"
  )


def check_arrays(what: str, *values: Any) -> None:
  """Raise a ConfigError for an Output, or None, among what should be arrays."""
  for value in values:
    held = isinstance(value, (list, tuple)) and any(isinstance(x, Output) for x in value)
    if not (value is None or held or isinstance(value, Output)):
      continue
    losses = " or ".join(loss for loss, kernels in KERNELS.items() if what in kernels)
    advice = [f"call {losses} for Outputs"] if losses else []
    if isinstance(value, Output):
      advice.append(f"give an array of it, as {_array_of(value)}")
    elif value is None or not advice:
      advice = ["give an array"]
    raise ConfigError(
      f"{what or 'a kernel'} takes arrays, got {_described(value)}: {', or '.join(advice)}"
    )


def check_maps(what: str, student: jax.Array, teacher: jax.Array) -> None:
  """Raise a ConfigError unless both are feature maps (B, H, W, C) of one batch."""
  for name, x in (("student", student), ("teacher", teacher)):
    if x.ndim != 4:
      raise ConfigError(f"{what}: {name} {x.shape} is not a feature map (B, H, W, C)")
  if student.shape[0] != teacher.shape[0]:
    raise ConfigError(
      f"{what}: student {student.shape} and teacher {teacher.shape} differ in batch size"
    )


def _described(value: Any) -> str:
  if value is None:
    return "None"
  if isinstance(value, Output):
    return "an Output"
  if hasattr(value, "shape"):
    return f"an array {tuple(value.shape)}"
  if isinstance(value, (list, tuple, Mapping)):
    return f"a {type(value).__name__} of {len(value)}"
  return f"a {type(value).__name__}"


def _array_of(output: Output) -> str:
  """How to write one of the arrays that an Output holds."""
  for part in ("features", "preactivations", "gradients"):
    if output.logits is None and (arrays := getattr(output, part)):
      return f'output.{part}["{next(iter(arrays))}"]'
  return "output.logits"


# A stage's name where student and teacher share it, else (student's stage, teacher's stage).
Stage = str | tuple[str, str]
Stages = Sequence[Stage]
# The arrays of an Output that a loss may compare.
Arrays = Literal["features", "preactivations", "gradients"]

_ARRAYS: tuple[str, ...] = get_args(Arrays)


def stage_pairs(stages: Stages) -> list[tuple[str, str]]:
  """(student's stage, teacher's stage) for every entry.

  Raises:
    ConfigError: if `stages` is a bare string, is empty, or an entry is neither name nor pair.

  >>> stage_pairs(["stage1", ("stage2", "stage3")])
  [('stage1', 'stage1'), ('stage2', 'stage3')]
  """
  if isinstance(stages, str):
    raise ConfigError(f"stages is {stages!r}: write ({stages!r},), a sequence of names or pairs")
  if not stages:
    raise ConfigError("stages is empty: name at least one stage to compare")
  pairs = []
  for stage in stages:
    pair = (stage, stage) if isinstance(stage, str) else tuple(stage)
    if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
      raise ConfigError(f"stages has {stage!r}: write a name or a (student, teacher) pair of names")
    pairs.append(pair)
  return pairs


def mask_and_arrays(
  where: ArrayLike | str | None, arrays: Arrays
) -> tuple[ArrayLike | None, Arrays]:
  """`where` as a mask, and the arrays that are compared.

  Before there were masks, `where` was the name of what is `arrays` now. As text it still is.

  Raises:
    ConfigError: for a text that names no arrays.

  >>> mask_and_arrays("preactivations", "features")
  (None, 'preactivations')
  """
  if not isinstance(where, str):
    return where, arrays
  if where not in _ARRAYS:
    raise unknown_name("where", where, _ARRAYS)
  return None, cast(Arrays, where)


def stage_arrays(
  output: Output, stage: str, *, who: str, arrays: Arrays = "features", what: str = ""
) -> jax.Array:
  """One stage's array; `who` ("student", "teacher") is named where it is missing.

  Raises:
    ConfigError: naming the kernels that `what`, a loss, has for arrays, if `output` is no Output;
      listing the stages there are, if there is none of that name.
  """
  if arrays not in _ARRAYS:
    raise unknown_name("arrays", arrays, _ARRAYS)
  check_output(what, output, who=who, part=arrays)
  found = getattr(output, arrays)
  if not found:
    raise ConfigError(f"the {who}'s Output has no {arrays}, so no stage {stage!r}")
  if stage not in found:
    raise unknown_name(f"{who} stage", stage, found)
  return found[stage]


def over_stages(
  kernel: Callable[[jax.Array, jax.Array], jax.Array],
  student: Output,
  teacher: Output,
  stages: Stages,
  *,
  weights: Sequence[ArrayLike] | None = None,
  arrays: Arrays = "features",
  what: str = "",
) -> jax.Array:
  """The sum over stages of weight * `kernel(student's array, teacher's array)`.

  Args:
    kernel: of two arrays, a scalar.
    student: Output.
    teacher: Output.
    stages: names or pairs.
    weights: one per stage; None weighs them all 1.
    arrays: which arrays of an Output are meant.
    what: the loss's name, for the error.

  Raises:
    ConfigError: for arrays in place of Outputs; the kernel's own, with the stage put in front; for
      a stage that is missing; if the weights are not as many as the stages.
  """
  pairs = stage_pairs(stages)
  if weights is not None and len(weights) != len(pairs):
    raise ConfigError(f"stage_weights are {len(weights)}, stages {len(pairs)}: give one for each")
  total = jnp.float32(0)
  for i, (ours, theirs) in enumerate(pairs):
    s = stage_arrays(student, ours, who="student", arrays=arrays, what=what)
    t = stage_arrays(teacher, theirs, who="teacher", arrays=arrays, what=what)
    try:
      value = kernel(s, t)
    except ConfigError as error:
      place = f"stage {ours!r}" if ours == theirs else f"stages {ours!r} and {theirs!r}"
      raise ConfigError(f"{place}: {error}") from error
    total = total + (value if weights is None else weights[i] * value)
  return total
