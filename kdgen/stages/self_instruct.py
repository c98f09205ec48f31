"""Expansion by demonstrations: Self-Instruct's bootstrapping loop, and what differs from it by what is shown and written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue

from kdgen.errors import Rejected, UserError
from kdgen.parse import alone, bare, labelled, numbered, split_thinking, terms
from kdgen.prompts import Prompt, PromptFile
from kdgen.record import Record, Row, pick
from kdgen.stages.base import Ask, PoolStage, bad_stage
from kdgen.stages.draw import Draw, Pool
from kdgen.teachers.base import Reply

RENUMBERED = re.compile(r"^\d{1,3}[.):]\s+")
HEADED = re.compile(r"\A\W*(?:new )?(?:task|instruction|problem|text)\s*:\W*\s", re.I)
NOTHING = re.compile(r"\A\W*(?:no ?input|none|n/?a|empty)?\W*\Z", re.I)
ROUND = 1_000_000
PARTS = ("instruction", "input", "output")


class SelfInstruct(PoolStage):
    """New tasks from demonstrations of old ones: D = {x | x ~ p_T(x | I ⊕ c)} (Xu et al., Eq. 4).

    Self-Instruct (Wang et al., arXiv 2212.10560): each call shows `human` seed tasks and `machine` tasks of earlier
    rounds (6 + 2; seeds fill in while there are too few), each of `shown_words` words at most with its input, and asks for
    `ask_for` more; a candidate joins the pool when the heuristics keep it and its ROUGE-L with the whole pool is at most
    0.7. `calls` is the number of calls of a round; without it, a target's 32nd part, at least 4. Rounds go on to `rounds`
    (4 without a target), and with a target until it is met, `max_candidates` (20 a target row) are made, or two rounds in
    a row add nothing.

    `form` says what comes back: a numbered `list` of tasks; `pairs`, tasks with input and output in one call (Alpaca); one
    `task` (two tasks fused into one, Instruction Fusion; one task of a persona); or one `input` for the instruction of
    the first task shown (PromptMix, arXiv 2310.14192, whose examples a later stage labels again).

    With `group`, a field or column, a call shows tasks of `groups` of its values alone, each drawn as often as it has
    tasks: the subgroups of TDG (arXiv 2305.17926), the classes between which PromptMix writes. The first is `meta.group`.
    """

    stage: Literal["expand"] = "expand"
    method: Literal["self-instruct"] = "self-instruct"
    prompt: PromptFile
    form: Literal["list", "pairs", "task", "input"] = "list"
    human: int = Field(6, ge=0)
    machine: int = Field(2, ge=0)
    ask_for: int = Field(8, ge=1)
    shown_words: int = Field(60, ge=1)
    group: str | None = None
    groups: int = Field(1, ge=1)
    rounds: int | None = Field(None, ge=1)
    calls: int | None = Field(None, ge=1)
    max_candidates: int | None = Field(None, ge=1)
    novelty: float | None = Field(0.7, gt=0, le=1)

    gives: ClassVar[dict[str, frozenset[str]]] = {
        "prompt": frozenset({"demonstrations", "groups", "first", "last", "count"})
    }

    @property
    def cut_is_fine(self) -> bool:  # type: ignore[override]
        """Of a list the whole items are of use."""
        return self.form in ("list", "pairs")

    def check(self, where: str) -> None:
        """No field may be without effect."""
        super().check(where)
        if not self.cut_is_fine and "ask_for" in self.model_fields_set:
            raise bad_stage(f"form: {self.form} asks for one", f"{where}.ask_for", "take it out")
        if self.form == "input" and self.novelty is not None:
            hint = "novelty: null, and dedupe: [{method: rouge-l, field: input}]"
            raise bad_stage("novelty is of instructions, and form: input makes none", f"{where}.novelty", hint)
        if self.group is None and self.groups > 1:
            raise bad_stage("there is nothing to group by", f"{where}.groups", "group: names a field or column")
        if self.human + self.machine < self.groups:
            raise bad_stage(
                "every group needs a task to show", f"{where}.groups", "human: is the number of tasks shown"
            )

    def plan_pool(self, seeds: Pool, made: Pool, round: int, calls: int, draw: Draw) -> Iterator[Record]:
        """Each job's demonstrations, drawn by rendezvous and mixed."""
        known = len(seeds) + len(made)
        old, new = (self._grouped(pool) for pool in (seeds, made))
        if known and len(old.keys() | new.keys()) < self.groups:
            raise UserError(self._lack(), where=self.name, hint=self._hint())
        sizes = Counter({name: len(pool) for name, pool in old.items()})
        for name, pool in new.items():
            sizes[name] += len(pool)
        drawn: Counter[tuple[str, ...]] = Counter()
        for number in range(calls):
            names = _names(sizes, self.groups, draw.seed, draw.stage, "group", round, number)
            human, machine = list[Record](), list[Record]()
            for place, name in enumerate(names):
                mine = draw.top(
                    new.get(name, Pool()), _share(self.machine, place, self.groups), "machine", round, number
                )
                wanted = _share(self.human + self.machine, place, self.groups) - len(mine)
                human += draw.top(old.get(name, Pool()), wanted, "human", round, number)
                machine += mine
            shown = draw.top(Pool(human + machine), len(human) + len(machine), "order", round, number)
            if not shown:
                return
            ids = tuple(task.id for task in shown)
            # The same tasks drawn again, here or in another round, are to bring something new.
            nth = round * ROUND + drawn[ids]
            drawn[ids] += 1
            meta: dict[str, JsonValue] = {"round": round, "nth": nth, "shown": [self._shown(task) for task in shown]}
            groups: dict[str, JsonValue] = {"groups": list[JsonValue](names)} if self.group else {}
            yield shown[0].child(stage=self.stage, method=self.method, parents=shown, meta=meta | groups)

    def _grouped(self, pool: Pool) -> dict[str, Pool]:
        """The tasks that can be shown, by group; all in one where there is none to group by."""
        found: dict[str, list[Record]] = {}
        for task in pool.records:
            if (name := _group(task, self.group)) is not None and 0 < self._length(task) <= self.shown_words:
                found.setdefault(name, []).append(task)
        return {name: Pool(tasks) for name, tasks in found.items()}

    def _length(self, task: Record) -> int:
        """In words; 0 of one that lacks what a demonstration shows."""
        if self.form == "pairs":
            return len(f"{task.task} {task.output}".split()) if task.output and task.task else 0
        return len(task.task.split())

    def _lack(self) -> str:
        if self.group and self.groups > 1:
            return f"{self.groups} groups of {self.group} are needed, each with a task of 1 to {self.shown_words} words"
        whose = f" and a {self.group}" if self.group else ""
        answered = " and an output" if self.form == "pairs" else ""
        return f"no task has 1 to {self.shown_words} words{whose}{answered}, so there is no demonstration"

    def _hint(self) -> str:
        return "raise shown_words; a text alone is no task (seeds.map: {instruction: COLUMN} makes it one)"

    def _shown(self, task: Record) -> JsonValue:
        parts: dict[str, JsonValue] = {name: getattr(task, name) for name in (*PARTS, "text")}
        group = _group(task, self.group) if self.group else None
        return {"task": " ".join(task.task.split()), **parts, "group": group or ""}

    def example(self, prompt: Prompt, variables: Mapping[str, Any], words: Callable[[int], str]) -> str:
        """The list that is asked for, or the one task."""
        numbers = range(variables["first"], variables["last"] + 1)
        if self.form == "list":
            return "\n".join(f"{number}. Explain {words(15)}" for number in numbers)
        if self.form == "pairs":
            each = "### Task {0}\nInstruction: Explain {1}\nInput: none\nOutput: {2}"
            return "\n".join(each.format(number, words(15), words(40)) for number in numbers)
        return f"Explain {words(40)}"

    async def run(self, job: Record, ask: Ask) -> list[Row]:
        """One call; what comes back of it. A list cut at max_tokens loses its last item."""
        shown, nth = job.meta["shown"], job.meta["nth"]
        assert isinstance(shown, list) and isinstance(nth, int)
        count = self.ask_for if self.cut_is_fine else 1
        first = len(job.parents) + 1
        reply = await ask(
            self.prompt,
            nth=nth,
            partial=self.cut_is_fine,
            demonstrations=shown,
            groups=job.meta.get("groups", []),
            first=first,
            last=first + count - 1,
            count=count,
        )
        items = self._items(reply, job)
        if not items:
            raise Rejected("no_list", reply.text[:200])
        return [self._row(job, reply, place, item, len(items)) for place, item in enumerate(items)]

    def _items(self, reply: Reply, job: Record) -> list[dict[str, str]]:
        """The content of each task in a reply."""
        if self.form == "list":
            return [{"instruction": bare(RENUMBERED.sub("", item).strip("*").strip())} for item in numbered(reply.text)]
        if self.form == "pairs":
            return [_pair(found) for found in labelled(reply.text, PARTS)]
        text = bare(HEADED.sub("", alone(split_thinking(reply.text)[1])))
        if not terms(text):
            raise Rejected("empty_task", f"finish: {reply.finish}")
        if self.form == "task":
            return [{"instruction": text}]
        return [{"instruction": self._asked(job), "input": text}]

    def _asked(self, job: Record) -> str:
        shown, groups = job.meta["shown"], job.meta.get("groups", [])
        assert isinstance(shown, list) and isinstance(groups, list)
        tasks = [task for task in shown if isinstance(task, dict) and (not groups or task["group"] == groups[0])]
        return str(tasks[0]["instruction"])

    def _row(self, job: Record, reply: Reply, place: int, item: dict[str, str], count: int) -> Row:
        groups = job.meta.get("groups")
        group: dict[str, JsonValue] = {"group": groups[0]} if isinstance(groups, list) else {}
        written = ("input",) if self.form == "input" else tuple(name for name in PARTS if item.get(name))
        row = job.sibling(
            stage=self.stage,
            method=self.method,
            calls=(reply.key,),
            writers=dict.fromkeys(written, reply.teacher),
            meta={"round": job.meta["round"], "place": place, **group},
            **item,
        )
        if self.cut_is_fine and reply.finish == "length" and place == count - 1:
            return row.rejected(self.name, "cut", "the last item of a list cut at max_tokens")
        if self.form == "pairs" and not (terms(row.instruction) and row.output):
            lacks = "output" if row.instruction else "instruction"
            return row.rejected(self.name, "half_a_pair", f"item {place + 1} has no {lacks}")
        if self.cut_is_fine and place >= self.ask_for:
            return row.rejected(self.name, "not_asked_for", f"item {place + 1} of {self.ask_for}")
        return row


def _pair(found: Mapping[str, str]) -> dict[str, str]:
    given = {name: bare(found.get(name, "")) for name in PARTS}
    return {**given, "input": "" if NOTHING.match(given["input"]) else given["input"]}


def _group(task: Record, name: str | None) -> str | None:
    """The group of a task: "" for all where there is none to group by, None where it has none."""
    if name is None:
        return ""
    value = task.meta.get("group") if task.stage == "expand" and "group" in task.meta else task.extra.get(name)
    if value is None:
        value = getattr(task, name, None) if name in (*PARTS, "system", "text") else task.meta.get(name)
    return str(value) if value not in (None, "") else None


def _names(sizes: Mapping[str, int], count: int, *key: object) -> list[str]:
    """`count` groups, each drawn as often as it is large; a task more in one moves that group's share alone."""
    left, names = dict(sizes), list[str]()
    for place in range(min(count, len(left))):
        names.append(
            pick({name: float(size) for name, size in left.items()}, *key, place) if len(left) > 1 else next(iter(left))
        )
        del left[names[-1]]
    return names


def _share(count: int, place: int, parts: int) -> int:
    return count // parts + (place < count % parts)
