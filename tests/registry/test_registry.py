"""Plug-ins of real (temporary) distributions on sys.path: broken, slow, clashing, malformed, unknown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adanat_toolkit.errors import ConfigError, DataError, PluginError
from adanat_toolkit.interfaces import Engine, Generator, PluginOptions, Policy, RewardModel
from adanat_toolkit.registry import (
    GROUPS,
    create_generator,
    create_reward,
    discover,
    load,
    parse_options,
    plugin_report,
)
from adanat_toolkit.training import Trainer, validate

from ..helpers.cli import adanat
from ..helpers.tiny import TinyGenerator, install_tiny

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with entry points and modules on sys.path."""

    def make(name: str, entry_points: str, folder: str = "site", version: str = "1.2", **modules: str) -> Path:
        site = tmp_path / folder
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"  # as installers normalise it
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(str(site))
        return site

    return make


GOOD = """
from adanat_toolkit.interfaces import PluginOptions, RewardModel

class Options(PluginOptions):
    scale: float = 1.0
    variant: str | None = None

class Brightness(RewardModel):
    Options = Options

    def __init__(self, options, *, generator, real, device, seed):
        self.options = options

    def score(self, images, context):
        return self.options.scale * images.mean((1, 2, 3))

class Picky(Brightness):
    needs = frozenset({"real_images"})
"""


def test_first_party_plugins_are_found() -> None:
    names = {kind: {p.name for p in discover(kind)} for kind in GROUPS}
    assert {"adaptive", "context", "lean", "linear", "residual", "shared", "fixed"} == names["policy"]
    assert {"maskgit"} <= names["generator"] and {"adanat", "offline", "sb3", "slopes"} == names["engine"]
    assert "adversarial" in names["reward"]
    for kind, base in (("generator", Generator), ("reward", RewardModel), ("policy", Policy), ("engine", Engine)):
        for plugin in discover(kind):
            assert plugin.distribution == "adanat-toolkit" and not plugin.shadowed
            assert issubclass(plugin.load(), base)


def test_a_third_party_plugin_works(install: Install) -> None:
    install("brighter", "[adanat.rewards]\nbrightness = brighter_rewards:Brightness\n", brighter_rewards=GOOD)
    (plugin,) = [p for p in discover("reward") if p.name == "brightness"]
    assert (plugin.distribution, plugin.version, plugin.target) == ("brighter", "1.2", "brighter_rewards:Brightness")
    assert "brighter_rewards" not in sys.modules  # discovery imports nothing
    generator: Generator = TinyGenerator()
    common = {"generator": generator, "real": None, "device": torch.device("cpu"), "seed": 0}
    reward = create_reward("brightness", {"scale": 2}, **common)
    images = torch.rand(3, 3, 4, 4)
    assert torch.allclose(reward.score(images, generator.encode_classes([0, 1, 2])), 2 * images.mean((1, 2, 3)))
    assert create_reward("brightness:warm", **common).options.variant == "warm"
    with pytest.raises(ConfigError, match=r"options of reward 'brightness'.*'scal'; did you mean 'scale'"):
        create_reward("brightness", {"scal": 2}, **common)


def test_missing_real_images(install: Install) -> None:
    install("brighter2", "[adanat.rewards]\npicky = brighter_rewards2:Picky\n", brighter_rewards2=GOOD)
    with pytest.raises(DataError, match=r"'picky' needs real images, and tiny:class ships none\. Give --data"):
        create_reward("picky", generator=TinyGenerator(), real=None, device=torch.device("cpu"), seed=0)


BROKEN = {
    "absent": ("import a_package_that_is_not_installed\n", "ModuleNotFoundError: No module named 'a_package"),
    "old": ("raise RuntimeError('driver too old')\n", "RuntimeError: driver too old"),
    "leaves": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "unparsed": ("class Broken(:\n", "SyntaxError"),
    "empty": ("other = 1\n", "AttributeError"),
}


