from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flq.apps import bundle
from flq.apps.bundle import Packed, pack, unpack
from flq.apps.patterns import compile_patterns
from flq.apps.project import load_project
from flq.errors import BundleError
from flq.wire.ids import ObjectHash

PYPROJECT = """
[project]
name = "a"
[tool.flq.app]
serverapp = "a.server:app"
clientapp = "a.client:app"
include = {include}
exclude = {exclude}
"""


def folder_with(root: Path, *names: str, include: list[str] | None = None, exclude: list[str] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "pyproject.toml").write_text(PYPROJECT.format(include=include or [], exclude=exclude or []))
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    return root


def packed(root: Path, **options: Any) -> Packed:
    return pack(load_project(root), **options)


def hashed(data: bytes) -> ObjectHash:
    return ObjectHash(hashlib.sha256(data).digest())


class TestPack:
    def test_source_and_text_are_packed_and_the_rest_is_not(self, tmp_path: Path) -> None:
        root = folder_with(
            tmp_path,
            *("a/server.py", "a/deep/er/model.py", "README.md", "LICENSE", "conf.yaml", "x.yml", "d.json", "e.jsonl"),
            *("data.csv", "model.npz", "notes.txt", ".env", ".git/config.py", "a/__pycache__/x.py", "a/x.pyc"),
            *("tests/test_a.py", "a/test_b.py", "a/b_test.py", "conftest.py", ".venv/lib/x.py", "venv/y.py"),
            *("build/lib/a.py", "dist/a.py", "a.egg-info/x.py", "node_modules/x.json", "a/.hidden.py"),
        )
        assert packed(root).files == (
            "LICENSE",
            "README.md",
            "a/deep/er/model.py",
            "a/server.py",
            "conf.yaml",
            "d.json",
            "e.jsonl",
            "pyproject.toml",
            "x.yml",
        )

    def test_is_deterministic(self, tmp_path: Path) -> None:
        one = packed(folder_with(tmp_path / "one", "a.py", "b/c.py", "b.py"))
        other = folder_with(tmp_path / "other", "b.py", "b/c.py", "a.py")
        os.utime(other / "a.py", (1, 1))
        (other / "a.py").chmod(0o700)
        (other / "unseen.txt").touch()
        assert packed(other) == one
        assert one.hash == hashed(one.data)
        (other / "a.py").write_text("# changed\n")
        assert packed(other).hash != one.hash

    def test_data_files_are_included_by_pattern(self, tmp_path: Path) -> None:
        names = "data/a.csv", "data/deep/b.csv", "data/c.npz", "d.csv", "tests/data/e.csv", "tests/test_x.py"

        def chosen(*include: str) -> set[str]:
            return set(packed(folder_with(tmp_path, *names, include=list(include))).files) - {"pyproject.toml"}

        assert chosen("*.csv") == {"data/a.csv", "data/deep/b.csv", "d.csv"}
        assert chosen("data/*.csv") == {"data/a.csv"}
        assert chosen("data/**/*.csv") == {"data/a.csv", "data/deep/b.csv"}
        assert chosen("/data/") == {"data/a.csv", "data/deep/b.csv", "data/c.npz"}
        assert chosen("data/*", "!data/*.npz") == {"data/a.csv", "data/deep/b.csv"}
        assert chosen("tests/data/*.csv") == {"tests/data/e.csv"}

    def test_what_the_project_excludes_is_out_even_if_it_is_included(self, tmp_path: Path) -> None:
        root = folder_with(
            tmp_path, "a.py", "b.py", "big/c.py", "big/d.csv", include=["*.csv"], exclude=["b.py", "big/"]
        )
        assert packed(root).files == ("a.py", "pyproject.toml")

    def test_what_git_ignores_is_out_unless_it_is_included(self, tmp_path: Path) -> None:
        root = folder_with(tmp_path, "a.py", "secret.json", "out/b.py", "data/c.csv", include=["data/*.csv"])
        (root / ".gitignore").write_text("# mine\nsecret.*\n/out\ndata/\n\n")
        assert packed(root).files == ("a.py", "data/c.csv", "pyproject.toml")

    @pytest.mark.parametrize("name", ["link.py", "pkg"])
    def test_links_are_refused(self, tmp_path: Path, name: str) -> None:
        outside = folder_with(tmp_path / "outside", "x.py")
        root = folder_with(tmp_path / "root", "a.py")
        (root / name).symlink_to(outside / ("x.py" if name.endswith("py") else ""))
        with pytest.raises(BundleError, match=f"{name} is a link"):
            packed(root)
        folder_with(root, exclude=[name])
        assert packed(root).files == ("a.py", "pyproject.toml")

    def test_links_that_would_not_be_packed_do_no_harm(self, tmp_path: Path) -> None:
        root = folder_with(tmp_path, "a.py", include=["data/*.csv"])
        (root / ".venv").symlink_to(tmp_path)
        (root / "data.txt").symlink_to(root / "a.py")
        assert packed(root).files == ("a.py", "pyproject.toml")

    def test_special_files_are_refused(self, tmp_path: Path) -> None:
        root = folder_with(tmp_path, "a.py")
        os.mkfifo(root / "pipe.py")
        with pytest.raises(BundleError, match=r"pipe\.py is no regular file"):
            packed(root)

    def test_limits_are_told_with_the_largest_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = folder_with(tmp_path, "a.py", "big.json")
        (root / "big.json").write_bytes(os.urandom(3 << 20))
        with pytest.raises(BundleError, match=r"larger than 2 MB; the largest files are big\.json") as caught:
            packed(root, max_bytes=2 << 20)
        assert "exclude" in str(caught.value.hint)
        monkeypatch.setattr(bundle, "MAX_FILES", 2)
        with pytest.raises(BundleError, match="3 files"):
            packed(root)
        monkeypatch.setattr(bundle, "MAX_UNPACKED_BYTES", 1000)
        monkeypatch.setattr(bundle, "MAX_FILES", 9)
        with pytest.raises(BundleError, match="larger than"):
            packed(root)

    def test_too_deep_a_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="levels deep"):
            packed(folder_with(tmp_path, "/".join("abcdefghij") + "/k.py"))

    @pytest.mark.parametrize("name", ["a\nb.py", "a:b.py", "a\\b.py"])
    def test_names_that_are_different_elsewhere_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(BundleError, match="not allowed"):
            packed(folder_with(tmp_path, name))

    def test_names_that_are_no_utf8_are_refused(self, tmp_path: Path) -> None:
        root = folder_with(tmp_path)
        Path(os.fsdecode(bytes(root) + b"/\xff.py")).touch()
        with pytest.raises(BundleError, match="not UTF-8"):
            packed(root)


