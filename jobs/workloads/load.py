"""Finds the workload that a spec names: a built-in one, or a class of the user's own."""

from __future__ import annotations

import operator
from contextlib import suppress

from jobs.data.cursor import DataCursor
from jobs.data.errors import DataError, SampleError
from jobs.errors import JobError
from jobs.failures import explain_error
from jobs.spec.errors import SpecError, did_you_mean
from jobs.spec.huggingface import HUGGINGFACE
from jobs.spec.imported import ImportFailed, import_module, namesake_of
from jobs.spec.job_spec import JobSpec
from jobs.spec.workload_names import BUILTIN, HUGGINGFACE_IMAGES, HUGGINGFACE_TEXTS, IMPORT_PATH
from jobs.workloads.base import Workload
from jobs.workloads.errors import WorkloadError

_METHODS = ("build_model", "train_batch", "loss", "evaluate", "metrics")


def load_workload(spec: JobSpec) -> Workload:
    """Makes the workload of a spec; modules are found in the working directory too.

    Raises:
        WorkloadError: there is no such module or class, or the class is no workload.
    """
    path = _path(spec)
    found = _class_at(path)
    try:
        workload = found(spec)
    except (DataError, SampleError, SpecError, JobError, WorkloadError):
        raise
    except Exception as error:
        raise WorkloadError(f"workload {path}: cannot be made: {explain_error(error).line}") from error
    _check_size(workload, path)
    return workload


def make_cursor(workload: Workload, spec: JobSpec) -> DataCursor:
    """The cursor over a workload's training set, at its beginning."""
    order = getattr(workload, "order", None)
    return DataCursor(workload.n_train, spec.data.batch_size, spec.seed, order=order)


def _path(spec: JobSpec) -> str:
    """The import path of the class; which one of huggingface depends on the model."""
    if spec.workload == HUGGINGFACE:
        from jobs.models.huggingface import IMAGES, TEXTS, task_of

        classifiers = {IMAGES: HUGGINGFACE_IMAGES, TEXTS: HUGGINGFACE_TEXTS}
        return classifiers.get(task_of(spec.model), BUILTIN[HUGGINGFACE])
    return BUILTIN.get(spec.workload, spec.workload)


def _check_size(workload: Workload, path: str) -> None:
    """Makes ``n_train`` a plain int, where it is a NumPy integer or a tensor of one."""
    n_train = getattr(workload, "n_train", None)
    try:
        size = operator.index(n_train)  # type: ignore[arg-type]
    except TypeError:
        size = 0
    if size < 1 or isinstance(n_train, bool):
        raise WorkloadError(f"workload {path}: n_train must be the size of the training set, not {n_train!r}")
    if type(n_train) is not int:
        with suppress(AttributeError):  # a property
            workload.n_train = size


def _class_at(path: str) -> type[Workload]:
    if not IMPORT_PATH.fullmatch(path):
        raise WorkloadError(
            f"workload {path}: write package.module:Class, or a built-in name ({', '.join(BUILTIN)})"
        )
    module_name, _, name = path.partition(":")
    try:
        module = import_module(module_name)
    except ImportFailed as error:
        raise WorkloadError(f"workload {path}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        question = did_you_mean(name, classes)
        message = f"workload {path}: the module {module_name} has no class {name}{namesake_of(module)}"
        raise WorkloadError(f"{message}; {question}" if question else message)
    missing = [method for method in _METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise WorkloadError(f"workload {path}: the class lacks {', '.join(f'{m}()' for m in missing)}")
    return found
