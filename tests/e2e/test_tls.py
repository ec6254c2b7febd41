"""`agentcube up` with a certificate, and its own clients."""

from pathlib import Path

from tests.e2e import harness
from tests.integration.router.test_router_edge import certificate


def test_the_command_line_works_over_tls_and_trusts_only_who_it_is_told_to(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "agentcube")
    with harness.serving(
        tmp_path / "data", "--host", "localhost", "--tls-cert", str(chain), "--tls-key", str(key)
    ) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        trusting = server.cli("session", "list", env={"AGENTCUBE_URL": url, "SSL_CERT_FILE": str(chain)})
        assert trusting.returncode == 0, trusting.stderr
        doubting = server.cli("session", "list", env={"AGENTCUBE_URL": url})
        assert doubting.returncode == 2
        assert b"certificate verify failed" in doubting.stderr
