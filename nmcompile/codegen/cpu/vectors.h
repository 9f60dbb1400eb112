// What prune.cpp is written in: vector types, storage formats, random numbers.
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
constexpr Real LIMIT = 0x1p1022, SMALLEST = 0x1p-1022, LARGEST_STORED = 0x1.fffffffffffffp1023;
constexpr int FRACTION = 52;
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
constexpr Real LIMIT = 0x1p126f, SMALLEST = 0x1p-126f;
constexpr Real LARGEST_STORED = NM_STORAGE == STORAGE_F16 ? 65504.0f : 0x1.fffffep127f;
constexpr int FRACTION = 23;
#endif

constexpr int N = NM_N, M = NM_M, L = WIDTH / sizeof(Real);
#if NM_METHOD == METHOD_TRANSPOSABLE
constexpr int E = M * M;  // elements of a lane
#else
constexpr int E = M;
#endif
// Bits between t and the power of two that is at least N t: 1 + the bit length of N - 1.
constexpr int SPARE = N == 1 ? 1 : 33 - __builtin_clz(N - 1);
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

inline bool any_negative(I v) {
#if defined(__AVX512DQ__) && !defined(__clang__)
  if constexpr (sizeof(Int) == 4) return __builtin_ia32_cvtd2mask512((Vec<int, 16>)v);
  return __builtin_ia32_cvtq2mask512((Vec<long long, 8>)v);
#elif defined(__AVX__) && !defined(__AVX512F__)
  if constexpr (sizeof(Int) == 4) return __builtin_ia32_movmskps256((Vec<float, 8>)v);
  return __builtin_ia32_movmskpd256((Vec<double, 4>)v);
#else
  Int all = 0;
  for (int i = 0; i < L; ++i) all |= v[i];
  return all < 0;
#endif
}

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

constexpr int COUNTERS = WIDTH / 8;
typedef Vec<uint64_t, COUNTERS> U64;  // a word in each low half; what the high half holds is noise
typedef Vec<uint32_t, 2 * COUNTERS> U32;

inline U64 product(U64 a, uint32_t factor) {
#if defined(__AVX512F__) && !defined(__clang__)  // GCC does not find it itself
  typedef Vec<int, 16> V;
  return (U64)__builtin_ia32_pmuludq512_mask((V)a, (V)(U64{} + factor), Vec<long long, 8>{}, -1);
#elif defined(__AVX2__) && !defined(__AVX512F__) && !defined(__clang__)
  return (U64)__builtin_ia32_pmuludq256((Vec<int, 8>)a, (Vec<int, 8>)(U64{} + factor));
#else
  return (a & 0xffffffff) * factor;
#endif
}

template <int... J>
inline U64 zip(U64 a, U64 b, int high, std::integer_sequence<int, J...>) {
  return high ? __builtin_shufflevector(a, b, (COUNTERS / 2 + J / 2 + J % 2 * COUNTERS)...)
              : __builtin_shufflevector(a, b, (J / 2 + J % 2 * COUNTERS)...);
}

constexpr int GROUP = 64;  // blocks whose numbers are made together

class Uniforms {
 public:
  Uniforms(uint64_t seed, uint32_t stream, uint32_t second)
      : seed_(seed), stream_(stream), second_(second) {}

  // The numbers of the blocks k..k+L-1, of those that were filled last; L divides k.
  R at(int64_t k) const {
    return __builtin_convertvector((load<Vec<float, L>>(buffer_ + k % GROUP)), R);
  }

  // The numbers of the blocks of a group.
  NO_INLINE void fill(int64_t group) {
    for (int first = 0; first < GROUP / 4; first += COUNTERS) {
      U64 lane;
      for (int i = 0; i < COUNTERS; ++i) lane[i] = i;
      const uint64_t counter = (uint64_t)group * (GROUP / 4) + first;  // adding lanes does not carry
      U64 c0 = lane | (uint32_t)counter, c1 = U64{} + (counter >> 32);
      U64 c2 = U64{} + stream_, c3 = U64{} + second_;
      uint32_t key0 = (uint32_t)seed_, key1 = (uint32_t)(seed_ >> 32);
      UNROLL for (int round = 0; round < 7; ++round) {
        const U64 p0 = product(c0, 0xD2511F53), p1 = product(c2, 0xCD9E8D57);
        c0 = p1 >> 32 ^ c1 ^ key0, c1 = p1, c2 = p0 >> 32 ^ c3 ^ key1, c3 = p0;
        key0 += 0x9E3779B9, key1 += 0xBB67AE85;
      }
      // The four words of a counter stand side by side.
      const U64 one = (c0 & 0x7fffff) | c1 << 32, two = (c2 & 0x7fffff) | c3 << 32;
      UNROLL for (int half = 0; half < 2; ++half) {
        const U32 words = (U32)zip(one, two, half, std::make_integer_sequence<int, COUNTERS>());
        store(buffer_ + 4 * first + half * 2 * COUNTERS,
              (Vec<float, 2 * COUNTERS>)((words & 0x7fffff) | 0x3f800000) - 1.0f);
      }
    }
  }

  uint64_t seed_;
  uint32_t stream_, second_;
  alignas(64) float buffer_[GROUP] = {};
};

}  // namespace
