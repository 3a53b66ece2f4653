"""What the site has besides the pages of this folder: results of benchmarks, contributing, changes.

They stand where they are of use without a site; here they are read in, not copied, so that nothing
is there twice. Links between pages are written as they work in the repository, and are mended.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
#: Files from elsewhere in the repository → their places in the site.
BORROWED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "art/digits_resnet.png": "art/digits_resnet.png",
    "benchmarks/README.md": "benchmarks/index.md",
    **{
        str(path.relative_to(ROOT)): str(path.relative_to(ROOT))
        for path in sorted((ROOT / "benchmarks/results").iterdir())
        if path.suffix in {".md", ".png", ".svg"}
    },
}
PLACES = {(ROOT / source).resolve(): place for source, place in BORROWED.items()}
PLACES[ROOT / "README.md"] = "index.md"  # which says the same, with the site's pages
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
LOADED = re.compile(r"<(?:script|link|img)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: Any) -> Files:
    """Add the borrowed files."""
    for source, place in BORROWED.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_nav(nav: Any, config: Any, files: Files) -> Any:
    """Nothing is left out: every page of benchmark results is linked from their first page."""
    index = (ROOT / "benchmarks/README.md").read_text("utf-8")
    for source in BORROWED:
        name = source.removeprefix("benchmarks/")
        if name.startswith("results/") and name.endswith(".md") and f"]({name})" not in index:
            raise PluginError(f"benchmarks/README.md does not link to {name}")
    return nav


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links that work in the repository work in the site."""
    here = Path(page.file.abs_src_path).parent
    up = "../" * page.file.src_uri.count("/")

    def mend(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        if target in PLACES:
            place = PLACES[target]
        elif target.is_relative_to(ROOT / "docs"):
            place = target.relative_to(ROOT / "docs").as_posix()
        else:
            return found[0]  # and the build will say that it leads nowhere
        return f"{found[1]}{up}{place}{found[3]}"

    return LINK.sub(mend, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Readers' browsers fetch nothing from anywhere else."""
    for tag in LOADED.findall(output):
        if 'rel="canonical"' not in tag:
            raise PluginError(f"{page.file.src_uri} would load something from elsewhere: {tag}")
    return output
