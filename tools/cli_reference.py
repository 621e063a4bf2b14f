"""Generate docs/cli.md, the reference of the command line, from its help.

python tools/cli_reference.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from knnstore.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"


def reference() -> str:
    """Return the whole page."""
    lines = [
        "# Commands",
        "",
        "What `knnstore COMMAND --help` says, made by `python tools/cli_reference.py`. Defaults may come from a",
        "[knnstore.toml](configuration.md).",
        "",
    ]
    with click.Context(main, info_name="knnstore", **main.context_settings) as context:
        lines += [*_options(main, context), ""]
        for name, command in main.commands.items():
            with click.Context(command, info_name=name, parent=context) as inner:
                lines += [f"## knnstore {name}", "", *_about(command), "", *_usage(command, inner), ""]
                lines += [*_options(command, inner), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _about(command: click.Command) -> Iterator[str]:
    for paragraph in (command.help or "").replace("\f", "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield from ["```text", *(line.strip() for line in paragraph.splitlines()[1:]), "```", ""]
        else:
            yield from [" ".join(paragraph.split()), ""]


def _usage(command: click.Command, context: click.Context) -> list[str]:
    pieces = " ".join(command.collect_usage_pieces(context)).rstrip()
    return ["```text", f"knnstore {context.info_name} {pieces}", "```"]


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    yield "| option | meaning |"
    yield "|---|---|"
    for parameter in command.get_params(context):
        record: Any = parameter.get_help_record(context)
        if record is not None and record[0]:  # an argument for further values of an option has no name
            option, meaning = (" ".join(text.replace("|", "\\|").split()) for text in record)
            yield f"| `{option}` | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"{PAGE.name}: {len(main.commands)} commands")
