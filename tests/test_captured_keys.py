"""The key of what a function captures changes with it, or says that it cannot tell."""

from __future__ import annotations

import array
import collections
import contextvars
import ctypes
import functools
import sys
import types
from collections import OrderedDict, defaultdict, deque

import numpy as np
import pytest

from dil._layers.captured import Key, UnknownStateError, homes_of

GAIN = 1.0


def set_gain(value):
    global GAIN
    GAIN = value


@pytest.fixture(autouse=True)
def restored():
    yield
    sys.modules.pop("profile", None)
    set_gain(1.0)
    Model.shared = 1.0
    Model.inner = inner


def inner(self, u):
    return GAIN * u


class Model:
    """A score with methods that read what is outside of it."""

    shared = 1.0
    inner = inner

    def by_method(self, u):
        return self.helper(u)

    def helper(self, u):
        return GAIN * u

    def by_class(self, u):
        return self.shared * u

    def by_static(self, u):
        return self.static(u)

    @staticmethod
    def static(u):
        return GAIN * u

    def by_property(self, u):
        return self.gain * u

    @property
    def gain(self):
        return GAIN

    def by_inner(self, u):
        return self.inner(u)


class Child(Model):
    def by_super(self, u):
        return super().helper(u)


class Slotted:
    __slots__ = ("__private",)

    def __init__(self):
        self.__private = 1.0

    def change(self):
        self.__private = 2.0

    def score(self, u):
        return self.__private * u


class Dict(dict):
    """A dictionary with attributes."""


class List(list):
    """A list with attributes."""


class Deque(deque):
    """A deque of the user."""


def with_attribute(holder):
    holder.weight = 1.0
    return lambda u: holder.weight * u, lambda: setattr(holder, "weight", 2.0)


def with_entry(holder, at=0):
    return lambda u: holder[at] * u, lambda: holder.__setitem__(at, 2.0)


def of_a_class():
    return lambda u: Model.shared * u, lambda: setattr(Model, "shared", 2.0)


def of_itself():
    def score(u):
        return score.scale * u

    score.scale = 1.0
    return score, lambda: setattr(score, "scale", 2.0)


def module_in_a_module():
    package = types.ModuleType("package_of_the_user")
    package.config = types.ModuleType("package_of_the_user.config")
    package.config.scale = 1.0
    return lambda u: package.config.scale * u, lambda: setattr(package.config, "scale", 2.0)


def global_module():
    package = types.ModuleType("package_of_the_user")
    package.config = types.ModuleType("package_of_the_user.config")
    package.config.scale = 1.0
    score = eval("lambda u: package.config.scale * u", {"package": package, "__name__": "package_of_the_user"})
    return score, lambda: setattr(package.config, "scale", 2.0)


def module_of_two_functions(name):
    """Two functions read one module, each another name of it."""

    def make():
        package = types.ModuleType("package_of_the_user")
        package.first = package.second = 1.0
        scope = {"package": package, "__name__": "package_of_the_user"}
        exec("def inner(u): return package.second * u\ndef outer(u): return inner(u) * package.first", scope)
        return scope["outer"], lambda: setattr(package, name, 2.0)

    return make


def imported_within():
    sys.modules["config_of_the_user"] = config = types.ModuleType("config_of_the_user")
    config.scale = 1.0

    def score(u):
        import config_of_the_user

        return config_of_the_user.scale * u

    return score, lambda: setattr(config, "scale", 2.0)


def slot():
    holder = Slotted()
    return holder.score, holder.change


def sign_of_zero():
    held = [0.0]
    return lambda u: np.copysign(u, held[0]), lambda: held.__setitem__(0, -0.0)


def variable_of_a_context():
    held = contextvars.ContextVar("held", default=1.0)
    return lambda u: held.get() * u, lambda: held.set(2.0)


def number_of_c():
    held = ctypes.c_double(1.0)
    return lambda u: held.value * u, lambda: setattr(held, "value", 2.0)


class Wrapped:
    """A callable object that looks like the function that it wraps."""

    def __init__(self, fn):
        self.fn, self.scale = fn, 1.0
        functools.update_wrapper(self, fn)

    def __call__(self, u):
        return self.scale * self.fn(u)


def wrapper():
    held = Wrapped(lambda u: u)
    return held, lambda: setattr(held, "scale", 2.0)


class Quantity(float):
    """A number with a unit."""


def number_with_attribute():
    held = Quantity(1.0)
    held.unit = 1.0
    return lambda u: held.unit * u, lambda: setattr(held, "unit", 2.0)


