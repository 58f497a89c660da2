"""Measure what each layer of a base does. Defined in `david.analysis.profile`."""

from david.analysis.profile import Profile, profile

__all__ = ["Profile", "profile"]
