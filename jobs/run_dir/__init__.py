"""A job's folder: its paths, its files, and the storage behind it."""
