/* Kernels for small networks on a CPU: passes, the gradient of the loss in their outputs, the choice of actions.
 *
 * One file without dependencies besides libm. `library.py` compiles it for the processor at hand; `network.py` and
 * `head.py` call it and describe the layout of every buffer. Nothing here allocates memory or starts a thread.
 *
 * Every sum over inputs is taken in the order of the inputs, whatever the number of rows: the result for a row does not
 * depend on the other rows, nor on how rows are divided among threads.
 *
 * Matrices are row-major. "ld" is the distance of two rows in floats. Weights are read from "panels": NR columns side
 * by side, one row after the other, the last panel filled up with zeros.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t i64;

#if defined(__AVX512F__)
#define LANES 16
#define MR 12
#elif defined(__AVX__)
#define LANES 8
#define MR 6
#elif defined(__aarch64__)
#define LANES 4
#define MR 12
#else
#define LANES 4
#define MR 6
#endif
#define NR (2 * LANES) /* columns of a panel: two registers */
#define FILTERS 16
#define MAX_LAYERS 8
#define MAX_PARTS 16
#define MAX_CHANNELS 64
#define MAX_LINE 2048  /* bytes of a line of a picture */
#define MAX_PADDED 1024 /* (height + 2) * (width + 2) of a picture */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BYTE_OF(shift) (7 - (shift) / 8)
#else
#define BYTE_OF(shift) ((shift) / 8)
#endif
#define HALF_LOG_2PI 0.91893853320467274f
#define UNIFORM_MAX (1.0f - 0x1p-24f) /* as in model/distributions */
#define UNIFORM_MIN 0x1p-25f

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float filters __attribute__((vector_size(4 * FILTERS), aligned(4), may_alias));
typedef int32_t ifilters __attribute__((vector_size(4 * FILTERS), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

enum activation { LINEAR, RELU, TANH };

/* One fully connected layer. Its output columns come from one or two matrices [out, in] (policy and value head). */
typedef struct {
    i64 in, out[2];
    i64 weight[2], bias[2]; /* in the flat parameters */
    i64 activation;
    i64 forward, bias_row, backward; /* panels [in, out], biases, panels [out, in]: in the packed weights */
    i64 input, output, ld_input, ld_output; /* columns of the work area: its place times the rows of the area */
    i64 input_activation; /* of the layer before; LINEAR: its input gets no gradient, or needs no derivative */
    i64 propagate; /* whether the input gets a gradient */
} layer;

typedef struct {
    i64 convolution; /* 0: fully connected layers only */
    i64 height, width, channels;
    i64 weight, bias; /* in the flat parameters: [FILTERS, channels, 3, 3] and [FILTERS] */
    i64 packed; /* [channels * 9 + 1, FILTERS] in the packed weights; the last row is the bias */
    i64 output, ld_output;
    i64 layers;
    layer layer[MAX_LAYERS];
} trunk;

typedef struct {
    i64 size; /* numbers of an observation */
    i64 bytes; /* 1: observations are bytes, 0: float32 */
    i64 normalized;
    i64 rows; /* rows of a work area */
    i64 input, ld_input; /* staged observation */
    i64 policy_output, ld_policy, value_output, ld_value, value_column;
    i64 logits; /* columns of the policy head */
    i64 deviations; /* columns of log_std, appended to the parameters */
    i64 log_std, packed_log_std; /* in the flat parameters, in the packed weights */
    i64 trunks;
    trunk trunk[2];
} network;

i64 sf_panel(void) { return NR; }

i64 sf_network_size(void) { return (i64)sizeof(network); }

/* -- functions of vectors ------------------------------------------------------------------------------------------ */

INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec pick(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* e^x for |x| <= 87, relative error 1e-7. Polynomial: Chebyshev fit of (e^r - 1 - r) / r^2 on +-ln 2 / 2. */
INLINE vec exponential(vec x) {
    vec scaled = x * 1.44269504088896341f;
    vec rounded = scaled + 12582912.0f; /* 1.5 * 2^23: the integer is in the low bits */
    vec n = rounded - 12582912.0f;
    vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    vec q = 1.3934545e-3f * r + 8.3637768e-3f;
    q = q * r + 4.1666456e-2f;
    q = q * r + 1.6666573e-1f;
    q = q * r + 0.5f;
    vec power = (vec)(((ivec)rounded + 127) << 23); /* the high bits of 1.5 * 2^23 leave the word */
    return (q * r * r + r + 1.0f) * power;
}

/* tanh x, error 2e-7. Below 0.625 a Chebyshev fit of (tanh x / x - 1) / x^2; above 1 - 2 / (e^2x + 1). */
INLINE vec hyperbolic_tangent(vec x) {
    ivec sign = (ivec)x & INT32_MIN;
    vec size = (vec)((ivec)x & INT32_MAX);
    vec square = x * x;
    vec q = -6.1049480e-3f * square + 2.1003641e-2f;
    q = q * square - 5.3852499e-2f;
    q = q * square + 1.3332783e-1f;
    q = q * square - 3.3333328e-1f;
    vec small = x + x * square * q;
    vec bounded = pick(size > splat(9.5f), splat(9.5f), size); /* tanh 9.5 is 1 in float32; NaN stays NaN */
    vec large = 1.0f - 2.0f / (exponential(2.0f * bounded) + 1.0f);
    large = (vec)((ivec)large | sign);
    return pick(size < splat(0.625f), small, large);
}

/* -- products ------------------------------------------------------------------------------------------------------ */

/* acc[i] += a[i, :depth] b[:depth], NR columns; element (i, p) of a is a[i * row + p * step]. */
INLINE void multiply(int rows, i64 depth, const float *a, i64 row, i64 step, const float *b, i64 ldb, vec acc[MR][2]) {
    for (i64 p = 0; p < depth; p++) {
        vec b0 = *(const vec *)(b + p * ldb), b1 = *(const vec *)(b + p * ldb + LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            float x = a[i * row + p * step];
            acc[i][0] += x * b0;
            acc[i][1] += x * b1;
        }
    }
}

INLINE vec activate(vec x, i64 activation) {
    if (activation == RELU) return (vec)((ivec)x & ~(x < splat(0.0f))); /* NaN stays NaN */
    if (activation == TANH) return hyperbolic_tangent(x);
    return x;
}

/* x times the derivative of the activation whose result was y. */
INLINE vec derive(vec x, vec y, i64 activation) {
    if (activation == RELU) return (vec)((ivec)x & (y > splat(0.0f)));
    if (activation == TANH) return x * (1.0f - y * y);
    return x;
}

/* One tile of c = activation(a b + bias), or with y: of (a b) * derivative at y. */
INLINE void tile(int rows, i64 depth, const float *a, i64 lda, const float *b, const float *bias, i64 activation,
                 const float *y, i64 ldy, float *c, i64 ldc) {
    vec acc[MR][2];
    vec start0 = splat(0.0f), start1 = splat(0.0f);
    if (bias) start0 = *(const vec *)bias, start1 = *(const vec *)(bias + LANES);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) acc[i][0] = start0, acc[i][1] = start1;
    multiply(rows, depth, a, lda, 1, b, NR, acc);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        vec *out = (vec *)(c + i * ldc);
        vec *out1 = (vec *)(c + i * ldc + LANES);
        if (y) {
            *out = derive(acc[i][0], *(const vec *)(y + i * ldy), activation);
            *out1 = derive(acc[i][1], *(const vec *)(y + i * ldy + LANES), activation);
        } else {
            *out = activate(acc[i][0], activation);
            *out1 = activate(acc[i][1], activation);
        }
    }
}

/* Rows of the largest tile that fits into n: few sizes, because each is compiled on its own. */
INLINE int tile_rows(i64 n) { return n >= MR ? MR : n >= 8 && MR > 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1; }

#if MR > 8
#define TILES(TILE) TILE(1) TILE(2) TILE(4) TILE(8) TILE(12)
#else
#define TILES(TILE) TILE(1) TILE(2) TILE(4) TILE(6)
#endif

/* c[:rows, :columns] in panels of b; columns beyond are written too: buffers are padded to whole panels. */
static void product(i64 rows, i64 depth, i64 columns, const float *a, i64 lda, const float *b, const float *bias,
                    i64 activation, const float *y, i64 ldy, float *c, i64 ldc) {
    for (i64 j = 0; j < columns; j += NR) {
        for (i64 i = 0, n; i < rows; i += n) {
            n = tile_rows(rows - i);
#define TILE(N)                                                                                                        \
    case N:                                                                                                            \
        tile(N, depth, a + i * lda, lda, b + j * depth, bias ? bias + j : 0, activation, y ? y + i * ldy + j : 0, ldy, \
             c + i * ldc + j, ldc);                                                                                    \
        break;
            switch (n) { TILES(TILE) }
#undef TILE
        }
    }
}

/* acc tile of a^T b over `depth` rows; a and b row-major, added to c [rows, NR] */
INLINE void outer_tile(int rows, i64 depth, const float *a, i64 lda, const float *b, i64 ldb, float *c) {
    vec acc[MR][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) acc[i][0] = *(vec *)(c + i * NR), acc[i][1] = *(vec *)(c + i * NR + LANES);
    multiply(rows, depth, a, 1, lda, b, ldb, acc);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) *(vec *)(c + i * NR) = acc[i][0], *(vec *)(c + i * NR + LANES) = acc[i][1];
}

