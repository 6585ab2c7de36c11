"""The attributes of a distillation: several teachers, adapters, gradients, classifiers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, methods
from jaxkd.adapters import AtStages, FactorEncoder, Regressor, TeacherAtStages
from jaxkd.errors import ConfigError
from jaxkd.methods import Distillation, per_example, whole_batch
from jaxkd.methods._gradients import infer_with_gradients, learn_with_gradients
from jaxkd.networks import infer, learn
from jaxkd.types import Context, Terms
from tests.methods.one_step import (
  assert_all_moved,
  assert_same,
  jit,
  loss_and_gradients,
  updated,
)
from tests.models.drawn import drawn
from tests.tiny import TinyNet, batch

STUDENT, WISE, OLD = TinyNet(), TinyNet(width=6), TinyNet(width=5)
TEACHERS = {"wise": WISE, "old": OLD}
KEY = jax.random.key(1)  # of one_step's Context


def terms(scheme, participants, data, step=0):
  def objective(participants):
    targets = scheme.targets(participants, data)
    context = Context(KEY, jnp.int32(step))
    _, aux = scheme.loss({}, participants, data, targets, context)
    return {name: term.total for name, term in aux.terms.items()}, aux.metrics

  return jit(objective)(participants)


def test_several_teachers_give_the_weighted_mean_of_their_logits():
  weights = {"wise": 1.0, "old": 3.0}
  method = Distillation("kd", per_example(losses.knowledge_distillation), 2.0, weights)
  scheme = methods.offline(STUDENT, TEACHERS, [method], label_weight=0)
  participants, data = drawn(scheme, batch()), batch()

  @jit
  def by_hand(participants):
    student, _ = learn(STUDENT, participants["student"], data.inputs, KEY)
    wise, old = (infer(TEACHERS[n], participants[n], data.inputs).logits for n in weights)
    return 2.0 * losses.soft_target_kl(student.logits, 0.25 * wise + 0.75 * old, temperature=4.0)

  found, _ = terms(scheme, participants, data)
  np.testing.assert_allclose(found["kd"], by_hand(participants), rtol=1e-5)


def test_a_weight_may_be_a_function_of_the_step():
  weight = methods.ramp("linear", steps=10, start=0.0, end=4.0)
  method = Distillation("kd", per_example(losses.knowledge_distillation), weight, "wise")
  scheme = methods.offline(STUDENT, {"wise": WISE}, [method])
  participants, data = drawn(scheme, batch()), batch()
  at = {step: terms(scheme, participants, data, step)[0] for step in (0, 5, 20)}
  assert float(at[0]["kd"]) == 0.0
  np.testing.assert_allclose(at[20]["kd"], 2 * at[5]["kd"], rtol=1e-5)
  assert float(at[0]["labels"]) == float(at[20]["labels"])


def test_teacher_adapters_are_applied_and_do_not_learn():
  factors = per_example(losses.factor_transfer, stages=("stage2",))
  method = Distillation(
    "ft",
    factors,
    teacher="wise",
    adapter=AtStages({"stage2": FactorEncoder(3)}),
    teacher_adapter=TeacherAtStages({"stage2": FactorEncoder(3)}),
  )
  scheme = methods.offline(STUDENT, {"wise": WISE}, [method])
  participants, data = drawn(scheme, batch()), batch()
  assert scheme.learners == ("student", "ft_adapter")

  @jit
  def by_hand(participants):
    student, _ = learn(STUDENT, participants["student"], data.inputs, KEY)
    teacher = infer(WISE, participants["wise"], data.inputs)
    ours = infer(FactorEncoder(3), participants["ft_adapter"], student.features["stage2"])
    theirs = infer(FactorEncoder(3), participants["ft_teacher_adapter"], teacher.features["stage2"])
    return losses.factor_l1(ours, theirs)

  found, _ = terms(scheme, participants, data)
  np.testing.assert_allclose(found["ft"], by_hand(participants), rtol=1e-4)
  after = updated(scheme, participants, data)
  name = "ft_teacher_adapter"
  assert_same(participants[name], after[name])
  moved = (tree["ft_adapter"]["params"]["conv1"]["kernel"] for tree in (participants, after))
  assert_all_moved(*moved)


def test_adapters_of_preactivations_leave_features_alone_and_metrics_see_both():
  def loss(student, teacher, batch, context):
    assert student.features["stage2"].shape[-1] == 8
    return losses.activation_boundaries(student, teacher, stages=("stage2",))

  def disagreement(student, teacher, batch, context):
    ours, theirs = (output.preactivations["stage2"] for output in (student, teacher))
    return losses.boundary_disagreement(ours, theirs), jnp.float32(1)

  method = Distillation(
    "ab",
    loss,
    teacher="wise",
    adapter=AtStages({"stage2": Regressor((3, 3), 12, activation=False)}, "preactivations"),
    metrics={"disagreement": disagreement},
  )
  scheme = methods.offline(STUDENT, {"wise": WISE}, [method])
  found, metrics = terms(scheme, drawn(scheme, batch()), batch())
  assert float(found["ab"]) > 0
  assert 0 < float(metrics["ab_disagreement"][0]) < 1


def test_gradients_reach_the_loss_at_the_requested_stages():
  stages = (("images", "images"), ("stage1", "stage1"))
  loss = functools.partial(losses.gradient_attention_transfer, stages=stages, reduce="abs_mean")
  names = ("images", "stage1")
  method = Distillation("gradients", per_example(loss), 3.0, "wise", gradients=(names, names))
  scheme = methods.offline(STUDENT, {"wise": WISE}, [method])
  participants, data = drawn(scheme, batch()), batch()
  labelled = (data.inputs, data.labels, data.weights, names)

  @jit
  def by_hand(participants):
    student, _ = learn_with_gradients(STUDENT, participants["student"], *labelled, KEY)
    teacher = infer_with_gradients(WISE, participants["wise"], *labelled)
    return 3.0 * loss(student, teacher).total

  found, _ = terms(scheme, participants, data)
  np.testing.assert_allclose(found["gradients"], by_hand(participants), rtol=1e-4)
  (_, _), gradients = loss_and_gradients(scheme)(participants, data)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_relations_are_computed_over_the_batch_of_all_devices():
  method = Distillation("rkd", whole_batch(losses.relational), teacher="wise")
  student, teacher = TinyNet(norm=False), TinyNet(width=6, norm=False)
  scheme = methods.offline(student, {"wise": teacher}, [method], label_weight=0)
  participants, data = drawn(scheme, batch()), batch()

  def gradient(learning, data, axis_name):
    context = Context(KEY, jnp.int32(0), axis_name)
    targets = scheme.targets(participants, data)
    return jax.grad(
      lambda learning: scheme.loss(learning, participants, data, targets, context)[0]
    )(learning)

  def on_device(learning, data):
    return jax.lax.pmean(gradient(learning, data, "devices"), "devices")

  learning = {"student": participants["student"]["params"]}
  shards = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), data)
  mapped = jit(jax.vmap(on_device, (None, 0), None, axis_name="devices"))(learning, shards)
  whole = jit(functools.partial(gradient, axis_name=None))(learning, data)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), mapped, whole)


def test_with_to_stage_only_the_needed_layers_run_and_learn():
  method = Distillation(
    "hint",
    per_example(losses.fitnets, stages=("stage1",)),
    teacher="wise",
    adapter=AtStages({"stage1": Regressor((6, 6), 6)}),
  )
  scheme = methods.offline(
    STUDENT,
    {"wise": WISE},
    [method],
    label_weight=0,
    to_stage="stage1",
    image_shape=(6, 6, 1),
  )
  assert set(scheme.learners) == {"student/conv1", "student/bn1", "hint_adapter"}
  participants, data = drawn(scheme, batch()), batch()
  after = updated(scheme, participants, data)
  for name in ("params", "batch_stats"):
    before, moved = participants["student"][name], after["student"][name]
    assert_all_moved(before["bn1"], moved["bn1"])
    assert_same(before["bn2"], moved["bn2"])
  assert scheme.predict(participants, data.inputs) == {}
  assert scheme.export(participants) == {}


def test_to_stage_with_a_label_weight_or_without_image_shape_is_refused():
  build = functools.partial(methods.offline, STUDENT, {}, [], to_stage="stage1")
  with pytest.raises(
    ConfigError, match=r"^label_weight is 1.0: up to 'stage1' there are no logits"
  ):
    build(image_shape=(6, 6, 1))
  with pytest.raises(ConfigError, match=r"^to_stage is 'stage1': image_shape must be given"):
    build(label_weight=0.0)


def test_a_mean_of_teachers_has_no_features_and_the_error_names_them():
  method = Distillation(
    "at", per_example(losses.attention_transfer, stages=("stage2",)), teacher={"wise": 1, "old": 1}
  )
  scheme = methods.offline(STUDENT, TEACHERS, [method])
  with pytest.raises(ValueError, match="stage2"):
    terms(scheme, drawn(scheme, batch()), batch())


def test_a_tuple_of_teachers_gives_the_loss_the_output_of_each():
  def loss(student, teachers, batch, context):
    assert sorted(teachers) == ["old", "wise"]
    each = (losses.knowledge_distillation(student, t) for t in teachers.values())
    return dict(zip(teachers, each, strict=True))

  scheme = methods.offline(STUDENT, TEACHERS, [Distillation("kd", loss, 0.5, ("wise", "old"))])
  participants = drawn(scheme, batch())
  found, _ = terms(scheme, participants, batch())
  for name in ("wise", "old"):
    alone = Distillation("kd", per_example(losses.knowledge_distillation), 0.5, name)
    expected, _ = terms(methods.offline(STUDENT, TEACHERS, [alone]), participants, batch())
    np.testing.assert_allclose(found[f"kd_{name}"], expected["kd"], rtol=1e-6)


def test_a_loss_reads_the_classifiers_of_all_networks():
  def loss(student, teacher, batch, context):
    logits = context.classifiers["wise"](teacher.features["pooled"])
    earlier = context.classifiers["wise"](teacher.features["stage1"], "stage1")
    own = context.classifiers["student"](student.features["pooled"])
    pairs = ((logits, teacher.logits), (earlier, teacher.logits), (own, student.logits))
    return {str(n): Terms(logit=jnp.abs(a - b).max()) for n, (a, b) in enumerate(pairs)}

  scheme = methods.offline(STUDENT, {"wise": WISE}, [Distillation("same", loss, teacher="wise")])
  found, _ = terms(scheme, drawn(scheme, batch()), batch())
  assert all(float(found[f"same_{n}"]) < 1e-5 for n in range(3))


def test_the_error_names_a_loss_that_does_not_return_terms():
  method = Distillation("mine", lambda student, teacher, batch, context: 3.0, teacher="wise")
  scheme = methods.offline(STUDENT, {"wise": WISE}, [method])
  with pytest.raises(ConfigError, match="'mine': expected Terms, got float"):
    terms(scheme, drawn(scheme, batch()), batch())


def test_a_part_with_the_name_of_another_term_is_refused():
  def parts(student, teacher, batch, context):
    return {"old": Terms(logit=jnp.float32(1))}

  both = [
    Distillation("kd_old", per_example(losses.knowledge_distillation), teacher="wise"),
    Distillation("kd", parts, teacher="wise"),
  ]
  scheme = methods.offline(STUDENT, {"wise": WISE}, both)
  with pytest.raises(ConfigError, match="'kd': there is another term 'kd_old'"):
    terms(scheme, drawn(scheme, batch()), batch())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"to_stage": "stage1", "from_stage": "stage2"}, "to_stage is 'stage1' and from_stage"),
    ({"from_stage": "stage1", "gradients": (("images",), ())}, r"gradients=\('images',\)"),
    ({"to_stage": "stage1", "gradients": (("images",), ())}, r"gradients=\('images',\)"),
  ],
)
def test_stages_and_gradients_that_exclude_each_other_are_refused(options, message):
  stages = {name: stage for name, stage in options.items() if name != "gradients"}
  gradients = options.get("gradients", ((), ()))
  method = Distillation(
    "kd", per_example(losses.knowledge_distillation), teacher="wise", gradients=gradients
  )
  with pytest.raises(ConfigError, match=message):
    methods.offline(
      STUDENT, {"wise": WISE}, [method], label_weight=0.0, image_shape=(6, 6, 1), **stages
    )
