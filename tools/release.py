"""Check that version, changelog and the state of git agree, before a release is built: `make release`."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version_of(root: Path) -> str:
    """Return the version that is to be released, as pyproject.toml has it."""
    return str(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def copies(root: Path) -> dict[str, str | None]:
    """Return the version that each file says which repeats it; None where a file says none."""
    patterns = {
        "CHANGELOG.md": r"^## \[([^\]]+)\]",
        "CITATION.cff": r"^version: (\S+)$",
        "conda/recipe.yaml": r'^  version: "([^"]+)"$',
    }
    found = {}
    for name, pattern in patterns.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else None
    return found


def obstacles(root: Path) -> Iterator[str]:
    """Yield what stands against a release, each with what to do."""
    version = version_of(root)
    for name, copy in copies(root).items():
        if copy != version:
            yield f"{name} says {copy}, and pyproject.toml {version}; make them the same"
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$", changelog, re.MULTILINE):
        yield f"CHANGELOG.md has no date for {version}; write ## [{version}] - YYYY-MM-DD"
    if changes := _git(root, "status", "--porcelain"):
        yield f"git has changes that are not committed; commit them:\n{changes}"
    tag = f"v{version}"
    tagged = _git(root, "rev-list", "-n", "1", tag) if _git(root, "tag", "--list", tag) else ""
    if tagged and tagged != _git(root, "rev-parse", "HEAD"):
        yield f"the tag {tag} is on another commit, so {version} is out already; raise the version"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    if found := list(obstacles(ROOT)):
        sys.exit("\n".join(["This cannot be released:", *(f"- {obstacle}" for obstacle in found)]))
    print(f"{version_of(ROOT)} can be released")
