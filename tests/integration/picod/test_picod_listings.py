"""GET /api/files: trees, patterns, pages."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from .conftest import Folder, PicoD, problem


@pytest.fixture(scope="module")
def tree(shared_picod: PicoD) -> Folder:
    """A tree that only listings look at."""
    assert shared_picod.call("POST", "/api/fs/mkdir", {"path": "tree"}).status == 201
    tree = Folder(shared_picod, "tree")
    tree.shell(
        "mkdir -p src/pkg/deep .git/objects docs; touch a.py b.txt src/c.py src/pkg/d.py src/pkg/deep/e.py"
        " src/pkg/deep/f.txt .git/config.py .git/objects/x.py docs/.hidden.py docs/g.md; ln -s src/c.py link.py"
    )
    return tree


def names(tree: Folder, query: str) -> list[str]:
    answer = tree.get("files?path={}&" + query)
    assert answer.status == 200, answer.body
    return [entry["path"].removeprefix("tree/") for entry in answer.json()["files"]]


def test_a_whole_tree_in_order(tree: Folder) -> None:
    every = names(tree, "recursive=true")
    assert every == sorted(every, key=lambda path: path.split("/"))
    assert len(every) == 17
    assert names(tree, "depth=1") == [".git", "a.py", "b.txt", "docs", "link.py", "src"]
    assert names(tree, "limit=100") == names(tree, "depth=1") == names(tree, "recursive=false")
    assert "src/pkg/deep" in names(tree, "depth=3")
    assert "src/pkg/deep/e.py" not in names(tree, "depth=3")
    (link,) = [e for e in tree.get("files?path={}&depth=1").json()["files"] if e["name"] == "link.py"]
    assert (link["type"], link["target"]) == ("symlink", "src/c.py")


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*.py", ["a.py", "link.py"]),
        ("**/*.py", ["a.py", "link.py", "src/c.py", "src/pkg/d.py", "src/pkg/deep/e.py"]),
        ("src/**/*.txt", ["src/pkg/deep/f.txt"]),
        ("src/*/d.py", ["src/pkg/d.py"]),
        ("**/deep", ["src/pkg/deep"]),
        (
            "src/pkg/**",
            ["src/pkg", "src/pkg/d.py", "src/pkg/deep", "src/pkg/deep/e.py", "src/pkg/deep/f.txt"],
        ),
        (".git/**/*.py", [".git/config.py", ".git/objects/x.py"]),
        ("**/.*.py", ["docs/.hidden.py"]),
        ("?.[pt]*", ["a.py", "b.txt"]),
        ("[!a].*", ["b.txt"]),
        ("nothing/**", []),
    ],
)
def test_globs(tree: Folder, glob: str, found: list[str]) -> None:
    assert names(tree, "glob=" + quote(glob)) == found


def test_pages_give_everything_once(tree: Folder) -> None:
    for query in ("recursive=true", "glob=" + quote("**/*.py"), "depth=2"):
        whole, pages, cursor = names(tree, query), [], ""
        for _ in range(30):
            answer = tree.get("files?path={}&limit=2&" + query + cursor).json()
            pages += [entry["path"].removeprefix("tree/") for entry in answer["files"]]
            if "next_cursor" not in answer:
                break
            assert len(answer["files"]) == 2
            cursor = "&cursor=" + quote(answer["next_cursor"])
        assert pages == whole


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=10001", "limit=x", "depth=0", "depth=1e3", "cursor=!!", "cursor=", "cursor=Ly8v",
        "glob=", "glob=..%2Fx", "glob=%00", "recursive=1", "recursive=true&x=y", "recursive=true&path=..",
        "recursive=true&path=tree/a.py",
    ],
)  # fmt: skip
def test_a_bad_listing_is_a_clear_400(tree: Folder, query: str) -> None:
    assert problem(tree.picod.call("GET", f"/api/files?{query}")) == (400, "invalid")


def test_a_pattern_that_is_hard_to_match_is_no_trap(tree: Folder, folder: Folder) -> None:
    folder.shell("touch " + "a" * 250)
    assert folder.get("files?path={}&glob=" + "*a" * 120 + "b").json()["files"] == []


def test_plain_listings_are_as_they_were(tree: Folder) -> None:
    ((first, *_),) = tree.get("files?path={}").json().values()
    assert sorted(first) == ["is_dir", "mode", "modified", "name", "size"]
