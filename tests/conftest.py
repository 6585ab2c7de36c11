"""Eight XLA devices on the CPU for every test, and strict rank promotion.

With JAXKD_TESTS_ON=accelerator, as `make accelerator-check` sets it, tests run on the devices that
jax finds.
"""

import collections
import gc
import os
import pathlib
import re
import shutil
import tempfile

import hypothesis
import jax
import pytest

from jaxkd.runtime.fast_compilation import compile_fast

if os.environ.get("JAXKD_TESTS_ON") != "accelerator":
  # Tests spend most of their time on compilation. Subprocesses of tests inherit the flags unless
  # they set others.
  compile_fast()
  os.environ["JAX_PLATFORMS"] = "cpu"
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests build the same small programs many times: the cache compiles each once. Every worker has its
# own folder, because without a size limit jax does not lock the entries.
COMPILED = tempfile.mkdtemp(prefix="jaxkd-tests-")
jax.config.update("jax_compilation_cache_dir", COMPILED)
# With a size limit, each write would check all entries.
jax.config.update("jax_compilation_cache_max_size", -1)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Read by `enable_compilation_cache_in`.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Scripts started by tests share another folder, which jax locks, instead of the user's.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(COMPILED, "of-scripts")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**32)
jax.config.update("jax_persistent_cache_enable_xla_caches", "")

# Results must not depend on the speed of the machine.
hypothesis.settings.register_profile(
  "ci",
  deadline=None,
  derandomize=True,
  max_examples=25,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")


# Linux ends a process, by a segmentation fault in XLA, that has more memory maps than
# vm.max_map_count, 65,530 by default. Every compiled program that is alive takes a few.
_MAPS_OF_THE_PROCESS = pathlib.Path("/proc/self/maps")
_MOST_MAPS = 20_000


@pytest.fixture(autouse=True, scope="module")
def programs_of_earlier_files_are_freed():
  """Free the compiled programs after a file, where the process has many memory maps."""
  yield
  # Systems other than Linux have no such file.
  maps = _MAPS_OF_THE_PROCESS.read_bytes() if _MAPS_OF_THE_PROCESS.exists() else b""
  if maps.count(b"\n") > _MOST_MAPS:
    jax.clear_caches()
    gc.collect()


def pytest_addoption(parser):
  parser.addoption("--golden", default=None, help="folder of golden .npz files to check against")
  parser.addoption("--float32", action="store_true", help="check all golden cases in float32, too")


def pytest_unconfigure():
  shutil.rmtree(COMPILED)


# Files with whole runs, which are long.
_FIRST = (
  "test_experiment.py",
  "test_processes.py",
  "test_bad_input.py",
  "test_losses_behind_a_network.py",
)


def pytest_collection_modifyitems(items):
  """Put whole runs first, so that no worker starts a long one last."""
  items.sort(key=lambda item: item.path.name not in _FIRST)


def pytest_terminal_summary(terminalreporter):
  """Tables: how well ours agrees with the published code, and with what was recorded of itself."""
  _cases_that_agree(terminalreporter)
  _differences_of_models(terminalreporter)
  _differences_from_recorded(terminalreporter)


def _cases_that_agree(terminalreporter):
  """Print the number of golden cases of each method that agree."""
  ran, passed = collections.Counter(), collections.Counter()
  for outcome in ("passed", "failed", "error"):
    for report in terminalreporter.stats.get(outcome, []):
      found = re.search(r"test_golden_case_agrees\[(\w+)-\d+-(float\d\d)\]", report.nodeid)
      if found:
        ran[found.groups()] += 1
        passed[found.groups()] += outcome == "passed"
  if not ran:
    return
  terminalreporter.section("parity with published code, cases passed of cases run")
  terminalreporter.write_line("| method | float64 | float32 |")
  terminalreporter.write_line("|---|---|---|")
  for method in sorted({method for method, _ in ran}):
    cells = [f"{passed[method, d]} of {ran[method, d]}" for d in ("float64", "float32")]
    terminalreporter.write_line(f"| {method} | {' | '.join(cells)} |")


def _differences_of_models(terminalreporter):
  """Print the largest difference of each model's values, relative to the largest value."""
  columns = ("eval logits", "eval taps", "train logits", "train taps")
  worst = collections.defaultdict(float)
  for outcome in ("passed", "failed"):
    for report in terminalreporter.stats.get(outcome, []):
      for name, value in report.user_properties:
        if name == "model parity":
          model, column, difference = value
          worst[model, column] = max(worst[model, column], difference)
  if not worst:
    return
  terminalreporter.section("parity with published models, largest relative difference")
  terminalreporter.write_line(f"| model | {' | '.join(columns)} |")
  terminalreporter.write_line("|---" * 5 + "|")
  for model in sorted({model for model, _ in worst}):
    cells = [f"{worst[model, c]:.1e}" if (model, c) in worst else "" for c in columns]
    terminalreporter.write_line(f"| {model} | {' | '.join(cells)} |")


def _differences_from_recorded(terminalreporter):
  """The largest difference of each kind from recorded values, and the case that has it."""
  cases, worst = set(), {}
  for outcome in ("passed", "failed"):
    for report in terminalreporter.stats.get(outcome, []):
      for name, value in report.user_properties:
        if name == "recorded values":
          case, of_kinds = value
          cases.add(case)
          for kind, difference in of_kinds.items():
            worst[kind] = max(worst.get(kind, (0.0, "none")), (difference, case))
  if not worst:
    return
  terminalreporter.section(f"recorded values, largest relative difference of {len(cases)} cases")
  for kind, (difference, case) in sorted(worst.items()):
    where = f" ({case})" if difference else ""
    terminalreporter.write_line(f"{kind}: {difference:.1e}{where}")
