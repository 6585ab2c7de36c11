"""The losses that are timed against PyTorch, and their arrays; needs no PyTorch.

The arrays are the stages of resnet8x4 and resnet32x4 at 32x32, which have the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxkd import losses
from jaxkd.types import Output, Terms

Arrays = Mapping[str, np.ndarray]

SHAPES: dict[str, tuple[int, ...]] = {
  "images": (32, 32, 3),
  "stem": (32, 32, 32),
  "stage1": (32, 32, 64),
  "stage2": (16, 16, 128),
  "stage3": (8, 8, 256),
  "factor": (8, 8, 128),
  "pooled": (256,),
  "logits": (100,),
}
_MAPS = ("stage1", "stage2", "stage3")


class Case(NamedTuple):
  """One loss.

  Attributes:
    names: names of the compared arrays in SHAPES.
    ours: (student's Output, teacher's Output, labels (B,)) -> Terms.
    peer: description of the peer; `loss_peers.py` has the function of the same name.
    signed: the arrays have both signs; otherwise they come from a ReLU.
  """

  names: tuple[str, ...]
  ours: Callable[[Output, Output, jax.Array], Terms]
  peer: str
  signed: bool = False


CASES: dict[str, Case] = {
  "kd": Case(
    ("logits",),
    lambda s, t, labels: losses.knowledge_distillation(
      s, t, labels, temperature=4.0, soft_weight=0.5, hard_weight=0.5
    ),
    "torchdistill KDLoss",
    signed=True,
  ),
  "fitnets": Case(
    ("stage2",),
    lambda s, t, _: losses.fitnets(s, t, stages=["stage2"]),
    "torchdistill SimpleLossWrapper(MSELoss)",
  ),
  "at": Case(
    _MAPS, lambda s, t, _: losses.attention_transfer(s, t, stages=_MAPS), "torchdistill ATLoss"
  ),
  "gradient_at": Case(
    ("images",),
    lambda s, t, _: losses.gradient_attention_transfer(s, t, stages=["images"]),
    "PyTorch formula",
    signed=True,
  ),
  "nst": Case(
    _MAPS,
    lambda s, t, _: losses.neuron_selectivity_transfer(s, t, stages=_MAPS),
    "PyTorch formula",
  ),
  "ft": Case(
    ("factor",),
    lambda s, t, _: losses.factor_transfer(s, t, stages=["factor"]),
    "torchdistill FTLoss",
    signed=True,
  ),
  "ab": Case(
    _MAPS,
    lambda s, t, _: losses.activation_boundaries(
      s, t, stages=_MAPS, stage_weights=[1.0] * 3, scale=1.0
    ),
    "torchdistill AltActTransferLoss",
    signed=True,
  ),
  "fsp": Case(
    ("stem", *_MAPS),
    lambda s, t, _: losses.flow_of_solution(
      s, t, stages=["stem", *_MAPS], pool="max", norm="columns"
    ),
    "torchdistill FSPLoss",
  ),
  "rkd": Case(
    ("pooled",),
    lambda s, t, _: losses.relational(
      s, t, stages=["pooled"], distance_weight=1.0, angle_weight=2.0
    ),
    "torchdistill RKDLoss",
  ),
  "simkd": Case(
    ("stage3",), lambda s, t, _: losses.simkd(s, t, stages=["stage3"]), "PyTorch formula"
  ),
}


def arrays_of(case: Case, batch: int) -> tuple[Arrays, Arrays, np.ndarray]:
  """Return the student's arrays by name (B, H, W, C), the teacher's, and labels (B,)."""
  rng = np.random.default_rng(0)

  def draw(name: str) -> np.ndarray:
    values = rng.standard_normal((batch, *SHAPES[name]), dtype=np.float32)
    return values if case.signed else np.maximum(values, 0)

  students = {name: draw(name) for name in case.names}
  # The teacher and the student are similar.
  teachers = {name: (0.5 * x + 0.5 * draw(name)) for name, x in students.items()}
  return students, teachers, rng.integers(0, 100, batch).astype(np.int32)


def value_and_gradient(case: Case) -> Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]]:
  """Return (student's arrays, teacher's, labels) -> the loss and the student's gradients."""

  def loss(students, teachers, labels):
    return case.ours(_output(students), _output(teachers), labels).total

  return jax.value_and_grad(loss)


def _output(arrays: Mapping[str, jax.Array]) -> Output:
  return Output(
    logits=arrays.get("logits"), features=arrays, preactivations=arrays, gradients=arrays
  )
