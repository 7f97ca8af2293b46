"""Registries of classes and functions."""

from functools import partial

from common.errors import UnknownNameError, suggestion


class Registry:
    """Maps names to classes or functions, so that a config can select one by name; errors name their kind ``name``."""

    def __init__(self, name):
        self._name = name
        self._obj_map = {}

    def register(self, obj=None, force=False):
        """Register ``obj``, a class or function, under its ``__name__``; without ``obj``, return a decorator.

        Raises:
            KeyError: the name is taken and ``force`` is False.
        """
        if obj is None:
            return partial(self.register, force=force)
        if obj.__name__ in self._obj_map and not force:
            raise KeyError(f'"{obj.__name__}" is already registered in the {self._name} registry')
        self._obj_map[obj.__name__] = obj
        return obj

    def get(self, name):
        """The object registered under ``name``; UnknownNameError (a UsageError and a KeyError) if there is none."""
        if name not in self._obj_map:
            raise UnknownNameError(f'the {self._name} registry has no "{name}"{suggestion(name, self._obj_map)}')
        return self._obj_map[name]

    def registered_names(self):
        """All names, in the order of registration."""
        return list(self._obj_map)
