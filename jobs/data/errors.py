"""The errors of everything that reads training data."""


class DataError(ValueError):
    """A data set is missing, damaged or too small; one line that names the file or the field."""


class SampleError(RuntimeError):
    """One sample cannot be read now; one line that names its file.

    No ``DataError``: it may meet one rank alone, in the midst of training, and the next try may succeed.
    """
