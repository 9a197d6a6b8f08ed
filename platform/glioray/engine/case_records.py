"""Records of what made the outputs of cases, so that a job that was interrupted does only the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import glioray
from glioray.cases.casefiles import CaseFiles
from glioray.errors import StorageError
from glioray.serialization import fingerprint, to_dict
from glioray.storage import Storage, list_written, open_storage

# Discovery of cases leaves out folders whose name begins with a dot.
_FOLDER = ".glioray"
_FORMAT = 1


def describe_inputs(storage: Storage, cases: Sequence[CaseFiles]) -> dict[str, str]:
    """Case id -> a name of its input: what is known of its files, their sizes and their stamps."""
    found = {info.key: [info.size_bytes, info.stamp] for info in storage.list(unlisted=[])}
    return {
        files.case_id: fingerprint([to_dict(files), list(map(found.get, files.keys()))]) for files in cases
    }


class CaseRecords:
    """The records of one kind of work below a job's `--out`: a JSON file a case, in the folder `.glioray`.

    A record is removed before the outputs of its case are written and written after them, so that one that is there
    belongs to them.

    Args:
        out: URI of the outputs.
        work: JSON values of all that outputs depend on beside their case and the version of glioray.
    """

    def __init__(self, out: str, work: Mapping[str, Any]) -> None:
        self.storage = open_storage(out)
        self.work = {**work, "format": _FORMAT, "version": glioray.__version__}

    def find_done(self, inputs: Mapping[str, str]) -> dict[str, Any]:
        """Case id -> answer of the cases whose outputs are there, whole, and made by this work of this input.

        Args:
            inputs: of `describe_inputs`.

        Raises:
            StorageError: the outputs cannot be listed.
        """
        sizes = list_written(self.storage)
        recorded = [case_id for case_id in inputs if _key(case_id) in sizes]
        with ThreadPoolExecutor() as threads:
            records = dict(zip(recorded, threads.map(self._read, recorded), strict=True))
        return {
            case_id: record["answer"]
            for case_id, record in records.items()
            if record.get("work") == self.work
            and record["input"] == inputs[case_id]
            and all(sizes.get(name) == size for name, size in record["outputs"].items())
        }

    def begin(self, case_id: str) -> None:
        """Remove a case's record: its outputs are about to be written."""
        self.storage.delete(_key(case_id))

    def finish(self, case_id: str, described: str, outputs: Mapping[str, int], answer: Any) -> None:
        """Record a case whose outputs are written.

        Args:
            case_id: the case.
            described: its input, of `describe_inputs`.
            outputs: key -> size in bytes.
            answer: JSON value that `find_done` gives back.
        """
        record = {"work": self.work, "input": described, "outputs": dict(outputs), "answer": answer}
        self.storage.write(_key(case_id), json.dumps(record, indent=1).encode())

    def _read(self, case_id: str) -> dict[str, Any]:
        """A case's record; empty where it is damaged or has gone since it was listed."""
        try:
            record = json.loads(self.storage.read(_key(case_id)))
        except (StorageError, ValueError):
            return {}
        whole = isinstance(record, dict) and {"input", "outputs", "answer"} <= record.keys()
        return record if whole else {}


def _key(case_id: str) -> str:
    return f"{_FOLDER}/{case_id}.json"
