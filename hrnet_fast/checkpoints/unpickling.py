"""Unpickling without running foreign code: tensors and plain data are built, every other object becomes inert."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

# The types of the storages that torch.save names, in modules `torch`, `torch.cuda` and `torch.storage`.
STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# Tuples as keys of dictionaries are hashed by recursion in C, which a deep enough one would overflow.
DEEPEST_KEY = 20


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names and that is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert(dict[Any, Any]):
    """What a pickle holds in place of an object of a class that is not built.

    It is a mapping of the object's own entries, where its class derives from a dictionary (an ``OrderedDict`` subclass,
    a configuration); equality and hash are those of identity.

    Attributes:
        kind: what was called to make it: a :class:`Name`, or another inert object.
        args: the arguments of that call.
        state: what ``__setstate__`` would have been given, a dictionary of attributes for most classes, or None.
        elements: what was appended to it, where its class derives from a list or a set.
    """

    __slots__ = ("args", "elements", "kind", "state")
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, kind: Name | Inert, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.kind = kind
        self.args = args
        self.state: Any = None
        self.elements: list[Any] = []

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __repr__(self) -> str:
        return f"<inert {self.kind}>"


@dataclass(frozen=True)
class StorageType:
    """The element type of a storage, as a pickle names it."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """Memory of `numel` elements from byte `start` of `untyped`, which the file's content fills."""

    untyped: torch.UntypedStorage
    dtype: torch.dtype
    numel: int
    start: int = 0


@dataclass(frozen=True)
class _Allowed:
    """A function of this module that stands for what a pickle may call."""

    function: Callable[..., Any]


def refuse(why: str) -> NoReturn:
    """Raise the error of a pickle whose content contradicts itself."""
    raise pickle.UnpicklingError(why)


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or any(type(v) is not int or v < 0 for v in values):
        refuse("a tensor's sizes and strides are not numbers")
    return tuple(values)


