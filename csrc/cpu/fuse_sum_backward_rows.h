// Row kernels of fuse_sum's backward on the CPU: rows of the masked gradient, gathered to each term's rows.
//
// A thread processes a range of result rows. It masks each row by the activation once, in cache. For every term it
// gathers the row to the term's width and adds it, weighted, to the term's rows that contributed to it. A term's row
// belongs to the thread with the first result row that it contributed to, which then reads on past its own range. So
// every sum has one owner and one order, and results do not depend on the number of threads.

#pragma once

#include <algorithm>
#include <vector>

#include "fuse_sum.h"
#include "rows.h"

namespace hrnet_fast::cpu {

template <typename M>
struct Reach {  // result elements that one term element contributed to, along one axis
  int64_t begin = 0;
  std::vector<M> weights;
  int64_t end() const { return begin + static_cast<int64_t>(weights.size()); }
};

// Begins ascend, also those of elements that contributed to nothing.
template <typename M>
std::vector<Reach<M>> reach_table(Resample mode, int64_t in, int64_t out) {
  std::vector<Reach<M>> table(in);
  if (in == out) {
    for (int64_t i = 0; i < in; ++i) table[i] = {i, {M(1)}};
    return table;
  }
  const M scale = axis_scale<M>(mode, in, out);
  int64_t before = 0;
  for (int64_t src = 0; src < in; ++src) {
    const Range<> range = reached_by<M>(mode, inverse_scale(scale), src, in, out);
    int64_t first = range.end, last = range.begin;
    for (int64_t dst = range.begin; dst < range.end; ++dst)
      if (weight_of<M>(mode, scale, dst, src, in) != M(0)) {
        first = std::min(first, dst);
        last = std::max(last, dst + 1);
      }
    Reach<M>& reach = table[src];
    reach.begin = before = first < last ? first : before;
    for (int64_t dst = first; dst < last; ++dst) reach.weights.push_back(weight_of<M>(mode, scale, dst, src, in));
  }
  return table;
}

// The largest number of rows that one result row adds to.
template <typename M>
int64_t window_of(const std::vector<Reach<M>>& rows) {
  int64_t most = 1;
  for (size_t first = 0, r = 0; r < rows.size(); ++r) {
    while (first < r && rows[first].end() <= rows[r].begin) ++first;
    most = std::max<int64_t>(most, static_cast<int64_t>(r - first + 1));
  }
  return most;
}

// A term that needs its own gradient or its affine's, other than the masked gradient itself.
template <typename T>
struct BackwardTerm {
  const T* x;  // null: no affine gradient is needed
  T* grad_x;   // null: not needed
  const math_t<T>* scale;
  double* row_sums;      // per row of the term: sum of the gathered gradient, by channel
  double* row_products;  // per row of the term: sum of gradient * x, by channel
  int64_t height, width;
  bool same_width;
  std::vector<Reach<math_t<T>>> rows, columns;
  int64_t window;  // see window_of
};

template <typename T>
struct BackwardJob {
  const T* grad;
  const T* out;  // null: no activation
  T* masked;     // null: the masked gradient itself is not needed
  std::vector<BackwardTerm<T>> terms;
  int64_t height, width, inner, channels;
};

// One row of the masked gradient, for the terms and (kKeep) also as a result, in one loop: a later copy would cost as
// much again.
template <typename T, bool kKeep>
HF_INLINE void mask_values(const T* __restrict__ grad, const T* __restrict__ out, int64_t n,
                           math_t<T>* __restrict__ row, T* __restrict__ masked) {
  using M = math_t<T>;
  for (int64_t j = 0; j < n; ++j) {
    const M g = read_value(grad + j), y = read_value(out + j);
    const M value = y <= M(0) ? M(0) : g;  // like aten::threshold_backward, NaN lets the gradient through
    row[j] = value;
    if (kKeep) write_value(masked + j, value);
  }
}

template <typename T>
HF_INLINE void mask_row(const BackwardJob<T>& job, int64_t start, int64_t n, bool own, math_t<T>* __restrict__ row) {
  const T* __restrict__ grad = job.grad + start;
  T* masked = own && job.masked != nullptr ? job.masked + start : nullptr;
  if (job.out != nullptr) {
    if (masked != nullptr) return mask_values<T, true>(grad, job.out + start, n, row, masked);
    return mask_values<T, false>(grad, job.out + start, n, row, nullptr);
  }
  for (int64_t j = 0; j < n; ++j) row[j] = read_value(grad + j);
  if (masked != nullptr) finish_row<T>(masked, row, false, n);
}

// to (=|+=) the weighted sum of kCount neighbouring pixels: several at once, so that `to` is accessed rarely. The
// ranges do not overlap; without that promise the compiler would test it for every pixel.
template <typename M, bool kFirst, int kCount>
HF_INLINE void add_pixels(M* __restrict__ to, const M* __restrict__ from, const M* __restrict__ w, int64_t inner) {
  const M w0 = w[0], w1 = kCount > 1 ? w[1] : M(0), w2 = kCount > 2 ? w[2] : M(0), w3 = kCount > 3 ? w[3] : M(0);
#pragma GCC ivdep
  for (int64_t j = 0; j < inner; ++j) {
    M sum = w0 * from[j];
    if (kCount > 1) sum += w1 * from[inner + j];
    if (kCount > 2) sum += w2 * from[2 * inner + j];
    if (kCount > 3) sum += w3 * from[3 * inner + j];
    to[j] = kFirst ? sum : to[j] + sum;
  }
}

template <typename M, bool kFirst>
HF_INLINE void add_pixels(M* to, const M* from, const M* w, size_t count, int64_t inner) {
  if (count >= 4) return add_pixels<M, kFirst, 4>(to, from, w, inner);
  if (count == 3) return add_pixels<M, kFirst, 3>(to, from, w, inner);
  if (count == 2) return add_pixels<M, kFirst, 2>(to, from, w, inner);
  add_pixels<M, kFirst, 1>(to, from, w, inner);
}

template <typename T>
HF_INLINE void gather_across(const BackwardTerm<T>& term, const math_t<T>* row, math_t<T>* narrow, int64_t inner) {
  using M = math_t<T>;
  for (int64_t x = 0; x < term.width; ++x) {
    const Reach<M>& reach = term.columns[x];
    const size_t taps = reach.weights.size();
    const M* weights = reach.weights.data();
    const M* from = row + reach.begin * inner;
    M* to = narrow + x * inner;
    if (taps == 0)
      for (int64_t c = 0; c < inner; ++c) to[c] = M(0);
    else
      add_pixels<M, true>(to, from, weights, taps, inner);
    for (size_t i = 4; i < taps; i += 4)
      add_pixels<M, false>(to, from + static_cast<int64_t>(i) * inner, weights + i, taps - i, inner);
  }
}

// The term's row is complete: its affine's sums, and its gradient.
template <typename T>
HF_INLINE void finish(const BackwardJob<T>& job, const BackwardTerm<T>& term, int64_t plane, int64_t y,
                      const math_t<T>* total) {
  using M = math_t<T>;
  const int64_t index = plane * term.height + y, inner = job.inner, n = term.width * inner, start = index * n;
  if (term.row_sums != nullptr) {
    // In double: PyTorch's pairwise sums, the reference of the tests, are more accurate than plain sums in float.
    double* __restrict__ sums = term.row_sums + index * inner;
    double* __restrict__ products = term.row_products + index * inner;
    for (int64_t c = 0; c < inner; ++c) sums[c] = products[c] = 0.0;
    for (int64_t x = 0; x < term.width; ++x)
      for (int64_t c = 0; c < inner; ++c) {
        const M g = total[x * inner + c];
        sums[c] += g;
        products[c] += static_cast<double>(g) * read_value(term.x + start + x * inner + c);
      }
  }
  if (term.grad_x == nullptr) return;
  T* to = term.grad_x + start;
  if (term.scale == nullptr) return finish_row<T>(to, total, false, n);
  const M* scale = inner == 1 ? term.scale + plane % job.channels : term.scale;
  for (int64_t x = 0; x < term.width; ++x)
    for (int64_t c = 0; c < inner; ++c) write_value(to + x * inner + c, total[x * inner + c] * scale[c]);
}

// A thread's position in a term's rows, and the sums of rows that are not complete.
template <typename M>
struct Cursor {
  int64_t first, last;  // rows of this thread that are not complete: [first, last) of the term
  std::vector<M> sums;  // [window, width * inner]
};

// Adds result row y to the term's rows [cursor.first, ...) that contributed to it, and completes those that end with
// it.
template <typename T>
HF_INLINE void add_row_to(const BackwardJob<T>& job, const BackwardTerm<T>& term, int64_t plane, int64_t y,
                          const math_t<T>* row, math_t<T>* narrow, Cursor<math_t<T>>& cursor) {
  using M = math_t<T>;
  const int64_t n = term.width * job.inner;
  const M* from = row;
  bool gathered = term.same_width;
  for (int64_t r = cursor.first; r < cursor.last && term.rows[r].begin <= y; ++r) {
    const Reach<M>& reach = term.rows[r];
    M* __restrict__ sum = cursor.sums.data() + (r % term.window) * n;
    if (y < reach.end()) {
      if (!gathered) gather_across(term, row, narrow, job.inner);
      if (!gathered) from = narrow;
      gathered = true;
      const M weight = reach.weights[y - reach.begin];
      const M* __restrict__ own = from;
      if (y == reach.begin)
#pragma GCC ivdep
        for (int64_t j = 0; j < n; ++j) sum[j] = weight * own[j];
      else
#pragma GCC ivdep
        for (int64_t j = 0; j < n; ++j) sum[j] += weight * own[j];
    } else if (reach.weights.empty()) {
      for (int64_t j = 0; j < n; ++j) sum[j] = M(0);
    }
    if (y + 1 >= reach.end() && r == cursor.first) {
      finish(job, term, plane, r, sum);
      ++cursor.first;
    }
  }
}

// Result rows [begin, end) of all planes, then further rows until the terms' rows of this thread are complete.
template <typename T>
HF_INLINE void backward_rows(const BackwardJob<T>& job, int64_t begin, int64_t end) {
  using M = math_t<T>;
  const int64_t n = job.width * job.inner;
  std::vector<M> row(n), narrow(n);
  std::vector<Cursor<M>> cursors(job.terms.size());
  for (size_t k = 0; k < job.terms.size(); ++k) {
    const int64_t size = job.terms[k].width * job.inner;
    cursors[k].sums.resize(job.terms[k].window * size);
    if (size > static_cast<int64_t>(narrow.size())) narrow.resize(size);
  }
  for (int64_t plane = begin / job.height; plane * job.height < end; ++plane) {
    const int64_t from = std::max<int64_t>(0, begin - plane * job.height);
    const int64_t to = std::min(job.height, end - plane * job.height);
    int64_t until = to;
    for (size_t k = 0; k < job.terms.size(); ++k) {
      const auto& rows = job.terms[k].rows;
      const auto owner = [](const Reach<M>& reach, int64_t y) { return reach.begin < y; };
      cursors[k].first = std::lower_bound(rows.begin(), rows.end(), from, owner) - rows.begin();
      cursors[k].last = std::lower_bound(rows.begin(), rows.end(), to, owner) - rows.begin();
      for (int64_t r = cursors[k].first; r < cursors[k].last; ++r) until = std::max(until, rows[r].end());
    }
    for (int64_t y = from; y < until; ++y) {
      mask_row(job, (plane * job.height + y) * n, n, y < to, row.data());
      for (size_t k = 0; k < job.terms.size(); ++k)
        add_row_to(job, job.terms[k], plane, y, row.data(), narrow.data(), cursors[k]);
    }
  }
}

}  // namespace hrnet_fast::cpu
