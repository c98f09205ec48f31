"""No silent knobs: every field of every piece of a recipe, flipped, changes something that can be observed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from server import EVOL, FakeWire, echo_answer

from kdgen.asking import JobAsk
from kdgen.cleaning import Clean
from kdgen.config import Recipe, load_recipe
from kdgen.dedupe import Exact, Rouge
from kdgen.documents import Chunk
from kdgen.errors import UserError
from kdgen.export import (
    Alpaca,
    Critique,
    Edits,
    Evaluator,
    Kto,
    Messages,
    Preference,
    PromptOnly,
    Ranked,
    Retrieval,
    Reward,
    ShareGPT,
    Stepwise,
    Text,
)
from kdgen.filters import Dangling, Echo, Length, Pattern, Refusal, Repetition
from kdgen.loops import Bounds, Loop
from kdgen.prompts import KEYS
from kdgen.sandbox.box import Sandbox
from kdgen.seeds import Seeds
from kdgen.selection import Select
from kdgen.stages.align import Fuse
from kdgen.stages.annotate import Annotate
from kdgen.stages.answer import Answer, Rationale
from kdgen.stages.branch import Branch
from kdgen.stages.candidates import Candidates
from kdgen.stages.choose import Choose
from kdgen.stages.cite import Cite, Grade
from kdgen.stages.compare import Compare
from kdgen.stages.contrast import Contrast, Side
from kdgen.stages.dialogue import Dialogue
from kdgen.stages.edit import Edit, Weights
from kdgen.stages.evol import Evol
from kdgen.stages.hard_cases import HardCases
from kdgen.stages.judge import Judge
from kdgen.stages.kin import Kin
from kdgen.stages.logprobs import Logprobs, Score
from kdgen.stages.magpie import Magpie
from kdgen.stages.oss_instruct import OssInstruct
from kdgen.stages.pair import Each, Pair
from kdgen.stages.paraphrase import Paraphrase
from kdgen.stages.perplexity import Bound, Perplexity
from kdgen.stages.program import Program, Tora
from kdgen.stages.rank import Rank
from kdgen.stages.repair import Repair
from kdgen.stages.rephrase import Rephrase, Style
from kdgen.stages.reward import RewardModel
from kdgen.stages.rewrite import Rewrite
from kdgen.stages.round_trip import RoundTrip
from kdgen.stages.sample import Sample
from kdgen.stages.self_instruct import SelfInstruct
from kdgen.stages.star import Star
from kdgen.stages.states import Embed, HiddenStates
from kdgen.stages.steps import Steps
from kdgen.stages.transcript import Transcript
from kdgen.stages.verify import Verify
from kdgen.stages.write import Write
from kdgen.teachers.base import Call, Params
from kdgen.teachers.bill import Bill, Budget
from kdgen.teachers.openai import OpenAI
from kdgen.teachers.roles import Cascade, Pool

SEEDS = [
    {
        "id": "a",
        "instruction": "Name a colour of the sea.",
        "output": "blue",
        "reasoning": "It is.",
        "system": "Be kind.",
    },
    {"id": "b", "instruction": "Name a colour of the sea!", "input": "now"},
    {"id": "c", "instruction": "Sum up the following text", "system": "Be short."},
    {"id": "d", "instruction": "name a colour of the sky in the early hours of the day", "output": "red"},
    {"id": "e", "instruction": "Repeat me", "q": "Other column"},
    {"id": "f", "instruction": "Please say sorry"},
    {"id": "g", "instruction": "Rate the following words: red"},
]
# Takes some of everything that the sandbox counts.
GREEDY = """import os, time
x = bytearray(b"1") * (90 << 20)
while time.process_time() < 1.1: pass
open("a", "wb").write(bytes(3 << 20))
if not os.fork(): time.sleep(0.3); os._exit(0)
os.wait()
print("x" * 200)"""
GREEDY_PROMPT = "---\nabout: x\nvariables: {instruction: x}\n---\n[[user]]\nTake a lot. {{ instruction }}\n"
VERDICTS = (
    '{"steps": [{"reason": "x", "verdict": "%s"}, {"reason": "{digest}", "verdict": "wrong"}, '
    '{"reason": "x", "verdict": "right"}]}'
)
RULES = [
    {
        "regex": "(?s)write conversations.*sky",
        "reply": "[Human] name the colour of the sky early in the day\n[AI] Red.",
    },
    {
        "contains": "write conversations",
        "reply": "[Human] Please name a colour of the sea, sum up the following text, rate the words, repeat me, sorry\n"
        "[AI] {digest}\n[Human] Go on?\n[AI] It goes on, {digest}",
    },
    {"regex": "^Add[.]\nAdd 3", "reply": "0.5"},
    {"contains": "You mend", "reply": "Add 3. It is 3.\nThen 5.\nAnswer: 8"},
    {"contains": "Relax it", "reply": '{"constraint": "a", "request": "Name {digest}."}'},
    {"contains": "step for step", "reply": VERDICTS % "right"},
    {"contains": "another way", "reply": VERDICTS % "wrong"},
    {"contains": "finish solutions", "nth": 0, "reply": "Answer: 7"},
    {"contains": "finish solutions", "reply": "Answer: 4"},
    {"contains": "help a student", "reply": "It is mended, {digest}."},
    {"contains": '"critique"', "reply": '{"critique": "{digest}", "verdict": "revise"}'},
    {"contains": "Critique:", "reply": "Better {digest}."},
    {"contains": '"selected"', "reply": '{"reason": "{digest}", "selected": "direct"}'},
    {
        "regex": "(?s)Which feeling.*explanation.*sea",
        "nth": 0,
        "reply": '{"explanation": "{digest}", "label": "mixed"}',
    },
    {"regex": "Which feeling.*", "contains": "explanation", "reply": '{"explanation": "{digest}", "label": "neutral"}'},
    {"regex": "(?s)answer the first.*explanation", "reply": '{"explanation": "{digest}", "label": "relevant"}'},
    {
        "contains": "Lines of code:",
        "reply": "[Problem]\nSay {digest}.\n[Solution]\n```python\nx = 1\n```\n[Tests]\n```python\n"
        + "assert x\n" * 3
        + "```",
    },
    {"contains": "Take a lot", "reply": f"```python\n{GREEDY}\n```"},
    {
        "regex": r"(?s)from documents alone.*?\[1\]\n(\w+ \w+ \w+)",
        "reply": '{"evidence": ["\\1"], "reasoning": "So it is.", "response": "It is {digest}."}',
    },
    {"regex": r"(?s)Write one ```python block.*\Z", "reply": "Well.\n```python\nprint(4)\n```"},
    {"regex": r"(?s)```output\n(.{1,40}).*\Z", "reply": "So it is.\nAnswer: \\1"},
    {
        "contains": "short Python programs, which are run",
        "reply": "Well.\n```python\nimport os\nprint('red', os.path.exists('/etc/passwd'))\n```",
    },
    {"contains": '"tasks"', "reply": '{"tasks": ["Why is it red?", "Why is it blue?"]}'},
    {"regex": "(?s)check answers.*sky", "reply": '{"reason": "So it is.", "score": 2}'},
    {"contains": "check answers", "reply": '{"reason": "So it is.", "score": 4}'},
    {
        "contains": '"pairs"',
        "reply": '{"pairs": [{"question": "Why?", "response": "So."}, {"question": "Who?", "response": "I."}]}',
    },
    {"regex": r"(?s)\[(\d)\]\n([^\n]+)\n.*Query: \2\n", "reply": r'{"reason": "so", "which": \1}'},
    {"regex": "(?s)few words.*Rate the", "reply": "Rate the following words: red"},
    {"contains": '"items"', "reply": '{"items": ["red things {digest}", "blue things"]}'},
    {
        "regex": "(?s)You compare two answers.*First answer:.*late",
        "reply": '{"reason": "{digest}", "better": "second"}',
    },
    {"contains": "You compare two answers", "reply": '{"reason": "{digest}", "better": "first"}'},
    {
        "contains": "single number",
        "reply": "1",
        "logprobs": [
            {
                "token": "1",
                "logprob": -1,
                "top_logprobs": [{"token": "1", "logprob": -1}, {"token": "2", "logprob": -2}],
            }
        ],
    },
    {
        "regex": "(?s)side by side.*overall",
        "reply": '{"ratings": [{"answer": 1, "reason": "x", "score": 8}, {"answer": 2, "reason": "y", "score": 5}]}',
    },
    {
        "contains": "side by side",
        "reply": '{"ratings": [{"answer": 1, "reason": "x", "score": 4}, {"answer": 2, "reason": "y", "score": 5}]}',
    },
    {"contains": '"order"', "reply": '{"reason": "{digest}", "order": [2, 1]}'},
    {"regex": "(?s)You review.*Answer to judge:.*First", "reply": '{"quality": {"reason": "{digest}", "score": 5}}'},
    {"contains": "You review", "reply": '{"quality": {"reason": "{digest}", "score": 3}}'},
    {
        "contains": "instruction_following",
        "reply": json.dumps(
            {
                name: {"reason": "so", "score": score}
                for name, score in {
                    "instruction_following": 4,
                    "honesty": 3,
                    "truthfulness": 5,
                    "helpfulness": 4,
                    "overall": 5,
                }.items()
            }
        ),
    },
    {"contains": '"score"', "reply": '{"reason": "so", "score": 7}'},
    {"contains": '"label"', "reply": '{"label": "blue"}'},
    {"contains": '"variants"', "reply": '{"variants": ["say {digest}", "tell {digest}"]}'},
    {"contains": "referee", "reply": '{"reason": "x", "first": 7, "second": 2}'},
    {"contains": "Does all of this follow", "reply": '{"reason": "It does.", "follows": true}'},
    {"contains": "as well", "reply": '{"verdict": "same"}'},
    {"contains": "JSON", "reply": '{"verdict": "different"}'},
    {
        "contains": "numbered",
        "reply": "9. Explain rust {digest} now\n10. Write a song about wind\n11. Go on, {digest}\n12. Too",
    },
    {
        "contains": "one sentence of your own",
        "nth": 0,
        "reply": "The sea is blue in the sun, and it shines all the day long {digest}.",
    },
    {
        "contains": "one sentence of your own",
        "nth": 1,
        "reply": "In the sun the wide sea shines in blue {digest} everywhere.",
    },
    {
        "contains": "one sentence of your own",
        "reply": "Blue shines the sea in the sun, and all the day long {digest}, yes.",
    },
    {"contains": "its answer is blue", "reply": "It shines, {digest}.\nAnswer: blue"},
    {"regex": "(?s)Some solved.*Name a colour of the sea", "nth": 1, "reply": "It lies there, {digest}.\nAnswer: blue"},
    {"regex": "(?s)somebody else.*early hours", "reply": "Name a colour of the sea."},
    {"contains": "Repeat me", "reply": "Repeat me"},
    {"contains": "sorry", "reply": "Well, all said and done, I'm sorry, I cannot."},
    {"contains": "somebody else", "reply": "Explain {digest} in three steps"},
    {"reply": "First this is so.\nAnswer: it is {digest}", "logprobs": [{"token": "First", "logprob": -2.5}]},
]
LOGPROBS = {"stages": [{"stage": "feature", "method": "logprobs", "prompt": "label/answer", "params": {"logprobs": 3}}]}
GIVEN = {"stages": [{"stage": "feature", "method": "score", "prompt": "feature/score", "k": 3}]}
HIDDEN = {"stages": [{"stage": "feature", "method": "hidden", "prompt": "feature/score"}]}
EMBED = {"stages": [{"stage": "feature", "method": "embed", "to": "teacher", "prompt": "feature/embed"}]}
TOLD = {"stage": "feature", "method": "score", "prompt": "feature/score"}
FUSE = {
    "stages": [{**TOLD, "k": 3, "name_as": "a"}, {**TOLD, "k": 4, "name_as": "b"}, {**TOLD, "k": 2, "name_as": "x"},
               {"stage": "feature", "method": "fuse", "of": ["b", "a"]}],
}  # fmt: skip
S3 = "stages.3."
PERPLEXITY = {"stages": [{"stage": "feature", "method": "perplexity", "prompt": "feature/score"}]}
LABEL = {"stages": [{"stage": "label", "method": "answer", "prompt": "label/answer"}]}
# Something for each part of cleaning: (sides and texts, columns).
TALKS: list[tuple[str, dict[str, Any]]] = [
    ("u:Name a sea.|a:<p>The <b>Red</b> Sea</p>|u:Another?", {}),
    ("u:Name a tree.|a:Share Prompt\nAn oak|u:Another?", {"language": "German"}),
    ("u:Name a star.|u:A bright one.|a:Vega|u:Why?", {"toxic": True}),
    ("u:Who are you?|a:I am ChatGPT.|u:Go on?", {"redacted": True}),
    ("u:Name a river.", {}),
    ("u:Name a sea.|a:The Black Sea|u:And its depth?", {}),
]
# Short answers, long ones, and short ones again: far apart, and still within its bounds.
SHORT = {"stage": "label", "method": "rationale", "prompt": "label/rationale"}
LOOP: dict[str, Any] = {
    "stages": [SHORT],
    "loop": {
        "iterations": [{}, {"stages": LABEL["stages"]}, {"stages": [SHORT]}],
        "bounds": {"longer": 10, "shorter": 0.01, "distinct": 0.01},
    },
}
SOLVE = {"prompt": "self/star", "hint": "self/star-hint", "examples": "solved"}
PARTS = {"prompt": "self/gist", "follows": "self/follows", "instruction": "Say it."}
KIN = {"stages": [{"stage": "self", "method": "kin", **PARTS, "n": 3}]}
SUMMED = "stage: self, method: kin, prompt: self/gist, follows: self/follows, instruction: Say it., n: 3, task: summary"
STAR = {"stages": [{"stage": "self", "method": "star", **SOLVE}]}
ANSWERED = {"stage": "label", "method": "answer", "prompt": "label/answer"}
WRITE = {"stages": [{"stage": "curate", "method": "write", "prompt": "label/brief"}], "export": {"format": "text"}}
EXAMPLES = {"stages": [{**WRITE["stages"][0], "makes": "input", "verify": "curate/verify"}]}
BRANCH = {"stages": [{"stage": "curate", "method": "branch", "prompt": "curate/branch", "ask_for": 2}, ANSWERED]}
SAMPLE = {"stages": [{"stage": "label", "method": "sample", "prompt": "label/brief", "n": 3, "pick": "all"}]}
VOTED = {"stages": [{**SAMPLE["stages"][0], "prompt": "label/rationale", "pick": "vote", "least_share": 0.1}]}
BEST = {"stages": [{**SAMPLE["stages"][0], "pick": "judge", "grade": "label/grade"}]}
ASKED = {"path": "s.jsonl", "map": {"instruction": "instruction", "text": "instruction"}}
CITE: dict[str, Any] = {
    "stages": [{"stage": "curate", "method": "cite", "prompt": "curate/cited"}],
    "seeds": ASKED,
}
FLOW = "stage: curate, method: cite, prompt: curate/cited, distractors: 2"
STYLES = {"brief": {"prompt": "label/brief", "most_copied": 1, "least_kept": 0}}
REPHRASE: dict[str, Any] = {
    "stages": [{"stage": "curate", "method": "rephrase", "styles": STYLES}],
    "seeds": {"path": "s.jsonl", "map": {"text": "instruction"}},
    "export": {"format": "text"},
}
ASKING = {**STYLES["brief"], "prompt": "curate/rephrase/questions", "makes": "qa"}
del ASKING["most_copied"]
SAID = {**REPHRASE, "stages": [{**REPHRASE["stages"][0], "styles": {"brief": ASKING}}]}
QUERY = {"stage": "curate", "method": "write", "prompt": "label/brief", "makes": "query", "params": {"logprobs": 0}}
QUERIES = {**REPHRASE, "stages": [QUERY], "export": {"format": "retrieval"}}
TRIP = {
    "stages": [{"stage": "curate", "method": "round-trip", "prompt": "curate/round-trip", "among": 3}],
    "seeds": ASKED,
}
GRADE = {"stages": [{"stage": "curate", "method": "grade", "prompt": "curate/faithful"}]}
TASKS = {
    "stages": [
        {"stage": "curate", "method": "write", "prompt": "curate/questions", "makes": "tasks", "ask_for": 2},
        ANSWERED,
    ]
}
PAIRS = {"stages": [{**TASKS["stages"][0], "prompt": "curate/knowledge", "makes": "pairs"}]}
TALK = {"ask": "curate/dialogue/user", "answer": "label/answer", "user": "teacher", "least": 1, "most": 2}
TRANSCRIPT = {"stages": [{"stage": "label", "method": "transcript", "prompt": "label/transcript"}]}
DIALOGUE = {"stages": [{"stage": "curate", "method": "dialogue", **TALK}]}
SAY = {"stage": "expand", "method": "paraphrase", "prompt": "expand/paraphrase", "k": 2}
PARAPHRASE = {"stages": [{**SAY, "compare": "expand/paraphrase/compare"}]}
JUDGED = {"answer": "label/answer", "score": "expand/hard-cases/score", "student": "teacher", "gap": 0}
HARD = {"stages": [{"stage": "expand", "method": "hard-cases", **JUDGED}]}
HARMLESS = {"isolation": "none", "cpu": 1}
PROGRAM = {
    "stages": [{"stage": "label", "method": "program", "prompt": "label/program", "thought": "label/rationale"}],
    "sandbox": HARMLESS,
    "seeds": {"path": "s.jsonl", "limit": 2},
}
TORA = {
    "stages": [{"stage": "label", "method": "tora", "prompt": "label/tora", "on_disagree": "keep"}],
    "sandbox": HARMLESS,
    "seeds": {"path": "s.jsonl", "limit": 2},
}
SNIPPETS = {
    "stages": [{"stage": "curate", "method": "oss-instruct", "prompt": "curate/oss-instruct"}],
    "sandbox": HARMLESS,
    "seeds": {"path": "docs/a.md"},
}
BOXED = {
    "stages": [{"stage": "label", "method": "program", "prompt": "./greedy.md", "on_disagree": "keep"}],
    "sandbox": {"isolation": "none"},
    "seeds": {"path": "s.jsonl", "limit": 1},
}
RATIONALE = {"stages": [{"stage": "label", "method": "rationale", "prompt": "label/rationale"}]}
ANNOTATE: dict[str, Any] = {
    "stages": [
        {
            "stage": "label",
            "method": "annotate",
            "prompt": "label/annotate",
            "codebook": "sentiment",
            "votes": 3,
            "least_confidence": 0.6,
        }
    ]
}
PAIRED = {"stages": [{**ANNOTATE["stages"][0], "codebook": "relevance", "second": "q"}]}
CHOOSE: dict[str, Any] = {
    "stages": [{"stage": "label", "method": "choose", "prompt": "label/choose", "bank": "strategies"}, ANSWERED]
}
REVISE = {"critique": "label/rewrite/critique", "revise": "label/rewrite/revise", "rounds": 2}
REWRITE: dict[str, Any] = {"stages": [{"stage": "label", "method": "rewrite", **REVISE}]}
CONTRAST: dict[str, Any] = {
    "stages": [
        {
            "stage": "feedback",
            "method": "contrast",
            "sides": [{"prompt": each} for each in ("label/brief", "label/rationale", "label/answer")],
        }
    ]
}
RELAXING = [{"prompt": "label/brief"}, {"prompt": "label/plain", "relax": "./relax.md"}]
RELAXED = {"stages": [{**CONTRAST["stages"][0], "sides": RELAXING}]}
STEPS: dict[str, Any] = {
    "stages": [{"stage": "feedback", "method": "steps", "prompt": "./steps.md"}],
    "seeds": {"path": "solved.jsonl"},
}
ROLLOUTS: dict[str, Any] = {
    **STEPS,
    "stages": [{**STEPS["stages"][0], "prompt": "feedback/steps/complete", "by": "rollouts", "gold": "final", "n": 2}],
}
EDIT: dict[str, Any] = {**STEPS, "stages": [{"stage": "feedback", "method": "edit", "prompt": "feedback/edit"}]}
REWARD: dict[str, Any] = {**STEPS, "stages": [{"stage": "feedback", "method": "reward", "prompt": "feedback/reward"}]}
PRINCIPLED = {"stages": [{**REWRITE["stages"][0], "critique": "./principle.md", "constitution": "constitution"}]}
EXPAND = {
    "stages": [
        {"stage": "expand", "method": "self-instruct", "prompt": "expand/self-instruct", "rounds": 2, "novelty": 0.9},
        {"stage": "label", "method": "answer", "prompt": "label/answer"},
    ]
}
MAGPIE = {
    "seeds": None,
    "stages": [
        {"stage": "expand", "method": "magpie", "prompt": "expand/magpie", "rounds": 2, "calls": 3, "novelty": 0.9},
        ANSWERED,
    ],
}
EVOLVE = {"stages": [EVOL]}
MODELS = {name: {"provider": "scripted", "path": "r.jsonl", "model": name, "logprobs": 0} for name in ("one", "two")}
POOL = {**LABEL, "teachers": {**MODELS, "teacher": {"provider": "pool", "of": {"one": 1, "two": 1}}}}
CASCADE = {**LABEL, "teachers": {**MODELS, "teacher": {"provider": "cascade", "of": ["one", "two"]}}}
TWO = {"teacher": {**MODELS["one"], "model": "none"}, "one": MODELS["one"]}
BOTH = {"stages": [{**SAMPLE["stages"][0], "among": ["teacher", "one"]}], "teachers": TWO}
MERGED = {"stages": [{**BOTH["stages"][0], "pick": "merge", "merge": "label/merge"}], "teachers": TWO}
VERIFY: dict[str, Any] = {
    "stages": [ANSWERED, {"stage": "feedback", "method": "verify", "verifier": {"type": "exact"}}]
}
VERIFIED = {**SAMPLE["stages"][0], "prompt": "label/rationale", "pick": "verify", "verifier": {"type": "exact"}}
PROMPTED = {**VERIFY, "export": {"format": "prompt"}}
V = "stages.1."
MEND = {
    "stage": "feedback",
    "method": "repair",
    "attempt": "label/brief",
    "prompt": "feedback/repair",
    "again": "feedback/repair/again",
    "student": "teacher",
    "verifier": {"type": "regex", "pattern": "mended|sorry"},
}
REPAIR = {"stages": [MEND]}
DRAWN = {"stage": "feedback", "method": "candidates", "prompt": "label/answer", "n": 2, "own": "candidate"}
CANDIDATES: dict[str, Any] = {"stages": [DRAWN, {"stage": "feedback", "method": "each"}]}
AMONG = {"stages": [{**DRAWN, "own": "gold", "among": ["teacher", "one"]}, CANDIDATES["stages"][1]], "teachers": TWO}
OWN = {"stages": [DRAWN, {"stage": "feedback", "method": "pair", "pick": "own"}], "export": {"format": "preference"}}
JUDGE: dict[str, Any] = {"stage": "feedback", "method": "judge", "prompt": "feedback/judge", "rubric": "additive"}
FAIR: dict[str, Any] = {"stages": [{**JUDGE, "rubric": "ultrafeedback"}]}
SCORED: dict[str, Any] = {"stages": [DRAWN, JUDGE, {"stage": "feedback", "method": "pair"}]}
THOUGHT = {"stages": [{**DRAWN, "params": {"max_tokens": 9}}, JUDGE], "seeds": {"path": "s.jsonl", "limit": 1}}
EACH = {**THOUGHT, "stages": [*THOUGHT["stages"], {"stage": "feedback", "method": "each", "good_from": 1}]}
COMPARE: dict[str, Any] = {"stage": "feedback", "method": "compare", "prompt": "feedback/compare"}
MANY = {**DRAWN, "own": "gold", "n": 3}
COMPARED = {"stages": [MANY, COMPARE], "export": {"format": "ranked"}, "seeds": {"path": "s.jsonl", "limit": 3}}
SOFT = {**COMPARED, "stages": [MANY, {**COMPARE, "prompt": "feedback/prefer", "soft": True, "params": {"logprobs": 2}}]}
RANK: dict[str, Any] = {"stage": "feedback", "method": "rank", "prompt": "feedback/rank", "rubric": "ultrafeedback"}
RANKED = {**COMPARED, "stages": [{**MANY, "n": 2}, RANK]}
EVALUATE = {
    "stages": [{**JUDGE, "rubric": "ultrafeedback"}],
    "export": {"format": "evaluator", "rubric": "ultrafeedback"},
}
S, T = "stages.0.", "teachers.teacher."
# (piece, base recipe, {field: what --set makes of it}); a list of several settings flips them together.
KNOBS: list[tuple[type[BaseModel], dict[str, Any], dict[str, str]]] = [
    (
        Recipe,
        LABEL,
        {
            "name": "name=other",
            "about": "about=words",
            "paper": "paper=a paper",
            "seeds": "seeds.limit=2",
            "teachers": T + "temperature=1",
            "stages": S + "existing=keep",
            "filters": "filters=[{filter: echo}]",
            "dedupe": "dedupe=[{method: rouge-l, threshold: 0.5}]",
            "export": "export.format=alpaca",
            "budget": "budget.tokens=150",
            "sandbox": "sandbox.cpu=1",
            "loop": "loop={iterations: [{}]}",
            "target": "target=1",
            "use": "use=research",
            "student": "student=Mine-8B",
        },
    ),
    (Recipe, EXPAND, {"seed": "seed=7"}),
    (
        Loop,
        LOOP,
        {
            "iterations": "loop.iterations=[{}]",
            "reads": "loop.reads=rows",
            "bounds": "loop.bounds={longer: 1.01}",
        },
    ),
    (
        Bounds,
        LOOP,
        {
            "longer": "loop.bounds.longer=1.01",
            "shorter": "loop.bounds.shorter=0.999",
            "distinct": "loop.bounds.distinct=1.0",
        },
    ),
    (
        Seeds,
        LABEL,
        {
            "path": "seeds.path=other.jsonl",
            "files": "seeds={path: docs, files: ['*.md']}",
            "chunk": "seeds={path: docs/a.md, chunk: {size: 8}}",
            "clean": "seeds={path: talks.jsonl, clean: {}}",
            "map": "seeds.map.instruction=q",
            "on_bad": "seeds={path: bad.jsonl, on_bad: skip}",
            "limit": "seeds.limit=2",
            "select": "seeds.select={n: 2}",
            "licence": "seeds.licence=CC-BY-4.0",
        },
    ),
    (
        Select,
        {**LABEL, "seeds": {"path": "s.jsonl", "select": {"n": 4}}},
        {
            "method": "seeds.select={method: k-means, embedder: characters, n: 2}",
            "n": "seeds.select.n=3",
            "embedder": "seeds.select.embedder=characters",
        },
    ),
    (
        Clean,
        {**LABEL, "seeds": {"path": "talks.jsonl", "clean": {}}},
        {
            "html": "seeds.clean.html=false",
            "ui": "seeds.clean.ui=false",
            "order": "seeds.clean.order=reject",
            "identity": "seeds.clean.identity=keep",
            "rounds": "seeds.clean.rounds=2",
            "languages": "seeds.clean.languages=[English]",
            "toxic": "seeds.clean.toxic=false",
            "redacted": "seeds.clean.redacted=false",
            "same_opening": "seeds.clean.same_opening=keep",
        },
    ),
    (
        Chunk,
        {**LABEL, "seeds": {"path": "docs/a.md", "chunk": {"size": 12, "least": 0}}},
        {
            "by": "seeds.chunk.by=lines",
            "size": "seeds.chunk.size=6",
            "overlap": "seeds.chunk.overlap=4",
            "least": "seeds.chunk.least=8",
        },
    ),
    (
        Kin,
        KIN,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "prompt": S + "prompt=label/brief",
            "follows": S + "follows=self/gist",
            "instruction": S + "instruction=Again.",
            "n": S + "n=2",
            "task": S + "task=summary",
            "most_alike": S + "most_alike=0.1",
            "most_words": f"stages.0={{{SUMMED}, most_words: 0.9}}",
            "keep": S + "keep=1",
            "judge": S + "judge=nobody",
        },
    ),
    (
        Star,
        STAR,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "prompt": S + "prompt=label/rationale",
            "hint": S + "hint=null",
            "examples": S + "examples=systems",
            "shots": S + "shots=2",
            "tries": S + "tries=2",
        },
    ),
    (Pool, POOL, {"of": T + "of={one: 1, two: 1000}"}),
    (
        Cascade,
        CASCADE,
        {
            "of": T + "of=[two, one]",
            "escalate": T + "escalate=[{filter: length, field: output, min_words: 99}]",
            "min_logprob": T + "min_logprob=-1",
        },
    ),
    (Budget, LABEL, {"tokens": "budget.tokens=150", "month_tokens": "budget.month_tokens=150"}),
    (
        Sample,
        SAMPLE,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "prompt": S + "prompt=label/answer",
            "n": S + "n=2",
            "pick": S + "pick=gold",
            "keep": S + "keep=1",
            "reasons": S + "reasons=true",
            "plain": S + "plain=true",
            "distinct": S + "distinct=true",
        },
    ),
    (
        Sample,
        {"stages": [VERIFIED]},
        {
            "verifier": S + "verifier={type: regex, pattern: it}",
            "spec_from": "stages.0={stage: label, method: sample, prompt: label/rationale, pick: verify, spec_from: q}",
        },
    ),
    (
        Verify,
        VERIFY,
        {
            "to": V + "to=nobody",
            "params": V + "params.temperature=1",
            "banks": V + "banks={system: systems}",
            "lists": V + "lists={rules: principles}",
            "verifier": V + "verifier={type: regex, pattern: it}",
            "spec_from": "stages.1={stage: feedback, method: verify, spec_from: q}",
            "name_as": V + "name_as=other",
            "at_least": V + "at_least=1",
        },
    ),
    (
        Repair,
        REPAIR,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "attempt": S + "attempt=label/answer",
            "prompt": S + "prompt=label/answer",
            "again": S + "again=label/answer",
            "student": S + "student=nobody",
            "verifier": S + "verifier={type: regex, pattern: nowhere}",
            "spec_from": f"stages.0={json.dumps({**{k: v for k, v in MEND.items() if k != 'verifier'}, 'spec_from': 'q'})}",
            "rows": f"stages.0={json.dumps({**{k: v for k, v in MEND.items() if k != 'again'}, 'rows': 'fix'})}",
            "solved": S + "solved=keep",
        },
    ),
    (
        PromptOnly,
        PROMPTED,
        {
            "gold_as": "export.gold_as=solution",
            "reasoning": "export.reasoning=fold",
            "system": "export.system=drop",
        },
    ),
    (Sample, VOTED, {"least_share": S + "least_share=1"}),
    (
        Sample,
        BEST,
        {"least_score": S + "least_score=9", "grade": S + "grade=curate/verify", "judge": S + "judge=nobody"},
    ),
    (Sample, BOTH, {"among": S + "among=[one, teacher]"}),
    (Sample, MERGED, {"merge": S + "merge=label/answer", "judge": S + "judge=one"}),
    (
        Write,
        WRITE,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "prompt": S + "prompt=label/answer",
            "makes": S + "makes=task",
            "keep_as": S + "keep_as=person",
            "n": S + "n=2",
            "verify": S + "verify=curate/verify",
        },
    ),
    (Write, EXAMPLES, {"judge": S + "judge=nobody"}),
    (Write, TASKS, {"ask_for": S + "ask_for=1"}),
    (Write, PAIRS, {"answers": S + "answers=fact"}),
    (Write, QUERIES, {"min_logprob": S + "min_logprob=-1"}),
    (
        Retrieval,
        QUERIES,
        {
            "layout": "export.layout=lists",
            "reasoning": "export.reasoning=fold",
            "system": "export.system=keep",
        },
    ),
    (
        RoundTrip,
        {**TRIP, "export": {"format": "retrieval"}},
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={principles: principles}",
            "prompt": S + "prompt=curate/cited",
            "among": S + "among=2",
        },
    ),
    (
        Cite,
        CITE,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "prompt": S + "prompt=label/brief",
            "distractors": S + "distractors=2",
            "shows": S + "shows=nothing",
            "cite": S + "cite=true",
            "quote_words": S + "quote_words=4",
        },
    ),
    (
        Cite,
        {**CITE, "stages": [{**CITE["stages"][0], "distractors": 2}]},
        {"withheld": S + "withheld=0.6", "absent": f"stages.0={{{FLOW}, withheld: 0.6, absent: recall}}"},
    ),
    (
        Rephrase,
        REPHRASE,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={principles: principles}",
            "styles": S + "styles={other: {prompt: label/brief, most_copied: 1, least_kept: 0}}",
        },
    ),
    (
        Style,
        REPHRASE,
        {
            "prompt": S + "styles.brief.prompt=curate/rephrase/distil",
            "buckets": S + "styles.brief.buckets=[high]",
            "makes": S + "styles.brief.makes=pairs",
            "least_kept": S + "styles.brief.least_kept=0.3",
            "most_copied": S + "styles.brief.most_copied=0",
        },
    ),
    (Style, SAID, {"ask_for": S + "styles.brief.ask_for=1"}),
    (
        Grade,
        GRADE,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "prompt": S + "prompt=label/answer",
            "name_as": S + "name_as=truth",
            "at_least": S + "at_least=3",
            "buckets": S + "buckets={bad: 1, good: 4}",
        },
    ),
    (
        Branch,
        BRANCH,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "prompt": S + "prompt=label/answer",
            "ask_for": S + "ask_for=1",
        },
    ),
    (
        Transcript,
        TRANSCRIPT,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "prompt": S + "prompt=label/answer",
            "least": S + "least=1",
        },
    ),
    (
        Dialogue,
        DIALOGUE,
        {
            "to": S + "to=nobody",
            "params": S + "params.temperature=1",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "ask": S + "ask=label/answer",
            "answer": S + "answer=label/rationale",
            "user": S + "user=nobody",
            "moves": S + "moves=[sings]",
            "least": S + "least=9",
            "most": S + "most=1",
        },
    ),
    (
        Text,
        WRITE,
        {"reasoning": "export={format: text, reasoning: fold}", "system": "export={format: text, system: keep}"},
    ),
    (
        Answer,
        LABEL,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/rationale",
            "existing": S + "existing=keep",
        },
    ),
    (
        Rationale,
        RATIONALE,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "params": S + "params.stop=[x]",
            "prompt": S + "prompt=label/answer",
            "on_disagree": S + "on_disagree=reject",
        },
    ),
    (
        Program,
        PROGRAM,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={principles: principles}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/brief",
            "thought": S + "thought=label/brief",
            "thoughts": S + "thoughts=both",
            "trigger": S + "trigger=Go.",
            "on_disagree": S + "on_disagree=keep",
        },
    ),
    (
        Tora,
        TORA,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={principles: principles}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/brief",
            "rounds": S + "rounds=1",
            "on_disagree": S + "on_disagree=reject",
        },
    ),
    (
        Sandbox,
        BOXED,
        {
            "cpu": "sandbox.cpu=1",
            "wall": "sandbox.wall=0.1",
            "memory": "sandbox.memory=64",
            "processes": "sandbox.processes=1",
            "disk": "sandbox.disk=1",
            "output": "sandbox.output=100",
            "python": "sandbox.python=nowhere/python",
        },
    ),
    (
        OssInstruct,
        SNIPPETS,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={principles: principles}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/brief",
            "n": S + "n=2",
            "lines": S + "lines=1",
            "asserts": S + "asserts=4",
        },
    ),
    (Sandbox, TORA, {"isolation": "sandbox.isolation=auto"}),
    (
        SelfInstruct,
        EXPAND,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "params": S + "params.top_p=0.5",
            "prompt": S + "prompt=label/answer",
            "human": S + "human=2",
            "machine": S + "machine=0",
            "form": S + "form=task",
            "group": S + "group=q",
            "groups": S + "groups=2",
            "ask_for": S + "ask_for=3",
            "shown_words": S + "shown_words=5",
            "rounds": S + "rounds=1",
            "calls": S + "calls=2",
            "max_candidates": S + "max_candidates=4",
            "novelty": S + "novelty=0.2",
            "filters": S + "filters=[{filter: length, field: instruction, min_words: 5}]",
        },
    ),
    (
        Magpie,
        MAGPIE,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "params": S + "params.top_p=0.5",
            "prompt": S + "prompt=label/answer",
            "rounds": S + "rounds=1",
            "calls": S + "calls=2",
            "max_candidates": S + "max_candidates=4",
            "novelty": S + "novelty=0.2",
            "filters": S + "filters=[{filter: length, field: instruction, min_words: 30}]",
        },
    ),
    (
        Evol,
        EVOLVE,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "params": S + "params.temperature=1",
            "operations": S + "operations={breadth: expand/evol/breadth}",
            "equal": S + "equal=label/answer",
            "answer": S + "answer=label/rationale",
            "judge": S + "judge=nobody",
            "rounds": S + "rounds=2",
            "sorry_words": S + "sorry_words=0",
        },
    ),
    (
        Paraphrase,
        PARAPHRASE,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/answer",
            "field": S + "field=input",
            "k": S + "k=3",
            "verify": S + "verify=curate/verify",
            "compare": S + "compare=expand/evol/equal",
            "judge": S + "judge=nobody",
        },
    ),
    (
        HardCases,
        HARD,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "params": S + "params.temperature=1",
            "answer": S + "answer=label/rationale",
            "score": S + "score=expand/evol/equal",
            "student": S + "student=nobody",
            "judge": S + "judge=nobody",
            "gap": S + "gap=9",
            "swap": S + "swap=false",
            "existing": S + "existing=keep",
        },
    ),
    (
        Annotate,
        ANNOTATE,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={principles: principles}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/answer",
            "codebook": S + "codebook=relevance",
            "explain": S + "explain=label/annotate/explain",
            "votes": S + "votes=2",
            "least_confidence": S + "least_confidence=0.7",
            "better": S + "better=nobody",
            "existing": S + "existing=keep",
        },
    ),
    (Annotate, PAIRED, {"second": S + "second=r"}),
    (
        Choose,
        CHOOSE,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={tone: tones}",
            "lists": S + "lists={principles: principles}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/answer",
            "bank": S + "bank=systems",
            "by": S + "by=q",
        },
    ),
    (
        Rewrite,
        REWRITE,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={principles: principles}",
            "params": S + "params.temperature=1",
            "critique": S + "critique=label/rewrite/critique-task",
            "revise": S + "revise=label/rewrite/revise-task",
            "field": S + "field=instruction",
            "rounds": S + "rounds=1",
            "chain": S + "chain=true",
            "judge": S + "judge=nobody",
            "pair": S + "pair=true",
        },
    ),
    (
        Contrast,
        CONTRAST,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={demonstrations: demonstrations}",
            "params": S + "params.temperature=1",
            "sides": S + "sides=[{prompt: label/brief}, {prompt: label/answer}]",
            "pairs": S + "pairs=all",
            "existing": S + "existing=keep",
        },
    ),
    (
        Side,
        CONTRAST,
        {
            "prompt": S + "sides=[{prompt: label/brief}, {prompt: label/plain}, {prompt: label/answer}]",
            "to": S + "sides=[{prompt: label/brief}, {prompt: label/rationale}, {prompt: label/answer, to: nobody}]",
            "shots": S + "sides.2={prompt: ./shots.md, shots: 2}",
            "relax": S + "sides.1={prompt: label/rationale, relax: feedback/degraded/relax}",
        },
    ),
    (
        Steps,
        STEPS,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={demonstrations: demonstrations}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=./other-steps.md",
            "by": S + "by=rollouts",
            "split": S + "split=sentences",
            "at_once": S + "at_once=false",
            "after_wrong": S + "after_wrong=go_on",
            "most": S + "most=1",
        },
    ),
    (
        Edit,
        EDIT,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={demonstrations: demonstrations}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/answer",
            "most": S + "most=0.01",
            "weights": S + "weights={added: 2}",
            "gold": S + "gold=final",
            "verifier": ("stages.0.gold=final", S + "verifier={type: regex, pattern: never}"),
        },
    ),
    (Weights, EDIT, {name: S + f"weights={{{name}: 3}}" for name in ("added", "removed", "kept")}),
    (
        Edits,
        {**EDIT, "export": {"format": "edits"}},
        {"reasoning": "export.reasoning=fold", "system": "export.system=keep"},
    ),
    (
        Logprobs,
        LOGPROBS,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={demonstrations: demonstrations}",
            "params": S + "params.logprobs=4",
            "prompt": S + "prompt=label/rationale",
            "name_as": S + "name_as=other",
            "dtype": S + "dtype=float32",
        },
    ),
    (
        Score,
        GIVEN,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={demonstrations: demonstrations}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/answer",
            "k": S + "k=4",
            "name_as": S + "name_as=other",
            "dtype": S + "dtype=float32",
            "candidates": S + "candidates=true",
        },
    ),
    (
        Perplexity,
        PERPLEXITY,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={demonstrations: demonstrations}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/answer",
            "alone": S + "alone=feature/alone",
            "bounds": S + "bounds={ifd: {most: 1}}",
        },
    ),
    (
        HiddenStates,
        HIDDEN,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={demonstrations: demonstrations}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/answer",
            "layers": S + "layers=[0, 1]",
            "name_as": S + "name_as=other",
            "dtype": S + "dtype=float32",
        },
    ),
    (
        Embed,
        EMBED,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={demonstrations: demonstrations}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=feature/score",
            "name_as": S + "name_as=other",
        },
    ),
    (
        Fuse,
        FUSE,
        {
            "to": S3 + "to=nobody",
            "banks": S3 + "banks={system: systems}",
            "lists": S3 + "lists={demonstrations: demonstrations}",
            "params": S3 + "params.temperature=1",
            "of": S3 + "of=[a, b, x]",
            "how": S3 + "how=average",
            "name_as": S3 + "name_as=other",
        },
    ),
    (Bound, PERPLEXITY, {name: S + f"bounds={{perplexity: {{{name}: 3}}}}" for name in ("least", "most")}),
    (
        RewardModel,
        REWARD,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={demonstrations: demonstrations}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/rewrite/critique",
            "name_as": S + "name_as=other",
            "place": S + "place=1",
            "at_least": S + "at_least=0.9",
        },
    ),
    (Steps, ROLLOUTS, {"n": S + "n=3", "gold": S + "gold=q", "verifier": S + "verifier={type: regex, pattern: never}"}),
    (
        Stepwise,
        {**ROLLOUTS, "export": {"format": "stepwise"}},
        {
            "labels": "export.labels=soft",
            "reasoning": "export.reasoning=fold",
            "system": "export.system=keep",
        },
    ),
    (Rewrite, PRINCIPLED, {"constitution": S + "constitution=./b.yaml"}),
    (
        Critique,
        {**REWRITE, "export": {"format": "critique"}},
        {
            "layout": "export.layout=chain",
            "reasoning": "export.reasoning=fold",
            "system": "export.system=keep",
        },
    ),
    (
        Candidates,
        CANDIDATES,
        {
            "to": S + "to=one",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={principles: principles}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/rationale",
            "n": S + "n=3",
            "principles": S + "principles=principles",
            "own": S + "own=gold",
        },
    ),
    (Candidates, AMONG, {"among": S + "among=[one, teacher]", "draw": S + "draw=random"}),
    (
        Judge,
        FAIR,
        {
            "to": S + "to=nobody",
            "banks": S + "banks={system: systems}",
            "lists": S + "lists={rules: principles}",
            "params": S + "params.temperature=1",
            "prompt": S + "prompt=label/answer",
            "rubric": S + "rubric=additive",
            "times": S + "times=2",
            "score": S + "score=honesty",
            "within": S + "within=0.1",
            "at_least": S + "at_least=4.5",
        },
    ),
    (
        Judge,
        {**FAIR, "teachers": TWO, "stages": [{**FAIR["stages"][0], "judges": ["one", "teacher"]}]},
        {"judges": S + "judges=[teacher, one]"},
    ),
    (
        Compare,
        COMPARED,
        {
            "to": "stages.1.to=nobody",
            "banks": "stages.1.banks={system: systems}",
            "lists": "stages.1.lists={rules: principles}",
            "params": "stages.1.params.temperature=1",
            "prompt": "stages.1.prompt=feedback/prefer",
            "over": "stages.1.over=first",
            "ties": "stages.1.ties=false",
            "swap": "stages.1.swap=false",
            "name_as": "stages.1.name_as=won",
            "soft": "stages.1={stage: feedback, method: compare, prompt: feedback/prefer, soft: true, params: {logprobs: 2}}",
        },
    ),
    (
        Compare,
        {**COMPARED, "teachers": TWO, "stages": [{**MANY, "to": "one"}, {**COMPARE, "judges": ["one", "teacher"]}]},
        {"judges": "stages.1.judges=[teacher, one]"},
    ),
    (
        Rank,
        RANKED,
        {
            "to": "stages.1.to=nobody",
            "banks": "stages.1.banks={system: systems}",
            "lists": "stages.1.lists={rules: principles}",
            "params": "stages.1.params.temperature=1",
            "prompt": "stages.1.prompt=feedback/order",
            "rubric": "stages.1.rubric=additive",
            "form": "stages.1={stage: feedback, method: rank, prompt: feedback/order, rubric: ultrafeedback, form: order}",
            "times": "stages.1.times=2",
            "within": "stages.1.within=0.01",
        },
    ),
    (
        Rank,
        {**RANKED, "teachers": TWO, "stages": [{**MANY, "n": 2, "to": "one"}, {**RANK, "judges": ["one", "teacher"]}]},
        {"judges": "stages.1.judges=[teacher, one]"},
    ),
    (
        Evaluator,
        EVALUATE,
        {
            "rubric": "export.rubric=critic",
            "aspect": "export.aspect=honesty",
            "reasoning": "export.reasoning=fold",
            "system": "export.system=keep",
        },
    ),
    (Pair, SCORED, {"by": "stages.2.by=truth", "margin": "stages.2.margin=9"}),
    (
        Kto,
        {**EACH, "export": {"format": "kto"}},
        {"reasoning": "export.reasoning=fold", "system": "export.system=drop"},
    ),
    (
        Reward,
        {**EACH, "export": {"format": "reward"}},
        {"reasoning": "export.reasoning=fold", "system": "export.system=drop"},
    ),
    (
        Ranked,
        {**THOUGHT, "export": {"format": "ranked"}},
        {"reasoning": "export.reasoning=fold", "system": "export.system=drop"},
    ),
    (
        Pair,
        OWN,
        {
            "to": "stages.1.to=nobody",
            "banks": "stages.1.banks={system: systems}",
            "lists": "stages.1.lists={rules: principles}",
            "params": "stages.1.params.temperature=1",
            "pick": "stages.1.pick=all",
        },
    ),
    (
        Each,
        CANDIDATES,
        {
            "to": "stages.1.to=nobody",
            "banks": "stages.1.banks={system: systems}",
            "lists": "stages.1.lists={rules: principles}",
            "params": "stages.1.params.temperature=1",
            "by": "stages.1={stage: feedback, method: each, by: truth, good_from: 1}",
            "good_from": "stages.1.good_from=1",
            "bad_to": "stages.1={stage: feedback, method: each, good_from: 1, bad_to: 0}",
        },
    ),
    (
        Preference,
        {**OWN, "seeds": {"path": "s.jsonl", "limit": 1}},
        {"reasoning": "export.reasoning=fold", "system": "export.system=drop"},
    ),
    (
        Length,
        LABEL,
        {
            k: f"filters=[{{filter: length, {v}}}]"
            for k, v in {
                "field": "field: instruction, max_words: 5",
                "min_words": "min_words: 99",
                "max_words": "max_words: 2",
            }.items()
        },
    ),
    (
        Pattern,
        LABEL,
        {
            k: f"filters=[{{filter: pattern, {v}}}]"
            for k, v in {
                "field": "patterns: [colour], field: output",
                "patterns": "patterns: [sea]",
                "keep": "patterns: [sea], keep: true",
                "ignore_case": "patterns: [NAME], ignore_case: false",
                "reason": "patterns: [sea], reason: wet",
            }.items()
        },
    ),
    (Refusal, LABEL, {"within": "filters=[{filter: refusal, within: 5}]"}),
    (Echo, LABEL, {}),
    (
        Repetition,
        LABEL,
        {
            k: f"filters=[{{filter: repetition, {v}}}]"
            for k, v in {
                "field": "field: instruction, words: 1, most: 0.1",
                "words": "field: instruction, words: 1, most: 0.2",
                "most": "field: instruction, words: 1, most: 0.05",
            }.items()
        },
    ),
    (Dangling, LABEL, {"min_words": "filters=[{filter: dangling, min_words: 9}]"}),
    (
        Exact,
        LABEL,
        {
            "fields": "dedupe=[{method: exact, fields: [system]}]",
            "normalise": "dedupe=[{method: exact, fields: [instruction], normalise: true}]",
            "against_seeds": "dedupe=[{method: exact, against_seeds: true}]",
        },
    ),
    (
        Rouge,
        LABEL,
        {
            "field": "dedupe=[{method: rouge-l, field: system}]",
            "threshold": "dedupe=[{method: rouge-l, threshold: 0.3}]",
            "against_seeds": "dedupe=[{method: rouge-l, against_seeds: false}]",
        },
    ),
    (
        Messages,
        RATIONALE,
        {
            "reasoning": "export.reasoning=apart",
            "system": "export.system=drop",
            "weights": "export.weights=turns",
        },
    ),
    (
        Alpaca,
        RATIONALE,
        {"reasoning": "export={format: alpaca, reasoning: fold}", "system": "export={format: alpaca, system: drop}"},
    ),
    (
        ShareGPT,
        RATIONALE,
        {
            "reasoning": "export={format: sharegpt, reasoning: think}",
            "system": "export={format: sharegpt, system: drop}",
        },
    ),
]
# What is compared with another setting than the recipe's own default.
AGAINST = {
    ("Side", "shots"): "stages.0.sides.2={prompt: ./shots.md}",
    ("Cite", "absent"): f"stages.0={{{FLOW}, withheld: 0.6}}",
    ("Seeds", "files"): "seeds={path: docs}",
    ("Seeds", "chunk"): "seeds={path: docs/a.md}",
    ("Seeds", "clean"): "seeds={path: talks.jsonl}",
    ("Seeds", "on_bad"): "seeds={path: bad.jsonl}",
    ("Select", "method"): "seeds.select={embedder: characters, n: 2}",
    ("Pattern", "field"): "filters=[{filter: pattern, patterns: [colour]}]",
    ("Pattern", "ignore_case"): "filters=[{filter: pattern, patterns: [NAME]}]",
    ("Pattern", "reason"): "filters=[{filter: pattern, patterns: [sea]}]",
    ("Pattern", "keep"): "filters=[{filter: pattern, patterns: [sea]}]",
    ("Refusal", "within"): "filters=[{filter: refusal}]",
    ("Dangling", "min_words"): "filters=[{filter: dangling, min_words: 1}]",
    ("Exact", "normalise"): "dedupe=[{method: exact, fields: [instruction], normalise: false}]",
    ("Kin", "most_words"): f"stages.0={{{SUMMED}}}",
    ("Alpaca", "reasoning"): "export={format: alpaca}",
    ("Alpaca", "system"): "export={format: alpaca}",
    ("ShareGPT", "reasoning"): "export={format: sharegpt}",
    ("ShareGPT", "system"): "export={format: sharegpt}",
}
KINDS = {"stage", "method", "filter", "format", "provider"}
# Shown to change something on another base: `against_seeds` matters only where a stage makes new records.
ELSEWHERE_TESTED = {
    ("Bounds", "same_score"): "test_loops.test_drift_is_told_by_name",
    ("Bounds", "self_preference"): "test_loops.test_drift_is_told_by_name",
    ("Budget", "usd"): "test_a_cap_in_usd_needs_a_price",
    ("Budget", "month_usd"): "test_a_month_in_dollars",
    ("Budget", "publish"): "test_what_is_complete_is_published_and_the_next_run_goes_on",
    ("Recipe", "terms"): "test_a_recipe_may_say_why_it_may",
}
ELSEWHERE = {("Exact", "against_seeds"): EVOLVE, ("Rouge", "against_seeds"): EVOLVE, ("Dangling", "min_words"): LABEL}


def cases() -> Iterator[tuple[str, str, dict[str, Any], str]]:
    for piece, base, fields in KNOBS:
        for field, setting in fields.items():
            yield piece.__name__, field, ELSEWHERE.get((piece.__name__, field), base), setting


def test_every_field_has_an_entry() -> None:
    listed = {(piece.__name__, field) for piece, _, fields in KNOBS for field in fields}
    known = {(piece.__name__, field) for piece, _, _ in KNOBS for field in piece.model_fields if field not in KINDS}
    assert known - listed - set(ELSEWHERE_TESTED) == set(), "a field without a knob test"


@pytest.fixture
def observe(kdgen: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Any, ...]]:
    """All that can be seen of a run: exit code, error, rows, records, rejects, manifest."""
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(seed) + "\n" for seed in SEEDS))
    (tmp_path / "bad.jsonl").write_text(json.dumps(SEEDS[0]) + "\nno\n")
    (tmp_path / "other.jsonl").write_text(json.dumps(SEEDS[0]) + "\n")
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))
    talks = []
    for text, columns in TALKS:
        turns = [{"role": {"u": "user", "a": "assistant"}[turn[0]], "content": turn[2:]} for turn in text.split("|")]
        talks.append({"messages": turns, "language": "English", "toxic": False, "redacted": False, **columns})
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (tmp_path / "greedy.md").write_text(GREEDY_PROMPT)
    principle = '{{ principle.critique }} {{ output }} {"critique", "verdict"}'
    (tmp_path / "principle.md").write_text(
        f"---\nabout: x\nvariables: {{principle: x, output: x}}\n---\n[[user]]\n{principle}\n"
    )
    (tmp_path / "shots.md").write_text(PROMPT.replace("  instruction", "  shots: x\n  instruction") + "{{ shots }}")
    relax = PROMPT.replace("[[user]]", "[[user]]\nRelax it: ")
    (tmp_path / "relax.md").write_text(relax)
    for name, how in (("steps", "step for step"), ("other-steps", "another way")):
        (tmp_path / f"{name}.md").write_text(
            f"---\nabout: x\nvariables: {{steps: x}}\n---\n[[user]]\n{how} {{{{ steps }}}}\n"
        )
    solved = {"instruction": "Add.", "output": "Add 3. It is 3.\nThen 4.\nAnswer: 7", "final": "7", "q": "4"}
    (tmp_path / "solved.jsonl").write_text(json.dumps(solved) + "\n")
    (tmp_path / "b.yaml").write_text("about: x\nsource: x\nentries: [{critique: One?}, {critique: Two?}]\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text(
        "# Sea\n\nName a fish.\n\n# Sky\n\nName a bird that\nsings. Name one that\nflies at night.\n"
    )
    (tmp_path / "docs/b.txt").write_text("Name a tree.\n")
    runs = iter(range(99))

    def run(base: dict[str, Any], *sets: str) -> tuple[Any, ...]:
        recipe = {
            "name": "knobs",
            "seeds": {"path": "s.jsonl"},
            "teachers": {"teacher": {"provider": "scripted", "path": "r.jsonl", "max_tokens": 100}},
            **base,
        }
        (tmp_path / "knobs.yaml").write_text(json.dumps(recipe))
        number = next(runs)
        extra = [part for each in sets for part in ("--set", each)]
        said = kdgen("run", "./knobs.yaml", "-o", f"o{number}", "--ledger", f"l{number}.db", "--json", "-q", *extra)
        seen: list[Any] = [said.code, said.err]
        if said.code == 0:
            made = json.loads(said.out)
            for each in made if isinstance(made, list) else [made]:
                for volatile in ("started", "seconds"):
                    each.pop(volatile)
                each["hashes"].pop("recipe")
            cards = [path.read_text() for path in sorted((tmp_path / f"o{number}").glob("**/README.md"))]
            seen += [made, [line for card in cards for line in card.splitlines() if not line.startswith("- recipe")]]
        return tuple(seen)

    return run


@pytest.mark.parametrize(
    ("piece", "field", "base", "setting"),
    list(cases()),
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_a_flipped_field_is_seen(
    observe: Callable[..., tuple[Any, ...]], piece: str, field: str, base: dict[str, Any], setting: str
) -> None:
    against = AGAINST.get((piece, field))
    assert observe(base, *([against] if against else [])) != observe(base, setting)


def test_the_hash_of_a_recipe_follows_what_can_change_a_row() -> None:
    plain = load_recipe("label/answer").digest
    assert load_recipe("label/answer", sets=["teachers.teacher.temperature=1"]).digest != plain
    assert load_recipe("label/answer", sets=["teachers.teacher.concurrency=1"]).digest == plain


def test_a_cap_in_usd_needs_a_price() -> None:
    """Nothing may be sent under a cap that cannot be kept."""
    spec = OpenAI(model="m", base_url="http://127.0.0.1:9/v1", max_tokens=5)
    request = spec.request(Call([{"role": "user", "content": "x"}], Params(max_tokens=5)))
    with pytest.raises(UserError, match="no price is known"):
        asyncio.run(Bill(Budget(usd=1.0)).reserve(spec, request))
    asyncio.run(Bill(Budget()).reserve(spec, request))


PROMPT = """---
about: what it asks
paper: a paper
variables:
  instruction: the task
