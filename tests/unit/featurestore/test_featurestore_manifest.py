"""What is stored of a generation: read as written, or refused."""

from dataclasses import replace

import msgspec
import pytest

from featurestore.errors import GenerationBroken, StoreDamaged
from featurestore.generations.manifest import (
    GenerationMeta,
    Pointer,
    decode_meta,
    decode_summary,
    encode_meta,
    read_pointer,
)
from tests.support.factories import make_draft, make_model


def meta(rows: int = 5) -> GenerationMeta:
    draft = make_draft(make_model(), 3, rows, 7)
    written = replace(draft, generation=42, created=1.5, metrics={"rmse": 0.9}, state="ready")
    summary = replace(written, chunks=1 if rows else 0)
    return GenerationMeta(summary, {0: "1-1", 3: "5-0"}, rows, 100, 1234, make_model())


def test_a_meta_is_read_as_written() -> None:
    written = meta()
    read = decode_meta(encode_meta(written), b"meta")
    assert replace(read, model=written.model) == written
    assert read.model.parameters.keys() == written.model.parameters.keys()


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"summary": 3}', b"\xff\xfe", b"null"])
def test_other_bytes_are_a_broken_generation(text: bytes) -> None:
    with pytest.raises(GenerationBroken):
        decode_meta(text, b"meta")
    with pytest.raises(GenerationBroken):
        decode_summary(text, b"generations")


def test_a_generation_of_a_newer_format_is_refused() -> None:
    summary = msgspec.json.decode(msgspec.json.encode(meta().summary))
    summary |= {"format": 2, "state": {"of": "later"}}
    newer = msgspec.json.encode({"summary": summary, "whatever": 1})
    for read in (
        lambda: decode_summary(msgspec.json.encode(summary), b"generations"),
        lambda: decode_meta(newer, b"meta"),
    ):
        with pytest.raises(GenerationBroken, match="format 2, this version reads up to 1: use the version"):
            read()


def test_no_byte_of_a_meta_can_change_unseen() -> None:
    text = encode_meta(meta())
    # The name of the last field may change: what it checks has not.
    for place in range(0, len(text) - 25, 7):
        changed = bytes([text[place] ^ 1])
        with pytest.raises(GenerationBroken):
            decode_meta(text[:place] + changed + text[place + 1 :], b"meta")


@pytest.mark.parametrize(
    ("field", "value"), [("rows_per_chunk", 0), ("item_rows", -1), ("item_rows", 101), ("model", "AAAA")]
)
def test_a_meta_that_does_not_add_up_is_a_broken_generation(field: str, value: object) -> None:
    fields = msgspec.json.decode(encode_meta(meta()))
    fields[field] = value
    del fields["check"]
    with pytest.raises(GenerationBroken):
        decode_meta(msgspec.json.encode(fields), b"meta")


def test_a_pointer_of_a_new_namespace_has_no_generation() -> None:
    assert read_pointer({b"epoch": b"1"}, b"live") == Pointer(1, 0, 0, False, 0, 0, 0.0)
    # What was taken back is for people: it keeps no reader from the rest.
    assert read_pointer({b"epoch": b"1", b"rolled_back": b"{"}, b"live") == Pointer(1, 0, 0, False, 0, 0, 0.0)


@pytest.mark.parametrize("text", [b"", b"x", b"-1", b"1.5", b" 1", b"\xff"])
@pytest.mark.parametrize("field", [b"epoch", b"generation", b"fence", b"pending", b"last_epoch"])
def test_a_pointer_that_names_no_number_is_damaged(field: bytes, text: bytes) -> None:
    with pytest.raises(StoreDamaged, match="the store is damaged at NS:live: "):
        read_pointer({b"epoch": b"1", field: text}, b"NS:live")
