"""Clipping: nine kinds behind one interface, ``plan`` and ``clip_`` (``base.py``); ``make.py`` makes each."""
