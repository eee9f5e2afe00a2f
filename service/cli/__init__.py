"""The command ``gradguard``: one module for each command or a few.

``app``: the command line
``options``: arguments that commands share
``tables``: tables of texts that others wrote
``check``: validate and pre-flight
``replay``: the detector on a log
``detector_settings``: the detector's settings from the command line
``plots``: the plots of both
``jobs``: submit, stop, resume, clone, delete, logs
``query``: list, status, incidents, report
``sweep``: many jobs that differ in a few fields
``compare``: two jobs
``download``: files, checkpoints and weights of a job
``predict``: images by a job's model
``notify``: tries the notices of a spec
``checkpoints``: list, verify, export
``serve``: the service
``tokens``: who may use it
``audit``: who did what
"""

from service.cli.app import main

__all__ = ["main"]
