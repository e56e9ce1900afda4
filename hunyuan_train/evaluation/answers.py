"""Evaluation by answers: the model in training is asked held-out questions.

It answers split as it is (`evaluation/engine_generation.py`), greedily.
"""

from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import torch.distributed as dist

from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.engine_generation import generate_dealt_out
from hunyuan_train.evaluation.scoring import Question, describe_answer, score_answer, summarize
from hunyuan_train.evaluation.user_metric import load_metric, measure
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.json_lines import Lines, Numbers


def ask_nothing(_: int) -> Numbers:
    """Stands where no questions are to be asked."""
    return {}


class AnswerCheck:
    """Asks the same questions at each evaluation. Every rank has one; they ask together."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        questions: Sequence[Question],
        tokenizer: Tokenizer,
        log: Lines,
        log_table: Callable[[str, list[dict[str, Any]], int], None],
        *,
        max_new_tokens: int,
        metric: str | None = None,
    ) -> None:
        self.engine = engine
        self.questions = questions
        self.tokenizer = tokenizer
        self.log = log  # rank 0's is kept
        self.log_table = log_table  # and its trackers are told
        self.max_new_tokens = max_new_tokens
        self.metric = metric  # of the user's own, FILE.py:FUNCTION

    def run(self, step: int) -> Numbers:
        """Ask, score, and keep question and answer in `answers.jsonl`; the same on every rank."""
        outputs = self._ask()
        scores = [score_answer(*pair) for pair in zip(self.questions, outputs, strict=True)]
        rows = [
            describe_answer(*one, self.tokenizer)
            for one in zip(self.questions, outputs, scores, strict=True)
        ]
        for row in rows:
            self.log.append({"step": step, **row})
        self.log_table("answers", rows, step)
        return summarize(scores) | self._measure(outputs)

    def _measure(self, outputs: list[str]) -> Numbers:
        """The user's metric. One rank runs it: on each, it might give another number.

        Raises:
            ConfigError: it fails; on every rank.
        """
        if not self.metric:
            return {}
        found: list[Numbers | str] = [""]
        if dist.get_rank() == 0:
            try:
                function = load_metric(self.metric)
                questions, tokenizer = self.questions, self.tokenizer
                found = [measure(function, questions, outputs, tokenizer, setting=self.metric)]
            except ConfigError as error:
                found = [str(error)]
        dist.broadcast_object_list(found)
        if isinstance(found[0], str):
            raise ConfigError(found[0])
        return found[0]

    def _ask(self) -> list[str]:
        outputs = generate_dealt_out(
            self.engine,
            [question.prompt for question in self.questions],
            stop_ids=self.tokenizer.stop_ids,
            max_new_tokens=self.max_new_tokens,
        )
        return [self.tokenizer.decode(output) for output in outputs]
