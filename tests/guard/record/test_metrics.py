"""The guard's metrics: what is counted, what a scrape shows, and that no total ever falls."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from guard.record.exposition import GuardCollector, render
from guard.record.metrics import NONFINITE_SIGNALS, GuardMetrics
from guard.record.totals import ACTIONS, SIGNALS, SOURCES, VERDICTS, carry_totals
from guard.records import Incident, Verdict
from guard.types import StepReport

DESIGNED_NAMES = {
    "gradguard_grad_norm",
    "gradguard_grad_norm_local",
    "gradguard_layer_grad_norm",
    *(f"gradguard_update_{part}" for part in ("norm", "ratio")),
    "gradguard_buffer_jump",
    *(f"gradguard_{part}_factor" for part in ("loss_alarm", "rate")),
    "gradguard_micro_batches_dropped_total",
    "gradguard_hardware_faults_total",
    *(f"gradguard_{what}_exclusions_total" for what in ("rank", "sample")),
    *(f"gradguard_{what}" for what in ("loss", "qk_clips_total", "rate_advice")),
    "gradguard_clip_threshold",
    "gradguard_clip_coefficient",
    "gradguard_learning_rate",
    "gradguard_regularization_strength",
    "gradguard_steps_total",
    "gradguard_anomalies_total",
    "gradguard_nonfinite_total",
    "gradguard_rollbacks_total",
    "gradguard_steps_lost_total",
    *(f"gradguard_rollback_seconds_{part}" for part in ("bucket", "count", "sum")),
    *(f"gradguard_guard_seconds_{part}" for part in ("bucket", "count", "sum")),
    *(f"gradguard_checkpoint_{what}" for what in ("last_step", "last_timestamp_seconds", "bytes")),
    "gradguard_checkpoints_total",
    "gradguard_checkpoint_failures_total",
    *(f"gradguard_checkpoint_seconds_{part}" for part in ("bucket", "count", "sum")),
    *(f"gradguard_checkpoint_blocked_seconds_{part}" for part in ("bucket", "count", "sum")),
    "gradguard_job_info",
    "gradguard_job_created_timestamp_seconds",
    "gradguard_grad_norm_local_median",
    "gradguard_attempts_total",
    *(f"gradguard_{what}_accepted" for what in ("steps", "samples", "tokens")),
    *(f"gradguard_{what}_total" for what in ("samples", "tokens")),
    *(f"gradguard_rollback_budget{part}" for part in ("", "_left")),
    "gradguard_gradient_noise_scale",
}


def step(metrics: GuardMetrics, **changed: Any) -> None:
    """Counts and shows one attempt, as the recorder does."""
    shown: dict[str, Any] = {"layers": {"fc.weight": 1.5}, "rollback_budget": 5, "rollbacks_left": 5}
    shown |= {name: changed.pop(name) for name in [*shown, "noise_scale"] if name in changed}
    values: dict[str, Any] = {
        "step": 1,
        "action": "applied",
        "loss": 0.5,
        "grad_norm": 2.0,
        "clip_threshold": 4.0,
        "clip_coef": 1.0,
        "learning_rate": 0.1,
        "guard_seconds": 0.002,
        "update_norm": 0.01,
        "update_ratio": 0.001,
        "buffer_jump": 0.1,
        "alarm_factor": 1.3,
        "local_norms": [1.0, 3.0],
        "recovery": {"lr_scale": 1.0, "l1": 0.0},
    }
    report = StepReport(**{**values, **changed})
    metrics.totals.observe(report)
    metrics.observe(report, **shown)


def anomaly(metrics: GuardMetrics, signal: Any, verdict: Any) -> None:
    step(metrics, anomaly=Verdict(verdict, signal))


def rollback(metrics: GuardMetrics, **incident: Any) -> None:
    evidence = Incident.from_row({"action": "rolled_back", **incident})
    step(metrics, action="rolled_back", rolled_back_to=0, step=0, incident=evidence)


def scrape(source: GuardMetrics | GuardCollector) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a real exposition, by name and labels other than `job`."""
    registry = CollectorRegistry()
    if isinstance(source, GuardMetrics):
        source.register(registry)
    else:
        registry.register(source)
    samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
    return samples


