"""Rows of VkD's orthogonal projection."""

from __future__ import annotations

from jaxkd import losses
from tests.golden_adapters.token import vkd
from tests.rows._counted import kernel, of_outputs
from tests.rows._mutation import Mutation
from tests.rows._networked import BOTH, of
from tests.rows._subject import B, Subject, of_maps

_BOTH = {"standardize": "both"}

SUBJECTS = {
  "orthogonal_projection": Subject(of_maps(losses.orthogonal_projection), (B, 3), (B, 2, 2, 3)),
  "orthogonal_projection_both": Subject(
    of_maps(losses.orthogonal_projection, **_BOTH),
    (B, 2, 3),
    (B, 2, 3),
    mapped=of_maps(losses.orthogonal_projection, **_BOTH, axis_name="batch"),
    long=True,
  ),
}

COUNTED = [
  kernel("normalized_huber", (3,), (2, 2, 3)),
  kernel("standardized_huber", (2, 3), (2, 3)),
  of_outputs("orthogonal_projection", (2, 2, 3), (2, 2, 3)),
]

BEHIND_A_NETWORK = {
  "orthogonal_projection": of(losses.orthogonal_projection, stages=BOTH),
  "orthogonal_projection both": of(losses.orthogonal_projection, stages=BOTH, **_BOTH),
}

MUTATIONS = [
  Mutation(
    "VkD's teacher not divided by its deviation",
    "vkd.py",
    "centred / jnp.sqrt(variance + _EPS)",
    "centred",
    "test_vkd.py",
    "vkd",
  ),
  Mutation(
    "VkD's deviation over the batch not unbiased",
    "vkd.py",
    "jnp.maximum(count - 1, 1)",
    "jnp.maximum(count, 1)",
    "test_vkd.py",
    "vkd",
  ),
  Mutation(
    "VkD's distance not linear beyond 1",
    "vkd.py",
    "jnp.where(size < 1, 0.5 * jnp.square(x), size - 0.5)",
    "0.5 * jnp.square(x)",
    "test_vkd.py",
    "vkd",
  ),
]

GOLDEN = {"vkd": vkd}

RECORDED = ("vkd/standardize='both'/stages=('stage1',)",)
REFUSED = {
  ("vkd/standardize='both'/stages=('stage1',)", "vit-vgg"): "compares every position, and 'stage1'"
}
