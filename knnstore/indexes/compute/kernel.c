/* The inner loops of the join, for machines with a C compiler; kernel.py compiles and loads this file.
 *
 * Every function has a reference in NumPy and torch (reference.py, tiles.py) that computes the same. Nothing is allocated
 * and nothing is kept here: the caller owns all memory and has checked all sizes.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define VNNI 1
#else
#define VNNI 0
#endif

#if defined(__SSE4_2__) && defined(__x86_64__)
#include <nmmintrin.h>
#define CHECKSUMS 1
#define CRC_OF_8(crc, word) _mm_crc32_u64(crc, word)
#define CRC_OF_1(crc, byte) _mm_crc32_u8((uint32_t)(crc), byte)
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define CHECKSUMS 1
#define CRC_OF_8(crc, word) __crc32cd((uint32_t)(crc), word)
#define CRC_OF_1(crc, byte) __crc32cb((uint32_t)(crc), byte)
#else
#define CHECKSUMS 0
#endif

enum { LANES = 16, DIGIT = 11, BUCKETS = 1 << DIGIT };
enum { KEYS_AT_ONCE = 1024, QUERIES_AT_ONCE = 1020 }; /* of a list: what is prepared together */
enum { NEAR = 1 << 15 }; /* bytes that are sooner read than passed over */

/* Survivors of many queries: row q of each array holds counts[q] of them, at most capacity; LANES more may be written.
 * values and tags may be NULL. work: 2 * capacity numbers. */
typedef struct {
    float *distances;
    uint32_t *values, *tags;
    int64_t *counts;
    float *thresholds;
    uint64_t *work;
    int64_t capacity, stride, k;
} TopK;

/* Some consecutive keys of a list: int8 (count, d), in the units that scales (d) has. values and rows are unsigned
 * integers of so many bytes, NULL where they aren't kept; a key's tag is first_row + its row. hidden: a byte a key, not 0
 * for one that isn't to be found; or NULL. */
typedef struct {
    const int8_t *units;
    const void *values, *rows;
    const uint8_t *hidden;
    const float *scales;
    int64_t count, list, first_row, value_bytes, row_bytes;
} Piece;

/* ---- selection --------------------------------------------------------------------------------------------------- */

static uint32_t bits_of(float distance) {
    uint32_t bits;
    memcpy(&bits, &distance, sizeof bits);
    return bits; /* of numbers that aren't negative: sorts as they do */
}

/* Sort `count` items, bits above slot, by their bits, of which none is above `most`; ties stay in order. Returns where
 * they then are: items or other, which has room for as many. */
static uint64_t *sort_items(uint64_t *items, uint64_t *other, int64_t count, uint32_t most) {
    for (int shift = 32; count && (uint64_t)most >> (shift - 32); shift += DIGIT) {
        uint32_t starts[BUCKETS] = {0};
        for (int64_t i = 0; i < count; i++) starts[items[i] >> shift & (BUCKETS - 1)]++;
        uint32_t sum = 0;
        for (int bucket = 0; bucket < BUCKETS; bucket++) {
            uint32_t here = starts[bucket];
            starts[bucket] = sum;
            sum += here;
        }
        for (int64_t i = 0; i < count; i++) other[starts[items[i] >> shift & (BUCKETS - 1)]++] = items[i];
        uint64_t *swap = items;
        items = other;
        other = swap;
    }
    return items;
}

static void range_of(const float *distances, int64_t count, uint32_t *least, uint32_t *most) {
    *least = UINT32_MAX, *most = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(distances[i]);
        *least = bits < *least ? bits : *least;
        *most = bits > *most ? bits : *most;
    }
}

/* The survivors of a query by distance, ties in the order in which they came: the slot of each is an item's low half. */
static uint64_t *sorted(const TopK *top_k, int64_t query) {
    const float *distances = top_k->distances + query * top_k->stride;
    const int64_t count = top_k->counts[query];
    uint64_t *items = top_k->work;
    uint32_t least, most;
    range_of(distances, count, &least, &most);
    for (int64_t i = 0; i < count; i++) items[i] = (uint64_t)(bits_of(distances[i]) - least) << 32 | (uint64_t)i;
    return sort_items(items, items + top_k->capacity, count, most - least);
}

