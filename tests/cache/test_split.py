"""A split loss equals the whole loss, and stores what the method's formula needs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxkd import losses, models
from jaxkd.cache.split import split_loss, table_of_bytes
from jaxkd.data.pipeline import training_batches
from jaxkd.errors import ConfigError
from jaxkd.networks import select
from jaxkd.types import Context, Output, Terms
from tests.cache.split_losses import (
  assert_close,
  batch_of,
  context,
  normal,
  participants_of,
  scheme_of,
)
from tests.methods.one_step import jit
from tests.methods.test_every_method import ON_TWO_STAGES, planned
from tests.models.drawn import drawn
from tests.tiny import create

AXIS = "devices"


def split(loss, learned, targets, **options):
  """Split loss(student's Output, targets)."""
  scheme = scheme_of(lambda student, targets, _: loss(student, targets))
  people = participants_of(learned)
  return split_loss(scheme, people, batch_of(targets), context(), **options)


def maps(**sizes):
  """Feature maps of the given (size, channels) at each stage, and logits."""
  features = {name: normal(4, n, n, c) for name, (n, c) in sizes.items()}
  return Output(normal(4, 10), features, features, {"images": normal(4, 8, 8, 3)})


TEACHER = maps(stage1=(16, 8), stage2=(8, 16), stage3=(4, 32))
POOLED = {**TEACHER.features, "pooled": normal(4, 32)}
LOW = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), TEACHER)
TWO = ("stage1", "stage2")
FITNETS = functools.partial(losses.fitnets, stages=("stage2",))
AB = functools.partial(losses.activation_boundaries, stages=TWO)

# loss, student, teacher, what is stored of each example
STORED = {
  "kd": (losses.knowledge_distillation, TEACHER, TEACHER, ["float32[10]"]),
  "simkd": (losses.simkd, TEACHER, TEACHER, ["float32[4, 4, 32]"]),
  "bf16": (losses.simkd, TEACHER, LOW, ["bfloat16[4, 4, 32]"]),
  "fitnets": (FITNETS, maps(stage2=(4, 16)), TEACHER, ["float32[4, 4, 16]"]),
  "at": (
    losses.attention_transfer,
    TEACHER,
    TEACHER,
    ["float32[16, 16]", "float32[8, 8]", "float32[4, 4]"],
  ),
  "at, power 4": (
    functools.partial(losses.attention_transfer, stages=TWO, power=4, norm="paper"),
    TEACHER,
    TEACHER,
    # And the norm next to which a distance is rounding, of the map whose own costs more anew.
    ["float32[16, 16]", "float32[8, 8]", "float32[]"],
  ),
  # With fewer positions than channels, mean outer products are compared.
  "nst, few positions": (
    losses.neuron_selectivity_transfer,
    maps(stage3=(2, 32)),
    maps(stage3=(2, 32)),
    ["float32[4, 4]"],
  ),
  "fsp": (
    functools.partial(losses.flow_of_solution, stages=("stage1", "stage2", "stage3")),
    TEACHER,
    TEACHER,
    ["float32[8, 16]", "float32[16, 32]"],
  ),
  "fsp, max": (
    functools.partial(losses.flow_of_solution, stages=("stage1", "stage3"), pool="max"),
    TEACHER,
    TEACHER,
    ["float32[8, 32]"],
  ),
  # Every place's sign alone.
  "boundaries": (
    lambda s, t: Terms(
      feature=jnp.sum(
        jnp.where(t.features["stage1"] > 0, s.features["stage1"], -s.features["stage1"])
      )
    ),
    TEACHER,
    TEACHER,
    ["bool[16, 16, 8]"],
  ),
  "rkd": (
    losses.relational,
    dataclasses.replace(TEACHER, features=POOLED),
    dataclasses.replace(TEACHER, features=POOLED),
    ["float32[32]"],
  ),
  "gradient attention": (
    losses.gradient_attention_transfer,
    TEACHER,
    TEACHER,
    # And its norm, next to which a distance is rounding.
    ["float32[192]", "float32[]"],
  ),
  "gradient attention, one map": (
    functools.partial(losses.gradient_attention_transfer, reduce="abs_mean"),
    TEACHER,
    TEACHER,
    ["float32[64]"],
  ),
  "two methods": (
    lambda s, t: (
      losses.knowledge_distillation(s, t) + losses.attention_transfer(s, t, stages=("stage3",))
    ),
    TEACHER,
    TEACHER,
    ["float32[10]", "float32[4, 4]"],
  ),
  "nothing": (lambda s, t: Terms(feature=jnp.sum(s.logits)), TEACHER, TEACHER, []),
}


