"""Entries beside the weights in files of torch.save: harmless ones are passed over, code is not."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle

import numpy as np
import pytest
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models import from_torch
from jaxkd.models.torch.extras import is_extra
from jaxkd.models.torch.files import read_torch_file
from tests.models.test_torch_files import code, packed, tensor


class Head(nn.Module):
  torch_names = ((r"fc", "head"),)

  @nn.compact
  def __call__(self, images):
    return nn.Dense(2, use_bias=False, name="head")(images.mean((1, 2)))


def checkpoint(path, extra, protocol=2):
  """A file with `extra`, the opcodes of a value, and the weights of Head, which have it, too."""
  weights = code("fc.weight") + tensor()
  if protocol == 2:  # later ones number what they refer to through the whole pickle
    weights += code("note") + extra
  # Before the extra no value is numbered.
  entries = b"X\5\0\0\0extra" + extra + code("state_dict") + b"}(" + weights + b"u"
  pickled = bytes([0x80, protocol]) + b"}(" + entries + b"u."
  return packed(path, {"a/data.pkl": pickled, "a/data/0": np.arange(4, dtype="<f4").tobytes()})


def opcodes(value, protocol):
  """The opcodes of a value, without the protocol, the frame and the end."""
  data = pickle.dumps(value, protocol)[2:-1]
  return data[9:] if data[:1] == b"\x95" else data  # FRAME and its length


def named(module, name, arguments=b")"):
  return f"c{module}\n{name}\n".encode() + arguments + b"R"


def read(path):
  variables = from_torch(path, Head(), image_shape=(4, 4, 2))
  np.testing.assert_array_equal(variables["params"]["head"]["kernel"], [[0, 2], [1, 3]])
  return read_torch_file(path)["extra"]


VALUES = {
  "array": np.arange(6.0).reshape(2, 3),
  "objects": np.array(["a", None], object),
  "scalar": np.float32(3),
  "numpy_dtype": np.dtype("float16"),
  "numpy_class": np.float64,
  "numpy_generator": np.random.default_rng(0),
  "numpy_state": np.random.RandomState(0).get_state(),
  "namespace": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("x")),
  "path": pathlib.Path("x"),
  "time": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
  "set": {1, 2},
  "frozenset": frozenset({"a"}),
  "counter": collections.Counter("ab"),
  "complex": 1j,
  "bytes": b"ab",
  "none": None,
  "epoch": 3,
  "optimizer": {"state": {0: {"step": np.float64(2)}}, "param_groups": [{"params": [0]}]},
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", VALUES)
def test_harmless_values_are_passed_over(tmp_path, kind, protocol):
  found = read(checkpoint(tmp_path / "w.pth", opcodes(VALUES[kind], protocol), protocol))
  if kind in ("none", "epoch"):
    assert found == VALUES[kind]


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("function", ["multiarray scalar", "multiarray _reconstruct"])
def test_names_of_numpy_1_and_2(tmp_path, core, function):
  module, name = function.split()
  read(checkpoint(tmp_path / "w.pth", named(f"numpy.{core}.{module}", name)))


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"])
def test_paths_of_every_system_and_python(tmp_path, module, name):
  read(checkpoint(tmp_path / "w.pth", named(module, name, code(("..", "x")))))


@pytest.mark.parametrize(
  "name",
  [
    "torch float32",
    "torch float8_e4m3fn",
    "torch.optim.adamw AdamW",
    "yacs.config CfgNode",
    "omegaconf.dictconfig DictConfig",
    "pytorch_lightning.utilities.parsing AttributeDict",
  ],
)
def test_objects_of_training_are_passed_over_with_their_items_and_state(tmp_path, name):
  module, name = name.split()
  filled = code("lr") + code(0.1) + b"s" + code({"frozen": True}) + b"b"
  extra = named(module, name) + filled
  if module == "torch":  # a constant, not a call
    extra = f"c{module}\n{name}\n".encode()
  read(checkpoint(tmp_path / "w.pth", extra))


def test_a_size_is_a_tuple(tmp_path):
  assert read(checkpoint(tmp_path / "w.pth", named("torch", "Size", code(((2, 3),))))) == (2, 3)


@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_may_be_in_a_defaultdict(tmp_path, protocol):
  value = collections.defaultdict(list, {"a": [1]})
  assert read(checkpoint(tmp_path / "w.pth", opcodes(value, protocol), protocol)) == {"a": [1]}
  state = named("collections", "defaultdict", code(())) + b"(" + code("fc.weight") + tensor() + b"u"
  pickled = b"\x80\x02" + state + b"."
  records = {"a/data.pkl": pickled, "a/data/0": np.arange(4, dtype="<f4").tobytes()}
  variables = from_torch(packed(tmp_path / "d.pth", records), Head(), image_shape=(4, 4, 2))
  np.testing.assert_array_equal(variables["params"]["head"]["kernel"], [[0, 2], [1, 3]])


@pytest.mark.parametrize("hidden", ["items", "values", "keys", "__iter__"])
def test_state_of_a_dict_cannot_hide_its_methods(tmp_path, hidden):
  attack = named("collections", "OrderedDict") + code({hidden: 3, "_metadata": {}}) + b"b"
  assert read(checkpoint(tmp_path / "w.pth", attack)) == {}


def test_a_parameter_with_attributes_is_read(tmp_path):
  wrapped = tensor() + code(True) + b"NN"
  call = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + wrapped + b"tR"
  value = read_torch_file(checkpoint(tmp_path / "w.pth", call))["extra"]
  np.testing.assert_array_equal(value, [[0, 1], [2, 3]])


class Attack:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
  ("function", "arguments"),
  [
    (os.system, ("touch was_here",)),
    (eval, ("open('was_here', 'w')",)),
    (exec, ("open('was_here', 'w')",)),
    (open, ("was_here", "w")),
    (getattr, (pathlib.Path, "touch")),
    (np.load, ("was_here",)),
    (np.fromfile, ("was_here",)),
    (pathlib.os.mkdir, ("was_here",)),
    (__import__, ("this",)),
  ],
)
def test_functions_among_the_extras_are_refused_by_name(
  tmp_path, monkeypatch, function, arguments, protocol
):
  monkeypatch.chdir(tmp_path)
  inside = argparse.Namespace(out=[np.ones(2), Attack(function, *arguments)])
  path = checkpoint(tmp_path / "w.pth", opcodes(inside, protocol), protocol)
  with pytest.raises(ConfigError, match=rf"refused: its pickle names .*{function.__name__}"):
    read_torch_file(path)
  assert [file.name for file in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize(
  "target", [b"cnumpy\nndarray\n", b"cpathlib\nPosixPath\n", b"ccollections\ndefaultdict\n"]
)
def test_a_pickle_cannot_modify_classes_of_extras(tmp_path, target):
  attack = target + code((None, {"__setstate__": 1, "append": 1})) + b"b"
  with pytest.raises(ConfigError, match="damaged"):
    read_torch_file(checkpoint(tmp_path / "w.pth", attack))
  read(checkpoint(tmp_path / "w.pth", named("numpy", "ndarray")))


@pytest.mark.parametrize(
  "name",
  [
    "pathlib os.system",
    "pathlib os",
    "omegaconf OmegaConf.load.__globals__",
    "builtins getattr",
    "builtins type",
    "numpy load",
    "numpy.testing runstring",
    "torch load",
    "torch.optimizers Adam",
    "torch.storage _load_from_bytes",
    "yacsx.config CfgNode",
    "functools partial",
    "operator attrgetter",
  ],
)
def test_other_names_are_no_extras(name):
  assert not is_extra(*name.split())
