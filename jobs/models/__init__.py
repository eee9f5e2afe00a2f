"""The models that a spec can name.

``mlp``: a small network on rows of numbers
``word_bag``: a small network on the words of texts
``vision``: torchvision's classifiers, for images of any size
``gpt``: a decoder-only transformer
``huggingface``: models of transformers, adapters of PEFT, and folders for ``from_pretrained``
``exported``: a model from an exported file
``onnx_file``: a model as an ONNX file
"""
