"""Losses in two halves: what they need of frozen networks, example by example, and the rest."""

from jaxkd.train.halves.split import OPERATIONS_PER_BYTE, Halves, halves, table_of_bytes

__all__ = ["OPERATIONS_PER_BYTE", "Halves", "halves", "table_of_bytes"]
