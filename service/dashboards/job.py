"""One job: does it learn, what did the guard do, what does it cost."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from service.dashboards.parts import (
    JOB_DASHBOARD,
    Query,
    against,
    board,
    graph,
    incidents,
    mean,
    number,
    variable,
)

JOB = 'job="$job"'
RANK = 'job="$job", rank=~"$rank"'
RATE = "[$__rate_interval]"


def job() -> dashboard.Dashboard:
    """The dashboard of one job."""
    made = board(
        JOB_DASHBOARD, "GradGuard: job", "One training job under the gradient guard.", since="now-1h"
    )
    made.with_variable(variable("job", "Job", "label_values(gradguard_steps_total, job)", several=False))
    made.with_variable(
        variable("rank", "Rank", f"label_values(gradguard_grad_norm_local{{{JOB}}}, rank)", several=True)
    )
    for mark in incidents():
        made.annotation(mark)
    for panel in (*_numbers(), *_learning(), *_gradients(), *_guard(), *_checkpoints()):
        made.with_panel(panel)
    return made


def _numbers() -> list[Builder[Panel]]:
    return [
        number(
            "Loss",
            "Training loss of the last step, mean over ranks; the last finite value.",
            "short",
            Query(f"gradguard_loss{{{JOB}}}", "loss"),
        ),
        number(
            "Steps accepted",
            "Optimizer steps of the history that stands: a rollback sets it back.",
            "short",
            Query(f"gradguard_steps_accepted{{{JOB}}}", "steps"),
        ),
        number(
            "Attempts",
            "All attempted steps: skipped, rewound and done again ones too.",
            "short",
            Query(f"gradguard_attempts_total{{{JOB}}}", "attempts"),
        ),
        number(
            "Anomalies",
            "Verdicts other than ok since the job began.",
            "short",
            Query(f"sum(gradguard_anomalies_total{{{JOB}}})", "anomalies"),
            warn=1,
        ),
        number(
            "Rollbacks",
            "Rollbacks since the job began.",
            "short",
            Query(f"sum(gradguard_rollbacks_total{{{JOB}}})", "rollbacks"),
            warn=1,
        ),
        number(
            "Budget used",
            "Share of the rollbacks allowed in the budget's window; at 100 % the next one halts.",
            "percentunit",
            Query(f"job:gradguard_rollback_budget_used:ratio{{{JOB}}}", "used"),
            warn=0.8,
        ),
    ]


def _learning() -> list[Builder[Panel]]:
    return [
        graph(
            "Loss",
            "Training loss over the wall clock, mean over ranks. Rewound stretches are in it.",
            "short",
            Query(f"gradguard_loss{{{JOB}}}", "loss"),
        ),
        against(
            "Loss over accepted steps",
            "The same loss over the steps that stand: what was rewound is drawn over what came of it.",
            "short",
            Query(f"gradguard_steps_accepted{{{JOB}}}", "steps accepted"),
            Query(f"gradguard_loss{{{JOB}}}", "loss"),
        ),
        graph(
            "Accepted and attempted",
            "Where the lines part, work was lost: attempts that were skipped or rewound.",
            "short",
            Query(f"gradguard_steps_accepted{{{JOB}}}", "steps accepted"),
            Query(f"gradguard_attempts_total{{{JOB}}}", "attempts"),
        ),
        graph(
            "Samples and tokens",
            "Samples (and tokens, where the job has them), accepted and in all attempts.",
            "short",
            Query(f'{{__name__=~"gradguard_(samples|tokens)_(accepted|total)", {JOB}}}', "{{__name__}}"),
        ),
        graph(
            "Learning rate",
            "Of the first parameter group: schedule and recovery together.",
            "short",
            Query(f"gradguard_learning_rate{{{JOB}}}", "learning rate"),
            scale="log",
        ),
        graph(
            "Regularization",
            "Strength of what holds the weights; some of it only during a recovery.",
            "short",
            Query(f"gradguard_regularization_strength{{{JOB}}}", "{{kind}}"),
        ),
    ]


def _gradients() -> list[Builder[Panel]]:
    return [
        graph(
            "Gradient norm",
            "Global norm before clipping, and the threshold above which it is clipped.",
            "short",
            Query(f"gradguard_grad_norm{{{JOB}}}", "gradient norm"),
            Query(f"gradguard_clip_threshold{{{JOB}}}", "clipped above"),
            scale="log",
        ),
        graph(
            "Gradient norm by layer",
            "Of each parameter, or of groups of them where there are many.",
            "short",
            Query(f"gradguard_layer_grad_norm{{{JOB}}}", "{{layer}}"),
            scale="log",
        ),
        graph(
            "Gradient norm by rank",
            "Before the all-reduce. With many ranks those that stand out.",
            "short",
            Query(f"gradguard_grad_norm_local{{{RANK}}}", "rank {{rank}}"),
            scale="log",
        ),
        graph(
            "Rank against the middle rank",
            "An alert fires where its median of 5 minutes is above 5 or below 0.2.",
            "short",
            Query(f"job_rank:gradguard_grad_norm_local:ratio{{{RANK}}}", "rank {{rank}}"),
            scale="log",
        ),
        graph(
            "Update norm",
            "How far one step moves the weights, where it was measured.",
            "short",
            Query(f"gradguard_update_norm{{{JOB}}}", "update norm"),
            scale="log",
        ),
        graph(
            "Noise scale",
            "Gradient noise in global batches: above 1 a larger batch pays. Needs two ranks.",
            "short",
            Query(f"gradguard_gradient_noise_scale{{{JOB}}}", "global batches"),
            scale="log",
        ),
    ]


def _guard() -> list[Builder[Panel]]:
    return [
        graph(
            "What the guard did",
            "Attempted steps a second, by what became of them.",
            "ops",
            Query(f"sum by (action) (rate(gradguard_steps_total{{{JOB}}}{RATE}))", "{{action}}"),
        ),
        graph(
            "Clipped share",
            "Share of the steps of the last 5 minutes that were clipped.",
            "percentunit",
            Query(f"job:gradguard_steps_clipped:ratio5m{{{JOB}}}", "clipped"),
        ),
        graph(
            "Anomalies",
            "New verdicts other than ok, by signal and verdict.",
            "short",
            Query(
                f"sum by (signal, verdict) (increase(gradguard_anomalies_total{{{JOB}}}{RATE}))",
                "{{signal}} {{verdict}}",
            ),
        ),
        graph(
            "Not finite",
            "New NaN or infinite values by signal; an overflow that a scaler handles is here too.",
            "short",
            Query(f"sum by (signal) (increase(gradguard_nonfinite_total{{{JOB}}}{RATE}))", "{{signal}}"),
        ),
        graph(
            "Cost of the guard",
            "Time that the guard adds to a step: mean, and what 99 of 100 steps stay below.",
            "s",
            Query(f"job:gradguard_guard_seconds:mean5m{{{JOB}}}", "mean"),
            Query(
                f"histogram_quantile(0.99, sum by (le) (rate(gradguard_guard_seconds_bucket{{{JOB}}}[5m])))",
                "99 %",
            ),
        ),
        graph(
            "Steps lost",
            "Optimizer steps thrown away by rollbacks, since the job began.",
            "short",
            Query(f"gradguard_steps_lost_total{{{JOB}}}", "steps"),
        ),
    ]


def _checkpoints() -> list[Builder[Panel]]:
    return [
        graph(
            "Age of the checkpoint",
            "What would be lost if the job died now.",
            "s",
            Query(f"job:gradguard_checkpoint_age_seconds{{{JOB}}}", "age"),
            width=6,
        ),
        graph(
            "Checkpoints",
            "Since the job began, by what became of them.",
            "short",
            Query(f"gradguard_checkpoints_total{{{JOB}}}", "{{outcome}}"),
            width=6,
        ),
        graph(
            "Time of a checkpoint",
            "Mean time until one is on disk, and for which training waits.",
            "s",
            Query(
                mean("checkpoint_seconds", JOB),
                "to disk",
            ),
            Query(
                mean("checkpoint_blocked_seconds", JOB),
                "waits",
            ),
            width=6,
        ),
        graph(
            "Size of a checkpoint",
            "Of the one written last.",
            "bytes",
            Query(f"gradguard_checkpoint_bytes{{{JOB}}}", "size"),
            width=6,
        ),
    ]
