"""What a run says about itself: the counts as it goes, the manifest and the card at its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kdgen import __version__
from kdgen.record import Record, Row, Waiting
from kdgen.teachers.base import TeacherSpec
from kdgen.teachers.bill import Sum

if TYPE_CHECKING:
    from kdgen.runner import Run


@dataclass
class Tally:
    """Where every record went. `stopped` says why the run ended: seeds, target, rounds, candidate_cap, dry or budget."""

    seeds: int = 0
    generated: int = 0
    rows: int = 0
    demonstrations: int = 0
    waiting: int = 0
    stopped: str = "seeds"
    rejects: Counter[str] = field(default_factory=Counter)
    stage_rejects: Counter[str] = field(default_factory=Counter)
    stages: dict[str, Counter[str]] = field(default_factory=dict)

    def passed(self, stage: str, taken: int, rows: Iterable[Row]) -> None:
        """Count one job of a stage: what it took, passed on and rejected."""
        counts = self.stages.setdefault(stage, Counter())
        counts["in"] += taken
        for row in rows:
            counts["out" if isinstance(row, Record) else "rejects"] += not isinstance(row, Waiting)

    def balance(self) -> None:
        """Raise AssertionError where a record was lost: seeds + generated = rows + rejects + demonstrations."""
        came = self.seeds + self.generated
        went = self.rows + self.rejects.total() + self.demonstrations + self.waiting
        if came != went:
            raise AssertionError(f"{came} records came and {went} went: {self}")


def manifest_of(run: Run, files: dict[str, str], features: dict[str, Any], started: float) -> dict[str, Any]:
    """The manifest. `requests`, `tokens` and `cost_usd` are this run's; `dataset` is the same of every reply behind the rows.

    `maybe_billed` is what this run's requests without a reply can have cost at worst.
    """
    recipe, bill, tally = run.recipe, run.bill, run.tally
    known = all(bill.prices.of(spec) is not None for _, spec in recipe.leaves())
    everything = list(bill.used.values())
    return {
        "kdgen": __version__,
        "name": recipe.name,
        "about": recipe.about,
        "paper": recipe.paper,
        "counts": {
            "seeds": tally.seeds,
            "generated": tally.generated,
            "rows": tally.rows,
            "rejects": dict(sorted(tally.rejects.items())),
            "demonstrations": tally.demonstrations,
        },
        "stages": {
            name: {key: counts[key] for key in ("in", "out", "rejects")} for name, counts in tally.stages.items()
        },
        "target": recipe.target,
        "stopped": tally.stopped,
        "requests": {
            "sent": bill.requests,
            "from_ledger": bill.from_ledger,
            "from_batches": bill.imports,
            "failed": bill.failures,
            "maybe_billed": bill.maybe_billed + run.ledger.orphans,
        },
        "maybe_billed": {"tokens": bill.lost_tokens, "cost_usd": round(bill.lost_usd, 6) if known else None},
        "tokens": _tokens(bill.paid.values()),
        "cost_usd": round(bill.usd, 6) if known else None,
        "dataset": {
            "replies": sum(part.replies for part in everything),
            "tokens": _tokens(everything),
            "cost_usd": round(sum(part.usd for part in everything), 6) if known else None,
        },
        **({"features": features} if features else {}),
        "repairs": dict(run.desk.repairs),
        "agreement": {name: rated.data() for name, rated in sorted(run.desk.agreement.items())},
        "judges": {name: judging.data() for name, judging in sorted(run.desk.judging.items())},
        "teachers": {role: _teacher(run, role, spec) for role, spec in recipe.leaves()},
        "teams": {
            role: spec.model_dump(mode="json")
            for role, spec in recipe.teachers.items()
            if not isinstance(spec, TeacherSpec)
        },
        "seeds": {"licence": recipe.seeds.under, **_coverage(run)} if recipe.seeds else {},
        "use": recipe.use,
        "student": recipe.student,
        "terms": [ruling.data() for ruling in run.rulings],
        "prompts": {
            prompt.name: {"about": prompt.about, "paper": prompt.paper, "variables": prompt.variables}
            for prompt in recipe.prompts()
        },
        "notices": [*run.desk.notices, *run.desk.remarks()],
        "hashes": {
            "recipe": recipe.digest,
            "prompts": {prompt.name: prompt.digest for prompt in recipe.prompts()},
            "seeds": {recipe.seeds.path.rsplit("/", 1)[-1]: run.scan.sha256} if recipe.seeds else {},
            "files": files,
        },
        "started": _clock(started),
        "seconds": round(time.time() - started, 3),
    }


def _tokens(parts: Iterable[Sum]) -> dict[str, int]:
    parts = list(parts)
    return {
        "input": sum(part.input for part in parts),
        "cached_input": sum(part.cached_input for part in parts),
        "output": sum(part.output for part in parts),
    }


def _coverage(run: Run) -> dict[str, Any]:
    """How well the selected seeds stand for all that were there."""
    return {"coverage": run.scan.coverage._asdict()} if run.scan.coverage else {}


def _teacher(run: Run, role: str, spec: TeacherSpec) -> dict[str, Any]:
    bill = run.bill
    paid, used = bill.paid.get(spec.label, Sum()), bill.used.get(spec.label, Sum())
    return {
        "label": spec.label,
        "params": spec.given(),
        "stages": {step.stage.name: step.params[role].given() for step in run.steps if role in step.params},
        **spec.origin(),
        "paid": asdict(paid),
        "used": asdict(used),
    }


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