---
[[user]]
{{ instruction }}
"""
FRONT = {"about": ("what it asks", "other"), "paper": ("a paper", "other"), "variables": ("the task", "other")}


@pytest.mark.parametrize("key", KEYS)
def test_a_flipped_key_of_a_prompt_is_seen(observe: Callable[..., tuple[Any, ...]], tmp_path: Path, key: str) -> None:
    seen = []
    for text in (PROMPT, PROMPT.replace(*FRONT[key])):
        (tmp_path / "p.md").write_text(text)
        seen.append(observe({"stages": [{"stage": "label", "method": "answer", "prompt": "./p.md"}]}))
    assert seen[0] != seen[1] and seen[0][0] == seen[1][0] == 0


@pytest.mark.parametrize(
    "base",
    [
        LABEL,
        RATIONALE,
        EXPAND,
        EVOLVE,
        TASKS,
        CITE,
        GRADE,
        SAID,
        QUERIES,
        ANNOTATE,
        PAIRED,
        CHOOSE,
        REWRITE,
        MERGED,
        CANDIDATES,
        FAIR,
        COMPARED,
        SOFT,
        RANKED,
        CONTRAST,
        RELAXED,
        STEPS,
        ROLLOUTS,
        EDIT,
        REWARD,
    ],
    ids=(
        "answer rationale expand evol tasks cite grade said queries annotate paired choose rewrite merged candidates judge "
        "compare soft rank contrast relaxed steps rollouts edit reward"
    ).split(),
)
def test_what_a_stage_says_of_its_replies_is_so(
    observe: Callable[..., tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, base: dict[str, Any]
) -> None:
    """`validates` and `cut_is_fine` decide which teacher's fields count as without effect."""
    validated, whole, plain = dict[str, set[str]](), dict[str, bool](), JobAsk.__call__

    async def spy(self: JobAsk, prompt: Any, /, **options: Any) -> Any:
        stage = self._step.stage
        checked = validated.setdefault(stage.name, set())
        if options.get("schema") or options.get("check"):
            checked.add(options.get("to") or stage.to)
        whole[stage.name] = whole.get(stage.name, False) or not options.get("partial")
        stages[stage.name] = stage
        return await plain(self, prompt, **options)

    stages: dict[str, Any] = {}
    monkeypatch.setattr(JobAsk, "__call__", spy)
    judge = {"provider": "scripted", "path": "r.jsonl", "model": "judge"}
    team = {"teacher": {"provider": "scripted", "path": "r.jsonl", "max_tokens": 100}}
    if base is EVOLVE:
        base = {"stages": [{**base["stages"][0], "judge": "judge"}], "teachers": {**team, "judge": judge}}
    assert observe(base)[0] == 0
    assert stages
    for name, stage in stages.items():
        assert (stage.validates, stage.cut_is_fine) == (validated[name], not whole[name]), name


TEACHER = {
    "temperature": "0.5",
    "top_p": "0.5",
    "max_tokens": "7",
    "seed": "5",
    "stop": "[x]",
    "presence_penalty": "1",
    "frequency_penalty": "1",
    "logprobs": "3",
    "extra": "{top_k: 3}",
    "model": "Qwen3-4B",
}


@pytest.mark.parametrize("field", TEACHER)
def test_a_teachers_parameter_is_sent(
    kdgen: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    (tmp_path / "s.jsonl").write_text('{"instruction": "Name a bird."}\n')
    bodies = []
    drop = f"{T}unsupported=drop"  # this wire's replies have no logprobs
    for number, sets in enumerate((["--set", drop], ["--set", drop, "--set", f"{T}{field}={TEACHER[field]}"])):
        wire = FakeWire(echo_answer)
        monkeypatch.setattr(OpenAI, "connect", wire.open)
        said = kdgen(
            "label",
            "s.jsonl",
            "-t",
            "openai:Qwen3-8B@http://127.0.0.1:9/v1",
            "-o",
            f"o{number}",
            "--ledger",
            f"l{number}",
            *sets,
        )
        assert said.code == 0, said.err
        bodies.append(wire.requests[0].body)
    assert bodies[0] != bodies[1]
