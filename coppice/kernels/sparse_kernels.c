/* Training with sparse weights: convolution and linear layers, forward and backward.
 *
 * C99 with the vector extensions of GCC and clang, and OpenMP; no header of Python or torch. Called
 * through ctypes on the memory of tensors. All floating-point data is float32.
 *
 * Layout. Activations lie batch-innermost: [channels][height][width][batch], a linear layer being a
 * convolution of 1x1 images. "Pixel" is one such run of `batch` floats. Each kept weight meets, for
 * output pixel o, input pixel o + offset: a row of outputs is a sum of shifted rows of inputs, each
 * times a weight. So a sparse convolution over a padded input is the same loop as a sparse matrix
 * times a dense one, without im2col. A tile of outputs stays in registers while the weights of its
 * row are walked.
 *
 * Backward walks the weights by input channel. For a tile of one channel it loads the output's
 * gradient once per weight and does both
 *      d_in     += weight · d_out
 *      d_weight += <in, d_out>
 * so that no dense gradient of the weights is ever there. No atomics: every weight has one owner.
 * A first layer needs no d_in, and walks the weights by output channel here, too.
 *
 * Blocks. Weights are also grouped by blocks of input (forward) or output (backward) channels, so
 * that what a tile reads of one block stays in the first-level cache. Offsets are relative to the
 * block and fit 16 bits. `ptr` is [blocks][rows + 1].
 *
 * Order. Weights are stored in backward order; `stored_at` says where those of the forward order
 * lie. But a layer of single pixels, a linear one, is stored by rows, in forward order: both passes
 * walk them so, backward adding to d_in in the first-level cache instead of in registers. That needs
 * no second index and no permutation.
 *
 * Rows must be a multiple of 4 floats long: width · batch, or, where rows follow one another without
 * a gap, height · width · batch.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define FORWARD_TILE 80 /* floats: 10 of 16 registers */
#else
#define LANES 4
#if defined(__aarch64__)
#define FORWARD_TILE 64 /* 16 of 32 registers */
#else
#define FORWARD_TILE 40 /* 10 of 16 registers */
#endif
#endif
/* Floats: what a weight costs is small beside them, and six such runs fit the first-level cache. */
#define BACKWARD_TILE 640

typedef float lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t four_bits __attribute__((vector_size(16)));
#define LOAD(p) (*(const lanes *)(p))
#define STORE(p, v) (*(lanes *)(p) = (v))
#define LOAD4(p) (*(const four *)(p))
#define STORE4(p, v) (*(four *)(p) = (v))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#define PARALLEL _Pragma("omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)")
/* Parts for each thread: small enough that a thread that was held up leaves its share to others. */
#define PARTS 4

/* One layer's structure; the owner of the arrays outlives it. */
typedef struct {
    const int32_t *row_ptr;    /* forward: [row_blocks][rows + 1] */
    const uint16_t *row_offset; /* [count] pixels, in forward order */
    const int32_t *stored_at;  /* [count]; by rows NULL, as is all of the backward order */
    const int32_t *column_ptr; /* backward: [column_blocks][columns + 1] */
    const uint16_t *column_offset; /* [count] pixels, in backward order */
    int32_t rows, columns;     /* channels of the output and of the input */
    int32_t row_blocks, row_step; /* pixels from one block of input channels to the next */
    int32_t column_blocks, column_step;
    int32_t out_height, out_width;
    int32_t padded_width;      /* of the padded input */
    int32_t in_height, in_width;
    int32_t spread_width;      /* of the padded gradient of the output */
} layer;

/* What becomes of the gradient of the weights: it is added to `gradient` or, where `rate` is not 0,
 * that is only scratch, and
 *     velocity = momentum · velocity + gradient + decay · weight + pull · (weight - anchor)
 *     weight  -= rate · velocity
 */
typedef struct {
    float *gradient;     /* [count] */
    float *velocity;     /* [count], NULL without momentum */
    const float *anchor; /* [count], NULL without pull */
    float rate, momentum, decay, pull;
} update;

/* Says which source this was compiled from; setup.py gives it. */
#ifndef COPPICE_SOURCE
#define COPPICE_SOURCE 0
#endif

int coppice_source(void) { return COPPICE_SOURCE; }

int coppice_lanes(void) { return LANES; }

/* 2 where the processor has what the AVX2 variant needs, else 1. */
int coppice_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 2 : 1;
#else
    return 1;
#endif
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (four_bits){i, j, k, l})
#endif

/* The sums of neighbours at a distance of 4 lanes. */
INLINE four fold(lanes a)
{
#if LANES == 8
    four low, high;
    memcpy(&low, &a, sizeof low);
    memcpy(&high, (const char *)&a + sizeof low, sizeof high);
    return low + high;
#else
    return a;
#endif
}

/* The four sums over all lanes of a, b, c and d. */
INLINE four sums(four a, four b, four c, four d)
{
    const four ab = SHUFFLE(a, b, 0, 4, 1, 5) + SHUFFLE(a, b, 2, 6, 3, 7);
    const four cd = SHUFFLE(c, d, 0, 4, 1, 5) + SHUFFLE(c, d, 2, 6, 3, 7);
    return SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
}

