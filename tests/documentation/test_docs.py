"""The documentation is true: the site builds strictly, every command on it runs (or is marked, and parses), every Python
block runs, and every logged name is explained."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from adanat_plugins.emoji64 import FOLDER
from adanat_toolkit.core import TOKEN_KNOBS
from adanat_toolkit.decoding import statistic_names
from adanat_toolkit.metrics import FIGURES
from adanat_toolkit.registry import discover, load
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.training import resolve
from adanat_toolkit.training.alarms import RULES

from ..helpers.cli import adanat
from ..helpers.doc_blocks import NEEDS, ROOT, SHELL, Block, blocks, documents, hooks, inline_commands, pages, prose

SMALLER: dict[str, list[str]] = {
    "train": ["--trajectories", "16", "--batch", "8", "--set", "evaluate_images=16"],
    "sample": ["--num", "2"],
    "evaluate": ["--num", "16"],
    "compare": ["--dry-run"],  # tests/compare/test_compare.py runs whole grids
    "encode": ["--num", "8"],
}
"""What is appended to a command so that it takes a second: the last value of an option counts."""
SMALLER_DISCRIMINATOR = ("batch=8", "updates=1")
"""Options of ``adversarial`` that are set in addition, alone or in a mixture."""
RUN_ELSEWHERE = {"docs/writing-a-plugin.md": "tests/plugins/test_plugin_projects.py"}
"""Pages whose Python blocks another test runs."""
PAGES_WITH_COMMANDS = [page for page in pages() if any(block.language in SHELL for block in blocks(page))]


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "no_proxy": "", "https_proxy": "http://127.0.0.1:9"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    files = list(site.rglob("*.html"))
    assert len(files) > 20
    loaded = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)")
    for file in files:
        assert loaded.findall(file.read_text(encoding="utf-8")) == [], file


def test_formulas_are_typeset_and_generated_parts_are_there(site: Path) -> None:
    influence = (site / "fid-influence" / "index.html").read_text(encoding="utf-8")
    assert influence.count("<math") > 40
    for file in site.rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert 'class="arithmatex"' not in text and "<!-- generated" not in text, file


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    page = (site / "cli" / "index.html").read_text(encoding="utf-8")
    found = 0
    for path, command in hooks().walk(hooks().application()):
        assert f'id="{"-".join(path)}"' in page
        for parameter in command.params:
            if parameter.name not in ("help", "install_completion", "show_completion"):
                name = parameter.name.rstrip("_").replace("_", "-")
                assert f'id="{"-".join(path)}--{name}"' in page, (path, name)
                assert parameter.help, (path, name)
                found += 1
    assert found > 100


def in_navigation(entry: Any) -> list[str]:
    """The pages of an entry of ``nav``, in order."""
    if isinstance(entry, str):
        return [entry]
    return [page for child in (entry.values() if isinstance(entry, dict) else entry) for page in in_navigation(child)]


def test_every_page_is_in_the_navigation_once_and_reports_come_last() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    navigation = yaml.safe_load(text[text.index("\nnav:") :])["nav"]
    listed = in_navigation(navigation)
    written = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted([*written, *hooks().TAKEN])
    assert [next(iter(entry)) for entry in navigation[-2:]] == ["Results", "About"]
    for entry in navigation:
        assert all(page.startswith("results/") == (entry is navigation[-2]) for page in in_navigation(entry)), entry


@pytest.mark.parametrize("page", documents())
def test_links_within_the_repository_lead_somewhere(page: str) -> None:
    """Also where a page is read on a forge, not on the site."""
    for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", prose(page)):
        assert (ROOT / page).parent.joinpath(link).exists() or link in hooks().TAKEN, f"{page} links {link}"


def test_every_picture_is_shown_by_a_page() -> None:
    shown = set()
    for page in documents():
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            shown.add((ROOT / page).parent.joinpath(link).resolve())
    pictures = {file for file in (ROOT / "docs").rglob("*") if file.suffix in (".png", ".svg", ".jpg", ".webp", ".gif")}
    assert pictures and pictures <= shown, sorted(pictures - shown)
    others = [f for f in (ROOT / "docs").rglob("*") if f.is_file() and f not in pictures and "__pycache__" not in f.parts]
    assert {f.suffix for f in others} <= {".md", ".py", ".css"}


@pytest.mark.parametrize("page", documents())
def test_lines_are_short(page: str) -> None:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert not [f"{page}:{number}" for number, line in enumerate(lines, 1) if len(line) > 120]


def test_files_that_are_named_exist() -> None:
    """In sentences, docstrings and comments: ``docs/concepts.md``, ``tests/cli/test_limits.py``."""
    sources = [ROOT / folder for folder in ("adanat_toolkit", "plugins", "cli", "benchmarks", "recipes", "examples")]
    files = [file for folder in sources for file in folder.rglob("*.py")] + [ROOT / page for page in documents()]
    for file in files:
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w/.])(?:docs|benchmarks|recipes|tests/\w+|examples)/[\w/-]+\.(?:md|png|py|sh)\b", text):
            assert (ROOT / name).is_file(), f"{file.relative_to(ROOT)} names {name}"


# --- commands ---------------------------------------------------------------------------------------------------------


def parse(words: list[str]) -> None:
    """Parse ``adanat ...`` without running it: raises where a command, option, value, preset or setting does not exist."""
    command, rest, name = hooks().application(), words[1:], "adanat"
    while True:
        context = command.make_context(name, list(rest))
        children = getattr(command, "commands", {})
        if not children or not context._protected_args + context.args:
            break
        name, *rest = [*context._protected_args, *context.args]
        assert name in children, f"adanat has no command {name}"
        command = children[name]
    given = context.params
    if "preset" in given or given.get("set_"):
        resolve(preset=given.get("preset", "default"), overrides=() if name == "check" else given.get("set_") or ())
    if name == "train" and given.get("reward") and "," not in given["reward"] and given["reward"] != "my-reward":
        options = load("reward", given["reward"].partition(":")[0]).Options.model_fields
        for text in given.get("set_") or ():
            key = text.partition("=")[0]
            assert not key.startswith("reward.options.") or key.split(".")[2] in options, text


def without_launcher(words: list[str]) -> list[str]:
    """``torchrun ... -m adanat_cli -- train`` and ``python -m adanat_cli train`` -> ``adanat train``."""
    if words[0] == "torchrun":  # its own parser has the first word
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(words[1:])
        assert given.module and given.training_script == "adanat_cli", words
        return ["adanat", *given.training_script_args]
    return ["adanat", *words[words.index("adanat_cli") + 1 :]] if "adanat_cli" in words else words


@pytest.mark.parametrize("page", pages())
def test_commands_exist(page: str) -> None:
    """In every block, marked or not, and in the sentences between them."""
    assert not re.search(r"^(?: {4}|\t)(?:adanat|make|pip|python) ", prose(page), re.MULTILINE), "fence it: ```bash"
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(page):
        assert set(block.needs) <= set(NEEDS), f"{block.place}: unknown mark {block.needs}; known: {', '.join(NEEDS)}"
        if block.language not in SHELL:
            continue
        for words in map(without_launcher, block.commands()):
            if words[0] == "adanat":
                try:
                    parse(words)
                except Exception as error:
                    pytest.fail(f"{block.place}: {' '.join(words)}: {getattr(error, 'message', error)}")
            elif words[0] == "make":
                assert set(words[1:]) <= targets, f"{block.place}: no such target: {words}"
            elif words[0] == "python" and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file(), f"{block.place}: no such file: {words[1]}"
            if words[0] != "adanat":
                assert block.needs, f"{block.place}: {words[0]} is not run; mark the block <!-- needs: ... -->"
    for words in inline_commands(page):
        known = {"-".join(path[1:]): command for path, command in hooks().walk(hooks().application())}
        command = known.get("-".join(words[1:3])) or known.get(words[1])
        assert command is not None, f"{page}: no command {' '.join(words)}"
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        wrong = [word for word in words if word.startswith("--") and word.partition("=")[0] not in {*options, "--help"}]
        assert not wrong, f"{page}: `{' '.join(words)}` has no option {' '.join(wrong)}"


def runnable(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language in SHELL and not block.needs]


def smaller_discriminator(prefix: str = "reward.options.") -> list[str]:
    return [word for option in SMALLER_DISCRIMINATOR for word in ("--set", prefix + option)]


def smaller(words: list[str]) -> list[str]:
    """The same command with a budget of about a second."""
    _, name, *rest = without_launcher(words)
    if "--gpus" in rest:  # one process here; tests/runtime/test_many_processes.py starts several
        del rest[rest.index("--gpus") : rest.index("--gpus") + 2]
    extra = list(SMALLER.get(name, []))
    if name == "train" and not {"--dry-run", "--config"} & set(rest):
        reward = rest[rest.index("--reward") + 1] if "--reward" in rest else "adversarial"
        if reward.startswith("adversarial"):
            extra += smaller_discriminator("reward.options." + ("options.adversarial." if "," in reward else ""))
    return [name, *rest, *extra]


class Reader:
    """Types the commands of pages, each page in a folder of its own; what several pages show is run once."""

    def __init__(self) -> None:
        self.ran: dict[tuple[str, ...], Path | None] = {}
        """Commands without ``--out``; of trainings, where the run is."""

    def __call__(self, words: list[str], place: str) -> None:
        at = words.index("--out") if words[0] == "train" and "--out" in words else None
        key = tuple(words if at is None else words[:at] + words[at + 2 :])
        if at is None and key in self.ran:
            return
        out = None if at is None else Path(words[at + 1]).absolute()
        made = self.ran.get(key)
        if out is not None and made is not None:
            if not out.exists():
                shutil.copytree(made, out)
            return
        result = adanat(*words)
        assert result.exit_code == 0, f"{place}: adanat {' '.join(words)}\n{result.stderr}"
        self.ran[key] = out


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


def prepare(folder: Path) -> None:
    """Files that the pages' commands name."""
    (folder / "prompts.txt").write_text("3d emoji of a red apple\nflat emoji of a dog face\n")
    photo = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(photo).ellipse((12, 12, 52, 52), fill="gold")
    photo.save(folder / "photo.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    mask.save(folder / "mask.png")
    for name, colour in (("3", "red"), ("17", "blue")):  # class ids
        (folder / "my-images" / name).mkdir(parents=True)
        for i in range(8):
            picture = photo.copy()
            picture.putpixel((i, 0), (0, 0, 0))
            ImageDraw.Draw(picture).rectangle((20, 20, 30 + i, 40), fill=colour)
            picture.save(folder / "my-images" / name / f"{i}.png")


@pytest.mark.parametrize("page", [page for page in PAGES_WITH_COMMANDS if runnable(page)])
def test_commands_run(page: str, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    for block in runnable(page):
        for words in map(smaller, block.commands()):
            if any("runs/first" in word for word in words) and words[0] != "train" and not Path("runs/first").exists():
                reader(smaller(["adanat", "train", "--preset", "demo", "--out", "runs/first"]), block.place)
            reader(words, block.place)


# --- other blocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in pages() if any(b.language == "python" for b in blocks(page))])
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other in one namespace."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, block.page, "exec")
            if page not in RUN_ELSEWHERE and not block.needs:
                exec(code, names)
            for imported in re.findall(r"^(?:from|import) [^\n#]+", block.text, re.MULTILINE) if block.needs else ():
                exec(imported, {})


@pytest.mark.parametrize("page", pages())
def test_settings_files_parse(page: str) -> None:
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.language in ("yaml", "yml"):
            yaml.safe_load(block.text)


# --- logged names -----------------------------------------------------------------------------------------------------

LOGGED_NAMES = "docs/logged-names.md"


def explained() -> dict[str, re.Pattern[str]]:
    """Every name in the first column of the page's tables, with what it stands for."""
    head, names = "", []
    for line in (ROOT / LOGGED_NAMES).read_text().splitlines():
        cell = line.split("|")[1].strip() if line.startswith("|") else ""
        head = "" if not cell else head or cell
        if head == "name":
            names += re.findall(r"`([^`]+)`", cell)
    figures = [name.partition("/")[2] for name in names if name.startswith("reward_model/") and "TERM" not in name]
    stands_for = {
        "KNOB": "|".join(knob.name for knob in TOKEN_KNOBS),
        "STATISTIC": "|".join(statistic_names(True)),
        "STEP": r"\d+",
        "TERM": r"[\w:-]+(?:/[\w-]+)*",
        "NAME": "|".join(figures),
    }
    patterns = {}
    for name in names:
        pattern = re.escape(name)
        for word, meaning in stands_for.items():
            pattern = pattern.replace(word, f"(?:{meaning})")
        patterns[name] = re.compile(pattern)
    return patterns


def test_every_logged_name_is_explained(tmp_path: Path) -> None:
    short = ["--steps", "2", "--trajectories", "32", "--batch", "16", "--set", "ppo.epochs=1"]
    watched = ["--generator", "mage", "--reward", "adversarial:1,fid:influence:0.3", "--set", "evaluate_every=1"]
    watched += ["--set", "evaluate_images=16", "--policy", "lean"]
    runs = {
        "mixture": [*watched, *smaller_discriminator("reward.options.options.adversarial.")],
        "alone": smaller_discriminator(),
        "baseline": [*smaller_discriminator(), "--set", "ppo.context_baseline=true"],
        "sb3": [*smaller_discriminator(), "--engine", "sb3"],
        "offline": [*smaller_discriminator(), "--engine", "offline"],
        "slopes": [*smaller_discriminator(), "--engine", "slopes", "--policy", "linear", "--set", "ppo.epochs=4"],
    }
    logged: dict[str, set[str]] = {}
    for name, options in runs.items():
        result = adanat("train", *short, *options, "--out", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        logged[name] = {key for row in RunFolder(tmp_path / name).metrics() for key in row}
    patterns = explained()
    everything = set().union(*logged.values())
    unexplained = sorted(name for name in everything if not any(p.fullmatch(name) for p in patterns.values()))
    assert not unexplained, f"{LOGGED_NAMES} does not explain {unexplained}"
    # And nothing on the page has gone: what a mixture logs of a term counts for the name without it.
    everything |= {re.sub(r"^reward_model/.+/", "reward_model/", name) for name in everything} | {"alarms"}
    gone = [name for name, p in patterns.items() if not any(map(p.fullmatch, everything))]
    assert not gone, f"{LOGGED_NAMES} explains {gone}, which no run logs"
    # What the page says of the other engines.
    own = {"ppo/": logged["alone"], "fit/": logged["offline"]}
    named = {prefix: {name for name in names if name.startswith(prefix)} for prefix, names in own.items()}
    assert logged["offline"] - named["fit/"] == logged["alone"] - named["ppo/"] | {"diversity"}, "its contexts are shared"
    assert logged["alone"] - logged["sb3"] == {"seconds_score"}
    assert logged["sb3"] <= logged["alone"]


def test_every_alarm_is_explained() -> None:
    page = (ROOT / LOGGED_NAMES).read_text().partition("## Alarms")[2]
    assert set(RULES) == set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))


def test_every_figure_is_explained() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text().partition("| figure | says |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == FIGURES


def test_the_notice_is_linked() -> None:
    assert (FOLDER / "NOTICE.md").is_file()
    assert "plugins/adanat_plugins/emoji64/NOTICE.md" in (ROOT / "README.md").read_text()
    assert "(emoji64-notice.md)" in (ROOT / "docs" / "licences.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_policies_of_examples_have_names_of_their_own() -> None:
    """A kind that is registered cannot be registered again."""
    page = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
    kinds = set(re.findall(r'^    kind = "([^"]+)"', page, re.MULTILINE))
    assert kinds and kinds.isdisjoint(plugin.name for plugin in discover("policy"))
