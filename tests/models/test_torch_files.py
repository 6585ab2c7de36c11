"""read_torch_file on the files that tests/with_torch/make_files.py wrote with PyTorch."""

from __future__ import annotations

import pickle
import runpy
import shutil
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.models.torch import files
from jaxkd.models.torch import pickle as torch_pickle
from jaxkd.models.torch.files import read_torch_file

FOLDER = Path(__file__).parent / "torch_files"
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool")
SHARED = np.arange(20, dtype=np.float32).reshape(4, 5) / 8
both_formats = pytest.mark.parametrize("suffix", ["", "_legacy"], ids=["zip", "legacy"])


def counting(dtype):
  values = np.arange(6).reshape(2, 3)
  return (values / 8 if "float" in dtype else values).astype(jnp.dtype(dtype))


@pytest.mark.parametrize("name", ["tensors.pth", "tensors_legacy.pth", "tensors.safetensors"])
def test_tensors_of_every_precision_are_read(name):
  tensors = read_torch_file(FOLDER / name)
  for dtype in DTYPES:
    assert tensors[dtype].dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(tensors[dtype], counting(dtype))


@both_formats
def test_views_of_shared_storages_are_read(suffix):
  tensors = read_torch_file(FOLDER / f"tensors{suffix}.pth")
  np.testing.assert_array_equal(tensors["transposed"], SHARED.T)
  np.testing.assert_array_equal(tensors["every_second"], SHARED[:, ::2])
  np.testing.assert_array_equal(tensors["last_row"], SHARED[3])
  np.testing.assert_array_equal(tensors["expanded"], np.full((2, 2), SHARED[1, 2]))
  np.testing.assert_array_equal(tensors["parameter"], np.arange(3) / 8)
  assert tensors["number"].shape == () and tensors["number"] == 0.5
  assert tensors["empty"].shape == (0, 3)
  assert np.shares_memory(tensors["transposed"], tensors["last_row"])
  assert not any(tensor.flags.writeable for tensor in tensors.values())


@both_formats
def test_options_beside_the_weights_become_empty_placeholders(suffix):
  checkpoint = read_torch_file(FOLDER / f"checkpoint{suffix}.pth")
  assert checkpoint["epoch"] == 3 and checkpoint["shape"] == (2, 3)
  assert checkpoint["best_acc"] == 0.75
  np.testing.assert_array_equal(checkpoint["model"]["module.weight"], counting("float32"))
  for name in ("opt", "numpy_acc"):
    assert type(checkpoint[name]).__module__ == torch_pickle.__name__
    assert vars(checkpoint[name]) == {}


def test_tensors_of_a_gpu_are_read(tmp_path):
  data = (FOLDER / "tensors_legacy.pth").read_bytes()
  on_gpu = data.replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage")
  assert on_gpu != data
  (tmp_path / "gpu.pth").write_bytes(on_gpu)
  np.testing.assert_array_equal(
    read_torch_file(tmp_path / "gpu.pth")["float32"], counting("float32")
  )


def test_bytes_of_a_big_endian_machine_are_swapped(tmp_path):
  source = FOLDER / "tensors.pth"
  records = {name: data.replace(b"little", b"big") for name, data in unpacked(source).items()}
  tensors = read_torch_file(source)
  swapped = read_torch_file(packed(tmp_path / "big.pth", records))
  for dtype in DTYPES:
    bits = f"u{tensors[dtype].itemsize}"
    np.testing.assert_array_equal(swapped[dtype].view(bits), tensors[dtype].view(bits).byteswap())


# Pickles that try to run code or to modify the reader.


@both_formats
def test_function_in_a_pickle_is_refused_by_name_and_not_run(suffix, tmp_path, monkeypatch):
  path = FOLDER / f"hostile{suffix}.pth"
  assert b"posix\nsystem" in path.read_bytes() and b"touch jaxkd_was_here" in path.read_bytes()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ConfigError, match=rf"{path.name}: refused: .*posix\.system"):
    read_torch_file(path)
  assert not list(tmp_path.iterdir())


def test_error_for_a_pickled_module_recommends_state_dict():
  with pytest.raises(ConfigError, match=r"torch\.nn\.modules\.activation\.ReLU.*state_dict\(\)"):
    read_torch_file(FOLDER / "whole_module.pth")


def code(value):
  """The opcodes that push a plain value."""
  return pickle.dumps(value, 2)[2:-1]


def storage(key="0", size=4, kind=b"torch\nFloatStorage"):
  return b"(" + code("storage") + b"c" + kind + b"\n" + code(key) + code("cpu") + code(size) + b"tQ"


def tensor(offset=0, size=(2, 2), stride=(2, 1), of=None):
  arguments = (of or storage()) + code(offset) + code(size) + code(stride) + code(False)
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"ccollections\nOrderedDict\n)RtR"


def unpacked(path):
  with zipfile.ZipFile(path) as archive:
    return {name: archive.read(name) for name in archive.namelist()}


def packed(path, records, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression) as archive:
    for name, data in records.items():
      archive.writestr(name, data)
  return path


def crafted(tmp_path, opcodes, elements=4):
  """A zip file whose pickle is `opcodes`, with one storage of float32."""
  data = np.arange(elements, dtype="<f4").tobytes()
  pickled = b"\x80\x02" + opcodes + b"."
  return packed(tmp_path / "crafted.pth", {"a/data.pkl": pickled, "a/data/0": data})


def test_crafted_valid_file_is_read(tmp_path):
  value = read_torch_file(crafted(tmp_path, tensor()))
  np.testing.assert_array_equal(value, [[0, 1], [2, 3]])


