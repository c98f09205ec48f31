"""How far several raters agree: Fleiss' kappa, summed up as units come, in whatever order they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass
class Agreement:
    """Sums over rated units (a text, a word of it), each with the number of raters for each category.

    Whole numbers alone are added up, so that the order in which units come changes no digit.
    """

    pairs: Counter[int] = field(default_factory=Counter)
    units: Counter[int] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)

    def add(self, units: Iterable[Mapping[str, int]]) -> None:
        """Add units. One that has fewer than two raters says nothing of agreement and does not count."""
        for unit in units:
            raters = sum(unit.values())
            if raters > 1:
                self.units[raters] += 1
                self.pairs[raters] += sum(count * (count - 1) for count in unit.values())
                self.categories.update(unit)

    def data(self) -> dict[str, float | int | None]:
        """`observed`: the share of pairs of raters that agree, a mean over units; `kappa`: that beyond chance.

        Kappa = (observed - chance) / (1 - chance) (Fleiss 1971), None where one category alone was ever given.
        """
        units, ratings = self.units.total(), self.categories.total()
        if not units:
            return {"kappa": None, "observed": None, "units": 0, "ratings": 0}
        agreed = [Fraction(self.pairs[raters], raters * (raters - 1)) for raters in self.units]
        observed = sum(agreed, Fraction(0)) / units
        chance = sum((Fraction(count, ratings) ** 2 for count in self.categories.values()), Fraction(0))
        kappa = None if chance == 1 else round(float((observed - chance) / (1 - chance)), 4)
        return {"kappa": kappa, "observed": round(float(observed), 4), "units": units, "ratings": ratings}
