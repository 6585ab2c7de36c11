"""Required packages: pyproject.toml, the README and the imports of modules agree."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from jaxkd.errors import ConfigError, MissingPackage, needed_by

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "docs/install.md").read_text()
# Distribution -> import, where the names differ.
IMPORTED_AS = {
  "absl-py": "absl",
  "jax-resnet": "jax_resnet",
  "orbax-checkpoint": "orbax",
  "pillow": "PIL",
  "scikit-learn": "sklearn",
  "tensorflow-datasets": "tensorflow_datasets",
}
# Imported by packages that do not declare them, or by name.
INDIRECT = {"flatbuffers", "importlib_resources"}


def imports_of(requirements):
  names = (re.match(r"[\w-]+", requirement).group() for requirement in requirements)
  return {IMPORTED_AS.get(name, name) for name in names}


CORE = imports_of(PROJECT["dependencies"])
EXTRA = imports_of(PROJECT["optional-dependencies"]["experiments"]) - CORE
# Extras for one kind of data, or of file.
SMALL = imports_of(
  PROJECT["optional-dependencies"]["hf"] + PROJECT["optional-dependencies"]["onnx"]
)
MODULES = sorted((ROOT / "jaxkd").rglob("*.py"))


def third_party(path):
  """Return (package, line, whether `needed_by` guards it) for every import of a file."""
  found = []

  def visit(node, named):
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
      return
    if isinstance(node, ast.With):
      calls = [item.context_expr for item in node.items]
      named = named or any("needed_by(" in ast.unparse(call) for call in calls)
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module]
    for name in (name.partition(".")[0] for name in names):
      if name not in sys.stdlib_module_names and name != "jaxkd":
        found.append((name, node.lineno, named))
    for child in ast.iter_child_nodes(node):
      visit(child, named)

  visit(ast.parse(path.read_text()), False)
  return found


def guards(path):
  """Return the packages that a module's `__init__.py` imports under `needed_by` before it."""
  init = path.parent / "__init__.py"
  named = {name for name, _, is_named in third_party(init) if is_named} if init != path else set()
  if init != path and re.search(r"with [.\w]*needed_by\(.*\):\n  from jaxkd\.", init.read_text()):
    return named | EXTRA  # the guard surrounds all of its imports
  return named


def test_imported_packages_are_required_or_guarded_by_needed_by():
  wrong = []
  for path in MODULES:
    for name, line, named in third_party(path):
      guarded = named or name in guards(path)
      if name in CORE or (name in EXTRA | SMALL and guarded):
        continue
      wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
  assert wrong == []


def test_required_packages_are_imported():
  used = {name for path in MODULES for name, _, _ in third_party(path)}
  assert CORE - used == set()
  assert EXTRA - used == INDIRECT


