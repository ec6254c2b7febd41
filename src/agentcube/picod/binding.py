"""Whose sandbox this is. Nobody's at first; then one session's, for ever."""

from __future__ import annotations

from collections.abc import Mapping

from agentcube.picod.problems import Problem
from agentcube.picod.tokens import TokenRefused, Verifier, WrongAudience

ISSUER_MANAGER = "agentcube-manager"  # binds
ISSUER_ROUTER = "agentcube-router"  # speaks for the session's owner


class Binding:
    """Decides who may call. `session_id` is "" until the one binding."""

    def __init__(self, sandbox_id: str, verifier: Verifier, session_id: str = "") -> None:
        self._sandbox_id = sandbox_id
        self._verifier = verifier
        self.session_id = session_id
        self.env: dict[str, str] = {}

    def bind(self, token: str, env: Mapping[str, str]) -> str:
        """Bind to the session that the manager's token names, with the session's own environment.

        Returns the session id. Repeating the same binding changes nothing, not even the environment.

        Raises:
            Problem: `unauthenticated` for a token that is not the manager's for this sandbox,
                `conflict` for another session.
        """
        try:
            claims = self._verifier.verify(token, issuer=ISSUER_MANAGER, audience=self._sandbox_id)
        except TokenRefused as exc:
            raise _unauthenticated(str(exc)) from exc
        session_id = claims.get("session_id")
        if claims.get("sandbox_id") != self._sandbox_id or not isinstance(session_id, str) or not session_id:
            raise _unauthenticated("the token names no session for this sandbox")
        if self.session_id and self.session_id != session_id:
            raise Problem("conflict", "this sandbox belongs to another session for ever")
        if not self.session_id:
            self.session_id = session_id
            self.env = dict(env)
        return session_id

    def admit(self, authorization: bytes | None) -> None:
        """Let a call of the bound session pass.

        Raises:
            Problem: `unauthenticated` without a valid token of the Router's, `forbidden` for a valid
                one of another session or sandbox, or while the sandbox is nobody's.
        """
        token = _bearer(authorization)
        if not self.session_id:
            raise Problem("forbidden", "this sandbox is not bound to a session yet")
        try:
            claims = self._verifier.verify(token, issuer=ISSUER_ROUTER, audience=self.session_id)
        except WrongAudience as exc:
            raise Problem("forbidden", "the token is for another session") from exc
        except TokenRefused as exc:
            raise _unauthenticated(str(exc)) from exc
        if claims.get("session_id", self.session_id) != self.session_id:
            raise Problem("forbidden", "the token is for another session")
        if claims.get("sandbox_id", self._sandbox_id) != self._sandbox_id:
            raise Problem("forbidden", "the token is for another sandbox")


def _bearer(authorization: bytes | None) -> str:
    scheme, _, token = (authorization or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise _unauthenticated("this call needs the Router's token (Authorization: Bearer …)")
    return token.strip().decode("latin-1")


def _unauthenticated(detail: str) -> Problem:
    return Problem("unauthenticated", detail, headers=((b"www-authenticate", b"Bearer"),))
