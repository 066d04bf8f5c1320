"""What the names in a pickle stand for: values of ours, opaque notes, or a refusal.

Safety does not rest on these lists, because `pickle_machine` never imports and never calls what
a file names. They decide two other things: which few names are given a meaning, and which files
are refused loudly, because an honest checkpoint has no use for what they name. What is left are
classes of training programs (callbacks, configurations, optimizers), which end up as `Opaque`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from sfumato.checkpoints.pickle_machine import Name, Opaque, PickleError


class RefusedName(PickleError):
    """A pickle names something that only an attack, or a mistake, would name."""

    def __init__(self, name: Name) -> None:
        super().__init__(f"it asks for `{ascii(str(name))[1:-1][:80]}`")


#: Python's own modules under their names of today and of Python 2.
_STANDARD = frozenset(sys.stdlib_module_names) | set(
    """__builtin__ commands copy_reg cPickle cStringIO distutils exceptions imp new nt os2 popen2
    riscos test urllib2 __main__.__builtins__""".split()  # noqa: SIM905
)

#: Libraries with many functions that run things, of which no class belongs into a checkpoint.
_LIBRARIES = frozenset(
    """IPython aiohttp cloudpickle dill fabric fickling fsspec gradio invoke jinja2 joblib keras
    numba pandas paramiko picklescan pip pkg_resources psutil pytest requests scipy setuptools
    sfumato sklearn tensorflow tornado urllib3 werkzeug wheel""".split()  # noqa: SIM905
)

#: Classes and functions of Python, torch and NumPy that may appear; patterns over the whole name.
_HARMLESS = re.compile(
    r"""
    collections\.(OrderedDict|defaultdict|Counter|deque|ChainMap|UserDict|UserList)
    | (builtins|__builtin__)\.(list|dict|set|frozenset|tuple|bytes|bytearray|str|unicode|int|long
        |float|bool|complex|range|xrange|slice|object|type|NotImplementedType|Ellipsis)
    | (copyreg|copy_reg)\.(_reconstructor|__newobj__|__newobj_ex__)
    | typing\.\w+ | types\.(SimpleNamespace|GenericAlias|MappingProxyType|NoneType)
    | argparse\.Namespace | uuid\.(UUID|SafeUUID) | decimal\.Decimal | fractions\.Fraction
    | datetime\.(date|datetime|time|timedelta|timezone) | enum\.\w*(Enum|Flag)
    | pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path | re\._compile
    | torch\.(Size|device|dtype|layout|memory_format|Tensor|strided|contiguous_format
        |channels_last|preserve_format|Generator)
    | torch\.(float|double|half|bfloat|int|uint|short|long|bool|complex|quint|qint|float8_e)\w*
    | torch\.nn\.(parameter\.)?Parameter | torch\.torch_version\.TorchVersion
    | torch\.(nn\.modules|optim)\.[\w.]*\.?[A-Z]\w*
    | torch\.serialization\._get_layout
    | torch(\.cuda)?\.\w+Storage | torch\.storage\.(Typed|Untyped|_Untyped|_Typed)?Storage
    | numpy\.(dtype|ndarray|bool_?|u?int\d*|float\d*|complex\d*|str_|bytes_|longlong|intc)
    | numpy\.dtypes\.\w+DType
    | numpy\.(_core|core)\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)
    | numpy\.random\._(pickle|mt19937|pcg64|philox|sfc64)\.\w+
    """,
    re.VERBOSE,
)


def check_name(name: Name) -> None:
    """Raise `RefusedName` for what has no place in a checkpoint."""
    if _HARMLESS.fullmatch(str(name)):
        return
    root = name.module.strip().partition(".")[0]
    known = root in _STANDARD or root in _LIBRARIES or root in ("torch", "numpy", "")
    hidden = "__" in name.name or "__" in name.module.removeprefix("__main__")
    if known or hidden:
        raise RefusedName(name)


def make(name: Name, arguments: tuple[Any, ...]) -> Any:
    """What a class or function with these arguments is taken for.

    Raises:
        RefusedName: see `check_name`.
        PickleError: arguments that the real class or function would not take.
    """
    maker = _MAKERS.get(str(name))
    if maker is None:
        check_name(name)
        return Opaque(name, arguments)
    try:
        return maker(*arguments)
    except TypeError:
        raise PickleError(f"the pickle calls `{name}` with wrong arguments") from None


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    """An ordered, default or counting dictionary; entries mostly follow later."""
    pairs = next((a for a in arguments if isinstance(a, dict | list | tuple)), ())
    if isinstance(pairs, dict):
        return dict(pairs)
    result: dict[Any, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise PickleError("the pickle has a dictionary whose entries are no pairs")
        result[pair[0]] = pair[1]
    return result


def _list(elements: Any = (), *rest: Any) -> list[Any]:
    return list(elements) if isinstance(elements, list | tuple) else []


def _bytes(text: Any = "", encoding: Any = "latin1", *rest: Any) -> bytes:
    """``_codecs.encode``, with which old protocols write bytes."""
    if isinstance(text, bytes) or not text:
        return text or b""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleError("the pickle encodes something in an unusual way")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise PickleError("the pickle has bytes that are none") from None


def _reconstructed(name: Any, base: Any = None, state: Any = None) -> Any:
    """``copyreg._reconstructor``: an object of an ordinary class, as protocols 0 and 1 write it."""
    if not isinstance(name, Name):
        raise PickleError("the pickle is damaged")
    return make(name, (state,) if isinstance(state, dict | list) else ())


def _new(name: Any = None, *arguments: Any) -> Any:
    if not isinstance(name, Name):
        raise PickleError("the pickle is damaged")
    return make(name, arguments)


def _member(owner: Any = None, name: Any = None) -> Opaque:
    """``getattr``, as Python 3.11 writes members of an enumeration; of nothing else."""
    attribute = Name("builtins", "getattr")
    if not isinstance(owner, Name) or not isinstance(name, str) or not name.isidentifier():
        raise RefusedName(attribute)
    if name.startswith("_") or owner.module.partition(".")[0] in _STANDARD | {"torch", "numpy"}:
        raise RefusedName(attribute)
    check_name(owner)
    return Opaque(owner, (name,))


_MAKERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.deque": _list,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    "copyreg.__newobj__": _new,
    "_codecs.encode": _bytes,
    "builtins.getattr": _member,
    "torch.Size": _list,
    **{
        f"{module}.{name}": maker
        for module in ("builtins", "__builtin__")
        for name, maker in (
            ("dict", _dictionary),
            ("list", _list),
            ("set", _list),
            ("frozenset", _list),
            ("tuple", _list),
            ("bytes", _bytes),
            ("bytearray", _bytes),
        )
    },
}