WITHOUT_EXTRA = """
import importlib, json, os, sys
absent = set(json.loads(sys.argv[1]))

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in absent:
      raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
errors = {}
for name in json.loads(sys.argv[2]):
  try:
    importlib.import_module(name)
  except Exception as error:
    errors[name] = [type(error).__name__, str(error)]

def call(what, function):
  try:
    function()
  except Exception as error:
    errors[what] = [type(error).__name__, str(error)]

import jax, numpy as np
from jaxkd import data, models
from jaxkd.cache import store
from jaxkd.data import imagenet
from jaxkd.export import stablehlo
from jaxkd.models.torch import files
from jaxkd.types import Network
from pathlib import Path

examples = data.ArrayExamples(np.zeros((4, 8, 8, 1), np.uint8), *np.zeros((2, 4), np.int32))
call("batches", lambda: data.training_batches(examples, batch_size=2, seed=0))
call("load", lambda: data.load("digits"))
call("imagenet", lambda: imagenet.shrink(b"", 8))
call("safetensors", lambda: files.arrays_in(b""))
folder = Path(os.environ["FOLDER"])
(folder / "w.safetensors").write_bytes(b"")
model = models.create("resnet8", num_classes=2)
call("weights", lambda: models.from_torch(folder / "w.safetensors", model))
call("export", lambda: stablehlo.save_function(folder / "f", None))
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
  """Name -> [kind, message] of failures without the extra's packages, except those of flax and jax.

  The names are modules of jaxkd and those in WITHOUT_EXTRA.
  """
  names = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in MODULES
  ]
  arguments = [json.dumps(sorted(EXTRA - {"rich", "scipy"})), json.dumps(names)]
  environment = {**os.environ, "FOLDER": str(tmp_path_factory.mktemp("files"))}
  done = subprocess.run(
    [sys.executable, "-c", WITHOUT_EXTRA, *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_modules_of_the_extra_name_the_package_to_install(errors):
  for what, (kind, line) in errors.items():
    assert "\n" not in line and re.search(r"pip install ([\w-]+)", line), (what, kind, line)
    assert kind in ("MissingPackage", "ConfigError"), (what, kind, line)
  # scikit-learn is needed to prepare the digits, once.
  for what, package in [
    ("jaxkd.export.bundles", "safetensors"),
    ("jaxkd.experiment.config", "ml_collections"),
    ("jaxkd.report", "matplotlib"),
    ("batches", "grain"),
    ("load", "tensorflow-datasets"),
    ("imagenet", "pillow"),
    ("safetensors", "safetensors"),
    ("weights", "safetensors"),
    ("export", "flatbuffers"),
  ]:
    assert f"pip install {package}" in errors[what][1], what


def test_readme_lists_the_modules_that_need_the_extra(errors):
  section = README.partition("## As a library")[2].partition("\n## ")[0]
  core, _, extra = section.partition("The extra `experiments` is for the rest")
  needing = {name for name in errors if name.startswith("jaxkd.")}
  for name in re.findall(r"`(jaxkd\.\w+)`", core):
    assert name not in needing, name
  listed = set(re.findall(r"`(jaxkd\.\w+)`", extra)) - {"jaxkd.export.stablehlo"}
  assert listed <= needing
  assert "jaxkd.train" not in needing and "jaxkd.data" not in needing


def test_other_import_errors_pass_unchanged():
  for name in ("jaxkd.lossses", None):
    with pytest.raises(ModuleNotFoundError) as raised, needed_by("jaxkd.export.bundles"):
      raise ModuleNotFoundError("No such module", name=name)
    assert not isinstance(raised.value, ConfigError)
  with pytest.raises(MissingPackage, match="pip install pillow") as raised, needed_by("reading"):
    raise ModuleNotFoundError("No module named 'PIL.Image'", name="PIL.Image")
  assert isinstance(raised.value, ImportError | ConfigError) and raised.value.name == "PIL.Image"


SCRIPTS = [("train", "ml_collections"), ("compare", "matplotlib"), ("export", "safetensors")]


@pytest.mark.parametrize(("script", "package"), SCRIPTS)
def test_script_exits_with_one_line_naming_the_package_to_install(tmp_path, script, package):
  absent = WITHOUT_EXTRA.partition("errors = {}")[0].replace(
    "json.loads(sys.argv[1])", f"['{package}']"
  )
  (tmp_path / "sitecustomize.py").write_text(absent)
  done = subprocess.run(
    [sys.executable, ROOT / f"experiments/{script}.py", "--help"],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1 and done.stdout == ""
  line = rf"error: .* needs {package}, which is not installed: pip install {package}, .*\n"
  assert re.fullmatch(line, done.stderr)


def test_readme_install_lines_work_with_pip_of_python_3_11():
  """pip up to 24.0 rejects `NAME @ git+file:///PATH`, as such an address has no host."""
  section = README.partition("## As a library")[2].partition("\n## ")[0]
  lines = re.findall(r'^pip install "?([^"#\n]+?)"?(?:\s+#.*)?$', section, flags=re.MULTILINE)
  assert len(lines) == 2
  for line in lines:
    path, _, extras = line.partition("[")
    assert path == "/path/to/checkout" and extras in ("", "experiments]")
  addresses = re.findall(r"@ ([\w+]+)://(\S*)", section)
  for scheme, rest in addresses:
    assert scheme == "file" or not rest.startswith("/"), scheme
  assert "git+file:///" not in README


@pytest.mark.parametrize("target", ["torch", "bench"])
def test_makefile_accepts_any_build_of_pytorch(tmp_path, target):
  """Only PyTorch's own index has local versions ("+cpu"), so none is required."""
  command = ["make", "-n", target, f"VENV={tmp_path}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  installs = [line for line in done.stdout.splitlines() if re.search(r" torch[=<>~]", line)]
  assert [line.split()[-1] for line in installs] == ["torch==2.13.0"] * 2
  # With an extra index, --no-deps limits a failing lookup to one package.
  assert ["--no-deps" in line for line in installs] == ["index-url" in line for line in installs]
