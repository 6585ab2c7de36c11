"""Placeholder until this storey is written."""
