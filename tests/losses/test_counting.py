"""Masks (`where`): masked examples affect no value, statistic or gradient, whatever they hold."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError
from jaxkd.losses._counting import counted_examples, counted_positions
from jaxkd.types import Output
from tests import rows
from tests.losses.subjects import SUBJECTS
from tests.rows._counted import (
  LOGITS,
  Case,
  kernel,
  of_exits,
  of_labels,
  of_multi_hot,
  of_one,
  of_outputs,
  of_permuted,
  of_temperature,
)

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# Three examples count, two are padding.
COUNTED = np.array([True, False, True, True, False])
REAL = int(COUNTED.sum())

# Functions without `where` that work per example: the caller drops examples.
BY_EXAMPLE = {
  "adaptive_average_pool",
  "adaptive_max_pool",
  "gated_logits",
  "match_sizes",
  "permute_wrong_classes",
  *rows.joined("BY_EXAMPLE"),
}


def public_name(subject):
  """The function of a row of SUBJECTS, whose name may have an option appended."""
  return max((name for name in losses.__all__ if subject.startswith(name)), key=len)


MAPS = ((4, 4, 3), (2, 2, 3))
CASES = [
  of_labels("cross_entropy"),
  of_labels("cross_entropy", label_smoothing=0.1),
  kernel("soft_target_kl", *LOGITS),
  of_labels("knowledge_distillation", hard_weight=0.5),
  of_multi_hot(),
  kernel("sigmoid_kl", *LOGITS, temperature=2.0),
  of_outputs("sigmoid_distillation", *LOGITS, field="logits", classes="sum"),
  kernel("peer_kl", *LOGITS, detached=False),
  kernel("peer_kl", *LOGITS, detached=False, target_smoothing=0.01),
  kernel("peer_kl", *LOGITS, detached=False, ratio_smoothing=0.01),
  Case(
    "mutual",
    lambda s, t, **o: losses.mutual(Output(s), [Output(t), Output(-t)], detached=False, **o).total,
    *LOGITS,
  ),
  Case(
    "native_ensemble",
    lambda s, t, **o: (
      losses.native_ensemble([Output(s), Output(-s)], Output(t), detached=False, **o).total
    ),
    *LOGITS,
  ),
  kernel("soft_cross_entropy", *LOGITS, detached=False),
  of_one("mean_confidence", *LOGITS),
  of_temperature(),
  of_exits("multi_exit", teachers="ensemble", detached=False),
  of_exits("multi_exit", average="mean"),
  of_exits("be_your_own_teacher", feature_weight=0.1, feature="distance"),
  of_labels("confidence_weighted_cross_entropy"),
  of_labels("confidence_weighted_by_teacher_max"),
  of_permuted("permuted_soft_target_kl"),
  of_permuted("dark_knowledge_permuted"),
  kernel("hint_mse"),
  of_one("attention_map", *MAPS),
  of_one("attention_map", *MAPS, power=4),
  kernel("attention_map_mse", *MAPS),
  kernel("attention_map_l2", *MAPS, power=1.5),
  kernel("gradient_l2"),
  kernel("gradient_l2", *MAPS, normalize=True, reduce="abs_max"),
  kernel("gradient_mse", *MAPS, normalize=True),
  kernel("polynomial_mmd"),
  kernel("polynomial_mmd", (1, 2, 4), (1, 2, 4), teacher_term=False),
  kernel("polynomial_mmd", *MAPS, offset=1.0, degree=3),
  kernel("gaussian_mmd", *MAPS),
  kernel("linear_mmd", *MAPS, teacher_term=False),
  Case("flow_matrix", lambda s, t, **o: jnp.sum(losses.flow_matrix(s, t, pool="max", **o)), *MAPS),
  kernel("fsp_mse", (3, 2), (3, 2)),
  kernel("fsp_column_norm", (3, 2), (3, 2)),
  kernel("factor_l1"),
  kernel("factor_lp"),
  kernel("factor_map_lp", *MAPS),
  kernel("reconstruction_error"),
  kernel("reconstruction_error", error="mse"),
  of_outputs("factor_transfer", *MAPS, normalization="repdistiller", order=2),
  kernel("boundary_margin"),
  kernel("boundary_margin", reduction="batch"),
  kernel("boundary_margin", reduction="mean"),
  kernel("boundary_disagreement"),
  of_outputs("activation_boundaries", field="preactivations"),
  kernel("masked_sum_of_squares"),
  kernel("euclidean_distance"),
  kernel("pairwise_distance_huber", (3,), (4,)),
  kernel("angle_huber", (3,), (4,)),
  *rows.joined("COUNTED"),
]
# Losses on Outputs come from the table of every loss; the rows above are kernels and other options.
# Those of tokens have a mask of their own.
CASES += [
  Case(public_name(name), subject.loss, subject.student[1:], subject.teacher[1:])
  for name, subject in SUBJECTS.items()
  if "where" in inspect.signature(subject.loss).parameters
]


# Their masks are of numbers, those of kernels of truth values.
OF_OUTPUTS = [subject.loss for subject in SUBJECTS.values()]
NUMBERS = np.where(COUNTED, 0.5, 0.0)


def _parameters() -> Iterator[object]:
  """Cases as parameters; further cases of a function, with other options, are long."""
  # A loss on Outputs passes its mask to its kernel, which has a row of its own.
  calls = [row.loss for row in rows.merged("SUBJECTS").values()]
  seen: set[str] = set()
  for i, case in enumerate(CASES):
    marks = [pytest.mark.long] if case.call in calls or case.name in seen else []
    seen.add(case.name)
    yield pytest.param(case, id=f"{case.name}-{i}", marks=marks)


each_case = pytest.mark.parametrize("case", list(_parameters()))


def draw(case, dtype="float32", seed=0):
  rng = np.random.default_rng(seed)
  shapes = (case.student, case.teacher)
  return [rng.normal(size=(REAL, *shape)).astype(dtype) for shape in shapes]


def padded(x, fill):
  among = np.full((len(COUNTED), *x.shape[1:]), fill, x.dtype)
  among[COUNTED] = x
  return among


def test_every_public_function_has_a_case_or_works_per_example():
  assert {case.name for case in CASES} | BY_EXAMPLE == set(losses.__all__)
  for case in CASES:
    where = inspect.signature(getattr(losses, case.name)).parameters["where"]
    assert where.kind == where.KEYWORD_ONLY and where.default is None, case.name


@each_case
def test_masked_examples_change_no_value_and_no_gradient(case):
  masked = jit(jax.value_and_grad(lambda s, t, w: case.call(s, t, where=w), (0, 1)))
  with jax.enable_x64(True):
    exact = jit(jax.value_and_grad(case.call, (0, 1)))(*draw(case, "float64"))
  exact, slopes = jax.tree.map(np.asarray, exact)
  where = NUMBERS if case.call in OF_OUTPUTS else COUNTED
  for fill in (np.nan, np.inf, -np.inf, 1e30):
    pair = [padded(x, fill) for x in draw(case)]
    value, gradients = masked(*pair, where)
    np.testing.assert_allclose(value, exact, rtol=2e-5, atol=1e-6)
    for gradient, slope in zip(gradients, slopes, strict=True):
      np.testing.assert_allclose(gradient[COUNTED], slope, rtol=1e-4, atol=1e-6)
      assert not np.any(gradient[~COUNTED])
  # Nothing counts.
  value, gradients = masked(*pair, np.zeros_like(where))
  assert value == 0 and not any(np.any(g) for g in gradients)


@pytest.mark.long
@pytest.mark.parametrize(
  "case",
  [pytest.param(c, id=f"{c.name}-{i}") for i, c in enumerate(CASES) if c.call not in OF_OUTPUTS],
)
def test_where_may_hold_numbers_and_is_correct_without_jit(case):
  pair = draw(case)
  value = case.call(*(padded(x, np.nan) for x in pair), where=NUMBERS)
  np.testing.assert_allclose(value, case.call(*pair), rtol=2e-5, atol=1e-6)


@each_case
def test_error_for_where_of_another_batch_names_both_shapes(case):
  pair = [padded(x, 0.0) for x in draw(case)]
  for where in (np.ones(3), np.ones(()), np.ones((3, 2))):
    shape = str(where.shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ConfigError, match=rf"where {shape} does not belong to .*\(5, "):
      jax.eval_shape(functools.partial(case.call, where=where), *pair)


def test_example_counts_if_any_position_counts():
  x = jnp.ones((3, 4, 2))
  where = np.zeros((3, 4), int)
  where[1, 2] = 7
  np.testing.assert_array_equal(counted_examples("f", where, x), [False, True, False])
  assert counted_examples("f", None, x) is None
  np.testing.assert_array_equal(counted_examples("f", np.ones((0, 4)), x[:0]), [])


def test_counted_positions_have_the_leading_axes_of_the_logits():
  z = jnp.ones((2, 3, 5))
  np.testing.assert_array_equal(counted_positions("f", [0, 1], z), [[False] * 3, [True] * 3])
  where = np.array([[1, 0, 1], [0, 0, 0]])
  np.testing.assert_array_equal(counted_positions("f", where, z), where == 1)
  with pytest.raises(
    ConfigError, match=r"f: where \(2, 3, 5\) does not belong to logits \(2, 3, 5\)"
  ):
    counted_positions("f", z, z)


def test_where_as_string_selects_arrays_in_losses_and_fails_in_kernels():
  x = Output(preactivations={"x": jnp.arange(24.0).reshape(2, 2, 2, 3)})
  y = Output(preactivations={"x": -(x.preactivations["x"] ** 2)})
  loss = losses.neuron_selectivity_transfer
  named = loss(x, y, stages=["x"], where="preactivations")
  assert named.feature == loss(x, y, stages=["x"], arrays="preactivations").feature != 0
  with pytest.raises(ConfigError, match="unknown where 'preactivation'"):
    loss(x, y, stages=["x"], where="preactivation")
  with pytest.raises(ConfigError, match=r"mask of the examples.*arrays='preactivations'"):
    losses.hint_mse(jnp.ones((2, 3)), jnp.ones((2, 3)), where="preactivations")


@pytest.mark.long
@pytest.mark.parametrize(
  "case", [c for c in CASES if "axis_name" in inspect.signature(getattr(losses, c.name)).parameters
           and c.name not in ("relational", "pairwise_distance_huber", "angle_huber")],
  ids=lambda case: case.name,
)  # fmt: skip
def test_masked_mean_over_devices_equals_that_of_the_global_batch(case):
  def shard(s, t, w):
    return jax.value_and_grad(lambda s: case.call(s, t, where=w, axis_name="batch"))(s)

  mapped = jit(jax.vmap(shard, axis_name="batch"))
  whole = jit(jax.value_and_grad(case.call))
  # Two devices; in the second round no example of the second device counts.
  s, t = (np.concatenate([x, x[::-1]]) for x in draw(case))
  for where in ([1, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]):
    where = np.array(where, bool)
    sides = [np.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan) for x in (s, t)]
    values, gradients = mapped(*(x.reshape(2, 3, *x.shape[1:]) for x in (*sides, where)))
    value, gradient = whole(s[where], t[where])
    np.testing.assert_allclose(values.mean(), value, rtol=2e-5, atol=1e-6)
    gradients = np.asarray(gradients).reshape(s.shape) / 2
    np.testing.assert_allclose(gradients[where], gradient, rtol=1e-4, atol=1e-6)
    assert not np.any(gradients[~where])
