"""`foldin client-example`: five lines that rate and ask, for the service that runs here."""

import asyncio
import json
import shlex
import sys

from foldin.address import api_client, find_api
from foldin.settings import LANGUAGES, ExampleOptions, FrontDoorSettings
from foldin_client import FoldinError, ProblemError
from foldin_client.wire import without_user
from processes.settings import api_key_of

TIMEOUT_S = 5.0  # a service that is there answers within milliseconds
# Where the service does not tell its scale: the best of most.
_BEST = 5.0
CURL = """\
curl {ratings}{key} -H 'Content-Type: application/json' -d '{rating}'
curl {predict}{key}
curl {recommend}{key}
curl {user}{key}
curl -X DELETE {taken_back}{key}
"""
# By the name that it has wherever this command is; `foldin-client` by itself says `foldin_client`.
PYTHON = """\
import os; from foldin.client import Client
foldin = Client({url}, {secret})
print(foldin.rate({rating}))
print(foldin.predict("ann", "dune"))
print(foldin.recommend("ann", n=5))
"""
# By `npm install` of clients/javascript, which has no dependency.
JAVASCRIPT = """\
import {{ Foldin }} from "foldin-client";
const foldin = new Foldin({url}{key});
console.log(await foldin.rate({rating}));
console.log(await foldin.predict("ann", "dune"));
console.log(await foldin.recommend("ann", {{ n: 5 }}));
"""
PATHS = {
    "ratings": "/ratings",
    "predict": "/predict?user_id=ann&item_id=dune",
    "recommend": "/recommend/ann?n=5",
    "user": "/users/ann",
    "taken_back": "/ratings/ann/dune",
}


def run_example(options: ExampleOptions, settings: FrontDoorSettings) -> int:
    """Print the example; return the exit code. Raises CannotStartError where no stack runs on --data."""
    url = find_api(options.url, options.data, settings)
    key = api_key_of(settings.inherited.get("FOLDIN_API_KEY") or None, options.key_file)
    shown = without_user(url)
    try:
        asks, best = asyncio.run(_told(url, key))
    except FoldinError:
        print(
            f"No service answers at {shown} now: start one with `foldin up`, or give --url.", file=sys.stderr
        )
        asks, best = False, _BEST
    found = examples(shown, best, asks=asks)
    wanted = LANGUAGES if options.language is None else (options.language,)
    if asks:
        print(
            "The service asks for a key, here one in FOLDIN_API_KEY: see `foldin keys add`.", file=sys.stderr
        )
    for language in wanted:
        if options.language is None:
            print(f"# {language}")
        print(found[language])
    settings.emit({language: found[language] for language in wanted})
    return 0


async def _told(url: str, key: str | None) -> tuple[bool, float]:
    """Return whether calls need a key, and the best rating of the scale."""
    async with api_client(url, key, timeout_s=TIMEOUT_S) as client:
        asks = (await client.access()).keys
        try:
            return asks, (await client.status()).scale[1] or _BEST
        except ProblemError:  # a key is asked for, and there is none
            return asks, _BEST


def examples(url: str, best: float, *, asks: bool) -> dict[str, str]:
    """Return the text of each language. `best`: the rating that is given; `asks`: calls need a key, which is
    then that of `FOLDIN_API_KEY`.
    """
    value = int(best) if best.is_integer() else best
    rating = json.dumps({"user_id": "ann", "item_id": "dune", "rating": value})
    # By a variable: a key in a command line can be seen by others of the machine.
    key = ' -H "Authorization: Bearer $FOLDIN_API_KEY"' if asks else ""
    addresses = {name: shlex.quote(url + path) for name, path in PATHS.items()}
    asked = {"url": json.dumps(url), "rating": rating}
    secret = ", { key: process.env.FOLDIN_API_KEY }" if asks else ""
    return {
        "curl": CURL.format(**addresses, rating=rating, key=key),
        "python": PYTHON.format(**asked, secret='os.environ["FOLDIN_API_KEY"]' if asks else "None"),
        "javascript": JAVASCRIPT.format(**asked, key=secret),
    }
