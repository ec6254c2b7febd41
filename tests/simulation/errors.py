"""What a simulation ends with when something is wrong, and which promise that was."""

from __future__ import annotations

from enum import StrEnum


class Rule(StrEnum):
    """What must hold whatever fails. Each mistake that is made on purpose names those that are about it."""

    OWNED = "one session has one sandbox, one sandbox one session, for ever"
    REVISION = "whoever changes a record has seen the one before; revisions grow by one"
    PHASE = "phases follow the table"
    LIFE = "nothing is lost that was not ending, nothing lives again"
    HELD = "what one manager holds no other takes over, and nobody else writes what came of it"
    DESTROYED = "nobody destroys what the pool or a living session has, or gives out what was destroyed"
    ASLEEP = "Ready is never said of a sandbox that stands still, nor Paused of one that goes on"
    DIED = "a sandbox is said to have died only if it did"
    REASON = "nothing ends without its reason"
    FORGOTTEN = "what is forgotten is destroyed"
    TOLD = "no client hears that a living session is absent or has failed"
    STATE = "no client reaches another's sandbox or loses state silently"
    DUE = "nothing is overdue when faults have stopped"
    WORKS = "everything works when faults have stopped"
    LEFT = "in the end nothing is left"
    SOUND = "no exception that nobody expects, no loop that ends, no run that does not"


class Violation(Exception):
    """The product broke a promise. The text says which, and when in virtual time."""


class Stuck(Violation):
    """Something waits that nothing will ever wake."""