INLINE float sum(four a) { return (a[0] + a[2]) + (a[1] + a[3]); }

/* ---- structure -------------------------------------------------------------------------------- */

/* What the index arrays follow from, beside the mask. */
typedef struct {
    int32_t rows, channels, kernel_height, kernel_width, stride, phases;
    int32_t taps_down, taps_across; /* of the kernel, as one of stride 1 */
    int32_t padded_height, padded_width, spread_height, spread_width;
    int32_t block_columns, block_rows; /* channels of a block, of inputs and of outputs */
    int32_t by_rows;           /* stored in forward order; there are no arrays of the backward one */
} plan;

/* Where one kept weight is. */
typedef struct {
    int32_t row, column, down, across;
} place;

INLINE place place_of(const plan *of, int64_t position)
{
    const int64_t taps = (int64_t)of->kernel_height * of->kernel_width;
    const int64_t row = position / (of->channels * taps);
    const int32_t rest = (int32_t)(position - row * of->channels * taps);
    const int32_t channel = rest / (int32_t)taps, tap = rest % (int32_t)taps;
    const int32_t y = tap / of->kernel_width, x = tap % of->kernel_width;
    const int32_t phase = y % of->stride * of->phases + x % of->stride;
    const place found = {(int32_t)row, channel * of->phases * of->phases + phase, y / of->stride,
                         x / of->stride};
    return found;
}

/* The first kept position from `at` on, or `size`. */
INLINE int64_t next_kept(const uint8_t *mask, int64_t at, int64_t size)
{
    while (at < size) {
        const int bits = mask[at >> 3] >> (at & 7);
        if (bits)
            return at + __builtin_ctz((unsigned)bits);
        at = (at | 7) + 1;
    }
    return size;
}

/* Turns counts into where each of [blocks][n] begins, and lets cursor begin there. */
static void begin_at(int32_t *ptr, int32_t *cursor, int blocks, int n)
{
    int32_t total = 0;
    for (int block = 0; block < blocks; block++) {
        for (int i = 0; i < n; i++) {
            const int32_t count = ptr[i];
            cursor[i] = ptr[i] = total;
            total += count;
        }
        ptr[n] = total;
        ptr += n + 1;
        cursor += n + 1;
    }
}

/* The arrays of a layer, from its mask: bit i, the lowest of a byte first, is entry i of the weight
 * [rows][channels][kernel_height][kernel_width]. The pointer arrays come as zeros; cursors are as
 * large as they. */
void coppice_index(const plan *of, const uint8_t *mask, int32_t *row_ptr, uint16_t *row_offset,
                   int32_t *stored_at, int32_t *column_ptr, uint16_t *column_offset,
                   int32_t *row_cursor, int32_t *column_cursor)
{
    const int columns = of->channels * of->phases * of->phases;
    const int row_blocks = (columns + of->block_columns - 1) / of->block_columns;
    const int column_blocks = (of->rows + of->block_rows - 1) / of->block_rows;
    const int64_t size =
        (int64_t)of->rows * of->channels * of->kernel_height * of->kernel_width;
    for (int64_t at = next_kept(mask, 0, size); at < size; at = next_kept(mask, at + 1, size)) {
        const place p = place_of(of, at);
        row_ptr[(ptrdiff_t)(p.column / of->block_columns) * (of->rows + 1) + p.row]++;
        if (!of->by_rows)
            column_ptr[(ptrdiff_t)(p.row / of->block_rows) * (columns + 1) + p.column]++;
    }
    begin_at(row_ptr, row_cursor, row_blocks, of->rows);
    if (!of->by_rows)
        begin_at(column_ptr, column_cursor, column_blocks, columns);
    for (int64_t at = next_kept(mask, 0, size); at < size; at = next_kept(mask, at + 1, size)) {
        const place p = place_of(of, at);
        const int32_t forward =
            row_cursor[(ptrdiff_t)(p.column / of->block_columns) * (of->rows + 1) + p.row]++;
        row_offset[forward] =
            (uint16_t)((p.column % of->block_columns * of->padded_height + p.down) * of->padded_width
                       + p.across);
        if (of->by_rows)
            continue;
        const int32_t stored =
            column_cursor[(ptrdiff_t)(p.row / of->block_rows) * (columns + 1) + p.column]++;
        stored_at[forward] = stored;
        column_offset[stored] =
            (uint16_t)((p.row % of->block_rows * of->spread_height + of->taps_down - 1 - p.down)
                           * of->spread_width
                       + of->taps_across - 1 - p.across);
    }
}

/* Kept weights between the order of the mask's ones and that of the library; cursor is a copy of
 * row_ptr by rows, else of column_ptr. */
void coppice_reorder(const plan *of, const uint8_t *mask, int32_t *cursor, float *ordered,
                     float *stored, int is_back)
{
    const int columns = of->channels * of->phases * of->phases;
    const int64_t size =
        (int64_t)of->rows * of->channels * of->kernel_height * of->kernel_width;
    for (int64_t at = next_kept(mask, 0, size); at < size; at = next_kept(mask, at + 1, size)) {
        const place p = place_of(of, at);
        const ptrdiff_t run = of->by_rows
            ? (ptrdiff_t)(p.column / of->block_columns) * (of->rows + 1) + p.row
            : (ptrdiff_t)(p.row / of->block_rows) * (columns + 1) + p.column;
        float *to = stored + cursor[run]++;
        if (is_back)
            *ordered++ = *to;
        else
            *to = *ordered++;
    }
}

