"""Adapters of golden cases, one file per method; `every_adapter` has the table of all."""