/* Where the k smallest of n distances lie, smallest first, ties in order; returns how many are finite. work: 2 n. */
int64_t smallest(const float *distances, int64_t n, int64_t k, uint64_t *work, int64_t *places) {
    uint32_t least, most, counts[BUCKETS] = {0};
    range_of(distances, n, &least, &most);
    int shift = 0;
    while ((uint64_t)(most - least) >> shift >= BUCKETS) shift++;
    for (int64_t i = 0; i < n; i++) counts[(bits_of(distances[i]) - least) >> shift]++;
    int64_t met = 0, kept = 0;
    uint32_t last = 0;
    while (last < BUCKETS - 1 && (met += counts[last]) < k) last++;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = bits_of(distances[i]) - least;
        work[kept] = (uint64_t)bits << 32 | (uint64_t)i;
        kept += bits >> shift <= last && distances[i] < INFINITY;
    }
    const uint64_t *order = sort_items(work, work + n, kept, most - least);
    const int64_t found = kept < k ? kept : k;
    for (int64_t i = 0; i < found; i++) places[i] = (uint32_t)order[i];
    return found;
}

static void gather_words(uint32_t *row, const uint64_t *order, int64_t count, uint32_t *scratch) {
    for (int64_t i = 0; i < count; i++) scratch[i] = row[(uint32_t)order[i]];
    memcpy(row, scratch, (size_t)count * sizeof *row);
}

/* The first `count` of a row in an order, as k numbers of which the rest is -1. */
static void take_words(const uint32_t *row, const uint64_t *order, int64_t count, int64_t k, int64_t *numbers) {
    for (int64_t i = 0; i < count; i++) numbers[i] = row[(uint32_t)order[i]];
    for (int64_t i = count; i < k; i++) numbers[i] = -1;
}

/* Keep the k nearest of a full row; the k-th distance becomes the query's threshold. */
static void compact(const TopK *top_k, int64_t query) {
    uint64_t *order = sorted(top_k, query);
    uint64_t *unused = order == top_k->work ? order + top_k->capacity : top_k->work;
    uint32_t *scratch = (uint32_t *)unused;
    const int64_t k = top_k->k, first = query * top_k->stride;
    gather_words((uint32_t *)(top_k->distances + first), order, k, scratch);
    if (top_k->values) gather_words(top_k->values + first, order, k, scratch);
    if (top_k->tags) gather_words(top_k->tags + first, order, k, scratch);
    top_k->counts[query] = k;
    const float last = top_k->distances[first + k - 1];
    if (last < top_k->thresholds[query]) top_k->thresholds[query] = last;
}

