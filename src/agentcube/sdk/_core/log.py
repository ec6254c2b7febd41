"""The SDK's logging: silent unless the program configures it, or asks for `verbose`."""

from __future__ import annotations

import logging

_logger = logging.getLogger("agentcube.sdk")


def be_verbose(verbose: bool) -> None:
    """With `verbose`, show what the SDK does, on standard error where no handler is configured."""
    if not verbose:
        return
    _logger.setLevel(logging.DEBUG)
    if not _logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        _logger.addHandler(handler)
