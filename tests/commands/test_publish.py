"""Published policies: a folder that samples as the run does, a card that says what was measured, and the hub's cache."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image
from typer.testing import CliRunner

from adanat_cli.main import app
from adanat_toolkit.commands.publish import CARD, PICTURE, PUBLISHED, publish
from adanat_toolkit.errors import CheckpointError, ConfigError, OutputError, ReplacedError
from adanat_toolkit.evaluation import RESULT
from adanat_toolkit.policies import load_policy
from adanat_toolkit.report import read_runs
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.storage import card_digest, is_hub_id, local_policy, sealed
from adanat_toolkit.training import Trainer, validate

from ..helpers.cli import contents
from ..helpers.tiny import TinyGenerator, install_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        install_tiny(folder / "site", patch)
        config = validate(
            {"generator": {"name": "tiny"}, "reward": {"name": "dark"}, "steps": 2, "batch": 8, "trajectories": 16}
            | {"device": "cpu", "ppo": {"epochs": 1, "learning_rate": 0.05}}
        )
        Trainer(config).run(folder / "run")
    return folder / "run"


def evaluation(run: Path, sha256: str | None = None) -> dict[str, Any]:
    """What ``adanat evaluate --out`` writes, for the policy of a run."""
    card = json.loads((run / "policy" / "policy.json").read_text())
    card["sha256"] = sha256 or card["sha256"]
    row: dict[str, Any] = {"policy": str(run), "steps": 2, "card": card, "baseline": "fixed:cosine"}
    row |= {"figures": {"frechet": 12.345, "recall": 0.5}, "intervals": {"frechet": [11.5, 13.5]}}
    row |= {"ratio": {"frechet": 0.75}, "ratio_interval": {"frechet": [0.7, 0.8]}}
    baseline = {"policy": "fixed:cosine", "steps": 2, "card": {}, "intervals": {}}
    baseline["figures"] = {"frechet": 16.46, "recall": 0.25}
    facts = {"images": 2000, "seeds": [0, 1999], "real_images": 10934, "protocol": "net-1234", "device": "cpu"}
    facts |= {"dtype": "float32", "protocol_card": {"resize": "none, 64x64"}, "toolkit": "1", "data": "d"}
    facts |= {"generator": "tiny", "generator_fingerprint": "f", "estimators": {}}
    return {**facts, "baselines": [baseline], "policies": [row]}


def images(spec: str) -> torch.Tensor:
    generator = TinyGenerator()
    policy = load_policy(spec, generator)
    return torch.cat([part.images for part in sample(generator, policy, seed_range(5, 4))])


def test_a_folder(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    result = publish(run, str(target), TinyGenerator())
    assert result == {"target": str(target), "url": None, "files": list(PUBLISHED), "evaluated": False}
    assert sorted(p.name for p in target.iterdir()) == sorted(PUBLISHED)
    assert torch.equal(images(str(target)), images(str(run)))
    text = (target / CARD).read_text()
    assert text.startswith("---\nlicense: apache-2.0\n") and "# mine" in text and "tiny:class" in text
    assert "published without an evaluation" in text and "reward `dark`" in text and "16 images of its own" in text
    with Image.open(target / PICTURE) as picture:
        assert picture.width > 2 * 4 * 5
    assert f"]({PICTURE})" in text
    publish(run, str(target), TinyGenerator())  # again, over itself
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("keep me")
    with pytest.raises(OutputError, match="holds no policy"):
        publish(run, str(tmp_path / "other"), TinyGenerator())
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_files_that_a_training_replaces_meanwhile_are_not_mixed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "policy"
    shutil.copytree(run / "policy", source)

    def load(*given: Any) -> Any:
        policy = load_policy(*given)
        card = json.loads((source / "policy.json").read_text())
        (source / "policy.json").write_text(json.dumps({**card, "toolkit": "another"}))
        return policy

    monkeypatch.setattr("adanat_toolkit.commands.publish.load_policy", load)
    with pytest.raises(ReplacedError, match="was replaced while it was read"):
        publish(source, str(tmp_path / "mine"), TinyGenerator())
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("fault", ["metrics", "pictures"])
def test_what_cannot_be_published_leaves_the_folder_as_it_was(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    publish(run, str(tmp_path / "mine"), TinyGenerator())
    before = contents(tmp_path / "mine")
    card = tmp_path / "run" / "policy" / "policy.json"
    values = {**json.loads(card.read_text()), "toolkit": "another"}
    card.write_text(json.dumps({**values, "digest": card_digest(values)}))
    if fault == "metrics":
        (tmp_path / "run" / "metrics.jsonl").write_text("{\n")
    else:
        monkeypatch.setattr("adanat_toolkit.commands.publish.sample", _stopped)
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        publish(tmp_path / "run", str(tmp_path / "mine"), TinyGenerator())
    assert contents(tmp_path / "mine") == before


def _stopped(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_figures_are_those_of_this_policy(run: Path, tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text(json.dumps(evaluation(run)))
    publish(run, str(tmp_path / "mine"), TinyGenerator(), evaluation=tmp_path, licence="mit")
    text = (tmp_path / "mine" / CARD).read_text()
    for part in ("license: mit", "| frechet | 12.35 [11.5, 13.5] | 16.46 |", "0.750 (95 % interval 0.700 to 0.800)"):
        assert part in text, part
    assert "2000 images of seeds 0 to 1999 against 10934 real images" in text and "`net-1234`" in text
    (tmp_path / RESULT).write_text(json.dumps(evaluation(run, sha256="0" * 64)))
    with pytest.raises(ConfigError, match="judges other policies"):
        publish(run, str(tmp_path / "other"), TinyGenerator(), evaluation=tmp_path)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere: No such file or directory. This is no result"):
        publish(run, str(tmp_path / "other"), TinyGenerator(), evaluation=tmp_path / "nowhere")


def test_what_was_changed_is_not_published(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    whole = sealed(evaluation(run))
    better = json.loads(json.dumps(whole))
    better["policies"][0]["ratio"]["frechet"] = 0.71
    for changed, message in (
        (better, "was changed or damaged since it was written: its checksum"),
        ({**evaluation(run), "images": 50_000}, "images is 50000, and seeds 0 to 1999 are 2000"),
        (json.loads(json.dumps(evaluation(run)).replace("12.345", "0.5")), r"'frechet' is 0\.5, outside of its interval 11\.5"),
    ):
        (tmp_path / RESULT).write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=message):
            publish(tmp_path / "run", str(tmp_path / "mine"), TinyGenerator(), evaluation=tmp_path)
    (tmp_path / RESULT).write_text(json.dumps(whole))
    rows = tmp_path / "run" / "metrics.jsonl"
    first, last = rows.read_text().splitlines()
    more = json.dumps({**json.loads(last), "iteration": 3, "reward/mean": 0.99})  # of no checkpoint, so of no policy
    rows.write_text(f"{first}\n{last}\n{more}\n")
    publish(tmp_path / "run", str(tmp_path / "mine"), TinyGenerator(), evaluation=tmp_path)
    assert "0.99 in the last" not in (tmp_path / "mine" / CARD).read_text()
    rows.write_text(f"{first}\n{json.dumps({**json.loads(last), 'reward/mean': 0.99})}\n")
    for use in (
        lambda: publish(tmp_path / "run", str(tmp_path / "other"), TinyGenerator(), evaluation=tmp_path),
        lambda: read_runs([tmp_path / "run"]),
    ):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl was changed or damaged since the checkpoint"):
            use()
    assert not (tmp_path / "other").exists()


BAD = [
    "<script>alert(1)</script>",
    "# heading\n\n# another",
    "![x](https://example.org/x.png)",
    "` </code><img src=https://example.org/x.png> `",
    "``` ![x](https://example.org/x.png) ```",
    "a | b | [c](https://example.org)",
    "line\rbreak\u2028<b>",
    "https://example.org/x",
    "x" * 10_000,
]


@pytest.mark.parametrize("bad", BAD)
def test_texts_of_others_are_no_markdown_and_no_html(bad: str, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(run / "policy", folder)
    card = json.loads((folder / "policy.json").read_text())
    card["toolkit"] = card["training"]["reward"] = card["training"]["engine"] = bad
    card["digest"] = card_digest(card)
    (folder / "policy.json").write_text(json.dumps(card))
    judged = evaluation(run)
    row = judged["policies"][0]
    row |= {"card": card, "baseline": bad, "figures": {**row["figures"], bad: 1.0}}
    judged["baselines"][0]["figures"][bad] = 2.0
    judged |= {"protocol": bad, "protocol_card": {bad: bad, "nested": {"a": [bad]}}, "device": bad, "dtype": bad}
    (tmp_path / RESULT).write_text(json.dumps(judged))
    target = tmp_path / "mine"
    publish(folder, str(target), TinyGenerator(), evaluation=tmp_path)
    text = (target / CARD).read_text()
    publish(run, str(tmp_path / "plain"), TinyGenerator(), evaluation=_written(tmp_path / "own", evaluation(run)))
    plain = (tmp_path / "plain" / CARD).read_text()
    html = MarkdownIt("commonmark").enable("table").render(text.partition("---\n# ")[2])
    tags = set(re.findall(r"<(/?[a-z0-9]+[^>]*)>", html))
    expected = set(re.findall(r"<(/?[a-z0-9]+[^>]*)>", MarkdownIt("commonmark").enable("table").render(plain)))
    assert tags <= expected, tags - expected
    assert text.count("\n") <= plain.count("\n") + 3 and len(text) < 20_000


def _written(folder: Path, value: Any) -> Path:
    folder.mkdir()
    (folder / RESULT).write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("policies", 3, "policies must be"),
        ("images", "<b>", "images must be a valid integer"),
        ("seeds", [1], "seeds.1."),
        ("policies.0.figures.frechet", "12", "figures.frechet must be a valid number, found '12'"),
        ("policies.0.card", 3, "card must be"),
        ("policies.0.ratio", {}, "lacks the field policies.0..ratio.frechet"),
        ("baselines", [{}], "lacks the field baselines"),
        ("protocol_card", ["a"], "protocol_card must be"),
    ],
)
def test_a_result_of_another_shape(where: str, value: Any, message: str, run: Path, tmp_path: Path) -> None:
    judged = evaluation(run)
    part: Any = judged
    *path, last = [int(key) if key.isdecimal() else key for key in where.split(".")]
    for key in path:
        part = part[key]
    part[last] = value
    (tmp_path / RESULT).write_text(json.dumps(judged))
    with pytest.raises(ConfigError, match=message):
        publish(run, str(tmp_path / "mine"), TinyGenerator(), evaluation=tmp_path)


def test_the_commands(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tiny(tmp_path / "site", monkeypatch)
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    done = runner.invoke(app, ["publish", str(run), "./mine", "--json", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == list(PUBLISHED)
    made = runner.invoke(app, ["sample", "--policy", "mine", "--generator", "tiny", "--num", "2", "--out", "out", "-q"])
    assert made.exit_code == 0, made.output
    assert len(list((tmp_path / "out").glob("0*.png"))) == 2
    refused = runner.invoke(app, ["publish", str(run), "owner/name", "--offline"])
    assert refused.exit_code == 1 and "forbids publishing" in refused.output


def test_hub_ids_come_from_the_cache_when_offline(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ConfigError, match=r"no policy at 'owner/mine'.*--offline forbids"):
        local_policy("owner/mine", offline=True)
    snapshot = tmp_path / "hub" / "models--owner--mine" / "snapshots" / ("a" * 40)
    publish(run, str(snapshot), TinyGenerator())
    refs = tmp_path / "hub" / "models--owner--mine" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    folder = local_policy("owner/mine", offline=True)
    assert Path(folder) == snapshot
    assert torch.equal(images(folder), images(str(run)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(images("owner/mine"), images(str(run)))


def test_what_a_hub_id_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name") and is_hub_id("owner/name@v1.0")
    for text in ("name", "./owner/name", "/owner/name", "a/b/c", "fixed:cosine", "../a/b", "~/a"):
        assert not is_hub_id(text), text
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_id("owner/name")
    assert local_policy("owner/name") == "owner/name"
    assert re.fullmatch(r"fixed:.*", local_policy("fixed:halton/x"))