def value(metrics: GuardMetrics, name: str, **labels: str) -> float | None:
    return scrape(metrics).get((name, frozenset({"job": metrics.job, **labels}.items())))


def totals(metrics: GuardMetrics) -> dict[Any, float]:
    return {key: number for key, number in scrape(metrics).items() if key[0].endswith(("_total", "_bucket"))}


@pytest.fixture
def metrics() -> GuardMetrics:
    return GuardMetrics(job="fashion", info={"model": "resnet18"})


def test_a_scrape_shows_exactly_the_designed_names() -> None:
    metrics = GuardMetrics(job="fashion", samples_per_step=64, tokens_per_step=64 * 128)
    step(metrics, noise_scale=2.0)
    metrics.checkpoint_written(step=10, seconds=0.5, blocked_seconds=0.01, size=1000)
    assert {name for name, _ in scrape(metrics)} == DESIGNED_NAMES


def test_checkpoints_are_counted_by_what_became_of_them(metrics: GuardMetrics) -> None:
    metrics.checkpoint_written(step=10, seconds=0.5, blocked_seconds=0.01, size=1000)
    for outcome in ("good", "failed", "failed"):
        metrics.checkpoint(outcome)
    for _ in range(2):
        assert value(metrics, "gradguard_checkpoints_total", outcome="written") == 1
        assert value(metrics, "gradguard_checkpoints_total", outcome="good") == 1
        assert value(metrics, "gradguard_checkpoint_failures_total") == 2
        assert value(metrics, "gradguard_checkpoint_last_step") == 10
        assert value(metrics, "gradguard_checkpoint_bytes") == 1000
        assert value(metrics, "gradguard_checkpoint_seconds_sum") == 0.5
        metrics.load_state_dict(metrics.state_dict())
    with pytest.raises(ValueError, match="outcome must be one of"):
        metrics.checkpoint("unknown")


def test_every_sample_carries_the_job(metrics: GuardMetrics) -> None:
    step(metrics)
    assert all(("job", "fashion") in labels for _, labels in scrape(metrics))


def test_values_of_a_step_are_read_back(metrics: GuardMetrics) -> None:
    step(metrics, action="clipped", grad_norm=8.0, clip_coef=0.5)
    assert value(metrics, "gradguard_loss") == 0.5
    assert value(metrics, "gradguard_grad_norm") == 8.0
    assert value(metrics, "gradguard_clip_threshold") == 4.0
    assert value(metrics, "gradguard_clip_coefficient") == 0.5
    assert value(metrics, "gradguard_learning_rate") == 0.1
    assert value(metrics, "gradguard_update_norm") == 0.01
    assert value(metrics, "gradguard_grad_norm_local", rank="1") == 3.0
    assert value(metrics, "gradguard_layer_grad_norm", layer="fc.weight") == 1.5
    assert value(metrics, "gradguard_regularization_strength", kind="recovery_l1") == 0.0
    assert value(metrics, "gradguard_job_info", model="resnet18") == 1.0


def test_every_counter_exists_at_zero_before_the_first_step(metrics: GuardMetrics) -> None:
    for action in ACTIONS:
        assert value(metrics, "gradguard_steps_total", action=action) == 0
    for source in SOURCES:
        assert value(metrics, "gradguard_rollbacks_total", source=source) == 0
    assert all(value(metrics, "gradguard_nonfinite_total", signal=one) == 0 for one in NONFINITE_SIGNALS)
    for signal in SIGNALS:
        for verdict in VERDICTS:
            assert value(metrics, "gradguard_anomalies_total", signal=signal, verdict=verdict) == 0
    assert value(metrics, "gradguard_steps_lost_total") == 0
    assert value(metrics, "gradguard_guard_seconds_count") == 0


