/*
 * Offramp's C ABI: early-exit inference for quantized GGUF models on llama.cpp.
 *
 * Made by cbindgen from src/capi: change it there. How to use it is in docs/c-abi.md. For all functions:
 *
 * - The answer is 0 (OFFRAMP_OK) or a negative status; offramp_last_error() has the reason of the calling thread's
 *   last one. Outputs are written on success only, and last.
 * - Texts are UTF-8. What comes out is never a part of a code point.
 * - Handles are made by a call and freed by the function of the same name with _free. NULL may be freed.
 * - "Any thread": any number of threads may be in such a call with the same handle at the same time. "One call at a
 *   time": a second one meanwhile answers OFFRAMP_ERROR_BUSY and changes nothing; the handle may move between threads.
 * - Callbacks run on the thread of the call they were given to, unless they say otherwise, and must not throw.
 */

#ifndef OFFRAMP_H
#define OFFRAMP_H

#include <stddef.h>
#include <stdint.h>

// Version of this header's structs and functions. A library of another version refuses the structs of this one.
#define OFFRAMP_ABI_VERSION 1

// Done.
#define OFFRAMP_OK 0

// A pointer that must not be NULL is NULL. -100 to -199: the caller's mistake, nothing has changed.
#define OFFRAMP_ERROR_NULL -100

// A value is outside of what the call accepts.
#define OFFRAMP_ERROR_VALUE -101

// A struct's struct_size or abi_version is not this library's.
#define OFFRAMP_ERROR_ABI -102

// A text or path is no UTF-8.
#define OFFRAMP_ERROR_UTF8 -103

// Another call on this handle is in progress, on another thread or around this callback.
#define OFFRAMP_ERROR_BUSY -104

// The buffer is too small; the length that is needed has been written.
#define OFFRAMP_ERROR_BUFFER -105

// A file cannot be read or written. -200 to -299: the file's fault.
#define OFFRAMP_ERROR_IO -200

// The file is no sound GGUF.
#define OFFRAMP_ERROR_GGUF -201

// llama.cpp refuses the model.
#define OFFRAMP_ERROR_LOAD -202

// The model cannot do this.
#define OFFRAMP_ERROR_UNSUPPORTED -203

// It does not fit into the memory that is free.
#define OFFRAMP_ERROR_MEMORY -204

// The exit heads do not fit the model or cannot be evaluated.
#define OFFRAMP_ERROR_HEADS -205

// A saved session that this session cannot take.
#define OFFRAMP_ERROR_STATE -206

// The prompt is longer than the context. -300 to -399: while running.
#define OFFRAMP_ERROR_CONTEXT_LENGTH -300

// llama.cpp cannot make a context.
#define OFFRAMP_ERROR_CONTEXT -301

// llama.cpp failed to decode.
#define OFFRAMP_ERROR_DECODE -302

// The chat template gave no text.
#define OFFRAMP_ERROR_TEMPLATE -303

// The grammar cannot be used.
#define OFFRAMP_ERROR_GRAMMAR -304

// A callback or offramp_session_cancel stopped the call.
#define OFFRAMP_ERROR_CANCELLED -400

// A defect of this library was met and contained. A session that was in use can only be freed.
#define OFFRAMP_ERROR_PANIC -900

// An error without a code of its own.
#define OFFRAMP_ERROR_OTHER -901

// As many layers on the GPU as fit into its free memory.
#define OFFRAMP_GPU_LAYERS_AUTO -1

// All layers on the GPU.
#define OFFRAMP_GPU_LAYERS_ALL -2

// Fused attention where the device supports it.
#define OFFRAMP_FLASH_ATTN_AUTO 0

// Fused attention always.
#define OFFRAMP_FLASH_ATTN_ON 1

// Fused attention never.
#define OFFRAMP_FLASH_ATTN_OFF 2

// Number formats of the K and the V cache.
#define OFFRAMP_CACHE_F16 0

// See OFFRAMP_CACHE_F16.
#define OFFRAMP_CACHE_F32 1

// See OFFRAMP_CACHE_F16.
#define OFFRAMP_CACHE_BF16 2

// See OFFRAMP_CACHE_F16.
#define OFFRAMP_CACHE_Q8_0 3

// See OFFRAMP_CACHE_F16.
#define OFFRAMP_CACHE_Q4_0 4

// See OFFRAMP_CACHE_F16.
#define OFFRAMP_CACHE_Q4_1 5