def counted(array):
  """Parse "float32[2, 3]" to ("float32", 6), as arrays may be stored in another shape."""
  dtype, _, shape = array.removesuffix("]").partition("[")
  return dtype, int(np.prod([int(n) for n in shape.split(",") if n], dtype=int))


@pytest.mark.parametrize("name", STORED)
def test_stored_arrays_are_those_that_the_formula_needs(name):
  loss, student, teacher, expected = STORED[name]
  found = split(loss, student, teacher)
  each = [(str(s.dtype), int(np.prod(s.shape[1:], dtype=int))) for s in found.stored]
  assert sorted(each) == sorted(map(counted, expected))
  assert all(s.shape[0] == 4 for s in found.stored)
  row = table_of_bytes({name: found}).splitlines()[-1]
  stored = sum(np.prod(s.shape[1:], dtype=int) * s.dtype.itemsize for s in found.stored)
  assert row.startswith(f"| {name} | {found.bytes_of_targets} | {stored} | ")


def test_a_value_that_a_loss_and_its_metric_share_is_stored_once():
  def loss(student, teacher):
    attention = losses.attention_map(teacher)
    again = losses.attention_map(teacher)
    return jnp.sum(student * attention) + jnp.sum(jnp.exp(student * again))

  found = split(loss, normal(4, 8, 8), normal(4, 8, 8, 3))
  assert [s.shape for s in found.stored] == [(4, 8, 8)]


def test_neuron_selectivity_stores_the_maps_and_the_teacher_term_as_one_number():
  loss = functools.partial(losses.neuron_selectivity_transfer, stages=("stage2",))
  found = split(loss, TEACHER, TEACHER)
  sizes = sorted(int(np.prod(s.shape[1:], dtype=int)) for s in found.stored)
  # In addition at most one number per channel, its norm; not the 16 x 16 products of channels.
  assert sizes[0] == 1 and sizes[-1] == 8 * 8 * 16
  assert sum(sizes) <= 1 + 16 + 8 * 8 * 16


def test_activation_boundaries_store_no_more_than_the_compared_stages():
  found = split(AB, TEACHER, TEACHER)
  assert {s.shape for s in found.stored} == {(4, 16, 16, 8), (4, 8, 8, 16)}
  assert found.bytes_stored <= 4 * (16 * 16 * 8 + 8 * 8 * 16)


def test_a_matrix_larger_than_its_factors_is_computed_again():
  def loss(student, teacher):
    return jnp.sum(student * jnp.einsum("bi,bj->bij", teacher, teacher))

  found = split(loss, normal(4, 9, 9), normal(4, 9))
  assert [s.shape for s in found.stored] == [(4, 9)]
  # With free bytes, the matrix is stored.
  cheap = split(loss, normal(4, 9, 9), normal(4, 9), operations_per_byte=0)
  assert [s.shape for s in cheap.stored] == [(4, 9, 9)]


@jax.custom_vjp
def sevenfold(x):
  return jnp.sin(x)


sevenfold.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (7.0 * g,))


def test_numbers_among_the_results_are_returned_as_arrays():
  base = scheme_of(lambda s, t, c: jnp.mean(s["w"] * t))

  def loss(*arguments):
    value, aux = base.loss(*arguments)
    return value, dataclasses.replace(aux, metrics={"accuracy": (value, jnp.float32(2))})

  people, batch = participants_of({"w": normal(1, 5)}), batch_of(normal(4, 5))
  found = split_loss(base._replace(loss=loss), people, batch, context())
  learning = {"student": people["student"]["params"]}
  _, aux = found.loss_from_cache(learning, people, batch, found.precompute(batch.inputs), context())
  assert isinstance(aux.metrics["accuracy"][1], jax.Array)
  assert aux.metrics["accuracy"][1] == 2


def everything(learned, teacher, context):
  """A loss with custom rules, keys, loops, collectives and a Python zero."""
  axis = context.axis_name
  y = jax.checkpoint(jnp.tanh)(sevenfold(learned["w"]) * jnp.ones((4, 1)))
  y = y + jax.random.normal(context.rng, y.shape) * jnp.sqrt(context.step)
  y = lax.fori_loop(0, 2, lambda _, y: jax.nn.relu(y) + 0.1 * y, y)
  target = jax.nn.softmax(teacher)
  gathered = target if axis is None else lax.all_gather(target, axis, tiled=True)
  related = losses.pairwise_distance_huber(y, teacher, axis_name=axis)
  place = 0 if axis is None else lax.axis_index(axis)
  value = jnp.mean(jnp.square(y - target)) + jnp.mean(gathered) * jnp.mean(y) + related
  value = value * (1.0 + place)
  return Terms(logit=value if axis is None else lax.pmean(value, axis))


