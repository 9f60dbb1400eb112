// Prunes the blocks of a tensor, NM_M elements each, as nmcompile/reference.py does, bit for bit.
//
// Memory is [outer, size, inner]; blocks run along `size`, the last one padded with zeros, and
// block b of row (o, i) has the number k = (o * blocks + b) * inner + i. The lanes of a vector are
// blocks with consecutive numbers, so every step below works on whole blocks, one per lane.
// METHOD_TRANSPOSABLE: tiles NM_M x NM_M over [size, inner], lanes along `inner`.
//
// Vectors are those of GCC and Clang: they do not depend on the compiler's loop vectoriser, which
// Inductor's flags turn off. No arithmetic here may be contracted or reordered.

#define METHOD_MSE 0
#define METHOD_MVUE 1
#define METHOD_APPROX_MVUE 2
#define METHOD_UNIFORM 3
#define METHOD_TRANSPOSABLE 4
#define STORAGE_F32 0
#define STORAGE_F64 1
#define STORAGE_BF16 2
#define STORAGE_F16 3

#include <cstdint>
#include <utility>

#if NM_M <= 8
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE inline __attribute__((always_inline))
#else
#define UNROLL
#define INLINE inline
#endif
#define NO_INLINE __attribute__((noinline))

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 64;
#elif defined(__AVX__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif

template <class T, int L>
struct VectorOf {
  typedef T type __attribute__((vector_size(L * sizeof(T))));
};
template <class T, int L>
using Vec = typename VectorOf<T, L>::type;

#if NM_STORAGE == STORAGE_F64
typedef double Real;
typedef int64_t Int;
typedef uint64_t Stored;
constexpr Int SIGN = INT64_MIN, INF = 0x7ff0000000000000;
constexpr Int REAL_INF = INF;
constexpr Real CAP = 0x1p1015;
constexpr Real HUGE_T = 0x1p1000, TINY_T = 0x1p-900, DOWN = 0x1p-32, UP = 0x1p128;
#else
typedef float Real;
typedef int32_t Int;
#if NM_STORAGE == STORAGE_F32
typedef uint32_t Stored;
constexpr Int SIGN = INT32_MIN, INF = 0x7f800000;
#elif NM_STORAGE == STORAGE_BF16
typedef uint16_t Stored;
constexpr Int SIGN = 0x8000, INF = 0x7f80;
#else
typedef uint16_t Stored;
constexpr Int SIGN = 0x8000, INF = 0x7c00;
#endif
constexpr Int REAL_INF = 0x7f800000;
constexpr Real CAP = 0x1p119f;
constexpr Real HUGE_T = 0x1p100f, TINY_T = 0x1p-60f, DOWN = 0x1p-32f, UP = 0x1p64f;
#endif

constexpr int N = NM_N, M = NM_M, L = WIDTH / sizeof(Real);
#if NM_METHOD == METHOD_TRANSPOSABLE
constexpr int E = M * M;  // elements of a lane
#else
constexpr int E = M;
#endif
constexpr bool POWER_OF_TWO = (M & (M - 1)) == 0;

typedef Vec<Int, L> I;    // stored bits, zero-extended; also masks, all ones = true
typedef Vec<Real, L> R;
#if NM_MASK
typedef uint8_t Out;
#else
typedef Stored Out;
#endif

template <class V>
inline V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
inline void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}
inline R real(Real x) { return x - R{}; }
inline I integer(Int x) { return x - I{}; }

// -- between stored bits and the compute type --------------------------------------------------

inline R value_of(I bits) {
#if NM_STORAGE == STORAGE_BF16
  return (R)(bits << 16);
#elif NM_STORAGE == STORAGE_F16
  // Move exponent and mantissa into place and correct the exponent's bias; inf and NaN need it
  // twice, and a subnormal becomes normal by a subtraction.
  I exponent = bits & INF, shifted = ((bits & 0x7fff) << 13) + (112 << 23);
  I subnormal = (I)((R)(shifted + (1 << 23)) - 0x1p-14f);
  I result = exponent == INF ? shifted + (112 << 23) : exponent == 0 ? subnormal : shifted;
  return (R)(result | (bits & SIGN) << 16);
#else
  return (R)bits;
#endif
}

