"""What a run knows before it asks anything: its seeds, and the rows of a loop's iterations before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kdgen.asking import Step
from kdgen.config import Recipe
from kdgen.dedupe.exact import Index
from kdgen.loops import rows_of
from kdgen.record import Record
from kdgen.seeds import Scan, own_record, read
from kdgen.stages import Pool


def know(
    recipe: Recipe, steps: Iterable[Step], indexes: Sequence[Index], seeds: Path, scan: Scan, earlier: Sequence[Path]
) -> Pool:
    """Show the seeds to the indexes that compare with them and the stages that draw from them, and earlier rows likewise.

    Returns the rows that the pool of a stage begins with: those of all iterations before, with `loop.reads: pool`.
    """
    new = any(step.stage.consumes for step in steps)
    pairs = zip(recipe.dedupe, indexes, strict=True)
    knowing = [index for method, index in pairs if method.against_seeds and new]
    drawing = [step.draw for step in steps if step.stage.draws_seeds]
    if recipe.seeds is not None and (knowing or drawing):
        pool = Pool()
        for row in read(recipe.seeds, seeds, scan):
            if isinstance(row, Record):
                for index in knowing:
                    index.seen(row)
                if drawing:
                    pool.extend((row,))
        for draw in drawing:
            draw.seeds = pool
    if last := [step.draw for step in steps if step.stage.draws_earlier] if earlier else []:
        rows = Pool([own_record(row) for row in rows_of(earlier[-1])])
        for draw in last:
            draw.earlier = rows
    if recipe.loop is None or recipe.loop.reads != "pool":
        return Pool()
    begun = Pool([own_record(row) for path in earlier for row in rows_of(path)])
    for record in begun.records:
        for index in indexes:
            index.seen(record)
    return begun
