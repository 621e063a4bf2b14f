/* The inner loops of filling: the nearest list of each key, and its product-quantisation code.
 *
 * The reference is coarse.py and reference.py, with torch and faiss. Distances are float32 here too, but added in
 * another order. A choice so close that rounding could decide it is marked, and the caller asks the reference.
 * Nothing is allocated or kept here: the caller owns all memory and has checked all sizes.
 *
 * A score, ‖c‖² − 2 x·c, is the squared distance of key x to vector c less ‖x‖², which is the same for all vectors.
 * Vectors are stored in panels of PANEL, transposed, so that one register holds the same row of LANES vectors:
 *
 *     row 0       ‖c0‖²       ‖c1‖²       …   (infinite if there is no vector)
 *     row 1       −2 c0[0]    −2 c1[0]    …
 *     row 1 + i   −2 c0[i]    −2 c1[i]    …
 *
 * The scores of a key with a whole panel then start as row 0 and add x[i] · row 1 + i for each dimension i.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

/* A vector type that is wider than a register is kept in memory, so LANES is what a register holds. */
#ifdef __AVX512F__
#include <immintrin.h>
enum { LANES = 16 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { PANEL = 2 * LANES };
enum { KEYS = 6, CODED = 4 }; /* keys at a time, for lists and for codes: as many as have their scores in registers */
typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Numbers __attribute__((vector_size(4 * LANES)));

/* Vectors per panel. */
int64_t panel_size(void) { return PANEL; }

/* The nearest vector is `place % PANEL` of panel `place / PANEL`; `second` is the score of the second nearest. */
typedef struct {
    float best, second;
    int32_t place;
} Choice;

static inline Lanes load(const float *from) {
    Lanes lanes;
    memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

/* Update the best and second best score of each lane with LANES scores, those of register `at`.
 *
 * Every lane keeps its own minimum, without branches. `second` becomes min(second, max(score, best)): the larger of the
 * new score and the best is the candidate for second place. */
static inline __attribute__((always_inline)) void compare(
    Lanes scores, int32_t at, Lanes *best, Lanes *second, Numbers *which
) {
#ifdef __AVX512F__
    const __m512 s = (__m512)scores, b = (__m512)*best;
    const __mmask16 nearer = _mm512_cmp_ps_mask(s, b, _CMP_LT_OQ);
    *second = (Lanes)_mm512_min_ps((__m512)*second, _mm512_max_ps(s, b));
    *which = (Numbers)_mm512_mask_mov_epi32((__m512i)*which, nearer, _mm512_set1_epi32(at));
    *best = (Lanes)_mm512_min_ps(s, b);
#elif defined(__AVX2__)
    const __m256 s = (__m256)scores, b = (__m256)*best, nearer = _mm256_cmp_ps(s, b, _CMP_LT_OQ);
    *second = (Lanes)_mm256_min_ps((__m256)*second, _mm256_max_ps(s, b));
    *which = (Numbers)_mm256_blendv_epi8((__m256i)*which, _mm256_set1_epi32(at), _mm256_castps_si256(nearer));
    *best = (Lanes)_mm256_min_ps(s, b);
#else
    for (int lane = 0; lane < LANES; lane++) {
        const float s = scores[lane], b = (*best)[lane], beyond = s < b ? b : s;
        (*second)[lane] = beyond < (*second)[lane] ? beyond : (*second)[lane];
        (*which)[lane] = s < b ? at : (*which)[lane];
        (*best)[lane] = s < b ? s : b;
    }
#endif
}

/* Combine the lanes: the best of all, and the smaller of that lane's second and the best of the other lanes. */
static inline Choice over_lanes(Lanes best, Lanes second, Numbers which) {
#ifdef __AVX512F__
    const float least = _mm512_reduce_min_ps((__m512)best);
    const __mmask16 equal = _mm512_cmp_ps_mask((__m512)best, _mm512_set1_ps(least), _CMP_EQ_OQ);
    const int lane = __builtin_ctz(equal | 1u << (LANES - 1));
    const __m512 rest = _mm512_mask_mov_ps((__m512)best, (__mmask16)(1u << lane), (__m512)second);
    return (Choice){least, _mm512_reduce_min_ps(rest), which[lane] * LANES + lane};
#else
    Choice choice = {best[0], second[0], which[0] * LANES};
    for (int lane = 1; lane < LANES; lane++) {
        if (best[lane] < choice.best) {
            choice.second = choice.best < second[lane] ? choice.best : second[lane];
            choice.best = best[lane], choice.place = which[lane] * LANES + lane;
        } else if (best[lane] < choice.second) {
            choice.second = best[lane];
        }
    }
    return choice;
#endif
}

/* Scores of some keys with all vectors of a panel, which is loaded once for all keys.
 *
 * `number`, the number of keys, is a constant in every call, so that the loops over q are unrolled. */
static inline __attribute__((always_inline)) void score(
    const float *panel, int64_t d, const float *const *keys, const int number, Lanes (*scores)[2]
) {
    for (int q = 0; q < number; q++) scores[q][0] = load(panel), scores[q][1] = load(panel + LANES);
    for (int64_t i = 0; i < d; i++) {
        const Lanes first = load(panel + (1 + i) * PANEL), last = load(panel + (1 + i) * PANEL + LANES);
#pragma GCC unroll 6
        for (int q = 0; q < number; q++) {
            scores[q][0] += keys[q][i] * first;
            scores[q][1] += keys[q][i] * last;
        }
    }
}

/* The nearest vector in `count` panels to each of some keys. */
static inline __attribute__((always_inline)) void choose(
    const float *panels, int64_t count, int64_t d, const float *const *keys, const int number, Choice *choices
) {
    Lanes best[KEYS], second[KEYS];
    Numbers which[KEYS];
#pragma GCC unroll 6
    for (int q = 0; q < number; q++) {
        best[q] = second[q] = (Lanes){0} + INFINITY;
        which[q] = (Numbers){0};
    }
    for (int64_t panel = 0; panel < count; panel++) {
        Lanes scores[KEYS][2];
        score(panels + panel * (1 + d) * PANEL, d, keys, number, scores);
#pragma GCC unroll 6
        for (int q = 0; q < number; q++) {
            compare(scores[q][0], (int32_t)(2 * panel), best + q, second + q, which + q);
            compare(scores[q][1], (int32_t)(2 * panel + 1), best + q, second + q, which + q);
        }
    }
#pragma GCC unroll 6
    for (int q = 0; q < number; q++) choices[q] = over_lanes(best[q], second[q], which[q]);
}

static float squared_norm(const float *key, int64_t d) {
    float sums[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += key[i + lane] * key[i + lane];
    for (; i < d; i++) sum += key[i] * key[i];
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

/* Whether rounding could decide between a key's two best scores. Rounding errors are proportional to the squared norms
 * of the key and of the nearest vector. The latter is bounded by the key's norm and its distance from the vector,
 * ‖x − c‖² = norm + best. The comparison is negated so that NaN counts as close. */
static int is_close(float best, float second, float norm, float slack) {
    return !(second - best > slack * (norm + fabsf(norm + best)));
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

/* Take `bytes` from the start of the scratch memory, rounded up to whole cache lines. */
static void *cut(char **scratch, int64_t bytes) {
    char *here = *scratch;
    *scratch += (bytes + 63) / 64 * 64;
    return here;
}

/* Bytes of scratch memory for nearest_lists. */
int64_t nearest_lists_bytes(int64_t n, int64_t probed, int64_t cells) {
    return 8 * n * probed + 12 * n + 4 * KEYS * (cells + PANEL) + 8 * (cells + 1) + 8 * (probed + 1) + 10 * 64;
}

/* The `probed` cells nearest to one key, by their scores (cells); mark the key if the next cell is about as near.
 *
 * Insertion into a sorted array: few cells are wanted, and most scores fail the first comparison. held and places have
 * room for probed + 1, as the next cell is needed to know whether the choice is close. */
static void nearest_cells(
    const float *restrict scores, int64_t cells, int64_t probed, float norm, float slack, float *restrict held,
    int32_t *restrict places, int32_t *near, uint8_t *close
) {
    int64_t count = 0;
    float last = INFINITY;
    const int64_t wanted = probed + 1; /* and the next */
    for (int32_t cell = 0; cell < cells; cell++) {
        const float here = scores[cell];
        if (count == wanted && !(here < last)) continue;
        int64_t at = count < wanted ? count++ : count - 1;
        for (; at && here < held[at - 1]; at--) held[at] = held[at - 1], places[at] = places[at - 1];
        held[at] = here, places[at] = cell;
        last = held[count - 1];
    }
    memcpy(near, places, (size_t)probed * sizeof *near);
    *close |= (uint8_t)is_close(held[probed - 1], held[probed], norm, slack);
}

/* The nearest list of each of n keys (n, d), among those of its `probed` < cells nearest cells, or of the only cell.
 *
 * cell_panels: the centroids of the cells. panels: the centroids of the lists, cell by cell, each cell in its own
 * panels, which begin at starts[c] (cells + 1). numbers: the list at each place in the panels. close (n): 1 if the
 * reference has to be asked.
 *
 * Three steps: find the nearest cells of each key; sort the pairs of a key and a cell by cell, so that the panels of a
 * cell are read once for all its keys; compare each cell's keys with its lists, and keep the best and second best score
 * of each key over its cells. */
void nearest_lists(
    const float *keys, int64_t n, int64_t d, int64_t probed, const float *cell_panels, int64_t cells,
    const int64_t *starts, const float *panels, const int64_t *numbers, float slack, int64_t *lists, uint8_t *close,
    char *scratch
) {
    int32_t *near = cut(&scratch, 4 * n * probed), *order = cut(&scratch, 4 * n * probed);
    float *norms = cut(&scratch, 4 * n), *best = cut(&scratch, 4 * n), *second = cut(&scratch, 4 * n);
    float *scores = cut(&scratch, 4 * KEYS * (cells + PANEL)), *near_scores = cut(&scratch, 4 * (probed + 1));
    int32_t *near_cells = cut(&scratch, 4 * (probed + 1));
    int64_t *ends = cut(&scratch, 8 * (cells + 1));
    const int64_t cell_count = (cells + PANEL - 1) / PANEL, wide = cell_count * PANEL;
    for (int64_t i = 0; i < n; i++) {
        norms[i] = squared_norm(keys + i * d, d);
        best[i] = second[i] = INFINITY, lists[i] = 0, close[i] = 0;
    }
    memset(ends, 0, (size_t)(cells + 1) * sizeof *ends);
    for (int64_t i = 0; i < n; i += KEYS) {
        const float *some[KEYS];
        for (int64_t q = 0; q < KEYS; q++) some[q] = keys + (i + q < n ? i + q : n - 1) * d;
        for (int64_t panel = 0; cells > 1 && panel < cell_count; panel++) {
            Lanes held[KEYS][2];
            score(cell_panels + panel * (1 + d) * PANEL, d, some, KEYS, held);
            for (int64_t q = 0; q < KEYS; q++) memcpy(scores + q * wide + panel * PANEL, held[q], sizeof held[q]);
        }
        for (int64_t q = 0; q < KEYS && i + q < n; q++) {
            int32_t *here = near + (i + q) * probed;
            if (cells > 1)
                nearest_cells(
                    scores + q * wide, cells, probed, norms[i + q], slack, near_scores, near_cells, here, close + i + q
                );
            else
                *here = 0;
            for (int64_t p = 0; p < probed; p++) ends[here[p] + 1]++;
        }
    }
    /* a counting sort of keys by cell: ends[c + 1] is the number of keys of cell c; the sums make ends[c] the begin of
     * cell c, and the second loop advances it to the cell's end */
    for (int64_t cell = 0; cell < cells; cell++) ends[cell + 1] += ends[cell];
    for (int64_t i = 0; i < n; i++)
        for (int64_t p = 0; p < probed; p++) order[ends[near[i * probed + p]]++] = (int32_t)i;
    for (int64_t cell = 0, begin = 0; cell < cells; begin = ends[cell++]) {
        const int64_t count = starts[cell + 1] - starts[cell];
        for (int64_t i = begin; count && i < ends[cell]; i += KEYS) {
            const int64_t here = ends[cell] - i < KEYS ? ends[cell] - i : KEYS;
            const float *some[KEYS]; /* padded with the last key */
            Choice choices[KEYS];
            for (int64_t q = 0; q < KEYS; q++) some[q] = keys + order[i + (q < here ? q : here - 1)] * d;
            choose(panels + starts[cell] * (1 + d) * PANEL, count, d, some, KEYS, choices);
            for (int64_t q = 0; q < here; q++) {
                const int32_t key = order[i + q];
                const Choice chosen = choices[q];
                if (chosen.best < best[key]) {
                    second[key] = best[key] < chosen.second ? best[key] : chosen.second;
                    best[key] = chosen.best;
                    lists[key] = numbers[starts[cell] * PANEL + chosen.place];
                } else if (chosen.best < second[key]) {
                    second[key] = chosen.best;
                }
            }
        }
    }
    for (int64_t i = 0; i < n; i++) close[i] |= (uint8_t)is_close(best[i], second[i], norms[i], slack);
}

/* ---- codes ------------------------------------------------------------------------------------------------------- */

/* Codes of one part of up to CODED residuals. For the usual widths d is a constant, so that loops are unrolled. */
static inline __attribute__((always_inline)) void encode_part(
    const float *panels, int64_t levels, int64_t d, const float *const *parts, int64_t count, float slack,
    uint8_t *const *codes, uint8_t *const *close
) {
    Choice choices[CODED];
    choose(panels, levels / PANEL, d, parts, CODED, choices);
    for (int64_t q = 0; q < count; q++) {
        *codes[q] = (uint8_t)choices[q].place;
        *close[q] |= (uint8_t)is_close(choices[q].best, choices[q].second, squared_norm(parts[q], d), slack);
    }
}

/* Codes (n, m) of the residuals, key (n, d) less the centroid (·, d) of its list: for each of m parts the nearest of
 * 256 vectors.
 *
 * panels: the panels of each part's vectors. scratch: 64 residuals of d. close (n): 1 if the reference has to be asked.
 * Keys are processed in blocks, part by part, so that a block's residuals and a part's vectors stay in the cache. */
void encode_residuals(
    const float *keys, int64_t n, int64_t d, const int64_t *lists, const float *centroids, int64_t m,
    const float *panels, float slack, uint8_t *codes, uint8_t *close, float *scratch
) {
    enum { LEVELS = 256, BLOCK = 64 };
    const int64_t width = d / m, size = LEVELS / PANEL * PANEL * (1 + width);
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int64_t rows = n - first < BLOCK ? n - first : BLOCK;
        for (int64_t i = 0; i < rows; i++) {
            const float *key = keys + (first + i) * d, *centroid = centroids + lists[first + i] * d;
            for (int64_t j = 0; j < d; j++) scratch[i * d + j] = key[j] - centroid[j];
            close[first + i] = 0;
        }
        for (int64_t part = 0; part < m; part++) {
            for (int64_t i = 0; i < rows; i += CODED) {
                const int64_t count = rows - i < CODED ? rows - i : CODED;
                const float *parts[CODED];
                uint8_t *to[CODED], *marks[CODED];
                for (int64_t q = 0; q < CODED; q++) {
                    const int64_t row = i + (q < count ? q : count - 1);
                    parts[q] = scratch + row * d + part * width;
                    to[q] = codes + (first + row) * m + part;
                    marks[q] = close + first + row;
                }
                const float *here = panels + part * size;
                if (width == 4) encode_part(here, LEVELS, 4, parts, count, slack, to, marks);
                else if (width == 8) encode_part(here, LEVELS, 8, parts, count, slack, to, marks);
                else encode_part(here, LEVELS, width, parts, count, slack, to, marks);
            }
        }
    }
}
