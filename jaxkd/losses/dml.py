"""Deep mutual learning (DML) and native ensembles (ONE): networks trained together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.losses._checks import (
  check_fraction,
  check_outputs,
  check_positive,
  check_same_shape,
  logits_of,
)
from jaxkd.losses._counting import counted_positions, keep, mean
from jaxkd.losses._numerics import log_probabilities, relative_entropy, widen
from jaxkd.losses._standardization import standardized
from jaxkd.types import Output, Terms

OverPeers = Literal["sum", "mean"]
Target = Literal["pairwise", "ensemble"]

_OVER_PEERS: tuple[str, ...] = get_args(OverPeers)
_TARGETS: tuple[str, ...] = get_args(Target)


def peer_kl(
  student: ArrayLike,
  peer: ArrayLike,
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  target_smoothing: float = 0.0,
  ratio_smoothing: float = 0.0,
  detached: bool = True,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Kullback-Leibler divergence from a network's softened distribution to its peer's.

  T^2 * mean_b sum_c q * (log q - log p), with p = softmax(student / T), q = softmax(peer / T).

  Args:
    student: logits (..., C), with any leading axes. A logit of -inf is an impossible class, on
      either side: 0 log 0 = 0.
    peer: logits of the same shape, the target.
    temperature: T > 0, a number or a traced scalar.
    squared_temperature: multiply by T^2.
    target_smoothing: a number s >= 0 added to every q, which then sums to 1 + C * s.
    ratio_smoothing: a number s >= 0; the terms become q * log(s + q / (p + s)).
    detached: the peer takes no gradient. False also trains it towards the student.
    standardize: both sides' logits first get mean 0 and standard deviation 1 over the classes, see
      `soft_target_kl`.
    where: mask (B,) or with all leading axes of the logits, nonzero where a position counts; the
      rest is padding and may hold any values. None: all count.

  Returns:
    The loss, a scalar, float32 or wider: sum over classes, mean over what counts, 0 if nothing
    does. Without smoothing it is never negative, and value and gradient are exactly 0 where the
    logits agree; with smoothing they are of size s there. The value is inf if q > 0 and p = 0,
    unless the ratio is smoothed.

  Raises:
    ConfigError: if the shapes differ, `where` does not fit them, an option is out of its range, or
      both kinds of smoothing are given.

  Source: Zhang et al., "Deep Mutual Learning", CVPR 2018. Without smoothing it is the Zoo's, which
  detaches, and `soft_target_kl`. The authors' code is `ratio_smoothing=1e-8`. OKDDip's KL_Loss
  (AAAI 2020) is `target_smoothing=1e-7, detached=False`, ONE's (NeurIPS 2018)
  `target_smoothing=1e-7`, both with T = 3 and T^2.

  >>> peer_kl(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])).round(4)
  Array(0.4621, dtype=float32)
  """
  check_positive("temperature", temperature)
  check_fraction("target_smoothing", target_smoothing)
  check_fraction("ratio_smoothing", ratio_smoothing)
  if target_smoothing and ratio_smoothing:
    raise ConfigError(
      f"target_smoothing is {target_smoothing} and ratio_smoothing {ratio_smoothing}: give one"
    )
  student, peer = widen(student, lax.stop_gradient(peer) if detached else peer, what="peer_kl")
  check_same_shape("logits", student, peer, "both must score the same classes", other="peer")
  counted = counted_positions("peer_kl", where, student)
  student, peer = keep(counted, student, peer)
  if standardize:
    student, peer = standardized(student), standardized(peer)
  log_p = log_probabilities(student, temperature)
  log_q = log_probabilities(peer, temperature)
  if ratio_smoothing:
    q = jnp.exp(log_q)
    ratio = ratio_smoothing + q / (jnp.exp(log_p) + ratio_smoothing)
    divergence = jnp.sum(q * jnp.log(ratio), axis=-1)
  elif target_smoothing:
    log_q = jnp.logaddexp(log_q, math.log(target_smoothing))
    # relative_entropy subtracts sum q - sum p, which is C * s here: add it again.
    divergence = relative_entropy(log_p, log_q) + student.shape[-1] * target_smoothing
  else:
    divergence = relative_entropy(log_p, log_q)
  scale = temperature * temperature if squared_temperature else 1.0
  return scale * mean(divergence, counted)


