"""``adanat report``: what is on the page, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adanat_toolkit.errors import CheckpointError, ConfigError, OutputError, PluginError
from adanat_toolkit.evaluation import evaluate_policies, write_comparison
from adanat_toolkit.images import to_bytes
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_features
from adanat_toolkit.report import Settings, default_file, make_report
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.storage import card_digest

from ..helpers.cli import adanat, contents, file_size_limit, refused
from ..helpers.report_runs import Page, both, pixels, plugins, trained
from ..helpers.tiny_plugins import TinyWithData

__all__ = ["both", "plugins", "trained"]  # fixtures
Runs = Callable[[str], Path]
NO_PICTURES = Settings(pictures=False)


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Runs:
    """A copy of a training, for the test to change."""
    return lambda name: Path(shutil.copytree(trained / name, tmp_path / name))


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(both: tuple[str, dict[str, Any], Path]) -> None:
    text, _, _ = both
    page = Page(text)
    assert text.startswith("<!doctype html>")
    for _tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), value
    assert not re.search(r"https?://|@import|url\(", re.sub(r"http://www\.w3\.org/2000/svg", "", text))
    policy = next(m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'; img-src data:;")
    assert page.all("html")[0]["lang"] == "en" and any(m.get("name") == "viewport" for m in page.all("meta"))


def test_the_page_has_every_section(both: tuple[str, dict[str, Any], Path]) -> None:
    text, _, _ = both
    page = Page(text)
    links = {a["href"] for a in page.all("a")}
    headings = {f"#{h['id']}" for h in page.all("h2")}
    assert headings - {"#glance"} == links
    assert links == {"#alarms", "#yardstick", "#seeds", "#knobs", "#simple", "#steps", "#curves", "#settings"}
    for image in page.all("img"):
        assert image["alt"] and image["width"] and image["height"]
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    for chart in page.all("svg"):
        assert chart["role"] == "img" and " at first, " in (chart["aria-label"] or "")
    for title in ("Reward", "KL divergence of the update", "Clip fraction", "Explained variance", "Exploration sigma"):
        assert f"<h4>{title}</h4>" in text
    assert "<h4>Frechet distance, held out</h4>" in text


def test_the_table_is_what_was_measured(trained: Path, both: tuple[str, dict[str, Any], Path]) -> None:
    text, printed, _ = both
    generator = TinyWithData()
    extractor = create_features("pixels", device=torch.device("cpu"), offline=True)
    paths = [str(trained / name) for name in ("adaptive", "shared")]
    expected = evaluate_policies(generator, paths, extractor, generator.real_images(), count=48)
    table = re.search(r'<table class="sortable yardstick".*?</table>', text, re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr>\s*<th scope=\"row\" data-sort=\"([^\"]*)\">(.*?)</tr>", table[0], re.DOTALL)
    assert [name for name, _ in rows] == ["cosine,mask_temperature=1:0", "adaptive", "shared"]
    figures = [expected.baselines[0].evaluation.figures, *(row.judged.evaluation.figures for row in expected.rows)]
    ratios = [1.0, *(row.ratio for row in expected.rows)]
    for (_, cells), found, ratio in zip(rows, figures, ratios, strict=True):
        values = [float(v) for v in re.findall(r'<td data-sort="([^"]+)"', cells)]
        assert values[:2] == pytest.approx([ratio, found["frechet"]], rel=1e-9)
        assert values[2:4] == pytest.approx([found["kid"], found["precision"]], rel=1e-9)
    assert "48 images a row (seeds 0 to 47) against 300 real images" in text and "<code>pixels-v1</code>" in text
    assert "So few images bias a Frechet distance upwards" in text
    for told, row in zip(printed["runs"], expected.rows, strict=True):
        assert told["ratio"] == row.ratio and told["images"] == 48 and told["protocol"] == "pixels-v1"
        assert told["figures"] == row.judged.evaluation.figures and told["iterations"] == 4


def test_pictures_are_those_that_sampling_makes(trained: Path, both: tuple[str, dict[str, Any], Path]) -> None:
    text, _, _ = both
    generator = TinyWithData()
    sources = {image["alt"]: image["src"] for image in Page(text).all("img")}
    for spec, who in (("fixed", "hand-made schedule"), (str(trained / "adaptive"), "adaptive")):
        policy = load_policy(spec, generator, 3)
        (made,) = sample(generator, policy, seed_range(0, 3))
        assert made.context.classes is not None
        for i in range(3):
            shown = pixels(sources[f"{who}, seed {i}, class {int(made.context.classes[i])}"])
            assert np.array_equal(shown, to_bytes(made.images)[i].permute(1, 2, 0).numpy())


def test_simple_and_hard_samples_and_their_steps(both: tuple[str, dict[str, Any], Path]) -> None:
    text, _, _ = both
    values = [float(v) for v in re.findall(r"<figcaption><b>([\d.]+)</b>", text)]
    assert len(values) == 16 and values[:8] == sorted(values[:8], reverse=True) and values[8:] == sorted(values[8:])
    assert values[7] >= values[15]
    assert "Measured by the share kept early" in text
    assert "This policy treats all samples alike" in text  # the shared one
    captions = re.findall(r"<figcaption>(drawn|kept|mask)</figcaption>", text)
    # Three samples of the adaptive policy, two of the shared one; learned and hand-made; three steps each.
    assert {name: captions.count(name) for name in ("drawn", "kept", "mask")} == dict.fromkeys(
        ("drawn", "kept", "mask"), 30
    )
    for image in Page(text).all("img"):
        share = re.search(r"after step (\d): (\d+)% of the cells masked again, dark", image["alt"] or "")
        if share:
            mask = pixels(image["src"])[:, :, 0] < 128
            assert mask.shape == (3, 5) and round(100 * mask.mean()) == int(share[2])
            assert share[1] != "3" or not mask.any()


def test_a_single_run(trained: Path, tmp_path: Path) -> None:
    run = trained / "shared"
    before = contents(run)
    file = tmp_path / "one.html"
    result = make_report([run], file, Settings(images=16, seed=5, device="cpu"), command="adanat report <b>")
    text = file.read_text(encoding="utf-8")
    assert result["report"] == str(file) and result["bytes"] == file.stat().st_size and result["left_out"] == []
    assert '<dl class="tiles">' in text and 'id="overview"' not in text
    assert "<dt>Frechet distance over the hand-made one's</dt>" in text and "seeds 5 to 20" in text
    assert "seed 5: class" in text and "seed 4: class" not in text
    assert "adanat report &lt;b&gt;" in text
    assert "shared policy for the frozen generator tiny:pixels, T = 3 steps, reward brightness, seed 0." in text
    assert contents(run) == before
    assert default_file([run]) == run / "report.html"
    assert default_file([run, tmp_path]) == trained / "report.html"


def test_settings_show_what_differs(both: tuple[str, dict[str, Any], Path]) -> None:
    text, _, _ = both
    marked = re.findall(r'<tr class="(differs|changed)"><th scope="row"><code>([^<]+)</code>', text)
    assert marked[0] == ("differs", "policy.name") and ("changed", "ppo.learning_rate") in marked
    assert [kind for kind, _ in marked].count("differs") == 1
    row = re.search(r"<code>ppo.learning_rate</code></th>(.*?)</tr>", text)
    assert row is not None and re.findall(r">([\d.]+)<", row[1])[:2] == ["0.002", "0.002"]


def test_names_of_runs_are_text(runs: Runs, tmp_path: Path) -> None:
    run = runs("shared").rename(tmp_path / "<script>alert(1)<")
    make_report([run], tmp_path / "out.html", NO_PICTURES)
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;" in text


def test_templates_are_part_of_the_package() -> None:
    names = {file.name for file in files("adanat_toolkit.report").iterdir()}
    assert {"report.html.j2", "report.css", "report.js"} <= names


# --- alarms and what is stored ----------------------------------------------------------------------------------------


def test_alarms_are_told(runs: Runs, tmp_path: Path) -> None:
    run = runs("shared")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:3]:
        row["ppo/approx_kl"] = 2.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(run / "checkpoints")  # their record of the rows would say that these were changed
    result = make_report([run], tmp_path / "out.html", NO_PICTURES)
    (alarm,) = result["runs"][0]["alarms"]
    assert (alarm["name"], alarm["since"], alarm["active"]) == ("kl-explodes", 2, True)
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert re.search(r'<div class="alarm"><p><b>kl-explodes</b>, from iteration 2: ppo/approx_kl is', text)
    assert "<dt>Alarms</dt><dd>1<small>1 still raised</small>" in text


def store_evaluation(run: Path, count: int) -> None:
    generator = TinyWithData()
    extractor = create_features("pixels", device=torch.device("cpu"), offline=True)
    found = evaluate_policies(generator, [str(run)], extractor, generator.real_images(), count=count)
    write_comparison(found, run / "evaluation")


def test_stored_evaluations(runs: Runs, tmp_path: Path) -> None:
    adaptive, shared = runs("adaptive"), runs("shared")
    store_evaluation(adaptive, 32)
    out = tmp_path / "out.html"
    (told,) = make_report([adaptive], out, Settings(device="cpu"))["runs"]  # no number: the stored one
    assert told["images"] == 32 and "by an earlier <code>adanat evaluate</code>" in out.read_text()
    told = make_report([adaptive, shared], out, Settings(images=0, pictures=False))["runs"]
    assert told[0]["images"] == 32 and "figures" not in told[1]
    store_evaluation(shared, 48)
    told = make_report([adaptive, shared], out, NO_PICTURES)["runs"]
    assert [each["images"] for each in told] == [32, 48]
    text = out.read_text(encoding="utf-8")
    assert text.count("sortable yardstick") == 2
    assert (
        "not to be compared with the one before:</b> figures of unlike numbers of generated images (32 and 48)" in text
    )
    card = json.loads((shared / "policy" / "policy.json").read_text())
    card["sha256"] = "0" * 64
    (shared / "policy" / "policy.json").write_text(json.dumps({**card, "digest": card_digest(card)}))
    result = make_report([shared], out, NO_PICTURES)
    assert "stored in its folder is of another policy" in result["left_out"][0] and "figures" not in result["runs"][0]
    assert "Left out" in out.read_text()


def test_a_run_before_its_first_checkpoint(runs: Runs, tmp_path: Path) -> None:
    run = runs("shared")
    shutil.rmtree(run / "policy")
    result = make_report([run], tmp_path / "out.html", Settings(device="cpu"))
    assert "no policy is stored before the first checkpoint" in result["left_out"][0]
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<img" not in text and "<h4>Reward</h4>" in text


def test_without_its_generator_a_run_still_has_curves(runs: Runs, tmp_path: Path) -> None:
    run = runs("shared")
    config = json.loads((run / "config.json").read_text())
    config["generator"]["name"] = "nowhere"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(PluginError, match="leave out what takes the generator with --curves-only"):
        make_report([run], tmp_path / "out.html", Settings(device="cpu"))
    assert not (tmp_path / "out.html").exists()
    result = adanat("report", run, "--curves-only")
    assert result.exit_code == 0 and f"written: {run / 'report.html'}" in result.stderr
    assert "<h4>Reward</h4>" in (run / "report.html").read_text(encoding="utf-8")


def test_what_the_yardstick_lacks_is_told_or_refused(runs: Runs, tmp_path: Path) -> None:
    run = runs("shared")
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    result = make_report([run], tmp_path / "out.html", Settings(device="cpu", features="pixels"))
    assert "shared: no yardstick table." in result["left_out"][0] and "gone" in result["left_out"][0]
    assert "<img" in (tmp_path / "out.html").read_text(encoding="utf-8")
    refused(adanat("report", run, "--num", "32", "--device", "cpu", "-q"), "gone", "Or give --num 0")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_is_no_run(trained: Path, runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(adanat("report", tmp_path / "nothing"), "nothing is no run folder: it does not exist. Give the --out of")
    refused(adanat("report", tmp_path / "file"), "is no run folder: it is a file.")
    refused(adanat("report", trained), "holds no config.json (but", "adaptive", "shared do)")
    run = runs("shared")
    (run / "metrics.jsonl").write_text("")
    refused(adanat("report", run), "has no finished iteration", "run the same adanat train again")
    (run / "metrics.jsonl").unlink()
    refused(adanat("report", run), "has no finished iteration")


def test_what_is_damaged(runs: Runs, tmp_path: Path) -> None:
    run = runs("shared")
    whole = contents(run)
    for name, data, error in (
        ("metrics.jsonl", b'{"iteration": 1\n' + whole["metrics.jsonl"], "line 1 of .*metrics.jsonl is damaged"),
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", b'{"unknown": 1}', "does not fit this version"),
        ("policy/policy.json", b"[]", "policy.json is not usable: the value must be an object"),
        ("evaluation/evaluation.json", b'{"policies": 3}', "evaluation.json lacks the field toolkit .* or run adanat evaluate"),
    ):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=error):
            make_report([run], tmp_path / "out.html", NO_PICTURES)
        (run / name).unlink()
        if name in whole:
            (run / name).write_bytes(whole[name])
    store_evaluation(run, 16)
    facts = json.loads((run / "evaluation" / "evaluation.json").read_text())
    del facts["protocol"]
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="lacks the field protocol"):
        make_report([run], tmp_path / "out.html", NO_PICTURES)
    assert not (tmp_path / "out.html").exists()


def test_numbers_that_make_no_sense(trained: Path) -> None:
    run = trained / "shared"
    refused(adanat("report", run, "--num", "5"), "--num 5 is too few", "or 0 for no new ones")
    refused(adanat("report", run, "--num", "50", "--curves-only"), "--curves-only leaves it out")
    with pytest.raises(ConfigError, match="seeds are whole numbers from 0"):
        make_report([run], settings=Settings(seed=-1))


def test_a_run_whose_name_is_no_text(runs: Runs, tmp_path: Path) -> None:
    run = shutil.copytree(runs("shared"), tmp_path / os.fsdecode(b"run\xff"))
    told = make_report([run], tmp_path / "out.html", NO_PICTURES)
    assert told["bytes"] == (tmp_path / "out.html").stat().st_size
    assert "run\\udcff" in (tmp_path / "out.html").read_text()


def test_nothing_that_is_there_is_lost(runs: Runs, tmp_path: Path) -> None:
    run = runs("shared")
    whole = contents(run)
    refused(
        adanat("report", run, "--curves-only", "--out", run / "config.json"), "is no report of adanat and would be lost"
    )
    refused(adanat("report", run, "--curves-only", "--out", run), "is a folder; give --out a file")
    assert contents(run) == whole
    os.mkfifo(tmp_path / "pipe.html")
    refused(adanat("report", run, "--curves-only", "--out", tmp_path / "pipe.html"), "pipe.html is no regular file")
    out = tmp_path / "new" / "out.html"
    make_report([run], out, NO_PICTURES)
    first = out.read_bytes()
    with file_size_limit(4096), pytest.raises(OutputError, match="cannot write"):
        make_report([run], out, NO_PICTURES)
    assert contents(out.parent) == {"out.html": first}
    make_report([run], out, NO_PICTURES)  # again, over itself: the same bytes
    assert out.read_bytes() == first
