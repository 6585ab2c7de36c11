"""Stored targets are read back as written, and damage is detected."""

import jax
import numpy as np
import pytest

from jaxkd.cache.store import StoredTargets
from jaxkd.errors import ConfigError

SHAPES = [jax.ShapeDtypeStruct((4, 500), np.float32)]
VALUES = np.random.default_rng(0).normal(size=(40, 500)).astype(np.float32)


@pytest.fixture
def file(tmp_path):
  StoredTargets(tmp_path, SHAPES, "about").write([[VALUES[i : i + 4]] for i in range(0, 40, 4)])
  return tmp_path / "targets.array_record"


def test_records_are_read_by_number(file):
  kept = StoredTargets(file.parent, SHAPES, "about")
  assert kept.complete
  (found,) = kept.read(np.array([7, 39, 0]))
  np.testing.assert_array_equal(found, VALUES[[7, 39, 0]])


def test_a_truncated_file_is_not_complete(file):
  file.write_bytes(file.read_bytes()[:-1])
  assert not StoredTargets(file.parent, SHAPES, "about").complete
  file.unlink()
  assert not StoredTargets(file.parent, SHAPES, "about").complete


def test_a_flipped_bit_is_an_error_and_invalidates_the_file(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 4] ^= 4  # the end is padding
  file.write_bytes(data)
  kept = StoredTargets(file.parent, SHAPES, "about")
  assert kept.complete
  with pytest.raises(ConfigError, match=f"^the targets cached in {file.parent} are damaged; the s"):
    kept.read(np.arange(40))
  assert not StoredTargets(file.parent, SHAPES, "about").complete