/* The k nearest of queries [0, n), nearest first, padded with inf and -1: distances, values, tags (n, k), what is kept. */
void select_nearest(const TopK *top_k, int64_t n, float *distances, int64_t *values, int64_t *tags) {
    const int64_t k = top_k->k;
    for (int64_t query = 0; query < n; query++) {
        const uint64_t *order = sorted(top_k, query);
        const int64_t first = query * top_k->stride, to = query * k;
        const int64_t count = top_k->counts[query] < k ? top_k->counts[query] : k;
        for (int64_t i = 0; i < count; i++) distances[to + i] = top_k->distances[first + (uint32_t)order[i]];
        for (int64_t i = count; i < k; i++) distances[to + i] = INFINITY;
        if (values) take_words(top_k->values + first, order, count, k, values + to);
        if (tags) take_words(top_k->tags + first, order, count, k, tags + to);
    }
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

/* Make room for `more` survivors of a query; return its threshold. */
static float threshold_with_room(const TopK *top_k, int64_t query, int64_t more) {
    if (top_k->counts[query] + more > top_k->capacity) compact(top_k, query);
    return top_k->thresholds[query];
}

/* Append a key, making room for it where its distance is still below the threshold. */
static void append(const TopK *top_k, int64_t query, float distance, const uint32_t *value, const uint32_t *tag) {
    if (top_k->counts[query] >= top_k->capacity) {
        compact(top_k, query);
        if (!(distance < top_k->thresholds[query])) return;
    }
    const int64_t at = query * top_k->stride + top_k->counts[query]++;
    top_k->distances[at] = distance > 0 ? distance : 0;
    if (top_k->values) top_k->values[at] = *value;
    if (top_k->tags) top_k->tags[at] = *tag;
}

#if VNNI
/* Append those of LANES keys whose bit is set; there is room for them. */
static inline void append_lanes(
    const TopK *top_k, int64_t query, __mmask16 below, __m512 distances, const uint32_t *values, const uint32_t *tags
) {
    const int64_t at = query * top_k->stride + top_k->counts[query];
    distances = _mm512_max_ps(distances, _mm512_setzero_ps());
    _mm512_storeu_ps(top_k->distances + at, _mm512_maskz_compress_ps(below, distances));
    if (top_k->values)
        _mm512_storeu_si512(top_k->values + at, _mm512_maskz_compress_epi32(below, _mm512_loadu_si512(values)));
    if (top_k->tags)
        _mm512_storeu_si512(top_k->tags + at, _mm512_maskz_compress_epi32(below, _mm512_loadu_si512(tags)));
    top_k->counts[query] += __builtin_popcount(below);
}
#endif

/* Offer t keys to m queries: scores (m, t); a distance is score + offset. values and tags, where they are kept, have room for t rounded up to LANES. */
void offer_scores(
    const TopK *top_k, const float *scores, int64_t m, int64_t t, const int64_t *queries, const float *offsets,
    const uint32_t *values, const uint32_t *tags
) {
    for (int64_t i = 0; i < m; i++) {
        const float *row = scores + i * t, offset = offsets[i];
        const int64_t query = queries[i];
        for (int64_t j = 0; j < t; j += LANES) {
            const int64_t width = t - j < LANES ? t - j : LANES;
            const float threshold = threshold_with_room(top_k, query, width);
#if VNNI
            const __mmask16 inside = (__mmask16)((1u << width) - 1);
            const __m512 here = _mm512_add_ps(_mm512_maskz_loadu_ps(inside, row + j), _mm512_set1_ps(offset));
            const __mmask16 below = _mm512_mask_cmp_ps_mask(inside, here, _mm512_set1_ps(threshold), _CMP_LT_OQ);
            if (below) append_lanes(top_k, query, below, here, values + j, tags + j);
#else
            int any = 0;
            for (int64_t lane = 0; lane < width; lane++) any |= row[j + lane] + offset < threshold;
            if (!any) continue;
            for (int64_t lane = 0; lane < width; lane++)
                if (row[j + lane] + offset < threshold)
                    append(top_k, query, row[j + lane] + offset, values + j + lane, tags + j + lane);
#endif
        }
    }
}

/* ---- look-ups ---------------------------------------------------------------------------------------------------- */

/* The n items of `size` bytes at `addresses`, next to each other. */
void take_items(const int64_t *addresses, int64_t n, int64_t size, char *items) {
    for (int64_t i = 0; i < n; i++) memcpy(items + i * size, (const char *)(intptr_t)addresses[i], (size_t)size);
}

static int is_resident(int64_t page_address, int64_t page) {
    unsigned char resident = 0;
    return !mincore((void *)(intptr_t)page_address, (size_t)page, (void *)&resident) && resident & 1;
}

static void ask_for(int64_t begin, int64_t end, int64_t at_once) {
    for (; begin < end; begin += at_once) {
        const int64_t left = end - begin, size = left < at_once ? left : at_once;
        posix_madvise((void *)(intptr_t)begin, (size_t)size, POSIX_MADV_WILLNEED);
    }
}

/* Ask for mapped memory to be read from the disk: whole pages, of pieces whose middle isn't there yet; in one go those
 * that follow each other closely. A call asks for `at_once` bytes at most, whole pages. */
void will_need(const int64_t *addresses, const int64_t *bytes, int64_t pieces, int64_t page, int64_t at_once) {
    int64_t begin = 0, end = 0;
    for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t first = addresses[piece] / page * page, last = addresses[piece] + bytes[piece];
        if (is_resident((first + (last - first) / 2) / page * page, page)) continue;
        if (first < begin || first > end + NEAR) {
            ask_for(begin, end, at_once);
            begin = first;
            end = last;
        }
        end = last > end ? last : end;
    }
    ask_for(begin, end, at_once);
}

/* ---- checksums --------------------------------------------------------------------------------------------------- */

/* Whether damaged_block can be called. */
int checksums(void) { return CHECKSUMS; }

#if CHECKSUMS
static uint32_t crc32c(const uint8_t *from, int64_t bytes) {
    uint64_t crc = UINT32_MAX;
    for (; bytes >= 8; bytes -= 8, from += 8) {
        uint64_t word;
        memcpy(&word, from, sizeof word);
        crc = CRC_OF_8(crc, word);
    }
    for (; bytes; bytes--) crc = CRC_OF_1(crc, *from++);
    return ~(uint32_t)crc;
}
#endif

/* The first of n blocks, `sizes` bytes from `begins` of the data, whose CRC-32C isn't what `sums` says; −1 if none. */
int64_t damaged_block(
    const uint8_t *data, const int64_t *begins, const int64_t *sizes, const uint32_t *sums, int64_t n
) {
#if CHECKSUMS
    for (int64_t i = 0; i < n; i++)
        if (crc32c(data + begins[i], sizes[i]) != sums[i]) return i;
#endif
    return -1;
}

/* ---- int8 keys ---------------------------------------------------------------------------------------------------
 *
 * The distance of a query q to a stored key s u (scales s, units u) of a list with the centroid c is defined so that
 * every engine on every processor returns the same bits:
 *
 *     w = (q − c) s                                         the query, relative to the centroid, in units
 *     step = max |w| / MOST_WEIGHT,   whole = rint(w · (1 / step))    w rounded to 16 bits
 *     P = Σ whole u                                         exact: integers
 *     distance = ((−2 step) P + ‖s u − c‖²) + (‖q − c‖² + 2 step Σ whole c / s)
 *
 * P is rounded once, to float32; everything else is float32 without fused operations. The three sums of floats add
 * dimension i to lane i mod LANES, in order, and then add up the lanes in a fixed tree. tiles.py has the same in torch.
 */