/* ---- work in equal parts ---------------------------------------------------------------------- */

static int64_t cost_until(const int32_t *ptr, int blocks, int n, int end)
{
    int64_t cost = end;
    for (int block = 0; block < blocks; block++, ptr += n + 1)
        cost += ptr[end] - ptr[0];
    return cost;
}

/* Where part `part` of [0, n) begins, by weights and rows. */
static int begin_of(int part, int parts, const int32_t *ptr, int blocks, int n)
{
    if (part >= parts)
        return n;
    const int64_t wanted = cost_until(ptr, blocks, n, n) * part / parts;
    int low = 0, high = n;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (cost_until(ptr, blocks, n, middle) < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Floats of a tile: as few tiles as can be, of nearly equal length, all but the last of them whole
 * vectors. */
static int tile_of(int length, int most)
{
    const int tiles = (length + most - 1) / most;
    return ((length + tiles - 1) / tiles + LANES - 1) / LANES * LANES;
}

/* ---- forward ---------------------------------------------------------------------------------- */

/* One tile, of VECTORS vectors and perhaps 4 floats more, of rows [begin, end) and one block. */
INLINE void forward_tile(const int VECTORS, const int TAIL, const int CHAINS, const int GATHER,
                         const int32_t *ptr, const uint16_t *offset, const float *weights,
                         const int32_t *stored_at, const float *bias, const float *in, float *out,
                         ptrdiff_t plane, int begin, int end, ptrdiff_t batch, int is_first)
{
    for (int row = begin; row < end; row++) {
        int j = ptr[row];
        const int last = ptr[row + 1];
        float *to = out + row * plane;
        lanes total[2][FORWARD_TILE / LANES];
        four rest[2] = {{0}, {0}};
        if (is_first) {
            const float start = bias ? bias[row] : 0.0f;
            UNROLL for (int v = 0; v < VECTORS; v++) total[0][v] = (lanes){0} + start;
            rest[0] += start;
        } else {
            if (j == last)
                continue;
            UNROLL for (int v = 0; v < VECTORS; v++) total[0][v] = LOAD(to + v * LANES);
            if (TAIL)
                rest[0] = LOAD4(to + VECTORS * LANES);
        }
        if (CHAINS == 2) {
            /* Two weights at a time: else each addition waits for the one before. */
            UNROLL for (int v = 0; v < VECTORS; v++) total[1][v] = (lanes){0};
            for (; j + 2 <= last; j += 2) {
                UNROLL for (int chain = 0; chain < 2; chain++) {
                    const float *from = in + offset[j + chain] * batch;
                    const float weight = weights[GATHER ? stored_at[j + chain] : j + chain];
                    UNROLL for (int v = 0; v < VECTORS; v++)
                        total[chain][v] += weight * LOAD(from + v * LANES);
                    if (TAIL)
                        rest[chain] += weight * LOAD4(from + VECTORS * LANES);
                }
            }
            UNROLL for (int v = 0; v < VECTORS; v++) total[0][v] += total[1][v];
            rest[0] += rest[1];
        }
        for (; j < last; j++) {
            const float *from = in + offset[j] * batch;
            const float weight = weights[GATHER ? stored_at[j] : j];
            UNROLL for (int v = 0; v < VECTORS; v++)
                total[0][v] += weight * LOAD(from + v * LANES);
            if (TAIL)
                rest[0] += weight * LOAD4(from + VECTORS * LANES);
        }
        UNROLL for (int v = 0; v < VECTORS; v++) STORE(to + v * LANES, total[0][v]);
        if (TAIL)
            STORE4(to + VECTORS * LANES, rest[0]);
    }
}

typedef void (*forward_function)(const int32_t *, const uint16_t *, const float *, const int32_t *,
                                 const float *, const float *, float *, ptrdiff_t, int, int,
                                 ptrdiff_t, int);

#define FORWARD(VECTORS, TAIL, CHAINS)                                                            \
    static void forward_##VECTORS##_##TAIL(                                                       \
        const int32_t *ptr, const uint16_t *offset, const float *weights,                         \
        const int32_t *stored_at, const float *bias, const float *in, float *out,                 \
        ptrdiff_t plane, int begin, int end, ptrdiff_t batch, int is_first)                       \
    {                                                                                             \
        if (stored_at)                                                                            \
            forward_tile(VECTORS, TAIL, CHAINS, 1, ptr, offset, weights, stored_at, bias, in,     \
                         out, plane, begin, end, batch, is_first);                                \
        else                                                                                      \
            forward_tile(VECTORS, TAIL, CHAINS, 0, ptr, offset, weights, NULL, bias, in, out,     \
                         plane, begin, end, batch, is_first);                                     \
    }
#define NAME_FORWARD(VECTORS, TAIL, CHAINS) forward_##VECTORS##_##TAIL,
#if LANES == 8
#define EACH_FORWARD(X)                                                                           \
    X(0, 1, 2) X(1, 0, 2) X(1, 1, 2) X(2, 0, 2) X(2, 1, 2) X(3, 0, 2) X(3, 1, 2) X(4, 0, 2)       \
    X(4, 1, 2) X(5, 0, 2) X(5, 1, 1) X(6, 0, 1) X(6, 1, 1) X(7, 0, 1) X(7, 1, 1) X(8, 0, 1)       \
    X(8, 1, 1) X(9, 0, 1) X(9, 1, 1) X(10, 0, 1)
#elif defined(__aarch64__)
#define EACH_FORWARD(X)                                                                           \
    X(1, 0, 2) X(2, 0, 2) X(3, 0, 2) X(4, 0, 2) X(5, 0, 2) X(6, 0, 2) X(7, 0, 2) X(8, 0, 2)       \
    X(9, 0, 2) X(10, 0, 2) X(11, 0, 1) X(12, 0, 1) X(13, 0, 1) X(14, 0, 1) X(15, 0, 1) X(16, 0, 1)
#else
#define EACH_FORWARD(X)                                                                           \
    X(1, 0, 2) X(2, 0, 2) X(3, 0, 2) X(4, 0, 2) X(5, 0, 2) X(6, 0, 1) X(7, 0, 1) X(8, 0, 1)       \
    X(9, 0, 1) X(10, 0, 1)
#endif
EACH_FORWARD(FORWARD)
/* By quarters of the tile's length. */
static const forward_function forward_functions[] = {NULL, EACH_FORWARD(NAME_FORWARD)};

/* out [rows][out_height][out_width][batch] of the padded input in; bias [rows] or NULL. */
void coppice_forward(const layer *of, const float *weights, int in_stored_order, const float *bias,
                     const float *in, float *out, int batch, int threads)
{
    int height = of->out_height, width = of->out_width, in_width = of->padded_width;
    if (width == in_width) { /* rows follow one another */
        in_width = width *= height;
        height = 1;
    }
    const int length = width * batch, tile = tile_of(length, FORWARD_TILE);
    const ptrdiff_t plane = (ptrdiff_t)height * length;
    const int32_t *stored_at = in_stored_order ? of->stored_at : NULL;
    const int parts = threads > 1 ? threads * PARTS : 1;
    PARALLEL
    for (int part = 0; part < parts; part++) {
        const int begin = begin_of(part, parts, of->row_ptr, of->row_blocks, of->rows);
        const int end = begin_of(part + 1, parts, of->row_ptr, of->row_blocks, of->rows);
        for (int h = 0; begin < end && h < height; h++)
            for (int at = 0; at < length; at += tile) {
                const int floats = length - at < tile ? length - at : tile;
                for (int block = 0; block < of->row_blocks; block++)
                    forward_functions[floats / 4](
                        of->row_ptr + (ptrdiff_t)block * (of->rows + 1), of->row_offset, weights,
                        stored_at, bias,
                        in + ((ptrdiff_t)h * in_width + (ptrdiff_t)block * of->row_step) * batch + at,
                        out + (ptrdiff_t)h * length + at, plane, begin, end, batch, block == 0);
            }
    }
}

/* ---- backward --------------------------------------------------------------------------------- */

/* One tile of columns [begin, end) and one block. Four weights at a time meet all of it, so that what
 * each of them costs, the sum over the lanes above all, is shared by a long run of floats. */
INLINE void backward_tile(const int32_t *ptr, const uint16_t *offset, const float *weights,
                          const float *d_out, const float *in, float *d_in, float *d_weights,
                          ptrdiff_t plane, int begin, int end, int floats, ptrdiff_t batch, int is_first)
{
    const int whole = floats / LANES * LANES;
    for (int column = begin; column < end; column++) {
        const int last = ptr[column + 1];
        const float *x = in + column * plane;
        float *total = d_in + column * plane;
        int j = ptr[column];
        if (is_first)
            memset(total, 0, sizeof(float) * (size_t)floats);
        for (; j + 4 <= last; j += 4) {
            const float *g[4];
            float weight[4];
            lanes product[4];
            four part[4];
            UNROLL for (int u = 0; u < 4; u++)
            {
                g[u] = d_out + offset[j + u] * batch;
                weight[u] = weights[j + u];
                product[u] = (lanes){0};
            }
            for (int at = 0; at < whole; at += LANES) {
                const lanes input = LOAD(x + at);
                lanes sum_here = LOAD(total + at);
                UNROLL for (int u = 0; u < 4; u++)
                {
                    const lanes d = LOAD(g[u] + at);
                    product[u] += input * d;
                    sum_here += weight[u] * d;
                }
                STORE(total + at, sum_here);
            }
            UNROLL for (int u = 0; u < 4; u++) part[u] = fold(product[u]);
            if (whole < floats) {
                const four input = LOAD4(x + whole);
                four sum_here = LOAD4(total + whole);
                UNROLL for (int u = 0; u < 4; u++)
                {
                    const four d = LOAD4(g[u] + whole);
                    part[u] += input * d;
                    sum_here += weight[u] * d;
                }
                STORE4(total + whole, sum_here);
            }
            STORE4(d_weights + j, LOAD4(d_weights + j) + sums(part[0], part[1], part[2], part[3]));
        }
        for (; j < last; j++) {
            const float *g = d_out + offset[j] * batch;
            const float weight = weights[j];
            lanes product = {0};
            for (int at = 0; at < whole; at += LANES) {
                const lanes d = LOAD(g + at);
                product += LOAD(x + at) * d;
                STORE(total + at, LOAD(total + at) + weight * d);
            }
            four part = fold(product);
            if (whole < floats) {
                const four d = LOAD4(g + whole);
                part += LOAD4(x + whole) * d;
                STORE4(total + whole, LOAD4(total + whole) + weight * d);
            }
            d_weights[j] += sum(part);
        }
    }
}

/* Gradients of weights [from, to) begin at 0, where they are not added to what is there. */
static void begin_gradient(const update *how, int from, int to)
{
    if (how->rate != 0.0f && from < to)
        memset(how->gradient + from, 0, sizeof(float) * (size_t)(to - from));
}

/* Weights [from, to) take their step, if they do; their gradients are whole. */
static void take_step(float *weights, const update *how, int from, int to)
{
    if (how->rate == 0.0f)
        return;
    if (how->anchor)
        for (int j = from; j < to; j++)
            how->gradient[j] += how->pull * (weights[j] - how->anchor[j]);
    if (how->decay != 0.0f)
        for (int j = from; j < to; j++)
            how->gradient[j] += how->decay * weights[j];
    if (how->velocity)
        for (int j = from; j < to; j++)
            how->gradient[j] = how->velocity[j] = how->momentum * how->velocity[j] + how->gradient[j];
    for (int j = from; j < to; j++)
        weights[j] -= how->rate * how->gradient[j];
}

/* The same of all weights, for gradients that came in several passes. */
void coppice_take_step(float *weights, const update *how, int count)
{
    take_step(weights, how, 0, count);
}

/* One weight and one tile of a single pixel: what it adds to d_in, and to its own gradient. */
INLINE four meet(const int VECTORS, const int TAIL, float weight, const lanes *gradient,
                 four gradient_rest, const float *in, float *d_in)
{
    lanes product = {0};
    UNROLL for (int v = 0; v < VECTORS; v++)
    {
        const lanes x = LOAD(in + v * LANES);
        product = v ? product + gradient[v] * x : gradient[v] * x;
        STORE(d_in + v * LANES, LOAD(d_in + v * LANES) + weight * gradient[v]);
    }
    four part = fold(product);
    if (TAIL) {
        const four x = LOAD4(in + VECTORS * LANES);
        part = VECTORS ? part + gradient_rest * x : gradient_rest * x;
        STORE4(d_in + VECTORS * LANES, LOAD4(d_in + VECTORS * LANES) + weight * gradient_rest);
    }
    return part;
}

/* One tile of single pixels, of all rows and one block of columns. */
INLINE void rows_tile(const int VECTORS, const int TAIL, const int32_t *ptr, const uint16_t *offset,
                      const float *weights, const float *d_out, const float *in, float *d_in,
                      float *d_weights, int rows, ptrdiff_t batch)
{
    for (int row = 0; row < rows; row++) {
        int j = ptr[row];
        const int last = ptr[row + 1];
        lanes gradient[FORWARD_TILE / LANES];
        four rest = {0};
        UNROLL for (int v = 0; v < VECTORS; v++) gradient[v] = LOAD(d_out + row * batch + v * LANES);
        if (TAIL)
            rest = LOAD4(d_out + row * batch + VECTORS * LANES);
        for (; j + 4 <= last; j += 4) {
            four part[4];
            UNROLL for (int u = 0; u < 4; u++)
            {
                const ptrdiff_t at = offset[j + u] * batch;
                part[u] = meet(VECTORS, TAIL, weights[j + u], gradient, rest, in + at, d_in + at);
            }
            STORE4(d_weights + j, LOAD4(d_weights + j) + sums(part[0], part[1], part[2], part[3]));
        }
        for (; j < last; j++) {
            const ptrdiff_t at = offset[j] * batch;
            d_weights[j] += sum(meet(VECTORS, TAIL, weights[j], gradient, rest, in + at, d_in + at));
        }
    }
}

typedef void (*rows_function)(const int32_t *, const uint16_t *, const float *, const float *,
                              const float *, float *, float *, int, ptrdiff_t);

#define ROWS(VECTORS, TAIL, CHAINS)                                                               \
    static void rows_##VECTORS##_##TAIL(const int32_t *ptr, const uint16_t *offset,               \
                                        const float *weights, const float *d_out, const float *in, \
                                        float *d_in, float *d_weights, int rows, ptrdiff_t batch) \
    {                                                                                             \
        rows_tile(VECTORS, TAIL, ptr, offset, weights, d_out, in, d_in, d_weights, rows, batch);  \
    }