// See OFFRAMP_CACHE_F16.
#define OFFRAMP_CACHE_IQ4_NL 6

// See OFFRAMP_CACHE_F16.
#define OFFRAMP_CACHE_Q5_0 7

// See OFFRAMP_CACHE_F16.
#define OFFRAMP_CACHE_Q5_1 8

// No token leaves the model early: plain llama.cpp.
#define OFFRAMP_EXITS_OFF 0

// Tokens leave where the heads are confident enough for the wanted agreement.
#define OFFRAMP_EXITS_CALIBRATED 1

// Exits, and the text so far, only draft: every token is the full model's own, which verifies several drafts at once.
#define OFFRAMP_EXITS_EXACT 2

// Keys and values that an exit left out come from whichever of the ways below pays on this model.
#define OFFRAMP_KV_AUTO 0

// They are predicted by the file's K/V maps.
#define OFFRAMP_KV_PREDICT 1

// The layers that were left out run later, in batches.
#define OFFRAMP_KV_CATCH_UP 2

// They are computed from the hidden state at the exit.
#define OFFRAMP_KV_PROPAGATE 3

// What went wrong.
#define OFFRAMP_LOG_ERROR 1

// What may be wrong, llama.cpp's errors among it.
#define OFFRAMP_LOG_WARN 2

// What was done.
#define OFFRAMP_LOG_INFO 3

// How it was done.
#define OFFRAMP_LOG_DEBUG 4

// There was no reply yet.
#define OFFRAMP_STOP_NONE 0

// The model's own end token.
#define OFFRAMP_STOP_EOS 1

// The most tokens were generated, or the context is full.
#define OFFRAMP_STOP_LENGTH 2

// A stop text, a stop token, or the callback.
#define OFFRAMP_STOP_STOP 3

// offramp_session_cancel.
#define OFFRAMP_STOP_CANCELLED 4

// A loaded model. Immutable; any number of threads may use one at the same time.
typedef struct offramp_model offramp_model;

// How tokens are picked. Immutable; any number of sessions on any threads may use one at the same time.
typedef struct offramp_sampler offramp_sampler;

// A conversation on a model. It may move between threads, but one call at a time uses it: a second one answers
// OFFRAMP_ERROR_BUSY. offramp_session_cancel and offramp_session_clear_cancel may be called by any thread at any time.
typedef struct offramp_session offramp_session;

// Called with the share that is done, from 0 to 1, on the thread of the call that it was given to. 0 stops that call.
typedef int32_t (*offramp_progress_callback)(float done, void *user_data);

// How a model is loaded. Fill it with offramp_model_default_params.
typedef struct {
    // Size of this struct in bytes.
    uint32_t struct_size;
    // OFFRAMP_ABI_VERSION.
    uint32_t abi_version;
    // Layers on the GPU: a number, OFFRAMP_GPU_LAYERS_AUTO or OFFRAMP_GPU_LAYERS_ALL.
    int32_t gpu_layers;
    // Not 0: map the file instead of reading it.
    int32_t use_mmap;
    // Not 0: keep the weights from being swapped out.
    int32_t use_mlock;
    // Not 0: refuse what does not fit into the memory that is free.
    int32_t check_memory;
    // Not 0: also load architectures whose loader was not read for defects. Say 0 for files from strangers.
    int32_t allow_unread;
    // Not 0: where `heads_path` is NULL and the model file has no exit heads, look for a sidecar made for this model in
    // the user's cache and, as `exits-*.gguf`, beside the file. A first look that finds some reads the whole model.
    int32_t find_heads;
    // A sidecar with exit heads, or NULL for those inside the model file, if any, and those that `find_heads` finds.
    const char *heads_path;
    // How far the loading is, or NULL. 0 from it stops the loading with OFFRAMP_ERROR_CANCELLED.
    offramp_progress_callback progress;
    // Given to `progress`.
    void *progress_user_data;
} offramp_model_params;

