// Whether a Python dictionary changed, at the cost of reading one number.

#pragma once

#include <Python.h>

#include <cstdint>

namespace hrnet_fast::training {

// A number that Python gives a dictionary at every change, and to no other state of any dictionary; 0 where it has
// none: since 3.12, the number's place holds watchers.
inline uint64_t dictionary_tag([[maybe_unused]] PyObject* dictionary) {
#if PY_VERSION_HEX < 0x030C0000 && !defined(PYPY_VERSION)
  return reinterpret_cast<PyDictObject*>(dictionary)->ma_version_tag;
#else
  return 0;
#endif
}

}  // namespace hrnet_fast::training
