"""A finished run, for comparison."""

import pytest

from tests.faults.digits_runs import alone


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(folder of data and compiled programs, work directory of a finished run)."""
  folder = tmp_path_factory.mktemp("whole")
  done = alone(folder / "run", folder)
  assert done.returncode == 0, done.stderr
  return folder, folder / "run"
