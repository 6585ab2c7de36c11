"""Exports of every package: documented, sorted, complete."""

import importlib
import inspect

import pytest

PACKAGES = [
  "adapters",
  "data",
  "evaluate",
  "losses",
  "models",
  "report",
  "methods",
  "train",
]
each_package = pytest.mark.parametrize("package", PACKAGES)


def exports(package):
  module = importlib.import_module(f"jaxkd.{package}")
  return {name: getattr(module, name) for name in module.__all__}


@each_package
def test_everything_exported_is_documented(package):
  undocumented = []
  for name, value in exports(package).items():
    if not (inspect.isclass(value) or inspect.isfunction(value)):
      continue
    documented = [(name, value)]
    if inspect.isclass(value):
      # Public methods that the class itself defines.
      own = ((key, member) for key, member in vars(value).items() if not key.startswith("_"))
      documented += [(f"{name}.{key}", m) for key, m in own if inspect.isfunction(m)]
    # A dataclass without a docstring has its signature as docstring.
    undocumented += [
      label for label, item in documented if not item.__doc__ or item.__doc__.startswith(f"{name}(")
    ]
  # setup and copy are linen's.
  assert [label for label in undocumented if not label.endswith((".setup", ".copy"))] == []


@each_package
def test_exports_are_sorted_and_complete(package):
  module = importlib.import_module(f"jaxkd.{package}")
  assert list(module.__all__) == sorted(set(module.__all__), key=lambda n: (n.upper() != n, n))
  public = {
    name
    for name, value in vars(module).items()
    if (inspect.isclass(value) or inspect.isfunction(value)) and not name.startswith("_")
  }
  assert public <= set(module.__all__)