#define DEPTH 128 /* rows whose part of a panel stays in the first-level cache */
#define OUTER_ROWS (8 * MR)

/* gradient [rows, columns] = a^T b, or added to it: a [depth, rows], b [depth, columns]. */
static void outer(i64 depth, i64 rows, i64 columns, const float *a, i64 lda, const float *b, i64 ldb, i64 add,
                  float *gradient) {
    float c[OUTER_ROWS * NR] __attribute__((aligned(64)));
    for (i64 j = 0; j < columns; j += NR) {
        for (i64 i0 = 0; i0 < rows; i0 += OUTER_ROWS) {
            i64 count = rows - i0 < OUTER_ROWS ? rows - i0 : OUTER_ROWS;
            memset(c, 0, sizeof(float) * (size_t)(count * NR));
            for (i64 p = 0; p < depth; p += DEPTH) {
                i64 d = depth - p < DEPTH ? depth - p : DEPTH;
                for (i64 i = 0, n; i < count; i += n) {
                    n = tile_rows(count - i);
#define TILE(N)                                                                                                        \
    case N:                                                                                                            \
        outer_tile(N, d, a + p * lda + i0 + i, lda, b + p * ldb + j, ldb, c + i * NR);                                 \
        break;
                    switch (n) { TILES(TILE) }
#undef TILE
                }
            }
            i64 width = columns - j < NR ? columns - j : NR;
            for (i64 i = 0; i < count; i++) {
                float *to = gradient + (i0 + i) * columns + j;
                if (add)
                    for (i64 k = 0; k < width; k++) to[k] += c[i * NR + k];
                else
                    memcpy(to, c + i * NR, sizeof(float) * (size_t)width);
            }
        }
    }
}

