"""What the clients have of the description of the API is what it says now, and no call of it is left out."""

from clients.generator import __main__ as generator


def test_what_is_made_of_the_description_is_made_of_the_one_of_now() -> None:
    assert generator.old() == [], "run `make clients`"