class TestUnpack:
    def test_brings_the_files_back_in_a_folder_named_by_the_hash(self, tmp_path: Path) -> None:
        root = folder_with(tmp_path / "root", "a/b.py", "c.py", "é.py")
        done = packed(root)
        folder = unpack(done.data, done.hash, tmp_path / "apps" / "deep")
        assert folder == tmp_path / "apps" / "deep" / done.hash.hex()
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found == {name: (root / name).read_bytes() for name in done.files}
        assert stat.S_IMODE((folder / "c.py").stat().st_mode) == 0o644
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    def test_uses_what_is_there(self, tmp_path: Path) -> None:
        done = packed(folder_with(tmp_path / "root", "a.py"))
        folder = unpack(done.data, done.hash, tmp_path)
        before = folder.stat().st_ino
        (folder / "__pycache__").mkdir()
        assert unpack(done.data, done.hash, tmp_path).stat().st_ino == before

    @pytest.mark.parametrize("damage", [lambda path: path.write_text("import evil"), lambda path: path.unlink()])
    def test_replaces_what_is_damaged(self, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
        done = packed(folder_with(tmp_path / "root", "a.py", "b.py"))
        folder = unpack(done.data, done.hash, tmp_path)
        damage(folder / "a.py")
        assert unpack(done.data, done.hash, tmp_path) == folder
        assert (folder / "a.py").read_text() == "# a.py\n"

    def test_several_may_unpack_at_the_same_time(self, tmp_path: Path) -> None:
        done = packed(folder_with(tmp_path / "root", *(f"{n}.py" for n in range(50))))
        start, folders = threading.Barrier(8), list[Path]()

        def one() -> None:
            start.wait()
            folders.append(unpack(done.data, done.hash, tmp_path / "apps"))

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(folders) == 8
        assert len(set(folders)) == 1
        assert len(list(folders[0].iterdir())) == 51
        assert [path.name for path in (tmp_path / "apps").iterdir()] == [done.hash.hex()]

    def test_another_bundle_than_expected_is_refused(self, tmp_path: Path) -> None:
        done = packed(folder_with(tmp_path / "root", "a.py"))
        with pytest.raises(BundleError, match="hash"):
            unpack(done.data[:-1] + b"x", done.hash, tmp_path / "apps")
        assert not (tmp_path / "apps").exists()

    def test_too_large_a_bundle_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundle, "MAX_PACKED_BYTES", 10)
        with pytest.raises(BundleError, match="11 bytes"):
            unpack(bytes(11), hashed(bytes(11)), tmp_path)


