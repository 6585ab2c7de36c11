"""Export a trained network as one file that runs with jax, and its weights under readable names.

    jaxkd export --bundle runs/digits/bundles/distilled/student --output student/

Writes function.stablehlo, weights.safetensors and README.txt (input, output, how to load it) to the
output directory, and prints README.txt. A run's directory in place of a bundle exports every
predictor of every stage.

    jaxkd export --bundle runs/digits/bundles/distilled/student --output onnx/ --format onnx --int8

writes model.onnx, and model_int8.onnx whose weights and activations have 8 bits, with README.txt.
"""

import functools
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxkd.errors import needed_by

with needed_by("jaxkd export"):
  import jax
  from absl import flags, logging
  from jax import export
  from rich.console import Console

  from jaxkd import commands, report
  from jaxkd.errors import ConfigError, unknown_name
  from jaxkd.export import bundles, scores, stablehlo
  from jaxkd.shapes import named_leaves

FLAGS = flags.FlagValues()
FORMATS = ("stablehlo", "onnx")

_BUNDLE = flags.DEFINE_string(
  "bundle",
  None,
  "A predictor's bundle, or a run's work directory.",
  required=True,
  flag_values=FLAGS,
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "The directory to write to; new, or an older export.",
  required=True,
  flag_values=FLAGS,
)
_PLATFORMS = flags.DEFINE_list(
  "platforms",
  ["cpu", "cuda", "tpu"],
  f"Where it is to run: {', '.join(stablehlo.PLATFORMS)}.",
  flag_values=FLAGS,
)
_BATCH = flags.DEFINE_integer(
  "batch_size", None, "Images at a time; by default any number.", flag_values=FLAGS
)
_ALLOW = flags.DEFINE_list(
  "allow_import", [], "Packages whose code the bundle may import, such as mypkg.", flag_values=FLAGS
)

_FORMAT = flags.DEFINE_string(
  "format", "stablehlo", f"What to write: {' or '.join(FORMATS)}.", flag_values=FLAGS
)
_INT8 = flags.DEFINE_bool(
  "int8", False, "With --format onnx: also write a model quantised to 8 bits.", flag_values=FLAGS
)
_DATA = flags.DEFINE_string(
  "data", None, "With --int8: data set; by default the one of the bundle.", flag_values=FLAGS
)
_DIRECTORY = flags.DEFINE_string(
  "directory", None, "With --int8: where TFDS keeps the data.", flag_values=FLAGS
)
_CALIBRATION = flags.DEFINE_integer(
  "calibration", 256, "With --int8: training images that set the scales.", flag_values=FLAGS
)

FUNCTION, WEIGHTS, README = "function.stablehlo", "weights.safetensors", "README.txt"


def main(argv: list[str]) -> None:
  """Export the bundles that the flags name."""
  if len(argv) > 1:
    raise ConfigError(f"unexpected argument {argv[1]!r}: every setting is a --flag")
  logging.set_verbosity(logging.WARNING)
  found = scores.find_bundles(pathlib.Path(_BUNDLE.value))
  outputs = {name: pathlib.Path(_OUTPUT.value) / name for name in found}
  # All output directories are checked before any is written.
  write_one, check = _format(_FORMAT.value)
  for output in outputs.values():
    check(output)
  console = Console()
  for name, bundle in found.items():
    text = write_one(bundle, outputs[name])
    console.print(f"{outputs[name]}\n\n{text}", soft_wrap=True, highlight=False, markup=False)


def _format(
  name: str,
) -> tuple[Callable[[pathlib.Path, pathlib.Path], str], Callable[[pathlib.Path], None]]:
  """Return what writes one bundle in a format, and what checks its output directory."""
  if name not in FORMATS:
    raise unknown_name("format", name, FORMATS)
  if name == "stablehlo":
    given = [f"--{flag.name}" for flag in (_INT8, _DATA, _DIRECTORY) if flag.value]
    if given:
      raise ConfigError(f"{given[0]} is for --format onnx, not for --format stablehlo")
    platforms = tuple(_PLATFORMS.value)
    return functools.partial(write, platforms=platforms, batch_size=_BATCH.value), check_output
  from jaxkd.commands import exported_onnx  # needs further packages

  quantized = None
  if _INT8.value:
    quantized = exported_onnx.Int8(_DATA.value, _DIRECTORY.value, _CALIBRATION.value)
    exported_onnx.check(quantized)
  elif _DATA.value or _DIRECTORY.value:
    raise ConfigError("--data and --directory are for --int8")
  return (
    functools.partial(
      exported_onnx.write, allow=_ALLOW.value, batch_size=_BATCH.value, int8=quantized
    ),
    exported_onnx.check_output,
  )


