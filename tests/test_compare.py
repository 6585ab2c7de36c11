"""experiments/compare.py without training: its jobs and its tables."""

import json
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from jaxkd.commands import compare as module
from jaxkd.errors import ConfigError
from jaxkd.experiment import run as experiment

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def made(monkeypatch):
  """Replace training by `scores`; return folder -> settings of the runs made."""
  settings_of = {}

  def run(settings, folder, console, *, load_data):
    settings_of[f"{folder.parent.name}/{folder.name}"] = settings
    stage = "teacher" if settings.method.name == "teacher" else "distilled"
    test, validation = scores(settings)
    result = {"predictor": "net", "test": {"net": {"accuracy": test}}}
    summary = {"stages": {stage: result}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings.to_dict()))
    row = {"stage": stage, "validation": {"net": {"accuracy": validation}}}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary

  monkeypatch.setattr(experiment, "run", run)
  return settings_of


def scores(settings: ConfigDict) -> tuple[float, float]:
  """(test, validation) accuracy, which depends on the seed and the method."""
  base = {"teacher": 0.9, "alone": 0.5, "kd": 0.6, "simkd": 0.7}[settings.method.name]
  # The best rate is 0.1.
  rate = settings.method.get("learning_rate") or settings.student.learning_rate
  return base + settings.seed / 100, base - abs(rate - 0.1)


@pytest.fixture
def compare(made, tmp_path, monkeypatch, capsys):
  """compare(*flags): the table that it prints."""
  monkeypatch.chdir(tmp_path)
  before = jax.config.jax_compilation_cache_dir
  jax.devices()  # initialised, so that they are not split

  def run(*given):
    module.FLAGS.unparse_flags()
    config = [] if "--config" in str(given) else [f"--config={ROOT}/configs/digits.py"]
    module.main(module.FLAGS(["compare.py", "--workdir=runs", "--workers=1", *config, *given]))
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]

  yield run
  jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.long
def test_a_row_for_every_network_over_the_seeds(compare, made, tmp_path):
  table = compare("--methods=kd,simkd/learning_rate=0.1", "--seeds=2", "--output=tables/table.md")
  assert table == [
    "| network | test accuracy, % | minus alone, points | gap closed | validation accuracy, % |",
    "|---|---|---|---|---|",
    "| teacher | 90.50 ± 0.71 |  |  | 90.00 ± 0.00 |",
    "| student alone | 50.50 ± 0.71 |  |  | 50.00 ± 0.00 |",
    "| student, kd | 60.50 ± 0.71 | +10.00 ± 0.00 | 25% | 60.00 ± 0.00 |",
    "| student, simkd,learning_rate=0.1 | 70.50 ± 0.71 | +20.00 ± 0.00 | 50% | 70.00 ± 0.00 |",
  ]
  names = ("teacher", "alone", "kd", "simkd,learning_rate=0.1")
  assert sorted(made) == sorted(f"seed{seed}/{name}" for seed in (0, 1) for name in names)
  assert made["seed1/kd"].teacher.bundle == "runs/seed1/teacher/bundles/teacher/teacher"
  assert [made[f"seed1/{name}"].baseline for name in ("alone", "kd")] == [True, False]
  written = (tmp_path / "tables/table.md").read_text().splitlines()
  assert written[0].startswith("Written by `python experiments/compare.py ")
  assert written[2:] == table
  comparison = json.loads((tmp_path / "runs/comparison.json").read_text())
  assert comparison["kd"] == pytest.approx([0.6, 0.61])


def test_changes_apply_to_the_named_fields(compare, made):
  changed = "kd/temperature=2.0/student.epochs=7/data.per_class=5"
  compare(f"--methods={changed}", "--set=student.epochs=9,teacher.epochs=3", "--seeds=1")
  settings = made["seed0/kd,temperature=2.0,student.epochs=7,data.per_class=5"]
  assert settings.method.temperature == 2.0
  assert (settings.student.epochs, settings.data.per_class) == (7, 5)
  assert (made["seed0/alone"].student.epochs, made["seed0/alone"].data.per_class) == (9, 10)
  assert made["seed0/teacher"].teacher.epochs == settings.teacher.epochs == 3


def test_a_method_of_another_config_file_has_the_teacher_of_that_file(compare, made, tmp_path):
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder/other.py").write_text(
    "from jaxkd.experiment.config import base_config\n"
    "def get_config(method):\n"
    "  config = base_config(method)\n"
    "  config.data.name = 'mnist'\n"
    "  return config\n"
  )
  table = compare("--methods=kd,folder/other.py:simkd/learning_rate=0.1", "--seeds=1")
  assert [row.split(" | ")[0] for row in table[2:]] == [
    "| teacher",
    "| other.py:teacher",
    "| student alone",
    "| student, kd",
    "| student, other.py:simkd,learning_rate=0.1",
  ]
  # Rows with different teachers have no common gap.
  assert table[-1].split(" | ")[2:4] == ["+20.00", ""]
  other = made["seed0/other.py:simkd,learning_rate=0.1"]
  assert (other.data.name, made["seed0/other.py:teacher"].data.name) == ("mnist", "mnist")
  assert other.teacher.bundle == "runs/seed0/other.py:teacher/bundles/teacher/teacher"
  assert made["seed0/kd"].data.name == made["seed0/teacher"].data.name == "digits"