/* -- weights as panels --------------------------------------------------------------------------------------------- */

#define BLOCK 16 /* rows of a panel that are written together: they stay in the first-level cache */

/* The weights of one output of a layer. */
INLINE const float *matrix_row(const layer *la, const float *flat, i64 output) {
    i64 second = output >= la->out[0];
    return flat + la->weight[second] + (second ? output - la->out[0] : output) * la->in;
}

/* Pack all of the flat parameters: they may change or be overwritten afterwards. backward: also for that pass. */
void sf_pack(const network *net, const float *flat, float *packed, i64 backward) {
    if (net->deviations)
        memcpy(packed + net->packed_log_std, flat + net->log_std, sizeof(float) * (size_t)net->deviations);
    for (i64 t = 0; t < net->trunks; t++) {
        const trunk *tr = &net->trunk[t];
        if (tr->convolution) {
            float *to = packed + tr->packed;
            for (i64 k = 0; k < tr->channels * 9; k++)
                for (i64 f = 0; f < FILTERS; f++) to[k * FILTERS + f] = flat[tr->weight + f * tr->channels * 9 + k];
            memcpy(to + tr->channels * 9 * FILTERS, flat + tr->bias, sizeof(float) * FILTERS);
        }
        for (i64 l = 0; l < tr->layers; l++) {
            const layer *la = &tr->layer[l];
            i64 in = la->in, out = la->out[0] + la->out[1];
            for (i64 j = 0; j < out; j += NR) {
                float *panel = packed + la->forward + j * in;
                for (i64 k0 = 0; k0 < in; k0 += BLOCK) {
                    i64 k1 = k0 + BLOCK < in ? k0 + BLOCK : in;
                    for (i64 c = 0; c < NR && j + c < out; c++) {
                        const float *from = matrix_row(la, flat, j + c);
                        for (i64 k = k0; k < k1; k++) panel[k * NR + c] = from[k];
                    }
                }
            }
            for (i64 o = 0; o < out; o++) {
                i64 second = o >= la->out[0];
                packed[la->bias_row + o] = flat[la->bias[second] + (second ? o - la->out[0] : o)];
            }
            if (!backward || !la->propagate) continue;
            for (i64 j = 0; j < in; j += NR) {
                i64 width = in - j < NR ? in - j : NR;
                for (i64 o = 0; o < out; o++) {
                    memcpy(packed + la->backward + j * out + o * NR, matrix_row(la, flat, o) + j,
                           sizeof(float) * (size_t)width);
                }
            }
        }
    }
}

/* -- forward pass -------------------------------------------------------------------------------------------------- */

/* Where the bytes of one line of a picture lie: the column of the picture and the channel. */
typedef struct {
    uint8_t column[MAX_LINE], channel[MAX_LINE];
} line_table;

static void make_table(const trunk *tr, line_table *table) {
    for (i64 x = 0, k = 0; x < tr->width; x++)
        for (i64 c = 0; c < tr->channels; c++, k++) table->column[k] = (uint8_t)x, table->channel[k] = (uint8_t)c;
}

/* Do something for every byte of a picture that is not zero: VALUE at row Y, column X, channel C. */
#define FOR_SET_BYTES(tr, table, picture, VALUE, Y, X, C, ...)                                                             for (i64 Y = 0; Y < (tr)->height; Y++) {                                                                                   const uint8_t *line = (picture) + Y * (tr)->width * (tr)->channels;                                                    i64 length = (tr)->width * (tr)->channels;                                                                             for (i64 begin = 0; begin < length; begin += 8) {                                                                          uint64_t word = 0;                                                                                                     memcpy(&word, line + begin, (size_t)(length - begin < 8 ? length - begin : 8));                                        while (word) {                                                                                                             i64 shift = __builtin_ctzll(word) & ~7, at = begin + BYTE_OF(shift);                                                   float VALUE = (float)((word >> shift) & 255);                                                                          i64 X = (table)->column[at], C = (table)->channel[at];                                                                 word &= ~((uint64_t)255 << shift);                                                                                     __VA_ARGS__                                                                                                        }                                                                                                                  }                                                                                                                  }

