"""What happened, in sentences. Pure functions from an incident, or the run's figures, to English."""

import math
from collections.abc import Callable
from typing import TypeGuard

from guard.records import CooldownInfo, Incident, LayerEvidence, RankEvidence
from jobs.report.formats import count, listing, number, percent, plural, runs, times

SIGNALS = {"grad_norm": "gradient norm", "update_norm": "update norm", "buffers": "jump of the buffers"}
SIGNALS |= {"replicas": "difference between ranks"}
"""Those that are not displayed under their own names."""

STATUSES = {
    "succeeded": "Succeeded",
    "failed": "Failed",
    "halted": "Halted by the guard",
    "stopped": "Stopped",
    "unfinished": "Still running, or killed",
}

WOULD_HAVE = {
    "apply": "applied the step",
    "clip": "clipped the gradient",
    "skip": "skipped the step",
    "rollback": "rolled back the run",
    "halt": "halted the run",
}

FEW_SAMPLES = 3

NO_INCIDENTS = "No incidents. The guard watched every step and found nothing to act on."
FROM_NOTHING = 1e6
"""A layer that grew by more was silent before: the factor means nothing."""

NOTHING_YET = "No incidents: no step has been recorded yet."
GUARD_OFF = "The guard was off: nothing was observed, clipped or corrected."
SHADOW = "The guard was in shadow mode: it reported what it found and changed nothing."


RATE_TOO_HIGH = "times too high"
"""In the reason of an incident: the guard has cut the rate, or names a lower one."""


def journal_missing(anomalies: int) -> str:
    """The metrics contain anomalies that the journal does not."""
    seen = plural(anomalies, "anomaly", "anomalies")
    return f"The metrics show {seen}, but incidents.jsonl has no incident: it is missing or was cut."


def layer_name(name: str) -> str:
    """A parameter's name for display: no wrapper prefix, no `.weight`, and on one line."""
    name = "".join(letter if letter.isprintable() else "?" for letter in " ".join(name.split()))
    for prefix in ("_orig_mod.", "module."):
        name = name.removeprefix(prefix)
    name = name.removesuffix(".weight")
    return name.removesuffix(".bias") + " (bias)" if name.endswith(".bias") else name


def signal_name(signal: str) -> str:
    return SIGNALS.get(signal, signal or "signal")


def title(incident: Incident) -> str:
    """A headline: `Loss spike at step 1,204`."""
    if by_rate(incident):
        return "Learning rate changed" + _at(incident)
    signal = signal_name(incident.signal)
    kinds = {
        "nonfinite": "non-finite",
        "suspect": "suspicious",
        "vanishing": "vanishing",
        "warning": "climbing",
    }
    kind = "vanishing" if incident.verdict == "vanishing" else kinds.get(incident.verdict)
    what = f"{kind} {signal}" if kind else f"{signal} {incident.verdict}".strip()
    return f"{what[0].upper()}{what[1:]}{_at(incident)}"


def _at(incident: Incident) -> str:
    return f" at step {count(incident.step)}" if incident.step is not None else ""


def by_rate(incident: Incident) -> bool:
    """Whether the guard tried, cut or restored the learning rate: the signal may be as usual."""
    return incident.by_rate or (RATE_TOO_HIGH in incident.reason and incident.rolled_back)


def reason(incident: Incident) -> str:
    """The reason as a sentence."""
    return f"{incident.reason[0].upper()}{incident.reason[1:]}."


def badge(incident: Incident) -> str:
    """How it ended, in at most four words."""
    if incident.halted:
        return "Run halted"
    if incident.outcome is not None and incident.outcome.kind in {"recovered", "recurred"}:
        return incident.outcome.kind.capitalize()
    if incident.faulty_ranks and incident.action == "applied":
        return "Hardware fault"
    if incident.excluded_ranks:
        return "Rank excluded"
    if incident.excluded_samples:
        return "Sample excluded"
    if incident.dropped_micro_batches and incident.action == "applied":
        return "Micro-batch dropped"
    actions = {
        "rolled_back": "Rolled back",
        "skipped": "Step skipped",
        "clipped": "Clipped",
        "applied": "Watched only",
    }
    return actions.get(incident.action, incident.action.replace("_", " ") or "Recorded")


