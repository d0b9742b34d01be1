"""Values told from each other by what they are, not by what they hold. Invariant: of two that are equal under
`Same` nothing can differ, for they are one.
"""

from typing import Generic, TypeVar

Value = TypeVar("Value")


class Same(Generic[Value]):
    """A key for what follows from `value`, which may hold arrays. Keeps `value` alive, so that no other one
    takes its place.
    """

    __slots__ = ("value",)

    def __init__(self, value: Value) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value
