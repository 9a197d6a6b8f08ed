"""The command line: flags made from the request types of `glioray.api.requests`, and what every job has in common."""

from __future__ import annotations

from glioray.cli.job import Job

__all__ = ["Job"]
