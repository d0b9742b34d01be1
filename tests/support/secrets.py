"""The users of the store, as the compose file's own script makes them."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/redis/secrets.sh"


def make_secrets(folder: Path, namespace: str) -> tuple[Path, Path]:
    """Run the script; the folders of the list and of the password."""
    acl, password = folder / "acl", folder / "password"
    for each in (acl, password):
        each.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "FOLDIN_NAMESPACE": namespace}
    command = ["sh", str(SCRIPT), str(acl), str(password), str(folder), str(os.getuid())]
    subprocess.run(command, env=environment, check=True, timeout=30)
    return acl, password
