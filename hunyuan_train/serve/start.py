"""`hunyuan-train serve`: start an engine on a model, print how, or check one that runs."""

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from hunyuan_train.config.resolved_run import Machine
from hunyuan_train.deferred import Deferred
from hunyuan_train.log import log_to_screen
from hunyuan_train.serve.artefact import Artefact, read_artefact
from hunyuan_train.serve.check.client import find_server
from hunyuan_train.serve.engines import ENGINES, Engine, Installed, Job, find_installed
from hunyuan_train.serve.errors import ServeError
from hunyuan_train.serve.folder import find_export, refuse_base
from hunyuan_train.serve.known_pairs import NEWEST_SEEN, KnownPair, find_pairs
from hunyuan_train.serve.placement import Placement, place
from hunyuan_train.serve.trained_pair import FLAG, FLAG_HELP, check_pair
from hunyuan_train.terminal import complain, say

Arguments = argparse.Namespace
DESCRIPTION = """\
Start an inference engine on MODEL with the flags that this model needs, or print the command.
MODEL is an exported or released model folder, an adapter folder, or a GGUF file.

  hunyuan-train serve runs/sft/export                    # the engine that is installed
  hunyuan-train serve runs/sft/export --engine vllm --print
  hunyuan-train serve runs/lora/export --base Hunyuan-A13B-Instruct
  hunyuan-train serve runs/sft/export --check http://localhost:8000

The engine gets the smallest number of GPUs that holds the weights and one full-length dialogue. If
a model and engine are known not to work together, the command stops and names what works.

--check asks a running server fixed questions: in both modes, whole and streamed, with tools, and
with a long text. It computes every answer again from the weights on disk, in float32, layer by
layer, and compares prompts, tokens, log-probabilities and fields. Exit code 1: the answers do not
match the weights. docs/serving.md says what is known about each engine.
"""
DEFAULT_PORT = 8000


