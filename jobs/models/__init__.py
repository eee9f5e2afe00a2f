"""The models that a spec can name.

``vision``: torchvision's classifiers, for images of any size
``gpt``: a decoder-only transformer
``exported``: a model from an exported file
"""
