"""A frozen participant has trained weights, or is drawn at random on request."""

import jax
import optax
import pytest

from jaxkd import losses, methods
from jaxkd.errors import ConfigError
from jaxkd.methods import Distillation, per_example
from jaxkd.train import Silent, create_state, train_phase
from jaxkd.train.state import FirstState
from tests.models.drawn import drawn
from tests.tiny import TinyNet, batch, phase

KD = Distillation("kd", per_example(losses.knowledge_distillation))
MISSING = (
  r"^participant 'teacher' does not learn and has no trained weights: .*untrained=\('teacher'"
)
SCHEME = methods.offline(TinyNet(), {"teacher": TinyNet(width=6)}, [KD])


def arguments(scheme=SCHEME):
  return scheme, optax.sgd(0.1), jax.random.key(0), batch()


def trained():
  return drawn(TinyNet(width=6), batch().inputs)


@pytest.mark.parametrize(
  "scheme",
  [
    SCHEME,
    methods.fresh_classifier(TinyNet(), TinyNet(), image_shape=(6, 6, 1), kd_weight=1.0),
    methods.simkd(
      TinyNet(),
      TinyNet(),
      TinyNet(),
      image_shape=(6, 6, 1),
      stages=("stage2", "stage2"),
    )._replace(init=SCHEME.init, learners=("student",)),
  ],
  ids=["offline", "sequential", "simkd"],
)
def test_a_forgotten_teacher_is_named(scheme):
  with pytest.raises(ConfigError, match=MISSING):
    create_state(*arguments(scheme))
  with pytest.raises(ConfigError, match=MISSING):
    jax.eval_shape(
      lambda key: create_state(scheme, optax.sgd(0.1), key, batch()), jax.random.key(0)
    )


def test_a_forgotten_generation_is_named():
  teaching = Distillation("kd", per_example(losses.knowledge_distillation), teacher="generation_1")
  scheme = methods.born_again(TinyNet(), [teaching], generation=2)
  given = {"generation_1": drawn(TinyNet(), batch().inputs)}
  with pytest.raises(ConfigError, match=r"^participant 'generation_0' does not learn"):
    create_state(*arguments(scheme), given=given)


def test_a_forgotten_teacher_ends_a_phase_before_it_starts(tmp_path):
  options = {"directory": tmp_path, "devices": jax.local_devices()[:1], "reporter": Silent()}
  with pytest.raises(ConfigError, match=MISSING):
    train_phase(phase(scheme=SCHEME), **options)
  with pytest.raises(ConfigError, match=MISSING):
    train_phase(phase(scheme=SCHEME, epochs=0), **options)
  assert not list(tmp_path.iterdir())


def test_a_phase_starts_from_the_variables_that_it_gives(tmp_path):
  short = phase(scheme=SCHEME, epochs=1, given={"teacher": trained()}, reported="")
  done = train_phase(short, directory=tmp_path, devices=jax.local_devices()[:1], reporter=Silent())
  jax.tree.map(
    lambda one, other: (one == other).all() or pytest.fail("another teacher"),
    done.participants["teacher"],
    jax.device_get(trained()),
  )


def test_an_untrained_teacher_is_drawn_on_request():
  one = create_state(*arguments(), untrained=("teacher",))
  other = create_state(*arguments(), given={"teacher": one.participants["teacher"]})
  jax.tree.map(lambda a, b: pytest.fail("differs") if (a != b).any() else None, one, other)
  assert FirstState(SCHEME, optax.sgd(0.1), batch(), untrained=["teacher"]).shapes.step.shape == ()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"untrained": ("techer",)}, r"^unknown participant in untrained 'techer': did you mean"),
    ({"untrained": "teacher"}, r"^untrained='teacher': expected a sequence of names"),
    (
      {"untrained": ("teacher",), "given": {"teacher": trained()}},
      r"^untrained=\('teacher',\): 'teacher' is given",
    ),
    ({"given": {"teacher": {}}}, r"^the weights given for 'teacher' are of another architecture"),
  ],
)
def test_a_wrong_name_is_an_error_of_one_line(options, message):
  with pytest.raises(ConfigError, match=message):
    create_state(*arguments(), **options)


def test_participants_without_variables_or_with_learning_parts_need_no_given_weights():
  state = create_state(*arguments(methods.supervised(TinyNet())))
  assert set(state.participants) == {"student"}
  part = methods.fresh_classifier(TinyNet(), image_shape=(6, 6, 1))
  create_state(*arguments(part))

  def init(rng, data):
    return {**SCHEME.init(rng, data), "teacher": {}}

  create_state(*arguments(SCHEME._replace(init=init)))
