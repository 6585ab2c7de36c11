"""The measurements of `make bench`: turns, ratios, the fewest FLOPs, and the parts of cohorts."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.evaluate import multiply_adds

ROOT = pathlib.Path(__file__).parents[1]
MODULES = (
  "alternating",
  "cohort",
  "flops",
  "machine",
  "pairs",
  "phases",
  "profiles",
  "record",
  "whole_runs",
)


@pytest.fixture(scope="module")
def benchmarks():
  """The modules of experiments/studies/bench/benchmarks, by name."""
  before = set(sys.modules)
  sys.path.insert(0, str(ROOT / "experiments/studies/bench"))
  try:
    yield {name: importlib.import_module(f"benchmarks.{name}") for name in MODULES}
  finally:
    sys.path.remove(str(ROOT / "experiments/studies/bench"))
    for name in set(sys.modules) - before:
      if name.split(".")[0] == "benchmarks":
        del sys.modules[name]


def test_order_of_contestants_rotates_and_warmup_does_not_count(benchmarks):
  calls = []
  contestants = {name: lambda name=name: calls.append(name) for name in "ab"}
  found = benchmarks["alternating"].alternate(contestants, rounds=3, warmup=1, block=2)
  assert "".join(calls) == "bbaa" + "aabb" + "bbaa" + "aabb"
  assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}


def test_primers_precede_each_block_and_do_not_count(benchmarks):
  calls = []
  contestants = {name: lambda name=name: calls.append(name) for name in "ab"}
  found = benchmarks["alternating"].alternate(contestants, rounds=1, warmup=0, block=2, primers=1)
  assert "".join(calls) == "aaabbb"
  assert {name: len(times) for name, times in found.items()} == {"a": 1, "b": 1}


def test_time_limit_holds_after_the_least_rounds(benchmarks):
  alternating = benchmarks["alternating"]
  found = alternating.alternate({"a": lambda: None}, rounds=100, seconds=0.0)
  assert len(found["a"]) == alternating.LEAST_ROUNDS


def test_ratio_is_the_median_over_rounds_not_of_medians(benchmarks):
  times = {"ours": [1.0, 4.0, 30.0], "other": [2.0, 1.0, 10.0]}
  row = benchmarks["alternating"].compared(times, "ours", "other")
  assert (row["ratio"], row["middle_half"], row["rounds"]) == (3.0, [1.75, 3.5], 3)
  assert benchmarks["alternating"].compared({"ours": [1.0], "other": [2.0]}, "ours", "other") == {
    "ratio": 0.5,
    "middle_half": [0.5, 0.5],
    "rounds": 1,
  }


def _multiplied(benchmarks, function, *args):
  flops = benchmarks["flops"]
  return sum(flops.products_of(equation) for equation in flops.equations(function, *args))


def test_own_time_of_a_span_excludes_inner_spans(benchmarks):
  span = benchmarks["profiles"].Span
  spans = [span("inner", 2, 5), span("outer", 0, 10), span("inner", 6, 7), span("next", 10, 12)]
  own = benchmarks["profiles"].own_times(spans)
  assert own == {"outer": 6, "inner": 4, "next": 2}


def test_profile_separates_products_from_the_rest(benchmarks):
  x = jnp.ones((64, 64))
  run = jax.jit(lambda x: jnp.sin(jnp.dot(x, x)))
  found = benchmarks["profiles"].of_xla(lambda: jax.block_until_ready(run(x)), calls=2)
  assert all(milliseconds >= 0 for milliseconds in found.values())
  assert found[benchmarks["profiles"].REST] > 0 and len(found) > 1


@pytest.mark.parametrize(("size", "kernel", "stride"), [(5, 3, 1), (6, 3, 2), (7, 1, 2), (4, 5, 1)])
def test_products_with_padding_are_not_counted(benchmarks, size, kernel, stride):
  """With ones as factors, every multiply-add at a pixel adds 1 to the sum of the outputs."""
  images, weights = np.ones((2, size, size, 3)), np.ones((kernel, kernel, 3, 4))

  def convolve(images, weights):
    padding = [(kernel // 2, kernel // 2)] * 2
    return jax.lax.conv_general_dilated(
      images, weights, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  counted = _multiplied(benchmarks, convolve, images, weights)
  assert counted == int(convolve(images, weights).sum())
  padded = multiply_adds(convolve, images, weights)
  assert counted < padded if kernel > 1 else counted == padded


def test_gradient_of_a_convolution_has_as_many_products_as_the_convolution(benchmarks):
  """Zeros that a stride inserts in the input's gradient are not counted either."""

  def convolve(images, weights):
    return jax.lax.conv_general_dilated(
      images, weights, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  args = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
  once = _multiplied(benchmarks, convolve, *args)
  for argument in (0, 1):
    gradient = jax.grad(lambda *args: convolve(*args).sum(), argument)
    assert _multiplied(benchmarks, gradient, *args) == once


def test_fewest_flops_are_those_of_teacher_and_students_gradient(benchmarks):
  """The traced step of autodiff is the reference."""
  flops, pairs = benchmarks["flops"], benchmarks["pairs"]
  pair = pairs.Pair("resnet8_w8", "resnet8_w4", (8, 8, 1))
  networks = [models.create(name, num_classes=10) for name in (pair.teacher, pair.student)]
  images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
  variables = [jax.eval_shape(n.init, jax.random.key(0), images) for n in networks]

  def step(teacher, student, images):
    def loss(params):
      whole = {**student, "params": params}
      output, _ = networks[1].apply(whole, images, train=True, mutable=["batch_stats"])
      return jnp.square(output.logits - networks[0].apply(teacher, images).logits).sum()

    return jax.grad(loss)(student["params"])

  assert flops.minimum(pair) == 2 * _multiplied(benchmarks, step, *variables, images)


def test_phase_of_a_run_is_that_of_its_innermost_known_frame(benchmarks):
  phases = benchmarks["phases"]

  def lives(file, function, then):
    """Call `then` from a function of this name in this file."""
    names = {"then": then}
    exec(compile(f"def {function}(): return then()", file, "exec"), names)
    return names[function]

  def here():
    return phases.phase_of(sys._getframe())

  trace = lives("/x/jax/_src/pjit.py", "_trace_for_jit", here)
  assert here() == phases.REST
  assert lives("/x/jaxkd/train/input.py", "next", here)() == "starting steps"
  assert lives("/x/jaxkd/train/input.py", "next", trace)() == "tracing"

  def looked_at(phase, times):
    """Return after the phase was sampled so often, however slow the machine."""
    while found._seen[phase] < times:
      time.sleep(0.001)

  began = time.perf_counter()
  with phases.Phases(every=0.001) as found:
    looked_at(phases.REST, 3)
    lives("/x/jaxkd/export/bundles.py", "save_bundle", lambda: looked_at("bundles", 300))()
    seen = dict(found._seen)
  took = time.perf_counter() - began
  assert found.seconds.keys() == {"bundles", phases.REST} == seen.keys()
  assert list(found.seconds) == sorted(found.seconds, key=lambda phase: -found._seen[phase])
  assert 0.2 < sum(found.seconds.values()) <= took + 0.01


@pytest.mark.parametrize("members", [2, 3])
def test_trunk_and_branches_are_the_parts_of_the_branched_network(benchmarks, members):
  """Weights and products are equal, except for the layers that give the parts a loss."""
  cohort = benchmarks["cohort"]
  network = models.create("resnet8_w4", num_classes=10)
  images = jnp.zeros((2, 8, 8, 1))
  stage = cohort.FROM_STAGE
  features = jax.eval_shape(
    lambda x: network.init_with_output(jax.random.key(0), x)[0].features[stage], images
  )
  trunk, branch = cohort.TrunkAlone(network, stage), cohort.BranchAlone(network, stage)

  def facts(module, inputs, tidy):
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    weights = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))

    def total(variables, inputs):
      outputs = module.apply(variables, inputs)
      outputs = outputs if isinstance(outputs, tuple) else (outputs,)
      return sum(output.logits.sum() for output in outputs)

    products = multiply_adds(jax.grad(total), shapes, inputs)
    return np.array([weights, products]) - tidy

  channels = features.shape[-1]
  # The trunk's classifier needs two products for its gradient; the branch's bias needs none.
  trunk_own = np.array([(channels + 1) * 10, 2 * len(images) * channels * 10])
  parts = facts(trunk, images, trunk_own)
  parts = parts + members * facts(branch, features, np.array([channels, 0]))
  whole = facts(models.Branched(network, members, stage), images, 0)
  np.testing.assert_array_equal(parts, whole)


