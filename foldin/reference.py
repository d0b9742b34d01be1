"""The reference of all settings, docs/settings.md: the declarations of every process in one document."""

from environment.settings import ServerSettings
from evaluation.course.settings import EvaluationSettings, PlaySettings
from featurestore.settings import StoreSettings
from foldin.evaluating import EvaluateOptions
from foldin.settings import (
    BackupOptions,
    ImportOptions,
    RestoreOptions,
    StackOptions,
    TortureOptions,
    UndoOptions,
    VerifyOptions,
)
from processes.settings import reference
from service.settings import ServiceSettings
from trainer.settings import TrainerSettings

INTRODUCTION = """\
# Settings

Printed by `foldin settings`. A flag wins over an environment variable, a variable over the default. Each
process reads its settings once, at its start, and reports all mistakes together: one line, exit code 2.

The variables that only the compose file reads are in [operations.md](operations.md).
"""


def settings_reference() -> str:
    """Every setting of every process as a Markdown document, from the declarations."""
    # The store's settings once, although two processes read them.
    tables = (
        ("The store, as service and trainer open it", reference(StoreSettings)),
        ("`python -m service`", reference(ServiceSettings, without=("store",))),
        ("`python -m trainer`", reference(TrainerSettings, without=("store",))),
        ("`python -m environment`", reference(ServerSettings)),
        ("`python -m evaluation.course.play`", reference(PlaySettings)),
        ("`foldin evaluate`, the course's protocol", reference(EvaluationSettings)),
        ("`foldin evaluate FILE`", reference(EvaluateOptions)),
        ("`foldin up`", reference(StackOptions)),
        ("`foldin import FILE`", reference(ImportOptions)),
        ("`foldin backup DIR`", reference(BackupOptions)),
        ("`foldin restore SOURCE`", reference(RestoreOptions)),
        ("`foldin undo NAME`", reference(UndoOptions)),
        ("`foldin verify`", reference(VerifyOptions)),
        ("`foldin torture`", reference(TortureOptions)),
    )
    return INTRODUCTION + "".join(f"\n## {title}\n\n{table}" for title, table in tables)
