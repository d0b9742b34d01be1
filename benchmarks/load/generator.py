"""Load generator: drives an HTTP/1.1 server from a process of its own and records the latency of every
answer.

Invariant: in the open loop the latency of an answer counts from the moment when its request was due, however
late it was sent, so that a server that stalls cannot slow the clock that judges it (no coordinated omission).
Every run ends: it is bounded in seconds, in requests, and in how long it waits for the last answers.

It reads sockets straight from epoll instead of asyncio: on a machine of two cores the generator must leave as
much as it can to the server and its store. It takes 14 microseconds a request, about what `wrk` takes.
"""

import ctypes
import json
import os
import select
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from processes.blocking import BlockingChild, python_command

# Lists of as many answers take 1 GB.
MAX_REQUESTS = 20_000_000
# An answer to a batch of thousands of pairs in a few reads.
READ_BYTES = 262_144
PR_SET_TIMERSLACK = 29  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. `rate` None: closed loop, each connection asks again as soon as it was answered.

    `requests`: file written by `write_requests`; they are sent in its order, over and over. Answers to
    requests of the first `warm_up_s` seconds are not recorded. `drain_s`: how long to wait for the last
    answers.
    """

    port: int
    requests: str
    connections: int = 64
    seconds: float = 5.0
    warm_up_s: float = 0.5
    rate: float | None = None
    max_requests: int = MAX_REQUESTS
    drain_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it. `latencies_ms`: float64 (n,), one an answer, failed ones included, in no special
    order, and `codes`: int64 (n,), their status codes; 0 stands for a connection that broke, or a request
    that was not sent.

    `statuses`: answers by status code. `unanswered`: open at the end.
    `generator_busy`: share of one core that the generator used; near 1, it was the generator that was
    measured.
    """

    seconds: float
    latencies_ms: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int64]
    statuses: dict[int, int] = field(default_factory=dict)
    unanswered: int = 0
    generator_busy: float = 0.0

    @property
    def answered(self) -> int:
        return len(self.latencies_ms)

    @property
    def failed(self) -> int:
        """Answers other than 2xx, broken connections, and requests without an answer."""
        return self.unanswered + sum(n for status, n in self.statuses.items() if not 200 <= status < 300)

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds

    def percentile_ms(self, q: float) -> float:
        """Return the latency that `q` per cent of the answers did not exceed; NaN without any."""
        return float(np.percentile(self.latencies_ms, q)) if self.answered else float("nan")


class LoadError(RuntimeError):
    """The generator could not connect, or did not end in time."""


