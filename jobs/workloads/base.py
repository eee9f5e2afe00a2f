"""The interface between a training job and what it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from jobs.data.cursor import DataCursor
    from jobs.spec.job_spec import JobSpec


class Workload(Protocol):
    """Model, data, loss and evaluation. Any class with these members will do; no need to inherit.

    Every worker makes its own, from the same spec. No method may call a collective.

    Optional members: ``fingerprint``, a str that identifies the data: it must be the same on every worker,
    and a resume on other data is refused; ``classes``, their names in the order of the outputs, compared in
    the same way; ``class_counts``, samples by class, and ``describe(batch) -> list[str]``, for ``gradguard
    check``; ``describe_sample(id) -> str``, what a bad sample is, for its incident; ``confusion(sums) ->
    list[list[int]] | None``, a row for each true class, for ``result.json`` and the report; ``samples(model,
    device) -> list[tuple[str, str]]``, prompts and the trained model's answers, for ``samples.txt`` and the
    report; ``order(epoch, index) -> ids``, the samples of a batch, if no permutation of all decides.
    """

    n_train: int
    """Size of the training set; sample ids are 0..n_train-1."""

    def __init__(self, spec: JobSpec) -> None:
        """Reads the data. Fields of your own are in ``spec.options``."""

    def build_model(self) -> nn.Module:
        """A new model on the CPU; with the same weights on every worker."""
        ...

    def train_batch(self, ids: NDArray[np.int64], epoch: int, device: torch.device) -> Any:
        """The training batch of these samples, on the device.

        It must depend on the arguments and the spec alone: then a resumed run sees the same batches, and so
        does a run with another number of workers.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss over the batch, a scalar tensor; the model may be wrapped for distributed training."""
        ...

    def evaluate(
        self, model: nn.Module, rank: int, world_size: int, device: torch.device
    ) -> dict[str, float]:
        """Sums over this rank's share of the test set, under the same keys on every rank.

        The shares of all ranks make up the test set, each sample in exactly one; they may be unequal, or
        empty. The caller adds the sums of all ranks. ``model`` is the bare module, in train or eval mode.
        """
        ...

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics that follow from the sums over all ranks, such as ``test_accuracy``."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A workload that prefetches batches; your own may do so too."""

    def read_ahead(self, cursor: DataCursor, rank: int, world_size: int, device: torch.device) -> None:
        """Called once, before the first step; ``cursor.upcoming()`` has the batches to come.

        The cursor may be set back at any time: what ``train_batch`` returns must not depend on what was
        prepared.
        """
        ...

    def close(self) -> None:
        """Ends the prefetching; called however the training ends."""
        ...
