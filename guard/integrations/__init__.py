"""The guard in loops that a framework owns. Each module needs the extra of its name.

``lightning``: a callback for Lightning's ``Trainer``
``transformers``: Hugging Face's ``Trainer``, guarded
``session``: what both share
``torchvision_compat``: imports torchvision, which both import, beside a CPU build of torch
"""
