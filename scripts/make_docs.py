"""Write the parts of the documentation that the code decides: the README's reference, and docs/names.md.

python scripts/make_docs.py            # writes both
python scripts/make_docs.py --check    # exit code 1 where something would change
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlmeta.commands import catalog
from mlmeta.commands.documents import TestCommands, TrainCommands

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- reference: made by scripts/make_docs.py -->", "<!-- end of reference -->"


def make_reference() -> str:
    """Return the tables of the commands' fields, from the JSON Schema."""
    parts = [
        "### Train commands\n",
        make_table(TrainCommands.model_json_schema()),
        "\n### Test commands\n",
        make_table(TestCommands.model_json_schema()),
        "\n### `data`, by `source`\n",
    ]
    definitions = TrainCommands.model_json_schema()["$defs"]
    for name in ("FolderData", "ManifestData", "TorchvisionData", "SampleData"):
        parts += [f"\n`{definitions[name]['properties']['source']['const']}`\n", make_table(definitions[name])]
    parts.append("\n### `stop`, by `rule`\n")
    for name in ("MedianRule", "TopFractionRule", "CurveRule"):
        parts += [f"\n`{definitions[name]['properties']['rule']['const']}`\n", make_table(definitions[name])]
    return "\n".join(parts)


def make_table(schema: dict[str, Any]) -> str:
    """Return the fields of one object as a Markdown table."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    required = schema.get("required", [])
    for key, field in schema["properties"].items():
        default = "required" if key in required else f"`{json.dumps(find_default(key, field))}`"
        rows.append(f"| `{key}` | {default} | {field.get('description', '')} |")
    return "\n".join(rows)


def find_default(key: str, field: dict[str, Any]) -> Any:
    """Return a field's default; pydantic does not put defaults that are made anew each time into the schema."""
    if "default" in field:
        return field["default"]
    made = TrainCommands.model_fields.get(key) or TestCommands.model_fields.get(key)
    value = made.get_default(call_default_factory=True, validated_data={}) if made else None
    return value.model_dump() if hasattr(value, "model_dump") else value


def make_names() -> str:
    """Return the page of all names that commands may use, and of those that they may not."""
    return "\n".join(list_names()) + "\n"


def list_names() -> Iterator[str]:
    """Yield the lines of docs/names.md."""
    versions = ", ".join(f"{library} {version}" for library, version in catalog.made_with().items())
    yield "# Names that commands may use\n"
    yield f"Made by `scripts/make_docs.py` from the catalog, which was read off {versions}."
    yield "`mlmeta schema` has the arguments of each.\n"
    for role in catalog.ROLES:
        yield f"## {role.replace('_', ' ').capitalize()}\n"
        yield ", ".join(f"`{name}`" for name in catalog.list_names(role)) + "\n"
        reasons = catalog.list_unsupported(role)
        if reasons:
            yield "Not supported:\n"
            yield "| name | because it |\n|---|---|"
            yield from (f"| `{name}` | {reason} |" for name, reason in sorted(reasons.items()))
            yield ""


def main() -> None:
    """Write the documentation, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file would change")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    head, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    texts = {
        readme: f"{head}{BEGIN}\n\n{make_reference()}\n\n{END}{tail}",
        ROOT / "docs" / "names.md": make_names(),
    }
    stale = [file for file, text in texts.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        print(f"{file.relative_to(ROOT)} {'would change' if check else 'written'}")
        if not check:
            file.write_text(texts[file], encoding="utf-8")
    sys.exit(int(check and bool(stale)))


if __name__ == "__main__":
    main()
