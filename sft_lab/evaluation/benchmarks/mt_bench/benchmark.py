"""Run MT-Bench as a benchmark: two turns per question, each rated by a judge."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

from typing_extensions import override

from sft_lab.config.ranges import NonNegativeFloat, PositiveInt, Seed
from sft_lab.errors import RequestError
from sft_lab.evaluation.benchmark import Answer, Benchmark, Item, Verdict
from sft_lab.evaluation.benchmarks.mt_bench.files import (
    JUDGE_PROMPTS,
    QUESTIONS,
    REFERENCES,
    Question,
    read_judge_prompts,
    read_judgements,
    read_questions,
    read_references,
)
from sft_lab.evaluation.benchmarks.mt_bench.ratings import (
    check_references,
    judge_prompt,
    rating,
)
from sft_lab.evaluation.completions import UNKNOWN, GradedFile
from sft_lab.evaluation.evaluated_model import EvaluatedModel
from sft_lab.evaluation.generation import Decoding
from sft_lab.evaluation.judge.judge import Judge
from sft_lab.evaluation.sandbox.sandbox import LevelChoice
from sft_lab.metrics.item_score import ItemScore

TEMPERATURES: Mapping[str, float] = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
}
"""FastChat's sampling temperatures by category."""

OTHER_TEMPERATURE = 0.7
"""FastChat's for every other category."""