/* 3x3 convolution of one picture [height, width, channels] of bytes, mostly zero; then ReLU.
 * `padded` has room for two more rows and columns on each side: no byte needs to know whether it is at an edge. */
static void convolve(const trunk *tr, const line_table *table, const uint8_t *picture, const float *packed,
                     filters *padded, float *out) {
    i64 rows = tr->height - 2, columns = tr->width - 2, wide = tr->width + 2;
    const filters *weight = (const filters *)(packed + tr->packed);
    filters bias = weight[tr->channels * 9];
    for (i64 y = 0; y < rows; y++)
        for (i64 x = 0; x < columns; x++) padded[(y + 2) * wide + x + 2] = bias;
    FOR_SET_BYTES(tr, table, picture, value, y, x, c, {
        const filters *w = weight + c * 9;
        filters *to = padded + y * wide + x; /* of the output to whose last row and column the byte belongs */
        for (i64 dy = 0; dy < 3; dy++)
            for (i64 dx = 0; dx < 3; dx++) to[dy * wide + dx] += value * w[(2 - dy) * 3 + 2 - dx];
    })
    for (i64 y = 0; y < rows; y++)
        for (i64 x = 0; x < columns; x++) {
            filters sum = padded[(y + 2) * wide + x + 2];
            ((filters *)out)[y * columns + x] =
                (filters)((ifilters)sum & ~(sum < (filters){0})); /* ReLU; NaN stays NaN */
        }
}

static float standardised(float x, float mean, float inv_std) {
    x = (x - mean) * inv_std;
    return x > 10.0f ? 10.0f : x < -10.0f ? -10.0f : x; /* NaN stays NaN */
}

/* Copy observation to its place in the work area, standardised and clipped to +-10. */
static void stage(const network *net, const void *obs, i64 row, const float *mean, const float *inv_std, float *to) {
    i64 size = net->size;
    if (net->bytes) {
        const uint8_t *from = (const uint8_t *)obs + row * size;
        if (net->normalized)
            for (i64 k = 0; k < size; k++) to[k] = standardised(from[k], mean[k], inv_std[k]);
        else
            for (i64 k = 0; k < size; k++) to[k] = from[k];
        return;
    }
    const float *from = (const float *)obs + row * size;
    if (!net->normalized) {
        memcpy(to, from, sizeof(float) * (size_t)size);
        return;
    }
    for (i64 k = 0; k < size; k++) to[k] = standardised(from[k], mean[k], inv_std[k]);
}

/* Outputs of n rows, at most as many as a work area has: rows `index` of obs; null: the first n.
 * mean, inv_std: null unless normalized. params [n, logits + deviations], value [n].
 * The work area keeps what the backward pass needs. */
static void forward_chunk(const network *net, const float *packed, float *work, const void *obs,
                          const i64 *index, const float *mean, const float *inv_std, i64 n, float *params,
                          float *value) {
    i64 R = net->rows;
    int staged = 0;
    for (i64 t = 0; t < net->trunks; t++) {
        const trunk *tr = &net->trunk[t];
        if (tr->convolution) {
            line_table table;
            filters padded[MAX_PADDED] __attribute__((aligned(64)));
            make_table(tr, &table);
            memset(padded, 0, sizeof(filters) * (size_t)((tr->height + 2) * (tr->width + 2)));
            for (i64 r = 0; r < n; r++)
                convolve(tr, &table, (const uint8_t *)obs + (index ? index[r] : r) * net->size, packed, padded,
                         work + tr->output * R + r * tr->ld_output);
        } else if (!staged) {
            staged = 1;
            for (i64 r = 0; r < n; r++)
                stage(net, obs, index ? index[r] : r, mean, inv_std, work + net->input * R + r * net->ld_input);
        }
        for (i64 l = 0; l < tr->layers; l++) {
            const layer *la = &tr->layer[l];
            product(n, la->in, la->out[0] + la->out[1], work + la->input * R, la->ld_input, packed + la->forward,
                    packed + la->bias_row, la->activation, 0, 0, work + la->output * R, la->ld_output);
        }
    }
    i64 width = net->logits + net->deviations;
    for (i64 r = 0; r < n; r++) {
        memcpy(params + r * width, work + net->policy_output * R + r * net->ld_policy,
               sizeof(float) * (size_t)net->logits);
        if (net->deviations)
            memcpy(params + r * width + net->logits, packed + net->packed_log_std,
                   sizeof(float) * (size_t)net->deviations);
        value[r] = work[net->value_output * R + r * net->ld_value + net->value_column];
    }
}

/* The observations of the rows from `first` on, where rows are not chosen by an index. */
INLINE const void *rows_from(const network *net, const void *obs, const i64 *index, i64 first) {
    return index ? obs : (const char *)obs + first * net->size * (net->bytes ? 1 : (i64)sizeof(float));
}

