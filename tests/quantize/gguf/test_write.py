"""GGUF files by llama.cpp's own tools, read and run by llama.cpp itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hunyuan_train.families.grammar.find import load_tokenizer
from hunyuan_train.families.registry import read_shape
from hunyuan_train.families.shape import ModelShape
from hunyuan_train.families.tables import released_tensors
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.quantize.gguf.check import check_gguf
from hunyuan_train.quantize.gguf.weights import open_gguf
from hunyuan_train.quantize.gguf.write import write_gguf
from hunyuan_train.quantize.job import Calibration, Job
from tests.clients.environments import client_python
from tests.quantize.gguf.llama_cpp import WIDE, reader_folder, write_taught_hy3
from tests.taught import FAST, SLOW, read_samples, write_taught_model

TEXTS = [
    "Two cats?",
    "两只猫有几条腿 1234?",
    " a  b\n\n\tc 1234 I'll don't",
    "<think>\nx\n</think>",
    "é\u0301",
]
NUM_TOKENS = 12
TOOLS = Path(__file__).parents[2] / "clients" / "llamacpp_generate.py"


@pytest.fixture(scope="module", params=["hunyuan_v1_moe", "hy_v3"])
def taught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "taught"
    if request.param == "hy_v3":
        return write_taught_hy3(folder)
    return write_taught_model(folder, **WIDE)


@pytest.fixture
def _reads_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `gguf`, where it is not installed here, from llama.cpp's own tree."""
    monkeypatch.setattr(sys, "path", [*sys.path, reader_folder()])


def make_job(source: Path, output: Path, type_: str) -> Job:
    calibration = Calibration(num_samples=0, python=None)
    shape = read_shape(source)
    return Job(
        source=source,
        shape=shape,
        output=output,
        type=type_,
        calibration=calibration,
        llama_cpp=client_python("llamacpp"),
    )


def ask_llama_cpp(file: Path, **asked: list) -> dict[str, list]:
    answered = subprocess.run(
        [client_python("llamacpp"), str(TOOLS), str(file)],
        input=json.dumps(asked | {"num_tokens": NUM_TOKENS}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    return json.loads(answered.stdout.splitlines()[-1])


def make_prompts(folder: Path) -> list[list[int]]:
    """Up to where the answers begin that the model was taught."""
    tokenizer = load_tokenizer(folder)
    samples = [sample for record in (SLOW, FAST) for sample in read_samples(record, tokenizer)]
    return [ids[: int(is_taught.argmax())].tolist() for ids, is_taught in samples]


def answer_plainly(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of Transformers in float32, without those that end an answer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(NUM_TOKENS):
            with torch.no_grad():
                token = model(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, token[None, None]], dim=1)
        answers.append(ids[0, len(prompt) :].tolist())
    return answers


def relative_error(source: Path, written: Path, shape: ModelShape) -> float:
    """Root mean square of what rounding changed, by that of the weights, over all tensors."""
    original, read = SafetensorsFolder.open(source, shape), open_gguf(written, shape)
    change = total = 0.0
    for tensor in released_tensors(shape).values():
        before = original.read(tensor, 0, tensor.numel).double()
        after = read.read(tensor, 0, tensor.numel).double()
        assert after.shape == before.shape, tensor.name
        assert torch.allclose(after, before, atol=0.2 * before.abs().max()), tensor.name
        change += float((after - before).square().sum())
        total += float(before.square().sum())
    return (change / total) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type_", "least_equal", "most_error"),
    [("f16", 36, 3e-4), ("Q8_0", 34, 0.01), ("Q4_K_M", 24, 0.1)],
)
@pytest.mark.usefixtures("_reads_gguf")
def test_llama_cpp_answers_as_the_model_that_was_converted(
    taught: Path, tmp_path: Path, type_: str, least_equal: int, most_error: float
) -> None:
    job = make_job(taught, tmp_path / "out", type_)
    check_gguf(job)
    job.output.mkdir()
    digests = write_gguf(job, job.output)
    assert set(digests) == {path.name for path in job.output.iterdir()}
    assert relative_error(taught, job.output, job.shape) < most_error
    prompts, tokenizer = make_prompts(taught), load_tokenizer(taught)
    texts, chats = TEXTS, []
    if job.shape.family == "hy_v3":
        # Its tags are tokens that llama.cpp finds in any text, as the vendor's tokenizer does.
        texts = [one for one in TEXTS if "<" not in one]
        chats = [
            {"messages": SLOW["messages"][:1], "reasoning_effort": "high"},
            {"messages": FAST["messages"][:1], "reasoning_effort": "no_think"},
        ]
    file = job.output / f"model-{type_}.gguf"
    answered = ask_llama_cpp(file, texts=texts, prompts=prompts, chats=chats)
    assert answered["chats"] == [tokenizer.decode(one) for one in prompts[: len(chats)]]
    assert answered["tokenized"] == [tokenizer.encode(text) for text in texts]
    stops = set(tokenizer.stop_ids)
    pairs = [
        (ours, theirs)
        for mine, other in zip(answer_plainly(taught, prompts), answered["answers"], strict=True)
        for ours, theirs in zip(cut(mine, stops), cut(other, stops), strict=False)
    ]
    num_equal = sum(ours == theirs for ours, theirs in pairs)
    assert len(pairs) > 12, answered
    assert num_equal >= len(pairs) * least_equal / 36, (num_equal, len(pairs))


def cut(tokens: list[int], stops: set[int]) -> list[int]:
    """An answer up to where it ends."""
    return next((tokens[:i] for i, token in enumerate(tokens) if token in stops), tokens)
