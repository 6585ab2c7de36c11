"""FitNets and SimKD: hint loss, sizes of maps and names of stages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.losses import adaptive_average_pool, fitnets, hint_mse, simkd
from jaxkd.types import Output


def output(*shape, fill=None, stage="stage2"):
  rng = np.random.default_rng(sum(shape))
  x = rng.normal(size=shape).astype("float32") if fill is None else np.full(shape, fill, "float32")
  return Output(features={stage: jnp.asarray(x)})


def test_hint_is_the_mean_over_every_element():
  s, t = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4)).astype("float32")
  np.testing.assert_allclose(hint_mse(s, t), ((s - t) ** 2).mean(), rtol=1e-6)
  assert hint_mse(s, s) == 0


def test_fitnets_pools_only_a_larger_teacher():
  student, teacher = output(2, 3, 3, 4), output(2, 5, 5, 4)
  pooled = adaptive_average_pool(teacher.features["stage2"], 3, 3)
  expected = ((np.asarray(student.features["stage2"]) - pooled) ** 2).mean()
  np.testing.assert_allclose(fitnets(student, teacher).feature, expected, rtol=1e-5)
  with pytest.raises(ConfigError, match=r"stage 'stage2': .*\(2, 5, 5, 4\).*\(2, 3, 3, 4\)"):
    fitnets(teacher, student)


def test_simkd_pools_the_larger_side():
  small, large = output(2, 2, 2, 3, stage="stage3"), output(2, 4, 4, 3, stage="stage3")
  pooled = adaptive_average_pool(large.features["stage3"], 2, 2)
  expected = ((np.asarray(small.features["stage3"]) - pooled) ** 2).mean()
  np.testing.assert_allclose(simkd(large, small).feature, expected, rtol=1e-5)
  np.testing.assert_allclose(simkd(small, large).feature, expected, rtol=1e-5)


def test_error_for_different_channels_names_stage_and_shapes():
  with pytest.raises(
    ValueError, match=r"stage 'stage2': .*student \(2, 4, 4, 3\) and teacher \(2, 4, 4, 5\)"
  ):
    jax.eval_shape(fitnets, output(2, 4, 4, 3), output(2, 4, 4, 5))


def test_error_for_a_map_against_a_vector_names_the_stages():
  student, teacher = output(2, 4, stage="pooled"), output(2, 4, 4, 4, stage="stage3")
  with pytest.raises(ConfigError, match=r"stages 'pooled' and 'stage3': .*\(2, 4\)"):
    simkd(student, teacher, stages=[("pooled", "stage3")])


def test_stages_are_summed_and_may_be_pairs_of_names():
  ones, zeros = jnp.ones((1, 2)), jnp.zeros((1, 2))
  student = Output(features={"a": ones, "b": 2.0 * ones})
  teacher = Output(features={"a": zeros, "c": zeros})
  assert fitnets(student, teacher, stages=["a", ("b", "c")]).feature == 1.0 + 4.0
  assert fitnets(student, teacher, stages=[["b", "c"]]).feature == 4.0


def test_error_for_a_missing_stage_lists_the_stages():
  x = output(2, 2, 2, 1)
  with pytest.raises(ConfigError, match=r"unknown teacher stage 'stage3'.*'stage2'.*known: stage2"):
    fitnets(x, x, stages=[("stage2", "stage3")])
  with pytest.raises(ConfigError, match="student's Output has no features, so no stage 'stage2'"):
    fitnets(Output(), x)


@pytest.mark.parametrize("stages", ["stage2", [], [("a", "b", "c")], [("a", 1)]])
def test_invalid_stages_raise_an_error(stages):
  x = output(2, 2, 2, 1)
  with pytest.raises(ConfigError, match="stages"):
    fitnets(x, x, stages=stages)
