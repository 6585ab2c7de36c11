"""Rows of class attention transfer (CAT-KD)."""

from __future__ import annotations

import functools

from jaxkd import losses
from tests.golden_adapters.catkd import catkd
from tests.rows._counted import kernel, of_outputs
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject, of_maps

_MAPS = ((B, 4, 4, 3), (B, 3, 3, 3))

SUBJECTS = {
  "class_attention": Subject(of_maps(losses.class_attention), *_MAPS),
  "class_attention_values": Subject(
    of_maps(losses.class_attention, normalize=False, resolution=3), *_MAPS, long=True
  ),
  "class_attention_top": Subject(
    of_maps(losses.class_attention, transfer="top", count=2, binarize=True), *_MAPS, long=True
  ),
}

COUNTED = [
  kernel("class_activation_mse", (4, 4, 3), (2, 2, 3)),
  kernel("class_activation_mse", (2, 2, 3), (2, 2, 3), transfer="lowest", count=1),
  of_outputs("class_attention", (2, 2, 3), (2, 2, 3)),
]

CALLS = {"class_attention": functools.partial(losses.class_attention, stages=("stage3",))}

BEHIND_A_NETWORK = {
  "class_attention": of(losses.class_attention, stages=BOTH),
  "class_attention values": of(losses.class_attention, stages=BOTH, normalize=False),
}

MUTATIONS = [
  Mutation(
    "CAT-KD's maps not normalised",
    "catkd.py",
    "  if normalize:",
    "  if False:",
    "test_catkd.py",
    "catkd",
  ),
  Mutation(
    "CAT-KD's threshold without the magnitude",
    "catkd.py",
    "threshold = jnp.mean(jnp.abs(teacher)",
    "threshold = jnp.mean(teacher",
    "test_catkd.py",
    "catkd",
  ),
  Mutation(
    "CAT-KD's chosen classes divided by the number of all",
    "catkd.py",
    "/ jnp.maximum(each, 1 / classes)",
    "/ classes",
    "test_catkd.py",
    "catkd",
  ),
]

GOLDEN = {"catkd": catkd}

RECORDED = ("catkd/normalize=False", "catkd/transfer='top'/count=2/binarize=True")
