"""A disk and clocks that can fail: what a power cut leaves of a folder, a full disk, a wall clock that jumps.

Invariant: what a process has synced of the folder survives a cut, and of the rest nothing but a random part
of what was appended to a file. The processes are started with `faults.c`, which keeps what was synced.
"""

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

from processes.errors import CannotStartError

_SOURCE = Path(__file__).with_name("faults.c")
# As `torture_key` writes it: two numbers of 64 bits and one of 32.
_KEY_BYTES = 64
_NO_FOLDER = -100  # AT_FDCWD of fcntl.h
# Of the files that were written to: half lose all that was not synced, half a part of it.
TORN = 0.5


class Disk:
    """The folder `root` as a disk of its own. `beside`: for the library, its switches, what was synced."""

    def __init__(self, root: Path, beside: Path) -> None:
        """Raises CannotStartError where the library cannot be compiled."""
        self.root = root.resolve()
        self._beside = beside
        self._kept = beside / "kept"
        self._library = beside / "faults.so"
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise CannotStartError("no C compiler: install one (gcc and the headers of the C library)")
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(self._library), str(_SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
        if done.returncode:
            raise CannotStartError(f"faults.c cannot be compiled: {done.stderr.strip().splitlines()[:1]}")
        self._key_of = ctypes.CDLL(str(self._library)).torture_key
        self._key_of.restype = ctypes.c_char
        self._all_is_synced()

    def environment(self, part: str) -> dict[str, str]:
        """Return what a process needs in its environment to run on this disk, with a clock of its own."""
        control = self._control(part)
        if not control.exists():
            control.write_bytes(bytes(16))
        return {
            "LD_PRELOAD": str(self._library),
            "TORTURE_ROOT": str(self.root),
            "TORTURE_KEPT": str(self._kept),
            "TORTURE_CONTROL": str(control),
        }

    def set_clock(self, part: str, ahead_s: float) -> None:
        """Let the wall clock of a part be wrong by so much."""
        self._switch(part, 0, round(ahead_s * 1e9))

    def set_full(self, part: str, full: bool) -> None:
        """Let the disk have no room for a part, or room again."""
        self._switch(part, 8, int(full))

    def cut(self, rng: random.Random) -> int:
        """Throw away what was not synced; return how many bytes. No process may run on the disk."""
        before = self._bytes()
        rebuilt = self._beside / "rebuilt"
        self._rebuild(self.root, rebuilt, self._key(self.root)[1], rng)
        shutil.rmtree(self.root)
        rebuilt.rename(self.root)
        self._all_is_synced()
        return before - self._bytes()

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def _control(self, part: str) -> Path:
        return self._beside / f"{part}.control"

    def _switch(self, part: str, at: int, value: int) -> None:
        with self._control(part).open("r+b") as file:
            file.seek(at)
            file.write(value.to_bytes(8, "little", signed=True))

    def _key(self, path: Path) -> tuple[str, str]:
        key = ctypes.create_string_buffer(_KEY_BYTES)
        return self._key_of(_NO_FOLDER, bytes(path), key).decode(), key.value.decode()

    def _all_is_synced(self) -> None:
        """Begin with all that is there now."""
        shutil.rmtree(self._kept, ignore_errors=True)
        (self._kept / "files").mkdir(parents=True)
        (self._kept / "names").mkdir()
        folders = [self.root, *[path for path in self.root.rglob("*") if path.is_dir()]]
        for folder in folders:
            lines = []
            for path in sorted(folder.iterdir()):
                kind, key = self._key(path)
                if kind == "f":
                    shutil.copyfile(path, self._kept / "files" / key)
                if kind != "-":
                    lines.append(f"{kind} {key} {path.name}\n")
            (self._kept / "names" / self._key(folder)[1]).write_text("".join(lines), "utf-8")

    def _rebuild(self, folder: Path, target: Path, key: str, rng: random.Random) -> None:
        """Make of a folder what its last sync left: names as of then, and of each file its own last sync."""
        target.mkdir()
        names = self._kept / "names" / key
        for line in names.read_text("utf-8").splitlines() if names.exists() else ():
            kind, key, name = line.split(" ", 2)
            now, then = folder / name, target / name
            if kind == "d":
                self._rebuild(now, then, key, rng)
                continue
            kept = self._kept / "files" / key
            data = kept.read_bytes() if kept.exists() else b""
            if now.is_file() and self._key(now)[1] == key:
                written = now.read_bytes()
                # What was on its way to the disk may be there, be it in part.
                if written.startswith(data) and rng.random() < TORN:
                    data = written[: rng.randint(len(data), len(written))]
            then.write_bytes(data)
            then.chmod(0o600)
