"""What outlives a job.

``cli``: the command ``gradguard``
``app``: the HTTP application: routes, limits, errors
``api``: the HTTP API
``page``: the web page
``reconcile``: starts, follows and restarts jobs
``store``: the database
``masking``: keeps secrets out of what is shown
``settings``: default places
"""