#define SMALLEST 1e-30f /* below it w is taken as 0, whose inverse would be infinite */
enum { MOST_WEIGHT = 32000, EXACT = 512 }; /* of so many dimensions P fits in 32 bits: 512 · 32001 · 127 < 2^31 */

#if defined(__AVX512F__)
enum { REGISTER = 64 };
#elif defined(__AVX__)
enum { REGISTER = 32 };
#else
enum { REGISTER = 16 };
#endif
enum { WIDTH = REGISTER / 4, PARTS = LANES / WIDTH };
typedef float Floats __attribute__((vector_size(REGISTER)));

static inline Floats load(const float *from) {
    Floats floats;
    memcpy(&floats, from, sizeof floats);
    return floats;
}

static inline Floats load_units(const int8_t *from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
    Floats floats;
    for (int lane = 0; lane < WIDTH; lane++) floats[lane] = from[lane];
    return floats;
#endif
}

static float sum_of(const float lanes[LANES]) {
    float eight[8], four[4];
    for (int i = 0; i < 8; i++) eight[i] = lanes[i] + lanes[i + 8];
    for (int i = 0; i < 4; i++) four[i] = eight[i] + eight[i + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* ‖s u − c‖² of one key. */
static float norm_of(const int8_t *units, int64_t d, const float *scales, const float *centroid) {
    Floats sums[PARTS] = {0};
    float lanes[LANES];
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES)
        for (int part = 0; part < PARTS; part++) {
            const int64_t at = i + part * WIDTH;
            const Floats gap = load_units(units + at) * load(scales + at) - load(centroid + at);
            sums[part] += gap * gap;
        }
    memcpy(lanes, sums, sizeof lanes);
    for (; i < d; i++) {
        const float gap = (float)units[i] * scales[i] - centroid[i];
        lanes[i % LANES] += gap * gap;
    }
    return sum_of(lanes);
}

/* Σ a b. */
static float sum_of_products(const float *a, const float *b, int64_t d) {
    Floats sums[PARTS] = {0};
    float lanes[LANES];
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES)
        for (int part = 0; part < PARTS; part++)
            sums[part] += load(a + i + part * WIDTH) * load(b + i + part * WIDTH);
    memcpy(lanes, sums, sizeof lanes);
    for (; i < d; i++) lanes[i % LANES] += a[i] * b[i];
    return sum_of(lanes);
}

/* Round a query to `whole` numbers, padded with zeros to `wide`; centre is c / s. gaps, weights: room for d. */
static void round_query(
    const float *query, int64_t d, int64_t wide, const float *scales, const float *centroid, const float *centre,
    float *gaps, float *weights, int16_t *whole, float *step, float *offset
) {
    int32_t most_bits = 0;
    for (int64_t i = 0; i < d; i++) {
        gaps[i] = query[i] - centroid[i];
        weights[i] = gaps[i] * scales[i];
    }
    for (int64_t i = 0; i < d; i++) { /* the bits of positive floats sort as they do */
        const int32_t bits = (int32_t)(bits_of(weights[i]) & INT32_MAX);
        most_bits = bits > most_bits ? bits : most_bits;
    }
    float most;
    memcpy(&most, &most_bits, sizeof most);
    const float unit = most > SMALLEST ? most / MOST_WEIGHT : 1, inverse = 1 / unit;
    for (int64_t i = 0; i < d; i++) weights[i] = __builtin_rintf(weights[i] * inverse);
    for (int64_t i = 0; i < d; i++) whole[i] = (int16_t)weights[i];
    for (int64_t i = d; i < wide; i++) whole[i] = 0;
    *step = -2 * unit;
    *offset = sum_of_products(gaps, gaps, d) + 2 * unit * sum_of_products(weights, centre, d);
}

/* Products of QUERIES queries, `wide` apart, with one key each of `keys`: P as float32, [key][query].
 *
 * Keys are widened to 16 bits as they are read. A register then takes LANES products at once and adds neighbouring
 * ones; what is left is added across when a key is through, or after EXACT dimensions, when 32 bits could overflow. */
enum { QUERIES = 4, KEYS = 2 };

