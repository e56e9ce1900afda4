"""GPTQ layer by layer: one layer, its inputs and one Hessian at a time are in memory.

llm-compressor's own pipeline holds the whole model in host memory, and its entry point that does
not (`model_free_ptq`) knows no calibration. So the layers are streamed from the disk here, in the
order of its pipeline: a layer sees what the quantised layers before it give, the Hessians of all
its projections are taken before any of them changes, and every expert sees every token. Its own
GPTQ runs on them in a process of its environment (`gptq_worker.py`).

What is done lies in OUT.gptq, so that the same command goes on where it was ended.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hunyuan_train.checkpoint.publish import check_room, hash_files
from hunyuan_train.data.batches.loader import Batch
from hunyuan_train.families.registry import family_of
from hunyuan_train.families.tables import LAYERS, released_tensors, to_released
from hunyuan_train.json_file import read_json_object
from hunyuan_train.model.compressed_values import decode
from hunyuan_train.model.compression_scheme import (
    PACKED,
    SCALE,
    SHAPE,
    Layout,
    Scheme,
    is_compressed,
)
from hunyuan_train.model.layer_stream import (
    LayerStream,
    LoopedExperts,
    make_table,
    projections_of,
)
from hunyuan_train.model.released_files import locate_weights
from hunyuan_train.model.safetensors_header import read_header
from hunyuan_train.model.weights import SafetensorsFolder
from hunyuan_train.progress import show_progress
from hunyuan_train.quantize.gptq_settings import WORKER, choose_group_size, find_python
from hunyuan_train.quantize.job import Job
from hunyuan_train.quantize.measure import Rows, choose_rows
from hunyuan_train.quantize.model_folder import write_companions, write_index
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.whole_file import open_whole

logger = logging.getLogger(__name__)
STATE = "job.json"
DONE, ROUNDED = "done", "rounded"  # what the worker says, which imports nothing of ours
TASK_BYTES = 2**29  # of weights that are quantised at once, in float32
TOKENS_AT_ONCE = 2**12  # through one expert


def write_gptq(job: Job, folder: Path) -> dict[str, str]:
    """Fill a folder with a model in four bits and all that lies beside its weights.

    Args:
        job: with calibration data.
        folder: empty.

    Returns:
        SHA-256 of each file, by name.

    Raises:
        ServeError: llm-compressor fails.
    """
    assert job.calibration.open_dataset is not None  # `check_gptq` has seen to it
    rows = choose_rows(job.calibration.open_dataset(), job.calibration.num_samples)
    scheme = Scheme("group", choose_group_size(job.shape))
    source = SafetensorsFolder.open(job.source, job.shape)
    work = open_work(job, rows, scheme)
    tables = rows.num_tokens * job.shape.hidden_size * 4 * 3
    check_room(job.output, sum(one.num_bytes for one in source.locations.values()) // 3 + tables)
    stream = LayerStream(job.shape, source, device="cuda" if torch.cuda.is_available() else "cpu")
    with start_worker(find_python(job.calibration.python), scheme, work) as worker:
        quantize_layers(stream, rows.batches, Quantizer(job, source, scheme, work, worker))
    save_outer_tensors(source, job, work / "outer.safetensors")
    files = sorted(work.glob("*.safetensors"))
    for number, file in enumerate(files):
        name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        try:
            os.link(file, folder / name)
        except OSError:  # a file system without links
            shutil.copyfile(file, folder / name)
    return describe_files(job, folder, scheme)


def forget_work(job: Job) -> None:
    """Remove what was kept to go on from."""
    shutil.rmtree(work_folder(job.output), ignore_errors=True)


def work_folder(output: Path) -> Path:
    """Where the layers that are done lie until all are."""
    return output.with_name(output.name + ".gptq")


def open_work(job: Job, rows: Rows, scheme: Scheme) -> Path:
    """The folder of what is done; emptied where it belongs to another model, data or setting."""
    files = sorted({one.file for one in locate_weights(job.source, job.shape).values()})
    identity = {
        "source": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "tokens": hashlib.sha256(
            b"".join(one.input_ids.tobytes() for one in rows.batches)
        ).hexdigest(),
        "group_size": scheme.group_size,
    }
    work = work_folder(job.output)
    state = work / STATE
    if not state.exists() or read_json_object(state) != identity:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        with open_whole(state, is_ours=True) as file:
            file.write(json.dumps(identity).encode())
    return work


def quantize_layers(stream: LayerStream, batches: Sequence[Batch], quantizer: "Quantizer") -> None:
    """Quantise every layer that is not done yet, each on what the quantised ones before it give."""
    work, shape = quantizer.work, stream.shape
    num_tokens = sum(len(batch.input_ids) for batch in batches)
    size = num_tokens * shape.hidden_size * 4
    first = find_next_layer(work, shape.num_hidden_layers, size)
    if first == shape.num_hidden_layers:
        return
    hidden_ND = make_table(num_tokens, shape.hidden_size, states_file(work, first))
    if first == 0:
        stream.embed(batches, hidden_ND)
    layer_bytes = quantizer.num_bytes // shape.num_hidden_layers
    num_left = shape.num_hidden_layers - first
    with show_progress("quantizing", layer_bytes * num_left) as advance:
        for number in range(first, shape.num_hidden_layers):
            layer = stream.load_layer(number)
            quantizer.quantize_layer(number, stream, layer, batches, hidden_ND)
            following = states_file(work, number + 1)
            unfinished = following.with_suffix(".part")
            output_ND = make_table(num_tokens, shape.hidden_size, unfinished)
            stream.run_layer(batches, hidden_ND, output_ND)
            unfinished.rename(following)  # from here on, the layer is done
            states_file(work, number).unlink(missing_ok=True)
            hidden_ND = output_ND
            advance(layer_bytes)


def states_file(work: Path, layer: int) -> Path:
    """The hidden states that go into a layer."""
    return work / f"hidden-{layer:05d}"


def layer_file(work: Path, layer: int) -> Path:
    """The quantised tensors of a layer."""
    return work / f"layer-{layer:05d}.safetensors"


def find_next_layer(work: Path, num_layers: int, size: int) -> int:
    """The first layer that is not done: its inputs are whole, and so are all layers before it."""
    for layer in range(num_layers, 0, -1):
        file = states_file(work, layer)
        is_whole = file.exists() and file.stat().st_size == size
        if is_whole and all(layer_file(work, one).exists() for one in range(layer)):
            return layer
    return 0


@dataclass(slots=True)
class Hessians:
    """The Hessian of what goes into each projection of a layer; those with one input share it."""

    by_name: dict[str, Tensor] = field(default_factory=dict)  # [inputs, inputs], float32
    leaders: dict[str, str] = field(default_factory=dict)  # whose Hessian a projection shares
    last_name: str = ""
    last_input: Tensor | None = None

    def see(self, name: str, inputs: Tensor) -> None:
        """Take what goes into a projection: [..., tokens, inputs]."""
        if inputs is self.last_input:
            self.leaders[name] = self.last_name
            return
        self.last_name, self.last_input = name, inputs
        self.leaders[name] = name
        self.add(name, inputs.flatten(0, -2))

    def add(self, name: str, inputs_TD: Tensor) -> None:
        """Add the inputs of some tokens."""
        if name not in self.by_name:
            width = inputs_TD.shape[1]
            self.by_name[name] = inputs_TD.new_zeros(width, width)
        self.by_name[name].addmm_(inputs_TD.T, inputs_TD, alpha=2.0)


def sum_hessian(
    inputs_ND: Sequence[Tensor], compute: Callable[[Tensor], Tensor], device: torch.device
) -> Tensor:
    """The Hessian of what is computed from some tokens' inputs: [inputs, inputs], float32."""
    hessians = Hessians()
    for rows in inputs_ND:
        for inputs in rows.split(TOKENS_AT_ONCE):
            hessians.add("all", compute(inputs.to(device)))
    return hessians.by_name["all"]