def compared(scheme, participants, batch, found, context):
  """Return ((loss, Aux), gradients) of the split loss and of the whole loss."""
  learning = select(participants, scheme.learners)
  targets = lax.stop_gradient(scheme.targets(participants, batch))
  results = (
    jax.value_and_grad(function, has_aux=True)(learning, participants, batch, seen, context)
    for function, seen in (
      (found.loss_from_cache, found.precompute(targets)),
      (scheme.loss, targets),
    )
  )
  return [((value, aux), grads) for (value, aux), grads in results]


def without_zeros(tree, zeros):
  """Remove Python zeros, which do not pass through jit, and record them for a check."""
  zeros.append([leaf for leaf in jax.tree.leaves(tree) if not isinstance(leaf, jax.Array)])
  return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


long = pytest.mark.long


@pytest.mark.parametrize(
  "inside", [False, pytest.param(True, marks=long)], ids=["before", "inside"]
)
@pytest.mark.parametrize(
  "mapped", [pytest.param("", marks=long), pytest.param("vmap", marks=long), "pmap"]
)
def test_split_keeps_rules_keys_loops_collectives_and_python_zeros(mapped, inside):
  axis = AXIS if mapped else None
  scheme, people = scheme_of(everything), participants_of({"w": normal(1, 5)})
  teacher, zeros = normal(2, 4, 5), []

  def split_for(batch):
    size = 2 if mapped and not inside else None
    return split_loss(scheme, people, batch, context(axis), axis_size=size)

  ready = None if inside else split_for(batch_of(teacher[0]))

  def step(teacher):
    batch = batch_of(teacher, 4)
    found = ready or split_for(batch)
    key = jax.random.fold_in(jax.random.key(5), lax.axis_index(AXIS) if mapped else 0)
    with_key = dataclasses.replace(context(axis), rng=key)
    return [without_zeros(x, zeros) for x in compared(scheme, people, batch, found, with_key)]

  if mapped == "pmap":
    got, want = jax.pmap(step, axis_name=AXIS, devices=jax.devices()[:2])(teacher)
  elif mapped:
    got, want = jit(jax.vmap(step, axis_name=AXIS))(teacher)
  else:
    got, want = jit(step)(teacher[0])
  assert zeros == [[0.0], [0.0]]
  assert_close(got, want)


def test_targets_without_examples_along_the_first_axis_are_an_error():
  people = participants_of({"w": normal(5)})
  scheme = scheme_of(lambda s, t, c: jnp.sum(s["w"]))
  targets = {"logits": normal(4, 5), "mean": normal(5)}
  with pytest.raises(
    ConfigError, match=r"^targets\['mean'\] is float32\[5\]: to be stored it needs the batch's 4 "
  ):
    split_loss(scheme, people, batch_of(targets, 4), context())


def test_shapes_other_than_traced_are_an_error():
  scheme, people = scheme_of(everything), participants_of({"w": normal(1, 5)})
  batch, learning = batch_of(normal(4, 5)), {"student": {"w": normal(1, 5)}}
  found = split_loss(scheme, people, batch, context())
  stored = found.precompute(batch.inputs)
  with pytest.raises(ConfigError, match=r"^targets is float32\[6, 5\], but .* float32\[4, 5\]$"):
    found.precompute(normal(6, 5))
  with pytest.raises(ConfigError, match=r"^batch.inputs is float32\[6, 5\], but the loss was trac"):
    found.loss_from_cache(learning, people, batch_of(normal(6, 5)), stored, context())
  with pytest.raises(
    ConfigError, match=r"^stored\[0\] is float32\[2, 5\], but the loss was traced"
  ):
    found.loss_from_cache(learning, people, batch, [x[:2] for x in stored], context())
  with pytest.raises(ConfigError, match=r"^axis_size=None: expected the number of devices"):
    split_loss(scheme, people, batch, context(AXIS))
  over_four = split_loss(scheme, people, batch, context(AXIS), axis_size=4)

  def on_two(_):
    return over_four.loss_from_cache(learning, people, batch, stored, context(AXIS))[0]

  with pytest.raises(ConfigError, match=r"^the axis 'devices' is over 2 devices, .* traced for 4"):
    jax.vmap(on_two, axis_name=AXIS)(jnp.arange(2))


