"""croissant.json: the export in the words of Croissant 1.1 (MLCommons), which catalogues and `mlcroissant` read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdgen.bundle.flow import Done, Part
from kdgen.export import Format
from kdgen.export.shapes import BYTE, FLAG, NUMBER, WHOLE, Shape, columns

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
ENCODINGS = {"jsonl": "application/jsonlines", "parquet": "application/x-parquet", "tsv": "text/tab-separated-values"}
TYPES = {NUMBER: "sc:Float", WHOLE: "sc:Integer", FLAG: "sc:Boolean", BYTE: "sc:Integer"}
BEIR: dict[str, dict[str, Any]] = {
    "corpus.jsonl": {"_id": "text", "title": "text", "text": "text"},
    "queries.jsonl": {"_id": "text", "text": "text"},
    "qrels": {"query-id": "text", "corpus-id": "text", "score": WHOLE},
}


def croissant(manifest: dict[str, Any], parts: Sequence[Part], form: Format, done: Done) -> dict[str, Any]:
    """The metadata of an export: its files with their sums, a record set for each, who wrote it, from what."""
    about = " ".join(part.dataset.manifest["about"] for part in parts if part.dataset.manifest["about"])
    teachers = {teacher["label"]: teacher for each in manifest["datasets"] for teacher in each["teachers"].values()}
    papers = list(dict.fromkeys(each["paper"] for each in manifest["datasets"] if each["paper"]))
    limits = [
        ruling["verdicts"][0]["asks"]
        for each in manifest["datasets"]
        for ruling in each["terms"]
        if ruling["status"] != "allowed"
    ]
    shape = done.shape(form, manifest["as"])
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": manifest["name"],
        "description": about or "A distillation dataset.",
        "version": "1.0.0",
        "license": "README.md#terms",
        **({"citeAs": "; ".join(papers)} if papers else {}),
        "isLiveDataset": False,
        "rai:dataCollection": "Written by language models that were asked with kdgen; records.jsonl of the dataset has each row's lineage.",
        "rai:machineAnnotationTools": [f"kdgen {manifest['kdgen']}", *teachers],
        "rai:dataLimitations": [*dict.fromkeys([*manifest["notices"], *limits])]
        or ["Models err; nobody has read every row."],
        "prov:wasDerivedFrom": [
            {"@type": "prov:Entity", "@id": f"urn:sha256:{seeds['sha256']}", "prov:label": seeds["name"]}
            for each in manifest["datasets"]
            for seeds in each["seeds"]
        ],
        "distribution": [_file(name, made) for name, made in manifest["files"].items()],
        "recordSet": [_records(name, form.format, shape) for name in manifest["files"]],
    }


def _file(name: str, made: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{made['bytes']} B",
        "encodingFormat": ENCODINGS[name.rsplit(".", 1)[-1]],
        "sha256": made["sha256"],
    }


def _records(file: str, form: str, shape: dict[str, Any]) -> dict[str, Any]:
    shape = shape if form != "beir" else BEIR.get(file, BEIR["qrels"])
    name = file.rsplit(".", 1)[0].replace("/", "-")
    fields = [_field(f"{name}/{column}", column, inner, file, []) for column, inner in columns(shape).items()]
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields}


def _field(at: str, name: str, shape: Shape, file: str, path: list[str]) -> dict[str, Any]:
    """A column, with a field below it for each part of an object; `path` leads to that part."""
    made: dict[str, Any] = {"@type": "cr:Field", "@id": at, "name": name}
    depth = 0
    while isinstance(shape, list):
        shape, depth = shape[0], depth + 1
    if depth:
        made |= {"isArray": True, "arrayShape": ",".join(["-1"] * depth)}
    path = [*path, name]
    if isinstance(shape, dict):
        made["subField"] = [_field(f"{at}/{inner}", inner, part, file, path) for inner, part in columns(shape).items()]
    else:
        made["source"] = {"fileObject": {"@id": file}, "extract": {"column": path[0]}}
        if path[1:]:
            made["source"]["transform"] = {"jsonPath": ".".join(path[1:])}
        made["dataType"] = TYPES.get(shape.removesuffix("?"), "sc:Text") if isinstance(shape, str) else "sc:Text"
    return made
