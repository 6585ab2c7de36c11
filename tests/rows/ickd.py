"""Rows of inter-channel correlation (ICKD)."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.ickd import ickd
from tests.rows._counted import kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject, of_maps

_LOSS = losses.inter_channel_correlation

SUBJECTS = {
  "inter_channel_correlation": Subject(of_maps(_LOSS), (B, 2, 2, 3), (B, 1, 4, 3)),
  "inter_channel_correlation_eps": Subject(
    of_maps(_LOSS, eps=1e-6), (B, 2, 2, 3), (B, 1, 4, 3), long=True
  ),
}

COUNTED = [kernel("channel_correlation_mse", (2, 2, 3), (3, 2, 3))]

BEHIND_A_NETWORK = {"inter_channel_correlation": of(_LOSS, stages=BOTH)}

MUTATIONS = [
  Mutation(
    "ICKD's rows not normalised",
    "ickd.py",
    "return unit_vectors(gram, 2, None if eps is None else eps / jnp.square(scale[..., 0]))",
    "return gram",
    "test_ickd.py",
    "ickd",
  ),
  Mutation(
    "ICKD divided by the square of the channels",
    "ickd.py",
    "axis=(1, 2)) / gap.shape[1], counted)",
    "axis=(1, 2)) / gap.shape[1] ** 2, counted)",
    "test_ickd.py",
    "ickd",
  ),
  Mutation(
    "ICKD's columns normalised, not its rows",
    "ickd.py",
    "unit_vectors(gram, 2,",
    "unit_vectors(gram, 1,",
    "test_ickd.py",
    "ickd",
  ),
]

GOLDEN = {"ickd": ickd}