@dataclass(slots=True)
class Quantizer:
    """What quantises one layer after the other."""

    job: Job
    source: SafetensorsFolder
    scheme: Scheme
    work: Path
    worker: Callable[[Tensor, Tensor], dict[str, Tensor]]  # weights and Hessian to packed weights

    @property
    def num_bytes(self) -> int:
        """Size of the model as it is."""
        return sum(one.num_bytes for one in self.source.locations.values())

    @torch.no_grad()
    def quantize_layer(
        self,
        number: int,
        stream: LayerStream,
        layer: nn.Module,
        batches: Sequence[Batch],
        hidden_ND: Tensor,
    ) -> None:
        """Quantise the layer that is loaded, in place, and write its tensors.

        Args:
            number: of the layer.
            stream: that has loaded it.
            layer: the module.
            batches: the rows that it is calibrated on.
            hidden_ND: what goes in.
        """
        inputs_file = self.work / "expert_inputs"
        expert_inputs: list[Tensor] = []
        hessians = watch_inputs(stream, layer, batches, hidden_ND, expert_inputs, inputs_file)
        places = dict(self._places(number, stream))
        done: dict[str, Tensor] = {}
        for leader in dict.fromkeys(hessians.leaders.values()):
            names = [name for name, one in hessians.leaders.items() if one == leader]
            wanted = [
                to_released(family_of(self.job.shape), f"{LAYERS}{number}.{name}.weight")
                for name in names
            ]
            self._quantize_together(wanted, hessians.by_name.pop(leader), places, done)
        for name, experts in layer.named_modules():
            if isinstance(experts, LoopedExperts):
                prefix = f"{LAYERS}{number}.{name}"
                self._quantize_experts(prefix, experts, expert_inputs, places, done)
        for name, tensor in released_tensors(self.job.shape).items():
            if name.startswith(f"{LAYERS}{number}.") and not is_compressed(tensor):
                done[name] = self.source.read(tensor, 0, tensor.numel).view(tensor.shape)
        inputs_file.unlink(missing_ok=True)
        save_whole(done, layer_file(self.work, number))

    def _places(self, number: int, stream: LayerStream) -> Iterator[tuple[str, Tensor]]:
        """Each released tensor of a layer with the part of a parameter that holds it."""
        for tensors, parameter in stream.layer_parameters(number):
            position = 0
            for tensor in tensors:
                part = parameter.data.view(-1)[position : position + tensor.numel]
                yield tensor.name, part.view(tensor.shape)
                position += tensor.numel

    def _quantize_experts(
        self,
        prefix: str,
        experts: LoopedExperts,
        inputs_ND: list[Tensor],
        places: dict[str, Tensor],
        done: dict[str, Tensor],
    ) -> None:
        """Quantise all routed experts of a layer, every one of them calibrated on every token."""
        numbers, device = range(len(experts.down_proj)), experts.down_proj.device
        for expert in numbers:  # before gate and up change, as all Hessians of a layer
            hessian = sum_hessian(inputs_ND, partial(experts.compute_inner, expert), device)
            self._quantize_together([f"{prefix}.{expert}.down_proj.weight"], hessian, places, done)
        parts = ("gate_proj", "up_proj")
        names = [f"{prefix}.{expert}.{part}.weight" for expert in numbers for part in parts]
        hessian = sum_hessian(inputs_ND, lambda inputs_TD: inputs_TD, device)
        self._quantize_together(names, hessian, places, done)

    def _quantize_together(
        self,
        names: Sequence[str],
        hessian: Tensor,
        places: dict[str, Tensor],
        done: dict[str, Tensor],
    ) -> None:
        """Quantise weights of the same inputs: what is stored goes to `done`, values in place."""
        dtype = self.source.dtype
        for some in group_by_size(names, places):
            weights = torch.cat([places[name] for name in some]).to("cpu", dtype)
            answer = self.worker(weights, hessian.cpu())
            packed, scales = answer["weight_packed"], answer["weight_scale"]
            values = decode(packed, scales, self.scheme)
            first = 0
            for name in some:
                rows = slice(first, first := first + len(places[name]))
                places[name].copy_(values[rows])
                done[name + PACKED], done[name + SCALE] = packed[rows], scales[rows]
                done[name + SHAPE] = torch.tensor(places[name].shape)


