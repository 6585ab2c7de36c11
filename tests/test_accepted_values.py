"""Values that are valid alone but contradict each other: an error, or a line at the start."""

import io
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from jaxkd.data import Dataset
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config, run
from jaxkd.train import learning_rate_schedule
from tests.tiny import examples

ROOT = pathlib.Path(__file__).parents[1]


def schedule(name="step", **changes):
  values = {"learning_rate": 1.0, "epochs": 4, "steps_per_epoch": 10}
  return learning_rate_schedule(name, **{**values, **changes})


@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
@pytest.mark.parametrize(("epochs", "warmup"), [(4, 5.0), (4, 4.01), (1, 2.5), (3, 200.0)])
def test_a_warmup_longer_than_the_training_is_refused(name, epochs, warmup):
  with pytest.raises(
    ConfigError, match=rf"^warmup_epochs={warmup:g}: expected a number <= {epochs}"
  ):
    schedule(name, epochs=epochs, warmup_epochs=warmup)


@pytest.mark.parametrize("warmup", [0.0, 1.0, 4.0])
def test_a_warmup_as_long_as_the_training_is_accepted(warmup):
  np.testing.assert_allclose(schedule("constant", warmup_epochs=warmup)(39), 1.0)


@pytest.mark.parametrize(
  ("drops", "steps", "named"),
  [
    ((1.0, 1.04), 10, "1 and 1.04 are both after update 10"),
    ((1, 2, 2.01, 3), 10, "2 and 2.01 are both after update 20"),
    ((1, 1.4), 1, "1 and 1.4 are both after update 1"),
    ((150, 180, 180.0004), 782, "180 and 180 are both after update 140760"),
  ],
)
def test_drops_that_round_to_one_update_are_refused(drops, steps, named):
  with pytest.raises(ConfigError, match=rf"^drops={re.escape(str(drops))}: {named}, where"):
    schedule(drops=drops, steps_per_epoch=steps, epochs=240)


def test_a_drop_before_the_first_update_is_refused():
  with pytest.raises(ConfigError, match=r"^drops=\(0.01, 1\): 0.01 is before the first update"):
    schedule(drops=(0.01, 1))


def test_drops_one_update_apart_all_apply():
  rate = schedule(drops=(1.0, 1.1, 1.2))
  np.testing.assert_allclose([rate(n) for n in (9, 10, 11, 12)], [1, 0.1, 0.01, 0.001], rtol=1e-5)


def settings_for(name="kd", /, **sections):
  settings = config.base_config(name)
  settings.batch_size = 8
  for section, values in sections.items():
    settings[section].update(values)
  return settings


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(("epochs", "warmup"), [(240, 241.0), (3, 3.5), (1, 100.0)])
def test_a_config_names_the_network_whose_warmup_is_too_long(role, epochs, warmup):
  settings = settings_for(**{role: {"epochs": epochs, "warmup_epochs": warmup}})
  line = rf"^{role}.warmup_epochs={warmup:g}: expected a number <= {epochs}, as {role}.epochs says"
  with pytest.raises(ConfigError, match=line):
    config.check_config(settings)
  # What is not trained is not held to it.
  other = {"student": "teacher", "teacher": "dml"}[role]
  config.check_config(settings_for(other, **{role: {"epochs": epochs, "warmup_epochs": warmup}}))


def data():
  return Dataset("tiny", examples(), examples(8), examples(8), 3, (6, 6, 1), (0.5,), (0.5,))


def stages(name, **fields):
  settings = settings_for(name, method=fields)
  settings.teacher.model, settings.student.model = "resnet8_w8", "resnet8_w4"
  config.check_config(settings)
  return build.phases(settings, data(), traced=False)


def test_a_first_stage_shorter_than_the_warmup_is_refused():
  settings = settings_for("fitnets", student={"warmup_epochs": 5.0})
  settings.method.update({"two_stage": True, "first_epochs": 4})
  settings.teacher.model, settings.student.model = "resnet8_w8", "resnet8_w4"
  with pytest.raises(ConfigError, match=r"^warmup_epochs=5: expected a number <= 4, "):
    build.phases(settings, data(), traced=False)


