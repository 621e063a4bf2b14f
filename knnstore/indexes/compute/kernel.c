/* The inner loops of the join, for machines with a C compiler; kernel.py compiles and loads this file.
 *
 * Every function has a reference in NumPy and torch (reference.py, tiles.py) that computes the same. Nothing is allocated
 * and nothing is kept here: the caller owns all memory and has checked all sizes.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define INT8_PRODUCTS 1
#else
#define INT8_PRODUCTS 0
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

enum { LANES = 16, KEYS = 32, QUERIES = 6, DIGIT = 11, BUCKETS = 1 << DIGIT, CENTRE = 128, MOST_WEIGHT = 32000 };
enum { KEYS_AT_ONCE = 1024, QUERIES_AT_ONCE = 1020 }; /* of a list: what is packed together */
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

/* Whether scan_lists can be called. */
int int8_products(void) { return INT8_PRODUCTS; }

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

/* Make room for `more` survivors of a query; return its limit: what a score has to be below. */
static float limit_with_room(const TopK *top_k, int64_t query, int64_t more, float offset) {
    if (top_k->counts[query] + more > top_k->capacity) compact(top_k, query);
    return top_k->thresholds[query] - offset;
}

#if INT8_PRODUCTS
/* Append those of LANES keys whose bit is set. */
static inline void append(
    const TopK *top_k, int64_t query, __mmask16 below, __m512 scores, float offset, const uint32_t *values,
    const uint32_t *tags
) {
    const int64_t at = query * top_k->stride + top_k->counts[query];
    const __m512 distances = _mm512_max_ps(_mm512_add_ps(scores, _mm512_set1_ps(offset)), _mm512_setzero_ps());
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
            float limit = limit_with_room(top_k, query, width, offset);
#if INT8_PRODUCTS
            const __mmask16 inside = (__mmask16)((1u << width) - 1);
            const __m512 here = _mm512_maskz_loadu_ps(inside, row + j);
            const __mmask16 below = _mm512_mask_cmp_ps_mask(inside, here, _mm512_set1_ps(limit), _CMP_LT_OQ);
            if (below) append(top_k, query, below, here, offset, values + j, tags + j);
#else
            int any = 0;
            for (int64_t lane = 0; lane < width; lane++) any |= row[j + lane] < limit;
            if (!any) continue;
            const int64_t first = query * top_k->stride;
            for (int64_t lane = 0; lane < width; lane++) {
                if (!(row[j + lane] < limit)) continue;
                const int64_t at = first + top_k->counts[query]++;
                const float distance = row[j + lane] + offset;
                top_k->distances[at] = distance > 0 ? distance : 0;
                if (top_k->values) top_k->values[at] = values[j + lane];
                if (top_k->tags) top_k->tags[at] = tags[j + lane];
            }
#endif
        }
    }
}

/* ---- int8 keys: one query ---------------------------------------------------------------------------------------- */

/* Squared distances, float32 (t), of one query (d) to scales * units (t, d). */
static void unit_distances(
    const float *query, const int8_t *units, int64_t t, int64_t d, const float *scales, float *distances
) {
    for (int64_t key = 0; key < t; key++, units += d) {
        float sum = 0;
        int64_t i = 0;
#if INT8_PRODUCTS
        __m512 sums = _mm512_setzero_ps();
        for (; i + LANES <= d; i += LANES) {
            const __m512i unit = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(units + i)));
            const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(unit), _mm512_loadu_ps(scales + i));
            const __m512 gap = _mm512_sub_ps(_mm512_loadu_ps(query + i), value);
            sums = _mm512_fmadd_ps(gap, gap, sums);
        }
        sum = _mm512_reduce_add_ps(sums);
#endif
        for (; i < d; i++) {
            const float gap = query[i] - (float)units[i] * scales[i];
            sum += gap * gap;
        }
        distances[key] = sum;
    }
}

/* unit_distances of several pieces of keys, at `addresses`, laid end to end: distances (sum of counts). */
void unit_distances_of(
    const float *query, const int64_t *addresses, const int64_t *counts, int64_t pieces, int64_t d,
    const float *scales, float *distances
) {
    for (int64_t piece = 0; piece < pieces; distances += counts[piece++])
        unit_distances(query, (const int8_t *)(intptr_t)addresses[piece], counts[piece], d, scales, distances);
}

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

