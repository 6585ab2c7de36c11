"""A method is a file of jaxkd/methods with a METHOD: the registry has each, and nothing else."""

import importlib
import pkgutil

from jaxkd import methods

# Methods of supervised.py, which train one network from labels.
FROM_LABELS = {"teacher", "alone"}


def test_the_registry_has_every_file_with_a_method_under_its_name():
  found = {}
  for module in pkgutil.iter_modules(methods.__path__):
    file = importlib.import_module(f"jaxkd.methods.{module.name}")
    if hasattr(file, "METHOD"):
      found[module.name] = file.METHOD
  assert set(methods.METHODS) == set(found) | FROM_LABELS
  for name, method in found.items():
    assert methods.METHODS[name] is method


def test_every_method_has_a_summary_and_a_source_of_one_line():
  for name, method in methods.METHODS.items():
    assert method.summary and method.summary.isprintable(), name
    assert (method.source and method.source.isprintable()) or name in FROM_LABELS, name
