"""Where a sweep's measurements run: in this process, in several processes, on a Ray cluster.

An engine takes independent tasks and yields what they find, in the order they are finished. Each worker builds its
model once. Tasks are saved by the caller as they come, so what an engine has yielded is never computed again.
"""
