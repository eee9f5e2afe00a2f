"""Everything that GradGuard uses of Ray beyond its public API: look here first when Ray is updated.

``core`` has the functions, ``train`` what is derived from Ray Train's classes, ``messages`` the wording of
errors that have no type of their own. Seen in Ray 2.60.0; ``tests/jobs/test_ray_internals.py`` touches each.
"""