def story(incident: Incident) -> list[str]:
    """The incident from cause to outcome, a sentence an entry."""
    parts: tuple[Callable[[Incident], str], ...]
    parts = (seen, first, layers, ranks, samples, corrected, action, outcome)
    if by_rate(incident):
        parts = (reason, action, outcome)
    return [sentence for part in parts if (sentence := part(incident))]


def seen(incident: Incident) -> str:
    """What the detector saw."""
    signal = signal_name(incident.signal)
    where = f"At step {count(incident.step)} the {signal}" if incident.step is not None else f"The {signal}"
    score = f" (score {number(incident.score)})" if _finite(incident.score) else ""
    if not incident.verdict:
        return f"{where} stood out."
    if incident.verdict == "nonfinite":
        return f"{where} {_nonfinite(incident.value)}."
    if incident.verdict == "vanishing" and incident.baseline is None and incident.reason:
        part = f"At step {count(incident.step)} a" if incident.step is not None else "A"
        return f"{part} part of the network had lost its gradient."
    if incident.verdict == "vanishing":
        return f"{where} all but vanished: {number(incident.value)}{_against(incident.baseline)}{score}."
    if incident.verdict == "warning":
        return f"{where} was climbing{score}."
    verbs = {"spike": "rose to", "suspect": "looked suspicious at", "drift": "had drifted to"}
    verb = verbs.get(incident.verdict, f"was reported as “{incident.verdict}” at")
    return f"{where} {verb} {number(incident.value)}{_compared(incident)}{score}."


def first(incident: Incident) -> str:
    """Which other signal left its level before."""
    moved = incident.moved_first
    if moved is None or moved.signal in ("", incident.signal):
        return ""
    return f"The {signal_name(moved.signal)} had moved first."


def corrected(incident: Incident) -> str:
    """What was found and corrected before it could do harm."""
    if incident.signal == "replicas":
        return reason(incident)
    if incident.faulty_ranks:
        where = "on an unidentified rank"
        if min(incident.faulty_ranks) >= 0:
            where = f"on rank {listing([*map(str, incident.faulty_ranks)])}"
        return f"Computed again, the batch gave another result {where}: a hardware fault. That one was used."
    if incident.excluded_ranks:
        who = listing([*map(str, incident.excluded_ranks)])
        return f"The data of rank {who} stayed bad: computed again without it, the batch was fine."
    if incident.excluded_samples:
        which = listing([*map(str, incident.excluded_samples)])
        noun = "sample" if len(incident.excluded_samples) == 1 else "samples"
        return f"Computed again without {noun} {which}, the batch was fine."
    if incident.dropped_micro_batches:
        dropped = plural(incident.dropped_micro_batches, "micro-batch", "micro-batches")
        return f"{dropped} not finite: dropped."
    if incident.verdict == "warning" or incident.reason.startswith(("no gradient", "the gradient")):
        return reason(incident)
    return ""


def layers(incident: Incident) -> str:
    """Which layers the gradient blames."""
    if not incident.layers or incident.verdict == "vanishing":
        return ""
    bad = [_in_text(layer.name) for layer in incident.layers if not math.isfinite(layer.norm or 0)]
    if bad:
        return _first_layer(incident) + _nonfinite_layers(bad, all_listed=len(bad) == len(incident.layers))
    return _first_layer(incident) + _top_layer(incident.layers[0])


