"""Methods that compare the logits of every pixel, or feature maps of networks without them."""

from __future__ import annotations

from jaxkd.errors import ConfigError
from jaxkd.methods._stages import AUTO, chosen_pairs
from jaxkd.methods.base import Setup, StagePair, sizes
from jaxkd.types import Output

# The value of the config field `stages` for the logits.
LOGITS = "logits"


def has_dense_logits(output: Output) -> bool:
  """Check whether a network returns logits of every pixel, (B, H, W, C)."""
  return output.logits is not None and output.logits.ndim == 4


def dense_pairs(setup: Setup) -> tuple[StagePair, ...] | None:
  """Return the pairs of stages that the config's `stages` name; None for the logits.

  "auto" is the logits if both networks return logits of every pixel, else the last stage before
  pooling of each.

  Raises:
    ConfigError: for a stage that one of them lacks, or "logits" that are not of every pixel.
  """
  named = tuple(setup.hyperparameters.stages)
  student, teacher = setup.plain_output, setup.teacher.output
  dense = has_dense_logits(student) and has_dense_logits(teacher)
  if LOGITS in named:
    if named != (LOGITS,) or not dense:
      shapes = (getattr(x.logits, "shape", None) for x in (student, teacher))
      raise ConfigError(
        f"method.stages={named}: expected 'logits' alone, with logits (B, H, W, C) of both "
        "networks; student and teacher give {} and {}".format(*shapes)
      )
    return None
  return None if dense and named == (AUTO,) else chosen_pairs(setup, last=True)


def compared_logits(setup: Setup) -> str:
  """Return a line with the logits that are compared and their sizes."""
  ours, theirs = setup.plain_output.logits, setup.teacher.output.logits
  assert ours is not None and theirs is not None  # `dense_pairs` has found them
  return f"logits {sizes(ours.shape)} with logits {sizes(theirs.shape)} of the {setup.teacher_name}"
