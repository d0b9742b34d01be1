"""What is stored of a generation: read as written, or refused."""

from dataclasses import replace

import msgspec
import pytest

from featurestore.errors import GenerationBroken, StoreDamaged
from featurestore.generations.manifest import (
    GenerationMeta,
    Kept,
    Pointer,
    decode_beat,
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


def test_the_state_comes_where_the_functions_look_for_it() -> None:
    text = msgspec.json.encode(meta().summary)
    assert text.startswith(b'{"generation":42,"epoch":1,"state":"ready"')
    assert decode_summary(text, b"generations") == meta().summary


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"summary": 3}', b"\xff\xfe", b"null"])
def test_other_bytes_are_a_broken_generation(text: bytes) -> None:
    with pytest.raises(GenerationBroken):
        decode_meta(text, b"meta")
    with pytest.raises(GenerationBroken):
        decode_summary(text, b"generations")


def test_no_byte_of_a_meta_can_change_unseen() -> None:
    text = encode_meta(meta())
    for place in range(0, len(text), 7):
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


def test_a_heartbeat_that_cannot_be_read_is_none() -> None:
    assert decode_beat(b"w", b"nonsense", 5.0) is None
    worker = decode_beat(b"w", b'{"generation":2,"epoch":1,"at":3.5,"pid":9}', 5.0)
    assert worker is not None
    assert worker.age_s == 1.5


@pytest.mark.parametrize("text", [b"", b"x", b"-1", b"1.5", b" 1", b"\xff"])
@pytest.mark.parametrize("field", [b"epoch", b"generation", b"fence", b"pending", b"last_epoch"])
def test_a_pointer_that_names_no_number_is_damaged(field: bytes, text: bytes) -> None:
    with pytest.raises(StoreDamaged, match="the store is damaged at NS:live: "):
        read_pointer({b"epoch": b"1", field: text}, b"NS:live")


def test_which_record_fields_are_kept() -> None:
    assert (Kept(frozenset()).upto, Kept(frozenset()).fields) == (0, b"")
    assert (Kept(frozenset({9, 7})).upto, Kept(frozenset({9, 7})).fields) == (9, b"g7,g9")
