"""A phase with patience ends once its validation accuracy no longer rises, resumed or not."""

import dataclasses
import io
import json

import chex
import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxkd import methods
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.experiment import run as experiment
from jaxkd.report import Lines, ProgressBar
from jaxkd.train import Silent, TrainOptions, train_phase
from jaxkd.train.early_stopping import stopping_line, stops_early
from tests.test_bad_input import dataset, settings_for
from tests.test_new_head import THIRDS
from tests.tiny import TinyNet, examples, phase
from tests.train.test_resume import NEVER, Broken, StopAfter

# Whole runs.
pytestmark = pytest.mark.long


def train(directory, reporter=None, seconds=NEVER, every=1, validation=True, **changes):
  changes = {"optimizer": optax.sgd(0.0), "epochs": 9, "average_decay": None, **changes}
  return train_phase(
    phase(**changes),
    directory=directory,
    devices=jax.local_devices()[:1],
    reporter=reporter or Silent(),
    validation=examples(9, seed=1) if validation else None,
    test=examples(9, seed=2),
    options=TrainOptions(evaluate_every=every, checkpoint_seconds=seconds),
  )


# Nothing changes, so that the first score is the best.
STILL = {"optimizer": optax.set_to_zero(), "scheme": methods.supervised(TinyNet(norm=False))}


def epochs(finished):
  return [row["epoch"] for row in finished.rows]


CASES = [(1, 2, 3), (2, 2, 4), (2, 3, 6), (1, 9, 9)]


@pytest.mark.parametrize(("every", "patience", "last"), CASES)
def test_it_ends_after_so_many_epochs_without_a_better_score(tmp_path, every, patience, last):
  found = train(tmp_path, every=every, patience=patience, **STILL)
  scores = [r["validation"]["student"]["accuracy"] for r in found.rows if "validation" in r]
  assert len(set(scores)) == 1 and epochs(found)[-1] == last


def test_resumed_it_ends_at_the_same_epoch_with_the_same_bits(tmp_path):
  whole = train(tmp_path / "whole", patience=2, optimizer=optax.sgd(0.3))
  assert 3 <= epochs(whole)[-1] < 9
  for updates in (1, 5, 3 * epochs(whole)[-1] - 1):
    with pytest.raises(Broken):
      train(tmp_path / f"{updates}", StopAfter(updates), 0.0, patience=2, optimizer=optax.sgd(0.3))
    resumed = train(tmp_path / f"{updates}", patience=2, optimizer=optax.sgd(0.3))
    chex.assert_trees_all_equal(resumed, whole)
  again = train(tmp_path / "whole", Refuses(), patience=2, optimizer=optax.sgd(0.3))
  chex.assert_trees_all_equal(again, whole)


class Refuses(Silent):
  def stepped(self, metrics, images):
    raise AssertionError("one more update")


def test_updates_before_the_end_are_those_without_patience(tmp_path):
  short = train(tmp_path / "short", patience=2, optimizer=optax.sgd(0.3))
  full = train(tmp_path / "full", optimizer=optax.sgd(0.3))
  assert short.rows == full.rows[: len(short.rows)] and len(full.rows) == 9


@pytest.mark.parametrize("kind", [Lines, ProgressBar])
def test_a_line_says_where_it_ended(tmp_path, kind):
  console = Console(file=io.StringIO(), width=200, force_terminal=kind is ProgressBar)
  train(tmp_path, kind(console), patience=2, **STILL)
  text = console.file.getvalue()
  assert "alone: ended early after epoch 3 of 9: no validation accuracy above" in text
  assert "of epoch 1, for 2 epochs" in text


@pytest.mark.parametrize(
  ("scores", "metric"),
  [
    ({"accuracy": 0.5}, "accuracy"),
    ({"accuracy": 0.9, "mean_average_precision": 0.5}, "mean average precision"),
  ],
)
def test_the_line_names_the_score_that_did_not_rise(scores, metric):
  rows = [{"epoch": 3, "validation": {"student": scores}}]
  line = stopping_line(phase(patience=2), {"rows": rows, "best_accuracy": 0.5, "best_epoch": 1})
  assert line.endswith(f"no validation {metric} above 50.0%, of epoch 1, for 2 epochs")


def test_only_a_validated_epoch_ends_it():
  validated = {"epoch": 7, "validation": {"student": {"accuracy": 0.5}}}
  assert stops_early(3, [validated], 4) and not stops_early(4, [validated], 4)
  assert not stops_early(3, [{"epoch": 7}], 4)
  assert not stops_early(0, [validated], 1) and not stops_early(1, [], None)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"validation": False, "patience": 2}, "patience=2 of phase 'alone': expected 0 without valid"),
    ({"reported": "", "patience": 2}, "patience=2 of phase 'alone': expected 0 without a pred"),
    ({"patience": -1}, "patience=-1 of phase 'alone': expected >= 0"),
  ],
)
def test_without_a_score_it_is_refused(tmp_path, options, message):
  with pytest.raises(ConfigError, match=message):
    train(tmp_path, **options)


def test_of_a_config():
  settings = settings_for("ab", student={"patience": 3}, teacher={"patience": 5})
  config.check_config(settings)
  found = {p.name: p.patience for p in build.phases(settings, dataset(), traced=False)}
  assert found == {"teacher": 5, "alone": 3, "warmup": 0, "distilled": 3}
  without = dataclasses.replace(dataset(), validation=None)
  with pytest.raises(ConfigError, match=r"teacher\.patience=5: expected 0 without a validation"):
    build.phases(settings, without, traced=False)


def test_the_summary_has_the_epochs_that_were_made(tmp_path):
  settings = config.base_config("alone")
  settings.batch_size, settings.devices = 20, 1
  settings.student.update({"model": "mlp", "epochs": 8, "learning_rate": 1e-20, "patience": 2})
  console = Console(file=io.StringIO(), width=200)
  experiment.run(settings, tmp_path / "r", console, load_data=lambda *a, **k: THIRDS)
  row = json.loads((tmp_path / "r/summary.json").read_text())["stages"]["alone"]
  assert (row["epochs"], row["planned_epochs"], row["steps"]) == (3, 8, 9)
  assert "alone: ended early after epoch 3 of 8" in console.file.getvalue()
  assert np.isfinite(row["accuracy"])
