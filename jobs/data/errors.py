"""The error of everything that reads training data."""


class DataError(ValueError):
    """A data set is missing, damaged or too small; one line that names the file or the field."""
