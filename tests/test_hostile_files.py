"""Hostile files: pickles with code, paths out of a folder, and sizes that would fill the memory."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import pathlib
import pickle
import re
import sys
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import save as save_weights

from jaxkd import models
from jaxkd.data.imagenet import ImageNetLabels
from jaxkd.errors import ConfigError
from jaxkd.experiment import build, config
from jaxkd.export.bundles import load_bundle, save_bundle
from jaxkd.models.torch.files import read_torch_file
from jaxkd.train import check_phases
from jaxkd.train.checkpoints import Checkpoints
from jaxkd.train.state import FirstState
from jaxkd.types import Batch, Network
from tests import tiny
from tests.test_config import changed

ROOT = pathlib.Path(__file__).parents[1]
PATHS = ("../../x", "/tmp/x", "..", "a/b", "a\0b", "a\\..\\b", "")


class Touch:
  """An object whose pickle creates a file when Python loads it."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (os.system, (f"touch {self.path}",))


@pytest.fixture
def trap(tmp_path):
  """A pickle that would create a file; the test fails if the file exists at the end."""
  made = tmp_path / "code-was-here"
  yield pickle.dumps(Touch(made))
  assert not made.exists()


_UNPICKLED: list[str] = []
_watching = False


def _listen(event, arguments):
  if _watching and event == "pickle.find_class":
    _UNPICKLED.append(".".join(arguments))


sys.addaudithook(_listen)  # an audit hook cannot be removed, only disabled by _watching


@pytest.fixture
def nothing_unpickled():
  """The test fails if any pickle looks up a name while it runs."""
  global _watching
  _UNPICKLED.clear()
  _watching = True
  yield
  _watching = False
  assert _UNPICKLED == []


def test_audit_hook_records_unpickled_names():
  global _watching
  _UNPICKLED.clear()
  _watching = True
  pickle.loads(pickle.dumps(pathlib.Path))
  _watching = False
  # Its module is private in Python 3.13.
  assert [name.replace("._local", "") for name in _UNPICKLED] == ["pathlib.Path"]


# Weights.


@pytest.mark.usefixtures("nothing_unpickled")
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.pkl", "w.bin", "w.safetensors"])
def test_pickle_in_place_of_weights_runs_no_code(trap, tmp_path, name):
  (tmp_path / name).write_bytes(trap)
  with pytest.raises(ConfigError, match=r"refused: its pickle names posix\.system|damaged"):
    read_torch_file(tmp_path / name)
  with zipfile.ZipFile(tmp_path / name, "w") as archive:
    archive.writestr("a/data.pkl", trap)
  with pytest.raises(ConfigError, match=r"refused: its pickle names posix\.system|damaged"):
    read_torch_file(tmp_path / name)


@pytest.mark.parametrize("bad_path", ["../../x", "/tmp/x", "a/../../x"])
def test_entries_of_an_archive_are_not_extracted(tmp_path, bad_path):
  inside = tmp_path / "inside"
  inside.mkdir()
  with zipfile.ZipFile(inside / "w.pth", "w") as archive:
    archive.writestr(f"{bad_path}/data.pkl", b"\x80\x02}.")
    archive.writestr(f"{bad_path}/data/0", b"0000")
    archive.writestr(bad_path, b"0000")
  assert read_torch_file(inside / "w.pth") == {}
  assert [path.name for path in tmp_path.rglob("*")] == ["inside", "w.pth"]


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x7f", b"p4000000000\n"])
def test_pickle_with_a_huge_memo_index_is_refused(tmp_path, put):
  with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
    archive.writestr("a/data.pkl", b"\x80\x02}" + put + b".")
  with pytest.raises(ConfigError, match=r"w\.pth: .*memo"):
    read_torch_file(tmp_path / "w.pth")


