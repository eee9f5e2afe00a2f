"""``gradguard check``: validates a spec and checks its network before training."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Column
from typer import Option

from guard.rows import strict
from jobs.spec.job_spec import JobSpec
from jobs.spec.masking import masked_spec
from jobs.spec.workload_names import BUILTIN
from jobs.spec.yaml_text import dump_yaml
from service.cli.options import JsonOption, SetOption, SpecArgument, prints_apart
from service.cli.plots import draw_samples, save_figure
from service.cli.tables import PlainTable

if TYPE_CHECKING:
    from guard.preflight import LrRange, PreflightReport
    from jobs.training.data_view import DataView

BAD_VERDICT = 1


def check(
    spec: SpecArgument,
    overrides: SetOption = None,
    show: Annotated[
        bool, Option("--show", help="Print the whole spec, defaults included and secrets masked, and exit.")
    ] = False,
    preflight: Annotated[
        bool, Option("--preflight/--no-preflight", help="Run one batch through the model.")
    ] = True,
    lr_range: Annotated[
        bool, Option("--lr-range", help="Also search for a good learning rate, over some batches.")
    ] = False,
    picture: Annotated[
        Path | None,
        Option(help="Draw samples of the first batch to this file, .png, .svg or .pdf; implies --details."),
    ] = None,
    details: Annotated[
        bool, Option("--details", help="Print what the data look like, as where something is wrong.")
    ] = False,
    layers: Annotated[
        bool, Option("--layers", help="Also print a table of the layers, as for a network that is not fine.")
    ] = False,
    plot: Annotated[Path | None, Option(help="Plot the layers to this file: .svg, .png, .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Validate a spec and check its network with one batch: one line where all is well, else exit code 1."""
    job = JobSpec.load(spec, overrides or [])
    console = Console(highlight=False)
    if show:
        fields = masked_spec(job.model_dump(mode="json"))
        typer.echo(json.dumps(strict(fields), indent=2) if as_json else dump_yaml(fields), nl=as_json)
        return
    details = details or layers or picture is not None
    log = _data_log(logging.INFO if details else logging.WARNING)
    with log, _exit_is_an_error(job), prints_apart(as_json):
        found = _fly(job, spec, lr_range=lr_range) if preflight and job.preflight != "off" else None
    memory = _memory(job)
    for missing in dict.fromkeys(filter(None, (tracker.missing() for tracker in job.track))):
        typer.echo(f"track: {missing}; a tracker that fails does not stop the job", err=True)
    if found and plot:
        _draw(found.flight, found.rates, plot)
    if found and picture:
        draw_samples(found.batch, found.classes, picture)
    if as_json:
        typer.echo(
            json.dumps({"job": job.name, **_as_json(found), "memory": memory and memory[0]}, allow_nan=False)
        )
    else:
        line = f"{spec} is valid: job {job.name}, files in {job.job_dir}"
        _show(console, line, found, details=details, layers=layers)
        if memory:
            console.print(memory[1], markup=False, soft_wrap=True)
    if found and (found.view.problems or not found.flight.fine):
        raise typer.Exit(BAD_VERDICT)


def _memory(job: JobSpec) -> tuple[dict[str, Any], str] | None:
    """What each worker of a job on GPUs needs, and a line that compares it with the GPUs that are here."""
    from jobs.layout.memory import gpus_here, of_spec

    if job.scale.device != "gpu" and not job.parallel.sharded:
        return None
    found = of_spec(job)
    if found is None:
        return None
    gpus = gpus_here()
    return {**asdict(found), "total": found.total, "gpus": gpus, "fits": found.fits(gpus)}, found.line(gpus)


class Found(NamedTuple):
    """What one batch showed of network and data."""

    flight: PreflightReport
    rates: LrRange | None
    view: DataView
    batch: Any
    classes: Sequence[str]


def _as_json(found: Found | None) -> dict[str, Any]:
    if found is None:
        return {"preflight": None, "lr_range": None, "data": None}
    rates = found.rates and _range(found.rates)
    return {
        "preflight": found.flight.to_dict(),
        "lr_range": rates,
        "data": strict(found.view.to_dict()),
    }


@contextmanager
def _data_log(level: int) -> Iterator[None]:
    """In this block what was left out of the data is printed to stderr; at level INFO also what was found."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in ("jobs.data", "jobs.workloads")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(before)


@contextmanager
def _exit_is_an_error(job: JobSpec) -> Iterator[None]:
    """What a job's own code ends with ``exit(0)`` is not fine."""
    try:
        yield
    except SystemExit as error:
        from jobs.failures import where
        from jobs.workloads.errors import WorkloadError

        line = f"workload {job.workload}: its code ends the program with exit({error.code!r}){where(error)}"
        raise WorkloadError(line) from error


