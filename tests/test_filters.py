"""Filters on one record's text: what they let pass and what they stop."""

from __future__ import annotations

import pytest

from kdgen.filters import Dangling, Echo
from kdgen.record import Record

POINTING = """
Summarize the given text.
Given the following list of numbers, find the largest.
Given a sentence, rewrite it in the passive voice.
Given a list of 10 words, sort them alphabetically.
Given the text below, answer the question.
Classify the given animals.
Given this paragraph, write a headline.
Rewrite given sentence in past tense.
Given two sentences, say whether they mean the same.
Based on the information given, decide who is right.
Use the numbers given.
Given an email, write a reply.
Given a country, name its capital.
Given two numbers, find their sum.
Find the mean of given numbers.
Given a sentence with a missing word, fill it in.
Put these words in order.
"""
COMPLETE = """
Given two numbers 3 and 5, add them.
Given two numbers, 3 and 5, add them.
Given the numbers 4, 8 and 15, find their mean.
Given that x + 1 = 3, find x.
Given a right triangle with legs of 3 cm and 4 cm, find the hypotenuse.
Given a pH of 9.2, is a solution acidic, neutral or alkaline?
Given the rise of remote work, discuss how cities may change.
Given the choice between tea and coffee, which has more caffeine?
Given a budget of 100 euros, plan a dinner for four.
Given the sentence "He runs fast", name its verb.
Given the list [3, 1, 2], sort it.
Explain what a given name is.
Find how far a train travels in a given time at constant speed.
Name three words that any given sentence needs.
List gifts that are given at weddings.
Why was Prometheus given such a punishment?
Suggest a talk to be given to new students.
Sum up the following text: The sea is wide.
"""


@pytest.mark.parametrize("task", POINTING.strip().splitlines())
def test_a_task_without_its_material_dangles(task: str) -> None:
    found = Dangling().reject(Record(id="r", instruction=task))
    assert found and found.startswith("dangling: ")
    assert Dangling().reject(Record(id="r", instruction=task, input="3 and 5")) is None


@pytest.mark.parametrize("task", COMPLETE.strip().splitlines())
def test_a_task_with_all_that_it_needs_does_not_dangle(task: str) -> None:
    assert Dangling().reject(Record(id="r", instruction=task)) is None


@pytest.mark.parametrize("task", ["Repeat after me.", "写一首诗", "تحدث عن البحر", "บอกชื่อแม่น้ำ", "Répétez, Élodie"])
def test_an_echo_is_heard_in_any_script(task: str) -> None:
    for output in (task, f"“{task}”", f"{task.upper()}!"):
        assert Echo().reject(Record(id="r", instruction=task, output=output)) == "echo: the output repeats the task"
    for output in (f"{task} {task}", "So be it.", "好的", ""):
        assert Echo().reject(Record(id="r", instruction=task, output=output)) is None