@pytest.mark.parametrize(
  "opcodes",
  [
    tensor(offset=1),
    tensor(size=(2, 3)),
    tensor(stride=(3, 1)),
    tensor(offset=-1),
    tensor(stride=(-2, 1), offset=3),
    tensor(stride=(1,)),
    tensor(size=(2.0, 2)),
    tensor(size=(True, 2)),
    tensor(size=(2**62, 2**62), stride=(0, 0)),
    tensor(of=storage(size=5)),
    tensor(of=storage(size=-1)),
    tensor(of=storage(size=2**62)),
    tensor(of=storage(key="1")),
    tensor(of=storage(key="../0")),
    tensor(of=storage(kind=b"collections\nOrderedDict")),
    tensor(of=code([0.0, 1.0, 2.0, 3.0])),
    code("no storage") + b"Q",
  ],
)
def test_tensor_outside_its_storage_is_an_error(tmp_path, opcodes):
  with pytest.raises(ConfigError, match=r"crafted\.pth: truncated or damaged"):
    read_torch_file(crafted(tmp_path, opcodes))


@pytest.mark.parametrize(
  "target",
  [
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nSize\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"cargparse\nNamespace\n",
    tensor(),
  ],
)
def test_pickle_cannot_modify_the_reader(tmp_path, target):
  # BUILD sets attributes, also those of a class, if they can be set.
  attack = target + code((None, {"__call__": 1, "_function": 1, "dtype": 1, "shape": 1})) + b"b"
  with pytest.raises(ConfigError, match="damaged"):
    read_torch_file(crafted(tmp_path, attack))
  test_crafted_valid_file_is_read(tmp_path)
  assert not hasattr(OrderedDict, "dtype") and not hasattr(torch_pickle._Placeholder, "dtype")


def test_storage_larger_than_the_file_takes_no_memory(tmp_path):
  data = (FOLDER / "checkpoint_legacy.pth").read_bytes()
  # The number of elements follows the location: 6 in one byte becomes 2^31 - 1 in four.
  before, after = data.split(b"cpu", 1)
  assert b"K\x06" in after
  path = tmp_path / "large.pth"
  path.write_bytes(before + b"cpu" + after.replace(b"K\x06", b"J\xff\xff\xff\x7f", 1))
  with pytest.raises(ConfigError, match="storages of more bytes than the file has"):
    read_torch_file(path)


# Damaged files.


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_legacy.pth", "tensors.safetensors"])
def test_truncated_file_raises_config_error_with_its_path(name, tmp_path):
  data, path = (FOLDER / name).read_bytes(), tmp_path / name
  for length in range(0, len(data), 17):
    path.write_bytes(data[:length])
    with pytest.raises(ConfigError) as error:
      read_torch_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_legacy.pth", "tensors.safetensors"])
def test_changed_byte_raises_no_error_other_than_config_error(name, tmp_path):
  data, path = bytearray((FOLDER / name).read_bytes()), tmp_path / name
  found = 0
  for i in range(0, len(data), 13):
    path.write_bytes(data[:i] + bytes([data[i] ^ 0x15]) + data[i + 1 :])
    try:
      read_torch_file(path)
    except ConfigError as error:
      found += str(path) in str(error)
  assert found > len(data) // 50


# Files of another kind.


def test_missing_file_is_an_error(tmp_path):
  with pytest.raises(ConfigError, match=r"absent\.pth: no such file"):
    read_torch_file(tmp_path / "absent.pth")
  with pytest.raises(ConfigError, match="no such file"):
    read_torch_file(tmp_path)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "neither a file of torch.save"),
    (b"<html>404</html>", "neither a file of torch.save"),
    (pickle.dumps({"a": 1}), "a pickle, but not one of torch.save"),
    (pickle.dumps(files._MAGIC) + pickle.dumps(1000), "protocol 1000"),
    (pickle.dumps(np.ones(3)), "a pickle, but not one of torch.save"),
    (pickle.dumps(np.load), "refused: its pickle names numpy"),
  ],
)
def test_file_of_another_kind_is_refused(content, message, tmp_path):
  path = tmp_path / "other.pth"
  path.write_bytes(content)
  with pytest.raises(ConfigError, match=rf"other\.pth: {message}"):
    read_torch_file(path)


def test_archive_of_another_kind_is_refused(tmp_path):
  np.savez(tmp_path / "arrays.npz", a=np.ones(3))
  with pytest.raises(ConfigError, match=r"not one of torch\.save"):
    read_torch_file(tmp_path / "arrays.npz")
  with pytest.raises(ConfigError, match="a TorchScript archive"):
    read_torch_file(FOLDER / "torchscript.pt")


def test_compressed_record_is_not_expanded(tmp_path):
  records = unpacked(FOLDER / "tensors.pth")
  path = packed(tmp_path / "packed.pth", records, zipfile.ZIP_DEFLATED)
  with pytest.raises(ConfigError, match="compressed"):
    read_torch_file(path)


def test_safetensors_is_needed_for_its_own_files_only(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "safetensors", None)  # importing it now fails
  read = runpy.run_path(files.__file__)["read_torch_file"]
  assert set(DTYPES) <= read(FOLDER / "tensors.pth").keys()
  with pytest.raises(ConfigError, match="pip install safetensors"):
    read(FOLDER / "tensors.safetensors")


def test_files_of_torch_are_read_with_any_suffix(tmp_path):
  for suffix in ("pt", "pkl", "tar", "bin"):
    path = shutil.copy(FOLDER / "tensors_legacy.pth", tmp_path / f"weights.{suffix}")
    assert set(DTYPES) <= read_torch_file(path).keys()