class MTBench(Benchmark):
    """Score answers to MT-Bench's two-turn questions by their mean rating, 1 to 10.

    Files are FastChat's; its own are packaged. The items are the first turns,
    ``MT-Bench/<question>/1``; the second turns follow the answers to them. Answers are sampled at
    FastChat's temperatures. The ratings of several judgements are averaged; a judgement without a
    rating is in no score.

    Source: Zheng et al. (2023), "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena".

    Args:
        judge: The judge.
        path: ``question.jsonl``; by default MT-Bench's 80 questions.
        references: The reference answers, ``gpt-4.jsonl``; by default MT-Bench's.
        judge_prompts: ``judge_prompts.jsonl``; by default FastChat's.
        max_new_tokens: Longest answer of one turn, in tokens; 1024 in the source.
        source: See ``Benchmark``.
        num_examples: See ``Benchmark``.
        num_judgements: Judgements of each answer, whose ratings are averaged.
        temperatures: Sampling temperatures by category, in place of FastChat's ``TEMPERATURES``.
        seed: Seed of the draws.

    Raises:
        RequestError: If an argument is out of range.
    """

    published = str(QUESTIONS)
    score_names = ("mean", "turn_1", "turn_2")
    scale = (1.0, 10.0)
    turns = 2
    decides_decoding = True
    row_fields: ClassVar[Mapping[str, type]] = {
        "question_id": int,
        "category": str,
        "turns": list,
    }

    def __init__(
        self,
        judge: Judge,
        path: str | None = None,
        references: str | None = None,
        judge_prompts: str | None = None,
        max_new_tokens: PositiveInt = 1024,
        source: str | None = None,
        num_examples: PositiveInt | None = None,
        num_judgements: PositiveInt = 1,
        temperatures: dict[str, NonNegativeFloat] | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(path or str(QUESTIONS), max_new_tokens, source, num_examples)
        if num_judgements < 1:
            raise RequestError(f"num_judgements must be 1 or more, got {num_judgements}.")
        self.references = references or str(REFERENCES)
        self.judge_prompts = judge_prompts or str(JUDGE_PROMPTS)
        self.judge = judge
        self.num_judgements = num_judgements
        self.chosen_temperatures = temperatures or {}
        self.seed = seed

    @classmethod
    @override
    def for_grading(cls, path: str, sandbox: LevelChoice) -> "MTBench":
        made = cls.__new__(cls)  # existing judgements are read: no judge, no references
        Benchmark.__init__(made, path, max_new_tokens=1)
        return made

    @override
    def grade_file(self, path: str, model: str | None = None) -> GradedFile:
        """Read a judge's ``*_single.jsonl``; ``model`` is the one that was judged."""
        items = {
            turn.id: turn
            for item in self.items()
            for turn in (item, self.follow_up(item, ""))
            if turn is not None
        }
        rows: list[tuple[str, Item | None, Verdict]] = []
        for judgement in read_judgements(path, model):
            task_id = f"MT-Bench/{judgement.question_id}/{judgement.turn}"
            if task_id not in items:
                rows.append((task_id, None, UNKNOWN))
                continue
            value = rating(judgement.text)
            verdict = (
                Verdict(None, "no rating in the judgement")
                if value is None
                else Verdict({"rating": value}, judgement.text)
            )
            rows.append((task_id, items[task_id], verdict))
        unparsable = sum(item is not None and v.marks is None for _, item, v in rows)
        return GradedFile(rows, list(items), {"unparsable": unparsable})

    @override
    def check(self) -> None:
        known = self.temperatures()
        if unknown := [name for name in self.chosen_temperatures if name not in known]:
            raise RequestError(
                f"temperatures: {self.path} has no category {unknown[0]!r}; it has "
                f"{', '.join(known)}."
            )
        check_references(self._questions, read_references(self.references))
        read_judge_prompts(self.judge_prompts)
        self.judge.check()

    @property
    def _questions(self) -> list[Question]:
        return [_question(item.row) for item in self.items()]

    @override
    def protocol(self) -> dict[str, Any]:
        judge = {"model": self.judge.model, "prompts": read_judge_prompts(self.judge_prompts)}
        judgements = {"judge": repr(judge), "num_judgements": self.num_judgements}
        return {**super().protocol(), **judgements}

    @override
    def agrees_with(self) -> Mapping[str, str]:
        if self.chosen_temperatures:
            return {}
        text = "FastChat's llm_judge, single answers (arXiv 2306.05685)"
        several = f"; the mean of {self.num_judgements} judgements"
        return dict.fromkeys(self.score_names, text + (several if self.num_judgements > 1 else ""))

    @property
    @override
    def decoding(self) -> Decoding:
        return Decoding(seed=self.seed)

    @override
    def temperatures(self) -> Mapping[str, float]:
        found = {}
        for category in dict.fromkeys(item.row["category"] for item in self.all_items()):
            usual = TEMPERATURES.get(category, OTHER_TEMPERATURE)
            found[category] = self.chosen_temperatures.get(category, usual)
        return found

    @override
    def measure(
        self, items: Sequence[Item], prompts: Sequence[Sequence[int]], model: EvaluatedModel
    ) -> list[list[Answer]]:
        temperatures = self.temperatures()
        places = defaultdict(list)
        for place, item in enumerate(items):
            places[temperatures[item.row["category"]]].append(place)
        answers: list[list[Answer]] = [[] for _ in items]
        for temperature, some in places.items():
            found = super().measure(
                [items[place] for place in some],
                [prompts[place] for place in some],
                model.at_temperature(temperature),
            )
            for place, answered in zip(some, found, strict=True):
                answers[place] = answered
        return answers

    @override
    def items(self) -> list[Item]:
        if self._items is None:
            read_questions(self.path)  # its errors name the wrong row and key
        return super().items()

    @override
    def item(self, row: Mapping[str, Any], number: int) -> Item:
        asked = {"role": "user", "content": row["turns"][0]}
        question = f"MT-Bench/{row['question_id']}"
        return Item(f"{question}/1", (asked,), row, group=question)

    @override
    def follow_up(self, item: Item, completion: str) -> Item | None:
        if item.id.endswith("/2"):
            return None
        answer = {"role": "assistant", "content": completion}
        asked = {"role": "user", "content": item.row["turns"][1]}
        item_id = item.id.removesuffix("1") + "2"
        return Item(item_id, (*item.messages, answer, asked), item.row, group=item.group)

    @override
    def texts(self, item: Item) -> list[str]:
        return list(item.row["turns"])

    @override
    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> list[Verdict]:
        prompts = read_judge_prompts(self.judge_prompts)
        references = read_references(self.references)
        asked = []
        for item, completion in zip(items, completions, strict=True):
            before = [m["content"] for m in item.messages if m["role"] == "assistant"]
            answers = [*before, completion]
            question = _question(item.row)
            asked.append(judge_prompt(question, answers, len(answers), prompts, references))
        return list(map(_verdict, self.judge.ask_several(asked, self.num_judgements)))

    @override
    def metrics(self) -> dict[str, ItemScore]:
        # The second judgement sees the first answer, so the turns of a question are drawn together.
        categories = dict.fromkeys(item.row["category"] for item in self.all_items())
        return {name: ItemScore(is_share=False) for name in (*self.score_names, *categories)}

    @override
    def scored_marks(self, item: Item, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        rating = verdict.mark("rating")
        names = ("mean", f"turn_{item.id[-1]}", item.row["category"])
        return {} if rating is None else {name: [rating] for name in names}

    @override
    def mark_of(self, score_name: str) -> str | None:
        return "rating" if score_name == "mean" else None  # both turns of a question are one item


def _verdict(judgements: Sequence[str]) -> Verdict:
    found = [value for value in map(rating, judgements) if value is not None]
    of = len(judgements)
    named = (f"Judgement {n} of {of}: {text}" for n, text in enumerate(judgements, 1))
    text = "\n\n".join(named) if of > 1 else judgements[0]
    return Verdict({"rating": fmean(found)} if found else None, text)


def _question(row: Mapping[str, Any]) -> Question:
    first, second = row["turns"]
    return Question(row["question_id"], row["category"], (first, second))
