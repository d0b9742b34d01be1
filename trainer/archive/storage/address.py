"""The address of an archive on an object store, and who asks there. Invariant: an address has no secret, so
that it may stand in logs and messages.
"""

import configparser
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from processes.settings import data_path, setting

_SCHEME = "s3://"
# With a slip in it; it must not become a folder of this host, where no other host finds it.
_LIKE_A_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:/")
_OPTIONS = frozenset({"endpoint", "region", "profile"})
_SHAPE = "s3://bucket/prefix?endpoint=https://host:port&region=name"


@dataclass(frozen=True, slots=True)
class ObjectAddress:
    """A bucket and what the names of objects begin with there. `endpoint`: None for that of AWS in the
    region; `profile`: in the file of keys.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    profile: str = "default"

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def text(self) -> str:
        """All of it, as `archive_address` takes it."""
        told = {"endpoint": self.endpoint, "region": self.region, "profile": self.profile}
        options = urlencode({name: value for name, value in told.items() if value is not None}, safe="/:")
        return f"{self}?{options}"

    def __truediv__(self, name: str) -> "ObjectAddress":
        prefix = f"{self.prefix}/{name}" if self.prefix else name
        return replace(self, prefix=prefix)


def archive_address(text: str) -> Path | ObjectAddress:
    """Parse the place of an archive: the path of a folder, or the address of a bucket. Raises ValueError."""
    if not text.startswith(_SCHEME):
        if _LIKE_A_SCHEME.match(text):
            raise ValueError(f"must be a folder, or like {_SHAPE}; of a folder of such a name: ./ before it")
        return data_path(text)
    # No message has any of the text: it may have a key in the wrong place.
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        endpoint = urlsplit(options.get("endpoint", "https://host"))
    except ValueError:
        raise ValueError(f"must be like {_SHAPE}") from None
    if "@" in parts.netloc or "@" in endpoint.netloc:
        raise ValueError("must have no key in it: keys stand in variables or a file of AWS")
    if unknown := options.keys() - _OPTIONS:
        raise ValueError(f"must have no option {min(unknown)!r}: there are {', '.join(sorted(_OPTIONS))}")
    ok = parts.netloc and not parts.fragment and endpoint.scheme in {"http", "https"} and endpoint.netloc
    if not ok or endpoint.query or endpoint.fragment:
        raise ValueError(f"must be like {_SHAPE}")
    if find_spec("obstore") is None:
        raise ValueError("is an object store, which needs the extra: pip install 'foldin[s3]'")
    return ObjectAddress(parts.netloc, parts.path.strip("/"), **options)


@dataclass(frozen=True, slots=True)
class ObjectCredentials:
    """Who asks an object store: the key of the environment, which the library reads itself, else that of the
    file, else as the machine may (the roles of a container or of an instance).
    """

    key_id: str | None = setting(
        None,
        "key of an object store; `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` and `AWS_REGION` go with it",
        variable="AWS_ACCESS_KEY_ID",
        shown="that of the file, else what the machine has",
    )
    file: Path = setting(
        Path("~/.aws/credentials"),
        "file of such keys, as the tools of AWS have it",
        Path,
        variable="AWS_SHARED_CREDENTIALS_FILE",
    )

    def known(self, profile: str) -> Mapping[str, str]:
        """Return what the library does not know itself, by its names. Reads the file anew: keys change."""
        if self.key_id is not None:
            return {}
        profiles = configparser.ConfigParser(interpolation=None)
        try:
            profiles.read(self.file.expanduser(), "utf-8")
            told = profiles[profile]
            found = {name: told[f"aws_{name}"] for name in ("access_key_id", "secret_access_key")}
        except (configparser.Error, KeyError, OSError, RuntimeError, UnicodeDecodeError):
            return {}
        token = told.get("aws_session_token")
        return found | ({"session_token": token} if token else {})
