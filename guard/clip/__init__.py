"""Clipping: nine kinds behind one interface.

``base``: the interface: ``plan`` from norms, ``clip_`` in place; kind ``off``
``fixed``: fixed limits: ``norm``, ``group``, ``value``
``adaptive``: limits that follow the run: ``auto``, ``autoclip``, ``zclip``
``agc``: ``agc``, each unit relative to its weights
``adagc``: ``adagc``, each tensor relative to its own mean
``make``: the clipper of a kind
"""
