"""What one subject may have of this Router, so that no tenant starves the others. No I/O."""

from __future__ import annotations

from agentcube.errors import LimitExceeded
from agentcube.router.settings import RouterSettings


class Share:
    """What one subject has now: requests in flight, requests that wait, and its tokens."""

    __slots__ = ("at", "in_flight", "name", "tokens", "waiting")

    def __init__(self, name: str, tokens: float, now: float) -> None:
        self.name = name
        self.in_flight = 0
        self.waiting = 0
        self.tokens = tokens  # a request takes one; negative never
        self.at = now  # when `tokens` was right


class Limits:
    """The shares of all subjects. A share is forgotten when nothing depends on it any more.

    The rate is a token bucket per subject: `requests_per_s` for long, `request_burst` at once. A rate of
    0 is no limit. Each Router process counts for itself.
    """

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._shares: dict[str, Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def enter(self, name: str, now: float) -> Share:
        """Count a request of `name` in, to be counted out by `leave`.

        Raises:
            LimitExceeded: it has too many in flight, or sent too many lately. Nothing is counted then.
        """
        settings = self._settings
        share = self._shares.get(name)
        if share is None:
            share = self._shares[name] = Share(name, float(settings.request_burst), now)
        if share.in_flight >= settings.in_flight_per_subject_max:
            limit = settings.in_flight_per_subject_max
            raise LimitExceeded("too many of your requests are in flight", limit=limit)
        if settings.requests_per_s:
            self._take(share, now)
        share.in_flight += 1
        return share

    def leave(self, share: Share) -> None:
        """Count a request out."""
        share.in_flight -= 1
        if not share.in_flight and not self._settings.requests_per_s:
            del self._shares[share.name]  # it remembers nothing

    def sweep(self, now: float) -> None:
        """Forget subjects whose buckets are full again."""
        rate, burst = self._settings.requests_per_s, self._settings.request_burst
        if not rate:
            return
        for share in list(self._shares.values()):
            if not share.in_flight and share.tokens + (now - share.at) * rate >= burst:
                del self._shares[share.name]

    def wait(self, share: Share) -> None:
        """Count in that a request of `share` waits for its session; `share.waiting` is counted down after.

        Raises:
            LimitExceeded: too many do.
        """
        limit = self._settings.waiting_per_subject_max
        if share.waiting >= limit:
            raise LimitExceeded("too many of your requests wait for their sessions", limit=limit)
        share.waiting += 1

    def _take(self, share: Share, now: float) -> None:
        rate, burst = self._settings.requests_per_s, self._settings.request_burst
        share.tokens = min(float(burst), share.tokens + (now - share.at) * rate)
        share.at = now
        if share.tokens < 1:
            raise LimitExceeded("you send requests too fast", limit=burst, requests_per_s=rate)
        share.tokens -= 1
