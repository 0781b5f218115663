"""Run MT-Bench as a benchmark: two turns per question, each rated by a judge."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from sft_lab.config.ranges import PositiveInt
from sft_lab.evaluation.benchmark import Benchmark, Item, Verdict
from sft_lab.evaluation.benchmarks.mt_bench.files import (
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
from sft_lab.evaluation.judge.judge import Judge
from sft_lab.evaluation.sandbox.sandbox import LevelChoice
from sft_lab.metrics.item_score import ItemScore


class MTBench(Benchmark):
    """Score answers to MT-Bench's two-turn questions by their mean rating, 1 to 10.

    Files are FastChat's. The items are the first turns, ``MT-Bench/<question>/1``; the second turns
    follow the answers to them. A judgement without a rating is in no score.

    Source: Zheng et al. (2023), "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena".

    Args:
        path: ``question.jsonl``.
        references: The reference answers, ``gpt-4.jsonl``.
        judge_prompts: ``judge_prompts.jsonl``.
        judge: The judge.
        max_new_tokens: Longest answer of one turn, in tokens; 1024 in the source.
        source: See ``Benchmark``.
        num_examples: See ``Benchmark``.
    """

    score_names = ("mean", "turn_1", "turn_2")
    scale = (1.0, 10.0)
    turns = 2
    row_fields: ClassVar[Mapping[str, type]] = {
        "question_id": int,
        "category": str,
        "turns": list,
    }

    def __init__(
        self,
        path: str,
        references: str,
        judge_prompts: str,
        judge: Judge,
        max_new_tokens: PositiveInt = 1024,
        source: str | None = None,
        num_examples: PositiveInt | None = None,
    ) -> None:
        super().__init__(path, max_new_tokens, source, num_examples)
        self.references = references
        self.judge_prompts = judge_prompts
        self.judge = judge

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
        check_references(self._questions, read_references(self.references))
        read_judge_prompts(self.judge_prompts)
        self.judge.check()

    @property
    def _questions(self) -> list[Question]:
        return [_question(item.row) for item in self.items()]

    @override
    def protocol(self) -> dict[str, Any]:
        judge = {"model": self.judge.model, "prompts": read_judge_prompts(self.judge_prompts)}
        return {**super().protocol(), "judge": repr(judge)}

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
        judgements = self.judge.ask(asked)
        ratings = map(rating, judgements)
        return [
            Verdict(None if value is None else {"rating": value}, judgement)
            for value, judgement in zip(ratings, judgements, strict=True)
        ]

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


def _question(row: Mapping[str, Any]) -> Question:
    first, second = row["turns"]
    return Question(row["question_id"], row["category"], (first, second))
