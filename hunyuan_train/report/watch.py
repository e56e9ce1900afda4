"""`hunyuan-train watch`: a live page about runs, while they go on and after."""

import argparse
import logging
import secrets
import threading
from pathlib import Path

from hunyuan_train.errors import ConfigError
from hunyuan_train.log import log_to_screen
from hunyuan_train.report.server import PageServer, is_loopback
from hunyuan_train.report.watched import WatchedRuns, find_runs

logger = logging.getLogger(__name__)

PORT = 8765
PORTS_TRIED = 20  # from the usual one on, where no port is asked for
TOKEN_BYTES = 24
MIN_TOKEN_CHARACTERS = 16
WILDCARDS = {"0.0.0.0": "THIS_HOST", "::": "THIS_HOST"}  # in a link, a visitor's name for us


def add_watch_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    watch = subparsers.add_parser("watch")
    watch.formatter_class = argparse.RawDescriptionHelpFormatter
    watch.description = (
        "Serve a page about one run or several: state, time left, curves with zoom and smoothing,\n"
        "experts, answers, memory, hosts, warnings and the log. It only reads the runs' files.\n\n"
        "  hunyuan-train watch runs/my            one run\n"
        "  hunyuan-train watch runs               every run in a folder, compared by colour\n\n"
        "From another computer, over ssh: ssh -L 8765:localhost:8765 THIS_HOST, then open\n"
        "http://localhost:8765. Or `--host 0.0.0.0`, where a token is part of the link."
    )
    watch.add_argument(
        "runs", nargs="*", type=Path, default=[Path("runs")], metavar="RUN",
        help="output_dir of a run, or a folder of runs (default: runs)",
    )  # fmt: skip
    watch.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default: 127.0.0.1, this machine)"
    )
    watch.add_argument("--port", type=int, help=f"default: {PORT}, or the next free one (0: any)")
    watch.add_argument(
        "--token_file", type=Path, metavar="FILE",
        help="ask visitors for the token in this file, also on this machine, which others may "
        "share. Without it, a host other than loopback gets a new token each time",
    )  # fmt: skip
    watch.set_defaults(run=run_watch)


def run_watch(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    log_to_screen()
    server = open_server(arguments)
    server.runs.start()
    server.start()
    logger.info("%s", describe_server(server))
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.shutdown()
    return 0


def open_server(arguments: argparse.Namespace) -> PageServer:
    """The server, at its port but not yet serving.

    Raises:
        ConfigError: there is nothing to watch, or nothing can be served there.
    """
    check_runs(arguments.runs)
    token = read_token(arguments.token_file) if arguments.token_file else None
    if token is None and not is_loopback(arguments.host):
        token = secrets.token_urlsafe(TOKEN_BYTES)
    ports = [arguments.port] if arguments.port is not None else range(PORT, PORT + PORTS_TRIED)
    runs = WatchedRuns(arguments.runs)
    failure: OSError | OverflowError | None = None
    for port in ports:
        try:
            return PageServer(arguments.host, port, runs, token)
        except (OSError, OverflowError) as error:
            failure = error
    raise ConfigError(
        f"nothing can be served at {arguments.host} port {ports[0]} ({failure}); give an address "
        "of this machine with --host, and a port that is free with --port"
    ) from failure


def check_runs(folders: list[Path]) -> None:
    """Refuse folders that are not there, and where there is no run to come.

    Raises:
        ConfigError: naming the folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"RUN is {folder}, which is no folder; give the output_dir of a run, such as "
                "runs/tiny, or a folder of runs"
            )
    if not find_runs(folders):
        raise ConfigError(
            f"there is no run in {', '.join(map(str, folders))}; start one with `hunyuan-train "
            "train`, or give its output_dir"
        )


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        ConfigError: it cannot be read, or is no safe token.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--token_file is {path}, which cannot be read: {error}") from error
    if len(token) < MIN_TOKEN_CHARACTERS or not all(one.isalnum() or one in "-_" for one in token):
        raise ConfigError(
            f"--token_file is {path}; a token is {MIN_TOKEN_CHARACTERS} letters, digits, - or _ at "
            "least, such as `openssl rand -hex 24` makes"
        )
    return token


def describe_server(server: PageServer) -> str:
    """The link that opens the page, and how to end."""
    host, port = server.named_host, server.server_address[1]
    name = WILDCARDS.get(host, f"[{host}]" if ":" in host else host)
    link = f"http://{name}:{port}/" + (f"?token={server.token}" if server.token else "")
    number = len(server.runs.current())
    return f"watching {number} {'run' if number == 1 else 'runs'}: {link}  (Ctrl-C ends)"
