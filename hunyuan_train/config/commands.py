"""`hunyuan-train schema`: the JSON schema of the YAML file."""

import argparse
import json

from hunyuan_train.config.json_schema import describe_file
from hunyuan_train.terminal import say


def add_schema_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command; it sets `run`, which takes the parsed arguments."""
    schema = subparsers.add_parser("schema")
    schema.formatter_class = argparse.RawDescriptionHelpFormatter
    schema.description = (
        "Print a JSON schema of the YAML file, by which editors complete and check it:\n\n"
        "  hunyuan-train schema > hunyuan-train.schema.json\n\n"
        "and as first line of the YAML file, for VS Code's YAML extension and others:\n\n"
        "  # yaml-language-server: $schema=./hunyuan-train.schema.json"
    )
    schema.set_defaults(run=run_schema)


def run_schema(_: argparse.Namespace) -> int:
    """Print it."""
    say(json.dumps(describe_file(), indent=1, ensure_ascii=False))
    return 0
