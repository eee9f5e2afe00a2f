"""One incident: the minutes around it, what moved first, and whether it recovered."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from service.dashboards.parts import (
    INCIDENT_DASHBOARD,
    Query,
    board,
    graph,
    incidents,
    mean,
    number,
    rows,
    variable,
)

JOB = 'job="$job"'
RANK = 'job="$job", rank=~"$rank"'
ABOUT = (
    "Choose the minutes around a mark. What no metric holds (samples, the reason) is in the incident report."
)


def incident() -> dashboard.Dashboard:
    """The dashboard of the minutes around an incident."""
    made = board(INCIDENT_DASHBOARD, "GradGuard: incident", ABOUT, since="now-15m")
    made.with_variable(variable("job", "Job", "label_values(gradguard_steps_total, job)", several=False))
    made.with_variable(
        variable("rank", "Rank", f"label_values(gradguard_grad_norm_local{{{JOB}}}, rank)", several=True)
    )
    for mark in incidents():
        made.annotation(mark)
    for panel in (*_numbers(), *_what(), *_where(), *_recovery()):
        made.with_panel(panel)
    return made


def _numbers() -> list[Builder[Panel]]:
    return [
        number(
            "Rollbacks",
            "Within the time range shown.",
            "short",
            Query(f"sum(increase(gradguard_rollbacks_total{{{JOB}}}[$__range]))", "rollbacks"),
            warn=1,
            width=5,
        ),
        number(
            "Steps lost",
            "Optimizer steps thrown away by rollbacks within the time range shown.",
            "short",
            Query(f"increase(gradguard_steps_lost_total{{{JOB}}}[$__range])", "steps"),
            warn=1,
            width=5,
        ),
        number(
            "Skipped",
            "Steps skipped within the time range shown.",
            "short",
            Query(f'increase(gradguard_steps_total{{{JOB}, action="skipped"}}[$__range])', "steps"),
            warn=1,
            width=5,
        ),
        number(
            "Shares left out",
            "Batches applied without the share of a rank whose data stays bad, since the job began.",
            "short",
            Query(f"gradguard_rank_exclusions_total{{{JOB}}}", "shares"),
            warn=1,
            width=5,
        ),
        number(
            "Time of a rollback",
            "Mean over all rollbacks of the job.",
            "s",
            Query(
                mean("rollback_seconds", JOB),
                "mean",
            ),
            width=4,
        ),
    ]


def _what() -> list[Builder[Panel]]:
    return [
        graph(
            "Loss",
            "Mean over ranks; the last finite value, so a NaN is a gap in the changes, not in the line.",
            "short",
            Query(f"gradguard_loss{{{JOB}}}", "loss"),
            scale="log",
        ),
        graph(
            "Gradient norm",
            "Before clipping, with the threshold above which it is clipped.",
            "short",
            Query(f"gradguard_grad_norm{{{JOB}}}", "gradient norm"),
            Query(f"gradguard_clip_threshold{{{JOB}}}", "clipped above"),
            scale="log",
        ),
        graph(
            "Update norm",
            "Damage to weights, moments or the learning rate shows here and not in the gradient.",
            "short",
            Query(f"gradguard_update_norm{{{JOB}}}", "update norm"),
            scale="log",
        ),
        graph(
            "Jump of the buffers",
            "Damage to batch statistics shows here, and elsewhere only in evaluation.",
            "short",
            Query(f"gradguard_buffer_jump{{{JOB}}}", "jump"),
            scale="log",
        ),
    ]


def _where() -> list[Builder[Panel]]:
    usual = f"(avg_over_time(gradguard_layer_grad_norm{{{JOB}}}[10m]) > 0)"
    return [
        graph(
            "Layers that grew",
            "The eight layers that grew most against their mean of 10 minutes.",
            "short",
            Query(f"topk(8, gradguard_layer_grad_norm{{{JOB}}} / {usual})", "{{layer}}"),
            scale="log",
        ),
        graph(
            "Ranks against the middle rank",
            "A single rank that leaves the others points at its data or hardware.",
            "short",
            Query(f"job_rank:gradguard_grad_norm_local:ratio{{{RANK}}}", "rank {{rank}}"),
            scale="log",
        ),
        rows(
            "Verdicts",
            "Verdicts other than ok within the time range shown, by signal and verdict.",
            "short",
            Query(
                f"sum by (signal, verdict) (increase(gradguard_anomalies_total{{{JOB}}}[$__range]))", "count"
            ),
            width=12,
        ),
        rows(
            "Hardware faults",
            "Batches that gave another result when computed again, since the job began.",
            "short",
            Query(f"sum by (rank) (gradguard_hardware_faults_total{{{JOB}}})", "count"),
            width=12,
        ),
    ]


def _recovery() -> list[Builder[Panel]]:
    return [
        graph(
            "Accepted and attempted",
            "A rollback sets the accepted steps back; attempts only grow.",
            "short",
            Query(f"gradguard_steps_accepted{{{JOB}}}", "steps accepted"),
            Query(f"gradguard_attempts_total{{{JOB}}}", "attempts"),
            width=8,
        ),
        graph(
            "Learning rate",
            "Lower after a rollback, and back at its schedule when the recovery is over.",
            "short",
            Query(f"gradguard_learning_rate{{{JOB}}}", "learning rate"),
            scale="log",
            width=8,
        ),
        graph(
            "Recovery",
            "Strength of what pulls the weights back after a rollback; it fades out.",
            "short",
            Query(f"gradguard_regularization_strength{{{JOB}}}", "{{kind}}"),
            width=8,
        ),
    ]
