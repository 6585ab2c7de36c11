"""The method reviewkd: its fusion, the stages that it compares, and its warm-up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.adapters import ReviewFusion
from jaxkd.adapters.review import nearest
from jaxkd.errors import ConfigError
from jaxkd.types import Output
from tests.recorded_values.cases import PAIRS, schemes_of


def test_nearest_takes_the_row_at_the_floor_of_its_position():
  x = jnp.arange(12.0).reshape(1, 4, 3, 1)
  for size in ((8, 3), (2, 6), (3, 2), (7, 5), (4, 3)):
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, (4, 3), strict=True))
    np.testing.assert_array_equal(nearest(x, size), x[:, rows][:, :, columns])


def output(sizes, widths, seed=0):
  rng = np.random.default_rng(seed)
  maps = {
    f"stage{i}": rng.normal(size=(2, n, n, c)).astype("float32")
    for i, (n, c) in enumerate(zip(sizes, widths, strict=True), start=1)
  }
  pooled = rng.normal(size=(2, widths[-1])).astype("float32")
  return Output(features={**maps, "pooled": pooled})


def test_fusion_gives_the_teachers_shapes_and_every_stage_reads_the_deeper_ones():
  student, teacher = output((8, 4), (3, 4)), output((6, 2), (5, 7), seed=1)
  stages = tuple((name, name) for name in ("stage1", "stage2", "pooled"))
  shapes = tuple(teacher.features[name].shape[1:] for name, _ in stages)
  fusion = ReviewFusion(stages, shapes, width=4)
  variables = fusion.init(jax.random.key(0), (student, teacher, None), train=False)

  def run(pooled):
    features = {**student.features, "pooled": pooled}
    inputs = (Output(features=features), teacher, None)
    return fusion.apply(variables, inputs, train=False)[0].features

  found = run(student.features["pooled"])
  assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in teacher.features.items()}
  moved = run(student.features["pooled"] + 1)
  assert all(np.any(found[name] != moved[name]) for name in found)


def test_a_map_against_a_vector_is_refused():
  fusion = ReviewFusion((("pooled", "stage1"),), ((4, 4, 3),), width=2)
  student, teacher = output((4,), (3,)), output((4,), (3,), seed=1)
  with pytest.raises(ConfigError, match=r"stage 'pooled' of the student .* two maps or two vec"):
    fusion.init(jax.random.key(0), (student, teacher, None), train=False)


def test_a_ramp_multiplies_the_warm_up():
  pair = PAIRS["resnets"]
  scheme = schemes_of("reviewkd/ramp='linear'/ramp_epochs=2.0/warmup_epochs=4.0", pair)["distilled"]
  assert "reviewkd_adapter" in scheme.learners
