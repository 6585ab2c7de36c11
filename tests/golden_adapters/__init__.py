"""How each method of the reference files is said in jaxkd.

An adapter is led by the keys a case has and by its `source`, never by its number.
"""

from __future__ import annotations

from tests.golden_adapters.attention import attention
from tests.golden_adapters.hints import fitnet, simkd
from tests.golden_adapters.logits import kd
from tests.golden_cases import Adapter

ADAPTERS: dict[str, Adapter] = {
  "at": attention,
  "fitnet": fitnet,
  "kd": kd,
  "simkd": simkd,
}