// What a session is made with. Fill it with offramp_session_default_params.
typedef struct {
    // Size of this struct in bytes.
    uint32_t struct_size;
    // OFFRAMP_ABI_VERSION.
    uint32_t abi_version;
    // Tokens that the context holds; 0 takes what the model was trained with, at most 8192.
    uint32_t n_ctx;
    // Tokens that one decode takes at most.
    uint32_t n_batch;
    // Tokens that one graph takes at most.
    uint32_t n_ubatch;
    // Threads for single tokens; 0 takes the physical cores.
    uint32_t n_threads;
    // Threads for prompts; 0 takes as many as for single tokens.
    uint32_t n_threads_batch;
    // One of OFFRAMP_FLASH_ATTN_*.
    int32_t flash_attn;
    // Format of the K cache, one of OFFRAMP_CACHE_*.
    int32_t type_k;
    // Format of the V cache, one of OFFRAMP_CACHE_*.
    int32_t type_v;
    // One of OFFRAMP_EXITS_*. Without exit heads nothing leaves early, whatever this says.
    int32_t exits;
    // One of OFFRAMP_KV_*.
    int32_t kv;
    // The wanted share of tokens that equal the full model's, in (0, 1]: a level that the heads were calibrated for, or
    // the next higher one is taken.
    float agreement;
    // The most tokens of a batch that catches up on skipped layers, or verifies drafts.
    uint32_t max_pending;
    // No token leaves before this block.
    uint32_t min_exit_layer;
    // Not 0: where the context is full, forget the older half of the text and go on, instead of ending the reply.
    int32_t context_shift;
} offramp_session_params;

// How tokens are picked. Fill it with offramp_sampler_default_params.
typedef struct {
    // Size of this struct in bytes.
    uint32_t struct_size;
    // OFFRAMP_ABI_VERSION.
    uint32_t abi_version;
    // 0, and what is below 0.00001, is greedy: the best token, of equals the one with the lowest id.
    float temperature;
    // Keep the best tokens, this many; 0 or less keeps all.
    int32_t top_k;
    // Keep the tokens whose surprise is nearest to the expected one, up to this probability; 1 keeps all.
    float typical_p;
    // Keep the best tokens whose probabilities reach this; 1 keeps all.
    float top_p;
    // Keep tokens of at least this times the best one's probability; 0 keeps all.
    float min_p;
    // Divides the logits of repeated tokens; 1 changes nothing.
    float repeat_penalty;
    // How many of the reply's last tokens count as repeated; 0 is none, -1 as many as the model was trained with.
    int32_t repeat_last_n;
    // Lowers a token's logit by this for each of its repetitions.
    float frequency_penalty;
    // Lowers the logit of every token that was there before by this.
    float presence_penalty;
    // Lowers the logit of a token that would go on repeating a sequence, by this times a power of `dry_base`; 0 is off.
    float dry_multiplier;
    // What that power is of: the exponent is by how much the repeated sequence is longer than `dry_allowed_length`.
    float dry_base;
    // Sequences up to this length may be repeated.
    int32_t dry_allowed_length;
    // How many of the reply's last tokens are searched for the sequence; as `repeat_last_n`.
    int32_t dry_penalty_last_n;
    // How often the likeliest tokens are left out, all but the least likely of those above `xtc_threshold`; 0 is never.
    float xtc_probability;
    // See `xtc_probability`; above 0.5 nothing is left out.
    float xtc_threshold;
    // Not 0: `seed` is used; otherwise each reply has a seed of its own.
    int32_t use_seed;
    // Seed of the random numbers.
    uint32_t seed;
    // 0.
    int32_t reserved;
    // A GBNF grammar with the root rule `root`, or NULL.
    const char *grammar;
    // Texts that no repeated sequence reaches across, at most 16 of 1 to 40 bytes; NULL takes llama.cpp's four if
    // `n_dry_sequence_breakers` is 0.
    const char *const *dry_sequence_breakers;
    // Number of `dry_sequence_breakers`. 0 with a pointer that is not NULL is none.
    size_t n_dry_sequence_breakers;
} offramp_sampler_params;

// When a reply ends. Fill it with offramp_generate_default_params.
typedef struct {
    // Size of this struct in bytes.
    uint32_t struct_size;
    // OFFRAMP_ABI_VERSION.
    uint32_t abi_version;
    // The most tokens; 0 leaves it to the context.
    uint32_t max_tokens;
    // Not 0: go on after the model's own end token.
    int32_t ignore_eos;
    // Texts that end a reply and are no part of it, or NULL.
    const char *const *stop;
    // Number of `stop`.
    size_t n_stop;
    // Tokens that end a reply, beside the model's own, and are no part of it, or NULL.
    const int32_t *stop_token_ids;
    // Number of `stop_token_ids`.
    size_t n_stop_token_ids;
    // Nothing of the above, and no end token, ends a reply before this many tokens, unless a grammar allows nothing else.
    uint32_t min_tokens;
    // 0.
    int32_t reserved;
} offramp_generate_params;

