"""How to get at a server: addresses, credentials and TLS put together once, for every connection."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agentcube.errors import StoreFailed
from agentcube.stores.redis.address import Address
from agentcube.stores.redis.clock import StoreClock
from agentcube.stores.redis.connection import Connection, Owner
from agentcube.stores.redis.finder import Credentials, Finder
from agentcube.stores.redis.layout import Keys
from agentcube.stores.redis.settings import RedisSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialer:
    """Makes connections to the master of one store. Get one from `of`."""

    address: Address
    settings: RedisSettings
    credentials: Credentials
    finder: Finder
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, address: Address, settings: RedisSettings, keys: Keys) -> Self:
        """Read the files that the settings name. Raises StoreFailed naming the one that cannot be used."""
        password = address.password or _secret(settings.password_file)
        credentials = Credentials(user=address.user, password=password)
        sentinels = Credentials(
            user=settings.sentinel_user, password=_secret(settings.sentinel_password_file)
        )
        tls = _tls(settings) if address.tls else None
        finder = Finder(
            address, key=keys.meta, credentials=credentials, sentinel_credentials=sentinels, tls=tls
        )
        return cls(address=address, settings=settings, credentials=credentials, finder=finder, tls=tls)

    def connection(self, owner: Owner, clock: StoreClock, *, patience_s: float = 0.0) -> Connection:
        """A connection that is not started yet."""
        return Connection(
            self.address,
            self.settings,
            self.finder,
            self.credentials,
            tls=self.tls,
            clock=clock,
            owner=owner,
            patience_s=patience_s,
        )


def _secret(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text().strip()
    except (OSError, ValueError) as exc:
        raise StoreFailed(f"the password file {file} cannot be read: {exc}") from exc


def _tls(settings: RedisSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file)
        if settings.tls_cert_file is not None:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    except (OSError, ssl.SSLError) as exc:
        files = (settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file)
        named = ", ".join(str(file) for file in files if file is not None)
        raise StoreFailed(f"the TLS files for the session store cannot be used ({named}): {exc}") from exc
    return context