#if defined(__AVX2__)
/* One step, over LANES dimensions. */
static inline __attribute__((always_inline)) void add_products(
    __m256i sums[KEYS][QUERIES], const int8_t *units, const int keys, int64_t apart, const int16_t *whole,
    const int queries, int64_t wide
) {
    __m256i here[KEYS];
#pragma GCC unroll 2
    for (int key = 0; key < keys; key++)
        here[key] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(units + key * apart)));
#pragma GCC unroll 4
    for (int query = 0; query < queries; query++) {
        const __m256i weights = _mm256_loadu_si256((const __m256i *)(whole + query * wide));
#pragma GCC unroll 2
        for (int key = 0; key < keys; key++)
            sums[key][query] = _mm256_add_epi32(sums[key][query], _mm256_madd_epi16(here[key], weights));
    }
}

static inline __attribute__((always_inline)) void products(
    const int8_t *units, const int keys, int64_t d, const int16_t *whole, const int queries, int64_t wide,
    float results[KEYS][QUERIES]
) {
    __m256d totals[KEYS] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    for (int64_t i = 0; i < d;) {
        const int64_t end = d - i < EXACT ? d : i + EXACT;
        __m256i sums[KEYS][QUERIES];
#pragma GCC unroll 2
        for (int key = 0; key < KEYS; key++)
#pragma GCC unroll 4
            for (int query = 0; query < QUERIES; query++) sums[key][query] = _mm256_setzero_si256();
        for (; i + LANES <= end; i += LANES) add_products(sums, units + i, keys, d, whole + i, queries, wide);
        if (i < end) { /* never read beyond the key */
            int8_t rest[KEYS * LANES] = {0};
            for (int key = 0; key < keys; key++) memcpy(rest + key * LANES, units + key * d + i, (size_t)(end - i));
            add_products(sums, rest, keys, LANES, whole + i, queries, wide);
            i = end;
        }
#pragma GCC unroll 2
        for (int key = 0; key < keys; key++) {
            const __m256i low = _mm256_hadd_epi32(sums[key][0], sums[key][1]);
            const __m256i both = _mm256_hadd_epi32(low, _mm256_hadd_epi32(sums[key][2], sums[key][3]));
            const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
            if (d <= EXACT)
                _mm_storeu_ps(results[key], _mm_cvtepi32_ps(four));
            else
                totals[key] = _mm256_add_pd(totals[key], _mm256_cvtepi32_pd(four));
        }
    }
    if (d > EXACT)
        for (int key = 0; key < keys; key++) _mm_storeu_ps(results[key], _mm256_cvtpd_ps(totals[key]));
}
#else
static inline void products(
    const int8_t *units, const int keys, int64_t d, const int16_t *whole, const int queries, int64_t wide,
    float results[KEYS][QUERIES]
) {
    for (int key = 0; key < keys; key++)
        for (int query = 0; query < queries; query++) {
            int64_t total = 0;
            for (int64_t begin = 0; begin < d; begin += EXACT) {
                const int64_t end = d - begin < EXACT ? d : begin + EXACT;
                int32_t sum = 0;
                for (int64_t i = begin; i < end; i++) sum += (int32_t)units[key * d + i] * whole[query * wide + i];
                total += sum;
            }
            results[key][query] = (float)total;
        }
}
#endif

static void *cut(char **scratch, int64_t bytes) {
    char *here = *scratch;
    *scratch += (bytes + 63) / 64 * 64;
    return here;
}

/* What is prepared of keys and of queries, and the numbers that go with each. */
typedef struct {
    int16_t *whole;
    float *norms, *steps, *offsets, *limits, *centre, *gaps, *weights;
    uint32_t *values, *tags;
    int64_t wide;
} Prepared;

static int64_t wide_of(int64_t d) { return (d + LANES - 1) / LANES * LANES; }

static Prepared laid_out(char **scratch, int64_t d) {
    const int64_t wide = wide_of(d);
    Prepared p = {.wide = wide};
    p.whole = cut(scratch, QUERIES_AT_ONCE * 2 * wide), p.norms = cut(scratch, KEYS_AT_ONCE * 4);
    p.steps = cut(scratch, QUERIES_AT_ONCE * 4), p.offsets = cut(scratch, QUERIES_AT_ONCE * 4);
    p.limits = cut(scratch, QUERIES_AT_ONCE * 4);
    p.centre = cut(scratch, wide * 4), p.gaps = cut(scratch, wide * 4), p.weights = cut(scratch, wide * 4);
    p.values = cut(scratch, KEYS_AT_ONCE * 4), p.tags = cut(scratch, KEYS_AT_ONCE * 4);
    return p;
}

