"""The Router: authenticates, finds a session's sandbox, splices bytes. It never decides on life and death."""

from agentcube.router.server import Router
from agentcube.router.settings import RouterSettings

__all__ = ["Router", "RouterSettings"]
