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

template <int... J>
inline U32 zip(U32 a, U32 b, int high, std::integer_sequence<int, J...>) {
  return high ? __builtin_shufflevector(a, b, (COUNTERS / 2 + J / 2 + J % 2 * COUNTERS)...)
              : __builtin_shufflevector(a, b, (J / 2 + J % 2 * COUNTERS)...);
}

class Uniforms {
 public:
  Uniforms(uint64_t seed, uint32_t stream, uint32_t second)
      : seed_(seed), stream_(stream), second_(second) {}

  // The numbers of the blocks k..k+L-1; L divides k.
  R at(int64_t k) {
    if (k / 64 != group_) fill(group_ = k / 64);
    return __builtin_convertvector((load<Vec<float, L>>(buffer_ + k % 64)), R);
  }

 private:
  NO_INLINE void fill(int64_t group) {
    for (int first = 0; first < 16; first += COUNTERS) {
      U32 lane;
      for (int i = 0; i < COUNTERS; ++i) lane[i] = i;
      uint64_t counter = (uint64_t)group * 16 + first;  // a multiple of 16: adding lanes is an or
      U32 c0 = lane | (uint32_t)counter, c1 = U32{} + (uint32_t)(counter >> 32);
      U32 c2 = U32{} + stream_, c3 = U32{} + second_;
      uint32_t key0 = (uint32_t)seed_, key1 = (uint32_t)(seed_ >> 32);
      for (int round = 0; round < 7; ++round) {
        U32 high0, low0, high1, low1;
        multiply(c0, 0xD2511F53, high0, low0);
        multiply(c2, 0xCD9E8D57, high1, low1);
        c0 = high1 ^ c1 ^ key0, c1 = low1, c2 = high0 ^ c3 ^ key1, c3 = low0;
        key0 += 0x9E3779B9, key1 += 0xBB67AE85;
      }
      // The four words of a counter stand side by side.
      const std::make_integer_sequence<int, COUNTERS> lanes;
      for (int half = 0; half < 2; ++half) {
        U32 even = zip(c0, c2, half, lanes), odd = zip(c1, c3, half, lanes);
        for (int quarter = 0; quarter < 2; ++quarter) {
          U32 mantissa = zip(even, odd, quarter, lanes) & 0x7fffff;
          store(buffer_ + 4 * first + (2 * half + quarter) * COUNTERS,
                (Vec<float, COUNTERS>)(mantissa | 0x3f800000) - 1.0f);
        }
      }
    }
  }

  uint64_t seed_;
  uint32_t stream_, second_;
  int64_t group_ = -1;
  alignas(64) float buffer_[64];
};

}  // namespace
