"""The web page of the service: jobs, one job as it runs, and a form to hand one in.

It is a client of the HTTP API like any other: plain HTML, CSS and ES modules in ``static``, served as they
are. What it needs beyond the API is here: streams that feed its charts (``streams``), the check of a spec as
one types (``specs``), and who is asking (``static_files``).

Who asks. A token is typed into the page, kept in the browser's ``sessionStorage`` and sent as the
``Authorization`` header, as every other client sends it. A cookie was the alternative. It is not used because
a browser adds a cookie to requests by itself: each route that changes something would need a defence against
forged requests, and the API a second way to be asked. What speaks for a cookie is that a script cannot read
it; here no foreign script can run: the page's content security policy allows the service's own files only,
no inline script, no frame and no other host, Trusted Types forbid to make HTML of text, and whatever comes
from a job is written as text. The token is forgotten with the tab. ``EventSource`` cannot send a header, so
the streams are read with ``fetch``.

The page's files are public: they hold nothing of any job.
"""
