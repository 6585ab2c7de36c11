"""Failed writes of checkpoints: an error of one line with the path; saved checkpoints stay."""

import pathlib
import re
import subprocess
import sys

from jaxkd.train.checkpoints import check_checkpoints

ROOT = pathlib.Path(__file__).parents[2]
UNWRITABLE = """
import os, pathlib, sys
import numpy as np
from jaxkd.errors import DiskError
from jaxkd.train.checkpoints import Checkpoints
from jaxkd.train.state import TrainState

class Position:
  def get_state(self):
    return {"next_index": 1}

directory = pathlib.Path(sys.argv[1])
weights = {"student": {"params": {"kernel": np.zeros(3, np.float32)}}}
state = TrainState(np.int32(1), np.zeros(2, np.uint32), weights, ())
checkpoints = Checkpoints(directory)
checkpoints.save(1, state, weights, {}, Position())
checkpoints.wait()
directory.rename(directory.with_name("elsewhere"))
directory.write_text("a file where the folder was")
try:
  checkpoints.save(2, state, weights, {}, Position())
  checkpoints.wait()
except DiskError as error:
  print(error, flush=True)
checkpoints.close()
os._exit(7)  # at a normal exit, threads of orbax wait five minutes for the failed write
"""


def test_a_failed_write_is_an_error_with_the_path(tmp_path):
  directory = tmp_path / "alone"
  command = [sys.executable, "-c", UNWRITABLE, str(directory)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 7, done.stderr
  assert re.fullmatch(f"checkpoints in {directory} cannot be written: .*\n", done.stdout)
  check_checkpoints(tmp_path / "elsewhere")