def group_by_size(names: Sequence[str], places: dict[str, Tensor]) -> Iterator[list[str]]:
    """Deal weights, in order, into groups that fit `TASK_BYTES`."""
    group: list[str] = []
    size = 0
    for name in names:
        needed = places[name].numel() * 4
        if group and size + needed > TASK_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    if group:
        yield group


def watch_inputs(
    stream: LayerStream,
    layer: nn.Module,
    batches: Sequence[Batch],
    hidden_ND: Tensor,
    expert_inputs: list[Tensor],
    inputs_file: Path,
) -> Hessians:
    """Let all rows through a layer, and take what goes into its projections and its experts."""
    hessians = Hessians()
    num_tokens, hidden_size = hidden_ND.shape
    table = make_table(num_tokens, hidden_size, file=inputs_file)
    position = 0

    def see_experts(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal position
        rows = table[position : position + len(inputs[0])]
        rows.copy_(inputs[0].cpu())
        expert_inputs.append(rows)
        position += len(rows)

    def see(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: hessians.see(name, inputs[0])

    hooks = [
        module.register_forward_pre_hook(see(name))
        for name, module in projections_of(layer, stream.shape).items()
    ]
    hooks += [
        module.register_forward_pre_hook(see_experts)
        for module in layer.modules()
        if isinstance(module, LoopedExperts)
    ]
    stream.run_layer(batches, hidden_ND)
    for hook in hooks:
        hook.remove()
    return hessians


@contextmanager
def start_worker(
    python: str, scheme: Scheme, work: Path
) -> Iterator[Callable[[Tensor, Tensor], dict[str, Tensor]]]:
    """Start llm-compressor's process and give a function that has it quantise weights.

    Raises:
        ServeError: it ends.
    """
    # Of this process: a worker whose command was killed may write an answer for a while yet.
    task, answer = (work / f"{name}-{os.getpid()}" for name in ("task", "answer"))
    log = work / "llmcompressor.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [python, str(WORKER), str(scheme.group_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is ours to handle
        )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def quantize(weights: Tensor, hessian: Tensor) -> dict[str, Tensor]:
        save_file({"weights": weights.contiguous(), "hessian": hessian.contiguous()}, task)
        stdin.write(json.dumps({"task": str(task), "answer": str(answer)}) + "\n")
        stdin.flush()
        said = ""
        while said not in (DONE, ROUNDED):  # what else it says is the library's
            line = stdout.readline()
            if not line:
                last = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
                raise ServeError(
                    f"llm-compressor has ended, and last said: {last[-1]}; all of it is in {log}. "
                    "The same command goes on behind the last layer that is done"
                )
            said = line.strip()
        if said == ROUNDED:
            logger.warning(
                "a Hessian could not be inverted: %d rows are only rounded", len(weights)
            )
        return load_file(answer)

    try:
        yield quantize
    finally:
        process.kill()  # it holds nothing that could be lost
        process.wait()
        task.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)


