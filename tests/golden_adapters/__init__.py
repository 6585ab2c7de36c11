"""Adapters: each method's reference cases, computed with jaxkd.

An adapter chooses options by a case's keys and its `source`, never by its number.
"""

from __future__ import annotations

from tests.golden_adapters.ab import activation_boundaries
from tests.golden_adapters.at import attention
from tests.golden_adapters.byot import byot
from tests.golden_adapters.dml import dml, one
from tests.golden_adapters.fitnets import fitnet, simkd
from tests.golden_adapters.fsp import flow
from tests.golden_adapters.ft import factor_transfer
from tests.golden_adapters.kd import kd
from tests.golden_adapters.multi_exit import multi_exit
from tests.golden_adapters.nst import selectivity
from tests.golden_adapters.rkd import rkd
from tests.golden_cases import Adapter

ADAPTERS: dict[str, Adapter] = {
  "ab": activation_boundaries,
  "at": attention,
  "byot": byot,
  "dml": dml,
  "fitnet": fitnet,
  "fsp": flow,
  "ft": factor_transfer,
  "kd": kd,
  "multi_exit": multi_exit,
  "nst": selectivity,
  "one": one,
  "rkd": rkd,
  "simkd": simkd,
}