#define NAME_ROWS(VECTORS, TAIL, CHAINS) rows_##VECTORS##_##TAIL,
EACH_FORWARD(ROWS)
static const rows_function rows_functions[] = {NULL, EACH_FORWARD(NAME_ROWS)};

/* The same for layers that are stored by rows: a part owns a block of columns. */
static void backward_by_rows(const layer *of, float *weights, const update *how, const float *d_out,
                             const float *in, float *d_in, int batch, int threads)
{
    const int tile = tile_of(batch, FORWARD_TILE);
    PARALLEL
    for (int block = 0; block < of->row_blocks; block++) {
        const int32_t *ptr = of->row_ptr + (ptrdiff_t)block * (of->rows + 1);
        const int first = ptr[0], last = ptr[of->rows];
        const int columns = of->columns - block * of->row_step < of->row_step
            ? of->columns - block * of->row_step : of->row_step;
        const ptrdiff_t here = (ptrdiff_t)block * of->row_step * batch;
        memset(d_in + here, 0, sizeof(float) * (size_t)columns * (size_t)batch);
        begin_gradient(how, first, last);
        for (int at = 0; at < batch; at += tile) {
            const int floats = batch - at < tile ? batch - at : tile;
            rows_functions[floats / 4](ptr, of->row_offset, weights, d_out + at, in + here + at,
                                       d_in + here + at, how->gradient, of->rows, batch);
        }
        take_step(weights, how, first, last);
    }
}

