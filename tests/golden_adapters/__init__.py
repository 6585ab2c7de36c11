"""How each method of the reference files is said in jaxkd.

An adapter is led by the keys a case has and by its `source`, never by its number.
"""

from __future__ import annotations

from tests.golden_adapters.attention import attention
from tests.golden_adapters.boundaries import activation_boundaries
from tests.golden_adapters.exits import byot, multi_exit
from tests.golden_adapters.factors import factor_transfer
from tests.golden_adapters.flow import flow
from tests.golden_adapters.hints import fitnet, simkd
from tests.golden_adapters.logits import kd
from tests.golden_adapters.peers import dml, one
from tests.golden_adapters.relations import rkd
from tests.golden_adapters.selectivity import selectivity
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
