"""Examples of the documents: the commands that they show, and what these answer."""

import argparse
import asyncio
import contextlib
import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec


@dataclass(frozen=True, slots=True)
class Example:
    """A `curl` command and the answer that the document shows for it, if any."""

    method: str
    path: str
    headers: dict[str, str]
    body: str | None
    shown: Any


async def ran(
    program: str,
    *options: str,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    within_s: float = 60.0,
) -> str:
    """What a Python program of a document prints, with these `options`; it says nothing else."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *options, "-c", program),
        cwd=folder,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, wrong = await asyncio.wait_for(process.communicate(), within_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert (process.returncode, wrong) == (0, b""), wrong.decode()
    return said.decode()


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a document, each with the answer that it shows."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for chunk in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, answer = chunk.partition("\n")
            found.append((command, answer.strip()))
    return found


def examples(text: str) -> list[Example]:
    return [example(shlex.split(line), answer) for line, answer in commands(text.replace("\\\n", " "))]


CURL = argparse.ArgumentParser(allow_abbrev=False)
for flag in ("-X", "-d", "--json"):
    CURL.add_argument(flag)
for flag in ("-H", "--data-urlencode"):
    CURL.add_argument(flag, action="append", default=[])


def example(words: list[str], answer: str) -> Example:
    assert words[0] == "curl", words
    told, others = CURL.parse_known_args(words[1:])
    (url,) = (word for word in others if not word.startswith("-"))
    headers = {name.strip(): value.strip() for name, _, value in (each.partition(":") for each in told.H)}
    if told.json:
        headers["Content-Type"] = "application/json"
    path, body = url.removeprefix("http://").partition("/")[2], told.json or told.d
    # With `-G`, as all of them: behind the address.
    for name, _, value in (each.partition("=") for each in told.data_urlencode):
        path += f"{'&' if '?' in path else '?'}{name}={quote(value, safe='')}"
    # As curl does it.
    method = told.X or ("GET" if body is None else "POST")
    return Example(method, path, headers, body, json.loads(answer) if answer else None)


def shape(value: Any) -> Any:
    """Members and types of a JSON value; numbers are all alike."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(member) for member in value]
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )


def left_out(shown: object, made: object, at: str = "") -> str:
    """Where the first member of JSON `shown` is that a value `made` of it has lost; empty where none is."""
    if isinstance(made, msgspec.Struct):
        values = (getattr(made, name) for name in made.__struct_fields__)
        made = dict(zip(made.__struct_encode_fields__, values, strict=True))
    if isinstance(shown, dict) and isinstance(made, dict):
        for name, value in shown.items():
            if name not in made:
                return f"{at}.{name}"
            if found := left_out(value, made[name], f"{at}.{name}"):
                return found
    if isinstance(shown, list) and isinstance(made, list | tuple):
        for one, other in zip(shown, made, strict=True):
            if found := left_out(one, other, f"{at}[]"):
                return found
    return ""