/* The n unsigned integers of `bytes` bytes, each more by `first`, as words. */
static void widen(const void *numbers, int64_t bytes, int64_t first, int64_t n, uint32_t *words) {
    const uint32_t more = (uint32_t)first;
    if (bytes == 2) for (int64_t i = 0; i < n; i++) words[i] = ((const uint16_t *)numbers)[i] + more;
    if (bytes == 4) for (int64_t i = 0; i < n; i++) words[i] = ((const uint32_t *)numbers)[i] + more;
    if (bytes == 8) for (int64_t i = 0; i < n; i++) words[i] = (uint32_t)((const uint64_t *)numbers)[i] + more;
}

/* Prepare t of a piece's keys from `begin` on. A hidden key is infinitely far. */
static void prepare_keys(const Piece *piece, int64_t begin, int64_t t, int64_t d, const float *centroid, Prepared *p) {
    const int8_t *units = piece->units + begin * d;
    for (int64_t i = 0; i < t; i++)
        p->norms[i] = piece->hidden && piece->hidden[begin + i] ? INFINITY : norm_of(units + i * d, d, piece->scales, centroid);
    const char *values = piece->values, *rows = piece->rows;
    if (values) widen(values + begin * piece->value_bytes, piece->value_bytes, 0, t, p->values);
    if (rows) widen(rows + begin * piece->row_bytes, piece->row_bytes, piece->first_row, t, p->tags);
}

#if VNNI
/* With VNNI four 8-bit products are one step, so a query's 16 bits are taken in two parts, 256 high + low, and keys as
 * u + CENTRE, since one factor has to be unsigned; CENTRE times the sum of a part is subtracted again. BLOCK keys are
 * packed so that a register holds four dimensions of LANES keys. */
enum { BLOCK = 32, GROUP = 6, CENTRE = 128 };

typedef struct {
    uint8_t *keys;
    int8_t *codes;
    int32_t *shifts;
} Packed;

static int64_t packed_bytes(int64_t wide) {
    return KEYS_AT_ONCE * wide + QUERIES_AT_ONCE * (2 * wide + 8) + 64 * 3;
}

/* Keys as u + CENTRE, in blocks [BLOCK keys] of [wide / 4][BLOCK][4] bytes. */
static void pack_keys(const int8_t *units, int64_t t, int64_t d, int64_t wide, uint8_t *packed) {
    for (int64_t key = 0; key < (t + BLOCK - 1) / BLOCK * BLOCK; key++) {
        uint8_t *to = packed + key / BLOCK * BLOCK * wide + key % BLOCK * 4;
        const int8_t *from = units + key * d;
        const int64_t size = key < t ? d : 0;
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) {
            const __m128i raw = _mm_loadu_si128((const __m128i *)(from + i));
            int32_t fours[4];
            _mm_storeu_si128((__m128i *)fours, _mm_xor_si128(raw, _mm_set1_epi8((char)CENTRE)));
            for (int64_t four = 0; four < 4; four++) memcpy(to + (i + 4 * four) * BLOCK, fours + four, 4);
        }
        for (; i < wide; i += 4)
            for (int64_t j = 0; j < 4; j++) to[i * BLOCK + j] = (uint8_t)(i + j < size ? from[i + j] + CENTRE : CENTRE);
    }
}

static void pack_query(const int16_t *whole, int64_t wide, int8_t *codes, int32_t *shifts) {
    int32_t highs = 0, lows = 0;
    for (int64_t i = 0; i < wide; i++) {
        const int32_t high = (whole[i] + CENTRE) >> 8, low = whole[i] - 256 * high;
        codes[i] = (int8_t)high, codes[wide + i] = (int8_t)low;
        highs += high, lows += low;
    }
    shifts[0] = highs * CENTRE, shifts[1] = lows * CENTRE;
}

/* Products of GROUP queries, each high then low, with BLOCK keys. Unrolled, or the sums leave their registers. */
static inline __attribute__((always_inline)) void block_products(
    const uint8_t *keys, const int8_t *weights, int64_t wide, __m512i sums[GROUP][2][2]
) {
    __m512i held[GROUP][2][2];
#pragma GCC unroll 6
    for (int q = 0; q < GROUP; q++)
        held[q][0][0] = held[q][0][1] = held[q][1][0] = held[q][1][1] = _mm512_setzero_si512();
    for (int64_t i = 0; i < wide; i += 4) {
        const __m512i first = _mm512_loadu_si512(keys + i * BLOCK), second = _mm512_loadu_si512(keys + i * BLOCK + 64);
#pragma GCC unroll 6
        for (int q = 0; q < GROUP; q++) {
            int32_t high, low;
            memcpy(&high, weights + 2 * q * wide + i, 4);
            memcpy(&low, weights + (2 * q + 1) * wide + i, 4);
            held[q][0][0] = _mm512_dpbusd_epi32(held[q][0][0], first, _mm512_set1_epi32(high));
            held[q][1][0] = _mm512_dpbusd_epi32(held[q][1][0], second, _mm512_set1_epi32(high));
            held[q][0][1] = _mm512_dpbusd_epi32(held[q][0][1], first, _mm512_set1_epi32(low));
            held[q][1][1] = _mm512_dpbusd_epi32(held[q][1][1], second, _mm512_set1_epi32(low));
        }
    }
#pragma GCC unroll 6
    for (int q = 0; q < GROUP; q++) {
        sums[q][0][0] = held[q][0][0], sums[q][0][1] = held[q][0][1];
        sums[q][1][0] = held[q][1][0], sums[q][1][1] = held[q][1][1];
    }
}

