"""Distillation methods: their hyperparameters, the outputs they compare, and their phases.

A method is one file with a `METHOD`, and a line in `registry.py`. The schemes that methods are
built from can be used without the experiments: `offline` (frozen teachers), `mutual`,
`native_ensemble`, `multi_exit`, `born_again`, `simkd`, `fresh_classifier`, `autoencoder`,
`progressive`, `class_wise`,
`collaborative`, `diverse_peers`, `supervised`.
"""

from jaxkd.methods._exits import AdaptiveTemperature, of_exits
from jaxkd.methods.base import Method, PhaseSpec, Setup, Teacher, Term
from jaxkd.methods.born_again import born_again
from jaxkd.methods.cskd import class_wise
from jaxkd.methods.distillation import (
  Distillation,
  PerLabel,
  WholeBatch,
  per_example,
  per_label,
  whole_batch,
)
from jaxkd.methods.dml import mutual
from jaxkd.methods.fresh_classifier import fresh_classifier
from jaxkd.methods.ft import autoencoder
from jaxkd.methods.kdcl import collaborative
from jaxkd.methods.multi_exit import multi_exit
from jaxkd.methods.offline import offline
from jaxkd.methods.okddip import diverse_peers
from jaxkd.methods.one import native_ensemble
from jaxkd.methods.pskd import progressive
from jaxkd.methods.ramps import RAMPS, ramp, warm_up
from jaxkd.methods.registry import (
  METHODS,
  baseline,
  check_classes,
  is_taught,
  method_fields,
  methods,
  phases,
  register,
  section,
)
from jaxkd.methods.simkd import simkd
from jaxkd.methods.supervised import supervised
from jaxkd.tables import Table, TopK

__all__ = [
  "METHODS",
  "RAMPS",
  "AdaptiveTemperature",
  "Distillation",
  "Method",
  "PerLabel",
  "PhaseSpec",
  "Setup",
  "Table",
  "Teacher",
  "Term",
  "TopK",
  "WholeBatch",
  "autoencoder",
  "baseline",
  "born_again",
  "check_classes",
  "class_wise",
  "collaborative",
  "diverse_peers",
  "fresh_classifier",
  "is_taught",
  "method_fields",
  "methods",
  "multi_exit",
  "mutual",
  "native_ensemble",
  "of_exits",
  "offline",
  "per_example",
  "per_label",
  "phases",
  "progressive",
  "ramp",
  "register",
  "section",
  "simkd",
  "supervised",
  "warm_up",
  "whole_batch",
]
