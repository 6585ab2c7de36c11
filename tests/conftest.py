"""Eight XLA devices on the CPU for every test, and strict rank promotion.

With JAXKD_TESTS_ON=accelerator tests run on what jax finds, as `make accelerator-check` has them.
"""

import collections
import os
import re
import shutil
import tempfile

import hypothesis
import jax

if os.environ.get("JAXKD_TESTS_ON") != "accelerator":
  # Compiling is most of what tests do, and the older emitters without optimisation do it faster.
  # Tests that start subprocesses and set no flags of their own hand these on.
  os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    " --xla_backend_optimization_level=0"
  )
  os.environ["JAX_PLATFORMS"] = "cpu"
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests build the same small programs again and again: each is compiled once. Every worker has its
# own folder, for nothing guards an entry against being read half written.
COMPILED = tempfile.mkdtemp(prefix="jaxkd-tests-")
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_compilation_cache_max_size", -1)  # else every entry looks at all others
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Read by `enable_compilation_cache_in`.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Scripts that tests start share another, which jax locks, in place of the user's own.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(COMPILED, "of-scripts")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**32)
jax.config.update("jax_persistent_cache_enable_xla_caches", "")

# Nothing of a test may depend on how fast the machine is, nor on how fast examples are drawn.
hypothesis.settings.register_profile(
  "ci",
  deadline=None,
  derandomize=True,
  max_examples=25,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")


def pytest_addoption(parser):
  parser.addoption("--golden", default=None, help="folder of golden .npz files to check against")
  parser.addoption("--float32", action="store_true", help="check all golden cases in float32, too")


def pytest_unconfigure():
  shutil.rmtree(COMPILED)


# Whole runs: long, and few to a file.
_FIRST = (
  "test_experiment.py",
  "test_processes.py",
  "test_bad_input.py",
  "test_losses_behind_a_network.py",
)


def pytest_collection_modifyitems(items):
  """Puts whole runs first: a worker that gets one last keeps the others waiting."""
  items.sort(key=lambda item: item.path.name not in _FIRST)


def pytest_terminal_summary(terminalreporter):
  """Tables: how well ours agrees with the published code, and with what was recorded of itself."""
  _cases_that_agree(terminalreporter)
  _differences_of_models(terminalreporter)
  _differences_from_recorded(terminalreporter)


def _cases_that_agree(terminalreporter):
  """How many cases of each method agree."""
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
  """The largest difference of each model's values, relative to the largest value."""
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