/* 256 high + low, rounded once. */
static inline __m512 joined(__m512i high, __m512i low, int64_t d) {
    if (d <= EXACT) return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
    const __m512d scale = _mm512_set1_pd(256);
    const __m512d first = _mm512_add_pd(
        _mm512_mul_pd(_mm512_cvtepi32_pd(_mm512_castsi512_si256(high)), scale),
        _mm512_cvtepi32_pd(_mm512_castsi512_si256(low))
    );
    const __m512d last = _mm512_add_pd(
        _mm512_mul_pd(_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(high, 1)), scale),
        _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(low, 1))
    );
    const __m512d halves = _mm512_castps_pd(_mm512_castps256_ps512(_mm512_cvtpd_ps(first)));
    return _mm512_castpd_ps(_mm512_insertf64x4(halves, _mm256_castps_pd(_mm512_cvtpd_ps(last)), 1));
}

/* Offer t prepared keys to the m prepared queries `members`. */
static void offer_keys(
    const TopK *top_k, Prepared *p, const int8_t *units, int64_t t, int64_t d, const int64_t *members, int64_t m,
    char *scratch
) {
    const int64_t wide = p->wide;
    Packed packed;
    packed.keys = cut(&scratch, KEYS_AT_ONCE * wide), packed.codes = cut(&scratch, QUERIES_AT_ONCE * 2 * wide);
    packed.shifts = cut(&scratch, QUERIES_AT_ONCE * 8);
    pack_keys(units, t, d, wide, packed.keys);
    for (int64_t key = t; key < (t + BLOCK - 1) / BLOCK * BLOCK; key++) p->norms[key] = INFINITY;
    for (int64_t i = 0; i < m; i++)
        pack_query(p->whole + i * wide, wide, packed.codes + 2 * i * wide, packed.shifts + 2 * i);
    for (int64_t i = 0; i < m; i += GROUP) {
        const int64_t here = m - i < GROUP ? m - i : GROUP;
        for (int64_t first = 0; first < t; first += BLOCK) {
            __m512i sums[GROUP][2][2];
            block_products(packed.keys + first * wide, packed.codes + 2 * i * wide, wide, sums);
            for (int64_t q = 0; q < here; q++) {
                const int64_t query = members[i + q];
                const __m512i above = _mm512_set1_epi32(packed.shifts[2 * (i + q)]);
                const __m512i below = _mm512_set1_epi32(packed.shifts[2 * (i + q) + 1]);
                const __m512 step = _mm512_set1_ps(p->steps[i + q]), offset = _mm512_set1_ps(p->offsets[i + q]);
                const __m512 threshold = _mm512_set1_ps(threshold_with_room(top_k, query, BLOCK));
                for (int64_t half = 0; half < 2; half++) {
                    const int64_t key = first + half * LANES;
                    const __m512i high = _mm512_sub_epi32(sums[q][half][0], above);
                    const __m512 product = joined(high, _mm512_sub_epi32(sums[q][half][1], below), d);
                    const __m512 norms = _mm512_loadu_ps(p->norms + key);
                    const __m512 scores = _mm512_add_ps(_mm512_mul_ps(product, step), norms);
                    const __m512 distances = _mm512_add_ps(scores, offset);
                    const __mmask16 nearer = _mm512_cmp_ps_mask(distances, threshold, _CMP_LT_OQ);
                    if (nearer) append_lanes(top_k, query, nearer, distances, p->values + key, p->tags + key);
                }
            }
        }
    }
}
#else
static int64_t packed_bytes(int64_t wide) { return (void)wide, 0; }

/* Offer some keys, whose products with some queries are known, to the queries. */
static inline __attribute__((always_inline)) void offer_products(
    const TopK *top_k, Prepared *p, const float results[KEYS][QUERIES], int64_t key, const int keys,
    const int64_t *members, int64_t first, const int queries
) {
    for (int each = 0; each < keys; each++) {
        float distances[QUERIES];
        int any = 0;
        for (int query = 0; query < queries; query++) {
            const float product = results[each][query] * p->steps[first + query];
            distances[query] = (product + p->norms[key + each]) + p->offsets[first + query];
            any |= distances[query] < p->limits[first + query];
        }
        if (!any) continue;
        for (int query = 0; query < queries; query++)
            if (distances[query] < p->limits[first + query]) {
                const int64_t member = members[first + query];
                append(top_k, member, distances[query], p->values + key + each, p->tags + key + each);
                p->limits[first + query] = top_k->thresholds[member];
            }
    }
}

