"""What a person should know beside the numbers: what was assumed, left out or measured on too little."""

from dataclasses import dataclass

__all__ = ["Note", "as_sentence"]


@dataclass(frozen=True)
class Note:
    """Something to know beside the numbers.

    Attributes:
        text: A sentence or two.
        is_warning: Whether the numbers may not mean what they seem to.
    """

    text: str
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{'warning' if self.is_warning else 'note'}: {self.text}"


def as_sentence(message: str) -> str:
    """Return a message as a sentence of its own: a capital, unless a name is first, and a full stop."""
    plain = message.strip()
    first = plain.split(" ", 1)[0]
    if first.isalpha() and first.islower():  # not the name of a file or a model
        plain = plain[0].upper() + plain[1:]
    return plain if plain.endswith((".", "?")) else f"{plain}."