/* `forward_chunk` for the chunks `begin` to `end` of all rows; a chunk is as long as a work area.
 * area: floats from the work area of one chunk to that of the next; 0: all chunks use the same. */
void sf_forward(const network *net, const float *packed, float *work, i64 area, const void *obs, const i64 *index,
                const float *mean, const float *inv_std, i64 begin, i64 end, i64 rows, float *params, float *value) {
    i64 R = net->rows, width = net->logits + net->deviations;
    for (i64 chunk = begin; chunk < end; chunk++) {
        i64 first = chunk * R, n = rows - first < R ? rows - first : R;
        forward_chunk(net, packed, work + chunk * area, rows_from(net, obs, index, first), index ? index + first : 0,
                      mean, inv_std, n, params + first * width, value + first);
    }
}

/* -- backward pass ------------------------------------------------------------------------------------------------- */

/* Columns of a [rows, columns] summed in the order of the rows, written or added to `sum`. */
static void sum_rows(i64 rows, i64 columns, const float *a, i64 lda, i64 add, float *sum) {
    for (i64 k0 = 0; k0 < columns; k0 += LANES) { /* side by side: one column after the other waits for every sum */
        i64 count = columns - k0 < LANES ? columns - k0 : LANES;
        float totals[LANES] = {0};
        if (count == LANES)
            for (i64 r = 0; r < rows; r++)
                for (i64 k = 0; k < LANES; k++) totals[k] += a[r * lda + k0 + k];
        else
            for (i64 r = 0; r < rows; r++)
                for (i64 k = 0; k < count; k++) totals[k] += a[r * lda + k0 + k];
        for (i64 k = 0; k < count; k++) sum[k0 + k] = add ? sum[k0 + k] + totals[k] : totals[k];
    }
}

/* Gradient of the convolution's weights and bias, from that of its outputs. */
static void convolution_gradient(const trunk *tr, const uint8_t *obs, i64 size, const i64 *index, i64 rows,
                                 const float *gradient, i64 add, float *flat) {
    i64 height = tr->height - 2, width = tr->width - 2, wide = tr->width + 2, channels = tr->channels;
    line_table table;
    filters sums[MAX_CHANNELS * 9] __attribute__((aligned(64)));
    filters padded[MAX_PADDED] __attribute__((aligned(64)));
    filters bias = {0};
    make_table(tr, &table);
    memset(sums, 0, sizeof(filters) * (size_t)(channels * 9));
    memset(padded, 0, sizeof(filters) * (size_t)((tr->height + 2) * wide));
    for (i64 r = 0; r < rows; r++) {
        const filters *place = (const filters *)(gradient + r * tr->ld_output);
        for (i64 y = 0; y < height; y++)
            for (i64 x = 0; x < width; x++) {
                filters g = place[y * width + x];
                padded[(y + 2) * wide + x + 2] = g;
                bias += g;
            }
        FOR_SET_BYTES(tr, &table, obs + (index ? index[r] : r) * size, value, y, x, c, {
            filters *sum = sums + c * 9;
            const filters *from = padded + y * wide + x;
            for (i64 dy = 0; dy < 3; dy++)
                for (i64 dx = 0; dx < 3; dx++) sum[(2 - dy) * 3 + 2 - dx] += value * from[dy * wide + dx];
        })
    }
    for (i64 f = 0; f < FILTERS; f++) {
        float *to = flat + tr->weight + f * channels * 9;
        for (i64 k = 0; k < channels * 9; k++) to[k] = add ? to[k] + sums[k][f] : sums[k][f];
        flat[tr->bias + f] = add ? flat[tr->bias + f] + bias[f] : bias[f];
    }
}

/* Gradients of all parameters from those of the outputs of the n rows that are in the work area, written or added to
 * flat memory. gradient: a work area for the gradients of the activations, zero in the columns of padding. */
static void backward_chunk(const network *net, const float *packed, const float *work, float *gradient,
                           const void *obs, const i64 *index, i64 n, const float *params_grad,
                           const float *value_grad, i64 add, float *flat) {
    i64 R = net->rows, width = net->logits + net->deviations;
    for (i64 r = 0; r < n; r++) {
        memcpy(gradient + net->policy_output * R + r * net->ld_policy, params_grad + r * width,
               sizeof(float) * (size_t)net->logits);
        gradient[net->value_output * R + r * net->ld_value + net->value_column] = value_grad[r];
    }
    if (net->deviations) sum_rows(n, net->deviations, params_grad + net->logits, width, add, flat + net->log_std);
    for (i64 t = 0; t < net->trunks; t++) {
        const trunk *tr = &net->trunk[t];
        for (i64 l = tr->layers - 1; l >= 0; l--) {
            const layer *la = &tr->layer[l];
            const float *input = work + la->input * R, *of_output = gradient + la->output * R;
            i64 place = 0;
            for (int second = 0; second < 2; second++) {
                if (!la->out[second]) continue;
                outer(n, la->out[second], la->in, of_output + place, la->ld_output, input, la->ld_input, add,
                      flat + la->weight[second]);
                sum_rows(n, la->out[second], of_output + place, la->ld_output, add, flat + la->bias[second]);
                place += la->out[second];
            }
            if (la->propagate)
                product(n, la->out[0] + la->out[1], la->in, of_output, la->ld_output, packed + la->backward, 0,
                        la->input_activation, input, la->ld_input, gradient + la->input * R, la->ld_input);
        }
        if (tr->convolution)
            convolution_gradient(tr, (const uint8_t *)obs, net->size, index, n, gradient + tr->output * R, add, flat);
    }
}

