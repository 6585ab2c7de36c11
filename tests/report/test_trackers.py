"""Reporters to W&B, MLflow and trackio, with packages that record what they are called with."""

import importlib
import sys
import types

import numpy as np
import pytest
from rich.console import Console

from jaxkd import report
from jaxkd.data import Dataset
from jaxkd.errors import ConfigError, MissingPackage
from jaxkd.experiment import config
from jaxkd.experiment import run as experiment
from tests import tiny

ROWS = [
  {"stage": "kd", "epoch": n, "step": 3 * n, "train": {"loss": 1.0 / n}, "validation": scores}
  for n, scores in enumerate(({}, {"student": {"accuracy": 0.5}}, {}), 1)
]


def fake_wandb(calls):
  def init(**options):
    calls.append(("init", options["name"], options["project"], options["group"]))
    return types.SimpleNamespace(
      log=lambda values, step: calls.append((step, values)),
      finish=lambda: calls.append("end"),
    )

  return types.SimpleNamespace(init=init)


def fake_trackio(calls):
  run = fake_wandb(calls)
  return types.SimpleNamespace(
    init=run.init,
    log=lambda values, step: calls.append((step, values)),
    finish=lambda: calls.append("end"),
  )


def fake_mlflow(calls):
  class Client:
    def get_experiment_by_name(self, name):
      self.name = name
      return None

    def create_experiment(self, name):
      return f"id of {name}"

    def create_run(self, number, *, run_name, tags):
      calls.append(("init", run_name, number.removeprefix("id of "), tags["group"]))
      return types.SimpleNamespace(info=types.SimpleNamespace(run_id="7"))

    def log_metric(self, run, name, value, *, step):
      assert run == "7"
      if calls[-1][0] == step:
        calls[-1][1][name] = value
      else:
        calls.append((step, {name: value}))

    def set_terminated(self, run):
      calls.append("end")

  return types.SimpleNamespace(MlflowClient=Client)


FAKES = {"wandb": fake_wandb, "mlflow": fake_mlflow, "trackio": fake_trackio}


@pytest.fixture
def calls(monkeypatch):
  recorded = {name: [] for name in FAKES}
  for name, fake in FAKES.items():
    monkeypatch.setitem(sys.modules, name, fake(recorded[name]))
  return recorded


@pytest.mark.parametrize("name", FAKES)
def test_a_phase_is_a_run_and_an_earlier_checkpoint_begins_another(calls, name):
  [reporter] = report.trackers(name, "mine")
  reporter.begins_after(3)
  reporter.phase_started("kd", 9, ROWS[:1])
  reporter.epoch_ended(ROWS[1])
  reporter.rolled_back("kd", ROWS[:1])
  reporter.epoch_ended(ROWS[1])
  reporter.phase_ended("kd")
  first = (3, {"train/loss": 1.0})
  second = (6, {"train/loss": 0.5, "validation/student_accuracy": 0.5})
  begun = ("init", "kd", "jaxkd", "mine")
  assert calls[name] == [begun, first, second, "end", begun, first, second, "end"]


def settings_for(**changes):
  settings = config.base_config("alone")
  settings.student.model, settings.student.epochs, settings.batch_size = "mlp", 2, 8
  settings.data.validation, settings.data.name = 0.0, "thirds"
  settings.update(changes)
  return settings


def data(*_, **__):
  parts = (tiny.examples(24), None, tiny.examples(9, 1))
  return Dataset("thirds", *parts, 3, (6, 6, 1), (0.3,), (0.2,))


def test_a_run_reports_to_what_its_config_and_its_argument_name(calls, tmp_path):
  own = report.Trackio(project="own")
  quiet = Console(quiet=True)
  settings = settings_for(reporters="wandb, mlflow")
  experiment.run(settings, tmp_path / "run", quiet, load_data=data, reporters=[own])
  for name, project, group in (
    ("wandb", "jaxkd", "run"),
    ("mlflow", "jaxkd", "run"),
    ("trackio", "own", None),
  ):
    begun, *logged, ended = calls[name]
    assert (begun, ended) == (("init", "alone", project, group), "end")
    assert [step for step, _ in logged] == [3, 6]
    assert all(np.isfinite(values["train/loss"]) for _, values in logged)


def test_an_unknown_reporter_and_a_missing_package_are_named_before_data_are_loaded(
  monkeypatch, tmp_path
):
  def never(*_, **__):
    raise AssertionError("data were loaded")

  with pytest.raises(ConfigError, match="unknown reporter 'wandbb': did you mean 'wandb'"):
    experiment.run(settings_for(reporters="wandbb"), tmp_path / "run", load_data=never)
  monkeypatch.setitem(sys.modules, "wandb", None)
  message = r"WandB needs wandb, which is not installed: pip install wandb, .*\[wandb\]"
  with pytest.raises(MissingPackage, match=message) as error:
    experiment.run(settings_for(reporters="wandb"), tmp_path / "run", load_data=never)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", FAKES)
def test_the_installed_package_takes_the_calls(name, tmp_path, monkeypatch):
  try:
    importlib.import_module(name)
  except ModuleNotFoundError:
    pytest.skip(f"{name} is not installed")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  [reporter] = report.trackers(name, "mine")
  reporter.phase_started("kd", 9, [])
  for row in ROWS:
    reporter.epoch_ended(row)
  reporter.phase_ended("kd")
  assert list(tmp_path.rglob("*"))
