"""Tables of texts that others wrote."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


class PlainTable(Table):
    """Shows each cell as it is: square brackets are no markup, and no sequence reaches the terminal."""

    def add_row(self, *cells: RenderableType | None, **how: object) -> None:
        """As of ``Table``."""
        super().add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in cells), **how)  # type: ignore[arg-type]


def plain(text: str) -> Text:
    """The text, with what is neither a character nor a line break replaced."""
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))
