"""Several phases: those that leave no predictor; checks before the first one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.adapters import AtStages, Regressor
from jaxkd.errors import ConfigError
from jaxkd.methods import Distillation, Table, per_example
from jaxkd.report import closing_table, draw_curves
from jaxkd.train import Silent, starting_variables, train_phase, train_phases
from tests.tiny import TinyNet, examples, phase

HINT = Distillation(
  "hint",
  per_example(losses.fitnets, stages=("stage1",)),
  adapter=AtStages({"stage1": Regressor((6, 6), 6)}),
)
FIRST = methods.offline(
  TinyNet(),
  {"teacher": TinyNet(width=6)},
  [HINT],
  label_weight=0.0,
  to_stage="stage1",
  image_shape=(6, 6, 1),
)


def test_a_phase_without_a_predictor_is_trained_inherited_and_shown(tmp_path):
  run = functools.partial(
    train_phase, devices=jax.local_devices()[:1], reporter=Silent(), validation=examples(9)
  )
  first = phase(
    name="warmup",
    scheme=FIRST,
    epochs=2,
    reported="",
    average_decay=None,
    untrained=("teacher",),
  )
  done = run(first, directory=tmp_path / "first", test=examples(9))
  assert done.test == {}
  assert all("validation" not in row for row in done.rows)
  assert done.rows[1]["train"]["loss"] < done.rows[0]["train"]["loss"]

  second = phase(name="distilled", epochs=1, inherit={"student": "warmup/student"})
  given = starting_variables(second, {"warmup": done.participants})
  assert given["student"] is done.participants["student"]
  second = dataclasses.replace(second, given=given)
  finished = run(second, directory=tmp_path / "second", test=examples(9))

  loss = done.rows[-1]["train"]["loss"]
  phases = {
    "warmup": {"model": "tiny", "predictor": "", "train": {"loss": loss}},
    "distilled": {
      "model": "tiny",
      "predictor": "student",
      "accuracy": finished.test["student"]["accuracy"],
      "parameters": 5,
    },
  }
  config = {"method": {"name": "fitnets"}, "data": {"name": "digits"}, "seed": 0}
  table = closing_table({"config": config, "stages": phases, "comparison": {}})
  assert list(table.columns[0].cells) == ["warmup", "student, fitnets"]
  assert next(iter(table.columns[3].cells)) == f"loss {loss:.4g}"
  draw_curves(tmp_path / "curves.png", [*done.rows, *finished.rows], phases, "two phases")
  assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"patience": 2}, "patience=2 of phase 'second': expected 0 without validation"),
    ({"accumulate": 3}, "batch_size=8: not divisible by 3"),
    ({"tables": {"teacher": Table(np.eye(3, dtype="float32"))}}, "phase 'second': the table of"),
  ],
)
def test_a_later_phase_is_checked_before_the_first_is_trained(changes, message, tmp_path):
  phases = [phase(name="first"), phase(name="second", **changes)]
  with pytest.raises(ConfigError, match=message):
    train_phases(phases, tmp_path / "run")
  assert not (tmp_path / "run").exists()
