"""provenance.json: an in-toto statement with a SLSA provenance predicate. It holds the sums of all data files, so that signing it
signs them.
"""

from __future__ import annotations

from typing import Any

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "https://pypi.org/project/kdgen/export/v1"


def statement(manifest: dict[str, Any]) -> dict[str, Any]:
    """What was made (each file by its SHA-256), of what (records, seeds, recipes, prompts), by whom, under which terms.

    Without a clock or an address it is the same for the same export; who signs it adds both.
    """
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": made["sha256"]}} for name, made in manifest["files"].items()],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": {name: manifest[name] for name in ("format", "as", "cut")},
                "internalParameters": {
                    "datasets": [
                        {
                            name: each[name]
                            for name in ("name", "use", "student", "paper", "prompts", "teachers", "terms")
                        }
                        for each in manifest["datasets"]
                    ],
                    "notices": manifest["notices"],
                },
                "resolvedDependencies": [one for each in manifest["datasets"] for one in _sources(each)],
            },
            "runDetails": {
                "builder": {"id": "https://pypi.org/project/kdgen/", "version": {"kdgen": manifest["kdgen"]}}
            },
        },
    }


def _sources(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """The files behind a dataset's rows, as resource descriptors."""
    records = {
        "name": f"{dataset['name']}/records.jsonl",
        "digest": {"sha256": dataset["records_sha256"]},
        "annotations": {"recipe": dataset["recipe"], "kdgen": dataset["kdgen"]},
    }
    seeds = [
        {
            "name": f"seeds/{each['name']}",
            "digest": {"sha256": each["sha256"]},
            "annotations": {"licence": each["licence"] or "not stated"},
        }
        for each in dataset["seeds"]
    ]
    return [records, *seeds]
