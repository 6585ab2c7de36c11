"""Targets of frozen networks that are computed once: what may be cached, and the store."""