def test_a_method_with_another_teacher_has_it_trained(compare, made):
  compare("--methods=kd,kd/teacher.model=resnet8_w8/weight=0.5", "--seeds=1")
  teacher = "seed0/teacher,teacher.model=resnet8_w8"
  assert made[teacher].teacher.model == "resnet8_w8"
  assert made["seed0/teacher"].teacher.model == "resnet14_w8"
  own = made["seed0/kd,teacher.model=resnet8_w8,weight=0.5"]
  assert own.teacher.bundle == f"runs/{teacher}/bundles/teacher/teacher"


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    # Files of a trained teacher are read by every run.
    ({"weights": "t.pth"}, {"weights": "t.pth", "bundle": ""}),
    ({"stablehlo": "t.bin"}, {"stablehlo": "t.bin", "bundle": ""}),
    # A teacher that its own run fine-tunes is the bundle of that run.
    (
      {"weights": "t.pth", "weights_part": "ema", "new_head": True, "finetune_epochs": 20},
      {"weights": "", "weights_part": "", "new_head": False, "finetune_epochs": 0}
      | {"bundle": "runs/seed0/teacher/bundles/teacher/teacher"},
    ),
  ],
)
def test_a_teacher_that_comes_trained_is_named_once(compare, made, given, expected):
  changes = [f"teacher.{field}={value}" for field, value in given.items()]
  table = compare("--methods=kd", "--seeds=1", f"--set={','.join(changes)}")
  assert any(row.startswith("| teacher") for row in table)
  for field, value in given.items():
    assert made["seed0/teacher"].teacher[field] == value
  for field, value in expected.items():
    assert made["seed0/kd"].teacher[field] == value


def test_with_one_teacher_it_is_that_of_the_first_seed(compare, made):
  table = compare("--methods=kd", "--one_teacher", "--seeds=2")
  assert sorted(made) == ["seed0/alone", "seed0/kd", "seed0/teacher", "seed1/alone", "seed1/kd"]
  assert made["seed1/kd"].teacher.bundle == "runs/seed0/teacher/bundles/teacher/teacher"
  # Its training images include those that the second seed holds out.
  assert all(row.endswith("|  |") for row in table[2:])


def test_rates_are_compared_by_validation(compare, made):
  table = compare("--methods=kd", "--rates=0.4,0.1", "--seeds=1")
  assert table == [
    "| student | rate 0.4 | rate 0.1 | best |",
    "|---|---|---|---|",
    "| alone | 20.00 | 50.00 | 0.1 |",
    "| kd | 30.00 | 60.00 | 0.1 |",
  ]
  assert made["seed0/alone,rate=0.4"].student.learning_rate == 0.4
  assert made["seed0/kd,rate=0.4"].method.learning_rate == 0.4
  assert "seed0/teacher" in made


def test_a_method_keeps_its_own_rate(compare, made):
  compare("--methods=kd,kd/learning_rate=1.6", "--rates=0.4", "--seeds=1")
  rates = {name: settings.method.get("learning_rate") for name, settings in made.items()}
  assert rates["seed0/kd,learning_rate=1.6,rate=0.4"] == 1.6
  assert rates["seed0/kd,rate=0.4"] == 0.4


def test_gains_can_be_over_another_run(compare):
  table = compare("--methods=kd,simkd", "--against=kd", "--seeds=1")
  assert table[0].split(" | ")[2] == "minus kd, points"
  assert table[-1].split(" | ")[2:4] == ["+10.00", ""]


@pytest.mark.parametrize("more", [["--seeds=2"], ["--seeds=1", "--rates=0.4,0.1"]])
def test_the_plot_shows_the_tables_means(compare, monkeypatch, tmp_path, more):
  drawn = []
  monkeypatch.setattr(
    module.report, "draw_bars", lambda path, panels, **options: drawn.append((path, panels))
  )
  compare("--methods=kd", "--plot=plots/digits.png", *more)
  ((path, panels),) = drawn
  assert str(path) == "plots/digits.png" and path.parent.is_dir()
  means = {
    (panel, bar.label): (bar.low, bar.value, bar.high) for panel in panels for bar in panels[panel]
  }
  if len(more) == 1:
    # Student's t of one degree of freedom, 12.7, times 0.5.
    assert means["", "kd"] == pytest.approx((54.147, 60.5, 66.853), abs=1e-3)
    assert [label for _, label in means] == ["teacher", "alone", "kd"]
  else:
    assert means["rate 0.1", "kd"] == pytest.approx((60, 60, 60))
    assert means["rate 0.4", "alone"] == pytest.approx((20, 20, 20))


MISTAKES = {
  "--methods=kdd": "^unknown method 'kdd': did you mean 'kd'",
  "--methods=kd/wait=1": "^unknown field of method 'wait': ",
  "--methods=kd/student.epoch=1": "^unknown field of student 'epoch': did you mean 'epochs'",
  "--methods=kd/students.epochs=1": "^'students.epochs=1': ",
  "--methods=kd/student.epochs=0": "^student.epochs=0: expected an integer >= 1 and < 2",
  "--methods=nowhere.py:kd": "^config='nowhere.py': there is no such file$",
  "--methods=empty.py:kd": "^empty.py has no get_config$",
  "--config=nowhere.py": "^config='nowhere.py': there is no such file$",
  "--set=student.epochs=0": "^student.epochs=0: expected an integer >= 1 and < 2",
  "--against=kdd": "^against='kdd': expected one of alone, kd, fitnets, at, simkd$",
  "--rates=0.1,fast": "^rates: 'fast' is no number$",
  "digits": "^unexpected argument 'digits': every setting is a --flag$",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_arguments_are_one_line_errors_before_any_write(compare, made, tmp_path, mistake):
  (tmp_path / "empty.py").touch()
  with pytest.raises(ConfigError, match=MISTAKES[mistake]) as error:
    compare(mistake)
  assert "\n" not in str(error.value)
  assert not made and not (tmp_path / "runs").exists()
