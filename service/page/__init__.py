"""The web page of the service: jobs, one job as it runs, and a form to submit one.

``static``: HTML, CSS and ES modules, served as they are; uPlot (``static/vendor``) draws the charts
``static_files``: serves them, and answers who is asking
``stream_routes``: server-sent events for the charts
``streams``: what is new in the store and in the growing files of a job
``list_stream``: what is new in the list of jobs
``cluster_routes``: how full the cluster is, and who waits
``replay_routes``: the detector on a dropped log; ``replay_process`` reads it
``specs``: checks the form's spec as the user types, and offers examples

The page is a client of the HTTP API. A token is typed into it, kept in the browser's ``sessionStorage`` and
sent as the ``Authorization`` header, as every other client sends it. A cookie is not used: a browser adds it
to requests automatically, so each route that changes something would need a defence against forged requests.
A cookie cannot be read by a script, but no foreign script can run here: the content security policy allows
the service's own files only, no inline script, no frame and no other host; Trusted Types forbid HTML made
from text; whatever comes from a job is written as text. The token is forgotten with the tab. ``EventSource``
cannot send a header, so the streams are read with ``fetch``. The page's files are public: they hold nothing
of any job.
"""
