"""Hints, the sizes of maps, and the names of stages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.errors import ConfigError
from jaxkd.losses import adaptive_average_pool, fitnets, hint_mse, match_sizes, simkd
from jaxkd.types import Output


def output(*shape, fill=None, stage="stage2"):
  rng = np.random.default_rng(sum(shape))
  x = rng.normal(size=shape).astype("float32") if fill is None else np.full(shape, fill, "float32")
  return Output(features={stage: jnp.asarray(x)})


def pooled_by_hand(x, height, width):
  """One bin at a time, as the definition says."""
  _, rows, columns, _ = x.shape
  out = np.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
  for i in range(height):
    for j in range(width):
      top, bottom = int(np.floor(i * rows / height)), int(np.ceil((i + 1) * rows / height))
      left, right = int(np.floor(j * columns / width)), int(np.ceil((j + 1) * columns / width))
      out[:, i, j] = x[:, top:bottom, left:right].mean(axis=(1, 2))
  return out


SIZES = st.sampled_from([(4, 6, 2, 3), (5, 5, 3, 3), (7, 3, 2, 3), (3, 4, 5, 4), (6, 5, 1, 1)])


@given(SIZES, st.integers(0, 9))
def test_pooling_is_the_mean_of_each_bin(sizes, seed):
  rows, columns, height, width = sizes
  x = np.random.default_rng(seed).normal(size=(2, rows, columns, 3)).astype("float32")
  expected = pooled_by_hand(x, height, width)
  np.testing.assert_allclose(
    adaptive_average_pool(x, height, width), expected, rtol=2e-6, atol=1e-6
  )


def test_pooling_to_the_same_size_changes_nothing():
  x = jnp.arange(12.0).reshape(1, 3, 4, 1)
  assert (adaptive_average_pool(x, 3, 4) == x).all()


def test_pooling_keeps_the_dtype_but_adds_up_in_float32():
  x = jnp.full((1, 32, 32, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(257.0)
  pooled = adaptive_average_pool(x, 1, 1)
  assert pooled.dtype == jnp.bfloat16 and float(pooled.squeeze()) == 1.25


@pytest.mark.parametrize(("shape", "size"), [((4, 4, 3), (2, 2)), ((1, 4, 4, 3), (0, 2))])
def test_pooling_refuses_what_is_no_map_or_no_size(shape, size):
  with pytest.raises(ConfigError, match="adaptive_average_pool"):
    adaptive_average_pool(jnp.ones(shape), *size)


@pytest.mark.parametrize(
  ("student", "teacher", "size"),
  [
    ((8, 8), (4, 4), (4, 4)),
    ((4, 4), (8, 8), (4, 4)),
    ((2, 5), (2, 5), (2, 5)),
    ((8, 6), (4, 4), (4, 4)),
    ((8, 4), (4, 2), (4, 2)),
    ((3, 4), (6, 9), (3, 4)),
    ((4, 4), (4, 6), (4, 4)),
  ],
)
def test_the_map_with_more_rows_is_pooled_to_the_other(student, teacher, size):
  s, t = match_sizes(jnp.ones((2, *student, 3)), jnp.ones((2, *teacher, 5)))
  assert s.shape == (2, *size, 3) and t.shape == (2, *size, 5)


def test_pooled_features_have_no_size_to_match():
  s, t = match_sizes(jnp.ones((2, 3)), jnp.zeros((2, 3)))
  assert s.shape == t.shape == (2, 3)
  with pytest.raises(ConfigError, match=r"student \(2, 3\) and teacher \(2, 4, 4, 3\)"):
    match_sizes(jnp.ones((2, 3)), jnp.ones((2, 4, 4, 3)))


def test_hint_is_the_mean_over_every_element():
  s, t = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4)).astype("float32")
  np.testing.assert_allclose(hint_mse(s, t), ((s - t) ** 2).mean(), rtol=1e-6)
  assert hint_mse(s, s) == 0


def test_fitnets_pools_a_larger_teacher_only():
  student, teacher = output(2, 3, 3, 4), output(2, 5, 5, 4)
  pooled = pooled_by_hand(np.asarray(teacher.features["stage2"]), 3, 3)
  expected = ((np.asarray(student.features["stage2"]) - pooled) ** 2).mean()
  np.testing.assert_allclose(fitnets(student, teacher).feature, expected, rtol=1e-5)
  with pytest.raises(ConfigError, match=r"stage 'stage2': .*\(2, 5, 5, 4\).*\(2, 3, 3, 4\)"):
    fitnets(teacher, student)


def test_simkd_pools_whichever_is_larger():
  small, large = output(2, 2, 2, 3, stage="stage3"), output(2, 4, 4, 3, stage="stage3")
  pooled = pooled_by_hand(np.asarray(large.features["stage3"]), 2, 2)
  expected = ((np.asarray(small.features["stage3"]) - pooled) ** 2).mean()
  np.testing.assert_allclose(simkd(large, small).feature, expected, rtol=1e-5)
  np.testing.assert_allclose(simkd(small, large).feature, expected, rtol=1e-5)


def test_different_channels_name_the_stage_and_both_shapes():
  with pytest.raises(
    ValueError, match=r"stage 'stage2': .*student \(2, 4, 4, 3\) and teacher \(2, 4, 4, 5\)"
  ):
    jax.eval_shape(fitnets, output(2, 4, 4, 3), output(2, 4, 4, 5))


def test_a_map_against_pooled_features_names_the_stages():
  student, teacher = output(2, 4, stage="pooled"), output(2, 4, 4, 4, stage="stage3")
  with pytest.raises(ConfigError, match=r"stages 'pooled' and 'stage3': .*\(2, 4\)"):
    simkd(student, teacher, stages=[("pooled", "stage3")])


def test_stages_are_summed_and_may_pair_different_names():
  ones, zeros = jnp.ones((1, 2)), jnp.zeros((1, 2))
  student = Output(features={"a": ones, "b": 2.0 * ones})
  teacher = Output(features={"a": zeros, "c": zeros})
  assert fitnets(student, teacher, stages=["a", ("b", "c")]).feature == 1.0 + 4.0
  assert fitnets(student, teacher, stages=[["b", "c"]]).feature == 4.0


def test_a_missing_stage_is_named_with_those_there_are():
  x = output(2, 2, 2, 1)
  with pytest.raises(ConfigError, match=r"unknown teacher stage 'stage3'.*'stage2'.*known: stage2"):
    fitnets(x, x, stages=[("stage2", "stage3")])
  with pytest.raises(ConfigError, match="student's Output has no features, so no stage 'stage2'"):
    fitnets(Output(), x)


@pytest.mark.parametrize("stages", ["stage2", [], [("a", "b", "c")], [("a", 1)]])
def test_stages_that_are_no_list_of_names_are_refused(stages):
  x = output(2, 2, 2, 1)
  with pytest.raises(ConfigError, match="stages"):
    fitnets(x, x, stages=stages)