def archive(*entries: tuple[str, bytes], **changes: Any) -> bytes:
    """A zip with these entries, whose headers are changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries:
            entry = zipfile.ZipInfo(name)
            for attribute, value in changes.items():
                setattr(entry, attribute, value)
            made.writestr(entry, content, compress_type=changes.get("compress_type", zipfile.ZIP_DEFLATED))
    return file.getvalue()


GOOD = archive(("a.py", b"a = 1\n"), ("b/c.py", b"c = 2\n"))

HOSTILE = {
    "nothing": b"",
    "no archive": b"PK" + bytes(100),
    "half an archive": GOOD[: len(GOOD) // 2],
    "an absolute path": archive(("/etc/passwd", b"x")),
    "a way out": archive(("../x.py", b"x")),
    "a hidden way out": archive(("a/../../x.py", b"x")),
    "this folder": archive(("./x.py", b"x")),
    "an empty part": archive(("a//x.py", b"x")),
    "a backslash": archive(("a\\..\\x.py", b"x")),
    "a drive": archive(("C:x.py", b"x")),
    "a NUL": GOOD.replace(b"a.py", b"a\0py"),
    "a folder": archive(("a/", b"")),
    "a link": archive(("a.py", b"/etc/passwd"), external_attr=(stat.S_IFLNK | 0o777) << 16),
    "a pipe": archive(("a.py", b""), external_attr=stat.S_IFIFO << 16),
    "a deep path": archive(("/".join("abcdefghijkl"), b"x")),
    "a long name": archive(("x" * 600, b"x")),
    "a file twice in another case": archive(("A.py", b"x"), ("a.py", b"y")),
    "a file that is a folder": archive(("a", b"x"), ("a/b.py", b"y")),
    "a bomb": archive(("a.py", bytes(100 << 20))),
    "many files": archive(*((f"{n}.py", b"") for n in range(5001))),
    "another compression": archive(("a.py", b"x"), compress_type=zipfile.ZIP_BZIP2),
    "an encrypted file": GOOD.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
    "a wrong checksum": GOOD.replace(struct.pack("<L", __import__("zlib").crc32(b"a = 1\n")), b"\1\2\3\4"),
}


def twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate"):
        return archive(("a.py", b"x"), ("a.py", b"y"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bundles_are_refused_and_leave_nothing(tmp_path: Path, name: str) -> None:
    data = HOSTILE[name]
    with pytest.raises(BundleError):
        unpack(data, hashed(data), tmp_path / "apps")
    assert not (tmp_path / "apps").exists() or not list((tmp_path / "apps").iterdir())
    assert [path.name for path in tmp_path.iterdir()] in ([], ["apps"])


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    data = twice()
    with pytest.raises(BundleError, match="two entries"):
        unpack(data, hashed(data), tmp_path)


def test_a_file_that_is_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    content = os.urandom(1000)
    data = bytearray(archive(("a.py", content)))
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<L", 10)
    with pytest.raises(BundleError, match=r"a\.py"):
        unpack(bytes(data), hashed(bytes(data)), tmp_path)


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_bundles_are_unpacked_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    mutated = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        folder = unpack(bytes(mutated), hashed(bytes(mutated)), tmp_path / "apps")
    except BundleError:
        return
    assert folder.parent == tmp_path / "apps"
    assert [path.name for path in tmp_path.iterdir()] == ["apps"]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.py", "a.py", True),
        ("*.py", "a/b/c.py", True),
        ("/*.py", "a/b.py", False),
        ("a/*.py", "a/b.py", True),
        ("a/*.py", "x/a/b.py", False),
        ("a/*.py", "a/b/c.py", False),
        ("a/**", "a/b/c", True),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/x/y/c", True),
        ("**/c", "c", True),
        ("**/c", "a/b/c", True),
        ("a?.py", "ab.py", True),
        ("a?.py", "a/.py", False),
        ("[ab].py", "a.py", True),
        ("[!ab].py", "a.py", False),
        ("[!ab].py", "c.py", True),
        ("[a-c]x", "bx", True),
        ("[ab", "[ab", True),
        ("a.b", "axb", False),
        ("data/", "data/x.csv", True),
        ("data/", "data", False),
        ("data", "x/data/y", True),
        ("#x", "#x", False),
        ("a+(b)", "a+(b)", True),
    ],
)
def test_patterns_mean_what_they_mean_to_git(pattern: str, path: str, *, matches: bool) -> None:
    assert compile_patterns([pattern]).match_below(path) is matches


@given(st.text(max_size=12), st.text(max_size=12))
def test_any_pattern_can_be_read(pattern: str, path: str) -> None:
    compile_patterns([pattern]).match_below(path)
