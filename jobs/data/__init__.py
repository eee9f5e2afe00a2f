"""Training data: where it comes from and in which order it is seen."""

from jobs.data.cursor import Batch, DataCursor, shard
from jobs.data.errors import DataError, SampleError
from jobs.data.images import ImageData
from jobs.data.sources import load_images

__all__ = ["Batch", "DataCursor", "DataError", "ImageData", "SampleError", "load_images", "shard"]
