"""All adapters by method: each method's reference cases, computed with jaxkd.

An adapter chooses options by a case's keys and its `source`, never by its number. The package
itself has no table: files of tests/rows import adapters, and the table is made from those files.
"""

from __future__ import annotations

from tests import rows
from tests.golden_adapters.ab import ab
from tests.golden_adapters.at import at
from tests.golden_adapters.byot import byot
from tests.golden_adapters.dml import dml, one
from tests.golden_adapters.fitnets import fitnet, simkd
from tests.golden_adapters.fsp import fsp
from tests.golden_adapters.ft import ft
from tests.golden_adapters.kd import kd
from tests.golden_adapters.multi_exit import multi_exit
from tests.golden_adapters.nst import nst
from tests.golden_adapters.rkd import rkd
from tests.golden_cases import Adapter

ADAPTERS: dict[str, Adapter] = {
  "ab": ab,
  "at": at,
  "byot": byot,
  "dml": dml,
  "fitnet": fitnet,
  "fsp": fsp,
  "ft": ft,
  "kd": kd,
  "multi_exit": multi_exit,
  "nst": nst,
  "one": one,
  "rkd": rkd,
  "simkd": simkd,
  **rows.merged("GOLDEN"),
}
