"""Grafana's dashboards, built with Grafana's foundation SDK.

``python -m service.dashboards`` writes the JSON. Whoever deploys them needs that only, which lies in
deploy/grafana/dashboards; the SDK comes with the extra ``dev``.
"""