def test_section_measured_again_replaces_only_its_own_figures(benchmarks):
  record = benchmarks["record"]
  taken = {"seconds": 1.0, "versions": {"jax": "1"}, "machine": {"cores": 2}}
  rows = {"a": {"ratio": 0.9}, "b": {"ratio": 1.2}}
  results = record.merged({}, "cohort_over_parts", {"found": rows, **taken})
  assert results["cohort_over_parts"] == 1.2
  runs = {"cached": {"ratio": 0.7}, "uncached": {"ratio": 1.5}}
  results = record.merged(results, "run_over_pytorch", {"found": runs, **taken})
  assert results["run_over_pytorch"] == 0.7
  kd = {"losses": {"kd, batch 64": {"ratio": 2.0}}, "summary": {"slower": 0}}
  later = {**taken, "versions": {"jax": "2"}}
  results = record.merged(results, "losses", {"found": kd, **later})
  assert results["losses"] == kd["losses"]
  assert results["details"]["losses"]["summary"] == {"slower": 0}
  assert results["details"]["cohort_over_parts"]["rows"] == rows
  assert results["details"]["cohort_over_parts"]["versions"] == {"jax": "1"}
  assert results["versions"] == {"jax": "2"}
  assert json.loads(json.dumps(results)) == results


def test_overrides_of_a_run_are_in_its_config(benchmarks):
  job = {"config": "kd@fashion", "overrides": {"student.epochs": 3, "data.views": 4}}
  settings = benchmarks["whole_runs"].settings_of(job)
  assert (settings.student.epochs, settings.data.views, settings.method.name) == (3, 4, "kd")


def test_rows_of_runs_separate_the_first_from_later_ones(benchmarks):
  def runs(seconds, compiling):
    keys = ("seconds", "compile_seconds")
    made = [dict(zip(keys, two, strict=True)) for two in zip(seconds, compiling, strict=True)]
    tail = {"steps": 5, "accuracy": 0.5, "read_seconds": 1.0, "phases": {}}
    return [run | tail for run in made]

  ours, theirs = runs([30.0, 8.0, 6.0], [25.0, 2.0, 2.0]), runs([10.0, 10.0, 10.0], [0, 0, 0])
  row = benchmarks["whole_runs"]._row(ours, theirs)
  assert (row["first"], row["ratio"], row["without_compiling"]) == (3.0, 0.7, 0.5)
  with pytest.raises(AssertionError, match="different numbers of steps"):
    benchmarks["whole_runs"]._row(ours, [{**run, "steps": 4} for run in theirs])
