"""Options with which XLA's CPU backend compiles fast, at the cost of slower programs.

They are for programs that run only a few times, such as those of tests.
"""

from __future__ import annotations

import os
from typing import Any

import jax

# The older code generator takes a third of the time. Later versions of XLA do not have it, and end
# the process where a flag names what they do not have.
HAS_OLDER_EMITTERS = jax.__version_info__ < (0, 11)

# For `jax.jit(..., compiler_options=FAST_OPTIONS)`.
FAST_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0}
if HAS_OLDER_EMITTERS:
  FAST_OPTIONS["xla_cpu_use_fusion_emitters"] = False
  # One LLVM module for a program: small programs gain nothing by several, and each has its price.
  FAST_OPTIONS["xla_cpu_parallel_codegen_split_count"] = 1


def fast_flags() -> str:
  """The same options as a value of the environment variable XLA_FLAGS.

  >>> fast_flags().split()[0]
  '--xla_backend_optimization_level=0'
  """
  return " ".join(f"--{name}={str(value).lower()}" for name, value in FAST_OPTIONS.items())


def compile_fast() -> None:
  """Make XLA's CPU backend compile fast in this process, and in those that it starts.

  Call it before jax first uses a device.
  """
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {fast_flags()}".strip()
