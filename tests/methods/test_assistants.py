"""Teacher assistants: phases of the chain, what each inherits, a run with its table, and errors."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from jaxkd import models, report
from jaxkd.errors import ConfigError
from jaxkd.experiment import run
from tests.methods.test_every_method import dataset, planned, settings_with
from tests.tiny import create

CHAIN = "assistants=('resnet8_w8','resnet8_w4')"


@pytest.fixture
def tiny_models(monkeypatch):
  monkeypatch.setattr(models, "create", create)


@pytest.mark.parametrize("method", ["kd", "kd+at"])
def test_every_assistant_is_taught_by_the_one_before(method):
  *_, first, second, student = planned(f"{method}/{CHAIN}")
  assert [p.name for p in (first, second, student)] == ["assistant_1", "assistant_2", "distilled"]
  assert [p.role for p in (first, second, student)] == ["teacher", "teacher", "student"]
  assert [p.label for p in (first, second)] == ["resnet8_w8", "resnet8_w4"]
  assert [p.inherit for p in (first, second, student)] == [
    {"teacher": "teacher/teacher"},
    {"teacher": "assistant_1/student"},
    {"teacher": "assistant_2/student"},
  ]


def test_preparations_of_a_method_are_made_for_every_pair(tiny_models):
  chain = planned("ft/stage='stage2'/assistants=('resnet8_w8',)")[2:]
  assert [phase.name for phase in chain] == [
    "assistant_1_paraphraser",
    "assistant_1",
    "paraphraser",
    "distilled",
  ]
  connector = "ft_stage2_teacher_connector"
  assert chain[1].inherit[connector] == "assistant_1_paraphraser/paraphraser"
  assert chain[2].inherit == {"teacher": "assistant_1/student"}
  assert chain[3].inherit[connector] == "paraphraser/paraphraser"


@pytest.mark.long
def test_a_run_scores_every_network_and_compares_the_student_with_the_teacher(
  tiny_models, tmp_path
):
  settings = settings_with("kd/assistants=('resnet8_w8',)")
  settings.sync_batch_norm = True
  settings.teacher.epochs = 1
  settings.data.validation = 0.0
  console = Console(file=io.StringIO(), width=120)
  options = {"load_data": lambda *args, **kwargs: dataset()}
  summary = run.run(settings, tmp_path / "run", console, **options)
  rows = summary["stages"]
  assert list(rows) == ["teacher", "alone", "assistant_1", "distilled"]
  assert [row["role"] for row in rows.values()] == ["teacher", "baseline", "teacher", "student"]
  difference = rows["distilled"]["accuracy"] - rows["alone"]["accuracy"]
  np.testing.assert_allclose(summary["comparison"]["difference"], difference)
  assert report.closing_table(summary).row_count >= 4
  # A run that is resumed after its assistant trains the student alone, to the same result.
  (tmp_path / "run" / "summary.json").unlink()
  again = run.run(settings, tmp_path / "run", console, **options)
  for name, row in rows.items():
    assert json.dumps(again["stages"][name]["test"]) == json.dumps(row["test"])


def test_several_teachers_and_unknown_models_are_refused_by_name():
  with pytest.raises(ConfigError, match=r"method.assistants=.*: expected \(\) with 2 teachers"):
    planned(f"kd/{CHAIN}", teacher={"count": 2})
  with pytest.raises(ConfigError, match="resnet8_w3"):
    planned("kd/assistants=('resnet8_w3',)")
