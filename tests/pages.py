"""What tests read from README.md, CONTRIBUTING.md and docs/: links, commands, Python, and what commands are said to print."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# The page of clusters has tests of its own, tests/cluster/; the one of GPUs is for machines that have one.
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
LINKED = (*PAGES, ROOT / "cluster" / "README.md", ROOT / "studies" / "results" / "gpu" / "README.md")


def blocks(text: str, language: str) -> list[str]:
    """Return the contents of a page's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def inline(text: str) -> list[str]:
    """Return what stands between single backticks, outside of code blocks."""
    return [
        re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]


def commands(text: str) -> list[list[str]]:
    """Return the words of every command of a page: of its bash blocks, with their variables filled in, and inline."""
    found, lines, values = [], [], {}
    for block in blocks(text, "bash"):
        lines += block.replace("\\\n", " ").splitlines()
    lines += [code for code in inline(text) if re.match(r"(backlink-ray|python) ", code)]
    for line in lines:
        for name, value in values.items():
            line = line.replace(f"${name}", value)
        if assignment := re.fullmatch(r"(\w+)=(\S+)", line):
            values[assignment[1]] = assignment[2]
        else:
            found += [shlex.split(part, comments=True) for part in line.split("&&")]
    return [[words[0].removeprefix(".venv/bin/"), *words[1:]] for words in found if words]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Return a page's relative links that lead to no file, or to no heading of it."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            found.append(target)
    return found


def unseen(shown: str, output: str) -> list[str]:
    """Return the lines of a block that no line of the output begins with or, without `...`, equals; numbers may differ."""

    def masked(line: str) -> str:
        return re.sub(r"\d+(\.\d+)?", "0", line)

    lines = [masked(line) for line in output.splitlines()]
    wanted = [masked(line) for line in shown.splitlines() if line != "..."]
    return [
        w for w in wanted if not any(line.startswith(w[:-4]) if w.endswith(" ...") else line == w for line in lines)
    ]