def add_serve_command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    *,
    detect_machine: Callable[[], Machine],
) -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    serve = subparsers.add_parser(
        "serve",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.description = DESCRIPTION
    add = serve.add_argument
    add("model", type=Path, metavar="MODEL", help="model folder, adapter folder or GGUF file")
    add("--engine_args", default="", metavar="TEXT", help="more arguments, such as '--seed 1'")
    names = [engine.name for engine in ENGINES]
    add("--engine", choices=names, help="default: the one that is installed")
    add(
        "--print",
        action="store_true",
        dest="is_printed",
        help="print the command without starting it",
    )
    add("--base", type=Path, metavar="DIR", help="the adapter's base model")
    add(FLAG, action="store_true", help=FLAG_HELP)
    add("--served_name", metavar="NAME", help="its name for clients (default: the folder's name)")
    add("--host", default="127.0.0.1", help="where to listen (default: %(default)s, this machine)")
    add("--port", type=int, default=DEFAULT_PORT, help="default: %(default)s")
    add("--gpus", type=int, metavar="N", help="GPUs to use (default: all, 0: the CPU)")
    add(
        "--gpu_memory",
        type=float,
        metavar="GB",
        help="memory of each GPU (default: from its driver)",
    )
    add("--tensor_parallel_size", type=int, metavar="N", help="default: the fewest that suffice")
    add("--max_model_len", type=int, metavar="TOKENS", help="default: as many as fit")
    add(
        "--tools",
        choices=("whole", "streamed"),
        help="how clients with tools take answers. Engines that lose such calls are rejected",
    )
    _add_check_arguments(serve)
    serve.set_defaults(run=lambda arguments: run_serve(arguments, detect_machine))


def _add_check_arguments(serve: argparse.ArgumentParser) -> None:
    check = serve.add_argument_group("checking a server").add_argument
    check("--check", metavar="URL", help="address of a running OpenAI-compatible server")
    check("--json", action="store_true", help="print the findings for programs")
    check("--questions", type=Path, metavar="FILE", help="ask these dialogues (JSON lines) instead")
    check("--max_new_tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    check(
        "--long_prompt",
        type=int,
        metavar="TOKENS",
        help="tokens of the long text (default: beyond 32,768 if model and server allow it, 0: "
        "none)",
    )
    check(
        "--tolerance",
        type=float,
        metavar="NATS",
        help="how far log-probabilities may be off on average (default: float32 weights 0.01, "
        "bfloat16 0.1, quantised 0.3)",
    )
    check("--timeout", type=float, default=600, metavar="SECONDS", help="default: %(default)s")
    check("--api_key_file", type=Path, metavar="FILE", help="file with the server's API key")


def run_serve(arguments: Arguments, detect_machine: Callable[[], Machine]) -> int | Deferred:
    """Start, print, or find what is checked.

    Raises:
        ServeError: a pair that does not work, or nothing to start.
    """
    _check_numbers(arguments)
    arguments.model = find_export(arguments.model)
    refuse_base(arguments.model, arguments.base)
    artefact = read_artefact(arguments.model, base=arguments.base)
    if artefact.is_adapter and not arguments.any_base:
        check_pair(artefact.path, artefact.model)
    if arguments.check is not None:
        return run_check(arguments, artefact)
    if arguments.json or arguments.questions:
        raise ServeError("--json and --questions belong to --check URL")
    machine = _find_machine(arguments, detect_machine)
    engine, installed = choose_engine(arguments.engine, artefact)
    pairs = _find_pairs(engine, installed, artefact, machine, arguments.tools)
    job = Job(
        artefact=artefact,
        placement=_place(artefact, machine, arguments),
        served_name=arguments.served_name or usual_name(arguments.model),
        host=arguments.host,
        port=arguments.port,
        pairs=pairs,
    )
    command = [engine.program, *engine.build(job), *shlex.split(arguments.engine_args)]
    _remark(job)
    if arguments.is_printed or not engine.is_started:
        if installed is None:
            complain(f"{engine.title} is not installed here: {engine.install}")
        say(shlex.join(command))
        return 0
    if installed is None:
        raise ServeError(
            f"{engine.title} is not installed here, so no server was started: {engine.install}. "
            "--print prints the command for another machine"
        )
    return _start([*installed.start, *command[1:]])


def usual_name(model: Path) -> str:
    """What clients call a model, where nothing else is said."""
    return model.resolve().name


def _check_numbers(arguments: Arguments) -> None:
    least = {
        "port": 1,
        "gpus": 0,
        "tensor_parallel_size": 1,
        "max_model_len": 1,
        "max_new_tokens": 1,
        "long_prompt": 0,
    }
    for name, bound in least.items():
        value = vars(arguments)[name]
        if value is not None and value < bound:
            raise ServeError(f"{name} is {value}; set it to {bound} or more")
    for name in ("tolerance", "timeout", "gpu_memory"):
        value = vars(arguments)[name]
        if value is not None and not value > 0:
            raise ServeError(f"{name} is {value}; set it to a number above 0")


def _find_machine(arguments: Arguments, detect_machine: Callable[[], Machine]) -> tuple[int, int]:
    """GPUs to use, and bytes of each; 0 where these are unknown."""
    num_gpus, gpu_memory = arguments.gpus, arguments.gpu_memory
    if num_gpus is None or (num_gpus and gpu_memory is None):
        machine = detect_machine()
        num_gpus = machine.num_gpus if num_gpus is None else num_gpus
        gpu_memory = machine.gpu_memory / 1e9 if gpu_memory is None else gpu_memory
    return num_gpus, int((gpu_memory or 0) * 1e9)


def choose_engine(name: str | None, artefact: Artefact) -> tuple[Engine, Installed | None]:
    """The engine that is asked for, or the one that is installed, or vLLM.

    Raises:
        ServeError: several are installed and none is asked for.
    """
    by_name = {engine.name: engine for engine in ENGINES}
    if name is not None:
        return by_name[name], find_installed(by_name[name])
    readers = [by_name["llamacpp"]] if "gguf" in artefact.features else list(ENGINES)
    found = [one for one in map(find_installed, readers) if one is not None]
    # llama.cpp reads no folders, so beside another engine it is no choice for one.
    if "gguf" not in artefact.features:
        found = [one for one in found if one.engine.name != "llamacpp"]
    if len(found) > 1:
        names = ", ".join(one.engine.name for one in found)
        raise ServeError(f"{names} are installed; say which one with --engine")
    if found:
        return found[0].engine, found[0]
    return readers[0], None


def _find_pairs(
    engine: Engine,
    installed: Installed | None,
    artefact: Artefact,
    machine: tuple[int, int],
    tools: str | None,
) -> list[KnownPair]:
    """What is known of this pair.

    Raises:
        ServeError: it does not work.
    """
    features = set(artefact.features)
    if not machine[0]:
        # Elsewhere the command may run on GPUs, so a printed one is judged for these.
        features |= {"cpu"} if installed is not None else set()
    if tools:
        features |= {"tools", f"{tools} tools"}
    version = installed.version if installed is not None else ""
    pairs = find_pairs(engine.name, version, features)
    refused = [pair for pair in pairs if pair.verdict == "refused"]
    if refused:
        known = version or NEWEST_SEEN.get(engine.name, "")
        title = f"{engine.title} {known}".strip()
        reasons = "; ".join(f"{pair.reason} [{pair.source}]" for pair in refused)
        remedies = "; or ".join(dict.fromkeys(pair.remedy for pair in refused))
        raise ServeError(
            f"{artefact.path} is not served with {title}: {reasons}. Do this: {remedies}"
        )
    return pairs


def _place(artefact: Artefact, machine: tuple[int, int], arguments: Arguments) -> Placement | None:
    if artefact.shape is None:
        return None
    return place(
        artefact.shape,
        weight_bytes=artefact.weight_bytes,
        num_gpus=machine[0],
        gpu_memory=machine[1],
        tensor_parallel_size=arguments.tensor_parallel_size,
        context_length=arguments.max_model_len,
    )


def _remark(job: Job) -> None:
    """Say on stderr what a user should know."""
    placement = job.placement
    if placement is not None and placement.num_spare_gpus:
        size, num_spare = placement.tensor_parallel_size, placement.num_spare_gpus
        complain(
            f"{size} {'GPU holds' if size == 1 else 'GPUs hold'} the model and a dialogue of "
            f"{placement.context_length:,} tokens; {num_spare} {'is' if num_spare == 1 else 'are'} "
            "left, for a second server or --tensor_parallel_size"
        )
    shape = job.artefact.shape
    if placement is not None and shape and placement.context_length < shape.context_length:
        complain(
            f"dialogues may have {placement.context_length:,} tokens of the model's "
            f"{shape.context_length:,}"
        )
    for pair in job.pairs:
        if pair.verdict == "noted":
            complain(f"known of {pair.engine} {pair.versions}: {pair.reason} [{pair.source}]")


def _start(command: list[str]) -> int:
    """Become the engine: its output, its signals and its exit code are the command's."""
    complain(shlex.join(command))
    try:
        os.execv(command[0], command)
    except OSError as error:
        raise ServeError(f"{command[0]} cannot be started ({error.strerror})") from error


def run_check(arguments: Arguments, artefact: Artefact) -> Deferred:
    """Find the server that is asked."""
    if artefact.shape is None:
        raise ServeError(
            f"{artefact.path} is a GGUF file, whose weights are not read here; give the folder "
            "that it was made from, and a --tolerance that the quantisation needs"
        )
    server = find_server(
        arguments.check,
        model=arguments.served_name or "",
        usual_name=usual_name(arguments.model),
        timeout_seconds=arguments.timeout,
        api_key=_read_key(arguments.api_key_file),
    )
    log_to_screen()
    given = {"arguments": arguments, "artefact": artefact, "server": server}
    return Deferred("check a server", given)


def _read_key(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ServeError(f"api_key_file is {path}, which cannot be read ({error})") from error
