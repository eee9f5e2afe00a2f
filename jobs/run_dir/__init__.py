"""A job's folder: its paths, its files, and the storage behind it.

``paths``: names of the files, and what happens when the job exists already
``jsonl``: rows of JSON that grow, and documents that are replaced whole
``strays``: what systems and file browsers leave in folders of others
``plain_file``: opens every file that is read
``reader``: ``RunReader``, the one reader of all files
``incidents``: the incidents of a journal with their outcomes
``steps``: the step attempts as columns
``result``: ``result.json``, how a job ended
``storage``: the interface of a storage of checkpoints, and local folders
``open_storage``: the storage of a path or a URL
``remote_storage``: S3, GCS, HDFS, fsspec
``strays``: what file browsers and systems leave in folders
"""
