"""Readers for PyTorch and safetensors weights that need no PyTorch and run no code of the file."""
