"""All jobs at a glance: who runs, who needs somebody."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, Panel

from service.dashboards.parts import (
    FLEET_DASHBOARD,
    JOB_DASHBOARD,
    Query,
    board,
    graph,
    number,
    rows,
    variable,
)

JOBS = 'job=~"$job"'


def fleet() -> dashboard.Dashboard:
    """The dashboard of all jobs."""
    made = board(FLEET_DASHBOARD, "GradGuard: fleet", "All training jobs that the hub knows.", since="now-6h")
    made.with_variable(variable("job", "Job", "label_values(gradguard_hub_job, job)", several=True))
    for panel in (*_numbers(), _jobs(), *_graphs()):
        made.with_panel(panel)
    return made


def _numbers() -> list[Builder[Panel]]:
    return [
        number(
            "Running",
            "Jobs that the hub has as running.",
            "short",
            Query(f'count(gradguard_hub_job{{{JOBS}, state="running"}}) or vector(0)', "jobs"),
        ),
        number(
            "Halted or failed",
            "Jobs that ended badly within the last 15 minutes: longer the hub does not keep them.",
            "short",
            Query(f'count(gradguard_hub_job{{{JOBS}, state=~"halted|failed"}}) or vector(0)', "jobs"),
            warn=1,
        ),
        number(
            "Alerts",
            "Alerts of deploy/prometheus/rules.yml that fire now.",
            "short",
            Query('count(ALERTS{alertname=~"GradGuard.*", alertstate="firing"}) or vector(0)', "alerts"),
            warn=1,
        ),
        number(
            "Rollbacks",
            "Rollbacks of all these jobs within the time range shown.",
            "short",
            Query(f"sum(increase(gradguard_rollbacks_total{{{JOBS}}}[$__range]))", "rollbacks"),
            warn=1,
        ),
        number(
            "Steps lost",
            "Optimizer steps thrown away by rollbacks within the time range shown.",
            "short",
            Query(f"sum(increase(gradguard_steps_lost_total{{{JOBS}}}[$__range]))", "steps"),
        ),
        number(
            "Steps per second",
            "Optimizer steps applied by all these jobs together, mean over 5 minutes.",
            "ops",
            Query(f"sum(job:gradguard_steps_applied:rate5m{{{JOBS}}})", "steps"),
        ),
    ]


def _jobs() -> Builder[Panel]:
    state = f"max by (job) (gradguard_hub_job{{{JOBS}}})"
    running = f'max by (job) (gradguard_hub_job{{{JOBS}, state="running"}})'
    columns = {
        "running": f"{running} or 0 * {state}",
        "steps accepted": f"max by (job) (gradguard_steps_accepted{{{JOBS}}})",
        "attempts": f"max by (job) (gradguard_attempts_total{{{JOBS}}})",
        "loss": f"max by (job) (gradguard_loss{{{JOBS}}})",
        "anomalies": f"sum by (job) (gradguard_anomalies_total{{{JOBS}}})",
        "rollbacks": f"sum by (job) (gradguard_rollbacks_total{{{JOBS}}})",
        "steps lost": f"max by (job) (gradguard_steps_lost_total{{{JOBS}}})",
        "budget used": f"max by (job) (job:gradguard_rollback_budget_used:ratio{{{JOBS}}})",
        "seconds since heard": f"time() - max by (job) (gradguard_hub_last_push_timestamp_seconds{{{JOBS}}})",
        "seconds since checkpoint": f"max by (job) (job:gradguard_checkpoint_age_seconds{{{JOBS}}})",
    }
    link = f"/d/{JOB_DASHBOARD}?var-job=${{__data.fields.job}}&${{__url_time_range}}"
    opens = dashboard.DashboardLink("Open the job").type(DashboardLinkType.LINK).url(link)
    return rows(
        "Jobs",
        "One row a job; a click opens its dashboard. Budget used: at 1 the next rollback halts.",
        "short",
        *(Query(expr, legend) for legend, expr in columns.items()),
    ).data_links([opens.icon("").tooltip("")])


def _graphs() -> list[Builder[Panel]]:
    return [
        graph(
            "Loss",
            "Training loss of each job, mean over its ranks; the last finite value.",
            "short",
            Query(f"gradguard_loss{{{JOBS}}}", "{{job}}"),
            scale="log",
        ),
        graph(
            "Steps applied",
            "Optimizer steps a second, mean over 5 minutes. Zero: the job stands still or skips everything.",
            "ops",
            Query(f"job:gradguard_steps_applied:rate5m{{{JOBS}}}", "{{job}}"),
        ),
        graph(
            "Anomalies",
            "Share of the steps of the last 15 minutes whose verdict was not ok. An alert fires above 2 %.",
            "percentunit",
            Query(f"job:gradguard_anomalies:ratio15m{{{JOBS}}}", "{{job}}"),
        ),
        graph(
            "Skipped",
            "Share of the steps of the last 10 minutes that were skipped. An alert fires above 10 %.",
            "percentunit",
            Query(f"job:gradguard_steps_skipped:ratio10m{{{JOBS}}}", "{{job}}"),
        ),
        graph(
            "Cost of the guard",
            "Time that the guard adds to a step, mean over 5 minutes.",
            "s",
            Query(f"job:gradguard_guard_seconds:mean5m{{{JOBS}}}", "{{job}}"),
        ),
        graph(
            "Age of the checkpoint",
            "What a job would lose that died now. An alert fires above one hour.",
            "s",
            Query(f"job:gradguard_checkpoint_age_seconds{{{JOBS}}}", "{{job}}"),
        ),
    ]