/* d_in [columns][in_height][in_width][batch], and what `how` says of the weights' gradient; d_out is
 * padded, `in` is as d_in. */
void coppice_backward(const layer *of, float *weights, const update *how, const float *d_out,
                      const float *in, float *d_in, int batch, int threads)
{
    if (!of->column_ptr) {
        backward_by_rows(of, weights, how, d_out, in, d_in, batch, threads);
        return;
    }
    int height = of->in_height, width = of->in_width, out_width = of->spread_width;
    if (width == out_width) {
        out_width = width *= height;
        height = 1;
    }
    const int length = width * batch, tile = tile_of(length, BACKWARD_TILE);
    const ptrdiff_t plane = (ptrdiff_t)height * length;
    const int parts = threads > 1 ? threads * PARTS : 1;
    PARALLEL
    for (int part = 0; part < parts; part++) { /* owns columns, and with them their weights */
        const int begin = begin_of(part, parts, of->column_ptr, of->column_blocks, of->columns);
        const int end = begin_of(part + 1, parts, of->column_ptr, of->column_blocks, of->columns);
        for (int block = 0; block < of->column_blocks; block++) {
            const int32_t *ptr = of->column_ptr + (ptrdiff_t)block * (of->columns + 1);
            begin_gradient(how, ptr[begin], ptr[end]);
        }
        for (int h = 0; begin < end && h < height; h++)
            for (int at = 0; at < length; at += tile) {
                const int floats = length - at < tile ? length - at : tile;
                const ptrdiff_t here = (ptrdiff_t)h * length + at;
                for (int block = 0; block < of->column_blocks; block++)
                    backward_tile(
                        of->column_ptr + (ptrdiff_t)block * (of->columns + 1), of->column_offset, weights,
                        d_out + ((ptrdiff_t)h * out_width + (ptrdiff_t)block * of->column_step) * batch + at,
                        in + here, d_in + here, how->gradient, plane, begin, end, floats, batch, block == 0);
            }
        for (int block = 0; block < of->column_blocks; block++) {
            const int32_t *ptr = of->column_ptr + (ptrdiff_t)block * (of->columns + 1);
            take_step(weights, how, ptr[begin], ptr[end]);
        }
    }
}

