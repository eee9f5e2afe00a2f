"""Writes the references in the documents from the code; not part of the package."""