def mutual(
  student: Output,
  peers: Sequence[Output],
  *,
  temperature: float | jax.Array = 1.0,
  squared_temperature: bool = True,
  over_peers: OverPeers = "sum",
  target: Target = "pairwise",
  target_smoothing: float = 0.0,
  ratio_smoothing: float = 0.0,
  detached: bool = True,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> Terms:
  """Deep mutual learning: match a network to peers that are trained at the same time.

  The sum (or mean) over peers of `peer_kl(student, peer)`, to be added to the network's
  cross-entropy. The order of the peers does not matter.

  Args:
    student: Output with logits (..., C).
    peers: the other networks' Outputs, without the student's own. An empty list gives 0.
    temperature: T > 0.
    squared_temperature: multiply by T^2.
    over_peers: "sum", or "mean" over the peers.
    target: "pairwise", every peer is a target; "ensemble", their mean logits are the only target.
    target_smoothing: see `peer_kl`.
    ratio_smoothing: see `peer_kl`.
    detached: the peers take no gradient.
    standardize: see `peer_kl`; of an ensemble, its mean logits.
    where: mask of what counts; see `peer_kl`.

  Returns:
    Terms(logit=...), float32 or wider.

  Raises:
    ConfigError: for arrays in place of Outputs, missing logits or shapes that differ, naming the
      peer, or for an invalid option.

  Source: Zhang et al., "Deep Mutual Learning", CVPR 2018. The authors' code sums over the peers,
  with T = 1 and `ratio_smoothing=1e-8`. OKDDip (AAAI 2020): `temperature=3.0, over_peers="mean",
  target_smoothing=1e-7, detached=False`, and by default `target="ensemble"`. MCL-OKD:
  `temperature=2.0, over_peers="mean"`.

  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> float(mutual(z, [z, z]).total)
  0.0
  """
  if over_peers not in _OVER_PEERS:
    raise unknown_name("over_peers", over_peers, _OVER_PEERS)
  if target not in _TARGETS:
    raise unknown_name("target", target, _TARGETS)
  check_outputs("mutual", peers, role="peers")
  if not peers:
    return Terms()
  # Widened here, so that the gradients from several peers are summed before they are rounded.
  own, *others = widen(
    logits_of(student, what="mutual", role="student"),
    *(logits_of(peer, what="mutual", role=f"peer {i}") for i, peer in enumerate(peers)),
  )
  for i, other in enumerate(others):
    check_same_shape("mutual", own, other, "all must score the same classes", other=f"peer {i}")
  if target == "ensemble":
    others = [_total(others) / len(others)]
  divergences = [
    peer_kl(
      own,
      other,
      temperature=temperature,
      squared_temperature=squared_temperature,
      target_smoothing=target_smoothing,
      ratio_smoothing=ratio_smoothing,
      detached=detached,
      standardize=standardize,
      where=where,
    )
    for other in others
  ]
  total = _total(divergences)
  return Terms(logit=total / len(divergences) if over_peers == "mean" else total)


def native_ensemble(
  branches: Sequence[Output],
  ensemble: Output,
  *,
  temperature: float | jax.Array = 3.0,
  squared_temperature: bool = True,
  target_smoothing: float = 1e-7,
  detached: bool = True,
  standardize: bool = False,
  where: ArrayLike | None = None,
) -> Terms:
  """ONE: match every branch to the gated ensemble of all branches.

  The sum over branches of `peer_kl(branch, ensemble)`.

  Args:
    branches: Outputs with logits (..., C).
    ensemble: Output with logits (..., C), the `gated_logits` of the branches.
    temperature: T > 0.
    squared_temperature: multiply by T^2.
    target_smoothing: see `peer_kl`.
    detached: the ensemble takes no gradient; the gate is then trained by the labels alone.
    standardize: see `peer_kl`.
    where: mask of what counts; see `peer_kl`.

  Returns:
    Terms(logit=...), float32 or wider. The authors' weight grows to 1 over 80 epochs
    (`jaxkd.methods.ramp("exponential", ...)`).

  Raises:
    ConfigError: for arrays in place of Outputs, missing logits or shapes that differ, naming the
      branch, or for an invalid option.

  Source: Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, as
  the authors' code. OKDDip's ONE (AAAI 2020) is `detached=False`.

  >>> z = Output(logits=jnp.array([[1.0, 0.0]]))
  >>> float(native_ensemble([z, z], z, target_smoothing=0.0).total)
  0.0
  """
  check_outputs("native_ensemble", branches, role="branches")
  if not branches:
    return Terms()
  (target,) = widen(logits_of(ensemble, what="native_ensemble", role="ensemble"))
  divergences = []
  for i, branch in enumerate(branches):
    logits = logits_of(branch, what="native_ensemble", role=f"branch {i}")
    check_same_shape(f"native_ensemble: branch {i}", logits, target, other="ensemble")
    divergences.append(
      peer_kl(
        logits,
        target,
        temperature=temperature,
        squared_temperature=squared_temperature,
        target_smoothing=target_smoothing,
        detached=detached,
        standardize=standardize,
        where=where,
      )
    )
  return Terms(logit=_total(divergences))


def gated_logits(branches: Sequence[Output], gate: ArrayLike) -> jax.Array:
  """Logits of a gated ensemble: sum_k gate[:, k] * logits of branch k.

  Args:
    branches: K Outputs with logits (..., C), with any leading axes.
    gate: (B, K), weight of each branch for each example, as from `jaxkd.adapters.Gate`. Dense
      logits (B, T, C) may have a gate for every position, (B, T, K).

  Returns:
    (..., C), float32 or wider. Branches and gate take gradients. A class to which a branch of
    weight above 0 gives a logit of -inf has a logit of -inf.

  Raises:
    ConfigError: for arrays in place of Outputs, if there is no branch, logits are missing or
      differ in shape, or the gate does not fit them.

  Source: Lan et al., NeurIPS 2018.

  >>> branches = [Output(logits=jnp.array([[1.0, 0.0]])), Output(logits=jnp.array([[0.0, 2.0]]))]
  >>> gated_logits(branches, jnp.array([[0.25, 0.75]]))
  Array([[0.25, 1.5 ]], dtype=float32)
  """
  check_outputs("gated_logits", branches, role="branches")
  if not branches:
    raise ConfigError("gated_logits: there is no branch")
  found = [logits_of(b, what="gated_logits", role=f"branch {i}") for i, b in enumerate(branches)]
  gate, *logits = widen(gate, *found)
  for i, other in enumerate(logits):
    check_same_shape("gated_logits: branch 0 and its like", logits[0], other, other=f"branch {i}")
  leading, count = logits[0].shape[:-1], len(logits)
  examples = gate.shape[:-1]
  if (
    not gate.ndim or gate.shape[-1] != count or not examples or examples != leading[: gate.ndim - 1]
  ):
    allowed = " or ".join(str((*leading[: i + 1], count)) for i in range(len(leading)))
    raise ConfigError(
      f"gated_logits: gate {gate.shape} does not belong to {count} branches with logits "
      f"{logits[0].shape}: it must be {allowed}"
    )
  gate = gate.reshape(*examples, *(1,) * (len(leading) - len(examples)), count)
  return _total([_scaled(gate[..., k, None], z) for k, z in enumerate(logits)])


def _scaled(share: jax.Array, logits: jax.Array) -> jax.Array:
  """Return share * logits, with 0 * -inf = 0 and no gradient from a logit of -inf."""
  impossible = logits == -jnp.inf
  product = share * jnp.where(impossible, 0.0, logits)
  return jnp.where(impossible & (share > 0), -jnp.inf, product)


def _total(values: Sequence[jax.Array]) -> jax.Array:
  """Sum a nonempty sequence of arrays."""
  return sum(values[1:], start=values[0])
