"""Names, aliases, paths and every way a description file can be wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner import catalog
from planner.catalog import load_device, load_model, load_profile, read_document, save_atomic
from planner.errors import InputError, UnknownName

MODEL: dict[str, Any] = {
    "name": "tiny",
    "aliases": ["acme/Tiny-1M", "Tiny"],
    "source": "made up",
    "hidden_size": 64,
    "vocab_size": 128,
    "max_sequence_length": 32,
    "block_kinds": {
        "block": {
            "attention": {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_dim": 16},
            "feed_forward": {"kind": "dense", "ffn_size": 128, "gated": True},
            "norm": {"kind": "rmsnorm"},
        }
    },
    "stacks": [
        {
            "name": "decoder",
            "embedding": {"kind": "tokens"},
            "layout": [{"kinds": ["block"], "repeat": 2}],
        }
    ],
    "head": {"kind": "language_model"},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def _write(text: str | bytes, name: str = "file.json") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return _write


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog of three models in a temporary folder, two of which share an alias."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name, aliases in (
        ("tiny", MODEL["aliases"]),
        ("small-7b", ["Small", "both"]),
        ("small-8b", ["both"]),
    ):
        (folder / f"{name}.json").write_text(json.dumps({**MODEL, "name": name, "aliases": aliases}))
    monkeypatch.setattr(catalog, "data_directory", lambda kind: tmp_path / kind)
    return folder


def _error(call: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ('{"a": 1,\n "b" 2}', "line 2, column 6"),
        ('{"a": 1,}', "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        ('{"a": 1} trailing', "not valid JSON"),
        ('{"a": 1,\n"b": 2,\n"a": 3}', "'a' is written twice in one object (lines with this key: 1, 3)"),
        ('{"x": {"k": 1, "k": 1}}', "'k' is written twice"),
        ('{"a": 1,\n"b": NaN}', "line 2: NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": 1e999}', "1e999 is not a finite number"),
        ("[1, 2]", "must be an object, not a list"),
        ('"text"', "must be an object, not text"),
        ("3", "must be an object, not a number"),
        ("null", "must be an object, not null"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not a usable number"),
    ],
)
def test_bad_json(write: Callable[..., str], text: str | bytes, words: str) -> None:
    file = write(text)
    error = _error(lambda: read_document(file))
    assert words in error.message
    assert error.details["file"] == file
    assert file in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "not valid YAML: line"),
        ("a: 1\na: 2\n", "'a' is written twice"),
        ("a: .nan\n", "nan is not a number"),
        ("a:\n  - .inf\n", "inf is not a number"),
        ("1: 2\n", "key 1 must be text"),
        ("- 1\n", "must be an object, not a list"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
        ("a: 2024-99-99\n", "not a usable value"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
        ("", "empty"),
    ],
)
def test_bad_yaml(write: Callable[..., str], text: str, words: str) -> None:
    file = write(text, "file.yaml")
    assert words in _error(lambda: read_document(file)).message


def test_yaml_pointer_names_the_place(write: Callable[..., str]) -> None:
    file = write("a:\n  b/c:\n    - 1\n    - .inf\n", "file.yml")
    assert _error(lambda: read_document(file)).details["pointer"] == "/a/b~1c/1"


def test_yaml_aliases_do_not_explode(write: Callable[..., str]) -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, 12)]
    file = write("\n".join([*lines, "block_kinds: *a11"]), "file.yaml")
    assert len(read_document(file)) == 13
    assert "required but missing" in _error(lambda: load_model(file)).message


def test_yaml_and_json_read_alike(write: Callable[..., str]) -> None:
    expected = {"a": [1, 2.5, None], "b": {"c": "d"}}
    assert read_document(write("a: [1, 2.5, null]\nb: {c: d}\n", "f.yml")) == expected
    assert read_document(write("\ufeff" + json.dumps(expected))) == expected


def test_missing_and_directory(tmp_path: Path) -> None:
    assert "no such file" in _error(lambda: read_document(tmp_path / "none.json")).message
    assert "directory" in _error(lambda: read_document(tmp_path)).message
    assert "cannot read" in _error(lambda: read_document("bad\0name.json")).message


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    with path.open("wb") as stream:
        stream.truncate(17 * 1024 * 1024)
    error = _error(lambda: read_document(path))
    assert "17.0 MiB" in error.message
    assert "16.0 MiB" in error.message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("H100", "h100-sxm"),
        ("h100-sxm", "h100-sxm"),
        ("H100_SXM", "h100-sxm"),
        ("H100-SXM5-80GB", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("H200", "h200-sxm"),
        ("B200", "b200-sxm"),
        ("A100-SXM4-80GB", "a100-80g-sxm"),
        ("nvidia a100-sxm4-80gb", "a100-80g-sxm"),
        ("A100-PCIE-40GB", "a100-40g-pcie"),
        ("V100-SXM2-16GB", "v100-16g"),
        ("Tesla T4", "t4"),
        ("RTX 4090", "rtx-4090"),
        ("rtx_3090", "rtx-3090"),
        (" MI300X ", "mi300x"),
    ],
)
def test_device_spellings(name: str, expected: str) -> None:
    assert load_device(name).name == expected


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("A100", ["a100-40g-pcie", "a100-40g-sxm", "a100-80g-pcie", "a100-80g-sxm"]),
        ("a100-80gb", ["a100-80g-pcie", "a100-80g-sxm"]),
        ("V100", ["v100-16g", "v100-32g"]),
    ],
)
def test_ambiguous_device(name: str, candidates: list[str]) -> None:
    error = _error(lambda: load_device(name))
    assert "ambiguous" in error.message
    assert error.details["allowed"] == candidates
    assert all(candidate in error.message for candidate in candidates)
    assert candidates[-1] in error.hint


def test_profile_spellings() -> None:
    assert load_profile("DGX H100").name == "dgx-h100"
    assert load_profile("p5.48xlarge").name == "aws-p5"
    assert load_profile("DGX_A100").name == "dgx-a100"
    assert "ambiguous" in _error(lambda: load_profile("NVL72")).message


@pytest.mark.parametrize(
    ("load", "name", "nearest"),
    [
        (load_device, "h100-smx", "h100-sxm"),
        (load_profile, "dgx-h10", "dgx-h100"),
        (load_device, "rtx4909", "rtx-4090"),
    ],
)
def test_unknown_names_the_nearest(load: Callable[[str], object], name: str, nearest: str) -> None:
    with pytest.raises(UnknownName) as caught:
        load(name)
    assert nearest in caught.value.details["nearest"]
    assert nearest in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "   "])
def test_empty_name(name: str) -> None:
    error = _error(lambda: load_device(name))
    assert "empty" in error.message
    assert "such as" in error.hint


@pytest.mark.parametrize("name", ["../gpus/t4", "..", "/", "a\0b", "x" * 5000, "%s", "~"])
def test_odd_names_are_refused(name: str) -> None:
    _error(lambda: load_device(name))


def test_model_by_name_alias_and_path(shelf: Path, tmp_path: Path) -> None:
    for name in ("tiny", "TINY", "acme/tiny-1m", "acme/Tiny-1M", str(shelf / "tiny.json")):
        model, warnings = load_model(name)
        assert (model.name, warnings) == ("tiny", [])
    assert load_model("small")[0].name == "small-7b"
    assert "small-7b, small-8b" in _error(lambda: load_model("Both")).message
    assert catalog.model_names() == ["small-7b", "small-8b", "tiny"]
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    assert load_model(str(folder))[0].name == "tiny"


def test_a_known_name_reads_one_file(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = catalog.read_document
    monkeypatch.setattr(catalog, "read_document", lambda path: read.append(str(path)) or original(path))
    load_model("small-8b")
    assert read == [str(shelf / "small-8b.json")]


def test_model_unknown(shelf: Path) -> None:
    with pytest.raises(UnknownName, match="acme/Tiny-1M"):
        load_model("acme/Tiny-2M")
    assert "no such file" in _error(lambda: load_model("nowhere/config.json")).message


def test_hugging_face_config_is_handed_over(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[str, Any], str]] = []

    class Reader:
        @staticmethod
        def read_hugging_face_config(config: dict[str, Any], *, file: str) -> tuple[str, list[str]]:
            seen.append((config, file))
            return "spec", ["a warning"]

    monkeypatch.setitem(sys.modules, "planner.model.hugging_face.reader", Reader)  # type: ignore[arg-type]
    for config in ({"model_type": "llama"}, {"architectures": ["X"]}, {"text_config": {}}):
        file = write(json.dumps(config), "config.json")
        assert load_model(file) == ("spec", ["a warning"])
        assert seen[-1] == (config, file)


def test_file_that_is_no_model(write: Callable[..., str]) -> None:
    error = _error(lambda: load_model(write('{"layers": 3}')))
    assert "block_kinds" in error.message
    assert "model_type" in error.message


def test_wrong_kind_of_file(write: Callable[..., str]) -> None:
    folder = catalog.data_directory("hardware_profiles")
    error = _error(lambda: load_profile(str(folder / "gpus" / "t4.json")))
    assert error.message == "describes a device, but a cluster is wanted"
    assert "describes a cluster" in _error(lambda: load_device(str(folder / "dgx-h100.json"))).message
    assert "describes a device" in _error(lambda: load_model(str(folder / "gpus" / "t4.json"))).message
    assert "describes a model" in _error(lambda: load_device(write(json.dumps(MODEL)))).message


def _broken_profile(change: Callable[[dict[str, Any]], object]) -> str:
    document = read_document(catalog.data_directory("hardware_profiles") / "gb200-nvl72.json")
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("change", "pointer", "words", "hint"),
    [
        (
            lambda d: d["node_groups"][0]["tiers"][0].update(devices=-1),
            "/node_groups/0/tiers/0/devices",
            "greater than 0, not -1",
            "more than 0",
        ),
        (
            lambda d: d["node_groups"][0]["tiers"][1].update(devices=100),
            "",
            "multiple of the tier below (72)",
            "",
        ),
        (
            lambda d: d["node_groups"][0].pop("device"),
            "/node_groups/0/device",
            "'device' is required",
            "add 'device'",
        ),
        (
            lambda d: d["node_groups"][0]["tiers"][0].update(latncy_us=3),
            "/node_groups/0/tiers/0/latncy_us",
            "unknown key 'latncy_us'",
            "'latency_us'",
        ),
        (
            lambda d: d["node_groups"][0]["tiers"][0]["latency_us"].update(basis="guess"),
            "/node_groups/0/tiers/0/latency_us/basis",
            "not 'guess'",
            "'datasheet'",
        ),
        (lambda d: d.update(node_groups=[]), "/node_groups", "at least 1 item", ""),
        (lambda d: d.update(schema_version=9), "/schema_version", "not 9", "1"),
        (lambda d: d.update(**{"a/b~c": 1}), "/a~1b~0c", "unknown key", ""),
    ],
)
def test_broken_rule_names_place_and_remedy(
    write: Callable[..., str],
    change: Callable[[dict[str, Any]], object],
    pointer: str,
    words: str,
    hint: str,
) -> None:
    file = write(_broken_profile(change))
    error = _error(lambda: load_profile(file))
    assert error.details["file"] == file
    assert error.details["pointer"] == pointer
    assert words in error.message
    assert hint in error.hint


def test_union_branch_is_not_in_the_pointer(write: Callable[..., str]) -> None:
    document = json.loads(json.dumps(MODEL))
    document["block_kinds"]["block"]["attention"]["num_heads"] = 0
    error = _error(lambda: load_model(write(json.dumps(document))))
    assert error.details["pointer"] == "/block_kinds/block/attention/num_heads"
    document["block_kinds"]["block"]["attention"]["kind"] = "ring"
    error = _error(lambda: load_model(write(json.dumps(document))))
    assert error.details["pointer"] == "/block_kinds/block/attention"
    assert "'gqa', 'mla'" in str(error.details["allowed"])


def test_several_problems_are_counted(write: Callable[..., str]) -> None:
    file = write(_broken_profile(lambda d: d.update(first=1, second=2)))
    assert "(and 1 more)" in _error(lambda: load_profile(file)).message


def test_errors_are_json(write: Callable[..., str]) -> None:
    error = _error(lambda: load_device("A100"))
    assert json.loads(json.dumps(error.as_dict()))["error"]["exit_code"] == 2


def test_save_writes_all_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_atomic(path, "first\n")
    path.chmod(0o640)
    save_atomic(str(path), "zweite Zeile: ü\n")
    assert path.read_text(encoding="utf-8") == "zweite Zeile: ü\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["plan.json"]


def test_save_follows_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    save_atomic(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_save_refusals(tmp_path: Path) -> None:
    assert "does not exist" in _error(lambda: save_atomic(tmp_path / "none" / "a.json", "x")).message
    assert "directory" in _error(lambda: save_atomic(tmp_path, "x")).message
    assert "regular file" in _error(lambda: save_atomic(os.devnull, "x")).message
    assert "UTF-8" in _error(lambda: save_atomic(tmp_path / "a.json", "\ud800")).message
    assert os.listdir(tmp_path) == []


def test_save_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in _error(lambda: save_atomic(path, "new")).message
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_data_directory_prefers_the_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "planner"
    monkeypatch.setattr(catalog, "_PACKAGE", package)
    assert "missing" in _error(lambda: catalog.data_directory("models")).message
    (tmp_path / "models").mkdir()
    assert catalog.data_directory("models") == tmp_path / "models"
    (package / "_data" / "models").mkdir(parents=True)
    assert catalog.data_directory("models") == package / "_data" / "models"
