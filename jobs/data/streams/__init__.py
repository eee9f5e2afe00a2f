"""Data that fit on no disk and in no memory: files of rows, read block by block in a known order.

``order``: which rows make up each batch: blocks in random order, rows shuffled within a window
``formats``: files cut into blocks of rows: Parquet, CSV, JSON lines, tars
``tars``: samples of WebDataset tars
``files``: the files of a folder or a URL, by split
``index``: the blocks and the labels of all files
``reader``: reads blocks in Ray tasks before they are needed
``documents``: texts and chats as padded samples
``rows``: the rows of one split, as a workload asks for them
"""
