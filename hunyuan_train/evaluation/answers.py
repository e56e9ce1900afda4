"""Evaluation by answers: the model in training is asked held-out questions.

It answers split as it is (`evaluation/engine_generation.py`), greedily.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import deepspeed
import torch.distributed as dist

from hunyuan_train.errors import ConfigError
from hunyuan_train.evaluation.engine_generation import generate_dealt_out
from hunyuan_train.evaluation.scoring import Question, describe_answer, score_answer, summarize
from hunyuan_train.evaluation.user_metric import Metric, load_metric, measure
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.json_lines import Lines, Numbers

Result = TypeVar("Result")


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
        self.metric_function: Metric | None = None  # of rank 0, once it is loaded

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

    def load_metric(self) -> None:
        """Run the file of the user's metric, before the first step and not at the first evaluation.

        Raises:
            ConfigError: it fails, or its function does not take answers; on every rank.
        """
        if setting := self.metric:
            self.metric_function = _on_first_rank(lambda: load_metric(setting))

    def _measure(self, outputs: list[str]) -> Numbers:
        """What the user's metric says.

        Raises:
            ConfigError: it fails; on every rank.
        """
        if not self.metric:
            return {}
        found: list[Numbers] = [{}]
        if numbers := _on_first_rank(lambda: self._judge(outputs)):
            found = [numbers]
        dist.broadcast_object_list(found)
        return found[0]

    def _judge(self, outputs: list[str]) -> Numbers:
        assert self.metric, "a metric is asked for"
        assert self.metric_function, "it was loaded, by the rank that judges"
        return measure(
            self.metric_function, self.questions, outputs, self.tokenizer, setting=self.metric
        )

    def _ask(self) -> list[str]:
        outputs = generate_dealt_out(
            self.engine,
            [question.prompt for question in self.questions],
            stop_ids=self.tokenizer.stop_ids,
            max_new_tokens=self.max_new_tokens,
        )
        return [self.tokenizer.decode(output) for output in outputs]


def _on_first_rank(work: Callable[[], Result]) -> Result | None:
    """What one rank finds, and None on the others: on each, a metric might give another number.

    Raises:
        ConfigError: that rank's; on every rank.
    """
    result, said = None, [""]
    if dist.get_rank() == 0:
        try:
            result = work()
        except ConfigError as error:
            said = [str(error)]
    dist.broadcast_object_list(said)
    if said[0]:
        raise ConfigError(said[0])
    return result
