"""Certificates for tests of TLS."""

import shutil
import subprocess
from pathlib import Path

from tests.support.servers import missing


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for this machine, its key beside it."""
    if shutil.which("openssl") is None:
        missing("openssl")
    path = folder / f"{name}.crt"
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(path)),
        *("-keyout", str(path.with_suffix(".key"))),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path