def test_counters_count_by_action_verdict_and_source(metrics: GuardMetrics) -> None:
    for action in ("applied", "clipped", "skipped"):
        step(metrics, action=action)
    anomaly(metrics, "loss", "spike")
    rollback(metrics, source="memory", seconds=0.02, steps_lost=21)
    rollback(metrics, source="disk", seconds=4.0, steps_lost=100)
    assert value(metrics, "gradguard_steps_total", action="applied") == 2
    assert value(metrics, "gradguard_steps_total", action="rolled_back") == 2
    assert value(metrics, "gradguard_anomalies_total", signal="loss", verdict="spike") == 1
    assert value(metrics, "gradguard_rollbacks_total", source="disk") == 1
    assert value(metrics, "gradguard_steps_lost_total") == 121
    assert value(metrics, "gradguard_rollback_seconds_bucket", le="0.025") == 1
    assert value(metrics, "gradguard_rollback_seconds_bucket", le="+Inf") == 2
    assert value(metrics, "gradguard_rollback_seconds_sum") == pytest.approx(4.02)


def test_an_unknown_signal_is_counted_not_refused(metrics: GuardMetrics) -> None:
    anomaly(metrics, "buffers", "drift")
    assert value(metrics, "gradguard_anomalies_total", signal="buffers", verdict="drift") == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_value_is_counted_and_the_gauge_keeps_the_last_finite(
    metrics: GuardMetrics, bad: float
) -> None:
    step(metrics)
    step(metrics, loss=bad, grad_norm=bad, clip_coef=bad, update_norm=bad, buffer_jump=bad)
    step(metrics, layers={"fc.weight": bad, "fc.bias": 0.25}, local_norms=[bad, 5.0])
    assert value(metrics, "gradguard_loss") == 0.5
    assert value(metrics, "gradguard_clip_coefficient") == 1.0
    assert value(metrics, "gradguard_layer_grad_norm", layer="fc.weight") == 1.5
    assert value(metrics, "gradguard_layer_grad_norm", layer="fc.bias") == 0.25
    assert value(metrics, "gradguard_grad_norm_local", rank="0") == 1.0
    for signal in NONFINITE_SIGNALS:
        assert value(metrics, "gradguard_nonfinite_total", signal=signal) == 1
    assert all(math.isfinite(number) for number in scrape(metrics).values())


def test_finite_norms_whose_sum_overflows_are_not_called_nonfinite(metrics: GuardMetrics) -> None:
    step(metrics, layers={"a": 1.7e308, "b": 1.7e308})
    assert value(metrics, "gradguard_nonfinite_total", signal="layer_grad_norm") == 0
    assert value(metrics, "gradguard_layer_grad_norm", layer="b") == 1.7e308


def test_no_threshold_means_no_series(metrics: GuardMetrics) -> None:
    step(metrics)
    step(metrics, clip_threshold=None)
    assert value(metrics, "gradguard_clip_threshold") is None
    step(metrics, clip_threshold=math.inf)
    assert value(metrics, "gradguard_clip_threshold") is None


def test_a_rank_that_left_leaves_the_scrape(metrics: GuardMetrics) -> None:
    step(metrics, local_norms=[1.0, 2.0, 3.0])
    step(metrics, local_norms=[1.0])
    assert value(metrics, "gradguard_grad_norm_local", rank="0") == 1.0
    assert value(metrics, "gradguard_grad_norm_local", rank="2") is None


def test_local_norms_that_were_not_measured_are_not_called_nonfinite(metrics: GuardMetrics) -> None:
    step(metrics, local_norms=[1.0, 2.0])
    step(metrics, local_norms=[math.nan, math.nan])
    assert value(metrics, "gradguard_nonfinite_total", signal="grad_norm_local") == 0
    assert value(metrics, "gradguard_grad_norm_local", rank="1") == 2.0


