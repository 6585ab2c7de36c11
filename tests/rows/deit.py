"""Rows of DeiT's distillation token."""

from __future__ import annotations

from jaxkd import losses
from jaxkd.types import Output
from tests.golden_adapters.token import deit
from tests.rows._counted import LOGITS, Case, kernel
from tests.rows._mutation import Mutation
from tests.rows._networked import Case as Networked
from tests.rows._subject import B, Subject


def _of(**options):
  def apply(s, t, **where):
    student = Output(features={"logits_dist": s})
    return losses.distillation_token(student, Output(logits=t), **options, **where).total

  return apply


def _networked(**options):
  loss = _of(**options)
  return Networked(lambda s, t, y: loss(s.logits, t.logits), of_logits=True)


SUBJECTS = {
  "distillation_token": Subject(_of(), (B, 4), (B, 4)),
  "distillation_token_soft": Subject(
    _of(kind="soft", temperature=3.0, form="code"), (B, 4), (B, 4), long=True
  ),
}

COUNTED = [
  kernel("hard_target_cross_entropy", *LOGITS),
  Case("distillation_token", _of(kind="soft"), *LOGITS),
]

CALLS = {
  "distillation_token": lambda s, t: losses.distillation_token(
    Output(features={"logits_dist": s.logits}) if isinstance(s, Output) else s, t
  )
}

BEHIND_A_NETWORK = {
  "distillation_token": _networked(),
  "distillation_token soft": _networked(kind="soft", temperature=3.0),
}

MUTATIONS = [
  Mutation(
    "DeiT's code form not divided by the classes",
    "deit.py",
    'soft / theirs.shape[-1] if form == "code" else soft',
    "soft",
    "test_deit.py",
    "deit",
  ),
  Mutation(
    "DeiT's hard target from the smallest logit",
    "deit.py",
    "jnp.argmax(teacher, axis=-1)",
    "jnp.argmin(teacher, axis=-1)",
    "test_deit.py",
    "deit",
  ),
  Mutation(
    "DeiT's temperature ignored",
    "deit.py",
    "soft_target_kl(ours, theirs, temperature=temperature, where=where)",
    "soft_target_kl(ours, theirs, temperature=1.0, where=where)",
    "test_deit.py",
    "deit",
  ),
]

GOLDEN = {"deit": deit}

_REFUSAL = "method 'deit' needs a student with a distillation head"
REFUSED = {("deit", "resnets"): _REFUSAL, ("deit", "vit-vgg"): _REFUSAL}

RECORDED = (
  "deit/student.model='deit_mini_p4'",
  "deit/student.model='deit_mini_p4'/kind='soft'/form='code'/temperature=3.0",
)
