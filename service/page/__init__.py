"""The web page of the service: jobs, one job as it runs, and a form to submit one.

It is a client of the HTTP API: plain HTML, CSS and ES modules in ``static``, served as they are; the charts
are drawn by uPlot (``static/vendor``). Its own routes: streams that feed the charts (``streams``), the
check of a spec while typing (``specs``), and the caller's scope (``static_files``).

Authentication. A token is typed into the page, kept in the browser's ``sessionStorage`` and sent as the
``Authorization`` header, as other clients do. A cookie would be sent automatically, so each route that
changes something would need a defence against forged requests. A cookie cannot be read by a script; here no
foreign script can run: the content security policy allows the service's own files only, no inline script,
no frame and no other host, Trusted Types forbid making HTML from text, and job output is written as text.
The token is forgotten with the tab. ``EventSource`` cannot send a header, so the streams are read with
``fetch``.

The page's files are public: they hold nothing of any job.
"""