def save_whole(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a file of tensors, which has its name once it is whole."""
    unfinished = file.with_suffix(".part")
    unfinished.touch()
    mode = unfinished.stat().st_mode  # as umask says; safetensors writes a file for its owner alone
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    save_file(ordered, unfinished, metadata={"format": "pt"})
    unfinished.chmod(mode)
    unfinished.rename(file)


def save_outer_tensors(source: SafetensorsFolder, job: Job, file: Path) -> None:
    """Write as it is what no layer that was computed holds: embedding, head, layers for MTP."""
    inside = tuple(f"{LAYERS}{layer}." for layer in range(job.shape.num_hidden_layers))
    outer = {
        name: source.read(tensor, 0, tensor.numel).view(tensor.shape)
        for name, tensor in released_tensors(job.shape).items()
        if not name.startswith(inside)
    }
    save_whole(outer, file)


def describe_files(job: Job, folder: Path, scheme: Scheme) -> dict[str, str]:
    """Write index, config and companions of a folder that has its weights; digests of all."""
    files = sorted(folder.glob("*.safetensors"))
    layouts: dict[str, dict[str, Layout]] = {
        file.name: {name: (one.dtype, one.shape) for name, one in read_header(file).items()}
        for file in files
    }
    names = {file: list(layout) for file, layout in layouts.items()}
    with show_progress("summing", sum(file.stat().st_size for file in files)) as advance:
        digests = hash_files(files, advance)
    digests |= write_index(folder, names, layouts.values())
    return digests | write_companions(job, folder, scheme)