def ranks(incident: Incident) -> str:
    """Which ranks stood out; nothing where there is only one."""
    if len(incident.ranks) < 2:
        return ""
    bad = [str(rank.rank) for rank in incident.ranks if rank.nonfinite]
    if len(bad) == len(incident.ranks):
        return f"All {len(bad)} ranks had non-finite numbers."
    if bad:
        noun = "rank" if len(bad) == 1 else "ranks"
        return f"Only {noun} {listing(bad)} had non-finite numbers; the others were healthy."
    return _top_rank(incident.ranks[0], len(incident.ranks))


def samples(incident: Incident) -> str:
    """Which samples the batch held; a scattered batch by its first ones."""
    named = runs(incident.samples)
    if incident.bad_samples:
        return _bad_samples(incident)
    if not named:
        return ""
    if len(named) <= FEW_SAMPLES:
        return f"The batch held {'sample' if len(incident.samples) == 1 else 'samples'} {listing(named)}."
    rest = plural(len(incident.samples) - FEW_SAMPLES, "more", "more")
    return f"The batch held samples {', '.join(map(str, incident.samples[:FEW_SAMPLES]))} and {rest}."


def _bad_samples(incident: Incident) -> str:
    worst = incident.bad_samples[0]
    name = f"sample {worst.sample}" + (f" ({worst.content})" if worst.content else "")
    if worst.nonfinite:
        others = len(incident.bad_samples) - 1
        more = f", and {plural(others, 'more', 'more')} in the batch," if others else ""
        return f"{name[0].upper()}{name[1:]}{more} {'are' if others else 'is'} not finite."
    gone = f"Without {name} {percent(worst.share)} of the excess is gone"
    shares = [bad.share or 0.0 for bad in incident.bad_samples]
    if len(shares) == 1:
        return f"{gone}."
    return f"{gone}, without {plural(len(shares) - 1, 'more', 'more')} {percent(min(1.0, sum(shares)))}."


def action(incident: Incident) -> str:
    """What the guard did."""
    if incident.rolled_back:
        return _rollback(incident)
    if incident.action in {"halt", "halted"}:
        why = incident.reason or "its budget was spent"
        return f"The guard halted the run: {why}."
    if incident.would:
        return f"The guard only watched; it would have {WOULD_HAVE.get(incident.would, 'acted')}."
    return {
        "skipped": "The guard skipped the step: weights, optimizer and statistics are untouched.",
        "clipped": "The guard clipped the gradient and applied the step.",
        "applied": _applied(incident),
    }.get(incident.action, "")


def _applied(incident: Incident) -> str:
    if by_rate(incident):
        return "The guard applied the step."
    if incident.excluded_ranks:
        return "The guard applied the step without it and excluded it from then on."
    if incident.faulty_ranks or incident.excluded_samples or incident.dropped_micro_batches:
        return "The guard applied the step with what was good."
    return "The guard watched and applied the step."


def outcome(incident: Incident) -> str:
    """How it ended. A skip needs no outcome; a rollback without one is noted."""
    if incident.outcome is None:
        return "No outcome was recorded after it." if incident.rolled_back else ""
    steps = incident.outcome.steps
    after = "" if steps is None else f" after {plural(steps, 'step')}"
    if incident.outcome.kind == "recovered":
        return f"Recovered{after.replace('after', 'in')}."
    if incident.outcome.kind == "recurred":
        return f"The anomaly recurred{after}."
    if incident.outcome.kind == "halted" and incident.action not in {"halt", "halted"}:
        return f"The run was halted{after or ' soon after'}."
    return ""


def _nonfinite(value: float | None) -> str:
    if value is None or math.isfinite(value):
        return "was not finite"
    return "was not a number (NaN)" if math.isnan(value) else f"was {number(value)}"


def _against(baseline: float | None) -> str:
    return f", against its baseline of {number(baseline)}" if _finite(baseline) else ""


def _compared(incident: Incident) -> str:
    """, 8.1 times its baseline of 0.41; a plain comparison where a ratio means nothing."""
    value, baseline = incident.value, incident.baseline
    if not (_finite(value) and _finite(baseline)):
        return ""
    if baseline > 0 and value / baseline >= 1.05:
        return f", {times(value / baseline)} its baseline of {number(baseline)}"
    return _against(baseline)