def check_output(directory: pathlib.Path) -> None:
  """Raise a ConfigError unless a directory is new, empty, or an older export."""
  check_replaceable(
    directory,
    lambda names: (
      stablehlo.is_function(directory / FUNCTION) and names <= {FUNCTION, WEIGHTS, README}
    ),
    "an export",
  )


def check_replaceable(
  directory: pathlib.Path, is_older: Callable[[set[str]], bool], what: str
) -> None:
  """Raise a ConfigError unless a directory is new or empty, or holds what may be replaced.

  Args:
    directory: the output of a command.
    is_older: whether the names of its files are those of an older output.
    what: the command writes, for the message.
  """
  if not directory.exists():
    return
  if not directory.is_dir():
    raise ConfigError(f"output={str(directory)!r} is a file, expected a directory")
  names = {path.name for path in directory.iterdir() if path.suffix != ".partial"}
  if names and not is_older(names):
    raise ConfigError(
      f"output={str(directory)!r} holds something else than {what}: nothing was written"
    )


def write(
  bundle: pathlib.Path,
  directory: pathlib.Path,
  *,
  platforms: tuple[str, ...],
  batch_size: int | None,
) -> str:
  """Export one bundle; returns the text of README.txt."""
  network, description = bundles.load_bundle(bundle, allow=_ALLOW.value)
  exported = stablehlo.export_function(
    network, description, platforms=platforms, batch_size=batch_size
  )
  stablehlo.save_function(directory / FUNCTION, exported)
  copy(bundle / WEIGHTS, directory / WEIGHTS)
  text = described(exported, network.variables, description)
  report.write_atomically(directory / README, text)
  return text


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copy a file, and read the copy back before it gets its name."""
  content = source.read_bytes()
  partial = target.with_name(target.name + ".partial")
  partial.write_bytes(content)
  if partial.read_bytes() != content:
    raise ConfigError(f"{target}: the copy of {source} is damaged")
  partial.replace(target)


def described(
  exported: export.Exported, variables: Mapping[str, Any], description: Mapping[str, Any]
) -> str:
  """Return the text of README.txt."""
  (logits,) = exported.out_avals
  (inputs,), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  arrays = jax.tree_util.tree_leaves_with_path(variables)
  path = "/".join(key.key for key in arrays[-1][0])
  parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
  return f"""\
{origin(description)}

{FUNCTION}: the whole prediction, weights inside, for {", ".join(exported.platforms)}.
  in:   {_inputs(inputs)}
  out:  logits, {logits.dtype} {_shape(logits)}, one per class

  from jax import export
  function = export.deserialize(bytearray(open("{FUNCTION}", "rb").read()))
  logits = function.call({"inputs" if "inputs" in description else "images"})

  It takes jax and flatbuffers (pip install jax flatbuffers); jax {jax.__version__} wrote it.

{WEIGHTS}: the {len(arrays)} arrays by name, such as {path}; {parameters:,} parameters.
{_normalisation(description)}"""


def origin(description: Mapping[str, Any]) -> str:
  """Return what a bundle says of itself, in one line."""
  fields = ("data", "method", "stage", "predictor", "model", "test_accuracy")
  return ", ".join(f"{name}: {description[name]}" for name in fields if name in description)


def _inputs(inputs: Any) -> str:
  """Return the argument of the function in words."""
  if hasattr(inputs, "shape") and inputs.dtype == "uint8":
    return f"images, {inputs.dtype} {_shape(inputs)}, 0..255 as the data set stores them"
  leaves = named_leaves(inputs)
  return "; ".join(f"{name}, {leaf.dtype} {_shape(leaf)}" for name, leaf in leaves.items())


def _normalisation(description: Mapping[str, Any]) -> str:
  if "inputs" in description:
    return "  A network of them takes the inputs as they are.\n"
  return f"""\
  A network of them takes (images / 255 - mean) / std with
  mean {list(description["mean"])}
  std {list(description["std"])}
"""


def _shape(array: Any) -> str:
  return f"({', '.join(str(size) for size in array.shape)})"


def run(arguments: list[str]) -> int:
  """Run the command with these flags; return its exit status."""
  return commands.run_main(sys.modules[__name__], main, arguments)