/* ---- backward, without the gradient of the input ---------------------------------------------- */

/* One tile of rows [begin, end) and one block. */
INLINE void gradient_tile(const int32_t *ptr, const uint16_t *offset, const int32_t *stored_at,
                          const float *d_out, const float *in, float *d_weights, ptrdiff_t plane,
                          int begin, int end, int floats, ptrdiff_t batch)
{
    const int whole = floats / LANES * LANES;
    for (int row = begin; row < end; row++) {
        const int last = ptr[row + 1];
        const float *g = d_out + row * plane;
        for (int j = ptr[row]; j < last; j += 4) {
            const int count = last - j < 4 ? last - j : 4;
            const float *x[4];
            lanes product[4];
            four part[4];
            UNROLL for (int u = 0; u < 4; u++)
            {
                x[u] = in + offset[u < count ? j + u : j] * batch; /* beyond the last: the first again */
                product[u] = (lanes){0};
            }
            for (int at = 0; at < whole; at += LANES) {
                const lanes d = LOAD(g + at);
                UNROLL for (int u = 0; u < 4; u++) product[u] += d * LOAD(x[u] + at);
            }
            UNROLL for (int u = 0; u < 4; u++) part[u] = fold(product[u]);
            if (whole < floats) {
                const four d = LOAD4(g + whole);
                UNROLL for (int u = 0; u < 4; u++) part[u] += d * LOAD4(x[u] + whole);
            }
            const four gradient = sums(part[0], part[1], part[2], part[3]);
            for (int u = 0; u < count; u++)
                d_weights[stored_at ? stored_at[j + u] : j + u] += gradient[u];
        }
    }
}