def test_reads_and_changing_name_the_variables_behind_the_targets():
  def scheme_with(targets):
    scheme = scheme_of(lambda s, t, c: jnp.mean(jnp.square(s["own"] - t["used"])))
    return scheme._replace(targets=targets, learners=("student/own",))

  people = {
    "student": {"params": {"own": normal(1), "trunk": normal(5)}},
    "teacher": {"params": {"w": normal(5), "head": normal(5)}},
  }

  def found(targets):
    parts = split_loss(scheme_with(targets), people, batch_of(normal(4, 5)), context())
    return parts.reads, parts.changing

  used = jax.jit(lambda w, head, x: (x @ w, x @ head))

  def of_teacher(people, batch):
    weights = people["teacher"]["params"]
    score, other = used(weights["w"], weights["head"], batch.inputs)
    return {"used": score, "unused": other * people["student"]["params"]["own"]}

  assert found(of_teacher) == (("participants['teacher']['params']['w']", "batch.inputs"), ())

  def of_student(people, batch):
    weights = people["student"]["params"]
    return {"used": batch.inputs @ weights["trunk"] + weights["own"]}

  reads, changing = found(of_student)
  assert "participants['student']['params']['trunk']" in reads
  assert changing == ("participants['student']['params']['own']",)


def test_batch_statistics_of_learners_are_changing():
  people = {"student": {"params": {"w": normal(5)}, "batch_stats": {"mean": normal(5)}}}
  base = scheme_of(lambda s, t, c: jnp.mean(jnp.sum(s["w"]) * t))

  def loss(*arguments):
    value, aux = base.loss(*arguments)
    return value, dataclasses.replace(
      aux, state={"student": {"batch_stats": {"mean": jnp.zeros(5)}}}
    )

  scheme = base._replace(
    loss=loss,
    targets=lambda people, batch: batch.inputs + people["student"]["batch_stats"]["mean"].sum(),
  )
  found = split_loss(scheme, people, batch_of(normal(4, 5), 4), context())
  assert found.changing == ("participants['student']['batch_stats']['mean']",)


@pytest.fixture
def tiny_models(monkeypatch):
  monkeypatch.setattr(models, "create", create)


def taught(variant, **changes):
  return [s for s in planned(variant, **changes) if s.name not in ("teacher", "alone")]


def prepared(stage):
  data = next(training_batches(stage.examples, batch_size=8, seed=0, partners=stage.partners))
  data = stage.prepare_evaluation(jax.tree.map(jnp.asarray, data))
  # In training, some methods get a strong augmentation, too.
  return dataclasses.replace(data, views={"strong": data.inputs[:, ::-1], **data.views})


def test_split_loss_of_a_method_equals_the_loss(tiny_models):
  [stage] = taught("kd")
  scheme, batch, zeros = stage.scheme, prepared(stage), []
  people = drawn(scheme, batch)
  found = split_loss(scheme, people, batch, context())
  assert not found.changing
  assert found.bytes_stored <= found.bytes_of_targets

  def both(people, batch):
    return [without_zeros(x, zeros) for x in compared(scheme, people, batch, found, context())]

  got, want = jit(both)(people, batch)
  assert zeros[0] == zeros[1]
  assert_close(got, want, 1e-6)


@long
@pytest.mark.parametrize("variant", ON_TWO_STAGES)
def test_split_loss_of_every_method_equals_the_loss_on_two_devices(tiny_models, variant):
  for stage in taught(variant, sync_batch_norm=True):
    scheme, batch, zeros = stage.scheme, prepared(stage), []
    people = drawn(scheme, batch)
    shares = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch)

    def both(people, batch, scheme=scheme, zeros=zeros):
      key = jax.random.fold_in(jax.random.key(5), lax.axis_index(AXIS))
      at = Context(key, jnp.int32(3), AXIS)
      found = split_loss(scheme, people, batch, at)
      assert not found.changing
      assert found.bytes_stored <= found.bytes_of_targets
      return [without_zeros(x, zeros) for x in compared(scheme, people, batch, found, at)]

    mapped = jit(jax.vmap(both, axis_name=AXIS, in_axes=(None, 0)))
    got, want = mapped(people, shares)
    assert zeros[0] == zeros[1]
    assert_close(got, want, 1e-6)
