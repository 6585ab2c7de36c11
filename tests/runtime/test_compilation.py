"""Programs are kept where the user said, or where caches belong; compiling is timed once."""

import subprocess
import sys

import pytest

from jaxkd.runtime.compilation import Stopwatch

ASK = """
import jax
from jaxkd.runtime import compilation
print(compilation.enable_compilation_cache(), jax.config.jax_compilation_cache_dir)
"""


def asked(**environment):
  done = subprocess.run(
    [sys.executable, "-c", ASK],
    env={"PATH": "", "JAX_PLATFORMS": "cpu", **{k: str(v) for k, v in environment.items()}},
    text=True,
    capture_output=True,
    check=True,
  )
  return done.stdout.split()


def test_programs_are_kept_among_the_users_caches(tmp_path):
  kept = tmp_path / "jaxkd" / "programs"
  assert asked(XDG_CACHE_HOME=tmp_path, HOME="/nowhere") == [str(kept), str(kept)]
  assert kept.is_dir()
  kept = tmp_path / "home" / ".cache" / "jaxkd" / "programs"
  assert asked(HOME=tmp_path / "home") == [str(kept), str(kept)]


def test_a_folder_that_jax_was_told_of_stays(tmp_path):
  own = str(tmp_path / "own")
  assert asked(JAX_COMPILATION_CACHE_DIR=own, XDG_CACHE_HOME=tmp_path / "cache") == [own, own]
  assert not (tmp_path / "cache").exists()


def test_where_no_folder_can_be_made_nothing_is_kept(tmp_path):
  file = tmp_path / "file"
  file.touch()
  assert asked(XDG_CACHE_HOME=file) == ["None", "None"]


COMPILE = """
import warnings
import jax
from jaxkd.runtime import compilation
warnings.simplefilter("error")
compilation.enable_compilation_cache()
jax.jit(lambda x: x + 1)(1.0)
"""


@pytest.mark.long
def test_programs_that_a_kill_left_half_written_are_made_anew(tmp_path):
  environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
  environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  kept = tmp_path / "jaxkd" / "programs"

  def compile_one():
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True)
    return {path.name: path.stat().st_size for path in kept.glob("*-cache")}

  whole = compile_one()
  assert whole
  for name, size in whole.items():
    (kept / name).write_bytes((kept / name).read_bytes()[: size // 2])
    (kept / f"{name.removesuffix('-cache')}-atime").unlink()
  assert compile_one() == whole


@pytest.mark.parametrize(
  ("spans", "seconds"),
  [
    pytest.param([(1, 2), (4, 6)], 3, id="apart"),
    pytest.param([(2, 3), (1, 5), (4, 6)], 5, id="within and across each other"),
  ],
)
def test_what_is_compiled_at_the_same_time_counts_once(spans, seconds):
  stopwatch = Stopwatch()
  for start, end in spans:
    stopwatch._record("/jax/core/compile/backend_compile_duration", start, end)
  stopwatch._record("/jax/something/else", 0, 100)
  assert stopwatch.seconds == seconds
