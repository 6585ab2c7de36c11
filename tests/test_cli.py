"""`jaxkd list` prints methods, models and data sets; an error is one line with the nearest name."""

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

from jaxkd import cli, methods, models
from jaxkd.data import DATASETS
from jaxkd.fields import number

ROOT = pathlib.Path(__file__).parents[1]


def printed(capsys, *arguments):
  status = cli.main(arguments)
  out, err = capsys.readouterr()
  return status, out, err


@pytest.mark.parametrize(
  ("what", "known"),
  [
    ("methods", methods.METHODS),
    ("models", models.names()),
    ("data", DATASETS),
    ("datasets", DATASETS),
  ],
)
def test_names_are_listed_one_a_line_in_the_order_of_the_registry(capsys, what, known):
  status, out, err = printed(capsys, "list", what, "--names")
  assert (status, err, out.splitlines()) == (0, "", list(known))
  status, out, err = printed(capsys, "list", what)
  lines = out.splitlines()
  assert (status, err, [line.split()[0] for line in lines]) == (0, "", list(known))
  assert all(len(line.split()) > 1 and line.isprintable() for line in lines)


def test_methods_have_their_summary_and_their_source_in_one_line(capsys):
  _, out, _ = printed(capsys, "list", "methods")
  [line] = [line for line in out.splitlines() if line.split()[0] == "simkd"]
  method = methods.METHODS["simkd"]
  assert line.endswith(f"  {method.summary}; {method.source}")


def test_a_registered_method_is_listed(capsys, monkeypatch):
  monkeypatch.setattr(methods.registry, "METHODS", dict(methods.METHODS))
  monkeypatch.setattr(methods, "METHODS", methods.registry.METHODS)
  methods.register("mine", methods.Method("a method of a test", {"weight": number(1.0)}))
  assert printed(capsys, "list", "methods", "--names")[1].endswith("\nmine\n")


def test_the_size_of_a_data_set_is_listed(capsys):
  _, out, _ = printed(capsys, "list", "datasets")
  assert "100 classes, images of 32x32x3, 50000 for training, 10000 for tests" in out


def test_fields_have_their_default_their_range_and_their_source(capsys):
  status, out, err = printed(capsys, "list", "fields", "kd+at")
  rows = dict(line.split(maxsplit=1) for line in out.splitlines())
  assert (status, err) == (0, "")
  assert rows["student.epochs"] == "default 240; an integer >= 1 and < 2**31"
  assert rows["method.at.weight"].startswith("default 1000.0; a number")
  assert rows["method.at.weight"].endswith(methods.METHODS["at"].source)
  assert "data.crop" in rows and all(line.isprintable() for line in out.splitlines())
  common = printed(capsys, "list", "fields", "--names")[1].split()
  assert "student.epochs" in common and not any(name.startswith("method.") for name in common)


@pytest.mark.long
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["train", "--config", "nowhere.py:kd", "--workdir", "x"], "nowhere.py"),
    (["evaluate", "--bundel=x"], "Unknown command line flag 'bundel'. Did you mean: bundle"),
    (["export", "--bundle=nowhere", "--output=o"], "no model.json there"),
    (["budget", "--run=nowhere"], "no summary.json there"),
    (["compare", "--workdir=w", "--config=nowhere.py", "now"], "unexpected argument 'now'"),
  ],
)
def test_a_wrong_command_is_an_error_of_one_line_in_any_directory(tmp_path, arguments, message):
  done = run_in(tmp_path, *arguments)
  assert (done.returncode, done.stdout) == (1, "")
  [line] = done.stderr.splitlines()
  assert line.startswith("error: ") and message in line
  assert not list(tmp_path.iterdir())


def run_in(folder, *arguments):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  return subprocess.run(
    [sys.executable, "-m", "jaxkd.cli", *arguments],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.long
@pytest.mark.parametrize("name", ["train", "compare", "evaluate", "export", "budget"])
def test_help_lists_the_flags_and_the_script_has_the_same(tmp_path, name):
  done = run_in(tmp_path, name, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  assert f"jaxkd {name} --" in done.stdout
  assert "--[no]mpi" in done.stdout or "--allow_import" in done.stdout or "--seeds" in done.stdout
  script = subprocess.run(
    [sys.executable, ROOT / f"experiments/{name}.py", "--help"],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (script.returncode, script.stdout) == (0, done.stdout)


@pytest.mark.long
def test_jaxkd_train_runs_from_any_directory_and_a_complete_run_is_said_to_be(tmp_path):
  fields = ("student.model=mlp", "student.epochs=1", "cpu_devices=1", "data.per_class=3")
  flags = [f"--config.{field}" for field in fields]
  command = ("train", f"--config={ROOT}/configs/digits.py:alone", "--workdir=runs/x", *flags)
  done = run_in(tmp_path, *command)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "runs/x/summary.json").is_file()
  assert "is complete" in run_in(tmp_path, *command).stdout
  scored = run_in(tmp_path, "evaluate", "--bundle=runs/x")
  assert scored.returncode == 0 and "| alone/student |" in scored.stdout
  exported = run_in(tmp_path, "export", "--bundle=runs/x", "--output=out", "--platforms=cpu")
  assert exported.returncode == 0, exported.stderr
  assert (tmp_path / "out/alone/student/function.stablehlo").is_file()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["lst"], "unknown command 'lst': did you mean 'list'? known: budget, "),
    (
      ["list", "method"],
      "unknown list 'method': did you mean 'methods'? known: data, datasets, fields, "
      "methods, models; see jaxkd list --help",
    ),
    ([], "the following arguments are required: COMMAND; see jaxkd --help"),
    (["list"], "the following arguments are required: methods|models|data|fields; see"),
    (["list", "fields", "kdd"], "unknown method 'kdd': did you mean 'kd'"),
    (["list", "models", "kd"], "'kd': expected nothing after jaxkd list models"),
    (["list", "models", "--nmes"], "unrecognized arguments: --nmes; see jaxkd --help"),
  ],
)
def test_a_mistake_is_an_error_of_one_line(capsys, arguments, message):
  status, out, err = printed(capsys, *arguments)
  assert (status, out) == (1, "")
  assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_the_module_runs_as_a_command_and_the_console_script_is_its_main():
  scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
  assert scripts == {"jaxkd": "jaxkd.cli:main"}
  done = subprocess.run(
    [sys.executable, "-m", "jaxkd.cli", "list", "methods", "--names"],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.splitlines() == list(methods.METHODS)
