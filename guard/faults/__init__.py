"""Fault injection, for tests, drills and benchmarks.

``config``: ``FaultConfig``, one fault as a spec describes it
``injector``: ``FaultInjector``, which makes it happen
"""
