"""Extension points: names are checked, plugins come from the environment and are imported once."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from yolofleet.core import extension_points
from yolofleet.core.errors import UserError
from yolofleet.core.extension_points import ExtensionPoint, UnknownNameError, load_plugins


@pytest.fixture(autouse=True)
def plugins_not_yet_loaded(monkeypatch):
    monkeypatch.delenv("YOLOFLEET_PLUGINS", raising=False)
    monkeypatch.setattr(extension_points, "entry_points", lambda group: [])
    load_plugins.cache_clear()
    yield
    load_plugins.cache_clear()


def test_what_is_registered_is_returned_by_its_name_in_order():
    point = ExtensionPoint[object]("shape")

    @point.register("square")
    def square():
        pass

    point.register("circle")(round)
    assert point.get("square") is square
    assert point.names() == ["square", "circle"]
    assert point.items() == {"square": square, "circle": round}


def test_an_unknown_name_is_refused_with_the_nearest_and_all_names():
    point = ExtensionPoint[object]("shape")
    point.register("square")(object())
    point.register("circle")(object())
    with pytest.raises(UnknownNameError, match=r"no shape 'sqare'; did you mean 'square'\? \(registered: circle, squ"):
        point.get("sqare")


def test_a_name_is_registered_once():
    point = ExtensionPoint[object]("shape")
    point.register("square")(round)
    with pytest.raises(UserError, match=r"shape 'square' is registered twice, by builtins.round and by builtins.abs"):
        point.register("square")(abs)


def test_built_in_things_come_from_their_home_module_once_names_are_asked_for(tmp_path, monkeypatch):
    (tmp_path / "home_of_shapes.py").write_text("import builtins\nbuiltins.HOST.register('square')('square')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = ExtensionPoint[object]("shape", home="home_of_shapes")
    monkeypatch.setattr("builtins.HOST", point, raising=False)
    assert "home_of_shapes" not in sys.modules
    assert point.get("square") == "square"
    point.register("circle")("circle")
    assert (point.built_in(), point.names()) == (["square", "circle"], ["square", "circle"])


PLUGIN = (
    "import builtins\nbuiltins.num_imports = getattr(builtins, 'num_imports', 0) + 1\nHOST.register('{0}')('{0}')\n"
)


def write_plugin(folder, name, text):
    (folder / f"{name}.py").write_text(text)


def test_plugins_of_the_environment_and_of_installed_packages_are_imported_once(tmp_path, monkeypatch):
    point = ExtensionPoint[object]("shape")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("builtins.HOST", point, raising=False)
    monkeypatch.setattr("builtins.num_imports", 0, raising=False)
    for name in ("plugin_one", "plugin_two", "plugin_three"):
        write_plugin(tmp_path, name, PLUGIN.format(name))
    monkeypatch.setenv("YOLOFLEET_PLUGINS", "plugin_one, plugin_two,")
    installed = [EntryPoint("three", "plugin_three", "yolofleet.plugins")]
    monkeypatch.setattr(extension_points, "entry_points", lambda group: installed)
    assert point.get("plugin_two") == "plugin_two"
    assert sorted(point.names()) == ["plugin_one", "plugin_three", "plugin_two"]
    assert load_plugins() == ("three", "plugin_one", "plugin_two")
    import builtins

    assert builtins.num_imports == 3


def test_a_name_that_is_built_in_needs_no_plugin(monkeypatch):
    monkeypatch.setenv("YOLOFLEET_PLUGINS", "there_is_no_such_module")
    point = ExtensionPoint[object]("shape")
    point.register("square")(round)
    assert point.get("square") is round


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "ModuleNotFoundError: No module named 'bad_plugin'"), ("1 / 0", "ZeroDivisionError: division by zero")],
)
def test_a_plugin_that_cannot_be_imported_is_named_with_its_cure(tmp_path, monkeypatch, text, reason):
    if text is not None:
        write_plugin(tmp_path, "bad_plugin", text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("YOLOFLEET_PLUGINS", "bad_plugin")
    with pytest.raises(UserError) as caught:
        ExtensionPoint[object]("shape").names()
    message = str(caught.value)
    assert f"YOLOFLEET_PLUGINS: plugin 'bad_plugin' cannot be imported: {reason}" in message
    assert "leave it out" in message
    sys.modules.pop("bad_plugin", None)


def test_a_plugin_may_read_the_extension_point_while_it_is_imported(tmp_path):
    write_plugin(
        tmp_path,
        "curious_plugin",
        "from yolofleet.core.extension_points import ExtensionPoint\nprint(ExtensionPoint('shape').names())\n",
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "YOLOFLEET_PLUGINS": "curious_plugin"}
    script = "from yolofleet.core.extension_points import load_plugins; print(load_plugins())"
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[]", "('curious_plugin',)"]