class Operators:
    """An object whose special methods read a global."""

    def __neg__(self):
        return GAIN

    def __float__(self):
        return GAIN

    def __len__(self):
        return int(GAIN)


def special(read):
    held = Operators()
    return lambda u: read(held) * u, lambda: set_gain(2.0)


def module_as_a_default():
    settings = types.ModuleType("settings_of_the_user")
    settings.scale = 1.0

    def score(u, module=settings):
        return module.scale * u

    return score, lambda: setattr(settings, "scale", 2.0)


def module_in_a_dictionary():
    held = {"m": types.ModuleType("settings_of_the_user")}
    held["m"].scale = 1.0
    return lambda u: held["m"].scale * u, lambda: setattr(held["m"], "scale", 2.0)


def module_named_as_one_of_python():
    profile = types.ModuleType("profile")
    profile.__file__, profile.scale = __file__, 1.0
    sys.modules["profile"] = profile
    return lambda u: profile.scale * u, lambda: setattr(profile, "scale", 2.0)


CASES = {
    "an object that wraps a function": wrapper,
    "a number with an attribute": number_with_attribute,
    "a global of a unary operator": lambda: special(lambda held: -held),
    "a global of a conversion": lambda: special(float),
    "a global of a length": lambda: special(len),
    "a module as a default": module_as_a_default,
    "a module in a dictionary": module_in_a_dictionary,
    "a module named as one of Python's": module_named_as_one_of_python,
    "a global of a method": lambda: (Model().by_method, lambda: set_gain(2.0)),
    "a global of a method of an object": lambda: (functools.partial(Model.by_method, Model()), lambda: set_gain(2.0)),
    "a global of the base class": lambda: (Child().by_super, lambda: set_gain(2.0)),
    "a global of a static method": lambda: (Model().by_static, lambda: set_gain(2.0)),
    "a global of a property": lambda: (Model().by_property, lambda: set_gain(2.0)),
    "an attribute of the class": lambda: (Model().by_class, lambda: setattr(Model, "shared", 2.0)),
    "an attribute of a class by its name": of_a_class,
    "a method that is replaced": lambda: (Model().by_inner, lambda: setattr(Model, "inner", lambda self, u: u)),
    "an attribute of the function": of_itself,
    "a module in a module": module_in_a_module,
    "a module in a global module": global_module,
    "a module of two functions, the first": module_of_two_functions("first"),
    "a module of two functions, the second": module_of_two_functions("second"),
    "a module that the function imports": imported_within,
    "a private slot": slot,
    "a dictionary with attributes": lambda: with_attribute(Dict()),
    "a list with attributes": lambda: with_attribute(List()),
    "a namespace": lambda: with_attribute(types.SimpleNamespace()),
    "a deque": lambda: with_entry(deque([1.0])),
    "a deque of the user": lambda: with_entry(Deque([1.0])),
    "an array of Python": lambda: with_entry(array.array("d", [1.0])),
    "an ordered dictionary": lambda: with_entry(OrderedDict(w=1.0), "w"),
    "a dictionary with a default": lambda: with_entry(defaultdict(float, w=1.0), "w"),
    "an array of NumPy": lambda: with_entry(np.ones(2)),
    "the sign of a zero": sign_of_zero,
    "a variable of a context": variable_of_a_context,
    "a number of C": number_of_c,
}
UNKNOWN = {
    "a module in a dictionary",
    "a deque",
    "a deque of the user",
    "an array of Python",
    "a variable of a context",
    "a number of C",
}


def key_of(fn):
    return Key(lambda x: False, homes_of(fn)).of(fn)


@pytest.mark.parametrize("case", CASES)
def test_a_change_changes_the_key(case):
    fn, change = CASES[case]()
    try:
        before = key_of(fn)
    except UnknownStateError:
        assert case in UNKNOWN
        return
    assert case not in UNKNOWN
    assert key_of(fn) == before
    hash(before)
    change()
    assert key_of(fn) != before


def test_not_a_number_has_a_key():
    held = [float("nan")]
    fn = lambda u: held[0] * u  # noqa: E731
    assert key_of(fn) == key_of(fn)


Pair = collections.namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (range(3), range(4)),
        (slice(0, 2), slice(0, 2, -1)),
        (np.dtype("f4"), np.dtype("f8")),
        (Pair(1.0, 2.0), Pair(1.0, 3.0)),
    ],
    ids=["range", "slice", "dtype", "named tuple"],
)
def test_what_cannot_change_has_a_key(first, second):
    held = [first]

    def score(u):
        return u if held else 2 * u

    before = key_of(score)
    assert key_of(score) == before
    held[0] = second
    assert key_of(score) != before
