// Prunes the blocks of a tensor, NM_M elements each, as nmcompile/reference.py does, bit for bit.
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
  const R total = tree_sum(mag);
  R t = total / (Real)N;
  if (N > 1) {  // all but the largest: the smallest of the sums without one element
    UNROLL for (int i = 0; i < M; ++i) {
      R mean = tree_sum(mag, i) / (Real)(N - 1);
      t = mean < t ? mean : t;
    }
  }
  UNROLL for (int removed = 2; removed < N; ++removed) {
    R tail[M];
    UNROLL for (int i = 0; i < M; ++i) tail[i] = rank[i] >= removed ? mag[i] : R{};
    R mean = tree_sum(tail) / (Real)(N - removed);
    t = mean < t ? mean : t;
  }
  t = round_up(t);
  t = t < SMALLEST ? real(SMALLEST) : t;
  const I special = ~(I)(total < LIMIT) | (I)(t > LARGEST_STORED);
  t = special ? real(1) : t;
  // Sums start at a power of two that is at least N t: see reference._mvue.
  const R start = (R)((((I)t >> FRACTION) + SPARE) << FRACTION), share = (t + start) - start;
  const R u = (R)((I)(first.at(k) + 1) & ~(((Int)1 << SPARE) - 1)) - 1;
  const R level = start + u * share;
  const I t_bits = bits_of(t);
  R before = start;
  UNROLL for (int i = 0; i < E; ++i) {
    I below = mag[i] < t, crossed{};
    R after = before + (below ? mag[i] : share), next = level;
    UNROLL for (int j = 0; j < N; ++j, next += share) crossed |= (before <= next) & (next < after);
    before = after;
    I infinite = (bits[i] & ~SIGN) > INF ? bits[i] : (bits[i] & SIGN) | INF;
    I value = below ? (bits[i] & SIGN) | t_bits : bits[i];
    write(bits, i, special ? integer(i < N ? -1 : 0) : crossed, special ? infinite : value);
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