def _check_extent(storage: Storage, numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """A tensor lies within its storage, and no two of its elements share memory but in an expanded one."""
    if len(size) != len(stride):
        refuse("a tensor has as many sizes as strides")
    if 0 in size:
        return
    reach = 0
    for step, count in sorted((s, n) for s, n in zip(stride, size, strict=True) if n > 1 and s > 0):
        if step <= reach:
            refuse(f"a tensor's strides {list(stride)} do not fit its size {list(size)}")
        reach += (count - 1) * step
    if offset + reach >= numel:
        refuse(f"a tensor of size {list(size)} reaches beyond its storage of {numel} elements")
    expanded = any(s == 0 and n > 1 for s, n in zip(stride, size, strict=True))
    if expanded and reach + 1 != numel:
        refuse(f"a tensor's strides {list(stride)} do not fit its storage of {numel} elements")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: torch.dtype | None = None) -> Tensor:
    """``_rebuild_tensor`` and ``_rebuild_tensor_v2``; what follows the strides (gradient, hooks) is left out."""
    if not isinstance(storage, Storage):
        refuse("a tensor without a storage")
    size, stride = _sizes(size), _sizes(stride)
    (offset,) = _sizes((offset,))
    dtype = dtype or storage.dtype
    nbytes = storage.numel * storage.dtype.itemsize
    _check_extent(storage, nbytes // dtype.itemsize, offset, size, stride)
    first, rest = divmod(storage.start, dtype.itemsize)
    if rest:
        refuse("a storage that is not aligned to its elements")
    return torch.empty(0, dtype=dtype).set_(storage.untyped, first + offset, size, stride)  # type: ignore[call-overload, no-any-return]


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        refuse("a tensor without a type")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _of_subclass(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """``_rebuild_from_type_v2``: the tensor inside, without the attributes of its subclass."""
    return _call(function, args)


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    out: OrderedDict[Any, Any] = OrderedDict()
    for key, value in items:
        _set(out, key, value)
    return out


def _elements(items: Any = ()) -> list[Any]:
    if not isinstance(items, (list, tuple, set, frozenset)):
        refuse("a set of what is no list")
    for item in items:
        _check_key(item)
    return list(items)


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    """``_codecs.encode``, by which protocol 2 writes bytes, and ``bytes``; a number of zeros is no content."""
    if isinstance(text, (bytes, bytearray)):
        return bytes(text)
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        refuse("bytes of what is no text")
    return text.encode(encoding)


_UTILS, _BUILTINS = "torch._utils", ("builtins", "__builtin__")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Allowed(_ordered),
    ("torch", "Size"): _Allowed(lambda sizes=(): _sizes(sizes)),
    ("_codecs", "encode"): _Allowed(_bytes),
    (_UTILS, "_rebuild_tensor"): _Allowed(_tensor),
    (_UTILS, "_rebuild_tensor_v2"): _Allowed(_tensor),
    (_UTILS, "_rebuild_tensor_v3"): _Allowed(_tensor_v3),
    (_UTILS, "_rebuild_parameter"): _Allowed(_parameter),
    (_UTILS, "_rebuild_parameter_with_state"): _Allowed(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Allowed(_of_subclass),
    **{(module, "set"): _Allowed(lambda items=(): set(_elements(items))) for module in _BUILTINS},
    **{(module, "frozenset"): _Allowed(lambda items=(): frozenset(_elements(items))) for module in _BUILTINS},
    **{(module, "bytearray"): _Allowed(lambda *args: bytearray(_bytes(*args))) for module in _BUILTINS},
    **{(module, "bytes"): _Allowed(_bytes) for module in _BUILTINS},
    **{(module, "complex"): _Allowed(lambda real, imag: complex(float(real), float(imag))) for module in _BUILTINS},
    **{
        (module, name): StorageType(dtype)
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in STORAGES.items()
    },
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}


def _call(function: Any, args: Any) -> Any:
    if not isinstance(args, tuple):
        refuse("arguments that are no tuple")
    if isinstance(function, _Allowed):
        return function.function(*args)
    if isinstance(function, (Name, Inert)):
        return Inert(function, args)
    refuse(f"a call of {type(function).__name__}")


def _check_key(key: Any) -> None:
    depth, level = 0, [key]
    while level := [part for parts in level if isinstance(parts, tuple) for part in parts]:
        depth += 1
        if depth > DEEPEST_KEY:
            refuse("a key of too many levels")


def _set(mapping: Any, key: Any, value: Any) -> None:
    if not isinstance(mapping, dict):
        refuse(f"entries of {type(mapping).__name__}")
    if isinstance(key, tuple):
        _check_key(key)
    if key in mapping:
        refuse(f"two entries named {str(key)[:80]}")
    mapping[key] = value


_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Unpickler(_PythonUnpickler):  # type: ignore[misc]
    """Reads a pickle in Python, instruction by instruction, with nothing imported and nothing foreign called.

    Every instruction that could import, call or fill an object is replaced; those left push plain data or rearrange the
    stack. The compiled unpickler calls ``__setstate__``, ``append`` and ``__setitem__`` of whatever it is given, and
    reserves memory for a size that a file merely claims.

    Args:
        file: a binary file; short reads mark its end.
        load_storage: called with a persistent identifier, the tuple by which torch.save refers to a storage.
    """

    def __init__(self, file: Any, load_storage: Callable[[Any], Any]) -> None:
        # Text of Python 2 may be binary (pickled arrays): bytes that are no UTF-8 are kept as surrogates.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._load_storage = load_storage

    def persistent_load(self, identifier: Any) -> Any:
        return self._load_storage(identifier)

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global; nothing is imported."""
        return _ALLOWED.get((module, name)) or Name(module, name)

    def get_extension(self, code: int) -> None:
        refuse(f"extension code {code}, which no checkpoint needs")

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        self.append(_call(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        keywords = self.stack.pop()
        self.load_reduce()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].args += (keywords,)

    def load_build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if isinstance(built, Inert):
            built.state = state
        elif not isinstance(built, (OrderedDict, Tensor)):  # these two have attributes, which are no weights
            refuse(f"a state for {type(built).__name__}")

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target = target.elements
        if not isinstance(target, list):
            refuse(f"elements of {type(target).__name__}")
        target.extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set(self.stack[-1], key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._fill(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(self.stack[-1], items)

    def _fill(self, target: Any, items: list[Any]) -> None:
        if len(items) % 2:
            refuse("a key without a value")
        for i in range(0, len(items), 2):
            _set(target, items[i], items[i + 1])

    def load_additems(self) -> None:
        items = _elements(self.pop_mark())
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.elements.extend(items)
        elif isinstance(target, set):
            target.update(items)
        else:
            refuse(f"elements of {type(target).__name__}")

    def load_frozenset(self) -> None:
        self.append(frozenset(_elements(self.pop_mark())))

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        content = self.read(length)
        if len(content) != length:
            refuse("a byte array that is cut short")
        self.append(bytearray(content))

    dispatch = _PythonUnpickler.dispatch | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,  # class and arguments on the stack, as there
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def unpickle(content: bytes, load_storage: Callable[[Any], Any]) -> Any:
    """Return what one whole pickle holds.

    Raises:
        Exception: any kind, where the content is no whole pickle or contradicts itself.
    """
    stream = io.BytesIO(content)
    value = Unpickler(stream, load_storage).load()
    if stream.read(1):
        refuse("bytes after the end of the pickle")
    return value


def module_state(module: Inert) -> dict[str, Any] | None:
    """Return the state_dict of a pickled ``torch.nn.Module``, or None where the inert object is no module.

    Names and order are those of ``Module.state_dict()``: parameters, persistent buffers, then the modules inside.
    """
    if not _is_module(module):
        return None
    state: dict[str, Any] = {}
    pending: list[tuple[str, Inert]] = [("", module)]
    visited = 0
    while pending:
        prefix, current = pending.pop()
        visited += 1
        if visited > 100_000 or len(prefix) > 10_000:
            refuse("a module that holds itself")
        attributes = current.state
        transient = attributes.get("_non_persistent_buffers_set", ())
        for group, left_out in (("_parameters", ()), ("_buffers", transient)):
            for name, value in attributes[group].items():
                if isinstance(value, Tensor) and name not in left_out:
                    state[f"{prefix}{name}"] = value
        inner = [(f"{prefix}{name}.", m) for name, m in attributes["_modules"].items() if m is not None]
        if not all(_is_module(m) for _, m in inner):
            refuse("a module that holds what is no module")
        pending += reversed(inner)
    return state


def _is_module(value: Any) -> bool:
    groups = ("_parameters", "_buffers", "_modules")
    attributes = value.state if isinstance(value, Inert) else None
    return isinstance(attributes, dict) and all(isinstance(attributes.get(group), Mapping) for group in groups)
