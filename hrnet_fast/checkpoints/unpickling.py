"""An unpickler that runs no foreign code: it builds tensors and plain data, and records other objects as inert."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hrnet_fast.checkpoints.inert import Inert, Name, refuse
from hrnet_fast.checkpoints.rebuilding import ALLOWED, call_allowed, check_key, set_item

_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Unpickler(_PythonUnpickler):  # type: ignore[misc]
    """Python's unpickler with every instruction replaced that could import, call or fill an object.

    The other instructions push plain data or rearrange the stack. The compiled unpickler is unsuitable: it calls
    ``__setstate__``, ``append`` and ``__setitem__`` of any object, and reserves memory for a size that a file claims.

    Args:
        file: a binary file; short reads mark its end.
        load_storage: called with a persistent identifier, the tuple by which torch.save refers to a storage.
    """

    def __init__(self, file: Any, load_storage: Callable[[Any], Any]) -> None:
        # Strings of Python 2 may be binary (pickled arrays): bytes that are not UTF-8 become surrogates.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._load_storage = load_storage

    def persistent_load(self, identifier: Any) -> Any:
        return self._load_storage(identifier)

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a global, or its name; nothing is imported."""
        return ALLOWED.get((module, name)) or Name(module, name)

    def get_extension(self, code: int) -> None:
        refuse(f"extension code {code}, which no checkpoint needs")

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        self.append(call_allowed(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = call_allowed(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        keywords = self.stack.pop()
        self.load_reduce()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].args = (self.stack[-1].args, keywords)

    def load_build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if isinstance(built, Inert):
            built.state = state
        elif not isinstance(built, (OrderedDict, Tensor)):  # attributes of these two are no weights
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
        set_item(self.stack[-1], key, value)

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
            set_item(target, items[i], items[i + 1])

    def load_additems(self) -> None:
        items = self._hashable()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.elements.extend(items)
        elif isinstance(target, set):
            target.update(items)
        else:
            refuse(f"elements of {type(target).__name__}")

    def _hashable(self) -> list[Any]:
        items: list[Any] = self.pop_mark()
        for item in items:
            check_key(item)
        return items

    def load_frozenset(self) -> None:
        items = self._hashable()  # before `append` is looked up: pop_mark replaces it
        self.append(frozenset(items))

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        content = self.read(length)
        if len(content) != length:
            refuse("a byte array that is cut short")
        self.append(bytearray(content))

    dispatch = _PythonUnpickler.dispatch | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,  # the stack has the same layout as for REDUCE
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
    """Return the object of one complete pickle.

    Raises:
        Exception: of any kind, if the content is no complete pickle or contradicts itself.
    """
    stream = io.BytesIO(content)
    value = Unpickler(stream, load_storage).load()
    if stream.read(1):
        refuse("bytes after the end of the pickle")
    return value