/* What `how` says of the weights' gradient, for a first layer: its rows are walked as in the forward
 * pass. d_out [rows][out_height][out_width][batch] has no border; `in` is the padded input. */
void coppice_weight_gradient(const layer *of, float *weights, const update *how, const float *d_out,
                             const float *in, int batch, int threads)
{
    int height = of->out_height, width = of->out_width, in_width = of->padded_width;
    if (width == in_width) {
        in_width = width *= height;
        height = 1;
    }
    const int length = width * batch, tile = tile_of(length, BACKWARD_TILE);
    const ptrdiff_t plane = (ptrdiff_t)height * length;
    const int64_t count = of->row_ptr[(ptrdiff_t)of->row_blocks * (of->rows + 1) - 1];
    const int parts = threads > 1 ? threads * PARTS : 1;
    begin_gradient(how, 0, (int)count);
    PARALLEL
    for (int part = 0; part < parts; part++) {
        const int begin = begin_of(part, parts, of->row_ptr, of->row_blocks, of->rows);
        const int end = begin_of(part + 1, parts, of->row_ptr, of->row_blocks, of->rows);
        for (int h = 0; begin < end && h < height; h++)
            for (int at = 0; at < length; at += tile) {
                const int floats = length - at < tile ? length - at : tile;
                for (int block = 0; block < of->row_blocks; block++)
                    gradient_tile(
                        of->row_ptr + (ptrdiff_t)block * (of->rows + 1), of->row_offset, of->stored_at,
                        d_out + (ptrdiff_t)h * length + at,
                        in + ((ptrdiff_t)h * in_width + (ptrdiff_t)block * of->row_step) * batch + at,
                        how->gradient, plane, begin, end, floats, batch);
            }
    }
    PARALLEL
    for (int part = 0; part < parts; part++)
        take_step(weights, how, (int)(count * part / parts), (int)(count * (part + 1) / parts));
}

/* ---- layout ----------------------------------------------------------------------------------- */

/* [channels][height][width][batch] → [channels · phases²][to_height][to_width][batch]: pixel (i, j)
 * of phase (a, b) is pixel (i · stride + a - top, j · stride + b - left), or 0 beyond the border. */
void coppice_pad(const float *from, float *to, int channels, int height, int width, int top, int left,
                 int stride, int phases, int to_height, int to_width, int batch, int threads)
{
    const size_t pixel = sizeof(float) * (size_t)batch;
    PARALLEL
    for (int channel = 0; channel < channels; channel++) {
        const float *image = from + (ptrdiff_t)channel * height * width * batch;
        float *row = to + (ptrdiff_t)channel * phases * phases * to_height * to_width * batch;
        for (int a = 0; a < phases; a++)
            for (int b = 0; b < phases; b++)
                for (int i = 0; i < to_height; i++, row += (ptrdiff_t)to_width * batch) {
                    const int y = i * stride + a - top;
                    /* Columns [begin, end) are inside of the image. */
                    const int first = b - left;
                    int begin = first < 0 ? (-first + stride - 1) / stride : 0;
                    int end = first < width ? (width - first + stride - 1) / stride : 0;
                    if (end > to_width)
                        end = to_width;
                    if (y < 0 || y >= height || begin >= end)
                        begin = end = 0;
                    memset(row, 0, pixel * (size_t)begin);
                    const float *source = image + ((ptrdiff_t)y * width + first) * batch;
                    if (begin < end && stride == 1)
                        memcpy(row + (ptrdiff_t)begin * batch, source + (ptrdiff_t)begin * batch,
                               pixel * (size_t)(end - begin));
                    else
                        for (int j = begin; j < end; j++)
                            memcpy(row + (ptrdiff_t)j * batch,
                                   source + (ptrdiff_t)j * stride * batch, pixel);
                    memset(row + (ptrdiff_t)end * batch, 0, pixel * (size_t)(to_width - end));
                }
    }
}

/* The way back of coppice_pad: each pixel from the phase that it went to, or 0. */
void coppice_unpad(const float *from, float *to, int channels, int height, int width, int top, int left,
                   int stride, int phases, int from_height, int from_width, int batch, int threads)
{
    const size_t pixel = sizeof(float) * (size_t)batch;
    PARALLEL
    for (int channel = 0; channel < channels; channel++) {
        const float *image = from + (ptrdiff_t)channel * phases * phases * from_height * from_width * batch;
        float *pixels = to + (ptrdiff_t)channel * height * width * batch;
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++, pixels += batch) {
                const int a = (y + top) % stride, i = (y + top) / stride;
                const int b = (x + left) % stride, j = (x + left) / stride;
                if (a < phases && b < phases && i < from_height && j < from_width)
                    memcpy(pixels,
                           image + (((ptrdiff_t)(a * phases + b) * from_height + i) * from_width + j) * batch,
                           pixel);
                else
                    memset(pixels, 0, pixel);
            }
    }
}

