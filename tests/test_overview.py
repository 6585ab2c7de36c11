"""Output before training: --summary, and the first lines of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jaxkd import models
from jaxkd.experiment import build, overview, run
from tests.test_bad_input import dataset, settings_for


@pytest.fixture
def console():
  return Console(file=io.StringIO(), width=60)


def test_an_overview_has_every_phases_length_pairs_and_network(monkeypatch, console):
  monkeypatch.setattr(build, "dataset", lambda settings: dataset())
  settings = settings_for("simkd")
  settings.student.epochs = 3
  overview.overview(settings, console)
  teacher, alone, distilled = console.file.getvalue().rstrip().split("\n\n")
  tables = [
    str(models.summary(models.create(name, num_classes=10), (8, 8, 1)))
    for name in ("resnet8_w8", "resnet8_w4")
  ]
  assert teacher == f"teacher: 240 epochs of 2 steps, 32 images\nteacher: resnet8_w8\n{tables[0]}"
  assert alone == f"alone: 3 epochs of 2 steps, 32 images\nstudent: resnet8_w4\n{tables[1]}"
  length, pairs, network, *table = distilled.splitlines()
  assert length == "distilled: 3 epochs of 2 steps, 32 images"
  assert pairs == "simkd compares stage3 2x2x16 with stage3 2x2x32 of the teacher"
  assert network == "student: resnet8_w4+resnet8_w8"
  # The reused classifier has the teacher's width.
  assert table[-1].split()[0] == "total" and table[-2].split() == ["classifier", "10", "330", "320"]


def test_a_network_shown_earlier_is_referenced(monkeypatch, console):
  monkeypatch.setattr(build, "dataset", lambda settings: dataset())
  overview.overview(settings_for("kd"), console)
  assert console.file.getvalue().rstrip().endswith("\nstudent: resnet8_w4, as in phase 'alone'")


def test_a_run_prints_the_compared_stages_before_training(monkeypatch, console, tmp_path):
  class Started(Exception):
    pass

  def train(*args):
    raise Started

  monkeypatch.setattr(run, "load", lambda *args, **options: dataset())
  monkeypatch.setattr(run, "_train_phases", train)
  with pytest.raises(Started):
    run.run(settings_for("at"), tmp_path / "run", console)
  assert console.file.getvalue() == (
    "distilled: at compares stage1 8x8x4 with stage1 8x8x8, stage2 4x4x8 with stage2 4x4x16, "
    "stage3 2x2x16 with stage3 2x2x32 of the teacher\n"
  )
