"""Fill in the parts of docs/ that the code decides: fields of the commands, names, options of the command line.

    python scripts/make_docs.py            # writes them
    python scripts/make_docs.py --check    # exit code 1 where something would change

Such a part stands between ``<!-- made: WHAT NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from mlmeta.cli import cli
from mlmeta.commands import catalog
from mlmeta.commands.documents import TestCommands, TrainCommands

ROOT = Path(__file__).parent.parent
PART = re.compile(r"(<!-- made: (\w+) ?(\w*) -->\n).*?(<!-- end -->)", re.DOTALL)
FIELDS_HEAD = "| field | type | default | allowed | meaning |\n|---|---|---|---|---|"
# Larger limits only keep numbers within 64 bits.
MOST_SHOWN = 2**62
COMMON_OPTIONS = ("--debug", "--help")
# What a reference of the schema leads to: words, and where they are explained.
LINKS = {
    "model": "[object](#model)",
    "criterion": "[object](#criterion-optimizer-scheduler)",
    "optimizer": "[object](#criterion-optimizer-scheduler)",
    "scheduler": "[object](#criterion-optimizer-scheduler)",
    "transform": "[object or list](#transform-and-target_transform)",
    "image_op": "[objects](#image_ops)",
    "TestSection": "[object](#test)",
}


def make_fields(name: str) -> str:
    """Return the fields of an object of the commands as a table: of a model itself, or of one of its definitions."""
    models = {"TrainCommands": TrainCommands, "TestCommands": TestCommands}
    whole = models.get(name, TrainCommands).model_json_schema()
    schema = whole if name in models else whole["$defs"][name]
    required = schema.get("required", [])
    rows = [FIELDS_HEAD]
    for key, field in schema["properties"].items():
        default = "required" if key in required else f"`{json.dumps(find_default(models.get(name), key, field))}`"
        meaning = field.get("description", "")
        rows.append(f"| `{key}` | {name_type(field)} | {default} | {describe_allowed(field)} | {meaning} |")
    return "\n".join(rows)


def find_default(model: type[TrainCommands | TestCommands] | None, key: str, field: Mapping[str, Any]) -> Any:
    """Return a field's default; pydantic does not put defaults that are made anew each time into the schema."""
    if "default" in field or model is None:
        return field.get("default", [])
    value = model.model_fields[key].get_default(call_default_factory=True, validated_data={})
    return value.model_dump() if hasattr(value, "model_dump") else value


def name_type(field: Mapping[str, Any]) -> str:
    """Return in a word or two what a field holds."""
    if options := field.get("anyOf"):
        words = [name_type(option) for option in options]
        return " or ".join(sorted(dict.fromkeys(words), key=lambda word: word == "null"))
    if role := field.get("x-mlmeta-role"):
        return LINKS[role]
    if "$ref" in field:
        return LINKS[field["$ref"].rpartition("/")[2]]
    if chosen_by := field.get("discriminator", {}).get("propertyName"):
        return {"source": "[object](#data)", "rule": "[object](#stop)"}[chosen_by]
    if "patternProperties" in field:
        return "[object](#space)"
    if field["type"] == "array":
        return f"list of {name_type(field['items'])}{'' if 'x-mlmeta-role' in field['items'] else 's'}"
    return {"integer": "whole number", "boolean": "true or false"}.get(field["type"], field["type"])


def describe_allowed(field: Mapping[str, Any]) -> str:
    """Return which values of its type a field may have; empty for all."""
    parts = [describe_allowed(option) for option in field.get("anyOf", [])]
    if "enum" in field or "const" in field:
        parts.append(" or ".join(f"`{json.dumps(value)}`" for value in field.get("enum", [field.get("const")])))
    signs = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{sign} {field[key]:,}" for key, sign in signs.items() if key in field and field[key] < MOST_SHOWN]
    parts.append(" and ".join(limits))
    if field.get("minLength") and "maxLength" in field:
        parts.append(f"{field['minLength']} to {field['maxLength']} characters")
    return ", ".join(part for part in parts if part)


def make_names(role: str) -> str:
    """Return the names of a role, and those that may not be used, each with the reason."""
    lines = [", ".join(f"`{name}`" for name in catalog.list_names(role))]
    if reasons := catalog.list_unsupported(role):
        lines += ["", "Not supported:", "", "| name | reason |", "|---|---|"]
        lines += [f"| `{name}` | {reason} |" for name, reason in sorted(reasons.items())]
    return "\n".join(lines)


def make_versions(_: str) -> str:
    """Return the versions of the libraries that the names were read off."""
    return f"Read off {', '.join(f'{library} {version}' for library, version in catalog.made_with().items())}."


def make_options(_: str) -> str:
    """Return every command of the command line with its options."""
    return "\n".join(line for name in sorted(cli.commands) for line in list_options(name, cli.commands[name]))


def list_options(name: str, command: click.Command) -> Iterator[str]:
    """Yield the lines about one command."""
    context = click.Context(command, info_name=f"mlmeta {name}")
    yield f"### mlmeta {name}\n"
    # Click rewraps no paragraph that begins with \b.
    described, _, kept = inspect.cleandoc(command.help or "").partition("\b\n")
    yield f"{described.strip()}\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n{kept}".rstrip("\n") + "\n```\n"
    options = [one for one in command.params if isinstance(one, click.Option) and one.opts[0] not in COMMON_OPTIONS]
    if records := [record for option in options if (record := option.get_help_record(context))]:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| `{escape(option)}` | {escape(meaning)} |" for option, meaning in records)
        yield ""


def escape(text: str) -> str:
    """Return text for the cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


MAKERS = {"fields": make_fields, "names": make_names, "versions": make_versions, "options": make_options}


def fill_in(text: str) -> str:
    """Return a page with its made parts as the code has them now."""
    return PART.sub(lambda part: f"{part[1]}\n{MAKERS[part[2]](part[3])}\n\n{part[4]}", text)


def main() -> None:
    """Write the documentation, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file would change")
    check = parser.parse_args().check
    texts = {file: file.read_text(encoding="utf-8") for file in sorted(ROOT.glob("docs/*.md"))}
    stale = {file: filled for file, text in texts.items() if (filled := fill_in(text)) != text}
    for file, text in stale.items():
        print(f"{file.relative_to(ROOT)} {'would change' if check else 'written'}")
        if not check:
            file.write_text(text, encoding="utf-8")
    sys.exit(int(check and bool(stale)))


if __name__ == "__main__":
    main()