/* `backward_chunk` for the chunks `begin` to `end` of all rows, after `sf_forward` with a work area for each chunk.
 * The first chunk is written to flat memory, the others are added to it. */
void sf_backward(const network *net, const float *packed, const float *work, i64 area, float *gradient,
                 const void *obs, const i64 *index, i64 begin, i64 end, i64 rows, const float *params_grad,
                 const float *value_grad, float *flat) {
    i64 R = net->rows, width = net->logits + net->deviations;
    for (i64 chunk = begin; chunk < end; chunk++) {
        i64 first = chunk * R, n = rows - first < R ? rows - first : R;
        backward_chunk(net, packed, work + chunk * area, gradient, rows_from(net, obs, index, first),
                       index ? index + first : 0, n, params_grad + first * width, value_grad + first,
                       chunk > begin, flat);
    }
}

/* -- the loss ------------------------------------------------------------------------------------------------------ */

typedef struct {
    i64 discrete;
    i64 size; /* categories, or dimensions */
    i64 column; /* of the parameters */
    i64 stride, place; /* action of row r: action[r * stride + place] */
    void *action; /* int64, or float32 for boxes */
} part;

typedef struct {
    i64 parts, width; /* width: columns of the parameters */
    part part[MAX_PARTS];
    const float *behavior, *proximal, *advantage, *weight, *target, *old_value;
    const float *lag; /* null, or: the proximal policy lies between behavior and policy, by the lag */
    const uint8_t *valid;
    i64 proximal_by_row; /* 1: proximal [rows of the minibatch]; 0: by index, as all others */
    i64 anchor_is_behavior, weighted;
    double log_low, log_high, log_cap, log_dual_clip; /* log_dual_clip 0: off */
    double value_clip, value_coef, entropy_coef; /* value_clip 0: off */
} loss_input;

i64 sf_loss_size(void) { return (i64)sizeof(loss_input); }

static double clamp20(double x) { return x > 20.0 ? 20.0 : x < -20.0 ? -20.0 : x; }

/* Log-probability of the action of a row, and what its gradient needs: probabilities or standardised actions in
 * `kept` [width], the entropy and the logarithm of the normaliser of every part. */
static float action_log_prob(const loss_input *in, i64 row, const float *params, float *kept, float *entropy,
                             float *log_sums) {
    float log_prob = 0;
    for (i64 k = 0; k < in->parts; k++) {
        const part *a = &in->part[k];
        const float *x = params + a->column;
        float *y = kept + a->column;
        entropy[k] = 0;
        if (a->discrete) {
            float largest = x[0], sum = 0;
            for (i64 j = 1; j < a->size; j++) largest = x[j] > largest ? x[j] : largest;
            for (i64 j = 0; j < a->size; j++) sum += y[j] = expf(x[j] - largest);
            log_sums[k] = logf(sum) + largest;
            for (i64 j = 0; j < a->size; j++) {
                y[j] /= sum;
                entropy[k] -= y[j] * (x[j] - log_sums[k]);
            }
            log_prob += x[((const i64 *)a->action)[row * a->stride + a->place]] - log_sums[k];
        } else {
            const float *action = (const float *)a->action + row * a->stride + a->place, *log_std = x + a->size;
            for (i64 j = 0; j < a->size; j++) {
                y[j] = (action[j] - x[j]) * expf(-log_std[j]);
                log_prob += -0.5f * y[j] * y[j] - log_std[j] - HALF_LOG_2PI;
                entropy[k] += log_std[j] + (0.5f + HALF_LOG_2PI);
            }
        }
    }
    return log_prob;
}

/* Derivative of the surrogate loss of a row in log_prob. proximal: log-probability under the proximal policy. */
static double policy_slope(const loss_input *in, i64 row, double log_prob, double proximal) {
    double anchor = in->anchor_is_behavior ? in->behavior[row] : proximal, lifted = log_prob - in->log_cap;
    anchor = anchor < lifted ? lifted : anchor; /* NaN stays NaN, here and below: the step is then skipped */
    double advantage = in->weighted ? (double)in->advantage[row] * in->weight[row] : in->advantage[row];
    double log_r = log_prob - proximal, log_w_b = clamp20(proximal - anchor);
    int inside = log_r >= in->log_low && log_r <= in->log_high;
    double clipped = log_r < in->log_low ? in->log_low : log_r > in->log_high ? in->log_high : log_r;
    double plain = -advantage * exp(log_prob - anchor), bounded = -advantage * exp(clipped + log_w_b);
    double of_bounded = inside ? bounded : 0.0;
    double slope = plain > bounded ? plain : plain < bounded ? of_bounded : 0.5 * (plain + of_bounded);
    double loss = plain > bounded ? plain : bounded;
    if (in->log_dual_clip != 0.0 && advantage < 0) {
        double ceiling = -advantage * exp(log_w_b + in->log_dual_clip);
        if (ceiling < loss) slope = 0;
        else if (ceiling == loss) slope *= 0.5;
    }
    return plain + bounded != plain + bounded ? plain + bounded : slope;
}

