"""Which column is the step, the loss, the gradient norm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\S+", text))


USUAL = {
    "step": _words(
        "global_step step _step trainer_global_step train_global_step iteration iter iterations steps n_iter "
        "num_updates current_steps train_step training_step optimizer_step completed_step update batch "
        "time_batch training_iteration"
    ),
    "loss": _words(
        "loss train_loss train_loss_step training_loss lm_loss loss_train total_loss loss_train_total "
        "train_loss_train_total reduced_train_loss train_crossentropyloss train_ce_loss "
        "train_cross_entropy_loss loss_metrics_global_avg_loss batch_loss"
    ),
    "grad_norm": _words(
        "grad_norm gradient_norm gradnorm gnorm train_grad_norm total_grad_norm optim_total_grad_norm "
        "train_gradient_norm grad_norm_total grad_2_0_norm_total l2_norm_grad_global global_grad_norm norm "
        "total_norm global_norm grad_l2_norm l2_grad_norm"
    ),
}
"""How common tools call the columns, in order of preference."""

_EVALUATION = frozenset(
    _words(
        "val valid validate validating validation eval evaluate evaluating evaluation "
        "test testing dev holdout"
    )
)
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_UNITS = frozenset(_words("step steps iter iteration iterations update batch norm"))
"""What a rate is per, and any norm."""


def plain(name: str) -> str:
    """``train/Loss`` and ``train_loss`` are one name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def find(header: Sequence[str], name: str, names: Iterable[str]) -> str | None:
    """The column of exactly this name, else the first of the usual names, else the only one that ends in one:
    ``learning/grad_norm``.
    """
    return _find(tuple(header), name, tuple(names))


@lru_cache(maxsize=1024)
def _find(header: tuple[str, ...], name: str, names: tuple[str, ...]) -> str | None:
    if name in header:
        return name
    found = {_letters(column): column for column in reversed(header)}
    usual = [_letters(one) for one in names]
    whole = next((found[one] for one in usual if one in found), None)
    return whole or next((ends[0] for one in usual if len(ends := _ending(header, one)) == 1), None)


def _letters(name: str) -> str:
    """``trainLoss`` and ``train_loss`` are one name."""
    return plain(name).replace("_", "")


def _ending(header: Sequence[str], name: str) -> list[str]:
    """The columns whose last section is called so; not ``ms/batch``."""
    columns = [column for column in header if "/" in column and not is_evaluation(column)]
    return [c for c in columns if name not in _UNITS and _letters(c.rsplit("/", 1)[1]) == name]


def find_loss(header: Sequence[str]) -> str | None:
    """The loss of the training by a usual name, else the only column that is called a loss."""
    return _find_loss(tuple(header))


@lru_cache(maxsize=1024)
def _find_loss(header: tuple[str, ...]) -> str | None:
    usual = find(header, "loss", USUAL["loss"])
    if usual is not None:
        return usual
    losses = [name for name in header if "loss" in name.lower() and not is_evaluation(name)]
    return losses[0] if len(losses) == 1 and "scale" not in losses[0].lower() else None


@lru_cache(maxsize=1024)
def is_evaluation(name: str) -> bool:
    """``val_loss``, ``eval/loss``."""
    return not _EVALUATION.isdisjoint(plain(_HUMP.sub("_", name)).split("_"))