// Rounds to the nearest, ties to even.
inline I bits_of(R value) {
#if NM_STORAGE == STORAGE_BF16
  I bits = (I)value, finite = (bits & 0x7fffffff) <= 0x7f800000;
  Vec<uint32_t, L> rounded = (Vec<uint32_t, L>)bits + 0x7fff + ((Vec<uint32_t, L>)bits >> 16 & 1);
  return finite ? (I)(rounded >> 16) : integer(0x7fc0);
#elif NM_STORAGE == STORAGE_F16
  I bits = (I)value, magnitude = bits & 0x7fffffff;
  I subnormal = (I)((R)magnitude + 0.5f) - 0x3f000000;
  I normal = (magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  I large = magnitude > 0x7f800000 ? integer(0x7e00) : integer(INF);
  I result = magnitude >= 0x47800000 ? large : magnitude < 0x38800000 ? subnormal : normal;
  return result | (bits >> 16 & SIGN);
#else
  return (I)value;
#endif
}

// The smallest stored value that is at least t; t is not negative.
inline R round_up(R t) {
#if NM_STORAGE == STORAGE_BF16
  return (R)(((I)t + 0xffff) & (Int)0xffff0000);
#elif NM_STORAGE == STORAGE_F16
  R units = t * 0x1p24f;  // of the smallest subnormal
  R whole = __builtin_convertvector(__builtin_convertvector(units, I), R);
  R subnormal = (whole < units ? whole + 1.0f : whole) * 0x1p-24f;
  R normal = (R)(((I)t + 0x1fff) & ~0x1fff);
  normal = normal > 65504.0f ? real(__builtin_inff()) : normal;
  return t < 0x1p-14f ? subnormal : normal;
#else
  return t;
#endif
}

// -- random numbers: see reference.philox_uniforms ---------------------------------------------

constexpr int COUNTERS = WIDTH / 4;
typedef Vec<uint32_t, COUNTERS> U32;
typedef Vec<uint64_t, COUNTERS / 2> U64;

// The 64-bit products of the even elements.
inline U64 widening_product(U32 a, uint32_t factor) {
#if defined(__AVX512F__) && !defined(__clang__)  // GCC does not find this instruction itself
  typedef Vec<int, 16> V;
  return (U64)__builtin_ia32_pmuludq512_mask((V)a, (V)(U32{} + factor), Vec<long long, 8>{}, -1);
#else
  return ((U64)a & 0xffffffff) * factor;
#endif
}

inline void multiply(U32 a, uint32_t factor, U32& high, U32& low) {
  constexpr uint64_t TOP = 0xffffffff00000000;
  U64 even = widening_product(a, factor), odd = widening_product((U32)((U64)a >> 32), factor);
  high = (U32)(even >> 32 | (odd & TOP));
  low = (U32)((even & ~TOP) | odd << 32);
}

class Uniforms {
 public:
  Uniforms(uint64_t seed, uint32_t stream, uint32_t second)
      : seed_(seed), stream_(stream), second_(second) {}

  // The numbers of the blocks k..k+L-1.
  R at(int64_t k) {
    int64_t group = k / 64;
    if (group != group_) {
      if (group == group_ + 1)
        __builtin_memcpy(buffer_, buffer_ + 64, 64 * sizeof(float));
      else
        fill(group, buffer_);
      fill(group + 1, buffer_ + 64);
      group_ = group;
    }
    return __builtin_convertvector((load<Vec<float, L>>(buffer_ + k % 64)), R);
  }

 private:
  NO_INLINE void fill(int64_t group, float* to) const {
    for (int first = 0; first < 16; first += COUNTERS) {
      U32 lane;
      for (int i = 0; i < COUNTERS; ++i) lane[i] = i;
      uint64_t counter = (uint64_t)group * 16 + first;  // a multiple of 16: adding lanes is an or
      U32 c0 = lane | (uint32_t)counter, c1 = U32{} + (uint32_t)(counter >> 32);
      U32 c2 = U32{} + stream_, c3 = U32{} + second_;
      uint32_t key0 = (uint32_t)seed_, key1 = (uint32_t)(seed_ >> 32);
      for (int round = 0; round < 10; ++round) {
        U32 high0, low0, high1, low1;
        multiply(c0, 0xD2511F53, high0, low0);
        multiply(c2, 0xCD9E8D57, high1, low1);
        c0 = high1 ^ c1 ^ key0, c1 = low1, c2 = high0 ^ c3 ^ key1, c3 = low0;
        key0 += 0x9E3779B9, key1 += 0xBB67AE85;
      }
      const U32 words[4] = {c0, c1, c2, c3};
      for (int w = 0; w < 4; ++w) {
        Vec<int32_t, COUNTERS> top = (Vec<int32_t, COUNTERS>)(words[w] >> 8);
        store(to + w * 16 + first,
              __builtin_convertvector(top, Vec<float, COUNTERS>) * 0x1p-24f);
      }
    }
  }

  uint64_t seed_;
  uint32_t stream_, second_;
  int64_t group_ = -2;
  alignas(64) float buffer_[128];
};

// -- the methods -------------------------------------------------------------------------------

// How many elements come before each one: larger magnitude, NaN above all, ties to the lower
// index.
inline void find_ranks(const I (&bits)[E], I (&rank)[E]) {
  I key[E];
  UNROLL for (int i = 0; i < E; ++i) {
    key[i] = bits[i] & (Int)~SIGN;
    key[i] = key[i] > INF ? integer(INF + 1) : key[i];
    rank[i] = integer(E - 1 - i);
  }
  UNROLL for (int j = 1; j < E; ++j) UNROLL for (int i = 0; i < j; ++i) {
    I before = key[i] >= key[j];
    rank[i] += before;
    rank[j] -= before;
  }
}

inline void write(I (&bits)[E], int i, I keep, I value) {
#if NM_MASK
  bits[i] = keep & 1;
#else
  bits[i] = keep & value;
#endif
}

#if NM_METHOD != METHOD_TRANSPOSABLE

INLINE void prune(I (&bits)[E], Uniforms& first, Uniforms& second, int64_t k) {
#if NM_METHOD == METHOD_MSE
  I rank[E];
  find_ranks(bits, rank);
  UNROLL for (int i = 0; i < E; ++i) write(bits, i, rank[i] < N, bits[i]);
#else
  I rank[E], non_finite{};
  R mag[E];
  find_ranks(bits, rank);
  UNROLL for (int i = 0; i < E; ++i) {
    I key = bits[i] & (Int)~SIGN;
    non_finite |= key >= INF;
    mag[i] = value_of(key);
  }
#if NM_METHOD == METHOD_UNIFORM
  const R u = first.at(k);
  I level{};
  UNROLL for (int i = 0; i < E; ++i) {
    I next = __builtin_convertvector(u + (Real)((i + 1) * N) / (Real)M, I);
    next = next < N ? next : integer(N);
    I keep = non_finite ? (I)(rank[i] < N) : (I)(next > level);
    level = next;
    I scaled = bits_of(value_of(bits[i]) * ((Real)M / (Real)N));
    write(bits, i, keep, non_finite ? bits[i] : scaled);
  }
#elif NM_METHOD == METHOD_MVUE
  if (N == M) {
    UNROLL for (int i = 0; i < E; ++i) write(bits, i, integer(-1), bits[i]);
    return;
  }
  R t{};
  UNROLL for (int removed = 0; removed < N; ++removed) {
    R tail{};
    UNROLL for (int i = 0; i < E; ++i) tail += rank[i] >= removed ? mag[i] : R{};
    tail /= (Real)(N - removed);
    t = removed == 0 || tail < t ? tail : t;
  }
  t = round_up(t);
  I t_bits = bits_of(t), special = non_finite | ((I)t == REAL_INF);
  I certain[E], left = integer(N);
  UNROLL for (int i = 0; i < E; ++i) {
    certain[i] = (mag[i] >= t) & (mag[i] > 0) & (rank[i] < N);
    left += certain[i];
  }
  // Element i is kept where the running sum crosses (1 - u) t, (2 - u) t, ...; `scale` keeps
  // these from overflow and underflow.
  const R u = first.at(k), scale = t > HUGE_T ? real(DOWN) : t < TINY_T ? real(UP) : real(1);
  R sum{}, target[N];
  UNROLL for (int j = 0; j < N; ++j) target[j] = ((Real)(j + 1) - u) * (t * scale);
  I level{};
  UNROLL for (int i = 0; i < E; ++i) {
    I below = mag[i] < t, next{};
    sum += below ? mag[i] * scale : R{};
    UNROLL for (int j = 0; j < N; ++j) next -= sum >= target[j];
    next = next < left ? next : left;
    I keep = special ? (I)(rank[i] < N) : certain[i] | (below & (next > level));
    level = next;
    I raised = (bits[i] & SIGN) | t_bits;
    write(bits, i, keep, below & ~non_finite ? raised : bits[i]);
  }
#else  // METHOD_APPROX_MVUE
  R total{}, others[E], ratio[E];
  I count{};
  UNROLL for (int i = 0; i < E; ++i) {
    total += mag[i];
    count -= mag[i] > 0;
    others[i] = R{};
    UNROLL for (int j = 0; j < E; ++j) if (j != i) others[i] += mag[j];
    ratio[i] = mag[i] / others[i];
  }
  auto draw = [](const R(&weight)[E], R target, I(&drawn)[E]) {
    R c{};
    UNROLL for (int i = 0; i < E; ++i) {
      I before = c <= target;
      c += weight[i];
      drawn[i] = before & (c > target);
    }
  };
  I one[E], two[E];
  R left{}, remaining[E];
  draw(mag, first.at(k) * total, one);
  UNROLL for (int i = 0; i < E; ++i) {
    left = one[i] ? others[i] : left;
    remaining[i] = one[i] ? R{} : mag[i];
  }
  draw(remaining, second.at(k) * left, two);
  I sparse = count <= 2, overflow = ((I)total == REAL_INF) & ~sparse;
  UNROLL for (int i = 0; i < E; ++i) {
    R factor{};
    UNROLL for (int j = 0; j < E; ++j) if (j != i) factor += ratio[j];
    I raised = overflow ? integer(INF) : bits_of(total / (factor + 1));
    I keep = sparse ? (I)(mag[i] > 0) : (overflow | non_finite) ? (I)(rank[i] < N) : one[i] | two[i];
    keep = non_finite ? (I)(rank[i] < N) : keep;
    write(bits, i, keep, (sparse | non_finite) ? bits[i] : (bits[i] & SIGN) | raised);
  }
#endif
#endif
}

#else  // METHOD_TRANSPOSABLE

INLINE void prune(I (&bits)[E], Uniforms&, Uniforms&, int64_t) {
  constexpr int CHOICES = sizeof ROWS / sizeof *ROWS;
  R sums[M][CHOICES];
  UNROLL for (int row = 0; row < M; ++row) {
    R score[M];
    UNROLL for (int column = 0; column < M; ++column) {
      I key = bits[row * M + column] & (Int)~SIGN;
      R mag = value_of(key);
      score[column] = key >= INF ? real(16 * CAP) : mag < CAP ? mag : real(CAP);
    }
    UNROLL for (int choice = 0; choice < CHOICES; ++choice) {
      R sum{};
      UNROLL for (int column = 0; column < M; ++column)
        if (ROWS[choice] >> column & 1) sum += score[column];
      sums[row][choice] = sum;
    }
  }
  R best = real(-1);
  I chosen{};
  for (const auto& pattern : PATTERNS) {  // a choice for every row, then the kept elements
    R sum = sums[0][pattern[0]];
    UNROLL for (int row = 1; row < M; ++row) sum += sums[row][pattern[row]];
    I better = sum > best;
    best = better ? sum : best;
    chosen = better ? integer(pattern[M]) : chosen;
  }
  UNROLL for (int i = 0; i < E; ++i) write(bits, i, (chosen & (1 << i)) != 0, bits[i]);
}

#endif

// -- from and to memory ------------------------------------------------------------------------

inline I widen(const Stored* p) { return __builtin_convertvector((load<Vec<Stored, L>>(p)), I); }
inline void narrow(Out* p, I v) { store(p, __builtin_convertvector(v, Vec<Out, L>)); }

typedef std::make_integer_sequence<int, L> Lanes;
template <int... J>
inline I every_second(I a, I b, int odd, std::integer_sequence<int, J...>) {
  return odd ? __builtin_shufflevector(a, b, (2 * J + 1)...)
             : __builtin_shufflevector(a, b, (2 * J)...);
}
template <int... J>
inline I interleave(I a, I b, int high, std::integer_sequence<int, J...>) {
  return high ? __builtin_shufflevector(a, b, (L / 2 + J / 2 + J % 2 * L)...)
              : __builtin_shufflevector(a, b, (J / 2 + J % 2 * L)...);
}

// L runs of M contiguous elements <-> element r of every run in v[r], by perfect shuffles.
inline void load_runs(const Stored* p, I* v) {
  I next[M];
  UNROLL for (int r = 0; r < M; ++r) v[r] = widen(p + r * L);
  UNROLL for (int step = 1; step < M; step *= 2) {
    UNROLL for (int r = 0; r < M; ++r)
      next[r] = every_second(v[2 * r % M], v[2 * r % M + 1], r >= M / 2, Lanes());
    UNROLL for (int r = 0; r < M; ++r) v[r] = next[r];
  }
}
inline void store_runs(Out* p, I* v) {
  I next[M];
  UNROLL for (int step = 1; step < M; step *= 2) {
    UNROLL for (int r = 0; r < M; ++r)
      next[r] = interleave(v[r / 2], v[r / 2 + M / 2], r & 1, Lanes());
    UNROLL for (int r = 0; r < M; ++r) v[r] = next[r];
  }
  UNROLL for (int r = 0; r < M; ++r) {
    // Else GCC narrows before it shuffles, byte by byte.
    if (sizeof(Out) == 1) __asm__("" : "+m"(v[r]));
    narrow(p + r * L, v[r]);
  }
}

struct View {
  const Stored* x;
  Out* y;
  int64_t outer, size, inner;

  int64_t blocks() const { return (size + M - 1) / M; }
  // Blocks (or tiles) side by side in a row.
  int64_t across() const { return NM_METHOD == METHOD_TRANSPOSABLE ? (inner + M - 1) / M : inner; }
};

// The place of one block: row o, block b, column (or column of tiles) i.
struct Place {
  int64_t o, b, i;

  Place(const View& v, int64_t k)
      : o(k / v.across() / v.blocks()), b(k / v.across() % v.blocks()), i(k % v.across()) {}

  void advance(const View& v, int64_t count) {
    if (v.across() == 1) {
      b += count;
    } else {
      for (i += count; i >= v.across(); i -= v.across()) ++b;
    }
    for (; b >= v.blocks(); b -= v.blocks()) ++o;
  }
};

// Lanes that do not lie side by side, one element at a time through a zero-padded buffer.
NO_INLINE void prune_scattered(const View& v, Place place, int count, int64_t k, Uniforms& first,
                            Uniforms& second) {
  constexpr int COLUMNS = E / M;
  Stored in[E][L] = {};
  int64_t start[L];
  int rows[L], columns[L];
  for (int lane = 0; lane < count; ++lane) {
    int64_t column = COLUMNS * place.i;
    start[lane] = (place.o * v.size + place.b * M) * v.inner + column;
    rows[lane] = v.size - place.b * M < M ? v.size - place.b * M : M;
    columns[lane] = v.inner - column < COLUMNS ? v.inner - column : COLUMNS;
    for (int r = 0; r < rows[lane]; ++r)
      for (int c = 0; c < columns[lane]; ++c)
        in[r * COLUMNS + c][lane] = v.x[start[lane] + r * v.inner + c];
    place.advance(v, 1);
  }
  I bits[E];
  for (int i = 0; i < E; ++i) bits[i] = widen(in[i]);
  prune(bits, first, second, k);
  Out out[E][L];
  for (int i = 0; i < E; ++i) narrow(out[i], bits[i]);
  for (int lane = 0; lane < count; ++lane)
    for (int r = 0; r < rows[lane]; ++r)
      for (int c = 0; c < columns[lane]; ++c)
        v.y[start[lane] + r * v.inner + c] = out[r * COLUMNS + c][lane];
}

void prune_range(const View& v, int64_t begin, int64_t end, uint64_t seed, uint32_t stream) {
  Uniforms first(seed, stream, 0), second(seed, stream, 1);
  Place place(v, begin);
  for (int64_t k = begin; k < end; k += L) {
    const int64_t at = (place.o * v.size + place.b * M) * v.inner;
    const bool full = k + L <= end, whole = (place.b + 1) * M <= v.size;
    I bits[E];
#if NM_METHOD == METHOD_TRANSPOSABLE
    if (full && whole && (place.i + L) * M <= v.inner) {
      const int64_t from = at + place.i * M;
      UNROLL for (int r = 0; r < M; ++r) load_runs(v.x + from + r * v.inner, bits + r * M);
      prune(bits, first, second, k);
      UNROLL for (int r = 0; r < M; ++r) store_runs(v.y + from + r * v.inner, bits + r * M);
#else
    if (full && whole && place.i + L <= v.inner) {
      UNROLL for (int r = 0; r < M; ++r) bits[r] = widen(v.x + at + r * v.inner + place.i);
      prune(bits, first, second, k);
      UNROLL for (int r = 0; r < M; ++r) narrow(v.y + at + r * v.inner + place.i, bits[r]);
    } else if (POWER_OF_TWO && full && v.inner == 1 && (place.b + L) * M <= v.size) {
      load_runs(v.x + at, bits);
      prune(bits, first, second, k);
      store_runs(v.y + at, bits);
#endif
    } else {
      prune_scattered(v, place, full ? L : (int)(end - k), k, first, second);
    }
    place.advance(v, L);
  }
}

}  // namespace

extern "C" void nm_kernel(const void* x, void* y, int64_t outer, int64_t size, int64_t inner,
                          const int64_t* seed, int64_t stream, int64_t threads) {
  if (size % M == 0) {  // no block crosses the rows: they are one long row
    size *= outer;
    outer = 1;
  }
  const View view{(const Stored*)x, (Out*)y, outer, size, inner};
  const int64_t total = outer * view.blocks() * view.across();
  const int64_t share = ((total + threads - 1) / threads + 63) / 64 * 64;
  const uint64_t key = seed ? *seed : 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int64_t begin = 0; begin < total; begin += share) {
    const int64_t end = begin + share < total ? begin + share : total;
    prune_range(view, begin, end, key, (uint32_t)stream);
  }
}
