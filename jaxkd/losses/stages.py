"""Which stage of the student is compared with which stage of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.types import Output

# A stage's name where student and teacher share it, else (student's stage, teacher's stage).
Stage = str | tuple[str, str]
Stages = Sequence[Stage]


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


def stage_features(output: Output, stage: str, *, who: str) -> jax.Array:
  """The features of one stage; `who` ("student", "teacher") is named where it is missing.

  Raises:
    ConfigError: listing the stages there are, if there is none of that name.
  """
  if not output.features:
    raise ConfigError(f"the {who}'s Output has no features, so no stage {stage!r}")
  if stage not in output.features:
    raise unknown_name(f"{who} stage", stage, output.features)
  return output.features[stage]


def over_stages(
  kernel: Callable[[jax.Array, jax.Array], jax.Array],
  student: Output,
  teacher: Output,
  stages: Stages,
) -> list[jax.Array]:
  """`kernel(student's features, teacher's features)` of every stage, in the order of `stages`.

  Raises:
    ConfigError: the kernel's own, with the stage put in front; or for a stage that is missing.
  """
  values = []
  for ours, theirs in stage_pairs(stages):
    s = stage_features(student, ours, who="student")
    t = stage_features(teacher, theirs, who="teacher")
    try:
      values.append(kernel(s, t))
    except ConfigError as error:
      where = f"stage {ours!r}" if ours == theirs else f"stages {ours!r} and {theirs!r}"
      raise ConfigError(f"{where}: {error}") from error
  return values
