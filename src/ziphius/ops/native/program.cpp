// Runs a program: all layers of a model on the new tokens of one step, in one call. program.h says what its
// operations are, program.py calls it.
//
// One team of threads goes through the whole list; it waits for all of its own between two operations and is not
// woken anew for each. Everything that a batch says is looked at before anything is written.

#include "indices.h"
#include "program_adapters.h"
#include "program_attention.h"
#include "program_heads.h"
#include "program_products.h"

#include <omp.h>

namespace {

// What program_run returns where it is not FINE.
enum Refusal : int64_t { BAD_IDS = -1, BAD_STARTS = -2, BAD_LENGTHS = -3, BAD_TABLES = -4, BAD_SLOTS = -5, BAD_WANTED = -6,
                         BAD_ADAPTERS = -7, BAD_ROUTES = -8 };

// Says what is wrong with a batch, and fills in the position of each token.
int64_t look_at(const Batch& batch, int64_t vocabulary, int64_t block_size, int64_t num_blocks, int64_t* positions) {
    static thread_local std::vector<int64_t> written;  // slots, to find one that is written twice
    if (!all_below(batch.ids, batch.tokens, vocabulary)) return BAD_IDS;
    if (!are_starts(batch.starts, batch.sequences, batch.tokens)) return BAD_STARTS;
    for (int64_t z = 0; z < batch.sequences; z++)
        if (batch.starts[z] == batch.starts[z + 1]) return BAD_STARTS;
    for (int64_t z = 0; z < batch.sequences; z++) {
        int64_t added = batch.starts[z + 1] - batch.starts[z], length = batch.lengths[z];
        if (length < added || length > batch.blocks * block_size) return BAD_LENGTHS;
        const int64_t* table = batch.tables + z * batch.blocks;
        if (!all_below(table, (length + block_size - 1) / block_size, num_blocks)) return BAD_TABLES;
        for (int64_t i = 0; i < added; i++) {
            int64_t m = batch.starts[z] + i, position = length - added + i;
            positions[m] = position;
            if (batch.slots[m] != table[position / block_size] * block_size + position % block_size) return BAD_SLOTS;
        }
    }
    written.assign(batch.slots, batch.slots + batch.tokens);
    std::sort(written.begin(), written.end());
    if (std::adjacent_find(written.begin(), written.end()) != written.end()) return BAD_SLOTS;
    return all_below(batch.wanted, batch.num_wanted, batch.tokens) ? FINE : int64_t(BAD_WANTED);
}

// Whether routes to take name experts that there are.
bool are_routes(const Choose& op, const Step& step) {
    for (int64_t m = 0; m < step.batch.tokens; m++)
        for (int64_t k = 0; k < op.top; k++) {
            int16_t expert = step.replayed[(m * step.route_layers + op.route) * op.top + k];
            if (expert < 0 || expert >= op.experts) return false;
        }
    return true;
}

template <class T>
void embed(const Embed& op, const Step& step, Team& team) {
    constexpr int64_t FEW = 8;
    team.each((step.batch.tokens + FEW - 1) / FEW, [&](int64_t task) {
        for (int64_t m = task * FEW; m < std::min(step.batch.tokens, (task + 1) * FEW); m++) {
            int64_t first = step.batch.ids[m] * op.width;
            if (op.is_float)
                load_row(static_cast<const float*>(step.table) + first, op.width, step.at(op.to, m));
            else
                load_row(static_cast<const T*>(step.table) + first, op.width, step.at(op.to, m));
            angles_row(step.angle_positions[m], step.weight<float>(op.frequencies), op.pairs, float(op.factor),
                       step.at(op.angles, m));
        }
    });
}

inline void receive(const Receive& op, const Step& step, Team& team) {
    team.each(step.batch.tokens, [&](int64_t m) { copy(step.received + m * op.width, op.width, step.at(op.to, m)); });
}

inline void keep(const Keep& op, const Step& step, Team& team) {
    constexpr int64_t FEW = 8;
    float* to = op.layer == NONE ? step.hidden : step.streams;
    if (!to) return;
    if (op.layer != NONE) to += op.layer * step.batch.tokens * op.width;
    const float* weight = step.weight<float>(op.norm.weight);
    team.each((step.batch.tokens + FEW - 1) / FEW, [&](int64_t task) {
        for (int64_t m = task * FEW; m < std::min(step.batch.tokens, (task + 1) * FEW); m++) {
            const float* from = step.at(op.from, m);
            if (weight)
                norm_row(from, weight, float(op.norm.eps), op.width, to + m * op.width);
            else
                copy(from, op.width, to + m * op.width);
        }
    });
}

template <class Operation>
const Operation& as(const int64_t* record) {
    static_assert(sizeof(Operation) <= (WORDS - 1) * sizeof(int64_t), "a record has room for every operation");
    return *reinterpret_cast<const Operation*>(record + 1);
}

template <class T, class C>
void run(const int64_t* record, const Step& step, Team& team) {
    switch (record[0]) {
        case EMBED: return embed<T>(as<Embed>(record), step, team);
        case PROJECT:
            if (as<Project>(record).is_float) return project<float>(as<Project>(record), step, team);
            return project<T>(as<Project>(record), step, team);
        case GATED: return gated<T>(as<Gated>(record), step, team);
        case LATENT_HEADS: return latent_heads<T, C>(as<LatentHeads>(record), step, team);
        case GROUPED_HEADS: return grouped_heads<C>(as<GroupedHeads>(record), step, team);
        case ATTEND: return attend<T, C>(as<Attend>(record), step, team);
        case CHOOSE: return choose(as<Choose>(record), step, team);
        case EXPERTS: return experts<T>(as<Experts>(record), step, team);
        case KEEP: return keep(as<Keep>(record), step, team);
        case LOW_RANK: return low_rank<T>(as<LowRank>(record), step, team);
        case RECEIVE: return receive(as<Receive>(record), step, team);
    }
}

// Panels of the weight go to `target` with `apart` - 1 others between them, rounded where that is of a smaller type.
template <class T, class U>
void pack_weight(const T* weight, U* target, int64_t outputs, int64_t inputs, int64_t row_stride, int64_t column_stride,
                 int64_t apart) {
    int64_t panels = padded(outputs) / UNIT, size = padded(inputs) * UNIT;
#pragma omp parallel for schedule(static) if (panels * size > 65536)
    for (int64_t panel = 0; panel < panels; panel++)
        pack(weight + panel * UNIT * row_stride, column_stride, row_stride, inputs, std::min(UNIT, outputs - panel * UNIT),
             target + panel * apart * size);
}

// One for all types of weights and of caches: they differ in what runs a record, and in whether matrix units serve.
int64_t program_run(void (*run)(const int64_t*, const Step&, Team&), bool by_tiles, const int64_t* records,
                    const uint8_t* arena, const void* table, const int64_t* strides, float* workspace,
                    const int64_t* parts, const int64_t* shapes, const int64_t* ids, const int64_t* starts,
                    const int64_t* lengths, const int64_t* slots, const int64_t* tables, const int64_t* wanted,
                    const int64_t* angle_positions, const float* received, const int64_t* adapters_of,
                    const int64_t* adapters, const int16_t* replayed, float* logits, int16_t* routes, float* hidden,
                    float* streams, int64_t num_records, int64_t num_buffers, int64_t vocabulary, int64_t block_size,
                    int64_t num_blocks, int64_t tokens, int64_t sequences, int64_t blocks, int64_t num_wanted,
                    int64_t num_adapters, int64_t route_layers, int64_t threads, int exact) {
    Step step{};
    step.batch = {ids, starts, lengths, slots, tables, wanted, tokens, sequences, blocks, num_wanted};
    step.positions.resize(tokens);
    int64_t refusal = look_at(step.batch, vocabulary, block_size, num_blocks, step.positions.data());
    if (refusal != FINE) return refusal;
    if (adapters_of && !gather_adapters(step, adapters_of, adapters, num_adapters)) return BAD_ADAPTERS;
    step.angle_positions = angle_positions ? angle_positions : step.positions.data();
    step.received = received;
    step.arena = arena, step.table = table, step.strides = strides, step.block_size = block_size;
    step.parts = reinterpret_cast<const void* const*>(parts);
    step.shapes = reinterpret_cast<const RowShape*>(shapes);
    step.logits = logits, step.routes = routes, step.route_layers = route_layers;
    step.replayed = replayed, step.hidden = hidden, step.streams = streams;
    step.by_tiles = !exact && by_tiles;
    for (int64_t i = 0; i < num_buffers; workspace += strides[i++] * tokens) step.buffers.push_back(workspace);
    static thread_local std::vector<float> memory;
    int64_t waiting = 0;
    for (int64_t i = 0; replayed && i < num_records; i++)
        if (records[i * WORDS] == CHOOSE && !are_routes(as<Choose>(records + i * WORDS), step)) return BAD_ROUTES;
    for (int64_t i = 0; i < num_records; i++)
        if (records[i * WORDS] == ATTEND) waiting = std::max(waiting, waiting_size(as<Attend>(records + i * WORDS), step, threads));
    step.waiting = scratch(memory, waiting);
    Team team;
#pragma omp parallel num_threads(int(threads))
    {
#pragma omp single
        team.gather(omp_get_num_threads());
        for (int64_t i = 0; i < num_records; i++) run(records + i * WORDS, step, team);
    }
    return FINE;
}

}  // namespace

