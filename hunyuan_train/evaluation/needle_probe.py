"""Whether the model in training still finds facts in long texts: asked before and after."""

from collections.abc import Sequence

import deepspeed

from hunyuan_train.evaluation.engine_generation import generate_dealt_out
from hunyuan_train.evaluation.needle_in_a_haystack import (
    MAX_NEW_TOKENS,
    Needle,
    describe_needles,
    score_needles,
)
from hunyuan_train.families.grammar.tokenizer import Tokenizer
from hunyuan_train.json_lines import Lines, Numbers


class NeedleProbe:
    """Asks for the same needles each time. Every rank has one; they ask together."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        needles: Sequence[Needle],
        tokenizer: Tokenizer,
        log: Lines,
    ) -> None:
        self.engine = engine
        self.needles = needles
        self.tokenizer = tokenizer
        self.log = log  # rank 0's is kept

    def run(self, step: int) -> Numbers:
        """Ask, score, and keep the answers in `needles.jsonl`; the same on every rank."""
        answers = generate_dealt_out(
            self.engine,
            [needle.question.prompt for needle in self.needles],
            stop_ids=self.tokenizer.stop_ids,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        outputs = [self.tokenizer.decode(answer) for answer in answers]
        model = f"step {step}" if step else "before training"
        for row in describe_needles(self.needles, outputs, step=step, model=model):
            self.log.append(row)
        return score_needles(self.needles, outputs)