@pytest.mark.parametrize(
  ("method", "fields", "line"),
  [
    ("kd", {"ramp_epochs": 5.0}, r"^method.ramp_epochs=5.0: expected 0 with ramp='none'$"),
    ("kd+rkd", {"ramp_start": 0.5}, r"^method.ramp_start=0.5: expected 0 with ramp='none'$"),
    (
      "fitnets",
      {"two_stage": False, "first_learning_rate": 0.1},
      r"^method.first_learning_rate=0.1: expected 0 with two_stage=False$",
    ),
    ("kd", {"weight": 0.0, "label_weight": 0.0}, r"^all weights of the method are 0 with "),
    ("rkd", {"weight": 0.0, "label_weight": 0.0}, r"^all weights of the method are 0 with "),
    (
      "fitnets",
      {"two_stage": True, "weight": 0.0},
      r"^all weights of the method are 0 with two_stage=True",
    ),
  ],
)
def test_a_field_of_a_method_without_effect_is_refused(method, fields, line):
  with pytest.raises(ConfigError, match=line):
    stages(method, **fields)


@pytest.mark.parametrize("fields", [{"weight": 0.0}, {"label_weight": 0.0}])
def test_one_weight_may_be_zero(fields):
  assert stages("kd", **fields)[-1].name == "distilled"


@pytest.mark.parametrize(
  ("sections", "remarks"),
  [
    ({"student": {"epochs": 240}, "teacher": {"epochs": 240}}, []),
    (
      {"student": {"epochs": 180}, "teacher": {"epochs": 240}},
      ["student.drops=(150, 180, 210): without effect at 180, 210, as student.epochs=180"],
    ),
    (
      {"student": {"epochs": 2, "schedule": "cosine"}, "teacher": {"epochs": 150}},
      ["teacher.drops=(150, 180, 210): without effect at 150, 180, 210, as teacher.epochs=150"],
    ),
    ({"teacher": {"epochs": 3, "bundle": "there"}}, []),
    (
      {"method": {"ramp": "linear", "ramp_epochs": 300.0}},
      [
        "method.ramp_epochs=300 is longer than the training, student.epochs=240: the weight at its "
        "end is not reached"
      ],
    ),
  ],
)
def test_drops_and_ramps_after_the_last_epoch_are_reported(sections, remarks):
  assert config.remarks(settings_for(**sections)) == remarks


def test_a_run_reports_them_before_training(tmp_path):
  settings = settings_for("alone", student={"epochs": 1})
  settings.student.model = "mlp"
  printed = io.StringIO()
  run.run(settings, tmp_path / "run", Console(file=printed), load_data=lambda *_, **__: data())
  first, *rest = printed.getvalue().splitlines()
  assert first.startswith("student.drops=(150, 180, 210): without effect at 150, 180, 210")
  assert rest[0].startswith("alone: 3 steps")


def script(*flags):
  command = [sys.executable, ROOT / "experiments/train.py", *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_the_script_names_the_method_of_a_config_without_one(tmp_path):
  chosen = ["--config.student.model=mlp", "--config.teacher.model=mlp", "--summary"]
  file = tmp_path / "digits.py"
  text = (ROOT / "configs/digits.py").read_text()
  file.write_text(text.replace('method: str = "simkd"', 'method: str = "kd"'))
  silent = script(f"--config={file}", *chosen)
  named = script(f"--config={file}:kd", *chosen)
  first, rest = silent.stdout.split("\n", 1)
  assert first == f"method kd, as --config={file} names none; another is --config={file}:METHOD"
  assert rest == named.stdout and named.stdout.startswith("teacher: 30 epochs")


@pytest.mark.long
@pytest.mark.parametrize("flag", ["--num_processes=2", "--process_id=0"])
def test_a_number_of_processes_without_a_coordinator_is_refused(tmp_path, flag):
  done = script("--config=configs/digits.py:kd", f"--workdir={tmp_path / 'run'}", flag)
  assert (done.returncode, done.stdout) == (1, "")
  assert done.stderr == f"error: {flag}: expected --coordinator=HOST:PORT with it\n"
  assert not (tmp_path / "run").exists()
