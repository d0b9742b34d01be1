"""The commits of one archive on an object store, which say which files there are, and which object each is.
Invariant: of all who ever wrote to it only the one that took it last can commit, no object goes that the last
commit names, and what has failed, as a caller was told, is in no commit that follows. An object is named by
one writer, once, so that a commit never shows half of another one's file.

An upload is no commit: it is an object that nothing names. What a writer that was cut off has left of such
goes when the next leader begins, or a user is erased.
"""

import contextlib
import errno
import itertools
import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from trainer.archive.storage.client import ObjectClient, ObjectStoreError
from trainer.errors import ArchiveRefusedError, other_format

# Grows when a commit of today could not be read by an older trainer.
FORMAT = 1
COMMITS, OBJECTS, BESIDE = "commits", "objects", "beside"
# Who reads a segment that was merged has read it by then: one of 30 MB takes seconds.
KEEP_REPLACED_S = 600.0
# So many commits can be read after others have followed: a reader lists, then reads. At half a second each
# these are half a minute.
KEPT_COMMITS = 64
# A reader finds a commit removed that it has just listed, where it was stopped for so long in between.
_READS = 10


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


class ObjectArchive:
    """The files of an archive, by their paths in it. Every method raises OSError. Safe in any thread."""

    def __init__(self, client: ObjectClient) -> None:
        self.client = client
        self._lock = threading.RLock()
        self._commit = Commit()
        # As callers know them: without what a commit has of which they were told that it failed.
        self._files: Mapping[str, StoredFile] = {}
        # Sent, and not known to have come about.
        self._pending: Commit | None = None
        self._term: str | None = None
        # Whose the commits were before.
        self.term_before = ""
        self._own: list[int] = []
        self._uploads = itertools.count()
        # Objects that are to go, as far as they came about: a few of an hour without a store. No commit will
        # name them, but for the last one, where the next undoes that.
        self._abandoned: set[str] = set()
        self._batched = threading.local()
        self.taken = False

    @property
    def term(self) -> str:
        """The name of the term that has the archive; "" where none of this process has."""
        return self._term or ""

    def __str__(self) -> str:
        return str(self.client.address)

    def files(self) -> Mapping[str, StoredFile]:
        """Return the files: of who took the archive as of the last own commit, else as of the last of all."""
        # Not by the lock: a commit may wait for a store that does not answer.
        if self._term is not None:
            return self._files
        if (seen := getattr(self._batched, "seen", None)) is not None:
            return cast("Mapping[str, StoredFile]", seen)
        with self._lock:
            self._commit = self._last_commit()
            return self._commit.files

    def files_beside(self) -> dict[str, StoredFile]:
        """Return what was put there by one who does not lead."""
        found = self.client.listed(BESIDE)
        return {each.name: StoredFile(each.name, each.size, each.at) for each in found}

    def last_number(self) -> int:
        """Return the number of the last commit, for `take`."""
        with self._lock:
            self._term, self._pending, self.taken = None, None, False
            self._commit = self._last_commit()
            return self._commit.number

    def take(self, number: int, term: str) -> bool:
        """Begin a term that goes on from the commit of this number; return False where another one has
        followed it: look again who leads then.
        """
        with self._lock:
            if self._term != term:
                first = self._commit.begun(term)
                if self._commit.number != number or not self._sent(first):
                    return False
                # One that was stopped since it looked may have got a number that was given up long ago.
                later = self.client.listed(COMMITS, after=commit_key(first.number))
                if any(number_of(each.name) for each in later):
                    return False
                self.term_before = self._commit.term
                earlier = range(self._commit.began + 1, self._commit.number)
                self._commit, self._files, self._own = first, first.files, []
                self._term, self.taken = term, False
                # Of the term before, whose last commit may name some of them.
                self._abandoned.clear()
                self._remove_commits(list(earlier)[-2 * KEPT_COMMITS :])
            self.remove_unnamed()
            return True

    def leave(self) -> None:
        """Write nothing any more."""
        with self._lock:
            self._term = self._pending = None

    def upload(self, path: str, content: bytes) -> StoredFile:
        """Put an object that no file is yet."""
        self._required_term()
        file = StoredFile(f"{self._uploaded_to}/{next(self._uploads):06d}/{path}", len(content), time.time())
        try:
            self._put(file.key, content)
        except OSError:
            self._abandoned.add(file.key)
            raise
        # Small segments are merged soon.
        self.client.keep_tail(file.key, content)
        return file

    def put_beside(self, name: str, content: bytes) -> None:
        """Put a file there as one who does not lead."""
        self._put(name, content)

    def _put(self, key: str, content: bytes) -> None:
        if not self._put_once(key, content):
            raise ObjectStoreError(f"{self} has another object {key}")

    def _put_once(self, key: str, content: bytes) -> bool:
        """Put an object under a name that is given once; return False where there is another one. Repeating
        is safe.
        """
        try:
            # A conflict may be with a request that fails, so that nothing is there.
            return self.client.create(key, content) or self.client.read(key) == content
        except FileNotFoundError:
            raise ObjectStoreError(f"{self} refused {key}, and has none: it is tried again") from None

    def discard(self, file: StoredFile) -> None:
        """Remove an upload of which the caller was told that it counts for nothing. Raises nothing."""
        with self._lock:
            pending = self._pending.keys if self._pending is not None else set()
            # The next commit takes its name away.
            if file.key in self._commit.keys | pending:
                self._abandoned.add(file.key)
            else:
                self._delete([file.key])

    def edit(self, edit: Edit) -> None:
        """Commit a change: with others at the end of a `batch`, else when this returns."""
        edits: list[Edit] | None = getattr(self._batched, "edits", None)
        if edits is not None:
            edits.append(edit)
        else:
            self._apply([edit])

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Commit what this thread changes within the block together. Files are as before until then."""
        edits: list[Edit] = []
        self._batched.edits = edits
        try:
            yield
        finally:
            self._batched.edits = None
        if edits:
            self._apply(edits)

    @contextlib.contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """Let this thread see the files within the block as they are now, for one request in place of one
        each time. Not for who has the archive, who sees them in memory.
        """
        self._batched.seen = self.files()
        try:
            yield
        finally:
            self._batched.seen = None

    def forget_replaced(self) -> None:
        """Remove the objects that no file is any more, and what a writer before this one has left."""
        with self._lock:
            self._required_term()
            self._settle()
            if self._files is not self._commit.files:
                self._apply([])
            # These again each time: a request that got no answer may still be under way.
            named = {file.key for file in self._files.values()}
            self.client.delete(sorted({*self._commit.replaced, *self._abandoned} - named))
            self._commit = replace(self._commit, replaced={})
        self.remove_unnamed()

    def remove_unnamed(self) -> None:
        """Remove objects of terms before this one that no commit names: what they had is in the stream, or in
        files that are named. One that has no name gets none, so that this is true however late it is done; of
        a term that came after this one nothing is known here.
        """
        self._required_term()
        own = self._uploaded_to
        # Not by the lock: commits wait for it.
        left = [each.name for each in self.client.listed(OBJECTS) if each.name < own]
        with self._lock:
            named = self._commit.keys | {file.key for file in self._files.values()}
        self.client.delete([name for name in left if name not in named])

    def _apply(self, edits: list[Edit]) -> None:
        with self._lock:
            self._required_term()
            self._settle()
            last = self._commit
            self._pending = last.edited(self._files, edits, time.time())
            self._settle()
            self._files = self._commit.files
            # In one request for many.
            if len(self._own) >= 2 * KEPT_COMMITS:
                self._remove_commits(self._own[:KEPT_COMMITS])
                del self._own[:KEPT_COMMITS]

    def _settle(self) -> None:
        """Have the commit that was sent. Where no answer came it is sent again: it may have come about. The
        one that follows undoes it then, as it goes on from the files before.
        """
        if self._pending is None:
            return
        last, sent = self._commit, self._pending
        came_about = self._sent(sent)
        self._pending = None
        if not came_about:
            self.taken = True
            # No other knows them, and their user may have been erased since.
            self._delete(sent.keys - last.keys)
            self._required_term()
        self._commit = sent
        self._own.append(sent.number)
        self._delete(last.replaced.keys() - sent.keys)

    def _sent(self, commit: Commit) -> bool:
        return self._put_once(commit_key(commit.number), commit.to_bytes())

    def _required_term(self) -> None:
        if self._term is None or self.taken:
            raise OSError(errno.ESTALE, f"another one has the archive {self}")

    def _last_commit(self) -> Commit:
        for _ in range(_READS):
            after = commit_key(self._commit.number) if self._commit.number else None
            listed = [each.name for each in self.client.listed(COMMITS, after) if number_of(each.name)]
            if not listed:
                if not self._commit.number and self.client.listed(OBJECTS):
                    raise ArchiveRefusedError(
                        f"{self} has ratings and no {COMMITS}/, which says which count: put these back, or "
                        "name another place in FOLDIN_ARCHIVE_DIR"
                    )
                return self._commit
            try:
                return Commit.from_bytes(self.client.read(listed[-1]), f"{self}/{listed[-1]}")
            except FileNotFoundError:
                continue
        raise ObjectStoreError(f"{self} changes all the time: it is tried again")

    @property
    def _uploaded_to(self) -> str:
        """Where the objects of this term are: the names of terms have their order."""
        return f"{OBJECTS}/{self._commit.began:012d}.{self._term}"

    def _delete(self, keys: Collection[str]) -> None:
        """Remove objects; those that cannot be now with the next erasure, or by the next leader."""
        try:
            self.client.delete(sorted(keys))
        except OSError:
            self._abandoned.update(keys)

    def _remove_commits(self, numbers: list[int]) -> None:
        # They are a list of files; where they stay a while nothing is lost.
        with contextlib.suppress(OSError):
            self.client.delete([commit_key(number) for number in numbers])
