/* The kernels against loops that say what they mean, without Python: for processors that are only
 * emulated here. Prints how many layers it tried; exits with 1 where one is wrong. */
#include "../../../coppice/kernels/sparse_kernels.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static uint32_t state = 1;
static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % below;
}
static float value(void) { return (float)draw(2001) / 1000.0f - 1.0f; }
static int pick(int low, int high) { return low + (int)draw((uint32_t)(high - low + 1)); }
static void *room(size_t count, size_t size) { return calloc(count ? count : 1, size); }
static float *values(size_t count)
{
    float *found = room(count, sizeof(float));
    for (size_t i = 0; i < count; i++)
        found[i] = value();
    return found;
}
static double worst;
static void compare(float found, double expected)
{
    const double error = fabs(found - expected) / (1.0 + fabs(expected));
    if (!(error <= worst))
        worst = error;
}

static void check_layer(void)
{
    const int by_rows = pick(0, 3) == 0, widest = by_rows ? 40 : 12;
    const int batch = 4 * pick(1, by_rows ? 30 : 12), threads = pick(1, 2);
    const int in = pick(1, widest), out = pick(1, widest);
    const int kh = by_rows ? 1 : pick(1, 5), kw = by_rows ? 1 : pick(1, 5), stride = by_rows ? 1 : pick(1, 3);
    const int top = pick(0, kh - 1), left = pick(0, kw - 1);
    const int height = by_rows ? 1 : pick(kh, 9), width = by_rows ? 1 : pick(kw, 20);
    const int oh = (height + 2 * top - kh) / stride + 1, ow = (width + 2 * left - kw) / stride + 1;
    const int down = (kh + stride - 1) / stride, across = (kw + stride - 1) / stride;
    const int longest = kh > kw ? kh : kw, phases = stride < longest ? stride : longest;
    const int ph = oh + down - 1, pw = ow + across - 1, is_packed = stride > 1;
    const int ih = is_packed ? ph : height, iw = is_packed ? pw : width;
    const int sh = ih + down - 1, sw = iw + across - 1, columns = in * phases * phases;
    const plan shape = {out, in, kh, kw, stride, phases, down, across, ph, pw, sh, sw,
                        pick(1, columns), pick(1, out), by_rows};
    const int row_blocks = (columns + shape.block_columns - 1) / shape.block_columns;
    const int column_blocks = (out + shape.block_rows - 1) / shape.block_rows;
    const int size = out * in * kh * kw, density = pick(0, 4);
    uint8_t *mask = room(size / 8 + 1, 1);
    int count = 0;
    for (int i = 0; i < size; i++)
        if (pick(0, 3) < density) {
            mask[i >> 3] |= (uint8_t)(1 << (i & 7));
            count++;
        }
    int32_t *row_ptr = room((size_t)row_blocks * (out + 1), 4), *row_cursor = room((size_t)row_blocks * (out + 1), 4);
    int32_t *column_ptr = room((size_t)column_blocks * (columns + 1), 4);
    int32_t *column_cursor = room((size_t)column_blocks * (columns + 1), 4);
    uint16_t *row_offset = room(count, 2), *column_offset = room(count, 2);
    int32_t *stored_at = room(count, 4);
    coppice_index(&shape, mask, row_ptr, row_offset, stored_at, column_ptr, column_offset, row_cursor,
                  column_cursor);
    const size_t runs = by_rows ? (size_t)row_blocks * (out + 1) : (size_t)column_blocks * (columns + 1);
    int32_t *cursor = by_rows ? row_cursor : column_cursor;
    const int32_t *ptr = by_rows ? row_ptr : column_ptr;
    const layer of = {row_ptr, row_offset, by_rows ? NULL : stored_at, by_rows ? NULL : column_ptr,
                      by_rows ? NULL : column_offset, out, columns,
                      row_blocks, shape.block_columns * ph * pw, column_blocks,
                      shape.block_rows * sh * sw, oh, ow, pw, ih, iw, sw};

    float *ordered = values(count), *stored = values(count), *back = values(count);
    memcpy(cursor, ptr, sizeof(int32_t) * runs);
    coppice_reorder(&shape, mask, cursor, ordered, stored, 0);
    memcpy(cursor, ptr, sizeof(int32_t) * runs);
    coppice_reorder(&shape, mask, cursor, back, stored, 1);
    for (int i = 0; i < count; i++)
        compare(back[i], ordered[i]);
    float *weight = room(size, sizeof(float));
    for (int i = 0, at = 0; i < size; i++)
        if (mask[i >> 3] >> (i & 7) & 1)
            weight[i] = ordered[at++];

    const size_t pixels = (size_t)in * height * width * batch;
    float *x = values(pixels), *bias = values(out), *g = values((size_t)out * oh * ow * batch);
    float *padded = values((size_t)columns * ph * pw * batch), *y = values((size_t)out * oh * ow * batch);
    float *spread = values((size_t)out * sh * sw * batch), *d_inner = values((size_t)columns * ih * iw * batch);
    float *dx = values(pixels), *dw = room(count, sizeof(float));
    coppice_pad(x, padded, in, height, width, top, left, stride, phases, ph, pw, batch, threads);
    coppice_forward(&of, stored, 1, bias, padded, y, batch, threads);
    coppice_pad(g, spread, out, oh, ow, down - 1 - (is_packed ? 0 : top),
                across - 1 - (is_packed ? 0 : left), 1, 1, sh, sw, batch, threads);
    const update how = {dw, NULL, NULL, 0.0f, 0.0f, 0.0f, 0.0f};
    coppice_backward(&of, stored, &how, spread, is_packed ? padded : x, d_inner, batch, threads);
    /* As the same layer does it where it is the first. */
    float *first_dw = room(count, sizeof(float));
    const update first_how = {first_dw, NULL, NULL, 0.0f, 0.0f, 0.0f, 0.0f};
    coppice_weight_gradient(&of, stored, &first_how, g, padded, batch, threads);
    for (int i = 0; i < count; i++)
        compare(first_dw[i], dw[i]);
    if (is_packed)
        coppice_unpad(d_inner, dx, in, height, width, top, left, stride, phases, ph, pw, batch, threads);
    else
        memcpy(dx, d_inner, sizeof(float) * pixels);

    double *y0 = room((size_t)out * oh * ow * batch, sizeof(double)), *dx0 = room(pixels, sizeof(double));
    double *dw0 = room(size, sizeof(double));
    for (int o = 0; o < out; o++)
        for (int i = 0; i < oh; i++)
            for (int j = 0; j < ow; j++)
                for (int b = 0; b < batch; b++) {
                    const size_t at = (((size_t)o * oh + i) * ow + j) * batch + b;
                    y0[at] = bias[o];
                    for (int c = 0; c < in; c++)
                        for (int u = 0; u < kh; u++)
                            for (int v = 0; v < kw; v++) {
                                const int r = i * stride + u - top, s = j * stride + v - left;
                                if (r < 0 || r >= height || s < 0 || s >= width)
                                    continue;
                                const size_t from = (((size_t)c * height + r) * width + s) * batch + b;
                                const int w = ((o * in + c) * kh + u) * kw + v;
                                y0[at] += weight[w] * x[from];
                                dx0[from] += weight[w] * g[at];
                                dw0[w] += x[from] * g[at];
                            }
                }
    for (size_t i = 0; i < (size_t)out * oh * ow * batch; i++)
        compare(y[i], y0[i]);
    for (size_t i = 0; i < pixels; i++)
        compare(dx[i], dx0[i]);
    memcpy(cursor, ptr, sizeof(int32_t) * runs);
    coppice_reorder(&shape, mask, cursor, back, dw, 1);
    for (int i = 0, at = 0; i < size; i++)
        if (mask[i >> 3] >> (i & 7) & 1)
            compare(back[at++], dw0[i]);
    void *all[] = {mask, row_ptr, row_cursor, column_ptr, column_cursor, row_offset, column_offset,
                   stored_at, ordered, stored, back, weight, x, bias, g, padded, y, spread, d_inner,
                   dx, dw, first_dw, y0, dx0, dw0};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

int main(int argc, char **argv)
{
    const int layers = argc > 1 ? atoi(argv[1]) : 200;
    for (int i = 0; i < layers; i++)
        check_layer();
    printf("%d lanes, %d layers, largest relative error %.1e\n", coppice_lanes(), layers, worst);
    return !(worst < 1e-4);
}