def _fly(job: JobSpec, spec: Path, *, lr_range: bool) -> Found | None:
    import torch  # takes a second, and validation alone does not need it

    from jobs.data.errors import DataError
    from jobs.init import build_initialized
    from jobs.layout.memory import too_large
    from jobs.spec.imported import find_modules_in
    from jobs.training.data_view import look_at
    from jobs.training.evaluate import try_evaluation
    from jobs.training.lr_range import find_learning_rates
    from jobs.training.optim import check_by_path
    from jobs.training.preflight import first_batch, preflight
    from jobs.workloads import load_workload

    find_modules_in(spec.parent)
    try:
        workload = load_workload(job)
    except DataError as error:
        raise DataError(f"{error}; check --no-preflight checks the spec alone") from None
    check_by_path(job, job.total_steps(workload.n_train))
    on_gpu = torch.cuda.is_available() and job.scale.device != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    if too_large(job):
        typer.echo("no pre-flight: the model is too large for one worker", err=True)
        return None
    model = build_initialized(job, workload).to(device)
    batch = first_batch(job, workload, device)
    flight, view = preflight(job, workload, model, batch), look_at(workload, batch)
    if job.workload not in BUILTIN:
        try_evaluation(workload, model, job.scale.workers, device)
    rates = None
    if lr_range:
        rates = find_learning_rates(job, workload, model, report=lambda line: typer.echo(line, err=True))
    return Found(flight, rates, view, batch, getattr(workload, "classes", ()))


def _range(rates: LrRange) -> dict[str, Any]:
    losses = [loss if math.isfinite(loss) else None for loss in rates.losses]
    return {"rates": rates.rates, "losses": losses, "suggested": rates.suggested, "largest": rates.largest}


def _show(console: Console, valid: str, found: Found | None, *, details: bool, layers: bool) -> None:
    """One line where all is well; else, or with ``details``, the data line by line, and the verdict last."""
    from jobs.training.preflight import verdict_line

    lines, verdict, color = [valid], "", None
    if found:
        flight, view = found.flight, found.view
        fine, verdict = flight.fine and not view.problems, verdict_line(flight, view)
        color = "green" if fine else "red"
        if fine and not details:
            lines, verdict = ["; ".join([valid, *map(_brief, view.facts[:1]), verdict])], ""
        else:
            lines += [f"data: {line}" for line in (*view.facts, *(tensor.line() for tensor in view.tensors))]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if found and (layers or not found.flight.fine):
        _show_layers(console, found.flight)
    if found and found.rates:
        console.print(_advice(found.rates))
    if verdict:
        console.print(verdict, style=color, markup=False, soft_wrap=True)


def _brief(fact: str) -> str:
    """A fact on the data without its list, but with what follows from it."""
    head, _, rest = fact.partition(": ")
    note = rest.partition("; ")[2]
    return f"{head}; {note}" if note else head


def _show_layers(console: Console, flight: PreflightReport) -> None:
    figures_of = ("mean", "std", "growth", "dead", "gradient", "per weight")
    names = (Column(name, overflow="fold") for name in ("layer", "kind"))  # long names are never truncated
    table = PlainTable(*names, *figures_of, box=None, pad_edge=False, collapse_padding=True)
    for layer in flight.layers:
        style = "red" if layer.name == flight.layer else None
        figures = (layer.mean, layer.std, layer.growth)
        shares = (layer.grad_norm, layer.relative_gradient) if layer.weight_norm else ()
        cells = [f"{value:.3g}" for value in figures] + [f"{layer.dead_share:.0%}"]
        table.add_row(layer.name, layer.kind, *cells, *(f"{v:.3g}" for v in shares), style=style)
    console.print(table)
    console.print(
        f"growth per layer: signal {flight.growth_forward:.3g}, gradient {flight.growth_backward:.3g}; "
        f"loss {flight.loss:.4g}, gradient norm {flight.grad_norm:.4g}"
    )


def _advice(rates: LrRange) -> str:
    if rates.suggested is None:
        return f"learning rate: the loss fell at no rate from {rates.rates[0]:.2g} to {rates.rates[-1]:.2g}"
    limit = "no rate was too high" if rates.largest is None else f"it blows up above {rates.largest:.2g}"
    return f"learning rate: try optimizer.lr={rates.suggested:.2g}; {limit}"


def _draw(flight: PreflightReport, rates: LrRange | None, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6 if rates is None else 9), layout="constrained")
    signal, gradient, *rest = figure.subplots(2 if rates is None else 3, squeeze=True)
    places = range(len(flight.layers))
    signal.plot(places, [layer.rms for layer in flight.layers], marker=".", label="rms of the output")
    weighted = [(place, la.relative_gradient) for place, la in enumerate(flight.layers) if la.weight_norm]
    gradient.plot(*zip(*weighted, strict=True), marker=".", color="C1", label="gradient norm / weight norm")
    for axes in (signal, gradient):
        axes.set_yscale("symlog", linthresh=1e-8)
        axes.legend()
        for place in places:
            if flight.layers[place].name == flight.layer:
                axes.axvline(place, color="C3", alpha=0.5)
    signal.set_title(flight.line()[:120], fontsize="small")
    gradient.set_xlabel("layer, in the order of the forward pass")
    if rates:
        rest[0].plot(rates.rates, rates.losses, color="C2")
        rest[0].set(xscale="log", xlabel="learning rate", ylabel="loss")
    save_figure(figure, path)
