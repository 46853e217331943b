"""Builds the site: the pages of docs/ and those that are made from the source.

python docs/build_site.py     # into build/site; `make docs` does it in an environment of its own
"""

import pathlib
import shutil
import subprocess
import sys

import recipe_pages

ROOT = pathlib.Path(__file__).parent.parent
PAGES, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"


def collect(folder: pathlib.Path) -> None:
    """Writes all pages, figures and styles below `folder`, which is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__*"))
    for name, text in recipe_pages.make_pages().items():
        page = folder / name
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")


def main() -> None:
    collect(PAGES)
    command = ["-m", "zensical", "build", "--strict", "--clean"]
    status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if status:
        sys.exit("error: the site has broken links; the warnings above name them.")
    print(f"The site: {SITE}/index.html")
    print(f"With its search: python -m http.server --directory {SITE}")


if __name__ == "__main__":
    main()
