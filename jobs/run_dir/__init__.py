"""A job's folder: its paths, its files, and the storage behind it.

``paths``: names of the files, and what happens when the job exists already
``jsonl``: rows of JSON that grow, and documents that are replaced whole
``result``: ``result.json``, how a job ended
``reader``, ``steps``: the one reader of these files; the step attempts as columns
``storage``: where checkpoints are stored: a local folder or a URL
``remote_storage``: S3, GCS, HDFS, fsspec
"""
