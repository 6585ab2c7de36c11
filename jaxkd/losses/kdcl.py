"""KDCL: networks that learn from one target, an ensemble that is made of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import check_arrays, check_outputs, check_positive, logits_of
from jaxkd.losses._counting import counted_positions, keep, mean, share
from jaxkd.losses._kdcl_target import ensemble_target
from jaxkd.losses._numerics import log_probabilities, relative_entropy, widen
from jaxkd.types import Output, Terms

Ensemble = Literal["minlogit", "naive", "naive_batch", "mean", "linear"]
Projection = Literal["simplex", "normalize"]

ENSEMBLES: tuple[str, ...] = get_args(Ensemble)
PROJECTIONS: tuple[str, ...] = get_args(Projection)
# Those that depend on which examples are in the batch.
OF_WHOLE_BATCHES = ("naive_batch", "linear")


def collaborative_kl(
  branches: ArrayLike,
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  ensemble: Ensemble = "minlogit",
  temperature: float | jax.Array = 2.0,
  squared_temperature: bool = True,
  steps: int = 50,
  rate: float = 0.1,
  projection: Projection = "simplex",
  detached: bool = True,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Sum over branches of the divergence from each one to the ensemble of all.

  sum_i T^2 * mean_b KL(softmax(t / T) || softmax(z_i / T)) with the target t
    mean: the mean of the logits, mean_i z_i.
    minlogit: min_i (z_i - z_i[label]), class by class; its logit of the label is 0.
    naive: the logits of the branch with the least cross-entropy, chosen for each example.
    naive_batch: those of the branch with the least cross-entropy of the batch.
    linear: sum_i a_i z_i, with the a >= 0, sum 1, of the least cross-entropy of the batch, found by
      `steps` projected gradient steps from a = 1 / M.
  A position without a label (weight 0) has the mean as target with minlogit and naive.

  Args:
    branches: logits (M, ..., C) of M branches.
    labels: class numbers with the leading axes (...), or probabilities (..., C).
    weights: weight of each label, (B,) or (...); 0 for an unknown one. None weights all by 1.
    ensemble: the target.
    temperature: T > 0.
    squared_temperature: multiply by T^2.
    steps: number of gradient steps of "linear".
    rate: their step size.
    projection: "simplex", to the nearest weights that are >= 0 and sum to 1; or "normalize",
      negative weights become 0, then all are divided by their sum.
    detached: the target takes no gradient. False lets it through its logits; the choice, and the
      weights of "linear", never take any.
    axis_name: device axis of a mapped step, for a target of the whole batch; `lax.pmean` of the
      value, and of its gradient, is then that of the whole batch.
    where: mask (B,) or with the leading axes; the rest is padding and may hold any values.

  Returns:
    The loss, a scalar, float32 or wider: sum over classes and branches, mean over what counts.
    Never negative; 0, with no gradient, where all branches agree.

  Raises:
    ConfigError: for shapes that do not fit together, no branch, or an invalid option.

  Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020, of
  which no code by the authors is published. "naive" (per sample), "minlogit" and "linear" with
  `projection="normalize"` are those of kdcl-rat-selection, "naive_batch" is OnlineDistillGCN's,
  which gives no term to the chosen branch: that term is 0 here. "mean" is SKD-RSL's.
  `projection="normalize"` is not the projection of the paper's convex problem: "simplex" is.
  OnlineDistillGCN's value is 1 / (B C) of this one.

  >>> z = jnp.array([[[1.0, 0.0]], [[0.0, 0.0]]])
  >>> collaborative_kl(z, jnp.array([0]), ensemble="mean", temperature=1.0).round(4)
  Array(0.0583, dtype=float32)
  """
  check_options(ensemble, projection, steps, rate, temperature)
  (branches,) = widen(branches, what="collaborative_kl")
  check_arrays("collaborative_kl", labels)
  if branches.ndim < 2 or not len(branches):
    raise ConfigError(
      f"collaborative_kl: branches {branches.shape}: expected logits (M, ..., C) of at least one"
    )
  counted = counted_positions("collaborative_kl", where, branches[0])
  if counted is not None:
    branches = jnp.where(counted[None, ..., None], branches, 0.0)
  target = ensemble_target(
    branches,
    labels,
    weights,
    ensemble=ensemble,
    linear=(steps, rate, projection),
    detached=detached,
    axis_name=axis_name,
    counted=counted,
  )
  (target,) = keep(counted, target)
  log_q = log_probabilities(target, temperature)
  total = jnp.zeros((), branches.dtype)
  for logits in branches:
    total += mean(relative_entropy(log_probabilities(logits, temperature), log_q), counted)
  scale = temperature * temperature if squared_temperature else 1.0
  return jnp.asarray(scale * share(counted, axis_name) * total)


def collaborative_learning(
  branches: Sequence[Output],
  labels: ArrayLike,
  weights: ArrayLike | None = None,
  *,
  ensemble: Ensemble = "minlogit",
  temperature: float | jax.Array = 2.0,
  squared_temperature: bool = True,
  steps: int = 50,
  rate: float = 0.1,
  projection: Projection = "simplex",
  detached: bool = True,
  axis_name: str | None = None,
  where: ArrayLike | None = None,
) -> Terms:
  """KDCL: match every branch to one ensemble of all branches.

  `collaborative_kl`, to be added to the cross-entropy of every branch.

  Args:
    branches: Outputs with logits (..., C), of networks that may have seen different augmentations.
    labels: class numbers with the leading axes, or probabilities (..., C).
    weights: weight of each label; see `collaborative_kl`, as for all that follow.
    ensemble: the target.
    temperature: T > 0.
    squared_temperature: multiply by T^2.
    steps: gradient steps of "linear".
    rate: their step size.
    projection: "simplex" or "normalize".
    detached: the target takes no gradient.
    axis_name: device axis, for a target of the whole batch.
    where: mask of what counts.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, missing logits, no branch, shapes that do not fit
      together, or an invalid option.

  Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020.

  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> float(collaborative_learning([z, z], jnp.array([1])).total)
  0.0
  """
  what = "collaborative_learning"
  check_outputs(what, branches, role="branches")
  if not branches:
    raise ConfigError(f"{what}: branches is empty: expected at least one Output")
  found = widen(*(logits_of(b, what=what, role=f"branch {i}") for i, b in enumerate(branches)))
  for i, logits in enumerate(found):
    if logits.shape != found[0].shape:
      raise ConfigError(
        f"{what}: branch 0 {found[0].shape} and branch {i} {logits.shape} differ in shape"
      )
  return Terms(
    logit=collaborative_kl(
      jnp.stack(found),
      labels,
      weights,
      ensemble=ensemble,
      temperature=temperature,
      squared_temperature=squared_temperature,
      steps=steps,
      rate=rate,
      projection=projection,
      detached=detached,
      axis_name=axis_name,
      where=where,
    )
  )


def check_options(
  ensemble: str, projection: str, steps: int, rate: float, temperature: float | jax.Array
) -> None:
  """Raise a ConfigError for an unknown ensemble or projection, or a number out of range."""
  if ensemble not in ENSEMBLES:
    raise unknown_name("ensemble", ensemble, ENSEMBLES)
  if projection not in PROJECTIONS:
    raise unknown_name("projection", projection, PROJECTIONS)
  if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
    raise ConfigError(f"steps is {steps!r}: it must be an integer >= 0")
  check_positive("rate", rate)
  check_positive("temperature", temperature)