def get(path: str, host: str = "localhost", key: str | None = None) -> bytes:
    """Return the bytes of a GET request that asks for nothing special, with an API key where there is one."""
    more = "" if key is None else f"Authorization: Bearer {key}\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def post(path: str, body: bytes, host: str = "localhost") -> bytes:
    """Return the bytes of a POST request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def write_requests(path: Path, requests: Iterable[bytes]) -> Path:
    """Write requests, each behind its length (4 bytes, little endian); return `path`."""
    with path.open("wb") as file:
        for request in requests:
            file.write(len(request).to_bytes(4, "little") + request)
    return path


def read_requests(path: Path) -> list[bytes]:
    """Return what `write_requests` wrote."""
    data = path.read_bytes()
    requests = []
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        requests.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    return requests


def run(plan: Plan, *, cpus: Sequence[int] = ()) -> Load:
    """Carry the plan out in a process of its own, on the cores `cpus` when given. Raises `LoadError`."""
    with tempfile.TemporaryDirectory(prefix="foldin-load-") as folder:
        answers, result_file = Path(folder) / "answers.npy", Path(folder) / "result.json"
        command = python_command(
            "benchmarks.load.generator", json.dumps(asdict(plan)), str(answers), str(result_file)
        )
        with BlockingChild(command, Path(folder) / "log", cpus=cpus) as child:
            try:
                code = child.wait(2 * (plan.seconds + plan.drain_s) + plan.warm_up_s + 60)
            except TimeoutError as exc:
                raise LoadError("the load generator did not end in time") from exc
        if code != 0:
            raise LoadError(child.last_line)
        result = json.loads(result_file.read_text())
        codes, nanoseconds = np.load(answers)
        return Load(
            seconds=result["seconds"],
            latencies_ms=nanoseconds / 1e6,
            codes=codes,
            statuses={int(status): count for status, count in result["statuses"].items()},
            unanswered=result["unanswered"],
            generator_busy=result["generator_busy"],
        )


class _BrokenError(Exception):
    """The peer closed the connection, or its answer has no Content-Length."""


class _Connection:
    """One keep-alive connection with at most one request under way.

    `due`: when the request was due, ns; `unsent`: what the socket did not take yet; `head`: an answer whose
    header is not complete; `status` and `missing`: of the answer that comes in, its status and the bytes
    still to come.
    """

    __slots__ = ("due", "file", "head", "missing", "socket", "status", "unsent")

    def __init__(self, plan: Plan) -> None:
        self.socket = socket.create_connection(("127.0.0.1", plan.port), timeout=5)
        # A request is sent whole; Nagle's algorithm could only delay it.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.file = self.socket.fileno()
        self.due = 0
        self.unsent = b""
        self.head = b""
        self.status = 0
        self.missing = 0

    def receive(self) -> bool:
        """Read what there is; return whether the answer is complete. Raises `_BrokenError`."""
        try:
            data = os.read(self.file, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError as exc:
            raise _BrokenError from exc
        if not data:
            raise _BrokenError
        # Nearly every answer comes in one read: no buffer is kept, and a body is counted, not stored.
        if self.missing:
            self.missing -= len(data)
        else:
            if self.head:
                data = self.head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.head = data
                return False
            self.head = b""
            self.status = int(data[9:12])
            self.missing = end + 4 + _content_length(data, end) - len(data)
        return self.missing == 0


def _content_length(data: bytes, end: int) -> int:
    # As aiohttp writes it; to lower the whole head is the slow way.
    at = data.find(b"Content-Length: ", 0, end)
    if at < 0:
        at = data[:end].lower().find(b"content-length: ")
        if at < 0:
            raise _BrokenError
    return int(data[at + 16 : data.find(b"\r", at)])


class _Generator:
    """Both loops over one set of connections."""

    def __init__(self, plan: Plan, requests: list[bytes]) -> None:
        if not requests:
            raise LoadError("there are no requests to send")
        self.plan = plan
        self.requests = requests
        self.poll = select.epoll()  # before the sockets: select() on it wants a small file number
        self.connections: dict[int, _Connection] = {}
        self.sent = 0
        self.under_way = 0
        self.latencies: list[int] = []
        self.codes: list[int] = []
        self.statuses: Counter[int] = Counter()
        self.record_from = 0
        # All before the first request: making them must not count as answering.
        for _ in range(plan.connections):
            self.connect()

    def connect(self) -> _Connection:
        connection = _Connection(self.plan)
        self.connections[connection.file] = connection
        self.poll.register(connection.file, select.EPOLLIN)
        return connection

    def send(self, connection: _Connection, due: int) -> None:
        """Send the next request on a free connection."""
        request = self.requests[self.sent % len(self.requests)]
        self.sent += 1
        self.under_way += 1
        connection.due = due
        try:
            written = os.write(connection.file, request)
        except BlockingIOError:
            written = 0
        except OSError:
            return  # the break is seen, and counted, when it is read
        if written < len(request):
            connection.unsent = request[written:]
            self.poll.modify(connection.file, select.EPOLLIN | select.EPOLLOUT)

    def send_rest(self, connection: _Connection) -> None:
        try:
            written = os.write(connection.file, connection.unsent)
        except OSError:
            return
        connection.unsent = connection.unsent[written:]
        if not connection.unsent:
            self.poll.modify(connection.file, select.EPOLLIN)

    def answered(self, file: int, event: int) -> _Connection | None:
        """Handle one event; return the connection that became free by it, if any."""
        connection = self.connections[file]
        if event & select.EPOLLOUT:
            self.send_rest(connection)
            if not event & ~select.EPOLLOUT:
                return None
        try:
            if not connection.receive():
                return None
            status = connection.status
        except _BrokenError:
            status = 0
            due = connection.due
            connection = self.replace(connection)
            connection.due = due
        self.under_way -= 1
        if connection.due >= self.record_from:
            self.statuses[status] += 1
            self.latencies.append(time.perf_counter_ns() - connection.due)
            self.codes.append(status)
        return connection

    def replace(self, connection: _Connection) -> _Connection:
        """Return a new connection in place of a broken one. Raises `LoadError` when the server is gone."""
        self.poll.unregister(connection.file)
        del self.connections[connection.file]
        connection.socket.close()
        try:
            return self.connect()
        except OSError as exc:
            raise LoadError(f"port {self.plan.port}: {exc}") from exc

    def closed_loop(self) -> float:
        """Let each connection ask again once it was answered; return the seconds of the recorded answers."""
        plan = self.plan
        now = time.perf_counter_ns()
        self.record_from = now + int(plan.warm_up_s * 1e9)
        end = self.record_from + int(plan.seconds * 1e9)
        for connection in list(self.connections.values()):
            self.send(connection, time.perf_counter_ns())
        while now < end and self.sent < plan.max_requests:
            # Wakes without an answer, too: a server that stalls must not keep the run from its end.
            for file, event in self.poll.poll(0.05):
                free = self.answered(file, event)
                if free is not None:
                    self.send(free, time.perf_counter_ns())
            now = time.perf_counter_ns()
        self.drain(None)
        return max(time.perf_counter_ns() - self.record_from, 1) / 1e9

    def open_loop(self, rate: float) -> float:
        """Send a request every 1 / `rate` seconds, whatever became of those before it; return the seconds."""
        plan = self.plan
        _fine_timers()
        began = time.perf_counter_ns()
        self.record_from = began + int(plan.warm_up_s * 1e9)
        n_due = min(int(rate * (plan.warm_up_s + plan.seconds)), plan.max_requests)
        interval = 1e9 / rate
        # First in, first out: every connection gets its share, on whichever worker it lies.
        idle = deque(self.connections.values())
        waiting: deque[int] = deque()
        i = 0
        due = began
        while i < n_due:
            now = time.perf_counter_ns()
            while due <= now and i < n_due:
                if idle:
                    self.send(idle.popleft(), due)
                else:
                    waiting.append(due)
                i += 1
                due = began + int(i * interval)
            wait_s = (due - time.perf_counter_ns()) / 1e9
            if wait_s > 0:
                # epoll itself waits in whole milliseconds; select() on its file number in microseconds.
                select.select([self.poll], [], [], min(wait_s, 0.05))
            self.collect(idle, waiting)
        while waiting and time.perf_counter_ns() < due + self.plan.drain_s * 1e9:
            select.select([self.poll], [], [], 0.05)
            self.collect(idle, waiting)
        self.drain(idle)
        self.give_up(waiting)
        return n_due / rate - plan.warm_up_s

    def collect(self, idle: deque[_Connection], waiting: deque[int]) -> None:
        for file, event in self.poll.poll(0):
            free = self.answered(file, event)
            if free is None:
                continue
            if waiting:
                self.send(free, waiting.popleft())
            else:
                idle.append(free)

    def drain(self, idle: deque[_Connection] | None) -> None:
        """Wait a bounded time for the answers that are still to come."""
        deadline = time.perf_counter_ns() + int(self.plan.drain_s * 1e9)
        while self.under_way and time.perf_counter_ns() < deadline:
            for file, event in self.poll.poll(0.05):
                free = self.answered(file, event)
                if free is not None and idle is not None:
                    idle.append(free)

    def give_up(self, waiting: deque[int]) -> None:
        """Count requests that were never sent with the age that they had when the run ended."""
        now = time.perf_counter_ns()
        # Left out, they would make a server that answers nothing look fast.
        late = [now - due for due in waiting if due >= self.record_from]
        self.latencies.extend(late)
        self.codes.extend([0] * len(late))
        self.under_way += len(waiting)


def _fine_timers() -> None:
    """Ask Linux to wake this process on time."""
    # The default lets each wait last 50 microseconds longer: as much as two answers.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_TIMERSLACK, 1_000, 0, 0, 0)


def main(argv: Sequence[str]) -> int:
    """Be the process that `run` starts; arguments: plan as JSON, files for the latencies and for the rest."""
    text, answers, result = argv
    plan = Plan(**json.loads(text))
    try:
        generator = _Generator(plan, read_requests(Path(plan.requests)))
        cpu, began = time.process_time(), time.perf_counter()
        seconds = generator.closed_loop() if plan.rate is None else generator.open_loop(plan.rate)
        busy = (time.process_time() - cpu) / (time.perf_counter() - began)
    except (LoadError, OSError) as exc:
        print(f"load: {exc}", file=sys.stderr)
        return 1
    np.save(answers, np.array([generator.codes, generator.latencies], dtype=np.int64))
    found = {
        "seconds": seconds,
        "statuses": dict(generator.statuses),
        "unanswered": generator.under_way,
        "generator_busy": busy,
    }
    Path(result).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
