"""What a record says about its loss, under the names that this and other tools give it.

`train` and `weight` are ours. ms-swift writes `loss`, axolotl `train` or `training`, torchtune
`masked`, xtuner `output_with_loss`; a record may carry a list `loss_mask` or ask for its last
answer only, as LLaMA-Factory's `mask_history` does. All come down to whether an answer carries loss
and with what weight. What says anything else is refused.
"""

from typing import Any

from hunyuan_train.data.findings import Problem
from hunyuan_train.data.reading.decode import parse_json
from hunyuan_train.families.grammar.dialogue import Message

Record = dict[str, Any]

# Beyond these float32 loses the loss of this message, or of all others.
MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1e6

_TRAIN_FIELDS = (
    "train",
    "training",
    "trainable",
    "train_on",
    "train_this",
    "learn",
    "loss",
    "has_loss",
    "with_loss",
    "output_with_loss",
    "loss_mask",
)
_MASKED_FIELDS = ("masked", "is_masked", "no_loss", "ignore_loss", "mask_loss")
_WEIGHT_FIELDS = ("weight", "loss_weight", "loss_scale")
# Loss on parts of an answer, and a word that some use for loss and some for none.
_UNCLEAR_FIELDS = (
    "mask",
    "label_mask",
    "labels_mask",
    "token_mask",
    "train_detail",
    "train_details",
    "training_detail",
    "training_details",
)
# Lists beside the messages, each with the field that means the same in one message.
_ITEM_FIELDS = {
    "loss_masks": "loss_mask",
    "train_mask": "loss_mask",
    "training_mask": "loss_mask",
    "weights": "weight",
    "loss_weights": "weight",
}
_LAST_FIELDS = (
    "mask_history",
    "last_turn_only",
    "last_round_only",
    "only_last_turn",
    "only_last_turn_loss",
    "last_turn_loss_only",
    "loss_on_last_turn_only",
    "train_last_turn",
    "train_last_turn_only",
    "train_on_last_turn",
    "train_on_last_turn_only",
    "train_only_last",
    "train_only_last_turn",
)
_LAST_WORDS = ("last_round", "last_turn", "last")  # of ms-swift's loss_scale
LOSS_FIELDS = frozenset((*_TRAIN_FIELDS, *_MASKED_FIELDS, *_WEIGHT_FIELDS, *_UNCLEAR_FIELDS))
RECORD_LOSS_FIELDS = LOSS_FIELDS | {*_ITEM_FIELDS, *_LAST_FIELDS}


def read_answer_loss(raw: Record, message: Message, place: str, problems: list[Problem]) -> None:
    """The loss of one answer, from the fields of its message."""
    stated = {field: _parse(raw[field]) for field in raw if field in LOSS_FIELDS}
    stated = {field: value for field, value in stated.items() if value is not None}
    weights = {}
    for field, value in stated.items():
        weight = _read_value(field, value, f"{place}.{field}", problems)
        if weight is None:
            return
        weights[field] = weight
    _settle(weights, message, place, problems)


def refuse_prompt_loss(fields: Record, place: str, problems: list[Problem]) -> Record:
    """Refuse loss on a question or a result, which is never trained on; returns other fields."""
    found: list[Problem] = []
    for field in fields.keys() & LOSS_FIELDS:
        if _read_value(field, _parse(fields[field]), f"{place}.{field}", found):
            reason = f"{field} is {fields[field]!r} on a message that is no answer"
            fix = "remove it: loss is on answers only"
            found.append(Problem("prompt_loss", f"{place}.{field}", reason, fix))
    problems += found
    refused = {problem.field for problem in found}
    return {field: fields[field] for field in fields if f"{place}.{field}" not in refused}


def apply_record_loss(record: Record, messages: list[Message], problems: list[Problem]) -> None:
    """Loss fields beside the messages: one value for every answer, or a list of them."""
    for field in record:
        value = _parse(record[field])
        if field not in RECORD_LOSS_FIELDS or value is None:
            continue
        if field in _LAST_FIELDS or value in _LAST_WORDS:
            _keep_last(field, value, messages, problems)
        elif isinstance(value, list):
            _apply_list(field, value, messages, problems)
        elif field == "mask" and str(value).lower() in ("user", "human"):
            pass  # the role that carries no loss, as NeMo names it: so it is anyway
        elif (weight := _read_value(field, value, field, problems)) is not None:
            reason = f"{field} beside the messages"
            problems.append(Problem("converted", field, reason, "read as that of every answer"))
            for message in messages:
                _multiply(message, weight)


