"""What systems and file browsers leave in folders of others."""

IGNORED = (
    *("__MACOSX", "__pycache__", "@eaDir", "#recycle", "lost+found"),
    *("$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"),
)
"""Names that archivers, Python and disks use; everything that begins with a dot is ignored too."""


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is nobody's content: ``.ipynb_checkpoints``, ``._cat.jpg``."""
    return name.startswith(".") or name in IGNORED