/* Gradient of a row in its parameters, from the derivatives in log-probability and entropy; in place of `kept`. */
static void params_gradient(const loss_input *in, i64 row, const float *params, float of_log_prob, float of_entropy,
                            const float *entropy, const float *log_sums, float *kept) {
    for (i64 k = 0; k < in->parts; k++) {
        const part *a = &in->part[k];
        const float *x = params + a->column;
        float *y = kept + a->column;
        if (a->discrete) {
            i64 taken = ((const i64 *)a->action)[row * a->stride + a->place];
            for (i64 j = 0; j < a->size; j++) {
                float log_p = x[j] - log_sums[k];
                y[j] = of_log_prob * ((j == taken) - y[j]) - of_entropy * y[j] * (log_p + entropy[k]);
            }
        } else {
            for (i64 j = 0; j < a->size; j++) {
                y[a->size + j] = of_log_prob * (y[j] * y[j] - 1.0f) + of_entropy;
                y[j] = of_log_prob * y[j] * expf(-x[a->size + j]);
            }
        }
    }
}

/* Derivative of the squared error of the value of a row. */
static double value_slope(const loss_input *in, i64 row, double value) {
    double error = value - in->target[row], squared = error * error, slope = 2.0 * error, clip = in->value_clip;
    if (clip == 0.0) return slope;
    double change = value - in->old_value[row], held = change < -clip ? -clip : change > clip ? clip : change;
    double other = in->old_value[row] + held - in->target[row], other_slope = held == change ? 2.0 * other : 0.0;
    if (other * other > squared) slope = other_slope;
    else if (other * other == squared) slope = 0.5 * (slope + other_slope);
    return other != other ? other : slope;
}

/* Gradient of the loss of the rows `index` of a batch in params [rows, width] and value [rows]. The formulas are those
 * of model/distributions, algo/surrogate (decoupled, ppo) and algo/loss; at ties autograd gives each side half. */
void sf_loss(const loss_input *in, const i64 *index, i64 rows, const float *params, const float *value,
             float *params_grad, float *value_grad) {
    double count = 0;
    for (i64 r = 0; r < rows; r++) count += in->valid[index ? index[r] : r] != 0;
    double share = 1.0 / (count > 1 ? count : 1);
    for (i64 r = 0; r < rows; r++) {
        i64 row = index ? index[r] : r;
        const float *p = params + r * in->width;
        float *gradient = params_grad + r * in->width, entropy[MAX_PARTS], log_sums[MAX_PARTS];
        if (!in->valid[row]) {
            memset(gradient, 0, sizeof(float) * (size_t)in->width);
            value_grad[r] = 0;
            continue;
        }
        double log_prob = action_log_prob(in, row, p, gradient, entropy, log_sums), proximal;
        if (in->lag)
            proximal = log_prob + ((double)in->behavior[row] - log_prob) / (in->lag[row] > 1 ? in->lag[row] : 1);
        else
            proximal = in->proximal[in->proximal_by_row ? r : row];
        double slope = policy_slope(in, row, log_prob, proximal);
        params_gradient(in, row, p, (float)(slope * share), (float)(-in->entropy_coef * share), entropy, log_sums,
                        gradient);
        value_grad[r] = (float)(in->value_coef * share * value_slope(in, row, value[r]));
    }
}

/* -- the optimizer ------------------------------------------------------------------------------------------------- */

/* Scale the gradient [size] down to a norm of at most `limit` (0: no limit) and take a step of Adam, in place.
 * Returns the norm before. Takes no step if it is not finite. corrections: 1 - beta1^t and 1 - beta2^t of this step. */
double sf_adam(float *values, float *gradient, float *average, float *square, i64 size, double limit, double lr,
               double beta1, double beta2, double eps, double correction1, double correction2) {
    double sums[8] = {0}, total = 0;
    for (i64 k = 0; k + 8 <= size; k += 8)
        for (int j = 0; j < 8; j++) sums[j] += (double)gradient[k + j] * gradient[k + j];
    for (i64 k = size / 8 * 8; k < size; k++) total += (double)gradient[k] * gradient[k];
    for (int j = 0; j < 8; j++) total += sums[j];
    double norm = sqrt(total);
    if (!isfinite(norm)) return norm;
    float scale = limit > 0 && limit < norm ? (float)(limit / (norm + 1e-6)) : 1.0f;
    float step = (float)(lr / correction1), root = (float)(1.0 / sqrt(correction2)), floor = (float)eps;
    float b1 = (float)beta1, b2 = (float)beta2, c1 = (float)(1.0 - beta1), c2 = (float)(1.0 - beta2);
    for (i64 k = 0; k < size; k++) {
        float g = gradient[k] * scale;
        float m = average[k] = b1 * average[k] + c1 * g;
        float v = square[k] = b2 * square[k] + c2 * g * g;
        gradient[k] = g;
        values[k] -= step * m / (sqrtf(v) * root + floor);
    }
    return norm;
}

