// The records of a program: what the layers of a model do to the new tokens of one step, as a flat list of
// operations over packed weights and buffers. program.py writes them, program.cpp runs them.
//
// A record is WORDS words of eight bytes, its kind first; the fields below are the others in their order. A weight is
// the byte at which it begins in the arena of packed weights. A buffer is a table of float32 with a row per token,
// and `Place` a column of one. Sums, the residual stream and all that lies between two products are float32; what a
// product multiplies is rounded to the type of its weights, T.
//
// Shapes: M new tokens, Z sequences, D hidden, N heads, G key heads, C latent, P no-rope, R rope, V value, E experts, K
// experts per token, F width of an expert.

#pragma once

#include "eight_bits.h"
#include "row_products.h"
#include "team.h"

namespace {

constexpr int64_t WORDS = 32, NONE = -1;

enum Kind : int64_t { EMBED, PROJECT, GATED, LATENT_HEADS, GROUPED_HEADS, ATTEND, CHOOSE, EXPERTS, KEEP, LOW_RANK, RECEIVE };

struct Place {
    int64_t buffer, column;
};

struct Norm {
    int64_t weight;  // float32; NONE: rows are taken as they are
    double eps;
};

// stream = table[id]; angles = the cosines, then the sines of position * frequency, times a factor.
struct Embed {
    int64_t width;
    Place to;
    int64_t frequencies, pairs;  // 0: nothing is rotated
    double factor;
    Place angles;
    int64_t is_float;  // the table is float32 whatever T is
};

enum Into : int64_t { STORE, ADD, LOGITS };

// to = W norm(from) + bias, stored or added; LOGITS: of the wanted rows alone, to the caller.
struct Project {
    Norm norm;
    Place from;
    int64_t inputs, weight, bias, outputs, is_float;  // is_float: the weight is float32 whatever T is
    Place to;
    int64_t into;
};

// to = silu(gate norm(from)) * up norm(from) (SwiGLU, arXiv 2002.05202). Panels of gate and up alternate. Rows with an
// adapter add their updates of gate and, behind it, up before.
struct Gated {
    Norm norm;
    Place from;
    int64_t inputs, weight, width;
    Place to, updates;
};

// From projections to what latent attention caches and asks with (DeepSeek-V2, arXiv 2405.04434, equations 9 to 16): the
// normalised latent and the rotated shared key go to the cache, and each head's query takes the key projection in,
// q W_k, so that it can be held against latents.
struct LatentHeads {
    int64_t layer;
    Place queries, row;
    Norm norm;
    Place angles;
    int64_t heads, nope, rope, latent, key_weight;
    Place to;
};

// From projections to rotated heads; keys and values go to the cache. Norms of heads are Qwen3's.
struct GroupedHeads {
    int64_t layer;
    Place queries, keys, values;
    Norm query_norm, key_norm;
    Place angles;
    int64_t heads, key_heads, width;
    Place to;
};

// to = softmax(scale q k) v over the pages of each sequence. Latent attention: the row cached is key and, its first
// numbers, value of all heads, and value_weight takes the mean latent of a head to its output.
struct Attend {
    int64_t layer;
    Place queries;
    int64_t heads, key_heads, key_width, value_width;
    double scale;
    int64_t window, sinks;  // window 0: all earlier tokens are seen
    int64_t value_weight, out_width;
    Place to, latents;  // latents: where those of rows with an adapter are left, for the update of their values
};

enum Scoring : int64_t { BY_LOGIT, BY_SOFTMAX, BY_SIGMOID };

// Experts of a token and their weights, as the gates of models/gates do it.
struct Choose {
    Place logits;
    int64_t experts, groups, best_groups, judges, top, scoring, bias;
    int64_t normalise, over_chosen;  // weights divided by their sum; softmax over the chosen logits alone
    double scaling;
    int64_t route;  // which column of the routes that the caller gives or asks for
    Place chosen, weights;
};

// stream += shared(norm(stream)) + sum over a token's experts of weight * expert(norm(stream)), in this order.
struct Experts {
    Norm norm;
    Place stream;
    int64_t hidden;
    Place chosen, weights;
    int64_t experts, top, width, first, second;
    int64_t shared_width, shared_first, shared_second;  // width 0: no expert is shared
    Place inner, shared_inner, out, shared_out, updates;  // updates: of the shared expert, as in Gated
};

// Rows of the stream for the caller, if it asks for them: as they are behind a layer, or with layer NONE normalised, as
// the head reads them.
struct Keep {
    Norm norm;
    Place from;
    int64_t width, layer;
};

// to = scaling * up (down norm(from)), stored or added: of rows with an adapter, the matrices of their own. Head after
// head lies from_step and to_step columns on, with matrices of its own where down_each or up_each says so.
struct LowRank {
    Norm norm;
    Place from;
    int64_t inputs, from_step, outputs;
    Place to;
    int64_t to_step, heads, down_each, up_each, slot, into;
};

// to = rows that the caller brings.
struct Receive {
    int64_t width;
    Place to;
};

// What an adapter has in a slot: where its matrices are in its arena, its rank (0: nothing) and its factor.
struct AdapterPart {
    int64_t down, up, rank;
    double scaling;
};

// Tokens with one adapter, a few of a list.
struct AdapterBlock {
    const uint8_t* arena;
    const AdapterPart* parts;  // by slot
    const int64_t* tokens;
    int64_t count;

    template <class T>
    const T* weight(int64_t offset) const {
        return reinterpret_cast<const T*>(arena + offset);
    }
};

// The new tokens of a step and where their sequences lie, as models/forward_batch.py says.
struct Batch {
    const int64_t *ids, *starts, *lengths, *slots, *tables, *wanted;
    int64_t tokens, sequences, blocks, num_wanted;
};

struct Step {
    const uint8_t* arena;
    const int64_t* strides;  // of the buffers
    const void* table;  // of embeddings
    const void* const* parts;  // of the cache: of each layer two
    const RowShape* shapes;  // of the rows of each part
    int64_t block_size;
    Batch batch;
    const int16_t* replayed;  // routes to take; null: gates choose
    float* logits;
    int16_t* routes;
    int64_t route_layers;
    float *hidden, *streams;  // what Keep writes; null: nobody asks for it
    float* waiting;  // states of attention that are joined when all of them are there
    bool by_tiles;
    std::vector<int64_t> positions;  // of each token in its sequence
    const int64_t* angle_positions;  // that tokens are rotated by, where those are others
    const float* received;  // rows that the caller brings
    std::vector<int64_t> adapters;  // of each token, NONE for none; empty where no token has one
    std::vector<int64_t> adapted;  // tokens with an adapter, those of one behind each other
    std::vector<AdapterBlock> adapter_blocks;
    std::vector<float*> buffers;

    bool has_adapter(int64_t token) const { return !adapters.empty() && adapters[token] != NONE; }

    float* at(Place place, int64_t token = 0) const {
        return buffers[place.buffer] + token * strides[place.buffer] + place.column;
    }
    int64_t stride(Place place) const { return strides[place.buffer]; }
    template <class T>
    const T* weight(int64_t offset) const {
        return offset == NONE ? nullptr : reinterpret_cast<const T*>(arena + offset);
    }
    template <class C>
    C* part(int64_t layer, int64_t index) const {
        return static_cast<C*>(const_cast<void*>(parts[2 * layer + index]));
    }
    const RowShape& shape(int64_t layer, int64_t index) const { return shapes[2 * layer + index]; }
};

}  // namespace
