"""Pairs out of a body in the usual form, without an object for each pair.

Invariant: what is taken here is what decoding the JSON would give; anything else is left to that.

Without escapes and control characters each quotation mark begins or ends a string, so that the text between
them alternates between strings and punctuation, and comparing the punctuation is all there is to check.
"""

import numpy as np

from factors import Int64s
from featurestore.id_columns import ROOM_BYTES, Bytes, Ids
from service.http.parsing import MAX_ID_BYTES

# About 1 ms; what is larger is decoded in a thread.
_MOST_BYTES = 512 * 1024
_QUOTE, _SPACE, _COMMA, _OPEN, _CLOSE = b'" ,[]'
_BEGIN = (b":[[", b": [[")


def plain_pairs(body: bytes | bytearray) -> tuple[Ids, Ids] | None:
    """Return users and items of a body `{"pairs":[["user","item"],...]}`: ids of 1 to 256 bytes of ASCII,
    written as text without escapes; None for any other body, right or wrong.
    """
    if len(body) > _MOST_BYTES or not body.startswith(b'{"pairs"') or not body.endswith(b'"]]}'):
        return None
    data = np.frombuffer(body + bytes(ROOM_BYTES), dtype=np.uint8)
    if not body.isascii() or b"\\" in body or data[: len(body)].min() < _SPACE:
        return None
    # { "pairs" :[[ "user" , "item" ],[ "user" , "item" ]]}
    quotes = np.flatnonzero(data == _QUOTE)
    if len(quotes) % 4 != 2 or len(quotes) < 6 or body[quotes[1] + 1 : quotes[2]] not in _BEGIN:
        return None
    user_begin, user_end, item_begin, item_end = (quotes[start::4] for start in range(2, 6))
    if not (
        _punctuated(data, user_end, item_begin, (_COMMA,))
        and _punctuated(data, item_end[:-1], user_begin[1:], (_CLOSE, _COMMA), (_OPEN,))
    ):
        return None
    users, items = (
        Ids(data, begin + 1, end - begin - 1)
        for begin, end in ((user_begin, user_end), (item_begin, item_end))
    )
    sized = all(ids.lengths.min() > 0 and ids.lengths.max() <= MAX_ID_BYTES for ids in (users, items))
    return (users, items) if sized else None


def _punctuated(
    data: Bytes, ends: Int64s, begins: Int64s, before: tuple[int, ...], after: tuple[int, ...] = ()
) -> bool:
    """Whether `before`, perhaps a blank, and `after` stand between the quotation marks at `ends` and those at
    `begins`.
    """
    blanks = begins - ends - 1 - len(before) - len(after)
    wrong = (blanks != 0) & ((blanks != 1) | (data[begins - 1 - len(after)] != _SPACE))
    if wrong.any():
        return False
    return all((data[ends + 1 + k] == mark).all() for k, mark in enumerate(before)) and all(
        (data[begins - len(after) + k] == mark).all() for k, mark in enumerate(after)
    )