def test_the_number_of_series_does_not_grow_with_steps(metrics: GuardMetrics) -> None:
    step(metrics)
    before = scrape(metrics).keys()
    for index in range(300):
        step(metrics, loss=float(index), action=ACTIONS[index % 4])
    assert scrape(metrics).keys() == before


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda metrics: step(metrics, action="ignored"), "applied, clipped, skipped, rolled_back"),
        (lambda _: GuardMetrics(info={"job": "x"}), "'job'"),
        (lambda _: GuardMetrics(info={"git-sha": "x"}), "'git-sha'"),
    ],
)
def test_wrong_use_is_refused_with_the_choices_and_counts_nothing(
    metrics: GuardMetrics, call: Callable[[GuardMetrics], Any], named: str
) -> None:
    before = scrape(metrics)
    with pytest.raises(ValueError, match=named):
        call(metrics)
    assert scrape(metrics) == before


def test_a_snapshot_is_strict_json_and_renders_the_same_elsewhere(metrics: GuardMetrics) -> None:
    step(metrics)
    step(metrics, loss=math.nan)
    sent = json.loads(json.dumps(metrics.snapshot(), allow_nan=False))
    assert scrape(GuardCollector(lambda: [sent])) == scrape(metrics)


def test_state_survives_a_restart_and_continues_identically(metrics: GuardMetrics) -> None:
    step(metrics)
    anomaly(metrics, "buffers", "spike")
    rollback(metrics, source="memory", seconds=0.2, steps_lost=3)
    resumed = GuardMetrics(job="fashion", info={"model": "resnet18"})
    resumed.load_state_dict(json.loads(json.dumps(metrics.state_dict())))
    for each in (metrics, resumed):
        step(each, loss=math.nan, action="skipped", guard_seconds=0.3)
        rollback(each, source="disk", seconds=1e4, steps_lost=2)
    assert scrape(resumed) == scrape(metrics)
    assert resumed.snapshot() == metrics.snapshot()


def test_going_back_to_an_earlier_state_turns_no_counter_back(metrics: GuardMetrics) -> None:
    step(metrics)
    earlier = metrics.state_dict()
    anomaly(metrics, "loss", "nonfinite")
    rollback(metrics, source="memory", seconds=0.02, steps_lost=1)
    before = totals(metrics)
    metrics.load_state_dict(earlier)
    assert totals(metrics) == before


def test_a_state_dict_is_not_changed_by_later_steps(metrics: GuardMetrics) -> None:
    step(metrics)
    state = metrics.state_dict()
    kept = json.dumps(state)
    step(metrics, layers={"fc.weight": 9.0})
    anomaly(metrics, "loss", "spike")
    assert json.dumps(state) == kept


def test_a_restart_from_a_checkpoint_never_lowers_a_mirrored_total(metrics: GuardMetrics) -> None:
    step(metrics)
    checkpoint = metrics.state_dict()
    step(metrics)
    step(metrics)
    resumed = GuardMetrics(job="fashion")
    resumed.load_state_dict(checkpoint)
    merged = carry_totals(metrics.snapshot(), resumed.snapshot())
    assert merged["totals"]["steps"]["applied"] == 3
    assert merged["totals"]["guard_seconds"]["buckets"]["+Inf"] == 3


def test_a_new_run_of_the_same_name_starts_from_its_own_totals(metrics: GuardMetrics) -> None:
    step(metrics)
    fresh = GuardMetrics(job="fashion").snapshot() | {"created": metrics.snapshot()["created"] + 1}
    assert carry_totals(metrics.snapshot(), fresh) == fresh