// Called with one line: `length` bytes of UTF-8, not ended by NUL, valid during the call only. It runs on whichever
// thread logs, llama.cpp's own included, possibly on several at once; it must not call this library.
typedef void (*offramp_log_callback)(int32_t level, const char *text, size_t length, void *user_data);

// What a model is. The texts are UTF-8, end with NUL, and live as long as the model's handle.
typedef struct {
    // Size of this struct in bytes.
    uint32_t struct_size;
    // OFFRAMP_ABI_VERSION.
    uint32_t abi_version;
    // The model's name, "" if it has none.
    const char *name;
    // Its architecture, for example "llama".
    const char *architecture;
    // llama.cpp's description: architecture, size class, quantization.
    const char *description;
    // Bytes of the weights.
    uint64_t size;
    // Number of weights.
    uint64_t n_params;
    // Number of blocks.
    uint32_t n_layer;
    // Length of a hidden state.
    uint32_t n_embd;
    // Tokens of the vocabulary.
    uint32_t n_vocab;
    // Tokens that the model was trained to attend to.
    uint32_t n_ctx_train;
    // 1 if the file has a chat template.
    int32_t has_chat_template;
    // 1 if exit heads came with the model.
    int32_t has_heads;
} offramp_model_info;

// What a model and one session take of the memory, in bytes.
typedef struct {
    // Size of this struct in bytes.
    uint32_t struct_size;
    // OFFRAMP_ABI_VERSION.
    uint32_t abi_version;
    // The weights. Mapped from the file, they take memory as they are used.
    uint64_t weights;
    // The K/V cache of one session.
    uint64_t kv_cache;
    // The buffers of one session's graphs, roughly.
    uint64_t compute;
    // What the system can still give; 0 if it does not tell.
    uint64_t available;
} offramp_memory;

// One turn of a conversation. Both texts are UTF-8, end with NUL, and need to live for the call only.
typedef struct {
    // Who speaks: "system", "user", "assistant", or what else the model's template knows.
    const char *role;
    // What is said.
    const char *content;
} offramp_message;

// Called with each piece of a reply: `length` bytes of UTF-8 in whole code points, not ended by NUL, valid during the
// call only. It runs on the thread of the offramp_session_generate that it was given to; it may cancel or free the
// session, and must not let an exception out. 0 ends the reply after this piece: it is not called again for it.
typedef int32_t (*offramp_token_callback)(const char *text, size_t length, void *user_data);

// What is known of a session's last prompt and last reply.
typedef struct {
    // Size of this struct in bytes.
    uint32_t struct_size;
    // OFFRAMP_ABI_VERSION.
    uint32_t abi_version;
    // Why the reply ended, one of OFFRAMP_STOP_*.
    int32_t stop_reason;
    // 1 if there was no room in the context for a further token.
    int32_t context_full;
    // Tokens of the last prompt.
    uint64_t n_prompt;
    // Of these, those whose K/V were there already.
    uint64_t n_prompt_reused;
    // Of these, those that were decoded.
    uint64_t n_prompt_decoded;
    // How long that took.
    double prompt_seconds;
    // Tokens of the reply, without an end token.
    uint64_t n_tokens;
    // From the logits of the prompt to the last token.
    double seconds;
    // Tokens after the first a second: the first one comes with the prompt.
    double tokens_per_second;
    // Tokens that ran through all of the model.
    uint64_t n_full;
    // Tokens that left at the final norm, by the screened output matrix.
    uint64_t n_screen;
    // Tokens that left after each block, `n_layer` numbers. Owned by the session, valid until the next call on it.
    const uint64_t *layer_exits;
    // Number of blocks.
    uint64_t n_layer;
    // Blocks that ran for a token, on the average; 0 without tokens.
    double mean_depth;
    // Tokens that were drafted for the full model to verify.
    uint64_t n_drafted;
    // Of these, those that it agreed with.
    uint64_t n_accepted;
    // n_accepted / n_drafted; 0 without drafts.
    double draft_acceptance;
} offramp_statistics;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The library's version, for example "0.1.0". A static string; any thread may call this at any time.
const char *offramp_version(void);

// The ABI version that the library was built with, to compare with OFFRAMP_ABI_VERSION. Any thread, any time.
uint32_t offramp_abi_version(void);

// The library and its llama.cpp, for records of how something was measured. A static string; any thread, any time.
const char *offramp_engine(void);

// The reason of this thread's last status that was not OFFRAMP_OK, in plain words; "" if there was none. Never NULL.
// Owned by the library, valid until this thread's next call of a function that answers a status.
const char *offramp_last_error(void);

