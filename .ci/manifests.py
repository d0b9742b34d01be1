"""Holds the files for Kubernetes against the schemas of its releases: `manifests.py FILE...`.

Strict: a field that a schema does not know is refused, as it would be left out by a server without a word.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from kubernetes_validate import ValidationError, validate
from kubernetes_validate.utils import all_versions

# From the release whose pods have all that the files ask for to the newest with schemas.
OLDEST = (1, 29)


def main(files: Sequence[str]) -> int:
    """Return the exit code: 1 where a document is not what a release takes."""
    versions = [each for each in all_versions() if tuple(map(int, each.split(".")[:2])) >= OLDEST]
    documents = [
        (file, document) for file in files for document in yaml.safe_load_all(Path(file).read_text("utf-8"))
    ]
    failed = 0
    for version in versions:
        for file, document in documents:
            try:
                validate(document, version, strict=True)
            except ValidationError as exc:
                failed = 1
                where = ".".join(map(str, exc.path))
                print(f"{version} {file} {document['kind']} {where}: {exc.message}", file=sys.stderr)
    print(f"{len(documents)} documents, Kubernetes {versions[0]} to {versions[-1]}")
    return failed or not documents


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
