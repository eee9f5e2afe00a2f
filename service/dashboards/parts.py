"""What the dashboards are made of: panels over Prometheus queries, variables and annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries, xychart
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as d
from grafana_foundation_sdk.models import prometheus as p
from grafana_foundation_sdk.models import xychart as xy

SOURCE = d.DataSourceRef(type_val="prometheus", uid="${datasource}")
MIN_INTERVAL = "5s"
"""The scrape interval of deploy/prometheus/prometheus.yml."""

WIDTH = 24
JOB_DASHBOARD, FLEET_DASHBOARD, INCIDENT_DASHBOARD = "gradguard-job", "gradguard-fleet", "gradguard-incident"


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and how its series are called: `{{label}}` stands for a label's value."""

    expr: str
    legend: str


class _Panel(Protocol):
    """What all kinds of panel have."""

    def title(self, title: str) -> Self: ...
    def description(self, description: str) -> Self: ...
    def unit(self, unit: str) -> Self: ...
    def span(self, w: int) -> Self: ...
    def height(self, h: int) -> Self: ...
    def datasource(self, datasource: d.DataSourceRef) -> Self: ...
    def with_target(self, target: Builder[Dataquery]) -> Self: ...


P = TypeVar("P", bound=_Panel)


def mean(name: str, selector: str) -> str:
    """The mean of a histogram over the whole job; no series before its first value."""
    return f"gradguard_{name}_sum{{{selector}}} / (gradguard_{name}_count{{{selector}}} > 0)"


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    scale: Literal["linear", "log"] = "linear",
    width: int = 12,
) -> timeseries.Panel:
    """Lines over the wall clock; `log` for what spans orders of magnitude and is positive."""
    kind = c.ScaleDistribution.LOG if scale == "log" else c.ScaleDistribution.LINEAR
    distribution = common.ScaleDistributionConfig().type(kind)
    panel = (
        timeseries.Panel()
        .interval(MIN_INTERVAL)
        .line_width(1)
        .fill_opacity(0)
        .show_points(c.VisibilityMode.AUTO)
        .scale_distribution(distribution.log(10) if scale == "log" else distribution)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(c.LegendDisplayMode.LIST)
            .placement(c.LegendPlacement.BOTTOM)
            .calcs([])
        )
        .tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.MULTI).sort(c.SortOrder.DESCENDING))
    )
    return _filled(panel, title, description, unit, queries, width=width, height=8)


def number(
    title: str, description: str, unit: str, query: Query, *, warn: float | None = None, width: int = 4
) -> stat.Panel:
    """The last value, orange from `warn` on."""
    steps = [d.Threshold(value=0, color="green")]
    if warn is not None:
        steps.append(d.Threshold(value=warn, color="orange"))
    panel = (
        stat.Panel()
        .color_mode(c.BigValueColorMode.VALUE)
        .graph_mode(c.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .thresholds(dashboard.ThresholdsConfig().mode(d.ThresholdsMode.ABSOLUTE).steps(steps))
    )
    return _filled(panel, title, description, unit, [query], width=width, height=4, instant=True)


def rows(title: str, description: str, unit: str, *queries: Query, width: int = WIDTH) -> table.Panel:
    """A table with one column for each query; rows are what their labels have in common."""
    names = {f"Value #{_ref(index)}": query.legend for index, query in enumerate(queries)}
    panel = (
        table.Panel()
        .align(c.FieldTextAlignment.AUTO)
        .show_header(True)
        .with_transformation(d.DataTransformerConfig(id_val="merge", options={}))
    )
    panel = panel.with_transformation(
        d.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": {"Time": True}, "renameByName": names, "indexByName": {}},
        )
    )
    return _filled(
        panel, title, description, unit, queries, width=width, height=8, instant=True, as_table=True
    )


def against(title: str, description: str, unit: str, x: Query, y: Query) -> xychart.Panel:
    """`y` over `x`, not over time: what was rewound is drawn over what came of it."""
    panel = (
        xychart.Panel()
        .mapping(xy.SeriesMapping.AUTO)
        .show(xy.XYShowMode.POINTS)
        .point_size(xychart.XychartFieldConfigPointSize().fixed(3))
        .legend(common.VizLegendOptions().show_legend(True).placement(c.LegendPlacement.BOTTOM).calcs([]))
        .tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.SINGLE))
        .with_transformation(d.DataTransformerConfig(id_val="joinByField", options={"byField": "Time"}))
    )
    return _filled(panel, title, description, unit, [x, y], width=12, height=8)


def board(uid: str, title: str, description: str, *, since: str) -> dashboard.Dashboard:
    """An empty dashboard, with the data source to choose and links to the other dashboards."""
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    others = dashboard.DashboardLink("GradGuard").type(d.DashboardLinkType.DASHBOARDS).tags(["gradguard"])
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["gradguard"])
        .editable()
        .tooltip(d.DashboardCursorSync.CROSSHAIR)
        .refresh("5s")
        .time(since, "now")
        .timezone("browser")
        .with_variable(source)
        .link(
            others.as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
            .icon("external link")
            .tooltip("")
            .url("")
        )
    )


def variable(name: str, label: str, values: str, *, several: bool) -> dashboard.QueryVariable:
    """A choice among the label values that the query `values` tells."""
    made = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(values)
        .refresh(d.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(d.VariableSort.NATURAL_ASC if several else d.VariableSort.ALPHABETICAL_ASC)
        .multi(several)
        .include_all(several)
    )
    everything = d.VariableOption(selected=True, text=["All"], value=["$__all"])
    return made.all_value(".*").current(everything) if several else made


def incidents() -> list[dashboard.AnnotationQuery]:
    """Marks on every graph where the guard stepped in."""
    marks = {
        "Rollback": ("red", "sum by (job, source) (increase(gradguard_rollbacks_total{JOB}[RATE])) > 0"),
        "Spike": (
            "orange",
            'sum by (job, signal) (increase(gradguard_anomalies_total{JOB, verdict="spike"}[RATE])) > 0',
        ),
        "Not finite": (
            "purple",
            'sum by (job, signal) (increase(gradguard_anomalies_total{JOB, verdict="nonfinite"}[RATE])) > 0',
        ),
    }
    return [
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(True)
        .icon_color(color)
        .expr(expr.replace("JOB", 'job="$job"').replace("RATE", "$__rate_interval"))
        for name, (color, expr) in marks.items()
    ]


def _filled(
    panel: P,
    title: str,
    description: str,
    unit: str,
    queries: list[Query] | tuple[Query, ...],
    *,
    width: int,
    height: int,
    instant: bool = False,
    as_table: bool = False,
) -> P:
    panel.title(title).description(description).unit(unit).span(width).height(height).datasource(SOURCE)
    for index, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(_ref(index))
        target.datasource(SOURCE)
        if as_table:
            target.format(p.PromQueryFormat.TABLE)
        panel.with_target(target.instant() if instant else target.range())
    return panel


def _ref(index: int) -> str:
    return chr(ord("A") + index)