/* ---- int8 keys: products of integers ----------------------------------------------------------------------------- */

/* Bytes of scan_lists' scratch for keys of d dimensions. */
int64_t scan_bytes(int64_t d) {
    const int64_t wide = (d + 3) / 4 * 4;
    return KEYS_AT_ONCE * (wide + 12) + QUERIES_AT_ONCE * (2 * wide + 16) + 8 * wide + 64 * 10;
}

#if INT8_PRODUCTS
/* The tile's keys as u + 128, in blocks [KEYS keys] of [wide / 4][KEYS][4] bytes, and ‖s u − c‖² of each. */
static void pack_keys(
    const int8_t *units, int64_t t, int64_t d, int64_t wide, const float *scales, const float *centroid,
    uint8_t *packed, float *norms
) {
    const int64_t blocks = (t + KEYS - 1) / KEYS;
    for (int64_t key = 0; key < blocks * KEYS; key++) {
        uint8_t *to = packed + key / KEYS * KEYS * wide + key % KEYS * 4;
        const int8_t *from = units + key * d;
        norms[key] = INFINITY;
        if (key >= t) {
            for (int64_t i = 0; i < wide; i += 4) memset(to + i * KEYS, CENTRE, 4);
            continue;
        }
        float sum = 0;
        __m512 sums = _mm512_setzero_ps();
        int64_t i = 0;
        for (; i + LANES <= d; i += LANES) {
            const __m128i raw = _mm_loadu_si128((const __m128i *)(from + i));
            const __m512 unit = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw));
            const __m512 gap = _mm512_fmsub_ps(unit, _mm512_loadu_ps(scales + i), _mm512_loadu_ps(centroid + i));
            sums = _mm512_fmadd_ps(gap, gap, sums);
            const __m128i shifted = _mm_xor_si128(raw, _mm_set1_epi8((char)CENTRE));
            int32_t fours[4];
            _mm_storeu_si128((__m128i *)fours, shifted);
            for (int64_t four = 0; four < 4; four++) memcpy(to + (i + 4 * four) * KEYS, fours + four, 4);
        }
        for (int64_t four = i; four < wide; four += 4)
            for (int64_t j = 0; j < 4; j++)
                to[four * KEYS + j] = (uint8_t)(four + j < d ? from[four + j] + CENTRE : CENTRE);
        for (; i < d; i++) {
            const float gap = (float)from[i] * scales[i] - centroid[i];
            sum += gap * gap;
        }
        norms[key] = sum + _mm512_reduce_add_ps(sums);
    }
}

static __mmask16 lanes_below(int64_t count) { return count < LANES ? (__mmask16)((1u << count) - 1) : 0xFFFF; }

/* A query less the centroid, times the scales, as step * (256 high + low): what a product with units needs. */
static void pack_query(
    const float *query, int64_t d, int64_t wide, const float *scales, const float *centroid, const float *centre,
    float *weights, int8_t *codes, float *step, float *offset, int32_t *sums
) {
    __m512 largest = _mm512_setzero_ps(), square = largest, along = largest;
    for (int64_t i = 0; i < d; i += LANES) {
        const __mmask16 inside = lanes_below(d - i);
        const __m512 gap =
            _mm512_sub_ps(_mm512_maskz_loadu_ps(inside, query + i), _mm512_maskz_loadu_ps(inside, centroid + i));
        const __m512 weight = _mm512_mul_ps(gap, _mm512_maskz_loadu_ps(inside, scales + i));
        square = _mm512_fmadd_ps(gap, gap, square);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(weight));
        _mm512_mask_storeu_ps(weights + i, inside, weight);
    }
    const float most = _mm512_reduce_max_ps(largest), unit = most > 0 ? most / MOST_WEIGHT : 1;
    __m512i highs = _mm512_setzero_si512(), lows = highs;
    for (int64_t i = 0; i < wide; i += LANES) {
        const __mmask16 inside = lanes_below(d - i);
        const __m512 weight = _mm512_maskz_loadu_ps(inside, weights + i);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(weight, _mm512_set1_ps(1 / unit)));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(CENTRE)), 8);
        const __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, 8));
        along = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_maskz_loadu_ps(inside, centre + i), along);
        highs = _mm512_add_epi32(highs, high);
        lows = _mm512_add_epi32(lows, low);
        _mm512_mask_cvtepi32_storeu_epi8(codes + i, lanes_below(wide - i), high);
        _mm512_mask_cvtepi32_storeu_epi8(codes + wide + i, lanes_below(wide - i), low);
    }
    *step = -2 * unit;
    /* the centroid's part of the product with the units */
    *offset = _mm512_reduce_add_ps(square) + 2 * unit * _mm512_reduce_add_ps(along);
    sums[0] = _mm512_reduce_add_epi32(highs) * CENTRE;
    sums[1] = _mm512_reduce_add_epi32(lows) * CENTRE;
}

