"""Extension points: named things of one kind, built in or added by a plugin, chosen by name in a job or a command.

A plugin is a Python module that registers things when it is imported. It is named by the environment, never by a spec:
by an entry point of the group ``yolofleet.plugins`` of an installed package, or by ``YOLOFLEET_PLUGINS=module,module``.
So a job from a stranger can choose among what is installed, but cannot run code of its own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from yolofleet.core.errors import UserError
from yolofleet.core.text import did_you_mean, first_line

PLUGINS_GROUP = "yolofleet.plugins"
PLUGINS_VARIABLE = "YOLOFLEET_PLUGINS"

Item = TypeVar("Item")


class UnknownNameError(UserError):
    """No such name at an extension point."""


class ExtensionPoint(Generic[Item]):
    """Things of one kind by name. Plugins are imported when a name is not built in, or when all names are asked for.

    Args:
        kind: What is registered, for messages: "augmentation".
        home: The module that registers the built-in things, imported when names are first asked for; where None, the
            module that defines the extension point does.
    """

    def __init__(self, kind: str, *, home: str | None = None) -> None:
        self._kind = kind
        self._home = home
        self._items: dict[str, Item] = {}

    def register(self, name: str) -> Callable[[Item], Item]:
        """Return a decorator that registers a class or a function under a name.

        Raises:
            UserError: The name is taken.
        """

        def add(item: Item) -> Item:
            if name in self._items:
                raise UserError(
                    f"{self._kind} '{name}' is registered twice, by {_origin(self._items[name])} and by "
                    f"{_origin(item)}; give one of them another name"
                )
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> Item:
        """Return what is registered under a name.

        Raises:
            UnknownNameError: Nothing is; names the nearest and all that there are.
        """
        if name not in self.built_in():
            load_plugins()
        if name not in self._items:
            known = ", ".join(sorted(self._items)) or "none"
            raise UnknownNameError(
                f"no {self._kind} '{name}'{did_you_mean(name, self._items)} (registered: {known}; a plugin adds more "
                f"where it is installed or named in {PLUGINS_VARIABLE})"
            )
        return self._items[name]

    def built_in(self) -> list[str]:
        """Return the names that are registered without importing plugins."""
        if self._home is not None:
            importlib.import_module(self._home)
        return list(self._items)

    def names(self) -> list[str]:
        """Return all names, in the order of registration: the built-in ones first."""
        self.built_in()
        load_plugins()
        return list(self._items)

    def items(self) -> dict[str, Item]:
        """Return all that is registered, by name, in the same order."""
        self.names()
        return dict(self._items)


@cache
def load_plugins() -> tuple[str, ...]:
    """Import every plugin, once a process; returns their names.

    Raises:
        UserError: A plugin cannot be imported.
    """
    points = sorted(entry_points(group=PLUGINS_GROUP), key=lambda point: point.name)
    modules = [name.strip() for name in os.environ.get(PLUGINS_VARIABLE, "").split(",") if name.strip()]
    for point in points:
        _load(point.load, f"plugin '{point.name}' ({point.value}, entry point {PLUGINS_GROUP})", "uninstall it")
    for name in modules:
        _load(partial(importlib.import_module, name), f"{PLUGINS_VARIABLE}: plugin '{name}'", "leave it out")
    return (*(point.name for point in points), *modules)


def _load(action: Callable[[], object], plugin: str, remedy: str) -> None:
    try:
        action()
    except UserError:
        raise
    except Exception as error:  # a plugin is foreign code: whatever it raises, the user must learn which one it was
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{plugin} cannot be imported: {reason}; it must be a module on the Python path of every process (set "
            f"PYTHONPATH or install it), or {remedy}"
        ) from error


def _origin(item: object) -> str:
    return f"{getattr(item, '__module__', '?')}.{getattr(item, '__qualname__', item)}"
