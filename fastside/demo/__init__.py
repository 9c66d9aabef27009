"""`fastside demo`: a whole takeover on one machine."""

from __future__ import annotations


def main(*, keep: bool, as_json: bool) -> int:
    """Play the demo and return the exit code: 0, 1 if a step did not hold, 128 + N if signal N ended it.

    keep: stay up at the end, until a signal. as_json: print the summary as JSON, and nothing else.
    """
    from fastside.demo.stage import run  # here, for the demo's provider and caller are programs of this package too

    return run(keep=keep, as_json=as_json)
