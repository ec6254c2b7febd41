"""Servers for the stores that need one."""

from tests.redis_servers import redis_server

__all__ = ["redis_server"]
