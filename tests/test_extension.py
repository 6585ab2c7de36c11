"""`--extend`: a finished run goes on to more epochs, to the bits of a run that was planned so."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from jaxkd.errors import ConfigError
from jaxkd.experiment import config
from jaxkd.experiment import run as experiment
from jaxkd.train import Silent
from tests.test_new_head import THIRDS

# Whole runs.
pytestmark = pytest.mark.long


def settings_for(method="kd", epochs=2, /, role="student", **student):
  settings = config.base_config(method)
  settings.batch_size, settings.devices, settings.sync_batch_norm = 20, 1, False
  recipe = {"model": "mlp", "learning_rate": 0.05, "epochs": 2, "drops": (1, 3)}
  settings.teacher.update(recipe)
  settings.student.update({**recipe, **student})
  settings[role].epochs = epochs
  return settings


def run(settings, folder, **options):
  console = Console(file=io.StringIO(), width=200)
  return experiment.run(settings, folder, console, load_data=lambda *a, **k: THIRDS, **options)


def results(folder):
  """The scores, rows and weights of a run."""
  summary = json.loads((folder / "summary.json").read_text())
  bundles = {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted((folder / "bundles").rglob("*.safetensors"))
  }
  assert bundles
  return summary["stages"], (folder / "metrics.jsonl").read_text(), bundles


@pytest.mark.parametrize("schedule", ["step", "constant", "optax.linear_schedule"])
def test_it_equals_the_run_that_was_planned_so_to_the_bit(tmp_path, schedule):
  options = {"schedule": schedule}
  if schedule.startswith("optax"):
    options["schedule_arguments"] = "end_value=0.001,transition_epochs=3"
  run(settings_for("kd", 5, **options), tmp_path / "planned")
  run(settings_for("kd", 2, **options), tmp_path / "short")
  short = results(tmp_path / "short")
  run(settings_for("kd", 5, **options), tmp_path / "short", extend=True)
  assert results(tmp_path / "short") == results(tmp_path / "planned")
  kept = tmp_path / "short/before/epochs_2"
  assert json.loads((kept / "summary.json").read_text())["stages"] == short[0]
  assert {f"bundles/{p.relative_to(kept / 'bundles')}" for p in kept.rglob("*.safetensors")} == set(
    short[2]
  )
  # The same command again reports the finished run, with the flag or without it.
  for extend in (True, False):
    run(settings_for("kd", 5, **options), tmp_path / "short", extend=extend)
  assert results(tmp_path / "short") == results(tmp_path / "planned")


def test_an_interrupted_extension_resumes(tmp_path, monkeypatch):
  run(settings_for("alone", 4), tmp_path / "planned")
  run(settings_for("alone", 2), tmp_path / "short")

  class Broken(Exception):
    pass

  class Breaks(Silent):
    def epoch_ended(self, row):
      raise Broken

  monkeypatch.setattr(experiment, "_reporters", lambda run: Breaks())
  with pytest.raises(Broken):
    run(settings_for("alone", 4), tmp_path / "short", extend=True)
  monkeypatch.undo()
  run(settings_for("alone", 4), tmp_path / "short", extend=True)
  assert results(tmp_path / "short") == results(tmp_path / "planned")


def test_a_teacher_alone_is_extended_by_its_own_epochs(tmp_path):
  run(settings_for("teacher", 3, role="teacher"), tmp_path / "planned")
  run(settings_for("teacher", 1, role="teacher"), tmp_path / "short")
  run(settings_for("teacher", 3, role="teacher"), tmp_path / "short", extend=True)
  assert results(tmp_path / "short") == results(tmp_path / "planned")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished") / "run"
  run(settings_for("alone", 2), folder)
  return folder


ANOTHER = r"student\.weight_decay=0\.0005 there, 0\.1 asked"


def contents(folder):
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (settings_for("alone", 1), r"student\.epochs=1: expected more than 2"),
    (
      settings_for("alone", 4, weight_decay=0.1),
      ANOTHER,
    ),
    (
      settings_for("alone", 2, weight_decay=0.1),
      ANOTHER,
    ),
    (settings_for("kd", 4), "holds another config's run"),
  ],
)
def test_another_config_is_refused_and_nothing_is_changed(finished, settings, message):
  before = contents(finished)
  with pytest.raises(ConfigError, match=message) as caught:
    run(settings, finished, extend=True)
  assert len(str(caught.value).splitlines()) == 1
  assert contents(finished) == before


@pytest.mark.parametrize(
  ("method", "options", "message"),
  [
    (
      "alone",
      {"schedule": "cosine"},
      r"student\.schedule='cosine' depends on the number of",
    ),
    (
      "alone",
      {"schedule": "optax.exponential_decay", "schedule_arguments": "decay_rate=0.5"},
      r"student\.schedule='optax\.exponential_decay' depends on the number of epochs: of 4",
    ),
    ("born_again", {}, r"phase 'generation_1' inherits from 'alone', which would be longer"),
  ],
)
def test_what_depends_on_the_number_of_epochs_is_refused(tmp_path, method, options, message):
  run(settings_for(method, 1, **options), tmp_path / "run")
  before = contents(tmp_path)
  with pytest.raises(ConfigError, match=message) as caught:
    run(settings_for(method, 4, **options), tmp_path / "run", extend=True)
  assert len(str(caught.value).splitlines()) == 1
  assert contents(tmp_path) == before


def test_the_last_epoch_counts_for_the_best_and_must_have_been_due(tmp_path):
  plans = [settings_for("alone", epochs) for epochs in (1, 4)]
  for settings in plans:
    settings.evaluate_every, settings.keep = 2, "best"
  run(plans[0], tmp_path / "run")
  with pytest.raises(ConfigError, match=r"evaluate_every=2: expected a divisor of 1"):
    run(plans[1], tmp_path / "run", extend=True)


def test_without_a_finished_run_it_is_refused(tmp_path, finished):
  with pytest.raises(ConfigError, match=r"--extend: workdir .* holds no run"):
    run(settings_for("alone", 4), tmp_path / "none", extend=True)
  assert not (tmp_path / "none").exists()
  (tmp_path / "begun").mkdir()
  (tmp_path / "begun/config.json").write_bytes((finished / "config.json").read_bytes())
  with pytest.raises(ConfigError, match=r"is not finished: run it .* student\.epochs=2"):
    run(settings_for("alone", 4), tmp_path / "begun", extend=True)


def test_weights_changed_by_the_further_epochs(tmp_path):
  run(settings_for("alone", 1), tmp_path / "run")
  _, rows, _ = results(tmp_path / "run")
  run(settings_for("alone", 2), tmp_path / "run", extend=True)
  _, more, _ = results(tmp_path / "run")
  assert more.startswith(rows) and len(more.splitlines()) == 2
  losses = [json.loads(line)["train"]["loss"] for line in more.splitlines()]
  assert np.isfinite(losses).all() and losses[0] != losses[1]
