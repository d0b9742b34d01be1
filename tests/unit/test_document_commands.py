"""Every fenced block of the documents is run by a test or a build, held against what takes its commands, or
stands in the table of what is no command. A block that nothing checks fails here.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from processes.settings import SettingsError
from tests.support import house
from tests.support.command_lines import WrongCommandError, check, lines

# Printed from the declarations, and compared with them: tests/unit/test_docs_settings.py.
PRINTED = {"docs/cli.md", "docs/settings.md"}
# The test that runs all blocks of a language in a document; it names the document.
RUN = {
    ("README.md", "console"): "tests/integration/test_readme_examples.py",
    ("README.md", "python"): "tests/integration/test_readme_examples.py",
    ("docs/api.md", "console"): "tests/integration/service/test_service_api_examples.py",
    ("docs/clients.md", "python"): "tests/integration/clients/test_clients_manual.py",
    ("docs/clients.md", "js"): "tests/integration/clients/test_javascript_client.py",
    ("docs/environment.md", "python"): "tests/integration/environment/test_environment_manual.py",
    ("docs/evaluation.md", "python"): "tests/integration/environment/test_environment_manual.py",
    ("docs/tutorial.md", "console"): "tests/integration/test_tutorial.py",
    ("docs/how-to/", "console"): "tests/integration/test_how_to.py",
}
# What programs print, pictures and formulas: each by the beginning of its first line.
NO_COMMAND = {
    "docs/api.md": ('{"type":"/docs#invalid_body"',),
    "docs/model.md": ("similarity(u, v) = ", "similarity(i, j) = "),
    "docs/operations.md": ("2026-01-31 12:00:00,000 INFO foldin.audit ",),
    "docs/trainer.md": ("                consume/ ",),
}
# Tables that `foldin bench accuracy --record` and `ranking --record` write: the language of these blocks.
RECORDED = {("docs/accuracy.md", "text")}

DOCUMENTS = ["README.md", "CONTRIBUTING.md"] + [
    path.relative_to(house.ROOT).as_posix() for path in sorted((house.ROOT / "docs").rglob("*.md"))
]


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each fenced block."""
    yield from re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.DOTALL)


def unchecked(document: str, text: str) -> list[str]:
    """What nothing checks of a document, or what is wrong with it."""
    found = []
    for language, block in blocks(text):
        # Of the manual's build: it runs the cells and warns of a table that leads nowhere.
        if language.startswith("{") or (document, language) in RECORDED:
            continue
        if (document, language) in RUN or (f"{Path(document).parent}/", language) in RUN:
            continue
        if any(block.startswith(begins) for begins in NO_COMMAND.get(document, ())):
            continue
        if language not in {"", "console", "sh"}:
            found.append(f"{document}: nothing runs {language}: {block[:60]}")
            continue
        for line in lines(block):
            try:
                check(line)
            except (WrongCommandError, SettingsError) as error:
                found.append(f"{document}: {line}: {error}")
    return found


def test_every_block_is_checked() -> None:
    texts = {each: (house.ROOT / each).read_text("utf-8") for each in DOCUMENTS if each not in PRINTED}
    found = [wrong for document, text in texts.items() for wrong in unchecked(document, text)]
    assert not found, "\n".join(found)