// Fills `params` with the defaults. `struct_size` is sizeof(*params). Any thread, any time.
int32_t offramp_model_default_params(offramp_model_params *params, size_t struct_size);

// Fills `params` with the defaults. `struct_size` is sizeof(*params). Any thread, any time.
int32_t offramp_session_default_params(offramp_session_params *params, size_t struct_size);

// Fills `params` with the defaults, which are llama.cpp's. `struct_size` is sizeof(*params). Any thread, any time.
int32_t offramp_sampler_default_params(offramp_sampler_params *params, size_t struct_size);

// Fills `params` with the defaults. `struct_size` is sizeof(*params). Any thread, any time.
int32_t offramp_generate_default_params(offramp_generate_params *params, size_t struct_size);

// Sends the log up to `level` (one of OFFRAMP_LOG_*) to `callback`; NULL ends it. When this returns, the callback that
// was set before no longer runs, on no thread: its user_data may be freed then. Any thread; not from the callback.
int32_t offramp_log_set(offramp_log_callback callback, void *user_data, int32_t level);

// Loads the model at `path_to_model`; of a split model that is the first file, beside which the others lie. `params` may
// be NULL for the defaults. This can take seconds; its progress callback runs on the calling thread and can stop it.
//
// The caller owns `*model` and frees it with offramp_model_free. Any thread; loads may run at the same time.
int32_t offramp_model_load(const char *path_to_model,
                           const offramp_model_params *params,
                           offramp_model **model);

// Frees a model; NULL is nothing. Sessions keep what they need of it: it may be freed before them. No other call may be
// in progress with this handle on another thread; what was read through offramp_model_info ends with it.
void offramp_model_free(offramp_model *model);

// Tells what `model` is. `struct_size` is sizeof(*info). Any thread, any time.
int32_t offramp_model_get_info(const offramp_model *model, offramp_model_info *info, size_t struct_size);

// Tells what the model at `path_to_model` would take with one session of `params` (NULL for the defaults), from its
// header alone. `struct_size` is sizeof(*memory). Any thread, any time.
int32_t offramp_memory_estimate(const char *path_to_model,
                                const offramp_session_params *params,
                                offramp_memory *memory,
                                size_t struct_size);

// Renders `n_messages` messages with the model's chat template, up to where the assistant's next turn begins, and
// copies the text (UTF-8, without a NUL) to `buffer`, which has room for `capacity` bytes. `*length` gets its length,
// with OFFRAMP_ERROR_BUFFER also where the room does not suffice; a NULL buffer with capacity 0 asks for it alone.
//
// Nothing is kept. Any thread, any time.
int32_t offramp_chat_render(const offramp_model *model,
                            const offramp_message *messages,
                            size_t n_messages,
                            char *buffer,
                            size_t capacity,
                            size_t *length);

// Tokenizes `length` bytes of UTF-8. Not 0: `add_special` adds what the model wants around a text, such as its BOS, and
// `parse_special` recognises special tokens that are written out. Say 0 to the latter for text that is not yours.
//
// Copies the token ids to `tokens`, which has room for `capacity`. `*n_tokens` gets their number, with
// OFFRAMP_ERROR_BUFFER also where the room does not suffice; NULL tokens with capacity 0 ask for it alone. Any thread.
int32_t offramp_tokenize(const offramp_model *model,
                         const char *text,
                         size_t length,
                         int32_t add_special,
                         int32_t parse_special,
                         int32_t *tokens,
                         size_t capacity,
                         size_t *n_tokens);

// Copies the text of `n_tokens` tokens to `buffer` (UTF-8, without a NUL; bytes that are no whole code point become
// U+FFFD). Not 0: `special` writes special tokens out. `*length` gets the length, with OFFRAMP_ERROR_BUFFER also where
// the room of `capacity` bytes does not suffice; a NULL buffer with capacity 0 asks for it alone. Any thread.
int32_t offramp_detokenize(const offramp_model *model,
                           const int32_t *tokens,
                           size_t n_tokens,
                           int32_t special,
                           char *buffer,
                           size_t capacity,
                           size_t *length);

// Checks `params` (NULL takes the defaults) for `model` and makes a sampler of them; a grammar is parsed here already.
//
// The caller owns `*sampler` and frees it with offramp_sampler_free. The grammar's text is copied. Any thread.
int32_t offramp_sampler_new(const offramp_model *model,
                            const offramp_sampler_params *params,
                            offramp_sampler **sampler);

