"""The folder of the compilation cache, half-written programs, and the compile stopwatch."""

import subprocess
import sys

import pytest

from jaxkd.runtime.compilation import Stopwatch

SCRIPT = """
import jax
from jaxkd.runtime import compilation
print(compilation.enable_compilation_cache(), jax.config.jax_compilation_cache_dir)
"""


def cache_folder(**environment):
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    env={"PATH": "", "JAX_PLATFORMS": "cpu", **{k: str(v) for k, v in environment.items()}},
    text=True,
    capture_output=True,
    check=True,
  )
  return done.stdout.split()


def test_programs_are_stored_in_the_users_cache_folder(tmp_path):
  kept = tmp_path / "jaxkd" / "programs"
  assert cache_folder(XDG_CACHE_HOME=tmp_path, HOME="/nowhere") == [str(kept), str(kept)]
  assert kept.is_dir()
  kept = tmp_path / "home" / ".cache" / "jaxkd" / "programs"
  assert cache_folder(HOME=tmp_path / "home") == [str(kept), str(kept)]


def test_a_folder_from_the_environment_is_kept(tmp_path):
  own = str(tmp_path / "own")
  folders = cache_folder(JAX_COMPILATION_CACHE_DIR=own, XDG_CACHE_HOME=tmp_path / "cache")
  assert folders == [own, own]
  assert not (tmp_path / "cache").exists()


def test_without_a_writable_folder_no_programs_are_stored(tmp_path):
  file = tmp_path / "file"
  file.touch()
  assert cache_folder(XDG_CACHE_HOME=file) == ["None", "None"]


COMPILE = """
import warnings
import jax
from jaxkd.runtime import compilation
warnings.simplefilter("error")
compilation.enable_compilation_cache()
jax.jit(lambda x: x + 1)(1.0)
"""


@pytest.mark.long
def test_half_written_programs_are_compiled_again(tmp_path):
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
    pytest.param([(1, 2), (4, 6)], 3, id="separate"),
    pytest.param([(2, 3), (1, 5), (4, 6)], 5, id="nested and overlapping"),
  ],
)
def test_overlapping_compile_spans_count_once(spans, seconds):
  stopwatch = Stopwatch()
  for start, end in spans:
    stopwatch._record("/jax/core/compile/backend_compile_duration", start, end)
  stopwatch._record("/jax/something/else", 0, 100)
  assert stopwatch.seconds == seconds