def test_what_was_rolled_back_is_in_the_totals_and_not_in_what_is_accepted() -> None:
    metrics = GuardMetrics(job="fashion", samples_per_step=64, tokens_per_step=1024)
    for accepted in (1, 2, 3):
        step(metrics, step=accepted)
    step(metrics, action="rolled_back", step=1)
    step(metrics, step=2)
    shown = {name: value(metrics, f"gradguard_{name}") for name in ("attempts_total", "steps_accepted")}
    assert shown == {"attempts_total": 5, "steps_accepted": 2}
    assert value(metrics, "gradguard_samples_total") == 5 * 64
    assert value(metrics, "gradguard_samples_accepted") == 2 * 64
    assert value(metrics, "gradguard_tokens_total") == 5 * 1024
    assert value(metrics, "gradguard_tokens_accepted") == 2 * 1024
    resumed = GuardMetrics(job="fashion", samples_per_step=64, tokens_per_step=1024)
    resumed.load_state_dict(metrics.state_dict())
    assert scrape(resumed) == scrape(metrics)


def test_what_is_left_of_the_budget_is_shown_beside_the_budget(metrics: GuardMetrics) -> None:
    step(metrics, rollback_budget=5, rollbacks_left=1)
    assert value(metrics, "gradguard_rollback_budget") == 5
    assert value(metrics, "gradguard_rollback_budget_left") == 1


def test_the_fast_text_is_that_of_the_library(metrics: GuardMetrics) -> None:
    awkward = GuardMetrics(job='a "b" \\ c\nd', info={"model": 'x"y'}, samples_per_step=8)
    step(awkward, layers={'f"c\\.weight\n': 1e-30, "ä": 3e38})
    rollback(awkward, source="disk", seconds=1e4, steps_lost=2)
    jobs = [metrics.snapshot(), awkward.snapshot(), GuardMetrics(job="idle").snapshot()]
    registry = CollectorRegistry()
    registry.register(GuardCollector(lambda: jobs))

    def parsed(text: str) -> dict[str, Any]:
        return {family.name: family for family in text_string_to_metric_families(text)}

    def samples(families: dict[str, Any]) -> dict[Any, float]:
        return {(s.name, frozenset(s.labels.items())): s.value for f in families.values() for s in f.samples}

    ours, theirs = parsed(render(jobs)), parsed(generate_latest(registry).decode())
    assert samples(ours) == samples(theirs)
    assert {(f.name, f.type, f.documentation) for f in ours.values()} == {
        (f.name, f.type, f.documentation) for f in theirs.values()
    }


def test_several_jobs_share_one_scrape(metrics: GuardMetrics) -> None:
    other = GuardMetrics(job="digits", info={"model": "mlp"})
    step(metrics, loss=1.0)
    step(other, loss=2.0)
    samples = scrape(GuardCollector(lambda: [metrics.snapshot(), other.snapshot()]))
    assert samples["gradguard_loss", frozenset({("job", "fashion")})] == 1.0
    assert samples["gradguard_loss", frozenset({("job", "digits")})] == 2.0


def test_a_snapshot_of_another_version_does_not_break_the_scrape_of_the_rest(metrics: GuardMetrics) -> None:
    step(metrics)
    other = GuardMetrics(job="newer").snapshot()
    del other["totals"]["nonfinite"]
    other["values"] = {"loss": 7.0, "something_new": 1.0}
    samples = scrape(GuardCollector(lambda: [other, metrics.snapshot()]))
    assert samples["gradguard_loss", frozenset({("job", "newer")})] == 7.0
    assert samples["gradguard_loss", frozenset({("job", "fashion")})] == 0.5


def test_registering_does_not_collect_and_unregistering_frees_the_names(metrics: GuardMetrics) -> None:
    calls: list[int] = []
    registry = CollectorRegistry()
    registry.register(collector := GuardCollector(lambda: calls.append(1) or [metrics.snapshot()]))
    assert calls == []
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.register(registry)
    registry.unregister(collector)
    metrics.register(registry)
    assert b"gradguard_steps_total" in generate_latest(registry)


def test_help_and_type_are_given_for_every_name(metrics: GuardMetrics) -> None:
    step(metrics)
    metrics.register(registry := CollectorRegistry())
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        assert family.type in ("counter", "gauge", "histogram")
        assert family.documentation.endswith(".")