def _nonfinite_layers(names: list[str], *, all_listed: bool) -> str:
    if len(names) == 1:
        return f"The gradient of {names[0]} was not finite."
    if len(names) <= 3:
        return f"The gradients of {listing(names)} were not finite."
    quantity = f"{len(names)} or more layers" if all_listed else f"{len(names)} layers"
    return f"The gradients of {quantity} were not finite, {names[0]} among them."


def _top_layer(layer: LayerEvidence) -> str:
    share = f"{percent(layer.share)} of the norm" if _finite(layer.share) else ""
    if layer.growth is None or not layer.growth > 1.05:
        tail = f" ({share})" if share else ""
        return f"The gradient of {_in_text(layer.name)} was the largest{tail}."
    tail = ", ".join(part for part in (share, _grown(layer.growth)) if part)
    return f"The gradient of {_in_text(layer.name)} grew most ({tail})."


def _first_layer(incident: Incident) -> str:
    found = incident.first_layer
    if found is None:
        return ""
    details = f"{_grown(found.growth)}, {plural(found.attempts_before, 'attempt')} before"
    return f"The gradient of {_in_text(layer_name(found.name))} grew first ({details}). "


def _grown(growth: float) -> str:
    return f"{times(growth)} its baseline" if growth < FROM_NOTHING else "up from almost nothing"


def _in_text(name: str) -> str:
    """A layer of a `Sequential` is only a number: layer 0."""
    plain = layer_name(name)
    return f"layer {plain}" if plain[:1].isdigit() else plain


def _top_rank(rank: RankEvidence, world_size: int) -> str:
    if rank.share is None or not rank.share > 1.5 / world_size:
        return "No rank stood out."
    what = "the gradient" if rank.local_norm is not None else "the loss"
    details = [f"{percent(rank.share)} of {what}"]
    if rank.loss is not None:
        details.append(f"loss {number(rank.loss)}")
    return f"Rank {rank.rank} stood out ({', '.join(details)})."


def _rollback(incident: Incident) -> str:
    lost = f" {plural(incident.steps_lost, 'step')}" if incident.steps_lost else ""
    target = f" to step {count(incident.rolled_back_to)}" if incident.rolled_back_to is not None else ""
    clauses = [f"rolled back{lost}{target}"]
    if incident.recovery is not None:
        clauses += _recovery(incident.recovery)
    failed = incident.verdict != "spike" and not by_rate(incident) and incident.reason
    before = f"Skipping did not help: {incident.reason}. " if failed else ""
    return f"{before}The guard {listing(clauses)}."


def _recovery(recovery: CooldownInfo) -> list[str]:
    changes: list[str] = []
    kept = recovery.rate_factor if _finite(recovery.rate_factor) and recovery.rate_factor else 1.0
    scale = recovery.lr_scale / kept if _finite(recovery.lr_scale) else 1.0
    if scale == 0.5:
        changes.append("halved the learning rate")
    elif scale != 1:
        changes.append(f"cut the learning rate to {percent(scale)}")
    if _finite(recovery.weight_decay_scale) and recovery.weight_decay_scale != 1:
        changes.append(f"raised the weight decay to {times(recovery.weight_decay_scale)} its value")
    if recovery.anchor_l2:
        changes.append(f"pulled the weights toward the healthy ones (anchor L2 {number(recovery.anchor_l2)})")
    if recovery.l1:
        changes.append(f"added an L1 penalty of {number(recovery.l1)}")
    if changes and recovery.until_step is not None:
        changes[-1] += f" until step {count(recovery.until_step)}"
    if kept != 1:
        changes.append(f"keeps the learning rate at {percent(kept)} of its schedule")
    data = {"advance": "moved on past the bad data", "replay": "replayed the same data"}.get(recovery.data)
    return [*changes, data] if data else changes


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
