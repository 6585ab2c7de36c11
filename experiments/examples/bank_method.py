"""A method of one's own with a memory bank: contrast with the teacher's features of earlier steps.

    python experiments/train.py --config experiments/examples/bank_method.py:bank --workdir runs/x

"bank+kd" adds it to another method. After CRD (Tian et al., Contrastive Representation
Distillation, ICLR 2020), with the InfoNCE loss and without a projection of the teacher.
"""

import pathlib
import runpy

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.adapters import all_examples, write_rows
from jaxkd.fields import integer, number
from jaxkd.methods import Distillation, Method, Term, per_example, register
from jaxkd.types import MEMORY, Output, Terms


class Bank(nn.Module):
  """The student's pooled features at the teacher's width, and a bank of teacher features.

  Attributes:
    width: the teacher's.
    rows: of the bank; the example of index i has row i modulo `rows`.
    device_axis: set by the training step; the bank is written from the examples of all devices.
  """

  width: int
  rows: int
  device_axis: str | None = None

  @nn.compact
  def __call__(self, inputs, train):
    """(student, teacher, batch) -> both with unit vectors "pooled"; the teacher with "bank"."""
    student, teacher, batch = inputs
    ours = _unit(nn.Dense(self.width)(student.features["pooled"]))
    theirs = _unit(teacher.features["pooled"])
    bank = self.variable(MEMORY, "features", jnp.zeros, (self.rows, self.width))
    written = self.variable(MEMORY, "written", jnp.zeros, (self.rows,), bool)
    row = batch.indices % self.rows
    contrasts = written.value[None, :] & (jnp.arange(self.rows)[None, :] != row[:, None])
    earlier = {"pooled": theirs, "bank": bank.value, "contrasts": contrasts}
    if train:
      axis = self.device_axis
      mask = None if batch.mask is None else all_examples(batch.mask, axis)
      rows, values = all_examples(row, axis), all_examples(theirs, axis)
      bank.value = write_rows(bank.value, rows, values, mask)
      written.value = write_rows(written.value, rows, jnp.ones(len(rows), bool), mask)
    return Output(features={"pooled": ours}), Output(features=earlier)


def contrast(student, teacher, *, temperature, where=None):
  """The mean over examples of -log softmax of the own teacher feature among the bank's."""
  ours, theirs = student.features["pooled"], teacher.features["pooled"]
  own = jnp.sum(ours * theirs, axis=1, keepdims=True) / temperature
  others = ours @ teacher.features["bank"].T / temperature
  others = jnp.where(teacher.features["contrasts"], others, -jnp.inf)
  values = jax.nn.logsumexp(jnp.concatenate([own, others], axis=1), axis=1) - own[:, 0]
  counted = jnp.ones(len(values), bool) if where is None else where != 0
  return Terms(feature=jnp.where(counted, values, 0).sum() / jnp.maximum(counted.sum(), 1))


def _unit(x):
  x = x.astype(jnp.float32)
  return x / jnp.sqrt(jnp.sum(x * x, axis=1, keepdims=True) + 1e-12)


def _distillations(setup):
  own = setup.hyperparameters
  _, theirs = setup.shapes("pooled")
  loss = per_example(contrast, temperature=own.temperature)
  weight = setup.share * own.weight
  bank = Bank(theirs[-1], own.rows)
  term = Distillation(setup.named("bank"), loss, weight, setup.teacher_name, adapter=bank)
  return [Term(term, setup.compared([("pooled", "pooled")]))]


METHOD = Method(
  "contrast with a bank of teacher features (after Tian et al., 2020)",
  {
    "temperature": number(0.1, exclusive=True),
    "rows": integer(1437, minimum=1),  # the training images of the digits
    "weight": number(0.5),
  },
  _distillations,
  source="after Tian et al., Contrastive Representation Distillation, ICLR 2020",
  needs="features",
  same_classes="",
)
register("bank", METHOD)


def get_config(method="bank"):
  """Return the config of configs/digits.py for "bank", or for a sum such as "bank+kd"."""
  digits = pathlib.Path(__file__).parents[2] / "configs/digits.py"
  return runpy.run_path(str(digits))["get_config"](method)
