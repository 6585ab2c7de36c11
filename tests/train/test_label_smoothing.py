"""The label smoothing of a phase is that of the cross-entropy of its labels."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from jaxkd import methods
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.runtime import mapping
from jaxkd.train import create_state
from tests.test_bad_input import dataset, settings_for
from tests.tiny import TinyNet, batch, phase


def loss_of(made):
  """The loss and the state after one update on two devices."""
  devices = jax.local_devices()[:2]
  made = dataclasses.replace(made, prepare_training=lambda keys, batch: batch, average_decay=None)
  state = create_state(made.scheme, made.optimizer, jax.random.key(0), batch())
  step = mapping.map_training_step(made.training_step(), devices)
  fed = mapping.shard(jax.tree.map(np.asarray, batch()), devices)
  after, metrics = step(mapping.replicate(state, devices), fed)
  return float(metrics["loss"][0]), mapping.host_copy(after).participants


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.long), 2])
def test_phase_smooths_as_a_scheme_with_smoothing_of_its_own(parts):
  smoothed = loss_of(phase(label_smoothing=0.2, accumulate=parts))
  own = methods.supervised(TinyNet(), label_smoothing=0.2)
  chex.assert_trees_all_equal(smoothed, loss_of(phase(scheme=own, accumulate=parts)))
  assert smoothed[0] != loss_of(phase(accumulate=parts))[0]


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_each_section_has_its_own(role):
  settings = settings_for("kd", **{role: {"label_smoothing": 0.1}})
  found = {p.role: p.label_smoothing for p in build.phases(settings, dataset(), traced=False)}
  others = {"teacher": {"baseline": 0.0, "student": 0.0}, "student": {"teacher": 0.0}}[role]
  assert {r: found[r] for r in others} == others
  assert found[role] == 0.1


@pytest.mark.parametrize("value", [-0.1, 1.1, "x"])
def test_value_out_of_range_is_refused(value):
  settings = settings_for("alone")
  with pytest.raises((ConfigError, TypeError), match="label_smoothing"):
    settings.student.label_smoothing = value
    config.check_config(settings)


def test_two_smoothings_of_the_same_labels_are_refused():
  settings = settings_for("dml", student={"label_smoothing": 0.1}, method={"label_smoothing": 0.1})
  with pytest.raises(
    ConfigError, match=r"student\.label_smoothing=0\.1: expected 0\.0 with method"
  ):
    config.check_config(settings)
