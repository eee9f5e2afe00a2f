"""Workloads: model, data, loss and evaluation of one task.

``base``: the protocol, for built-in workloads and for a user's own
``vision``: image classification
``language``: a GPT that predicts the next token
``huggingface``: a causal language model of Hugging Face, on texts or chats
``huggingface_images``: an image classifier of Hugging Face
``tabular``: the rows of a table, of numbers or of texts
``feature_rows``: the numbers
``streamed_features``: the same, from a stream
``word_rows``: the texts, as hashed words
``labelled_texts``: texts with a class each
``huggingface_texts``: a text classifier of Hugging Face
``streamed``: what they add for data that are a stream
``losses``: the cross-entropy of both
``class_scores``: macro F1, top-5 accuracy and confusion matrix
``load``: finds the class that a spec names
``errors``: what finding and loading a workload raises
"""

from jobs.workloads.base import Workload
from jobs.workloads.errors import WorkloadError
from jobs.workloads.load import load_workload, make_cursor

__all__ = ["Workload", "WorkloadError", "load_workload", "make_cursor"]