def _parse(value: object) -> object:
    """What a cell of a text table says: a flag, a number or a list; any other text stays one."""
    if isinstance(value, str):
        parsed = parse_json(value.strip().lower())
        return parsed if isinstance(parsed, bool | int | float | list) else value
    return value


def _settle(
    weights: dict[str, float], message: Message, place: str, problems: list[Problem]
) -> None:
    """Fields that say yes or no, and fields that weigh: each kind must say one thing."""
    flags = {weight > 0 for field, weight in weights.items() if field not in _WEIGHT_FIELDS}
    numbers = {weight for field, weight in weights.items() if field in _WEIGHT_FIELDS}
    if len(flags) > 1 or len(numbers) > 1:
        reason = f"{' and '.join(weights)} do not agree about the loss of this answer"
        problems.append(Problem("weight", f"{place}.{next(iter(weights))}", reason, "keep one"))
        return
    message.weight = numbers.pop() if numbers else 1.0
    message.is_trained = False not in flags and message.weight > 0


def _read_value(field: str, value: object, place: str, problems: list[Problem]) -> float | None:
    """The weight that a field gives; None, with the reason in `problems`, where it gives none."""
    if field in _UNCLEAR_FIELDS:
        reason = f"{field} is not read: it may name what carries loss, or what does not"
        fix = "say train true or false of each answer"
        problems.append(Problem("weight", place, reason, fix))
        return None
    is_weight = field in _WEIGHT_FIELDS
    if isinstance(value, int | float) and not (is_weight and isinstance(value, bool)):
        if value in (0, 1):
            return float(bool(value) != (field in _MASKED_FIELDS))
        if is_weight and MIN_WEIGHT <= value <= MAX_WEIGHT:
            return float(value)
    fix = f"give 0 or {MIN_WEIGHT:g} to {MAX_WEIGHT:g}"
    if not is_weight:
        fix = "give true or false; a part of the loss is `weight`"
    problems.append(Problem("weight", place, f"{field} is {_shorten(value)}", fix))
    return None


def _apply_list(
    field: str, values: list[Any], messages: list[Message], problems: list[Problem]
) -> None:
    """One value for each answer, or one for each message."""
    answers = [message for message in messages if message.role == "assistant"]
    targets = next((some for some in (answers, messages) if len(some) == len(values)), None)
    if targets is None:
        reason = (
            f"{field} has {len(values):,} values; there are {len(answers)} answers "
            f"and {len(messages)} messages"
        )
        fix = "give one value for each answer; loss on parts of an answer is not supported"
        problems.append(Problem("weight", field, reason, fix))
        return
    item_field = _ITEM_FIELDS.get(field, field)
    for index, (message, value) in enumerate(zip(targets, values, strict=True)):
        place = f"{field}[{index}]"
        weight = _read_value(item_field, value, place, problems)
        if weight is None:
            return
        if message.role == "assistant":
            _multiply(message, weight)
        elif weight:
            reason = f"{field} puts loss on a {message.role} message"
            fix = "set it to 0: loss is on answers only"
            problems.append(Problem("prompt_loss", place, reason, fix))


def _keep_last(field: str, value: object, messages: list[Message], problems: list[Problem]) -> None:
    """Loss on the last answer only, where the field says so."""
    if value not in (True, False, *_LAST_WORDS):
        reason = f"{field} is {_shorten(value)}"
        problems.append(Problem("weight", field, reason, "give true or false"))
    elif value:
        answers = [message for message in messages if message.role == "assistant"]
        for message in answers[:-1]:
            message.is_trained = False


def _multiply(message: Message, weight: float) -> None:
    if message.role == "assistant":
        message.weight *= weight
        message.is_trained = message.is_trained and weight > 0


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"
