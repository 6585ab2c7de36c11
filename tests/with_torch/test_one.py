"""ONE's network against PyTorch; needs PyTorch: `pytest tests/with_torch`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.with_torch import one_branches

GOLDEN = Path(__file__).parents[1] / "test_golden_models.py"


def test_gated_branches_equal_ones_network(tmp_path):
  one_branches.main(tmp_path)
  command = [sys.executable, "-m", "pytest", GOLDEN, "--golden", tmp_path]
  command += ["-k", "one_resnet32 and not without"]
  done = subprocess.run(command, cwd=GOLDEN.parents[1], text=True, capture_output=True, timeout=600)
  print(done.stdout)
  assert done.returncode == 0