// Frees a sampler; NULL is nothing. A reply that has begun keeps what it needs of it, so that its callback may do this;
// no other thread may still be about to use the handle.
void offramp_sampler_free(offramp_sampler *sampler);

// Makes a session on `model` with `params` (NULL for the defaults). It takes the memory of its K/V cache here.
//
// The caller owns `*session` and frees it with offramp_session_free. Any thread.
int32_t offramp_session_new(const offramp_model *model,
                            const offramp_session_params *params,
                            offramp_session **session);

// Frees a session; NULL is nothing. A callback of a call on it may do this: the call then ends first. No other call
// may be in progress on another thread, offramp_session_cancel included.
void offramp_session_free(offramp_session *session);

// Stops the call in progress on `session`, and every later prompt and reply until offramp_session_clear_cancel. A
// decode is given up within a fraction of a token; what was emitted stays. Any thread, any time, signal handlers no.
int32_t offramp_session_cancel(const offramp_session *session);

// Lets `session` go on after offramp_session_cancel. Any thread, any time.
int32_t offramp_session_clear_cancel(const offramp_session *session);

// Makes `n_tokens` tokens the session's text. The K/V of what they share with the present text are kept; the rest is
// decoded. `progress` may be NULL; 0 from it, or a cancel, ends this with OFFRAMP_ERROR_CANCELLED, and what was decoded
// is reused by the next call. A text that is longer than the context changes nothing. One call at a time.
int32_t offramp_session_set_prompt(offramp_session *session,
                                   const int32_t *tokens,
                                   size_t n_tokens,
                                   offramp_progress_callback progress,
                                   void *user_data);

// As offramp_session_set_prompt, with `length` bytes of UTF-8, in which special tokens that are written out count.
int32_t offramp_session_set_text(offramp_session *session,
                                 const char *text,
                                 size_t length,
                                 offramp_progress_callback progress,
                                 void *user_data);

// As offramp_session_set_prompt, with a conversation in the model's chat template, up to where the assistant's next
// turn begins. Give all turns each time: what did not change is not decoded again. The messages are copied.
int32_t offramp_session_set_chat(offramp_session *session,
                                 const offramp_message *messages,
                                 size_t n_messages,
                                 offramp_progress_callback progress,
                                 void *user_data);

// Copies the token ids of the session's whole text to `tokens`, which has room for `capacity`. `*n_tokens` gets their
// number, with OFFRAMP_ERROR_BUFFER also where the room does not suffice; NULL tokens with capacity 0 ask for it alone.
// One call at a time.
int32_t offramp_session_tokens(const offramp_session *session, int32_t *tokens, size_t capacity, size_t *n_tokens);

// Tells how many tokens the session's context holds. One call at a time.
int32_t offramp_session_n_ctx(const offramp_session *session, size_t *n_ctx);

// Cuts the session's text to its first `n_tokens` tokens; more than it has change nothing. One call at a time.
int32_t offramp_session_truncate(offramp_session *session, size_t n_tokens);

// Forgets the session's whole text. One call at a time.
int32_t offramp_session_clear(offramp_session *session);

// Writes the session's text and its K/V cache to a file, whole or not at all; an old file is replaced. Models with a
// recurrent state answer OFFRAMP_ERROR_UNSUPPORTED. One call at a time.
int32_t offramp_session_save(offramp_session *session, const char *path_to_file);

// Replaces the session's text and cache by those of a file that offramp_session_save wrote with the same model and the
// same cache formats. A file that does not fit answers OFFRAMP_ERROR_STATE and changes nothing. One call at a time.
int32_t offramp_session_load(offramp_session *session, const char *path_to_file);

// Generates a reply to the session's text and hands it out in pieces. `sampler` may be NULL for a greedy one, `params`
// for the defaults, `on_token` if only the session's tokens are wanted; nothing of the three is kept. A reply
// that was cancelled or stopped is a success: offramp_session_statistics tells why it ended. One call at a time.
int32_t offramp_session_generate(offramp_session *session,
                                 const offramp_sampler *sampler,
                                 const offramp_generate_params *params,
                                 offramp_token_callback on_token,
                                 void *user_data);

// Tells about the session's last prompt and last reply. `struct_size` is sizeof(*statistics). One call at a time.
int32_t offramp_session_statistics(const offramp_session *session, offramp_statistics *statistics, size_t struct_size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* OFFRAMP_H */
