"""What a simulation ends with when something is wrong."""

from __future__ import annotations


class Violation(Exception):
    """The product broke a promise. The text says which, and when in virtual time."""


class Stuck(Violation):
    """Something waits that nothing will ever wake."""
