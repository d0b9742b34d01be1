"""What a commit of an archive on an object store says: which files there are, and which object each is.
Invariant: an object is named by one writer, once, so that a commit never shows half of another one's file.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from trainer.errors import ArchiveRefusedError, other_format

# Grows when a commit of today could not be read by an older trainer.
FORMAT = 1
COMMITS, OBJECTS, BESIDE = "commits", "objects", "beside"
# Who reads a segment that was merged has read it by then: one of 30 MB takes seconds.
KEEP_REPLACED_S = 600.0


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file: the object that it is, its size, and when it was written, in seconds since 1970."""

    key: str
    size: int
    at: float


Names = dict[str, StoredFile]
Edit = Callable[[Names], None]
"""Changes which files there are. Raises OSError where it cannot be done."""


@dataclass(frozen=True, slots=True)
class Commit:
    """All files of an archive by their paths. `term`: whose commit it is; `began`: the number of the first
    one of that term; `replaced`: objects that no file is any more, each with since when.
    """

    number: int = 0
    term: str = ""
    began: int = 0
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    replaced: Mapping[str, float] = field(default_factory=dict)

    def edited(self, before: Mapping[str, StoredFile], edits: Iterable[Edit], now: float) -> "Commit":
        """Return the one that follows, in which the files are those `before` but for the edits. Raises
        OSError.
        """
        files = dict(before)
        for edit in edits:
            edit(files)
        named = {file.key for file in files.values()}
        gone = {file.key: now for file in self.files.values()}
        kept = {key: at for key, at in self.replaced.items() if now - at < KEEP_REPLACED_S}
        replaced = {key: at for key, at in (kept | gone).items() if key not in named}
        return Commit(self.number + 1, self.term, self.began, files, replaced)

    def begun(self, term: str) -> "Commit":
        """Return the first commit of the next term."""
        return Commit(self.number + 1, term, self.number + 1, self.files, self.replaced)

    @property
    def keys(self) -> set[str]:
        """The objects that are kept."""
        return {file.key for file in self.files.values()} | self.replaced.keys()

    def to_bytes(self) -> bytes:
        """Return it as it is stored."""
        content = {
            "format": FORMAT,
            "number": self.number,
            "term": self.term,
            "began": self.began,
            "files": {path: [file.key, file.size, file.at] for path, file in self.files.items()},
            "replaced": dict(self.replaced),
        }
        return json.dumps(content).encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> "Commit":
        """Return what is stored. Raises `ArchiveRefusedError` where it is damaged, or of another format."""
        try:
            told = json.loads(content)
            if int(told["format"]) != FORMAT:
                raise other_format(where, told["format"], FORMAT)
            files = {
                str(path): StoredFile(str(key), int(size), float(at))
                for path, (key, size, at) in told["files"].items()
            }
            replaced = {str(key): float(at) for key, at in told["replaced"].items()}
            return cls(int(told["number"]), str(told["term"]), int(told["began"]), files, replaced)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            # Without it nothing says which objects count: nothing is taken for superfluous.
            raise ArchiveRefusedError(
                f"{where} is damaged: put back the version before it, where the bucket keeps such, or remove "
                "it to go on with the commit before"
            ) from exc


def commit_key(number: int) -> str:
    """Return the object that a commit is: their names have the order of their numbers."""
    return f"{COMMITS}/{number:012d}"


def number_of(key: str) -> int:
    """Return the number of a commit by its object; 0 for any other object."""
    name = key.rpartition("/")[2]
    return int(name) if name.isdigit() else 0
