"""A method of one's own with an adapter over all stages: deep features refine shallow ones.

    python experiments/train.py --config experiments/examples/fusion_method.py:fusion --workdir X

"kd+fusion" adds it to another method. After ReviewKD (Chen et al., Distilling Knowledge via
Knowledge Review, CVPR 2021): its fusion from deep to shallow, and two levels of its pyramid.
"""

import pathlib
import runpy
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.fields import integer, number
from jaxkd.losses import hint_mse
from jaxkd.methods import Distillation, Method, Term, per_example, register
from jaxkd.types import Output, Terms


class Fusion(nn.Module):
  """The student's maps of all stages, fused from deep to shallow, at the teacher's shapes.

  Attributes:
    shapes: stage of the teacher -> its (H, W, C), shallow to deep.
    sources: the student's stages, shallow to deep, one for each of the teacher's.
    width: channels of the fused maps.
    axis_name: device axis of the batch statistics.
    dtype: of the computation.
  """

  shapes: Mapping[str, tuple[int, int, int]]
  sources: tuple[str, ...]
  width: int
  axis_name: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, inputs, train):
    """(student, teacher, batch) -> (student with the teacher's stages, teacher)."""
    student, teacher, _ = inputs
    features, deeper = {}, None
    for source, target in reversed(list(zip(self.sources, self.shapes, strict=True))):
      height, width, channels = self.shapes[target]
      x = student.features[source]
      x = self._normalized(nn.Conv(self.width, (1, 1), use_bias=False, dtype=self.dtype)(x), train)
      if deeper is not None:
        deeper = jax.image.resize(deeper, x.shape, "nearest")
        both = jnp.concatenate([x, deeper], axis=-1)
        gates = nn.sigmoid(nn.Conv(2, (1, 1), dtype=self.dtype)(both))
        x = x * gates[..., :1] + deeper * gates[..., 1:]
      deeper = x
      x = jax.image.resize(x, (len(x), height, width, self.width), "linear")
      x = nn.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype)(x)
      features[target] = self._normalized(x, train)
    return Output(features=features), teacher

  def _normalized(self, x, train):
    options = {"axis_name": self.axis_name, "dtype": self.dtype}
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, **options)(x)


def review(student, teacher, *, where=None):
  """The sum over stages of the mean squared differences of maps, and half that of their means."""
  total = jnp.float32(0)
  for stage, ours in student.features.items():
    theirs = teacher.features[stage]
    total += hint_mse(ours, theirs, where=where)
    total += 0.5 * hint_mse(ours.mean((1, 2)), theirs.mean((1, 2)), where=where)
  return Terms(feature=total)


def _distillations(setup):
  ours, theirs = ({n: s for n, s in shapes.items() if len(s) == 4} for shapes in setup.all_shapes())
  if len(ours) != len(theirs):
    raise ConfigError(
      f"method 'fusion' needs as many stages with maps of the student as of the "
      f"{setup.teacher_name}, got {', '.join(ours)} and {', '.join(theirs)}"
    )
  shapes = {name: shape[1:] for name, shape in theirs.items()}
  fusion = Fusion(shapes, tuple(ours), setup.hyperparameters.width, **setup.options)
  weight = setup.share * setup.hyperparameters.weight
  name, teacher = setup.named("fusion"), setup.teacher_name
  term = Distillation(name, per_example(review), weight, teacher, adapter=fusion)
  return [Term(term, setup.compared(list(zip(ours, theirs, strict=True))))]


METHOD = Method(
  "maps of all stages, fused from deep to shallow (after Chen et al., 2021)",
  {"width": integer(16, minimum=1), "weight": number(1.0)},
  _distillations,
  source="after Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021",
  needs="maps",
  same_classes="",
)
register("fusion", METHOD)


def get_config(method="fusion"):
  """Return the config of configs/digits.py for "fusion", or for a sum such as "kd+fusion"."""
  digits = pathlib.Path(__file__).parents[2] / "configs/digits.py"
  return runpy.run_path(str(digits))["get_config"](method)
