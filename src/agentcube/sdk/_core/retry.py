"""When to send a request again, and how long to wait before.

A request is repeated only when that cannot do the work twice: nothing was sent, the Router turned it
away before the sandbox saw it, or the request is idempotent by method or by Idempotency-Key.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from agentcube.sdk._core.errors import is_retryable
from agentcube.wire.names import ERROR_HEADER


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Bounds of repetition. Delays double from `base_s` to `max_s`, with jitter of half of each.

    A server's Retry-After replaces the delay, up to `retry_after_max_s`: a server that asks for more
    patience than that gets none, and the caller gets the error.
    """

    retries: int = 2
    base_s: float = 0.1
    max_s: float = 2.0
    retry_after_max_s: float = 20.0

    def backoff(self, attempt: int) -> float:
        """Seconds to wait after the failure of attempt number `attempt` (the first is 0)."""
        delay = min(self.max_s, self.base_s * 2.0**attempt)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311  (spreads load; guards nothing)

    def after_failure(self, attempt: int, *, sent: bool, repeatable: bool) -> float | None:
        """The wait before trying again when no answer came; None: give up."""
        if attempt >= self.retries or (sent and not repeatable):
            return None
        return self.backoff(attempt)

    def after_answer(
        self,
        attempt: int,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        repeatable: bool,
        can_resend: bool = True,
    ) -> float | None:
        """The wait before trying again after an error answer; None: that answer is final.

        504 is final: the server's patience is over, and starting over would only double it.
        """
        if not can_resend or attempt >= self.retries or status not in (429, 502, 503):
            return None
        refused = status in (429, 503) and ERROR_HEADER in headers
        if not (refused or repeatable) or not is_retryable(status, body):
            return None
        asked = _retry_after_s(headers.get("retry-after", ""))
        if asked is None:
            return self.backoff(attempt)
        return asked if asked <= self.retry_after_max_s else None


class Patience:
    """How long, and how densely, a stream that was lost is asked for again. Times are those of a monotonic clock.

    It lasts `grace_s` from the loss to the next new event; where the server keeps things for us, as long as it does.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._policy = Policy(base_s=0.05, max_s=1.0)
        self._lost_at: float | None = None
        self._attempt = 0

    def renew(self) -> None:
        """Something new came."""
        self._lost_at = None
        self._attempt = 0

    def delay(self, now: float) -> float | None:
        """The wait before asking again, none for the first time after something new; None: patience is over."""
        if self._lost_at is None:
            self._lost_at = now
            return 0.0
        left = self._lost_at + self._grace_s - now
        if left <= 0:
            return None
        self._attempt += 1
        return min(left, self._policy.backoff(min(self._attempt, 10)))


def _retry_after_s(value: str) -> float | None:
    """Seconds meant by a Retry-After (RFC 9110 §10.2.3: seconds or a date); None if it means nothing."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