@pytest.mark.parametrize(
  "header",
  [
    {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
  ],
)
def test_huge_sizes_in_safetensors_are_refused(tmp_path, header):
  text = json.dumps(header).encode()
  for length in (len(text), 2**62, 2**31):
    (tmp_path / "w.safetensors").write_bytes(length.to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ConfigError, match="damaged"):
      read_torch_file(tmp_path / "w.safetensors")


def test_label_cache_with_a_pickle_or_wrong_size_is_recomputed(trap, tmp_path):
  class Encoded:
    def __len__(self):
      return 2

    def __getitems__(self, keys):
      return [{"label": 7} for _ in keys]

  file = tmp_path / "labels.npy"
  header = "{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000,), }"
  absurd = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
  for content in (trap, b"\x93NUMPY\x01\x00", absurd):
    file.write_bytes(content)
    np.testing.assert_array_equal(ImageNetLabels(Encoded(), file).labels, [7, 7])
  np.save(file, np.array([Touch(tmp_path / "code-was-here"), None], object), allow_pickle=True)
  np.testing.assert_array_equal(ImageNetLabels(Encoded(), file).labels, [7, 7])


# Bundles.


@pytest.fixture
def bundle(tmp_path):
  module = models.create("resnet8_w4", num_classes=3)
  images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  save_bundle(tmp_path / "bundle", Network(module, variables), {"image_shape": [8, 8, 1]})
  return tmp_path / "bundle"


def rewritten(bundle, **changes):
  document = json.loads((bundle / "model.json").read_text())
  for path, value in changes.items():
    *sections, name = path.split("__")
    section = document
    for step in sections:
      section = section[step]
    section[name] = value
  (bundle / "model.json").write_text(json.dumps(document))


@pytest.mark.usefixtures("nothing_unpickled")
def test_paths_in_a_bundle_description_write_no_file(bundle, tmp_path):
  names = dict.fromkeys(("model", "data", "stage", "predictor", "weights", "method"), "../../x")
  rewritten(bundle, description={"image_shape": [8, 8, 1], **names})
  before = sorted(tmp_path.rglob("*"))
  network, description = load_bundle(bundle)
  assert description["stage"] == "../../x" and network.module.num_classes == 3
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("nothing_unpickled")
def test_pickle_in_a_bundle_runs_no_code(trap, bundle):
  (bundle / "weights.safetensors").write_bytes(trap)
  with pytest.raises(ConfigError, match=r"damaged weights\.safetensors"):
    load_bundle(bundle)
  (bundle / "model.json").write_bytes(trap)
  with pytest.raises(ConfigError, match=r"damaged model\.json"):
    load_bundle(bundle)


@pytest.mark.parametrize(
  "changes",
  [
    {"network": {"class": "os.system", "fields": {}}},
    {"network": {"class": "../../x", "fields": {}}},
    {"network__fields__dtype": {"dtype": "../../x"}},
    {"network__fields__dtype": {"dtype": "O"}},
    {"network__fields__widths": "wide"},
    {"network__fields__num_classes": -1},
    {"network__fields__num_classes": 2**70},
    {"network__fields__widths": [4, 4, 8, 2**70]},
    {"network__fields__name": "../../x"},
    {"description__image_shape": [-8, 8, 1]},
    {"description__image_shape": [2**70, 8, 1]},
    {"description": []},
    {"sha256": None},
  ],
)
def test_bundle_of_an_invalid_network_raises_a_one_line_error(bundle, changes):
  rewritten(bundle, **changes)
  with pytest.raises(ConfigError) as error:
    load_bundle(bundle)
  assert len(str(error.value).splitlines()) == 1 and "bundle" in str(error.value)


def test_deeply_nested_description_raises_a_one_line_error(bundle):
  (bundle / "model.json").write_text("[" * 200_000)
  with pytest.raises(ConfigError, match=r"damaged model\.json"):
    load_bundle(bundle)


def test_paths_as_weight_names_are_refused(bundle):
  (bundle / "weights.safetensors").write_bytes(save_weights({"../../x": np.zeros(3, np.float32)}))
  with pytest.raises(ConfigError, match=r"unexpected \(\.\./\.\./x\)"):
    load_bundle(bundle)


# Checkpoints and states of the data iterator.


def test_pickle_in_a_checkpoint_runs_no_code(trap, tmp_path, nothing_unpickled):
  phase = tiny.phase()
  example = Batch(np.zeros((2, 6, 6, 1), np.float32), *np.zeros((3, 2), np.int32))
  shapes = FirstState(phase.scheme, phase.optimizer, example).shapes
  state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

  class Iterator:
    def get_state(self):
      return {"next_index": 3}

    def set_state(self, state):
      self.state = state

  checkpoints = Checkpoints(tmp_path / "saved")
  checkpoints.save(2, state, state.participants, {"rows": []}, Iterator())
  checkpoints.wait()
  iterator = Iterator()
  restored = checkpoints.restore(shapes, iterator)
  assert restored is not None and iterator.state == {"next_index": 3}
  for item in ("state", "best", "progress", "data"):
    for file in (tmp_path / "saved" / "2" / item).rglob("*"):
      if file.is_file():
        file.write_bytes(trap)
  with pytest.raises(ConfigError, match=r"no checkpoint in .* can be read"):
    checkpoints.restore(shapes, Iterator())
  checkpoints.close()


# Names that are used as paths.


@pytest.mark.parametrize("bad_path", [*PATHS, "two\nlines"])
@pytest.mark.parametrize(
  ("method", "field"),
  [
    ("kd", "data.name"),
    ("kd", "teacher.model"),
    ("kd", "student.model"),
    ("kd", "method.name"),
    ("fitnets", "method.stage"),
    ("at", "method.stages"),
    ("dml", "method.models"),
    ("one", "method.from_stage"),
    ("byot", "method.exits"),
  ],
)
def test_names_in_a_config_cannot_be_paths(method, field, bad_path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  plural = field in ("method.stages", "method.models", "method.exits")
  settings = changed(method, field.split("."), (bad_path,) if plural else bad_path)
  settings.update({"data": {"directory": str(tmp_path / "tfds")}, "batch_size": 16})
  for role, model in (("teacher", "resnet8_w8"), ("student", "resnet8_w4")):
    if field != f"{role}.model":
      settings[role].model = model
  with pytest.raises(ConfigError) as error:
    config.check_config(settings)
    build.phases(settings, build.dataset(settings, fake_dataset))
  assert len(str(error.value).splitlines()) == 1
  assert not list(tmp_path.iterdir())


def fake_dataset(name, **options):
  from jaxkd.data import fake_dataset

  return fake_dataset(name, **options)


@pytest.mark.parametrize("bad_path", PATHS)
def test_names_of_phases_and_predictors_cannot_be_paths(bad_path):
  phase = tiny.phase()
  for changes in ({"name": bad_path}, {"reported": bad_path}):
    if changes.get("reported") == "":
      continue  # nothing predicts yet
    with pytest.raises(ConfigError, match=re.escape(f"{bad_path!r}: expected a name without")):
      check_phases([dataclasses.replace(phase, **changes)])


# Modules and functions that the source may use.

ALLOWED = {
  # Its unpickler looks up names in a short fixed list.
  ("jaxkd/models/torch/pickle.py", "import pickle"),
  ("jaxkd/models/torch/pickle.py", "import pickletools"),
}
_MODULES = (
  "pickle",
  "_pickle",
  "pickletools",
  "cloudpickle",
  "dill",
  "joblib",
  "marshal",
  "shelve",
)
_CALLS = (
  "eval",
  "exec",
  "compile",
  "__import__",
  "os.system",
  "os.popen",
  "yaml.load",
  "torch.load",
)


def dangers(source):
  """Yield the imports, calls and arguments in a source that could run code from a file."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import | ast.ImportFrom):
      named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
      named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      yield from (f"import {name}" for name in named if name.partition(".")[0] in _MODULES)
    elif isinstance(node, ast.Call):
      called = ast.unparse(node.func)
      if called in _CALLS:
        yield called
      for keyword in node.keywords:
        value = keyword.value
        safe = isinstance(value, ast.Constant) and value.value is False
        if keyword.arg in ("allow_pickle", "shell") and not safe:
          yield f"{keyword.arg}={ast.unparse(value)}"


def test_source_has_no_call_that_could_run_code_from_a_file():
  found = {
    (str(path.relative_to(ROOT)), danger)
    for path in sorted((ROOT / "jaxkd").rglob("*.py"))
    for danger in dangers(path.read_text())
  }
  assert found == ALLOWED


@pytest.mark.parametrize(
  "source",
  [
    "import pickle",
    "from pickle import loads",
    "import cloudpickle.compat",
    "np.load(file, allow_pickle=True)",
    "np.load(file, allow_pickle=allowed)",
    "eval(text)",
    "exec(text)",
    "yaml.load(text)",
    "torch.load(file)",
    "os.system(text)",
    "subprocess.run(text, shell=True)",
  ],
)
def test_dangers_detects_each_unsafe_call(source):
  assert len(list(dangers(source))) == 1


def test_every_dependency_is_pinned_exactly():
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  assert lines[0].startswith("# Written by 'make lock'")
  assert len(lines) > 50
  for line in lines[1:]:
    assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line
  makefile = (ROOT / "Makefile").read_text()
  assert re.search(r"^lock:\n(\t.*\n)*\t.*pip freeze .*>> requirements\.txt$", makefile, re.M)
