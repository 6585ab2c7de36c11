"""Networks as ONNX models: conversion, the check in onnxruntime, and int8 quantisation.

The rest of the library does not import this package; it needs onnx and onnxruntime.
"""

from jaxkd.errors import needed_by

with needed_by("jaxkd.export.onnx", extra="onnx"):
  # Unused here: the modules of this package import them, after this message for who lacks them.
  import onnx  # noqa: F401
  import onnxruntime  # noqa: F401
