"""Names of the groups that a loss is reported by, and the number of each in a batch.

Without torch, so that the report can name its charts by them.
"""

from hunyuan_train.families.grammar.dialogue import MODES
from hunyuan_train.families.grammar.segments import (
    SPAN_ANSWER,
    SPAN_MARKER,
    SPAN_TEXT,
    SPAN_THINK,
)

BY_MODE = {mode: MODES.index(mode) for mode in MODES if mode in ("fast", "slow")}
BY_SPAN = {"think": SPAN_THINK, "answer": SPAN_ANSWER, "markers": SPAN_MARKER, "text": SPAN_TEXT}
