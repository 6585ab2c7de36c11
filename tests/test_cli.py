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
  [("methods", methods.METHODS), ("models", models.names()), ("datasets", DATASETS)],
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


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["lst"], "unknown command 'lst': did you mean 'list'? known: list"),
    (
      ["list", "method"],
      "unknown list 'method': did you mean 'methods'? known: datasets, methods, models; see "
      "jaxkd list --help",
    ),
    ([], "the following arguments are required: COMMAND; see jaxkd --help"),
    (["list"], "the following arguments are required: methods|models|datasets; see jaxkd list"),
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
