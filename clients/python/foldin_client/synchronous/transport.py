# Made by `make clients` of asynchronous/: change that, not this.
"""Sends calls, again where that does no harm, and turns answers into values or errors."""

import time as clock
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec
import stamina

from foldin_client.errors import FoldinError, NoAnswerError, ProblemError
from foldin_client.rows import Packer, Rows, counted, each, line, together
from foldin_client.wire import (
    LINES,
    Call,
    decoded,
    headers,
    is_address,
    is_here,
    limit_of,
    no_answer,
    no_loop,
    problem,
    repeats,
    unreadable,
    unreadable_line,
    user_of,
    without_user,
)

T = TypeVar("T")
# A store that restarts, or a service that is replaced, is back within a minute.
RETRY_S = 60.0
# A pause doubles with each attempt; as much is added by chance, so that clients do not come back together.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0  # a service that is back is noticed by then
MOST_ATTEMPTS = 100  # also with pauses of a second, as the service names, `RETRY_S` is what bounds them


class Transport:
    """A connection to the API at one address."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retry_s: float = RETRY_S,
        attempts: int = MOST_ATTEMPTS,
        http: httpx.Client | None = None,
    ) -> None:
        """`url`: as `http://127.0.0.1:8080`; `key`: sent as `Authorization: Bearer`.

        A request fails when nothing comes for `timeout_s`; with `math.inf` it waits. A call that may be sent
        again is, up to `attempts` times in all and for `retry_s`; `attempts=1`: never. `http`: a client of
        the caller's, who closes it; without it one is made, that asks addresses of this machine without a
        proxy. Raises ValueError for an address, a key or a timeout that cannot be one.
        """
        # Errors and logs show the address: who is behind it goes along by itself.
        self.url = without_user(url).rstrip("/")
        if not is_address(url):
            raise ValueError(f"{without_user(url)!r} is no address such as http://127.0.0.1:8080")
        if attempts < 1:
            raise ValueError("a call is sent once at least")
        self._headers = headers(key)
        self._limit_s, self._retry_s, self._most = limit_of(timeout_s), retry_s, attempts
        self._auth = user_of(url) or httpx.USE_CLIENT_DEFAULT
        self._given, self._own = http, self._new() if http is None else None
        self._loop: object = None

    def _new(self) -> httpx.Client:
        # A proxy that the environment names for the web does not know what 127.0.0.1 is here.
        return httpx.Client(trust_env=not is_here(self.url))

    def _http(self) -> httpx.Client:
        """Return the client of the loop that runs: a second `time.run` has another than the first."""
        if self._given is not None:
            return self._given
        loop = no_loop()
        if self._own is None or self._loop not in {None, loop}:
            self._own = self._new()
        self._loop = loop
        return self._own

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, but for those of a client that was given."""
        if self._given is None:
            self._http().close()

    def _ask(self, call: Call, kind: type[T]) -> T:
        """Return the answer of a call. Raises FoldinError."""
        return decoded(self._send(call), kind)

    def _ask_either(self, call: Call, kinds: Mapping[int, type]) -> Any:
        """Return the answer of a call, of which the status says what it is."""
        response = self._send(call)
        if response.status_code not in kinds:
            raise unreadable(response, "is not expected")
        return decoded(response, kinds[response.status_code])

    def _ask_text(self, call: Call) -> str:
        """Return the answer of a call that is text."""
        return (self._send(call)).text

    def _ask_lines(self, call: Call, kind: type[T]) -> Iterator[T]:
        """Yield the objects of an answer of lines. Raises NoAnswerError where it breaks off: what came is a
        part then. It is sent again only until it begins.
        """
        response = self._send(call, stream=True)
        decoder = msgspec.json.Decoder(kind)
        rest = b""
        try:
            # Not by `iter_lines`, for which a line also ends at U+2028 and the like, as a title may have.
            for chunk in response.iter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for text in lines:
                    yield decoder.decode(text)
            if rest:
                # Some proxies end an answer well of which they have a part.
                asked = f"{call.method} {self.url}{call.path}"
                raise NoAnswerError(f"{asked}: the answer ends within a line", was_sent=True)
        except httpx.HTTPError as exc:
            raise no_answer(exc, call.method, self.url + call.path) from exc
        except msgspec.MsgspecError as exc:
            raise unreadable_line(response, exc) from exc
        finally:
            response.close()

    def _send_rows(self, path: str, rows: Rows[Any], kind: type[T], *, is_repeatable: bool) -> T:
        """Send rows in as many calls as they take, one after the other; return the last answer, with
        the counts of all.

        A call is all or nothing, the whole is not: an error tells by `accepted` how many rows were stored
        before it.
        """
        packer = Packer()
        answer = msgspec.convert({"accepted": 0, "generation": None}, kind)

        def send() -> None:
            nonlocal answer
            call = Call("POST", path, body=packer.take(), content_type=LINES, is_repeatable=is_repeatable)
            try:
                answer = together(answer, self._ask(call, kind))
            except ProblemError as error:
                if error.row is not None:
                    error.row = packer.place(error.row)
                raise

        try:
            for row in each(rows):
                text = line(row)
                if packer.is_full_with(text):
                    send()
                packer.add(text)
            if packer.count:
                send()
        except BaseException as error:
            # Also those of the caller's rows: how far they came is nowhere else.
            if isinstance(error, FoldinError):
                error.accepted = counted(answer)
            if counted(answer):
                error.add_note(f"{counted(answer)} rows before were stored")
            raise
        return answer

    def _send(self, call: Call, *, stream: bool = False) -> httpx.Response:
        """Send a call, again where that helps and does no harm, and return its answer with success."""
        # By the clock that no one sets back.
        again = repeats(call, clock.monotonic() + self._retry_s, clock.monotonic)
        retries = stamina.retry_context(
            on=again,
            attempts=self._most,
            timeout=None,  # `repeats` has the deadline, as only it knows of `Retry-After`
            wait_initial=FIRST_PAUSE_S,
            wait_max=LONGEST_PAUSE_S,
            wait_jitter=FIRST_PAUSE_S,
        )
        for attempt in retries:
            with attempt:
                try:
                    return self._send_once(call, stream=stream)
                except FoldinError as error:
                    error.attempts = attempt.num
                    raise
        raise AssertionError("there is one attempt at least")

    def _send_once(self, call: Call, *, stream: bool) -> httpx.Response:
        more = {} if call.body is None else {"Content-Type": call.content_type}
        http = self._http()
        limit_s = self._limit_s
        request = http.build_request(
            call.method,
            self.url + call.path,
            params=call.parameters or None,
            content=call.body,
            headers={**self._headers, **more},
            timeout=httpx.Timeout(limit_s, read=None if limit_s is None else limit_s + call.longer_s),
        )
        try:
            response = http.send(request, stream=stream, auth=self._auth, follow_redirects=False)
            if stream and not response.is_success:
                # Of a stream only the head is there.
                response.read()
        except httpx.HTTPError as exc:
            raise no_answer(exc, call.method, self.url + call.path) from exc
        if not response.is_success:
            raise problem(response)
        return response
