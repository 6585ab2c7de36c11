"""Which stage of the student is compared with which stage of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses.checks import check_output
from jaxkd.types import Output

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
