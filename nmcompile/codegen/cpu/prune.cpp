// Prunes the blocks of a tensor, NM_M elements each, as masks/reference.py does, bit for bit.
//
// Memory is [outer, size, inner]; blocks run along `size`, the last one padded with zeros, and
// block b of row (o, i) has the number k = (o * blocks + b) * inner + i. The lanes of a vector are
// blocks with consecutive numbers, so every step below works on whole blocks, one per lane.
// METHOD_TRANSPOSABLE: tiles NM_M x NM_M over [size, inner], lanes along `inner`.
// The types and helpers are those of vectors.h, which is printed above this text.

namespace {

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

// Neighbours first, as reference._sum; without element `skip`.
inline R tree_sum(const R* terms, int skip = -1) {
  R level[E];
  UNROLL for (int i = 0; i < M; ++i) level[i] = i == skip ? R{} : terms[i];
  UNROLL for (int count = M; count > 1; count = (count + 1) / 2) {
    UNROLL for (int i = 0; i < count / 2; ++i) level[i] = level[2 * i] + level[2 * i + 1];
    if (count % 2) level[count / 2] = level[count - 1];
  }
  return level[0];
}

inline R smaller(R a, R b) { return a < b ? a : b; }

// The sum, and the smallest of the sums without one element: as tree_sum has them, since rounding
// keeps the order.
inline void sums(const R* terms, R& sum, R& least) {
  R all[E], less[E];
  UNROLL for (int i = 0; i < M; ++i) all[i] = terms[i], less[i] = R{};
  UNROLL for (int count = M; count > 1; count = (count + 1) / 2) {
    UNROLL for (int i = 0; i < count / 2; ++i) {
      less[i] = smaller(less[2 * i] + all[2 * i + 1], all[2 * i] + less[2 * i + 1]);
      all[i] = all[2 * i] + all[2 * i + 1];
    }
    if (count % 2) all[count / 2] = all[count - 1], less[count / 2] = less[count - 1];
  }
  sum = all[0], least = less[0];
}

inline void write(I (&bits)[E], int i, I keep, I value) {
#if NM_MASK
  bits[i] = keep & 1;
#else
  bits[i] = keep & value;
#endif
}

#if NM_METHOD != METHOD_TRANSPOSABLE

INLINE void prune(I (&bits)[E], R first, R second) {
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
  I level{};
  UNROLL for (int i = 0; i < E; ++i) {
    I next = __builtin_convertvector(first + (Real)((i + 1) * N) / (Real)M, I);
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
  R total, t;
  sums(mag, total, t);
  if (N == 1) t = total;
  if (N > 2) t = t / (Real)(N - 1);
  if (N > 1) t = smaller(total / (Real)N, t);
  UNROLL for (int removed = 2; removed < N; ++removed) {
    R tail[M];
    UNROLL for (int i = 0; i < M; ++i) tail[i] = rank[i] >= removed ? mag[i] : R{};
    t = smaller(tree_sum(tail) / (Real)(N - removed), t);
  }
  t = round_up(t);
  t = real(SMALLEST) > t ? real(SMALLEST) : t;
  // Positive numbers are in the order of their bits, and the sign of a difference is a comparison.
  I special = (I)real(LIMIT) - 1 - (I)total;
  if (LARGEST_STORED < LIMIT) special |= (I)real(LARGEST_STORED) - (I)t;
  if (any_negative(special)) {  // its first elements, each of them kept for certain
    UNROLL for (int i = 0; i < E; ++i) {
      I infinite = (bits[i] & ~SIGN) > INF ? bits[i] : (bits[i] & SIGN) | INF;
      bits[i] = special < 0 ? (i < N ? infinite : I{}) : bits[i];
      mag[i] = special < 0 ? (i < N ? real(__builtin_inf()) : R{}) : mag[i];
    }
    t = special < 0 ? real(1) : t;
  }
  // Sums start at a power of two that is at least N t: see reference._mvue.
  const R start = (R)((((I)t >> FRACTION) + SPARE) << FRACTION), share = (t + start) - start;
  const R u = (R)((I)(first + 1) & ~(((Int)1 << SPARE) - 1)) - 1;
  const I least = bits_of(t);
  R sum = start, level = start + u * share;
  I levels[N], side[N];  // the sign of `side`: the sum is not above the level
  UNROLL for (int j = 0; j < N; ++j, level += share) levels[j] = (I)level + 1, side[j] = integer(-1);
  UNROLL for (int i = 0; i < E; ++i) {
    I crossed{}, magnitude = bits[i] & (Int)~SIGN;
    sum += mag[i] < t ? mag[i] : share;
    UNROLL for (int j = 0; j < N; ++j) {
      I after = (I)sum - levels[j];
      crossed |= side[j] ^ after;
      side[j] = after;
    }
    write(bits, i, crossed < 0, (bits[i] & SIGN) | (magnitude > least ? magnitude : least));
  }
#else  // METHOD_APPROX_MVUE
  R total = tree_sum(mag), others[E], ratio[E];
  I count{};
  UNROLL for (int i = 0; i < E; ++i) {
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
  draw(mag, first * total, one);
  UNROLL for (int i = 0; i < E; ++i) {
    left = one[i] ? others[i] : left;
    remaining[i] = one[i] ? R{} : mag[i];
  }
  draw(remaining, second * left, two);
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

INLINE void prune(I (&bits)[E], R, R) {
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

// One result: where it goes, and how the blocks lie. The layout is that of Kernel.__call__.
struct Result {
  void* y;
  int64_t outer, size, inner, stream;
};

struct View {
  const Stored* x;
  Out* y;
  int64_t outer, size, inner;
  uint32_t stream;

  View(const void* x, const Result& r)
      : x((const Stored*)x), y((Out*)r.y), outer(r.outer), size(r.size), inner(r.inner),
        stream((uint32_t)r.stream) {
    if (size % M == 0) {  // no block crosses the rows: they are one long row
      size *= outer;
      outer = 1;
    }
  }

  int64_t blocks() const { return (size + M - 1) / M; }
  int64_t total() const { return outer * blocks() * across(); }
  // Blocks (or tiles) side by side in a row.
  int64_t across() const { return NM_METHOD == METHOD_TRANSPOSABLE ? (inner + M - 1) / M : inner; }
};

constexpr int64_t PART = 16384;  // elements that stay in the cache between two results

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
NO_INLINE void prune_scattered(const View& v, Place place, int count, R first, R second) {
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
  prune(bits, first, second);
  Out out[E][L];
  for (int i = 0; i < E; ++i) narrow(out[i], bits[i]);
  for (int lane = 0; lane < count; ++lane)
    for (int r = 0; r < rows[lane]; ++r)
      for (int c = 0; c < columns[lane]; ++c)
        v.y[start[lane] + r * v.inner + c] = out[r * COLUMNS + c][lane];
}

// How many of the next `count` blocks are whole and lie side by side.
inline int64_t side_by_side(const View& v, const Place& place, int64_t count) {
  const int64_t below = v.size / M - place.b;  // whole blocks from here on in this column
  const int64_t beside = v.inner / (E / M) - place.i;
  const bool runs = E == M && v.inner == 1 && POWER_OF_TWO;
  const int64_t found = runs || below <= 0 ? below : beside;
  return found < count ? found : count;
}

void prune_range(const View& v, int64_t begin, int64_t end, uint64_t seed) {
  Uniforms first(seed, v.stream, 0), second(seed, v.stream, 1);
  Place place(v, begin);
  for (int64_t k = begin; k < end;) {
    if (k % GROUP == 0 && NM_METHOD != METHOD_MSE && NM_METHOD != METHOD_TRANSPOSABLE) {
      first.fill(k / GROUP);
      if (NM_METHOD == METHOD_APPROX_MVUE) second.fill(k / GROUP);
    }
    const int64_t rest = (k | (GROUP - 1)) < end ? GROUP - k % GROUP : end - k;
    int64_t count = side_by_side(v, place, rest) & -L;
    const int64_t at = (place.o * v.size + place.b * M) * v.inner + place.i * (E / M);
    const Stored* x = v.x + at;
    Out* y = v.y + at;
    const int64_t inner = v.inner;  // the compiler cannot know that no store changes it
    if (count <= 0) {
      count = rest < L ? rest : L;
      prune_scattered(v, place, count, first.at(k), second.at(k));
#if NM_METHOD == METHOD_TRANSPOSABLE
    } else {
      for (int64_t j = 0; j < count; j += L) {
        I bits[E];
        UNROLL for (int r = 0; r < M; ++r) load_runs(x + j * M + r * inner, bits + r * M);
        prune(bits, R{}, R{});
        UNROLL for (int r = 0; r < M; ++r) store_runs(y + j * M + r * inner, bits + r * M);
      }
    }
#else
    } else if (inner > 1) {
      for (int64_t j = 0; j < count; j += L) {
        I bits[E];
        UNROLL for (int r = 0; r < M; ++r) bits[r] = widen(x + j + r * inner);
        prune(bits, first.at(k + j), second.at(k + j));
        UNROLL for (int r = 0; r < M; ++r) narrow(y + j + r * inner, bits[r]);
      }
    } else {
      for (int64_t j = 0; j < count; j += L) {
        I bits[E];
        load_runs(x + j * M, bits);
        prune(bits, first.at(k + j), second.at(k + j));
        store_runs(y + j * M, bits);
      }
    }
#endif
    place.advance(v, count);
    k += count;
  }
}

}  // namespace

// `x` once, and `count` results: the numbers of all blocks follow memory, so what a part of the
// results needs of x is still in the cache when the next result reads it.
extern "C" void nm_kernel(const void* x, const Result* results, int64_t count, const int64_t* seed,
                          int64_t threads) {
  const uint64_t key = seed ? *seed : 0;
  const int64_t blocks = View(x, *results).total();
  const int64_t parts = count == 1 ? threads : (blocks * E / PART / threads + 1) * threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t i = 0; i < count; ++i) {
      const View view(x, results[i]);
      const int64_t groups = view.total() / GROUP;
      const int64_t begin = groups * part / parts * GROUP;
      const int64_t end = part + 1 < parts ? groups * (part + 1) / parts * GROUP : view.total();
      prune_range(view, begin, end, key);
    }
  }
}
