"""Pairs out of a body that is written as nearly everybody writes it, without an object a pair.

Invariant: what is taken here is what decoding the JSON would give; anything else is left to that.

Without escapes and control characters each quotation mark begins or ends a string, so that the text between
them alternates between strings and punctuation, and comparing the punctuation is all there is to check.
"""

from service.validation import MAX_ID_BYTES

# About 2 ms; what is larger is decoded in a thread.
_MOST_BYTES = 512 * 1024
_CONTROLS = bytes(range(32))
_BEGIN = (b":[[", b": [[")
_WITHIN = {b",", b", "}
_BETWEEN = {b"],[", b"], ["}


def plain_pairs(body: bytes | bytearray) -> tuple[list[bytes], list[bytes]] | None:
    """Users and items of a body `{"pairs":[["user","item"],...]}`: ids of 1 to 256 bytes of ASCII, written as
    text without escapes. None where anything is otherwise, right or wrong.
    """
    if len(body) > _MOST_BYTES or not body.startswith(b'{"pairs"') or not body.endswith(b'"]]}'):
        return None
    text = bytes(body)
    if not text.isascii() or b"\\" in text or len(text.translate(None, _CONTROLS)) != len(text):
        return None
    # { "pairs" :[[ "user" , "item" ],[ "user" , "item" ]]}
    parts = text.split(b'"')
    if len(parts) % 4 != 3 or len(parts) < 7 or parts[2] not in _BEGIN:
        return None
    if not (set(parts[4::4]) <= _WITHIN and set(parts[6:-1:4]) <= _BETWEEN):
        return None
    users, items = parts[3::4], parts[5::4]
    lengths = set(map(len, users)) | set(map(len, items))
    if min(lengths) == 0 or max(lengths) > MAX_ID_BYTES:
        return None
    return users, items
