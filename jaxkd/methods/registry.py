"""The registry of methods by name.

A method is one file of this package with a `METHOD`. Methods with `distillations` are added by
joining their names with "+" ("kd+at"). `register` adds a method from any other file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.errors import ConfigError, unknown_name
from jaxkd.fields import Field, Fields, text
from jaxkd.methods._dense import has_dense_logits
from jaxkd.methods._exits import exit_wise
from jaxkd.methods.ab import METHOD as AB
from jaxkd.methods.at import METHOD as AT
from jaxkd.methods.base import BASELINE, Method, PhaseSpec, Setup, Teacher
from jaxkd.methods.born_again import METHOD as BORN_AGAIN
from jaxkd.methods.byot import METHOD as BYOT
from jaxkd.methods.catkd import METHOD as CATKD
from jaxkd.methods.cc import METHOD as CC
from jaxkd.methods.crd import METHOD as CRD
from jaxkd.methods.cskd import METHOD as CSKD
from jaxkd.methods.ctkd import METHOD as CTKD
from jaxkd.methods.cwd import METHOD as CWD
from jaxkd.methods.deit import METHOD as DEIT
from jaxkd.methods.dist import METHOD as DIST
from jaxkd.methods.dkd import METHOD as DKD
from jaxkd.methods.dml import METHOD as DML
from jaxkd.methods.fitnets import METHOD as FITNETS
from jaxkd.methods.fsp import METHOD as FSP
from jaxkd.methods.ft import METHOD as FT
from jaxkd.methods.gradient_at import METHOD as GRADIENT_AT
from jaxkd.methods.ickd import METHOD as ICKD
from jaxkd.methods.kd import METHOD as KD
from jaxkd.methods.kdcl import METHOD as KDCL
from jaxkd.methods.kdsvd import METHOD as KDSVD
from jaxkd.methods.mgd import METHOD as MGD
from jaxkd.methods.mlkd import METHOD as MLKD
from jaxkd.methods.multi_exit import METHOD as MULTI_EXIT
from jaxkd.methods.netaug import METHOD as NETAUG
from jaxkd.methods.nkd import METHOD as NKD
from jaxkd.methods.nst import METHOD as NST
from jaxkd.methods.objective import objective_fields, phases_of
from jaxkd.methods.ofa import METHOD as OFA
from jaxkd.methods.ofd import METHOD as OFD
from jaxkd.methods.okddip import METHOD as OKDDIP
from jaxkd.methods.one import METHOD as ONE
from jaxkd.methods.pkt import METHOD as PKT
from jaxkd.methods.pskd import METHOD as PSKD
from jaxkd.methods.reviewkd import METHOD as REVIEWKD
from jaxkd.methods.rkd import METHOD as RKD
from jaxkd.methods.sdd import METHOD as SDD
from jaxkd.methods.semckd import METHOD as SEMCKD
from jaxkd.methods.simkd import METHOD as SIMKD
from jaxkd.methods.skd import METHOD as SKD
from jaxkd.methods.sp import METHOD as SP
from jaxkd.methods.srrl import METHOD as SRRL
from jaxkd.methods.supervised import ALONE, TEACHER, supervised
from jaxkd.methods.tfkd import METHOD as TFKD
from jaxkd.methods.ttm import METHOD as TTM
from jaxkd.methods.uskd import METHOD as USKD
from jaxkd.methods.vid import METHOD as VID
from jaxkd.methods.vitkd import METHOD as VITKD
from jaxkd.methods.vkd import METHOD as VKD
from jaxkd.methods.wttm import METHOD as WTTM
from jaxkd.types import Output

_BUILT_IN: Mapping[str, Method] = {
  "teacher": TEACHER,
  "alone": ALONE,
  "kd": KD,
  "dkd": DKD,
  "sdd": SDD,
  "dist": DIST,
  "nkd": NKD,
  "ttm": TTM,
  "wttm": WTTM,
  "ctkd": CTKD,
  "fitnets": FITNETS,
  "at": AT,
  "gradient_at": GRADIENT_AT,
  "nst": NST,
  "fsp": FSP,
  "rkd": RKD,
  "sp": SP,
  "pkt": PKT,
  "cwd": CWD,
  "skd": SKD,
  "cc": CC,
  "vid": VID,
  "ickd": ICKD,
  "srrl": SRRL,
  "kdsvd": KDSVD,
  "mgd": MGD,
  "catkd": CATKD,
  "deit": DEIT,
  "vitkd": VITKD,
  "vkd": VKD,
  "ft": FT,
  "ab": AB,
  "reviewkd": REVIEWKD,
  "crd": CRD,
  "ofd": OFD,
  "semckd": SEMCKD,
  "mlkd": MLKD,
  "ofa": OFA,
  "simkd": SIMKD,
  "born_again": BORN_AGAIN,
  "tfkd": TFKD,
  "uskd": USKD,
  "dml": DML,
  "one": ONE,
  "byot": BYOT,
  "multi_exit": MULTI_EXIT,
  "pskd": PSKD,
  "netaug": NETAUG,
  "cskd": CSKD,
  "kdcl": KDCL,
  "okddip": OKDDIP,
}

# Every method by name; `register` adds to it.
METHODS: dict[str, Method] = dict(_BUILT_IN)


def register(name: str, method: Method) -> None:
  """Add a method under a name, for configs and `jaxkd list methods`.

  A name may be registered twice, as when a config file is loaded twice: the later method is used.

  Args:
    name: letters, digits and "_"; the value of `method.name` in a config.
    method: the method.

  Raises:
    ConfigError: for an invalid name, or the name of a method of this package; for a
      hyperparameter that is not a `Field`.
  """
  if not isinstance(name, str) or not name.isidentifier():
    raise ConfigError(f"register: name={name!r}: expected letters, digits and '_'")
  if name in _BUILT_IN:
    raise ConfigError(f"register: name={name!r}: there is a method of that name in jaxkd.methods")
  for field, value in method.fields.items():
    if not isinstance(value, Field):
      raise ConfigError(
        f"register: {name!r}: fields[{field!r}]={value!r}: expected a Field of jaxkd.fields"
      )
  METHODS[name] = method


def methods(name: str) -> dict[str, Method]:
  """Return the method of a name, or the methods of a sum such as "kd+at".

  Raises:
    ConfigError: for an unknown method, naming similar names; for one that cannot be added.
  """
  names = name.split("+") if isinstance(name, str) else [name]
  found: dict[str, Method] = {}
  for one_name in names:
    if not isinstance(one_name, str) or one_name not in METHODS:
      raise unknown_name("method", one_name, METHODS)
    if one_name in found:
      raise ConfigError(f"method.name={name!r}: {one_name!r} is there twice")
    found[one_name] = METHODS[one_name]
    if len(names) > 1 and not METHODS[one_name].distillations:
      sums = ", ".join(n for n, method in METHODS.items() if method.distillations)
      raise ConfigError(f"method.name={name!r}: {one_name!r} cannot be added; these can: {sums}")
  return found


def method_fields(name: str) -> Fields:
  """Return the fields of the "method" section of a config.

  It holds the fields of one method; a sum has a section for each of its methods.

  Raises:
    ConfigError: as `methods`.
  """
  found = methods(name)
  own: dict[str, object] = {"name": text(name)}
  if len(found) == 1:
    own |= found[name].fields
  else:
    own |= {part: method.fields for part, method in found.items()}
  if all(method.distils for method in found.values()):
    own |= objective_fields(found)
  return own


def section(settings: Any, method: str) -> Any:
  """Return the part of a config with a method's fields; None if the config has another method.

  >>> from jaxkd.experiment.config import base_config
  >>> section(base_config("kd+at"), "at").power
  2.0
  """
  own = settings.method
  if own.name == method:
    return own
  return own[method] if method in own.name.split("+") else None


def is_taught(name: str) -> bool:
  """Check whether students of a method, or of a sum, learn from a teacher trained before.

  >>> is_taught("kd+at"), is_taught("dml"), is_taught("alone"), is_taught("teacher")
  (True, False, False, False)
  """
  return all(method.distils and not method.without_teacher for method in methods(name).values())


def baseline(setup: Setup) -> PhaseSpec:
  """Return the phase of a student that learns from labels alone, at every exit it has."""
  name = setup.hyperparameters.name
  special = METHODS[name].baseline if name in METHODS else None
  if special is not None:
    return special(setup)
  if isinstance(setup.student_output, tuple):
    return exit_wise(setup, setup.student)
  return PhaseSpec(BASELINE, supervised(setup.student), role="baseline")


def phases(setup: Setup) -> list[PhaseSpec]:
  """Return the phases of the method `setup.hyperparameters.name`, in order.

  Raises:
    ConfigError: naming the stage, adapter or field that does not fit.
  """
  found = methods(setup.hyperparameters.name)
  _check_needs(found, setup)
  return phases_of(found, setup)


def check_classes(settings: Any, teachers: Mapping[str, Teacher], num_classes: int) -> None:
  """Raise a ConfigError if a method compares logits and a teacher predicts other classes.

  Args:
    settings: a config.
    teachers: participant name -> Teacher.
    num_classes: number of classes of the student.
  """
  for name in methods(settings.method.name):
    own = section(settings, name)
    why = METHODS[name].why_same_classes(own)
    for teacher in teachers.values():
      if why and teacher.num_classes != num_classes:
        able = [n for n, m in METHODS.items() if m.distillations and not m.same_classes]
        raise ConfigError(
          f"{teacher.field} predicts {teacher.num_classes} classes, the student {num_classes} "
          f"(data set {settings.data.name!r}), and method {name!r} {why}; these compare no logits: "
          f"{', '.join(able)}"
        )


def _check_needs(found: Mapping[str, Method], setup: Setup) -> None:
  """Raise a ConfigError if a method compares arrays that these networks do not return."""
  owners = {"student": setup.student_output, **{n: t.output for n, t in setup.teachers.items()}}
  for name, method in found.items():
    if method.only and type(setup.student) not in method.only:
      raise ConfigError(
        f"method {name!r} trains a {' or a '.join(x.__name__ for x in method.only)} of images, "
        f"and the student is a {type(setup.student).__name__}"
      )
    for owner, output in owners.items():
      if not isinstance(output, Output) or _gives(method.needs, output):
        continue
      able = [n for n, m in METHODS.items() if m.distils and _gives(m.needs, output)]
      has = ", ".join(f"{s} {x.shape[1:]}" for s, x in sorted(output.features.items()))
      raise ConfigError(
        f"method {name!r} compares {_NEEDS[method.needs]}, and the {owner} has none: it gives "
        f"{has or 'logits alone'}. These methods can do with that: {', '.join(able)}"
      )


_NEEDS = {
  "features": "features",
  "maps": "feature maps (B, H, W, C)",
  "dense": "feature maps (B, H, W, C), or logits of every pixel",
  "preactivations": "preactivations",
  "stages": "features of stages",
}


def _gives(needs: str, output: Output) -> bool:
  if needs == "maps":
    return any(x.ndim == 4 for x in output.features.values())
  if needs == "dense":
    return has_dense_logits(output) or _gives("maps", output)
  if needs == "preactivations":
    return bool(output.preactivations)
  return needs == "logits" or bool(output.features)