extern "C" {
#define PACK(suffix, T, U)                                                                                    \
    void pack_weight_##suffix(const T* weight, U* target, int64_t outputs, int64_t inputs, int64_t row_stride, \
                              int64_t column_stride, int64_t apart) {                                         \
        pack_weight(weight, target, outputs, inputs, row_stride, column_stride, apart);                       \
    }
PACK(ff, float, float)
PACK(fb, float, bf16)
PACK(bb, bf16, bf16)
#define PROGRAM(suffix, T, C)                                                                                   \
    int64_t program_run_##suffix(                                                                               \
        const int64_t* records, const uint8_t* arena, const void* table, const int64_t* strides,                \
        float* workspace, const int64_t* parts, const int64_t* shapes, const int64_t* ids,                      \
        const int64_t* starts, const int64_t* lengths, const int64_t* slots, const int64_t* tables,             \
        const int64_t* wanted, const int64_t* angle_positions, const float* received,                           \
        const int64_t* adapters_of, const int64_t* adapters, const int16_t* replayed, float* logits,            \
        int16_t* routes, float* hidden, float* streams, int64_t num_records, int64_t num_buffers,               \
        int64_t vocabulary, int64_t block_size, int64_t num_blocks, int64_t tokens, int64_t sequences,          \
        int64_t blocks, int64_t num_wanted, int64_t num_adapters, int64_t route_layers, int64_t threads,        \
        int exact) {                                                                                            \
        return program_run(run<T, C>, tiles_serve<T>(), records, arena, table, strides, workspace, parts,       \
                           shapes, ids, starts, lengths, slots, tables, wanted, angle_positions, received,      \
                           adapters_of, adapters, replayed, logits, routes, hidden, streams, num_records,       \
                           num_buffers, vocabulary, block_size, num_blocks, tokens, sequences, blocks,          \
                           num_wanted, num_adapters, route_layers, threads, exact);                             \
    }
PROGRAM(ff, float, float)
PROGRAM(fb, float, bf16)
PROGRAM(bf, bf16, float)
PROGRAM(bb, bf16, bf16)
PROGRAM(fi, float, int8)
PROGRAM(bi, bf16, int8)
PROGRAM(fe, float, fp8)
PROGRAM(be, bf16, fp8)
}
