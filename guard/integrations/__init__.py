"""The guard in loops that a framework owns. Each module needs the extra of its name.

``guard.integrations.lightning``: a callback for Lightning's ``Trainer``.
``guard.integrations.transformers``: Hugging Face's ``Trainer``, guarded.
"""