/* -- actions ------------------------------------------------------------------------------------------------------- */

/* Quantile of the standard normal, error 1e-6: algorithm AS 241, PPND7 (Wichura 1988). 0 < u < 1. */
static float normal_quantile(float u) {
    float q = u - 0.5f;
    if (fabsf(q) <= 0.425f) {
        float r = 0.180625f - q * q;
        return q * (((59.109374720f * r + 159.29113202f) * r + 50.434271938f) * r + 3.3871327179f) /
               (((67.187563600f * r + 78.757757664f) * r + 17.895169469f) * r + 1.0f);
    }
    float r = sqrtf(-logf(q < 0 ? u : 1.0f - u)), x;
    if (r <= 5.0f) {
        r -= 1.6f;
        x = (((0.17023821103f * r + 1.3067284816f) * r + 2.7568153900f) * r + 1.4234372777f) /
            ((0.12021132975f * r + 0.73700164250f) * r + 1.0f);
    } else {
        r -= 5.0f;
        x = (((0.017337203997f * r + 0.42868294337f) * r + 3.0812263860f) * r + 6.6579051150f) /
            ((0.012258202635f * r + 0.24197894225f) * r + 1.0f);
    }
    return q < 0 ? -x : x;
}

/* Rows of the environments of `count` groups at the step that their request words name (shm/slots.py: number, 8 bits of
 * slot, 16 bits of step). observed: rows of fields with steps + 1 rows; written: rows of the others, whose version is
 * stored. */
void sf_rows(const i64 *groups, i64 count, const i64 *words, i64 slots, i64 steps, i64 envs, i64 *observed, i64 *written,
             i64 *versions, i64 version) {
    for (i64 g = 0; g < count; g++) {
        i64 word = words[groups[g]], t = word & 0xFFFF, lead = groups[g] * slots + (word >> 16 & 0xFF);
        versions[lead * steps + t] = version;
        for (i64 e = 0; e < envs; e++) {
            observed[g * envs + e] = (lead * (steps + 1) + t) * envs + e;
            written[g * envs + e] = (lead * steps + t) * envs + e;
        }
    }
}

/* Choose actions for n rows of params [n, width] and value [n], and write everything to the slots.
 * rows: row r of the batch is row rows[r] of noise (uniform in [0, 1)), of the actions and of all outputs. The actions
 * are those of model/distributions for the same noise. */
void sf_act(const loss_input *in, const i64 *rows, i64 n, const float *params, const float *value, const float *noise,
            i64 noise_width, float *out_log_prob, float *out_params, float *out_value) {
    for (i64 r = 0; r < n; r++) {
        const float *p = params + r * in->width, *uniform = noise + rows[r] * noise_width;
        float log_prob = 0;
        for (i64 k = 0; k < in->parts; k++) {
            const part *a = &in->part[k];
            const float *x = p + a->column;
            if (a->discrete) {
                float largest = x[0], sum = 0;
                for (i64 j = 1; j < a->size; j++) largest = x[j] > largest ? x[j] : largest;
                for (i64 j = 0; j < a->size; j++) sum += expf(x[j] - largest);
                float log_sum = logf(sum) + largest, total = 0, below = 0;
                for (i64 j = 0; j < a->size; j++) total += expf(x[j] - log_sum);
                float u = *uniform++;
                u = u < UNIFORM_MIN ? UNIFORM_MIN : u > UNIFORM_MAX ? UNIFORM_MAX : u;
                float threshold = u * total;
                i64 taken = 0;
                for (i64 j = 0; j < a->size; j++) { /* the first whose sum exceeds the threshold; widths of 0 never do */
                    float probability = expf(x[j] - log_sum);
                    if (probability > 0) taken = j;
                    below += probability;
                    if (below > threshold) break;
                }
                ((i64 *)a->action)[rows[r] * a->stride + a->place] = taken;
                log_prob += x[taken] - log_sum;
            } else {
                float *action = (float *)a->action + rows[r] * a->stride + a->place;
                const float *deviation = x + a->size;
                for (i64 j = 0; j < a->size; j++) {
                    float u = *uniform++;
                    u = u < UNIFORM_MIN ? UNIFORM_MIN : u > UNIFORM_MAX ? UNIFORM_MAX : u;
                    action[j] = x[j] + expf(deviation[j]) * normal_quantile(u);
                    float z = (action[j] - x[j]) * expf(-deviation[j]);
                    log_prob += -0.5f * z * z - deviation[j] - HALF_LOG_2PI;
                }
            }
        }
        out_log_prob[rows[r]] = log_prob;
        out_value[rows[r]] = value[r];
        memcpy(out_params + rows[r] * in->width, p, sizeof(float) * (size_t)in->width);
    }
}
