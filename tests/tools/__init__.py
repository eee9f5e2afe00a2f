"""Writes the documents that are made from the code; not part of the package.

``reference``: service/CLI.md, and all documents
``http_reference``: service/API.md
``api_reference``: guard/API.md and jobs/API.md
``spec_reference``: jobs/SPEC.md
``metrics_table``: guard/METRICS.md
``schema_table``: tables of fields
``release``: ``make release``: checks, builds and tries a release
"""