/* Products of QUERIES queries, each high then low, with KEYS keys. Unrolled, or the sums leave their registers. */
static inline __attribute__((always_inline)) void products(
    const uint8_t *keys, const int8_t *weights, int64_t wide, __m512i sums[QUERIES][2][2]
) {
    __m512i held[QUERIES][2][2];
#pragma GCC unroll 6
    for (int q = 0; q < QUERIES; q++)
        held[q][0][0] = held[q][0][1] = held[q][1][0] = held[q][1][1] = _mm512_setzero_si512();
    for (int64_t i = 0; i < wide; i += 4) {
        const __m512i first = _mm512_loadu_si512(keys + i * KEYS), second = _mm512_loadu_si512(keys + i * KEYS + 64);
#pragma GCC unroll 6
        for (int q = 0; q < QUERIES; q++) {
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
    for (int q = 0; q < QUERIES; q++) {
        sums[q][0][0] = held[q][0][0], sums[q][0][1] = held[q][0][1];
        sums[q][1][0] = held[q][1][0], sums[q][1][1] = held[q][1][1];
    }
}

static void *cut(char **scratch, int64_t bytes) {
    char *here = *scratch;
    *scratch += (bytes + 63) / 64 * 64;
    return here;
}

/* What is packed of keys and of queries, and the numbers that go with each. */
typedef struct {
    uint8_t *keys;
    int8_t *codes;
    float *norms, *steps, *offsets, *centre, *weights;
    int32_t *shifts;
    uint32_t *values, *tags;
    int64_t wide;
} Packed;

static Packed laid_out(char *scratch, int64_t d) {
    const int64_t wide = (d + 3) / 4 * 4;
    Packed packed = {.wide = wide};
    packed.keys = cut(&scratch, KEYS_AT_ONCE * wide), packed.codes = cut(&scratch, QUERIES_AT_ONCE * 2 * wide);
    packed.norms = cut(&scratch, KEYS_AT_ONCE * 4), packed.steps = cut(&scratch, QUERIES_AT_ONCE * 4);
    packed.offsets = cut(&scratch, QUERIES_AT_ONCE * 4), packed.shifts = cut(&scratch, QUERIES_AT_ONCE * 8);
    packed.centre = cut(&scratch, wide * 4), packed.weights = cut(&scratch, wide * 4);
    packed.values = cut(&scratch, KEYS_AT_ONCE * 4), packed.tags = cut(&scratch, KEYS_AT_ONCE * 4);
    return packed;
}

/* The n unsigned integers of `bytes` bytes, each more by `first`, as words. */
static void widen(const void *numbers, int64_t bytes, int64_t first, int64_t n, uint32_t *words) {
    const uint32_t more = (uint32_t)first;
    if (bytes == 2) for (int64_t i = 0; i < n; i++) words[i] = ((const uint16_t *)numbers)[i] + more;
    if (bytes == 4) for (int64_t i = 0; i < n; i++) words[i] = ((const uint32_t *)numbers)[i] + more;
    if (bytes == 8) for (int64_t i = 0; i < n; i++) words[i] = (uint32_t)((const uint64_t *)numbers)[i] + more;
}

/* Make a piece's keys from `begin` on ready: t of them. */
static void pack_piece(const Piece *piece, int64_t begin, int64_t t, int64_t d, const float *centroid, Packed *packed) {
    pack_keys(piece->units + begin * d, t, d, packed->wide, piece->scales, centroid, packed->keys, packed->norms);
    for (int64_t i = 0; piece->hidden && i < t; i++)
        if (piece->hidden[begin + i]) packed->norms[i] = INFINITY;
    const char *values = piece->values, *rows = piece->rows;
    if (values) widen(values + begin * piece->value_bytes, piece->value_bytes, 0, t, packed->values);
    if (rows) widen(rows + begin * piece->row_bytes, piece->row_bytes, piece->first_row, t, packed->tags);
}

/* Offer the t packed keys to the m packed queries `members`. */
static void offer_packed(const TopK *top_k, const Packed *packed, int64_t t, const int64_t *members, int64_t m) {
    const int64_t wide = packed->wide;
    for (int64_t i = 0; i < m; i += QUERIES) {
        const int64_t here = m - i < QUERIES ? m - i : QUERIES;
        for (int64_t first = 0; first < t; first += KEYS) {
            __m512i sums[QUERIES][2][2];
            products(packed->keys + first * wide, packed->codes + 2 * i * wide, wide, sums);
            for (int64_t q = 0; q < here; q++) {
                const int64_t query = members[i + q];
                const __m512i above = _mm512_set1_epi32(packed->shifts[2 * (i + q)]);
                const __m512i below = _mm512_set1_epi32(packed->shifts[2 * (i + q) + 1]);
                const __m512 step = _mm512_set1_ps(packed->steps[i + q]);
                const float offset = packed->offsets[i + q], limit = limit_with_room(top_k, query, KEYS, offset);
                for (int64_t half = 0; half < 2; half++) {
                    const int64_t key = first + half * LANES;
                    const __m512 coarse = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[q][half][0], above));
                    const __m512 fine = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[q][half][1], below));
                    const __m512 product = _mm512_fmadd_ps(coarse, _mm512_set1_ps(256), fine);
                    const __m512 scores = _mm512_fmadd_ps(product, step, _mm512_loadu_ps(packed->norms + key));
                    const __mmask16 nearer = _mm512_cmp_ps_mask(scores, _mm512_set1_ps(limit), _CMP_LT_OQ);
                    if (nearer)
                        append(top_k, query, nearer, scores, offset, packed->values + key, packed->tags + key);
                }
            }
        }
    }
}

