// Plugs kernels into ggml's CPU backend: a buffer type at the front of its "extra" ones, whose answers come from Rust (src/llama/plug.rs).
// What it assumes of ggml is in README.md. No arithmetic in here, and nothing throws or unwinds through it.
#include "traits.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

extern "C" {

// Where one of ggml's threads stands within an operation.
struct offramp_thread {
    int ith;
    int nth;
    void * wdata;
    size_t wsize;
    ggml_threadpool * pool;
};

struct offramp_plug {
    // Whether `op`, whose weights lie in our buffers (or would, where `is_load` is true), can be computed here.
    bool (*supports)(const ggml_tensor * op, bool is_load);
    // Bytes that a tensor takes in our buffers.
    size_t (*alloc_size)(const ggml_tensor * tensor);
    // Packs a whole tensor; false if it cannot.
    bool (*set)(ggml_tensor * tensor, const void * data, size_t offset, size_t size);
    // Whether `op` is to be offered to `compute`.
    bool (*takes)(const ggml_tensor * op);
    // Sets the scratch memory of `op`; false leaves it to ggml.
    bool (*work_size)(int n_threads, const ggml_tensor * op, size_t * size);
    // Computes `op`; false leaves it to ggml. Every thread gives the same answer.
    bool (*compute)(const offramp_thread * thread, ggml_tensor * op);
};

ggml_backend_buffer_type_t offramp_plug_in(const offramp_plug * plug);
void offramp_barrier(ggml_threadpool * pool);

}

namespace {

const offramp_plug * rust = nullptr;
ggml_backend_buffer_type_t ours = nullptr;

constexpr size_t huge_page = 2u << 20;

bool is_ours(const ggml_tensor * tensor) {
    return tensor && tensor->buffer && tensor->buffer->buft == ours;
}

struct traits final : ggml::cpu::tensor_traits {
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override { return rust->work_size(n_threads, op, &size); }
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const offramp_thread thread = { params->ith, params->nth, params->wdata, params->wsize, params->threadpool };
        return rust->compute(&thread, op);
    }
};

struct extra final : ggml::cpu::extra_buffer_type {
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        // A loader asks with an empty buffer in place of the weights' own.
        return is_ours(op->src[0]) && rust->supports(op, op->src[0]->buffer->size == 0);
    }
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        static traits all;
        return rust->takes(op) ? &all : nullptr;
    }
};

void free_buffer(ggml_backend_buffer_t buffer) { std::free(buffer->context); }
void * get_base(ggml_backend_buffer_t buffer) { return buffer->context; }
void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(rust->set(tensor, data, offset, size) && "packed weights are written whole");
}
void memset_tensor(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {}
void clear(ggml_backend_buffer_t, uint8_t) {}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    const bool is_large = size >= huge_page;
    const size_t alignment = is_large ? huge_page : 64;
    void * memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    if (!memory) return nullptr;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (is_large) madvise(memory, size, MADV_HUGEPAGE);
#endif
    ggml_backend_buffer_i iface = {};
    iface.free_buffer = free_buffer;
    iface.get_base = get_base;
    iface.memset_tensor = memset_tensor;
    iface.set_tensor = set_tensor;
    iface.clear = clear;
    return ggml_backend_buffer_init(type, iface, memory, size);
}

const char * get_name(ggml_backend_buffer_type_t) { return "OFFRAMP"; }
size_t get_alignment(ggml_backend_buffer_type_t) { return 64; }
size_t get_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) { return rust->alloc_size(tensor); }

}

// Called once, before the first model is loaded: ggml copies the list at its first use.
ggml_backend_buffer_type_t offramp_plug_in(const offramp_plug * plug) {
    ggml_backend_reg_t cpu = ggml_backend_cpu_reg();
    auto * context = new (std::nothrow) extra;
    auto * type = new (std::nothrow) ggml_backend_buffer_type {};
    if (!cpu || !context || !type) return nullptr;
    type->iface.get_name = get_name;
    type->iface.alloc_buffer = alloc_buffer;
    type->iface.get_alignment = get_alignment;
    type->iface.get_alloc_size = get_alloc_size;
    type->device = ggml_backend_reg_dev_get(cpu, 0);
    type->context = static_cast<ggml::cpu::extra_buffer_type *>(context);
    rust = plug;
    ours = type;
    auto & types = ggml_backend_cpu_get_extra_buffer_types();
    types.insert(types.begin(), type);
    return type;
}

void offramp_barrier(ggml_threadpool * pool) { ggml_barrier(pool); }
