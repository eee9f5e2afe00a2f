"""Training data: its sources, and the order in which samples are used.

``cursor``: the order of the samples: the same for every world size, resumable at any batch
``sources``: images by name or folder
``named``: torchvision's data sets
``idx``: MNIST's file format
``imagefolder``: a folder of images, one sub-folder for each class
``labelled``: images and labels from a table
``tables``: CSV, Parquet, JSON lines, Arrow
``webdataset``: images and labels in tar files
``csv_files``: CSV and TSV as spreadsheets write them
``files``: the files below a folder, and names of training and held-out parts
``images``: labelled images in memory or files
``decode``: one image file as red, green and blue
``transforms``: size, augmentation, normalisation
``mixing``: MixUp and CutMix
``reader``: reads and augments samples
``prefetch``: reads them in other processes before they are needed
``text``: text sources
``documents``: texts and chats, one by one
``samples``: documents packed into windows, or padded
``tokens``: text as token samples
``token_cache``: token ids kept on disk
``streams``: tables and tars that fit on no disk, read a block at a time
``to_folder``: ``python -m jobs.data.to_folder``, a data set as image files
``errors``: what reading data raises
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.lazy import lazy

if TYPE_CHECKING:
    from jobs.data.cursor import Batch, DataCursor, shard
    from jobs.data.errors import DataError, SampleError
    from jobs.data.images import ImageData
    from jobs.data.sources import load_images

__all__ = ["Batch", "DataCursor", "DataError", "ImageData", "SampleError", "load_images", "shard"]

__getattr__ = lazy(
    __name__,
    {
        "Batch": "cursor",
        "DataCursor": "cursor",
        "DataError": "errors",
        "ImageData": "images",
        "SampleError": "errors",
        "load_images": "sources",
        "shard": "cursor",
    },
)