/* Offer the keys of n pieces of lists to the queries (any, d) that probe the lists, members[bounds[list]] to
 * members[bounds[list + 1]]: the squared distance of each to scales * units.
 *
 * A query is rounded to 16 bits, relative to its largest component less the list's centroid (nlist, d); all else is
 * exact up to float32. scratch: scan_bytes, aligned to 64. */
void scan_lists(
    const TopK *top_k, const Piece *pieces, int64_t n, int64_t d, const float *centroids, const float *queries,
    const int64_t *members, const int64_t *bounds, char *scratch
) {
    Packed packed = laid_out(scratch, d);
    for (const Piece *piece = pieces; piece < pieces + n; piece++) {
        const float *centroid = centroids + piece->list * d;
        for (int64_t i = 0; i < d; i++) packed.centre[i] = centroid[i] / piece->scales[i];
        for (int64_t from = bounds[piece->list]; from < bounds[piece->list + 1]; from += QUERIES_AT_ONCE) {
            const int64_t left = bounds[piece->list + 1] - from, m = left < QUERIES_AT_ONCE ? left : QUERIES_AT_ONCE;
            for (int64_t i = 0; i < m; i++)
                pack_query(
                    queries + members[from + i] * d, d, packed.wide, piece->scales, centroid, packed.centre,
                    packed.weights, packed.codes + 2 * i * packed.wide, packed.steps + i, packed.offsets + i,
                    packed.shifts + 2 * i
                );
            for (int64_t begin = 0; begin < piece->count; begin += KEYS_AT_ONCE) {
                const int64_t more = piece->count - begin, t = more < KEYS_AT_ONCE ? more : KEYS_AT_ONCE;
                pack_piece(piece, begin, t, d, centroid, &packed);
                offer_packed(top_k, &packed, t, members + from, m);
            }
        }
    }
}
#else
void scan_lists(
    const TopK *top_k, const Piece *pieces, int64_t n, int64_t d, const float *centroids, const float *queries,
    const int64_t *members, const int64_t *bounds, char *scratch
) {
    (void)top_k, (void)pieces, (void)n, (void)d, (void)centroids, (void)queries, (void)members, (void)bounds;
    (void)scratch;
}
#endif