/* Offer t prepared keys to the m prepared queries `members`. */
static void offer_keys(
    const TopK *top_k, Prepared *p, const int8_t *units, int64_t t, int64_t d, const int64_t *members, int64_t m,
    char *scratch
) {
    (void)scratch;
    float results[KEYS][QUERIES];
    for (int64_t key = 0; key < t; key += KEYS) {
        int64_t query = 0;
        if (t - key >= KEYS)
            for (; query + QUERIES <= m; query += QUERIES) {
                products(units + key * d, KEYS, d, p->whole + query * p->wide, QUERIES, p->wide, results);
                offer_products(top_k, p, results, key, KEYS, members, query, QUERIES);
            }
        for (; query < m; query++)
            for (int64_t one = key; one < t && one < key + KEYS; one++) {
                products(units + one * d, 1, d, p->whole + query * p->wide, 1, p->wide, results);
                offer_products(top_k, p, results, one, 1, members, query, 1);
            }
    }
}
#endif

/* Bytes of the scratch of scan_lists and unit_distances for keys of d dimensions. */
int64_t scan_bytes(int64_t d) {
    const int64_t wide = wide_of(d);
    return KEYS_AT_ONCE * 12 + QUERIES_AT_ONCE * (2 * wide + 12) + 12 * wide + packed_bytes(wide) + 64 * 12;
}

/* Offer the keys of n pieces of lists to the queries (any, d) that probe the lists, members[bounds[list]] to
 * members[bounds[list + 1]]. centroids: (nlist, d). scratch: scan_bytes, aligned to 64. */
void scan_lists(
    const TopK *top_k, const Piece *pieces, int64_t n, int64_t d, const float *centroids, const float *queries,
    const int64_t *members, const int64_t *bounds, char *scratch
) {
    Prepared p = laid_out(&scratch, d);
    for (const Piece *piece = pieces; piece < pieces + n; piece++) {
        const float *centroid = centroids + piece->list * d;
        for (int64_t i = 0; i < d; i++) p.centre[i] = centroid[i] / piece->scales[i];
        for (int64_t from = bounds[piece->list]; from < bounds[piece->list + 1]; from += QUERIES_AT_ONCE) {
            const int64_t left = bounds[piece->list + 1] - from, m = left < QUERIES_AT_ONCE ? left : QUERIES_AT_ONCE;
            for (int64_t i = 0; i < m; i++) {
                const int64_t member = members[from + i];
                round_query(
                    queries + member * d, d, p.wide, piece->scales, centroid, p.centre, p.gaps,
                    p.weights, p.whole + i * p.wide, p.steps + i, p.offsets + i
                );
                p.limits[i] = top_k->thresholds[member];
            }
            for (int64_t begin = 0; begin < piece->count; begin += KEYS_AT_ONCE) {
                const int64_t more = piece->count - begin, t = more < KEYS_AT_ONCE ? more : KEYS_AT_ONCE;
                prepare_keys(piece, begin, t, d, centroid, &p);
                offer_keys(top_k, &p, piece->units + begin * d, t, d, members + from, m, scratch);
            }
        }
    }
}

/* Distances, float32 (sum of counts), of one query (d) to pieces of keys at `addresses`, each near a centroid (pieces, d). */
void unit_distances_of(
    const float *query, const int64_t *addresses, const int64_t *counts, int64_t pieces, int64_t d,
    const float *scales, const float *centroids, float *distances, char *scratch
) {
    Prepared p = laid_out(&scratch, d);
    for (int64_t piece = 0; piece < pieces; piece++, centroids += d) {
        const int8_t *units = (const int8_t *)(intptr_t)addresses[piece];
        float results[KEYS][QUERIES];
        for (int64_t i = 0; i < d; i++) p.centre[i] = centroids[i] / scales[i];
        round_query(
            query, d, p.wide, scales, centroids, p.centre, p.gaps, p.weights, p.whole, p.steps,
            p.offsets
        );
        for (int64_t key = 0; key < counts[piece]; key++, units += d) {
            products(units, 1, d, p.whole, 1, p.wide, results);
            const float product = results[0][0] * p.steps[0];
            const float distance = (product + norm_of(units, d, scales, centroids)) + p.offsets[0];
            *distances++ = distance > 0 ? distance : 0;
        }
    }
}
