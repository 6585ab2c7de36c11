"""`keep="best"` by accuracy, negative log-likelihood or agreement with the teacher."""

import json

import numpy as np
import pytest
from rich.console import Console

from jaxkd import data
from jaxkd.errors import ConfigError
from jaxkd.experiment import build
from jaxkd.experiment.best_epoch import best_row
from jaxkd.experiment.config import base_config, check_config
from jaxkd.experiment.run import run
from jaxkd.train.evaluate import is_better


def settings(method="kd", **changes):
  config = base_config(method)
  config.data.name = "digits"
  config.teacher.model = config.student.model = "mlp"
  config.teacher.epochs, config.student.epochs = 2, 3
  config.update_from_flattened_dict(changes)
  return config


def test_the_better_score_is_the_lower_likelihood_loss_and_the_higher_agreement():
  scores = {"accuracy": 0.9, "cross_entropy": 0.4, "agreement": 0.7}
  assert is_better(scores, 0.5, "nll")
  assert not is_better(scores, 0.4, "nll")
  assert is_better(scores, 0.6, "agreement")
  assert not is_better(scores, 0.8, "agreement")
  assert not is_better({**scores, "cross_entropy": float("nan")}, None, "nll")
  # A phase without a teacher has no agreement.
  assert is_better({"accuracy": 0.9, "cross_entropy": 0.4}, 0.8, "agreement")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"keep_by": "nll"}, "keep_by='nll': expected 'accuracy' with keep='last' and no patience"),
    (
      {"keep_by": "agreement", "keep": "best", "method": "dml"},
      "keep_by='agreement': expected a method with a teacher, not 'dml'",
    ),
    (
      {"keep_by": "agreement", "keep": "best", "teacher.logits": "x.npy"},
      "keep_by='agreement': teacher.logits='x.npy' has no logits of validation examples",
    ),
    (
      {"keep_by": "nll", "keep": "best", "data.labels": "multi"},
      "keep_by='nll': expected 'accuracy' with data.labels='multi'",
    ),
  ],
)
def test_a_choice_without_effect_is_refused(changes, message):
  method = changes.pop("method", "kd")
  with pytest.raises(ConfigError, match=message):
    check_config(settings(method, **changes))


def test_an_unknown_choice_names_those_that_exist():
  config = settings(keep="best")
  config.keep_by = "brier"
  with pytest.raises(ConfigError, match="keep_by='brier'"):
    check_config(config)


def test_only_the_students_phase_compares_with_the_teacher():
  config = settings(keep="best", keep_by="agreement")
  phases = {phase.name: phase for phase in build.phases(config, data.load("digits"), traced=False)}
  assert phases["distilled"].reference is not None
  assert phases["teacher"].reference is None
  assert phases["alone"].reference is None
  assert {phase.keep_by for phase in phases.values()} == {"agreement"}


@pytest.mark.long
@pytest.mark.parametrize("by", ["nll", "agreement"])
def test_the_kept_student_has_the_best_score_of_its_epochs(by, tmp_path):
  config = settings(keep="best", keep_by=by, **{"student.learning_rate": 0.5})
  config.student.epochs, config.baseline = 6, False
  summary = run(config, tmp_path / "run", Console(quiet=True))
  rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  scores = [r["validation"]["student"] for r in rows if r["stage"] == "distilled"]
  metric = {"nll": "cross_entropy", "agreement": "agreement"}[by]
  phase = build.phases(config, data.load("digits"))[-1]
  chosen = best_row([{"validation": {"student": s}} for s in scores], phase)
  values = [s[metric] for s in scores]
  best = min(values) if by == "nll" else max(values)
  assert chosen["validation"]["student"][metric] == best
  assert len(set(values)) > 1
  test = summary["stages"]["distilled"]["test"]["student"]
  assert ("agreement" in test) == (by == "agreement")
  assert np.isfinite(list(test.values())).all()