def test_a_broken_plugin_stops_only_itself(install: Install) -> None:
    points = "".join(f"{name} = broken_{name}:Broken\n" for name in BROKEN)
    install(
        "broken-pack",
        f"[adanat.policies]\n{points}",
        **{f"broken_{name}": source for name, (source, _) in BROKEN.items()},
    )
    assert {"adaptive", *BROKEN} <= {p.name for p in discover("policy")}
    assert load("policy", "adaptive").kind == "adaptive"
    for name, (_, reported) in BROKEN.items():
        with pytest.raises(PluginError, match=rf"policy '{name}' of broken-pack 1\.2 could not be loaded") as caught:
            load("policy", name)
        assert reported in str(caught.value)


def test_plugins_that_hang_crash_or_clash_stop_no_other(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list waits a stated time for each; help and training import none of them."""
    install(
        "hopeless",
        "[adanat.generators]\nhangs = hangs_module:G\n[adanat.rewards]\ncrashes = crashes_module:R\n"
        "[adanat.policies]\nloud = loud_module:P\nadaptive = hangs_module:P\n",
        hangs_module="import time\ntime.sleep(600)\n",
        crashes_module="import os\nos.abort()\n",
        loud_module="from adanat_toolkit.interfaces import Policy\nprint('{}')\nclass P(Policy): ...\n",
    )
    install("brighter3", "[adanat.rewards]\nwell = brighter_rewards3:Brightness\n", brighter_rewards3=GOOD)
    start = time.monotonic()
    rows = {(row["kind"], row["name"], row["distribution"]): row for row in plugin_report(time_limit=1)}
    assert time.monotonic() - start < 100  # and not 600
    assert {key[1:]: row["status"] for key, row in rows.items() if key[2] != "adanat-toolkit"} == {
        ("hangs", "hopeless"): "slow",
        ("crashes", "hopeless"): "broken",
        ("loud", "hopeless"): "ok",
        ("adaptive", "hopeless"): "shadowed",
        ("well", "brighter3"): "ok",
    }
    assert "no answer in 1 s while hangs_module:G" in rows["generator", "hangs", "hopeless"]["error"]
    assert "ended the process that imported it" in rows["reward", "crashes", "hopeless"]["error"]
    assert {row["status"] for row in rows.values() if row["distribution"] == "adanat-toolkit"} == {"ok"}
    assert adanat("--help").exit_code == 0
    install_tiny(tmp_path / "tiny", monkeypatch)
    config = {
        "generator": {"name": "tiny"},
        "reward": {"name": "well"},
        "steps": 1,
        "batch": 4,
        "trajectories": 4,
        "device": "cpu",
    }
    assert Trainer(validate(config)).run(tmp_path / "run")["iteration"] == 1
    assert not {"hangs_module", "crashes_module"} & set(sys.modules)


def test_name_clash_first_party_wins(install: Install) -> None:
    install("aaa-clash", "[adanat.policies]\nadaptive = clash_module:Other\nnew = clash_module:Other\n")
    found = {(p.name, p.distribution): p.shadowed for p in discover("policy")}
    assert found["adaptive", "adanat-toolkit"] is False and found["adaptive", "aaa-clash"] is True
    assert found["new", "aaa-clash"] is False
    assert load("policy", "adaptive").__module__ == "adanat_toolkit.policies.networks"


def test_name_clash_of_third_parties_is_alphabetical(install: Install) -> None:
    install("zebra", "[adanat.rewards]\nsame = zebra_module:R\n")
    install("ant", "[adanat.rewards]\nsame = ant_module:R\n")
    assert [(p.distribution, p.shadowed) for p in discover("reward") if p.name == "same"] == [
        ("ant", False),
        ("zebra", True),
    ]


def test_distribution_twice_on_the_path(install: Install) -> None:
    install("twice", "[adanat.rewards]\ndouble = old_module:R\n", folder="second", version="1.0")
    install("twice", "[adanat.rewards]\ndouble = new_module:R\n", folder="first", version="2.0")  # put in front
    (plugin,) = [p for p in discover("reward") if p.name == "double"]
    assert (plugin.version, plugin.target, plugin.shadowed) == ("2.0", "new_module:R", False)


@pytest.mark.parametrize("content", ["[adanat.rewards]\nbad bad bad\n", "no section\n", "[a]\nx = 1\nx = 2\n"])
def test_a_malformed_file_stops_only_its_distribution(content: str, install: Install) -> None:
    install("malformed", content)
    install("fine", "[adanat.rewards]\nfine = fine_module:Brightness\n", fine_module=GOOD)
    with pytest.warns(UserWarning, match="malformed-1.2.dist-info"):
        names = [p.name for p in discover("reward")]
    assert {"fine", "adversarial"} <= set(names)


def test_an_unreadable_target_is_skipped(install: Install) -> None:
    install("odd", "[adanat.rewards]\nodd = not a target!\nwhole-module = odd_module\n", odd_module="value = 4\n")
    with pytest.warns(UserWarning, match="not a target!"):
        names = {p.name: p for p in discover("reward")}
    assert "odd" not in names and "adversarial" in names
    with pytest.raises(PluginError, match="is a module"):
        names["whole-module"].load()


@pytest.mark.parametrize(
    ("kind", "name", "guess"), [("generator", "maskgti", "maskgit"), ("policy", "shred", "shared")]
)
def test_unknown_names_get_suggestions(kind: str, name: str, guess: str) -> None:
    with pytest.raises(PluginError, match=rf"unknown {kind} '{name}'; did you mean '{guess}'.*Installed: "):
        load(kind, name)
    with pytest.raises(PluginError, match=r"unknown reward 'qqqqqq'\. Installed: "):
        load("reward", "qqqqqq")


def test_an_unknown_name_starts_no_process_and_imports_nothing(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import pathlib\npathlib.Path(__file__).with_suffix('.imported').touch()\n"
    site = install("curious", "[adanat.policies]\nadaptive-two = curious_module:P\n", curious_module=source)
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a process was started"))
    with pytest.raises(PluginError, match=r"unknown policy 'adaptive-tow'; did you mean 'adaptive-two'"):
        load("policy", "adaptive-tow")
    assert not (site / "curious_module.imported").exists()


def test_unknown_variant() -> None:
    with pytest.raises(ConfigError, match="did you mean 'emoji64'"):
        create_generator("maskgit:emoji46", device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(PluginError, match="unknown generator"):
        create_generator("nothing:emoji64", device=torch.device("cpu"), dtype=torch.float32)


def test_options_errors_name_the_key() -> None:
    class Options(PluginOptions):
        width: int = 8

    assert parse_options("x", Options, {"width": 3}).width == 3
    wrong = r"options of x: width = 'wide': needed is a whole number, found text; write width: 8\."
    with pytest.raises(ConfigError, match=wrong):
        parse_options("x", Options, {"width": "wide"})
    with pytest.raises(ConfigError, match=r"unknown key 'widht'; did you mean 'width'\? Known: width\."):
        parse_options("x", Options, {"widht": 3})
    with pytest.raises(ConfigError, match=r"unknown key 'width'.* Known: none\."):
        parse_options("x", PluginOptions, {"width": 3})


@pytest.mark.parametrize(
    ("target", "what"),
    [("odd", "a module"), ("odd:make", "a function"), ("odd:Foreign", "the class Foreign"), ("odd:TABLE", "a dict")],
)
@pytest.mark.parametrize("kind", list(GROUPS))
def test_an_entry_point_that_names_something_else(kind: str, target: str, what: str, install: Install) -> None:
    source = "TABLE = {}\ndef make(*a, **k): ...\nclass Foreign:\n    @classmethod\n    def variants(cls):\n        return ()\n"
    install("odd-things", f"[{GROUPS[kind]}]\nodd = {target}\n", odd=source)
    with pytest.raises(PluginError, match=rf"{kind} 'odd' of odd-things 1.2 is {what} .*must name a subclass of"):
        load(kind, "odd")


def test_the_list_names_entry_points_of_something_else(install: Install) -> None:
    source = "def make(*a, **k): ...\nclass Foreign: ...\n"
    points = "\n".join(
        f"[{group}]\nmodule = odd\nfunction = odd:make\nforeign = odd:Foreign" for group in GROUPS.values()
    )
    install("odd-things", points, odd=source)
    rows = [row for row in plugin_report() if row["distribution"] == "odd-things"]
    assert len(rows) == 3 * len(GROUPS)
    for row in rows:
        assert row["status"] == "broken" and "must name a subclass of" in row["error"], row
