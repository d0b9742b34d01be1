"""A made set in the form of the files of MovieLens 100K that the documents import."""

import random
from pathlib import Path

GENRES = ("Action", "Comedy", "Drama", "Horror", "Sci-Fi", "Romance", "War")
USERS, ITEMS = 60, 190


def write_files(folder: Path) -> None:
    rng = random.Random(1)
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    items += ["1\tToy Story\t1995\tAnimation Children's Comedy", "2\tOdd\tV\tDrama"]
    named = {50: "50\tStar Wars\t1977\tAction Adventure Romance Sci-Fi War"}
    for number in range(3, ITEMS + 1):
        genres = " ".join(rng.sample(GENRES, 1 + number % 2))
        items.append(named.get(number, f"{number}\tMovie {number}\t{1980 + number % 20}\t{genres}"))
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    users += [f"{user}\t{20 + user % 40}\tMF\twriter\tT{user:04}" for user in range(1, USERS + 1)]
    ratings = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(1, USERS + 1):
        for item in (each for each in range(1, ITEMS + 1) if rng.random() < 0.4):
            value = 1 + (user * item + user + item) % 5
            ratings.append(f"{user}\t{item}\t{value}\t{880_000_000 + len(ratings)}")
    for name, lines in (("item", items), ("user", users), ("inter", ratings)):
        (folder / f"ml-100k.{name}").write_text("\n".join(lines) + "\n", "utf-8")


def write_tables(folder: Path) -> None:
    """Files by the names that the README has for a person's own; their ids are of no movie above."""
    users, items = range(1001, 1031), range(2001, 2021)
    ratings = (
        f"{user},{item},{1 + (user * item) % 5},{890_000_000 + item}" for user in users for item in items
    )
    tables = {
        "ratings": ["userId,movieId,rating,timestamp", *ratings],
        "movies": ["movieId,title,genres,year", *(f"{item},Film {item},Drama|War,1999" for item in items)],
        "users": ["userId,age", *(f"{user},30" for user in users)],
    }
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", "utf-8")
