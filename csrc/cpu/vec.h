// What the Han stack needs of a vector register beyond at::vec: sign bits out, sign bits in, sums of several rows.
//
// Each instruction set says these in its own way, in a header of its own:
//   nmadd<A>(a, b, c)         c - a * b
//   widen<A>(v), narrow<A>(v) lanes as doubles, and back
//   sign_bits<A>(v)           a word: bit i is the sign bit of lane i
//   flip<A>(v, bits)          v, the lanes negated whose bit is set
//   rest_of(exact, rounded, shift)               of float32: a word a lane, not yet a byte; see rest.h
//   store_rest(rest, bytes)                      those words, saturated, as bytes
//   add_rest(rounded, bytes, shift)              of float32: the value with its rest
// and for rows in the lanes, in float32:
//   transpose(rows)           lane i of rows[r] becomes lane r of rows[i]: a square of kLanes rows
//   square_sums(rows)         lane r is the sum of row r of a square in memory
//   pack_signs(a, b)          the sign bits of two columns, of the rows in the lanes: see below
//   push_signs(bytes, p, q)   those of two such pairs, put into bytes from the top
//   sign_words(bytes)         bytes put into the order of columns
//   shift_words(words, left)  each lane, as a word, shifted
//   flip_by_top(v, words)     v, the lanes negated whose word has its top bit set
//   pack_rest(rests)          the rest of four columns, saturated: byte j of a lane's word is that of column j
//   add_rest_byte<j>(rounded, words, shift)   as add_rest, from byte j of the words
//
// Sign bits of columns, rows in the lanes: a vector of 32-bit words, carried as floats, holds a word of 32 columns for
// each row. It is built from four columns at a time, 8 apart, one for each byte of the words: pairs of columns are
// packed, then pairs of pairs, and the signs enter all bytes from the top. The bytes stand in the order in which
// packing leaves them until sign_words() puts them in place.
#pragma once

#if defined(CPU_CAPABILITY_AVX512)
#include "vec_avx512.h"
#elif defined(CPU_CAPABILITY_AVX2)
#include "vec_avx2.h"
#else
#include "vec_portable.h"
#endif

namespace hanops::cpu {
namespace CPU_CAPABILITY {

template <class S>
HANOPS_INLINE Vec<Arithmetic<S>> load_storage(const S* p) {
  using A = Arithmetic<S>;
  if constexpr (std::is_same_v<S, A>) {
    return load<A>(p);
  } else if constexpr (kRegisters<A> == 1) {
    Vec<A> out;
    vec::load_to_float<S>(p, out);
    return out;
  } else {
    A wide[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) wide[i] = static_cast<A>(p[i]);
    return load<A>(wide);
  }
}

template <class S>
HANOPS_INLINE void store_storage(const Vec<Arithmetic<S>>& v, S* p) {
  using A = Arithmetic<S>;
  if constexpr (std::is_same_v<S, A>) {
    v.store(p);
  } else if constexpr (kRegisters<A> == 1) {
    vec::convert_from_float<S>(v, v).store(p, kLanes<A>);
  } else {
    A wide[kLanes<A>];
    v.store(wide);
    for (int i = 0; i < kLanes<A>; ++i) p[i] = static_cast<S>(wide[i]);
  }
}

// out[r] = scale * sum(rows[r]); a row is halved in the same order whatever R is.
template <class A, int R>
HANOPS_INLINE void sums(const Registers<A, R>& rows, A scale, A* out) {
  if constexpr (R % 4 == 0 && requires { four_sums(rows[0], rows[0], rows[0], rows[0], scale, out); }) {
    unroll<R / 4>([&](auto quarter) HANOPS_LAMBDA {
      constexpr int r = 4 * quarter;
      four_sums(rows[r], rows[r + 1], rows[r + 2], rows[r + 3], scale, out + r);
    });
  } else {
    unroll<R>([&](auto r) HANOPS_LAMBDA { out[r] = scale * sum<A>(rows[r]); });
  }
}

// Dot products of R rows, summed in blocks of columns: the error grows with the block, not with the row.
template <class A, int R>
class Dots {
 public:
  HANOPS_INLINE Dots() {}  // {} would clear blocks_ too

  HANOPS_INLINE void add(int r, const Vec<A>& a, const Vec<A>& b) { sum_[r] = vec::fmadd(a, b, sum_[r]); }

  // Ends a block that another one follows.
  void fold() {
    if (folded_) sum_ = sum_ + Registers<A, R>::load(blocks_);
    sum_.store(blocks_);
    sum_ = {};
    folded_ = true;
  }

  HANOPS_INLINE Registers<A, R> total() const { return folded_ ? sum_ + Registers<A, R>::load(blocks_) : sum_; }

  // With the sum over lanes.
  HANOPS_INLINE void finish(A scale, A* out) const { sums<A>(total(), scale, out); }

 private:
  Registers<A, R> sum_;
  alignas(64) A blocks_[R * kLanes<A>];
  bool folded_ = false;
};

}  // namespace CPU_CAPABILITY
}  // namespace hanops::cpu