/* to [columns][to_rows] = from [rows][columns], transposed; columns of `to` from `rows` on are 0. */
void coppice_transpose(const float *from, float *to, int rows, int columns, int to_rows, int threads)
{
    const int strips = (columns + 63) / 64;
    PARALLEL
    for (int strip = 0; strip < strips; strip++) {
        const int end = strip * 64 + 64 < columns ? strip * 64 + 64 : columns;
        for (int row = 0; row < to_rows; row += 16) {
            const int last = row + 16 < to_rows ? row + 16 : to_rows;
            for (int column = strip * 64; column < end; column++)
                for (int r = row; r < last; r++)
                    to[(ptrdiff_t)column * to_rows + r] =
                        r < rows ? from[(ptrdiff_t)r * columns + column] : 0.0f;
        }
    }
}

/* out [rows]: the sums over n floats each. */
void coppice_row_sums(const float *from, float *out, int rows, ptrdiff_t n, int threads)
{
    PARALLEL
    for (int row = 0; row < rows; row++) {
        const float *p = from + row * n;
        four even = {0}, odd = {0};
        ptrdiff_t i = 0;
        for (; i + 8 <= n; i += 8) {
            even += LOAD4(p + i);
            odd += LOAD4(p + i + 4);
        }
        float total = sum(even + odd);
        for (; i < n; i++)
            total += p[i];
        out[row] = total;
    }
}

/* ---- pooling ---------------------------------------------------------------------------------- */

/* Maxima of windows of size² pixels, `stride` apart; `which` says which pixel of the window it was,
 * the first of equal ones; a NaN is larger than all. */
void coppice_max_pool(const float *from, float *to, uint8_t *which, int channels, int height, int width,
                      int size, int stride, int to_height, int to_width, int batch, int threads)
{
    PARALLEL
    for (int channel = 0; channel < channels; channel++) {
        ptrdiff_t at = (ptrdiff_t)channel * to_height * to_width * batch;
        for (int i = 0; i < to_height; i++)
            for (int j = 0; j < to_width; j++, at += batch) {
                const float *window =
                    from + (((ptrdiff_t)channel * height + i * stride) * width + j * stride) * batch;
                int n = 0;
                for (; n + 4 <= batch; n += 4) {
                    four best = LOAD4(window + n);
                    four_bits index = {0};
                    for (int y = 0; y < size; y++)
                        for (int x = 0; x < size; x++) {
                            const four value = LOAD4(window + ((ptrdiff_t)y * width + x) * batch + n);
                            const four_bits larger = (value > best) | (value != value);
                            best = (four)((larger & (four_bits)value) | (~larger & (four_bits)best));
                            index = (larger & (y * size + x)) | (~larger & index);
                        }
                    STORE4(to + at + n, best);
                    for (int k = 0; k < 4; k++)
                        which[at + n + k] = (uint8_t)index[k];
                }
                for (; n < batch; n++) {
                    float best = window[n];
                    int index = 0;
                    for (int y = 0; y < size; y++)
                        for (int x = 0; x < size; x++) {
                            const float value = window[((ptrdiff_t)y * width + x) * batch + n];
                            if (value > best || value != value) {
                                best = value;
                                index = y * size + x;
                            }
                        }
                    to[at + n] = best;
                    which[at + n] = (uint8_t)index;
                }
            }
    }
}

/* d_from, of which each window's maximum has the gradient of it. */
void coppice_max_pool_backward(const float *d_to, const uint8_t *which, float *d_from, int channels,
                               int height, int width, int size, int stride, int to_height,
                               int to_width, int batch, int threads)
{
    PARALLEL
    for (int channel = 0; channel < channels; channel++) {
        ptrdiff_t at = (ptrdiff_t)channel * to_height * to_width * batch;
        float *image = d_from + (ptrdiff_t)channel * height * width * batch;
        /* Each pixel is of one window at most, and only the last few of none. */
        const int is_apart = stride == size;
        if (!is_apart || to_height * stride < height || to_width * stride < width)
            memset(image, 0, sizeof(float) * (size_t)height * width * batch);
        for (int i = 0; i < to_height; i++)
            for (int j = 0; j < to_width; j++, at += batch) {
                float *window = image + ((ptrdiff_t)i * stride * width + j * stride) * batch;
                int n = 0;
                for (; n + 4 <= batch; n += 4) {
                    const uint8_t *w = which + at + n;
                    const four gradient = LOAD4(d_to + at + n);
                    const four_bits index = {w[0], w[1], w[2], w[3]};
                    for (int y = 0; y < size; y++)
                        for (int x = 0; x < size; x++) {
                            float *p = window + ((ptrdiff_t)y * width + x) * batch + n;
                            const four_bits chosen = index == y * size + x;
                            four total = (four)(chosen & (four_bits)gradient);
                            if (!is_apart)
                                total += LOAD4(p);
                            STORE4(p, total);
                        }
                }
                for (; n < batch; n++)
                    for (int y = 0; y < size; y++)
                        for (int x = 0; x < size; x++) {
                            float *p = window + ((ptrdiff_t)y * width + x) * batch + n;
                            const float part = which[at + n] == y * size + x ? d_to[at + n] : 0.0f;
                            *p = is_apart ? part : *p + part;
                        }
            }
    }
}
